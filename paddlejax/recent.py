"""A bounded table: what was asked for lately stays, what was not for longest goes first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
KEPT = 64  # entries: programs, losses, and whatever else could be a new one at every step


class Recent(Generic[K, V]):
    """The last KEPT entries that were asked for, by key; an entry that has gone has to be made anew."""

    def __init__(self) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the entry, which is the newest from now on; None if there is none."""
        try:
            value = self._entries[key]
            self._entries.move_to_end(key)
        except KeyError:  # also where another thread has just let it go
            return None
        return value

    def put(self, key: K, value: V) -> V:
        """Keep an entry, and return it; the oldest goes where there are too many."""
        self._entries[key] = value
        while len(self._entries) > KEPT:
            try:
                self._entries.popitem(last=False)
            except KeyError:  # another thread was faster
                break
        return value

    def values(self) -> list[V]:
        """Return all entries, the one that was asked for last at the end."""
        return list(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
