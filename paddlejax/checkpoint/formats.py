"""The same checkpoints as `.safetensors` and `.npz`."""

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from .atomic import replacing
from .budget import ARRAY, Budget
from .errors import PathLike, Refused, check_reader, listed, opened, shown
from .files import handed_out
from .layout import Checkpoint, arranged
from .outline import KEY, filled, outlined
from .pickled import DTYPES

MAX_BYTES = 10**9  # what a compressed file unpacks to, unless the caller says more
HEADER = 2**14  # bytes of an array that its header is among: NumPy reads none beyond 10,000
ENTRY = 2000  # bytes: what an array of a .safetensors file costs, which takes 60 in the file
HONEST, PARSED = 512, 12  # bytes that no header of ours has, and what each beyond costs
LONGEST = 2**16 - 1 - len(".npy")  # bytes in the name of an array in a zip


def save_safetensors(obj: Mapping[Any, Any], path: PathLike) -> None:
    """Write what `save` takes as a `.safetensors` file, whole or not at all.

    Nested arrays get keys such as `master_weights/w`; what is no array (`LR_Scheduler`, tensor names, the
    nesting) stands in the file's metadata, under `paddlejax`, so that `load_safetensors` gives back
    everything. bfloat16 is stored as such. Needs `pip install "paddlejax[formats]"`.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "state.safetensors")
    >>> save_safetensors({"w_moment_0": jnp.ones(2)}, file)
    >>> load_safetensors(file)
    {'w_moment_0': Array([1., 1.], dtype=float32)}
    """
    write_safetensors(arranged(obj), path)


def load_safetensors(
    path: PathLike, return_numpy: bool = False, keep_name_table: bool = False
) -> dict[Any, Any]:
    """What a `.safetensors` file holds, as `load` returns it; a file from elsewhere is a flat dict of arrays.

    Raises CheckpointError as `load` does. Needs `pip install "paddlejax[formats]"`.
    """
    return handed_out(read_safetensors(path), return_numpy, keep_name_table)


def save_npz(obj: Mapping[Any, Any], path: PathLike) -> None:
    """Write what `save` takes as an `.npz` file, whole or not at all.

    Nested arrays get keys such as `master_weights/w`; what is no array (`LR_Scheduler`, tensor names, the
    nesting) is a JSON text in the uint8 array `paddlejax`. bfloat16, which `.npz` does not have, is stored as
    its bits in uint16 and marked in that text.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "state.npz")
    >>> save_npz({"w_moment_0": jnp.ones(2), "LR_Scheduler": {"last_epoch": 3}}, file)
    >>> load_npz(file)
    {'w_moment_0': Array([1., 1.], dtype=float32), 'LR_Scheduler': {'last_epoch': 3}}
    """
    write_npz(arranged(obj), path)


def load_npz(
    path: PathLike,
    return_numpy: bool = False,
    keep_name_table: bool = False,
    *,
    max_bytes: int = MAX_BYTES,
) -> dict[Any, Any]:
    """What an `.npz` file holds, as `load` returns it; a file from elsewhere is a flat dict of arrays.

    Raises CheckpointError as `load` does; pickled arrays, and two arrays of one name, are refused. A
    compressed file says how large its arrays are; if they have more than `max_bytes` (1 GB) together, it is
    refused before anything is unpacked.
    """
    if type(max_bytes) is not int or max_bytes < 0:
        raise ValueError(f"load_npz's max_bytes: found {max_bytes!r:.80}, expected an int of at least 0")
    return handed_out(read_npz(path, max_bytes), return_numpy, keep_name_table)


def _safetensors() -> Any:
    """Return the library; it is imported only when a file needs it."""
    try:
        import safetensors.numpy
    except ImportError as e:
        raise ImportError('.safetensors needs: pip install "paddlejax[formats]"') from e
    return safetensors


