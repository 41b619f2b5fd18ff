from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Beta, NonNegative
from ..lifting import lifted, rule
from ..norms import root
from .adam import Moments


@rule
class NAdam(Moments):
    """Adam with Nesterov's look ahead, under a momentum that grows towards β₁.

        q ← 0.96 q                              momentum_decay_pow, from 1
        c₂ ← β₂ c₂                              beta2_pow, from 1
        μ = β₁ (1 - ½ q^ψ)                      ψ = momentum_decay; μ' is the next step's, of 0.96 q
        P ← μ P                                 mu_product, from 1
        m ← β₁ m + (1-β₁) g                     moment1
        v ← β₂ v + (1-β₂) g²                    moment2
        m̂ = μ' m / (1 - μ' P) + (1-μ) g / (1-P)
        p ← p - η m̂ / (√(v/(1-c₂)) + ε)

    The numbers of torch.optim.NAdam; optax.nadam has no growing μ. Paddle's page writes ρ for 0.96. The three
    products are stored once; Paddle's checkpoints, and state_dict(), have them once per element. In float32 q
    is 0 after 2,139 steps and μ is β₁ at once, where torch's goes on growing towards it.

    >>> tx = nadam(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1056  0.1056]

    Dozat 2016, ICLR workshop; Paddle's kernel `nadam`.
    """

    reads_params: ClassVar = False
    full_shape: ClassVar[tuple[str, ...]] = ("momentum_decay_pow", "beta2_pow", "mu_product")

    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: NonNegative = 1e-8
    momentum_decay: NonNegative = 0.004

    def shared(self):
        """All three scalars start at 1; the first `advance` moves them to t = 1."""
        return dict.fromkeys(self.full_shape, self.beta2**0)  # 1 in the dtype of the rule

    def advance(self, learning_rate, shared):
        """Return the factors on the first moment and on the gradient, and the correction of the second
        moment."""
        q, c2, product = (shared[name] for name in self.full_shape)
        # Below 1 anyway: the minimum keeps XLA from 1 - β₂c₂ in one rounding, 1e-5 off the kernel's at first.
        q, c2 = 0.96 * q, jnp.minimum(self.beta2 * c2, 1)
        mu, ahead = (self.beta1 * (1 - 0.5 * power**self.momentum_decay) for power in (q, 0.96 * q))
        product = product * mu
        k = {
            "m": learning_rate * ahead / (1 - product * ahead),
            "g": learning_rate * (1 - mu) / (1 - product),
            "v": 1 - c2,
        }
        return k, {"momentum_decay_pow": q, "beta2_pow": c2, "mu_product": product}

    def step(self, g, p, k, slots):
        """The second moment is corrected under the root."""
        m, v = slots["moment1"], slots["moment2"]
        delta = -(k["m"] * m + k["g"] * g) / (root(v / k["v"]) + self.epsilon)
        return delta, slots


nadam = lifted(NAdam, 0.002)
