from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Fraction, NonNegative
from ..lifting import Rule, lifted, rule


@rule
class RMSProp(Rule):
    """Divide the gradient by a running root mean square of itself, with heavy-ball momentum.

        r ← ρ r + (1-ρ) g²          mean_square
        m ← ρ m + (1-ρ) g           mean_grad, moves only if centered (else it stays 0)
        v ← μ v + η g / √(r-m²+ε)   momentum; η is inside, so a new rate acts on new gradients only
        p ← p - v

    ε is under the root (torch adds it outside, with ρ = 0.99). Paddle's page calls μ Nesterov momentum; its
    kernel is heavy-ball. All three slots exist whatever the flags, as in Paddle's checkpoints.

    >>> tx = rmsprop(0.1, momentum=0.9)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.4472  0.4472]

    Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013, arXiv:1308.0850; Paddle's kernel `rmsprop`.
    """

    slots: ClassVar = ("momentum", "mean_square", "mean_grad")
    reads_params: ClassVar = False
    sparse: ClassVar = "dense"

    rho: Fraction = 0.95
    epsilon: NonNegative = 1e-6
    momentum: NonNegative = 0.0
    centered: bool = False

    def step(self, g, p, k, slots):
        """Epsilon stands under the root; `centered` subtracts the squared mean gradient there."""
        r = self.rho * slots["mean_square"] + (1 - self.rho) * g * g
        m, spread = slots["mean_grad"], r
        if self.centered:
            m = self.rho * m + (1 - self.rho) * g
            spread = r - m * m
            # Where rounding leaves less than nothing, Paddle's v is NaN for good: here what it can hide.
            hidden = r * jnp.finfo(r.dtype).eps
            spread = jnp.where(spread + self.epsilon > 0, spread, hidden)
        v = self.momentum * slots["momentum"] + k * g / jnp.sqrt(spread + self.epsilon)
        return -v, {"momentum": v, "mean_square": r, "mean_grad": m}


rmsprop = lifted(RMSProp)
