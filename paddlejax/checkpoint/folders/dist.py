"""What `paddle.distributed.save_state_dict` writes, and flex checkpoint, which is three such folders.

    0.metadata                  the pieces of every array, and in which file each is
    0_0.distcp  1_0.distcp      what each rank kept; or .safetensors
    model_state/  optimizer_state/  master_weight/      each the same: a flex checkpoint of PaddleFormers

In a flex checkpoint the keys are KEY, KEY.moment1_0 and KEY.w_0; elsewhere as the caller nested them:
commonly model.KEY and optimizer.STATIC_moment1_0, where the tables in the data files tell which KEY a STATIC
is.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import CheckpointError, Refused, listed, opened, shown
from ..pickled import DTYPES
from .contents import Absent, Folder, Parts, accumulator_of, beside, named_file, within
from .distcp import Data, data
from .metadata import Piece, records
from .pieces import Joined, Rectangle, check_tiling, rectangles
from .shards import Mapped

FLEX = ("model_state", "optimizer_state", "master_weight")
METADATA = re.compile(r"(\d{1,18})\.metadata")
KNOWN = {np.dtype(code).name: np.dtype(code) for code in DTYPES} | {"bfloat16": np.dtype(jnp.bfloat16)}


class Read(dict[str, Any]):
    """The arrays of a folder by their keys there; `names` are tensor names, `parts` how keys were nested."""

    names: dict[str, str]
    parts: dict[str, tuple[str, ...]]


def is_metadata(path: Path) -> bool:
    """Whether a file is called as Paddle calls its metadata; PyTorch's is just `.metadata`."""
    return bool(METADATA.fullmatch(path.name))


def flex_parts(folder: Path) -> list[str]:
    """The parts of a flex checkpoint that a folder has."""
    return [part for part in FLEX if _metadata(folder / part)]


def _metadata(folder: Path) -> Path | None:
    """The metadata of a folder, the one saved last."""
    found = [p for p in folder.iterdir() if is_metadata(p)] if folder.is_dir() else []
    return max(found, key=lambda p: int(p.name.split(".")[0]), default=None)


def joined(metadata: Path) -> Read:
    """Every array that a metadata speaks of, checked against the data files; none is read."""
    said, folder = records(metadata), metadata.parent
    with opened(metadata):
        files = {p.file for pieces in said.pieces.values() for p in pieces}
        files = sorted(named_file(file, "a piece") for file in files)
        if bad := [f for f in files if not f.endswith((".distcp", ".safetensors"))]:
            raise Refused(f"it has pieces in {listed(bad)}, expected files .distcp or .safetensors")
    paths = {file: within(folder, file, metadata) for file in files}
    contents = {file: data(path) for file, path in paths.items()}
    found = Read()
    found.parts = said.parts
    found.names = {k: v for held in contents.values() for k, v in held.names.items()}
    for key, pieces in said.pieces.items():
        parts: list[Rectangle] = []
        dtype = KNOWN.get(pieces[0].dtype) if pieces else None
        with opened(metadata):
            if dtype is None:
                raise Refused(f"{shown(key)} has dtype {shown(pieces[0].dtype if pieces else None)}")
            parts = [r for p in pieces for r in rectangles(*p[1:4], _bare(p))]
            check_tiling(key, said.shapes[key], parts)
        parts = [
            r
            for p in pieces
            for r in rectangles(p.offset, p.shape, p.stretch, _source(key, p, dtype, paths, contents))
        ]
        found[key] = Joined(said.shapes[key], dtype, parts)
    return found


def _bare(piece: Piece) -> Mapped:
    """Stands for the data of a piece while only its place counts."""
    return Mapped(Path(), 0, piece.shape, np.uint8)


def _source(
    key: str, piece: Piece, dtype: np.dtype, paths: Mapping[str, Path], held: Mapping[str, Data]
) -> Any:
    """The data of a piece, which must be as the metadata says."""
    path, x = paths[piece.file], held[piece.file].arrays.get(key)
    if x is None:
        raise CheckpointError(f"{path}: it has no {shown(key)}, which the metadata puts there")
    shape = piece.shape if piece.stretch is None else (piece.stretch[1] - piece.stretch[0],)
    bits = dtype == jnp.bfloat16 and x.dtype == np.uint16
    if tuple(x.shape) != shape or x.dtype != dtype and not bits:
        found = f"{shown(key)} has shape {tuple(x.shape)} and dtype {x.dtype}"
        raise CheckpointError(f"{path}: {found}, and the metadata says {shape} and {dtype}")
    if not bits:
        return x
    return Mapped(x.path, x.offset, shape, dtype, x.fortran) if isinstance(x, Mapped) else x.view(dtype)


# -------------------------------------------------------------------------------- flex


