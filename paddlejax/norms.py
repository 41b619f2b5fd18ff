"""Square roots and norms as rules and clips take them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .trees import varying


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """√x, with the derivative 0 at 0: there jnp.sqrt's is infinite, and times zero NaN."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> Any:
    y = root(primals[0])
    return y, jnp.where(y > 0, tangents[0] / jnp.where(y > 0, 2 * y, 1), 0)


def squared_norm(x: jax.Array, axis_name: Any = None) -> jax.Array:
    """Σ x² over the whole tensor, also over the devices of `axis_name`; () of x's dtype.

    Plain sum(x*x): guarding against overflow first costs 15 times as much, and Paddle does not either. See
    `norm_of_all` for a guard afterwards, which costs a branch: too much where every tensor has its own norm.
    """
    total = jnp.sum(x * x)
    if axis_name is None:
        return total
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    return jax.lax.psum(total, varying(total, names))  # a tensor that is whole on every device counts once


def norm(x: jax.Array, axis_name: Any = None) -> jax.Array:
    """‖x‖₂ of the whole tensor; () of x's dtype."""
    return root(squared_norm(x, axis_name))


def norm_of_all(xs: Sequence[jax.Array], axis_name: Any = None) -> jax.Array:
    """‖·‖₂ of all tensors together, () of their dtype, or of the widest that JAX allows if they have several.

    Where Σ x² has overflowed, or is so small that squares may have vanished, it is taken once more of s x,
    with a power of two for s. That is a branch, so that all others pay nothing for it.
    """
    dtype = jnp.result_type(xs[0]) if len({x.dtype for x in xs}) == 1 else jnp.result_type(float)

    def sum_of_squares(xs: Sequence[jax.Array]) -> jax.Array:
        squares = [squared_norm(x, axis_name).astype(dtype) for x in xs]
        return sum(squares[1:], squares[0])  # type: ignore[return-value]

    narrowest = min((jnp.finfo(x.dtype) for x in xs), key=lambda info: info.bits)
    power = 2.0 ** (narrowest.maxexp // 2 - 1)  # XLA may square it: then it must not overflow
    total = sum_of_squares(xs)
    fits = (total >= float(narrowest.tiny) * 2.0**46) & (total < jnp.inf)

    def plain(xs: Sequence[jax.Array], total: jax.Array) -> jax.Array:
        return root(total)

    def scaled(xs: Sequence[jax.Array], total: jax.Array) -> jax.Array:
        small = total < 1
        s, back = (jnp.where(small, a, 1 / a).astype(dtype) for a in (power, 1 / power))
        return root(sum_of_squares([x * s.astype(x.dtype) for x in xs])) * back

    if isinstance(fits, Tracer):
        return jax.lax.cond(fits, plain, scaled, xs, total)
    return (plain if fits else scaled)(xs, total)
