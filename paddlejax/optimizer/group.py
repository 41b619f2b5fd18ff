"""Parameters that have taken the same steps share one state: a StepGroup.

Paddle corrects the bias of every parameter by its own count of steps. Scalars stored per parameter would cost
several times the compile time, so they are stored once per group. A step that reaches only a part of a group
splits it, and groups whose scalars agree again are joined.
"""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import Lifted
from ..rates import RuleState
from .copies import own
from .parameter import Parameter

Blocks = tuple[tuple[int, ...], ...]  # positions of Parameters: those of one entry lie in one array


class StepGroup:
    """Parameters, by position among the optimizer's, whose step counts agree.

    `stored` is the part of their state that a step moves, (shared, slots). Every slot is a list in the order
    of `members`; or, if there are `blocks`, in their order, and the slots of all members of a block are one
    array.
    """

    def __init__(self, rule: Lifted, members: list[int], state: RuleState):
        self.rule, self.members = rule, members
        self.start = state.count, state.learning_rate  # an object's step counts nothing and is told the rate
        self.stored: tuple[dict[str, Any], dict[str, Any]] = state.shared, state.slots
        self.blocks: Blocks | None = None
        self._layouts: list[Any] = []  # per block how its array is divided, None where it is one slot

    @property
    def state(self) -> RuleState:
        """The whole state, with every slot a list in the order of `members`."""
        shared, slots = self.stored
        if self.blocks is not None:
            slots = {name: self._by_member(slot) for name, slot in slots.items()}
        return RuleState(*self.start, shared, slots)

    fresh: frozenset[int] = frozenset()  # members whose state stands for none

    def scalars(self) -> list[dict[str, Any]]:
        """Return the shared scalars of every member."""
        return [self.stored[0]] * len(self.members)

    def under(self, rule: Lifted) -> "StepGroup":
        """Return a group with this state, stepped from now on by another rule with the same accumulators."""
        other = copy.copy(self)
        other.rule = rule
        return other

    def copied(self) -> "StepGroup":
        """Return it with arrays of its own."""
        other = copy.copy(self)
        other.stored = own(self.stored)
        return other

    def _by_member(self, slot: list[jax.Array]) -> list[jax.Array]:
        """Return a slot that is stored by blocks as a list, one array per member."""
        found: dict[int, Any] = {}
        for block, layout, x in zip(self.blocks or (), self._layouts, slot, strict=True):
            found |= zip(block, [x] if layout is None else layout.split_on_host(x), strict=True)
        return [found[i] for i in self.members]

    def arrange(self, blocks: Blocks | None, layouts: Sequence[Any]) -> None:
        """Store the slots by these blocks, or by members if there are none."""
        if blocks == self.blocks:
            return
        slots = self.state.slots
        if blocks is not None:
            places = {i: j for j, i in enumerate(self.members)}
            at = [[places[i] for i in block] for block in blocks]
            slots = {
                name: [
                    slot[js[0]] if layout is None else layout.join_on_host([slot[j] for j in js])
                    for js, layout in zip(at, layouts, strict=True)
                ]
                for name, slot in slots.items()
            }
        self.stored, self.blocks, self._layouts = (self.stored[0], slots), blocks, list(layouts)

    def split(self, present: Sequence[bool]) -> "list[StepGroup]":
        """Return a group of the members that are present and one of the others, if there are both."""
        return [StepGroup(self.rule, *half) for half in halves(self, present)] or [self]


def halves(group: Any, present: Sequence[bool]) -> list[tuple[list[int], Any]]:
    """Return (members, state) of those who are present and of the others, or nothing if they are all alike.

    In the state a list has an entry for every member, and anything else is common to all.
    """
    members = group.members
    parts = [[j for j, i in enumerate(members) if present[i] is here] for here in (True, False)]
    if not all(parts):
        return []
    state, is_list = group.state, lambda x: isinstance(x, list)

    def of(part: list[int]) -> Any:
        # What is common is copied: a buffer in two states could not be donated twice.
        return jax.tree.map(
            lambda x: [x[j] for j in part] if is_list(x) else jnp.copy(x), state, is_leaf=is_list
        )

    return [([members[j] for j in part], of(part)) for part in parts]


def regroup(
    groups: Sequence[StepGroup],
    rules: Sequence[Lifted],
    parameters: Sequence[Parameter],
    present: Sequence[bool],
) -> list[StepGroup]:
    """Return groups that are wholly present or wholly absent; a parameter never seen before starts at t = 1.

    The state alone decides what these are, whatever led to it. So a training that was interrupted and loaded
    again runs the same programs, and gets the same bits; but for the steps past a few subsets (`flagged`),
    whose one program may round otherwise than those that a fresh process makes first.
    """
    groups = [part for group in groups for part in group.split(present)]
    known = {i for group in groups for i in group.members}
    fresh: dict[int, list[int]] = {}
    for i, here in enumerate(present):
        if here and i not in known:
            fresh.setdefault(id(rules[i]), []).append(i)
    for members in fresh.values():
        rule = rules[members[0]]
        groups.append(StepGroup(rule, members, rule.init([parameters[i].peek() for i in members])))
    alike: dict[Any, list[StepGroup]] = {}
    for group in groups:
        scalars = tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(group.stored[0]))
        alike.setdefault((id(group.rule), present[group.members[0]], scalars), []).append(group)
    return sorted(map(_merged, alike.values()), key=lambda group: group.members)


def _merged(groups: list[StepGroup]) -> StepGroup:
    """Return one group of all their members, in order."""
    if len(groups) == 1:
        return groups[0]
    states = [group.state for group in groups]
    members = [i for group in groups for i in group.members]
    order = sorted(range(len(members)), key=members.__getitem__)
    columns = {name: [x for state in states for x in state.slots[name]] for name in states[0].slots}
    slots = {name: [column[j] for j in order] for name, column in columns.items()}
    return StepGroup(groups[0].rule, [members[j] for j in order], states[0]._replace(slots=slots))
