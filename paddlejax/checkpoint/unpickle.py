"""Read a pickle of arrays and plain containers, and nothing else.

Paddle's files are pickles, and a pickle is a program: loading one runs whatever its author wrote. This is the
machine of the standard library with most of its instructions taken out. Each global that a file may name is a
function of a table below, so no code but ours is ever called. What it allocates is bounded by the size of the
file: `_Bounded` refuses to read more than is left, arrays are compared with the bytes they claim, and a
container that is referred to many times is counted every time. What a file decides is never compared, copied,
hashed or printed before its type is known: a list that costs a few bytes to name again may be long or deep.
"""

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .errors import Refused

DEPTH = 100  # of nested containers
DTYPES = tuple("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT "
    "EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINPUT LONG_BINPUT "
    "MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()
NDARRAY = object()  # stands for numpy.ndarray, the first argument of _reconstruct


class _Dtype:
    """An element type, complete once BUILD has told its byte order."""

    def __init__(self, code: Any, align: Any, copy: Any):
        if type(code) is not str or code not in DTYPES:
            found = repr(code[:100]) if type(code) is str else f"a {type(code).__name__}"
            raise Refused(f"an array's dtype is {found}, expected one of {', '.join(DTYPES)}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take over the state of a pickled dtype: its byte order. Refuse any other form."""
        if not _fits(state, int, str) or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
            raise Refused("an array's dtype has fields or an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, complete once BUILD has given its contents."""

    def __init__(self, machine: "_Machine"):
        self.machine = machine
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Take over the state of a pickled array: shape, dtype and bytes, which must agree; refuse any other
        form."""
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


class _Bounded:
    """A file of which the machine can read what is left, and no more."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.left = file, size, size

    def read(self, n: int) -> bytes:
        """Return exactly n bytes."""
        if not 0 <= n <= self.left:
            raise Refused(f"it is cut short: {n} more bytes wanted, {self.left} left of {self.size}")
        data = self.file.read(n)
        self.left -= n
        if len(data) != n:
            raise Refused("it shrank while it was read")
        return data

    def readline(self) -> bytes:
        """Return a line, half of the name of a global."""
        line = self.file.readline(200)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise Refused("the name of a global does not end")
        return line


class _Table(dict[int, Any]):
    """Instructions by their byte; another byte is refused by its number."""

    def __missing__(self, code: int) -> Any:
        raise Refused(f"the byte {code:#04x} is no instruction of a checkpoint")


class _Machine(pickle._Unpickler):  # type: ignore[name-defined]
    """The machine of the standard library, which calls, builds and sets only what is written here."""

    stack: list[Any]  # these are the standard machine's, which the type checker does not see
    metastack: list[list[Any]]  # the stacks below each mark
    pop_mark: Callable[[], list[Any]]
    _unframer: Any

    dispatch: ClassVar = _Table(
        (code, pickle._Unpickler.dispatch[code])  # type: ignore[attr-defined]
        for code in (getattr(pickle, name)[0] for name in INSTRUCTIONS)
    )

    def __init__(self, file: _Bounded):
        super().__init__(file, encoding="latin1")
        self.file, self.claimed, self.visited = file, 0, 0
        self.globals = {
            **{(f"numpy.{core}.multiarray", "_reconstruct"): self.array for core in ("core", "_core")},
            **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
            ("numpy", "ndarray"): NDARRAY,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): self.encode,
            ("builtins", "tuple"): _tuple,
            ("__builtin__", "tuple"): _tuple,
            ("collections", "OrderedDict"): _ordered_dict,
        }

    def claim(self, n: int) -> None:
        """Count bytes that were made from the file's; refuse more than twice as many as it has."""
        self.claimed += n
        if self.claimed > 2 * self.file.size:
            raise Refused("its arrays claim more bytes than it has")

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands here for a global."""
        if (module, name) not in self.globals:
            raise Refused(f"it wants {f'{module}.{name}'[:200]!r}, which no checkpoint needs")
        return self.globals[module, name]

    # What REDUCE may call, here and below, takes a fixed number of arguments: a long list of them, which a
    # file can name again and again, is refused the first time.

    def array(self, kind: Any, shape: Any, code: Any) -> _Array:
        """numpy's _reconstruct: return an array without contents."""
        if kind is not NDARRAY:
            raise Refused("it makes an array of another class")
        return _Array(self)

    def encode(self, text: Any, encoding: Any) -> bytes:
        """_codecs.encode, with which protocol 2 writes bytes."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise Refused("it encodes something else than a text as latin1")
        self.claim(len(text))
        return text.encode("latin1")

    def load_build(self) -> None:
        """BUILD: give an array or a dtype its state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise Refused(f"it gives a state to a {type(self.stack[-1]).__name__}")
        self.stack[-1].build(state)

    def load_setitem(self) -> None:
        """SETITEM: the dict below the last two objects takes them as key and value."""
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        """SETITEMS: the same with all objects since the last mark."""
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values in turn into the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Refused("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys could be slow or deep to hash.
            if not (type(key) is str or type(key) is int and abs(key) < 2**63):
                raise Refused(f"a key of a dict is of type {type(key).__name__}, expected str or int")
            target[_text(key) if type(key) is str else key] = value

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return the tree with its arrays in place; what it refers to twice is there twice."""
        self.visited += 1
        if depth > DEPTH:
            raise Refused(f"it is nested more than {DEPTH} deep")
        if self.visited > self.file.size:
            raise Refused("it refers to the same containers again and again")
        if type(value) is dict:
            return {k: self.plain(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.plain(v, depth + 1) for v in value)
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if type(value) is int and value.bit_length() > 64:
            raise Refused(f"it has an integer of {value.bit_length()} bits, expected at most 64")
        if type(value) is str:
            return _text(value)
        if value is None or isinstance(value, bool | int | float | np.generic):
            return value
        kind = type(value).__name__.lstrip("_").lower()
        raise Refused(f"it holds an object of type {kind}, which no checkpoint does")


def _scalar(dtype: Any, data: Any) -> Any:
    """numpy's scalar: return one number of this dtype."""
    if not isinstance(dtype, _Dtype):
        raise Refused("it makes a number of what is no dtype")
    if len(data := _bytes(data)) != dtype.dtype.itemsize:
        raise Refused(f"a number of dtype {dtype.dtype} needs other than {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).astype(dtype.dtype.newbyteorder("="))[0]


def _tuple(items: Any) -> Any:
    """builtins.tuple, of a tuple only, which is not copied."""
    if type(items) is not tuple:
        raise Refused(f"it makes a tuple of a {type(items).__name__}")
    return items


def _ordered_dict() -> dict[Any, Any]:
    """collections.OrderedDict, empty: a dict keeps its order."""
    return {}


def _fits(values: Any, *kinds: type) -> bool:
    """Whether this is a tuple that begins with exactly these types."""
    return type(values) is tuple and tuple(map(type, values[: len(kinds)])) == kinds


def _bytes(data: Any) -> bytes:
    """Return an array's contents as bytes; Python 2 wrote them as a string."""
    if type(data) is str:
        return data.encode("latin1")
    if type(data) is not bytes:
        raise Refused(f"the contents of an array are a {type(data).__name__}")
    return data


def _text(text: str) -> str:
    """Return the text; refuse half a character, which the machine of the standard library lets pass."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("it has a text that is no UTF-8") from None
    return text


def unpickle(file: BinaryIO, size: int) -> Any:
    """Return the object in a file of this size; its arrays are read-only views of what was read.

    Raises Refused, or any other Exception that hostile bytes provoke; the caller words it.
    """
    if size == 0:
        raise Refused("it is empty")
    start = file.read(2)
    if start[:1] != b"\x80" or start[1:] not in (b"\x02", b"\x03", b"\x04"):
        raise Refused(f"it is no pickle of protocol 2 to 4: it begins with {start!r}")
    file.seek(0)
    machine = _Machine(_Bounded(file, size))
    value = machine.load()
    frame = machine._unframer.current_frame
    if machine.stack or machine.metastack or machine.file.left or frame and frame.read(1):
        raise Refused("it is incomplete, or something follows its end")
    return machine.plain(value)
