from dataclasses import replace
from typing import ClassVar

import jax.numpy as jnp

from ..hyper import Beta, NonNegative, Predicate, Sharded
from ..lifting import lifted, rule
from ..norms import asked, norms, root
from .adam import Moments


@rule
class Lamb(Moments):
    """Adam's direction, scaled so that each tensor moves in proportion to its own norm.

        m ← β₁ m + (1-β₁) g                            moment1
        v ← β₂ v + (1-β₂) g²                           moment2
        r = m/(1-c₁) / (√(v/(1-c₂)) + ε) + λ p         λ = lamb_weight_decay
        p ← p - η ‖p‖/‖r‖ r                            the ratio is 1 where a norm is zero or λ is
        c₁ ← β₁ c₁,  c₂ ← β₂ c₂                        beta1_pow_acc, beta2_pow_acc, from β₁ and β₂

    λ = 0 where exclude_from_weight_decay_fn(path) is true. `always_adapt` keeps the ratio at λ = 0. Without
    bias_correction (Paddle 1.x, which always adapts) c₁ and c₂ count as 0 and never move. Paddle's page
    divides by β₁ᵗ; its kernel, as here, by 1-β₁ᵗ. optax.lamb takes the ratio at λ = 0 too. Under `shard_map`
    name the mesh axes over which a tensor is sharded in `axis_name`; for `sharded` see `clip_by_norm`.

    >>> tx = lamb(0.1)
    >>> p = jnp.array([3.0, 4.0])
    >>> updates, state = tx.update(jnp.ones(2), tx.init(p), p)
    >>> print(updates)
    [-0.3518 -0.3553]

    You et al. 2020, arXiv:1904.00962; Paddle's kernel `lamb`.
    """

    reads_params: ClassVar = True
    sparse: ClassVar = "dense"
    elementwise: ClassVar = False

    lamb_weight_decay: float = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: NonNegative = 1e-6
    exclude_from_weight_decay_fn: Predicate = None
    always_adapt: bool = False
    bias_correction: bool = True
    axis_name: str | tuple[str, ...] | None = None
    sharded: Sharded = None

    def decays(self, leaf):
        """Ask `exclude_from_weight_decay_fn` about the leaf."""
        excluded = self.exclude_from_weight_decay_fn
        return None if excluded is None else not excluded(leaf)

    def at(self, leaf):
        """A leaf that `exclude_from_weight_decay_fn` names does not decay."""
        decay = 0.0 if self.decays(leaf) is False else self.lamb_weight_decay
        return replace(
            self,
            lamb_weight_decay=decay,
            exclude_from_weight_decay_fn=None,
            sharded=asked(self.sharded, leaf),
        )

    def shared(self):
        """The powers of the betas start at the betas: the first step is t = 1."""
        return {"beta1_pow_acc": self.beta1, "beta2_pow_acc": self.beta2}

    def advance(self, learning_rate, shared):
        """Without `bias_correction` nothing is corrected and the powers stay."""
        c1, c2 = shared["beta1_pow_acc"], shared["beta2_pow_acc"]
        if not self.bias_correction:
            return {"rate": learning_rate, "m": jnp.ones_like(c1), "v": jnp.ones_like(c2)}, shared
        powers = {"beta1_pow_acc": c1 * self.beta1, "beta2_pow_acc": c2 * self.beta2}
        return {"rate": learning_rate, "m": 1 - c1, "v": 1 - c2}, powers

    def step(self, g, p, k, slots):
        """The trust ratio is a factor on the whole tensor's step."""
        m, v = slots["moment1"], slots["moment2"]
        ratio, r = self._ratio_and_direction(p, k, m, v)
        return -k["rate"] * ratio * r, slots

    def trust_ratio(self, g, p, k, slots):
        """Return the ratio that `step` used."""
        return self._ratio_and_direction(p, k, slots["moment1"], slots["moment2"])[0]

    def _ratio_and_direction(self, p, k, m, v):
        r = m / k["m"] / (root(v / k["v"]) + self.epsilon) + self.lamb_weight_decay * p
        p_norm, r_norm = norms((p, r), self.axis_name, [self.sharded] * 2)
        adapt = ((self.lamb_weight_decay > 0) | self.always_adapt) & (p_norm > 0) & (r_norm > 0)
        return jnp.where(adapt, p_norm / jnp.where(adapt, r_norm, 1), 1), r


lamb = lifted(Lamb, 0.001)
