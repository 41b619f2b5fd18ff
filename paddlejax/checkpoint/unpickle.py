"""Read a pickle of arrays and plain containers, and nothing else.

Paddle's files are pickles, and a pickle is a program: loading one with Python's own machine runs whatever its
author wrote. This machine knows only the instructions Paddle's files contain, and a dozen globals that stand
for entries of a table below; it imports and calls nothing. Whatever it allocates is bounded by the size of
the file: lengths are compared with what is left of the file before they are read, arrays with the bytes they
claim, and a container that is referred to many times is counted every time.
"""

import math
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np

from .errors import Refused

DEPTH = 100  # of nested containers
LENGTH = 10_000_000  # instructions; an array takes about 40
DTYPES = tuple("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
ARRAY, NDARRAY, DTYPE, SCALAR, ENCODE, TUPLE, ORDERED = "array ndarray dtype scalar encode tuple dict".split()
GLOBALS = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): ARRAY for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): DTYPE,
    ("_codecs", "encode"): ENCODE,
    ("builtins", "tuple"): TUPLE,
    ("__builtin__", "tuple"): TUPLE,
    ("collections", "OrderedDict"): ORDERED,
}


class _Global:
    """What a global of the table is in here: a mark, not a function."""

    def __init__(self, kind: str):
        self.kind = kind


class _Dtype:
    """An element type, complete once BUILD has told its byte order."""

    def __init__(self, code: str):
        self.code, self.dtype = code, np.dtype(code)

    def build(self, state: Any) -> None:
        if not _fits(state, int, str) or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
            raise Refused("an array's dtype has fields or an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, complete once BUILD has given its contents."""

    def __init__(self, machine: "Machine"):
        self.machine = machine
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if self.value is not None or not _fits(state, int, tuple, _Dtype) or len(state) != 5:
            raise Refused("an array is not built as NumPy builds it")
        _, shape, dtype, fortran, data = state
        if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise Refused("an array's shape is not one")
        dtype, data = dtype.dtype, _bytes(data)
        if len(data) != math.prod(shape) * dtype.itemsize:
            needed = f"needs {math.prod(shape) * dtype.itemsize} bytes"
            raise Refused(f"an array of shape {shape} and dtype {dtype} {needed}, found {len(data)}")
        self.machine.claim(len(data))
        value = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran is True else "C")
        self.value = value.astype(dtype.newbyteorder("="), copy=False)


def unpickle(file: BinaryIO, size: int) -> Any:
    """The object in a file of this size; arrays are read-only views of what was read.

    Raises Refused, or any other Exception that hostile bytes provoke; the caller words it.
    """
    return Machine(file, size).run()


