"""Data-parallel steps: each worker's own gradient, and one message that makes them one."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .. import collectives
from ..array_types import ArrayTree
from ..hyper import ArgumentError, Must, checked, function_of, instance, optional, require, verify, whole
from ..rates import RuleState
from ..transform import apply_updates
from ..trees import flatten, mirrored, path_name, varying_axes
from ..wrap import is_transformation
from .compression import U, V
from .diloco import DiLoCoState, own_parameters


def local_grads(loss_fn: Callable[..., Any], axis_name: Any = "data", has_aux: bool = False) -> Any:
    """`jax.value_and_grad` of the first argument inside `jax.shard_map`: this worker's own gradient.

    The parameters are the same on all workers, and there `jax.grad` returns the sum of all workers'
    gradients. Here they are declared to vary over `axis_name`, one or several, first, so nothing is summed
    or sent.

    >>> mesh = jax.make_mesh((8,), ("data",))
    >>> def worker(w, x):
    ...     value, g = local_grads(lambda w, x: jnp.sum(w * x))(w, x)
    ...     return g[None]
    >>> P = jax.sharding.PartitionSpec
    >>> grads = jax.shard_map(worker, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    >>> x = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, P("data")))
    >>> print(grads(jax.device_put(jnp.ones(()), jax.NamedSharding(mesh, P())), x))
    [0. 1. 2. 3. 4. 5. 6. 7.]
    """
    function = jax.value_and_grad(loss_fn, has_aux=has_aux)

    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def own(p: Any) -> Any:
        missing = tuple(axis for axis in axes if axis not in varying_axes(p))
        return lax.pcast(p, missing, to="varying") if missing else p

    def value_and_grads(params: ArrayTree, *args: Any) -> Any:
        return function(jax.tree.map(own, params), *args)

    return value_and_grads


def state_specs(state: ArrayTree, axis_name: str = "data") -> Any:
    """The PartitionSpec of every array of a state, for `in_specs` and `out_specs` of `jax.shard_map`.

    What each worker has for itself (u and v of the tensors that `dgc_momentum` compresses) is split along its
    leading axis; all else is the same on all workers. `state` may be nested, as `chain`'s is, and abstract.

    >>> from paddlejax.distributed import dgc_momentum
    >>> tx = dgc_momentum(0.1, 0.9, 0, num_trainers=8, min_numel=4)
    >>> state_specs(tx.init({"w": jnp.zeros(4), "b": jnp.zeros(2)})).slots["_dgc_u_"]
    {'b': P(), 'w': P('data',)}
    """

    return jax.tree.map(lambda own: PartitionSpec(axis_name) if own else PartitionSpec(), of_workers(state))


def is_compressed(part: Any) -> bool:
    """Return whether this is the state of `dgc_momentum`."""
    return isinstance(part, RuleState) and V in part.slots


def is_of_workers(part: Any) -> bool:
    """Return whether this is the state of a transformation that takes each worker's own gradient."""
    return is_compressed(part) or isinstance(part, DiLoCoState)


def averages(state: ArrayTree) -> bool:
    """Return whether the transformation with this state averages by itself."""
    return any(map(is_of_workers, jax.tree.leaves(state, is_leaf=is_of_workers)))


def of_workers(state: ArrayTree) -> Any:
    """For every array of a state, whether each worker has its own: then it has a leading axis of workers."""

    def of(part: Any) -> Any:
        own = jax.tree.map(lambda x: False, part)
        if isinstance(part, DiLoCoState):
            local, inner = jax.tree.map(lambda x: jnp.ndim(x) > 0, (part.local, part.inner))
            return own._replace(local=local, inner=inner, losses=True)
        if not is_compressed(part):
            return own
        vs = part.slots[V]
        us = jax.tree.map(
            lambda v, u: None if u is None else v is not None, vs, part.slots[U], is_leaf=_is_none
        )
        return own._replace(slots={U: us, V: jax.tree.map(lambda v: True, vs)})

    return jax.tree.map(of, state, is_leaf=is_of_workers)


def _is_none(x: Any) -> bool:
    return x is None


MESH = instance(Mesh, "a jax.sharding.Mesh")
AXIS_NAME = Must(lambda axis, mesh: axis in mesh.shape, "one of the mesh's, {mesh.axis_names}", ArgumentError)
WORKERS = optional(*whole(1))


