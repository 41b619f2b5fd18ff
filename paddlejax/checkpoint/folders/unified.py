"""Unified Checkpoint: the `.safetensors` shards of PaddleNLP, ERNIEKit and PaddleFormers, and their indices.

    model.safetensors.index.json           KEY, such as encoder.weight
    optimizer.safetensors.index.json       KEY/moment1_0
    master_weights.safetensors.index.json  KEY, in float32
    peft_model.safetensors.index.json      in the model's place: LoRA, prefix tuning

Every array is whole in one shard, so joining is a union. Without an index there is one file, or the optimizer
was left in the parts of its ranks: those of sharding and of pipelines join, tensor-parallel slices do not.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...array_types import Stored
from ..errors import CheckpointError, Refused, listed, opened, shown
from ..names import OURS
from .contents import NARROW, Absent, Folder, Parts, beside, named_file, within
from .quantized import MARKS, dequantized
from .shards import header, parsed, same

INDEX = ".safetensors.index.json"
MODELS = ("model", "peft_model")
PARTS = (*MODELS, "optimizer", "master_weights")
DTYPES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(jnp.bfloat16)}


class Indexed(NamedTuple):
    """The arrays that one index names."""

    arrays: dict[str, Stored]
    extra: dict[str, Any]  # what else the index says
    formats: frozenset[str]  # of the shards: "np", or "pt" where they were saved for PyTorch


def unified(folder: Path) -> Folder:
    """A folder of Unified Checkpoint, of which nothing is read yet but how its masters are kept."""
    extra = _said(folder / f"optimizer{INDEX}")
    left_out = bool(extra.get("master_weights")) and not _has(folder, "master_weights")

    @functools.cache
    def model() -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        parts = [part for stem in MODELS if _has(folder, stem) and (part := indexed(folder, stem))]
        if not parts:
            raise Absent(f"{folder}: found no model, expected model{INDEX} or model.safetensors in it")
        for part in parts:
            if twice := found.keys() & part.arrays.keys():
                raise CheckpointError(f"{folder}: found {listed(sorted(twice))} in two models")
            found |= part.arrays
        if any("pt" in part.formats for part in parts):
            raise CheckpointError(
                f"{folder}: its model says that it was saved for PyTorch (format 'pt'). There the weights of "
                "Linear layers are transposed, and which ones they are only the model's class knows. load "
                "gives the arrays as they are; transpose those, and give the dict"
            )
        return found

    @functools.cache
    def state() -> Parts:
        if not _has(folder, "optimizer"):
            raise Absent(f"{folder}: found no optimizer's state, expected optimizer{INDEX} in it")
        found = indexed(folder, "optimizer")
        stage = found.extra.get("ckpt_quant_stage")
        arrays, lossy = dequantized(folder, found.arrays, stage)
        masters = indexed(folder, "master_weights").arrays if _has(folder, "master_weights") else None
        if left_out:
            masters = model()
            if narrow := [k for k, x in masters.items() if x.dtype in NARROW]:
                raise CheckpointError(
                    f"{folder}: its optimizer has masters, expected master_weights{INDEX}, or a model of "
                    f"float32 in their place; found {shown(narrow[0])} in {masters[narrow[0]].dtype}"
                )
        own = indexed(folder, OURS).arrays if _has(folder, OURS) else {}
        extra = found.extra.get(OURS)
        extra = extra if isinstance(extra, dict) else {}
        return Parts(_by_key(folder, arrays), masters, beside(folder), lossy, own, extra)

    def tree() -> dict[str, Any]:
        parts = state() if _has(folder, "optimizer") else Parts({}, None, beside(folder))
        found = {
            "model": raw_model() if any(_has(folder, s) for s in MODELS) else {},
            "optimizer": parts.accumulators,
            "master_weights": {} if left_out else parts.masters,
            "LR_Scheduler": parts.scheduler,
        }
        return {k: v for k, v in found.items() if v}

    def raw_model() -> dict[str, Stored]:
        stems = (s for s in MODELS if _has(folder, s))
        return {k: x for stem in stems for k, x in indexed(folder, stem).arrays.items()}

    return Folder(folder, "unified checkpoint", model, state, tree, _dtype(folder), left_out)


def one_index(path: Path) -> Folder:
    """What an index means: its own arrays, or the state of the optimizer of its folder."""
    stem = path.name.removesuffix(INDEX)

    @functools.cache
    def arrays() -> dict[str, Stored]:
        found = indexed(path.parent, stem)
        plain, _ = dequantized(path.parent, found.arrays, found.extra.get("ckpt_quant_stage"))
        return plain

    whole = unified(path.parent)
    others = None if stem in MODELS else arrays
    return Folder(
        path, whole.kind, whole.get_model, whole.get_state, arrays, whole.dtype,
        whole.only_masters and others is None, get_others=others,
    )  # fmt: skip


def indexed(folder: Path, stem: str) -> Indexed:
    """The arrays of a part, by its index or by its one file; none of them is read."""
    index = folder / f"{stem}{INDEX}"
    if index.exists():
        extra = _said(index)
        if "weight_map" in extra:
            return _by_index(index, extra)
    else:
        extra = {}
    if unmerged := _unmerged(folder, stem):
        return _united(folder, stem, unmerged, extra)
    if index.exists():
        raise CheckpointError(f"{index}: it has no weight_map, and its folder no shards of single ranks")
    numbered = sorted(folder.glob(f"{stem}-?????-of-?????.safetensors"))
    single = folder / f"{stem}.safetensors"
    if not single.exists() and len(numbered) == 1 and "-00001-of-00001." in numbered[0].name:
        single = numbered[0]
    if not single.exists() and numbered:
        raise CheckpointError(f"{index}: there is no such file, and {len(numbered)} shards need it")
    found = header(within(folder, single.name, single))
    return Indexed(dict(found.arrays), {}, _formats(found.marks))


def _by_index(index: Path, extra: dict[str, Any]) -> Indexed:
    """The arrays where an index says they are, each of them checked against its shard's header."""
    folder, where = index.parent, extra["weight_map"]
    with opened(index):
        if type(where) is not dict:
            raise Refused(f"its weight_map is {shown(where)}, expected an object")
        files = dict.fromkeys(named_file(file, shown(key)) for key, file in where.items())
    headers = {file: header(within(folder, file, index)) for file in files}
    arrays: dict[str, Stored] = {}
    for key, file in where.items():
        if key not in headers[file].arrays:
            raise CheckpointError(f"{folder / file}: it has no {shown(key)}, which {index.name} puts there")
        arrays[key] = headers[file].arrays[key]
    for file, found in headers.items():
        for key, x in found.arrays.items():
            if key not in where:
                if key.endswith(MARKS):
                    arrays[key] = x
                    continue
                raise CheckpointError(
                    f"{folder / file}: it has {shown(key)}, of which {index.name} is silent"
                )
            if where[key] != file and not same(headers[where[key]].arrays[key], x):
                raise CheckpointError(
                    f"{folder / file}: it has {shown(key)}, and so has {where[key]}, which differs"
                )
    formats = frozenset(f for found in headers.values() for f in _formats(found.marks))
    return Indexed(arrays, extra, formats)


