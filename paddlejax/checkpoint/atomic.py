"""Write a file whole or not at all."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str] | BytesIO) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and vanishes if it raises.

    What goes to a BytesIO is written there when the block ends.

    Whoever reads `path`, even after a crash or a power cut, finds the old file or the new one, whole: the
    bytes go to a temporary file in the same folder, reach the disk, and only then get the name. The new file
    has the permissions of the old one, or those of any new file; a symbolic link stays, and what it points to
    is replaced. A process that is killed leaves at most its `.<name>.<random>.tmp` behind.
    """
    if isinstance(path, BytesIO):  # as Paddle's save takes one
        whole = BytesIO()
        yield whole
        path.write(whole.getvalue())
        return
    if os.fsdecode(path).endswith((os.sep, os.altsep or os.sep)):
        raise OSError(errno.EISDIR, "expected the name of a file, found that of a folder", str(path))
    target = Path(os.path.realpath(path))
    permissions = None
    if target.exists():
        mode = target.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EEXIST, "expected a file to replace, found a folder or a device", str(path))
        permissions = stat.S_IMODE(mode)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:50]}.{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if permissions is not None:
                os.chmod(temporary, permissions)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where a folder can be opened and synced at all."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