@checked(
    loss_fn=function_of("the parameters and the batch"),
    tx=Must(is_transformation, "a transformation such as adam(0.001) or dgc_momentum(...)"),
    mesh=MESH,
    axis_name=AXIS_NAME,
    inner_axis=optional(
        AXIS_NAME,
        Must(lambda inner, axis_name: inner != axis_name, "another axis than axis_name", ArgumentError),
    ),
    join=optional(instance(bool, "True, False or None")),
)
def make_step(
    loss_fn: Callable[..., Any],
    tx: Any,
    mesh: Mesh,
    params: ArrayTree,
    axis_name: str = "data",
    *,
    inner_axis: str | None = None,
    join: bool | None = None,
) -> tuple[Callable[..., Any], Any, Any]:
    """A compiled data-parallel step, and parameters and state placed on the mesh for it.

    `step(params, state, *batch)` returns new parameters, state and the mean loss. `loss_fn(params, *batch)`
    is the mean over its batch. Every array of the batch is split along its leading dimension over the workers
    of `axis_name`; parameters that are sharded over other axes of the mesh stay so. A step reuses the memory
    of the parameters and the state that it is given.

    `tx` is any transformation: it sees the mean gradient. With `join` all gradients of one dtype and the loss
    are one message. `jit` of `value_and_grad` sends one per tensor, and on CPUs (Gloo) each costs the
    network's latency: 64 biases over 20 ms are 2.7 s. The price is a copy of the gradients. None, the
    default, joins on CPUs; elsewhere XLA joins small messages by itself.

    `dgc_momentum` and `diloco` see each worker's own gradient instead, and average. Around them `chain` will
    do, and `skip_nonfinite` and `dynamic_loss_scale` with their axis_name; `accumulate_gradients` will not,
    its sums differ from worker to worker.

    `inner_axis` names the axis of the devices of one machine, on a mesh such as (machine, local): the batch
    is split over both axes, gradients are averaged over the inner one first, and a worker is a machine. Each
    device of it then sends its part of what goes to other machines: `dgc_momentum` between machines, with
    num_trainers the number of machines, and dense sums inside.

    >>> from paddlejax.distributed import dgc_momentum
    >>> mesh = jax.make_mesh((8,), ("data",))
    >>> tx = dgc_momentum(0.1, 0.9, 100, num_trainers=8)
    >>> step, w, state = make_step(lambda w, x: jnp.mean((w - x) ** 2), tx, mesh, jnp.zeros(()))
    >>> w, state, loss = step(w, state, jnp.ones(16))
    >>> print(w, loss)
    0.2 1.0
    """
    axes = (axis_name,) if inner_axis is None else (axis_name, inner_axis)
    params = on_mesh(params, mesh, axes)
    state = init_on_mesh(tx, params, mesh, axis_name)
    where = jax.tree.map(lambda x: x.sharding, (params, state))
    specs = state_specs(state, axis_name)
    if join is None:
        join = mesh.devices.flat[0].platform == "cpu"

    def means(xs: list[Any], axis: str) -> list[Any]:
        return collectives.mean(xs, axis) if join else lax.pmean(xs, axis)

    def worker(params: ArrayTree, state: ArrayTree, batch: Any) -> Any:
        loss, grads = local_grads(loss_fn, axes)(own_parameters(state, params), *batch)
        gs, tree = jax.tree.flatten(grads)
        if inner_axis is not None:
            loss, *gs = means([loss, *gs], inner_axis)

        def update() -> Any:
            return tx.update(tree.unflatten(gs), state, params)

        with collectives.inner_axis.set(inner_axis):
            if averages(state):
                (updates, state), (loss,) = collectives.with_riders([loss], axis_name, update)
            else:
                loss, *gs = means([loss, *gs], axis_name)
                updates, state = update()
        return apply_updates(params, updates), state, loss

    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        worker,
        mesh=mesh,
        in_specs=(everywhere, specs, PartitionSpec(axes)),
        out_specs=(everywhere, specs, everywhere),
        axis_names=set(axes),
    )
    compiled = jax.jit(mapped, donate_argnums=(0, 1), out_shardings=(*where, NamedSharding(mesh, everywhere)))

    def step(params: ArrayTree, state: ArrayTree, *batch: Any) -> Any:
        # What was replaced meanwhile, a rate or all of it by a checkpoint, comes from elsewhere.
        params, state = jax.tree.map(placed, (params, state), where)
        return compiled(params, state, split_batch(batch, mesh, axes))

    return step, params, state


def init_on_mesh(tx: Any, params: ArrayTree, mesh: Mesh, axis_name: str) -> Any:
    """A fresh state where it belongs, never whole on one device."""
    shardings = _shardings(jax.eval_shape(tx.init, params), params, mesh, axis_name)
    return jax.jit(tx.init, out_shardings=shardings)(params)


def state_on_mesh(state: ArrayTree, params: ArrayTree, mesh: Mesh, axis_name: str) -> Any:
    """Return the state with every array laid on the mesh as the parameters' layout asks."""
    return jax.tree.map(placed, state, _shardings(state, params, mesh, axis_name))


