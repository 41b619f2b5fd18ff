"""Small Parameters end to end in common buffers: which ones may, and how their values get there."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from ..leaves import LeafOptions
from ..lifting import Rule
from ..packing import Layout
from ..step import likeness
from .group import Blocks, StepGroup
from .parameter import Parameter
from .store import Store

LARGEST = 8192  # elements: from twice that on, copying the gradient into the buffer costs what it saves


class Buffer:
    """The values of several Parameters in one array, which a step donates as it would a Store's.

    The Stores read their values out of it when they are asked. One that is given a value of its own, or that
    enters another buffer, leaves; `take` brings all of them back.
    """

    def __init__(self, parameters: Sequence[Parameter]):
        self.stores = [p.store for p in parameters]
        self.layout = Layout(tuple(p.shape for p in parameters))
        self.array: Any = None
        self.owned = False  # whether all are here
        self._reads = self._forgotten = 0  # how often a value was read, and was when all were forgotten

    def take(self) -> jax.Array:
        """Return the array to donate, with the values of all in it."""
        if not self.owned:
            self.array = self.layout.join_on_host([s.peek() for s in self.stores])
            for i, s in enumerate(self.stores):
                s.enter(self, i)
            self.owned = True
        return self.array

    def peek(self) -> jax.Array:
        """Return the array to a reader that does not keep it."""
        return self.take()

    def keep(self, array: jax.Array) -> None:
        """Hold what a program made of the array that `take` returned; twice is as good as once."""
        self.array = array
        if (reads := self._reads) != self._forgotten:
            for s in self.stores:
                s.forget(self)
            self._forgotten = reads  # a signal handler may have read since

    def read(self, store: Store) -> jax.Array:
        """Return a Store's value, cut out on the host: that compiles nothing."""
        self._reads += 1
        return self.layout.part_on_host(self.array, store.part)

    def leave(self) -> None:
        """Note that a value has gone; the next `take` brings it back."""
        self.owned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "array": None, "owned": False}


class Packing:
    """Lays the Parameters of one optimizer in buffers, except those in `apart`, by position."""

    buffer = Buffer

    def __init__(self, apart: Iterable[int]):
        self.apart = set(apart)

    def blocks(
        self, group: StepGroup, options: Sequence[LeafOptions], parameters: Sequence[Parameter]
    ) -> Blocks | None:
        """Return which members may lie in one buffer, all others by themselves; None if none may."""
        blocks: dict[Any, list[int]] = {}
        rule = group.rule.source.rule
        rules = {i: rule.at(options[i].leaf) for i in group.members}  # alive as long as they are compared
        for i in group.members:
            fits = i not in self.apart and _fits(parameters[i], rule, options[i])
            kind = _kind(parameters[i], rules[i], options[i]) if fits else (i,)
            blocks.setdefault(kind, []).append(i)
        return None if len(blocks) == len(group.members) else tuple(map(tuple, blocks.values()))


def _fits(p: Parameter, rule: Rule, o: LeafOptions) -> bool:
    """Whether a step may see this Parameter as a part of something longer."""
    stages = [t for t in (o.weight_decay, o.grad_clip) if t is not None]
    if not rule.elementwise or p.sparse or not 0 < p.size <= LARGEST:
        return False
    if not all(getattr(t, "packs", False) for t in stages) or len(p.peek().sharding.device_set) > 1:
        return False
    shapes = [(rule.slot_shape(name, p.shape), rule.slot_shape(name, ())) for name in rule.slots]
    return all(shape == (*lead, *p.shape) for shape, lead in shapes)


def _kind(p: Parameter, rule: Rule, o: LeafOptions) -> Any:
    """Parameters of which all this is equal are stepped alike."""
    device = (p.peek().device, p.peek().committed)
    return p.dtype, device, o.maximize, o.learning_rate, id(o.weight_decay), id(o.grad_clip), likeness(rule)
