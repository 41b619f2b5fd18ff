"""States of optax from ours and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import GetAttrKey, tree_flatten_with_path, tree_map_with_path

from ..accumulate import AccumulateState
from ..array_types import ArrayTree
from ..checkpoint.names import checked_names
from ..checkpoint.states import POWERS
from ..hyper import optional, verify
from ..optimizer.ledger import ArrayField, Entries, Misfit
from ..optimizer.optimizer import Optimizer
from ..rates import RuleState, set_learning_rate
from ..tracing import check_outside
from ..trees import path_name
from .states import UPDATES, Moved, common_count, filled, refuse_all, rules_of

COUNT, PLACE, EMPTY, LEFT, RATE = "updates", "place in a schedule", "empty", "left as it is", "rates"
# What optax's states are: per field our accumulator, or what else it is. What is not listed holds other
# states. Types are known by name, so that optax need not be there.
KNOWN: dict[str, dict[str, str]] = {
    "ScaleByAdamState": {"count": COUNT, "mu": "moment1", "nu": "moment2"},
    "TraceState": {"trace": "velocity"},  # or RMSProp's momentum, with the other sign
    "ScaleByRmsState": {"nu": "mean_square"},
    "ScaleByRStdDevState": {"mu": "mean_grad", "nu": "mean_square"},
    "ScaleByRssState": {"sum_of_squares": "moment"},
    "ScaleByScheduleState": {"count": PLACE},
    "WrappedScheduleState": {"count": PLACE},
    "InjectHyperparamsState": {"count": PLACE, "hyperparams": RATE},
    "InjectStatefulHyperparamsState": {"count": PLACE, "hyperparams": RATE},
    "MultiStepsState": {"gradient_step": PLACE, "mini_step": EMPTY, "acc_grads": LEFT, "skip_state": LEFT},
    "ApplyIfFiniteState": dict.fromkeys(("notfinite_count", "last_finite", "total_notfinite"), LEFT),
}
REFUSED = {
    "ScaleByAmsgradState": "it keeps the maximum of the corrected second moment, amsgrad here that of the "
    "uncorrected one",
    "ScaleByRmsWithCountState": "RMSProp corrects no bias here: bias_correction=False is the same",
    "ScaleByRStdDevWithCountState": "RMSProp corrects no bias here: bias_correction=False is the same",
}
AMSGRAD = "ScaleByAmsgradState"
ROLES = {COUNT, PLACE, EMPTY, LEFT, RATE}
ACCUMULATORS = {role for fields in KNOWN.values() for role in fields.values()} - ROLES


def to_optax(state: ArrayTree, opt_state: ArrayTree) -> Any:
    """The state of an optimizer of optax that goes on where ours is.

    `state` is what `update` of a transformation returned; `opt_state` what optax's `tx.init(params)` made, of
    the same parameters. Returned is a new state of its structure, dtypes and shardings; neither argument
    changes.

        adam, adamw, lamb     mu = moment1, nu = moment2, count     ScaleByAdamState
        momentum              trace = velocity                      TraceState
        rmsprop               nu = mean_square, mu = mean_grad      ScaleByRmsState, ScaleByRStdDevState
                              trace = -momentum                     TraceState behind the rate
        adagrad               sum_of_squares = moment               ScaleByRssState
        sgd                   only counts

    These are found anywhere: in chain, masked, multi_transform, inject_hyperparams, apply_if_finite,
    MultiSteps. Every count of a schedule becomes the number of updates made, so no schedule starts again; a
    learning_rate among injected hyperparameters becomes the rate in force. An object's state goes by way of a
    functional one: `checkpoint.load_optimizer(tx.init(params), opt.state_dict())`.

    Whatever is missing, unexpected or misshapen is in one StateDictError. TypeError for a rule or a state
    that has no counterpart: optax.amsgrad keeps the maximum of corrected moments. What stands around rules
    stays behind, such as masters and averages; so does RMSProp's momentum where optax has no trace. A
    state tells nothing of hyperparameters: give both sides the same. Two of optax's differ here: adagrad has
    its epsilon inside the root, so it is near only, and a trace on either side holds the rates of its past.

    >>> import optax
    >>> params, grads = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    >>> ours = adam(0.1)
    >>> _, state = ours.update(grads, ours.init(params), params)
    >>> there = interop.to_optax(state, optax.adam(0.1).init(params))
    >>> print(there[0].count, there[0].mu["w"])
    1 [0.1 0.1]
    """
    check_outside("to_optax", "call it outside")
    rules = rules_of(state, "state")
    _check_empty(state, AccumulateState, "count", "state", "gradients that accumulate_gradients has gathered")
    count = common_count({f"rule {i}": int(r.count) for i, r in enumerate(rules)}, "the counts of updates")
    arrays: dict[str, Any] = {}
    heavy_ball: set[str] = set()  # RMSProp's
    for rule in rules:
        if rule.shared.keys() - {*POWERS}:
            raise TypeError("state: found a dampening or an lr_decay, which optax has not")
        if "moment2_max" in rule.slots:
            raise TypeError(f"state: found amsgrad's moment2_max; for optax.amsgrad {REFUSED[AMSGRAD]}")
        for slot, tree in rule.slots.items():
            named = {f"{slot} of {parameter}": x for parameter, x in _named(tree).items()}
            if slot == "momentum":
                named = {f"velocity{key.removeprefix(slot)}": -x for key, x in named.items()}
                heavy_ball |= named.keys()
            if again := sorted(arrays.keys() & named):
                raise ValueError(f"state: found two rules with {', '.join(again)}, expected one")
            arrays |= named
    roles = _roles(opt_state, "opt_state")
    entries = Entries(arrays, counters=False)

    def value(role: str, x: Any) -> Any:
        if role in (COUNT, PLACE):
            return jnp.array(count, jnp.result_type(x))
        if role == RATE:
            return _with_rate(x, rules)
        return _read(entries, role, x) if role in ACCUMULATORS else x

    new = _replaced(opt_state, value)
    unused = () if "velocity" in roles else heavy_ball
    still = [k for k, x in entries.rest.items() if k.startswith("mean_grad of ") and not jnp.any(x)]
    entries.drop(*unused, *still)
    refuse_all(entries.found_wrong())
    return new


def from_optax(
    opt_state: ArrayTree,
    state: Any,
    names: Mapping[str, str] | None = None,
    *,
    count: int | None = None,
    strict: bool = True,
) -> Any:
    """The state of one of our optimizers that goes on where an optimizer of optax is.

    `opt_state` is what optax's `update` returned; `state` what `tx.init(params)` of ours made, of the same
    parameters, which stays as it is: the new state is returned. Or `state` is an object, such as
    `optimizer.Adam(...)`, which takes it over (None is returned). `names` says what parameters are called
    here where the paths of the trees, or the names of Parameters, differ: {optax's path: ours}. The table of
    `to_optax` holds from right to left, with

        beta1_pow_acc = β₁^(count+1),  beta2_pow_acc = β₂^(count+1)

    of the betas of `state`. Its count, the place in its schedule, becomes that of optax's schedules, or of
    Adam where there are none. optax.sgd and optax.rmsprop with a constant rate keep no count: say in `count`
    how many updates were made, or a schedule of ours starts again. An injected learning_rate becomes the rate
    in force; the scheduler of an object stays where it is.

    Whatever is missing, unexpected or misshapen is in one StateDictError, and nothing is changed; with
    strict=False a parameter of which there is nothing keeps what it has, as those that optax masks. TypeError
    for a rule or a state that has no counterpart, ValueError between two steps of MultiSteps, whose gradients
    would be lost. In torch's words see `from_torch`.

    >>> import optax
    >>> params, grads = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    >>> theirs = optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=0.9)
    >>> _, there = theirs.update(grads, theirs.init(params), params)
    >>> state = interop.from_optax(there, momentum(0.1).init(params))
    >>> print(state.count, state.slots["velocity"]["w"])
    1 [1. 1.]
    """
    check_outside("from_optax", "call it outside")
    verify(optional(*UPDATES), "count", count)
    roles = _roles(opt_state, "opt_state")
    for where, x in roles.get(EMPTY, ()):
        if int(x):
            raise ValueError(
                f"opt_state: found {int(x)} gradients gathered in {where}, expected none: step first"
            )
    given = checked_names(names)
    found = {name for role in ACCUMULATORS & roles.keys() for _, x in roles[role] for name in _named(x)}
    if unknown := sorted(given.keys() - found):
        expected = f"expected some of {', '.join(sorted(found)) or 'none: the state has no accumulators'}"
        raise ValueError(f"names: found {', '.join(unknown)}, {expected}")

    def named(tree: Any) -> dict[str, Any]:
        return {given.get(name, name): x for name, x in _named(tree).items()}

    slots: dict[str, dict[str, Any]] = {}
    stepped: dict[str, int] = {}
    for role in ACCUMULATORS & roles.keys():
        for where, x in roles[role]:
            own = named(x)
            if again := sorted(slots.get(role, {}).keys() & own):
                raise ValueError(f"opt_state: found {where} and another one for {', '.join(again)}")
            slots.setdefault(role, {}).update(own)
    for _, adam in roles.get("ScaleByAdamState", ()):
        stepped |= dict.fromkeys(named(adam.mu), int(adam.count))
    for name in slots.get("velocity", {}).keys() & slots.get("mean_square", {}):
        slots.setdefault("momentum", {})[name] = -slots["velocity"].pop(name)
    places = {where: int(x) for where, x in roles.get(PLACE, ())}
    place = common_count(places, "the counts of schedules")
    if place is None:
        place = max(stepped.values(), default=None)
    new = filled(state, Moved(slots, stepped, place if count is None else count), strict)
    rates = [x["learning_rate"] for _, x in roles.get(RATE, ()) if "learning_rate" in x]
    if len(rates) == 1 and not isinstance(state, Optimizer):
        new = set_learning_rate(new, rates[0])
    return new


def _is_known(x: Any) -> bool:
    return isinstance(x, tuple) and type(x).__name__ in KNOWN.keys() | REFUSED.keys()


def _is_other(x: Any) -> bool:
    """Whether this is a NamedTuple that has contents of its own, and not only other states."""
    if not _is_state(x):
        return False
    return not all(map(_is_state, jax.tree.leaves(x, is_leaf=lambda y: y is not x and _is_state(y))))


def _is_state(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _roles(opt_state: Any, where: str) -> dict[str, list[tuple[str, Any]]]:
    """What is in a state of optax, by role and by type, each with its place; refuse what has no
    counterpart."""
    roles: dict[str, list[tuple[str, Any]]] = {}
    unknown: list[str] = []

    def visit(node: Any, at: tuple[Any, ...]) -> None:
        for path, part in tree_flatten_with_path(node, is_leaf=lambda x: _is_known(x) or _is_other(x))[0]:
            place, kind = (*at, *path), type(part).__name__
            if not _is_known(part):
                unknown.append(f"{kind} at {path_name(place) if place else 'the root'}")
            elif kind in REFUSED:
                raise TypeError(f"{where}: at {path_name(place)}: found {kind}: {REFUSED[kind]}")
            else:
                roles.setdefault(kind, []).append((path_name(place), part))
                for field in part._fields:
                    x, inner = getattr(part, field), (*place, GetAttrKey(field))
                    if (role := KNOWN[kind].get(field)) is None:
                        visit(x, inner)
                    else:
                        roles.setdefault(role, []).append((path_name(inner), x))

    visit(opt_state, ())
    if any(isinstance(x, RuleState) for x in _parts(opt_state, RuleState)):
        raise TypeError(f"{where}: found a state of paddlejax, expected one of optax")
    if unknown:
        found = f"found {', '.join(unknown)}, of which there is no counterpart here"
        raise TypeError(f"{where}: {found}; expected states of {', '.join(sorted(KNOWN))}")
    return roles


def _replaced(opt_state: Any, new: Callable[[str, Any], Any]) -> Any:
    """The state of optax with other contents by role."""

    def replace(part: Any) -> Any:
        known = KNOWN[type(part).__name__]
        return part._replace(
            **{
                field: new(known[field], x) if field in known else _replaced(x, new)
                for field, x in zip(part._fields, part, strict=True)
            }
        )

    return jax.tree.map(lambda x: replace(x) if _is_known(x) else x, opt_state, is_leaf=_is_known)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters by name, as checkpoints call them."""
    return {path_name(path) if path else "param": x for path, x in tree_flatten_with_path(tree)[0]}


