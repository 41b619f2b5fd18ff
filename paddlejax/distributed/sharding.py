"""Where parameters and an optimizer's state lie on a mesh: beside each other, or spread over devices."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

from ..array_types import ArrayTree
from ..hyper import COUNT, NAME, ArgumentError, Must, checked, require
from ..trees import align, flatten, mirrored, path_name
from ..wrap import PAIR
from .data_parallel import MESH
from .held import names_of, with_axis
from .own import own_shardings
from .spread import Spread, Zero1

ONE_KIND = Must(
    lambda mesh: len(set(mesh.axis_types)) <= 1 and AxisType.Manual not in mesh.axis_types,
    "a mesh whose axes are all Auto or all Explicit",
    ArgumentError,
)
AXIS = Must(lambda axis, mesh: axis in mesh.axis_names, "one of {mesh.axis_names}", ArgumentError)
SPREAD = {"tx": PAIR, "mesh": (MESH, ONE_KIND), "axis": AXIS}


@checked(tx=PAIR, memory_kind=NAME)
def state_shardings(
    tx: Any, params: ArrayTree, param_shardings: Any = None, *, memory_kind: str | None = None
) -> Any:
    """The shardings of `tx.init(params)`: what mirrors a parameter lies beside it, all else is replicated.

        init = jax.jit(tx.init, out_shardings=state_shardings(tx, params))

    Without it `jit` places a fresh state on one device, or whole on each. A leaf mirrors the parameter whose
    path its own ends with if its shape is the parameter's, perhaps behind other dimensions (the gradients
    that ASGD keeps), which are not sharded. `tx` is any transformation, of optax as well; `params` may be
    shapes, from `jax.eval_shape`. `param_shardings`, a tree like `params` of NamedShardings, stands in for
    the parameters' own. With `memory_kind="pinned_host"` the state rests in the host's memory, where the
    backend has that: a step brings it over by `jax.device_put(state, state_shardings(tx, params))`, inside
    `jit`, and has the others as `out_shardings`. (jaxlib 0.10.0 refuses such `out_shardings` on CPUs: there,
    put the state back by `jax.device_put` after the step.)

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
    there = _mirrored(jax.eval_shape(tx.init, params), paths, leaves, shardings)
    if memory_kind is None:
        return there
    _check_kind("state_shardings", next(iter(meshes)), memory_kind)
    return jax.tree.map(lambda s: s.with_memory_kind(memory_kind), there)


@checked(**SPREAD)
def zero1_shardings(tx: Any, params: ArrayTree, mesh: Mesh, axis: str, param_shardings: Any = None) -> Any:
    """The shardings of a state of which each device along `axis` of the mesh keeps its part: ZeRO-1.

        init = jax.jit(tx.init, out_shardings=zero1_shardings(tx, params, mesh, "data"))
        step = jax.jit(step, out_shardings=(..., zero1_shardings(tx, params, mesh, "data")))

    Whatever has the shape of a parameter is cut along the first dimension that no axis of the mesh shards yet
    and `axis` divides; where there is none, it stays as the parameter is, and so do numbers. If that is more
    than a twentieth of the elements, a warning names the largest: `zero1(tx, mesh, axis)` holds every tensor
    in equal parts, and for what it returns these are the shardings of that. A parameter that is sharded over
    other axes stays so: name its sharding in `param_shardings`, unless `params` are arrays that have it.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> s = zero1_shardings(adam(0.1), {"w": jnp.zeros((3, 8))}, mesh, "data")
    >>> s.slots["moment1"]["w"].spec
    P('data',)

    Rajbhandari et al. 2020, arXiv:1910.02054.
    """
    paths, leaves, tree = flatten(params)
    own = own_shardings("zero1_shardings", mesh, tree, paths, leaves, param_shardings)
    if isinstance(tx, Zero1):
        given = [
            None if p is None else jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in leaves
        ]
        return jax.tree.map(lambda x: x.sharding, tx.init(tree.unflatten(given)))
    parts = _cut_evenly("zero1_shardings", mesh, axis, paths, leaves, own, 2, HOLD)
    return state_shardings(tx, params, tree.unflatten(parts))


@checked(mesh=(MESH, ONE_KIND), axis=AXIS, min_size=COUNT)
def fsdp_shardings(
    params: ArrayTree, mesh: Mesh, axis: str, min_size: int = 2**10, param_shardings: Any = None
) -> Any:
    """Shardings that cut the parameters themselves over the axis of the batch: FSDP, also called ZeRO-3.

        params = jax.device_put(params, fsdp_shardings(params, mesh, "data"))
        state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)

    Then each device keeps 1/n of parameters, gradients and state, any transformation steps its own part, and
    XLA gathers a weight where it is used: for a model that does not fit into one device, whereas `zero1` is
    for one that does. A tensor is cut along its largest dimension that n divides and no axis shards yet; it
    stays whole if it has fewer than `min_size` elements, or no such dimension. If more than a twentieth of
    the elements stay whole for the latter reason, a warning names the largest. Give `jit` the shardings as
    `out_shardings`, or constrain the new parameters to them, so that a step leaves them there. `params` may
    be shapes, from `jax.eval_shape`; `param_shardings`, a tree of NamedShardings, says what other axes shard.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> s = fsdp_shardings({"b": jnp.zeros(64), "w": jnp.zeros((64, 256))}, mesh, "data")
    >>> s["b"].spec, s["w"].spec
    (P(), P(None, 'data'))

    Rajbhandari et al. 2020, arXiv:1910.02054, its third stage; Zhao et al. 2023, arXiv:2304.11277.
    """
    paths, leaves, tree = flatten(params)
    own = own_shardings("fsdp_shardings", mesh, tree, paths, leaves, param_shardings)
    return tree.unflatten(_cut_evenly("fsdp_shardings", mesh, axis, paths, leaves, own, min_size, PAD, True))


