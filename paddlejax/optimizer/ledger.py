"""The ledger of saved state: which entries a state_dict has, and how each is written and read.

Whoever has a state to save declares it as fields. A `Field` is one entry: its key, what its value must be,
how a value is written there and how it is read back. The same fields serve in both directions:

    state_dict        written([(field, value), ...]) makes the dict.
    set_state_dict    load(self._loading, state_dict, strict) takes all of it over, or changes nothing.

`_loading(entries, strict)` is a generator with one `yield`. Before the `yield` it reads its fields from the
`Entries` and changes nothing. After it, it puts what it read in force. In between `load` closes the entries:
whatever was missing, ambiguous, of the wrong kind, or read by nobody is in one StateDictError, and then
nothing is put in force. A wrapper says `yield from` the inner optimizer's `_loading` in place of `yield`, so
that both read before either changes.

A trailing counter (`_0`, `_1`) is not part of a key; `counters=False` is for dicts whose keys are exact.

    Field           any value, as it is
    AttributeField  any value, but an array of one element becomes a float
    ArrayField      an array of one shape and dtype
    SharedField     a scalar that all parameters share, which Paddle stores once with each of them
    NumberField     a Python number
    CountField      a Python int that Paddle stores as an array of shape (1,)
    DictField       a dict; `Entries.part` reads what is in it

>>> count, scale = CountField("steps"), ArrayField("scale", (2,), np.float32)
>>> saved = written([(count, 3), (scale, jnp.ones(2))])
>>> saved["steps"]
array([3])
>>> entries = Entries({"steps": saved["steps"], "scales": 1})
>>> entries.read(count), entries.read(scale)
(3, None)
>>> print("\\n".join(entries.found_wrong()))
missing: scale (nearest: scales)
unexpected: scales
"""

import copy
import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..array_types import Stored
from ..tracing import check_outside
from .gate import one_at_a_time

K = TypeVar("K", bound=Hashable)
LETTERS = {bool: "b", int: "iu", float: "fiu"}  # of numpy's kinds of dtypes
LARGEST = 2**31 - 1  # an int32


class StateDictError(ValueError, AssertionError, RuntimeError, KeyError):
    """A state_dict does not fit the optimizer; everything that is wrong with it is in the message.

    Paddle raises one of these four, depending on version and fault.
    """

    __str__ = Exception.__str__  # KeyError's would quote the message


class Misfit(Exception):
    """A value that a field does not take; the arguments say why not."""


# -------------------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Field:
    """An entry with any value: its key, and whether it is missed if it is not there."""

    key: str
    _: KW_ONLY
    required: bool = True

    def write(self, value: Any) -> Any:
        """What the dict gets for this value."""
        return value

    def read(self, value: Any, name: str) -> Any:
        """The value that the dict's entry stands for; Misfit if it is none. `name` is for messages."""
        return value


class AttributeField(Field):
    """An attribute of a scheduler; an array of one element becomes a float."""

    def write(self, value: Any) -> Any:
        """Return the value, an array of one element as a float."""
        return float(value.reshape(())) if isinstance(value, jax.Array) else value


@dataclass(frozen=True)
class ArrayField(Field):
    """An array; both directions copy it, since arrays of a state are donated to the next step."""

    shape: tuple[int, ...]
    dtype: Any

    def write(self, value: Any) -> jax.Array:
        """Return a copy of the array."""
        return jnp.copy(value)

    def read(self, value: Any, name: str) -> Any:
        """Return a copy of the array in this field's shape; a scalar passes for shape (1,)."""
        self._check(value, name)
        value = np.asarray(value) if isinstance(value, Stored) else value
        return jnp.array(value if value.shape == self.shape else value.reshape(self.shape))

    def _check(self, value: Any, name: str) -> None:
        """Raise a Misfit if this is no array of the field's shape and dtype."""
        if not isinstance(value, jax.Array | np.ndarray | Stored):
            raise Misfit(f"not an array: {name} is {type(value).__name__}")
        if value.shape != self.shape and not (self.shape == (1,) and value.shape == ()):
            raise Misfit(f"misshapen: {name} has shape {value.shape}, expected {self.shape}")
        # A count may have any dtype of integers: Paddle writes int32 or int64.
        count = self.dtype == np.int64 and jnp.issubdtype(value.dtype, jnp.integer)
        if value.dtype != self.dtype and not count:
            raise Misfit(f"wrong dtype: {name} is {value.dtype}, expected {np.dtype(self.dtype)}")


