"""paddlejax's Paddle-style objects."""

import inspect
import time
from typing import Any

import jax
import jax.numpy as jnp

import paddlejax

from .eager import paddles
from .functional import compiled


class Object:
    """`step()` from gradients that are there; or `minimize` of a loss linear in the parameters."""

    def __init__(
        self,
        optimizer: str,
        shapes: list[tuple[int, ...]],
        rate: float,
        minimize: bool = False,
        packed: bool = False,
    ):
        if packed and "packed" not in inspect.signature(paddlejax.optimizer.Adam).parameters:
            raise NotImplementedError("this paddlejax has no packed mode")
        values = {f"p{i}": jnp.full(shape, 0.02) for i, shape in enumerate(shapes)}
        self.params = paddlejax.parameters(values)
        del values
        more = {"packed": True} if packed else {}
        self.optimizer = paddles(paddlejax, optimizer, list(self.params.values()), rate, **more)
        self.grads = {}
        for name, p in self.params.items():
            g = jnp.full(p.shape, 0.01)
            if minimize:
                self.grads[name] = g
            else:
                p.grad = g
        self.first = next(iter(self.params.values()))
        self.minimize = minimize

    @staticmethod
    @paddlejax.loss
    def loss(params: Any, grads: Any) -> Any:
        return sum(jnp.sum(p * grads[name]) for name, p in params.items())

    def start(self) -> dict[str, Any]:
        before, begin = len(compiled), time.perf_counter()
        self.step()
        self.wait()
        return {"first": time.perf_counter() - begin, "compile": sum(compiled[before:])}

    def step(self) -> None:
        if self.minimize:
            self.optimizer.minimize(self.loss(self.params, self.grads))
            self.optimizer.clear_grad()
        else:
            self.optimizer.step()

    def wait(self) -> None:
        # One result of the program, and no hold on it: the next step would copy what `.value` gave away.
        jax.block_until_ready(self.first.peek())

    def set_rate(self, rate: float) -> None:
        self.optimizer.set_lr(rate)

    def compiles(self) -> int:
        return len(compiled)
