from dataclasses import replace
from typing import ClassVar

import jax.numpy as jnp

from ..hyper import NonNegative, Sharded
from ..lifting import Rule, lifted, rule
from ..norms import asked, norms


@rule
class LarsMomentum(Rule):
    """Momentum whose rate follows the ratio of each tensor's weight norm to its gradient norm.

        g ← c g                                            c = rescale_grad
        L = η κ ‖p‖ / (‖g‖ + λ‖p‖ + ε)                     κ = lars_coeff, λ = lars_weight_decay
        v ← μ v + L (g + λ p)                              velocity
        p ← p - v

    L is the plain η where a norm is zero or λ is, without κ; so a tensor whose path or name contains a string
    of exclude_from_weight_decay (it has λ = 0) moves with η. `always_adapt` keeps the ratio at λ = 0, as
    Paddle 1.x. optax.lars divides by ‖g + λp‖ and puts η outside v. Under `shard_map` name the mesh axes over
    which a tensor is sharded in `axis_name`; for `sharded` see `clip_by_norm`.

    >>> tx = lars_momentum(0.1, 0.9, lars_coeff=0.01)
    >>> p = jnp.array([3.0, 4.0])
    >>> updates, state = tx.update(jnp.ones(2), tx.init(p), p)
    >>> print(updates)
    [-0.0035 -0.0035]

    You et al. 2017, arXiv:1708.03888; Paddle's kernel `lars_momentum`.
    """

    slots: ClassVar = ("velocity",)
    reads_params: ClassVar = True
    elementwise: ClassVar = False

    momentum: float
    lars_coeff: float = 0.001
    lars_weight_decay: float = 0.0005
    exclude_from_weight_decay: tuple[str, ...] = ()
    epsilon: NonNegative = 0.0
    rescale_grad: float = 1.0
    always_adapt: bool = False
    axis_name: str | tuple[str, ...] | None = None
    sharded: Sharded = None

    def __post_init__(self):
        if isinstance(self.exclude_from_weight_decay, list):  # what is static must be hashable
            object.__setattr__(self, "exclude_from_weight_decay", tuple(self.exclude_from_weight_decay))

    def decays(self, leaf):
        """Look for the parts of `exclude_from_weight_decay` in the leaf's name."""
        parts = self.exclude_from_weight_decay
        return not any(part in getattr(leaf, "name", leaf) for part in parts) if parts else None

    def at(self, leaf):
        """A leaf whose name contains a part of `exclude_from_weight_decay` does not decay."""
        decay = 0.0 if self.decays(leaf) is False else self.lars_weight_decay
        return replace(
            self, lars_weight_decay=decay, exclude_from_weight_decay=(), sharded=asked(self.sharded, leaf)
        )

    def step(self, g, p, k, slots):
        """The ratio of the norms scales the rate inside the velocity."""
        g = self.rescale_grad * g
        adapt, ratio = self._ratio(g, p)
        direction = g + self.lars_weight_decay * p
        v = self.momentum * slots["velocity"] + jnp.where(adapt, k * ratio, k) * direction
        return -v, {"velocity": v}

    def trust_ratio(self, g, p, k, slots):
        """Return the ratio that `step` used, 1 where it used none."""
        adapt, ratio = self._ratio(self.rescale_grad * g, p)
        return jnp.where(adapt, ratio, 1)

    def _ratio(self, g, p):
        """Whether the rate is adapted, and if so the factor on it."""
        decay = self.lars_weight_decay
        p_norm, g_norm = norms((p, g), self.axis_name, [self.sharded] * 2)
        adapt = ((decay > 0) | self.always_adapt) & (p_norm > 0) & (g_norm > 0)
        return adapt, self.lars_coeff * p_norm / jnp.where(adapt, g_norm + decay * p_norm + self.epsilon, 1)


lars_momentum = lifted(LarsMomentum)
