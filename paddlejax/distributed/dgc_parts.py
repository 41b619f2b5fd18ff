"""Parts of DGCMomentumOptimizer: how its state is saved, and what decides which program a step is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from ..lifting import RuleState
from ..optimizer.call import Call
from ..optimizer.ledger import ArrayField, CountField
from ..optimizer.parts import Given

Arrays = dict[int, jax.Array]  # values of Parameters by position
COUNTER = CountField("__g_dgc_counter__")  # Paddle's name for the number of steps


class Residual(ArrayField):
    """u or v of all workers."""

    def write(self, value: jax.Array) -> Any:
        """A copy; of what several processes share all of it, in each."""
        return jnp.copy(value) if value.is_fully_addressable else process_allgather(value, tiled=True)


class Compressed(Given):
    """The base of a step on one worker: it sees all Parameters at once, with a gradient or without."""

    def __init__(self, optimizer: Any):
        def update(grads: Any, state: RuleState, values: list[Any], *, rate: Any) -> tuple[Any, RuleState]:
            return optimizer.update(values, state, grads, rate)

        super().__init__(range(len(optimizer.parameter_list)), optimizer.parameter_list, update)
        self._optimizer = optimizer

    def state(self) -> RuleState:
        """Return u, v and the count, which the step donates."""
        return self._optimizer.state_for([s.peek() for s in self.stores])

    def keep(self, state: RuleState) -> None:
        """Store them."""
        self._optimizer.state = state


class Program(NamedTuple):
    """What decides which program a step is."""

    mesh: Mesh
    call: Call
    places: tuple[int, ...]  # of the loss's Parameters among all there are
    split: tuple[bool, ...]
