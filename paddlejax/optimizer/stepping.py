"""How an optimizer object steps: which programs it makes, and how one is run as a whole or not at all."""

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..recent import Recent
from ..selected_rows import SelectedRows
from ..step import check_sparse
from ..trees import is_narrow
from .compiled import CompiledStep
from .copies import CopiedSteps
from .flagged import FlaggedRules, FlaggedStep, Subsets, apart, takes_flags, together
from .gate import whole
from .group import StepGroup, regroup
from .loss import Loss
from .measured import Measured
from .parameter import ZEROS, Parameter
from .parts import Given, Masters, Part, Rules, leave, stay
from .plan import Plan
from .programs import Risky, Watched, arrived, waited
from .settings import Settings
from .spent import Stowed
from .transaction import run_atomically

OWN: Any = object()  # "the optimizer's own", where None already means something


class Steps(NamedTuple):
    """What a step changes beside the values of Parameters; it is replaced as a whole, in one assignment."""

    groups: list[StepGroup]
    masters: dict[int, jax.Array] | None  # float32, by position; None if there are to be none
    # By wrappers and plan the programs for those that are present; by these and groups all there are.
    ready: Recent[Any, CompiledStep]
    compiled: Recent[Any, CompiledStep]
    fused: Recent[Any, Watched]  # by program and loss: forward and backward are in it
    present: tuple[bool, ...] | None = None  # per Parameter whether the steps reach it now
    active: tuple[StepGroup, ...] = ()  # the groups that are present
    flagged: tuple[bool, ...] = ()  # per Parameter whether it is in these, if a step is told who is present

    @classmethod
    def begun(cls, masters: bool) -> "Steps":
        """Return those of an optimizer that has made none; its tables are its own."""
        return cls([], {} if masters else None, Recent(), Recent(), Recent())

    def afresh(self, **changes: Any) -> "Steps":
        """Return these without any program; the next step makes its own."""
        return self.having(compiled=Recent(), fused=Recent(), **changes)

    def having(self, **changes: Any) -> "Steps":
        """Return these with other groups or masters; the next step finds out which programs they need."""
        return self._replace(present=None, active=(), flagged=(), ready=Recent(), **changes)


