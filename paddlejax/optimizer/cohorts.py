"""What a ModelAverage holds: sums of Parameters, and the programs that add to them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..average import ModelAverageState, model_average
from .copies import own
from .group import halves
from .programs import Watched
from .whole import in_one


@dataclass(eq=False)
class Cohort:
    """Parameters, by position, that have been averaged at the same steps."""

    members: list[int]
    state: ModelAverageState

    def split(self, present: Sequence[bool]) -> "list[Cohort]":
        """Return a cohort of those who are present and one of the others, if there are both."""
        return [Cohort(*half) for half in halves(self, present)] or [self]

    def apart(self) -> "list[Cohort]":
        """Return a cohort for every member."""
        if len(self.members) == 1:
            return [self]
        rows: list[list[Any]] = [
            [x[j : j + 1] if isinstance(x, list) else jnp.copy(x) for x in self.state]
            for j in range(len(self.members))
        ]
        return [Cohort([i], ModelAverageState(*row)) for i, row in zip(self.members, rows, strict=True)]

    def copied(self) -> "Cohort":
        """Return it with arrays of its own."""
        return Cohort(self.members, own(self.state))


# One program for all objects whose parameters have the same shapes: the numbers are data.


@functools.partial(Watched, static_argnums=(3, 4), donate_argnums=1)
@in_one
def windowed(
    values: list[list[Any]],
    states: list[ModelAverageState],
    rate: Any,
    shortest: int,
    longest: int,
    flags: Any = None,
) -> list[ModelAverageState]:
    """Return the states with the values taken in; with `flags` those that are not meant stay as they are."""
    update = model_average(rate, shortest, longest).update
    moved = [update(mine, state) for mine, state in zip(values, states, strict=True)]
    if flags is None:
        return moved
    rows = zip(flags, states, moved, strict=True)
    return [jax.tree.map(functools.partial(jnp.where, here), new, old) for here, old, new in rows]


@jax.jit
def windowed_value(state: ModelAverageState) -> list[jax.Array]:
    """Return the averages."""
    return model_average(1.0).value(state)
