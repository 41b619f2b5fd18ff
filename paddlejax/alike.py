"""Many tensors alike in one call: to trace and lower it costs hardly more than a call for one of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

Each = Callable[..., list[Any]]  # (tensors, *what they have in common) -> an entry for each tensor
TOGETHER = 8  # how many tensors share a call
MANY = 32  # how many, where they fill eight such calls


def in_groups(f: Each, tensors: Sequence[Any], *common: Any) -> list[Any]:
    """Return `f(tensors, *common)`; under a trace, tensors of the same shapes and dtypes share calls of f.

    A tensor may be a tree of arrays that belong together. f treats each by itself, in any order.
    """
    kinds: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        arrays, tree = jax.tree.flatten(tensor)
        traced = all([isinstance(x, Tracer) for x in arrays])
        kinds.setdefault((tree, *map(jax.typeof, arrays)) if traced else None, []).append(i)
    done: list[Any] = [None] * len(tensors)
    for kind, same in kinds.items():
        some = [tensors[i] for i in same]
        results = f(some, *common) if kind is None else grouped(f, some, *common)
        for i, result in zip(same, results, strict=True):
            done[i] = result
    return done


def grouped(f: Each, alike: Sequence[Any], *common: Any) -> list[Any]:
    """Return `f(alike, *common)` of traced tensors alike: TOGETHER or MANY of them in a call of f."""
    call, done = jax.jit(f), []
    for size in (MANY, TOGETHER) if len(alike) >= 8 * MANY else (TOGETHER,):
        while len(alike) - len(done) >= size:
            done += call(alike[len(done) : len(done) + size], *common)
    return done + f(alike[len(done) :], *common) if len(done) < len(alike) else done


def added_up(xs: Sequence[jax.Array]) -> jax.Array:
    """Return the sum of these arrays, at least one and all of one kind, from the first to the last."""
    total, rest = xs[0], xs[1:]
    if not isinstance(total, Tracer):
        return sum(rest, total)  # type: ignore[return-value]
    whole = len(rest) - len(rest) % MANY
    for at in range(0, whole, MANY):
        total = _onto(total, rest[at : at + MANY])
    return sum(rest[whole:], total)


@jax.jit
def _onto(total: jax.Array, xs: Sequence[jax.Array]) -> jax.Array:
    return sum(xs, total)