@dataclass(frozen=True)
class SharedField(ArrayField):
    """A scalar that all parameters share, as Paddle stores it with one of them.

    A float has shape (1,), or the parameter's where the rule says `full_shape`, in the dtype that the
    parameter is computed in. An int is an int64 of shape (1,).
    """

    start: Any = None  # what is read where the parameter has no element to read it from

    @classmethod
    def of(cls, key: str, scalar: Any, shape: tuple[int, ...], dtype: Any, start: Any = None) -> Self:
        """The field of a scalar, given as array or ShapeDtypeStruct; `shape` and `dtype` are for a float."""
        if jnp.issubdtype(scalar.dtype, jnp.integer):
            return cls(key, (1,), np.int64, start)
        return cls(key, shape, dtype, start)

    def write(self, value: Any) -> Any:
        """Return the scalar as an array that is full of it."""
        if self.dtype == np.int64:
            return np.asarray(value, np.int64).reshape(1)
        # jnp.full of a scalar may be that scalar itself, which the next step donates.
        return jnp.full(self.shape, value, self.dtype) if self.shape else jnp.array(value, self.dtype)

    def read(self, value: Any, name: str) -> np.ndarray | None:
        """Return the scalar that fills the array; None if the array is empty and the field has no `start`."""
        self._check(value, name)
        value = np.asarray(value) if isinstance(value, Stored) else value
        if not value.size:
            return None if self.start is None else np.asarray(self.start, self.dtype)
        first = value.reshape(-1)[0]
        if not bool(((value == first) | (first != first)).all()):
            raise Misfit(f"not one number: {name} has different elements, expected all to be equal")
        return np.asarray(first).astype(self.dtype)


@dataclass(frozen=True)
class NumberField(Field):
    """A Python number; an int lies between `low` and `high`. An array of one element is read as a number."""

    kind: type
    _: KW_ONLY
    low: int = 0
    high: int = LARGEST

    def read(self, value: Any, name: str) -> Any:
        """Return the number as Python's, if it has the right kind and lies in the range."""
        # Numpy would make a huge array of a list of one long text and many short ones.
        plain = isinstance(value, int | float | np.generic | np.ndarray | jax.Array)
        plain = plain or isinstance(value, list | tuple) and len(value) == 1
        array, kind = np.asarray(value if plain else ""), self.kind.__name__
        wanted = f"an int from {self.low} to {self.high}" if self.kind is int else f"a {kind}"
        if array.dtype.kind not in LETTERS[self.kind]:
            raise Misfit(f"not {wanted[:2].strip()} {kind}: {name} is {value!r:.80}, expected {wanted}")
        if array.shape not in ((), (1,)):
            raise Misfit(f"misshapen: {name} has shape {array.shape}, expected (1,)")
        number = array.item()
        if self.kind is int and not self.low <= number <= self.high:
            raise Misfit(f"out of range: {name} is {number}, expected {wanted}")
        return number


@dataclass(frozen=True)
class CountField(NumberField):
    """A count, which Paddle stores as an array of integers of shape (1,)."""

    kind: type = field(default=int, init=False)
    dtype: Any = np.int64

    def write(self, value: Any) -> np.ndarray:
        """Return the count as an array of shape (1,)."""
        return np.asarray(value, self.dtype).reshape(1)

    def read(self, value: Any, name: str) -> int:
        """Return the count as an int; only an array is taken, as Paddle writes it."""
        if not isinstance(value, jax.Array | np.ndarray):
            raise Misfit(f"not an array: {name} is {type(value).__name__}")
        return super().read(value, name)


class DictField(Field):
    """A dict."""

    def read(self, value: Any, name: str) -> Mapping[Any, Any]:
        """Return the dict; any other value is a Misfit."""
        if not isinstance(value, Mapping):
            raise Misfit(f"not a dict: {name} is {type(value).__name__}")
        return value


# -------------------------------------------------------------------------------- writing and reading


def written(pairs: Iterable[tuple[Field, Any]]) -> dict[str, Any]:
    """The dict that has these values under their fields."""
    check_outside("state_dict", "call it outside")
    return {f.key: f.write(value) for f, value in pairs}


@one_at_a_time
def load(loading: "Loading", state_dict: Any, strict: bool = True, counters: bool = True) -> None:
    """Take over a state_dict, or raise one error with all that does not fit, and change nothing."""
    check_outside("set_state_dict", "call it outside")

    def read() -> Iterator[None]:
        entries = Entries(state_dict, counters)
        steps = loading(entries, strict)
        next(steps)
        entries.close()
        return steps

    steps = read()
    try:
        next(steps, None)
    except Exception:  # refused, for example by a scheduler, which is as it was
        raise
    except BaseException:  # interrupted on the way: all of it is put in force, from the start
        next(read(), None)
        raise


