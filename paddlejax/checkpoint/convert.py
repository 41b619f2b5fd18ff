"""Any format into any other, by the endings of the names."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import PathLike, located
from .files import load, read, save, write
from .folders.contents import Folder
from .folders.kinds import found, is_one
from .formats import (
    MAX_BYTES,
    outline_npz,
    read_npz,
    read_safetensors,
    save_npz,
    save_safetensors,
    write_npz,
    write_safetensors,
)
from .layout import Checkpoint, arranged
from .names import OURS

FORMATS = {
    ".pdparams": (read, write),
    ".pdopt": (read, write),
    ".safetensors": (read_safetensors, write_safetensors),
    ".npz": (read_npz, write_npz),
}


def known(path: PathLike) -> str:
    """The ending of a name, if it is that of a format."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{path}: found the ending {suffix!r}, expected one of {', '.join(FORMATS)}")
    return suffix


def read_any(path: PathLike, max_bytes: int | Callable[[], int] = MAX_BYTES) -> Checkpoint:
    """What a file of any of the formats holds; a name with another ending is taken for Paddle's.

    Only a compressed `.npz` asks for `max_bytes`.
    """
    suffix = located(path).suffix
    return (
        read_npz(path, max_bytes) if suffix == ".npz" else FORMATS.get(suffix, FORMATS[".pdparams"])[0](path)
    )


def outline_any(path: PathLike) -> Checkpoint:
    """The same, but what is compressed stays so: see `formats.Unread`."""
    return outline_npz(path) if located(path).suffix == ".npz" else read_any(path)


def save_any(obj: Mapping[Any, Any], path: PathLike, protocol: int) -> None:
    """`save`, in the format that the ending says: what `read_any` reads; the protocol is Paddle's files'."""
    other = {".safetensors": save_safetensors, ".npz": save_npz}.get(Path(path).suffix)
    if other is None:
        save(obj, path, protocol)
    else:
        other(obj, path)


def convert(source: PathLike, target: PathLike, force: bool = False, *, max_bytes: int = MAX_BYTES) -> None:
    """Write a checkpoint in the format that the ending of `target` says, whole or not at all.

    Nothing is lost on the way there and back: values, names, layout, schedulers and all else that is no array
    go along. `target` must not exist unless `force`. Formats: `.pdparams`, `.pdopt`, `.safetensors`, `.npz`.
    `max_bytes` is what a compressed `.npz` may unpack to, as for `load_npz`. `source` may be the folder of a
    large training, an `index.json` or a `.metadata`: a `.pdparams` gets its parameters, a `.pdopt` the state
    of its optimizer under the parameters' structured names, another format all that `load` gives.

    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save({"w": jnp.ones(2)}, os.path.join(folder, "model.pdparams"))
    >>> convert(os.path.join(folder, "model.pdparams"), os.path.join(folder, "model.npz"))
    >>> sorted(os.listdir(folder))
    ['model.npz', 'model.pdparams']
    """
    if not is_one(source):
        known(source)
    into = FORMATS[known(target)][1]
    if Path(target).exists() and not force:
        raise FileExistsError(f"{target}: there is such a file already; force replaces it")
    folder = found(source)
    into(read_any(source, max_bytes) if folder is None else _part(folder, known(target)), target)


def _part(folder: Folder, suffix: str) -> Checkpoint:
    """What a file with this ending gets of a folder."""
    if suffix == ".pdparams":
        return arranged({key: np.asarray(x) for key, x in folder.parameters({}).items()})
    if suffix != ".pdopt":
        return arranged(load(folder.path, return_numpy=True))
    entries, extra, _, lossy = folder.entries(None, None)
    if lossy:
        warnings.warn(f"{folder.path}: {lossy}", stacklevel=3)
    extra = {**extra, "names": {key: key for key in folder.get_state().accumulators}}
    whole = jax.tree.map(lambda x: np.asarray(x) if hasattr(x, "shape") else x, entries)
    return arranged({**whole, OURS: extra})
