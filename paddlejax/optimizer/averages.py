"""Averages as Paddle has them: objects that follow the parameters and can take their place for a while."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import pages
from ..array_types import Numeric
from ..attributes import Attributes, check_hooks
from ..average import ModelAverageState, MovingAverageState, exponential_moving_average, model_average
from ..hyper import number
from ..tracing import check_outside
from ..trees import compute_dtype
from .arguments import check_distinct, checked_name, checked_pairs, read_parameters
from .average_methods import OptimizerMethods
from .cohorts import Cohort, windowed, windowed_value
from .copies import Copied
from .flagged import Subsets
from .gate import alone, one_at_a_time, whole
from .ledger import ArrayField, CountField, Entries, Field, load, written
from .parameter import Parameter
from .programs import Watched
from .settings import HOOKS
from .transaction import complete, run_atomically
from .whole import in_one

ANEW = "it is fixed; make a new average, and give it state_dict()"


class ParameterAverage(Attributes, Copied):
    """Base of the averages: which parameters they follow, and `apply` and `restore`.

    Parameters with `do_model_average=False`, and those that are not real floating numbers, are left out.
    """

    _argument = "parameters"  # how the constructor calls them
    _name: str | None
    _saved: dict[Parameter, jax.Array] | None  # what averages stand in for
    _inside: bool
    _once = dict.fromkeys(("parameters", "parameter_list"), ANEW)
    _hooks = HOOKS

    def __init__(self, parameters: Any, name: str | None):
        check_hooks(type(self))
        self._name = checked_name(name)
        self.parameters, groups = read_parameters(self._argument, parameters)
        members = [p for group, _ in groups for p in group]
        check_distinct(self._argument, members)
        self.parameter_list: list[Parameter] = [
            p for p in members if p.do_model_average is not False and jnp.issubdtype(p.dtype, jnp.floating)
        ]
        self._saved = None
        self._inside = False

    def _averages(self) -> dict[Parameter, jax.Array]:
        """Return the averages of the parameters, in their dtypes; a subclass says which."""
        raise NotImplementedError(f"{type(self).__name__} has no averages")

    @contextmanager
    def apply(self, executor: Any = None, need_restore: bool = True) -> Iterator[None]:
        """In a `with` block the parameters hold their averages; afterwards they are restored, whatever
        happened inside. With need_restore=False they stay averaged until `restore()`.

        It does not change the averages. `executor` is accepted and not needed.
        """
        if self._inside or self._saved is not None:
            raise RuntimeError(
                "apply(): found another apply() in force, expected its with block to be left, or restore()"
            )
        check_outside("apply()")
        averages = whole(self._averages)()
        entered = False
        try:
            self._enter(averages)
            entered = True
            yield
        finally:
            self._inside = False
            if self._saved is not None and (need_restore or not entered):
                try:
                    self.restore(executor)
                except BaseException:  # an interrupt, at the beginning of the call too
                    if self._saved is not None:
                        self.restore(executor)
                    raise

    @one_at_a_time
    def _enter(self, averages: dict[Parameter, jax.Array]) -> None:
        """Put the averages in the parameters' place."""
        self._saved, self._inside = {p: p.store.take() for p in averages}, True
        for p, average in averages.items():
            p.store.put(average)

    @one_at_a_time
    def restore(self, executor: Any = None) -> None:
        """Give the parameters back what they held before `apply`."""
        if self._saved is None:
            raise RuntimeError("restore(): found nothing to restore, expected apply() before it")
        saved = self._saved

        def store() -> None:
            for p, value in saved.items():
                p.store.put(value)
            self._saved = None

        complete(store)

    def _values(self, members: Sequence[int] | None = None) -> list[jax.Array]:
        """Return the values to average, of all parameters or of these; raise while averages stand in their
        place."""
        if self._inside or self._saved is not None:
            raise RuntimeError(
                f"{type(self).__name__}: found an update between apply() and restore(), when these hold "
                "averages; expected it outside"
            )
        mine = self.parameter_list
        return [p.peek() for p in (mine if members is None else [mine[i] for i in members])]

    def _in_place_of(self, members: Sequence[Parameter], averages: Sequence[Any]) -> dict[Parameter, Any]:
        """Return these averages by Parameter, each in the Parameter's dtype."""
        return {p: a.astype(p.dtype) for p, a in zip(members, averages, strict=True)}


# One program for all objects whose parameters have the same shapes, as in `cohorts`.


@functools.partial(Watched, donate_argnums=1)
@in_one
def _decayed(values: list[Any], state: MovingAverageState, decay: Any, steps: Any) -> MovingAverageState:
    return exponential_moving_average(decay, steps).update(values, state)


