"""Arrays of files into memory: onto the devices of the leaf that they replace, a part on each."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ...array_types import Stored
from ...optimizer.ledger import ArrayField
from .progress import progress


class Kept(ArrayField):
    """An array that is checked now and read later, part by part."""

    def write(self, value: Any) -> Any:
        """Return the array: no step takes a functional state away behind its owner's back."""
        return value

    def read(self, value: Any, name: str) -> Any:
        """Return the array in this field's shape, not copied."""
        self._check(value, name)
        return value if value.shape == self.shape else np.asarray(value).reshape(self.shape)


def sharding_of(leaf: Any) -> Any:
    """Where a template's leaf is, if it says so; None for what is wherever jax puts it."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding
    held = isinstance(leaf, jax.Array) and (isinstance(leaf.sharding, NamedSharding) or leaf.committed)
    return leaf.sharding if held else None


def placed(leaf: Any, value: Any) -> jax.Array:
    """The value in the dtype of a leaf and where the leaf is: a copy.

    Where the leaf has a sharding, each process reads of a file only what its own devices hold.
    """
    dtype, sharding = jnp.result_type(leaf), sharding_of(leaf)
    if sharding is None:
        return jnp.array(np.asarray(value) if isinstance(value, Stored) else value, dtype)
    if isinstance(value, jax.Array):
        return jax.device_put(jnp.array(value, dtype), sharding)
    source = value if isinstance(value, Stored) else np.asarray(value)
    return jax.make_array_from_callback(
        source.shape, sharding, lambda index: np.array(source[index], dtype), dtype=dtype
    )


def all_placed(leaves: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """`placed` for each pair, one after the other; a leaf stays where there is no value for it."""
    sizes = [v.nbytes if isinstance(v, Stored) else 0 for v in values]
    found = []
    with progress("loading", sum(sizes)) as advance:
        for leaf, value, size in zip(leaves, values, sizes, strict=True):
            found.append(leaf if value is None else placed(leaf, value))
            if size:
                advance(size)
    return found
