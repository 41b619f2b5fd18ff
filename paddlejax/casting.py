"""Mixed precision as `paddle.amp` has it, as far as it means something where the loss is a function."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from .hyper import FLAG, Must, checked, one_of, optional
from .optimizer.parameter import Parameter
from .optimizer.wrappers import innermost, is_optimizer

LEVEL = one_of("O0", "O1", "O2", "OD")
DTYPE = one_of("float16", "bfloat16")
NONE = Must(lambda x: x is None, "None; checkpoints keep the dtypes they are given")
OFF = Must(lambda x: x is False, "False; masters take float32 gradients anyway")


@checked(level=LEVEL, dtype=DTYPE, master_weight=optional(FLAG), save_dtype=NONE, master_grad=OFF)
def decorate(
    models: Any,
    optimizers: Any = None,
    level: str = "O1",
    dtype: str = "float16",
    master_weight: bool | None = None,
    save_dtype: None = None,
    master_grad: bool = False,
    excluded_layers: Any = None,
) -> Any:
    """Paddle's `amp.decorate`: with level="O2" hold Parameters in 16 bits, and let optimizers keep masters.

    `models` is a tree of Parameters, or a list of such trees: every float32 Parameter holds its value in
    `dtype` from now on, p ← round(p). `excluded_layers`, a tree of Parameters, stay as they are: name there
    the scales and biases of norms, which Paddle finds by the type of their layer. `optimizers`, one or a
    list, then keep float32 masters unless master_weight=False; none of them may have made a step. Returns
    what it was given: models, or (models, optimizers). With any other level nothing changes, as JAX has no
    automatic casts: see `auto_cast`. optax and torch have no such function.

    >>> params = parameters({"w": jnp.ones(2)})
    >>> opt = optimizer.SGD(0.001, parameters=params)
    >>> params, opt = decorate(params, opt, level="O2", dtype="bfloat16")
    >>> params["w"].grad = jnp.ones(2, jnp.bfloat16)
    >>> opt.step()
    >>> print(params["w"].value, opt.state_dict()["master_weights"]["w"])
    [1 1] [0.999 0.999]
    """
    if level == "O2":
        kept = set(_parameters("excluded_layers", excluded_layers))
        cast = [p for p in dict.fromkeys(_parameters("models", models)) if p not in kept]
        several = isinstance(optimizers, list | tuple)
        given = [o for o in (optimizers if several else [optimizers]) if o is not None]
        for o in given:
            if not is_optimizer(o):
                raise TypeError(f"decorate's optimizers: found {o!r}, expected optimizers")
        for o in map(innermost, given):  # before anything changes
            o.check_unstepped(master_weight is not False)
        for p in cast:
            if p.dtype == jnp.float32:
                p.recast(dtype)
        for o in map(innermost, given):
            o.begin_anew(master_weight is not False)
    return models if optimizers is None else (models, optimizers)


def _parameters(argument: str, tree: Any) -> Iterable[Parameter]:
    """Return the Parameters of a tree; raise if it has other leaves."""
    found = jax.tree.leaves(tree)
    for p in found:
        if not isinstance(p, Parameter):
            name = type(p).__name__
            raise TypeError(f"decorate's {argument}: found {name}, expected Parameters; see parameters(tree)")
    return found


@checked(enable=FLAG, level=LEVEL, dtype=DTYPE)
def auto_cast(
    enable: bool = True,
    custom_white_list: Any = None,
    custom_black_list: Any = None,
    level: str = "O1",
    dtype: str = "float16",
    use_promote: bool = True,
) -> AbstractContextManager[None]:
    """Paddle's `amp.auto_cast`, which JAX cannot have: operations there have no list of dtypes.

    With enable=False or level="O0" it is a context that does nothing. Else it raises NotImplementedError,
    which says what to write: cast inside the loss, or hold the Parameters in 16 bits by `decorate`. torch has
    `autocast`; optax has nothing like it.

    >>> with auto_cast(enable=False):
    ...     print(jnp.ones(2).dtype)
    float32
    """
    if not enable or level == "O0":
        return nullcontext()
    raise NotImplementedError(
        f"auto_cast: found enable=True, expected False: JAX casts nothing by itself. Cast inside the loss "
        f"function: params, x = jax.tree.map(lambda v: v.astype(jnp.{dtype}), (params, x)); or hold the "
        f"Parameters in 16 bits: amp.decorate(params, opt, level='O2', dtype={dtype!r})"
    )


amp_guard = auto_cast


def is_bfloat16_supported(device: Any = None) -> bool:
    """Return True: JAX computes in bfloat16 on every device, on some by way of float32.

    >>> is_bfloat16_supported()
    True
    """
    return True


def is_float16_supported(device: Any = None) -> bool:
    """Return True: JAX computes in float16 on every device, on some by way of float32.

    >>> is_float16_supported()
    True
    """
    return True
