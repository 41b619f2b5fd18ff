"""What the workers tell each other in one step of deep gradient compression, over a named mesh axis."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .compression import among_largest, correct, entries_sent, largest

Arrays = list[jax.Array]


class Sent(NamedTuple):
    """What became of one compressed tensor in a step."""

    direction: jax.Array  # the same on all workers
    u: jax.Array  # this worker's
    v: jax.Array


class Selected(NamedTuple):
    """One tensor on one worker, momentum corrected, of which the k largest entries of v are to be sent."""

    u: jax.Array
    v: jax.Array
    k: int


@dataclass(frozen=True)
class Exchange:
    """The workers of an axis, the momentum they share, and how they exchange what is selected."""

    axis_name: str
    workers: int
    momentum: Any
    use_nesterov: bool
    how: str  # auto, sparse or dense

    def mean(self, xs: Arrays) -> Arrays:
        """The mean over the workers, in one all-reduce; the result is typed as the same on all."""
        return lax.pmean(xs, self.axis_name) if xs else []

    def dense(self, gs: Arrays, us: Arrays, vs: Arrays) -> list[Sent]:
        """Step before the warm-up, when nothing is compressed: momentum of the mean gradient.

        All workers hold the same u. But JAX does not know that: u is typed as different on each worker, and
        a direction made from it would need a second all-reduce. So this method takes the mean of m u + g
        (with Nesterov of (1+m) g + m² u) instead of the mean of g: one all-reduce gives the direction.
        """
        m = jnp.asarray(self.momentum, jnp.float32)
        if self.use_nesterov:
            ahead = [m * m * u for u in us]
            directions = self.mean([(1 + m) * g + a for g, a in zip(gs, ahead, strict=True)])
            us = [m * u + (d - a) / (1 + m) for d, u, a in zip(directions, us, ahead, strict=True)]
        else:
            directions = self.mean([m * u + g for g, u in zip(gs, us, strict=True)])
            us = [lax.pcast(d, self.axis_name, to="varying") for d in directions]
        return list(map(Sent, directions, us, vs))

    def sparse(self, sparsity: float, gs: Arrays, us: Arrays, vs: Arrays) -> list[Sent]:
        """Each worker sends its largest entries of v and forgets them, in v and (factor masking) in u."""
        m = jnp.asarray(self.momentum, jnp.float32)
        pairs, wholes = {}, {}
        for i, (g, u, v) in enumerate(zip(gs, us, vs, strict=True)):
            k = entries_sent(v.size, sparsity)
            group = pairs if self._as_pairs(k, v.size) else wholes
            group[i] = Selected(*correct(g, u, v, m, self.use_nesterov), k)
        sent = dict(zip(pairs, self._by_pairs(list(pairs.values())), strict=True))
        sent |= zip(wholes, self._whole(list(wholes.values())), strict=True)
        return [sent[i] for i in range(len(vs))]

    def _as_pairs(self, k: int, numel: int) -> bool:
        """Whether to gather (index, value) pairs, or to all-reduce the tensor with zeros between.

        On a ring a device receives 8 k (N-1) bytes of pairs, or 8 numel (N-1)/N of an all-reduce.
        """
        return self.how == "sparse" or self.how == "auto" and self.workers * k < numel

    def _whole(self, selected: list[Selected]) -> list[Sent]:
        """By one all-reduce of whole tensors, zeros where nothing is sent."""
        masks = [among_largest(v, k) if k < v.size else jnp.ones_like(v, bool) for _, v, k in selected]
        both = list(zip(selected, masks, strict=True))
        directions = self.mean([jnp.where(mask, s.v, 0) for s, mask in both])
        return [
            Sent(direction, jnp.where(mask, 0, s.u), jnp.where(mask, 0, s.v))
            for direction, (s, mask) in zip(directions, both, strict=True)
        ]

    def _by_pairs(self, selected: list[Selected]) -> list[Sent]:
        """By one all-gather of one buffer: of every tensor k indices, then the bits of k values."""
        if not selected:
            return []
        flats = [jnp.reshape(v, -1) for _, v, _ in selected]
        indices = [largest(flat, s.k) for flat, s in zip(flats, selected, strict=True)]
        words = [
            word
            for flat, at in zip(flats, indices, strict=True)
            for word in (at, lax.bitcast_convert_type(flat[at], jnp.int32))
        ]
        buffer = lax.all_gather(jnp.concatenate(words), self.axis_name, to="invarying")
        sent, start = [], 0
        for s, at in zip(selected, indices, strict=True):
            middle, end = start + s.k, start + 2 * s.k
            values = lax.bitcast_convert_type(buffer[:, middle:end], s.v.dtype)
            total = _sum_of_rows(buffer[:, start:middle], values, s.v.size)
            direction = jnp.reshape(total / self.workers, s.v.shape)
            sent.append(Sent(direction, _without(s.u, at), _without(s.v, at)))
            start = end
        return sent


def _without(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Return x with zeros at these indices of its elements."""
    return jnp.reshape(jnp.reshape(x, -1).at[indices].set(0, unique_indices=True), x.shape)


def _sum_of_rows(indices: jax.Array, values: jax.Array, size: int) -> jax.Array:
    """Worker after worker, so that the order of addition, and with it every bit, is the same everywhere."""

    def add(r: Any, total: jax.Array) -> jax.Array:
        return total.at[indices[r]].add(values[r], unique_indices=True)

    return lax.fori_loop(0, indices.shape[0], add, jnp.zeros(size, values.dtype))
