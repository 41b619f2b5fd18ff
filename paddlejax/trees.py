"""Trees of parameters: their paths, and whether what comes with them fits, leaf for leaf."""

import functools
import re
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path

from .selected_rows import SelectedRows, is_rows


def path_name(path: Any) -> str:
    """`layer/w`; without the `.value` that flax puts at the end at one time and not at another."""
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return keystr(path, simple=True, separator="/") or "the root"


def matches(pattern: str | re.Pattern[str], path: str) -> bool:
    """Whether a glob fits the whole path (`*` also crosses `/`), or an expression is found in it."""
    return fnmatchcase(path, pattern) if isinstance(pattern, str) else pattern.search(path) is not None


def flatten(params: Any) -> tuple[list[Any], list[Any], Any]:
    """Paths, leaves and structure; a None among the parameters is a leaf that is never touched."""
    pairs, tree = tree_flatten_with_path(params, is_leaf=lambda x: x is None or is_rows(x))
    return [path for path, _ in pairs], [p for _, p in pairs], tree


def align(tree: Any, paths: list[Any], other: Any, what: str) -> list[Any]:
    """The entries of `other` in the order of `tree`, or an error that names the leaf where they part."""
    try:
        return tree.flatten_up_to(other)
    except (ValueError, TypeError, KeyError):
        pass
    found = [path_name(path) for path in flatten(other)[0]]
    expected = [path_name(path) for path in paths]
    missing = [path for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    raise ValueError(
        f"the tree of {what} is not that of the parameters: "
        + (f"missing at {', '.join(missing)}; " if missing else "")
        + (f"unexpected at {', '.join(unexpected)}" if unexpected else f"found {jax.tree.structure(other)}")
    )


def gradients(tree: Any, paths: list[Any], params: list[Any], grads: Any, rows: bool = False) -> list[Any]:
    """One gradient or None per parameter, each of its parameter's shape: nothing broadcasts.

    A SelectedRows is refused unless the caller knows what to do with `rows`.
    """
    gs = align(tree, paths, grads, "gradients")
    for path, p, g in zip(paths, params, gs, strict=True):
        if g is None:
            continue
        if p is None or not (hasattr(g, "dtype") or isinstance(g, float | int)):
            expected = "None, as the parameter" if p is None else "an array"
            raise ValueError(
                f"at {path_name(path)}: found a gradient of type {type(g).__name__}, expected {expected}"
            )
        if isinstance(g, SelectedRows):
            _check_rows(path_name(path), g, rows)
        shape, dtype = g.shape if isinstance(g, SelectedRows) else jnp.shape(g), dtype_of(g)
        if shape != jnp.shape(p):
            shapes = f"found a gradient of shape {shape}, expected the parameter's {jnp.shape(p)}"
            raise ValueError(f"at {path_name(path)}: {shapes}")
        if _wide(dtype) is None:
            dtypes = f"found a gradient of dtype {dtype}, expected a real floating dtype"
            raise TypeError(f"at {path_name(path)}: {dtypes}")
    return gs


def _check_rows(path: str, g: SelectedRows, rows: bool) -> None:
    if not rows:
        raise TypeError(f"at {path}: found a SelectedRows gradient, expected an array such as its to_dense()")
    if not jnp.issubdtype(jnp.result_type(g.rows), jnp.integer):
        found = f"found a SelectedRows gradient with rows of dtype {jnp.result_type(g.rows)}, expected ints"
        raise TypeError(f"at {path}: {found} (a transformation took them for values?)")


def compute_dtype(path: Any, p: Any) -> Any:
    """The dtype in which a leaf is updated: float32, or float64 if the parameter is that wide."""
    if not hasattr(p, "dtype") and not isinstance(p, int | float | complex):
        raise TypeError(
            f"at {path_name(path)}: found a parameter of type {type(p).__name__}, expected an array"
        )
    wide = _wide(dtype_of(p))
    if wide is None:
        raise TypeError(
            f"at {path_name(path)}: found a parameter of dtype {jnp.result_type(p)}, "
            "expected a real floating dtype"
        )
    return wide


@functools.cache
def _wide(dtype: Any) -> Any:
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype.type


def dtype_of(x: Any) -> Any:
    """jnp.result_type, which takes ten times as long to find the dtype of an array."""
    return x.dtype if isinstance(x, jax.Array | SelectedRows) else jnp.result_type(x)


def in_dtype(x: Any, dtype: Any) -> jax.Array:
    """jnp.asarray, which takes ten times as long to find that there is nothing to do."""
    return x if isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type else jnp.asarray(x, dtype)


@jax.jit
def as_array(x: Any) -> jax.Array:
    """A numpy number as an array, several times as fast as jnp.asarray."""
    return x


def next_count(count: Any, cycle: int = 1) -> jax.Array:
    """The count after one more, of its own dtype. It never wraps: the largest is followed by itself.

    With a `cycle`, which may be of any length, it is followed by one that stands at the same place in it.
    """
    count = jnp.asarray(count)
    top = jnp.iinfo(count.dtype).max
    back = jnp.asarray(top - cycle + 1, count.dtype)
    return jnp.where(count == top, back, count + jnp.ones_like(count))


def is_narrow(p: Any) -> bool:
    """Whether this is a parameter of 16 bits or less, which may have a master."""
    return jnp.issubdtype(jnp.result_type(p), jnp.floating) and jnp.finfo(jnp.result_type(p)).bits < 32


def beside(leaves: list[Any], scalars: Any) -> Any:
    """Scalars on the devices of a sharded parameter, where an update leaves them: it compiles only once."""
    for p in leaves:
        if isinstance(p, jax.Array) and not isinstance(p, Tracer) and isinstance(p.sharding, NamedSharding):
            return jax.device_put(scalars, NamedSharding(p.sharding.mesh, PartitionSpec()))
    return scalars


def varying(x: Any, axis_names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the mesh axes over which x differs; all where JAX keeps no account (check_vma=False)."""
    tracked = varying_axes(jax.lax.axis_index(axis_names))
    return tuple(n for n in axis_names if n in varying_axes(x)) if tracked else axis_names


def varying_axes(x: Any) -> set[str]:
    """The mesh axes of the shard_map around over which JAX knows x, or its aval, to differ."""
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return set() if kind is None else set(kind.varying)


def in_dtypes_of(old: Any, new: Any) -> Any:
    """A state in the dtypes it had: others' follow the gradients', and both branches of a cond must agree."""
    return jax.tree.map(lambda o, n: n.astype(o.dtype) if hasattr(n, "astype") else n, old, new)
