"""Optimizers around an optimizer, as Paddle has them: lookahead, gradient accumulation, recomputation."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import pages
from ..accumulate import add, check_accumulation, merge
from ..array_types import Numeric
from ..average import check_lookahead, interpolate, lookahead
from ..hyper import ArgumentError
from ..selected_rows import dense
from ..trees import compute_dtype, is_narrow
from .arguments import check_program, checked_name, checked_pairs
from .cohorts import raise_if
from .entries import Entries
from .loss import Loss
from .optimizer import Optimizer, Pairs
from .parameter import Parameter


class Wrapper:
    """Base of the wrappers: whatever they do not change is the inner optimizer's.

    `clear_grad`, `get_lr`, `set_lr`, `current_step_lr` and so on are forwarded.
    """

    def __init__(self, inner_optimizer: Any):
        self.inner_optimizer = inner_optimizer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner_optimizer":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.inner_optimizer, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner_optimizer!r})"

    @property
    def parameter_list(self) -> list[Parameter]:
        """The Parameters of the innermost optimizer, in its order."""
        return self.inner_optimizer.parameter_list

    def step(self, *closure: Any) -> Any:
        """One step from the parameters' `.grad`, or with the closure that the inner optimizer wants."""
        return self.inner_optimizer.step(*closure)

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; further arguments are those of the inner optimizer's `minimize`."""
        return self.inner_optimizer.minimize(loss, startup_program, *args, **kwargs)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """One step with exactly these gradients."""
        return self.inner_optimizer.apply_gradients(params_grads)

    def apply_optimize(
        self, loss: Any, startup_program: None, params_grads: Iterable[tuple[Parameter, Any]]
    ) -> list[Any]:
        """`apply_gradients`, with the arguments of Paddle's older method."""
        check_program(startup_program)
        return self.apply_gradients(params_grads)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the wrapper's own entries."""
        return self.inner_optimizer.state_dict()

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise an error that tells what does not fit, and change
        nothing."""
        self.inner_optimizer.set_state_dict(state_dict, strict)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        self.set_state_dict(state_dict, strict)

    def set_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        self.set_state_dict(state_dict, strict)


def innermost(optimizer: Any) -> Any:
    """The optimizer that all wrappers are around."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.inner_optimizer
    return optimizer


def is_optimizer(x: Any) -> bool:
    return isinstance(x, Optimizer | Wrapper)


@jax.jit
def _synced(values: list[jax.Array], slow: list[jax.Array], alpha: Any) -> list[jax.Array]:
    return [interpolate(p, s, alpha) for p, s in zip(values, slow, strict=True)]


_add = jax.jit(add)  # not donated: a step that fails leaves the sums as they were
_merge = jax.jit(merge, static_argnums=(1, 2))


