"""Trees of parameters: their paths, and whether what comes with them fits, leaf for leaf."""

import functools
import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey, keystr, register_pytree_with_keys, tree_flatten_with_path

from .selected_rows import SelectedRows, is_rows
from .tracing import InForce

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


def node(cls: C, data: Sequence[str], static: Sequence[str]) -> C:
    """Register a dataclass as a pytree with these fields as children, and these as static; return it.

    Not `jax.tree_util.register_dataclass`: JAX (0.10.0 to 0.12.0) takes the structures of two dataclasses as
    equal if their fields are, whatever their classes. A jitted step then now and then ran another rule's
    program.
    """
    keys, values, fixed_values = [GetAttrKey(name) for name in data], _getter(data), _getter(static)

    def children(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return values(x), fixed_values(x)

    def with_keys(x: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        return tuple(zip(keys, values(x), strict=True)), fixed_values(x)

    def made(fixed: tuple[Any, ...], found: Any) -> Any:
        return cls(**dict(zip(data, found, strict=True)), **dict(zip(static, fixed, strict=True)))

    register_pytree_with_keys(cls, with_keys, made, children)
    return cls


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads these attributes as a tuple: with two and more, in C."""
    return attrgetter(*names) if len(names) > 1 else lambda x: tuple([getattr(x, name) for name in names])


def path_name(path: Any) -> str:
    """`layer/w`; without the `.value` that flax puts at the end at one time and not at another."""
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return keystr(path, simple=True, separator="/") or "the root"


def matches(pattern: str | re.Pattern[str], path: str) -> bool:
    """Whether a glob fits the whole path (`*` also crosses `/`), or an expression is found in it."""
    return fnmatchcase(path, pattern) if isinstance(pattern, str) else pattern.search(path) is not None


class Known:
    """What a chain knows of its parameters and of the gradients made last: each tree is looked at once.

    A tree counts by its identity, so others' transformations, which make other trees, may stand in between.
    """

    def __init__(self) -> None:
        self.params, self.parts, self.names = None, None, []
        self.grads, self.given, self.entries, self.tree = None, [], [], None  # entries as `gradients` returns


in_chain = InForce()  # a Known


def flatten(params: Any) -> tuple[list[Any], list[Any], Any]:
    """Paths, leaves and structure; a None among the parameters is a leaf that is never touched."""
    known = in_chain.value
    if known is None:
        return _flattened(params)
    if known.params is not params:
        known.params, known.parts, known.names = params, _flattened(params), []
    paths, leaves, tree = known.parts
    return paths, list(leaves), tree


def names_of(paths: list[Any]) -> list[str]:
    """`path_name` of each of these paths, as `flatten` returned them."""
    known = in_chain.value
    if known is None or known.parts is None or known.parts[0] is not paths:
        return [path_name(path) for path in paths]
    known.names = known.names or [path_name(path) for path in paths]
    return known.names


def _flattened(params: Any) -> tuple[list[Any], list[Any], Any]:
    pairs, tree = tree_flatten_with_path(params, is_leaf=lambda x: x is None or is_rows(x))
    return [path for path, _ in pairs], [p for _, p in pairs], tree


def is_placeholder(params: Any) -> bool:
    """Whether this is what optax's `tree_map_params` gives to `init` in place of any tree of parameters.

    It has no leaf; `init` finds it again in its state wherever there is a tree like the parameters.
    """
    return type(params).__name__ == "_ParamsPlaceholder"


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
    known, gs = in_chain.value, align(tree, paths, grads, "gradients")
    if known is not None and known.grads is grads and known.tree is tree:
        if all(map(operator.is_, gs, known.given)):  # others may have changed the tree in place
            return list(known.entries)
    for i, (path, p, g) in enumerate(zip(paths, params, gs, strict=True)):
        if g is None:
            continue
        if is_frozen_gradient(g, p):
            gs[i] = None
            continue
        if p is None or not is_array(g):
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


def handed_on(tree: Any, given: list[Any], shapes: Sequence[Any]) -> Any:
    """The tree of these gradients, made of checked ones of these shapes: None where there is none."""
    grads, known = tree.unflatten(given), in_chain.value
    plain = all(
        [s is None or isinstance(g, jax.Array) and g.shape == s for g, s in zip(given, shapes, strict=True)]
    )
    if known is not None and plain:
        entries = [None if s is None else g for g, s in zip(given, shapes, strict=True)]
        known.grads, known.given, known.entries, known.tree = grads, given, entries, tree
    return grads


def is_frozen_gradient(g: Any, p: Any) -> bool:
    """Whether this is what `jax.grad(allow_int=True)` gives for a parameter that is not floating."""
    nothing = getattr(g, "dtype", None) == jax.dtypes.float0
    return nothing and p is not None and is_array(p) and _wide(dtype_of(p)) is None


def _check_rows(path: str, g: SelectedRows, rows: bool) -> None:
    if not rows:
        raise TypeError(f"at {path}: found a SelectedRows gradient, expected an array such as its to_dense()")
    if not jnp.issubdtype(jnp.result_type(g.rows), jnp.integer):
        found = f"found a SelectedRows gradient with rows of dtype {jnp.result_type(g.rows)}, expected ints"
        raise TypeError(f"at {path}: {found} (a transformation took them for values?)")


def is_array(x: Any) -> bool:
    """Whether this is an array, traced or not, or a number; a layer of flax has a dtype as well."""
    if isinstance(x, jax.Array | SelectedRows | int | float | complex):
        return True
    dtype = getattr(x, "dtype", None)
    return hasattr(x, "shape") and isinstance(dtype, np.dtype) and dtype.kind not in "OSUMm"


def check_array(path: Any, p: Any) -> Any:
    """Return the dtype of a parameter; an error that names the leaf if it is no array at all."""
    if not is_array(p):
        found = f"found a parameter of type {type(p).__name__}, expected an array"
        of_model = hasattr(p, "init") and hasattr(p, "apply")
        raise TypeError(f"at {path_name(path)}: {found}; {INITIALIZE if of_model else PARTITION}")
    return dtype_of(p)


def compute_dtype(path: Any, p: Any) -> Any:
    """The dtype in which a leaf is updated: float32, or float64 if the parameter is that wide."""
    dtype = check_array(path, p)
    wide = _wide(dtype)
    if wide is None:
        found = f"found a parameter of dtype {dtype}, expected a real floating dtype"
        raise TypeError(f"at {path_name(path)}: {found}; {instead_of(dtype)}")
    return wide


INITIALIZE = (
    "of a flax or haiku model give the parameters that its init returns: "
    'model.init(key, x)["params"] in flax, model.init(key, x) in haiku'
)
PARTITION = (
    "train the floating arrays of a model only, as eqx.partition(model, eqx.is_inexact_array) or "
    "nnx.state(model, nnx.Param) give them"
)


def instead_of(dtype: Any) -> str:
    """What to do with parameters of a dtype that cannot be trained."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "optax.contrib.split_real_and_imaginary trains a complex one as two real ones"
    return f"{PARTITION}, or freeze it with by_path"


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


def unmoved(like: Any, dtype: Any = None) -> jax.Array:
    """Return the update that moves nothing: -0.0 leaves every other number as it is, -0.0 too."""
    return jnp.full_like(like, -0.0, dtype=dtype)


def is_narrow(p: Any) -> bool:
    """Whether this is a parameter of 16 bits or less, which may have a master."""
    return jnp.issubdtype(jnp.result_type(p), jnp.floating) and jnp.finfo(jnp.result_type(p)).bits < 32


def is_whole(p: Any) -> bool:
    """Whether this is an int or a bool, which an optimizer cannot move."""
    return is_array(p) and any(jnp.issubdtype(dtype_of(p), kind) for kind in (jnp.integer, jnp.bool_))


def moved_dtype(path: Any, p: Any) -> Any:
    """`compute_dtype` for a wrapper: None for an int, which what is inside refuses or freezes."""
    return None if p is None or is_whole(p) else compute_dtype(path, p)


def beside(leaves: list[Any], state: Any) -> Any:
    """A state with its arrays on the devices of the parameters, where an update leaves them.

    What lies on a mesh stays there; all else goes whole to every device. Else a step would compile twice, and
    a state that is restored to where `init` put it would be refused beside the parameters.
    """
    home = _home(leaves)
    arrays, tree = jax.tree.flatten(state)
    away = [i for i, x in enumerate(arrays) if home is not None and _is_away(x, home)]
    for i, x in zip(away, jax.device_put([arrays[i] for i in away], home), strict=True):
        arrays[i] = x
    return tree.unflatten(arrays) if away else state


def _home(leaves: list[Any]) -> Any:
    """The sharding of what belongs to no single parameter: whole on all devices, or on the only one.

    None where it is left to JAX: the parameters are traced, on no device in particular, or each on its own.
    """
    arrays = [p for p in leaves if isinstance(p, jax.Array) and not isinstance(p, Tracer)]
    for p in arrays:
        if isinstance(p.sharding, NamedSharding):
            return NamedSharding(p.sharding.mesh, PartitionSpec())
    devices = {d for p in arrays for d in p.devices()}
    return arrays[0].sharding if len(devices) == 1 and all(p.committed for p in arrays) else None


def _is_away(x: Any, home: Any) -> bool:
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return False
    if isinstance(home, NamedSharding):
        return not isinstance(x.sharding, NamedSharding)
    return not x.committed and len(x.devices()) == 1


def mirrored(state: Any, paths: list[Any], leaves: list[Any], shardings: list[Any]) -> Any:
    """A sharding for each leaf of the state: that of the parameter it mirrors, or replicated.

    A leaf mirrors the parameter whose path its own ends with, if its shape is the parameter's, perhaps behind
    other dimensions.
    """
    pairs = zip(leaves, shardings, strict=True)
    known = {
        path: (jnp.shape(p), s) for path, (p, s) in zip(paths, pairs, strict=True) if p is not None and s
    }
    mesh = next(iter(known.values()))[1].mesh
    whole = NamedSharding(mesh, PartitionSpec())

    def choose(path: Any, leaf: Any) -> NamedSharding:
        for i in range(len(path) + 1):  # the longest ending first
            shape, sharding = known.get(path[i:], (None, whole))
            if shape is not None:
                more = jnp.ndim(leaf) - len(shape)
                if more < 0 or jnp.shape(leaf)[more:] != shape:
                    return whole
                return (
                    NamedSharding(mesh, PartitionSpec(*[None] * more, *sharding.spec)) if more else sharding
                )
        return whole

    found, tree = tree_flatten_with_path(state)
    return tree.unflatten([choose(path, leaf) for path, leaf in found])


def at_params(init: F) -> F:
    """The `init` of a transformation, whose state lies where the parameters lie: see `beside`.

    For parameters that are `jax.ShapeDtypeStruct`s the state is made of such as well, and nothing is
    allocated; where they have shardings on a mesh, so does the state: see `mirrored`.
    """

    @functools.wraps(init)
    def begin(self: Any, params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        abstract = [i for i, p in enumerate(leaves) if isinstance(p, jax.ShapeDtypeStruct)]
        if not abstract:
            return beside(leaves, init(self, params))
        tree = jax.tree.structure(params)

        def made(structs: list[Any]) -> Any:
            filled = [*leaves]
            for i, p in zip(abstract, structs, strict=True):
                filled[i] = p
            return init(self, tree.unflatten(filled))

        state = jax.eval_shape(made, [leaves[i] for i in abstract])
        paths, leaves, tree = flatten(params)
        shardings = [getattr(p, "sharding", None) for p in leaves]
        shardings = [s if isinstance(s, NamedSharding) else None for s in shardings]
        if not any(shardings):
            return state
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            state,
            mirrored(state, paths, leaves, shardings),
        )

    return cast(F, begin)


def varying_axes(x: Any) -> set[str]:
    """The mesh axes of the shard_map around over which JAX knows x, or its aval, to differ."""
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return set() if kind is None else set(kind.varying)


def in_dtypes_of(old: Any, new: Any) -> Any:
    """A state in the dtypes it had: others' follow the gradients', and both branches of a cond must agree."""
    return jax.tree.map(lambda o, n: n.astype(o.dtype) if hasattr(n, "astype") else n, old, new)