HOLD = "zero1(tx, mesh, axis) holds it in equal parts all the same"
PAD = "pad it in the model to a multiple of that number"


@checked(memory_kind=NAME, **SPREAD)
def zero1(
    tx: Any, mesh: Mesh, axis: str, param_shardings: Any = None, *, memory_kind: str | None = None
) -> Zero1:
    """Data parallelism without a copy of the optimizer's state on every device: each keeps 1/n of it.

        g, p ← their parts along `axis`;  u, s ← tx(g, s, p);  u ← the whole of it on every device

    For n devices along `axis` of the mesh. The parameters, which are whole along `axis`, and the numbers stay
    what they are, also the norms of Lamb and of clips: `tx` sees every tensor in its own shape. Use it under
    `jit` on arrays over the whole mesh, not inside `shard_map`. Master weights inside are cut as well:
    `zero1(with_master_weights(adam(1e-3)), mesh, "data")`.

    Between two steps an array of the state is held with zeros behind the dimension that is cut, up to the
    next multiple of n. If that made more than 4 % of all elements, arrays are held end to end in one buffer:
    where the first of them would be stands the buffer (1, ..., 1, n k), and (0,) in place of the others.
    `describe(params)` says what each device holds. `whole(state, params)` is the state that `tx` itself would
    have. `load(state, params)` takes that, or a state that was held by any other number of devices, and
    returns it as it is held here; `update` takes such a state too. To save a state that several processes
    share, save `whole(state, params)`, or let all of them gather it:
    `jax.experimental.multihost_utils.process_allgather(state, tiled=True)`.

    `muon` inside finds its matrices whole: they are dealt out to the devices along `axis`, the most costly
    first, each to the device that has least to do, iterated there, and handed on in parts; a matrix that
    other axes shard is gathered for that. Its momentum is cut by element as any other state. Paddle's
    MuonSharding keeps that on the matrix's device, too. `accumulate_gradients` sends updates in real steps
    only.

    Name in `param_shardings`, a tree like the parameters, the NamedShardings of parameters that are sharded
    over other axes; without it they must not be, which a jitted init cannot check. Parameters that are
    sharded over `axis` itself are an error: their state is cut already, see `fsdp_shardings`. With
    `memory_kind="pinned_host"` the state rests in the host's memory, where the backend has that, and is on
    the devices during a step only; a jitted step needs no `out_shardings` for it. (jaxlib 0.10.0
    on CPUs leaves it on the devices, or fails on Explicit meshes.) torch's
    ZeroRedundancyOptimizer gives whole parameters to devices; optax has no such wrapper.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tx = zero1(adam(0.1), mesh, "data")
    >>> p = jax.device_put(jnp.ones(4), jax.NamedSharding(mesh, jax.P()))
    >>> updates, state = jax.jit(tx.update)(p, tx.init(p), p)
    >>> print(updates, state.slots["moment1"].sharding.spec)
    [-0.1 -0.1 -0.1 -0.1] P('data',)

    Rajbhandari et al. 2020, arXiv:1910.02054, its first stage; MuonShardingOptimizer of Paddle's development
    branch.
    """
    if memory_kind is not None:
        _check_kind("zero1", mesh, memory_kind)
    return Spread(tx, mesh, axis, param_shardings, memory_kind).pair()


def _check_kind(what: str, mesh: Any, memory_kind: str) -> None:
    """Refuse a kind of memory that the devices of the mesh have not."""
    kinds = {m.kind for m in mesh.local_devices[0].addressable_memories()}
    known = f"one that the devices have, {', '.join(sorted(kinds))}"
    require(memory_kind in kinds, f"{what}'s memory_kind", memory_kind, known)


def _cut_evenly(
    what: str,
    mesh: Mesh,
    axis: str,
    paths: list[Any],
    leaves: list[Any],
    shardings: list[Any],
    least: int,
    instead: str,
    largest: bool = False,
) -> list[Any]:
    """Each sharding with the axis on a dimension that is free and that it divides, if there is one.

    The first such dimension, or the largest; tensors of fewer elements than `least` are left alone.
    """
    n, parts, left, total = mesh.shape[axis], [], {}, 0
    for path, p, sharding in zip(paths, leaves, shardings, strict=True):
        shape = () if p is None else jnp.shape(p)
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        size = math.prod(shape)
        total += size
        free = [i for i, d in enumerate(shape) if spec[i] is None and d and d % n == 0]
        if size < least or axis in names_of(spec):
            free = []
        elif not free and not any(spec):
            left[path_name(path)] = shape
        dim = max(free, key=lambda i: shape[i] if largest else 0, default=None)
        parts.append(NamedSharding(mesh, with_axis(spec, dim, axis)))
    if sum(map(math.prod, left.values())) > total / 20:
        name = max(left, key=lambda name: math.prod(left[name]))
        why = f"no dimension is a multiple of the {n} devices along {axis!r}"
        share = sum(map(math.prod, left.values())) / total
        where = (
            f"{share:.0%} of the elements stay whole on every device, most at {name} of shape {left[name]}"
        )
        warnings.warn(f"{what}: {where}: {why}; {instead}", stacklevel=4)
    return parts


def _mirrored(state: Any, paths: list[Any], leaves: list[Any], shardings: list[Any]) -> Any:
    """A sharding for each leaf of the state; there must be a parameter, which names the mesh."""
    if all(p is None for p in leaves):
        raise ArgumentError("found no parameter, expected at least one, which names the mesh")
    return mirrored(state, paths, leaves, shardings)
