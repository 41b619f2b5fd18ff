"""One `.pdopt` of each rank: what PaddleNLP, ERNIE and `fleet` write without Unified Checkpoint.

    model_state[.SUFFIX].pdparams   optimizer[.SUFFIX].pdopt   SUFFIX: tp00, pp00, shard00, moe00, joined by _

With sharding stage 1 each rank has the whole accumulators of its parameters: they join by union. The tensor
names of two stages of a pipeline are the same for different parameters, so all goes by the structured names
that the table in the model's file of the same stage tells.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, listed, shown
from ..files import handed_out, read
from ..layout import is_tensor
from .contents import Absent, Folder, Parts, accumulator_of, beside, within

STATE = re.compile(r"optimizer(?:\.(\w+))?\.pdopt")
MODEL = re.compile(r"model_state(?:\.(\w+))?\.pdparams")
JOINT = {"LR_Scheduler"}  # what every rank has alike


def is_state(name: str) -> bool:
    """Whether a file is called as a rank calls its part."""
    return bool(STATE.fullmatch(name) or MODEL.fullmatch(name))


def ranks(folder: Path) -> Folder:
    """A folder of such files, of which nothing is read yet."""
    names = sorted(p.name for p in folder.iterdir())
    states = {m[1] or "": folder / m[0] for m in map(STATE.fullmatch, names) if m}
    models = {m[1] or "": folder / m[0] for m in map(MODEL.fullmatch, names) if m}

    @functools.cache
    def tables() -> dict[str, dict[str, tuple[str, Any]]]:
        """Of each model's file {KEY: (tensor name, array)}."""
        _refuse_slices(folder, models)
        found = {}
        for suffix, path in models.items():
            tree = read(within(folder, path.name, path)).tree
            found[suffix] = {k: (v.name, v.array) for k, v in tree.items() if is_tensor(v)}
        return found

    @functools.cache
    def model() -> dict[str, Any]:
        if not models:
            raise Absent(f"{folder}: found no model, expected model_state.pdparams in it")
        found: dict[str, Any] = {}
        for suffix, table in tables().items():
            for key, (_, x) in table.items():
                _once(models[suffix], found, key, x)
        return found

    def statics() -> dict[str, str]:
        return {name: key for table in tables().values() for key, (name, _) in table.items()}

    @functools.cache
    def state() -> Parts:
        if not states:
            raise Absent(f"{folder}: found no optimizer's state, expected optimizer.pdopt in it")
        _refuse_slices(folder, states)
        whole = {k: np.shape(x) for table in tables().values() for k, (_, x) in table.items()}
        parts = Parts({}, None, beside(folder))
        for suffix, path in states.items():
            stage = re.sub(r"_?shard_?\d+", "", suffix).strip("_")
            table = tables().get(stage, tables().get("", {}) if len(models) == 1 else {})
            _add(parts, path, {name: key for key, (name, _) in table.items()}, whole)
        return parts

    def tree() -> dict[str, Any]:
        parts = state() if states else Parts({}, None, beside(folder))
        found = {
            "model": model() if models else {},
            "optimizer": parts.accumulators,
            "master_weights": parts.masters,
            "LR_Scheduler": parts.scheduler,
        }
        return {k: v for k, v in found.items() if v}

    return Folder(folder, "files of ranks", model, state, tree, statics=statics)


def _refuse_slices(folder: Path, files: dict[str, Path]) -> None:
    """Raise if the files hold slices of tensor parallelism."""
    if slices := [path.name for suffix, path in files.items() if re.search(r"tp_?\d", suffix)]:
        raise CheckpointError(
            f"{folder}: {listed(slices)} hold slices of tensor parallelism, and nothing in the folder says "
            "along which axis they join; only the model's class knows. Expected whole arrays, as a Unified "
            "Checkpoint has them"
        )


def _add(parts: Parts, path: Path, keys: dict[str, str], whole: dict[str, tuple[int, ...]]) -> None:
    """Join what one rank has."""
    tree = handed_out(read(within(path.parent, path.name, path)), True, False)
    for name, value in tree.items():
        if name == "LR_Scheduler":
            parts.scheduler = parts.scheduler or value
        elif name == "master_weights" and isinstance(value, dict):
            parts.masters = {} if parts.masters is None else parts.masters
            for static, x in value.items():
                key = keys.get(static) or static
                _check_whole(path, key, x, whole)
                _once(path, parts.masters, key, x)
        elif isinstance(name, str) and isinstance(value, np.ndarray) and (owned := accumulator_of(name)):
            key = keys.get(owned[0], owned[0])
            if not owned[2].startswith("beta"):
                _check_whole(path, key, value, whole)
            _once(path, parts.accumulators.setdefault(key, {}), owned[2], value)
        else:
            raise CheckpointError(f"{path}: it has {shown(name)}, which is no accumulator")


def _check_whole(path: Path, key: str, x: Any, whole: dict[str, tuple[int, ...]]) -> None:
    """Refuse a stretch of a flattened array, as sharding stage 1 version 2 and stage 2 have them."""
    if key in whole and np.ndim(x) == 1 and np.shape(x) != whole[key]:
        raise CheckpointError(
            f"{path}: a state of {shown(key)} has shape {np.shape(x)}, the parameter {whole[key]}: sharding "
            "cut it into stretches (stage 1 with split_param, or stage 2), and the cuts are not in these "
            "files. "
            "Expected sharding stage 1 without split_param, a Unified Checkpoint or a flex checkpoint"
        )


def _once(path: Path, found: dict[str, Any], key: str, x: Any) -> None:
    """Add an array; one that another rank has too must be the same."""
    if key in found and not (found[key].dtype == x.dtype and np.array_equal(found[key], x, equal_nan=True)):
        raise CheckpointError(f"{path}: it has {shown(key)}, and so has another rank, which differs")
    found[key] = x
