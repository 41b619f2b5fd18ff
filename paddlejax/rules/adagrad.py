from typing import Annotated, ClassVar

import jax.numpy as jnp

from ..hyper import MAGNITUDE, NonNegative
from ..lifting import Rule, lifted, rule
from ..norms import root
from ..trees import next_count


@rule
class Adagrad(Rule):
    """Divide the gradient by the root of the sum of its squares so far.

        m ← m + g²                  moment, from initial_accumulator_value
        p ← p - η g / (√m + ε)      or, with lr_decay, η / (1 + n lr_decay) for η, after n steps

    ε is outside the root, as in torch (default 1e-10 there); optax.adagrad has it inside, starts m at 0.1 and
    sets the update to zero where m is zero. lr_decay is torch's; beside a schedule both act. Its state is n,
    steps () int32, which None, the default, has not.

    >>> tx = adagrad(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Duchi, Hazan & Singer 2011, JMLR 12; Paddle's kernel `adagrad`.
    """

    slots: ClassVar = ("moment",)
    reads_params: ClassVar = False
    data: ClassVar = ("lr_decay",)
    sparse: ClassVar = "rows"

    epsilon: NonNegative = 1e-6
    initial_accumulator_value: NonNegative = 0.0
    lr_decay: Annotated[float | None, MAGNITUDE] = None

    def shared(self):
        """With `lr_decay`: how many steps were made."""
        return {} if self.lr_decay is None else {"steps": 0}

    def advance(self, learning_rate, shared):
        """With `lr_decay` the rate falls with every step."""
        if self.lr_decay is None:
            return learning_rate, shared
        steps = shared["steps"]
        fallen = learning_rate / (1 + steps.astype(learning_rate.dtype) * self.lr_decay)
        return fallen, {"steps": next_count(steps)}

    def init(self, p):
        """The moment starts at `initial_accumulator_value`, not at zero."""
        return {"moment": jnp.full_like(p, self.initial_accumulator_value)}

    def step(self, g, p, k, slots):
        """The moment is a sum, so that steps only become shorter."""
        m = slots["moment"] + g * g
        return -k * g / (root(m) + self.epsilon), {"moment": m}


adagrad = lifted(Adagrad)
