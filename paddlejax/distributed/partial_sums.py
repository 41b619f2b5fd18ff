"""Sums over tensors of which each device along an axis has a part: of all at one time one message.

XLA by itself sends the sum of every tensor alone, and on CPUs it does not join them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .held import constrained, padded


@dataclass(frozen=True, eq=False)
class PartialSums:
    """What `collectives.in_parts` holds under zero1: each device's own sums, and what they make together."""

    mesh: Mesh
    axis: str
    dims: dict[tuple[int, ...], int]  # by shape: the dimension along which such tensors are cut

    def of(self, x: jax.Array) -> jax.Array:
        """Return the sum of each part (n,), or () of a tensor that is not cut."""
        dim = self.dims.get(x.shape)
        if dim is None:
            return jnp.sum(x)
        n = self.mesh.shape[self.axis]
        line = jnp.sum(x, [i for i in range(x.ndim) if i != dim])
        parts = jnp.pad(line, (0, padded(line.size, n) - line.size)).reshape(n, -1)
        return constrained(jnp.sum(parts, 1), self.mesh, (self.axis,))

    def total(self, xs: list[jax.Array]) -> list[jax.Array]:
        """Return the sum of each (n,), all of one dtype in one message."""
        done = list(xs)
        for dtype in dict.fromkeys(x.dtype for x in xs):  # in one order in all processes
            same = [i for i, x in enumerate(xs) if x.dtype == dtype]
            stack = constrained(jnp.stack([xs[i] for i in same], 1), self.mesh, (self.axis,))
            for i, total in zip(same, constrained(jnp.sum(stack, 0), self.mesh), strict=True):
                done[i] = total
        return done
