"""The compiled step of a rule on one tensor, and of many alike at once."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .cpu_fusion import cpu_fusion_is_on, refuse_rows, single_pass
from .selected_rows import SelectedRows
from .trees import compute_dtype

Slots = dict[str, jax.Array]
TOGETHER = 8  # how many tensors alike are stepped by one call, for which tracing and lowering pay


def stepped(given: dict[int, tuple[Any, ...]]) -> dict[int, tuple[Any, Slots]]:
    """{i: (what to add to p, new slots)} of {i: (rule, gradient, p, k, slots)}.

    Under a trace tensors alike go many to a call: what a call costs to trace and to lower hardly depends on
    how many it has.
    """
    done: dict[int, tuple[Any, Slots]] = {}
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
        whole = len(same) - len(same) % TOGETHER
        for start in range(0, whole, TOGETHER):
            some = same[start : start + TOGETHER]
            rule, _, _, k, _ = given[some[0]]
            tensors = [(g, p, slots) for _, g, p, _, slots in (given[i] for i in some)]
            done |= zip(some, _steps(rule, k, tensors), strict=True)
        done |= {i: step(*given[i]) for i in same[whole:]}
    return done


def likeness(rule: Any) -> Any:
    """Rules that are equal in this compute the same, while they live."""
    numbers, structure = jax.tree.flatten(rule)
    return structure, tuple(x if isinstance(x, int | float) else id(x) for x in numbers)


@jax.jit
def _steps(rule: Any, k: Any, tensors: list[tuple[Any, ...]]) -> list[tuple[Any, Slots]]:
    return [step(rule, g, p, k, slots) for g, p, slots in tensors]


@jax.jit
def step(rule: Any, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> tuple[jax.Array, Slots]:
    """One tensor: float32 or wider inside, each result back in the dtype it came in.

    Jitted by itself so that leaves of one shape are traced once, whatever the numbers in the rule.
    """
    wide = compute_dtype((), p)
    result = in_wide(rule, wide).step(*in_wide((g, p, k, slots), wide))
    where = f"{type(rule).__name__}.step"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise TypeError(f"{where}: found {result!r}, expected (what to add to p, new slots)")
    delta, new = result
    if jnp.shape(delta) != jnp.shape(p) or {k: jnp.shape(s) for k, s in new.items()} != _shapes(slots):
        found = f"a step of shape {jnp.shape(delta)} and slots {_shapes(new)}"
        expected = f"the parameter's {jnp.shape(p)} and {_shapes(slots)}"
        raise ValueError(f"{where}: found {found}, expected {expected}")
    if rule.elementwise and p.dtype == wide and cpu_fusion_is_on():
        delta, new = single_pass(
            lambda x: in_wide(rule, wide).step(*in_wide(x, wide)), result, (g, p, k, slots)
        )
    return delta.astype(p.dtype), {name: new[name].astype(slot.dtype) for name, slot in slots.items()}


@jax.jit
def step_rows(rule: Any, g: SelectedRows, p: jax.Array, k: Any, slots: Slots) -> tuple[Any, Slots]:
    """The step of the rows that are listed: nothing else of p and the slots is read or written."""
    g, wide = g.merge(), compute_dtype((), p)
    flows: dict[str, tuple[Any, Any]] = {}
    if rule.moves and all(slot.dtype == wide for slot in slots.values()):
        flows = in_wide(rule, wide).flows(g.values.astype(wide))
        slots = slots | {name: g.moved(slots[name], a, b) for name, (a, b) in flows.items()}
        rule = _Moved(rule) if flows else rule
    delta, new = step(rule, g.values, g.read(p), k, {name: g.read(slot) for name, slot in slots.items()})
    rest = {name: g.written_to(slot, new[name]) for name, slot in slots.items() if name not in flows}
    return g.with_values(delta), slots | rest


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Moved:
    """A rule whose flows have moved already."""

    rule: Any

    @property
    def elementwise(self) -> bool:
        return self.rule.elementwise

    @property
    def step(self) -> Any:
        return self.rule.step_moved


def check_sparse(rule: Any, where: str) -> None:
    """Refuse a SelectedRows gradient if the rule does not say what it means."""
    if rule.sparse is None:
        found = f"found a SelectedRows gradient, which {type(rule).__name__} cannot take"
        raise TypeError(f"{where}: {found}; expected an array, such as its to_dense()")
    if rule.sparse == "rows" and rule.slots:
        refuse_rows(where)


def _shapes(slots: Slots) -> dict[str, tuple[int, ...]]:
    return {name: jnp.shape(slot) for name, slot in slots.items()}


@jax.jit
def advance(rule: Any, rate: jax.Array, shared: dict[str, Any], factor: Any) -> tuple[Any, dict[str, Any]]:
    return in_wide(rule, rate.dtype).advance(rate * jnp.asarray(factor, rate.dtype), shared)


def in_wide(tree: Any, dtype: Any) -> Any:
    """Floats to `dtype`, before any arithmetic: 1 - beta2 is 1 - float32(0.999), as in Paddle's kernels."""

    def one(x: Any) -> Any:
        written_as_int = isinstance(x, int | np.integer)  # a hyperparameter such as beta1=0
        return (
            jnp.asarray(x, dtype) if written_as_int or jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x
        )

    return jax.tree.map(one, tree)
