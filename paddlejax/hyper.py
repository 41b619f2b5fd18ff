"""What an argument may be, declared beside the argument, and the one error for what it may not.

`@checked(alpha=FRACTION, k=COUNT)` above a function declares its arguments; the fields of a rule declare
theirs in `Annotated`. Both refuse a bad value when they are called, all in one wording:

    lookahead's alpha: found 1.5, expected a number in [0, 1]

A declaration is one check or a tuple of checks. A check is a function (name, value, arguments) that raises;
`arguments` are all arguments of the call by name, for what depends on another one.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

F = TypeVar("F", bound=Callable[..., Any])
Arguments = Mapping[str, Any]
Check = Callable[[str, Any, Arguments], None]
Declaration = Check | tuple[Check, ...]
LONGEST = 160  # of what an error shows of a value
NO_OTHERS: Arguments = types.MappingProxyType({})


class ArgumentError(ValueError, AssertionError):
    """A hyperparameter is missing or out of range.

    Paddle raises ValueError for some and AssertionError for others; either `except` clause catches this one.
    """


def refuse(name: str, value: Any, expected: str, error: type[Exception] = ArgumentError) -> NoReturn:
    """Raise the error of an argument: its name, what was found, what was expected."""
    raise error(f"{name}: found {shown(value)}, expected {expected}")


def require(ok: Any, name: str, value: Any, expected: str, error: type[Exception] = ArgumentError) -> None:
    """`refuse` unless `ok`.

    >>> require(False, "step's epoch", -1, "a number of at least 0", ValueError)
    Traceback (most recent call last):
    ValueError: step's epoch: found -1, expected a number of at least 0
    """
    if not ok:
        refuse(name, value, expected, error)


def is_array(x: Any) -> bool:
    """Return whether x is an array of JAX, which may be traced."""
    return isinstance(x, jax.Array)


def is_traced(x: Any) -> bool:
    """Return whether x is traced: then its value is not known and cannot be checked."""
    return isinstance(x, Tracer)


def shown(value: Any) -> str:
    """A value as errors show it: numbers of any kind as numbers, larger arrays by shape and dtype."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        text = repr(value)
        return text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return str(value) if not value.shape else f"an array of shape {value.shape} and dtype {value.dtype}"


@dataclass(frozen=True)
class Interval:
    """What a number may be: [low, high], without `high` itself if `open`, without `low` if `above`.

    As a check it refuses what lies outside, and NaN. What is traced passes: it is not known yet.
    """

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    above: bool = False
    error: type[Exception] = ArgumentError
    kind: str = "a number"

    def __contains__(self, x: float) -> bool:
        above = self.low < x if self.above else self.low <= x
        return above and (x < self.high if self.open else x <= self.high)

    def __str__(self) -> str:
        """`in [0, 1)`, or in words where one end is not bounded."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "that is finite" if self.open else ""
        if math.isinf(self.high):
            finite = " and finite" if self.open else ""
            return (f"above {self.low}" if self.above else f"of at least {self.low}") + finite
        if math.isinf(self.low):
            return f"below {self.high}" if self.open else f"of at most {self.high}"
        return f"in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.open else ']'}"

    __repr__ = __str__  # for help(), which shows the annotations of a rule's fields

    def __call__(self, name: str, value: Any, arguments: Arguments) -> None:
        if isinstance(value, Tracer):
            return
        # An array is read on the host: a comparison of arrays inside jit would be traced.
        known = np.asarray(value) if isinstance(value, jax.Array) else value
        try:
            inside = all(x in self for x in known.flat) if isinstance(known, np.ndarray) else known in self
        except TypeError:
            refuse(name, value, self.kind, TypeError)
        if not inside:
            refuse(name, value, f"{self.kind} {self}".rstrip(), self.error)


def check_rounded(name: str, value: Any, bound: Interval, dtype: Any) -> None:
    """Refuse a number that lies within its bound, and outside once it is rounded to this dtype."""
    if isinstance(value, Tracer):
        return
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(value).astype(dtype)
    if float(rounded) not in bound:
        found = f"found {shown(value)}, which {np.dtype(dtype)} rounds to {rounded}"
        raise bound.error(f"{name}: {found}, expected {bound.kind} {bound}")


@dataclass(frozen=True)
class Must:
    """A check from a test of the value; further parameters of the test are other arguments, by name.

    Other arguments may also stand in `expected`, in braces.
    """

    test: Callable[..., Any]
    expected: str
    error: type[Exception] = TypeError
    static: bool = False  # whether the value is never data, so that no array can be it

    def __call__(self, name: str, value: Any, arguments: Arguments) -> None:
        if not _asked(self.test, value, arguments):
            expected = self.expected.format_map(arguments)
            if self.static and isinstance(value, jax.Array):
                expected += "; under optax.inject_hyperparams name it in static_args"
            refuse(name, value, expected, self.error)


def _asked(test: Callable[..., Any], value: Any, arguments: Arguments) -> Any:
    """Ask a test about a value and about the other arguments that its parameters name."""
    others = _others(test)
    return test(value, *[arguments[name] for name in others]) if others else test(value)


@functools.cache
def _others(test: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(test).parameters)[1:]


def unless(test: Callable[..., Any], *checks: Check) -> Check:
    """These checks, but not of a value for which the test holds."""

    def check(name: str, value: Any, arguments: Arguments) -> None:
        if not _asked(test, value, arguments):
            verify(checks, name, value, arguments)

    vars(check)["checks"] = checks  # among which `_is_number` looks
    return check


def optional(*checks: Check) -> Check:
    """These checks, or None."""
    return unless(lambda x: x is None, *checks)


def verify(declaration: Declaration, name: str, value: Any, arguments: Arguments = NO_OTHERS) -> None:
    """Refuse one value that is not as declared."""
    for check in declaration if isinstance(declaration, tuple) else (declaration,):
        check(name, value, arguments)


def refuse_bad(owner: str, declared: Mapping[str, Declaration], arguments: Arguments) -> None:
    """Refuse the first bad argument, in the order of the declarations."""
    prefix = f"{owner}'s " if owner else ""
    for name, declaration in declared.items():
        verify(declaration, prefix + name, arguments[name], arguments)


def refuse_unknown(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a function or class does not have; the error lists those that it has."""
    made = function.__init__ if isinstance(function, type) else function
    parameters = inspect.signature(made).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name != "self"]
    for name in given:
        if name not in known:
            found = f"{function.__name__}(): got an unexpected keyword argument {name!r}"
            raise TypeError(f"{found}; its arguments are {', '.join(known)}")