class Machine:
    """A stack, a memo, and one method per kind of instruction."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.left = file, size, size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.claimed = self.visited = 0

    def run(self) -> Any:
        if self.size == 0:
            raise Refused("it is empty")
        if (start := self.read(1)) != b"\x80":
            raise Refused(f"it is no pickle of protocol 2 to 4: it begins with {start!r}")
        self.proto()
        for _ in range(LENGTH):
            code = self.read(1)
            if code == b".":
                break
            instruction = INSTRUCTIONS.get(code)
            if instruction is None:
                raise Refused(f"the byte {code[0]:#04x} is no instruction of a checkpoint")
            instruction(self)
        else:
            raise Refused(f"it has more than {LENGTH} instructions")
        if len(self.stack) != 1 or self.marks or self.left:
            raise Refused(f"it is incomplete, or {self.left} bytes follow its end")
        return self.plain(self.stack[0])

    def read(self, n: int) -> bytes:
        if not 0 <= n <= self.left:
            raise Refused(f"it is cut short: {n} more bytes wanted, {self.left} left of {self.size}")
        data = self.file.read(n)
        self.left -= n
        if len(data) != n:
            raise Refused("it shrank while it was read")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def long(self) -> int:
        value = int.from_bytes(self.read(self.number("<B")), "little", signed=True)
        if value.bit_length() > 64:
            raise Refused(f"it has an integer of {value.bit_length()} bits, expected at most 64")
        return value

    def line(self) -> str:
        text = self.file.readline(200)
        self.left -= len(text)
        if not text.endswith(b"\n"):
            raise Refused("the name of a global does not end")
        return text[:-1].decode()

    def claim(self, n: int) -> None:
        """Count bytes made from the file's: never more than it has."""
        self.claimed += n
        if self.claimed > 2 * self.size:
            raise Refused("its arrays claim more bytes than it has")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Refused("it takes from an empty stack")
        return self.stack.pop()

    def take(self, n: int) -> list[Any]:
        return [self.pop() for _ in range(n)][::-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("a mark is missing")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def proto(self) -> None:
        protocol = self.number("<B")
        if not 2 <= protocol <= 4:
            raise Refused(f"it is a pickle of protocol {protocol}, expected 2, 3 or 4")

    def frame(self) -> None:
        self.read(8)

    def put(self, index: int | None = None) -> None:
        if not self.stack:
            raise Refused("it takes from an empty stack")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"it refers to an object {index} that is not there")
        self.push(self.memo[index])

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not dict or len(items) % 2:
            raise Refused("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys could be slow or deep to hash.
            if not (type(key) is str or type(key) is int and abs(key) < 2**63):
                raise Refused(f"a key of a dict is of type {_kind(key)}, expected str or int")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not list:
            raise Refused("it appends to what is no list")
        target.extend(items)

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in GLOBALS:
            raise Refused(f"it wants {f'{module}.{name}'[:200]!r}, which no checkpoint needs")
        self.push(_Global(GLOBALS[module, name]))

    def reduce(self) -> None:
        function, args = self.take(2)
        if not isinstance(function, _Global) or type(args) is not tuple:
            raise Refused(f"it calls a {_kind(function)}")
        kind, args = function.kind, cast(Any, args)
        if kind == ARRAY and len(args) == 3 and _fits(args, _Global) and args[0].kind == NDARRAY:
            self.push(_Array(self))
        elif kind == DTYPE and len(args) == 3 and type(args[0]) is str:
            if args[0] not in DTYPES:
                raise Refused(f"an array's dtype is {args[0][:100]!r}, expected one of {', '.join(DTYPES)}")
            self.push(_Dtype(args[0]))
        elif kind == SCALAR and _fits(args, _Dtype) and len(args) == 2:
            self.push(self.scalar(args[0].dtype, _bytes(args[1])))
        elif kind == ENCODE and _fits(args, str, str) and args[1:] == ("latin1",):
            self.claim(len(args[0]))
            self.push(args[0].encode("latin1"))
        elif kind == TUPLE and _fits(args, tuple) and len(args) == 1:
            self.push(args[0])
        elif kind == ORDERED and args == ():
            self.push({})
        else:
            raise Refused(f"it calls {kind} in a way no checkpoint does")

    def scalar(self, dtype: np.dtype, data: bytes) -> Any:
        if len(data) != dtype.itemsize:
            raise Refused(f"a number of dtype {dtype} needs {dtype.itemsize} bytes, found {len(data)}")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))[0]

    def build(self) -> None:
        target, state = self.take(2)
        if not isinstance(target, _Array | _Dtype):
            raise Refused(f"it gives a state to a {_kind(target)}")
        target.build(state)
        self.push(target)

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The tree with its arrays in place; what it refers to twice is there twice."""
        self.visited += 1
        if depth > DEPTH:
            raise Refused(f"it is nested more than {DEPTH} deep")
        if self.visited > self.size:
            raise Refused("it refers to the same containers again and again")
        if type(value) is dict:
            return {k: self.plain(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.plain(v, depth + 1) for v in value)
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if value is None or isinstance(value, bool | int | float | str | np.generic):
            return value
        raise Refused(f"it holds an object of type {_kind(value)}, which no checkpoint does")


def _fits(values: Any, *kinds: type) -> bool:
    """Whether this is a tuple that begins with exactly these types."""
    return type(values) is tuple and tuple(map(type, values))[: len(kinds)] == kinds


def _bytes(data: Any) -> bytes:
    """An array's contents; Python 2 wrote them as a string."""
    if type(data) is str:
        return data.encode("latin1")
    if type(data) is not bytes:
        raise Refused(f"the contents of an array are a {_kind(data)}")
    return data


def _kind(value: Any) -> str:
    return type(value).__name__.lstrip("_").lower()


def _value(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.push(make(machine))


def _text(form: str, encoding: str = "utf-8") -> Callable[[Machine], None]:
    return _value(lambda m: m.read(m.number(form)).decode(encoding))


def _data(form: str) -> Callable[[Machine], None]:
    return _value(lambda m: m.read(m.number(form)))


INSTRUCTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x95": Machine.frame,  # the length of a frame, of use to a slow reader only
    b"(": Machine.mark,
    b"N": _value(lambda m: None),
    b"\x88": _value(lambda m: True),
    b"\x89": _value(lambda m: False),
    b"J": _value(lambda m: m.number("<i")),
    b"K": _value(lambda m: m.number("<B")),
    b"M": _value(lambda m: m.number("<H")),
    b"\x8a": _value(Machine.long),
    b"G": _value(lambda m: m.number(">d")),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"T": _text("<i", "latin1"),
    b"U": _text("<B", "latin1"),
    b"B": _data("<I"),
    b"C": _data("<B"),
    b"\x8e": _data("<Q"),
    b"}": _value(lambda m: {}),
    b"]": _value(lambda m: []),
    b")": _value(lambda m: ()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: m.push(tuple(m.take(1))),
    b"\x86": lambda m: m.push(tuple(m.take(2))),
    b"\x87": lambda m: m.push(tuple(m.take(3))),
    b"s": lambda m: m.set_items(m.take(2)),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"a": lambda m: m.extend(m.take(1)),
    b"e": lambda m: m.extend(m.since_mark()),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": Machine.put,
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": lambda m: m.find(m.line(), m.line()),
    b"\x93": lambda m: m.find(*m.take(2)),
    b"R": Machine.reduce,
    b"b": Machine.build,
}
