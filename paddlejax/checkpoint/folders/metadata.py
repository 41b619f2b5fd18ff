"""The `.metadata` of a distributed checkpoint: a pickle of three classes, read without any of them.

    Metadata               state_dict_metadata {KEY: [LocalTensorMetadata]}, storage_metadata
                           {LocalTensorIndex: FILE}, flat_mapping {KEY: (part, ...)}
    LocalTensorMetadata    where a piece stands in its array, its shape and dtype
    LocalTensorIndex       the key and the place of a piece that is stored

Paddle runs whatever such a file calls. Here it may name these three, in the two modules in which they have
been, and give them plain fields of the right types; all else is refused.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..budget import Budget
from ..errors import Refused, opened, shown
from ..pickled import DIMENSIONS, LENGTH
from ..unpickle import Bounded, Machine, run

MODULES = ("paddle.distributed.flex_checkpoint.dcp.metadata", "paddle.distributed.checkpoint.metadata")


def _sizes(x: Any) -> bool:
    """A place or a shape."""
    return type(x) is tuple and len(x) <= DIMENSIONS and all(type(n) is int and 0 <= n < LENGTH for n in x)


def _stretch(x: Any) -> bool:
    return x is None or _sizes(x) and len(x) == 2


PLACE = {
    "global_offset": _sizes,
    "is_flattened": lambda x: type(x) is bool,
    "flattened_range": _stretch,
    "local_shape": lambda x: x is None or _sizes(x),
}
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "Metadata": {
        "state_dict_metadata": lambda x: type(x) is dict,
        "storage_metadata": lambda x: type(x) is dict,
        "flat_mapping": lambda x: x is None or type(x) is dict,
    },
    "LocalTensorMetadata": {
        **PLACE,
        "local_shape": _sizes,
        "dtype": lambda x: type(x) is str,
        "global_shape": lambda x: x is None or _sizes(x),
    },
    "LocalTensorIndex": {
        **PLACE,
        "tensor_key": lambda x: type(x) is str,
        "replica_id": lambda x: x is None or type(x) is int and 0 <= x < LENGTH,
    },
}
OPTIONAL = {"is_flattened", "flattened_range", "replica_id", "global_shape", "local_shape", "flat_mapping"}


class Piece(NamedTuple):
    """A piece of an array, and the file where it is."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]  # of the rectangle
    stretch: tuple[int, int] | None  # of the rectangle's elements in a row; None for all
    dtype: str


class Records(NamedTuple):
    """What a `.metadata` says."""

    pieces: dict[str, list[Piece]]
    shapes: dict[str, tuple[int, ...]]  # of the whole arrays
    parts: dict[str, tuple[str, ...]]  # how the keys of a nested dict were joined


class _Class:
    """Stands for one of the three classes."""

    def __init__(self, name: str):
        self.name = name


PLACES = {kind: {name: i for i, name in enumerate(fields)} for kind, fields in FIELDS.items()}


class _Record:
    """Stands for an object of one of them; `fields` is None until BUILD. Millions of them are to be small."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: str):
        self.kind = kind
        self.fields: tuple[Any, ...] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.fields[PLACES[self.kind][name]] if self.fields is not None else None

    def build(self, state: Any) -> None:
        """Take over the fields, if they are those of the class and of the right types."""
        allowed = FIELDS[self.kind]
        if self.fields is not None or type(state) is not dict or not state.keys() <= allowed.keys():
            raise Refused(f"a {self.kind} has other fields than {', '.join(allowed)}")
        for name, value in state.items():
            if not allowed[name](value):
                raise Refused(f"the {name} of a {self.kind} is {shown(value)}")
        optional = OPTIONAL if self.kind != "LocalTensorMetadata" else OPTIONAL - {"local_shape"}
        if missing := allowed.keys() - state.keys() - optional:
            raise Refused(f"a {self.kind} has no {', '.join(sorted(missing))}")
        self.fields = tuple(state.get(name, False if name == "is_flattened" else None) for name in allowed)


class _Reader(Machine):
    """The safe machine, with those three classes for globals and nothing else."""

    dispatch: ClassVar[Any] = type(Machine.dispatch)(Machine.dispatch)

    def __init__(self, file: Bounded, budget: Budget):
        super().__init__(file, budget)
        self.globals = {(module, name): _Class(name) for module in MODULES for name in FIELDS}
        self.stored: list[Any] = []  # indices and their files in turn

    def load_newobj(self) -> None:
        """NEWOBJ: an object of a class, which is made of no arguments."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Class) or arguments != ():
            raise Refused("it makes an object of something else than its three classes")
        self.budget.charge(120)  # with the empty tuple, which is always the same one
        self.stack.append(_Record(kind.name))

    def load_build(self) -> None:
        """BUILD: give a record its fields; the dict that they came in is emptied, to bound the memory."""
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, _Record):
            raise Refused(f"it gives a state to a {type(record).__name__}")
        record.build(state)
        self.budget.charge(-90 * len(state))
        state.clear()

    def load_reduce(self) -> None:
        """REDUCE: a call, for which there is no use here."""
        raise Refused("it calls something, which no metadata needs")

    def set_items(self, items: list[Any]) -> None:
        """Keep what has an index for a key in a list: a dict of them could be made to collide."""
        if not items or not isinstance(items[0], _Record):
            super().set_items(items)
            return
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise Refused("it sets items of what is no dict")
        if not all(isinstance(k, _Record) and k.kind == "LocalTensorIndex" and k.fields for k in items[::2]):
            raise Refused("its storage_metadata has a key that is no LocalTensorIndex")
        self.budget.charge(9 * len(items))
        self.stored += items


