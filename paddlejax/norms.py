"""Square roots and norms as rules and clips take them."""

from typing import Any

import jax
import jax.numpy as jnp

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

    Plain sum(x*x): guarding against overflow first costs 15 times as much, and Paddle does not either.
    """
    total = jnp.sum(x * x)
    if axis_name is None:
        return total
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    return jax.lax.psum(total, varying(total, names))  # a tensor that is whole on every device counts once


def norm(x: jax.Array, axis_name: Any = None) -> jax.Array:
    """‖x‖₂ of the whole tensor; () of x's dtype."""
    return root(squared_norm(x, axis_name))