class _Filling(ArrayField):
    """An array of the shape that optax has, in optax's dtype."""

    def read(self, value: Any, name: str) -> Any:
        """Return a copy in the dtype of this field."""
        if jnp.shape(value) != self.shape:
            raise Misfit(f"misshapen: {name} has shape {jnp.shape(value)}, expected {self.shape}")
        return jnp.array(value, self.dtype)


def _read(entries: Entries, slot: str, tree: Any) -> Any:
    """A tree of optax's with our arrays of this accumulator; what does not fit is noted in the entries."""

    def one(path: Any, x: Any) -> Any:
        name = path_name(path) if path else "param"
        found = entries.read(_Filling(f"{slot} of {name}", jnp.shape(x), jnp.result_type(x)))
        sharded = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)
        return jax.device_put(found, x.sharding) if sharded and found is not None else found

    return tree_map_with_path(one, tree)


def _with_rate(hyperparams: Mapping[str, Any], rules: list[RuleState]) -> dict[str, Any]:
    """Injected hyperparameters with the rate in force, if there is one for all."""
    old, rates = hyperparams.get("learning_rate"), {float(rule.learning_rate) for rule in rules}
    if old is None or len(rates) != 1:
        return dict(hyperparams)
    return {**hyperparams, "learning_rate": jnp.array(next(iter(rates)), jnp.result_type(old))}


def _parts(state: Any, kind: type) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))


def _check_empty(state: Any, kind: type, field: str, where: str, what: str) -> None:
    """Refuse a state in the middle of an accumulation."""
    for part in _parts(state, kind):
        if isinstance(part, kind) and int(getattr(part, field)):
            raise ValueError(f"{where}: found {int(getattr(part, field))} {what}, expected none: step first")
