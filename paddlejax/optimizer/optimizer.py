"""The Paddle-style object: a cell around the functional chain with parameters, gradients, state and rate."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..hyper import ArgumentError, number
from ..lifting import Lifted, Rule, lift
from ..paths import LeafOptions, describe_leaves
from ..regularizer import as_regularizer
from ..selected_rows import SelectedRows
from ..step import check_sparse
from ..trees import is_narrow
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
from .cohorts import owners_of, read_masters, read_state_dict, state_dict
from .compiled import CompiledStep
from .group import StepGroup, regroup
from .loss import Loss, LossFunction, backward_of
from .lr import LambdaDecay, LRScheduler, Rate
from .measured import Measured
from .parameter import ZEROS, Parameter
from .parts import Given, Masters, Part, Rules, leave, stay
from .transaction import run_atomically

Pairs = list[tuple[Parameter, jax.Array | None]]
OWN: Any = object()  # "the optimizer's own", where None already means something


class Steps(NamedTuple):
    """What a step changes beside the values of Parameters; it is replaced as a whole, in one assignment."""

    groups: list[StepGroup]
    masters: dict[int, jax.Array] | None  # float32, by position; None if there are to be none
    present: tuple[bool, ...] | None = None  # per Parameter whether the steps reach it now
    active: tuple[StepGroup, ...] = ()  # the groups that are present
    ready: dict[
        Any, CompiledStep | None
    ] = {}  # by clip and wrappers, the programs for those that are present
    compiled: dict[Any, CompiledStep] = {}  # by these and groups, all programs there are

    def afresh(self, **changes: Any) -> "Steps":
        """Return these without any program; the next step makes its own."""
        return Steps(self.groups, self.masters, None, (), {}, {})._replace(**changes)


class Optimizer(Measured):
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
    layers: tuple[Part, ...] = ()  # what wrappers add to the step that is being made, innermost first

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
        self._apply([None if p.stop_gradient else p.lazy_grad for p in self.parameter_list])

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
            return [(p, p.grad) for p in self.parameter_list if p in mine]
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
        for p in self.parameter_list:
            if not p.stop_gradient:
                p.clear_grad(set_to_zero)

    clear_gradients = clear_grad

    def _aligned(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        pairs = checked_pairs(params_grads, self._position)
        return [pairs.get(p) for p in self.parameter_list]

    def _selected(self, argument: str, chosen: Any, default: Iterable[Parameter]) -> set[Parameter]:
        return set(default) if chosen is None else selected(argument, chosen, self.parameter_list)

    def _apply(self, grads: list[Any], grad_clip: Any = OWN) -> None:
        """Run the compiled step over the parameters that have a gradient."""
        self.apply(grads, lambda compiled: compiled.step, grad_clip)

    def apply(
        self, grads: list[Any], program_of: Callable[[CompiledStep], Any], grad_clip: Any = OWN
    ) -> None:
        """Step with these gradients, one or None per Parameter, as a whole or not at all.

        `program_of` says how the step is run: `CompiledStep.step`, or another way to run its `update`.
        """
        kinds = set(map(type, grads))
        if SelectedRows in kinds and not any([part.takes_rows() for part in self.layers]):
            self._check_rows(grads)
        if type(ZEROS) in kinds:
            grads = [p.grad if g is ZEROS else g for p, g in zip(self.parameter_list, grads, strict=True)]

        def arguments(compiled: CompiledStep, rate: Any) -> tuple[Any, ...]:
            return compiled.values(), compiled.state(), compiled.gradients(grads), rate

        self._run(tuple([g is not None for g in grads]), grad_clip, program_of, arguments)

    def _run(
        self,
        present: tuple[bool, ...],
        grad_clip: Any,
        program_of: Callable[[CompiledStep], Any],
        arguments_of: Callable[[CompiledStep, Any], tuple[Any, ...]],
        also_store: Callable[..., None] = lambda: None,
    ) -> None:
        """Run a program of the step that reaches these parameters, and store what it returns; or neither.

        It returns (values, state, ...); `also_store` is given the rest.
        """
        layers = self._reached()
        waits = bool(layers) and layers[0].waits
        rate = 0.0 if waits else self._rate_for_step()
        before = self._steps
        try:
            compiled = self._compiled(present, grad_clip)
            if compiled is None:
                also_store()
                for part in layers:
                    part.idle()
                return None if waits else self._stepped()
            arguments = arguments_of(compiled, compiled.rate(rate, type(self._learning_rate) is float))
        except BaseException:
            self._steps = before
            raise

        def store(done: tuple[Any, ...]) -> None:
            values, state, *rest = done
            info = compiled.keep(values, state)
            also_store(*rest)
            if not waits:
                self._info = info
                self._stepped()

        run_atomically(program_of(compiled), arguments, store, lambda: setattr(self, "_steps", before))

    def _check_rows(self, grads: list[Any]) -> None:
        for i, (p, r, g) in enumerate(zip(self.parameter_list, self._rules, grads, strict=True)):
            if isinstance(g, SelectedRows):
                check_sparse(r.source.rule, f"Parameter {p.name}")
                if self._packing is not None and i not in self._packing.apart:
                    self._packing.apart.add(i)
                    self._steps = self._steps.afresh()

    def _stepped(self) -> None:
        """A step was taken, with the rate of `_rate_for_step()`."""

    def _fuses(self, loss: Loss) -> bool:
        """Whether forward, backward and step can be one program: no gradient but this loss's takes part."""
        if loss.ran_backward or not loss.is_current():
            return False
        mine = set(loss.parameters)
        if any([p.stop_gradient or p.lazy_grad is not None and p.lazy_grad is not ZEROS for p in mine]):
            return False
        return all([p in mine or p.lazy_grad is None or p.stop_gradient for p in self.parameter_list])

    def _run_fused(self, loss: Loss, grad_clip: Any) -> None:
        mine = set(loss.parameters)
        present = tuple([p in mine for p in self.parameter_list])
        if not any(present):  # none of the loss's parameters is this optimizer's
            loss.backward()

        def arguments(compiled: CompiledStep, rate: Any) -> tuple[Any, ...]:
            values, places = compiled.values(), compiled.places(loss.parameters)
            others = [p.peek() for p, place in zip(loss.parameters, places, strict=True) if place is None]
            return loss.call, places, values, compiled.state(), others, loss.fixed, rate

        def store(*results: Any) -> None:
            if results:
                loss.take(*results)

        self._run(present, grad_clip, lambda compiled: compiled.minimize, arguments, store)

    def _compiled(self, present: tuple[bool, ...], grad_clip: Any) -> CompiledStep | None:
        """Return the programs for the parameters that take part in this step; None if there are none."""
        layers = self._reached()
        if layers:
            joins = [any([part.joins(i) for part in layers]) for i in range(len(present))]
            present = tuple([here or joined for here, joined in zip(present, joins, strict=True)])
            if layers[0].waits:
                return self._compiled_given(present, stay if len(layers) > 1 else leave)
        if present != self._steps.present:
            self._regroup(present)
        steps = self._steps
        asked = grad_clip, layers
        if asked not in steps.ready:
            key = (*asked, *((id(g.rule), *g.members) for g in steps.active))
            if steps.active and key not in steps.compiled:
                options = self._options_under(grad_clip)
                packing = None if layers else self._packing  # a wrapper's state lies Parameter by Parameter
                base = Rules(steps.active, options, self.parameter_list, self._measures, packing)
                steps.compiled[key] = CompiledStep(base, self.parameter_list, self._parts())
            steps.ready[asked] = steps.compiled[key] if steps.active else None
        compiled = steps.ready[asked]
        if compiled is not None:
            compiled.base.arrange(steps.active)
        return compiled

    def _compiled_given(self, present: tuple[bool, ...], update: Any = None) -> CompiledStep | None:
        """Return the programs of a step that moves parameters by what it is given, or by `update`."""
        positions = [i for i, here in enumerate(present) if here]
        key = update, self._reached(), *positions
        if positions and key not in self._steps.compiled:
            base = Given(positions, self.parameter_list, update)
            parts = self._parts() if len(self._reached()) > 1 else self._reached()
            self._steps.compiled[key] = CompiledStep(base, self.parameter_list, parts)
        return self._steps.compiled.get(key)

    def _reached(self) -> tuple[Part, ...]:
        """Return the wrappers' parts in this step; what is inside one that waits is not reached."""
        waiting = [i for i, part in enumerate(self.layers) if part.waits]
        return self.layers[waiting[-1] :] if waiting else self.layers

    def _parts(self) -> tuple[Any, ...]:
        """Return what goes around the base of a step, innermost first."""
        if self._steps.masters is None:
            return self._reached()
        return *self._reached(), Masters(lambda: self._steps.masters or {})

    def _options_under(self, grad_clip: Any) -> list[LeafOptions]:
        """Return what each parameter gets, with this clip in place of its own."""
        if grad_clip is OWN:
            return self._options
        clip = grad_clip.transformation()
        pairs = zip(self.parameter_list, self._options, strict=True)
        return [o._replace(grad_clip=clip if grad_clip.selects(p) else None) for p, o in pairs]

    def _regroup(self, present: tuple[bool, ...]) -> None:
        """Make groups, and masters, for a step that reaches other parameters than the last one did."""
        steps = self._steps
        groups = regroup(steps.groups, self._rules, self.parameter_list, present)
        active = tuple(g for g in groups if present[g.members[0]])
        masters = steps.masters
        if masters is not None:
            new = [i for i, here in enumerate(present) if here and i not in masters]
            narrow = {i: p for i in new if is_narrow(p := self.parameter_list[i].peek())}
            masters = masters | {i: jnp.array(p, jnp.float32) for i, p in narrow.items()}
        self._steps = Steps(groups, masters, present, active, {}, steps.compiled)

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
        entries = state_dict(self._steps.groups, self.parameter_list, self.owners())
        if self._steps.masters:
            masters = self._steps.masters.items()
            entries["master_weights"] = {self.parameter_list[i].name: jnp.copy(m) for i, m in masters}
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
        groups, masters, owners = self._steps.groups, self._steps.masters, self.owners()
        if entries or groups or problems:
            if masters is not None:
                given = entries.pop("master_weights", {})
                masters = read_masters(given, self.parameter_list, strict, problems)
            groups = read_state_dict(entries, self._rules, self.parameter_list, owners, strict, problems)
        if schedule is not None:
            before = copy.deepcopy(vars(self._learning_rate))
            try:
                self._learning_rate.set_state_dict(schedule)
                self._rate_for_step()
            except Exception:
                vars(self._learning_rate).update(before)
                raise
        self._steps = self._steps.afresh(groups=groups, masters=masters)

    @property
    def compiled_steps(self) -> list[CompiledStep]:
        """The programs that this optimizer has made and still knows, oldest first."""
        return list(self._steps.compiled.values())

    @property
    def rules(self) -> list[Rule]:
        """The update rule of every Parameter."""
        return [r.source.rule for r in self._rules]

    def owners(self) -> list[str]:
        """Return per Parameter what its accumulators are filed under."""
        return owners_of(self.parameter_list, self._steps.masters is not None, self._name)

    @property
    def masters(self) -> dict[Parameter, jax.Array] | None:
        """The float32 masters of narrow parameters; None if the optimizer keeps none."""
        masters = self._steps.masters
        return None if masters is None else {self.parameter_list[i]: m for i, m in masters.items()}

    def set_masters(self, masters: Mapping[Parameter, jax.Array]) -> None:
        """Replace some of the masters by arrays that nobody else holds."""
        if self._steps.masters is not None:
            self._steps.masters.update({self._position[p]: m for p, m in masters.items()})

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
