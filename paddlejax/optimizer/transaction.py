"""A program that takes its arguments' memory runs as a whole or not at all."""

from collections.abc import Callable
from itertools import starmap
from typing import Any


def run_atomically(
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    store: Callable[[Any], None],
    undo: Callable[[], None] = lambda: None,
) -> None:
    """Run a program that donates its arguments and store its result; or neither, if interrupted.

    Once it has run, the arguments are gone. One call into C runs the program and keeps the result, so an
    interrupt finds either the arguments or the result. It may come inside `store`, which is then called once
    more: so `store` only assigns, and twice is as good as once. `undo` is called where the program did not
    run.
    """
    results: list[Any] = []
    try:
        results.extend(starmap(program, [arguments]))
        store(results[0])
    except BaseException:
        store(results[0]) if results else undo()
        raise
