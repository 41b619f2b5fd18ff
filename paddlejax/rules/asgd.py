from typing import Annotated, ClassVar

import jax.numpy as jnp
from jax import lax

from ..hyper import Interval
from ..lifting import Rule, lifted, rule
from ..trees import next_count


@rule
class ASGD(Rule):
    """Stochastic average gradient: step along the mean of the last gradient of each of n batches.

        i = k mod n                  k = m, the updates so far; n = batch_num
        d ← d - y[i] + g             d, y of shape (n, *p.shape)
        y[i] ← g
        p ← p - η / min(k+1, n) · d

    With n = 1 it is SGD. Not torch.optim.ASGD, which is Polyak's averaging; optax has neither. Weight decay,
    added to g, enters d and y. Memory: n + 1 copies of the parameters.

    >>> tx = asgd(0.1, batch_num=2)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates, state.slots["y"].shape)
    [-0.1  0.1] (2, 2)

    Schmidt, Le Roux & Bach 2017, arXiv:1309.2388; Paddle's kernel `asgd`.
    """

    slots: ClassVar = ("d", "y")
    reads_params: ClassVar = False

    batch_num: Annotated[int, Interval(1)] = 1

    def init(self, p):
        """Start with a zero gradient for each of the `batch_num` batches."""
        zeros = jnp.zeros_like(p)
        return {"d": zeros, "y": jnp.broadcast_to(zeros, self.slot_shape("y", p.shape))}

    def slot_shape(self, name, shape):
        """The slot y has one gradient per batch: an axis more than the parameter."""
        return (self.batch_num, *shape) if name == "y" else shape

    def shared(self):
        """The count m of steps starts at 0."""
        return {"m": 0}

    def advance(self, learning_rate, shared):
        """Return the rate over the number of batches seen so far, and the index i of the batch in turn."""
        m = shared["m"]
        n = jnp.full_like(m, self.batch_num)
        seen = jnp.minimum(m, n - 1).astype(learning_rate.dtype) + 1
        return {"rate": learning_rate / seen, "i": m % n}, {"m": next_count(m, self.batch_num)}

    def step(self, g, p, k, slots):
        """The sum d loses this batch's last gradient and gains the new one."""
        d = slots["d"] - lax.dynamic_index_in_dim(slots["y"], k["i"], keepdims=False) + g
        return -k["rate"] * d, {"d": d, "y": lax.dynamic_update_index_in_dim(slots["y"], g, k["i"], 0)}


asgd = lifted(ASGD, 0.001)
