"""The state_dict of an optimizer: how its groups are written under Paddle's names, and read again."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import Lifted, Rule
from ..trees import compute_dtype, is_narrow
from .group import StepGroup
from .ledger import ArrayField, Entries, Field, SharedField
from .parameter import Parameter


def owners_of(parameters: Sequence[Parameter], masters: bool, name: str | None) -> list[str]:
    """What accumulators are filed under: the parameter's name or its master's, and the optimizer's."""
    names = [f"{p.name}_fp32_master_0" if masters and is_narrow(p.peek()) else p.name for p in parameters]
    return [f"{owner}_{name}" if name else owner for owner in names]


def fields_of(
    rule: Rule, p: Parameter, owner: str, slots: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Field]:
    """What is saved of one parameter: its slots, and the scalars that it shares.

    Of both only shape and dtype count: they may be arrays or what `jax.eval_shape` gives.
    """
    wide, starts = compute_dtype((), p.peek()), rule.shared()
    own: dict[str, Field] = {k: ArrayField(f"{owner}_{k}_0", x.shape, x.dtype) for k, x in slots.items()}
    return own | {
        k: SharedField.of(f"{owner}_{k}_0", x, p.shape if k in rule.full_shape else (1,), wide, starts[k])
        for k, x in shared.items()
    }


def rows_of(
    groups: list[StepGroup], parameters: Sequence[Parameter], owners: Sequence[str]
) -> dict[str, dict[int, tuple[Field, Any]]]:
    """The fields of all parameters, with their values, by accumulator and position: slots first."""
    rows: dict[str, dict[int, tuple[Field, Any]]] = {}
    states = [group.state for group in groups]
    for name in (*(k for s in states for k in s.slots), *(k for s in states for k in s.shared)):
        rows.setdefault(name, {})
    for group, state in zip(groups, states, strict=True):
        for j, (i, shared) in enumerate(zip(group.members, group.scalars(), strict=True)):
            if i in group.fresh:
                continue
            slots = {k: slot[j] for k, slot in state.slots.items()}
            fields = fields_of(group.rule.source.rule, parameters[i], owners[i], slots, shared)
            for k, value in (slots | shared).items():
                rows[k][i] = fields[k], value
    return rows


def entries_of(
    groups: list[StepGroup], parameters: Sequence[Parameter], owners: Sequence[str]
) -> list[tuple[Field, Any]]:
    """The fields of all parameters, with their values, by accumulator, as in Paddle."""
    return [row[i] for row in rows_of(groups, parameters, owners).values() for i in sorted(row)]


def read(
    entries: Entries,
    rules: Sequence[Lifted],
    parameters: Sequence[Parameter],
    owners: Sequence[str],
    strict: bool,
) -> list[dict[str, Any]]:
    """The accumulators of every parameter by name; without `strict` a parameter may have none at all."""
    found = []
    for lifted, p, owner in zip(rules, parameters, owners, strict=True):
        fresh = jax.eval_shape(lifted.init, [p.peek()])  # the shapes and dtypes to expect
        slots = {k: slot[0] for k, slot in fresh.slots.items()}
        fields = fields_of(lifted.source.rule, p, owner, slots, fresh.shared)
        found.append(entries.read_all(fields, may_be_absent=p.stop_gradient or not strict))
    return found


def master_fields(parameters: Sequence[Parameter], strict: bool = True) -> dict[int, Field]:
    """The float32 masters of 16-bit parameters, by position: what is in `master_weights`."""
    return {
        i: ArrayField(p.name, p.shape, np.float32, required=strict and p.trainable)
        for i, p in enumerate(parameters)
        if is_narrow(p.peek())
    }


def read_masters(entries: Entries, parameters: Sequence[Parameter], strict: bool) -> dict[int, jax.Array]:
    """The masters that are there, by position."""
    part = entries.part("master_weights", "master_weights of {}")
    found = part.read_all(master_fields(parameters, strict))
    return {i: master for i, master in found.items() if master is not None}


def groups_of(
    found: list[dict[str, Any]], rules: Sequence[Lifted], parameters: Sequence[Parameter]
) -> list[StepGroup]:
    """Parameters of one rule whose scalars are equal, bit for bit, make one group."""
    alike: dict[Any, list[int]] = {}
    for i, entry in enumerate(found):
        rule = rules[i].source.rule
        shared = rule.shared()
        if entry or not parameters[i].stop_gradient and not rule.slots and not shared:
            scalars = tuple(entry[k].tobytes() for k in shared)
            alike.setdefault((id(rules[i]), scalars), []).append(i)
    groups = []
    for members in alike.values():
        rule = rules[members[0]]
        state = rule.init([parameters[i].peek() for i in members])
        first = found[members[0]]
        scalars = {k: jnp.array(first[k], v.dtype) for k, v in state.shared.items()}
        slots = {k: [found[i][k] for i in members] for k in state.slots}
        groups.append(StepGroup(rule, members, state._replace(shared=scalars, slots=slots)))
    return groups
