"""Paddle's layouts: which arrays are tensors, what they are called, and how a large one is cut."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..optimizer.gate import whole
from ..optimizer.parameter import Parameter
from .budget import ATOMS, Budget
from .errors import Refused, listed, shown
from .pickled import DIMENSIONS, DTYPES, LENGTH
from .unpickle import DEPTH

NAMES = "StructuredToParameterName@@"
SLICES = "UnpackBigParamInfor@@"
SLICE = 2**30 - 1  # bytes in one array of protocols 2 and 3
LAYOUTS = ("state dict with names", "state dict without names", "general")
NAMED, NAMELESS, GENERAL = LAYOUTS


class Tensor(NamedTuple):
    """An array that Paddle reads as a Tensor, and the name it has there."""

    name: str
    array: Any


class Checkpoint(NamedTuple):
    """What a file holds: nested dicts, lists, tuples and numbers, with a `Tensor` wherever Paddle makes one.

    Other numpy arrays are such as Paddle leaves alone. `layout` is one of "state dict with names", "state
    dict without names", "general".
    """

    tree: dict[Any, Any]
    layout: str


def understand(raw: Any, budget: Budget) -> Checkpoint:
    """Find the tensors in what a file holds, by the rules of `paddle.load`."""
    if type(raw) is not dict:
        raise Refused(f"it holds {shown(raw)}, expected a dict")
    views: dict[int, np.ndarray] = {}  # an array that stands in many places is one array still

    def tensor(name: str, array: np.ndarray) -> Tensor:
        budget.charge_text(name)
        # Paddle has no uint16 tensors: their files hold the bits of bfloat16.
        if array.dtype == np.uint16 and id(array) not in views:
            views[id(array)] = array.view(jnp.bfloat16)
        return Tensor(name, views.get(id(array), array))

    raw = _joined(raw, budget) if SLICES in raw else raw
    if NAMES in raw:
        names = raw[NAMES]
        if type(names) is not dict or not all(type(x) is str for pair in names.items() for x in pair):
            raise Refused(f"its {NAMES} is no table of names")
        for key in names:
            if not isinstance(raw.get(key), np.ndarray):
                raise Refused(f"it names {shown(key)}, which is not there")
        rest = {k: v for k, v in raw.items() if k != NAMES}
        return Checkpoint({k: tensor(names[k], v) if k in names else v for k, v in rest.items()}, NAMED)
    if _has_pair(raw):
        return Checkpoint(replace(raw, _is_pair, lambda _, x: tensor(*x)), GENERAL)
    return Checkpoint(replace(raw, _is_array, lambda path, x: tensor(_last(path), x)), NAMELESS)


def _has_pair(x: Any) -> bool:
    """Return whether there is a tensor as Paddle pickles it in a tree."""
    if _is_pair(x):
        return True
    inside = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else ()
    return any(type(v) not in ATOMS and _has_pair(v) for v in inside)


def _is_pair(x: Any) -> bool:
    """Return whether x is how Paddle pickles a tensor: (name, array)."""
    return type(x) is tuple and len(x) == 2 and type(x[0]) is str and isinstance(x[1], np.ndarray)


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def is_tensor(x: Any) -> bool:
    """Return whether x is a Tensor; as `is_leaf` it keeps tree functions from looking inside."""
    return isinstance(x, Tensor)


def _last(path: tuple[Any, ...]) -> str:
    """The name of what has none: its key, and its place in a list."""
    keys = [i for i, part in enumerate(path) if isinstance(part, str)]
    return "_".join(map(str, path[keys[-1] if keys else 0 :]))


def _joined(raw: dict[Any, Any], budget: Budget) -> dict[Any, Any]:
    """Large arrays put together from their parts."""
    whole, table = {k: v for k, v in raw.items() if k != SLICES}, raw[SLICES]
    joined: dict[Any, Any] = {}  # what stands in the place of each part
    if type(table) is not dict:
        raise Refused(f"its {SLICES} is no table")
    for key, entry in table.items():
        known = type(entry) is dict and {"OriginShape", "slices"} <= entry.keys()
        shape, parts = (entry["OriginShape"], entry["slices"]) if known else (None, None)
        if not isinstance(shape, tuple | list) or not isinstance(parts, list) or key in whole:
            raise Refused(f"the table of the parts of {shown(key)} is damaged")
        missing = [p for p in parts if type(p) is not str or not isinstance(whole.get(p), np.ndarray)]
        if missing or not parts:
            raise Refused(f"parts of {shown(key)} are missing: {listed(missing) or 'all'}")
        arrays = [whole.pop(p).ravel() for p in dict.fromkeys(parts)]
        if len(arrays) != len(parts) or len({a.dtype for a in arrays}) > 1:
            raise Refused(f"the parts of {shown(key)} do not belong together")
        if len(shape) > DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(f"the shape of {shown(key)} is not one")
        if math.prod(shape) != sum(a.size for a in arrays):
            raise Refused(f"the parts of {shown(key)} do not make up its shape {tuple(shape)}")
        budget.charge(sum(a.nbytes for a in arrays))  # parts may be one array under many names
        joined |= {p: {} for p in parts} | {parts[0]: {key: np.concatenate(arrays).reshape(shape)}}
    return {
        k: v for key, value in raw.items() if key != SLICES for k, v in joined.get(key, {key: value}).items()
    }


def leaves(tree: Any, stop: Callable[[Any], bool]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The paths and values of all that is no container, or at which `stop` says so."""
    if stop(tree) or not isinstance(tree, dict | list | tuple):
        yield (), tree
        return
    open_: list[tuple[tuple[Any, ...], Iterator[tuple[Any, Any]]]] = [((), _items(tree))]
    while open_:
        path, items = open_[-1]
        for key, value in items:
            at = (*path, key)
            if isinstance(value, dict | list | tuple) and not stop(value):
                open_.append((at, _items(value)))
                break
            yield at, value
        else:
            open_.pop()


