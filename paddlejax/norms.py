"""Square roots and norms as rules and clips take them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .alike import added_up, in_groups
from .collectives import in_parts, totals
from .tracing import InForce
from .trees import in_dtype, varying_axes


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """√x, with the derivative 0 at 0: there jnp.sqrt's is infinite, and times zero NaN."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> Any:
    y = root(primals[0])
    return y, jnp.where(y > 0, tangents[0] / jnp.where(y > 0, 2 * y, 1), 0)


def squared_norms(
    xs: Sequence[jax.Array],
    axis_name: Any = None,
    sharded: Sequence[Any] | None = None,
    scale: jax.Array | None = None,
) -> list[jax.Array]:
    """Σ x² over each whole tensor, also over the devices of `axis_name` in one message; () of each x's dtype.

    `sharded` says of each whether, or over which axes, it is cut; None leaves that to JAX, see `cut_over`.
    With a `scale` they are those of scale x.
    Plain sum(x*x): guarding against overflow first costs 15 times as much, and Paddle does not either. See
    `norm_of_all` for a guard afterwards, which costs a branch: too much where every tensor has its own norm.
    """
    if axis_name is None and in_parts.value is None:
        return in_groups(_squares, xs) if scale is None else in_groups(_scaled_squares, xs, scale)
    xs = xs if scale is None else _multiples(xs, scale)
    return sums([x * x for x in xs], axis_name, sharded)


def sums(
    xs: Sequence[jax.Array], axis_name: Any = None, sharded: Sequence[Any] | None = None
) -> list[jax.Array]:
    """Σ x over each whole tensor; see `squared_norms`."""
    if axis_name is not None:
        own = [jnp.sum(x) for x in xs]
        cuts = [cut_over(x, axis_name, said) for x, said in zip(xs, sharded or [None] * len(xs), strict=True)]
    elif in_parts.value is not None:
        own = [in_parts.value.of(x) for x in xs]
        cuts = [(in_parts.value.axis,) if x.ndim else () for x in own]
    else:
        return [jnp.sum(x) for x in xs]
    together = totals(
        {cut: [x for x, over in zip(own, cuts, strict=True) if over == cut] for cut in dict.fromkeys(cuts)}
    )
    arrived = {cut: iter(xs) for cut, xs in together.items()}
    return [next(arrived[cut]) for cut in cuts]


def _squares(xs: Sequence[jax.Array]) -> list[jax.Array]:
    return [jnp.sum(x * x) for x in xs]


def _scaled_squares(xs: Sequence[jax.Array], scale: jax.Array) -> list[jax.Array]:
    return _squares(_multiples(xs, scale))


def _multiples(xs: Sequence[jax.Array], scale: jax.Array) -> list[jax.Array]:
    # XLA would take (s x)² of a constant x apart, to s² x². One by one: each is cut over axes of its own.
    return [jax.lax.optimization_barrier(x) * scale.astype(x.dtype) for x in xs]


def norms(
    xs: Sequence[jax.Array], axis_name: Any = None, sharded: Sequence[Any] | None = None
) -> list[jax.Array]:
    """‖x‖₂ of each whole tensor; each () of x's dtype."""
    return [root(total) for total in squared_norms(xs, axis_name, sharded)]


# True while a program is traced whose tensors lie on several devices: the guard would bring them to one.
plain_norms = InForce()


def norm_of_all(
    xs: Sequence[jax.Array], axis_name: Any = None, sharded: Sequence[Any] | None = None
) -> jax.Array:
    """‖·‖₂ of all tensors together, () of their dtype; of several the widest that JAX allows."""
    length, scale = scaled_norm(xs, axis_name, sharded)
    return length if scale is None else length / scale


def scaled_norm(
    xs: Sequence[jax.Array], axis_name: Any = None, sharded: Sequence[Any] | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Return (n, s): n = s ‖·‖₂ of all tensors together, as `norm_of_all`; s is 1, or None for 1.

    Where Σ x² has overflowed, or is so small that squares may have vanished, it is taken once more of
    multiples of x, with a power of two as the factor. That is a branch: all others pay nothing for it.
    After an overflow s is that factor, far below 1: the norm itself may be beyond the dtype.
    """
    dtype = jnp.result_type(xs[0]) if len({x.dtype for x in xs}) == 1 else jnp.result_type(float)

    def sum_of_squares(xs: Sequence[jax.Array], scale: jax.Array | None = None) -> jax.Array:
        return added_up([in_dtype(x, dtype) for x in squared_norms(xs, axis_name, sharded, scale)])

    narrowest = min((jnp.finfo(x.dtype) for x in xs), key=lambda info: info.bits)
    enlarging = 2.0 ** (narrowest.maxexp // 2 - 1)  # XLA may square it: then it must not overflow
    reducing = 2.0 ** -(narrowest.maxexp * 3 // 4)  # leaves room for the sum of many large squares
    total = sum_of_squares(xs)
    fits = (total >= float(narrowest.tiny) * 2.0**46) & (total < jnp.inf)

    def plain(xs: Sequence[jax.Array], total: jax.Array) -> tuple[jax.Array, jax.Array]:
        return root(total), jnp.ones_like(total)

    def scaled(xs: Sequence[jax.Array], total: jax.Array) -> tuple[jax.Array, jax.Array]:
        small = total < 1
        s = jnp.where(small, enlarging, reducing).astype(dtype)
        back, left = (
            jnp.where(small, a, b).astype(dtype) for a, b in ((1 / enlarging, 1.0), (1.0, reducing))
        )
        return root(sum_of_squares(xs, s)) * back, left

    if plain_norms.value:
        return root(total), None
    if isinstance(fits, Tracer):
        return jax.lax.cond(fits, plain, scaled, xs, total)
    return (root(total), None) if fits else scaled(xs, total)


def times(grads: Sequence[jax.Array], factor: jax.Array, scale: jax.Array | None) -> list[jax.Array]:
    """Return the gradients, each times the scale, if there is one, times the factor.

    In this order: the product of the two is below what the dtype can hold where the norm is above it.
    """
    scaled = grads if scale is None else [g * scale.astype(g.dtype) for g in grads]
    return [g * factor.astype(g.dtype) for g in scaled]


def cut_over(x: jax.Array, axis_name: Any, sharded: Any = None) -> tuple[str, ...]:
    """Those of the mesh axes over which a tensor is cut: one that is whole on every device counts once.

    It is what `sharded` says, True, False or the names, and what JAX knows. Where JAX keeps no account, as
    under `shard_map(check_vma=False)`, somebody has to say it.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    tracked = varying_axes(jax.lax.axis_index(names))
    if sharded is None and not tracked:
        found = "found no account of which tensors are cut over it, as under shard_map(check_vma=False)"
        expected = "expected sharded=, which says it: True, False or a function of the path"
        raise ValueError(f"axis_name {axis_name!r}: {found}; {expected}")
    if isinstance(sharded, str):
        sharded = (sharded,)
    said = sharded if isinstance(sharded, tuple) else names if sharded is None or sharded else ()
    unknown = [n for n in said if n not in names]
    if unknown:
        raise ValueError(f"sharded: found the axis {unknown[0]!r}, expected one of axis_name, {names}")
    return tuple(n for n in names if n in said and (not tracked or n in varying_axes(x)))


def asked(sharded: Any, leaf: Any) -> Any:
    """What `sharded` says of one leaf, given by its path: True, False, names of axes, or None."""
    return sharded(leaf) if callable(sharded) else sharded
