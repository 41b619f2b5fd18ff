"""Paddle's LBFGS: the machine of `paddlejax.lbfgs`, driven by a closure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import Must, checked
from ..leaves import LeafOptions
from ..quasi_newton import METHOD, Call, Layout, LBFGSState, Method, absorb, begin, proposed
from ..tracing import check_outside
from ..trees import next_count
from .compiled import CompiledStep
from .gate import alone, one_at_a_time, whole
from .ledger import ArrayField, Entries, Field, Misfit, NumberField, written
from .loss import Loss
from .lr import Rate
from .optimizer import Optimizer
from .parameter import ZEROS, Parameter
from .parts import stay

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

    _method: Method
    # The state, and the Parameters whose values lie in its vectors, in this order.
    _history: Any
    _ways = {"_multi_precision": "L-BFGS works in one float32 vector; its Parameters have no masters"}

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
        self._check_options(self._options)
        self._history = None, []

    def _check_options(self, options: list[LeafOptions]) -> None:
        """Raise if a part of the parameters has options of its own."""
        if any(own.maximize for own in options):
            raise NotImplementedError(
                "maximize: found True, expected False: return -loss from LBFGS's closure"
            )
        for p, own in zip(self.parameter_list, options, strict=True):
            extras = {"weight decay": own.weight_decay, "gradient clip": own.grad_clip}
            wrong = [f"a {what}" for what, given in extras.items() if given is not None]
            wrong += ["a learning_rate factor"] if own.learning_rate != 1 else []
            if wrong:
                found = f"Parameter {p.name} or its group has {' and '.join(wrong)}"
                raise NotImplementedError(f"{found}, which LBFGS cannot give to a part of the parameters")

    # ------------------------------------------------------------------ one step

    @alone
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Minimize what the closure returns; its first result, the loss before the step."""
        if not callable(closure):
            expected = "expected a function that clears the gradients, runs backward and returns the loss"
            raise TypeError(f"LBFGS's step: found {closure!r}, {expected}")
        check_outside("LBFGS's step", "call it outside, or use paddlejax.lbfgs there")
        self._settled()
        trained, layout = self._laid_out()
        start = state, known = self._history
        state = layout.state(self._method, 0.0) if state is None or trained != known else state
        rate = jnp.asarray(self._rate_for_step(), layout.wide)
        count = next_count(state.rate.count)
        state = state._replace(rate=state.rate._replace(count=count, learning_rate=rate))
        for part in self.layers:
            part.begin()
        before, after = [p.store.take() for p in trained], start

        def keep() -> None:
            self._history = after

        try:
            first = result = _evaluated(closure, trained)
            call, values = _absorb(
                self._method, _begin(state, before, layout=layout), *result[1:], layout=layout
            )
            while not call.done:
                _move(trained, values)
                result = _evaluated(closure, trained)
                call, values = _absorb(self._method, call, *result[1:], layout=layout)
            after = call.state, trained
            _move(trained, values)
            if self.layers:  # a wrapper goes on from here, with a step that moves nothing
                moved = {p: p.lazy_grad for p in trained}
                self.apply([moved.get(p) for p in self.parameter_list], taken=keep)
            keep()
        except BaseException:
            if after is start or self._history is not after:
                _move(trained, [jnp.copy(x) for x in before])
            raise
        return first[0]

    def minimize(self, *args: Any, **kwargs: Any) -> Any:
        """Not there, as in Paddle: one gradient is not enough."""
        raise NotImplementedError("LBFGS evaluates the loss several times: call step(closure)")

    def apply_gradients(self, params_grads: Any) -> Any:
        """Not there: one gradient is not enough."""
        return self.minimize()

    def _compiled(
        self, present: tuple[bool, ...], grad_clip: Any, flags: bool = False
    ) -> CompiledStep | None:
        """Return a program that adds moves to the parameters: the search itself runs outside of it."""
        return self._compiled_given(present, stay)

    def _laid_out(self) -> tuple[list[Parameter], Layout]:
        """Return the trainable Parameters, and how they lie in one vector."""
        trained = [p for p in self.parameter_list if p.trainable]
        paths = [(jax.tree_util.GetAttrKey(p.name),) for p in trained]
        return trained, Layout.of(paths, [p.peek() for p in trained])

    # ------------------------------------------------------------------ state

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Copies of the whole state under Paddle's names in `state`, the histories as lists, oldest first;
        and `LR_Scheduler`."""
        return {**super().state_dict(), "state": _written(self._history[0])}

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Without `strict` the state may be absent and then starts afresh."""
        schedule = self._read_schedule(entries)
        trained, layout = self._laid_out()
        method, part = self._method, entries.part("state", required=strict)
        found = _read(part, layout, method) if part.rest else None
        yield
        state = None if found is None else _state(found, layout, method)
        self._put_schedule(schedule)
        self._history = state, trained


