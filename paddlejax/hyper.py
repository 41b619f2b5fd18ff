"""What a hyperparameter may be, and the error for what it may not."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class ArgumentError(ValueError, AssertionError):
    """A hyperparameter is missing or out of range.

    Paddle raises ValueError for some and AssertionError for others; either `except` clause catches this one.
    """


@dataclass(frozen=True)
class Interval:
    """What a hyperparameter may be: [low, high], without `high` itself if `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    above: bool = False  # without `low` itself

    def __contains__(self, x: float) -> bool:
        above = self.low < x if self.above else self.low <= x
        return above and (x < self.high if self.open else x <= self.high)

    def __str__(self) -> str:
        end = ")" if self.open or math.isinf(self.high) else "]"
        return ("(" if self.above or math.isinf(self.low) else "[") + f"{self.low:g}, {self.high:g}{end}"


Beta = Annotated[float, Interval(0, 1, open=True)]
Fraction = Annotated[float, Interval(0, 1)]
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(0, above=True)]
Predicate = Callable[[Any], bool] | None


def number(name: str, value: Any, expected: str = "a number") -> None:
    """Refuse what is not one real number: a Python or numpy number, or a 0-d array (traced or not)."""
    array = value if isinstance(value, jax.Array | np.ndarray | np.generic) else None
    if isinstance(value, bool) or array is None and not isinstance(value, int | float):
        raise TypeError(f"{name}: found {value!r} of type {type(value).__name__}, expected {expected}")
    kinds = (jnp.floating, jnp.integer)
    if array is not None and (array.shape or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds)):
        found = f"an array of shape {array.shape} and dtype {array.dtype}"
        raise TypeError(f"{name}: found {found}, expected {expected} or a 0-d array")


def number_text(value: Any) -> str:
    """A hyperparameter as Paddle prints it; one that is not known yet by its type."""
    return str(value) if isinstance(value, Tracer) else f"{float(value):f}"
