"""Steps that reach now these, now those Parameters: which of them is data, and no other program.

Otherwise every subset of Parameters has a program of its own, and those that have taken the same steps share
scalars. That is fastest where the subsets are few, and would compile for ever where they are many. Past a few
of them one program has all Parameters: it steps each with scalars of its own, and keeps the result of those
that are reached. The others keep value, slots and scalars, and a clip sees zeros in place of their gradients.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..attributes import is_ours
from ..info import Info
from ..leaves import LeafOptions
from ..lifting import Lifted
from ..rates import RuleState
from ..selected_rows import SelectedRows
from ..trees import compute_dtype
from .compiled import CompiledStep
from .group import StepGroup
from .parameter import Parameter
from .parts import Part, Rules

FEW = 4  # subsets that have programs of their own
LONG = 100  # steps in a row that reach the same Parameters: then it pays to compile for these alone


class Subsets:
    """Which Parameters the last steps reached."""

    def __init__(self) -> None:
        self._known: set[tuple[bool, ...]] = set()
        self._last: tuple[bool, ...] = ()
        self._times = 0  # steps in a row that reached the same

    def are_many(self, present: tuple[bool, ...]) -> bool:
        """Note a step that reaches these Parameters; return whether subsets have become many."""
        if present == self._last:
            self._times += 1
            if self._times == LONG:
                self._known = {present}
        else:
            self._last, self._times = present, 1
            if len(self._known) <= FEW:
                self._known.add(present)
        return len(self._known) > FEW


class EachGroup(StepGroup):
    """Parameters of one rule, each with scalars of its own: `stored` has a vector of each, by member.

    `fresh` are those that no step has reached yet. Their state stands for none.
    """

    def __init__(self, rule: Lifted, members: list[int], state: RuleState, fresh: frozenset[int]):
        super().__init__(rule, members, state)
        self.fresh = fresh

    def scalars(self) -> list[dict[str, Any]]:
        """Return the shared scalars of every member."""
        columns = {name: np.asarray(x) for name, x in self.stored[0].items()}
        return [{name: x[j] for name, x in columns.items()} for j in range(len(self.members))]

    def apart(self) -> list[StepGroup]:
        """Return a group for every member that a step has reached."""
        (_, slots), found = self.stored, []
        for j, (i, scalars) in enumerate(zip(self.members, self.scalars(), strict=True)):
            if i not in self.fresh:
                shared = {name: jnp.asarray(x) for name, x in scalars.items()}
                own = {name: [slot[j]] for name, slot in slots.items()}
                found.append(StepGroup(self.rule, [i], RuleState(*self.start, shared, own)))
        return found

    def begin(self, present: Sequence[bool], parameters: Sequence[Parameter]) -> None:
        """Start those that a step reaches for the first time, from where they stand now."""
        for i in [i for i in self.fresh if present[i]]:
            (shared, slots), j = self.stored, self.members.index(i)
            new = self.rule.init([parameters[i].peek()]).slots
            self.stored = shared, {k: [*s[:j], new[k][0], *s[j + 1 :]] for k, s in slots.items()}


def apart(groups: Sequence[StepGroup]) -> list[StepGroup]:
    """Return groups whose members share scalars."""
    return [g for group in groups for g in (group.apart() if isinstance(group, EachGroup) else [group])]


def together(
    groups: Sequence[StepGroup],
    rules: Sequence[Lifted],
    parameters: Sequence[Parameter],
    present: Sequence[bool],
) -> list[EachGroup] | None:
    """Return one group per rule, of all Parameters that may be reached; None if their scalars differ in
    kind."""
    wanted = [i for i, p in enumerate(parameters) if present[i] or p.trainable]
    if len({compute_dtype((), parameters[i].peek()) for i in wanted}) > 1:
        return None
    states = {
        i: (scalars, {k: slot[j] for k, slot in g.stored[1].items()}, g.start)
        for g in apart(groups)
        for j, (i, scalars) in enumerate(zip(g.members, g.scalars(), strict=True))
    }
    fresh = frozenset(wanted) - states.keys()
    by_rule: dict[int, list[int]] = {}
    for i in sorted({*states, *wanted}):
        by_rule.setdefault(id(rules[i]), []).append(i)
    for i in fresh:
        start = rules[i].init([parameters[i].peek()])
        states[i] = start.shared, {k: s[0] for k, s in start.slots.items()}, start[:2]
    found = []
    for members in by_rule.values():
        first, slots, start = states[members[0]]
        columns = {k: [np.asarray(states[i][0][k]) for i in members] for k in first}
        if any(len({x.dtype for x in column}) > 1 for column in columns.values()):
            return None
        shared = {k: jnp.asarray(np.stack(column)) for k, column in columns.items()}
        state = RuleState(*start, shared, {k: [states[i][1][k] for i in members] for k in slots})
        found.append(EachGroup(rules[members[0]], members, state, fresh & {*members}))
    return found


def takes_flags(options: Sequence[LeafOptions], layers: Sequence[Part]) -> bool:
    """Return whether a step with these options and wrappers may have absent Parameters in its program.

    A clip of the user's own sees how many gradients there are.
    """
    clips = {id(o.grad_clip): o.grad_clip for o in options if o.grad_clip is not None}
    return all(part.by_position for part in layers) and all(
        is_ours(type(clip.source)) for clip in clips.values()
    )


class FlaggedRules(Rules):
    """`Rules` of EachGroups: every Parameter advances scalars of its own."""

    def has_clip(self) -> bool:
        """Return whether any gradient is clipped."""
        return any(o.grad_clip is not None for o in self._options)

    def mixed(self, dtypes: Sequence[Any]) -> list[list[int]]:
        """Return the arrays that have one clip in common with those of another dtype, by clip and dtype.

        The norm of all is taken in the widest dtype of those that are there.
        """
        kinds: dict[int, dict[Any, list[int]]] = {}
        for at, (o, dtype) in enumerate(zip(self._options, dtypes, strict=True)):
            if o.grad_clip is not None:
                kinds.setdefault(id(o.grad_clip), {}).setdefault(dtype, []).append(at)
        return [own for by_dtype in kinds.values() if len(by_dtype) > 1 for own in by_dtype.values()]

    def _own(self, rule: Lifted) -> Lifted:
        return rule.each()

    def _rule_states(self, stored: list[Any], rates: list[Any]) -> tuple[RuleState, ...]:
        states = super()._rule_states(stored, rates)
        return tuple(
            s._replace(shared={k: self._over_all(list(x), span) for k, x in s.shared.items()})
            for s, span in zip(states, self.spans, strict=True)
        )

    def _stored(self, state: Any) -> list[Any]:
        return [
            ({k: jnp.stack(column[span]) for k, column in shared.items()}, slots)
            for (shared, slots), span in zip(super()._stored(state), self.spans, strict=True)
        ]


class FlaggedStep(CompiledStep):
    """A CompiledStep of FlaggedRules, which is told before every step whom it reaches."""

    base: FlaggedRules

    def __init__(self, base: FlaggedRules, parameters: Sequence[Parameter], parts: Sequence[Part]):
        super().__init__(base, parameters, parts)
        own = [parameters[i] for i in self.order]
        self._blanks: dict[Any, Any] = {}  # zeros, one array for all gradients that it may stand for
        self._kinds: list[Any] = [None if p.sparse else _kind(p.peek()) for p in own]
        self._mixed = base.mixed([p.dtype for p in own])
        self._present: tuple[bool, ...] = ()
        self._flags: Any = None
        self._left: set[int] = set()  # arrays that stay where they are: the program has a copy

    def reach(self, present: tuple[bool, ...], parameters: Sequence[Parameter]) -> None:
        """Say which Parameters the next step reaches."""
        self._present, self._flags = present, np.array([present[i] for i in self.order])
        for group in self.base.groups:
            if isinstance(group, EachGroup):
                group.begin(present, parameters)

    # ------------------------------------------------------------------ on the host

    def rate(self, rate: float, stays: bool) -> Any:
        """Return the rates, and who is reached."""
        return super().rate(rate, stays), self._flags

    def values(self) -> list[Any]:
        """Return the arrays to donate. Those of the unreached may be read by a loss, of a frozen Parameter
        also by the one that is minimized: these stay, and a copy is donated."""
        pairs = enumerate(zip(self.stores, self._flags, strict=True))
        self._left = {at for at, (s, reached) in pairs if not reached and s.is_read()}
        return [jnp.copy(s.array) if at in self._left else s.take() for at, s in enumerate(self.stores)]

    def arguments(self, grads: list[Any], rate: Any) -> tuple[Any, ...]:
        """As for a CompiledStep, with zeros in place of the gradients that are not there.

        None stays where the last gradient was a SelectedRows, and where nobody of its dtype is there.
        """
        own = [grads[i] for i in self.order]
        for at, g in enumerate(own):
            if g is None:
                own[at] = self._blank(self._kinds[at])
            else:
                self._kinds[at] = None if isinstance(g, SelectedRows) else _kind(g)
        for alike in self._mixed:
            if not any(self._flags[at] for at in alike):
                for at in alike:
                    own[at] = None
        return self.values(), self.state(), own, rate

    def _blank(self, kind: Any) -> Any:
        """Return zeros of this kind."""
        if kind is not None and kind not in self._blanks:
            shape, dtype, sharding = kind
            zeros = jnp.zeros(shape, dtype)
            self._blanks[kind] = zeros if sharding is None else jax.device_put(zeros, sharding)
        return None if kind is None else self._blanks[kind]

    def keep(self, values: list[jax.Array], state: Any) -> Info | None:
        """Store what the programs returned; who was reached has a state from now on."""
        rows = enumerate(zip(self.stores, values, strict=True))
        info = super().keep([s.array if at in self._left else x for at, (s, x) in rows], state)
        for group in self.base.groups:
            if group.fresh:
                group.fresh = frozenset(i for i in group.fresh if not self._present[i])
        return info

    # ------------------------------------------------------------------ inside the programs

    def update(self, values: list[Any], state: Any, grads: list[Any], rate: Any) -> tuple[list[Any], Any]:
        """Return the new values and the new state, of those that are not reached the old ones."""
        rate, flags = rate
        each = list(flags)
        there = [g is not None and not isinstance(g, SelectedRows) for g in grads]  # others: all is known
        if self.base.has_clip():
            rows = zip(grads, each, there, strict=True)
            grads = [jnp.where(flag, g, jnp.zeros_like(g)) if here else g for g, flag, here in rows]

        def chosen(old: Sequence[Any], new: Sequence[Any], start: int = 0) -> list[Any]:
            """Of each pair in two lists, which begin with this array, return the one that counts."""
            return [
                jnp.where(each[at], b, a) if there[at] and b is not a and b is not None else b
                for at, (a, b) in enumerate(zip(old, new, strict=True), start)
            ]

        def inside(old: Any, new: Any, depth: int) -> Any:
            """Of two states return what counts; the inner state of a wrapper is the last of its state."""
            if depth:
                pairs = zip(old[:-1], new[:-1], strict=True)
                outer = [chosen(a, b) if isinstance(b, list) else b for a, b in pairs]
                made = getattr(type(new), "_make", tuple)
                return made([*outer, inside(old[-1], new[-1], depth - 1)])
            found = []
            for (scalars, slots), (moved, stepped), span in zip(old, new, self.base.spans, strict=True):
                shared = {k: jnp.where(flags[span], x, scalars[k]) for k, x in moved.items()}
                own = {k: chosen(slots[k], x, span.start) for k, x in stepped.items()}
                found.append((shared, own))
            return found

        moved, after = super().update(values, state, grads, rate)
        return chosen(values, moved), inside(state, after, len(self.parts))


def _kind(x: jax.Array) -> Any:
    """Return what a program has to know of a gradient beside its elements."""
    return x.shape, x.dtype, x.sharding if getattr(x, "committed", False) else None
