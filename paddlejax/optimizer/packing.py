"""Small Parameters end to end in common buffers: which ones may, and how they and their state get there."""

import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import Rule
from ..packing import Layout
from ..paths import LeafOptions
from ..step import likeness
from .parameter import Parameter

LARGEST = 8192  # elements: from twice that on, copying the gradient into the buffer costs what it saves
Blocks = tuple[tuple[int, ...], ...]  # positions of Parameters: those of one entry lie in one buffer


class Buffer:
    """The values of several Parameters in one array, which a step donates as it would a Parameter's.

    The Parameters read their values out of it when they are asked. One that is given a value of its own, or
    that moves to another buffer, leaves; `take` brings all of them back.
    """

    def __init__(self, parameters: Sequence[Parameter]):
        self.parameters = list(parameters)
        self.layout = Layout(tuple(p.shape for p in parameters))
        self._array: Any = None
        self._read: list[Parameter] = []  # those that hold what they read
        self._donatable = False  # everybody is here

    def take(self) -> jax.Array:
        """The array to donate."""
        if not self._donatable:
            self._array = joined(self.layout, [p._value for p in self.parameters])
            for i, p in enumerate(self.parameters):
                p.move(self, i)
            self._read.clear()
            self._donatable = True
        return self._array

    @property
    def _value(self) -> jax.Array:
        return self.take()

    def put(self, value: jax.Array) -> None:
        """The result of a step, which nobody else holds."""
        self._array = value
        self.forget()

    def forget(self) -> None:
        """What was read is not anybody's value any more."""
        for p in self._read:
            p.forget(self)
        self._read.clear()

    def read(self, p: Parameter, i: int) -> jax.Array:
        """The value of the i-th, cut out on the host: that compiles nothing."""
        self._read.append(p)
        return placed(self.layout.part(np.asarray(self._array), i), self._array)

    def left(self) -> None:
        """A Parameter has gone."""
        self._donatable = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None, "_read": [], "_donatable": False}


def placed(value: np.ndarray, like: jax.Array) -> jax.Array:
    """A copy on the device of another array."""
    return jax.device_put(jnp.array(value), like.sharding) if like.committed else jnp.array(value)


def joined(layout: Layout, arrays: Sequence[jax.Array]) -> jax.Array:
    """The arrays as one, by way of the host: that compiles nothing."""
    return placed(layout.join(jax.device_get(list(arrays)), np), arrays[0])


def parts(layout: Layout, buffer: jax.Array) -> list[jax.Array]:
    host = np.asarray(buffer)
    return [placed(layout.part(host, i), buffer) for i in range(len(layout.shapes))]


def blocks_of(
    members: Sequence[int],
    rule: Rule,
    options: Sequence[LeafOptions],
    parameters: Sequence[Parameter],
    apart: Collection[int],
) -> Blocks | None:
    """Which of a cohort's members may lie in one buffer, all others by themselves; None if none may."""
    groups: dict[Any, list[int]] = {}
    rules = {i: rule.at(options[i].leaf) for i in members}
    for i in members:
        fits = i not in apart and _fits(parameters[i], rule, options[i])
        groups.setdefault(_kind(parameters[i], rules[i], options[i]) if fits else (i,), []).append(i)
    return None if len(groups) == len(members) else tuple(tuple(group) for group in groups.values())


def _fits(p: Parameter, rule: Rule, o: LeafOptions) -> bool:
    """Whether a step may see this Parameter as a part of something longer."""
    stages = [t for t in (o.weight_decay, o.grad_clip) if t is not None]
    if not rule.elementwise or p.sparse or not 0 < p.size <= LARGEST:
        return False
    if not all(getattr(t, "packs", False) for t in stages) or len(p._value.sharding.device_set) > 1:
        return False
    shapes = [(rule.slot_shape(name, p.shape), rule.slot_shape(name, ())) for name in rule.slots]
    return all(shape == (*lead, *p.shape) for shape, lead in shapes)


def _kind(p: Parameter, rule: Rule, o: LeafOptions) -> Any:
    """Parameters of which all this is equal are stepped alike."""
    device = (p._value.device, p._value.committed)
    return p.dtype, device, o.learning_rate, id(o.weight_decay), id(o.grad_clip), likeness(rule)


class Trained(NamedTuple):
    """The values of some Parameters as a program takes them: each array once, and how they lie in them."""

    arrays: list[jax.Array]
    where: "Where | None"  # None where each array is one Parameter's

    @classmethod
    def of(cls, parameters: Sequence[Parameter]) -> "Trained":
        homes = [p._home for p in parameters]
        if homes.count(None) == len(homes):
            return cls([p._array for p in parameters], None)
        arrays: list[Any] = []
        layouts: list[Layout | None] = []
        numbers: dict[Any, int] = {}
        picks = []
        for p, home in zip(parameters, homes, strict=True):
            holder: Any = p if home is None else home
            number = numbers.get(holder)
            if number is None:
                number = numbers[holder] = len(arrays)
                arrays.append(holder._array)
                layouts.append(None if home is None else home.layout)
            picks.append((number, p._part))
        return cls(arrays, Where(tuple(layouts), tuple(picks)))

    def is_still(self, parameters: Sequence[Parameter]) -> bool:
        """Whether these are the Parameters' values now."""
        now = Trained.of(parameters)
        same = len(now.arrays) == len(self.arrays) and now.where == self.where
        return same and all(a is b for a, b in zip(now.arrays, self.arrays, strict=True))


class Where(NamedTuple):
    """Where each Parameter is to be found: which array, and which part of it."""

    layouts: tuple[Layout | None, ...]
    picks: tuple[tuple[int, int], ...]

    def spread(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Inside a program: one array per Parameter."""
        pieces = spread(self.layouts, arrays)
        return [pieces[array][part] for array, part in self.picks]


def spread(layouts: Sequence[Layout | None], arrays: Sequence[jax.Array]) -> list[list[jax.Array]]:
    return [[x] if layout is None else layout.split(x) for layout, x in zip(layouts, arrays, strict=True)]


def gathered(layouts: Sequence[Layout | None], arrays: Sequence[Any]) -> list[Any]:
    """Inside a program: the arrays of every Parameter as one per buffer, in the widest of their dtypes."""
    rest = iter(arrays)
    found = []
    for layout in layouts:
        if layout is None:
            found.append(next(rest))
            continue
        group = [next(rest) for _ in layout.shapes]
        with jax.numpy_dtype_promotion("standard"):
            wide = functools.reduce(jnp.promote_types, {x.dtype for x in group})
        found.append(layout.join([x.astype(wide) for x in group]))
    return found
