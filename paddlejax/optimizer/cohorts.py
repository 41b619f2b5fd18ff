"""The state_dict of an optimizer: how its groups are written under Paddle's names, and read again."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import Lifted
from ..trees import compute_dtype, is_narrow
from .group import StepGroup
from .ledger import StateDictError, base, nearest
from .parameter import Parameter


def raise_if(problems: Sequence[str]) -> None:
    """One error with all that does not fit."""
    if problems:
        raise StateDictError(
            "the state_dict does not fit, and nothing was changed:\n  " + "\n  ".join(problems)
        )


def owners_of(parameters: Sequence[Parameter], masters: bool, name: str | None) -> list[str]:
    """What accumulators are filed under: the parameter's name or its master's, and the optimizer's."""
    names = [f"{p.name}_fp32_master_0" if masters and is_narrow(p.peek()) else p.name for p in parameters]
    return [f"{owner}_{name}" if name else owner for owner in names]


def state_dict(
    cohorts: list[StepGroup], parameters: Sequence[Parameter], owners: Sequence[str]
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
    return jnp.full(p.shape if full else (1,), scalar, compute_dtype((), p.peek()))


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
) -> list[StepGroup]:
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
        fresh = jax.eval_shape(rules[i].init, [p.peek()])
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
    expected = {p.name: i for i, p in enumerate(parameters) if is_narrow(p.peek())}
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
) -> list[StepGroup]:
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
        state = rule.init([parameters[i].peek() for i in members])
        first = found[members[0]]
        scalars = {k: jnp.array(_read(first[k], v)[0], v.dtype) for k, v in state.shared.items()}
        slots = {k: [jnp.array(found[i][k]) for i in members] for k in state.slots}
        cohorts.append(StepGroup(rule, members, state._replace(shared=scalars, slots=slots)))
    return cohorts
