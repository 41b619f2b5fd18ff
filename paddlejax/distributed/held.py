"""How a state is held when each device along an axis of a mesh keeps its part: cut, padded or joined.

The transformation sees every tensor in its own shape. Between two steps a tensor is held along one
dimension, with zeros behind it where the devices do not divide that; XLA pads there all the same, so that
taking them off and putting them on moves nothing. Where such zeros would cost much, tensors are held end to
end in one buffer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import tree_flatten_with_path

from ..trees import path_name

WASTE = 1.04  # of the elements, at most, are held for the sake of equal parts


class Cut(NamedTuple):
    """How one tensor is held: along this dimension, or whole if there is none; `joined`: in a buffer."""

    dim: int | None = None
    joined: bool = False


def cuts_of(n: int, axis: str, shapes: Sequence[Any], specs: Sequence[Any]) -> list[Cut]:
    """Decide for tensors of these shapes, None for one that is not there, how n devices hold them.

    A tensor that `specs` shards already is cut along another dimension, and never joined.
    """
    found = [_cut(n, axis, shape, spec) for shape, spec in zip(shapes, specs, strict=True)]
    loss = {}
    for i, (cut, shape) in enumerate(zip(found, shapes, strict=True)):
        size = math.prod(shape or ())
        if cut.dim is not None:
            loss[i] = padded(shape[cut.dim], n) // n * (size // shape[cut.dim]) - size / n
    total = sum(math.prod(shapes[i]) for i in loss) / n
    for i in sorted(loss, key=lambda i: -loss[i]):
        if total + sum(loss.values()) <= WASTE * total or loss[i] <= 0:
            break
        if not any(specs[i]):
            del loss[i]
            found[i] = Cut(None, True)
    return found


def _cut(n: int, axis: str, shape: Any, spec: Any) -> Cut:
    if shape is None or math.prod(shape) <= 1 or axis in names_of(spec):
        return Cut()
    free = [i for i, size in enumerate(shape) if i >= len(spec) or spec[i] is None]
    return Cut(min(free, key=lambda i: padded(shape[i], n) / shape[i], default=None))


def names_of(spec: Any) -> set[str]:
    """Return the axes of the mesh that a PartitionSpec names."""
    return {name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,)) if name}


def padded(size: int, n: int) -> int:
    """Return the next multiple of n."""
    return -(-size // n) * n


def with_axis(spec: Any, dim: int | None, axis: str) -> PartitionSpec:
    """Return the PartitionSpec with this axis at this dimension, if there is one, as jit writes it."""
    entries = list(spec)
    if dim is not None:
        entries += [None] * (dim + 1 - len(entries))
        entries[dim] = axis
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


class _Leaf(NamedTuple):
    """One array of a state."""

    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec  # of the array in its own shape
    dim: int | None  # along which it is held, None if it is whole
    group: Any  # (where in the state, dtype) of the buffer that it is part of, or None
    place: Any  # the same of the buffer that it might have been part of, on another number of devices


@dataclass(frozen=True, eq=False)
class Held:
    """The form in which a state is held, made of its abstract arrays and of the cuts of the parameters."""

    mesh: Mesh
    axis: str
    tree: Any
    leaves: dict[Any, _Leaf]  # by path, in order

    @classmethod
    def of(cls, mesh: Mesh, axis: str, state: Any, paths: Any, shapes: Any, specs: Any, cuts: Any) -> "Held":
        """Return the form of a state: what mirrors a parameter is held as `cuts` says, all else is whole."""
        about = list(zip(shapes, specs, cuts, strict=True))
        known = {path: x for path, x in zip(paths, about, strict=True) if x[0] is not None}
        found, tree = tree_flatten_with_path(state)
        leaves = {path: _leaf(axis, path, x, known) for path, x in found}
        return cls(mesh, axis, tree, leaves)

    @property
    def n(self) -> int:
        """The number of devices along the axis."""
        return self.mesh.shape[self.axis]

    def structs(self) -> Any:
        """Return the state as it is held, of abstract arrays with their shardings."""
        sizes: dict[Any, int] = {}
        for leaf in self.leaves.values():
            if leaf.group is not None:
                sizes[leaf.group] = sizes.get(leaf.group, 0) + math.prod(leaf.shape)
        found = []
        for leaf in self.leaves.values():
            shape, spec = list(leaf.shape), leaf.spec
            if leaf.group is not None:
                size = sizes.pop(leaf.group, None)
                shape = [0] if size is None else [1] * len(shape) + [padded(size, self.n)]
                spec = PartitionSpec() if size is None else with_axis((), len(leaf.shape), self.axis)
            elif leaf.dim is not None:
                shape[leaf.dim] = padded(shape[leaf.dim], self.n)
            sharding = NamedSharding(self.mesh, spec)
            found.append(jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=sharding))
        return self.tree.unflatten(found)

    def shapes(self, longer: bool = False) -> Any:
        """Return the state that `opened` returns, of abstract arrays."""
        pairs = zip(self.leaves.values(), jax.tree.leaves(self.structs()), strict=True)
        shapes = [s.shape if longer and x.dim is not None else x.shape for x, s in pairs]
        found = zip(shapes, self.leaves.values(), strict=True)
        return self.tree.unflatten([jax.ShapeDtypeStruct(shape, x.dtype) for shape, x in found])

    def opened(self, state: Any, mesh: Mesh, longer: bool = False) -> Any:
        """Return the state with every array in its own shape, of one held on any number of devices.

        `longer` leaves the zeros behind those that are held by themselves.
        """
        given = dict(tree_flatten_with_path(state)[0])
        if given.keys() != self.leaves.keys():
            found, expected = (", ".join(map(path_name, paths)) for paths in (given, self.leaves))
            raise ValueError(f"zero1's state: found arrays at {found}, expected them at {expected}")
        groups: dict[Any, list[Any]] = {}
        kept = dict(tree_flatten_with_path(self.structs())[0])
        for path, leaf in self.leaves.items():
            x = given[path]
            shape, holds = jnp.shape(x), _is_holder(jnp.shape(x), leaf)
            if holds or (leaf.place is not None and shape == (0,) and leaf.shape != (0,)):
                groups.setdefault(leaf.place, []).append(path)
            elif shape != leaf.shape and not (longer and shape == kept[path].shape):
                given[path] = _shortened(path, x, leaf)
        for members in groups.values():
            sizes = [math.prod(self.leaves[path].shape) for path in members]
            buffer = jnp.ravel(constrained(given[members[0]], mesh))  # whole, once for all of them
            if buffer.size < sum(sizes):
                found = f"found a buffer of {buffer.size} elements, expected at least {sum(sizes)}"
                raise ValueError(f"zero1: at {path_name(members[0])}: {found}")
            at = 0
            for path, size in zip(members, sizes, strict=True):
                given[path] = buffer[at : at + size].reshape(self.leaves[path].shape)
                at += size
        for path, leaf in self.leaves.items() if longer else ():
            if leaf.dim is not None:
                given[path] = lengthened(given[path], kept[path].shape)
        return self.tree.unflatten(
            [constrained(given[path], mesh, leaf.spec) for path, leaf in self.leaves.items()]
        )

    def closed(self, state: Any, mesh: Mesh) -> Any:
        """Return the state as it is held."""
        pairs, tree = tree_flatten_with_path(state)
        given, kept = dict(pairs), {}
        structs = dict(tree_flatten_with_path(self.structs())[0])
        groups: dict[Any, list[Any]] = {}
        for path, leaf in self.leaves.items():
            if leaf.group is not None:
                groups.setdefault(leaf.group, []).append(path)
            elif leaf.dim is not None:
                kept[path] = lengthened(constrained(given[path], mesh, leaf.spec), structs[path].shape)
        for members in groups.values():
            first, *others = members
            buffer = jnp.concatenate([jnp.ravel(constrained(given[path], mesh)) for path in members])
            shape = structs[first].shape
            kept[first] = lengthened(buffer, (shape[-1],)).reshape(shape)
            kept |= {path: jnp.zeros((0,), buffer.dtype) for path in others}
        found = [(kept.get(p, x), structs[p].sharding.spec if p in structs else ()) for p, x in pairs]
        return tree.unflatten([constrained(x, mesh, spec) for x, spec in found])


def _leaf(axis: str, path: Any, x: Any, known: dict[Any, Any]) -> _Leaf:
    """Find the parameter that an array of the state mirrors: the one whose path its own ends with."""
    for i in range(len(path) + 1):  # the longest ending first
        if path[i:] in known:
            shape, spec, cut = known[path[i:]]
            more = len(x.shape) - len(shape)
            if more < 0 or x.shape[more:] != shape:
                break
            place = (path[:i], x.dtype) if not more else None
            dim = None if cut.dim is None else more + cut.dim
            spec = with_axis([*[None] * more, *spec], dim, axis)
            joined = cut.joined and not more
            return _Leaf(x.shape, x.dtype, spec, dim, place if joined else None, place)
    return _Leaf(x.shape, x.dtype, PartitionSpec(), None, None, None)


def _is_holder(shape: tuple[int, ...], leaf: _Leaf) -> bool:
    """Whether this is the buffer of several tensors, which has one dimension more than the tensor."""
    return leaf.place is not None and len(shape) == len(leaf.shape) + 1 and set(shape[:-1]) <= {1}


def _shortened(path: Any, x: Any, leaf: _Leaf) -> Any:
    """Return the array without the zeros behind it."""
    shape = jnp.shape(x)
    if len(shape) != len(leaf.shape) or any(a < b for a, b in zip(shape, leaf.shape, strict=True)):
        found = f"found an array of shape {shape}, expected {leaf.shape}, perhaps longer in one dimension"
        raise ValueError(f"zero1: at {path_name(path)} of the state: {found}")
    return jax.lax.slice(jnp.asarray(x), [0] * len(shape), leaf.shape)


def lengthened(x: Any, shape: tuple[int, ...]) -> Any:
    """Return the array with zeros behind it, up to this shape."""
    before = jnp.shape(x)
    if before == tuple(shape):
        return x
    return jnp.pad(x, [(0, b - a) for a, b in zip(before, shape, strict=True)])


def constrained(x: Any, mesh: Mesh, spec: Any = ()) -> Any:
    """Return the same numbers in this sharding, whose parts need not be equal: inside a program only."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda y: jax.lax.with_sharding_constraint(y, sharding), x)
