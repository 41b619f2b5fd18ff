"""The result of a program in one piece, so that an interrupt cannot come while it is put together.

JAX makes the result of a program within the call that runs it. For a NamedTuple, or any class registered as a
pytree, that is a call of Python code, in which a KeyboardInterrupt may come. Then the arguments are gone, if
they were donated, and the result is lost. So the program returns its leaves and how they belong together, in
an object that is made without Python code, and whoever ran it puts them together.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .recent import KEPT


class _Whole(functools.partial):
    """Leaves, and what puts them together: calling it does. It is made in C."""


@functools.lru_cache(KEPT)
def _joining(structure: Any) -> Callable[[Any], Any]:
    """Return what puts leaves together; JAX compares it, so a structure has one."""
    return lambda leaves: jax.tree.unflatten(structure, leaves)  # a partial of a partial would be one


jax.tree_util.register_pytree_node(_Whole, lambda whole: (whole.args[0], whole.func), _Whole)  # type: ignore[arg-type]


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
