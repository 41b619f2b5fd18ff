"""What is in a checkpoint file, in numbers."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from . import accumulators
from .convert import read_any
from .files import PathLike
from .layout import is_tensor, leaves, place


class Row(NamedTuple):
    """One array: its parameter, its slot (empty for the parameter itself), and what it holds."""

    name: str
    slot: str
    shape: tuple[int, ...]
    dtype: str
    norm: float  # √Σ|x|², in float64
    nans: int


class Report(NamedTuple):
    """What `inspect` finds in a file."""

    file: str
    size: int  # bytes on the disk
    layout: str
    rows: list[Row]
    others: dict[str, Any]  # all that is no array: schedulers, counters


def inspect(path: PathLike) -> Report:
    """The arrays of a checkpoint with their norms and NaN counts, and whatever else it holds.

    Reads `.pdparams`, `.pdopt`, `.safetensors` and `.npz`; raises CheckpointError as `load` does.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "adam.pdopt")
    >>> save({"w_moment1_0": jnp.array([3.0, 4.0]), "LR_Scheduler": {"last_epoch": 7}}, file)
    >>> inspect(file).rows
    [Row(name='w', slot='moment1', shape=(2,), dtype='float32', norm=5.0, nans=0)]
    >>> inspect(file).others
    {'LR_Scheduler/last_epoch': 7}
    """
    checkpoint = read_any(path)
    key = re.compile(rf"(.+?)_({'|'.join(accumulators.names())})_\d+", re.DOTALL)
    rows: list[Row] = []
    others: dict[str, Any] = {}
    for where, x in leaves(checkpoint.tree, is_tensor):
        array = x.array if is_tensor(x) else x
        if isinstance(array, np.ndarray):
            rows.append(_row(where, array, key))
        else:
            others[place(where)] = array.item() if isinstance(array, np.generic) else array
    return Report(str(path), Path(path).stat().st_size, checkpoint.layout, rows, others)


def _row(where: tuple[Any, ...], x: np.ndarray, accumulator: re.Pattern[str]) -> Row:
    """Return the row of the table for one array: owner, accumulator, shape, norm and number of NaNs."""
    key = accumulator.fullmatch(str(where[-1]))
    slot, name = (key[2], key[1]) if key else ("", str(where[-1]))
    folder = where[:-1]
    if not key and folder[-1:] == ("master_weights",):
        folder, slot = folder[:-1], "master_weights"
    wide = np.abs(x.astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.sqrt(wide @ wide))
    return Row(place((*folder, name)), slot, x.shape, str(x.dtype), norm, int(np.isnan(wide).sum()))
