from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from ..hyper import FACTOR, Predicate, verify
from ..lifting import lifted, rule
from .adam import Adam


class RatioError(TypeError, AssertionError):
    """lr_ratio is not a function; Paddle raises AssertionError."""


@rule
class AdamW(Adam):
    """Adam with weight decay beside it: the weights shrink by the plain rate, and no moment sees it.

        p ← p - η λ p               λ = weight_decay; η is not corrected for any bias
        p ← p - Adam's step         from g without decay

    λ = 0 where apply_decay_param_fun(path) is false; the class asks it about the parameter's name. Decay and
    step are multiplied by lr_ratio(path), which Paddle's CPU kernel refuses, and by ratio. optax.adamw and
    torch.optim.AdamW compute the same, optax by default with λ = 1e-4.

    >>> tx = adamw(0.1, weight_decay=0.5, apply_decay_param_fun=lambda path: path != "bias")
    >>> p = {"bias": jnp.ones(2), "w": jnp.ones(2)}
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates["bias"], updates["w"])
    [-0.1 -0.1] [-0.15 -0.15]

    Loshchilov & Hutter 2019, arXiv:1711.05101; Paddle's kernel `adamw`.
    """

    reads_params: ClassVar = True
    sparse: ClassVar = None  # pyright: ignore

    weight_decay: float = 0.01
    lr_ratio: Callable[[Any], Any] | None = None
    apply_decay_param_fun: Predicate = None
    ratio: float = 1.0

    def __post_init__(self):
        if self.lr_ratio is not None and not callable(self.lr_ratio):
            raise RatioError(f"AdamW's lr_ratio: found {self.lr_ratio!r}, expected a function of the leaf")

    def decays(self, leaf):
        """Ask `apply_decay_param_fun` about the leaf's name."""
        name = getattr(leaf, "name", leaf)
        return None if self.apply_decay_param_fun is None else bool(self.apply_decay_param_fun(name))

    def at(self, leaf):
        """Ask `apply_decay_param_fun` whether this leaf decays, and `lr_ratio` for its factor on the rate."""
        name = getattr(leaf, "name", leaf)
        ratio = 1.0 if self.lr_ratio is None else self.lr_ratio(leaf)
        verify(FACTOR, f"what AdamW's lr_ratio returned for {name}", ratio)
        return replace(
            self,
            weight_decay=0.0 if self.decays(leaf) is False else self.weight_decay,
            ratio=self.ratio * ratio,
            apply_decay_param_fun=None,
            lr_ratio=None,
        )

    def advance(self, learning_rate, shared):
        """Beside Adam's, give the plain rate for the decay: the decay has no bias to correct."""
        k, shared = super().advance(learning_rate, shared)
        return {**k, "plain": learning_rate}, shared

    def step(self, g, p, k, slots):
        """Adam's step and the decay, both times the leaf's ratio."""
        delta, slots = super().step(g, p, k, slots)
        return self.ratio * (delta - k["plain"] * self.weight_decay * p), slots


adamw = lifted(AdamW, 0.001)
