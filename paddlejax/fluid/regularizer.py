"""Paddle 1.x's `fluid.regularizer`: the same regularizers under its argument name."""

from typing import Any

from .. import regularizer


class L1Decay(regularizer.L1Decay):
    """See `regularizer.L1Decay`."""

    def __init__(self, regularization_coeff: Any = 0.0):
        super().__init__(regularization_coeff)


class L2Decay(regularizer.L2Decay):
    """See `regularizer.L2Decay`."""

    def __init__(self, regularization_coeff: Any = 0.0):
        super().__init__(regularization_coeff)


L1DecayRegularizer, L2DecayRegularizer = L1Decay, L2Decay
