"""The one error of a file that cannot be read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, or holds what no checkpoint does; the message names it."""


class Refused(ValueError):
    """What is wrong with the contents of a file whose name the caller knows."""


@contextmanager
def opened(path: str | os.PathLike[str] | BytesIO) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read and its size; whatever goes wrong with it in the block is a CheckpointError."""
    if isinstance(path, BytesIO):
        rest = path.getbuffer().nbytes - path.tell()
        try:
            yield path, rest
        except Exception as e:
            raise CheckpointError(f"the BytesIO: {_reason(e)}") from e
        return
    path = Path(path)
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
    """The files whose names begin alike, or else the checkpoints beside it."""
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    files = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    near = [n for n in files if n.startswith(path.stem)] or [
        n for n in files if n.endswith((".pdparams", ".pdopt"))
    ]
    return f"; the full name is needed, and near it there are {', '.join(near[:8])}" if near else ""
