"""The gradient of a table of which a batch read some rows: those rows, and never the table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .hyper import ArgumentError


class SelectedRows:
    """Rows of a tensor of `height` rows; all others are zero. Paddle's gradient of a sparse embedding.

    `rows` (n,) int says which rows `values` (n, ...) belong to. A row may be named repeatedly: its values
    add up. Rows that are negative or at least `height` are padding and count for nothing, so that n can be
    fixed inside jit. A pytree; `shape` and `dtype` are those of the tensor that it stands for. A sum with an
    array is an array, a sum of two has the rows of both, so `optax.apply_updates` takes it too. Do not map
    over its leaves or psum it, which would calculate with the row numbers: `with_values` changes the values,
    `all_gather` inside `shard_map` gives the rows of all devices.

    >>> g = SelectedRows([2, 0, 2, -1], jnp.array([[1.0], [2.0], [3.0], [9.0]]), height=3)
    >>> print(g.to_dense().T)
    [[2. 0. 4.]]
    >>> g.merge()
    SelectedRows(rows=[0 2 3 3], values=float32[4, 1], height=3)
    """

    __array_ufunc__ = None  # numpy's operators hand over to ours

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"found {self!r} in place of an array; to_dense() makes one of it")

    def __init__(self, rows: Any, values: Any, height: int):
        if isinstance(height, bool) or not isinstance(height, int | np.integer) or height < 1:
            raise ArgumentError(f"SelectedRows's height: found {height!r}, expected a positive int")
        if height + np.size(rows) >= 2**31:  # the row behind the last must have a number too
            raise ArgumentError(f"SelectedRows's height: found {height}, expected one below 2**31")
        check_rows("SelectedRows's rows", rows, height)
        self.rows, self.values, self.height = as_rows(rows), jnp.asarray(values), int(height)
        if not jnp.issubdtype(self.values.dtype, jnp.floating):
            raise TypeError(
                f"SelectedRows's values: found dtype {self.values.dtype}, expected a floating one"
            )
        if self.rows.ndim != 1 or self.values.ndim < 1 or len(self.values) != len(self.rows):
            found = f"found rows of shape {self.rows.shape} and values of shape {self.values.shape}"
            raise ArgumentError(f"SelectedRows: {found}, expected (n,) and (n, ...)")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor, not that of `values`."""
        return (self.height, *jnp.shape(self.values)[1:])

    @property
    def ndim(self) -> int:
        """The number of axes of the whole tensor."""
        return jnp.ndim(self.values)

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return jnp.result_type(self.values)

    def with_values(self, values: Any) -> "SelectedRows":
        """The same rows with other values."""
        return _made(self.rows, values, self.height)

    def astype(self, dtype: Any) -> "SelectedRows":
        """Return the same rows with their values in another dtype."""
        return self.with_values(self.values.astype(dtype))

    def all_gather(self, axis_name: Any) -> "SelectedRows":
        """The rows of all devices of a mesh axis, inside `shard_map`: the sum of their gradients."""
        rows, values = jax.lax.all_gather((self.rows, self.values), axis_name, tiled=True)
        return _made(rows, values, self.height)

    def places(self) -> jax.Array:
        """(n,) where the values belong; padding is given distinct places behind the last row."""
        behind = jnp.arange(len(self.rows), dtype=self.rows.dtype) + jnp.asarray(self.height, self.rows.dtype)
        return jnp.where((self.rows >= 0) & (self.rows < self.height), self.rows, behind)

    def to_dense(self) -> jax.Array:
        """The whole tensor, (height, ...)."""
        return jnp.zeros(self.shape, self.dtype).at[self.places()].add(self.values, mode="drop")

    def merge(self) -> "SelectedRows":
        """The same with every row once and ascending; the rest is padding of row `height` and value zero."""
        if len(self.rows) == 0:
            return self
        behind = jnp.asarray(self.height, self.rows.dtype)
        rows = jnp.minimum(self.places(), behind)
        real = jnp.expand_dims(rows < behind, tuple(range(1, self.ndim)))
        # Sorting the numbers alone and looking each up again takes a third of the time of sorting pairs.
        ascending = jnp.sort(rows)
        first = jnp.concatenate([jnp.ones(1, bool), ascending[1:] != ascending[:-1]])
        unique = jnp.full_like(rows, self.height).at[jnp.cumsum(first) - 1].set(ascending)
        group = jnp.searchsorted(unique, rows, method="scan")
        values = jnp.where(real, self.values, jnp.zeros((), self.dtype))
        return _made(unique, jnp.zeros_like(values).at[group].add(values), self.height)

    def added_to(self, p: jax.Array) -> jax.Array:
        """p plus this, added in float32 or wider and returned in p's dtype; only these rows are touched."""
        if jnp.shape(p) != self.shape:
            raise ArgumentError(
                f"SelectedRows of shape {self.shape}: found an array of shape {jnp.shape(p)} to add to"
            )
        wide = _wide(p.dtype, self.dtype)
        if wide == p.dtype:
            return p.at[self.places()].add(self.values.astype(wide), mode="drop")
        g = self.astype(wide).merge()
        new = g.read(p).astype(wide) + g.values
        return g.written_to(p, new.astype(p.dtype))

    def read(self, x: jax.Array) -> jax.Array:
        """These rows of x, once merged; (n, ...), zero where padding is."""
        return x.at[self.places()].get(
            mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True
        )

    def written_to(self, x: jax.Array, values: jax.Array) -> jax.Array:
        """x with these rows, once merged, replaced."""
        return x.at[self.places()].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)

    def moved(self, x: jax.Array, factor: Any, values: jax.Array) -> jax.Array:
        """Multiply these rows of x by a factor and add values to them, in place; return the new x.

        The rows must be merged. This takes a third less time than to read the rows first, which waits for
        memory row by row, and to write them afterwards.
        """
        rows, how = self.places(), {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
        return x.at[rows].multiply(jnp.full_like(values, factor), **how).at[rows].add(values, **how)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, SelectedRows):
            if other.shape != self.shape:
                raise ArgumentError(
                    f"SelectedRows of shape {self.shape} + shape {other.shape}: expected equal"
                )
            wide = self.dtype if self.dtype == other.dtype else _wide(self.dtype, other.dtype)
            values = jnp.concatenate([self.values.astype(wide), other.values.astype(wide)])
            kind = jnp.int64 if jnp.int64 in (self.rows.dtype, other.rows.dtype) else jnp.int32
            rows = jnp.concatenate([self.rows.astype(kind), other.rows.astype(kind)])
            return _made(rows, values, self.height)
        if isinstance(other, jax.Array | np.ndarray):
            return self.added_to(jnp.asarray(other))
        return NotImplemented

    __radd__ = __add__

    def __repr__(self) -> str:
        if not hasattr(self.values, "dtype"):  # a tree of something else, such as shardings
            return f"SelectedRows(rows={self.rows}, values={self.values}, height={self.height})"
        values = f"{self.dtype}[{', '.join(map(str, jnp.shape(self.values)))}]"
        rows = f"({len(self.rows)},)" if isinstance(self.rows, Tracer) else self.rows
        return f"SelectedRows(rows={rows}, values={values}, height={self.height})"


