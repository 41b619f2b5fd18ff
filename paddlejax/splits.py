"""How a fused weight is cut into the matrices that Muon orthogonalizes one by one.

Every function here returns a function (weight, ortho) -> weight for `MuonParamInfo`: it cuts the weight
(..., rows, columns), calls `ortho` on each part and puts the results where the parts were. A weight is
[in, out] as in Paddle's Linear, so heads stand side by side in its columns. `axes` is for weights that lie
otherwise: kernels of flax and equinox, convolutions. optax.contrib.muon knows axes only, torch neither.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .hyper import COUNT, FLAG, Must, checked, each, optional
from .orthogonal import Ortho, SplitFunction
from .pages import publish


@dataclass(frozen=True)
class Split:
    """A cut of the columns, or of the rows, into blocks; those with one owner make up one matrix.

    Two cuts with the same name and arguments are equal, so that their leaves share a compiled program.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    sizes: tuple[int, ...] = field(compare=False, repr=False)  # of the blocks, in order
    owners: tuple[int, ...] = field(compare=False, repr=False)  # of each block the matrix that it belongs to
    axis: int = -1
    scales: bool = False  # whether the sizes are shares of whatever size there is

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"

    def __call__(self, weight: jax.Array, ortho: Ortho) -> jax.Array:
        """Return the weight with `ortho` of each matrix in its place; matrices alike go as one stack."""
        sizes = self._sizes(weight)
        ends = list(itertools.accumulate(sizes))
        blocks = jnp.split(weight, ends[:-1], self.axis)
        pieces: dict[int, list[int]] = {}
        for i, owner in enumerate(self.owners):
            pieces.setdefault(owner, []).append(i)
        alike: dict[int, list[list[int]]] = {}
        for mine in pieces.values():
            alike.setdefault(sum(sizes[i] for i in mine), []).append(mine)
        for matrices in alike.values():
            stack = [jnp.concatenate([blocks[i] for i in mine], self.axis) for mine in matrices]
            one = len(stack) == 1
            done = [ortho(stack[0])] if one else jnp.moveaxis(ortho(jnp.stack(stack, -3)), -3, 0)
            for mine, whole in zip(matrices, done, strict=True):
                cuts = list(itertools.accumulate(sizes[i] for i in mine))[:-1]
                for i, block in zip(mine, jnp.split(whole, cuts, self.axis), strict=True):
                    blocks[i] = block
        return jnp.concatenate(blocks, self.axis)

    def _sizes(self, weight: jax.Array) -> list[int]:
        """Return the sizes of the blocks of this weight, or raise if it has not as many columns or rows."""
        total, what = sum(self.sizes), "columns" if self.axis == -1 else "rows"
        found = f"{self}: found a weight of shape {weight.shape}, expected"
        if weight.ndim < 2:
            raise ValueError(f"{found} (..., rows, columns)")
        size = weight.shape[self.axis]
        if size != total and not (self.scales and size and size % total == 0):
            raise ValueError(f"{found} {'a multiple of ' if self.scales else ''}{total} {what}")
        return [n * (size // total) for n in self.sizes]


def _each(
    name: str, arguments: dict[str, Any], sizes: Sequence[int], axis: int = -1, scales: bool = False
) -> Split:
    """Return the cut in which every block is a matrix of its own."""
    return Split(name, tuple(arguments.items()), tuple(sizes), tuple(range(len(sizes))), axis, scales)


def _each_role(name: str, arguments: dict[str, Any], sizes: Sequence[int], groups: int) -> Split:
    """Return the cut in which the blocks of one role, over all groups, are one matrix."""
    owners = tuple(range(len(sizes))) * groups
    return Split(name, tuple(arguments.items()), tuple(sizes) * groups, owners)


def _in_heads(name: str, value: Any, arguments: Any) -> None:
    """Refuse roles that cannot be cut into heads."""
    heads = arguments["heads_per_group"]
    if arguments["per_head"] and (len(value) < 3 or any(size % heads for size in value[:-2])):
        expected = f"three or more sizes, all but the last two multiples of {heads}"
        raise ValueError(f"{name}: found {value}, expected {expected}")


LIST = Must(lambda x: isinstance(x, list | tuple) and len(x) > 0, "a list of positive ints")
SIZES = LIST, each(*COUNT)
AXIS = Must(lambda x: x in (-1, -2), "-1, the columns, or -2, the rows", ValueError)


@checked(kv_heads=COUNT, groups=COUNT, head_dim=COUNT)
def qkv_head(kv_heads: int, groups: int, head_dim: int) -> Split:
    """Every head alone, of columns [q x groups, k, v] per kv head: Paddle's "split_head".

    The weight has kv_heads (groups + 2) head_dim columns; groups = query heads per kv head, 1 without
    grouped-query attention.

    >>> double = lambda head: 2 * head / head.shape[-1]
    >>> print(qkv_head(kv_heads=1, groups=1, head_dim=2)(jnp.ones((1, 6)), double))
    [[1. 1. 1. 1. 1. 1.]]
    """
    sizes = [head_dim] * (kv_heads * (groups + 2))
    return _each("qkv_head", {"kv_heads": kv_heads, "groups": groups, "head_dim": head_dim}, sizes)


@checked(kv_heads=COUNT, groups=COUNT, head_dim=COUNT)
def qkv_sep(kv_heads: int, groups: int, head_dim: int) -> Split:
    """Three matrices, all queries, all keys and all values, of columns as `qkv_head`: Paddle's "split_qkv".

    >>> width = lambda matrix: jnp.full_like(matrix, matrix.shape[-1])
    >>> print(qkv_sep(kv_heads=2, groups=2, head_dim=1)(jnp.ones((1, 8)), width))
    [[4. 4. 2. 2. 4. 4. 2. 2.]]
    """
    arguments = {"kv_heads": kv_heads, "groups": groups, "head_dim": head_dim}
    return _each_role("qkv_sep", arguments, (groups * head_dim, head_dim, head_dim), kv_heads)


@checked(heads=COUNT, kv_heads=COUNT, head_dim=COUNT, v_head_dim=optional(*COUNT))
def qkv_contiguous(heads: int, kv_heads: int, head_dim: int, v_head_dim: int | None = None) -> Split:
    """Every head alone, of columns [all queries, all keys, all values].

    Queries and keys are head_dim wide, values v_head_dim, by default head_dim too.

    >>> width = lambda matrix: jnp.full_like(matrix, matrix.shape[-1])
    >>> print(qkv_contiguous(heads=2, kv_heads=1, head_dim=1, v_head_dim=2)(jnp.ones((1, 5)), width))
    [[1. 1. 1. 2. 2.]]
    """
    wide = head_dim if v_head_dim is None else v_head_dim
    sizes = [head_dim] * (heads + kv_heads) + [wide] * kv_heads
    arguments = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "v_head_dim": wide}
    return _each("qkv_contiguous", arguments, sizes)


@checked(groups=COUNT, heads_per_group=COUNT, per_head=FLAG, role_sizes=(*SIZES, _in_heads))
def qkv_roles(
    groups: int, role_sizes: Sequence[int], heads_per_group: int = 1, per_head: bool = True
) -> Split:
    """Heads or roles, of columns that repeat `groups` times one block per role: [q, k, v] or [q, gate, k, v].

    role_sizes are the widths in one group. With per_head the last two roles are one head each and the others
    heads_per_group heads; without it all columns of a role are one matrix.

    >>> width = lambda matrix: jnp.full_like(matrix, matrix.shape[-1])
    >>> print(qkv_roles(1, [2, 2, 1, 1], heads_per_group=2)(jnp.ones((1, 6)), width))
    [[1. 1. 1. 1. 1. 1.]]
    >>> print(qkv_roles(2, [2, 1, 1], per_head=False)(jnp.ones((1, 8)), width))
    [[4. 4. 2. 2. 4. 4. 2. 2.]]
    """
    sizes = tuple(role_sizes)
    arguments = {"groups": groups, "role_sizes": sizes, "heads_per_group": heads_per_group}
    arguments |= {"per_head": per_head}
    if not per_head:
        return _each_role("qkv_roles", arguments, sizes, groups)
    heads = [size // heads_per_group for size in sizes[:-2] for _ in range(heads_per_group)]
    return _each("qkv_roles", arguments, [*heads, *sizes[-2:]] * groups)


def gate_up() -> Split:
    """Two matrices, the halves of the columns: gate and up projection of a feed-forward block in one weight.

    >>> width = lambda matrix: jnp.full_like(matrix, matrix.shape[-1])
    >>> print(gate_up()(jnp.ones((1, 4)), width))
    [[2. 2. 2. 2.]]
    """
    return _each("gate_up", {}, [1, 1], scales=True)


@checked(heads=COUNT, head_sizes=optional(*SIZES), axis=AXIS)
def per_head(heads: int, head_sizes: Sequence[int] | None = None, axis: int = -1) -> Split:
    """`heads` equal blocks of the columns (axis -1) or rows (axis -2), or head_sizes repeated `heads` times.

    For the projections of multi-head latent attention: per_head(heads, [nope, rope]) cuts each head in two.
    With axis=-2 it is for an output projection [heads x head_dim, out].

    >>> size = lambda matrix: jnp.full_like(matrix, matrix.shape[-2])
    >>> print(per_head(2, axis=-2)(jnp.ones((4, 1)), size).T)
    [[2. 2. 2. 2.]]
    """
    repeated = [1] if head_sizes is None else list(head_sizes)
    arguments = {"heads": heads, "head_sizes": head_sizes and tuple(head_sizes), "axis": axis}
    return _each("per_head", arguments, repeated * heads, axis, head_sizes is None)


def experts() -> Split:
    """One matrix per index of the leading axes, as without any function: experts stored as [expert, in, out].

    >>> print(experts()(jnp.ones((2, 1, 1)), jnp.negative).ravel())
    [-1. -1.]
    """
    return _each("experts", {}, [1], scales=True)


@dataclass(frozen=True)
class Axes:
    """A declaration of what the axes of a weight are; see `axes`."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batch: tuple[int, ...]
    split: SplitFunction | None

    def __repr__(self) -> str:
        last = "" if self.split is None else f", split={self.split}"
        return f"axes(rows={self.rows}, columns={self.columns}, batch={self.batch}{last})"

    def __call__(self, weight: jax.Array, ortho: Ortho) -> jax.Array:
        """Return the weight with `ortho` of every matrix in its place."""
        named = [*self.batch, *self.rows, *self.columns]
        order = [axis % weight.ndim for axis in named if -weight.ndim <= axis < weight.ndim]
        if sorted(order) != list(range(weight.ndim)) or len(order) != len(named):
            found = f"found a weight of shape {weight.shape}"
            raise ValueError(f"{self}: {found}, expected each of its {weight.ndim} axes to be named once")
        turned = weight.transpose(order)
        size = [weight.shape[axis] for axis in order]
        batch, rows = size[: len(self.batch)], size[len(self.batch) :][: len(self.rows)]
        shape = *([math.prod(batch)] if batch else []), math.prod(rows), -1 if weight.size else 0
        matrix = turned.reshape(shape)
        done = ortho(matrix) if self.split is None else self.split(matrix, ortho)
        return done.reshape(size).transpose([order.index(axis) for axis in range(weight.ndim)])


def _axis_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


WHICH = Must(
    lambda x: all(type(axis) is int for axis in (x if isinstance(x, list | tuple) else [x])),
    "an axis or a list of axes",
)
SOME = Must(lambda x: x not in ((), []), "an axis or a list of axes", ValueError)
FUNCTION = optional(Must(callable, "a function (weight, ortho) -> weight"))


@checked(rows=(WHICH, SOME), columns=(WHICH, SOME), batch=WHICH, split=FUNCTION)
def axes(
    rows: int | Sequence[int],
    columns: int | Sequence[int],
    batch: int | Sequence[int] = (),
    split: SplitFunction | None = None,
) -> Axes:
    """A weight whose axes are not (rows, columns): which of them are rows (in), columns (out), or a batch.

    Every axis is named once; several that are named together count as one axis, in this order. There is one
    matrix per index of the batch axes. `split` cuts the matrices further. Negative axes count from the end.

        flax Dense [in, out]               axes(rows=0, columns=1), or nothing
        equinox Linear, torch [out, in]    axes(rows=1, columns=0)
        flax DenseGeneral [in, head, dim]  axes(rows=0, columns=(1, 2)); every head alone: columns=2, batch=1
        flax Conv [h, w, in, out]          axes(rows=(0, 1, 2), columns=3)

    optax's MuonDimensionNumbers(reduction_axis, output_axis) are rows and columns, all others its batch.

    >>> size = lambda matrix: jnp.full_like(matrix, matrix.shape[-1])
    >>> print(axes(rows=0, columns=(1, 2))(jnp.ones((1, 2, 3)), size))
    [[[6. 6. 6.]
      [6. 6. 6.]]]
    """
    return Axes(_axis_tuple(rows), _axis_tuple(columns), _axis_tuple(batch), split)


__all__ = ["axes", "experts", "gate_up", "per_head", "qkv_contiguous", "qkv_head", "qkv_roles", "qkv_sep"]

publish(globals())
