from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Fraction, NonNegative
from ..lifting import Rule, lifted, rule


@rule
class Adadelta(Rule):
    """Scale the gradient by the ratio of the running root mean squares of updates and gradients.

        a ← ρ a + (1-ρ) g²          _avg_squared_grad
        u = -√(b + ε) / √(a + ε) g  with the old b
        b ← ρ b + (1-ρ) u²          _avg_squared_update, of u without the rate
        p ← p + η u                 or p + u without use_learning_rate, as Paddle 1.x

    torch and optax compute the same with ρ = 0.9; Paddle's page leaves out η, its 2.x kernel does not.

    >>> tx = adadelta(1.0, epsilon=0.01)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.4082  0.4082]

    Zeiler 2012, arXiv:1212.5701; Paddle's kernel `adadelta`.
    """

    slots: ClassVar = ("_avg_squared_grad", "_avg_squared_update")
    reads_params: ClassVar = False

    epsilon: NonNegative = 1e-6
    rho: Fraction = 0.95
    use_learning_rate: bool = True

    def step(self, g, p, k, slots):
        """Without `use_learning_rate` the rate k has no effect."""
        a, b = (slots[name] for name in self.slots)
        a = self.rho * a + (1 - self.rho) * g * g
        u = -jnp.sqrt(b + self.epsilon) / jnp.sqrt(a + self.epsilon) * g
        b = self.rho * b + (1 - self.rho) * u * u
        return k * u if self.use_learning_rate else u, {"_avg_squared_grad": a, "_avg_squared_update": b}


adadelta = lifted(Adadelta, 0.001)
