"""The Paddle-style object: a cell around the functional chain with parameters, gradients, state and rate."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from ..attributes import check_hooks
from ..hyper import FACTOR, MAGNITUDE, ArgumentError, Named, number, require, scalar, verify, with_scalars
from ..lifting import Rule, check, check_rounded_of
from ..paths import describe_leaves
from ..rates import refuse_rate
from ..recent import Recent
from ..regularizer import as_regularizer
from ..tracing import check_outside
from ..trees import compute_dtype, is_narrow
from . import saved
from .arguments import (
    check_distinct,
    check_program,
    checked_clip,
    checked_name,
    checked_pairs,
    read_parameters,
    selected,
)
from .call import gradients_of
from .flagged import Subsets
from .gate import whole
from .ledger import DictField, Entries, load, undone_on_error, written
from .loss import Loss
from .loss_function import LossFunction, with_gradients
from .lr import LambdaDecay, LRScheduler, Rate
from .parameter import Parameter
from .spent import pairs
from .stepping import OWN, Stepping, Steps
from .transaction import complete
from .views import Views

SCHEDULE = "LR_Scheduler"
SHOWN = 3  # names of Parameters in a message
Pairs = Sequence[tuple[Parameter, jax.Array | None]]


class Optimizer(Views, Stepping, Named):
    """Base of all optimizers, with Paddle's `minimize`, `step`, `clear_grad`, `set_lr`, `state_dict`.

    `parameters` is a list of Parameters, a list of group dicts (`params`, and what differs there:
    `learning_rate` as a factor, `weight_decay`, `grad_clip`, hyperparameters), or a pytree of arrays or
    Parameters: a bare tree is wrapped and reachable as `.parameters`. `weight_decay` is a number (L2) or a
    regularizer, `grad_clip` one of `nn.ClipGradBy*`; `name` becomes part of the keys of `state_dict()`.
    `learning_rate` is a number or an LRScheduler.

    A step reaches the parameters that have a gradient and leaves the others alone, accumulators included. It
    is one compiled program that reuses the memory of parameters and accumulators; a new rate never compiles
    again.

    With `packed=True` parameters of at most 8192 elements that are stepped alike (one dtype, and the same
    options) lie end to end in common buffers, accumulators too: many small ones are then stepped several
    times as fast. For them a change from outside, a value read or set between steps, and which of them have a
    gradient, costs more. By themselves stay those of Lamb, LARS and DPSGD, of a clip by their own norm, with
    sparse=True, with a master weight, or on several devices. Nothing else differs, `state_dict()` neither.
    """

    _argument = "parameters"  # how the constructor calls them
    _name: str | None
    _position: dict[Parameter, int]
    parameters: Any

    def __init__(
        self,
        learning_rate: Rate,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        rule: Rule | None = None,
        masters: bool = False,
        packed: bool = False,
    ):
        check_hooks(type(self))  # once more: one may have been assigned to the class
        self._learning_rate = learning_rate
        self._name = checked_name(name)
        whole: Rule = with_scalars(Rule() if rule is None else rule)
        check(whole)  # before the parameters, as in Paddle
        decay, clip = as_regularizer("weight_decay", weight_decay), checked_clip("grad_clip", grad_clip)
        self.parameters, groups = read_parameters(self._argument, parameters)
        self._given = groups
        self.parameter_list: list[Parameter] = [p for members, _ in groups for p in members]
        check_distinct(self._argument, self.parameter_list)
        self._position = {p: i for i, p in enumerate(self.parameter_list)}
        self._read_settings(groups, whole, decay, clip)
        for p, r in zip(self.parameter_list, self._rules, strict=True):
            if p.is_real:
                check_rounded_of(r.source.rule, p.name, compute_dtype((), p.peek()))
            if p.sparse and r.source.rule.sparse is None:
                found = f"Parameter {p.name} has sparse=True, and {type(self).__name__} takes no SelectedRows"
                raise TypeError(f"{self._argument}: {found}; expected sparse=False")
        if not isinstance(masters, bool):
            raise TypeError(f"multi_precision: found {masters!r}, expected True or False")
        self._steps, self._clipped = Steps.begun(masters), Recent()
        self._subsets = Subsets()
        if not isinstance(packed, bool):
            raise TypeError(f"packed: found {packed!r}, expected True or False")
        self._packing: Any = None
        if packed:
            from .packing import Packing  # only those who ask for it import it

            self._packing = Packing(
                i for i, p in enumerate(self.parameter_list) if masters and is_narrow(p.peek())
            )

    def __repr__(self) -> str:
        rate = self._learning_rate
        rate = rate if isinstance(rate, float) else type(rate).__name__
        return f"{type(self).__name__}(learning_rate={rate}, {len(self.parameter_list)} parameters)"

    def describe(self) -> str:
        """A table of what every parameter gets: factor on the rate, decay, clip and rule."""
        options = {p.name: o for p, o in zip(self.parameter_list, self._options, strict=True)}
        frozen = {p.name: options[p.name]._replace(frozen=p.stop_gradient) for p in self.parameter_list}
        return describe_leaves({p.name: p.peek() for p in self.parameter_list}, frozen.__getitem__)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, from its `.grad`.

        A `closure` is called first, in a `no_grad` block too with gradients: it clears them, computes the
        loss, calls its `backward()` and returns the loss, which `step` returns.
        """
        result = None if closure is None else self._closed(closure)
        self.apply([None if p.stop_gradient else p.lazy_grad for p in self.parameter_list])
        return result

    @staticmethod
    def _closed(closure: Any) -> Any:
        """Return what the closure returns."""
        expected = "a function without arguments, or None"
        require(callable(closure), "step's closure", closure, expected, TypeError)
        with with_gradients():
            return closure()

    def minimize(
        self, loss: Any, startup_program: None = None, parameters: Any = None, no_grad_set: Any = None
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; `([], [(parameter, gradient), ...])`.

        `loss` is what a `@paddle.loss` function returned, or a function of the parameter tree that returns a
        scalar. If its backward has not run, forward, backward and update are one compiled program.
        `parameters` and `no_grad_set`, Parameters or names, say which to update and which to leave.

        The gradients are spent: they can be read in `.grad`, and no later `backward`, `step` or `minimize`
        takes them. So a loop needs no `clear_grad`. Gradients of an earlier `backward()` are added to them,
        and spent too.
        """
        return [], self._minimize(loss, startup_program, parameters, no_grad_set)

    def _minimize(
        self, loss: Any, startup_program: Any, chosen: Any, excluded: Any, grad_clip: Any = OWN
    ) -> Pairs:
        """Step by this loss and return the pairs: in one program where `_fuses` allows it."""
        check_program(startup_program)
        wanted = self._wanted(chosen, excluded)
        self._check_loss(loss)
        check_outside("minimize")
        if isinstance(loss, Loss) and self._fuses(loss, wanted) and self._run_fused(loss, wanted, grad_clip):
            mine = set(loss.parameters)
            return pairs([p for p in self.parameter_list if p in mine and p in wanted])
        totals, taken = self.drawn(loss, wanted)
        self.apply([totals.get(p) for p in self.parameter_list], grad_clip, taken)
        return [(p, p.peek_grad()) for p in totals]

    def drawn(
        self, loss: Any, wanted: Collection[Parameter]
    ) -> tuple[dict[Parameter, Any], Callable[[], None]]:
        """Return the gradients that a `minimize` steps with, and what to call once their step is stored.

        Backward runs unless it has run; until that call nothing changes.
        """
        result = None
        if not isinstance(loss, Loss):
            found = gradients_of(loss, self.parameters)
        elif loss.ran_backward:
            found = loss.left
        else:
            result, grads = loss.gradients()
            found = dict(zip(loss.parameters, grads, strict=True))
        totals = {p: self._total(p, found.get(p)) for p in self.parameter_list if p in wanted}
        totals = {p: total for p, total in totals.items() if total is not None}

        def taken() -> None:
            if result is not None:
                loss.settle(result)
            self._spend(totals, loss, found)

        return totals, taken

    def _total(self, p: Parameter, grad: Any) -> Any:
        """Return what the gradient is, once backward has found another or None."""
        return p.lazy_grad if grad is None else grad if self._replaces else p.accumulated(grad)

    def backward(
        self,
        loss: Any,
        startup_program: None = None,
        parameters: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> Pairs:
        """Run backward unless it has run, which adds to every `.grad`; (parameter, gradient) pairs for
        `apply_gradients`."""
        check_program(startup_program)
        if callbacks is not None and callbacks != []:
            found = f"found {callbacks!r}, expected None or []"
            raise TypeError(f"callbacks: {found}; there is no program to append to")
        wanted = self._wanted(parameters, no_grad_set)
        self._check_loss(loss)
        check_outside("backward")
        if not isinstance(loss, Loss):
            totals = {p: self._total(p, g) for p, g in gradients_of(loss, self.parameters).items()}

            def store() -> None:
                for p, total in totals.items():
                    p.put_grads(total, None)

            complete(store)
        elif not loss.ran_backward:
            loss.run_backward(self._total)
        return [(p, p.peek_grad()) for p in self.parameter_list if p in wanted and p.lazy_grad is not None]

    def _wanted(self, chosen: Any, excluded: Any) -> Collection[Parameter]:
        """Return the trainable Parameters that these arguments let move."""
        left = self._selected("no_grad_set", excluded, [])
        chosen = self._selected(self._argument, chosen, self.parameter_list)
        return {p for p in chosen if not p.stop_gradient and p not in left}

    def _check_loss(self, loss: Any) -> None:
        """Raise on what `minimize` and `backward` cannot differentiate with respect to any Parameter here."""
        if isinstance(loss, LossFunction):
            name = getattr(loss, "__name__", "loss")
            raise ArgumentError(
                f"loss: found the function {name} itself, expected {name}(...), what it returns"
            )
        if not isinstance(loss, Loss):
            if not callable(loss):
                expected = "a loss of a @paddle.loss function, or a function of the parameters"
                raise ArgumentError(f"loss: found {type(loss).__name__}, expected {expected}")
        elif not any([p in self._position for p in loss.parameters]):
            raise ArgumentError(f"loss: found {_foreign(loss, self.parameter_list)}")

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """The second half of `minimize`: update exactly these parameters with these gradients; `[]`."""
        self.apply(self._aligned(params_grads))
        return []

    def apply_optimize(
        self, loss: Any, startup_program: None, params_grads: Iterable[tuple[Parameter, Any]]
    ) -> list[Any]:
        """`apply_gradients`, with the arguments of Paddle's older method."""
        check_program(startup_program)
        return self.apply_gradients(params_grads)

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Zero every gradient there is (a step would still move what has momentum), or drop them."""
        for p in self.parameter_list:
            if not p.stop_gradient:
                p.clear_grad(set_to_zero)

    clear_gradients = clear_grad

    def _aligned(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """Return these gradients, one or None per Parameter of the optimizer, in its order."""
        pairs = checked_pairs(params_grads, self._position)
        return [pairs.get(p) for p in self.parameter_list]

    def _selected(self, argument: str, chosen: Any, default: Iterable[Parameter]) -> set[Parameter]:
        """Return the Parameters that the argument names; those of `default` if it is None."""
        return set(default) if chosen is None else selected(argument, chosen, self.parameter_list)

    # ------------------------------------------------------------------ learning rate

    def _checked_rate(self, learning_rate: Any) -> Any:
        """Return the rate as a float, or the scheduler; raise on anything else."""
        if isinstance(learning_rate, LRScheduler):
            return learning_rate
        if learning_rate is None:
            raise ArgumentError("learning_rate is not set: found None, expected a number or an LRScheduler")
        learning_rate = scalar(learning_rate)
        number("learning_rate", learning_rate, "a number or an LRScheduler")
        verify(MAGNITUDE, "learning_rate", learning_rate)
        return float(learning_rate)

    def _rate_for_step(self) -> float:
        """The rate of the next step is what `get_lr` says; raise if a scheduler's is none to step at."""
        rate = self.get_lr()
        if not 0 <= rate < math.inf:
            refuse_rate(f"what {type(self._learning_rate).__name__} returned as the rate", rate)
        return rate

    def get_lr(self) -> float:
        """The rate of the next step: the number, or the scheduler's current value."""
        rate = self._rate
        return float(rate()) if isinstance(rate, LRScheduler) else rate

    def set_lr(self, value: float) -> None:
        """Replace the rate; under a scheduler use `set_lr_scheduler`."""
        if not isinstance(self._learning_rate, float):
            found = type(self._learning_rate).__name__
            raise RuntimeError(
                f"set_lr: the rate is set by a scheduler, {found}; replace that with set_lr_scheduler"
            )
        value = scalar(value)
        verify(FACTOR, "set_lr's value", value)
        self._learning_rate = value

    def set_lr_scheduler(self, scheduler: LRScheduler) -> None:
        """Let a scheduler set the rate from now on."""
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"set_lr_scheduler: found {type(scheduler).__name__}, expected an LRScheduler")
        self._learning_rate = scheduler

    # ------------------------------------------------------------------ state

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Copies of all accumulators under Paddle's names, and `LR_Scheduler`; empty before any step."""
        entries = written(saved.entries_of(self._steps.groups, self.parameter_list, self.owners()))
        if self._steps.masters:
            fields = saved.master_fields(self.parameter_list)
            entries["master_weights"] = written((fields[i], m) for i, m in self._steps.masters.items())
        if not isinstance(self._learning_rate, float):
            entries[SCHEDULE] = self._learning_rate.state_dict()
        return entries

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit, and change
        nothing.

        With strict=False a parameter none of whose accumulators is there starts afresh.
        """
        load(self._loading, state_dict, strict)

    @property
    def rules(self) -> list[Rule]:
        """The update rule of every Parameter."""
        return [r.source.rule for r in self._rules]

    def owners(self) -> list[str]:
        """Return per Parameter what its accumulators are filed under."""
        return saved.owners_of(self.parameter_list, self._steps.masters is not None, self._name)

    load_state_dict = set_state_dict
    set_dict = set_state_dict

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read this optimizer's entries, and after the `yield` put them in force; see the ledger."""
        schedule, steps = self._read_schedule(entries), self._steps
        masters, found = steps.masters, None  # {} was saved before any step
        if entries.rest or steps.groups:
            if masters is not None:
                masters = saved.read_masters(entries, self.parameter_list, strict)
            found = saved.read(entries, self._rules, self.parameter_list, self.owners(), strict)
        yield
        groups = [] if found is None else saved.groups_of(found, self._rules, self.parameter_list)
        self._put_schedule(schedule)
        self._steps = steps.having(groups=groups, masters=masters)
        self._let_go()

    def _read_schedule(self, entries: Entries) -> Any:
        """The state of the scheduler, or None if it keeps what it has."""
        if isinstance(self._learning_rate, float):
            return entries.drop(SCHEDULE)
        needed = bool(entries.rest) and not isinstance(self._learning_rate, LambdaDecay)
        return entries.read(DictField(SCHEDULE, required=needed))

    def _put_schedule(self, schedule: Any) -> None:
        """Put a scheduler's state in force, unless the scheduler refuses it or has no rate then."""
        if schedule is not None:
            with undone_on_error(self._learning_rate):
                self._learning_rate.set_state_dict(schedule)
                self._rate_for_step()


def _foreign(loss: Loss, mine: list[Parameter]) -> str:
    """Return what is wrong with a loss that none of these Parameters takes part in."""
    expected = f"expected one of the optimizer's own ({_listed(mine)}); give the loss function opt.parameters"
    if not loss.parameters:
        return (
            f"{loss.name}(...) without any trainable Parameter among its arguments, only arrays or frozen "
            f"Parameters, {expected}"
        )
    theirs = _listed(loss.parameters)
    return f"{loss.name}(...) over other Parameters ({theirs}), which are not this optimizer's, {expected}"


def _listed(parameters: list[Parameter]) -> str:
    """Return some names, and how many more there are."""
    more = f" and {len(parameters) - SHOWN} more" if len(parameters) > SHOWN else ""
    return ", ".join(p.name for p in parameters[:SHOWN]) + more
