"""What PipelineOptimizer is given, checked before anything is built from it."""

from typing import Any

import jax
import jax.numpy as jnp

from ..hyper import (
    COUNT,
    FLAG,
    ArgumentError,
    Check,
    Declaration,
    Must,
    each,
    given,
    instance,
    one_of,
    require,
    verify,
    whole,
)
from ..optimizer.lbfgs import LBFGS
from ..optimizer.optimizer import Optimizer
from ..optimizer.wrappers import Wrapper
from ..trees import path_name
from ..wrap import is_transformation
from .pipeline_schedule import SCHEDULES, stage_of

MODES = ("sync", "async")


STAGES = "a list of stage functions, the last of which returns the loss"
STEPPED = "a transformation such as adam(0.001), or an optimizer object such as optimizer.Adam(...)"


def _choice(*choices: str) -> tuple[Check, ...]:
    return instance(str, " or ".join(choices)), one_of(*choices)


def _can_step(x: Any) -> bool:
    return not isinstance(x, Wrapper | LBFGS) and (isinstance(x, Optimizer) or is_transformation(x))


SETTINGS: dict[str, Declaration] = {
    "optimizer": (given(STEPPED), Must(_can_step, STEPPED)),
    "cut_list": (
        given(STAGES),
        instance(list | tuple, STAGES),
        Must(len, STAGES, ArgumentError),
        each(Must(callable, STAGES)),
    ),
    "queue_size": COUNT,
    "num_microbatches": COUNT,
    "sync_steps": Must(
        lambda n: type(n) is int and (n > 0 or n == -1), "a positive int, or -1 for never", ArgumentError
    ),
    "start_cpu_core_id": whole(0, error=ArgumentError),
    "schedule": _choice(*SCHEDULES),
    "recompute": FLAG,
    "mode": (
        *_choice(*MODES),
        Must(
            lambda mode, optimizer: mode == "sync" or not isinstance(optimizer, Optimizer),
            "'sync' with an optimizer object",
            ArgumentError,
        ),
    ),
}


def checked_places(stages: int, place_list: Any, concurrency_list: Any) -> list[tuple[Any, ...]]:
    """The devices of every stage."""
    sections = 2 * stages - 1
    concurrency = _per_section("concurrency_list", concurrency_list, sections, "numbers")
    for i, c in enumerate(concurrency or []):
        verify(COUNT, f"concurrency_list: entry {i}", c)
    places = _per_section("place_list", place_list, sections, "devices")
    if places is None:
        devices = jax.devices()
        places = [devices[stage_of(i, stages) % len(devices)] for i in range(sections)]
    places = [_devices(i, place) for i, place in enumerate(places)]
    for i, place in enumerate(places):
        if concurrency is not None and len(place) > 1:
            devices = f"{len(place)}, the number of devices in entry {i} of place_list"
            require(concurrency[i] == len(place), f"concurrency_list: entry {i}", concurrency[i], devices)
    for i in range(stages - 1):
        other = sections - 1 - i
        if places[i] != places[other]:
            raise ArgumentError(
                f"place_list: entry {i} is {_text(places[i])} and entry {other} {_text(places[other])}, "
                "expected one place: they are forward and backward of one stage and share its parameters"
            )
    return places[:stages]


def _per_section(name: str, given: Any, sections: int, what: str) -> list[Any] | None:
    if given is None:
        return None
    require(isinstance(given, list | tuple), name, given, f"a list of {what}", TypeError)
    expected = f"{sections} entries: a cut_list of k={(sections + 1) // 2} makes 2k-1 sections"
    require(len(given) == sections, name, given, expected)
    return list(given)


DEVICE = instance(jax.Device, "a device such as jax.devices()[0], or a tuple of them")


def _devices(i: int, place: Any) -> tuple[Any, ...]:
    devices = place if isinstance(place, tuple) else (place,)
    for d in devices:
        verify(DEVICE, f"place_list: entry {i}", d)
    require(
        devices and len(set(devices)) == len(devices), f"place_list: entry {i}", place, "different devices"
    )
    return devices


