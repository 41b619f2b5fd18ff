"""Parameters from Paddle's checkpoints and back, by structured name or by tensor name."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import ArgumentError, require
from ..optimizer.ledger import Entries, StateDictError
from ..optimizer.parameter import Parameter, values
from ..trees import path_name
from .convert import outline_any, read_any, save_any
from .errors import PathLike
from .folders.contents import Folder
from .folders.kinds import found as found_folder
from .folders.placing import Kept, all_placed
from .formats import unpacked
from .layout import NAMES, SLICES, is_tensor
from .names import OURS, check_needed, checked_names, proposal

RESERVED = {NAMES, SLICES, OURS, "__metadata__"}  # what stands beside the arrays in a file


class _Own(NamedTuple):
    """A parameter of ours: where it stands, its own name, and its array or Parameter."""

    path: str
    name: str
    leaf: Any

    @property
    def key(self) -> str:
        """What a file calls it."""
        return self.path.replace("/", ".")

    @property
    def words(self) -> tuple[str, str, str]:
        """What a map may call it, or a file."""
        return self.path, self.key, self.name


def parameter_names(file: PathLike) -> dict[str, str]:
    """The names of a `.pdparams`: {tensor name: structured name}, such as {"linear_0.w_0": "0.weight"}.

    The file may also be a `.npz` or a `.safetensors` of the same.
    It serves as `names` for `load_optimizer`, where the tree's path is `0/weight` or the Parameter's name
    `0.weight`: an optimizer's file knows tensor names only. Of several keys of one tensor the first counts.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save_parameters({"0": {"weight": jnp.ones(2)}}, file, names={"linear_0.w_0": "0/weight"})
    >>> parameter_names(file)
    {'linear_0.w_0': '0.weight'}
    """
    names: dict[str, str] = {}
    for key, x in outline_any(file).tree.items():
        if is_tensor(x):
            names.setdefault(x.name, key)
    return names


def load_parameters(
    target: Any,
    file: PathLike | Mapping[Any, Any],
    names: Mapping[str, str] | None = None,
) -> Any:
    """The parameters of a `.pdparams`: for a tree of arrays a new tree; Parameters in it are set.

    `file` may also be a `.npz` or a `.safetensors` of the same, or the dict that `load` made of one, or the
    folder of a large training: see `paddlejax.checkpoint.folders`. Nested dicts in it, as `save` makes of a
    tree, are read as levels: {"0": {"weight": x}} is `0.weight`. A leaf that is on several devices, or a
    `jax.ShapeDtypeStruct` with a sharding, gets an array that is laid out as it is; of a folder each process
    reads only what its own devices hold. A
    parameter is found under its path (`0/weight`, in the file `0.weight`), its Parameter's name, or its
    tensor's name in the file's table (`linear_0.w_0`); `names`, {name in the file, of either kind: path or
    name here}, goes before. Nothing is guessed: what is missing, unexpected, misshapen or of another dtype is
    in one StateDictError, with a map to paste where names differ, and nothing is changed. A name that the
    file does not have, for a parameter that it has by another, is a ValueError.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save({"out.weight": jnp.ones((2, 1))}, file)
    >>> load_parameters({"out": {"weight": jnp.zeros((2, 1))}}, file)["out"]["weight"].tolist()
    [[1.0], [1.0]]
    """
    given = checked_names(names)
    mine = _members(target)
    folder = found_folder(file)
    if folder is None:
        arrays, tensors = _contents(file, unpacked(_value(own.leaf) for own in mine))
    else:
        arrays, tensors = _in_folder(folder, mine, given)
    sources = _matched(mine, arrays, tensors, given)
    met = (own for own, key in zip(mine, sources, strict=True) if key is not None)
    check_needed(given, {*arrays, *tensors.values(), *(word for own in met for word in own.words)})
    entries = Entries(arrays, counters=False)
    values = [
        entries.read(Kept(key or own.name, jnp.shape(own.leaf), jnp.result_type(_value(own.leaf))))
        for own, key in zip(mine, sources, strict=True)
    ]

    def hint() -> str:
        left = {key: np.shape(x) for key, x in entries.rest.items()}
        free = {own.name: jnp.shape(own.leaf) for own, key in zip(mine, sources, strict=True) if key is None}
        return proposal(left, free)

    entries.close(hint, {key: f" (tensor {name})" for key, name in tensors.items() if name != key})
    new = []
    for own, value in zip(mine, all_placed([_value(own.leaf) for own in mine], values), strict=True):
        if isinstance(own.leaf, Parameter):
            own.leaf.set_value(value)
        new.append(own.leaf if isinstance(own.leaf, Parameter) else value)
    return jax.tree.unflatten(jax.tree.structure(target), new)


def save_parameters(
    source: Any, file: PathLike, names: Mapping[str, str] | None = None, *, protocol: int = 4
) -> None:
    """Write a `.pdparams` that `model.set_state_dict(paddle.load(file))` takes.

    `source` is a tree of arrays or Parameters. The keys are its paths with dots (`0.weight`), for a bare list
    of Parameters their names; two that are equal are an ArgumentError. `names`, {Paddle's tensor name: path
    or name here} as from `parameter_names`, fills the file's table of tensor names. Paddle 1.8.5 needs
    protocol=2. A `file` that ends in `.npz` or `.safetensors` is written as such.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdparams")
    >>> save_parameters({"0": {"weight": jnp.ones(2)}}, file)
    >>> print(paddle.load(file)["0.weight"])
    [1. 1.]
    """
    mine = _members(source)
    back = _back(mine, names)
    tensors = {own.key: back.get(own.path, own.name) for own in mine}
    arrays = zip((own.key for own in mine), values([own.leaf for own in mine]), strict=True)
    save_any({**dict(arrays), NAMES: tensors}, file, protocol)


def keyed(source: Any, names: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a tree by their names in a file, and that name for each path and name of ours."""
    mine = _members(source)
    back = _back(mine, names)
    keys = {word: back.get(own.path, own.key) for own in mine for word in own.words}
    arrays = dict(zip([keys[own.path] for own in mine], values([own.leaf for own in mine]), strict=True))
    if len(arrays) < len(mine):
        raise ValueError(f"names: found {len(mine)} parameters with {len(arrays)} names, expected as many")
    return arrays, keys


