"""Parameters in bfloat16 with float32 masters, and what copying costs."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from .functional import Functional, Optax, Paddlejax


class PaddlejaxMasters(Paddlejax):
    dtype = jnp.bfloat16

    def transformation(self, rate: float) -> Any:
        return self.pj.with_master_weights(super().transformation(rate))


class OptaxMasters(Optax):
    """optax has no masters: they are kept beside its state, as training loops do it."""

    dtype = jnp.bfloat16

    def transformation(self, rate: float) -> Any:
        inner, optax = super().transformation(rate), self.optax

        def init(params: Any) -> Any:
            masters = [p.astype(jnp.float32) for p in params]
            return masters, inner.init(masters)

        def update(grads: Any, state: Any, params: Any) -> Any:
            masters, state = state
            updates, state = inner.update([g.astype(jnp.float32) for g in grads], state, masters)
            masters = optax.apply_updates(masters, updates)
            return [m.astype(jnp.bfloat16) for m in masters], (masters, state)

        self.apply = lambda params, updates: updates
        return optax.GradientTransformation(init, update)


class Copy(Functional):
    """One array into another, 8 bytes per element: the bandwidth that shares are of."""

    def __init__(self, optimizer: str, shapes: list[tuple[int, ...]], rate: float):
        (shape,) = shapes
        self.params = jnp.ones(shape)
        self.state = None

    def start(self) -> dict[str, Any]:
        begin = time.perf_counter()
        self.program = jax.jit(lambda x: x + 1).lower(self.params).compile()
        self.step()
        self.wait()
        return {"first": time.perf_counter() - begin}

    def step(self) -> None:
        self.state = self.program(self.params)

    def set_rate(self, rate: float) -> None:
        pass
