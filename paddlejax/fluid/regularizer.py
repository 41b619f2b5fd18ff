"""Paddle 1.x's `fluid.regularizer`: the same regularizers under its argument name."""

from typing import Any

from .. import pages, regularizer
from ..pages import publish


@pages.of(regularizer.l1_decay)
class L1Decay(regularizer.L1Decay):
    """Paddle 1.x's L1Decay and L1DecayRegularizer.

    >>> p = Parameter(jnp.ones(1))
    >>> opt = fluid.optimizer.SGD(1.0, parameter_list=[p], regularization=L1Decay(0.1))
    >>> _ = opt.apply_gradients([(p, jnp.zeros(1))])
    >>> print(p.numpy())
    [0.9]
    """

    def __init__(self, regularization_coeff: Any = 0.0):
        super().__init__(regularization_coeff)


@pages.of(regularizer.l2_decay)
class L2Decay(regularizer.L2Decay):
    """Paddle 1.x's L2Decay and L2DecayRegularizer.

    >>> p = Parameter(jnp.ones(1))
    >>> opt = fluid.optimizer.SGD(1.0, parameter_list=[p], regularization=L2Decay(0.1))
    >>> _ = opt.apply_gradients([(p, jnp.zeros(1))])
    >>> print(p.numpy())
    [0.9]
    """

    def __init__(self, regularization_coeff: Any = 0.0):
        super().__init__(regularization_coeff)


L1DecayRegularizer, L2DecayRegularizer = L1Decay, L2Decay
WeightDecayRegularizer = regularizer.WeightDecayRegularizer

publish(globals())