@contextmanager
def undone_on_error(owner: Any) -> Iterator[None]:
    """Whatever fails inside leaves the attributes of this object as they were."""
    before = copy.deepcopy(vars(owner))
    try:
        yield
    except BaseException:
        vars(owner).update(before)
        raise


class Entries:
    """What a state_dict holds, which of it was read, and what was found wrong on the way."""

    def __init__(self, state_dict: Any, counters: bool = True, name: str = "{}"):
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: found {type(state_dict).__name__}, expected a dict")
        self.problems: list[str] = []  # beside what is missing or unexpected
        self._entries, self._counters = dict(state_dict), counters
        self._name = name  # how messages call an entry, as "master_weights of {}"
        self._missing: list[str] = []
        self._parts: list[Entries] = []
        self._used: set[Any] = set()
        self._keys: dict[Any, list[Any]] = {}  # by key without its counter
        for key in self._entries:
            self._keys.setdefault(self._stem(key), []).append(key)

    def _stem(self, key: Any) -> Any:
        """Return the key under which an entry is filed here: without its counter, if it may have one."""
        return base(key) if self._counters and isinstance(key, str) else key

    @property
    def rest(self) -> dict[Any, Any]:
        """The entries that nobody has read yet."""
        return {key: value for key, value in self._entries.items() if key not in self._used}

    def has(self, key: str) -> bool:
        """Whether there is such an entry."""
        return self._stem(key) in self._keys

    def peek(self, key: str) -> Any:
        """The entry as it is, which still counts as not read; None if it is not there."""
        return self._entries[self._keys[self._stem(key)][0]] if self.has(key) else None

    def drop(self, *keys: str) -> None:
        """Count these entries as read."""
        self._used.update(k for key in keys for k in self._keys.get(self._stem(key), []))

    def read(self, field: Field) -> Any:
        """The field's value; None if it is not there or does not fit, which is noted."""
        keys = self._keys.get(self._stem(field.key), [])
        self._used.update(keys)
        if not keys:
            self._missing += [field.key] if field.required else []
        elif len(keys) > 1:
            self.problems.append(f"ambiguous: {' and '.join(keys)}")
        else:
            try:
                return field.read(self._entries[keys[0]], self._name.format(keys[0]))
            except Misfit as e:
                self.problems += e.args
        return None

    def read_all(self, fields: Mapping[K, Field], may_be_absent: bool = False) -> dict[K, Any]:
        """The values of the fields; {} if they may be absent and none of them is there."""
        if may_be_absent and not any(self.has(field.key) for field in fields.values()):
            return {}
        return {name: self.read(field) for name, field in fields.items()}

    def part(self, key: str, name: str = "{}", required: bool = False) -> "Entries":
        """The entries of the dict that is this entry, of which messages speak by `name`; none without it."""
        found = self.read(DictField(key, required=required))
        self._parts.append(Entries({} if found is None else found, counters=False, name=name))
        return self._parts[-1]

    def found_wrong(self, also: Mapping[Any, str] | None = None) -> list[str]:
        """All problems; `also` is what is to be said beside the keys that nobody read."""
        rest = self.rest
        unread = [key for key in rest if isinstance(key, str)]
        return [
            *(f"missing: {self._name.format(key)}{nearest(key, unread)}" for key in self._missing),
            *self.problems,
            *(problem for part in self._parts for problem in part.found_wrong()),
            *(f"unexpected: {self._name.format(key)}{(also or {}).get(key, '')}" for key in rest),
        ]

    def close(self, hint: Callable[[], str] = str, also: Mapping[Any, str] | None = None) -> None:
        """Raise one error if anything was wrong, or was read by nobody; the hint is its end."""
        if problems := self.found_wrong(also):
            listed = "\n  ".join(problems)
            raise StateDictError(f"the state_dict does not fit, and nothing was changed:\n  {listed}{hint()}")


Loading = Callable[[Entries, bool], Iterator[None]]


def base(key: str) -> str:
    """A key without its trailing counter."""
    return re.sub(r"_\d+$", "", key)


def nearest(key: str, names: Sequence[str]) -> str:
    """The name most like a missing one, for the message; none among thousands, which would take long."""
    near = difflib.get_close_matches(key, names, 1, 0.5) if len(names) <= 500 else []
    return f" (nearest: {near[0]})" if near else ""
