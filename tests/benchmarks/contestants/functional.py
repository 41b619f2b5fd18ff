"""Contestants that are a pair of functions: update and apply in one compiled, donated program."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

compiled: list[float] = []


def _listen(event: str, seconds: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
        compiled.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


class Functional:
    """A step is what XLA compiled for it, called with trees; parameters and state are donated."""

    apply: Any
    dtype: Any = jnp.float32

    def __init__(self, optimizer: str, shapes: list[tuple[int, ...]], rate: float):
        self.optimizer, self.rate = optimizer, rate
        self.tx = self.transformation(rate)
        self.params = [jnp.full(shape, 0.02, self.dtype) for shape in shapes]
        self.grads = [jnp.full(shape, 0.01, self.dtype) for shape in shapes]
        self.state = jax.jit(self.tx.init)(self.params)

    def transformation(self, rate: float) -> Any:
        raise NotImplementedError

    def start(self) -> dict[str, Any]:
        apply, tx = self.apply, self.tx

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return apply(params, updates), state

        begin = time.perf_counter()
        traced = jax.jit(step, donate_argnums=(0, 1)).trace(self.params, self.state, self.grads)
        after_trace = time.perf_counter()
        lowered = traced.lower()
        after_lower = time.perf_counter()
        self.program: Any = lowered.compile()
        after_compile = time.perf_counter()
        self.step()
        self.wait()
        return {
            "trace": after_trace - begin,
            "lower": after_lower - after_trace,
            "compile": after_compile - after_lower,
            "first": time.perf_counter() - begin,
            "temp": self.program.memory_analysis().temp_size_in_bytes,
        }

    def step(self) -> None:
        self.params, self.state = self.program(self.params, self.state, self.grads)

    def wait(self) -> None:
        jax.block_until_ready((self.params, self.state))

    def compiles(self) -> int:
        return len(compiled)


class Paddlejax(Functional):
    def __init__(self, *arguments: Any, fusion: bool = False):
        import paddlejax as pj
        from paddlejax.cpu_fusion import enable_cpu_fusion

        if fusion and not enable_cpu_fusion():
            raise NotImplementedError("only CPU needs it")
        self.pj, self.apply = pj, pj.apply_updates
        super().__init__(*arguments)

    def transformation(self, rate: float) -> Any:
        pj = self.pj
        makers = {
            "sgd": lambda: pj.sgd(rate),
            "momentum": lambda: pj.momentum(rate, 0.9),
            "adam": lambda: pj.adam(rate),
            "adamw": lambda: pj.adamw(rate, weight_decay=0.01),
            "rmsprop": lambda: pj.rmsprop(rate, 0.95, momentum=0.9),
            "lamb": lambda: pj.lamb(rate),
            "lars": lambda: pj.lars_momentum(rate, 0.9),
        }
        return makers[self.optimizer]()

    def set_rate(self, rate: float) -> None:
        self.state = self.pj.set_learning_rate(self.state, rate)


class Optax(Functional):
    """With the rate as a number, as in its examples, a new one is a new program; `inject` makes it data."""

    def __init__(self, *arguments: Any, inject: bool = False):
        import optax

        self.optax, self.inject, self.apply = optax, inject, optax.apply_updates
        super().__init__(*arguments)

    def transformation(self, rate: float) -> Any:
        optax = self.optax
        makers = {
            "sgd": (optax.sgd, {}),
            "momentum": (optax.sgd, {"momentum": 0.9}),
            "adam": (optax.adam, {}),
            "adamw": (optax.adamw, {"weight_decay": 0.01}),
            "rmsprop": (optax.rmsprop, {"decay": 0.95, "momentum": 0.9}),
            "lamb": (optax.lamb, {"weight_decay": 0.01}),
            "lars": (optax.lars, {"weight_decay": 5e-4}),
        }
        make, arguments = makers[self.optimizer]
        return (optax.inject_hyperparams(make) if self.inject else make)(learning_rate=rate, **arguments)

    def set_rate(self, rate: float) -> None:
        if self.inject:
            self.state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        else:
            self.tx = self.transformation(rate)
            self.start()


class Roof(Functional):
    """What memory allows: a <- a + b s in place over as many elements, 12 bytes each, no optimizer."""

    def __init__(self, optimizer: str, shapes: list[tuple[int, ...]], rate: float):
        super().__init__(optimizer, [(sum(int(np.prod(shape)) for shape in shapes),)], rate)

    def transformation(self, rate: float) -> Any:
        import optax

        return optax.sgd(rate)

    def apply(self, params: Any, updates: Any) -> Any:
        return jax.tree.map(jnp.add, params, updates)

    def set_rate(self, rate: float) -> None:
        pass
