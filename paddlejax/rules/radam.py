from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Beta, NonNegative
from ..lifting import lifted, rule
from ..norms import root
from .adam import Moments


@rule
class RAdam(Moments):
    """Adam that is plain momentum until its running mean of squares can be trusted.

        c₁ ← β₁ c₁,  c₂ ← β₂ c₂                 beta1_pow, beta2_pow, from 1
        R ← (R (β₂-c₂) + c₂) / (1-c₂)           rho, from 1: R = t β₂ᵗ / (1-β₂ᵗ)
        m ← β₁ m + (1-β₁) g                     moment1
        v ← β₂ v + (1-β₂) g²                    moment2
        d = √((ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ)) √(1-c₂) / (√v + ε)    where ρ > 5, else 1
        p ← p - η m/(1-c₁) d                    ρ = ρ∞ - 2R, ρ∞ = 2/(1-β₂) - 1

    ε is beside the uncorrected √v, as in torch.optim.RAdam; optax.radam corrects v first. With β₂ = 0.999 the
    sixth step is the first to be adaptive, with β₂ ≤ 2/3 none is. c₁, c₂ and R are stored once; Paddle's
    checkpoints, and state_dict(), have them once per element.

    >>> tx = radam(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Liu et al. 2020, arXiv:1908.03265; Paddle's kernel `radam`.
    """

    reads_params: ClassVar = False
    full_shape: ClassVar[tuple[str, ...]] = ("beta1_pow", "beta2_pow", "rho")

    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: NonNegative = 1e-8

    def shared(self):
        """All three scalars start at 1; the first `advance` moves them to t = 1."""
        return dict.fromkeys(self.full_shape, self.beta2**0)  # 1 in the dtype of the rule

    def advance(self, learning_rate, shared):
        """Decide whether the second moment is certain enough to divide by it: only where rho is above 5."""
        c1, c2, r = (shared[name] for name in self.full_shape)
        # Below 1 anyway: the minimum keeps XLA from 1 - β₂c₂ in one rounding, 1e-5 off the kernel's at first.
        c1, c2 = self.beta1 * c1, jnp.minimum(self.beta2 * c2, 1)
        r = (r * (self.beta2 - c2) + c2) / (1 - c2)
        limit = 2 / (1 - self.beta2) - 1
        rho = limit - 2 * r
        square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
        adaptive = rho > 5
        k = {
            "rate": learning_rate / (1 - c1),
            "adaptive": adaptive,
            "root": jnp.sqrt(jnp.where(adaptive, square, 1) * (1 - c2)),
        }
        return k, {"beta1_pow": c1, "beta2_pow": c2, "rho": r}

    def step(self, g, p, k, slots):
        """As long as the step is not adaptive, it is momentum's."""
        m, v = slots["moment1"], slots["moment2"]
        d = jnp.where(k["adaptive"], k["root"] / (root(v) + self.epsilon), 1)
        return -k["rate"] * m * d, slots


radam = lifted(RAdam, 0.001)