def _unmerged(folder: Path, stem: str) -> dict[str, Path]:
    """The files of single ranks, by what stands between their stem and their ending."""
    found = re.compile(rf"{stem}\.((?:(?:tp|pp|shard|moe)_?\d+_?)+)\.safetensors")
    names = sorted(p.name for p in folder.iterdir())
    return {m[1]: folder / m[0] for m in map(found.fullmatch, names) if m}


def _united(folder: Path, stem: str, files: dict[str, Path], extra: dict[str, Any]) -> Indexed:
    """The union of what several ranks wrote, each of whole arrays."""
    if slices := [path.name for suffix, path in files.items() if "tp" in suffix]:
        raise CheckpointError(
            f"{folder}: its {stem} was not merged: {listed(slices)} hold slices of tensor parallelism, and "
            "nothing in the folder says along which axis they join; only the model's class knows. Expected a "
            "checkpoint without ignore_merge_optimizer"
        )
    arrays: dict[str, Stored] = {}
    formats: frozenset[str] = frozenset()
    for path in files.values():
        found = header(within(folder, path.name, path))
        for key, x in found.arrays.items():
            if key in arrays and not same(arrays[key], x):  # type: ignore[arg-type]
                raise CheckpointError(f"{path}: it has {shown(key)}, and so has another rank, which differs")
            arrays[key] = x
        formats |= _formats(found.marks)
    return Indexed(arrays, extra, formats)


def _by_key(folder: Path, arrays: dict[str, Stored]) -> dict[str, dict[str, Any]]:
    """{KEY: {"moment1_0": array}} of KEY/moment1_0."""
    found: dict[str, dict[str, Any]] = {}
    for name, x in arrays.items():
        key, slash, accumulator = name.partition("/")
        if not slash or not key or not accumulator or "/" in accumulator:
            raise CheckpointError(f"{folder}: its optimizer has {shown(name)}, expected NAME/ACCUMULATOR")
        found.setdefault(key, {})[accumulator] = x
    return found


def _has(folder: Path, stem: str) -> bool:
    """Whether there is any file of a part."""
    named = (folder / f"{stem}{INDEX}", folder / f"{stem}.safetensors")
    numbered = folder.glob(f"{stem}-?????-of-?????.safetensors")
    return any(p.exists() for p in named) or any(numbered) or bool(_unmerged(folder, stem))


def _said(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there."""
    if not path.exists():
        return {}
    with opened(within(path.parent, path.name, path)) as (file, size):
        return parsed(file.read(), size)


def _dtype(folder: Path) -> Any:
    """The dtype of the parameters in config.json, if it is one of 16 bits."""
    said = _said(folder / "config.json")
    name = said.get("dtype") or said.get("torch_dtype")
    return DTYPES.get(name.removeprefix("paddle.")) if isinstance(name, str) else None


def _formats(marks: dict[str, str]) -> frozenset[str]:
    return frozenset([marks["format"]] if "format" in marks else [])