_Reader.dispatch[pickle.NEWOBJ[0]] = _Reader.load_newobj
_Reader.dispatch[pickle.BUILD[0]] = _Reader.load_build
_Reader.dispatch[pickle.REDUCE[0]] = _Reader.load_reduce


def records(path: Path) -> Records:
    """What a `.metadata` says, checked as far as it goes without the data files."""
    with opened(path) as (file, size):
        # Twice what other files get: a record takes a few bytes there, and hundreds in memory.
        reader = run(file, size, Budget(2 * size), _Reader)
        top = reader.result
        if not isinstance(top, _Record) or top.kind != "Metadata" or top.fields is None:
            raise Refused(f"it holds {shown(getattr(top, 'kind', top))}, expected a Metadata")
        return _understood(top, reader.stored)


def _understood(top: _Record, stored: list[Any]) -> Records:
    """The pieces of each key, each with its file."""
    pieces: dict[str, list[Piece]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    known: dict[str, dict[str, _Record]] = {}  # by their places, as texts: these are hashed with a secret
    unread: dict[str, set[str]] = {}
    for key, listed in top["state_dict_metadata"].items():
        fields = [x for x in listed if _is_piece(x)] if type(listed) is list else []
        if not fields or len(fields) < len(listed):
            raise Refused(f"its pieces of {shown(key)} are no list of LocalTensorMetadata")
        known[key] = {_place(f): f for f in fields}
        unread[key] = set(known[key])
        shapes[key] = _whole(key, fields)
        pieces[key] = []
    if top["storage_metadata"]:
        raise Refused("its storage_metadata has a key that is no LocalTensorIndex")
    for index, file in zip(stored[::2], stored[1::2], strict=True):
        key, place = index["tensor_key"], _place(index)
        if key not in known or place not in known[key]:
            raise Refused(f"it stores a piece of {shown(key)} that its state_dict_metadata does not have")
        piece = known[key][place]
        if index["local_shape"] not in (None, piece["local_shape"]):
            raise Refused(f"it gives a piece of {shown(key)} two shapes")
        unread[key].discard(place)
        if not index["replica_id"]:
            dtype, stretch = piece["dtype"].removeprefix("paddle."), piece["flattened_range"]
            pieces[key].append(Piece(file, piece["global_offset"], piece["local_shape"], stretch, dtype))
    for key, places in unread.items():
        if places:
            at = known[key][min(places)]["global_offset"]
            raise Refused(f"it does not say where the piece of {shown(key)} at {at} is stored")
    parts = {k: v for k, v in (top["flat_mapping"] or {}).items()}
    if not all(type(v) is tuple and v and all(type(x) is str for x in v) for v in parts.values()):
        raise Refused("its flat_mapping is no table of the parts of keys")
    return Records(pieces, shapes, parts)


def _is_piece(x: Any) -> bool:
    return isinstance(x, _Record) and x.kind == "LocalTensorMetadata" and x.fields is not None


def _place(fields: _Record) -> str:
    """What tells a piece from the others of its key."""
    if fields["is_flattened"] != (fields["flattened_range"] is not None):
        raise Refused("a piece is flattened and has no flattened_range, or has one and is not")
    return f"{fields['global_offset']} {fields['flattened_range']}"


def _whole(key: str, pieces: list[_Record]) -> tuple[int, ...]:
    """The shape of the whole array: as all pieces say it, or where the last of them ends."""
    if any(len(f["global_offset"]) != len(pieces[0]["local_shape"]) for f in pieces) or any(
        len(f["local_shape"]) != len(pieces[0]["local_shape"]) for f in pieces
    ):
        raise Refused(f"the pieces of {shown(key)} have different numbers of axes")
    said = {f["global_shape"] for f in pieces}
    if len({f["dtype"] for f in pieces}) > 1 or len(said) > 1:
        raise Refused(f"the pieces of {shown(key)} disagree about its dtype or its shape")
    ends = [[o + n for o, n in zip(f["global_offset"], f["local_shape"], strict=True)] for f in pieces]
    reached = tuple(map(max, zip(*ends, strict=True)))
    whole = next(iter(said))
    if whole is None:
        return reached
    if len(whole) != len(reached) or any(r > w for r, w in zip(reached, whole, strict=True)):
        raise Refused(f"a piece of {shown(key)} ends at {reached}, outside of its shape {whole}")
    return whole