def _shardings(state: Any, params: Any, mesh: Mesh, axis_name: str) -> Any:
    """Whatever is like a parameter lies as it does, beside the axis of workers if each has its own."""
    paths, leaves, _ = flatten(params)
    workers, whole = mesh.shape[axis_name], NamedSharding(mesh, PartitionSpec())
    for own, x in zip(jax.tree.leaves(of_workers(state)), jax.tree.leaves(state), strict=True):
        if own and x.shape[0] != workers:
            expected = f"expected {workers}, the size of the axis {axis_name!r}"
            raise ValueError(f"num_trainers: found {x.shape[0]}, {expected}")
    like = [p.sharding if is_on_mesh(p, mesh) else whole for p in leaves]

    def of(own: bool, sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(axis_name, *sharding.spec[1:])) if own else sharding

    if all(p is None for p in leaves):
        return jax.tree.map(lambda own: of(own, whole), of_workers(state))
    return jax.tree.map(of, of_workers(state), mirrored(state, paths, leaves, like))


def split_batch(batch: Any, mesh: Mesh, axes: tuple[str, ...]) -> Any:
    """The arrays of a batch, split over the workers of one axis or several."""
    workers = math.prod(mesh.shape[axis] for axis in axes)
    check_leading("the batch", batch, workers, f"dimension that the {workers} workers can share")
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    return jax.tree.map(lambda x: placed(x, sharding), batch)


def check_leading(name: str, tree: Any, n: int, expected: str) -> None:
    """Refuse arrays without a common leading axis that n divides; the error says which is `expected`."""
    size = None
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        shape = jnp.shape(x)
        if not shape or not shape[0] or shape[0] % n or size not in (None, shape[0]):
            others = "" if size in (None, *shape[:1]) else f", as others have {size}"
            found = f"found shape {shape}, expected a leading {expected}{others}"
            raise ArgumentError(f"{name} at {path_name(path)}: {found}")
        size = shape[0]


def on_mesh(params: ArrayTree, mesh: Mesh, axes: tuple[str, ...]) -> Any:
    """Copies of parameters on a mesh: sharded as they are if they are on it, else the same everywhere."""

    def place(path: Any, p: Any) -> Any:
        sharding = p.sharding if is_on_mesh(p, mesh) else NamedSharding(mesh, PartitionSpec())
        for axis in axes:
            if axis in jax.tree.leaves(tuple(sharding.spec)):
                found = f"found a parameter sharded over {axis!r}, expected it whole on every worker"
                raise ValueError(f"at {path_name(path)}: {found}")
        # Even on other devices it may share memory with what it was made from, and would be donated.
        return placed(jnp.copy(p) if isinstance(p, jax.Array) else p, sharding)

    return jax.tree_util.tree_map_with_path(place, params)


def is_on_mesh(x: Any, mesh: Mesh) -> bool:
    """Return whether x is an array that is laid on this mesh."""
    return isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh


def placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array where it is to be; every process has all of it, or it is there already."""
    if isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.sharding == sharding:
        return x
    if isinstance(x, Tracer) or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


@checked(num_trainers=whole(2, error=ArgumentError))
def redistribute(state: ArrayTree, num_trainers: int) -> Any:
    """A state of `dgc_momentum` or `diloco` for another number of workers, before it is placed on their mesh.

    Each worker gets the mean of what the old ones had: the mean of v, which is what has not been sent yet,
    and the mean of u stay what they were. Workers of `diloco` all go to their mean, without the outer step.
    Load a saved state into one for the old number of workers, then redistribute it.

    >>> from paddlejax.distributed import dgc_momentum
    >>> state = dgc_momentum(0.1, 0.9, 0, num_trainers=8, min_numel=2).init(jnp.zeros(2))
    >>> redistribute(state, 4).slots["_dgc_v_"].shape
    (4, 2)
    """

    def of(own: bool, x: Any) -> Any:
        return for_workers(x, num_trainers) if own else x

    return jax.tree.map(of, of_workers(state), state)


def for_workers(slot: Any, workers: int) -> jax.Array:
    """One row per worker, each the mean of the rows there were; unchanged if there are as many already."""
    if slot.shape[0] == workers:
        return slot
    mean = jnp.mean(slot, axis=0, keepdims=True)
    return jnp.tile(mean, (workers, *[1] * (mean.ndim - 1)))


def mesh_of_workers(mesh: Any, axis_name: str, num_trainers: Any) -> Mesh | None:
    """The mesh of several workers, or None for one."""
    if mesh is None:
        devices = jax.device_count()
        if num_trainers == 1:
            return None
        fits = num_trainers in (None, devices)
        require(fits, "num_trainers", num_trainers, f"{devices}, the devices, or a mesh")
        mesh = jax.make_mesh((devices,), (axis_name,), axis_types=(AxisType.Auto,))
    verify(AXIS_NAME, "axis_name", axis_name, {"mesh": mesh})
    workers = mesh.shape[axis_name]
    fits = num_trainers in (None, workers)
    require(fits, "num_trainers", num_trainers, f"{workers}, the size of {axis_name!r}")
    return None if workers == 1 else mesh
