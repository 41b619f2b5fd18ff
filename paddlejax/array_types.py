"""What public functions take, for readers and type checkers.

The names of chex are known to type checkers only: importing paddlejax must not import chex. At run time they
are Any or jax.Array, so that `typing.get_type_hints` works.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax

if TYPE_CHECKING:
    from chex import ArrayTree, Numeric, PRNGKey

    from .selected_rows import SelectedRows

    # Gradients or updates: a leaf may also be a number, a SelectedRows, or None where there is none.
    Gradients: TypeAlias = Numeric | SelectedRows | None | Iterable["Gradients"] | Mapping[Any, "Gradients"]
else:
    ArrayTree = Numeric = Gradients = Any
    PRNGKey = jax.Array

LearningRate: TypeAlias = Numeric | Callable[[Any], Any]  # a rate or a schedule, count -> rate


class Init(Protocol):
    """Make the state for parameters. It is a tree of arrays, of whatever type the transformation has."""

    def __call__(self, params: ArrayTree) -> Any: ...


class Update(Protocol):
    """Return (updates, the next state); the updates are a tree like the gradients."""

    def __call__(
        self, grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, Any]: ...