def _back(mine: list[_Own], names: Any) -> dict[str, str]:
    """The map {path: name in the file}, of the map the other way round, which may say path, key or name."""
    back = {ours: theirs for theirs, ours in checked_names(names).items()}
    known = {word: own.path for own in mine for word in reversed(own.words)}
    if unknown := [ours for ours in back if ours not in known]:
        found, expected = ", ".join(unknown), ", ".join(own.path for own in mine)
        raise ValueError(f"names: found {found}, expected some of {expected}")
    return {known[ours]: theirs for ours, theirs in back.items()}


def _members(tree: Any) -> list[_Own]:
    """Return the leaves of a tree with the names under which a file has them."""
    bare = isinstance(tree, list | tuple) and all(isinstance(x, Parameter) for x in tree)
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, Parameter) and not hasattr(leaf, "dtype"):
            raise TypeError(f"at {path_name(path)}: found {leaf!r:.80}, expected an array or a Parameter")
        where = path_name(path) if path else "param"
        name = leaf.name if isinstance(leaf, Parameter) else where
        found.append(_Own(name if bare else where, name, leaf))
        require(found[-1].key not in RESERVED, "the parameters", found[-1].key, "a name that no file needs")
    if twice := sorted(key for key, times in Counter(own.key for own in found).items() if times > 1):
        raise ArgumentError(
            f"the parameters: found {', '.join(twice)} more than once, expected distinct names"
        )
    return found


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Parameter) else leaf


def _contents(file: PathLike | Mapping[Any, Any], most: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a file, which unpacks to so many bytes at most, by key, and the tensor name of each."""
    if isinstance(file, Mapping):
        arrays, names = {k: v for k, v in file.items() if k not in (NAMES, OURS)}, file.get(NAMES, {})
        if not isinstance(names, Mapping) or not all(isinstance(x, str) for x in names.values()):
            raise StateDictError(f"{NAMES}: found {names!r:.100}, expected a dict of names")
        arrays = _flat(arrays)
        return arrays, {k: names.get(k, k) for k in arrays}
    tree = _flat({k: v for k, v in read_any(file, most).tree.items() if k != OURS})
    names = {k: v.name if is_tensor(v) else k for k, v in tree.items()}
    return {k: v.array if is_tensor(v) else v for k, v in tree.items()}, names


def _flat(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries of nested dicts and lists, as `save` writes a tree, with dots between the levels."""
    flat: dict[Any, Any] = {}
    for key, x in tree.items():
        level = _level(x)
        inner = {key: x} if level is None else {f"{key}.{k}": v for k, v in _flat(level).items()}
        if twice := sorted(map(str, flat.keys() & inner.keys())):
            raise StateDictError(f"found {', '.join(twice)} more than once, expected distinct names")
        flat |= inner
    return flat


def _level(x: Any) -> Mapping[Any, Any] | None:
    """The entries of a dict or a list; None for an array, and for a list of plain numbers."""
    if isinstance(x, list | tuple) and not is_tensor(x):
        plain = all(v is None or isinstance(v, int | float | complex | str | bytes) for v in x)
        return None if plain else dict(enumerate(x))
    return x if isinstance(x, Mapping) else None


def _in_folder(
    folder: Folder, mine: list[_Own], given: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a folder by KEY, and the tensor name of each where the folder tells it."""
    dtypes = {word: jnp.result_type(_value(own.leaf)) for own in mine for word in own.words}
    wanted = dtypes | {theirs: dtypes[ours] for theirs, ours in given.items() if ours in dtypes}
    arrays = folder.parameters(wanted)
    tensors = {key: name for name, key in folder.statics().items()}
    return arrays, {key: tensors.get(key, key) for key in arrays}


def _matched(
    mine: list[_Own], arrays: Mapping[str, Any], tensors: Mapping[str, str], given: Mapping[str, str]
) -> list[str | None]:
    """The key of each of our parameters: as the map says, else by path, by name, by tensor name."""
    keys = {
        **{tensor: key for key, tensor in reversed(list(tensors.items()))},
        **{key: key for key in arrays},
    }
    mapped = {ours: keys[theirs] for theirs, ours in given.items() if theirs in keys}
    taken = set(mapped.values())
    found = []
    for own in mine:
        key = next((mapped[w] for w in own.words if w in mapped), None)
        plain = (keys[w] for w in own.words if w in keys and keys[w] not in taken)
        found.append(next(plain, None) if key is None else key)
    return found