@pages.of(lookahead)
class LookAhead(Wrapper):
    """Paddle's LookAhead around an optimizer, see `lookahead`.

    Its state_dict holds everything: the inner state, the slow weights (`w_slow_0`) and the counter
    (`lookahead_step_0`). `get_lr` and `set_lr` are the inner optimizer's.

    >>> w = Parameter(jnp.zeros(1), "w")
    >>> opt = LookAhead(paddle.optimizer.SGD(1.0, [w]), alpha=0.5, k=2)
    >>> for _ in range(2):
    ...     _ = opt.apply_gradients([(w, -jnp.ones(1))])
    >>> print(w.value)
    [1.5]
    """

    _slow_from_the_start = False  # Paddle 1.x: the initial parameters, else what the first step led to
    _counter = "lookahead_step_0"

    def __init__(self, inner_optimizer: Any, alpha: Numeric = 0.5, k: int = 5, name: str | None = None):
        check_lookahead(type(self).__name__, inner_optimizer, alpha, k, is_optimizer(inner_optimizer))
        super().__init__(inner_optimizer)
        self.alpha, self.k, self._name = float(alpha), k, checked_name(name)
        self._count = 0
        self._slow: dict[Parameter, jax.Array] = {}

    def step(self, *closure: Any) -> Any:
        """The inner optimizer's step, then at every k-th the way back towards the slow weights."""
        self._before()
        result = super().step(*closure)
        self._after([p for p in self.parameter_list if p.trainable and p.lazy_grad is not None])
        return result

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; what the inner optimizer returns."""
        self._before()
        result = super().minimize(loss, startup_program, *args, **kwargs)
        self._after([p for p, g in result[1] if g is not None])
        return result

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """One step with exactly these gradients."""
        pairs = list(params_grads) if isinstance(params_grads, Iterable) else params_grads
        self._before()
        result = super().apply_gradients(pairs)
        self._after([p for p, g in pairs if g is not None and p.trainable])
        return result

    def _before(self) -> None:
        if self._slow_from_the_start:
            self._start_slow(set(self.parameter_list))

    def _after(self, moved: list[Parameter]) -> None:
        self._count += 1
        if not self._slow_from_the_start:
            self._start_slow(set(moved) if self._count == 1 else set())
        if self._count % self.k == 0 and moved:
            masters = self._masters()
            fast = [jnp.asarray(masters.get(p, p.peek()), self._dtype(p)) for p in moved]
            slow = [self._slow[p] for p in moved]
            for p, value in zip(moved, _synced(fast, slow, self.alpha), strict=True):
                self._slow[p] = value
                # Copies: the next step donates what is p's and its master's.
                if p in masters:
                    innermost(self).set_masters({p: jnp.copy(value)})
                p.store.put(jnp.array(value, p.dtype))

    def _start_slow(self, led: set[Parameter]) -> None:
        """Slow weights for the parameters that have none: where they stand if they are `led`, else zeros."""
        new = [p for p in self.parameter_list if p.trainable and p not in self._slow]
        masters = self._masters() if new else {}
        for p in new:
            start = masters.get(p, p.peek()) if p in led else jnp.zeros_like(p.peek())
            self._slow[p] = jnp.array(start, self._dtype(p))

    def _masters(self) -> dict[Parameter, jax.Array]:
        """What the inner optimizer moves in place of 16-bit parameters, if it keeps masters."""
        return getattr(innermost(self), "masters", None) or {}

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, the slow weights and the counter."""
        if not self._count:
            return super().state_dict()
        slow = {self._key(p): jnp.copy(s) for p, s in self._slow.items()}
        return {**super().state_dict(), **slow, self._counter: np.array([self._count], np.int32)}

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise an error that tells what does not fit, and change
        nothing."""
        entries = Entries(state_dict)
        stepped = any(key not in ("LR_Scheduler", "global_step") for key in entries.rest)
        count = entries.scalar(self._counter, required=strict and stepped) or 0
        slow = {
            p: entries.take(
                self._key(p), p.shape, self._dtype(p), required=strict and p.trainable and count > 0
            )
            for p in self.parameter_list
        }
        raise_if(entries.problems)
        super().set_state_dict(entries.rest, strict)
        self._count, self._slow = count, {p: s for p, s in slow.items() if s is not None}

    def _dtype(self, p: Parameter) -> Any:
        kept = getattr(innermost(self), "masters", None) is not None
        return jnp.float32 if kept and is_narrow(p.peek()) else p.dtype

    def _key(self, p: Parameter) -> str:
        return "_".join([p.name, *([self._name] if self._name else []), "slow", "0"])


class GradientMergeOptimizer(Wrapper):
    """Paddle's GradientMergeOptimizer: one step for every k_steps gradients, see `accumulate_gradients`.

    Clear the gradients between calls, as ever. A parameter that had a gradient in any of the k_steps calls
    takes part in the step.

    >>> w = Parameter(jnp.zeros(1), "w")
    >>> opt = GradientMergeOptimizer(paddle.optimizer.SGD(1.0, [w]), k_steps=2)
    >>> for g in (1.0, 3.0):
    ...     _ = opt.apply_gradients([(w, jnp.array([g]))])
    >>> print(w.value)
    [-2.]
    """

    def __init__(self, inner_optimizer: Any, k_steps: int = 1, avg: bool = True):
        what = type(self).__name__
        check_accumulation(what, inner_optimizer, k_steps, avg, is_optimizer(inner_optimizer), "k_steps")
        super().__init__(inner_optimizer)
        self.k_steps, self.avg = k_steps, avg
        self._count = 0
        self._sums: dict[Parameter, jax.Array] = {}

    def step(self, *closure: Any) -> Any:
        """Gather every parameter's `.grad`; at every k-th call the inner optimizer steps."""
        if self.k_steps == 1:
            return super().step(*closure)
        if closure:
            raise TypeError("GradientMergeOptimizer's step: found a closure, expected none")
        self._gather([(p, p.grad) for p in self.parameter_list if p.trainable and p.lazy_grad is not None])

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and gather; `([], pairs)` with the gradients of this call."""
        if self.k_steps == 1:
            return super().minimize(loss, startup_program, *args, **kwargs)
        pairs = self.inner_optimizer.backward(loss, startup_program, *args, **kwargs)
        self._gather(pairs)
        return [], pairs

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """Gather exactly these gradients."""
        if self.k_steps == 1:
            return super().apply_gradients(params_grads)
        self._gather(list(checked_pairs(params_grads, self.parameter_list).items()))
        return []

    def _gather(self, pairs: Pairs) -> None:
        sums = dict(self._sums)
        pairs = [(p, dense(g)) for p, g in pairs]
        old = [(p, g) for p, g in pairs if p in sums]
        if old:
            added = _add([sums[p] for p, _ in old], [g for _, g in old])
            self._sums |= dict(zip([p for p, _ in old], added, strict=True))
        for p, g in pairs:
            if p not in sums:
                self._sums[p] = jnp.array(g, compute_dtype((), p.peek()))
        self._count += 1
        if self._count == self.k_steps:
            merged = _merge(list(self._sums.values()), self.k_steps, self.avg)
            whole = list(zip(self._sums, merged, strict=True))
            try:
                self.inner_optimizer.apply_gradients(whole)
            except BaseException:  # as if it had not been called
                self._count, self._sums = self._count - 1, sums
                raise
            self._count, self._sums = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and between steps the sums and the counter."""
        if not self._count:
            return super().state_dict()
        sums = {self._key(p): jnp.copy(s) for p, s in self._sums.items()}
        return {**super().state_dict(), **sums, "gradient_merge_step": np.array([self._count], np.int32)}

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise an error that tells what does not fit, and change
        nothing."""
        entries = Entries(state_dict)
        count = entries.scalar("gradient_merge_step", required=False) or 0
        sums = {
            p: entries.take(self._key(p), p.shape, compute_dtype((), p.peek()), required=False)
            for p in self.parameter_list
            if entries.has(self._key(p))
        }
        if sums and not count:  # without sums a count stands where no parameter had a gradient
            entries.problems.append(
                f"gradient_merge_step is {count}, but there are {len(sums)} sums beside it"
            )
        if not 0 <= count < self.k_steps:
            entries.problems.append(f"gradient_merge_step is {count}, expected less than {self.k_steps}")
        raise_if(entries.problems)
        super().set_state_dict(entries.rest, strict)
        self._count, self._sums = count, {p: s for p, s in sums.items() if s is not None}

    def _key(self, p: Parameter) -> str:
        return f"{p.name}@GRAD@GradientMerge"


class RecomputeOptimizer(Wrapper):
    """Paddle's RecomputeOptimizer: the backward pass computes activations again instead of keeping them.

    The loss function runs under `jax.checkpoint`; memory changes, values do not. Checkpoints are names given
    to activations inside the loss with `jax.ad_checkpoint.checkpoint_name`: these are kept. Without any, only
    the arguments of the loss are.

    >>> w = Parameter(jnp.ones(1), "w")
    >>> opt = RecomputeOptimizer(paddle.optimizer.SGD(0.5, [w]))
    >>> _ = opt.minimize(lambda params: jnp.sum(jnp.sin(params[0])))
    >>> print(w.value)
    [0.7298]
    """

    def __init__(self, optimizer: Any):
        name = type(self).__name__
        if optimizer is None:
            raise ArgumentError(f"{name}'s optimizer is not set: found None, expected an optimizer")
        if not is_optimizer(optimizer):
            raise TypeError(f"{name}'s optimizer: found {optimizer!r}, expected an optimizer")
        super().__init__(optimizer)
        self._set_checkpoints([])

    def _set_checkpoints(self, checkpoints: Any) -> None:
        """Names of activations to keep."""
        if not isinstance(checkpoints, list | tuple) or not all(isinstance(c, str) for c in checkpoints):
            expected = "expected a list of names given with jax.ad_checkpoint.checkpoint_name"
            raise TypeError(f"checkpoints: found {checkpoints!r}, {expected}")
        self._checkpoints = tuple(checkpoints)
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward, with activations computed again, and step."""
        return super().minimize(self._recomputing(loss), startup_program, *args, **kwargs)

    def backward(self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any) -> Pairs:
        """The first half of `minimize`."""
        return self.inner_optimizer.backward(self._recomputing(loss), startup_program, *args, **kwargs)

    def load(self, state_dict: Any) -> None:
        """Not there, as in Paddle: `set_state_dict` is."""
        raise NotImplementedError("RecomputeOptimizer has no load; use set_state_dict")

    def _recomputing(self, loss: Any) -> Any:
        if isinstance(loss, Loss):
            function = loss.call.function
            if not loss.ran_backward and not hasattr(function, "recomputes"):
                # The same function every time, so that equal calls share a compiled program.
                if function not in self._functions:
                    self._functions[function] = _recomputing(function, self._checkpoints)
                loss.call = loss.call.running(self._functions[function])
            return loss
        return _recomputing(loss, self._checkpoints) if callable(loss) else loss


def _recomputing(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The function under jax.checkpoint, which takes arrays only: what else it is given stays outside."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        at = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)]

        @functools.partial(jax.checkpoint, policy=policy)
        def on_arrays(arrays: list[Any]) -> Any:
            new = dict(zip(at, arrays, strict=True))
            args, kwargs = tree.unflatten([new.get(i, x) for i, x in enumerate(leaves)])
            return function(*args, **kwargs)

        return on_arrays([leaves[i] for i in at])

    run.recomputes = True  # type: ignore[attr-defined]
    return run
