"""What a file may make its reader do: memory and time in proportion to its size.

A file of a few bytes can ask for much: a text that is named again costs two bytes and is printed in full, a
container is one byte and takes 60 of memory. So whatever a reader makes is charged here, before or as it is
made, at what it costs at most until the user has it. A file that wants more than `RATE` times its size is
refused. Small files may cost `FLOOR` in any case. Real checkpoints stay far below: they are mostly arrays,
whose bytes are in the file.
"""

import sys
from collections.abc import Collection
from typing import Any

import numpy as np

from .errors import Refused

RATE, FLOOR = 14, 24_000_000
POINTER = 9  # a place in a list, with the room that a list keeps
ARRAY = 1100  # an array without its contents; as one of JAX it takes three times as much
COLLIDING = 16  # an int as key costs one for so many keys: it may be compared with all that are there
ATOMS = frozenset((type(None), bool, int, float))  # which refer to nothing, and which a tree may share


class Budget:
    """How many bytes the reader of a file of this size may still make."""

    def __init__(self, size: int):
        self.left = RATE * size + FLOOR

    def charge(self, n: int) -> None:
        """Count bytes; refuse more than the size allows."""
        self.left -= n
        if self.left < 0:
            raise Refused(
                "it names the same things again and again, or holds more objects than its size allows"
            )

    def charge_text(self, text: str) -> None:
        """Count a text that is named, copied or put in a message."""
        self.charge(sys.getsizeof(text))

    def charge_container(self, x: Collection[Any]) -> None:
        """Count a container of a tree."""
        self.charge(_copies(x))


def _copies(x: Collection[Any]) -> int:
    """The bytes of a container in a tree, twice if there is more in it than numbers: then it is copied."""
    if not isinstance(x, dict):
        return (1 if ATOMS.issuperset(map(type, x)) else 2) * (72 + POINTER * len(x))
    return (1 if ATOMS.issuperset(map(type, x.values())) else 2) * (80 + 90 * len(x)) + _collisions(x)


def _collisions(x: dict[Any, Any]) -> int:
    """Texts are hashed with a secret, ints are not: a file can make each collide with all before it."""
    return sum(type(k) is int for k in x) * len(x) // (2 * COLLIDING)


def cost(x: Any) -> int:
    """What reading a tree back from a pickle costs, for whoever saves it: at most 7/6 of this."""
    if x is None or type(x) is bool:
        return 0  # a place in a container
    if isinstance(x, dict | list | tuple):
        made = 80 + 90 * len(x) + _collisions(x) if isinstance(x, dict) else 72 + 2 * POINTER * len(x)
        inside = (*x, *x.values()) if isinstance(x, dict) else x
        return made + _copies(x) + sum(map(cost, inside))
    if isinstance(x, str):
        return 3 * sys.getsizeof(x) + 16
    return 41 if type(x) in ATOMS else 2000 if isinstance(x, np.generic) else 2350


def room(tree: Any, size: int) -> bool:
    """Return whether a file of this size that holds this tree is one that is read back."""
    return cost(tree) <= (RATE * size + FLOOR) * 6 // 7
