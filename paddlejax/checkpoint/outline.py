"""What formats that hold only named arrays cannot say: the tree around the arrays, as a JSON text.

    {"layout": "general", "tree": {"dict": [["master_weights", {"dict": [["w", {"tensor": ...}]]}], ...]}}

A container is {"dict": [[key, value], ...]}, {"list": [...]} or {"tuple": [...]}, a tensor {"tensor": the
array's key, "name": Paddle's name}, another array {"array": key}, a numpy scalar {"scalar": [dtype, its bytes
in hex]}; numbers, text and null stand for themselves. An array that is marked "dtype": "bfloat16" may be
stored as its bits, in uint16.
"""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from .budget import Budget
from .errors import Refused, listed, shown
from .layout import LAYOUTS, NAMED, Checkpoint, Tensor, is_tensor, leaves, place
from .pickled import DTYPES
from .unpickle import DEPTH

Arrays = dict[str, np.ndarray]
KEY = "paddlejax"  # of the outline


def outlined(checkpoint: Checkpoint) -> tuple[Arrays, str]:
    """The arrays under keys such as `master_weights/w`, and the text that puts them back in their places."""
    arrays: Arrays = {}
    found = (x.array if isinstance(x, Tensor) else x for _, x in leaves(checkpoint.tree, is_tensor))
    # One array may stand in many places under one long key, which would be written for each.
    budget = Budget(sum({id(x): x.nbytes for x in found if hasattr(x, "nbytes")}.values()))

    def node(x: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(x, Tensor):
            return {"tensor": keep(x.array, path), "name": x.name} | _mark(x.array)
        if isinstance(x, np.ndarray):
            return {"array": keep(x, path)} | _mark(x)
        if isinstance(x, dict):
            return {"dict": [[k, node(v, (*path, k))] for k, v in x.items()]}
        if isinstance(x, list | tuple):
            return {type(x).__name__: [node(v, (*path, i)) for i, v in enumerate(x)]}
        return {"scalar": [x.dtype.str, x.tobytes().hex()]} if isinstance(x, np.generic) else x

    def keep(x: Any, path: tuple[Any, ...]) -> str:
        key = wanted = place(path).replace("\0", "_")
        for n in range(2, len(arrays) + 4):
            if key not in arrays and key not in (KEY, "__metadata__"):
                break
            key = f"{wanted}#{n}"
        budget.charge_text(key)
        arrays[key] = np.ascontiguousarray(x).reshape(x.shape)
        return key

    tree = node(checkpoint.tree, ())
    return arrays, json.dumps({"layout": checkpoint.layout, "tree": tree})


def _mark(x: Any) -> dict[str, str]:
    """Return what the outline must say of this array beside its place: only that it is bfloat16."""
    return {"dtype": "bfloat16"} if x.dtype == jnp.bfloat16 else {}


def filled(text: str | None, arrays: Arrays, budget: Budget) -> Checkpoint:
    """The tree with the arrays in their places; without an outline they are a flat dict of tensors."""
    if text is None:
        # Written by somebody else, whose uint16 is no bfloat16.
        flat = {k: v if v.dtype == np.uint16 else Tensor(k, v) for k, v in arrays.items()}
        return Checkpoint(flat, NAMED)
    # What the text will be as objects, before it is; marks in names count as well.
    budget.charge_text(text)
    budget.charge(240 * text.count("{") + 80 * text.count("[") + 40 * text.count(","))
    rest = dict(arrays)
    outline = json.loads(text)
    if type(outline) is not dict or outline.get("layout") not in LAYOUTS:
        raise Refused("its outline names no layout")
    tree = _filled(outline.get("tree"), rest, budget)
    if type(tree) is not dict or rest:
        raise Refused(f"its outline does not fit its arrays; left over: {listed(rest) or 'none'}")
    return Checkpoint(tree, outline["layout"])


def _filled(node: Any, rest: Arrays, budget: Budget, depth: int = 0) -> Any:
    """Return what an outline describes, with the arrays of `rest` in their places."""
    if depth > DEPTH:
        raise Refused(f"its outline is nested more than {DEPTH} deep")
    if node is None or type(node) in (bool, float, str) or type(node) is int and -(2**64) < node < 2**64:
        return node
    if type(node) is not dict or not node:
        raise Refused(f"its outline has {shown(node)}, which says nothing")
    kind, value = next(iter(node.items()))
    if kind == "dict" and all(type(k) in (str, int) for k, _ in value):
        budget.charge_container(keys := dict.fromkeys(k for k, _ in value))
        if len(keys) < len(value):
            raise Refused("its outline has a key twice in one dict")
        return {k: _filled(v, rest, budget, depth + 1) for k, v in value}
    if kind in ("list", "tuple") and type(value) is list:
        budget.charge_container(value)
        return (list if kind == "list" else tuple)([_filled(v, rest, budget, depth + 1) for v in value])
    if kind == "scalar" and value[0][1:] in DTYPES:
        return np.frombuffer(bytes.fromhex(value[1]), value[0])[0]
    if kind in ("tensor", "array") and type(value) is str and value in rest:
        x = rest.pop(value)
        x = x.view(jnp.bfloat16) if node.get("dtype") == "bfloat16" and x.dtype == np.uint16 else x
        if kind == "array":
            return x
        if type(node.get("name")) is str:
            return Tensor(node["name"], x)
    raise Refused(f"its outline has {shown(kind)}: {shown(value)}, which says nothing")
