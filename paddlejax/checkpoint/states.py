"""Functional states as Paddle's entries: what every leaf of a state is called in a file."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.tree_util import GetAttrKey, tree_flatten_with_path

from ..hyper import ArgumentError
from ..lifting import RuleState
from ..master import MasterState
from ..optimizer.cohorts import StateDictError, raise_if
from ..optimizer.entries import Entries
from ..rules import NAdam, RAdam
from ..trees import path_name
from .names import MASTER, OURS, check_needed, chosen, owners, proposal, renamed
from .translate import free_powers, place_of

FULL_SHAPE = {*NAdam.full_shape, *RAdam.full_shape}
ARRAYS = (int, float, complex, np.generic, np.ndarray, jax.Array)
POWERS = ("beta1_pow_acc", "beta2_pow_acc")  # which start at beta


class Leaf(NamedTuple):
    """A leaf of a state and what it is filed under."""

    kind: str  # "slot", "shared", "master", or "own" for what Paddle has no place for
    key: str  # the accumulator; a key of our own
    rule: int  # which RuleState of the state
    members: tuple[str, ...]  # the parameters it belongs to
    value: Any


class State:
    """A functional state laid out by name."""

    def __init__(self, state: Any, params: Any = None, name: str | None = None):
        self.structure = jax.tree.structure(state)
        self.leaves: list[Leaf] = []
        self._given = None if params is None else _given(params)
        if not isinstance(name, str | None):
            raise TypeError(f"name: found {name!r:.80}, expected the name= of an optimizer, or None")
        self._name = f"_{name}" if name else ""
        self._narrow: set[str] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, Any] = {}  # of the parameters' accumulators
        self._rules = itertools.count()
        self._visit(state, ())
        if not any(leaf.kind == "own" and leaf.key.endswith("/count") for leaf in self.leaves):
            found = type(state).__name__
            raise TypeError(
                f"the state: found {found} without a rule's state in it, expected tx.init(params)"
            )
        for leaf in self.leaves:
            if isinstance(leaf.value, Tracer) or not isinstance(leaf.value, ARRAYS):
                place = " of ".join((leaf.key or leaf.kind, *leaf.members[: leaf.kind != "own"]))
                found = f"{place} is a {type(leaf.value).__name__}"
                raise TypeError(f"the state: {found}, expected an array with contents, outside of jax.jit")
        if self._given is not None and (unknown := [n for n in self._shapes if n not in self._given]):
            raise ArgumentError(f"params: found no {', '.join(unknown)}, of which the state has accumulators")
        keys = [key for leaf in self.leaves if leaf.kind == "slot" for key in self._keys(leaf)]
        if twice := sorted(
            {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()
        ):
            raise ArgumentError(f"the state: found two rules with {', '.join(twice)}, expected one")

    @property
    def parameters(self) -> list[str]:
        return list(self._given or self._shapes)

    # ------------------------------------------------------------------ layout

    def _visit(self, node: Any, where: tuple[Any, ...]) -> None:
        """Leaves in the order in which jax flattens them."""

        def stop(x: Any) -> bool:
            return isinstance(x, RuleState | MasterState)

        for path, part in tree_flatten_with_path(node, is_leaf=stop)[0]:
            at = (*where, *path)
            if isinstance(part, RuleState):
                self._visit_rule(part, next(self._rules))
            elif isinstance(part, MasterState):
                masters = _named(part.master)
                self._narrow |= {name for name, _ in masters}
                self._shapes |= {name: jnp.shape(m) for name, m in masters}
                self.leaves += [Leaf("master", "", -1, (name,), m) for name, m in masters]
                self._visit(part.inner, (*at, GetAttrKey("inner")))
            else:
                self.leaves.append(Leaf("own", f"state/{path_name(at)}", -1, (), part))

    def _visit_rule(self, state: RuleState, number: int) -> None:
        slots = [(k, name, x) for k, tree in sorted(state.slots.items()) for name, x in _named(tree)]
        for _, name, x in slots:
            shape = self._shapes.get(name)
            if shape is None or jnp.ndim(x) < len(shape):  # ASGD's y has one axis more
                self._shapes[name] = jnp.shape(x)
            self._dtypes.setdefault(name, jnp.result_type(x))
        members = tuple(dict.fromkeys(name for _, name, _ in slots))
        if state.shared and not state.slots:
            if self._given is None:
                counters = ", ".join(state.shared)
                raise ArgumentError(f"params: {counters} are filed under the parameters' names: give params=")
            members = tuple(self._given)
        own = (("count", state.count), ("learning_rate", state.learning_rate))
        self.leaves += [Leaf("own", f"{number}/{k}", number, members, x) for k, x in own]
        self.leaves += [Leaf("shared", k, number, members, x) for k, x in sorted(state.shared.items())]
        self.leaves += [Leaf("slot", k, number, (name,), x) for k, name, x in slots]

    def _keys(self, leaf: Leaf) -> list[str]:
        """What a leaf's entries are called, one for each of its parameters."""
        masters = [MASTER if name in self._narrow else "" for name in leaf.members]
        pairs = zip(leaf.members, masters, strict=True)
        return [f"{name}{master}{self._name}_{leaf.key}_0" for name, master in pairs]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name] if name in self._shapes else jnp.shape((self._given or {})[name])

    # ------------------------------------------------------------------ to a file

    def entries(self, schedule: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Paddle's entries, and what goes beside them under a key of our own."""
        found: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for leaf in sorted(self.leaves, key=lambda leaf: leaf.kind == "shared"):  # slots first, as in Paddle
            if leaf.kind == "slot":
                found[self._keys(leaf)[0]] = leaf.value
            elif leaf.kind == "shared":
                found |= zip(self._keys(leaf), (self._written(leaf, n) for n in leaf.members), strict=True)
            elif leaf.kind == "own" and jnp.ndim(leaf.value) == 0:
                own[leaf.key] = np.asarray(leaf.value).item()
            elif leaf.kind == "own":
                found[f"{OURS}@{leaf.key}"] = leaf.value
        if masters := {leaf.members[0]: leaf.value for leaf in self.leaves if leaf.kind == "master"}:
            found["master_weights"] = masters
        if schedule is not None:
            if not callable(schedule):
                raise TypeError(f"schedule: found {schedule!r}, expected a function count -> rate")
            count = self._count(0)
            rate: Any = schedule(count)
            found["LR_Scheduler"] = {"last_epoch": count, "last_lr": float(rate)}
        return found, {"state": own}

    def _written(self, leaf: Leaf, name: str) -> np.ndarray:
        """A shared scalar as Paddle stores it with each parameter."""
        scalar = np.asarray(leaf.value)
        if jnp.issubdtype(scalar.dtype, jnp.integer):
            return np.asarray(scalar, np.int64).reshape(1)
        dtype = self._dtypes.get(name, scalar.dtype)
        return np.full(self._shape(name) if leaf.key in FULL_SHAPE else (1,), scalar, dtype)

    # ------------------------------------------------------------------ from a file

    def load(self, entries: dict[Any, Any], extra: dict[str, Any], names: Any, strict: bool) -> Any:
        """The state that a file holds, or one error with all that does not fit."""
        filed = (leaf.key for kind in ("slot", "shared") for leaf in self.leaves if leaf.kind == kind)
        accumulators = list(dict.fromkeys(filed))
        accumulators = [*(f"{self._name[1:]}_{k}" for k in accumulators if self._name), *accumulators]
        ours = {name: self._shape(name) for name in self.parameters}
        given, theirs = chosen(names, extra, ours), owners(entries, accumulators)
        if names is not None:
            check_needed(given, theirs)
        entries = renamed(entries, given, theirs)
        theirs = owners(entries, accumulators)
        own, place = extra.get("state"), place_of(entries, whole=True)
        place = None if place is None else int(place)
        if not isinstance(own, Mapping) or place is not None and not _is_count(own.get("0/count"), place):
            # Paddle's file; its SGD hands on what it was given, which is then of an earlier step.
            own = None
            entries = {k: v for k, v in entries.items() if not str(k).startswith(f"{OURS}@")}
            free_powers(entries, self._starts())
        for schedule in ("LR_Scheduler", "global_step"):
            entries.pop(schedule, None)
        masters = entries.pop("master_weights", {})
        reader = Entries(entries)
        if not isinstance(masters, Mapping):
            reader.problems.append(f"not a dict: master_weights is {type(masters).__name__}")
        masters = Entries(masters if isinstance(masters, Mapping) else {})
        absent = set() if strict else set(ours) - self._present(reader)
        new = [self._read(leaf, reader, masters, own, place, absent) for leaf in self.leaves]
        masters.problems += [f"unexpected: {key}" for key in masters.rest]
        problems = [*(f"{problem} of master_weights" for problem in masters.problems), *reader.problems]
        try:
            raise_if([*problems, *(f"unexpected: {key}" for key in reader.rest)])
        except StateDictError as e:
            raise StateDictError(f"{e}{proposal(theirs, ours)}") from None
        return self.structure.unflatten(new)

    def _present(self, reader: Entries) -> set[str]:
        """The parameters of which there is anything in the file."""
        filed = (leaf for leaf in self.leaves if leaf.kind in ("slot", "shared"))
        pairs = ((n, key) for leaf in filed for n, key in zip(leaf.members, self._keys(leaf), strict=True))
        return {n for n, key in pairs if reader.has(key)}

    def _starts(self) -> dict[str, dict[str, Any]]:
        """Where the powers of every parameter start, as a fresh state has them."""
        starts: dict[str, dict[str, Any]] = {}
        for leaf in self.leaves:
            if leaf.kind == "shared" and leaf.key in POWERS and self._count(leaf.rule) == 0:
                for key in self._keys(leaf):
                    starts.setdefault(key.removesuffix(f"_{leaf.key}_0"), {})[leaf.key] = leaf.value
        return starts

    def _count(self, rule: int) -> int:
        return next(int(leaf.value) for leaf in self.leaves if leaf.key == f"{rule}/count")

    def _read(
        self, leaf: Leaf, reader: Entries, masters: Entries, own: Any, place: int | None, absent: set[str]
    ) -> Any:
        """A leaf's new value; what is wrong is noted."""
        if leaf.kind == "own":
            return _like(leaf.value, self._read_own(leaf, reader, own, place))
        if leaf.kind == "shared":
            return _like(leaf.value, self._read_shared(leaf, reader, absent))
        (name,) = leaf.members
        if leaf.kind == "master":
            value = masters.take(name, leaf.value.shape, np.float32, required=name not in absent)
        else:
            value = reader.take(
                self._keys(leaf)[0], leaf.value.shape, leaf.value.dtype, required=name not in absent
            )
        return _like(leaf.value, value)

    def _read_shared(self, leaf: Leaf, reader: Entries, absent: set[str]) -> Any:
        """The one value of a scalar that Paddle has once per parameter."""
        found: dict[str, np.ndarray] = {}
        counts = jnp.issubdtype(leaf.value.dtype, jnp.integer)
        for name, key in zip(leaf.members, self._keys(leaf), strict=True):
            shape = self._shape(name) if leaf.key in FULL_SHAPE else (1,)
            value = reader.take(key, shape, np.int64 if counts else self._written(leaf, name).dtype,
                                required=name not in absent)  # fmt: skip
            if value is not None and value.size:
                found[name] = np.unique(np.asarray(value))
        if not found:
            return None
        widest = max(found.values(), key=lambda x: x.dtype.itemsize)[:1]
        if any(x.size > 1 or x[0] != widest.astype(x.dtype)[0] for x in found.values()):
            several = ", ".join(f"{name}: {x[0]:g}" for name, x in list(found.items())[:6])
            reader.problems.append(
                f"{leaf.key} differs between parameters ({several}): this state has one for all; "
                "an object such as optimizer.Adam can hold them"
            )
        return widest[0]

    def _read_own(self, leaf: Leaf, reader: Entries, own: Any, place: int | None) -> Any:
        """What only `save_optimizer` writes; from Paddle's file the count, as far as it can be told."""
        if own is not None:
            if jnp.ndim(leaf.value):
                return reader.take(f"{OURS}@{leaf.key}", leaf.value.shape, leaf.value.dtype)
            value = own.get(leaf.key)
            if not isinstance(value, int | float):
                reader.problems.append(f"missing: {leaf.key}, which a state like this one would have saved")
                return None
            if wanted := _no_value(leaf, value):
                reader.problems.append(f"{leaf.key} is {value!r}, expected {wanted}")
                return None
            return value
        if not leaf.key.endswith("/count") or leaf.rule < 0:
            return None
        return place if place is not None else self._recovered(leaf, reader)

    def _recovered(self, leaf: Leaf, reader: Entries) -> int | None:
        """How many times a fresh power of beta was multiplied by beta to give what the file has."""
        for power in (x for x in self.leaves if x.kind == "shared" and x.rule == leaf.rule):
            key = next((k for k in self._keys(power) if reader.has(k)), None)
            if power.key in POWERS and key is not None and int(leaf.value) == 0:
                found, beta = np.asarray(reader.peek(key)).reshape(-1)[:1], np.asarray(power.value)
                steps = _powers(beta, found.astype(beta.dtype))
                if steps is not None:
                    return steps
        return None


def _powers(beta: np.ndarray, found: np.ndarray) -> int | None:
    """k for found = beta * beta ** k, multiplied in their dtype as an optimizer does, or None."""
    if not found.size or not found[0] >= np.finfo(found.dtype).tiny or not 0 < beta < 1:
        return None
    product, k = beta, 0
    while product > found[0]:
        product, k = product * beta, k + 1
    return k if product == found[0] else None


def _given(params: Any) -> dict[str, Any]:
    """The parameters that were given, by name."""
    named = dict(_named(params))
    for name, x in named.items():
        if not hasattr(x, "shape"):
            raise TypeError(f"params: at {name}: found {x!r:.80}, expected an array or a Parameter")
    return named


def _is_count(value: Any, place: int) -> bool:
    return isinstance(value, int) and value == place


def _no_value(leaf: Leaf, value: int | float) -> str:
    """What this leaf could be, if it cannot be that."""
    dtype = jnp.result_type(leaf.value)
    if not jnp.issubdtype(dtype, jnp.integer):
        return ""
    low, high = 0 if leaf.key.endswith("/count") else jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
    fits = isinstance(value, int) and low <= value <= high
    return "" if fits else f"an int from {low} to {high}"


def _named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree of parameters and what they are called."""
    named = [(path_name(path) if path else "param", x) for path, x in tree_flatten_with_path(tree)[0]]
    if twice := sorted(name for name, times in Counter(name for name, _ in named).items() if times > 1):
        raise ArgumentError(f"found two parameters called {', '.join(twice)}, expected distinct paths")
    return named


def _like(leaf: Any, value: Any) -> Any:
    """The value in the dtype, and on the mesh, of the leaf it replaces; the leaf if there is none."""
    if value is None:
        return leaf
    array = jnp.array(value, jnp.result_type(leaf))
    sharded = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
    return jax.device_put(array, leaf.sharding) if sharded else array
