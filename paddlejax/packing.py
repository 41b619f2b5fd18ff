"""Many small arrays end to end in a few long ones: what a call of a compiled program costs is per array."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .array_types import ArrayTree
from .trees import compute_dtype, flatten


@dataclass(frozen=True)
class Layout:
    """Where arrays of these shapes lie in a buffer (..., size); leading axes are common to all of them."""

    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each array."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @functools.cached_property
    def offsets(self) -> list[int]:
        """Where each begins, and the end."""
        return [0, *np.cumsum(self.sizes).tolist()]

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.shapes)

    def __hash__(self) -> int:
        return self._hash

    def join(self, arrays: Sequence[Any], xp: Any = jnp) -> Any:
        """Return one array with these end to end along the last axis.

        Axes in front of the layout's shapes stay. `xp` is the library that computes: jax.numpy or numpy.
        """
        lead = arrays[0].shape[: arrays[0].ndim - len(self.shapes[0])]
        return xp.concatenate([xp.reshape(x, (*lead, -1)) for x in arrays], axis=-1)

    def split(self, buffer: jax.Array) -> list[jax.Array]:
        """Return the arrays that `join` put into this one."""
        parts = lax.split(buffer, self.sizes, axis=buffer.ndim - 1)
        return [jnp.reshape(x, (*x.shape[:-1], *s)) for x, s in zip(parts, self.shapes, strict=True)]

    # On the host these compile nothing; what they return lies on the device of what they were given.

    def join_on_host(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """Return the arrays as one."""
        return _placed(self.join(jax.device_get(list(arrays)), np), arrays[0])

    def split_on_host(self, buffer: jax.Array) -> list[jax.Array]:
        """Return a copy of each of them."""
        host = np.asarray(buffer)
        return [_placed(self._part(host, i), buffer) for i in range(len(self.shapes))]

    def part_on_host(self, buffer: jax.Array, i: int) -> jax.Array:
        """Return a copy of one of them."""
        return _placed(self._part(np.asarray(buffer), i), buffer)

    def _part(self, buffer: np.ndarray, i: int) -> np.ndarray:
        start, stop = self.offsets[i : i + 2]
        return np.array(buffer[..., start:stop]).reshape((*buffer.shape[:-1], *self.shapes[i]))


def _placed(value: np.ndarray, like: jax.Array) -> jax.Array:
    """Return a copy on the device of another array."""
    return jax.device_put(jnp.array(value), like.sharding) if like.committed else jnp.array(value)


@jax.tree_util.register_pytree_with_keys_class
class Packed:
    """What `pack` makes of a tree: a pytree whose leaves are one buffer (n,) per dtype.

    `buffers` {dtype: (n,)}; `unpack()` is the tree.
    """

    def __init__(self, buffers: dict[str, Any], places: "_Places"):
        self.buffers, self._places = buffers, places

    def unpack(self) -> Any:
        """The tree; under `jax.grad` its gradient is a Packed again."""
        parts = {name: iter(layout.split(self.buffers[name])) for name, layout in self._places.layouts}
        return self._places.tree.unflatten(
            [None if name is None else next(parts[name]) for name in self._places.names]
        )

    def tree_flatten_with_keys(self) -> Any:
        """Return the buffers as leaves, sorted by their names, and what is static. JAX calls this."""
        names = sorted(self.buffers)
        keys = [(jax.tree_util.DictKey(name), self.buffers[name]) for name in names]
        return keys, (tuple(names), self._places)

    @classmethod
    def tree_unflatten(cls, static: Any, buffers: Any) -> "Packed":
        """Return a Packed of these buffers. JAX calls this."""
        names, places = static
        return cls(dict(zip(names, buffers, strict=True)), places)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}[{layout.offsets[-1]}]" for name, layout in self._places.layouts)
        return f"Packed({len(self._places.names)} leaves in {sizes})"


@dataclass(frozen=True)
class _Places:
    """What a Packed is made of: the tree, each leaf's dtype or None, and the layout of each dtype."""

    tree: Any
    names: tuple[str | None, ...]
    layouts: tuple[tuple[str, Layout], ...]


def pack(params: ArrayTree) -> Packed:
    """The leaves of a tree end to end in one buffer per dtype, to be trained in their place.

        packed = pack(params)
        loss, grads = jax.value_and_grad(lambda packed: loss_fn(packed.unpack()))(packed)
        updates, state = tx.update(grads, state, packed)

    It pays where there are hundreds of small leaves and a call of the compiled step takes longer than its
    arithmetic: 1000 leaves of 64 elements take about 1/50 of the time. It does not pay for few or large
    leaves, which are copied once a step. The transformation sees one tensor per dtype, so it must treat every
    element by itself: any rule but `lamb`, `lars_momentum` and `dpsgd`, any clip but `clip_by_norm`, and no
    `by_path`. Weights of other shardings than all the others' do not belong in it. A None stays a None.
    optax.flatten flattens and splits inside every update, which is slower than no flattening at all.

    >>> packed = pack({"b": jnp.zeros(2), "w": jnp.ones((2, 2))})
    >>> packed
    Packed(2 leaves in float32[6])
    >>> grads = jax.grad(lambda packed: jnp.sum(packed.unpack()["w"] ** 2))(packed)
    >>> print(grads.buffers["float32"])
    [0. 0. 2. 2. 2. 2.]
    """
    paths, leaves, tree = flatten(params)
    groups: dict[str, list[Any]] = {}
    names: list[str | None] = []
    for path, leaf in zip(paths, leaves, strict=True):
        if leaf is not None:
            compute_dtype(path, leaf)  # says what is wrong
        names.append(None if leaf is None else jnp.result_type(leaf).name)
        groups.setdefault(names[-1] or "", []).append(leaf)
    groups.pop("", None)
    layouts = {name: Layout(tuple(jnp.shape(x) for x in group)) for name, group in groups.items()}
    buffers = {name: layouts[name].join([jnp.asarray(x) for x in group]) for name, group in groups.items()}
    return Packed(buffers, _Places(tree, tuple(names), tuple(sorted(layouts.items()))))
