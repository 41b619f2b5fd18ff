"""What PipelineOptimizer is given, checked before anything is built from it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..average import check_steps
from ..hyper import ArgumentError
from ..trees import path_name
from .pipeline_schedule import SCHEDULES, stage_of

MODES = ("sync", "async")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
    if value not in choices:
        raise ArgumentError(f"{name}: found {value!r}, expected one of {', '.join(choices)}")


def check_settings(
    queue_size: Any,
    sync_steps: Any,
    start_cpu_core_id: Any,
    num_microbatches: Any,
    schedule: Any,
    recompute: Any,
) -> None:
    """The numbers and choices that stand for themselves."""
    check_steps("queue_size", queue_size)
    check_steps("num_microbatches", num_microbatches)
    if type(sync_steps) is not int or sync_steps < 1 and sync_steps != -1:
        raise ArgumentError(f"sync_steps: found {sync_steps!r}, expected a positive int, or -1 for never")
    if type(start_cpu_core_id) is not int or start_cpu_core_id < 0:
        raise ArgumentError(f"start_cpu_core_id: found {start_cpu_core_id!r}, expected an int, 0 or more")
    check_choice("schedule", schedule, SCHEDULES)
    if not isinstance(recompute, bool):
        raise TypeError(f"recompute: found {recompute!r}, expected True or False")


def checked_functions(cut_list: Any) -> list[Any]:
    """The stage functions."""
    expected = "expected a list of stage functions, the last of which returns the loss"
    if cut_list is None:
        raise ArgumentError(f"cut_list is not set: found None, {expected}")
    if not isinstance(cut_list, list | tuple):
        raise TypeError(f"cut_list: found {type(cut_list).__name__}, {expected}")
    if not cut_list:
        raise ArgumentError(f"cut_list: found no entries, {expected}")
    for i, f in enumerate(cut_list):
        if not callable(f):
            raise TypeError(f"cut_list: entry {i} is {f!r}, {expected}")
    return list(cut_list)


def checked_places(stages: int, place_list: Any, concurrency_list: Any) -> list[tuple[Any, ...]]:
    """The devices of every stage."""
    sections = 2 * stages - 1
    concurrency = _per_section("concurrency_list", concurrency_list, sections, "numbers")
    for i, c in enumerate(concurrency or []):
        if type(c) is not int or c < 1:
            raise ArgumentError(f"concurrency_list: entry {i} is {c!r}, expected a positive int")
    places = _per_section("place_list", place_list, sections, "devices")
    if places is None:
        devices = jax.devices()
        places = [devices[stage_of(i, stages) % len(devices)] for i in range(sections)]
    places = [_devices(i, place) for i, place in enumerate(places)]
    for i, place in enumerate(places):
        if concurrency is not None and len(place) > 1 and concurrency[i] != len(place):
            raise ArgumentError(
                f"concurrency_list: entry {i} is {concurrency[i]}, expected {len(place)}, the number of "
                f"devices in entry {i} of place_list"
            )
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
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name}: found {type(given).__name__}, expected a list of {what}")
    if len(given) != sections:
        stages = (sections + 1) // 2
        raise ArgumentError(
            f"{name}: found {len(given)} entries, expected {sections}: a cut_list of k={stages} makes 2k-1 "
            "sections"
        )
    return list(given)


def _devices(i: int, place: Any) -> tuple[Any, ...]:
    devices = place if isinstance(place, tuple) else (place,)
    for d in devices:
        if not isinstance(d, jax.Device):
            raise TypeError(
                f"place_list: entry {i} holds {d!r}, expected a device such as jax.devices()[0], or a tuple"
            )
    if len(set(devices)) != len(devices) or not devices:
        found = "one device twice" if devices else "no device"
        raise ArgumentError(f"place_list: entry {i} holds {found}, expected different devices")
    return devices


def _text(place: tuple[Any, ...]) -> str:
    return str(place[0]) if len(place) == 1 else f"({', '.join(map(str, place))})"


def checked_micro_batches(micro_batches: Any, count: int) -> list[tuple[Any, Any]]:
    """`count` pairs of equal shapes and dtypes."""
    if not isinstance(micro_batches, list | tuple):
        raise TypeError(
            f"micro_batches: found {type(micro_batches).__name__}, expected a list of pairs (x, y)"
        )
    if len(micro_batches) != count:
        raise ArgumentError(f"micro_batches: found {len(micro_batches)}, expected num_microbatches, {count}")
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
        if size is None:
            raise ArgumentError(f"the batch: {name} is a scalar, expected an array with a leading batch axis")
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "no arrays"
        raise ArgumentError(f"the batch: found {found}, expected one number of examples throughout")
    size = next(iter(sizes.values()))
    if not size or size % count:
        raise ArgumentError(
            f"the batch: found {size} examples, expected a multiple of num_microbatches, {count}"
        )
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


def check_stage_params(what: str, params: Any, stages: int) -> list[Any]:
    """One tree per stage of real floating arrays, none of which is in two stages."""
    if not isinstance(params, list | tuple) or len(params) != stages:
        found = f"{len(params)} entries" if isinstance(params, list | tuple) else type(params).__name__
        raise ArgumentError(f"{what}: found {found}, expected a list of {stages} trees, one for each stage")
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
