"""A program that takes its arguments' memory runs as a whole or not at all."""

from collections.abc import Callable
from itertools import starmap
from typing import Any

from ..tracing import check_outside
from .programs import Unseen, Watched, debugs, looking, waited
from .whole import opened


def complete(store: Callable[[], None]) -> None:
    """Call what only assigns, to its end: an interrupt on the way is raised when all is stored.

    Twice must give what once gives.
    """
    try:
        store()
    except Exception:
        raise
    except BaseException:
        store()
        raise


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
    try:
        made = prepare()
        if made is None:
            return False
        program, arguments = made
        if not isinstance(program, Watched):
            results.extend(starmap(program, [arguments]))
        elif program.risky or debugs():
            results.extend(starmap(program.beside, [arguments]))
        else:
            try:
                results.extend(starmap(program.jit, [arguments]))
            except Unseen:
                program.look(arguments)
                with looking():
                    results.extend(starmap(program.beside if program.risky else program.jit, [arguments]))
        if waits:
            waited(results[0])
        store(opened(results[0]))
    except BaseException:
        store(opened(results[0])) if results else undo()
        raise
    return True