@jax.jit
def _decayed_value(state: MovingAverageState) -> list[jax.Array]:
    return exponential_moving_average().value(state)


@pages.of(exponential_moving_average)
class ExponentialMovingAverage(ParameterAverage):
    """Paddle's ExponentialMovingAverage of these parameters, frozen ones included, see
    `exponential_moving_average`.

    Call `update()` after every step. `thres_steps` is a function of the number of earlier updates or a
    number, read at every update. `parameters` as for an optimizer: here is no program to find them in.

    >>> w = Parameter(jnp.ones(1), "w")
    >>> ema = ExponentialMovingAverage(0.9, parameters=[w])
    >>> ema.update()
    >>> w.set_value(jnp.zeros(1))
    >>> with ema.apply():
    ...     print(w.value)
    [1.]
    """

    thres_steps: Any
    _decay: float
    _count: int
    _state: MovingAverageState
    _donated = ("_state",)

    def __init__(
        self, decay: Numeric = 0.999, thres_steps: Any = None, name: str | None = None, parameters: Any = None
    ):
        super().__init__(parameters, name)
        average = exponential_moving_average(decay, thres_steps)
        self._decay, self.thres_steps = float(decay), thres_steps
        self._count = 0
        self._state = average.init(self._values())

    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        steps = self.thres_steps(self._count) if callable(self.thres_steps) else self.thres_steps
        if steps is not None:
            number("ExponentialMovingAverage's thres_steps", steps)
            steps = np.asarray(steps, self._state.decay.dtype)
        self._values([])
        count = min(self._count + 1, MOST)

        def store(state: MovingAverageState) -> None:
            self._state, self._count = state, count

        run_atomically(lambda: (_decayed, (self._values(), self._state, self._decay, steps)), store)

    def _averages(self) -> dict[Parameter, jax.Array]:
        return self._in_place_of(self.parameter_list, _decayed_value(self._state))

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Copies of the averages under `<name><parameter>_ema_0`, with Paddle's counter and rate."""
        fields, state = self._fields(), self._state
        ema = [(fields[p], e) for p, e in zip(self.parameter_list, state.ema, strict=True)]
        decay = state.decay.reshape(1)
        return written([*ema, (fields["count"], self._count), (fields["decay"], decay)])

    def set_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit."""
        load(self._loading, state_dict)

    set_dict = set_state_dict
    load_state_dict = set_state_dict

    def _fields(self) -> dict[Any, Field]:
        pairs = zip(self.parameter_list, self._state.ema, strict=True)
        return {
            **{p: ArrayField(f"{self._name or ''}{p.name}_ema_0", p.shape, e.dtype) for p, e in pairs},
            "count": CountField("@EMA_STEP_COUNTER@"),
            "decay": ArrayField("scheduled_ema_decay_rate", (1,), self._state.decay.dtype),
        }

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        found = entries.read_all(self._fields())
        yield
        count, decay = jnp.array(found["count"], jnp.int32), found["decay"].reshape(())
        self._state = MovingAverageState(count, decay, [found[p] for p in self.parameter_list])
        self._count = found["count"]


MOST = np.iinfo(np.int32).max  # the count of an average stays there
# What is saved of a parameter, in the order of Paddle's keys.
SUMS, COUNTS = ModelAverageState._fields[:3], ModelAverageState._fields[3:]
ACCUMULATORS = (*SUMS, *COUNTS, "restore")


@pages.of(model_average)
class ModelAverage(OptimizerMethods, ParameterAverage):
    """Paddle's ModelAverage of these parameters, see `model_average`.

    Call `step()` after the optimizer's: it takes in every trainable parameter that has a gradient. A
    parameter that was never taken in stays as it is inside `apply()` (in Paddle it becomes NaN).

    >>> p = Parameter(jnp.zeros(1), "p")
    >>> opt = optimizer.SGD(1.0, parameters=[p])
    >>> average = incubate.ModelAverage(1.0, [p])
    >>> for _ in range(2):
    ...     p.grad = -jnp.ones(1)
    ...     opt.step()
    ...     average.step()
    >>> with average.apply():
    ...     print(p.numpy())
    [1.5]
    """

    _average: Any
    _window: tuple[float, int, int]
    _cohorts: list[Cohort]
    _subsets: Subsets
    _donated = ("_cohorts",)
    _ways = dict.fromkeys(("average_window", "min_average_window", "max_average_window"), ANEW)

    def __init__(
        self,
        average_window_rate: Numeric,
        parameters: Any = None,
        min_average_window: int = 10000,
        max_average_window: int = 10000,
        name: str | None = None,
    ):
        super().__init__(parameters, name)
        self._average = model_average(average_window_rate, min_average_window, max_average_window)
        self._window = (float(average_window_rate), min_average_window, max_average_window)
        self._cohorts, self._subsets = [], Subsets()

    def step(self) -> None:
        """Take the parameters as they are now into the average."""
        self._take_in([self._takes_part(p) for p in self.parameter_list])

    @alone
    def _take_in(self, present: list[bool]) -> None:
        """Take those that are present into the average, as they are now."""
        self._values([])
        cohorts = [part for cohort in self._cohorts for part in cohort.split(present)]
        known = {i for cohort in cohorts for i in cohort.members}
        fresh = [i for i, here in enumerate(present) if here and i not in known]
        if fresh:
            cohorts.append(Cohort(fresh, self._average.init(self._values(fresh))))
        if self._subsets.are_many(tuple(present)):  # as in `flagged`: who is present is data
            active = cohorts = [one for cohort in cohorts for one in cohort.apart()]
            flags = [np.array([present[cohort.members[0]] for cohort in active])]
        else:
            active, flags = [cohort for cohort in cohorts if present[cohort.members[0]]], []
        values = [self._values(cohort.members) for cohort in active]

        def store(states: list[ModelAverageState]) -> None:
            for cohort, state in zip(active, states, strict=True):
                cohort.state = state
            self._cohorts = cohorts

        states = [cohort.state for cohort in active]
        run_atomically(lambda: (windowed, (values, states, *self._window, *flags)), store)

    update = step

    def minimize(
        self, loss: Any = None, startup_program: None = None, parameters: Any = None, no_grad_set: Any = None
    ) -> None:
        """`step()`, as in Paddle; the loss is minimized by the optimizer beside."""
        self.step()

    def apply_gradients(self, params_grads: Any) -> list[Any]:
        """Take the parameters of (parameter, gradient) pairs into the average, and no others; `[]`."""
        pairs = checked_pairs(params_grads, self.parameter_list)
        self._take_in([p in pairs for p in self.parameter_list])
        return []

    def _takes_part(self, p: Parameter) -> bool:
        """Return whether a parameter is averaged now: it is trainable and has a gradient."""
        return p.trainable and p.has_grad()

    def _averages(self) -> dict[Parameter, jax.Array]:
        if not self._cohorts:
            raise RuntimeError(f"{type(self).__name__}: found no averages, expected step() before apply()")
        averages: dict[Parameter, jax.Array] = {}
        for cohort in self._cohorts:
            members = [self.parameter_list[i] for i in cohort.members]
            averages |= self._in_place_of(members, windowed_value(cohort.state))
        return averages

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Copies of the sums and counters under Paddle's names; empty before any step.

        `restore` holds what the parameters were before `apply`, zeros outside it.
        """
        if not self._cohorts:
            return {}
        known = {i for cohort in self._cohorts for i in cohort.members}
        others = [
            Cohort([i], self._average.init([p.peek()]))
            for i, p in enumerate(self.parameter_list)
            if i not in known
        ]
        saved = self._saved or {}
        values: dict[int, dict[str, Any]] = {}
        for cohort in (*self._cohorts, *others):
            for j, i in enumerate(cohort.members):
                p = self.parameter_list[i]
                own = {k: x[j] if isinstance(x, list) else x for k, x in cohort.state._asdict().items()}
                values[i] = own | {"restore": saved[p] if p in saved else jnp.zeros_like(p.peek())}
        fields = [self._fields(p) for p in self.parameter_list]
        return written((own[k], values[i][k]) for k in ACCUMULATORS for i, own in enumerate(fields))

    def set_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit.

        The entries `restore` are not needed: they are of a moment inside `apply()`.
        """
        load(self._loading, state_dict)

    set_dict = set_state_dict
    load_state_dict = set_state_dict

    def _fields(self, p: Parameter) -> dict[str, Field]:
        keys = {k: "_".join([p.name, *([self._name] if self._name else []), k, "0"]) for k in ACCUMULATORS}
        wide = compute_dtype((), p.peek())
        return {
            **{k: ArrayField(keys[k], p.shape, wide) for k in SUMS},
            **{k: CountField(keys[k]) for k in COUNTS},
            "restore": ArrayField(keys["restore"], p.shape, p.dtype, required=False),
        }

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        saved = entries.rest or self._cohorts  # else before any step
        found = [entries.read_all(self._fields(p)) for p in self.parameter_list if saved]
        yield
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, values in enumerate(found):
            groups.setdefault(tuple(values[k] for k in COUNTS), []).append(i)
        cohorts = []
        for counts, members in groups.items():
            if counts[-1]:
                sums: Any = [[found[i][k] for i in members] for k in SUMS]
                counters = [jnp.array(count, jnp.int32) for count in counts]
                cohorts.append(Cohort(members, ModelAverageState(*sums, *counters)))
        self._cohorts = cohorts
