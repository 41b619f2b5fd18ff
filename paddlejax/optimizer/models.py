"""What flax, equinox and haiku call parameters: of their models nothing else is trained.

`WAYS` has the lines by which a model of each framework is trained. `paddlejax.parameters(model)` works on a
whole model too where the model is a tree (nnx, equinox): statistics, keys and counts stay as they are, and a
warning names them. A module of linen or haiku has no parameters in it, and is refused with its lines.
"""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path

from ..selected_rows import is_rows
from ..trees import flatten, path_name

WAYS = {
    "flax linen": """
variables = model.init(key, x)
params, stats = paddle.parameters(variables["params"]), variables["batch_stats"]

@paddle.loss(has_aux=True)
def loss_of(params, stats, x, y):
    out, new = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    return jnp.mean((out - y) ** 2), new["batch_stats"]

loss = loss_of(params, stats, x, y)
opt.minimize(loss)
stats = loss.aux
""",
    "flax nnx": """
graph, params, rest = nnx.split(model, nnx.Param, ...)
params = paddle.parameters(params)

@paddle.loss(has_aux=True)
def loss_of(params, rest, x, y):
    model = nnx.merge(graph, params, rest)
    return jnp.mean((model(x) - y) ** 2), nnx.state(model, nnx.Not(nnx.Param))

loss = loss_of(params, rest, x, y)
opt.minimize(loss)
rest = loss.aux
""",
    "equinox": """
params, static = eqx.partition(model, eqx.is_inexact_array)
params = paddle.parameters(params)

@paddle.loss
def loss_of(params, x, y):
    model = eqx.combine(params, static)
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)

loss = loss_of(params, x, y)
opt.minimize(loss)
""",
    "haiku": """
params, state = model.init(key, x)  # model = hk.transform_with_state(function)
params = paddle.parameters(params)

@paddle.loss(has_aux=True)
def loss_of(params, state, key, x, y):
    out, state = model.apply(params, state, key, x)
    return jnp.mean((out - y) ** 2), state

loss = loss_of(params, state, key, x, y)
opt.minimize(loss)
state = loss.aux
""",
}


def _types(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a framework; none if nobody has imported it, as then no object of it is here."""
    home = sys.modules.get(module)
    return tuple(getattr(home, name) for name in names if hasattr(home, name))


def trained(tree: Any, paths: list[Any], leaves: list[Any], present: list[bool]) -> list[bool]:
    """Whether each leaf of the tree is to be made a Parameter; `present` says which is one, or None, already.

    Warn of the arrays that are left out, and raise where a key of `jax.random` would be trained.
    """
    flags = _flags(tree)
    fresh = [f and not there for f, there in zip(flags, present, strict=True)]
    for path, x, new in zip(paths, leaves, fresh, strict=True):
        if new and hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            expected = "expected an array of numbers; hand a key to the loss beside the parameters"
            raise TypeError(f"at {path_name(path)} found a key of jax.random, {expected}")
    if any(fresh):  # else it was said before
        _say_left_out(paths, leaves, flags)
    return fresh


def _flags(tree: Any) -> list[bool]:
    """Whether each leaf of the tree is a parameter, in the order of `trees.flatten`.

    Of a tree without a framework all are.
    """
    variables = _types("flax.nnx", "Variable")
    states = _types("equinox.nn", "StateIndex", "State")
    modules = _types("equinox", "Module")
    untied = _types("flax.linen", "Module"), _types("haiku", "Module", *_TRANSFORMED)
    linen = "flax.linen" in sys.modules

    def is_whole(x: Any) -> bool:
        whole = (*variables, *states, *modules, *untied[1])
        return x is None or is_rows(x) or isinstance(x, whole) or linen and _is_variables(x)

    flags: list[bool] = []
    for _, x in tree_flatten_with_path(tree, is_leaf=is_whole)[0]:
        for framework, types in zip(("flax linen", "haiku"), untied, strict=True):
            if isinstance(x, types):
                raise TypeError(
                    f"found a model of {framework}, expected its parameters, as in{WAYS[framework]}"
                )
        if isinstance(x, variables + states):
            flags += [isinstance(x, _types("flax.nnx", "Param"))] * len(flatten(x)[1])
        elif isinstance(x, modules):
            flags += _of_equinox(x, states)
        elif linen and _is_variables(x):
            flags += _of_linen(x)
        else:
            flags.append(True)
    return flags


_TRANSFORMED = ("Transformed", "TransformedWithState", "MultiTransformed", "MultiTransformedWithState")


def _is_variables(x: Any) -> bool:
    """Whether this is what linen's `init` returns, and more of it than parameters."""
    return isinstance(x, Mapping) and len(x) > 1 and isinstance(x.get("params"), Mapping)


def _of_linen(variables: Mapping[str, Any]) -> list[bool]:
    """The collection "params" of variables."""
    collections = tree_flatten_with_path(variables, is_leaf=lambda x: x is not variables)[0]
    return [
        chosen
        for (key,), collection in collections
        for chosen in (_flags(collection) if key.key == "params" else [False] * len(flatten(collection)[1]))
    ]


def _of_equinox(module: Any, states: tuple[type, ...]) -> list[bool]:
    """The floating arrays of an equinox module that are no state."""
    flags: list[bool] = []
    for _, x in tree_flatten_with_path(module, is_leaf=lambda x: x is None or isinstance(x, states))[0]:
        if isinstance(x, states):
            flags += [False] * len(flatten(x)[1])
        else:
            flags.append(x is None or hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact))
    return flags


def _say_left_out(paths: list[Any], leaves: list[Any], flags: list[bool]) -> None:
    """Warn of the arrays that are no parameters and so stay as they are."""
    left = [
        path_name(p) for p, x, f in zip(paths, leaves, flags, strict=True) if not f and hasattr(x, "dtype")
    ]
    if left:
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        warnings.warn(
            f"parameters: these are no parameters and stay as they are: {shown}; a loss that changes them "
            "takes them beside the parameters and returns them, see help('paddlejax.optimizer.models')",
            stacklevel=4,
        )
