"""Functional states as Paddle's entries: what every leaf of a state is called in a file."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import GetAttrKey, tree_flatten_with_path

from ..hyper import ArgumentError
from ..master import MasterState
from ..optimizer.ledger import ArrayField, Entries, Field, NumberField, SharedField, written
from ..rates import RuleState
from ..trees import path_name
from .accumulators import full_shape
from .folders.placing import Kept, all_placed
from .names import MASTER, OURS, check_needed, chosen, owners, proposal, renamed
from .translate import free_powers, place_of

ARRAYS = (int, float, complex, np.generic, np.ndarray, jax.Array)
POWERS = ("beta1_pow_acc", "beta2_pow_acc")  # which start at beta


class Leaf(NamedTuple):
    """A leaf of a state and what it is filed under."""

    kind: str  # "slot", "shared", "master"; "own" or "number" for arrays and scalars Paddle has no place for
    key: str  # the accumulator; a key of our own
    rule: int  # which RuleState of the state
    members: tuple[str, ...]  # the parameters it belongs to
    value: Any
    full: bool = False  # whether Paddle stores it once per element


class State:
    """A functional state laid out by name."""

    def __init__(self, state: Any, params: Any = None, name: str | None = None, abstract: bool = False):
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
        if not any(leaf.rule == 0 for leaf in self.leaves):
            found = type(state).__name__
            raise TypeError(
                f"the state: found {found} without a rule's state in it, expected tx.init(params)"
            )
        for leaf in self.leaves:
            kinds = (*ARRAYS, jax.ShapeDtypeStruct) if abstract else ARRAYS
            if isinstance(leaf.value, Tracer) or not isinstance(leaf.value, kinds):
                place = " of ".join((leaf.key or leaf.kind, *leaf.members[: leaf.kind != "number"]))
                found = f"{place} is a {type(leaf.value).__name__}"
                raise TypeError(f"the state: {found}, expected an array with contents, outside of jax.jit")
        if self._given is not None and (unknown := [n for n in self._shapes if n not in self._given]):
            raise ArgumentError(f"params: found no {', '.join(unknown)}, of which the state has accumulators")
        slots = (leaf for leaf in self.leaves if leaf.kind == "slot")
        counts = Counter(field.key for leaf in slots for field in self.fields(leaf).values())
        if twice := sorted(key for key, times in counts.items() if times > 1):
            raise ArgumentError(f"the state: found two rules with {', '.join(twice)}, expected one")

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters: those of the given parameters, else of the leaves of the state."""
        return list(self._given or self._shapes)

    def masters(self) -> dict[str, bool]:
        """Of each parameter, whether this state has a master of it."""
        return {name: name in self._narrow for name in self.parameters}

    def arrays(self) -> list[Any]:
        """What a file of this state has, by shape and dtype: what parameters share, once with each."""
        fields = [field for leaf in self.leaves for field in self.fields(leaf).values()]
        return [jax.ShapeDtypeStruct(f.shape, f.dtype) for f in fields if isinstance(f, ArrayField)]

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
                kind = "own" if getattr(part, "ndim", 0) else "number"
                self.leaves.append(Leaf(kind, f"state/{path_name(at)}", -1, (), part))

    def _visit_rule(self, state: RuleState, number: int) -> None:
        """Note the shapes, dtypes and members of one RuleState inside the state."""
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
        self.leaves += [Leaf("number", f"{number}/{k}", number, members, x) for k, x in own]
        full = full_shape(state)
        self.leaves += [
            Leaf("shared", k, number, members, x, k in full) for k, x in sorted(state.shared.items())
        ]
        self.leaves += [Leaf("slot", k, number, (name,), x) for k, name, x in slots]

    def fields(self, leaf: Leaf, absent: Iterable[str] = ()) -> dict[str, Field]:
        """What a leaf is in a file, one field for each of its parameters; what is `absent` may be."""
        shape, dtype = jnp.shape(leaf.value), jnp.result_type(leaf.value)
        if leaf.kind == "own":
            return {"": Kept(f"{OURS}@{leaf.key}", shape, dtype)}
        if leaf.kind == "number":
            return {"": _number(leaf.key, dtype)}
        fields: dict[str, Field] = {}
        for name in leaf.members:
            key = f"{name}{MASTER if name in self._narrow else ''}{self._name}_{leaf.key}_0"
            if leaf.kind == "master":
                field = Kept(name, shape, np.float32)
            elif leaf.kind == "slot":
                field = Kept(key, shape, dtype)
            else:
                own = self._shape(name) if leaf.full else (1,)
                field = SharedField.of(key, leaf.value, own, self._dtypes.get(name, dtype))
            fields[name] = replace(field, required=name not in absent)
        return fields

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter, as the slots show it or as it was given."""
        return self._shapes[name] if name in self._shapes else jnp.shape((self._given or {})[name])

    # ------------------------------------------------------------------ to a file

    def entries(self, schedule: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Paddle's entries, and what goes beside them under a key of our own."""
        found = self._written("slot", "own") | self._written("shared")  # slots first, as in Paddle
        if masters := self._written("master"):
            found["master_weights"] = masters
        if schedule is not None:
            if not callable(schedule):
                raise TypeError(f"schedule: found {schedule!r}, expected a function count -> rate")
            count = self._count(0)
            rate: Any = schedule(count)
            found["LR_Scheduler"] = {"last_epoch": count, "last_lr": float(rate)}
        return found, {"state": self._written("number")}

    def _written(self, *kinds: str) -> dict[str, Any]:
        """Return the entries of all leaves of these kinds."""
        leaves = [leaf for leaf in self.leaves if leaf.kind in kinds]
        return written((field, leaf.value) for leaf in leaves for field in self.fields(leaf).values())

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
        reader = Entries(entries if own is None else {**entries, OURS: own})
        reader.drop("LR_Scheduler", "global_step")
        parts = {
            "master": reader.part("master_weights", "master_weights of {}"),
            "number": reader.part(OURS),
        }
        absent = set() if strict else set(ours) - self._present(reader)
        rate = _last_rate(entries)
        new = [
            self._told(leaf, reader, place, rate)
            if own is None and leaf.kind in ("own", "number")
            else self._read(leaf, parts.get(leaf.kind, reader), absent)
            for leaf in self.leaves
        ]
        parts["number"].drop(*parts["number"].rest)  # of a state that had more around it
        reader.close(lambda: proposal(theirs, ours))
        values = [leaf.value for leaf in self.leaves]
        return self.structure.unflatten(all_placed(values, new))

    def _present(self, reader: Entries) -> set[str]:
        """The parameters of which there is anything in the file."""
        filed = (leaf for leaf in self.leaves if leaf.kind in ("slot", "shared"))
        return {n for leaf in filed for n, field in self.fields(leaf).items() if reader.has(field.key)}

    def _starts(self) -> dict[str, dict[str, Any]]:
        """Where the powers of every parameter start, as a fresh state has them."""
        starts: dict[str, dict[str, Any]] = {}
        for leaf in self.leaves:
            if leaf.kind == "shared" and leaf.key in POWERS and self._count(leaf.rule) == 0:
                for field in self.fields(leaf).values():
                    starts.setdefault(field.key.removesuffix(f"_{leaf.key}_0"), {})[leaf.key] = leaf.value
        return starts

    def _count(self, rule: int) -> int:
        """Return the count of updates of the RuleState with this number; -1 of an abstract one."""
        value = next(leaf.value for leaf in self.leaves if leaf.key == f"{rule}/count")
        return -1 if isinstance(value, jax.ShapeDtypeStruct) else int(value)

    def _read(self, leaf: Leaf, entries: Entries, absent: set[str]) -> Any:
        """A leaf's new value: the one that all its parameters have; what is wrong is noted."""
        values = entries.read_all(self.fields(leaf, absent))
        found = {name: x for name, x in values.items() if x is not None}
        if leaf.kind != "shared" or not found:
            return next(iter(found.values()), None)
        widest = max(found.values(), key=lambda x: x.dtype.itemsize)
        if any(x != widest.astype(x.dtype) for x in found.values()):
            several = ", ".join(f"{name}: {x:g}" for name, x in list(found.items())[:6])
            entries.problems.append(
                f"{leaf.key} differs between parameters ({several}): this state has one for all; "
                "an object such as optimizer.Adam can hold them"
            )
        return widest

    def _told(self, leaf: Leaf, reader: Entries, place: int | None, rate: float | None) -> Any:
        """The count, as far as Paddle's file tells it; nothing of what else has no place there.

        Of an abstract leaf, which has no value of its own, the file must tell: the rate is its scheduler's.
        """
        abstract, found = isinstance(leaf.value, jax.ShapeDtypeStruct), None
        if leaf.key.endswith("/count") and leaf.rule >= 0:
            found = place if place is not None else self._recovered(leaf, reader)
        elif abstract and leaf.key.endswith("/learning_rate") and leaf.rule >= 0:
            found = rate
        if abstract and found is None:
            expected = "expected a number in the template, as tx.init makes it, not a ShapeDtypeStruct"
            reader.problems.append(f"not in the file: {leaf.key}; {expected}")
        return found

    def _recovered(self, leaf: Leaf, reader: Entries) -> int | None:
        """How many times a fresh power of beta was multiplied by beta to give what the file has."""
        for power in (x for x in self.leaves if x.kind == "shared" and x.rule == leaf.rule):
            key = next((f.key for f in self.fields(power).values() if reader.has(f.key)), None)
            known = not isinstance(power.value, jax.ShapeDtypeStruct)
            if power.key in POWERS and key is not None and known and self._count(leaf.rule) == 0:
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
    """Return whether a saved count of updates is this one."""
    return isinstance(value, int) and value == place