class Named:
    """A class whose constructor lists its arguments where one is given that it does not have."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            refuse_unknown(cls, kwargs)
        return super().__new__(cls)


def checked(**declared: Declaration) -> Callable[[F], F]:
    """Declare what the arguments of a function or constructor may be; a bad one is refused at the call.

    >>> @checked(rate=(NUMBER, Interval(0)))
    ... def halved(rate, steps=1):
    ...     return rate / 2
    >>> halved(-1.0)
    Traceback (most recent call last):
    paddlejax.hyper.ArgumentError: halved's rate: found -1.0, expected a number of at least 0
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        required = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        method = positional[:1] == ["self"]
        known = None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}
        numbers = {name for name, declaration in declared.items() if _is_number(declaration)}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if known is not None and not kwargs.keys() <= known:
                refuse_unknown(type(args[0]) if method else function, kwargs)
            if numbers:
                named = [scalar(x) if k in numbers else x for k, x in zip(positional, args, strict=False)]
                args = *named, *args[len(named) :]
                kwargs = {k: scalar(x) if k in numbers else x for k, x in kwargs.items()}
            arguments = {**defaults, **dict(zip(positional, args, strict=False)), **kwargs}
            if required <= arguments.keys():  # else the call itself says what is missing
                refuse_bad(type(args[0]).__name__ if method else function.__name__, declared, arguments)
            return function(*args, **kwargs)

        call.declared = declared  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate


def _is_number(declaration: Declaration) -> bool:
    checks = declaration if isinstance(declaration, tuple) else (declaration,)
    return any(isinstance(c, Number) or _is_number(getattr(c, "checks", ())) for c in checks)


# ------------------------------------------------------------------------------------- what is declared


def number(name: str, value: Any, expected: str = "a number") -> None:
    """Refuse what is not one real number: a Python or numpy number, or a 0-d array (traced or not)."""
    array = value if isinstance(value, jax.Array | np.ndarray | np.generic) else None
    if isinstance(value, bool) or array is None and not isinstance(value, int | float):
        raise TypeError(f"{name}: found {value!r} of type {type(value).__name__}, expected {expected}")
    kinds = (jnp.floating, jnp.integer)
    if array is not None and (array.shape or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds)):
        found = f"an array of shape {array.shape} and dtype {array.dtype}"
        raise TypeError(f"{name}: found {found}, expected {expected} or a 0-d array")


def scalar(value: Any) -> Any:
    """An array of shape (1,), which Paddle takes for a number, as one of shape (); all else as it is."""
    one = isinstance(value, jax.Array | np.ndarray) and value.shape == (1,)
    return value.reshape(()) if one else value


