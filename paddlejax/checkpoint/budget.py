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
ARRAY = 800  # an array without its contents; making one takes long besides
COLLIDING = 16  # an int as key costs one for so many keys: it may be compared with all that are there
ATOMS = frozenset((type(None), bool, int, float))  # which refer to nothing, and which a tree may share


class Budget:
    """How many bytes the reader of a file of this size may still make."""

    def __init__(self, size: int, rate: int = RATE, floor: int = FLOOR):
        self.left = rate * size + floor

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
        """Count a container of a tree, which is copied as long as there are arrays in it."""
        if type(x) is not dict:
            self.charge((1 if ATOMS.issuperset(map(type, x)) else 2) * (72 + POINTER * len(x)))
            return
        self.charge((1 if ATOMS.issuperset(map(type, x.values())) else 2) * (80 + 90 * len(x)))
        self.charge(_collisions(x))


def _collisions(x: dict[Any, Any]) -> int:
    """Texts are hashed with a secret, ints are not: a file can make each collide with all before it."""
    return sum(type(k) is int for k in x) * len(x) // (2 * COLLIDING)


def room(tree: Any, size: int) -> bool:
    """Return whether a file of this size that holds this tree would be read back, with some to spare."""
    budget = Budget(size, RATE - 2, FLOOR - 4_000_000)

    def count(x: Any) -> None:
        if isinstance(x, dict):
            budget.charge(80 + 90 * len(x) + _collisions(x))
            budget.charge_container(x)
            for key in x:
                count(key)
        if isinstance(x, dict | list | tuple):
            if not isinstance(x, dict):
                budget.charge(72 + 2 * POINTER * len(x))
                budget.charge_container(x)
            for value in x.values() if isinstance(x, dict) else x:
                if value is not None and type(value) is not bool:
                    count(value)
        elif isinstance(x, str):
            budget.charge(3 * sys.getsizeof(x) + 16)
        else:
            budget.charge(41 if type(x) in ATOMS else 1300 if isinstance(x, np.generic) else 2100)

    try:
        count(tree)
    except Refused:
        return False
    return True
