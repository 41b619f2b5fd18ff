"""A state of another library on its way into ours: by our accumulators, and by name."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..checkpoint.optimizers import load_optimizer
from ..checkpoint.states import POWERS, State
from ..hyper import whole
from ..lifting import accumulators
from ..optimizer.ledger import StateDictError
from ..optimizer.optimizer import Optimizer
from ..rates import RuleState
from ..trees import is_narrow

# What has a counterpart, by its slots: Adam, AdamW and Lamb; amsgrad; Momentum; RMSProp; Adagrad; SGD.
KINDS = [
    ({"moment1", "moment2"}, set(POWERS)),
    ({"moment1", "moment2", "moment2_max"}, set(POWERS)),
    ({"velocity"}, set()),
    ({"momentum", "mean_square", "mean_grad"}, set()),
    ({"moment"}, set()),
    ({"velocity"}, {"begun"}),  # with a dampening
    ({"moment"}, {"steps"}),  # with lr_decay
    (set(), set()),
]
AFRESH = ("momentum", "mean_grad")  # of RMSProp: others keep them only where they are used
UPDATES = whole(0, 2**31)


class Moved(NamedTuple):
    """What another library's state holds, in our words."""

    slots: dict[str, dict[str, Any]]  # accumulator -> parameter -> array
    counts: dict[str, int]  # parameter -> updates made, where that is known
    place: int | None  # the argument of a schedule at the next step, if it is known


def rules_of(state: Any, where: str) -> list[RuleState]:
    """The states of rules inside a state; refuse it if there is none, or one without a counterpart."""
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, RuleState))
    rules = [part for part in parts if isinstance(part, RuleState)]
    if not rules:
        found = f"found {type(state).__name__} without a rule's state in it"
        raise TypeError(f"{where}: {found}, expected what tx.init(params) made, and updates")
    for rule in rules:
        check_kind(rule, where)
    return rules


def check_kind(source: Any, where: str) -> None:
    """Refuse a rule, or a state of one, that has no counterpart in other libraries."""
    slots, shared = accumulators(source)
    if (slots, shared) not in KINDS:
        found = f"found a rule with {', '.join(sorted(slots | shared))}"
        expected = "expected Adam, AdamW, Lamb, Momentum, RMSProp, Adagrad or SGD"
        raise TypeError(f"{where}: {found}, {expected}")


class Place(NamedTuple):
    """Where our side keeps a number or an array of one parameter, as an entry of Paddle's."""

    key: str
    accumulator: str
    parameter: str
    shape: tuple[int, ...]
    dtype: Any
    start: Any  # what a scalar began with, of a power the beta; None for a slot


def parameters_of(target: Any) -> list[str]:
    """The names of the parameters of an optimizer object or of a functional state."""
    if isinstance(target, Optimizer):
        return [p.name for p in target.parameter_list]
    rules_of(target, "state")
    return State(target).parameters


def filled(target: Any, moved: Moved, strict: bool) -> Any:
    """The target with what was moved; an object takes it over. Or one error, and nothing is changed."""
    entries: dict[str, Any] = {}
    left = {(slot, name): x for slot, by_name in moved.slots.items() for name, x in by_name.items()}
    known = {name for by_name in moved.slots.values() for name in by_name}
    for place in _places(target):
        if place.start is not None:
            count = moved.counts.get(place.parameter)
            value: Any = {"begun": int(place.parameter in known), "steps": count}.get(place.accumulator)
            if place.accumulator in POWERS and count is not None:
                value = float(place.start) ** (count + 1)
            if value is not None:
                entries[place.key] = np.full(place.shape, value, place.dtype)
            continue
        found = left.pop((place.accumulator, place.parameter), None)
        if found is not None:
            entries[place.key] = np.asarray(found).astype(place.dtype) if _is_real(found) else found
        elif place.accumulator in AFRESH and place.parameter in known:
            entries[place.key] = np.zeros(place.shape, place.dtype)
    entries |= {f"{name}_{slot}_0": x for (slot, name), x in left.items()}
    entries |= _kept(target, moved.place)
    return load_optimizer(target, entries, strict=strict)


def _places(target: Any) -> Iterator[Place]:
    if isinstance(target, Optimizer):
        for p, rule, owner in zip(target.parameter_list, target.rules, target.owners(), strict=True):
            check_kind(rule, "state")
            dtype = np.float64 if p.dtype == np.float64 else np.float32
            for name in rule.slots:
                yield Place(f"{owner}_{name}_0", name, p.name, p.shape, dtype, None)
            for name, beta in rule.shared().items():
                own = np.int64 if isinstance(beta, int) else dtype
                yield Place(f"{owner}_{name}_0", name, p.name, (1,), own, beta)
        return
    stepped = max(int(rule.count) for rule in rules_of(target, "state"))
    state = State(target)
    for leaf in state.leaves:
        if leaf.key in POWERS and stepped:
            found = f"found one after {stepped} updates"
            raise ValueError(f"state: {found}, expected tx.init(params), whose powers of beta tell the betas")
        if leaf.kind in ("slot", "shared"):
            start = leaf.value if leaf.kind == "shared" else None
            for name, f in state.fields(leaf).items():
                yield Place(f.key, leaf.key, name, f.shape, f.dtype, start)  # type: ignore[attr-defined]


def _kept(target: Any, place: int | None) -> dict[str, Any]:
    """The entries that say what stays as it is in the target: masters, an object's scheduler."""
    if isinstance(target, Optimizer):
        kept = {k: x for k, x in target.state_dict().items() if k == "LR_Scheduler"}
        masters = target.masters
        if masters is None:
            return kept
        narrow = [p for p in target.parameter_list if is_narrow(p.value)]
        return kept | {
            "master_weights": {p.name: np.asarray(masters.get(p, p.value), np.float32) for p in narrow}
        }
    masters = {leaf.members[0]: leaf.value for leaf in State(target).leaves if leaf.kind == "master"}
    kept = {"master_weights": masters} if masters else {}
    return kept | ({} if place is None else {"LR_Scheduler": {"last_epoch": place}})


def _is_real(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and jax.numpy.issubdtype(x.dtype, jax.numpy.floating)


def refuse_all(problems: list[str], hint: str = "") -> None:
    """Raise one error with all that was found wrong, if anything was."""
    if problems:
        listed = "\n  ".join(problems)
        raise StateDictError(f"the state does not fit, and nothing was changed:\n  {listed}{hint}")


def common_count(found: Mapping[str, int], what: str) -> int | None:
    """The one count that all of these have, None if there are none; an error if they differ."""
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{where}: {count}" for where, count in found.items())
        refuse_all([f"{what} differ ({listed}), expected one for all"])
    return next(iter(found.values()), None)