def _items(x: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Return the keys, or places, and values of a container."""
    return iter(x.items() if isinstance(x, dict) else enumerate(x))


def replace(
    tree: Any, wanted: Callable[[Any], bool], by: Callable[..., Any], path: tuple[Any, ...] = ()
) -> Any:
    """The same tree with `by(path, x)` in the place of every x that is wanted, which is no plain number."""
    if wanted(tree):
        return by(path, tree)
    if isinstance(tree, dict):
        if ATOMS.issuperset(map(type, tree.values())):
            return tree
        return {k: v if type(v) in ATOMS else replace(v, wanted, by, (*path, k)) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        if ATOMS.issuperset(map(type, tree)):
            return tree
        return type(tree)(
            [v if type(v) in ATOMS else replace(v, wanted, by, (*path, i)) for i, v in enumerate(tree)]
        )
    return tree


@whole
def arranged(obj: Any) -> Checkpoint:
    """What a user wants to save, checked and in the layout Paddle gives it; nothing is copied yet."""
    if not isinstance(obj, Mapping):
        raise TypeError(
            f"save: found {type(obj).__name__}, expected a dict of arrays, such as a state_dict()"
        )
    names = obj.get(NAMES, {})
    if not isinstance(names, Mapping) or not all(isinstance(x, str) for pair in names.items() for x in pair):
        raise TypeError(f"save: found {NAMES} {names!r:.100}, expected a dict of names")
    if SLICES in obj:
        raise ValueError(f"save: found the key {SLICES}, the table of cut arrays; expected them whole")
    tree = _checked({k: v for k, v in obj.items() if k != NAMES}, ())
    flat = all(
        is_tensor(v) or isinstance(v, dict) and not any(is_tensor(x) for _, x in leaves(v, is_tensor))
        for v in tree.values()
    )
    if not flat or not all(isinstance(k, str) for k in tree):
        return Checkpoint(tree, GENERAL)
    return Checkpoint(
        {k: Tensor(names.get(k, v.name), v.array) if is_tensor(v) else v for k, v in tree.items()}, NAMED
    )


def place(path: tuple[Any, ...]) -> str:
    """Return a path as text, for messages: its keys with slashes between them."""
    return "/".join(map(str, path))


def _checked(x: Any, path: tuple[Any, ...]) -> Any:
    """A value in the terms of a file, or an error that names its place."""
    # In the general layout an array stands inside of a pair, which is one level more.
    if len(path) + isinstance(x, Parameter | jax.Array | np.ndarray) > DEPTH:
        raise ValueError(f"save: {place(path[:3])}/... is nested more than {DEPTH} deep")
    if isinstance(x, Parameter):
        return Tensor(x.name, storable(x.value, path))
    if isinstance(x, jax.Array | np.ndarray):
        name = f"{path[-1]}_fp32_master_0" if path[-2:-1] == ("master_weights",) else _last(path)
        return Tensor(name, storable(x, path))
    if isinstance(x, Mapping):
        for key in x:
            if type(key) is str:
                _check_text(key, (*path, ascii(key)))
            elif type(key) is not int or abs(key) >= 2**63:
                found = f"the key {key!r:.100} of type {type(key).__name__}"
                raise TypeError(f"save: {place(path) or 'the dict'} has {found}, expected str or int")
        return {k: _checked(v, (*path, k)) for k, v in x.items()}
    if type(x) in (list, tuple):
        return type(x)(_checked(v, (*path, i)) for i, v in enumerate(x))
    if type(x) is str:
        _check_text(x, path)
    elif isinstance(x, np.generic):
        storable(x, path)
    elif type(x) is int and x.bit_length() > 64:
        raise ValueError(f"save: {place(path)} is an int of {x.bit_length()} bits, expected at most 64")
    elif x is not None and type(x) not in (bool, int, float):
        expected = "expected arrays, Parameters, numbers, str, None, and dicts, lists and tuples of them"
        raise TypeError(f"save: {place(path)} is of type {type(x).__name__}, {expected}")
    return x


def storable(x: Any, path: tuple[Any, ...], spread: bool = False) -> Any:
    """The same array, if Paddle's files can hold it; a `spread` one may be so over several processes."""
    if isinstance(x, Tracer):
        raise TypeError(f"save: {place(path)} is traced, as under jax.jit; expected an array with contents")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"save: {place(path)} is a masked array, expected a plain one: no file has masks")
    if len(x.shape) > DIMENSIONS or any(n >= LENGTH for n in x.shape):
        expected = f"expected at most {DIMENSIONS} dimensions, each below 2**48"
        raise ValueError(f"save: {place(path)} has {len(x.shape)} dimensions {x.shape}, {expected}")
    dtype = x.dtype
    bfloat16 = dtype == jnp.bfloat16 and not isinstance(x, np.generic)
    if not bfloat16 and not (isinstance(dtype, np.dtype) and dtype.str[1:] in DTYPES):
        expected = f"expected bfloat16 or one of {', '.join(DTYPES)}"
        raise TypeError(f"save: {place(path)} has dtype {dtype}, {expected}")
    if dtype == np.uint16:
        expected = "which Paddle's files keep for bfloat16; expected another integer dtype"
        raise TypeError(f"save: {place(path)} has dtype uint16, {expected}")
    if isinstance(x, jax.Array) and x.is_deleted():
        raise ValueError(f"save: {place(path)} was donated or deleted, expected an array with contents")
    if isinstance(x, jax.Array) and not (spread or x.is_fully_addressable or x.is_fully_replicated):
        gather = "jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        raise ValueError(
            f"save: {place(path)} is spread over several processes, expected what {gather} returns"
        )
    return x


def _check_text(text: str, path: tuple[Any, ...]) -> None:
    """Raise if a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"save: {place(path)} is no text that can be written: {e.reason}") from None