def _wide(*dtypes: Any) -> Any:
    return jnp.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


def check_rows(name: str, rows: Any, height: int) -> None:
    """Refuse what cannot be row numbers; those of a jax.Array are not looked at."""
    found = jnp.result_type(rows) if hasattr(rows, "dtype") else np.asarray(rows).dtype
    if not jnp.issubdtype(found, jnp.integer) and np.size(rows):
        raise TypeError(f"{name}: found dtype {found}, expected ints")
    if not isinstance(rows, jax.Array) and np.max(rows, initial=0) > height:
        raise ArgumentError(f"{name}: found {np.max(rows)}, expected at most {height} (which is padding)")


def as_rows(rows: Any) -> jax.Array:
    """Row numbers as int32, or int64 if they were that: a smaller dtype might not hold the height.

    What int32 cannot hold becomes padding, never the number of another row.
    """
    if not isinstance(rows, jax.Array):
        rows = np.asarray(rows)
        if rows.dtype == np.int64 and jax.dtypes.canonicalize_dtype(np.int64) != np.int64:
            rows = np.maximum(rows, -1)
    rows = jnp.asarray(rows)
    if rows.dtype in (jnp.int32, jnp.int64):
        return rows
    if rows.dtype.itemsize >= 4:
        rows = jnp.minimum(rows, jnp.asarray(2**31 - 1, rows.dtype))
    return rows.astype(jnp.int32)


def _made(rows: Any, values: Any, height: int) -> SelectedRows:
    """Without the checks: a pytree may hold anything while it is taken apart and put together."""
    g = object.__new__(SelectedRows)
    g.rows, g.values, g.height = rows, values, height
    return g


jax.tree_util.register_pytree_with_keys(
    SelectedRows,
    lambda g: (
        ((jax.tree_util.GetAttrKey("rows"), g.rows), (jax.tree_util.GetAttrKey("values"), g.values)),
        g.height,
    ),
    lambda height, parts: _made(*parts, height),  # type: ignore[call-arg]
    lambda g: ((g.rows, g.values), g.height),
)


def is_rows(x: Any) -> bool:
    """Return whether x is a SelectedRows; as `is_leaf` it keeps tree functions from looking inside."""
    return isinstance(x, SelectedRows)


def dense(g: Any) -> Any:
    """A gradient as an array, if it is rows."""
    return g.to_dense() if isinstance(g, SelectedRows) else g
