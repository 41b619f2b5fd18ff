from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ..hyper import ArgumentError, number
from ..lifting import Lifted, Rule, lift, rule


@rule
class Rprop(Rule):
    """Every element has its own step size, and of the gradient only the sign counts.

        s = g h                                 h, the last gradient: prevs
        g ← 0 where s < 0
        L ← clip(L η₊, range) where s > 0       learning_rates, from learning_rate; (η₋, η₊) = etas
            clip(L η₋, range) where s < 0
        p ← p - sign(g) L
        h ← g

    So an element whose gradient turns stays for one step. A rate set later, a factor on it and a schedule
    have no effect, in Paddle neither: learning_rate is where L starts, and learning_rate_range bounds it. For
    full batches. torch.optim.Rprop has the lower bound 1e-6, optax.rprop too.

    >>> tx = rprop(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates, tx.update(p, state, p)[0])
    [-0.1  0.1] [-0.12  0.12]

    Riedmiller & Braun 1993, doi:10.1109/ICNN.1993.298623; Paddle's kernel `rprop`.
    """

    slots: ClassVar = ("prevs", "learning_rates")
    reads_params: ClassVar = False
    data: ClassVar = ("learning_rate_range", "etas")

    learning_rate: float = 0.001
    learning_rate_range: tuple[float, float] = (1e-5, 50.0)
    etas: tuple[float, float] = (0.5, 1.2)

    def __post_init__(self):
        for name in ("learning_rate_range", "etas"):
            pair: Any = getattr(self, name)
            if isinstance(pair, np.ndarray):
                pair = tuple(pair.tolist()) if pair.ndim == 1 else pair
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(f"Rprop's {name}: found {pair!r}, expected two numbers")
            for x in pair:
                if x is None or isinstance(x, bool | str | complex):
                    number(f"Rprop's {name}", x)
            object.__setattr__(self, name, tuple(pair))
        (low, high), (shrink, grow), rate = self.learning_rate_range, self.etas, self.learning_rate
        # Arrays may be traced, or rounded to the parameter's dtype.
        if not all(isinstance(x, int | float | np.number) for x in (low, high, shrink, grow, rate)):
            return
        if not 0 < low <= rate <= high:
            found = f"learning_rate {rate} and learning_rate_range {self.learning_rate_range}"
            raise ArgumentError(f"Rprop: found {found}, expected 0 < low <= learning_rate <= high")
        if not 0 < shrink < 1 < grow:
            raise ArgumentError(f"Rprop's etas: found {self.etas}, expected 0 < etas[0] < 1 < etas[1]")

    def init(self, p):
        """Every element starts with the step size `learning_rate`."""
        return {"prevs": jnp.zeros_like(p), "learning_rates": jnp.full_like(p, self.learning_rate)}

    def step(self, g, p, k, slots):
        """Only the signs of the gradients count; the rate k has no effect."""
        s = g * slots["prevs"]
        g = jnp.where(s < 0, 0, g)
        shrink, grow = self.etas
        factor = jnp.where(s > 0, grow, jnp.where(s < 0, shrink, 1))
        size = jnp.clip(slots["learning_rates"] * factor, *self.learning_rate_range)
        return -jnp.sign(g) * size, {"prevs": g, "learning_rates": size}


def rprop(
    learning_rate: Any = 0.001, learning_rate_range: Any = (1e-5, 50.0), etas: Any = (0.5, 1.2)
) -> Lifted:
    return lift(Rprop(learning_rate, learning_rate_range, etas), learning_rate)


rprop.__doc__ = Rprop.__doc__
