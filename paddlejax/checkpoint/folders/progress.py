"""A bar on stderr, where somebody looks and it takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 3.0  # seconds without a bar
WIDTH = 30


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count bytes: what is handed out takes the number of those that are done since the last call.

    Nothing is printed unless stderr is a terminal and `PATIENCE` has passed.
    """
    begun, done, shown = time.monotonic(), 0, False

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        passed = time.monotonic() - begun
        if passed > PATIENCE and sys.stderr.isatty():
            part = min(1.0, done / total) if total else 1.0
            bar = "#" * int(WIDTH * part)
            left = f", {passed * (1 - part) / part:.0f} s left" if part else ""
            text = f"{what} [{bar:{WIDTH}}] {done / 1e9:.1f} of {total / 1e9:.1f} GB{left}"
            print(f"\r{text:78}", end="", file=sys.stderr, flush=True)
            shown = True

    try:
        yield advance
    finally:
        if shown:
            print(file=sys.stderr)
