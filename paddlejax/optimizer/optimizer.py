"""The Paddle-style object: a cell around the functional chain with parameters, gradients, state and rate."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from ..hyper import ArgumentError, number
from ..lifting import Lifted, Rule, lift
from ..paths import describe_leaves
from ..regularizer import as_regularizer
from ..trees import is_narrow
from . import saved
from .arguments import (
    check_distinct,
    check_program,
    checked_clip,
    checked_name,
    checked_pairs,
    options_of,
    read_parameters,
    selected,
)
from .ledger import DictField, Entries, load, undone_on_error, written
from .loss import Loss, LossFunction, backward_of
from .lr import LambdaDecay, LRScheduler, Rate
from .parameter import Parameter
from .stepping import OWN, Stepping, Steps

SCHEDULE = "LR_Scheduler"
Pairs = list[tuple[Parameter, jax.Array | None]]


class Optimizer(Stepping):
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
        self._learning_rate: Any = self._checked_rate(learning_rate)  # a float or a scheduler
        self._name = checked_name(name)
        general = {
            "weight_decay": as_regularizer("weight_decay", weight_decay),
            "grad_clip": checked_clip("grad_clip", grad_clip),
        }
        self.parameters, groups = read_parameters(self._argument, parameters)
        self.parameter_list: list[Parameter] = [p for members, _ in groups for p in members]
        check_distinct(self._argument, self.parameter_list)
        self._position = {p: i for i, p in enumerate(self.parameter_list)}
        base = lift(rule or Rule(), 0.0)
        self._options = [o for members, own in groups for o in options_of(members, base, own, general)]
        self._rules: list[Lifted] = [o.rule for o in self._options]
        for p, r in zip(self.parameter_list, self._rules, strict=True):
            if p.sparse and r.source.rule.sparse is None:
                found = f"Parameter {p.name} has sparse=True, and {type(self).__name__} takes no SelectedRows"
                raise TypeError(f"{self._argument}: {found}; expected sparse=False")
        if not isinstance(masters, bool):
            raise TypeError(f"multi_precision: found {masters!r}, expected True or False")
        self._steps = Steps([], {} if masters else None).afresh()
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

    def step(self) -> None:
        """Update every parameter that has a gradient, from its `.grad`."""
        self.apply([None if p.stop_gradient else p.lazy_grad for p in self.parameter_list])

    def minimize(
        self, loss: Any, startup_program: None = None, parameters: Any = None, no_grad_set: Any = None
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; `([], [(parameter, gradient), ...])`.

        `loss` is what a `@paddle.loss` function returned, or a function of the parameter tree that returns a
        scalar. If its backward has not run, forward, backward and update are one compiled program.
        `parameters` and `no_grad_set`, Parameters or names, say which to update and which to leave.
        """
        return [], self._minimize(loss, startup_program, parameters, no_grad_set)

    def _minimize(
        self, loss: Any, startup_program: Any, chosen: Any, excluded: Any, grad_clip: Any = OWN
    ) -> Pairs:
        """Step by this loss and return the pairs: in one program where `_fuses` allows it."""
        if chosen is None and excluded is None and isinstance(loss, Loss) and self._fuses(loss):
            check_program(startup_program)
            self._run_fused(loss, grad_clip)
            mine = set(loss.parameters)
            return [(p, p.grad) for p in self.parameter_list if p in mine]
        pairs = self.backward(loss, startup_program, chosen, excluded)
        self.apply(self._aligned(pairs), grad_clip)
        return pairs

    def backward(
        self,
        loss: Any,
        startup_program: None = None,
        parameters: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> Pairs:
        """The first half of `minimize`: run backward unless it has run; (parameter, gradient) pairs."""
        check_program(startup_program)
        if callbacks is not None:
            raise TypeError("callbacks: found something, expected None; there is no program to append to")
        chosen = self._selected("parameters", parameters, self.parameter_list)
        excluded = self._selected("no_grad_set", no_grad_set, [])
        if isinstance(loss, Loss):
            if not loss.ran_backward:
                loss.backward()
        elif isinstance(loss, LossFunction):
            name = getattr(loss, "__name__", "loss")
            raise ArgumentError(
                f"loss: found the function {name} itself, expected {name}(...), what it returns"
            )
        elif callable(loss):
            backward_of(loss, self.parameters)
        else:
            expected = "a loss of a @paddle.loss function, or a function of the parameters"
            raise ArgumentError(f"loss: found {type(loss).__name__}, expected {expected}")
        wanted = [p for p in self.parameter_list if p in chosen and p not in excluded and p.trainable]
        return [(p, p.grad) for p in wanted if p.lazy_grad is not None]

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
        number("learning_rate", learning_rate, "a number or an LRScheduler")
        return float(learning_rate)

    def _rate_for_step(self) -> float:
        """The rate of the next step is what `get_lr` says."""
        return self.get_lr()

    def get_lr(self) -> float:
        """The rate of the next step: the number, or the scheduler's current value."""
        scheduled = isinstance(self._learning_rate, LRScheduler)
        return float(self._learning_rate()) if scheduled else self._learning_rate

    def set_lr(self, value: float) -> None:
        """Replace the rate; under a scheduler use `set_lr_scheduler`."""
        if not isinstance(self._learning_rate, float):
            found = type(self._learning_rate).__name__
            raise RuntimeError(
                f"set_lr: the rate is set by a scheduler, {found}; replace that with set_lr_scheduler"
            )
        number("set_lr's value", value)
        self._learning_rate = float(value)

    def set_lr_scheduler(self, scheduler: LRScheduler) -> None:
        """Let a scheduler set the rate from now on."""
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"set_lr_scheduler: found {type(scheduler).__name__}, expected an LRScheduler")
        self._learning_rate = scheduler

    # ------------------------------------------------------------------ state

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
        self._steps = steps.afresh(groups=groups, masters=masters)

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
