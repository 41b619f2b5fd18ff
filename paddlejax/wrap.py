"""What every transformation around another checks: what it wraps, its own state, and the parameters."""

from typing import Any

from .hyper import Must, given


def is_transformation(x: Any) -> bool:
    """Whether this is an (init, update) pair, ours or optax's."""
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))


PAIR = Must(is_transformation, "an (init, update) pair such as adam(0.001)")
OPTIMIZER = given("an optimizer"), PAIR  # where Paddle takes None for missing


def check_params(owner: str, params: Any) -> None:
    """Refuse None for the parameters, in an update that needs them."""
    if params is None:
        raise ValueError(f"{owner} needs the parameters: update(grads, state, params)")


def check_state(owner: str, state: Any, kind: type) -> None:
    """Refuse a state of another type than the owner's init makes."""
    if not isinstance(state, kind):
        expected = f"the {kind.__name__} that its init made"
        raise TypeError(f"{owner}'s state: found {type(state).__name__}, expected {expected}")
