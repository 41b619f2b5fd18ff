"""Where an optimizer's state lies on a mesh: beside the parameters, or spread over their copies (ZeRO-1)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..array_types import ArrayTree, Gradients
from ..hyper import ArgumentError, Must, checked
from ..lifting import GradientTransformation
from ..transform import chain
from ..trees import align, flatten, mirrored, path_name
from ..wrap import PAIR, check_params
from .data_parallel import MESH

ONE_KIND = Must(
    lambda mesh: len(set(mesh.axis_types)) <= 1 and AxisType.Manual not in mesh.axis_types,
    "a mesh whose axes are all Auto or all Explicit",
    ArgumentError,
)
AXIS = Must(lambda axis, mesh: axis in mesh.axis_names, "one of {mesh.axis_names}", ArgumentError)
SPREAD = {"tx": PAIR, "mesh": (MESH, ONE_KIND), "axis": AXIS}


@checked(tx=PAIR)
def state_shardings(tx: Any, params: ArrayTree, param_shardings: Any = None) -> Any:
    """The shardings of `tx.init(params)`: what mirrors a parameter lies beside it, all else is replicated.

        init = jax.jit(tx.init, out_shardings=state_shardings(tx, params))

    Without it `jit` places a fresh state on one device, or whole on each. A leaf mirrors the parameter whose
    path its own ends with if its shape is the parameter's, perhaps behind other dimensions (the gradients
    that ASGD keeps), which are not sharded. `tx` is any transformation, of optax as well; `params` may be
    shapes, from `jax.eval_shape`. `param_shardings`, a tree like `params` of NamedShardings, stands in for
    the parameters' own.

    >>> mesh = jax.make_mesh((1,), ("model",))
    >>> across = jax.NamedSharding(mesh, jax.P("model"))
    >>> s = state_shardings(adam(0.1), {"w": jnp.zeros(8)}, {"w": across})
    >>> s.slots["moment1"]["w"].spec, s.count.spec
    (P('model',), P())
    """
    paths, leaves, tree = flatten(params)
    if param_shardings is None:
        shardings = [None if p is None else getattr(p, "sharding", None) for p in leaves]
    else:
        shardings = align(tree, paths, param_shardings, "param_shardings")
    meshes: dict[Any, str] = {}
    for path, p, sharding in zip(paths, leaves, shardings, strict=True):
        if p is None:
            continue
        if not isinstance(sharding, NamedSharding):
            found = "no sharding" if sharding is None else repr(sharding)
            raise ArgumentError(
                f"state_shardings: at {path_name(path)}: found {found}, expected a NamedSharding; "
                "put the parameters on a mesh or name their shardings in param_shardings"
            )
        meshes.setdefault(sharding.mesh, path_name(path))
    if len(meshes) > 1:
        where = " and ".join(meshes.values())
        raise ArgumentError(f"state_shardings: found different meshes at {where}, expected one")
    return _mirrored(jax.eval_shape(tx.init, params), paths, leaves, shardings)


@checked(**SPREAD)
def zero1_shardings(tx: Any, params: ArrayTree, mesh: Mesh, axis: str, param_shardings: Any = None) -> Any:
    """The shardings of a state of which each device along `axis` of the mesh keeps its part: ZeRO-1.

        init = jax.jit(tx.init, out_shardings=zero1_shardings(tx, params, mesh, "data"))
        step = jax.jit(step, out_shardings=(..., zero1_shardings(tx, params, mesh, "data")))

    Whatever has the shape of a parameter is cut along the first dimension that no axis of the mesh shards yet
    and `axis` divides; where there is none, it stays as the parameter is, and so do numbers. A parameter that
    is sharded over other axes stays so: name its sharding in `param_shardings`, unless `params` are arrays
    that have it. `zero1` does the same from inside the transformation.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> s = zero1_shardings(adam(0.1), {"w": jnp.zeros((3, 8))}, mesh, "data")
    >>> s.slots["moment1"]["w"].spec
    P('data',)

    Rajbhandari et al. 2020, arXiv:1910.02054.
    """
    paths, leaves, tree = flatten(params)
    own = _own("zero1_shardings", mesh, tree, paths, leaves, param_shardings)
    return state_shardings(tx, params, tree.unflatten(_spread(mesh, axis, leaves, own)))


@checked(**SPREAD)
def zero1(tx: Any, mesh: Mesh, axis: str, param_shardings: Any = None) -> GradientTransformation:
    """Data parallelism without a copy of the optimizer's state on every device: each keeps 1/n of it.

        g, p ← their parts along `axis`;  u, s ← tx(g, s, p);  u ← the whole of it on every device

    For n devices along `axis` of the mesh. The parameters, which are whole along `axis`, and the numbers stay
    what they are, also the norms of Lamb and of clips. Use it under `jit` on arrays over the whole mesh, not
    inside `shard_map`. Each tensor is cut along the first dimension that n divides, and stays whole if it has
    none. Name in `param_shardings`, a tree like the parameters, the NamedShardings of parameters that are
    sharded over other axes; without it they must not be, which a jitted init cannot check. Master weights
    inside are cut as well: `zero1(with_master_weights(adam(1e-3)), mesh, "data")`. To save a state that
    several processes share, all of them gather it first:
    `jax.experimental.multihost_utils.process_allgather(state, tiled=True)`. torch's ZeroRedundancyOptimizer
    gives whole parameters to devices; optax has no such wrapper.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tx = zero1(adam(0.1), mesh, "data")
    >>> p = jax.device_put(jnp.ones(4), jax.NamedSharding(mesh, jax.P()))
    >>> updates, state = jax.jit(tx.update)(p, tx.init(p), p)
    >>> print(updates, state.slots["moment1"].sharding.spec)
    [-0.1 -0.1 -0.1 -0.1] P('data',)

    Rajbhandari et al. 2020, arXiv:1910.02054, its first stage.
    """
    inner = chain(tx)  # which hands extra arguments on to those that take them

    def placed(params: Any) -> tuple[Any, list[Any], list[Any], list[NamedSharding], list[NamedSharding]]:
        paths, leaves, tree = flatten(params)
        own = _own("zero1", mesh, tree, paths, leaves, param_shardings, known=False)
        return tree, paths, leaves, own, _spread(mesh, axis, leaves, own)

    def init(params: ArrayTree) -> Any:
        tree, paths, leaves, _, parts = placed(params)
        if any(isinstance(p, jax.ShapeDtypeStruct) for p in leaves):
            state = jax.eval_shape(init, params)
            there = _mirrored(state, paths, leaves, parts)
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, there)
        (state,) = inner.init(tree.unflatten(map(_move, leaves, parts)))
        return jax.tree.map(_move, state, _mirrored(state, paths, leaves, parts))

    def update(
        grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        check_params("zero1", params)
        tree, paths, leaves, own, parts = placed(params)
        gs = align(tree, paths, grads, "gradients")
        state = jax.tree.map(_move, state, _mirrored(state, paths, leaves, parts))
        there = tree.unflatten(map(_move, leaves, parts))
        updates, (state,) = inner.update(tree.unflatten(map(_move, gs, parts)), (state,), there, **extra)
        us = align(tree, paths, updates, "updates")
        state = jax.tree.map(_move, state, _mirrored(state, paths, leaves, parts))
        return tree.unflatten(map(_move, us, own)), state

    return GradientTransformation(init, update)


def _own(
    what: str, mesh: Mesh, tree: Any, paths: list[Any], leaves: list[Any], given: Any, known: bool = True
) -> list[Any]:
    """The shardings of the parameters on the mesh: as given, their own, or replicated."""
    whole = NamedSharding(mesh, PartitionSpec())
    own = []
    if given is not None:
        shardings = align(tree, paths, given, "param_shardings")
        for path, p, sharding in zip(paths, leaves, shardings, strict=True):
            if p is not None and not (isinstance(sharding, NamedSharding) and sharding.mesh == mesh):
                found = f"found {sharding!r}, expected a NamedSharding of the mesh {mesh}"
                raise ArgumentError(f"{what}'s param_shardings: at {path_name(path)}: {found}")
            own.append(whole if p is None else sharding)
        return own
    for path, p in zip(paths, leaves, strict=True):
        sharding = None if isinstance(p, Tracer) else getattr(p, "sharding", None)
        named = isinstance(sharding, NamedSharding)
        if named and sharding.mesh != mesh:
            raise ArgumentError(f"{what}: at {path_name(path)}: the parameter is on another mesh, {sharding}")
        if named and not known and not sharding.is_fully_replicated:
            raise ArgumentError(
                f"{what}: at {path_name(path)}: the parameter is sharded, {sharding.spec}; "
                "name the parameters' shardings in param_shardings"
            )
        own.append(sharding if named else whole)
    return own


def _spread(mesh: Mesh, axis: str, leaves: list[Any], shardings: list[Any]) -> list[Any]:
    """Each sharding with the axis on the first dimension that is free and that it divides, if any."""
    parts = []
    for p, sharding in zip(leaves, shardings, strict=True):
        shape = () if p is None else jnp.shape(p)
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        taken = {name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))}
        free = [i for i, n in enumerate(shape) if spec[i] is None and n and n % mesh.shape[axis] == 0]
        if free and axis not in taken:
            spec[free[0]] = axis
        while spec and spec[-1] is None:
            spec.pop()  # as jit writes it
        parts.append(NamedSharding(mesh, PartitionSpec(*spec)))
    return parts


def _mirrored(state: Any, paths: list[Any], leaves: list[Any], shardings: list[Any]) -> Any:
    """A sharding for each leaf of the state; there must be a parameter, which names the mesh."""
    if all(p is None for p in leaves):
        raise ArgumentError("found no parameter, expected at least one, which names the mesh")
    return mirrored(state, paths, leaves, shardings)


def _move(x: Any, sharding: NamedSharding) -> Any:
    """The same numbers, in this sharding."""
    if x is None:
        return None
    if not isinstance(x, Tracer):
        return jax.device_put(x, sharding)
    explicit = AxisType.Explicit in sharding.mesh.axis_types  # where a constraint only asserts
    return jax.sharding.reshard(x, sharding) if explicit else jax.lax.with_sharding_constraint(x, sharding)
