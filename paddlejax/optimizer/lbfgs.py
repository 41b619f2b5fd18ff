"""Paddle's LBFGS: the machine of `paddlejax.lbfgs`, driven by a closure."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import Must, checked
from ..quasi_newton import METHOD, Call, Layout, LBFGSState, Method, absorb, begin, proposed
from .cohorts import raise_if
from .compiled import CompiledStep
from .loss import Loss
from .lr import Rate
from .optimizer import Optimizer
from .parameter import ZEROS, Parameter

VECTORS, SCALARS = ("d", "prev_flat_grad"), ("alpha", "H_diag", "prev_loss")
HISTORY = {"old_yk": True, "old_sk": True, "ro": False, "al": False}  # lists; whether of vectors
COUNTERS = ("func_evals", "n_iter")
NOTHING = Must(
    lambda x: x is None,
    "None; put what is to be minimized into the closure's loss",
    NotImplementedError,
)


class LBFGS(Optimizer):
    """Paddle's LBFGS, see `lbfgs`: `step(closure)` makes up to max_iter iterations.

    The closure clears the gradients, computes the loss, runs backward and returns the loss, a `Loss` or a
    number; it is called several times a step. A parameter without a gradient counts as one of zeros. A step
    whose closure fails changes nothing. The history starts afresh when other parameters are trained.

    Unlike Paddle it optimizes all groups, not the last alone, `set_lr` sets the rate that is used, and
    `set_state_dict` restores everything. weight_decay, grad_clip and factors on the rate, which Paddle
    ignores, are refused: the line search needs the gradient of the very loss that the closure returns.

    >>> w = Parameter(jnp.array([3.0, -4.0]))
    >>> opt = LBFGS(line_search_fn="strong_wolfe", parameters=[w])
    >>> def closure():
    ...     opt.clear_grad(); y = loss(lambda w: jnp.sum((w - 1) ** 4))(w); y.backward(); return y
    >>> print(float(opt.step(closure)), abs(w.value - 1).max() < 0.1)
    641.0 True
    """

    @checked(weight_decay=NOTHING, grad_clip=NOTHING, **METHOD)
    def __init__(
        self,
        learning_rate: Rate = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
    ):
        numbers = max_iter, max_eval, tolerance_grad, tolerance_change, history_size
        self._method = Method(*numbers, line_search_fn)
        super().__init__(learning_rate, parameters, None, None, name)
        if not self.parameter_list:
            raise IndexError("parameters: found none, expected at least one Parameter")
        for p, own in zip(self.parameter_list, self._options, strict=True):
            extras = {"weight decay": own.weight_decay, "gradient clip": own.grad_clip}
            wrong = [f"a {what}" for what, given in extras.items() if given is not None]
            wrong += ["a learning_rate factor"] if own.learning_rate != 1 else []
            if wrong:
                found = f"Parameter {p.name} or its group has {' and '.join(wrong)}"
                raise NotImplementedError(f"{found}, which LBFGS cannot give to a part of the parameters")
        self._state: LBFGSState | None = None
        self._trained: list[Parameter] = []  # whose values lie in the state's vectors, in this order

    # ------------------------------------------------------------------ one step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Minimize what the closure returns; its first result, the loss before the step."""
        if not callable(closure):
            expected = "expected a function that clears the gradients, runs backward and returns the loss"
            raise TypeError(f"LBFGS's step: found {closure!r}, {expected}")
        trained, layout = self._laid_out()
        fresh = self._state is None or trained != self._trained
        state = layout.state(self._method, 0.0) if fresh else self._state
        rate = jnp.asarray(self.get_lr(), layout.wide)
        state = state._replace(  # type: ignore[union-attr]
            rate=state.rate._replace(count=state.rate.count + 1, learning_rate=rate)  # type: ignore[union-attr]
        )
        before = [p.store.take() for p in trained]
        try:
            first = result = _evaluated(closure, trained)
            call, values = _absorb(
                self._method, _begin(state, before, layout=layout), *result[1:], layout=layout
            )
            while not call.done:
                for p, x in zip(trained, values, strict=True):
                    p.store.put(x)
                result = _evaluated(closure, trained)
                call, values = _absorb(self._method, call, *result[1:], layout=layout)
        except BaseException:
            for p, x in zip(trained, before, strict=True):
                p.store.put(jnp.copy(x))
            raise
        if self.layers:  # a wrapper goes on from the values before, and from what this step would add to them
            moves = dict(zip(trained, _moves(before, values), strict=True))
            for p, x in zip(trained, before, strict=True):
                p.store.put(jnp.copy(x))
            self.apply([moves.get(p) for p in self.parameter_list], lambda compiled: compiled.step)
        else:
            for p, x in zip(trained, values, strict=True):
                p.store.put(x)
        self._state, self._trained = call.state, trained
        return first[0]

    def minimize(self, *args: Any, **kwargs: Any) -> Any:
        """Not there, as in Paddle: one gradient is not enough."""
        raise NotImplementedError("LBFGS evaluates the loss several times: call step(closure)")

    def apply_gradients(self, params_grads: Any) -> Any:
        """Not there: one gradient is not enough."""
        return self.minimize()

    def _compiled(self, present: tuple[bool, ...], grad_clip: Any) -> CompiledStep | None:
        return self._compiled_given(present)

    def _laid_out(self) -> tuple[list[Parameter], Layout]:
        trained = [p for p in self.parameter_list if p.trainable]
        paths = [(jax.tree_util.GetAttrKey(p.name),) for p in trained]
        return trained, Layout.of(paths, [p.peek() for p in trained])

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Copies of the whole state under Paddle's names in `state`, the histories as lists, oldest first;
        and `LR_Scheduler`."""
        return {**super().state_dict(), "state": _written(self._state)}

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit, and change
        nothing.

        With strict=False `state` may be absent and then starts afresh.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: found {type(state_dict).__name__}, expected a dict")
        entries = dict(state_dict)
        problems: list[str] = []
        schedule = self._taken_schedule(entries, problems)
        if "state" not in entries and strict:
            problems.append("missing: state")
        trained, layout = self._laid_out()
        state = _read(entries.pop("state", {}), layout, self._method, problems)
        problems += [f"unexpected: {key!r}" for key in entries]
        raise_if(problems)
        if schedule is not None:
            self._learning_rate.set_state_dict(schedule)
        self._state, self._trained = state, trained

    load_state_dict = set_state_dict
    set_dict = set_state_dict


@partial(jax.jit, static_argnames="layout")
def _begin(state: LBFGSState, values: list[Any], *, layout: Layout) -> Call:
    return begin(state, layout.join(values))


@partial(jax.jit, static_argnames="layout")
def _absorb(
    method: Method, call: Call, value: Any, grads: list[Any], *, layout: Layout
) -> tuple[Call, list[Any]]:
    call = absorb(method, call, layout.value(value), layout.join(grads))
    return call, layout.split(proposed(call))


@jax.jit
def _moves(before: list[Any], after: list[Any]) -> list[Any]:
    return jax.tree.map(jnp.subtract, after, before)


def _evaluated(closure: Callable[[], Any], trained: list[Parameter]) -> tuple[Any, Any, list[Any]]:
    """What the closure returned, as a value too, and the gradients it left behind."""
    loss = closure()
    if isinstance(loss, Loss) and not loss.ran_backward:
        raise ValueError("LBFGS's closure: found a loss whose backward() has not run")
    value = loss.value if isinstance(loss, Loss) else loss
    if not isinstance(value, float | np.floating | np.ndarray | jax.Array):
        found = f"found {type(loss).__name__}, expected the loss, a Loss or a number"
        raise TypeError(f"LBFGS's closure: {found}")
    return loss, value, [None if p.lazy_grad is ZEROS else p.lazy_grad for p in trained]


def _written(state: LBFGSState | None) -> dict[str, Any]:
    if state is None:
        return {}
    counters = {name: int(getattr(state, name)) for name in COUNTERS}
    if counters["n_iter"] == 0:
        return counters
    stored, m = int(state.stored), len(state.ro)
    rows = [k % m for k in range(max(0, stored - m), stored)]
    history = {name: [getattr(state, name)[row] for row in rows] for name in HISTORY}
    if counters["n_iter"] == 1:
        del history["al"]
    return {
        **counters,
        **{name: jnp.copy(getattr(state, name)) for name in (*VECTORS, *SCALARS)},
        **history,
    }


def _read(found: Any, layout: Layout, method: Method, problems: list[str]) -> LBFGSState | None:
    """The state from Paddle's dictionary; what does not fit is added to the problems."""
    if not isinstance(found, Mapping):
        problems.append(f"not a dict: state is {type(found).__name__}")
    if not isinstance(found, Mapping) or not found:
        return None
    wide, n = np.dtype(layout.wide), sum(layout.sizes)
    given: dict[str, Any] = {}

    def read(name: str, value: Any, shape: tuple[int, ...]) -> Any:
        """The value as an array of this shape, or zeros and a problem."""
        plain = shape == () and isinstance(value, int | float) and not isinstance(value, bool)
        array = jnp.asarray(value, wide) if plain else value
        if not isinstance(array, jax.Array | np.ndarray | np.generic):
            problems.append(f"not an array: {name} is {type(value).__name__}")
        elif array.shape != shape and not (shape == () and array.shape == (1,)):
            problems.append(f"misshapen: {name} has shape {array.shape}, expected {shape}")
        elif array.dtype != wide:
            problems.append(f"wrong dtype: {name} is {array.dtype}, expected {wide}")
        else:
            return jnp.array(array).reshape(shape)
        return jnp.zeros(shape, wide)

    def read_list(name: str, value: Any, shape: tuple[int, ...]) -> list[Any]:
        if not isinstance(value, list | tuple):
            problems.append(f"not a list: {name} is {type(value).__name__}")
            return []
        blank = jnp.zeros(shape, wide)  # Paddle fills al up with None
        return [
            blank if x is None and name == "al" else read(f"{name}[{i}]", x, shape)
            for i, x in enumerate(value)
        ]

    for name in COUNTERS:
        count = found.get(name)
        integer = isinstance(count, int | np.integer | np.ndarray | jax.Array) and np.ndim(count) == 0
        if name in found and not (integer and np.asarray(count).dtype.kind in "iu"):
            problems.append(f"not an int: {name} is {count!r}")
        elif name in found:
            given[name] = jnp.array(count, jnp.int32)
    started = "n_iter" in found and ("n_iter" not in given or given["n_iter"] > 0)
    needed = [*COUNTERS, *([*VECTORS, *SCALARS, "old_yk", "old_sk", "ro"] if started else [])]
    known = [*COUNTERS, *VECTORS, *SCALARS, *HISTORY]
    for name in needed:
        if name not in found:
            near = difflib.get_close_matches(name, [k for k in found if k not in known], 1, 0.5)
            problems.append(f"missing: {name}" + (f" (nearest: {near[0]})" if near else ""))
    problems += [f"unexpected: {key!r}" for key in found if key not in known]
    given |= {name: read(name, found[name], (n,)) for name in VECTORS if name in found}
    given |= {name: read(name, found[name], ()) for name in SCALARS if name in found}
    lists = {
        name: read_list(name, found[name], (n,) if vectors else ())
        for name, vectors in HISTORY.items()
        if name in found
    }
    pairs = {name: len(x) for name, x in lists.items() if name != "al"}
    if len(set(pairs.values())) > 1 or max(pairs.values(), default=0) > method.history_size:
        lengths = ", ".join(f"{length} {name}" for name, length in pairs.items())
        problems.append(f"wrong length: {lengths}, expected equally many, at most {method.history_size}")
    stored = pairs.get("ro", 0)
    if problems:
        return None
    fresh = layout.state(method, 0.0)
    history = {
        name: getattr(fresh, name).at[:stored].set(jnp.stack(x[:stored]))
        for name, x in lists.items()
        if stored and len(x) >= stored
    }
    return fresh._replace(**given, **history, stored=jnp.array(stored, jnp.int32))
