"""Optimizers around an optimizer, as Paddle has them: lookahead, gradient accumulation, recomputation."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import pages
from ..accumulate import add, merge
from ..array_types import Numeric
from ..average import LookaheadState, lookahead
from ..hyper import COUNT, FLAG, FRACTION, NAME, Must, checked, given
from ..lifting import GradientTransformation
from ..selected_rows import dense
from ..trees import compute_dtype, is_narrow
from .arguments import check_program
from .ledger import ArrayField, CountField, Entries, load, written
from .loss import Loss
from .optimizer import SCHEDULE, Optimizer, Pairs
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

    _part: Any = None  # what it adds to a step of the innermost optimizer

    def _within(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the inner optimizer; the step that it makes has this wrapper's part in it."""
        base = innermost(self)
        outer = base.layers
        base.layers = (self._part, *outer)
        try:
            return method(*args, **kwargs)
        finally:
            base.layers = outer

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
        load(self._loading, state_dict, strict)

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read the wrapper's entries and the inner optimizer's, and after the `yield` put them in force."""
        return self.inner_optimizer._loading(entries, strict)

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


OPTIMIZER = given("an optimizer"), Must(is_optimizer, "an optimizer")


class _Lookahead:
    """`lookahead` in the step of an object: the number of steps, and slow weights by position."""

    waits = False

    def __init__(self, optimizer: Any, alpha: float, k: int, slow_start: str):
        self._optimizer, self._arguments, self._slow_start = optimizer, (alpha, k), slow_start
        self.count: Any = np.zeros((), np.int32)
        self.slow: dict[int, jax.Array] = {}

    def joins(self, i: int) -> bool:
        return False

    def takes_rows(self) -> bool:
        return False

    def idle(self) -> None:
        """Count a step in which no Parameter has a gradient."""
        self.count, self.slow = self.count + np.ones((), np.int32), self._started()

    def around(self, tx: Any) -> Any:
        return lookahead(tx, *self._arguments, slow_start=self._slow_start)

    def state(self, positions: Sequence[int], inner: Any) -> LookaheadState:
        slow = self._started()
        return LookaheadState(self.count, [slow[i] for i in positions], inner)

    def keep(self, positions: Sequence[int], state: LookaheadState) -> Any:
        new = zip(positions, state.slow, strict=True)
        self.count, self.slow = state.count, self._started() | dict(new)
        return state.inner

    def dtype(self, p: Parameter) -> Any:
        """Return the dtype of a slow weight: float32 where the optimizer moves a master."""
        return jnp.float32 if self._optimizer.masters is not None and is_narrow(p.peek()) else p.dtype

    def _started(self) -> dict[int, jax.Array]:
        """Return the slow weights of all trainable Parameters; new ones as `lookahead` starts them."""
        new = [
            (i, p) for i, p in enumerate(self._optimizer.parameter_list) if p.trainable and i not in self.slow
        ]
        if not new:
            return self.slow
        if self._slow_start == "first_step":
            return self.slow | {i: jnp.zeros_like(p.peek(), self.dtype(p)) for i, p in new}
        masters = self._optimizer.masters or {}
        return self.slow | {i: jnp.array(masters.get(p, p.peek()), self.dtype(p)) for i, p in new}


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

    @checked(inner_optimizer=OPTIMIZER, alpha=FRACTION, k=COUNT, name=NAME)
    def __init__(self, inner_optimizer: Any, alpha: Numeric = 0.5, k: int = 5, name: str | None = None):
        super().__init__(inner_optimizer)
        self.alpha, self.k, self._name = float(alpha), k, name
        slow_start = "initial" if self._slow_from_the_start else "first_step"
        self._part = _Lookahead(innermost(self), self.alpha, k, slow_start)

    def step(self, *closure: Any) -> Any:
        """The inner optimizer's step, and at every k-th the way back towards the slow weights."""
        return self._within(self.inner_optimizer.step, *closure)

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; what the inner optimizer returns."""
        return self._within(self.inner_optimizer.minimize, loss, startup_program, *args, **kwargs)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """One step with exactly these gradients."""
        return self._within(self.inner_optimizer.apply_gradients, params_grads)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, the slow weights and the counter."""
        count = int(self._part.count)
        if not count:
            return super().state_dict()
        slow = ((self._field(self.parameter_list[i]), s) for i, s in self._part.slow.items())
        return super().state_dict() | written([*slow, (CountField(self._counter, np.int32), count)])

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        stepped = any(key not in (SCHEDULE, "global_step") for key in entries.rest)
        count = entries.read(CountField(self._counter, required=strict and stepped)) or 0
        needed = strict and count > 0
        fields = {i: self._field(p, needed and p.trainable) for i, p in enumerate(self.parameter_list)}
        slow = entries.read_all(fields)
        yield from super()._loading(entries, strict)
        self._part.count = jnp.array(count, jnp.int32)
        self._part.slow = {i: s for i, s in slow.items() if s is not None}

    def _field(self, p: Parameter, required: bool = True) -> ArrayField:
        return ArrayField(self._key(p), p.shape, self._part.dtype(p), required=required)

    def _key(self, p: Parameter) -> str:
        return "_".join([p.name, *([self._name] if self._name else []), "slow", "0"])