def with_scalars(record: Any) -> Any:
    """A dataclass, such as a rule, with its arrays of shape (1,) as scalars; anything else as it is."""
    given = {f.name: getattr(record, f.name) for f in fields(record)} if is_dataclass(record) else {}
    changed = {name: scalar(x) for name, x in given.items() if scalar(x) is not x}
    return cast(Any, replace)(record, **changed) if changed else record


@dataclass(frozen=True)
class Number:
    """The check of `number`."""

    expected: str = "a number"

    def __call__(self, name: str, value: Any, arguments: Arguments) -> None:
        number(name, value, self.expected)


def given(expected: str) -> Check:
    """Not None, which is how Paddle says that an argument is missing: not the error of a wrong type."""
    return Must(lambda x: x is not None, expected, ArgumentError)


def instance(kind: Any, expected: str, error: type[Exception] = TypeError) -> Check:
    """Return the check that a value is of this type, or of one of these types."""
    return Must(lambda x: isinstance(x, kind), expected, error)


def each(*checks: Check) -> Check:
    """These checks, of every entry of a list."""

    def check(name: str, value: Any, arguments: Arguments) -> None:
        for i, entry in enumerate(value):
            verify(checks, f"{name}: entry {i}", entry, arguments)

    return check


def function_of(what: str) -> Check:
    """Return the check that a value can be called; `what` is for the error: what it is called with."""
    return Must(callable, f"a function of {what}")


def one_of(*choices: str | None, error: type[Exception] = ArgumentError) -> Check:
    """Return the check that a value is one of these strings, or None if None is among them."""
    *others, last = map(repr, choices)
    # By type first: an array would be compared element by element.
    return Must(
        lambda x: (x is None or isinstance(x, str)) and x in choices, f"{', '.join(others)} or {last}", error
    )


def whole(low: float, high: float = math.inf, error: type[Exception] = TypeError) -> tuple[Check, ...]:
    """An int from `low` to below `high`; `error` is that of another type."""
    return Must(_is_int, "an int", error, static=True), Interval(
        low, high, open=high < math.inf, kind="an int"
    )


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


NUMBER = Number()
COEFFICIENT = given("a number"), NUMBER
FRACTION = NUMBER, Interval(0, 1)
COUNT = (
    Must(lambda x: _is_int(x) and x > 0, "a positive int", ArgumentError, static=True),
    Must(lambda x: x < 2**31, "a positive int below 2**31", ArgumentError, static=True),
)
INT = Must(_is_int, "an int", static=True)
FLAG = instance(bool, "True or False")
NAME = instance(str | None, "a str or None")
# The numbers that every optimizer takes, checked alike wherever they are given.
FINITE = Interval(open=True, above=True)
MAGNITUDE = Interval(0, open=True)
DECAY = given("a number"), NUMBER, FINITE
FACTOR = NUMBER, MAGNITUDE  # on a rate
RATE = given("a number"), unless(callable, *FACTOR)
# An array that is a limit may have decayed to 0.
LIMIT = given("a number"), NUMBER, unless(is_array, Interval(0, above=True, open=True)), MAGNITUDE

Beta = Annotated[float, Interval(0, 1, open=True)]
Fraction = Annotated[float, Interval(0, 1)]
NonNegative = Annotated[float, Interval(0, open=True)]
Positive = Annotated[float, Interval(0, above=True, open=True)]
Predicate = Callable[[Any], bool] | None
Sharded = bool | Callable[[Any], Any] | None  # of a leaf: whether, or over which mesh axes, it is cut

SHARDED = optional(
    Must(
        lambda x: isinstance(x, bool) or callable(x),
        "True, False or a function of the path",
    )
)
KINDS: dict[Any, tuple[Check, ...]] = {
    float: (NUMBER,),
    int: (INT,),
    bool: (FLAG,),
    tuple[str, ...]: (
        Must(
            lambda x: isinstance(x, tuple) and all(isinstance(part, str) for part in x),
            "a list or tuple of str",
        ),
    ),
    str | tuple[str, ...] | None: (instance(str | tuple | None, "a str or a tuple of str"),),
    Predicate: (optional(function_of("the leaf")),),
    Sharded: (SHARDED,),
}


def of_annotation(annotation: Any, default: Any) -> tuple[Check, ...]:
    """The checks of a field with this annotation: of its type, then of the range beside it.

    None is missing, unless it is the default.
    """
    kind, *bounds = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if kind == float | None:
        return (optional(NUMBER, *(bounds or [FINITE])),)
    ranges = [replace(bound, kind="an int") if kind is int else bound for bound in bounds]
    if kind is float and not ranges:
        ranges = [FINITE]
    words = {int: "an int", tuple[str, ...]: "a list or tuple of str"}
    missing = () if default is None or kind is bool else (given(words.get(kind, "a number")),)
    return *missing, *KINDS.get(kind, ()), *ranges
