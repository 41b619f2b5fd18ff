"""The data files of a distributed checkpoint: where each array lies in them; none is copied."""

import pickle
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..budget import Budget
from ..errors import Refused, opened, shown
from ..layout import NAMES
from ..pickled import Noted
from ..unpickle import Bounded, Machine, run
from .shards import Mapped, header

SMALL = 2**12  # bytes that are read at once


class Data(NamedTuple):
    """What a data file holds."""

    arrays: dict[str, Any]
    names: dict[str, str]  # {key: Paddle's tensor name}


class _Scanner(Machine):
    """The safe machine, which passes over the bytes of large arrays: it notes where they are."""

    dispatch: ClassVar[Any] = type(Machine.dispatch)(Machine.dispatch)
    path: Path

    def __init__(self, file: Bounded, budget: Budget):
        super().__init__(file, budget)

    def load_bytes(self, width: int) -> None:
        """BINBYTES and BINBYTES8: read a few bytes, note many. Those inside of a frame are few."""
        n = int.from_bytes(self.read(width), "little")  # type: ignore[attr-defined]
        self.budget.charge(64)
        if n < SMALL or self._unframer.current_frame:
            self.stack.append(self.read(n))  # type: ignore[attr-defined]
            return
        path = self.path

        def make(offset: int, shape: Any, dtype: Any, fortran: bool) -> Mapped:
            return Mapped(path, offset, shape, dtype, fortran)

        self.stack.append(Noted(self.file.skip(n), n, make))

    def load_binbytes(self) -> None:
        """BINBYTES: with a length of 4 bytes."""
        self.load_bytes(4)

    def load_binbytes8(self) -> None:
        """BINBYTES8: with a length of 8 bytes."""
        self.load_bytes(8)


_Scanner.dispatch[pickle.BINBYTES[0]] = _Scanner.load_binbytes
_Scanner.dispatch[pickle.BINBYTES8[0]] = _Scanner.load_binbytes8


def data(path: Path) -> Data:
    """The arrays of a `.distcp` or of a `.safetensors` in its place."""
    if path.suffix == ".safetensors":
        return Data(dict(header(path).arrays), {})
    with opened(path) as (file, size):

        def machine(bounded: Bounded, budget: Budget) -> _Scanner:
            made = _Scanner(bounded, budget)
            made.path = path
            return made

        scanned = run(file, size, Budget(size), machine)
        tree = scanned.plain(scanned.result)
        if type(tree) is not dict:
            raise Refused(f"it holds {shown(tree)}, expected a dict")
        names = tree.pop(NAMES, {})
        if type(names) is not dict or not all(type(x) is str for pair in names.items() for x in pair):
            raise Refused(f"its {NAMES} is no table of names")
        if bad := [
            k for k, v in tree.items() if not isinstance(v, np.ndarray | Mapped) or type(k) is not str
        ]:
            raise Refused(f"its {shown(bad[0])} is no array")
        return Data(tree, names)
