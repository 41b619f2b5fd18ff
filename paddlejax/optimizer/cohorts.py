"""The state behind an optimizer: parameters that have taken the same steps share one RuleState.

Paddle corrects the bias of every parameter by its own count of steps. Scalars stored per parameter would cost
several times the compile time, so they are stored once per cohort; a step that reaches only part of a cohort
splits it.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import Lifted, RuleState
from ..trees import compute_dtype, is_narrow
from .packing import Blocks, Layout, joined, parts
from .parameter import Parameter


class StateDictError(ValueError, AssertionError, RuntimeError, KeyError):
    """A state_dict does not fit the optimizer; everything that is wrong with it is in the message.

    Paddle raises one of these four, depending on version and fault.
    """

    __str__ = Exception.__str__  # KeyError's would quote the message


def base(key: str) -> str:
    """A key without its trailing counter."""
    return re.sub(r"_\d+$", "", key)


def nearest(key: str, names: Sequence[str]) -> str:
    """The name most like a missing one, for the message; none among thousands, which would take long."""
    near = difflib.get_close_matches(key, names, 1, 0.5) if len(names) <= 500 else []
    return f" (nearest: {near[0]})" if near else ""


def raise_if(problems: Sequence[str]) -> None:
    """One error with all that does not fit."""
    if problems:
        raise StateDictError(
            "the state_dict does not fit, and nothing was changed:\n  " + "\n  ".join(problems)
        )


class Cohort:
    """Parameters, by position, whose scalars agree.

    `stored` is what a step takes of their state, (shared, slots): every slot is a list in the order of
    `members`, or in that of `blocks`, where the slots of all members of a block are one array.
    """

    def __init__(self, rule: Lifted, members: list[int], state: RuleState):
        self.rule, self.members = rule, members
        self.start = state.count, state.learning_rate  # an object's step counts nothing and is told the rate
        self.stored: tuple[dict[str, Any], dict[str, Any]] = state.shared, state.slots
        self.blocks: Blocks | None = None
        self._layouts: list[Layout | None] = []

    @property
    def state(self) -> RuleState:
        """Every slot a list in the order of `members`."""
        shared, slots = self.stored
        if self.blocks is not None:
            slots = {name: self._by_member(slot) for name, slot in slots.items()}
        return RuleState(*self.start, shared, slots)

    def _by_member(self, slot: list[jax.Array]) -> list[jax.Array]:
        found: dict[int, Any] = {}
        for block, layout, x in zip(self.blocks or (), self._layouts, slot, strict=True):
            found |= zip(block, [x] if layout is None else parts(layout, x), strict=True)
        return [found[i] for i in self.members]

    def arrange(self, blocks: Blocks | None, layouts: Sequence[Layout | None]) -> None:
        """Store the slots by these blocks, or by members if there are none."""
        if blocks == self.blocks:
            return
        slots = self.state.slots
        if blocks is not None:
            places = {i: j for j, i in enumerate(self.members)}
            at = [[places[i] for i in block] for block in blocks]
            slots = {
                name: [
                    slot[js[0]] if layout is None else joined(layout, [slot[j] for j in js])
                    for js, layout in zip(at, layouts, strict=True)
                ]
                for name, slot in slots.items()
            }
        self.stored, self.blocks, self._layouts = (self.stored[0], slots), blocks, list(layouts)

    def split(self, present: Sequence[bool]) -> "list[Cohort]":
        """One cohort for the members that are present and one for the others, if there are both."""
        halves = [[j for j, i in enumerate(self.members) if present[i] is here] for here in (True, False)]
        if not all(halves):
            return [self]
        state = self.state
        return [Cohort(self.rule, [self.members[j] for j in part], _part(state, part)) for part in halves]


def _part(state: RuleState, part: list[int]) -> RuleState:
    slots = {name: [slot[j] for j in part] for name, slot in state.slots.items()}
    # Scalars are copied: a buffer in two states could not be donated twice.
    count, learning_rate, shared = jax.tree.map(jnp.copy, (state.count, state.learning_rate, state.shared))
    return RuleState(count, learning_rate, shared, slots)


def regroup(
    cohorts: list[Cohort], rules: Sequence[Lifted], parameters: Sequence[Parameter], present: Sequence[bool]
) -> list[Cohort]:
    """Cohorts that are wholly present or wholly absent; parameters never seen before start at t = 1.

    What these are is decided by the state alone, whatever led to it: a training that was interrupted and
    loaded again runs the same programs, and gets the same bits.
    """
    cohorts = [part for cohort in cohorts for part in cohort.split(present)]
    known = {i for cohort in cohorts for i in cohort.members}
    fresh: dict[int, list[int]] = {}
    for i, here in enumerate(present):
        if here and i not in known:
            fresh.setdefault(id(rules[i]), []).append(i)
    for members in fresh.values():
        rule = rules[members[0]]
        cohorts.append(Cohort(rule, members, rule.init([parameters[i]._value for i in members])))
    alike: dict[Any, list[Cohort]] = {}
    for cohort in cohorts:
        scalars = tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(cohort.stored[0]))
        alike.setdefault((id(cohort.rule), present[cohort.members[0]], scalars), []).append(cohort)
    return sorted(map(_merged, alike.values()), key=lambda cohort: cohort.members)


def _merged(cohorts: list[Cohort]) -> Cohort:
    """One cohort of all their members, in order."""
    if len(cohorts) == 1:
        return cohorts[0]
    states = [cohort.state for cohort in cohorts]
    members = [i for cohort in cohorts for i in cohort.members]
    order = sorted(range(len(members)), key=members.__getitem__)
    columns = {name: [x for state in states for x in state.slots[name]] for name in states[0].slots}
    slots = {name: [column[j] for j in order] for name, column in columns.items()}
    return Cohort(cohorts[0].rule, [members[j] for j in order], states[0]._replace(slots=slots))


def owners_of(parameters: Sequence[Parameter], masters: bool, name: str | None) -> list[str]:
    """What accumulators are filed under: the parameter's name or its master's, and the optimizer's."""
    names = [f"{p.name}_fp32_master_0" if masters and is_narrow(p._value) else p.name for p in parameters]
    return [f"{owner}_{name}" if name else owner for owner in names]


