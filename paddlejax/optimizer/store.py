"""Where the values of Parameters lie, who owns the arrays, and when a step may take their memory.

Every Parameter has one `Store` for life, and all others ask the Store for the array. The rules stand in the
page of `paddlejax.optimizer`.

    peek    the array, for a reader that does not keep it
    share   the array, for somebody who keeps it: from then on it is not the Store's alone
    take    the array, to be donated to a program: a copy where somebody else holds it too
    keep    the result of the program that was given what `take` returned
    put     any other new array that nobody else holds

A Store and a `packing.Buffer`, in which the values of many Parameters lie end to end, answer to the same
`take`, `keep` and `put`. So a compiled step does not know which of the two it moves.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..attributes import changes
from . import gate


class Store:
    """The place of one Parameter's value.

    `array` is the value, or None while the value lies in `buffer` and nobody has read it since the last step.
    `owned` is true where nobody else holds `array`, so that its memory may be donated. `buffer` is None where
    the value lies by itself; else the value is the part number `part` of that buffer.
    """

    __slots__ = ("array", "buffer", "owned", "part")

    def __init__(self, array: Any, owned: bool = True):
        self.array: Any = array
        self.owned = owned
        self.buffer: Any = None
        self.part = 0

    @property
    def holder(self) -> Any:
        """What has the array in which the value lies: itself, or its buffer."""
        return self if self.buffer is None else self.buffer

    def peek(self) -> jax.Array:
        """Return the array to a reader that does not keep it."""
        if self.array is None:
            self.array = self.buffer.read(self)
        return self.array

    def share(self) -> jax.Array:
        """Return the array to somebody who keeps it: later steps leave it as it is."""
        self.owned = False
        return self.peek()

    def take(self) -> jax.Array:
        """Return the array to donate: a copy if somebody else holds the current one."""
        if not self.owned:
            self.put(jnp.copy(self.peek()))
        return self.array

    def is_read(self) -> bool:
        """Return whether somebody has the array at this moment, such as a Loss that is not computed."""
        return sys.getrefcount(self.array) > ALONE

    def keep(self, array: jax.Array) -> None:
        """Hold what a program made of the array that `take` returned; twice is as good as once."""
        self.array = array

    def put(self, array: jax.Array) -> None:
        """Hold a new array, which nobody else holds; the value leaves the buffer it was in."""
        gate.own.moves += 1
        if self.buffer is not None:
            self.buffer.leave()
        old = self.holder.array
        if old is None or old.dtype != array.dtype or not same_place(old, array):
            changes.count += 1
        self.array, self.owned, self.buffer, self.part = array, True, None, 0

    def enter(self, buffer: Any, part: int) -> None:
        """From now on the value is a part of this buffer."""
        if self.buffer is not None and self.buffer is not buffer:
            self.buffer.leave()
        self.array, self.owned, self.buffer, self.part = None, False, buffer, part

    def forget(self, buffer: Any) -> None:
        """Drop what was read out of this buffer: it is not the value any more."""
        if self.buffer is buffer:
            self.array = None


def _references() -> int:
    """Return what Python counts where nobody but a Store has an array."""
    store = Store(object())
    return sys.getrefcount(store.array)


ALONE = _references()


def same_place(a: jax.Array, b: jax.Array) -> bool:
    """Return whether two arrays lie on the same devices in the same way, and are bound to them alike."""
    return a.committed == b.committed and a.sharding == b.sharding


class Values(NamedTuple):
    """The values of some Parameters as a program takes them: each array once, and how they lie in them."""

    arrays: list[jax.Array]
    where: "Where | None"  # None where each array is the value of one Parameter

    @classmethod
    def of(cls, stores: Sequence[Store]) -> "Values":
        """Return what lies in these Stores now. Nothing is copied or cut out."""
        if not any([s.buffer for s in stores]):
            return cls([s.array for s in stores], None)
        arrays: list[Any] = []
        layouts: list[Any] = []
        numbers: dict[int, int] = {}
        picks = []
        for s in stores:
            holder = s.holder
            number = numbers.setdefault(id(holder), len(arrays))
            if number == len(arrays):
                arrays.append(holder.array)
                layouts.append(None if s.buffer is None else holder.layout)
            picks.append((number, s.part))
        return cls(arrays, Where(tuple(layouts), tuple(picks)))

    def are_still(self, stores: Sequence[Store]) -> bool:
        """Return whether these are the values in the Stores now."""
        now = Values.of(stores)
        same = len(now.arrays) == len(self.arrays) and now.where == self.where
        return same and all(a is b for a, b in zip(now.arrays, self.arrays, strict=True))


class Where(NamedTuple):
    """Where the value of each Parameter is to be found: in which array, and which part of it."""

    layouts: tuple[Any, ...]  # per array how it is divided, None where it is one value
    picks: tuple[tuple[int, int], ...]  # per Parameter (array, part)

    def spread(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Inside a program: return one array per Parameter."""
        pieces = spread(self.layouts, arrays)
        return [pieces[array][part] for array, part in self.picks]


def spread(layouts: Sequence[Any], arrays: Sequence[jax.Array]) -> list[list[jax.Array]]:
    """Inside a program: return the pieces of every array, the array itself where it has no layout."""
    return [[x] if layout is None else layout.split(x) for layout, x in zip(layouts, arrays, strict=True)]


def gathered(layouts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """Inside a program: return one array per buffer for those of its Parameters, in the widest dtype."""
    rest = iter(arrays)
    found = []
    for layout in layouts:
        if layout is None:
            found.append(next(rest))
            continue
        group = [next(rest) for _ in layout.shapes]
        with jax.numpy_dtype_promotion("standard"):
            wide = functools.reduce(jnp.promote_types, {x.dtype for x in group})
        found.append(layout.join([x.astype(wide) for x in group]))
    return found
