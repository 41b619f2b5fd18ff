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

from .hyper import Arguments, Check, Declaration, Interval, Must, instance, refuse_bad, unless, verify

P = ParamSpec("P")
Scalar = float | jax.Array


class Doubles:
    """What a formula needs, for Python numbers: the arithmetic Paddle itself uses, to the last bit."""

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
        """Return a if the condition holds, else b."""
        return a if condition else b

    @staticmethod
    def finite(x):
        """Return whether x, also an array of one element, is neither infinite nor NaN."""
        return bool(np.isfinite(x).all())

    @staticmethod
    def row(x, ends, rows):
        """The first row that ends at or after x, else the last."""
        return next((row for end, row in zip(ends, rows, strict=False) if x <= end), rows[-1])

    @staticmethod
    def left(t, whole):
        """What is left of `whole` at t, as a part of it."""
        return 1 - float(t) / float(whole)

    @staticmethod
    def angle(t, half):
        """How far a cosine has turned at t; its half period is `half`."""
        return math.pi * t / half

    @staticmethod
    def turn(t, length):
        """The cycle of this length that t lies in, counted from 1, and the place in it as a part of it."""
        cycle = 1 + t // float(length)
        return cycle, 1.0 + t / float(length) - cycle

    @staticmethod
    def product(first, factor, n):
        """Return first * factor(1) * ... * factor(n)."""
        for i in range(1, int(n) + 1):
            first = first * factor(i)
        return first


class Arrays:
    """What a formula needs, for arrays. Counts stay integers where a formula divides or compares them."""

    exp, cos = staticmethod(jnp.exp), staticmethod(jnp.cos)
    minimum, maximum = staticmethod(jnp.minimum), staticmethod(jnp.maximum)
    where, finite = staticmethod(jnp.where), staticmethod(jnp.isfinite)

    def __init__(self, dtype):
        self.dtype = dtype

    def real(self, x):
        """Return x as an array of the schedule's dtype."""
        return jnp.asarray(x, self.dtype)

    # A float: `0.95 ** e` with an integer e is an error under strict promotion.
    shown = real

    @staticmethod
    def less(t, bound):
        """Return t < bound. Where t is an integer, the bound becomes one too: nothing is promoted."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            limits = jnp.iinfo(t.dtype)  # t < 2.5 is t < 3, and no integer is promoted
            bound = math.ceil(min(max(bound, limits.min), limits.max))
        return t < bound

    def power(self, base, n):
        """Return base ** n, through the logarithm in double precision where base is a number."""
        n = self.real(n)
        if isinstance(base, jax.Array):
            return base**n
        if base == 0:
            return jnp.where(n == 0, 1.0, 0.0)
        # Through the double's logarithm: float32(0.999) ** 1000 would be 1e-5 off.
        size = jnp.exp(n * math.log(abs(base)))
        return size if base > 0 else jnp.where(n % 2 == 0, size, -size)

    # In float32 the ways of `Doubles` would lose digits where t is large, so these count in integers first.

    def left(self, t, whole):
        """What is left of `whole` at t, as a part of it."""
        return self.real(whole - t) / self.real(whole)

    def angle(self, t, half):
        """How far a cosine has turned at t, within one period; its half period is `half`."""
        return math.pi * (self.real(t % (2 * half)) / half)

    def turn(self, t, length):
        """The cycle of this length that t lies in, counted from 1, and the place in it as a part of it."""
        cycle = t // length
        return self.real(cycle + 1), self.real(t - cycle * length) / length

    @staticmethod
    def row(x, ends, rows):
        """Return the first row that ends at or after x, else the last, element by element."""
        *earlier, picked = rows
        for row, end in reversed(list(zip(earlier, ends, strict=False))):
            picked = [jnp.where(x <= end, a, b) for a, b in zip(row, picked, strict=True)]
        return picked

    def product(self, first, factor, n):
        """Return first * factor(1) * ... * factor(n) for every n of an array."""
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
    def at(self, count: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the rate at this count; nothing is checked."""
        ...

    def check(self, owner: str, arguments: Arguments) -> None:
        """Refuse bad arguments, in the name of `owner`."""
        ...


def schedule_family(
    **declared: Declaration,
) -> Callable[[Callable[Concatenate[Any, Any, P], Any]], Family[P]]:
    """Turn a formula f(maths, count, *arguments) into a function of the arguments that returns a schedule.

    `declared` says what the arguments may be; `learning_rate` is always checked, last if not declared.
    """
    declared.setdefault("learning_rate", unless(callable, *RATE))

    def decorate(formula: Callable[Concatenate[Any, Any, P], Any]) -> Family[P]:
        signature = inspect.signature(formula)
        signature = signature.replace(parameters=list(signature.parameters.values())[2:])
        own = {name: d for name, d in declared.items() if name in signature.parameters}

        @functools.wraps(formula)
        def make(*args: Any, **kwargs: Any) -> Schedule:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            check(family.__name__, bound.arguments)
            return Schedule(family, bound.arguments)

        def at(count: Any, *args: Any, **kwargs: Any) -> Any:
            return _evaluate(formula, count, args, kwargs)

        def check(owner: str, arguments: Arguments) -> None:
            refuse_bad(owner, own, arguments)
            for name, value in arguments.items():
                for x in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(x, float | np.floating):
                        verify(Interval(open=True, above=True, error=ValueError), f"{owner}'s {name}", x)

        make.__dict__.update(at=at, check=check, __signature__=signature)
        family = cast("Family[P]", make)
        return family

    return decorate


# ------------------------------------------------------------- what arguments of schedules may be
# The classes of errors are those that Paddle's constructors raise. An array passes: it may be traced.


def is_array(x: Any) -> bool:
    """Return whether x is an array, whose elements a schedule does not check."""
    return isinstance(x, (jax.Array, np.ndarray))


def real(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open: bool = False,
    above: bool = False,
    error: type[Exception],
) -> Check:
    """Return the check that an argument lies in an interval; arrays pass unchecked."""
    return unless(is_array, Interval(low, high, open, above, error))


def number_like(*kinds: type, expected: str = "a number") -> Check:
    """Return the check that an argument is of these types; arrays pass unchecked."""
    return unless(is_array, instance(kinds, expected))


def steps(type_error: type[Exception], sign_error: type[Exception]) -> tuple[Check, ...]:
    """A number of steps: an int above 0. Paddle takes True for one."""
    return instance(int, "an int", type_error), Interval(0, above=True, error=sign_error, kind="an int")


SEQUENCE = instance(list | tuple | np.ndarray | jax.Array, "a list or tuple")
RATE = number_like(int, float, np.number), real(0, open=True, error=ValueError)
BASE_RATE = (
    instance(int | float, "a float"),
    Interval(0, open=True, error=ValueError, kind="a float"),
)  # of a class
RISING = (
    instance(list | tuple, "a list or tuple"),
    Must(
        lambda numbers: all(a < b for a, b in zip(numbers, numbers[1:], strict=False)),
        "strictly increasing numbers",
        ValueError,
    ),
)
RISES = Must(
    lambda end, start_lr: is_array(end) or is_array(start_lr) or end > start_lr,
    "more than start_lr, {start_lr}",
    AssertionError,
)