def flex(folder: Path) -> Folder:
    """A flex checkpoint, of which nothing is read yet."""

    @functools.cache
    def part(name: str) -> dict[str, Any]:
        metadata = _metadata(folder / name)
        if metadata is None:
            raise Absent(f"{folder}: found no {name}/0.metadata, expected one")
        return joined(metadata)

    def state() -> Parts:
        accumulators: dict[str, dict[str, Any]] = {}
        for name, x in part("optimizer_state").items():
            key, dot, accumulator = name.rpartition(".")
            if not dot or not key:
                raise CheckpointError(f"{folder}: its optimizer has {shown(name)}, expected NAME.ACCUMULATOR")
            accumulators.setdefault(key, {})[accumulator] = x
        masters = _masters(part("master_weight")) if _metadata(folder / "master_weight") else {}
        return Parts(accumulators, masters or None, beside(folder))

    def tree() -> dict[str, Any]:
        found = {
            "model": part("model_state") if _metadata(folder / "model_state") else {},
            "optimizer": state().accumulators if _metadata(folder / "optimizer_state") else {},
            "master_weights": _masters(part("master_weight")) if _metadata(folder / "master_weight") else {},
            "LR_Scheduler": beside(folder),
        }
        return {k: v for k, v in found.items() if v}

    return Folder(folder, "flex checkpoint", lambda: part("model_state"), state, tree)


def _masters(found: Mapping[str, Any]) -> dict[str, Any]:
    """{KEY: master} of KEY.w_0."""
    return {key.removesuffix(".w_0"): x for key, x in found.items()}


def one_metadata(path: Path) -> Folder:
    """What a metadata means: the arrays of its folder, or the state of the flex checkpoint around it."""
    if path.parent.name not in FLEX:
        return dist(path.parent, path)
    whole = flex(path.parent.parent)
    arrays = functools.cache(lambda: joined(path))
    part = path.parent.name
    others = None if part == FLEX[0] else arrays if part == FLEX[1] else lambda: _masters(arrays())
    return Folder(path, whole.kind, whole.get_model, whole.get_state, arrays, get_others=others)


# -------------------------------------------------------------------------------- plain


def dist(folder: Path, metadata: Path | None = None) -> Folder:
    """A folder of `save_state_dict`, of which nothing is read yet."""
    path = metadata or _metadata(folder)
    assert path is not None  # whoever calls has seen one
    arrays = functools.cache(lambda: joined(path))

    @functools.cache
    def sorted_out() -> tuple[dict[str, Any], Parts, dict[str, str]]:
        return _sorted_out(path, arrays(), beside(path.parent))

    def model() -> dict[str, Any]:
        if not sorted_out()[0]:
            raise Absent(f"{path}: found no parameters in it, expected some beside an optimizer's state")
        return sorted_out()[0]

    def state() -> Parts:
        if not sorted_out()[1].accumulators:
            raise Absent(f"{path}: found no accumulators in it, expected an optimizer's state")
        return sorted_out()[1]

    return Folder(
        metadata or folder, "dist checkpoint", model, state, arrays, statics=lambda: sorted_out()[2]
    )


def _sorted_out(path: Path, found: Read, scheduler: Any) -> tuple[dict[str, Any], Parts, dict[str, str]]:
    """Parameters, state, and the KEY of each tensor name, of what a caller nested as he liked."""
    parts = {key: found.parts.get(key, (key,)) for key in found}
    if all(len(p) == 1 for p in parts.values()) and any(k.startswith("optimizer.") for k in found):
        parts = {k: tuple(k.split(".", 1)) for k in found}  # saved flat, under the joined names
    parameters: dict[str, Any] = {}
    states: dict[str, tuple[str, bool, str]] = {}
    masters: dict[str, str] = {}
    for key, (*above, last) in parts.items():
        owned = accumulator_of(last)
        if "master_weights" in above:
            masters[key] = last
        elif owned is not None and not (above and above[0] == "model"):
            states[key] = owned
            if owned[2] == "":
                masters[key] = owned[0]
        else:
            name = ".".join([*above[1:], last])
            if name in parameters:
                raise CheckpointError(f"{path}: found two parameters {shown(name)}, expected one")
            parameters[name] = found[key]
    statics = {
        found.names[key]: ".".join([*above[1:], last])
        for key, (*above, last) in parts.items()
        if key in found.names and key not in states and key not in masters
    }
    accumulators: dict[str, dict[str, Any]] = {}
    for key, (static, _, accumulator) in states.items():
        if accumulator:
            accumulators.setdefault(statics.get(static, static), {})[accumulator] = found[key]
    by_key = {statics.get(static, static): found[key] for key, static in masters.items()}
    return parameters, Parts(accumulators, by_key or None, scheduler), statics