def state_dict(
    cohorts: list[Cohort], parameters: Sequence[Parameter], owners: Sequence[str]
) -> dict[str, Any]:
    """Paddle's dictionary of copies: `<owner>_<accumulator>_0`, accumulator by accumulator."""
    rows: dict[str, dict[int, Any]] = {}
    for cohort in cohorts:
        for accumulator, slot in cohort.state.slots.items():
            rows.setdefault(accumulator, {}).update(zip(cohort.members, map(jnp.copy, slot), strict=True))
    for cohort in cohorts:
        for accumulator, scalar in cohort.stored[0].items():
            full = accumulator in cohort.rule.source.rule.full_shape
            values = [_written(scalar, parameters[i], full) for i in cohort.members]
            rows.setdefault(accumulator, {}).update(zip(cohort.members, values, strict=True))
    return {f"{owners[i]}_{accumulator}_0": row[i] for accumulator, row in rows.items() for i in sorted(row)}


def _written(scalar: jax.Array, p: Parameter, full: bool) -> Any:
    """A shared scalar as Paddle stores it with each parameter: of shape (1,) or p's, counters as int64."""
    if jnp.issubdtype(scalar.dtype, jnp.integer):
        return np.asarray(scalar, np.int64).reshape(1)
    return jnp.full(p.shape if full else (1,), scalar, compute_dtype((), p._value))


def _read(value: Any, start: Any) -> np.ndarray:
    """The scalar out of what `_written` made; where no element is left to read, its start."""
    return np.asarray(value.reshape(-1)[:1] if value.size else start).reshape(1)