@one_at_a_time
def _move(trained: list[Parameter], values: list[Any]) -> None:
    """Put the Parameters at a point of the search."""
    for p, x in zip(trained, values, strict=True):
        p.store.put(x)


@partial(jax.jit, static_argnames="layout")
def _begin(state: LBFGSState, values: list[Any], *, layout: Layout) -> Call:
    """Start a step at these values."""
    return begin(state, layout.join(values))


@partial(jax.jit, static_argnames="layout")
def _absorb(
    method: Method, call: Call, value: Any, grads: list[Any], *, layout: Layout
) -> tuple[Call, list[Any]]:
    """Take in loss and gradients at the point asked for; return the call and the next such point."""
    call = absorb(method, call, layout.value(value), layout.join(grads))
    return call, layout.split(proposed(call))


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


@dataclass(frozen=True)
class Real(ArrayField):
    """A vector or a number; a number may also be a Python number or an array of shape (1,)."""

    def read(self, value: Any, name: str) -> jax.Array:
        """Return a scalar; a Python or NumPy number and an array of shape (1,) are taken too."""
        if isinstance(value, np.generic) or isinstance(value, int | float) and not isinstance(value, bool):
            value = np.asarray(value, None if isinstance(value, np.generic) else self.dtype)
        elif isinstance(value, np.ndarray | jax.Array) and (*self.shape, *value.shape) == (1,):
            value = value.reshape(())
        return super().read(value, name)


@dataclass(frozen=True)
class History(Field):
    """A list, oldest first."""

    row: Real

    def write(self, value: Any) -> list[Any]:
        """Return the rows as a list, as Paddle stores them."""
        return list(value)

    def read(self, value: Any, name: str) -> list[Any]:
        """Return the list of the rows; what is wrong with any of them is in one Misfit."""
        if not isinstance(value, list | tuple):
            raise Misfit(f"not a list: {name} is {type(value).__name__}")
        blank = jnp.zeros(self.row.shape, self.row.dtype)  # Paddle fills al up with None
        rows, problems = [], []
        for i, x in enumerate(value):
            try:
                rows.append(blank if x is None and name == "al" else self.row.read(x, f"{name}[{i}]"))
            except Misfit as e:
                problems += e.args
        if problems:
            raise Misfit(*problems)
        return rows


def _fields(n: int, wide: Any, started: bool = True) -> dict[str, Field]:
    """What is saved of a state of n elements; before the first iteration nothing but the counters."""
    kinds = {name: Real(name, (n,), wide, required=started) for name in VECTORS}
    kinds |= {name: Real(name, (), wide, required=started) for name in SCALARS}
    return {
        **{name: NumberField(name, int) for name in COUNTERS},
        **kinds,
        **{
            name: History(name, Real(name, (n,) if vectors else (), wide), required=started and name != "al")
            for name, vectors in HISTORY.items()
        },
    }


def _written(state: LBFGSState | None) -> dict[str, Any]:
    """Return the entries of a state; {} before any step. The vectors appear after one iteration."""
    if state is None:
        return {}
    values = {name: int(getattr(state, name)) for name in COUNTERS}
    if values["n_iter"] > 0:
        stored, m = int(state.stored), len(state.ro)
        rows = [k % m for k in range(max(0, stored - m), stored)]
        values |= {name: getattr(state, name) for name in (*VECTORS, *SCALARS)}
        values |= {name: [getattr(state, name)[row] for row in rows] for name in HISTORY}
    if values["n_iter"] == 1:
        del values["al"]
    fields = _fields(len(state.d), state.d.dtype)
    return written((fields[name], value) for name, value in values.items())


def _read(entries: Entries, layout: Layout, method: Method) -> dict[str, Any]:
    """The values of Paddle's dictionary."""
    iterations = entries.read(NumberField("n_iter", int, required=False))
    started = entries.has("n_iter") and iterations != 0
    found = entries.read_all(_fields(sum(layout.sizes), np.dtype(layout.wide), started))
    lengths = {k: len(x) for k in HISTORY if k != "al" and (x := found[k]) is not None}
    if len(set(lengths.values())) > 1 or max(lengths.values(), default=0) > method.history_size:
        listed = ", ".join(f"{length} {name}" for name, length in lengths.items())
        entries.problems.append(
            f"wrong length: {listed}, expected equally many, at most {method.history_size}"
        )
    return found


def _state(found: dict[str, Any], layout: Layout, method: Method) -> LBFGSState:
    """The state that has these values, where there are any."""
    fresh = layout.state(method, 0.0)
    stored = len(found["ro"] or ())
    values = {k: jnp.asarray(x) for k, x in found.items() if k not in HISTORY and x is not None}
    values |= {k: x.astype(jnp.int32) for k, x in values.items() if k in COUNTERS}
    values |= {
        k: getattr(fresh, k).at[:stored].set(jnp.stack(rows[:stored]))
        for k in HISTORY
        if stored and len(rows := found[k] or ()) >= stored
    }
    return fresh._replace(**values, stored=jnp.array(stored, jnp.int32))
