"""An array in a pickle, on the way: what `_reconstruct` and `dtype` make, and what BUILD gives them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .budget import ARRAY
from .errors import Refused, shown

DIMENSIONS, LENGTH = 32, 2**48  # of an array: at most so many, each below that
DTYPES = tuple("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())


class Noted:
    """Stands for bytes that were left in the file: where they are, and what makes an array of them."""

    def __init__(self, offset: int, length: int, make: Callable[[int, Any, Any, bool], Any]):
        self.offset, self.length, self.make = offset, length, make

    def __len__(self) -> int:
        return self.length

    def array(self, shape: Any, dtype: np.dtype, fortran: bool) -> Any:
        """The array of these bytes, which is not read yet."""
        return self.make(self.offset, shape, dtype, fortran)


class PickledDtype:
    """An element type, complete once BUILD has told its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any, copy: Any):
        if type(code) is not str or code not in DTYPES:
            raise Refused(f"an array's dtype is {shown(code)}, expected one of {', '.join(DTYPES)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take over the state of a pickled dtype: its byte order. Refuse any other form."""
        if not fits(state, int, str) or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
            raise Refused("an array's dtype has fields or an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """An array, complete once BUILD has given its contents."""

    __slots__ = ("before", "machine", "value")

    def __init__(self, machine: Any):
        self.machine, self.before = machine, (machine.memo.puts, machine.budget.left)
        self.value: Any = None

    def build(self, state: Any) -> None:
        """Take over the state of a pickled array: shape, dtype and bytes, which must agree; refuse any other
        form."""
        if self.value is not None or not fits(state, int, tuple, PickledDtype) or len(state) != 5:
            raise Refused("an array is not built as NumPy builds it")
        _, shape, dtype, fortran, data = state
        if len(shape) > DIMENSIONS or not all(type(n) is int and 0 <= n < LENGTH for n in shape):
            raise Refused("an array's shape is not one")
        dtype, data = dtype.dtype, data if isinstance(data, Noted) else contents(data)
        if len(data) != math.prod(shape) * dtype.itemsize:
            needed = f"needs {math.prod(shape) * dtype.itemsize} bytes"
            raise Refused(f"an array of shape {shape} and dtype {dtype} {needed}, found {len(data)}")
        self.machine.claim(len(data))
        puts, left = self.before
        if type(fortran) is bool and puts == self.machine.memo.puts:
            self.machine.budget.left = left  # what it was made of is gone now: nothing else could keep it
        self.machine.budget.charge(ARRAY)
        if isinstance(data, Noted):
            self.value = data.array(shape, dtype, fortran is True)
            return
        value = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran is True else "C")
        self.value = value.astype(dtype.newbyteorder("="), copy=False)


def fits(values: Any, *kinds: type) -> bool:
    """Whether this is a tuple that begins with exactly these types."""
    return type(values) is tuple and tuple(map(type, values[: len(kinds)])) == kinds


def contents(data: Any) -> bytes:
    """Return an array's contents as bytes; Python 2 wrote them as a string."""
    if type(data) is str:
        return data.encode("latin1")
    if type(data) is not bytes:
        raise Refused(f"the contents of an array are a {type(data).__name__}")
    return data
