"""Row-sparse gradients from ordinary code: `embedding` reads rows, `value_and_grad` returns them.

A dense Adam step over a table of a million embeddings rewrites all of it. Read the table through
`embedding`, and its gradient is a `SelectedRows`: the rows that were read, never the table. With
`lazy_mode=True` Adam moves only those. Without it, and in the other optimizers that take such gradients
(`sgd`, `momentum`, `adagrad`, `rmsprop`, `lamb`), the other rows see a gradient of zero, as in Paddle. All
others refuse it.

>>> def loss_fn(params, ids, y):
...     return jnp.mean((embedding(params["table"], ids).sum(1) @ params["w"] - y) ** 2)
>>> weights = {"table": jnp.zeros((1_000_000, 4)), "w": jnp.ones(4)}
>>> ids, y = jnp.array([[7, 12, 7], [3, -1, -1]]), jnp.ones(2)  # -1 is padding
>>> tx = adam(0.01, lazy_mode=True)
>>> _, grads = value_and_grad(loss_fn, tables="table")(weights, ids, y)
>>> updates, _ = tx.update(grads, tx.init(weights), weights)
>>> weights = apply_updates(weights, updates)  # under jit with donate_argnums: in place
>>> print(weights["table"][7], weights["table"][8])
[0.01 0.01 0.01 0.01] [0. 0. 0. 0.]

As objects a table is a `Parameter` with `sparse=True`:

>>> table = Parameter(jnp.zeros((1_000_000, 4)), "table", sparse=True)
>>> opt = optimizer.Adam(0.01, parameters=[table, Parameter(jnp.ones(4), "w")], lazy_mode=True)
>>> _ = opt.minimize(loss(loss_fn)(dict(zip(["table", "w"], opt.parameters)), ids, y))

`python examples/train_embedding.py` trains such a table, lazy against dense. `python
tests/benchmarks/lazy_adam.py` measures the step: on 1,000,000 x 64 it takes 0.9 ms with 1,024 ids, 167
times less than the dense one, and 2.8 ms with 4,096 ids, 57 times less (2 cores of an Intel Xeon).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from .array_types import ArrayTree
from .hyper import ArgumentError
from .pages import publish
from .selected_rows import SelectedRows, as_rows, check_rows
from .trees import compute_dtype, flatten, is_array, matches, path_name, varying_axes

__all__ = ["SelectedRows", "embedding", "value_and_grad"]


def embedding(table: Any, ids: Any, padding_idx: int | None = None) -> jax.Array:
    """Rows of a table: (*ids.shape, *table.shape[1:]).

    Ids that are negative or at least the height give zeros, as does `padding_idx` (counted from the end if
    it is negative), and have no gradient. Under `value_and_grad`, and in a `@loss` for a Parameter with
    sparse=True, the gradient of the table is a SelectedRows. Paddle's `nn.functional.embedding(sparse=True)`;
    jnp.take and `table[ids]` always have a dense gradient.

    >>> print(embedding(jnp.array([[1.0], [2.0], [3.0]]), [2, 0, -1]).T)
    [[3. 1. 0.]]
    """
    if isinstance(table, Table):
        return table.look_up(ids, padding_idx)
    places = _places(table, ids, padding_idx)
    return _read(jnp.asarray(table), places)


def _read(table: jax.Array, places: jax.Array) -> jax.Array:
    """Return these rows of a table; zero where a place lies behind the last row."""
    return table.at[places].get(mode="fill", fill_value=0)


def _places(table: Any, ids: Any, padding_idx: int | None) -> jax.Array:
    """The ids with everything that is padding at the row behind the last."""
    if not is_array(table) and not hasattr(table, "__jax_array__"):
        found = f"found {type(table).__name__}, expected an array of shape (height, ...)"
        raise TypeError(f"embedding's table: {found}, or a Parameter")
    if jnp.ndim(table) < 1:
        raise ArgumentError(f"embedding's table: found shape {jnp.shape(table)}, expected (height, ...)")
    height = jnp.shape(table)[0]
    check_rows("embedding's ids", ids, height)
    ids = as_rows(ids)
    real = (ids >= 0) & (ids < height)
    if padding_idx is not None:
        if isinstance(padding_idx, bool) or not isinstance(padding_idx, int | np.integer):
            raise TypeError(f"embedding's padding_idx: found {padding_idx!r}, expected an int or None")
        if not -height <= padding_idx < height:
            raise ArgumentError(
                f"embedding's padding_idx: found {padding_idx}, expected one in [-{height}, {height})"
            )
        real &= ids != padding_idx % height
    return jnp.where(real, ids, jnp.asarray(height, ids.dtype))


class TableError(TypeError, AttributeError):
    """A table was used as an array; hasattr() answers False."""


class Table:
    """Stands for a table while its gradient is taken: `embedding` reads it, and nothing else does."""

    def __init__(self, value: jax.Array, name: str, taps: Sequence[jax.Array] | None = None):
        self.value, self.name, self._taps = value, name, taps
        self.ids: list[jax.Array] = []
        self._trace = get_opaque_trace_state()
        self.shape, self.dtype, self.ndim = value.shape, value.dtype, value.ndim

    def look_up(self, ids: Any, padding_idx: int | None) -> jax.Array:
        """Return the rows of these ids and note which they were: the gradient will have these rows."""
        if self._trace != get_opaque_trace_state():
            raise RuntimeError(
                f"embedding of the table {self.name}: found inside a jit, vmap, scan, cond or checkpoint of "
                "the loss function, where its ids cannot be seen from outside; expected at its top level "
                "(ids may have any shape)"
            )
        places = _places(self.value, ids, padding_idx)
        rows = _read(self.value, places)
        self.ids.append(places)
        # A zero is added to what was read, and differentiated in the table's place.
        return rows if self._taps is None else rows + self._taps[len(self.ids) - 1]

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Raise: only `embedding` may read a table."""
        raise TableError(
            f"the table {self.name}: found an operation on all of it, expected only embedding(table, ids); "
            "where the loss needs it otherwise, its gradient is dense: do not name it as a table"
        )

    __getitem__ = __iter__ = __len__ = __array__ = __matmul__ = __rmatmul__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()


