"""Trees of parameters: their paths, and whether what comes with them fits, leaf for leaf."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path


def path_name(path: Any) -> str:
    return keystr(path, simple=True, separator="/") or "the root"


def flatten(params: Any) -> tuple[list[Any], list[Any], Any]:
    """Paths, leaves and structure; a None among the parameters is a leaf that is never touched."""
    pairs, tree = tree_flatten_with_path(params, is_leaf=lambda x: x is None)
    return [path for path, _ in pairs], [p for _, p in pairs], tree


def align(tree: Any, paths: list[Any], other: Any, what: str) -> list[Any]:
    """The entries of `other` in the order of `tree`, or an error that names the leaf where they part."""
    try:
        return tree.flatten_up_to(other)
    except (ValueError, TypeError, KeyError):
        pass
    found = {path_name(path): x for path, x in tree_flatten_with_path(other, is_leaf=lambda x: x is None)[0]}
    expected = [path_name(path) for path in paths]
    missing = [path for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    raise ValueError(
        f"the tree of {what} is not that of the parameters: "
        + (f"missing at {', '.join(missing)}; " if missing else "")
        + (f"unexpected at {', '.join(unexpected)}" if unexpected else f"found {jax.tree.structure(other)}")
    )


def gradients(tree: Any, paths: list[Any], params: list[Any], grads: Any) -> list[Any]:
    """One gradient or None per parameter, each of its parameter's shape: nothing broadcasts."""
    gs = align(tree, paths, grads, "gradients")
    for path, p, g in zip(paths, params, gs, strict=True):
        if g is None:
            continue
        if p is None or not (hasattr(g, "dtype") or isinstance(g, float | int)):
            expected = "None, as the parameter" if p is None else "an array"
            raise ValueError(
                f"at {path_name(path)}: found a gradient of type {type(g).__name__}, expected {expected}"
            )
        if jnp.shape(g) != jnp.shape(p):
            shapes = f"found a gradient of shape {jnp.shape(g)}, expected the parameter's {jnp.shape(p)}"
            raise ValueError(f"at {path_name(path)}: {shapes}")
        if not jnp.issubdtype(jnp.result_type(g), jnp.floating):
            dtypes = f"found a gradient of dtype {jnp.result_type(g)}, expected a real floating dtype"
            raise TypeError(f"at {path_name(path)}: {dtypes}")
    return gs


def compute_dtype(path: Any, p: Any) -> Any:
    """The dtype in which a leaf is updated: float32, or float64 if the parameter is that wide."""
    if not hasattr(p, "dtype") and not isinstance(p, int | float | complex):
        raise TypeError(
            f"at {path_name(path)}: found a parameter of type {type(p).__name__}, expected an array"
        )
    dtype = jnp.result_type(p)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"at {path_name(path)}: found a parameter of dtype {dtype}, expected a real floating dtype"
        )
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype.type


def is_narrow(p: Any) -> bool:
    """Whether this is a parameter of 16 bits or less, which may have a master."""
    return jnp.issubdtype(jnp.result_type(p), jnp.floating) and jnp.finfo(jnp.result_type(p)).bits < 32


def beside(leaves: list[Any], scalars: Any) -> Any:
    """Scalars on the devices of a sharded parameter, where an update leaves them: it compiles only once."""
    for p in leaves:
        if isinstance(p, jax.Array) and not isinstance(p, Tracer) and isinstance(p.sharding, NamedSharding):
            return jax.device_put(scalars, NamedSharding(p.sharding.mesh, PartitionSpec()))
    return scalars


def in_dtypes_of(old: Any, new: Any) -> Any:
    """A state in the dtypes it had: others' follow the gradients', and both branches of a cond must agree."""
    return jax.tree.map(lambda o, n: n.astype(o.dtype) if hasattr(n, "astype") else n, old, new)
