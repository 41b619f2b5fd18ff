"""Pages of classes that are made of something else: a formula is written once and shown on each of them."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=type)

EXAMPLE = """

>>> p = Parameter(jnp.array([1.0, -2.0]), "p")
>>> opt = {call}
>>> _ = opt.minimize(lambda params: jnp.sum(params[0] ** 2))
>>> print(p.numpy())
{prints}
"""


def page(own: str | None, source: Any) -> str:
    """A class's own words, and below them those of what it is made of, without their examples."""
    theirs = [part for part in (inspect.getdoc(source) or "").split("\n\n") if ">>>" not in part]
    return "\n\n".join([inspect.cleandoc(own or ""), *theirs])


def of(source: Any, call: str = "", prints: str = "") -> Callable[[C], C]:
    """Decorate a class that is made of `source`; for an optimizer also what a call of it gives."""

    def paged(cls: C) -> C:
        cls.__doc__ = page(cls.__doc__, source) + (EXAMPLE.format(call=call, prints=prints) if call else "")
        return cls

    return paged
