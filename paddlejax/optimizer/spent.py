"""What a `minimize` leaves of its gradients: memory that the next one takes, unless somebody has it.

A program that returns its gradients in new memory takes 1.4 times as long as one that does not. So they go
into the memory of the last ones, as long as nobody was handed those, and the small ones leave the program end
to end in one array. `.grad` and the pairs of `minimize` cut out of it when they are looked at.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload
from weakref import ref

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from ..attributes import changes
from ..packing import Layout
from ..selected_rows import SelectedRows
from .store import same_place

LARGEST = 16384  # elements; from there on, copying a gradient costs more than an array less saves


@dataclass(frozen=True)
class Stowage:
    """Where gradients lie in the arrays that a program returns."""

    places: tuple[tuple[int, int | None], ...]  # per gradient: the array, and the part of it that it is
    layouts: tuple[Layout | None, ...]  # per array how it is divided, None where it is one gradient
    kinds: tuple[Any, ...]  # per array (shape, dtype), None where it is a SelectedRows

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.places, self.kinds))

    def __hash__(self) -> int:
        return self._hash

    def stow(self, grads: Sequence[Any]) -> list[Any]:
        """Inside a program: return the arrays."""
        members: list[list[Any]] = [[] for _ in self.layouts]
        for (at, _), g in zip(self.places, grads, strict=True):
            members[at].append(g)
        pairs = zip(members, self.layouts, strict=True)
        return [own[0] if layout is None else layout.join(own) for own, layout in pairs]


def _stowage(parameters: Sequence[Any]) -> Stowage:
    """Return where the gradients of these Parameters go: small ones of one dtype into one array."""
    joined: dict[Any, list[int]] = {}
    for i, p in enumerate(parameters):
        small = not p.sparse and 0 < p.size < LARGEST
        joined.setdefault(p.dtype if small else i, []).append(i)
    places: dict[int, tuple[int, int | None]] = {}
    layouts: list[Layout | None] = []
    kinds: list[Any] = []
    for at, members in enumerate(joined.values()):
        first, alone = parameters[members[0]], len(members) == 1
        layout = None if alone else Layout(tuple(parameters[i].shape for i in members))
        shape = first.shape if layout is None else (layout.offsets[-1],)
        layouts.append(layout)
        kinds.append(None if first.sparse else (shape, first.dtype))
        places |= {i: (at, None if alone else part) for part, i in enumerate(members)}
    return Stowage(tuple(places[i] for i in range(len(parameters))), tuple(layouts), tuple(kinds))


class Spent:
    """The gradients of one `minimize`, as its program returned them."""

    __slots__ = ("__weakref__", "_places", "_stowage", "arrays", "handed", "pairs")

    def __init__(self, places: dict[Any, tuple[int, int | None]], stowage: Stowage, arrays: list[Any]):
        self._places, self._stowage, self.arrays = places, stowage, arrays
        self.handed: set[int] = set()  # arrays that somebody has
        self.pairs: Any = None  # a reference to pairs that may still be looked at

    def held(self, p: Any) -> Any:
        """Return what the gradient of a Parameter lies in; nobody keeps it."""
        return self.arrays[self._places[p][0]]

    def read(self, p: Any) -> Any:
        """Return the gradient of a Parameter. It stays valid."""
        at, part = self._places[p]
        layout = self._stowage.layouts[at]
        if layout is None or part is None:
            self.handed.add(at)
            return self.arrays[at]
        return layout.part_on_host(self.arrays[at], part)


def has_rows(grad: Any, p: Any) -> bool:
    """Return whether the gradient of a Parameter, or what it lies in, is a SelectedRows."""
    return isinstance(grad.held(p) if type(grad) is Spent else grad, SelectedRows)


class Stowed:
    """The gradients that the last `minimize` of some Parameters left, and where those of the next go.

    Nothing is stowed where a gradient is wanted by another optimizer too, or lies on several devices.
    """

    def __init__(self, parameters: list[Any], mine: Any):
        self._parameters, self._seen = parameters, changes.count
        arrays = [
            p.store.peek() if h.array is None else h.array for p in parameters for h in [p.store.holder]
        ]
        self._sharding, self._committed = arrays[0].sharding, arrays[0].committed
        alike = all(same_place(arrays[0], x) for x in arrays)
        here = alike and isinstance(self._sharding, SingleDeviceSharding)
        self.stowage = _stowage(parameters) if here and all(p in mine for p in parameters) else None
        self._places = {} if self.stowage is None else dict(zip(parameters, self.stowage.places, strict=True))
        self._spent: Spent | None = None

    def fits(self, parameters: list[Any]) -> bool:
        """Return whether this is where the gradients of these Parameters go, as they lie now."""
        return self._seen == changes.count and self._parameters == parameters

    def take(self) -> list[Any]:
        """Return the arrays to donate: the last ones, or others in place of what somebody has."""
        if self.stowage is None:
            return []
        last, spent = [None] * len(self.stowage.kinds), self._spent
        if spent is not None and (spent.pairs is None or spent.pairs() is None):
            last = [None if at in spent.handed else x for at, x in enumerate(spent.arrays)]
        kinds = zip(last, self.stowage.kinds, strict=True)
        return [None if kind is None else self._zeros(*kind) if x is None else x for x, kind in kinds]

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Return an array to write into, bound to its device as the last ones are."""
        zeros = jnp.zeros(shape, dtype)
        return jax.device_put(zeros, self._sharding) if self._committed else zeros

    def keep(self, left: list[Any]) -> list[Any]:
        """Hold what the program returned, and return per Parameter what has its gradient."""
        if self.stowage is None:
            return left
        self._spent = Spent(self._places, self.stowage, left)
        return [self._spent] * len(self._parameters)


class LazyPairs(Sequence[tuple[Any, Any]]):
    """[(Parameter, gradient), ...] of a `minimize`; a gradient is fetched when it is looked at."""

    def __init__(self, parameters: Sequence[Any], spent: Spent):
        self._parameters, self._spent = parameters, spent

    def __len__(self) -> int:
        return len(self._parameters)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[Any, Any]]: ...
    def __getitem__(self, at: Any) -> Any:
        """Return a pair, or a list of some."""
        chosen = self._parameters[at]
        if isinstance(at, slice):
            return [(p, self._spent.read(p)) for p in chosen]
        return chosen, self._spent.read(chosen)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self[:])

    def __add__(self, other: Any) -> list[Any]:
        return self[:] + list(other)

    def __radd__(self, other: Any) -> list[Any]:
        return list(other) + self[:]

    def __eq__(self, other: Any) -> bool:
        return self[:] == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return repr(self[:])

    def __reduce__(self) -> Any:
        return list, (self[:],)


def pairs(parameters: list[Any]) -> Sequence[tuple[Any, Any]]:
    """Return (Parameter, gradient) of Parameters that one `minimize` has stepped, for whoever looks at them.

    As long as somebody has them the gradients stay where they are.
    """
    spent = parameters[0].spent
    if type(spent) is not Spent:
        return [(p, p.peek_grad()) for p in parameters]
    found = LazyPairs(parameters, spent)
    spent.pairs = ref(found)
    return found
