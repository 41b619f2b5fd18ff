from typing import Annotated, ClassVar

import jax.numpy as jnp

from ..hyper import Interval, NonNegative
from ..lifting import Rule, lifted, rule


@rule
class Ftrl(Rule):
    """Follow the regularized leader: per-coordinate rates and weights that are exactly zero.

        n' = n + g²                                   squared
        z ← z + g - (φ(n') - φ(n))/η · p              linear, φ(x) = x^-lr_power
        p ← (l₁ sign(z) - z) / (φ(n')/η + 2 l₂)       where |z| > l₁, else 0
        n ← n'

    p is set, not stepped: an element whose gradient was always zero becomes 0 at the first step. At η =
    0 all stays as it is, and φ(n)/η is at most the root of the largest number (in Paddle z becomes NaN for
    good).
    `guard` is what Paddle 3's kernel adds to both l₁ and l₂; Paddle 1.x adds nothing, and its class hands
    l₁ to the kernel as l₂, a bug not repeated here. Neither optax nor torch has FTRL; TensorFlow's uses β
    beside φ.

    >>> tx = ftrl(0.5, l1=0.5)
    >>> p = jnp.array([1.0, 1.0])
    >>> updates, state = tx.update(jnp.array([4.0, 0.0]), tx.init(p), p)
    >>> print(p + updates)
    [0.4375 0.    ]

    McMahan et al. 2013, KDD, doi:10.1145/2487575.2488200; Paddle's kernel `ftrl`.
    """

    slots: ClassVar = ("squared", "linear")
    reads_params: ClassVar = True

    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    lr_power: Annotated[float, Interval(high=0)] = -0.5
    guard: NonNegative = 1e-10

    def step(self, g, p, k, slots):
        """The rule computes where p goes; the step is the way there."""
        l1, l2 = self.l1 + self.guard, self.l2 + self.guard
        g = jnp.where(k == 0, 0, g)
        n = slots["squared"] + g * g
        most = float(jnp.finfo(n.dtype).max) ** 0.5  # times a parameter it stays finite
        rate = jnp.where(k == 0, 1, k)
        old, new = (jnp.minimum(_power(x, -self.lr_power) / rate, most) for x in (slots["squared"], n))
        z = slots["linear"] + g - (new - old) * p
        target = jnp.where(jnp.abs(z) > l1, (l1 * jnp.sign(z) - z) / (new + 2 * l2), 0)
        return jnp.where(k == 0, 0, target - p), {"squared": n, "linear": z}


def _power(x, a):
    """x^a with the derivative 0 at 0, where it may be infinite."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** a, jnp.where(a > 0, 0, 1).astype(x.dtype))


ftrl = lifted(Ftrl)
