"""The one error of a file that cannot be read, and how it shows what a file says."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PathLike = str | os.PathLike[str]
SHOWN = 60  # characters of a text in a message


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, or holds what no checkpoint does; the message names it."""


class Refused(ValueError):
    """What is wrong with the contents of a file whose name the caller knows."""


def shown(value: Any) -> str:
    """What a file says, for a message: a number or the beginning of a text, never what is in a container.

    A few bytes can make a container that takes gigabytes to print. So messages about a file format nothing of
    it but with this.
    """
    if isinstance(value, str | bytes):
        cut = f"{value[:SHOWN]!r}... ({len(value)} long)"
        return repr(value) if len(value) <= SHOWN else cut
    if type(value) is int and value.bit_length() > 64:
        return f"an int of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | np.generic):
        return str(value)
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    many = f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""
    return f"a {type(value).__name__}{many}"


def listed(values: Iterable[Any]) -> str:
    """The first few of many, for a message."""
    first = list(islice(values, 6))
    return ", ".join([*map(shown, first[:5]), *["..."] * (len(first) > 5)])


def located(path: PathLike) -> Path:
    """Return the path of a file to read; what is no path, such as the contents of a file, is refused."""
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"found {shown(path)}, expected the name of a file as a str or a path")
    return Path(path)


def reader_of(start: bytes) -> str:
    """The function that reads a file which begins with these 9 bytes; "" if none is known."""
    # First: the length of a header of safetensors may be that which a pickle begins with.
    if start[4:] == b"\0\0\0\0{":
        return "load_safetensors"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04"):
        return "load"
    return "load_npz" if start[:4] == b"PK\x03\x04" else ""


def check_reader(file: BinaryIO, own: str) -> None:
    """Refuse a file that begins as one for another function than this one."""
    there = reader_of(file.read(9))
    file.seek(0)
    if there not in ("", own):
        raise Refused(f"{there} reads it, whatever its name ends in: give what {there} returns")


@contextmanager
def opened(path: PathLike | BytesIO) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read and its size; whatever goes wrong with it in the block is a CheckpointError."""
    if isinstance(path, BytesIO):
        rest = path.getbuffer().nbytes - path.tell()
        try:
            yield path, rest
        except Exception as e:
            raise CheckpointError(f"the BytesIO: {_reason(e)}") from e
        return
    path = located(path)
    try:
        if path.exists() and not path.is_file():
            raise Refused("it is a folder or a device, expected a file")
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file{_near(path)}") from None
    except Exception as e:  # bytes from anywhere can fail in any way
        raise CheckpointError(f"{path}: {_reason(e)}") from e


def _reason(e: Exception) -> str:
    reason = str(e) if isinstance(e, ValueError | OSError) else f"{type(e).__name__} {e}"
    return f"cannot be read as a checkpoint: {reason[:1000]}"


def _near(path: Path) -> str:
    """The files whose names begin alike, or else the checkpoints beside it, if one may look."""
    try:
        if not path.parent.is_dir():
            return f", nor a folder {path.parent}"
        files = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    except OSError:
        return ""
    near = [n for n in files if n.startswith(path.stem)] or [
        n for n in files if n.endswith((".pdparams", ".pdopt"))
    ]
    return f"; the full name is needed, and near it there are {', '.join(near[:8])}" if near else ""
