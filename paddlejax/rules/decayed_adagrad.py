from typing import ClassVar

from ..hyper import Fraction, NonNegative
from ..lifting import Rule, lifted, rule
from ..norms import root


@rule
class DecayedAdagrad(Rule):
    """Adagrad with a running mean of squares in place of their sum.

        m ← ρ m + (1-ρ) g²          moment, ρ = decay
        p ← p - η g / (√m + ε)

    RMSProp without momentum, but with ε outside the root: torch.optim.RMSprop's formula (its α is ρ, 0.99
    there).

    >>> tx = decayed_adagrad(0.1, decay=0.75)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.2  0.2]

    Paddle's kernel `decayed_adagrad`; it has no paper of its own.
    """

    slots: ClassVar = ("moment",)
    reads_params: ClassVar = False

    decay: Fraction = 0.95
    epsilon: NonNegative = 1e-6

    def step(self, g, p, k, slots):
        """The moment is a mean, not a sum as Adagrad's is."""
        m = self.decay * slots["moment"] + (1 - self.decay) * g * g
        return -k * g / (root(m) + self.epsilon), {"moment": m}


decayed_adagrad = lifted(DecayedAdagrad)
