"""What a checkpoint folder of any kind holds, and as which entries an optimizer takes it."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...lifting import LIFTED
from .. import accumulators
from ..errors import CheckpointError, Refused, shown
from ..files import handed_out, read
from ..names import MASTER, checked_names, spelling
from .shards import Cast

NARROW = (np.dtype("float16"), np.dtype(jnp.bfloat16))


@dataclass
class Parts:
    """The state of an optimizer in a folder, by the structured name of each parameter."""

    accumulators: dict[str, dict[str, Any]]  # {KEY: {"moment1_0": array}}
    masters: dict[str, Any] | None = None  # None where the folder has none
    scheduler: dict[str, Any] | None = None
    lossy: str = ""  # why its numbers are not those of the training
    own: dict[str, Any] = field(default_factory=dict)  # arrays that only `save_checkpoint` writes
    extra: dict[str, Any] = field(default_factory=dict)  # numbers that only `save_checkpoint` writes


class Loaded(NamedTuple):
    """A folder's state as a `.pdopt` has it."""

    entries: dict[str, Any]
    extra: dict[str, Any]  # what `save_checkpoint` put beside them
    names: dict[str, str]  # {KEY: our name}
    lossy: str  # what is to be said of the numbers


@dataclass
class Folder:
    """A folder of one kind; nothing of it is opened before it is asked for."""

    path: Path
    kind: str
    get_model: Callable[[], dict[str, Any]]
    get_state: Callable[[], Parts]
    get_tree: Callable[[], dict[str, Any]]  # all that is there, as `load` and `inspect` show it
    dtype: Any = None  # of the parameters, where the model's files hold their float32 masters instead
    only_masters: bool = False
    statics: Callable[[], dict[str, str]] = field(default=dict)  # {Paddle's tensor name: KEY}
    get_others: Callable[[], dict[str, Any]] | None = None  # of one index: its arrays, in the model's place

    def parameters(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of the parameters by KEY; `wanted` are the dtypes of those that are to be filled.

        Where the folder holds float32 masters in the place of parameters of 16 bits, they are cast down.
        """
        found = (self.get_others or self.get_model)()
        if not self.only_masters:
            return found
        return {key: self._narrowed(x, wanted.get(key, self.dtype)) for key, x in found.items()}

    def _narrowed(self, x: Any, dtype: Any) -> Any:
        """A parameter, made of its master, in the dtype that the folder and the template agree on."""
        narrow = dtype in NARROW and self.dtype in (None, dtype)
        return Cast(x, dtype) if narrow and x.dtype == np.float32 else x

    def entries(self, names: Any, ours: Mapping[str, bool] | None) -> Loaded:
        """The state as the entries of a `.pdopt`.

        `ours` tells of each of our parameters whether its state has a master; None if there is no template.
        """
        parts = self.get_state()
        known = dict.fromkeys([*parts.accumulators, *(parts.masters or ())])
        chosen = self.named(names, known, ours or {})
        dtypes = {key: x.dtype for key, x in self._model().items()}
        if ours is not None and dtypes:
            known = {k: None for k in known if k not in _tied(parts.accumulators, {*dtypes, *chosen})}

        def wanted(key: str) -> bool:
            return self.only_masters if ours is None else ours.get(chosen.get(key, key), False)

        narrow = {k: self._has_master(k, parts, dtypes, wanted(k)) for k in known}
        entries: dict[str, Any] = {}
        for key, states in parts.accumulators.items():
            if key not in known:
                continue
            owner = key + MASTER if narrow[key] else key
            entries |= {f"{owner}_{name}": x for name, x in states.items()}
        if any(narrow.values()):
            masters = self._model() if parts.masters is None else parts.masters
            # The files hold copies of the parameters of 32 bits too, which no optimizer has masters of.
            entries["master_weights"] = {
                k: x if x.dtype == np.float32 else Cast(x, np.float32)
                for k, x in masters.items()
                if narrow.get(k)
            }
        if parts.scheduler is not None:
            entries["LR_Scheduler"] = parts.scheduler
        return Loaded(entries | parts.own, parts.extra, chosen, parts.lossy)

    def _model(self) -> dict[str, Any]:
        """The parameters, if there are any in the folder."""
        try:
            return self.get_model()
        except Absent:
            return {}

    def _has_master(self, key: str, parts: Parts, dtypes: dict[str, Any], wanted: bool) -> bool:
        """Whether a parameter's accumulators are those of a master."""
        if self.only_masters or key not in dtypes:
            return wanted and (parts.masters is None or key in parts.masters)
        if parts.masters is None:  # those that were left out are the parameters, cast up
            return dtypes[key] in NARROW and wanted
        return dtypes[key] in NARROW and key in parts.masters

    def named(self, names: Any, keys: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
        """The map {KEY: our name}: what was given, else dots are the levels of a tree."""
        given = checked_names(names)
        if not keys.keys() >= given.keys():
            statics = self.statics()
            given = {k if k in keys else statics.get(k, k): o for k, o in given.items()}
        spell = spelling(ours)
        spelt = {k: spell(o) for k, o in given.items()}
        taken, left = set(spelt.values()), [key for key in keys if key not in spelt]
        tensors = {} if all(spell(k) in ours for k in left) else {k: s for s, k in self.statics().items()}
        for key in left:
            own = spell(key) if spell(key) in ours else tensors.get(key)
            if own is not None and own in ours and own not in taken:
                spelt[key] = own
        return spelt


def _tied(accumulators: Mapping[str, dict[str, Any]], needed: set[str]) -> set[str]:
    """The second names of shared parameters: no parameter has them, and the state is that of another name."""
    extra = accumulators.keys() - needed
    first = [states for key, states in accumulators.items() if key not in extra]
    return {key for key in extra if any(_equal(accumulators[key], states) for states in first)}


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two parameters have one state; the arrays are read only where their shapes agree."""
    outlines = [{k: (tuple(x.shape), np.dtype(x.dtype)) for k, x in states.items()} for states in (a, b)]
    alike = outlines[0] == outlines[1]
    return alike and all(np.array_equal(np.asarray(x), np.asarray(b[k])) for k, x in a.items())


class Absent(CheckpointError):
    """A folder has no such part."""


@functools.cache
def _accumulators(lifted: int) -> re.Pattern[str]:
    """What a key of an accumulator is: its tensor, the mark of a master, the accumulator with its counter.

    It knows the rules that were lifted so far, which are so many.
    """
    known = "|".join(map(re.escape, accumulators.names()))
    return re.compile(rf"(.+?)({re.escape(MASTER)})?_((?:{known})_\d+)", re.DOTALL)


def accumulator_of(key: str) -> tuple[str, bool, str] | None:
    """The tensor's name, whether it is a master, and the accumulator, of STATIC_fp32_master_0_moment1_0.

    The accumulator is "" where the key is that of the master itself, as static graphs write it; None where
    the key is none of the two.
    """
    if found := _accumulators(len(LIFTED)).fullmatch(key):
        return found[1], bool(found[2]), found[3]
    return (key.removesuffix(MASTER), True, "") if key.endswith(MASTER) and key != MASTER else None


def beside(folder: Path, name: str = "scheduler.pdparams") -> dict[str, Any] | None:
    """The scheduler's state, which lies beside the arrays: a pickle, which the safe reader opens."""
    path = folder / name
    if not path.is_file():
        return None
    return handed_out(read(path), True, False)


@contextmanager
def opened_folder(path: Path) -> Iterator[None]:
    """A folder that is looked into; what the system says against it is a CheckpointError."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {e}") from e


def on_disk(path: Path) -> int:
    """The bytes of the files in a folder, or in that of an index."""
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()
    return sum(p.stat().st_size for p in files if p.is_file())


def named_file(name: Any, owner: str) -> str:
    """The name of a shard, as an index says it; whatever is no bare name of a file is refused."""
    bad = type(name) is not str or not name or name in (".", "..") or len(name.encode()) > 255
    if bad or any(c in "/\\:\0" or ord(c) < 32 for c in name):
        raise Refused(f"{owner} is in {shown(name)}, expected the bare name of a file in the same folder")
    return name


def within(folder: Path, name: str, index: Path) -> Path:
    """The path of a shard, which lies in the folder, links followed.

    In a cache of Hugging Face every file of a folder is a link, the index too, and all lead into one other
    folder: there a shard lies where the index does.
    """
    path = folder / name
    allowed = {os.path.realpath(folder), os.path.dirname(os.path.realpath(index))}
    if path.exists() and os.path.dirname(os.path.realpath(path)) not in allowed:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: it is a link out of its folder")
    return path
