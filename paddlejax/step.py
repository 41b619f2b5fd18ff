"""The compiled step of a rule on one tensor, and of many alike at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .alike import grouped
from .collectives import Sums, attempt, in_parts, lockstep
from .selected_rows import SelectedRows, dense
from .spreading import all_at_once, together
from .trees import compute_dtype

Slots = dict[str, jax.Array]
# An optional feature puts its functions here when it is switched on; nothing here imports it.
reform: Callable[..., Any] | None = None  # (step, its result, its arguments) -> the result in another form
refuse_rows: Callable[[str], None] | None = None  # raises where rows cannot be stepped


def stepped(given: dict[int, tuple[Any, ...]]) -> dict[int, tuple[Any, Slots]]:
    """Step many tensors, {i: (rule, gradient, p, k, slots)}; return {i: (what to add to p, new slots)}.

    Under a trace, tensors of the same rule, shapes and dtypes share calls: see `grouped`.
    """
    done: dict[int, tuple[Any, Slots]] = {}
    if all_at_once.value is not None:
        done = _all_at_once({i: x for i, x in given.items() if x[0].has_matrices})
        given = {i: x for i, x in given.items() if i not in done}
    across = {i: x for i, x in given.items() if _sums_up(x[0]) and not isinstance(x[1], SelectedRows)}
    # Under zero1 not jitted: a call in the cache would lie on the mesh of another.
    run = _jitted_with if in_parts.value is None else _step_with
    done |= lockstep({i: functools.partial(run, *x) for i, x in across.items()})
    given = {i: x for i, x in given.items() if i not in across}
    alike: dict[Any, list[int]] = {}
    for i, (rule, g, p, k, slots) in given.items():
        if isinstance(g, SelectedRows):
            done[i] = step_rows(rule, g, p, k, slots)
        elif isinstance(g, Tracer) and isinstance(p, Tracer):
            kind = likeness(rule), id(k), *map(jax.typeof, (g, p, *slots.values()))
            alike.setdefault(kind, []).append(i)
        else:
            done[i] = step(rule, g, p, k, slots)
    for same in alike.values():
        rule, _, p, k, _ = given[same[0]]
        tensors = [(g, p, slots) for _, g, p, _, slots in (given[i] for i in same)]
        height = rule.stack_height(p)
        if height > 1:
            stacks = [tensors[at : at + height] for at in range(0, len(same), height)]
            results = [result for stack in stacks for result in _stacked(rule, k, stack)]
        else:
            results = grouped(_steps, tensors, rule, k)
        done |= zip(same, results, strict=True)
    return done


def _all_at_once(given: dict[int, tuple[Any, ...]]) -> dict[int, tuple[Any, Slots]]:
    """Step tensors whose matrices are iterated together."""
    rules: dict[Any, Any] = {}  # with numbers that are the same object where they are the same number
    tensors = {}
    for i, (rule, g, p, k, slots) in given.items():
        wide = compute_dtype((), p)
        rule = rules.setdefault((likeness(rule), wide), in_wide(rule, wide))
        tensors[i] = rule, dense(g), p, k, slots
    # Not jitted by themselves: what they hand out must belong to the trace around.
    return together(lambda: {i: unjitted(*x) for i, x in tensors.items()}) if tensors else {}


def likeness(rule: Any) -> Any:
    """Return a key that two rules share only if they compute the same.

    A traced number counts by its identity, so a key means nothing after its rule is gone.
    """
    numbers, structure = jax.tree.flatten(rule)
    return structure, tuple(x if isinstance(x, int | float) else id(x) for x in numbers)


def _steps(tensors: list[tuple[Any, ...]], rule: Any, k: Any) -> list[tuple[Any, Slots]]:
    """Step several tensors alike, each (gradient, p, slots)."""
    return [step(rule, g, p, k, slots) for g, p, slots in tensors]


@jax.jit
def _stacked(rule: Any, k: Any, tensors: list[tuple[Any, ...]]) -> list[tuple[Any, Slots]]:
    """Step several tensors alike, each (gradient, p, slots), as one stack of them."""
    if len(tensors) == 1:
        return [step(rule, tensors[0][0], tensors[0][1], k, tensors[0][2])]
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), *tensors)
    moved = jax.vmap(lambda tensor: step(rule, tensor[0], tensor[1], k, tensor[2]))(stack)
    return [jax.tree.map(lambda x, i=i: x[i], moved) for i in range(len(tensors))]


def unjitted(rule: Any, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> tuple[jax.Array, Slots]:
    """Step one tensor; return what is to be added to p, and the new slots.

    It calculates in float32 or wider and returns each result in the dtype it came in.
    """
    wide = compute_dtype((), p)

    def run(arguments: Any) -> Any:
        own, (g, p, k, slots) = in_wide((rule, arguments), wide)
        moved = {name: a * slots[name] + b for name, (a, b) in _means(own, g, slots).items()}
        return own.step(g, p, k, slots | moved)

    delta, new = result = _checked(rule, run((g, p, k, slots)), p, slots)
    if rule.elementwise and p.dtype == wide and reform is not None:
        delta, new = reform(run, result, (g, p, k, slots))
    return delta.astype(p.dtype), {name: new[name].astype(slot.dtype) for name, slot in slots.items()}


@jax.jit
def step(rule: Any, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> tuple[jax.Array, Slots]:
    """`unjitted`, so that leaves of one shape are traced once, whatever the numbers in the rule."""
    return unjitted(rule, g, p, k, slots)


def _sums_up(rule: Any) -> bool:
    """Return whether the rule may have to sum over devices, for norms of tensors that are cut."""
    return getattr(rule, "axis_name", None) is not None or not rule.elementwise and in_parts.value is not None


def _step_with(
    rule: Any, g: jax.Array, p: jax.Array, k: Any, slots: Slots, sums: list[Sums]
) -> tuple[Any, Sums | None]:
    """Step one tensor in `lockstep` with others."""
    return attempt(lambda: unjitted(rule, g, p, k, slots), sums)


_jitted_with = jax.jit(_step_with)


@jax.jit
def step_rows(rule: Any, g: SelectedRows, p: jax.Array, k: Any, slots: Slots) -> tuple[Any, Slots]:
    """Step the rows that are listed; return what is to be added to these rows of p, and the new slots.

    No other row of p or of a slot is read or written. Running means move in place, before any row is read:
    that takes a third less time than to read, move and write. After that a slot is written only if `step`
    returns something else for it than the rows it was given.
    """
    g, wide = g.merge(), compute_dtype((), p)
    own, values, k = in_wide((rule, g.values, k), wide)
    means = _means(own, values, slots)
    # A slot narrower than the arithmetic would round between the two halves of a move in place.
    in_place = {name for name in means if slots[name].dtype == wide}
    slots = slots | {name: g.moved(slots[name], *means[name]) for name in in_place}
    rows = in_wide({name: g.read(slot) for name, slot in slots.items()}, wide)
    moved = {name: a * rows[name] + b for name, (a, b) in means.items() if name not in in_place}
    result = own.step(values, in_wide(g.read(p), wide), k, rows | moved)
    delta, new = _checked(rule, result, values, rows)
    written = {
        name: g.written_to(slot, new[name].astype(slot.dtype))
        for name, slot in slots.items()
        if new[name] is not rows[name]
    }
    return g.with_values(delta.astype(p.dtype)), slots | written


def _means(rule: Any, g: jax.Array, slots: Slots) -> dict[str, tuple[Any, Any]]:
    """Ask the rule for its running means; refuse those that are not slots of it."""
    means = rule.means(g)
    pairs = isinstance(means, dict) and all(isinstance(ab, tuple) and len(ab) == 2 for ab in means.values())
    if not pairs or not means.keys() <= slots.keys():
        expected = f"expected {{name: (a, b)}} with names among {sorted(slots)}"
        raise TypeError(f"{type(rule).__name__}.means: found {means!r}, {expected}")
    return means


def _checked(rule: Any, result: Any, p: Any, slots: Slots) -> tuple[jax.Array, Slots]:
    """Return what the rule's `step` returned; refuse it unless it has p's shape and those of the slots."""
    where = f"{type(rule).__name__}.step"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise TypeError(f"{where}: found {result!r}, expected (what to add to p, new slots)")
    delta, new = result
    if jnp.shape(delta) != jnp.shape(p) or _shapes(new) != _shapes(slots):
        found = f"a step of shape {jnp.shape(delta)} and slots {_shapes(new)}"
        expected = f"the parameter's {jnp.shape(p)} and {_shapes(slots)}"
        raise ValueError(f"{where}: found {found}, expected {expected}")
    return result


def check_sparse(rule: Any, where: str) -> None:
    """Refuse a SelectedRows gradient if the rule does not say what it means."""
    if rule.sparse is None:
        found = f"found a SelectedRows gradient, which {type(rule).__name__} cannot take"
        raise TypeError(f"{where}: {found}; expected an array, such as its to_dense()")
    if rule.sparse == "rows" and rule.slots and refuse_rows is not None:
        refuse_rows(where)


def _shapes(slots: Slots) -> dict[str, tuple[int, ...]]:
    """Return the shape of each slot."""
    return {name: jnp.shape(slot) for name, slot in slots.items()}


@jax.jit
def advance(rule: Any, rate: jax.Array, shared: dict[str, Any], factor: Any) -> tuple[Any, dict[str, Any]]:
    """Call the rule's `advance` with the rate times this factor, in the rate's dtype."""
    return in_wide(rule, rate.dtype).advance(rate * jnp.asarray(factor, rate.dtype), shared)


def in_wide(tree: Any, dtype: Any) -> Any:
    """Return the tree with its floats in this dtype.

    A rule's numbers are converted before any arithmetic: 1 - beta2 is 1 - float32(0.999), as in Paddle's
    kernels.
    """

    def one(x: Any) -> Any:
        written_as_int = isinstance(x, int | np.integer)  # a hyperparameter such as beta1=0
        return (
            jnp.asarray(x, dtype) if written_as_int or jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x
        )

    return jax.tree.map(one, tree)
