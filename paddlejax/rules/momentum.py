from typing import ClassVar

import jax.numpy as jnp

from ..lifting import Rule, lifted, rule


@rule
class Momentum(Rule):
    """Heavy-ball or Nesterov momentum.

        g ← c g                     c = rescale_grad
        v ← μ v + (1-τ) g           velocity; τ = dampening, but at the first step v ← g
        p ← p - η v                 or, with use_nesterov, p - η (g + μ v) with the new v

    η is outside v, so a new rate rescales past momentum too (LARS and RMSProp keep it inside). It is
    torch.optim.SGD, and without dampening optax.sgd. A dampening, even of 0, has a state: begun (), 1 after
    the first step; None, the default, has none. Paddle 3.3.1's CPU kernel ignores rescale_grad; it is
    honoured here.

    >>> tx = momentum(0.1, use_nesterov=True)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.19  0.19]

    Polyak 1964; Sutskever et al. 2013, ICML; Paddle's kernel `momentum`.
    """

    slots: ClassVar = ("velocity",)
    reads_params: ClassVar = False
    data: ClassVar = ("dampening",)
    sparse: ClassVar = "dense"

    momentum: float = 0.9
    use_nesterov: bool = False
    rescale_grad: float = 1.0
    dampening: float | None = None

    def shared(self):
        """With a dampening: whether the first step was made, which takes the whole gradient."""
        return {} if self.dampening is None else {"begun": 0.0}

    def advance(self, learning_rate, shared):
        """With a dampening, give the share of the gradient in the velocity too."""
        if self.dampening is None:
            return learning_rate, shared
        begun = shared["begun"]
        share = jnp.where(begun == 0, jnp.ones_like(begun), 1 - self.dampening)
        return {"rate": learning_rate, "share": share}, {"begun": jnp.ones_like(begun)}

    def step(self, g, p, k, slots):
        """The gradient is multiplied by `rescale_grad` first."""
        g = self.rescale_grad * g
        rate, fresh = (k, g) if self.dampening is None else (k["rate"], k["share"] * g)
        v = self.momentum * slots["velocity"] + fresh
        d = g + self.momentum * v if self.use_nesterov else v
        return -rate * d, {"velocity": v}


momentum = lifted(Momentum, 0.001)
