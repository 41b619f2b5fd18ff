"""What the workers tell each other in one step of deep gradient compression, over a named mesh axis."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..collectives import Arrays, across, mean
from .compression import among_largest, correct, entries_sent, largest

# Bytes more than an all-reduce receives that are worth a message less: 100 Mbit/s carry them in 10 ms. That
# is the latency of a network between towns, and a message costs it several times.
WORTH_A_MESSAGE = 2**17


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

    def mean(self, xs: Arrays, others: Arrays) -> tuple[Arrays, Arrays]:
        """The means over the workers of both lists, in one message."""
        means = mean([*xs, *others], self.axis_name)
        return means[: len(xs)], means[len(xs) :]

    def dense(self, gs: Arrays, us: Arrays, vs: Arrays, others: Arrays) -> tuple[list[Sent], Arrays]:
        """Step before the warm-up, when nothing is compressed: momentum of the mean gradient.

        The means of `others`, which are not compressed, travel with it.

        All workers hold the same u. But JAX does not know that: u is typed as different on each worker, and
        a direction made from it would need a second all-reduce. So this method takes the mean of m u + g
        (with Nesterov of (1+m) g + m² u) instead of the mean of g: one all-reduce gives the direction.
        """
        m = jnp.asarray(self.momentum, jnp.float32)
        if self.use_nesterov:
            ahead = [m * m * u for u in us]
            directions, means = self.mean([(1 + m) * g + a for g, a in zip(gs, ahead, strict=True)], others)
            us = [m * u + (d - a) / (1 + m) for d, u, a in zip(directions, us, ahead, strict=True)]
        else:
            directions, means = self.mean([m * u + g for g, u in zip(gs, us, strict=True)], others)
            us = [lax.pcast(d, self.axis_name, to="varying") for d in directions]
        return list(map(Sent, directions, us, vs)), means

    def sparse(
        self, sparsity: float, gs: Arrays, us: Arrays, vs: Arrays, others: Arrays
    ) -> tuple[list[Sent], Arrays]:
        """Each worker sends its largest entries of v and forgets them, in v and (factor masking) in u.

        The means of `others`, which are not compressed, travel with what is sent whole, or if they are few
        and nothing is, with the pairs.
        """
        m = jnp.asarray(self.momentum, jnp.float32)
        pairs, wholes = {}, {}
        for i, (g, u, v) in enumerate(zip(gs, us, vs, strict=True)):
            k = entries_sent(v.size, sparsity)
            group = pairs if self._as_pairs(k, v.size) else wholes
            group[i] = Selected(*correct(g, u, v, m, self.use_nesterov), k)
        if pairs and not wholes and self._with_pairs(others):
            return self._by_pairs(list(pairs.values()), others)
        sent = dict(zip(pairs, self._by_pairs(list(pairs.values()), [])[0], strict=True))
        whole, means = self._whole(list(wholes.values()), others)
        sent |= zip(wholes, whole, strict=True)
        return [sent[i] for i in range(len(vs))], means

    def _as_pairs(self, k: int, numel: int) -> bool:
        """Whether to gather (index, value) pairs, or to all-reduce the tensor with zeros between.

        On a ring a device receives 8 k (N-1) bytes of pairs, or 8 numel (N-1)/N of an all-reduce.
        """
        return self.how == "sparse" or self.how == "auto" and self.workers * k < numel

    def _with_pairs(self, others: Arrays) -> bool:
        """Whether to gather these of all workers beside the pairs, and so to do without an all-reduce."""
        n, size = self.workers, 4 * sum(x.size for x in others)
        return all(x.dtype == jnp.float32 for x in others) and size * (n - 1) * (1 - 2 / n) <= WORTH_A_MESSAGE

    def _whole(self, selected: list[Selected], others: Arrays) -> tuple[list[Sent], Arrays]:
        """By one all-reduce of whole tensors, zeros where nothing is sent."""
        masks = [among_largest(v, k) if k < v.size else jnp.ones_like(v, bool) for _, v, k in selected]
        both = list(zip(selected, masks, strict=True))
        directions, means = self.mean([jnp.where(mask, s.v, 0) for s, mask in both], others)
        return [
            Sent(direction, jnp.where(mask, 0, s.u), jnp.where(mask, 0, s.v))
            for direction, (s, mask) in zip(directions, both, strict=True)
        ], means

    def _by_pairs(self, selected: list[Selected], others: Arrays) -> tuple[list[Sent], Arrays]:
        """By one all-gather of one buffer: of every tensor k indices and k values as bits, then others."""
        if not selected:
            return [], []
        flats = [jnp.reshape(v, -1) for _, v, _ in selected]
        indices = [largest(flat, s.k) for flat, s in zip(flats, selected, strict=True)]
        words = [
            word
            for flat, at in zip(flats, indices, strict=True)
            for word in (at, lax.bitcast_convert_type(flat[at], jnp.int32))
        ]
        words += [lax.bitcast_convert_type(jnp.reshape(x, -1), jnp.int32) for x in others]
        buffer = across(
            jnp.concatenate(words), lambda part: lax.all_gather(part, self.axis_name, to="invarying")
        )
        sent, means, start = [], [], 0
        for s, at in zip(selected, indices, strict=True):
            middle, end = start + s.k, start + 2 * s.k
            values = lax.bitcast_convert_type(buffer[:, middle:end], s.v.dtype)
            total = _sum_of_rows(buffer[:, start:middle], values, s.v.size)
            direction = jnp.reshape(total / self.workers, s.v.shape)
            sent.append(Sent(direction, _without(s.u, at), _without(s.v, at)))
            start = end
        for x in others:
            rows = lax.bitcast_convert_type(buffer[:, start : start + x.size], x.dtype)
            means.append(jnp.reshape(jnp.sum(rows, axis=0) / self.workers, x.shape))
            start += x.size
        return sent, means


def _without(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Return x with zeros at these indices of its elements."""
    return jnp.reshape(jnp.reshape(x, -1).at[indices].set(0, unique_indices=True), x.shape)


def _sum_of_rows(indices: jax.Array, values: jax.Array, size: int) -> jax.Array:
    """Worker after worker, so that the order of addition, and with it every bit, is the same everywhere."""

    def add(r: Any, total: jax.Array) -> jax.Array:
        return total.at[indices[r]].add(values[r], unique_indices=True)

    return lax.fori_loop(0, indices.shape[0], add, jnp.zeros(size, values.dtype))