class _Number(NumberField):
    """A scalar of a functional state, which only `save_optimizer` writes."""

    def write(self, value: Any) -> Any:
        return np.asarray(value).item()


def _number(key: str, dtype: Any) -> _Number:
    """Return the field of a scalar: bool, int or float, as its dtype says. A count is not negative."""
    if not jnp.issubdtype(dtype, jnp.integer):
        return _Number(key, bool if jnp.issubdtype(dtype, jnp.bool_) else float)
    low = 0 if key.endswith("/count") else int(jnp.iinfo(dtype).min)
    return _Number(key, int, low=low, high=int(jnp.iinfo(dtype).max))


def _named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree of parameters and what they are called."""
    named = [(path_name(path) if path else "param", x) for path, x in tree_flatten_with_path(tree)[0]]
    if twice := sorted(name for name, times in Counter(name for name, _ in named).items() if times > 1):
        raise ArgumentError(f"found two parameters called {', '.join(twice)}, expected distinct paths")
    return named


def _last_rate(entries: Mapping[Any, Any]) -> Any:
    """The rate that a file's scheduler had last, if it has one."""
    scheduler = entries.get("LR_Scheduler")
    rate = scheduler.get("last_lr") if isinstance(scheduler, Mapping) else None
    return rate if isinstance(rate, float) else None
