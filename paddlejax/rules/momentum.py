from typing import ClassVar

from ..lifting import Rule, lifted, rule


@rule
class Momentum(Rule):
    """Heavy-ball or Nesterov momentum.

        g ← c g                     c = rescale_grad
        v ← μ v + g                 velocity
        p ← p - η v                 or, with use_nesterov, p - η (g + μ v) with the new v

    η is outside v, so a new rate rescales past momentum too (LARS and RMSProp keep it inside). optax.sgd and
    torch.optim.SGD compute the same with dampening 0. Paddle 3.3.1's CPU kernel ignores rescale_grad; it is
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
    sparse: ClassVar = "dense"

    momentum: float = 0.9
    use_nesterov: bool = False
    rescale_grad: float = 1.0

    def step(self, g, p, k, slots):
        """The gradient is multiplied by `rescale_grad` first."""
        g = self.rescale_grad * g
        v = self.momentum * slots["velocity"] + g
        d = g + self.momentum * v if self.use_nesterov else v
        return -k * d, {"velocity": v}


momentum = lifted(Momentum, 0.001)