def value_and_grad(
    loss_fn: Callable[..., Any], tables: Any, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """As `jax.value_and_grad` for the first argument, with SelectedRows for the tables in it.

    `tables` is a pattern or a list of patterns over the paths of the parameters, as for `by_path`: a glob
    such as `*/embedding` or a compiled expression, each of which must match. `loss_fn(params, ...)` may read
    those leaves only through `embedding`, at its top level, any number of times. The gradient of a table has
    one row for every id read, and nothing of the table's size is computed. The function is traced once more,
    for the ids alone. Inside `shard_map` the rows are the device's own: `all_gather` them. optax and torch
    have no such function; torch's Embedding(sparse=True) gives such gradients.

    >>> def loss_fn(params, ids):
    ...     return jnp.sum(embedding(params["table"], ids) @ params["w"])
    >>> params = {"table": jnp.ones((1000, 2)), "w": jnp.ones(2)}
    >>> value, grads = value_and_grad(loss_fn, "table")(params, jnp.array([7, 2, 7]))
    >>> grads["table"].merge()
    SelectedRows(rows=[   2    7 1000], values=float32[3, 2], height=1000)
    """
    if not callable(loss_fn):
        raise TypeError(f"value_and_grad: found {loss_fn!r}, expected a function of the parameters")
    if not isinstance(has_aux, bool):
        raise TypeError(f"value_and_grad's has_aux: found {has_aux!r}, expected True or False")
    patterns = [tables] if isinstance(tables, str | re.Pattern) else tables
    if not isinstance(patterns, list | tuple) or not all(isinstance(x, str | re.Pattern) for x in patterns):
        raise TypeError(f"value_and_grad's tables: found {tables!r}, expected patterns over paths")

    def run(params: ArrayTree, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        paths, leaves, tree = flatten(params)
        names = [path_name(path) for path in paths]
        for pattern in patterns:
            if not any(matches(pattern, name) for name in names):
                raise ValueError(
                    f"value_and_grad's tables: the pattern {pattern!r} matches no parameter: "
                    f"found {', '.join(names)}"
                )
        chosen = [name if any(matches(pattern, name) for pattern in patterns) else None for name in names]

        for path, leaf, table in zip(paths, leaves, chosen, strict=True):
            if table:
                compute_dtype(path, leaf)  # says what is wrong
                if not jnp.ndim(leaf):
                    raise ArgumentError(f"at {table}: found a table of shape (), expected (height, ...)")

        def function(leaves: list[Any]) -> tuple[Any, Any]:
            result = loss_fn(tree.unflatten(leaves), *args, **kwargs)
            if has_aux and not (isinstance(result, tuple) and len(result) == 2):
                found = f"found {type(result).__name__}, expected (loss, aux) because has_aux=True"
                raise TypeError(f"{getattr(loss_fn, '__name__', 'the loss function')}: {found}")
            return result if has_aux else (result, None)

        (value, aux), grads = value_and_grads(function, leaves, chosen)
        return ((value, aux) if has_aux else value), tree.unflatten(grads)

    return run


def value_and_grads(
    function: Callable[[list[Any]], tuple[Any, Any]], leaves: Sequence[Any], tables: Sequence[str | None]
) -> tuple[tuple[Any, Any], list[Any]]:
    """((value, aux), gradients) of a function of a list of leaves; SelectedRows for those named as tables."""
    if not any(tables):
        return jax.value_and_grad(function, has_aux=True)(list(leaves))
    at = [i for i, name in enumerate(tables) if name]

    def with_tables(rest: Sequence[Any], taps: Any) -> tuple[list[Any], list[Table]]:
        made = [
            Table(jnp.asarray(leaves[i]), tables[i] or "", tap)
            for i, tap in zip(at, taps or [None] * len(at), strict=True)
        ]
        given = iter(rest)
        found = iter(made)
        return [next(found) if name else next(given) for name in tables], made

    def ids_of(rest: list[Any]) -> list[list[jax.Array]]:
        given, made = with_tables(rest, None)
        function(given)
        return [table.ids for table in made]

    def run(rest: list[Any], taps: Any) -> Any:
        given, made = with_tables(rest, taps)
        value, aux = function(given)
        return value, (aux, [table.ids for table in made])

    rest = [x for x, name in zip(leaves, tables, strict=True) if not name]
    try:
        ids = jax.eval_shape(ids_of, rest)
    except (TypeError, ValueError) as e:
        if "Table" in str(e) and not isinstance(e, TableError):
            e.add_note(
                f"{', '.join(filter(None, tables))}: of a table only embedding(table, ids) can be taken"
            )
        raise
    taps = [[_tap(leaves[i], places) for places in read] for i, read in zip(at, ids, strict=True)]
    (value, (aux, ids)), (grads, of_taps) = jax.value_and_grad(run, (0, 1), has_aux=True)(rest, taps)
    given = iter(grads)
    found = iter(map(_gathered, [leaves[i] for i in at], ids, of_taps))
    return (value, aux), [next(found) if name else next(given) for name in tables]


def _tap(table: jax.Array, ids: Any) -> jax.Array:
    """Zeros for what is read; inside shard_map they differ by device as it does, or JAX would sum them."""
    zeros = jnp.zeros((*ids.shape, *table.shape[1:]), table.dtype)
    axes = tuple(varying_axes(ids) | varying_axes(table))
    return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros


def _gathered(table: Any, ids: list[jax.Array], grads: list[jax.Array]) -> SelectedRows:
    """All that was read of one table, one row per id."""
    rest = table.shape[1:]
    rows = [jnp.zeros(0, jnp.int32), *(i.reshape(-1).astype(jnp.int32) for i in ids)]
    values = [jnp.zeros((0, *rest), table.dtype), *(g.reshape(-1, *rest) for g in grads)]
    return SelectedRows(jnp.concatenate(rows), jnp.concatenate(values), table.shape[0])


publish(globals())
