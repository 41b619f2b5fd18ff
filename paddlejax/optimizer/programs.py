"""Compiled programs that are looked at before they run: an error in one must not take its arguments along.

The arguments that a program may reuse are gone once it runs, and where it fails there is no result either.
So a program that holds a callback of the user's, which may raise, or that is likely to run out of memory,
gives nothing away: it runs beside its arguments, and is waited for.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from ..tracing import InForce

CALLS_OUT = {"pure_callback", "io_callback", "debug_callback", "debug_print", "ffi_call"}

_looking = InForce()  # True while a program may be traced


class Unseen(Exception):  # noqa: N818  nothing is wrong
    """A program would be compiled that nobody has looked at; nothing of it has run."""


class Risky(Exception):  # noqa: N818
    """A program may fail and can be taken apart: what may fail runs first, and by itself; nothing has run."""


class Watched:
    """A function under `jax.jit`, with its options, and the same without giving any argument away.

    While it is `new`, or where `jit` raises Unseen, as it would be compiled for other arguments: `look`. One
    that `splits` raises Risky there; any other is `risky` from then on, and `beside` is what to run.
    """

    def __init__(self, function: Callable[..., Any], splits: bool = False, **options: Any):
        @functools.wraps(function)
        def seen(*arguments: Any) -> Any:
            # What raises in `jit` is never dispatched fast again, so only what is not to run there may raise.
            if not _looking.value and self._is_suspect(arguments):
                raise Unseen
            return function(*arguments)

        self.jit: Any = jax.jit(seen, **options)
        self.new, self.risky, self._splits, self._function = True, False, splits, function
        self._options = {k: v for k, v in options.items() if k != "donate_argnums"}
        self._beside: dict[bool, Any] = {}

    def _is_suspect(self, arguments: tuple[Any, ...]) -> bool:
        """While `jit` traces it: return whether it calls out, or has so much between its operations that
        `look` has to say how much memory it needs."""
        static = self._options.get("static_argnums", ())
        jaxpr = jax.make_jaxpr(self._function, static_argnums=static)(*arguments)
        return _calls_out(jaxpr) or sum(_sizes(jaxpr.jaxpr)) > max(LEAST, free_memory(()) / 2)

    def lower(self, *arguments: Any) -> Any:
        """Return what `jax.jit` makes of it for these arguments; nothing runs."""
        with looking():
            return self.jit.lower(*arguments)

    def _cache_size(self) -> int:
        """Return how many programs there are."""
        return self.jit._cache_size()

    def look(self, arguments: tuple[Any, ...]) -> None:
        """Compile the program for these arguments, and find out whether it may run as it is."""
        # Whoever asks for the step is better off with an error than without parameters; but a step that just
        # fits must not be made larger, so an update is only kept apart if it cannot run at all.
        if self._splits and self.may_fail(arguments):
            raise Risky
        self.risky = self.risky or (not self._splits and self.may_fail(arguments, 1.0))
        self.new = False

    def may_fail(self, arguments: tuple[Any, ...], share: float = 0.5) -> bool:
        """Return whether the program calls out, or needs more than this share of the memory that is free."""
        with looking():
            traced = self.jit.trace(*arguments)
            if _calls_out(traced.jaxpr):
                return True
            memory = traced.lower().compile().memory_analysis()
        if memory is None:
            return False
        needed = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return needed > LEAST and needed > share * free_memory(arguments)

    def beside(self, *arguments: Any) -> Any:
        """Run it in other memory than that of the arguments, and wait: an error is raised here."""
        debugging = debugs()  # what was compiled without does not look for NaN afterwards
        if debugging not in self._beside:
            self._beside[debugging] = jax.jit(self._function, **self._options)
        call = object()
        _lent[call] = arguments
        try:
            return waited(self._beside[debugging](*arguments))
        finally:
            _lent.pop(call, None)


_lent: dict[object, Any] = {}  # by call the arguments of programs that run beside these


def unlent(arguments: Any) -> Any:
    """Return arguments to donate, copies of those that a program is reading: its callback may be what steps,
    and would wait for that program for ever."""
    if not _lent:
        return arguments
    used = {id(x) for lent in list(_lent.values()) for x in jax.tree.leaves(lent)}
    return jax.tree.map(lambda x: jnp.copy(x) if id(x) in used else x, arguments)


def looking() -> Any:
    """In a `with` block programs may be compiled that nobody has looked at."""
    return _looking.set(True)


def debugs() -> bool:
    """Return whether JAX is to raise where a program returns NaN or inf."""
    config: Any = jax.config
    return config.jax_debug_nans or config.jax_debug_infs


def waited(result: Any) -> Any:
    """Return the result when it is there and all callbacks have run; raise what they raised."""
    try:
        return jax.block_until_ready(result)
    finally:
        jax.effects_barrier()


@functools.cache
def _waits_for_nothing() -> bool:
    """Return whether a wait takes no time from anybody: the host computes, and not a device beside it."""
    return jax.default_backend() == "cpu"


def arrived(arrays: Sequence[Any], all_of_them: bool = False) -> None:
    """Raise what went wrong when an array was computed that a program is about to be given.

    Of gradients it is enough to ask one: those of one backward pass fail together.
    """
    if _waits_for_nothing():
        for x in arrays:
            wait = getattr(x, "block_until_ready", None)
            if wait is not None:
                wait()
                if not all_of_them:
                    break


def _calls_out(closed: ClosedJaxpr) -> bool:
    """Return whether a program may call what is not XLA's."""
    return bool(closed.effects) or any(e.primitive.name in CALLS_OUT for e in _equations(closed.jaxpr, set()))


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    """Yield how many bytes every result of every operation takes."""
    for equation in _equations(jaxpr, set()):
        for out in equation.outvars:
            shape, dtype = getattr(out.aval, "shape", ()), getattr(out.aval, "dtype", None)
            yield math.prod(shape) * getattr(dtype, "itemsize", 0)


def _equations(jaxpr: Jaxpr, known: set[int]) -> Iterator[Any]:
    """Yield all operations, those of loops, branches and calls inside too."""
    if id(jaxpr) in known:
        return
    known.add(id(jaxpr))
    for equation in jaxpr.eqns:
        yield equation
        for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(x):
                yield from _equations(getattr(x, "jaxpr", x), known)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, ClosedJaxpr | Jaxpr)


LEAST = 2**24  # bytes; a program that needs less than this finds room wherever another does


def free_memory(arguments: Any) -> float:
    """Return how many bytes are free where these arrays lie; infinity where nobody can say."""
    array = next((x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)), None)
    device = jax.devices()[0] if array is None else next(iter(array.sharding.device_set))
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return min(_machine(), _process()) if device.platform == "cpu" else float("inf")


def _kilobytes(file: str, entry: str) -> float:
    """Return an entry of a file of Linux's /proc in bytes; infinity where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(entry)), float("inf"))


def _machine() -> float:
    """Return how much memory the machine could give."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def _process() -> float:
    """Return how much this process may still ask for."""
    try:
        import resource
    except ImportError:  # Windows
        return float("inf")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _kilobytes("/proc/self/status", "VmSize:")
    return float("inf") if limit == resource.RLIM_INFINITY or used == float("inf") else limit - used
