"""Who may read, and who may step, when several threads have the same objects.

Two locks for all objects, so that a state over many of them is read as one:

    turn    is held by whoever steps, loads or updates, from the first look at the state to the last
            assignment. So two of them never start from the same state.
    lock    is held while a program has the memory of values and states and its result is not stored, and by
            readers. Under it nothing is compiled and nothing of the user's runs: who waits for it does not
            wait long, and a callback of a program may read.

Both let their own thread in again. It can come there in a signal handler: then `settle` first stores what is
pending.
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

turn = threading.RLock()  # taken before `lock`, never after
lock = threading.RLock()
pending: dict[Callable[[], None], None] = {}  # of the thread that holds `lock`: what stores a result


class _Own(threading.local):
    """How often this thread has stored something."""

    moves = 0


own = _Own()


def settle() -> None:
    """Store what this thread was about to store when a signal came; `lock` is held.

    It stays pending: the program may run only after the first of two signals.
    """
    if not pending:
        return
    waiting = dict(pending)
    pending.clear()  # what is stored here may read
    try:
        for store in waiting:
            store()
    finally:
        pending.update(waiting)


def whole(read: Callable[..., Any]) -> Any:
    """Decorate what reads a state: it waits for a step that another thread is storing, and for no other."""

    @functools.wraps(read)
    def reading(*args: Any, **kwargs: Any) -> Any:
        with lock:
            settle()
            found = read(*args, **kwargs)
        return found

    return reading


def alone(change: Callable[..., Any]) -> Any:
    """Decorate what ends in a step or an update: no other thread begins one in between."""

    @functools.wraps(change)
    def changing(*args: Any, **kwargs: Any) -> Any:
        with turn:
            found = change(*args, **kwargs)
        return found

    return changing


def one_at_a_time(change: Callable[..., Any]) -> Any:
    """Decorate what changes a state outside of any program."""

    @functools.wraps(change)
    def changing(*args: Any, **kwargs: Any) -> Any:
        with turn, lock:
            settle()
            found = change(*args, **kwargs)
        return found

    return changing


def _before_fork() -> None:
    """Wait until no other thread is storing: it would never end that in the new process."""
    lock.acquire()
    settle()


def _after_fork() -> None:
    """In a new process only the thread is left that made it: no other has the turn any more."""
    global turn
    lock.release()
    if not turn.acquire(blocking=False):
        turn = threading.RLock()
    else:
        turn.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: lock.release(), after_in_child=_after_fork
    )