def write_safetensors(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a checkpoint as a .safetensors file: arrays in it, all else as JSON in its metadata."""
    library = _safetensors()
    arrays, text = outlined(checkpoint)
    for key, x in arrays.items():
        if x.dtype == np.complex128:
            raise TypeError(f"save_safetensors: {key} has dtype complex128, which the format does not have")
    data = library.numpy.save(arrays, {"format": "np", KEY: text})
    _check("save_safetensors", arrays, text, len(data), ENTRY)
    with replacing(path) as file:
        file.write(data)


def read_safetensors(path: PathLike) -> Checkpoint:
    """Return the checkpoint in a .safetensors file, or what arrays there are in a foreign one."""
    library = _safetensors()
    with opened(path) as (file, size):
        check_reader(file, "load_safetensors")
        with library.safe_open(path, "np") as tensors:
            budget, keys = Budget(size), tensors.keys()
            budget.charge(ENTRY * len(keys))
            arrays = {key: _checked(key, tensors.get_tensor(key)) for key in keys}
            return filled((tensors.metadata() or {}).get(KEY), arrays, budget)


def _checked(key: str, x: np.ndarray) -> np.ndarray:
    """Return an array of a known dtype; refuse others."""
    if x.dtype != jnp.bfloat16 and x.dtype.str[1:] not in DTYPES:
        raise Refused(f"{shown(key)} has dtype {x.dtype}, expected bfloat16 or one of {', '.join(DTYPES)}")
    return x


def write_npz(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a checkpoint as an .npz file: arrays in it, all else as JSON in an array of bytes."""
    arrays, text = outlined(checkpoint)
    for key in arrays:
        if (size := len(key.encode())) > LONGEST:
            raise ValueError(f"save_npz: the key {key[:40]}... has {size} bytes, expected {LONGEST} at most")
    members = {**arrays, KEY: np.frombuffer(text.encode(), np.uint8)}
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for key, x in members.items():
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                    x = x.view(np.uint16) if x.dtype == jnp.bfloat16 else x
                    np.lib.format.write_array(member, x, allow_pickle=False)
        _check("save_npz", arrays, text, file.tell(), ARRAY)


def _check(what: str, arrays: dict[str, np.ndarray], text: str, size: int, each: int) -> None:
    """Raise if a file of this size could not be read back."""
    try:
        budget = Budget(size)
        budget.charge(each * (len(arrays) + 1))
        filled(text, arrays, budget)
    except Refused as e:
        raise ValueError(f"{what}: the file could not be read back: {e}") from None


def unpacked(template: Iterable[Any]) -> int:
    """What a file for these arrays may unpack to: four times as much, as what does not fit is to be told."""
    return 2**24 + 4 * sum(math.prod(np.shape(x)) * max(8, np.dtype(x.dtype).itemsize) for x in template)


class Unread(np.ndarray):
    """Stands for an array that was not unpacked: its shape and dtype, and zeros that take no memory."""


def read_npz(path: PathLike, max_bytes: int | Callable[[], int] = MAX_BYTES) -> Checkpoint:
    """Return the checkpoint in an .npz file; one that unpacks to more than `max_bytes` is refused."""
    return _read_npz(path, lambda: max_bytes if isinstance(max_bytes, int) else max_bytes())


def outline_npz(path: PathLike) -> Checkpoint:
    """Return the same without unpacking: compressed arrays are `Unread`, stored ones are read."""
    return _read_npz(path, None)


def _read_npz(path: PathLike, limit: Callable[[], int] | None) -> Checkpoint:
    """The checkpoint in an .npz file; without a limit compressed arrays stay packed."""
    with opened(path) as (file, size):
        check_reader(file, "load_npz")
        return _from_zip(file, size, limit)


def _from_zip(file: BinaryIO, size: int, limit: Callable[[], int] | None) -> Checkpoint:
    with zipfile.ZipFile(file) as archive:
        members, budget = archive.infolist(), Budget(size)
        packed = [m for m in members if m.compress_type == zipfile.ZIP_DEFLATED]
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
            raise Refused("it is packed in an unknown way")
        if sum(m.compress_size for m in members) > size or any(
            m.compress_type == zipfile.ZIP_STORED and m.compress_size != m.file_size for m in members
        ):
            raise Refused("its arrays claim more bytes than it has")
        unpacked = sum(m.file_size for m in packed)
        if packed and limit is not None and unpacked > (most := limit()):
            raise Refused(
                f"it unpacks to {unpacked} bytes, expected at most {most}; load_npz's max_bytes allows more"
            )
        arrays: dict[str, np.ndarray] = {}
        for m in members:
            name = m.filename.removesuffix(".npy")
            if name in arrays:
                raise Refused(f"it has two arrays called {shown(name)}")
            budget.charge(ARRAY)
            whole = limit is not None or m.compress_type == zipfile.ZIP_STORED or name == KEY
            if limit is None and name == KEY:  # the outline is read in any case, in three forms
                budget.charge(3 * m.file_size)
            with archive.open(m) as stream:
                data = stream.read(m.file_size if whole else min(HEADER, m.file_size))
            # A header is a Python expression, of which a packed one may have much: parsing takes its time.
            budget.charge(PARSED * max(0, int.from_bytes(data[8:10], "little") - HONEST))
            arrays[name] = _array(name, data, m.file_size, whole)
        outline = arrays.pop(KEY, None)
        return filled(None if outline is None else outline.tobytes().decode(), arrays, budget)


def _array(name: str, data: bytes, size: int, whole: bool) -> np.ndarray:
    """The array in an `.npy` file of this size, which may claim any shape and dtype, or in its start."""
    file = io.BytesIO(data)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if header is None:
        raise Refused(f"{shown(name)} is of an unknown version")
    shape, fortran, dtype = header(file)
    start = file.tell()
    if dtype.str[1:] not in DTYPES or math.prod(shape) * dtype.itemsize != size - start:
        raise Refused(
            f"{shown(name)} says it is of a shape ({listed(shape)}) and of dtype {dtype}, and is not"
        )
    if not whole:
        stand_in = np.broadcast_to(np.zeros((), dtype.newbyteorder("=")), shape)
        return stand_in.view(Unread)
    x = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    return x.astype(dtype.newbyteorder("="), copy=False)