def _text(place: tuple[Any, ...]) -> str:
    return str(place[0]) if len(place) == 1 else f"({', '.join(map(str, place))})"


def checked_micro_batches(micro_batches: Any, count: int) -> list[tuple[Any, Any]]:
    """`count` pairs of equal shapes and dtypes."""
    if not isinstance(micro_batches, list | tuple):
        raise TypeError(
            f"micro_batches: found {type(micro_batches).__name__}, expected a list of pairs (x, y)"
        )
    require(len(micro_batches) == count, "micro_batches", len(micro_batches), f"num_microbatches, {count}")
    for j, pair in enumerate(micro_batches):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError(f"micro_batches: entry {j} is a {type(pair).__name__}, expected a pair (x, y)")
    first, *others = [
        _leaves(f"micro_batches: entry {j}", tuple(pair)) for j, pair in enumerate(micro_batches)
    ]
    for j, found in enumerate(others, start=1):
        if found.keys() != first.keys():
            raise ArgumentError(
                f"micro_batches: entry {j} holds {', '.join(found)}, expected {', '.join(first)}, as entry 0"
            )
        for name, x in found.items():
            if (x.shape, x.dtype) != (first[name].shape, first[name].dtype):
                expected = f"shape {first[name].shape} and dtype {first[name].dtype}"
                raise ArgumentError(
                    f"micro_batches: entry {j} has {name} of shape {x.shape} and dtype {x.dtype}, expected "
                    f"{expected}, as entry 0: their gradients are averaged"
                )
    return [tuple(pair) for pair in micro_batches]


def split_batch(x: Any, y: Any, count: int) -> list[tuple[Any, Any]]:
    """A batch as `count` micro-batches, cut along the leading axis of every array."""
    leaves = _leaves("the batch", (x, y))
    sizes = {name: leaf.shape[0] if leaf.ndim else None for name, leaf in leaves.items()}
    for name, size in sizes.items():
        require(size is not None, f"the batch's {name}", leaves[name], "an array with a leading batch axis")
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "no arrays"
        raise ArgumentError(f"the batch: found {found}, expected one number of examples throughout")
    size = next(iter(sizes.values())) or 0
    fits = size and size % count == 0
    require(fits, "the batch's examples", size, f"a multiple of num_microbatches, {count}")
    part = size // count
    return [jax.tree.map(lambda a, j=j: a[j * part : (j + 1) * part], (x, y)) for j in range(count)]


def _leaves(what: str, pair: tuple[Any, Any]) -> dict[str, Any]:
    leaves = {}
    for name, tree in zip("xy", pair, strict=True):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            full = f"{name}/{path_name(path)}" if path else name
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                raise TypeError(f"{what} has {full} of type {type(leaf).__name__}, expected an array")
            leaves[full] = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    return leaves


def check_stages(what: str, trees: Any, stages: int) -> None:
    """Refuse what is not one tree per stage."""
    fits = isinstance(trees, list | tuple) and len(trees) == stages
    found = f"{len(trees)} entries" if isinstance(trees, list | tuple) else type(trees).__name__
    if not fits:
        raise ArgumentError(f"{what}: found {found}, expected a list of {stages} trees, one for each stage")


def check_stage_params(what: str, params: Any, stages: int) -> list[Any]:
    """One tree per stage of real floating arrays, none of which is in two stages."""
    check_stages(what, params, stages)
    where: dict[int, tuple[Any, str]] = {}
    for path, p in jax.tree_util.tree_flatten_with_path(list(params))[0]:
        name = path_name(path)
        if not hasattr(p, "dtype") or not jnp.issubdtype(p.dtype, jnp.floating):
            found = f"dtype {p.dtype}" if hasattr(p, "dtype") else f"type {type(p).__name__}"
            raise TypeError(f"{what}: at {name} found a parameter of {found}, expected a real floating array")
        stage, other = where.setdefault(id(p), (path[0], name))
        if stage != path[0]:
            raise ArgumentError(
                f"{what}: {other} and {name} are one array, but stages cannot share a parameter: it lives in "
                "one place; for two parameters that start alike pass a copy"
            )
    return list(params)
