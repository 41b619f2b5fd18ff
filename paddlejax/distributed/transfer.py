"""Arrays on the devices of one process or several.

An array of another process is stood for by a ShapeDtypeStruct that says on which device it is. All processes
run the same program and hand over arrays in the same order, each doing its part.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..hyper import ArgumentError


def home(x: Any) -> Any:
    """The device that an array is on, here or in another process; None if it may be anywhere."""
    if not (isinstance(x, jax.ShapeDtypeStruct) or isinstance(x, jax.Array) and x.committed):
        return None
    sharding: Any = x.sharding
    devices = sharding.device_set
    if len(devices) > 1:
        raise ArgumentError(
            f"found an array of shape {x.shape} on {len(devices)} devices, expected one that is on a single "
            "device, as the place of a pipeline's stage is"
        )
    return next(iter(devices))


def is_here(device: Any) -> bool:
    """Return whether a device belongs to this process."""
    return device.process_index == jax.process_index()


def elsewhere(x: Any, device: Any) -> jax.ShapeDtypeStruct:
    """What stands for an array like x on a device of another process."""
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=SingleDeviceSharding(device))


def put(x: Any, device: Any) -> Any:
    """The array on this device: itself if it is there already, what stands for it if that is not here.

    Between two processes both must call it, and then they exchange it.
    """
    source = home(x)
    if source == device:
        return x
    if source is None or source.process_index == device.process_index:
        return jax.device_put(x, device) if is_here(device) else elsewhere(x, device)
    arrived = _exchange(x, source, device) if is_here(source) or is_here(device) else None
    return arrived if is_here(device) else elsewhere(x, device)


def put_tree(tree: Any, device: Any) -> Any:
    """Return the tree with every leaf on this device."""
    return jax.tree.map(lambda x: put(x, device), tree)


def everywhere(x: Any, devices: Sequence[Any]) -> jax.Array:
    """The array in every process that has one of the devices: on the first of those, or where it is."""
    if isinstance(x, jax.Array) and all(map(is_here, devices)):
        return x
    firsts = {d.process_index: d for d in reversed(devices)}
    copies = [put(x, firsts[index]) for index in sorted(firsts)]
    return next(copy for copy in copies if isinstance(copy, jax.Array))


def _exchange(x: Any, source: Any, target: Any) -> Any:
    """Either end of a hand-over; jax.device_put does not reach other processes on CPU."""
    sharding, move = _mover(source, target)
    mine = x if is_here(source) else jax.device_put(jnp.zeros(x.shape, x.dtype), target)
    both = jax.make_array_from_single_device_arrays((2, *x.shape), sharding, [mine[None]])
    return move(both).addressable_data(0)[0]


@functools.cache
def _mover(source: Any, target: Any) -> tuple[NamedSharding, Any]:
    """Return the sharding over two devices and the program that moves an array from one to the other."""
    mesh = Mesh(np.array([source, target]), ("end",))
    spec = PartitionSpec("end")
    move = jax.shard_map(
        lambda x: jax.lax.ppermute(x, "end", [(0, 1)]), mesh=mesh, in_specs=spec, out_specs=spec
    )
    return NamedSharding(mesh, spec), jax.jit(move)
