"""What is in a checkpoint file, in numbers."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..array_types import Stored
from . import accumulators
from .budget import Budget
from .convert import outline_any
from .errors import CheckpointError, PathLike, Refused
from .folders.contents import Folder, on_disk
from .folders.kinds import found as found_folder
from .formats import Unread
from .layout import is_tensor, leaves, place

CHUNK = 2**20  # elements of an array that are looked at together


class Row(NamedTuple):
    """One array: its parameter, its slot (empty for the parameter itself), and what it holds."""

    name: str
    slot: str
    shape: tuple[int, ...]
    dtype: str
    norm: float | None  # √Σ|x|², in float64; None of what is compressed
    nans: int | None


class Report(NamedTuple):
    """What `inspect` finds in a file."""

    file: str
    size: int  # bytes on the disk
    layout: str
    rows: list[Row]
    others: dict[str, Any]  # all that is no array: schedulers, counters


def inspect(path: PathLike) -> Report:
    """The arrays of a checkpoint with their norms and NaN counts, and whatever else it holds.

    Reads `.pdparams`, `.pdopt`, `.safetensors` and `.npz`, and the folder, the `index.json` or the
    `.metadata` of a large training; raises CheckpointError as `load` does. Nothing is unpacked: arrays in a
    compressed `.npz` have no norm and no count of NaNs. The norm of x is √Σ|x|².

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "adam.pdopt")
    >>> save({"w_moment1_0": jnp.array([3.0, 4.0]), "LR_Scheduler": {"last_epoch": 7}}, file)
    >>> inspect(file).rows
    [Row(name='w', slot='moment1', shape=(2,), dtype='float32', norm=5.0, nans=0)]
    >>> inspect(file).others
    {'LR_Scheduler/last_epoch': 7}
    """
    if (folder := found_folder(path)) is not None:
        return _of_folder(path, folder)
    checkpoint = outline_any(path)
    size = Path(path).stat().st_size
    key = re.compile(rf"(.+?)_({'|'.join(accumulators.names())})_\d+", re.DOTALL)
    rows: list[Row] = []
    others: dict[str, Any] = {}
    budget, known = Budget(size), dict[int, tuple[float | None, int | None]]()
    try:
        for where, x in leaves(checkpoint.tree, is_tensor):
            array = x.array if is_tensor(x) else x
            if isinstance(array, np.ndarray):
                if id(array) not in known:  # one array may stand in many places
                    known[id(array)] = (None, None) if isinstance(array, Unread) else _numbers(array)
                rows.append(_row(where, array, key, *known[id(array)]))
                budget.charge_text(rows[-1].name)
                budget.charge(400)
            else:
                others[named := place(where)] = array.item() if isinstance(array, np.generic) else array
                budget.charge_text(named)
                budget.charge(120)
    except Refused:
        found = "found more entries, or longer names, than its size allows to list"
        raise CheckpointError(f"{path}: {found}; load reads it") from None
    return Report(str(path), size, checkpoint.layout, rows, others)


def _of_folder(path: PathLike, folder: Folder) -> Report:
    """The arrays of a folder by their parameters, one of them in memory at a time."""
    rows: list[Row] = []
    others: dict[str, Any] = {}
    for (part, *keys), x in leaves(folder.get_tree(), lambda x: isinstance(x, Stored | np.ndarray)):
        if not isinstance(x, Stored | np.ndarray):
            others[place((part, *keys))] = x
            continue
        slots = {"optimizer": re.sub(r"_\d+$", "", str(keys[-1])) if keys else "", "master_weights": part}
        name = str(keys[0]) if keys else part
        rows.append(Row(name, slots.get(part, ""), x.shape, str(x.dtype), *_numbers(np.asarray(x))))
    return Report(str(path), on_disk(folder.path), folder.kind, rows, others)


def _row(
    where: tuple[Any, ...], x: np.ndarray, accumulator: re.Pattern[str], norm: float | None, nans: int | None
) -> Row:
    """Return the row of the table for one array: owner, accumulator, shape, norm and number of NaNs."""
    key = accumulator.fullmatch(str(where[-1]))
    slot, name = (key[2], key[1]) if key else ("", str(where[-1]))
    folder = where[:-1]
    if not key and folder[-1:] == ("master_weights",):
        folder, slot = folder[:-1], "master_weights"
    return Row(place((*folder, name)), slot, x.shape, str(x.dtype), norm, nans)


def _numbers(x: np.ndarray) -> tuple[float, int]:
    """The norm of an array and how many NaNs it has, a part of it at a time."""
    square, nans, flat = 0.0, 0, x.ravel(order="K")
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            wide = np.abs(part.astype(np.complex128 if jnp.iscomplexobj(x) else np.float64))
            square += float(wide @ wide)
            nans += int(np.isnan(wide).sum())
        return float(np.sqrt(square)), nans
