from dataclasses import field
from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Beta, NonNegative
from ..lifting import Rule, lifted, rule
from ..norms import root


class Moments(Rule):
    """A rule with running means of the gradient and its square, m ← β₁ m + (1-β₁) g, v ← β₂ v + (1-β₂) g²."""

    slots: ClassVar = ("moment1", "moment2")
    beta1: Beta  # each rule declares both among its own fields, which fixes the order of its arguments
    beta2: Beta

    def means(self, g):
        """Declare both moments; they have moved before `step` sees them."""
        return {
            "moment1": (self.beta1, (1 - self.beta1) * g),
            "moment2": (self.beta2, (1 - self.beta2) * g * g),
        }


@rule
class Adam(Moments):
    """Running means of the gradient and its square, corrected for their start at zero.

        m ← β₁ m + (1-β₁) g         moment1
        v ← β₂ v + (1-β₂) g²        moment2
        w ← max(w, v)               moment2_max, only with amsgrad, which then puts w for v below
        p ← p - η √(1-c₂)/(1-c₁) · m / (√v + ε √(1-c₂))
        c₁ ← β₁ c₁,  c₂ ← β₂ c₂     beta1_pow_acc, beta2_pow_acc, from β₁ and β₂

    That is p - η m̂/(√v̂ + ε), as optax.adam and torch.optim.Adam; Paddle's page forgets √(1-c₂) beside ε,
    and Paddle 1.x really adds the bare ε: scaled_epsilon=False. amsgrad takes the maximum of the uncorrected
    v, as torch (optax.amsgrad: of the corrected one).

    With lazy_mode a SelectedRows gradient steps its rows only (torch.optim.SparseAdam): parameter and moments
    of the others stay as they are. Without it, and for an array, they see a gradient of zero. c₁ and c₂ are
    those of the step that is being made; Paddle's CPU kernel is one step ahead for a sparse gradient.

    >>> tx = adam(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Kingma & Ba 2015, arXiv:1412.6980; Reddi et al. 2018 (amsgrad), arXiv:1904.09237; Paddle's kernel `adam`.
    """

    reads_params: ClassVar = False

    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: NonNegative = 1e-8
    amsgrad: bool = False
    scaled_epsilon: bool = True
    lazy_mode: bool = field(default=False, kw_only=True)

    @property
    def slots(self):  # type: ignore[override]
        """The names of the accumulators; `amsgrad` adds the largest second moment."""
        return ("moment1", "moment2", "moment2_max") if self.amsgrad else ("moment1", "moment2")

    @property
    def sparse(self):  # type: ignore[override]
        """In lazy mode only the listed rows are stepped, else all rows."""
        return "rows" if self.lazy_mode else "dense"

    def shared(self):
        """The powers of the betas start at the betas: the first step is t = 1."""
        return {"beta1_pow_acc": self.beta1, "beta2_pow_acc": self.beta2}

    def advance(self, learning_rate, shared):
        """Correct the bias in the rate, and in epsilon where the rule says `scaled_epsilon`."""
        c1, c2 = shared["beta1_pow_acc"], shared["beta2_pow_acc"]
        corrected = jnp.sqrt(1 - c2)
        k = {
            "rate": learning_rate * corrected / (1 - c1),
            "epsilon": self.epsilon * (corrected if self.scaled_epsilon else 1),
        }
        return k, {"beta1_pow_acc": c1 * self.beta1, "beta2_pow_acc": c2 * self.beta2}

    def step(self, g, p, k, slots):
        """With `amsgrad` the largest second moment so far divides, in place of the second moment."""
        m, v = slots["moment1"], slots["moment2"]
        if self.amsgrad:
            v = jnp.maximum(slots["moment2_max"], v)
            slots = slots | {"moment2_max": v}
        return -k["rate"] * m / (root(v) + k["epsilon"]), slots


adam = lifted(Adam, 0.001)
