"""What deep gradient compression does to one tensor: which entries are sent, and what is kept back."""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lifting import Slots, rule
from ..rules import Momentum

U, V = "_dgc_u_", "_dgc_v_"  # Paddle's names: the velocity, and what has not been sent yet


@rule
class DGCMomentum(Momentum):
    """Momentum of what is not compressed, its velocity under the name that Paddle's DGC gives it."""

    slots: ClassVar = (U,)

    def step(self, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> tuple[jax.Array, Slots]:
        """Momentum's step; the velocity is filed under the name of DGC's U."""
        d, new = super().step(g, p, k, {"velocity": slots[U]})
        return d, {U: new["velocity"]}


class Level(NamedTuple):
    """One stage of the warm-up."""

    start: int  # the first step (0 is the first of all) that it holds for
    sparsity: float


def levels(rampup_begin_step: int, rampup_step: int, sparsity: Any) -> list[Level]:
    """When which sparsity begins: step s has the index int((s - begin) len / rampup_step), at most the last.

    Neighbours of equal sparsity are one level; what begins after 2**31 - 1 steps never does.
    """
    given = [float(s) for s in sparsity]
    starts: dict[int, float] = {}
    for i, s in enumerate(given):
        starts[rampup_begin_step + math.ceil(i * rampup_step / len(given))] = s
    found = [Level(start, s) for start, s in starts.items() if start < 2**31]
    return [level for i, level in enumerate(found) if i == 0 or level.sparsity != found[i - 1].sparsity]


def entries_sent(numel: int, sparsity: float) -> int:
    """k = int(numel (1 - sparsity)) in float32 as in Paddle (in double 25600 · 0.1 is 2559), at least 1."""
    k = int(np.float32(numel) * (np.float32(1) - np.float32(sparsity)))
    return min(max(k, 1), numel)


def correct(
    g: jax.Array, u: jax.Array, v: jax.Array, momentum: Any, use_nesterov: bool
) -> tuple[jax.Array, jax.Array]:
    """Momentum correction: v gathers what momentum would have moved, and not bare gradients; new (u, v)."""
    if use_nesterov:
        u = momentum * (u + g)
        return u, v + u + g
    u = momentum * u + g
    return u, v + u


def largest(v: jax.Array, k: int) -> jax.Array:
    """Where the k largest |v| of a flat tensor are; of equals those that come first. NaN counts as largest.

    The indices of top_k: asking it for the values only takes 200 times as long on CPU.
    """
    return lax.top_k(jnp.abs(v), k)[1]


def among_largest(v: jax.Array, k: int) -> jax.Array:
    """Which entries of a tensor are among the k largest |v|, all equals of the k-th included.

    For a large k, where top_k is slow: bit by bit, the largest number that k entries reach. The bits of
    non-negative floats, read as an int, are in the same order.
    """
    bits = lax.bitcast_convert_type(jnp.abs(v), jnp.int32)

    def with_bit(i: Any, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.int32(1) << (30 - i))
        return jnp.where(jnp.sum(bits >= higher, dtype=jnp.int32) >= k, higher, threshold)

    return bits >= lax.fori_loop(0, 31, with_bit, jnp.zeros_like(bits, shape=()))
