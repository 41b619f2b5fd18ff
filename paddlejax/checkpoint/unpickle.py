"""Read a pickle of arrays and plain containers, and nothing else.

Paddle's files are pickles, and a pickle is a program: loading one runs whatever its author wrote. This is the
machine of the standard library with most of its instructions taken out. Each global that a file may name is a
function of a table below, so no code but ours is ever called. What it allocates is bounded by the size of the
file: `Bounded` refuses to read more than is left, arrays are compared with the bytes they claim, and what
else is made or named again is charged to a `Budget`, every time. What a file decides is never compared,
copied, hashed or printed before its type is known: a list that costs a few bytes to name again may be long or
deep.
"""

import pickle
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, TypeVar

import numpy as np

from .budget import ATOMS, COLLIDING, POINTER, Budget
from .errors import Refused, shown
from .pickled import PickledArray, PickledDtype, contents

DEPTH = 100  # of nested containers
INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT "
    "EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINPUT LONG_BINPUT "
    "MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()
# What an instruction makes, in bytes; a text, a tuple, a dict's items and an array are charged by their size.
COSTS = {
    **dict.fromkeys("BININT BININT2 LONG1 BINFLOAT EMPTY_TUPLE".split(), 40),
    **dict.fromkeys("EMPTY_DICT EMPTY_LIST TUPLE1 TUPLE2 TUPLE3".split(), 80),
    **dict.fromkeys("BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split(), 64),
    **dict.fromkeys("GLOBAL STACK_GLOBAL".split(), 64),
    "REDUCE": 120,
}
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
NDARRAY = object()  # stands for numpy.ndarray, the first argument of _reconstruct


class Bounded:
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

    def skip(self, n: int) -> int:
        """Pass over n bytes, and return where in the file they begin."""
        if not 0 <= n <= self.left:
            raise Refused(f"it is cut short: {n} more bytes wanted, {self.left} left of {self.size}")
        at = self.file.tell()
        self.file.seek(n, 1)
        self.left -= n
        return at

    def readline(self) -> bytes:
        """Return a line, half of the name of a global."""
        line = self.file.readline(200)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise Refused("the name of a global does not end")
        return line


class _Memo:
    """What the file may name again, by number. A real file numbers in order, and a list is small."""

    def __init__(self, budget: Budget):
        self.budget, self.listed, self.others = budget, [], dict[int, Any]()
        self.puts = 0

    def __len__(self) -> int:
        return len(self.listed) + len(self.others)

    def __getitem__(self, i: int) -> Any:
        return self.listed[i] if i < len(self.listed) else self.others[i]

    def __setitem__(self, i: int, value: Any) -> None:
        self.puts += 1
        if i < len(self.listed):
            self.listed[i] = value
        elif i == len(self.listed) and not self.others:
            self.budget.charge(POINTER)
            self.listed.append(value)
        else:
            self.budget.charge(150)
            self.others[i] = value


class _Table(dict[int, Any]):
    """Instructions by their byte; another byte is refused by its number."""

    def __missing__(self, code: int) -> Any:
        raise Refused(f"the byte {code:#04x} is no instruction of a checkpoint")


def _charging(cost: int, instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that is charged before it runs."""

    def run(machine: Any) -> None:
        machine.budget.charge(cost)
        instruction(machine)

    return run


def _charging_text(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that pushes a text, which is charged by its size."""

    def run(machine: Any) -> None:
        instruction(machine)
        machine.budget.charge(16 + sys.getsizeof(machine.stack[-1]))

    return run


class Machine(pickle._Unpickler):  # type: ignore[name-defined]
    """The machine of the standard library, which calls, builds and sets only what is written here."""

    stack: list[Any]  # these are the standard machine's, which the type checker does not see
    metastack: list[list[Any]]  # the stacks below each mark
    pop_mark: Callable[[], list[Any]]
    _unframer: Any
    result: Any

    dispatch: ClassVar = _Table(
        (code, pickle._Unpickler.dispatch[code])  # type: ignore[attr-defined]
        for code in (getattr(pickle, name)[0] for name in INSTRUCTIONS)
    )

    def __init__(self, file: Bounded, budget: Budget):
        super().__init__(file, encoding="latin1")
        self.file, self.budget, self.claimed, self.visited = file, budget, 0, 0
        self.memo = _Memo(budget)
        self.globals = {
            **{(f"numpy.{core}.multiarray", "_reconstruct"): self.array for core in ("core", "_core")},
            **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
            ("numpy", "ndarray"): NDARRAY,
            ("numpy", "dtype"): PickledDtype,
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
            raise Refused(f"it wants {shown(module)} {shown(name)}, which no checkpoint needs")
        return self.globals[module, name]

    # What REDUCE may call, here and below, takes a fixed number of arguments: a long list of them, which a
    # file can name again and again, is refused the first time.

    def array(self, kind: Any, shape: Any, code: Any) -> PickledArray:
        """numpy's _reconstruct: return an array without contents."""
        if kind is not NDARRAY:
            raise Refused("it makes an array of another class")
        return PickledArray(self)

    def encode(self, text: Any, encoding: Any) -> bytes:
        """_codecs.encode, with which protocol 2 writes bytes."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise Refused("it encodes something else than a text as latin1")
        self.claim(len(text))
        return text.encode("latin1")

    def load_stack_global(self) -> None:
        """STACK_GLOBAL: push what stands here for the module and the name on top of the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Refused("the name of a global is no text")
        self.stack.append(self.find_class(module, name))

    def load_mark(self) -> None:
        """MARK: begin a new stack. Real files have one or two for each level of nesting."""
        if len(self.metastack) > 2 * DEPTH:
            raise Refused(f"it is nested more than {DEPTH} deep")
        super().load_mark()  # type: ignore[misc]

    def load_long1(self) -> None:
        """LONG1: an int, which a checkpoint has no use for beyond 64 bits."""
        super().load_long1()  # type: ignore[misc]
        if (bits := self.stack[-1].bit_length()) > 64:
            raise Refused(f"it has an integer of {bits} bits, expected at most 64")

    def load_tuple(self) -> None:
        """TUPLE: all objects since the last mark."""
        self.budget.charge(64 + POINTER * len(self.stack))
        super().load_tuple()  # type: ignore[misc]

    def load_appends(self) -> None:
        """APPENDS: the list below the last mark takes all objects since then."""
        self.budget.charge(POINTER * len(self.stack))
        super().load_appends()  # type: ignore[misc]

    def load_build(self) -> None:
        """BUILD: give an array or a dtype its state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], PickledArray | PickledDtype):
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
        self.budget.charge(45 * len(items))
        for i in range(0, len(items), 2):
            key = items[i]
            # Other keys could be slow or deep to hash; ints can be made to collide.
            if type(key) is str:
                key = self.text(key)
            elif type(key) is int and abs(key) < 2**63:
                self.budget.charge(len(target) // COLLIDING)
            else:
                raise Refused(f"a key of a dict is of type {type(key).__name__}, expected str or int")
            target[key] = items[i + 1]

    def text(self, text: str) -> str:
        """Return a text that the file names; refuse half a character, which Python lets pass."""
        self.budget.charge(sys.getsizeof(text))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise Refused("it has a text that is no UTF-8") from None
        return text

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return the tree with its arrays in place; what it refers to twice is there twice."""
        if depth > DEPTH:
            raise Refused(f"it is nested more than {DEPTH} deep")
        if isinstance(value, dict | list | tuple):
            self.visited += len(value)
            if self.visited > self.file.size:  # every place takes a byte, if it is not there by reference
                raise Refused("it refers to the same containers again and again")
        if type(value) is dict:
            self.budget.charge_container(value)
            for key in value:
                if type(key) is str:
                    self.budget.charge_text(key)
            return {k: v if type(v) in ATOMS else self.plain(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            self.budget.charge_container(value)
            return type(value)([v if type(v) in ATOMS else self.plain(v, depth + 1) for v in value])
        if isinstance(value, PickledArray) and value.value is not None:
            self.budget.charge(150)  # a Tensor may name it
            return value.value
        if type(value) is str:
            return self.text(value)
        if type(value) in ATOMS or isinstance(value, np.generic):
            return value
        kind = type(value).__name__.removeprefix("Pickled").lower()
        raise Refused(f"it holds an object of type {kind}, which no checkpoint does")


_OWN = ("stack_global", "mark", "tuple", "appends", "build", "setitem", "setitems", "long1")
Machine.dispatch.update({getattr(pickle, n.upper())[0]: getattr(Machine, f"load_{n}") for n in _OWN})
Machine.dispatch.update(
    {
        code: _charging(cost, Machine.dispatch[code])
        for code, cost in ((getattr(pickle, name)[0], cost) for name, cost in COSTS.items())
    }
)
Machine.dispatch.update(
    {code: _charging_text(Machine.dispatch[code]) for code in (getattr(pickle, name)[0] for name in TEXTS)}
)


def _scalar(dtype: Any, data: Any) -> Any:
    """numpy's scalar: return one number of this dtype."""
    if not isinstance(dtype, PickledDtype):
        raise Refused("it makes a number of what is no dtype")
    if len(data := contents(data)) != dtype.dtype.itemsize:
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


TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # with which older files of torch.save begin
OF_TORCH = "write the tensors there by safetensors.torch.save_file, and load that .safetensors file here"


def unpickle(file: BinaryIO, size: int, budget: Budget) -> Any:
    """Return the object in a file of this size; its arrays are read-only views of what was read.

    Raises Refused, or any other Exception that hostile bytes provoke; the caller words it.
    """
    machine = run(file, size, budget, Machine)
    return machine.plain(machine.result)


M = TypeVar("M", bound=Machine)


def run(file: BinaryIO, size: int, budget: Budget, kind: Callable[[Bounded, Budget], M]) -> M:
    """Let a machine read a file of this size to its end; its `result` is what the file made."""
    if size == 0:
        raise Refused("it is empty")
    start = file.read(len(TORCH))
    if start == TORCH:
        raise Refused(f"it is a file of torch.save: {OF_TORCH}")
    if start[:4] == b"PK\x03\x04":
        raise Refused(
            f"it is a zip archive. If torch.save made it, {OF_TORCH}; if numpy did, its name ends in .npz"
        )
    if start[:1] != b"\x80" or start[1:2] not in (b"\x02", b"\x03", b"\x04"):
        raise Refused(f"it is no pickle of protocol 2 to 4: it begins with {start[:2]!r}")
    file.seek(-len(start), 1)  # a BytesIO may begin anywhere
    machine = kind(Bounded(file, size), budget)
    machine.result = machine.load()
    frame = machine._unframer.current_frame
    if machine.stack or machine.metastack or machine.file.left or frame and frame.read(1):
        raise Refused("it is incomplete, or something follows its end")
    return machine
