from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Beta, NonNegative
from ..lifting import Rule, lifted, rule


@rule
class Adamax(Rule):
    """Adam with the infinity norm: the gradient's mean over its decaying largest magnitude.

        m ← β₁ m + (1-β₁) g         moment
        u ← max(|g|, β₂ u + ε)      inf_norm
        p ← p - η/(1-c₁) · m/u
        c₁ ← β₁ c₁                  beta1_pow_acc, from β₁

    ε is inside the maximum and there is none in the division; optax.adamax and torch.optim.Adamax add it
    to |g|. With ε = 0 a zero first gradient gives 0/0.

    >>> tx = adamax(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Kingma & Ba 2015, section 7.1, arXiv:1412.6980; Paddle's kernel `adamax`.
    """

    slots: ClassVar = ("moment", "inf_norm")
    reads_params: ClassVar = False

    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: NonNegative = 1e-8

    def shared(self):
        """The power of beta1 starts at beta1: the first step is t = 1."""
        return {"beta1_pow_acc": self.beta1}

    def advance(self, learning_rate, shared):
        """Correct the bias in the rate; the norm needs no correction."""
        c = shared["beta1_pow_acc"]
        return learning_rate / (1 - c), {"beta1_pow_acc": c * self.beta1}

    def step(self, g, p, k, slots):
        """Epsilon stands inside the maximum, as in Paddle's kernel."""
        m = self.beta1 * slots["moment"] + (1 - self.beta1) * g
        u = jnp.maximum(jnp.abs(g), self.beta2 * slots["inf_norm"] + self.epsilon)
        return -k * m / u, {"moment": m, "inf_norm": u}


adamax = lifted(Adamax, 0.001)
