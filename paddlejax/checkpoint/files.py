"""`load` and `save`: Paddle's `.pdparams` and `.pdopt`."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..array_types import Stored
from .atomic import replacing
from .budget import Budget, room
from .errors import PathLike, Refused, opened, reader_of
from .layout import (
    GENERAL,
    NAMED,
    NAMES,
    SLICE,
    SLICES,
    Checkpoint,
    Tensor,
    arranged,
    is_tensor,
    leaves,
    place,
    replace,
    understand,
)
from .pickler import PROTOCOLS, Pickler
from .unpickle import unpickle

Target = PathLike | BytesIO
OTHERS = {".npz": "load_npz", ".safetensors": "load_safetensors"}


def load(path: Target, return_numpy: bool = False, keep_name_table: bool = False) -> dict[Any, Any]:
    """What a file of Paddle 3.x or 1.8, or of `save`, holds: a dict, nested as it was saved.

    `path` is the full name, such as "model.pdparams", or a BytesIO. Of the folder of a large training, see
    `paddlejax.checkpoint.folders`, it is {"model": {KEY: array}, "optimizer": {KEY: {"moment1_0": array}},
    "master_weights": {KEY: array}, "LR_Scheduler": {...}}, as far as they are there; of an `index.json`, a
    `.metadata`, or the folder of `paddle.distributed.save_state_dict`, the arrays that it names. Tensors
    come as jax arrays, with return_numpy=True as numpy arrays; without it those of 64 bits are numpy arrays
    too unless jax has x64 enabled, so that no digit is lost. bfloat16, of which a file has only the bits, is
    bfloat16 again. Arrays that Paddle itself would not make tensors of stay as they are. keep_name_table=True
    keeps the table of tensor names, where there is one, under "StructuredToParameterName@@".

    A pickle can run anything; this reader cannot: it knows plain containers, numbers and numeric arrays, and
    raises CheckpointError for whatever else, as for a damaged or a missing file. It takes 20 times the file's
    size of memory at most, beside 50 MB. A file that would need more, such as one of millions of empty
    containers, is refused. Paddle need not be installed.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save({"w": jnp.ones(2), "epoch": 3}, file)
    >>> load(file)
    {'w': Array([1., 1.], dtype=float32), 'epoch': 3}
    """
    from .folders.kinds import found  # which reads such files as well

    if not isinstance(path, BytesIO) and (folder := found(path)):
        _check_flags(return_numpy, keep_name_table)
        made = np.asarray if return_numpy else lambda x: _tensor(np.asarray(x))
        stored = (Stored, np.ndarray)
        return replace(folder.get_tree(), lambda x: isinstance(x, stored), lambda _, x: made(x))
    return handed_out(read(path), return_numpy, keep_name_table)


def _check_flags(return_numpy: bool, keep_name_table: bool) -> None:
    """Raise if a flag of `load` is none."""
    for name, flag in (("return_numpy", return_numpy), ("keep_name_table", keep_name_table)):
        if not isinstance(flag, bool):
            raise TypeError(f"load's {name}: found {flag!r}, expected True or False")


def handed_out(checkpoint: Checkpoint, return_numpy: bool, keep_name_table: bool) -> dict[Any, Any]:
    """A checkpoint as the plain dict that users get, every array a copy of their own."""
    _check_flags(return_numpy, keep_name_table)
    made: dict[int, Any] = {}  # an array that stands in two places is made once

    def make(_: Any, x: Any) -> Any:
        own = x.array if is_tensor(x) else x
        if id(own) not in made:
            made[id(own)] = _tensor(own) if is_tensor(x) and not return_numpy else np.array(own)
        return made[id(own)]

    entries = replace(checkpoint.tree, lambda x: is_tensor(x) or isinstance(x, np.ndarray), make)
    if keep_name_table and checkpoint.layout == NAMED:
        entries[NAMES] = {k: v.name for k, v in checkpoint.tree.items() if is_tensor(v)}
    return entries


def _tensor(x: np.ndarray) -> Any:
    """A jax array, unless jax would narrow it."""
    return jnp.array(x) if jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype else np.array(x)


def read(path: Target) -> Checkpoint:
    """What a file holds, with the names of its tensors and its layout; arrays are numpy's, and read-only.

    Raises CheckpointError as `load` does.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save({"weight": Parameter(jnp.ones(2), "fc_0.w_0")}, file)
    >>> read(file).tree["weight"].name
    'fc_0.w_0'
    """
    with opened(path) as (file, size):
        start = file.read(9)
        file.seek(-len(start), 1)
        try:
            budget = Budget(size)
            return understand(unpickle(file, size, budget), budget)
        except Refused as e:
            other = None if isinstance(path, BytesIO) else OTHERS.get(Path(path).suffix)
            # A zip archive may be torch's as well.
            if other or (other := reader_of(start)) == "load_safetensors":
                raise Refused(f"{e}; {other} reads such a file") from None
            raise


def save(obj: Mapping[Any, Any], path: Target, protocol: int = 4) -> None:
    """Write a file that Paddle's `paddle.load`, and `load`, read back: whole or not at all.

    `obj` is a dict of jax or numpy arrays or Parameters, the `state_dict()` of an optimizer, a scheduler or a
    wrapper, or a dict of such dicts with numbers, strings, lists and None among them. Paddle's `.pdparams`
    and `.pdopt` are the usual endings. A flat dict gets Paddle's table of names (a Parameter's own name, else
    the key), anything else its general layout. Anything that could not be read back safely is refused with
    its place in the dict before the file is touched. So are millions of tiny containers, since `load` bounds
    its memory. The new file takes the place of an old one at once, when it is complete and on the disk;
    missing folders are made. `path` may be a BytesIO too. `protocol` is 2, 3 or 4, as in Paddle; 1.8.5, and
    files for it, need 2.

    >>> import os, tempfile
    >>> w = Parameter(jnp.ones(2), "w")
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save({"layer.weight": w}, file)
    >>> load(file, keep_name_table=True)["StructuredToParameterName@@"]
    {'layer.weight': 'w'}
    """
    if type(protocol) is not int or protocol not in PROTOCOLS:
        raise ValueError(f"save's protocol: found {protocol!r}, expected 2, 3 or 4")
    write(arranged(obj), path, protocol)


def write(checkpoint: Checkpoint, path: Target, protocol: int = 4) -> None:
    """Write what `read` or `arranged` returned, in the layout it says."""
    tree = checkpoint.tree
    for where, x in leaves(tree, is_tensor):
        if protocol < 4 and is_tensor(x) and x.array.nbytes > SLICE and checkpoint.layout != NAMED:
            found = f"found {x.array.nbytes} bytes at {place(where)}"
            raise ValueError(
                f"save's protocol {protocol}: {found}, expected protocol 4 for so large an array"
            )
    if checkpoint.layout == NAMED:
        names = {k: v.name for k, v in tree.items() if is_tensor(v)}
        tree = {**(_cut(tree) if protocol < 4 else tree), NAMES: names}
    pairs = checkpoint.layout == GENERAL
    obj = replace(tree, is_tensor, lambda _, x: (x.name, x.array) if pairs else x.array)
    with replacing(path) as file:
        Pickler(file, protocol).dump(obj)
        if not room(obj, file.tell()):
            expected = "expected few containers, or int keys, for the bytes of its arrays and numbers"
            raise ValueError(
                f"save: found more objects than a file of {file.tell()} bytes may hold, {expected}"
            )


def _cut(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with its large arrays in parts, which protocols 2 and 3 need."""
    cut, table = {}, {}
    for key, x in tree.items():
        if not is_tensor(x) or x.array.nbytes <= SLICE:
            cut[key] = x
            continue
        step = SLICE // x.array.dtype.itemsize
        flat = np.asarray(x.array).reshape(-1)
        parts = {
            f"{key}@@.{i}": flat[start : start + step] for i, start in enumerate(range(0, flat.size, step))
        }
        cut |= {name: Tensor(x.name, part) for name, part in parts.items()}
        table[key] = {"OriginShape": tuple(x.array.shape), "slices": list(parts)}
    return {**cut, SLICES: table} if table else cut