class Stepping(Settings, Measured, CopiedSteps):
    """The part of an optimizer that steps: it holds the state of the steps, and their programs.

    A subclass says at which rate (`_rate_for_step`), and what follows a step (`_stepped`).
    """

    layers: tuple[Part, ...] = ()  # what wrappers add to the step that is being made, innermost first
    _note: Callable[[], None] | None = None  # what else is stored with a step, see `noting`
    _stowed: Stowed | None = None  # where the gradients of a `minimize` go
    passed: bool = False  # whether a step was made since a wrapper set this to False
    parameter_list: list[Parameter]
    _replaces = False  # whether the backward of a `minimize` replaces the gradients that are there
    _position: dict[Parameter, int]
    _steps: Steps
    _subsets: Subsets
    _packing: Any  # a `packing.Packing`, or None

    def _rate_for_step(self) -> float:
        """Return the rate of the step that is being made."""
        raise NotImplementedError(f"{type(self).__name__} has no rate")

    def apply(
        self,
        grads: list[Any],
        grad_clip: Any = OWN,
        taken: Callable[..., None] | None = None,
        program_of: Callable[[CompiledStep], Any] | None = None,
    ) -> None:
        """Step with these gradients, one or None per Parameter, as a whole or not at all.

        `taken` belongs to what is stored, see `_run`. `program_of` gives another way to run a CompiledStep's
        `update` than its `step`.
        """
        kinds = set(map(type, grads))
        if SelectedRows in kinds and not any([part.takes_rows() for part in self.layers]):
            self._check_rows(grads)
        if type(ZEROS) in kinds:
            grads = [
                p.peek_grad() if g is ZEROS else g for p, g in zip(self.parameter_list, grads, strict=True)
            ]
        if self._clips_outside and grad_clip is OWN:
            self._check_outside()
            grads = self._clipped_outside(grads)
        if self._safe:
            waited(grads)
        else:
            arrived(grads)
        present = tuple([g is not None for g in grads])
        flags = program_of is None  # another program may run where the arrays are, on several devices
        self._run(
            present,
            grad_clip,
            program_of,
            lambda compiled, rate: compiled.arguments(grads, rate),
            taken,
            flags,
        )

    def _run(
        self,
        present: tuple[bool, ...],
        grad_clip: Any,
        program_of: Callable[[CompiledStep], Any] | None,
        arguments_of: Callable[[CompiledStep, Any], tuple[Any, ...]],
        taken: Callable[..., None] | None = None,
        flags: bool = False,
    ) -> None:
        """Run a program of the step that reaches these parameters, and store what it returns; or neither.

        It returns (values, state), and what else it computed is given to `taken`, which only assigns. `flags`
        says whether the program may have other Parameters in it too.
        """
        own = self.__dict__  # past `__setattr__`, which would show in the time of a step
        own["passed"] = True
        self._settled()
        layers = self._reached() if self.layers else ()
        waits = bool(layers) and layers[0].waits
        rate = 0.0 if waits else self._rate_for_step()
        before, compiled = self._steps, None

        def prepare() -> Any:
            nonlocal compiled
            compiled = self._compiled(present, grad_clip, flags)
            if compiled is None:
                return None
            given = compiled.rate(rate, type(self._rate) is float)
            program = compiled.step if program_of is None else program_of(compiled)
            return program, arguments_of(compiled, given)

        def store(done: tuple[Any, ...]) -> None:
            values, state, *results = done
            info = compiled.keep(values, state)  # type: ignore[union-attr]
            if taken is not None:
                taken(*results)
            if self._note is not None:
                self._note()
            if not waits:
                own["_info"] = info
                self._stepped()

        if not run_atomically(prepare, store, lambda: setattr(self, "_steps", before), self._safe):
            if taken is not None:
                taken()
            for part in layers:
                part.idle()
            if not waits:
                self._stepped()

    @contextmanager
    def noting(self, note: Callable[[], None]) -> Iterator[None]:
        """Inside, a step calls `note`, which only assigns, in the same breath as it stores its result."""
        own = self.__dict__  # as in a wrapper
        try:
            own["_note"] = note
            yield
        finally:
            own["_note"] = None

    def _check_rows(self, grads: list[Any]) -> None:
        """Raise if a rule takes no SelectedRows; a Parameter that gets one leaves the packed buffers for
        good."""
        for i, (p, r, g) in enumerate(zip(self.parameter_list, self._rules, grads, strict=True)):
            if isinstance(g, SelectedRows):
                check_sparse(r.source.rule, f"Parameter {p.name}")
                if self._packing is not None and i not in self._packing.apart:
                    self._packing.apart.add(i)
                    self._steps = self._steps.afresh()

    def _check_outside(self) -> None:
        """Raise if a wrapper gathers gradients: a clip outside the program would not see their sum."""
        if any([part.gathers for part in self.layers]):
            raise RuntimeError(
                f"{type(self).__name__}: found a clip with _dygraph_clip beside gradient merge, which sums "
                "inside the program; expected a clip that defines clip(self, grads)"
            )

    def _stepped(self) -> None:
        """A step was taken, with the rate of `_rate_for_step()`."""

    def _fuses(self, loss: Loss, wanted: Collection[Parameter]) -> bool:
        """Whether forward, backward and step can be one program: no gradient but this loss's takes part."""
        apart = self._clips_outside or self._safe or loss.has_gradients() or loss.is_risky()
        if loss.ran_backward or apart or not loss.is_current():
            return False
        mine = set(loss.parameters)
        present = [p for p in wanted if p in mine]
        if not present or any([p.stop_gradient for p in mine]):
            return False
        live = [p.lazy_grad for p in present if p.lazy_grad is not None and p.lazy_grad is not ZEROS]
        if live and not self._replaces:
            return False
        return len(present) == len(wanted) or all([p in mine or p.lazy_grad is None for p in wanted])

    def _run_fused(self, loss: Loss, wanted: Collection[Parameter], grad_clip: Any) -> bool:
        """Run forward, backward and step of this loss as one program; return False if that may fail on the
        way, and then nothing has happened."""
        arrived(loss.fixed, all_of_them=True)
        mine = set(loss.parameters)
        present = tuple([p in mine and p in wanted for p in self.parameter_list])
        loss.follow()
        stowed = self._stowed
        if stowed is None or not stowed.fits(loss.parameters):
            stowed = Stowed(loss.parameters, self._position)

        def arguments(compiled: CompiledStep, rate: Any) -> tuple[Any, ...]:
            values, places = compiled.values(), compiled.places(loss.parameters)
            others = [p.peek() for p, place in zip(loss.parameters, places, strict=True) if place is None]
            fixed = loss.fixed
            if self.layers:  # one that was frozen when the loss was built may join the step
                given = set(map(id, values))
                fixed = [jnp.copy(x) if id(x) in given else x for x in fixed]
            return values, compiled.state(), stowed.take(), others, fixed, rate

        def taken(result: Any, grads: list[Any]) -> None:
            loss.settle(result)
            self._stowed = stowed
            found = dict(zip(loss.parameters, stowed.keep(grads), strict=True))
            self._spend({p: g for p, g in found.items() if p in wanted}, loss, found)

        def program(compiled: CompiledStep) -> Watched:
            return self._fused(compiled, loss, stowed.stowage)

        # The rows of a table are stepped wherever they are listed.
        flags = all([here or not p.sparse for p, here in zip(self.parameter_list, present, strict=True)])
        try:
            self._run(present, grad_clip, program, arguments, taken, flags)
        except Risky:
            loss.note_risk()
            return False
        return True

    def _fused(self, compiled: CompiledStep, loss: Loss, stowage: Any) -> Watched:
        """Return the program of this loss and the step; one that is equal to another has the same."""
        key = compiled, loss.call, compiled.places(loss.parameters), stowage
        known = self._steps.fused.get(key)
        return known or self._steps.fused.put(key, compiled.minimize(loss.call, loss.parameters, stowage))

    def _spend(self, totals: Mapping[Parameter, Any], loss: Any, found: Mapping[Parameter, Any]) -> None:
        """Note that a `minimize` stepped with these totals, and what it found for Parameters of other
        optimizers. It only assigns."""
        for p, g in totals.items():
            own = vars(p)  # what `put_grads` does; a call for each would show in the step's time
            own["lazy_grad"], own["spent"] = None, g
        for p in self.parameter_list if len(totals) < len(self.parameter_list) else ():
            if p.lazy_grad is None and p not in totals:
                p.spent = None
        if isinstance(loss, Loss):
            loss.left = {p: g for p, g in found.items() if p not in self._position}
            for p, g in loss.left.items():
                p.spent = g

    def _compiled(
        self, present: tuple[bool, ...], grad_clip: Any, flags: bool = False
    ) -> CompiledStep | None:
        """Return the programs for the parameters that take part in this step; None if there are none.

        With `flags` others may be in them too, which the step does not reach.
        """
        layers = self._reached() if self.layers else ()
        if layers:
            joins = [any([part.joins(i) for part in layers]) for i in range(len(present))]
            present = tuple([here or joined for here, joined in zip(present, joins, strict=True)])
            if layers[0].waits:
                return self._compiled_given(present, stay if len(layers) > 1 else leave)
        plan = self._plan if grad_clip is OWN else self._plan_with(grad_clip)
        if any(present) and self._subsets.are_many(present) and flags:
            compiled = self._flagged(present, plan, layers)
            if compiled is not None:
                return compiled
        if present != self._steps.present:
            self._regroup(present)
        steps = self._steps
        if not steps.active:
            return None
        asked = layers, plan.number
        compiled = steps.ready.get(asked)
        if compiled is None:
            key = (layers, plan.key, *(tuple(g.members) for g in steps.active))
            compiled = steps.compiled.get(key)
            if compiled is None:
                packing = None if layers else self._packing  # a wrapper's state lies Parameter by Parameter
                base = Rules(steps.active, plan, self.parameter_list, self._measures, packing)
                compiled = steps.compiled.put(key, CompiledStep(base, self.parameter_list, self._parts()))
            steps.ready.put(asked, compiled)
        if compiled.base.plan is not plan.number:
            compiled.adopt(plan)
        compiled.base.arrange(steps.active)
        return compiled

    def _flagged(
        self, present: tuple[bool, ...], plan: Plan, layers: tuple[Part, ...]
    ) -> CompiledStep | None:
        """Return the programs that have all parameters and are told who takes part; None if there can be
        none."""
        steps, parameters = self._steps, self.parameter_list
        if not steps.flagged or any(map(operator.gt, present, steps.flagged)):
            fits = self._packing is None and not self._measures and takes_flags(plan.options, layers)
            groups = together(steps.groups, self._rules, parameters, present) if fits else None
            if groups is None:
                return None
            members = {i for g in groups for i in g.members}
            flagged = tuple([i in members for i in range(len(present))])
            self._steps = steps.having(groups=groups)._replace(active=tuple(groups), flagged=flagged)
            self._let_go()
        masters = self._masters_of(present)
        if masters is not None and len(masters) > len(self._steps.masters or {}):
            self._steps = self._steps._replace(masters=masters)
        steps = self._steps
        compiled = steps.ready.get((layers, plan.number))
        if compiled is None:
            if not takes_flags(plan.options, layers):
                return None
            key = (layers, plan.key, FlaggedStep, *(tuple(g.members) for g in steps.active))
            compiled = steps.compiled.get(key)
            if compiled is None:
                base = FlaggedRules(steps.active, plan, parameters)
                compiled = steps.compiled.put(key, FlaggedStep(base, parameters, self._parts()))
            steps.ready.put((layers, plan.number), compiled)
        if compiled.base.plan is not plan.number:
            compiled.adopt(plan)
        compiled.base.arrange(steps.active)
        compiled.reach(present, parameters)  # type: ignore[attr-defined]
        return compiled

    def _compiled_given(self, present: tuple[bool, ...], update: Any) -> CompiledStep | None:
        """Return the programs of a step that moves these parameters as `update` does, without their rules."""
        positions = [i for i, here in enumerate(present) if here]
        key = update, self._reached(), *positions
        compiled = self._steps.compiled.get(key)
        if positions and compiled is None:
            base = Given(positions, self.parameter_list, update)
            parts = self._parts() if len(self._reached()) > 1 else self._reached()
            compiled = self._steps.compiled.put(key, CompiledStep(base, self.parameter_list, parts))
        return compiled

    def _reached(self) -> tuple[Part, ...]:
        """Return the wrappers' parts in this step; what is inside one that waits is not reached."""
        waiting = [i for i, part in enumerate(self.layers) if part.waits]
        return self.layers[waiting[-1] :] if waiting else self.layers

    def _parts(self) -> tuple[Any, ...]:
        """Return what goes around the base of a step, innermost first."""
        if self._steps.masters is None:
            return self._reached()
        return *self._reached(), Masters(lambda: self._steps.masters or {}, self.parameter_list)

    def _regroup(self, present: tuple[bool, ...]) -> None:
        """Make groups, and masters, for a step that reaches other parameters than the last one did."""
        steps = self._steps
        groups = regroup(apart(steps.groups), self._rules, self.parameter_list, present)
        active = tuple(g for g in groups if present[g.members[0]])
        masters = self._masters_of(present)
        self._steps = steps.having(groups=groups, masters=masters)._replace(present=present, active=active)
        self._let_go()

    def _let_go(self) -> None:
        """Let no program hold a state of before; the one that runs next is given the state of now."""
        for compiled in self._steps.compiled.values():
            compiled.base.groups = ()

    def _masters_of(self, present: tuple[bool, ...]) -> dict[int, jax.Array] | None:
        """Return the masters, with new ones for parameters that take part for the first time."""
        masters = self._steps.masters
        if masters is None:
            return None
        new = [i for i, here in enumerate(present) if here and i not in masters]
        narrow = {i: p for i in new if is_narrow(p := self.parameter_list[i].peek())}
        return masters | {i: jnp.array(p, jnp.float32) for i, p in narrow.items()}

    @property
    def compiled_steps(self) -> list[CompiledStep]:
        """The programs that this optimizer has made and still knows, oldest first."""
        return self._steps.compiled.values()

    @property
    @whole
    def masters(self) -> dict[Parameter, jax.Array] | None:
        """The float32 masters of narrow parameters; None if the optimizer keeps none."""
        masters = self._steps.masters
        return None if masters is None else {self.parameter_list[i]: m for i, m in masters.items()}