def read_state_dict(
    entries: dict[str, Any],
    rules: Sequence[Lifted],
    parameters: Sequence[Parameter],
    owners: Sequence[str],
    strict: bool,
    problems: Sequence[str] = (),
) -> list[Cohort]:
    """Cohorts from Paddle's dictionary, or one error that lists all that is missing, unexpected or misshapen.

    The trailing counter of a key (`_0`, `_1`) is not part of the match. Without `strict` a parameter may be
    absent altogether and then starts afresh.
    """
    names = [key for key in entries if isinstance(key, str)]
    problems = [*problems, *(f"unexpected: {key!r}" for key in entries if not isinstance(key, str))]
    by_base: dict[str, list[str]] = {}
    for key in names:
        by_base.setdefault(base(key), []).append(key)
    found: list[dict[str, Any]] = []
    for i, p in enumerate(parameters):
        # What the rule would make of this parameter: names, shapes and dtypes to expect.
        fresh = jax.eval_shape(rules[i].init, [p._value])
        expected = {k: (s[0].shape, s[0].dtype) for k, s in fresh.slots.items()}
        expected |= {
            k: (
                p.shape if k in rules[i].source.rule.full_shape else (1,),
                np.int64 if s.dtype == jnp.int32 else s.dtype,
            )
            for k, s in fresh.shared.items()
        }
        keys = {k: by_base.pop(f"{owners[i]}_{k}", []) for k in expected}
        if not any(keys.values()) and (p.stop_gradient or not strict):
            found.append({})
            continue
        for k, (shape, dtype) in expected.items():
            if len(keys[k]) == 1:
                problems += misfit(keys[k][0], entries[keys[k][0]], shape, dtype)
            elif keys[k]:
                problems.append(f"ambiguous: {' and '.join(keys[k])} are both {k} of {p.name}")
            else:
                missing = f"{owners[i]}_{k}_0"
                problems.append(f"missing: {missing}{nearest(missing, names)}")
        found.append({k: entries[keys[k][0]] for k in expected if keys[k]})
    problems += [f"unexpected: {key}" for keys in by_base.values() for key in keys]
    raise_if(problems)
    return _cohorts_of(found, rules, parameters)


def read_masters(
    entries: Any, parameters: Sequence[Parameter], strict: bool, problems: list[str]
) -> dict[int, jax.Array]:
    """Float32 masters by position from `master_weights`; what does not fit is added to the problems."""
    expected = {p.name: i for i, p in enumerate(parameters) if is_narrow(p._value)}
    if not isinstance(entries, Mapping):
        problems.append(f"not a dict: master_weights is {type(entries).__name__}")
        return {}
    needed = [name for name, i in expected.items() if strict and parameters[i].trainable]
    problems += [f"missing: master_weights of {name}" for name in needed if name not in entries]
    problems += [f"unexpected: master_weights of {name}" for name in entries if name not in expected]
    there = {name: i for name, i in expected.items() if name in entries}
    for name, i in there.items():
        problems += misfit(f"master_weights of {name}", entries[name], parameters[i].shape, np.float32)
    return {} if problems else {i: jnp.array(entries[name]) for name, i in there.items()}


def misfit(key: str, value: Any, shape: tuple[int, ...], dtype: Any) -> list[str]:
    """What is wrong with an entry of a state_dict, if anything."""
    if not isinstance(value, jax.Array | np.ndarray):
        return [f"not an array: {key} is {type(value).__name__}"]
    scalar = shape == (1,) and value.shape == ()
    if value.shape != shape and not scalar:
        return [f"misshapen: {key} has shape {value.shape}, expected {shape}"]
    if value.dtype != dtype and not (dtype == np.int64 and value.dtype == np.int32):
        return [f"wrong dtype: {key} is {value.dtype}, expected {np.dtype(dtype)}"]
    return []


def _cohorts_of(
    found: list[dict[str, Any]], rules: Sequence[Lifted], parameters: Sequence[Parameter]
) -> list[Cohort]:
    """Parameters of one rule whose scalars are equal, bit for bit, make one cohort."""
    groups: dict[Any, list[int]] = {}
    shared = [rule.source.rule.shared() for rule in rules]
    for i, entry in enumerate(found):
        if entry:
            scalars = tuple(_read(entry[k], start).tobytes() for k, start in shared[i].items())
            groups.setdefault((id(rules[i]), scalars), []).append(i)
        elif not parameters[i].stop_gradient and not rules[i].source.rule.slots and not shared[i]:
            groups.setdefault((id(rules[i]), ()), []).append(i)
    cohorts = []
    for members in groups.values():
        rule = rules[members[0]]
        state = rule.init([parameters[i]._value for i in members])
        first = found[members[0]]
        scalars = {k: jnp.array(_read(first[k], v)[0], v.dtype) for k, v in state.shared.items()}
        slots = {k: [jnp.array(found[i][k]) for i in members] for k in state.slots}
        cohorts.append(Cohort(rule, members, state._replace(shared=scalars, slots=slots)))
    return cohorts
