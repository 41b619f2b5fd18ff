"""The result of a program in one piece, so that an interrupt cannot come while it is put together.

JAX makes the result of a program within the call that runs it. For a NamedTuple, or any class registered as a
pytree, that is a call of Python code, in which a KeyboardInterrupt may come. Then the arguments are gone, if
they were donated, and the result is lost. So the program returns its leaves and how they belong together, in
an object that is made without Python code, and whoever ran it puts them together.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax

from ..recent import KEPT


class _Whole(functools.partial):
    """Leaves, and what puts them together: calling it does."""


@functools.lru_cache(KEPT)
def _joining(structure: Any) -> Callable[[Any], Any]:
    """Return what puts leaves together; JAX compares it, so a structure has one."""
    count = structure.num_leaves

    def join(leaves: Any) -> Any:
        # JAX may take a result apart and build it again, which puts the leaves into one more tuple.
        while len(leaves) != count or (count and type(leaves[0]) in (tuple, list)):
            leaves = leaves[0]
        return structure.unflatten(leaves)

    return join


# Both are made in C.
jax.tree_util.register_pytree_node(_Whole, operator.attrgetter("args", "func"), _Whole)  # type: ignore[arg-type]


def in_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that is to be compiled return its result in one piece; `opened` is what it was."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(function(*args))
        return _Whole(_joining(structure), leaves)

    return run


def opened(result: Any) -> Any:
    """Return what a program has computed, whether it came in one piece or not."""
    return result() if isinstance(result, _Whole) else result
