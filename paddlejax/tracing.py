"""Whether JAX is tracing a function just now. What objects hold may then be neither read nor changed.

A value that is read there becomes a constant of the program, and the program goes on with it after the next
step. A value that is stored there is a tracer, of which nothing is left when the trace ends.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.extend.core import get_opaque_trace_state


def _state_outside() -> Any:
    """Return the state of a new thread: this module may be imported for the first time inside a trace."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(get_opaque_trace_state()))
    thread.start()
    thread.join()
    return found[0]


_OUTSIDE = _state_outside()


class InForce(threading.local):
    """A value that is in force in this thread while a block runs, and None outside of it."""

    value: Any = None

    @contextmanager
    def set(self, value: Any) -> Iterator[None]:
        """Let the value be in force in a block, and what was before after it."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


# The name of the loss function that is being traced. A Parameter that it was not given would be compiled in
# there as a constant.
loss_inside = InForce()


STEP = "call it outside, or use the functions, such as paddlejax.adam, whose state is an argument"
READ = "pass values(params) to the function as an argument"


def is_outside() -> bool:
    """Return whether nothing is being traced."""
    return get_opaque_trace_state() == _OUTSIDE


def check_outside(what: str, instead: str = STEP) -> None:
    """Raise inside a trace; `what` is what was called, `instead` says what to do."""
    if get_opaque_trace_state() != _OUTSIDE:
        raise RuntimeError(
            f"{what}: found a call inside jax.jit, grad, vmap, scan or another transformation of JAX, "
            f"expected one outside; {instead}"
        )


# Functions of JAX that refuse whatever has __jax_array__, and ask for it only to do so, in words about JAX.
ABSTRACT = ("shaped_abstractify", "_shaped_abstractify_slow", "get_aval", "typeof", "canonicalize_value")


def refuse_abstract(found: str, value: str) -> None:
    """Say how to give JAX an array, where one of its functions is about to refuse an object of ours.

    A ValueError, as JAX raises: it takes a TypeError for its own, and puts other words in its place.
    """
    if sys._getframe(2).f_code.co_name in ABSTRACT:
        way = f"give it {value}, or call the function inside a @paddlejax.loss"
        raise ValueError(f"found {found} as an argument of a function of JAX, expected an array: {way}")
