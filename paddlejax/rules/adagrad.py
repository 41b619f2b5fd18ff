from typing import ClassVar

import jax.numpy as jnp

from ..hyper import NonNegative
from ..lifting import Rule, lifted, rule
from ..norms import root


@rule
class Adagrad(Rule):
    """Divide the gradient by the root of the sum of its squares so far.

        m ← m + g²                  moment, from initial_accumulator_value
        p ← p - η g / (√m + ε)

    ε is outside the root, as in torch (default 1e-10 there); optax.adagrad has it inside, starts m at 0.1 and
    sets the update to zero where m is zero.

    >>> tx = adagrad(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Duchi, Hazan & Singer 2011, JMLR 12; Paddle's kernel `adagrad`.
    """

    slots: ClassVar = ("moment",)
    reads_params: ClassVar = False
    sparse: ClassVar = "rows"

    epsilon: NonNegative = 1e-6
    initial_accumulator_value: NonNegative = 0.0

    def init(self, p):
        """The moment starts at `initial_accumulator_value`, not at zero."""
        return {"moment": jnp.full_like(p, self.initial_accumulator_value)}

    def step(self, g, p, k, slots):
        """The moment is a sum, so that steps only become shorter."""
        m = slots["moment"] + g * g
        return -k * g / (root(m) + self.epsilon), {"moment": m}


adagrad = lifted(Adagrad)
