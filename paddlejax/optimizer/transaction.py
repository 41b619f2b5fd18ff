"""A program that takes its arguments' memory runs as a whole or not at all."""

from collections.abc import Callable
from itertools import starmap
from typing import Any

from ..tracing import check_outside
from . import gate
from .programs import Unseen, Watched, debugs, looking, unlent, waited
from .whole import opened


def complete(store: Callable[[], None]) -> None:
    """Call what only assigns, to its end: an interrupt on the way is raised when all is stored.

    Twice must give what once gives.
    """
    with gate.lock:
        try:
            gate.pending[store] = None
            store()
        except Exception:
            raise
        except BaseException:
            store()
            raise
        finally:
            gate.pending.pop(store, None)


def run_atomically(
    prepare: Callable[[], tuple[Watched | Callable[..., Any], tuple[Any, ...]] | None],
    store: Callable[[Any], None],
    undo: Callable[[], None] = lambda: None,
    waits: bool = False,
) -> bool:
    """Run a program that donates its arguments and store its result; or neither, whatever is raised.

    `prepare` returns (program, arguments), or None if there is nothing to run. The program is a compiled one
    of a function that is `in_one`, or plain Python that donates nothing. The return value says whether a
    program ran. Once it has run, its arguments are gone. One call into C runs it and keeps the result, so an
    interrupt finds either the arguments or the result. It may come inside `store`, which is then called once
    more: so `store` only assigns, and to call it twice gives what once gives. `undo` is called where
    something is raised and the program did not run.

    A `Watched` program that may fail runs beside its arguments. With `waits` the result is waited for, so
    that an error is raised here whatever comes of it.
    """
    check_outside("a step or an update of an object")
    results: list[Any] = []
    stored: list[bool] = []

    def finish() -> None:
        if results and not stored:  # a signal handler may have stored it, and set a value since
            store(opened(results[0]))
            stored.append(True)

    with gate.turn:
        try:
            looked = False
            while True:
                made, seen = _attempt(prepare, finish, results, looked, waits)
                ran = bool(results)
                if made is None or ran:
                    return ran
                program, arguments = made
                if not seen:
                    program.look(arguments)
                    looked = True
                else:
                    results.extend(starmap(getattr(program, "beside", program), [arguments]))
                    complete(finish)
                    gate.own.moves += 1
                    return True
        except BaseException:
            with gate.lock:
                finish() if results else undo()
            raise


def _attempt(
    prepare: Callable[[], tuple[Any, tuple[Any, ...]] | None],
    finish: Callable[[], None],
    results: list[Any],
    looked: bool,
    waits: bool,
) -> tuple[Any, bool]:
    """Run and store what may donate, and let nobody read meanwhile; return what was prepared and whether
    somebody has looked at it. There are results if it ran."""
    with gate.lock:
        if gate.pending:
            raise RuntimeError(
                "found a step or an update in a signal handler, while another is being stored; expected it "
                "after that"
            )
        try:
            gate.pending[finish] = None
            made = prepare()
            if made is None:
                return None, True
            program, arguments = made
            if not isinstance(program, Watched) or program.risky or debugs():
                return made, True
            if program.new:
                return made, False
            arguments = unlent(arguments)
            try:
                results.extend(starmap(program.jit, [arguments]))
            except Unseen:
                if not looked:
                    return made, False
                with looking():
                    results.extend(starmap(program.jit, [arguments]))
            if waits:
                waited(results[0])
            finish()
            gate.own.moves += 1
        except BaseException:
            finish()
            raise
        finally:
            gate.pending.pop(finish, None)
    return made, True
