"""Write a file, or a folder, whole or not at all."""

import errno
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_writing: set[str] = set()  # the temporary files of this process


@contextmanager
def replacing(path: str | os.PathLike[str] | BytesIO) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and vanishes if it raises.

    What goes to a BytesIO is written there when the block ends.

    Whoever reads `path`, even after a crash or a power cut, finds the old file or the new one, whole: the
    bytes go to a temporary file in the same folder, reach the disk, and only then get the name. The new file
    has the permissions of the old one, or those of any new file; a symbolic link stays, and what it points to
    is replaced. A process that is killed leaves at most its `.<name>.<host>.<pid>.<random>.tmp` behind, which
    the next who replaces a file of that name on that host removes.
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
    _sweep(target)
    temporary = target.parent / f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(8)}.tmp"
    _writing.add(temporary.name)
    try:
        yield from _written(temporary, target, permissions)
    finally:
        _writing.discard(temporary.name)
    _sync_folder(target.parent)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder that gets the name `path` when the block ends, with all its files, or vanishes.

    There must be no such folder yet, or an empty one: two folders cannot change places at once. The files are
    on the disk before the folder has its name. What a killed process leaves behind is as for `replacing`.
    """
    target = Path(os.path.realpath(path))
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary = target.parent / f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(8)}.tmp"
    _writing.add(temporary.name)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        _sync_folder(temporary)
        check_free(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _writing.discard(temporary.name)
    _sync_folder(target.parent)


def check_free(path: Path) -> None:
    """Raise if something is where a new folder is to be."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "expected no file or folder of this name, found one", str(path))


def _written(temporary: Path, target: Path, permissions: int | None) -> Iterator[BinaryIO]:
    """Hand out the temporary file, then give it the name."""
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


def _prefix(target: Path) -> str:
    """What the temporary files of this host for a target begin with; names have 255 bytes at most."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
    return f".{target.name[:25]}.{host}."


def _sweep(target: Path) -> None:
    """Remove what saves to this target left here when they were killed.

    A writer is dead if no process of this host has its number, or if this process has it and is not writing:
    in a container that starts again, the number is the same each time.
    """
    if os.name != "posix":  # elsewhere one cannot ask whether a process lives
        return
    stale = re.compile(re.escape(_prefix(target)) + r"(\d{1,9})\.[0-9a-f]{16}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            found = stale.fullmatch(entry.name)
            if found and entry.name not in _writing and not _lives(int(found[1])):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _lives(pid: int) -> bool:
    """Whether another process has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where a folder can be opened and synced at all."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