class _Merge:
    """The sums of gradients between two steps of an object, by position, and how many each is of.

    The number is known on the host. So a step that only gathers is a program of its own, which touches no
    parameter and no accumulator.
    """

    def __init__(self, optimizer: Any, k: int, avg: bool):
        self._optimizer, self._k, self._avg = optimizer, k, avg
        self.count = 0
        self.sums: dict[int, jax.Array] = {}
        self._zeros: dict[int, jax.Array] = {}  # the memory of earlier sums, which the next ones take

    @property
    def waits(self) -> bool:
        return self.count + 1 < self._k

    def joins(self, i: int) -> bool:
        """Whoever had a gradient in one of the calls takes part in the step."""
        return not self.waits and i in self.sums

    def takes_rows(self) -> bool:
        return True

    def idle(self) -> None:
        """Count a call without any gradient."""
        self.count = (self.count + 1) % self._k

    def around(self, tx: Any) -> Any:
        waits = self.waits

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            sums, inner = state
            sums = [_plus(s, g, p) for s, g, p in zip(sums, grads, params, strict=True)]
            given = sums if waits else merge(sums, self._k, self._avg)
            updates, inner = tx.update(given, inner, params, **extra)
            return updates, (sums if waits else [jnp.zeros_like(s) for s in sums], inner)

        return GradientTransformation(tx.init, update)

    def state(self, positions: Sequence[int], inner: Any) -> Any:
        sums = self._zeros | self.sums
        self._after = (self.count + 1) % self._k
        return [sums.get(i) for i in positions], inner

    def keep(self, positions: Sequence[int], state: Any) -> Any:
        new, inner = state
        arrays = dict(zip(positions, new, strict=True))
        self.count = self._after
        self._zeros = {i: x for i, x in self._zeros.items() if i not in arrays} | (
            arrays if not self.count else {}
        )
        self.sums = self.sums | arrays if self.count else {}
        return inner


def _plus(total: Any, g: Any, p: Any) -> Any:
    """The sum with another gradient, in float32 or wider; either may be missing."""
    if g is None:
        return total
    return jnp.asarray(dense(g), compute_dtype((), p)) if total is None else add([total], [dense(g)])[0]


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

    @checked(inner_optimizer=OPTIMIZER, k_steps=COUNT, avg=FLAG)
    def __init__(self, inner_optimizer: Any, k_steps: int = 1, avg: bool = True):
        super().__init__(inner_optimizer)
        self.k_steps, self.avg = k_steps, avg
        self._part = _Merge(innermost(self), k_steps, avg)

    def _gathering(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs) if self.k_steps == 1 else self._within(method, *args, **kwargs)

    def step(self, *closure: Any) -> Any:
        """Gather every parameter's `.grad`; at every k-th call the inner optimizer steps."""
        if self.k_steps > 1 and closure:
            raise TypeError("GradientMergeOptimizer's step: found a closure, expected none")
        return self._gathering(self.inner_optimizer.step, *closure)

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and gather; `([], pairs)` with the gradients of this call."""
        return self._gathering(self.inner_optimizer.minimize, loss, startup_program, *args, **kwargs)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """Gather exactly these gradients."""
        return self._gathering(self.inner_optimizer.apply_gradients, params_grads)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and between steps the sums and the counter."""
        count = self._part.count
        if not count:
            return super().state_dict()
        sums = ((self._field(self.parameter_list[i]), s) for i, s in self._part.sums.items())
        return super().state_dict() | written([*sums, (self._count_field(), count)])

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        count = entries.read(self._count_field()) or 0
        found = entries.read_all({i: self._field(p) for i, p in enumerate(self.parameter_list)})
        sums = {i: s for i, s in found.items() if s is not None}
        if sums and not count:  # without sums a count stands where no parameter had a gradient
            entries.problems.append(
                f"gradient_merge_step is {count}, but there are {len(sums)} sums beside it"
            )
        yield from super()._loading(entries, strict)
        self._part.count, self._part.sums = count, sums

    def _count_field(self) -> CountField:
        return CountField("gradient_merge_step", np.int32, high=self.k_steps - 1, required=False)

    def _field(self, p: Parameter) -> ArrayField:
        key = f"{p.name}@GRAD@GradientMerge"
        return ArrayField(key, p.shape, compute_dtype((), p.peek()), required=False)


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

    @checked(optimizer=OPTIMIZER)
    def __init__(self, optimizer: Any):
        super().__init__(optimizer)
        self._set_checkpoints([])

    @checked(
        checkpoints=Must(
            lambda names: isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
            "a list of names given with jax.ad_checkpoint.checkpoint_name",
        )
    )
    def _set_checkpoints(self, checkpoints: Any) -> None:
        """Names of activations to keep."""
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
