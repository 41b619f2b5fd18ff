"""Arrays in files: where each lies, and how a part of it is read from a memory map.

A `.safetensors` is 8 bytes with the length of its header, the header (JSON), and the bytes of the arrays. The
header is checked against the file before any array is read: an array that is out of the file, that overlaps
another, or whose shape does not fit its bytes is refused.
"""

import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...array_types import Stored
from ..budget import Budget
from ..errors import CheckpointError, Refused, opened, shown
from ..pickled import DIMENSIONS, LENGTH

HEADER = 100_000_000  # bytes of a header; the safetensors library reads none beyond
# PaddleNLP writes the bits of bfloat16 as U16, which Paddle has no tensors of.
DTYPES = {
    "BOOL": "b1", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "U8": "u1", "U32": "u4", "U64": "u8",
    "F16": "f2", "F32": "f4", "F64": "f8", "C64": "c8", "BF16": jnp.bfloat16, "U16": jnp.bfloat16,
}  # fmt: skip


class Mapped(Stored):
    """An array whose bytes are a stretch of a file."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: Any, fortran: bool = False):
        self.path, self.offset, self.shape, self.fortran = path, offset, shape, fortran
        self._in_file = np.dtype(dtype)
        self.dtype = self._in_file.newbyteorder("=")

    def __getitem__(self, index: Any) -> np.ndarray:
        index = whole(index, self.shape)
        start, stop, _ = index[0].indices(self.shape[0]) if index else (0, 0, 1)
        shape, offset = self.shape, self.offset
        if index and not self.fortran and start < stop:  # only its rows are mapped
            offset += start * math.prod(shape[1:]) * self._in_file.itemsize
            shape, index = (stop - start, *shape[1:]), (slice(None), *index[1:])
        if not math.prod(shape):
            return np.zeros(shape, self.dtype)[index]
        try:
            with self.path.open("rb") as file:
                # A map beyond the end of a file would end the process when it is read.
                if os.fstat(file.fileno()).st_size < offset + math.prod(shape) * self._in_file.itemsize:
                    raise Refused("it shrank while it was read")
                order = "F" if self.fortran else "C"
                mapped = np.memmap(file, self._in_file, "r", offset, shape, order)
                # A copy: a jax array may take its memory over, and the map is to go.
                return np.array(mapped[index], self.dtype, order="C", subok=False)
        except (OSError, Refused) as e:
            raise CheckpointError(f"{self.path}: cannot be read as a checkpoint: {e}") from e

    def bits(self, start: int, n: int) -> np.ndarray:
        """So many of its bytes, as they lie in the file."""
        return Mapped(self.path, self.offset + start, (n,), np.uint8)[...]

    def stretch(self, start: int, shape: tuple[int, ...]) -> "Mapped":
        """The array of this shape whose elements follow one another from element `start` on."""
        at = self.offset + start * self._in_file.itemsize
        return Mapped(self.path, at, shape, self._in_file)


class Cast(Stored):
    """An array in another dtype than it has in its file."""

    def __init__(self, of: Any, dtype: Any):
        self.of, self.shape, self.dtype = of, tuple(of.shape), np.dtype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.of[index].astype(self.dtype)


def whole(index: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """An index that has a slice for each axis."""
    given = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
    return (*given, *[slice(None)] * (len(shape) - len(given)))


class Header(NamedTuple):
    """What a `.safetensors` says of itself."""

    arrays: dict[str, Mapped]
    marks: dict[str, str]  # its __metadata__


def header(path: Path) -> Header:
    """The arrays of a `.safetensors`, none of which is read."""
    with opened(path) as (file, size):
        return _header(path, file, size)


def _header(path: Path, file: BinaryIO, size: int) -> Header:
    """Read and check the header of an open file."""
    if size < 8:
        raise Refused(f"it has {size} bytes, expected the 8 of a header's length at least")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(HEADER, size - 8):
        raise Refused(f"its header has {length} bytes, expected at most {min(HEADER, size - 8)}")
    listed, budget, arrays = parsed(file.read(length), size), Budget(size), dict[str, Mapped]()
    marks = listed.pop("__metadata__", {})
    if type(marks) is not dict or not all(type(x) is str for x in marks.values()):
        raise Refused("its __metadata__ is no table of texts")
    begin, spans = 8 + length, []
    for name, entry in listed.items():
        budget.charge(900)
        known = type(entry) is dict and {*entry} == {"dtype", "shape", "data_offsets"}
        dtype, shape, span = (entry[k] if known else None for k in ("dtype", "shape", "data_offsets"))
        if not known or type(dtype) is not str or dtype not in DTYPES:
            raise Refused(f"{shown(name)} has dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        if shape is None or span is None or not _sizes(shape, DIMENSIONS) or not _sizes(span, 2):
            raise Refused(f"{shown(name)} has no shape or no place")
        if len(span) != 2:
            raise Refused(f"{shown(name)} has a place of {len(span)} numbers, expected 2")
        needed = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if span[1] - span[0] != needed:
            found = f"the shape {tuple(shape)} and {span[1] - span[0]} bytes"
            raise Refused(f"{shown(name)} has {found}, expected {needed} bytes for its dtype {dtype}")
        if begin + span[1] > size:
            end = f"{shown(name)} ends at byte {begin + span[1]}"
            raise Refused(f"it is cut short, or lies: {end}, and the file has {size}")
        spans.append((*span, name))
        arrays[name] = Mapped(path, begin + span[0], tuple(shape), DTYPES[dtype])
    at = 0
    for start, stop, name in sorted(spans):
        if start != at:
            between = "overlaps what is before it" if start < at else "leaves a hole before it"
            raise Refused(f"{shown(name)} {between}: it begins at {start}, expected {at}")
        at = stop
    if begin + at != size:
        raise Refused(f"its arrays end at byte {begin + at}, and the file has {size}")
    return Header(arrays, marks)


def _sizes(x: Any, most: int) -> bool:
    """Whether this is a list of a few sizes."""
    return type(x) is list and len(x) <= most and all(type(n) is int and 0 <= n < LENGTH for n in x)


def parsed(text: bytes, size: int) -> dict[str, Any]:
    """The object in a JSON text from a file of this size; a key that stands in it twice is refused."""
    budget = Budget(size)
    budget.charge(2 * len(text) + 240 * text.count(b"{") + 80 * text.count(b"[") + 100 * text.count(b","))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(pairs)) < len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise Refused(f"its JSON has the key {shown(twice)} twice in one object")
        return made

    try:
        found = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise Refused("its JSON is nested too deep") from None
    if type(found) is not dict:
        raise Refused(f"its JSON is {shown(found)}, expected an object")
    return found


def same(a: Mapped, b: Mapped) -> bool:
    """Whether two arrays of files are one, bit for bit."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    steps = range(0, a.nbytes, 2**24)
    return all(np.array_equal(x.bits(i, n), y.bits(i, n)) for i, n, x, y in _chunks(steps, a, b))


def _chunks(steps: Iterable[int], a: Mapped, b: Mapped) -> Iterable[tuple[int, int, Mapped, Mapped]]:
    return ((i, min(2**24, a.nbytes - i), a, b) for i in steps)
