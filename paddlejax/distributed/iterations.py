"""The iterations of many matrices dealt out to devices: whole matrices, the most costly first."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from .. import spreading
from ..orthogonal import newton_schulz
from .held import constrained, padded


class Matrices(NamedTuple):
    """What one call of the iteration is given."""

    x: jax.Array  # (..., rows, columns)
    coefficients: Any
    steps: int
    epsilon: Any
    dtype: Any

    @property
    def kind(self) -> Any:
        """What can go through one loop."""
        number = self.epsilon if isinstance(self.epsilon, int | float) else id(self.epsilon)
        return self.x.shape[-2:], self.coefficients, self.steps, number, self.dtype

    @property
    def cost(self) -> int:
        """Multiplications per matrix: the smaller Gram matrix, its square, and the product with X."""
        short, long = sorted(self.x.shape[-2:])
        return self.steps * (2 * short * short * long + short**3) + short * long

    @property
    def number(self) -> int:
        """How many matrices there are."""
        return int(np.prod(self.x.shape[:-2], dtype=int))


Assignment = dict[Any, list[list[int]]]  # {kind: for every device the matrices of this kind, by number}


def assigned(matrices: Sequence[Matrices], n: int) -> tuple[Assignment, list[int]]:
    """Deal matrices out to n devices, the most costly first, each to the one that has least to do so far.

    Returns also the cost of each device. Of devices with the same cost the first gets it.
    """
    kinds: dict[Any, tuple[int, int]] = {}
    for m in matrices:
        kinds[m.kind] = m.cost, kinds.get(m.kind, (0, 0))[1] + m.number
    load = [0] * n
    owners: Assignment = {kind: [[] for _ in range(n)] for kind in kinds}
    for kind, (cost, number) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        for j in range(number):
            device = load.index(min(load))
            owners[kind][device].append(j)
            load[device] += cost
    return owners, load


def dealt_out(mesh: Mesh, axis: str, tell: Callable[[Assignment, list[int]], None]) -> Callable[..., Any]:
    """Return what `spreading.together` calls: each device along the axis iterates its matrices.

    `run` is traced twice: to collect the matrices, and with the results in their places. `tell` is told who
    has what.
    """

    def at_once(run: Callable[[], Any]) -> Any:
        found: list[Matrices] = []

        def collect(x: jax.Array, *how: Any) -> jax.Array:
            found.append(Matrices(x, *how))
            return x

        with spreading.iterate.set(collect):
            run()
        owners, load = assigned(found, mesh.shape[axis])
        tell(owners, load)
        results = iter(_iterated(mesh, axis, found, owners))
        with spreading.iterate.set(lambda x, *how: next(results)):
            return run()

    return at_once


def _iterated(mesh: Mesh, axis: str, found: list[Matrices], owners: Assignment) -> list[jax.Array]:
    """Return the result of each call, cut as its matrices were."""
    results: list[Any] = [None] * len(found)
    for kind, shares in owners.items():
        members = [i for i, m in enumerate(found) if m.kind == kind]
        rows, columns = kind[0]
        stack = jnp.concatenate([found[i].x.reshape(found[i].number, rows, columns) for i in members])
        made = _of_kind(mesh, axis, stack, found[members[0]], shares)
        at = 0
        for i in members:
            results[i] = made[at : at + found[i].number].reshape(found[i].x.shape)
            at += found[i].number
    return results


def _of_kind(mesh: Mesh, axis: str, stack: jax.Array, like: Matrices, shares: list[list[int]]) -> jax.Array:
    """Return the results for a stack of matrices of one kind; each device has those of its share."""
    n, (total, rows, columns) = mesh.shape[axis], stack.shape
    height = max(map(len, shares))
    order = np.full((n, height), total)  # the last row of the longer stack is zero: no matrix
    for device, share in enumerate(shares):
        order[device, : len(share)] = share
    back = np.zeros(total, int)
    back[order[order < total]] = np.flatnonzero(order < total)
    counts = np.array([len(share) for share in shares], np.int32)
    # Zeros in rows and columns, so that equal parts of each matrix go from every device to every other.
    more = [(0, 1), *((0, padded(size, n) - size) for size in (rows, columns))]
    cut = constrained(jnp.pad(stack, more), mesh, (None, axis))
    there = constrained(jnp.take(cut, order.ravel(), 0), mesh, (None, axis))

    def own(x: jax.Array, epsilon: Any) -> jax.Array:
        def one(y: jax.Array) -> jax.Array:
            return newton_schulz(y, like.coefficients, like.steps, epsilon, like.dtype)

        mine = x[:, :rows, :columns]
        if counts.min() == height:
            made = one(mine)
        else:
            number = jnp.asarray(counts)[jax.lax.axis_index(axis)]
            put = lambda i, y: y.at[i].set(one(mine[i]))  # noqa: E731
            made = jax.lax.fori_loop(0, number, put, jnp.zeros_like(mine))
        return jnp.pad(made, [(0, 0), *more[1:]])

    spec = PartitionSpec(axis)
    with spreading.iterate.set(None):
        run = jax.shard_map(own, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False)
        made = run(constrained(there, mesh, spec), jnp.asarray(like.epsilon, jnp.float32))
    made = constrained(made, mesh, (None, axis))  # all matrices, of each a part
    return jnp.take(made, back, 0)[:, :rows, :columns]
