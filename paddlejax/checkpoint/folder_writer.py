"""`save_checkpoint`: a Unified Checkpoint, written by every process together."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..array_types import ArrayTree
from .atomic import check_free, new_folder
from .errors import PathLike, located
from .files import save
from .folders.contents import NARROW, accumulator_of
from .folders.progress import progress
from .folders.shards import DTYPES
from .folders.unified import INDEX
from .layout import storable
from .names import OURS
from .optimizers import entries_of
from .parameters import keyed

LAYOUTS = ("unified",)
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items() if code != "U16"}


class Shard(NamedTuple):
    """A file and what goes into it, in this order."""

    name: str
    writer: int  # the process that writes it
    arrays: dict[str, Any]


def save_checkpoint(
    folder: PathLike,
    params: ArrayTree,
    state: Any = None,
    *,
    layout: str = "unified",
    max_shard_size: str | int = "5GB",
    names: Mapping[str, str] | None = None,
    schedule: Any = None,
) -> None:
    """Write a new folder that PaddleNLP, ERNIEKit, PaddleFormers and `load_optimizer` go on from.

        model-00001-of-0000N.safetensors            model.safetensors.index.json           KEY
        optimizer-00001-of-0000N.safetensors        optimizer.safetensors.index.json       KEY/moment1_0
        master_weights-00001-of-0000N.safetensors   master_weights.safetensors.index.json  if there are any
        config.json  scheduler.pdparams             the dtype; the schedule, if there is one

    It is a Unified Checkpoint. `params` is a tree of arrays or Parameters, `state` that of a transformation,
    an optimizer object, or None for the parameters alone. KEY is the path in the tree with dots, or the name
    of a Parameter in a bare list; `names`, {KEY: path or name here}, goes before. Paddle's readers know the
    accumulators of Adam, AdamW, Lamb and Momentum; others are written, and read here. What Paddle's folders
    have no place for, such as the rate in force, lies in `paddlejax*` and in the index, which Paddle ignores.
    `schedule`, the `count -> rate` that a transformation was made with, fills scheduler.pdparams.

    `folder` must not exist, or be empty: it appears at once, when all of it is written and on the disk. No
    shard has more than `max_shard_size` bytes ("5GB", "500MiB" or a number), unless one array has. In several
    processes every process calls it and writes shards of its own, to one file system; an array that is spread
    over processes is gathered, one at a time, so the memory of a host holds at most the largest array
    besides. `layout` is "unified"; flex checkpoints are only read.

    ValueError or TypeError, before anything is written, for what no file can hold; FileExistsError.

    >>> import os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "checkpoint-1")
    >>> tx, params = adam(0.1), {"out": {"weight": jnp.ones((2, 1))}}
    >>> save_checkpoint(folder, params, tx.init(params))
    >>> paddle.load(folder)["model"]["out.weight"].tolist()
    [[1.0], [1.0]]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: found {layout!r:.80}, expected {' or '.join(map(repr, LAYOUTS))}")
    most = _bytes(max_shard_size)
    target = located(folder)
    check_free(Path(os.path.realpath(target)))
    parts, scheduler, numbers = _parts(params, state, names, schedule)
    plan = {stem: _shards(stem, arrays, most) for stem, arrays in parts.items() if arrays}
    if state is not None:  # sgd's has no arrays, and is a state all the same
        plan.setdefault("optimizer", [])
    total = sum(x.nbytes for arrays in parts.values() for x in arrays.values())
    with _together(target) as temporary, progress("saving", total) as advance:
        for shards in plan.values():
            for shard in shards:
                _write_shard(temporary, shard, advance)
        _meet("written")
        if jax.process_index() == 0:
            _write_rest(temporary, parts, plan, scheduler, numbers)


def _bytes(size: Any) -> int:
    """A number of bytes, as a user writes it."""
    known = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?I?B)?", size.upper()) if isinstance(size, str) else None
    if known and (known[2] or "") in UNITS | {"B": 1}:
        size = int(float(known[1]) * (UNITS | {"B": 1})[known[2] or ""])
    if type(size) is not int or size < 1:
        expected = 'expected a number of bytes of at least 1, such as "5GB" or "500MiB"'
        raise ValueError(f"max_shard_size: found {size!r:.80}, {expected}")
    return size


# -------------------------------------------------------------------------------- what goes where


