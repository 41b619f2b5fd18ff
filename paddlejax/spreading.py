"""What one that spreads its work over devices puts in force for the transformations inside it."""

from collections.abc import Callable
from typing import Any

from .tracing import InForce

# Makes updates whole on every device. Who takes a branch calls it where a step is made, so that the branches
# without a step send nothing.
whole_updates = InForce()

# (matrices, coefficients, steps, epsilon, dtype) -> matrices: stands in for the iteration of `orthogonal`.
iterate = InForce()

# Runs the steps of many tensors whose matrices are to be iterated together: see `together`.
all_at_once = InForce()


def delivered(updates: Any) -> Any:
    """Return the updates, whole on every device if somebody asked for that."""
    return updates if whole_updates.value is None else whole_updates.value(updates)


def together(run: Callable[[], Any]) -> Any:
    """Return what `run` returns; its matrices are dealt out to devices if somebody asked for that."""
    return run() if all_at_once.value is None else all_at_once.value(run)
