"""Paddle's `paddle.nn.utils`: clip the gradients of Parameters in place."""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..array_types import Numeric
from ..elsewhere import names_of
from ..hyper import NUMBER, ArgumentError, Interval, Must, checked, require
from ..norms import scaled_norm, times
from ..optimizer.parameter import Parameter
from ..pages import publish
from ..selected_rows import SelectedRows
from ..trees import compute_dtype

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters"]

_NORM_TYPES = (float("inf"), 0.0, 1.0, 2.0)


LIMIT = NUMBER, Interval(0)


@checked(
    max_norm=LIMIT, norm_type=Must(lambda x: _as_float(x) in _NORM_TYPES, "inf, 0, 1 or 2", ArgumentError)
)
def clip_grad_norm_(
    parameters: Any, max_norm: Numeric, norm_type: Numeric = 2.0, error_if_nonfinite: bool = False
) -> jax.Array:
    """Scale all gradients in place by one factor so that their common norm is at most max_norm.

        total = ‖(‖g₁‖, ‖g₂‖, ...)‖      g ← g · min(1, max_norm / (total + 1e-6))

    `norm_type` is 2, 1, inf (the largest magnitude) or 0 (how many gradients are not all zero). Returns the
    total, () float32 or wider, also where squares overflow (in Paddle then inf, and all gradients 0). An
    infinite total leaves zeros and NaN, a NaN makes everything NaN, unless
    error_if_nonfinite: then it is an error, and nothing changes. `parameters` is a Parameter, an iterable
    (Paddle exhausts a generator before it scales anything) or a tree of them; need_clip is not asked.
    torch's takes any norm_type. `nn.ClipGradByGlobalNorm` adds no 1e-6.

    >>> w = Parameter(jnp.zeros(2))
    >>> w.grad = jnp.array([3.0, 4.0])
    >>> print(clip_grad_norm_([w], 1.0), w.grad)
    5.0 [0.6 0.8]
    """
    limit, kind = float(max_norm), float(norm_type)  # whatever was given, so that all share a program
    there = _with_gradients("clip_grad_norm_", parameters)
    if not there:
        return jnp.zeros(())
    grads = _merged(there)
    total, clipped = _clip_norm(kind, list(map(_values, grads)), limit)
    if error_if_nonfinite and not jnp.isfinite(total):
        raise RuntimeError(
            f"clip_grad_norm_: found a norm of {total} of order {norm_type} over {len(there)} gradients, "
            "expected a finite one because of error_if_nonfinite=True; nothing was changed"
        )
    _replace(there, grads, clipped)
    return total


@checked(clip_value=LIMIT)
def clip_grad_value_(parameters: Any, clip_value: Numeric) -> None:
    """Clamp every element of every gradient in place to [-clip_value, clip_value]; NaN stays NaN.

    As torch's. `nn.ClipGradByValue` may have two bounds.

    >>> w = Parameter(jnp.zeros(2))
    >>> w.grad = jnp.array([-3.0, 0.2])
    >>> clip_grad_value_([w], 1.0)
    >>> print(w.grad)
    [-1.   0.2]
    """
    limit = float(clip_value)
    there = _with_gradients("clip_grad_value_", parameters)
    grads = _merged(there)
    _replace(there, grads, _clip_value(list(map(_values, grads)), limit))


def parameters_to_vector(parameters: Any, name: str | None = None) -> jax.Array:
    """Return the values of the Parameters, of one dtype, end to end in one array.

    >>> print(parameters_to_vector([Parameter(jnp.zeros(2)), Parameter(jnp.ones((1, 2)))]))
    [0. 0. 1. 1.]
    """
    members = _parameters("parameters_to_vector", parameters)
    dtypes = sorted({str(p.dtype) for p in members})
    if len(dtypes) > 1:
        raise TypeError(
            f"parameters_to_vector: found Parameters of {' and '.join(dtypes)}, expected one dtype"
        )
    return jnp.concatenate([p.value.reshape(-1) for p in members]) if members else jnp.zeros(0)


