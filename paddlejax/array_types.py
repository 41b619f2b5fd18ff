"""What public functions take, for readers and type checkers.

The names of chex are known to type checkers only: importing paddlejax must not import chex. At run time they
are Any or jax.Array, so that `typing.get_type_hints` works.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax
import numpy as np

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


class Stored:
    """An array that is still in its files: its shape and dtype are known, `stored[index]` reads a part of it.

    `index` is a slice for each axis, as jax gives them for a part on one device, or `...`. What is read is an
    array of its own.
    """

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, index: Any) -> np.ndarray:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        x = self[...]
        return x if dtype is None else x.astype(dtype, copy=False)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take in memory."""
        return self.size * np.dtype(self.dtype).itemsize
