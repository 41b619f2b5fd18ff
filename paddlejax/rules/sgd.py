from typing import ClassVar

from ..lifting import Rule, lifted, rule


@rule
class SGD(Rule):
    """Step against the gradient.

        p ← p - η g

    No slots. The same numbers as optax.sgd and torch.optim.SGD without momentum; Paddle and torch decay
    weights by adding to g beforehand, as `l2_decay` does.

    >>> tx = sgd(0.1)
    >>> p = jnp.array([1.0, -1.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.1  0.1]

    Robbins & Monro 1951, doi:10.1214/aoms/1177729586; Paddle's kernel `sgd`.
    """

    reads_params: ClassVar = False
    sparse: ClassVar = "rows"

    def step(self, g, p, k, slots):
        """There is no state."""
        return -k * g, {}


sgd = lifted(SGD, 0.001)