def vector_to_parameters(vec: Any, parameters: Any, name: str | None = None) -> None:
    """Give the Parameters the values that lie end to end in an array; what it has more is not used.

    >>> w = Parameter(jnp.zeros(2))
    >>> vector_to_parameters(jnp.ones(2), [w])
    >>> print(w.numpy())
    [1. 1.]
    """
    members, vec = _parameters("vector_to_parameters", parameters), jnp.asarray(vec).reshape(-1)
    needed = sum(p.size for p in members)
    if vec.size < needed:
        found = f"found {vec.size} elements, expected at least {needed}"
        raise ValueError(f"vector_to_parameters's vec: {found}")
    begin = 0
    for p in members:
        p.set_value(vec[begin : begin + p.size].reshape(p.shape))
        begin += p.size


@functools.partial(jax.jit, static_argnums=0)
def _clip_norm(kind: float, grads: list[Any], max_norm: Any) -> tuple[jax.Array, list[jax.Array]]:
    """Norms in float32 or wider, the total in the widest of them, each result in its gradient's dtype."""
    wide = [g.astype(compute_dtype((), g)) for g in grads]
    widest = jnp.float64 if any(g.dtype == jnp.float64 for g in wide) else jnp.float32
    scale = None
    if kind == 2.0:
        total, scale = scaled_norm(wide)
        total = total.astype(widest)
    elif kind == float("inf"):
        total = jnp.max(jnp.stack([jnp.max(jnp.abs(g), initial=0).astype(widest) for g in wide]))
    elif kind == 1.0:
        total = sum((jnp.sum(jnp.abs(g)).astype(widest) for g in wide), jnp.zeros((), widest))
    else:
        total = sum((jnp.any(g != 0).astype(widest) for g in wide), jnp.zeros((), widest))
    one = jnp.ones((), widest) if scale is None else scale.astype(widest)
    factor = jnp.minimum(jnp.asarray(max_norm, widest) / (total + 1e-6 * one), 1 / one)
    clipped = times(wide, factor, scale)
    clipped = [new.astype(old.dtype) for new, old in zip(clipped, grads, strict=True)]
    return total / one, clipped


@jax.jit
def _clip_value(grads: list[Any], limit: Any) -> list[jax.Array]:
    limits = [jnp.asarray(limit, g.dtype) for g in grads]
    return [jnp.clip(g, -v, v) for g, v in zip(grads, limits, strict=True)]


def _merged(there: list[Parameter]) -> list[Any]:
    """Their gradients; repeated rows add up before they are clipped."""
    return [g.merge() if isinstance(g := p.grad, SelectedRows) else g for p in there]


def _values(g: Any) -> Any:
    return g.values if isinstance(g, SelectedRows) else g


def _replace(there: list[Parameter], grads: list[Any], values: list[jax.Array]) -> None:
    for p, g, new in zip(there, grads, values, strict=True):
        p.grad = g.with_values(new) if isinstance(g, SelectedRows) else new


def _as_float(norm_type: Any) -> float:
    try:
        return float("nan") if isinstance(norm_type, bool) else float(norm_type)
    except (TypeError, ValueError):
        return float("nan")


def _parameters(function: str, parameters: Any) -> list[Parameter]:
    """The Parameters of a tree or an iterable, in order."""
    if isinstance(parameters, Iterable) and not isinstance(parameters, Parameter | dict | list | tuple | str):
        parameters = list(parameters)
    found = jax.tree.leaves(parameters)
    for p in found:
        require(isinstance(p, Parameter), f"{function}'s parameters", p, "Parameters", TypeError)
    return found


def _with_gradients(function: str, parameters: Any) -> list[Parameter]:
    """The Parameters that have a gradient, each once."""
    members = dict.fromkeys(_parameters(function, parameters))
    return [p for p in members if p.lazy_grad is not None]  # a spent one moves nothing


__path__: list[str] = []  # Paddle has modules below this one, see elsewhere.py

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
