"""The same checkpoints as `.safetensors` and `.npz`."""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .atomic import replacing
from .errors import Refused, opened
from .files import PathLike, handed_out
from .layout import Checkpoint, arranged
from .outline import KEY, filled, outlined
from .unpickle import DTYPES

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


def load_npz(path: PathLike, return_numpy: bool = False, keep_name_table: bool = False) -> dict[Any, Any]:
    """What an `.npz` file holds, as `load` returns it; a file from elsewhere is a flat dict of arrays.

    Raises CheckpointError as `load` does; pickled arrays are refused.
    """
    return handed_out(read_npz(path), return_numpy, keep_name_table)


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
    with replacing(path) as file:
        file.write(data)


def read_safetensors(path: PathLike) -> Checkpoint:
    """Return the checkpoint in a .safetensors file, or what arrays there are in a foreign one."""
    library = _safetensors()
    with opened(path) as (file, _), library.safe_open(path, "np") as tensors:
        arrays = {key: _checked(key, tensors.get_tensor(key)) for key in tensors.keys()}  # noqa: SIM118
        return filled((tensors.metadata() or {}).get(KEY), arrays)


def _checked(key: str, x: np.ndarray) -> np.ndarray:
    """Return an array of a known dtype; refuse others."""
    if x.dtype != jnp.bfloat16 and x.dtype.str[1:] not in DTYPES:
        raise Refused(f"{key!r} has dtype {x.dtype}, expected bfloat16 or one of {', '.join(DTYPES)}")
    return x


def write_npz(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a checkpoint as an .npz file: arrays in it, all else as JSON in an array of bytes."""
    arrays, text = outlined(checkpoint)
    for key in arrays:
        if (size := len(key.encode())) > LONGEST:
            raise ValueError(f"save_npz: the key {key[:40]}... has {size} bytes, expected {LONGEST} at most")
    arrays[KEY] = np.frombuffer(text.encode(), np.uint8)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, x in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                x = x.view(np.uint16) if x.dtype == jnp.bfloat16 else x
                np.lib.format.write_array(member, x, allow_pickle=False)


def read_npz(path: PathLike) -> Checkpoint:
    """Return the checkpoint in an .npz file; a file that unpacks to far more than its size is refused."""
    with opened(path) as (file, size), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        plain = all(m.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members)
        # Deflate shrinks by a factor of 1032 at most.
        if not plain or sum(m.file_size for m in members) > 1040 * size:
            raise Refused("it unpacks to more than its size allows, or in an unknown way")
        arrays = {m.filename.removesuffix(".npy"): _array(m.filename, archive.read(m)) for m in members}
        outline = arrays.pop(KEY, None)
        return filled(None if outline is None else outline.tobytes().decode(), arrays)


def _array(name: str, data: bytes) -> np.ndarray:
    """The array in an `.npy` file, which may claim any size and any dtype."""
    file = io.BytesIO(data)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if header is None:
        raise Refused(f"{name!r} is of an unknown version")
    shape, fortran, dtype = header(file)
    if dtype.str[1:] not in DTYPES or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Refused(f"{name!r} says it is of shape {shape} and dtype {dtype}, and is not")
    x = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return x.astype(dtype.newbyteorder("="), copy=False)