def _parts(
    params: Any, state: Any, names: Any, schedule: Any
) -> tuple[dict[str, dict[str, Any]], Any, dict[str, Any]]:
    """The arrays of each part by their names there, the scheduler's state, and numbers of our own."""
    model, keys = keyed(params, names)
    if not model:
        raise ValueError("params: found a tree without arrays, expected at least one")
    parts: dict[str, dict[str, Any]] = {"model": model, "optimizer": {}, "master_weights": {}, OURS: {}}
    entries, numbers = (
        ({}, {}) if state is None else entries_of("save_checkpoint", state, params, None, schedule)[:2]
    )
    scheduler = entries.pop("LR_Scheduler", None)
    masters = entries.pop("master_weights", {})
    for name, x in entries.items():
        owned = accumulator_of(name)
        if name.startswith(f"{OURS}@"):
            parts[OURS][name] = x
        elif owned and owned[0] in keys and hasattr(x, "dtype"):
            parts["optimizer"][f"{keys[owned[0]]}/{owned[2]}"] = x
        else:
            expected = f"expected an accumulator of {', '.join(list(keys)[:6])}"
            raise ValueError(f"state: found {name!r:.80}, {expected}: save_optimizer writes such a state")
    if masters:
        # As Paddle does, with the parameters of 32 bits among them.
        wide = {key: x for key, x in model.items() if x.dtype == np.float32}
        parts["master_weights"] = wide | {keys[name]: x for name, x in masters.items()}
    for stem, arrays in parts.items():
        for key, x in arrays.items():
            storable(x, (stem, key), spread=True)
            if np.dtype(x.dtype) not in CODES:
                raise TypeError(f"save: {stem}/{key} has dtype {x.dtype}, which .safetensors does not have")
    return parts, scheduler, numbers


def _shards(stem: str, arrays: dict[str, Any], most: int) -> list[Shard]:
    """The files of a part: an even share for each process, none larger than it may be.

    All processes find the same, without a word to each other.
    """
    processes = jax.process_count()
    load, own = [0] * processes, [dict[str, Any]() for _ in range(processes)]
    for key, x in arrays.items():
        writer = min(range(processes), key=lambda p: load[p])
        load[writer] += x.nbytes
        own[writer][key] = x
    files: list[tuple[int, dict[str, Any]]] = []
    for process, mine in enumerate(own):
        size = most + 1
        for key, x in mine.items():
            if size + x.nbytes > most:
                files.append((process, {}))
                size = 0
            files[-1][1][key] = x
            size += x.nbytes
    n = len(files)
    return [
        Shard(f"{stem}-{i:05d}-of-{n:05d}.safetensors", process, found)
        for i, (process, found) in enumerate(files, 1)
    ]


# -------------------------------------------------------------------------------- writing


@contextmanager
def _together(target: Path) -> Iterator[Path]:
    """The new folder, made by process 0, whose name all processes learn; it is there when all leave."""
    if jax.process_count() == 1:
        with new_folder(target) as temporary:
            yield temporary
        return
    if jax.process_index() == 0:
        with new_folder(target) as temporary:
            _tell(temporary.name)
            yield temporary
    else:
        yield Path(os.path.realpath(target)).parent / _tell("")  # `target` may be a link, to an empty folder
    _meet("renamed")


def _tell(name: str) -> str:
    """What process 0 says, on every process: the name of a file."""
    said = np.zeros(256, np.uint8)
    said[: len(name.encode())] = np.frombuffer(name.encode(), np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(said), np.uint8)
    return heard.tobytes().rstrip(b"\0").decode()


def _meet(where: str) -> None:
    """Wait for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"paddlejax.save_checkpoint {where}")


def _write_shard(folder: Path, shard: Shard, advance: Callable[[int], None]) -> None:
    """Write one file, an array at a time; every process takes part in gathering what is spread."""
    mine = shard.writer == jax.process_index()
    listed: dict[str, Any] = {"__metadata__": {"format": "np"}}
    at = 0
    for key, x in shard.arrays.items():
        size = math.prod(x.shape) * np.dtype(x.dtype).itemsize
        listed[key] = {
            "dtype": CODES[np.dtype(x.dtype)],
            "shape": [*x.shape],
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(listed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _opened(folder / shard.name if mine else None) as file:
        if file is not None:
            file.write(struct.pack("<Q", len(text)) + text)
        for x in shard.arrays.values():
            spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
            if spread:
                x = multihost_utils.process_allgather(x, tiled=True)
            if file is not None:
                whole = np.ascontiguousarray(np.asarray(x))
                file.write(whole.reshape(-1).view(np.uint8).data)
            advance(x.nbytes)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO | None]:
    """A new file, or nothing to write to."""
    if path is None:
        yield None
        return
    with path.open("xb") as file:
        yield file


def _write_rest(
    folder: Path,
    parts: dict[str, dict[str, Any]],
    plan: dict[str, list[Shard]],
    scheduler: Any,
    numbers: dict[str, Any],
) -> None:
    """The small files, the indices last: without them nobody takes the shards for a checkpoint."""
    narrow = {str(x.dtype) for x in parts["model"].values() if x.dtype in NARROW}
    (folder / "config.json").write_text(json.dumps({"dtype": min(narrow, default="float32")}) + "\n")
    if scheduler is not None:
        save(scheduler, folder / "scheduler.pdparams")
    for stem, shards in plan.items():
        where = {key: shard.name for shard in shards for key in shard.arrays}
        index: dict[str, Any] = {
            "metadata": {"total_size": sum(x.nbytes for x in parts[stem].values())},
            "weight_map": {key: where[key] for key in parts[stem]},
        }
        if stem == "optimizer":
            index |= {"master_weights": bool(parts["master_weights"]), OURS: numbers}
        (folder / f"{stem}{INDEX}").write_text(json.dumps(index, indent=4) + "\n")
