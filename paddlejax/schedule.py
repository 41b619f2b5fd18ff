"""What a schedule is: a formula of the count, evaluated in Python floats or in JAX.

A formula is written once, over a helper that knows the arithmetic of either. Called with a Python number a
schedule computes in Python floats, as Paddle's classes do, and returns one; called with an array, traced or
not, it computes in JAX and returns float32 (float64 for a 64-bit count) of the array's shape.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
Scalar = float | jax.Array


class Doubles:
    """What a formula needs, for Python numbers: the arithmetic Paddle itself uses."""

    real = staticmethod(float)
    exp, cos = staticmethod(math.exp), staticmethod(math.cos)
    minimum, maximum = staticmethod(min), staticmethod(max)
    less, power = staticmethod(operator.lt), staticmethod(operator.pow)

    @staticmethod
    def shown(t):
        """The count as a user's own function sees it."""
        return t

    @staticmethod
    def where(condition, a, b):
        return a if condition else b

    @staticmethod
    def row(x, ends, rows):
        """The first row that ends at or after x, else the last."""
        return next((row for end, row in zip(ends, rows, strict=False) if x <= end), rows[-1])

    @staticmethod
    def product(first, factor, n):
        for i in range(1, int(n) + 1):
            first = first * factor(i)
        return first


class Arrays:
    """What a formula needs, for arrays. Counts stay integers where a formula divides or compares them."""

    exp, cos = staticmethod(jnp.exp), staticmethod(jnp.cos)
    minimum, maximum = staticmethod(jnp.minimum), staticmethod(jnp.maximum)
    where = staticmethod(jnp.where)

    def __init__(self, dtype):
        self.dtype = dtype

    def real(self, x):
        return jnp.asarray(x, self.dtype)

    # A float: `0.95 ** e` with an integer e is an error under strict promotion.
    shown = real

    @staticmethod
    def less(t, bound):
        if jnp.issubdtype(t.dtype, jnp.integer):
            limits = jnp.iinfo(t.dtype)  # t < 2.5 is t < 3, and no integer is promoted
            bound = math.ceil(min(max(bound, limits.min), limits.max))
        return t < bound

    def power(self, base, n):
        n = self.real(n)
        if isinstance(base, jax.Array):
            return base**n
        if base == 0:
            return jnp.where(n == 0, 1.0, 0.0)
        # Through the double's logarithm: float32(0.999) ** 1000 would be 1e-5 off.
        size = jnp.exp(n * math.log(abs(base)))
        return size if base > 0 else jnp.where(n % 2 == 0, size, -size)

    @staticmethod
    def row(x, ends, rows):
        *earlier, picked = rows
        for row, end in reversed(list(zip(earlier, ends, strict=False))):
            picked = [jnp.where(x <= end, a, b) for a, b in zip(row, picked, strict=True)]
        return picked

    def product(self, first, factor, n):
        n = n.astype(jnp.int32) if jnp.issubdtype(n.dtype, jnp.floating) else n
        first = jnp.broadcast_to(self.real(first), n.shape)

        def multiply(i, rate):
            return jnp.where(i <= n, rate * self.real(factor(self.shown(i))), rate)

        return jax.lax.fori_loop(1, jnp.max(n) + 1, multiply, first)


DOUBLES = Doubles()


def _plain(x):
    """NumPy scalars are strongly typed for JAX; Python's are not."""
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    return x.item() if isinstance(x, np.generic) else x


def _evaluate(formula, count, args, kwargs):
    if isinstance(count, (jax.Array, np.ndarray)):
        count = jnp.asarray(count)
    elif any(isinstance(a, jax.Array) for a in (*args, *kwargs.values())):
        count = jnp.asarray(count, jnp.float32 if isinstance(count, float) else jnp.int32)
    else:
        return formula(DOUBLES, _plain(count), *args, **kwargs)
    wide = count.dtype.itemsize == 8
    if jnp.issubdtype(count.dtype, jnp.integer):
        count = count.astype(jnp.int64 if wide else jnp.int32)
    else:
        count = count.astype(jnp.float64 if wide else jnp.float32)
    maths = Arrays(jnp.float64 if wide else jnp.float32)

    def ready(x):
        return maths.real(x) if isinstance(x, (jax.Array, np.ndarray)) else _plain(x)

    rate = formula(maths, count, *map(ready, args), **{k: ready(v) for k, v in kwargs.items()})
    return jnp.broadcast_to(maths.real(rate), count.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """A schedule with its arguments: `count -> rate`, jit-able and vmap-able, and printable.

    >>> schedules.exponential_decay(0.5, gamma=0.5)
    exponential_decay(learning_rate=0.5, gamma=0.5)
    """

    family: "Family"
    arguments: Mapping[str, Any]

    def __call__(self, count):
        return self.family.at(count, **self.arguments)

    def __repr__(self):
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.family.__name__}({shown})"


class Family(Protocol[P]):
    """A function that makes schedules; `at` evaluates its formula at a count with nothing checked."""

    __name__: str
    __signature__: inspect.Signature

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Schedule: ...
    def at(self, count: Any, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    def check(self, function: Callable[..., None]) -> Callable[..., None]: ...


def schedule_family(formula: Callable[Concatenate[Any, Any, P], Any]) -> Family[P]:
    """Turn a formula f(maths, count, *arguments) into a function of the arguments that returns a schedule."""
    signature = inspect.signature(formula)
    signature = signature.replace(parameters=list(signature.parameters.values())[2:])
    checks: list[Callable[..., None]] = []

    @functools.wraps(formula)
    def make(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for check in checks:
            check(**bound.arguments)
        if not callable(rate := bound.arguments.get("learning_rate", 0.0)):
            expect_rate("learning_rate", rate)
        return Schedule(family, bound.arguments)

    def at(count, *args, **kwargs):
        return _evaluate(formula, count, args, kwargs)

    def check(function):
        checks.append(function)
        return function

    make.__dict__.update(at=at, check=check, __signature__=signature)
    family = cast("Family[P]", make)
    return family


def expect(ok, error: type[Exception], name: str, found, expected: str):
    """Raise `error`, naming the argument, what was found and what was expected, unless `ok`.

    >>> expect(False, ValueError, "gamma", 2.0, "a number below 1")
    Traceback (most recent call last):
    ValueError: gamma is 2.0; expected a number below 1
    """
    if not ok:
        raise error(f"{name} is {found!r}; expected {expected}")


def is_array(x):
    """Whether the value may be unknown until the program runs, so that nothing about it can be checked."""
    return isinstance(x, (jax.Array, np.ndarray))


def expect_rate(name, x):
    expect(is_array(x) or isinstance(x, (int, float, np.number)), TypeError, name, x, "a number")
    expect(is_array(x) or x >= 0, ValueError, name, x, "a number >= 0")
