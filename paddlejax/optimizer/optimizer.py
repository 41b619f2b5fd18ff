"""The Paddle-style object: a cell around the functional chain with parameters, gradients, state and rate."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ..hyper import ArgumentError, number
from ..paths import describe_leaves
from ..regularizer import as_regularizer
from ..rule import Lifted, Rule, check_sparse, lift
from ..selected_rows import SelectedRows
from ..sparse import value_and_grads
from ..trees import is_narrow
from .arguments import (
    check_distinct,
    check_program,
    checked_clip,
    checked_name,
    checked_pairs,
    options_of,
    read_parameters,
)
from .cohorts import Cohort, owners_of, read_masters, read_state_dict, regroup, state_dict
from .loss import Loss, LossFunction, scalar
from .lr import LambdaDecay, LRScheduler
from .parameter import ZEROS, Parameter
from .plan import OWN, Plan

Pairs = list[tuple[Parameter, jax.Array | None]]


class Optimizer:
    """Base of all optimizers, with Paddle's `minimize`, `step`, `clear_grad`, `set_lr`, `state_dict`.

    `parameters` is a list of Parameters, a list of group dicts (`params`, and what differs there:
    `learning_rate` as a factor, `weight_decay`, `grad_clip`, hyperparameters), or a pytree of arrays or
    Parameters: a bare tree is wrapped and reachable as `.parameters`. `weight_decay` is a number (L2) or a
    regularizer, `grad_clip` one of `nn.ClipGradBy*`; `name` becomes part of the keys of `state_dict()`.
    `learning_rate` is a number or an LRScheduler.

    A step reaches the parameters that have a gradient and leaves the others alone, accumulators included. It
    is one compiled program that reuses the memory of parameters and accumulators; a new rate never compiles
    again.
    """

    _argument = "parameters"  # how the constructor calls them

    def __init__(
        self,
        learning_rate: Any,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        rule: Rule | None = None,
        masters: bool = False,
    ):
        self._learning_rate: Any = self._checked_rate(learning_rate)  # a float or a scheduler
        self._name = checked_name(name)
        general = {
            "weight_decay": as_regularizer("weight_decay", weight_decay),
            "grad_clip": checked_clip("grad_clip", grad_clip),
        }
        self.parameters, groups = read_parameters(self._argument, parameters)
        self._parameters: list[Parameter] = [p for members, _ in groups for p in members]
        check_distinct(self._argument, self._parameters)
        self._position = {p: i for i, p in enumerate(self._parameters)}
        base = lift(rule or Rule(), 0.0)
        self._options = [o for members, own in groups for o in options_of(members, base, own, general)]
        self._rules: list[Lifted] = [o.rule for o in self._options]
        for p, r in zip(self._parameters, self._rules, strict=True):
            if p.sparse:
                check_sparse(r.source.rule, f"{self._argument}: Parameter {p.name}, which has sparse=True")
        self._cohorts: list[Cohort] = []
        self._present: tuple[bool, ...] | None = None
        self._plans: dict[Any, Plan] = {}
        if not isinstance(masters, bool):
            raise TypeError(f"multi_precision: found {masters!r}, expected True or False")
        self._masters: dict[int, jax.Array] | None = {} if masters else None  # float32, by position

    def __repr__(self) -> str:
        rate = self._learning_rate
        rate = rate if isinstance(rate, float) else type(rate).__name__
        return f"{type(self).__name__}(learning_rate={rate}, {len(self._parameters)} parameters)"

    def describe(self) -> str:
        """A table of what every parameter gets: factor on the rate, decay, clip and rule."""
        options = {p.name: o for p, o in zip(self._parameters, self._options, strict=True)}
        frozen = {p.name: options[p.name]._replace(frozen=p.stop_gradient) for p in self._parameters}
        return describe_leaves({p.name: p._value for p in self._parameters}, frozen.__getitem__)

    # ------------------------------------------------------------------ one step

    def step(self) -> None:
        """Update every parameter that has a gradient, from its `.grad`."""
        self._apply([None if p.stop_gradient else p._grad for p in self._parameters])

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
        if chosen is None and excluded is None and isinstance(loss, Loss) and self._fuses(loss):
            check_program(startup_program)
            self._run_fused(loss, grad_clip)
            mine = set(loss.parameters)
            return [(p, p.grad) for p in self._parameters if p in mine]
        pairs = self.backward(loss, startup_program, chosen, excluded)
        self._apply(self._aligned(pairs), grad_clip)
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
        chosen = self._selected("parameters", parameters, self._parameters)
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
            self._backward_of(loss)
        else:
            expected = "a loss of a @paddle.loss function, or a function of the parameters"
            raise ArgumentError(f"loss: found {type(loss).__name__}, expected {expected}")
        wanted = [p for p in self._parameters if p in chosen and p not in excluded and p.trainable]
        return [(p, p.grad) for p in wanted if p._grad is not None]

    def _backward_of(self, function: Callable[[Any], Any]) -> None:
        """Gradients of a function of the whole tree, not compiled here: it may be a new one every time."""
        leaves, tree = jax.tree.flatten(self.parameters)
        trained = [i for i, p in enumerate(leaves) if isinstance(p, Parameter) and p.trainable]
        values = [p._value if isinstance(p, Parameter) else p for p in leaves]

        def of(trained_values: list[jax.Array]) -> tuple[jax.Array, None]:
            replaced = dict(zip(trained, trained_values, strict=True))
            loss = function(tree.unflatten([replaced.get(i, v) for i, v in enumerate(values)]))
            return scalar(f"the loss function {getattr(function, '__name__', '')}", loss), None

        tables = [leaves[i].name if leaves[i].sparse else None for i in trained]
        _, grads = value_and_grads(of, [values[i] for i in trained], tables)
        for i, g in zip(trained, grads, strict=True):
            leaves[i].accumulate(g)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """The second half of `minimize`: update exactly these parameters with these gradients; `[]`."""
        self._apply(self._aligned(params_grads))
        return []

    def apply_optimize(
        self, loss: Any, startup_program: None, params_grads: Iterable[tuple[Parameter, Any]]
    ) -> list[Any]:
        """`apply_gradients`, with the arguments of Paddle's older method."""
        check_program(startup_program)
        return self.apply_gradients(params_grads)

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Zero every gradient there is (a step would still move what has momentum), or drop them."""
        for p in self._parameters:
            if not p.stop_gradient:
                p.clear_grad(set_to_zero)

    clear_gradients = clear_grad

    def _aligned(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        pairs = checked_pairs(params_grads, self._position)
        return [pairs.get(p) for p in self._parameters]

    def _selected(self, argument: str, chosen: Any, default: Any) -> set[Parameter]:
        if chosen is None:
            return set(default)
        by_name = {p.name: p for p in self._parameters}
        selected = set()
        if not isinstance(chosen, Iterable):
            raise TypeError(f"{argument}: found {chosen!r}, expected Parameters or names")
        for p in [chosen] if isinstance(chosen, str | Parameter) else chosen:
            found = by_name.get(p) if isinstance(p, str) else p
            if not isinstance(found, Parameter) or found not in self._position:
                raise ValueError(f"{argument}: {p!r} is not one of this optimizer's: {', '.join(by_name)}")
            selected.add(found)
        return selected

    def _apply(self, grads: list[Any], grad_clip: Any = OWN) -> None:
        """Run the compiled step over the parameters that have a gradient."""
        for p, r, g in zip(self._parameters, self._rules, grads, strict=True):
            if isinstance(g, SelectedRows):
                check_sparse(r.source.rule, f"Parameter {p.name}")
        rate = self._rate_for_step()
        with self._whole_step():
            plan = self._plan(tuple(g is not None for g in grads), grad_clip)
            if plan is None:
                return
            ordered = [self._parameters[i].grad if grads[i] is ZEROS else grads[i] for i in plan.order]
            values = [self._parameters[i].take() for i in plan.order]
            values, state = plan.step(values, plan.state(self._masters), ordered, plan.rate(rate))
            plan.store(values, state, self._masters)

    @contextmanager
    def _whole_step(self) -> Iterator[None]:
        """Whatever fails inside leaves the state as it was, and the schedule where it was."""
        before = self._cohorts, self._present, self._plans, self._masters and dict(self._masters)
        try:
            yield
        except BaseException:
            self._cohorts, self._present, self._plans = before[:3]
            self._masters = None if self._masters is None else before[3] or {}
            raise
        self._stepped()

    def _stepped(self) -> None:
        """A step was taken, with the rate of `_rate_for_step()`."""

    def _fuses(self, loss: Loss) -> bool:
        """Whether forward, backward and step can be one program: no gradient but this loss's takes part."""
        if loss.ran_backward or not loss.is_current():
            return False
        mine = set(loss.parameters)
        clear = all(p.trainable and (p._grad is None or p._grad is ZEROS) for p in mine)
        return clear and all(p in mine or p._grad is None or p.stop_gradient for p in self._parameters)

    def _run_fused(self, loss: Loss, grad_clip: Any) -> None:
        mine = set(loss.parameters)
        rate = self._rate_for_step()
        with self._whole_step():
            plan = self._plan(tuple(p in mine for p in self._parameters), grad_clip)
            if plan is None:
                return loss.backward()
            values = [self._parameters[i].take() for i in plan.order]
            places = tuple(plan.place.get(p) for p in loss.parameters)
            others = [p._value for p, place in zip(loss.parameters, places, strict=True) if place is None]
            state = plan.state(self._masters)
            values, state, result, gs = plan.minimize(
                loss.call, places, values, state, others, loss.fixed, plan.rate(rate)
            )
            plan.store(values, state, self._masters)
            loss.done(result, gs)

    def _plan(self, present: tuple[bool, ...], grad_clip: Any) -> "Plan | None":
        """The compiled programs for the parameters that take part in this step."""
        if present != self._present:
            self._cohorts = regroup(self._cohorts, self._rules, self._parameters, present)
            alive = set(self._cohorts)
            self._plans = {key: plan for key, plan in self._plans.items() if alive.issuperset(plan.cohorts)}
            self._present = present
            self._start_masters(present)
        active = tuple(c for c in self._cohorts if present[c.members[0]])
        if not active:
            return None
        if (active, grad_clip) not in self._plans:
            masters = self._masters is not None
            self._plans[active, grad_clip] = Plan(active, self._options, self._parameters, grad_clip, masters)
        return self._plans[active, grad_clip]

    def _start_masters(self, present: tuple[bool, ...]) -> None:
        if self._masters is not None:
            for i, p in enumerate(self._parameters):
                if present[i] and i not in self._masters and is_narrow(p._value):
                    self._masters[i] = jnp.array(p._value, jnp.float32)

    # ------------------------------------------------------------------ learning rate

    def _checked_rate(self, learning_rate: Any) -> Any:
        if isinstance(learning_rate, LRScheduler):
            return learning_rate
        if learning_rate is None:
            raise ArgumentError("learning_rate is not set: found None, expected a number or an LRScheduler")
        number("learning_rate", learning_rate, "a number or an LRScheduler")
        return float(learning_rate)

    def _rate_for_step(self) -> float:
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
        entries = state_dict(self._cohorts, self._parameters, self._owners())
        if self._masters:
            masters = self._masters.items()
            entries["master_weights"] = {self._parameters[i].name: jnp.copy(m) for i, m in masters}
        if not isinstance(self._learning_rate, float):
            entries["LR_Scheduler"] = self._learning_rate.state_dict()
        return entries

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit, and change
        nothing.

        With strict=False a parameter none of whose accumulators is there starts afresh.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: found {type(state_dict).__name__}, expected a dict")
        entries = dict(state_dict)
        problems: list[str] = []
        schedule = self._taken_schedule(entries, problems)
        cohorts, masters, owners = self._cohorts, self._masters, self._owners()
        if entries or self._cohorts or problems:
            if masters is not None:
                given = entries.pop("master_weights", {})
                masters = read_masters(given, self._parameters, strict, problems)
            cohorts = read_state_dict(entries, self._rules, self._parameters, owners, strict, problems)
        if schedule is not None:
            before = copy.deepcopy(vars(self._learning_rate))
            try:
                self._learning_rate.set_state_dict(schedule)
                self.get_lr()
            except Exception:
                vars(self._learning_rate).update(before)
                raise
        self._cohorts, self._masters, self._present, self._plans = cohorts, masters, None, {}

    def _owners(self) -> list[str]:
        return owners_of(self._parameters, self._masters is not None, self._name)

    load_state_dict = set_state_dict
    set_dict = set_state_dict

    def _taken_schedule(self, entries: dict[str, Any], problems: list[str]) -> Any:
        """Remove the scheduler's part from the entries, and note if it is needed and not there."""
        schedule = entries.pop("LR_Scheduler", None)
        if isinstance(self._learning_rate, float) or not entries and schedule is None:
            return None
        if isinstance(schedule, Mapping):
            return schedule
        if schedule is not None:
            problems.append(f"not a dict: LR_Scheduler is {type(schedule).__name__}")
        elif not isinstance(self._learning_rate, LambdaDecay):
            problems.append("missing: LR_Scheduler, which the optimizer's scheduler needs")
        return None
