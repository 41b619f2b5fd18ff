"""The rate in force: where it lives, how it is handed in, read and replaced.

A Python or numpy number lives in the state of a rule. A schedule or a jax array, traced or not, is handed in
with every update, and acts there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .array_types import ArrayTree, Numeric
from .hyper import MAGNITUDE, number, verify
from .trees import as_array, beside


class RuleState(NamedTuple):
    """The state of a lifted rule; the names in `shared` and `slots` are Paddle's accumulator names."""

    count: jax.Array  # () int32, updates made; it stays at the largest  # type: ignore[assignment]
    learning_rate: jax.Array  # () float32 (float64 beside float64 parameters), the rate in force
    shared: dict[str, jax.Array]  # {name: ()}, scalars common to all tensors, such as beta1_pow_acc
    slots: dict[str, Any]  # {name: tree shaped like the parameters}


class HandedState(RuleState):
    """The state of a rule whose rate is a jax array that is handed in: the same, but the field is `rate`.

    Whoever hands the rate in, such as optax.inject_hyperparams, keeps it under its name `learning_rate`.
    `optax.tree_utils.tree_get` refuses a state in which a name stands twice.
    """

    _fields = ("count", "rate", "shared", "slots")  # type: ignore[assignment]
    rate = RuleState.learning_rate

    def __new__(cls, count: Any, rate: Any, shared: Any, slots: Any) -> "HandedState":
        return tuple.__new__(cls, (count, rate, shared, slots))

    def _replace(self, **changes: Any) -> "HandedState":  # pyright: ignore
        if "rate" in changes:
            changes["learning_rate"] = changes.pop("rate")
        return super()._replace(**changes)


def is_handed_in(learning_rate: Any) -> bool:
    """Return whether this rate acts at every update, not only at `init`."""
    return callable(learning_rate) or isinstance(learning_rate, jax.Array)


def state_type(learning_rate: Any) -> Callable[..., RuleState]:
    """Return the type of the state of a rule with this rate."""
    return HandedState if isinstance(learning_rate, jax.Array) else RuleState


def rate_at(owner: str, learning_rate: Any, count: jax.Array) -> Any:
    """Return the rate of the step that is made after `count` others, from what the owner was given."""
    if not callable(learning_rate):
        return learning_rate
    with jax.numpy_dtype_promotion("standard"):  # a schedule may mix the int count with floats
        rate = learning_rate(count)
    what = f"what {owner}'s learning_rate schedule returned"
    number(what, rate)
    refuse_rate(what, rate)
    return rate


ROUNDING = 1e-6  # a schedule that ends at 0 may miss it by so much


def refuse_rate(what: str, rate: Any) -> None:
    """Raise if the rate that a schedule gave is known, and is negative or not finite."""
    if isinstance(rate, jax.Array) and (isinstance(rate, Tracer) or not rate.is_fully_addressable):
        return
    if not -ROUNDING <= float(rate) < float("inf"):
        verify(MAGNITUDE, what, float(rate))


def rate_in_force(owner: str, learning_rate: Any, state: RuleState) -> jax.Array:
    """Return the rate of the step that is made from this state: what is handed in, else the state's own."""
    own = state.learning_rate
    if not hasattr(own, "dtype"):  # someone wrote a Python number there
        own = jnp.asarray(own, jnp.float32)
    if not is_handed_in(learning_rate):
        return own
    return jnp.asarray(rate_at(owner, learning_rate, state.count), own.dtype)


def set_learning_rate(state: ArrayTree, learning_rate: Numeric) -> Any:
    """The same state with another rate in every rule inside it; nothing is traced anew.

    It acts where the rate is a number: `adam(0.1)`. A rule that was given a schedule or a jax array, traced
    or not, takes its rate from there and overrides this at the next update. A state keeps its rate whatever
    number a rule is given: with a state of `adam(0.1)`, `adam(0.01).update` steps at 0.1 until this replaces
    it. Under optax.inject_hyperparams it also writes `hyperparams["learning_rate"]`, which acts there.

    `learning_rate` is a finite number of at least 0, or an array () or of the shape of the state's rate, as
    under `vmap`; ValueError or TypeError for anything else, TypeError if no rule is inside the state.

    >>> tx = chain(clip_by_value(1.0), sgd(0.1))
    >>> state = set_learning_rate(tx.init(jnp.zeros(2)), 0.01)
    >>> print(get_learning_rate(state))
    0.01
    """
    real = isinstance(learning_rate, jax.Array | np.ndarray) and any(
        jnp.issubdtype(learning_rate.dtype, kind) for kind in (jnp.floating, jnp.integer)
    )
    if not real:
        number("learning_rate", learning_rate)
    verify(MAGNITUDE, "learning_rate", learning_rate)

    def replaced(old: Any) -> Any:
        shape, found = jnp.shape(old), jnp.shape(learning_rate)
        if found not in ((), shape):
            raise ValueError(f"learning_rate: found shape {found}, expected () or the state's {shape}")
        dtype = jnp.result_type(old)
        known = isinstance(learning_rate, int | float)
        rate = as_array(dtype.type(learning_rate)) if known else jnp.array(learning_rate, dtype)
        # In one of several processes the old one may be elsewhere: there each has a rate of its own.
        rate = beside([old], rate) if jax.process_count() == 1 else rate
        return jnp.broadcast_to(rate, shape) if found != shape else rate

    def replace(s: Any) -> Any:
        if isinstance(s, RuleState):
            return s._replace(learning_rate=replaced(s.learning_rate))
        if _injects(s):
            written = {**s.hyperparams, "learning_rate": replaced(s.hyperparams["learning_rate"])}
            return s._replace(
                hyperparams=written, inner_state=set_learning_rate(s.inner_state, learning_rate)
            )
        return s

    _rates(state)
    return jax.tree.map(replace, state, is_leaf=_has_rate)


def get_learning_rate(state: ArrayTree) -> jax.Array:
    """The rate of the rules inside a state: () float32, what the last update used (or the first will).

    Under optax.inject_hyperparams it is what stands in `hyperparams["learning_rate"]`.

    >>> print(get_learning_rate(adam(0.01).init(jnp.zeros(2))))
    0.01
    """
    rates = _rates(state)
    concrete = not any(isinstance(r, Tracer) for r in rates)
    if len(rates) > 1 and concrete and len({np.asarray(r).tobytes() for r in rates}) > 1:
        raise ValueError(f"the rules in this state have different rates: {', '.join(map(str, rates))}")
    return rates[0]


def _injects(s: Any) -> bool:
    """Return whether this is a state of optax.inject_hyperparams that hands a rate to a rule of ours."""
    hyperparams = getattr(s, "hyperparams", None)
    return isinstance(hyperparams, dict) and "learning_rate" in hyperparams and bool(_found(s.inner_state))


def _has_rate(s: Any) -> bool:
    return isinstance(s, RuleState) or _injects(s)


def _found(state: Any) -> list[Any]:
    """Return what has a rate inside this state: states of rules, and what hands a rate to one."""
    return [s for s in jax.tree.leaves(state, is_leaf=_has_rate) if _has_rate(s)]


def _rates(state: Any) -> list[Any]:
    """Return all rates inside this state, or raise if there are none."""
    found = _found(state)
    if not found:
        raise TypeError(
            f"no learning rate in this state: found {type(state).__name__}, expected a RuleState inside it"
        )
    return [s.learning_rate if isinstance(s, RuleState) else s.hyperparams["learning_rate"] for s in found]
