"""Paddle's `paddle.incubate.optimizer`."""

from typing import Any

from .. import rules
from ..optimizer.classes import refuse_masters
from ..optimizer.optimizer import Optimizer


class LarsMomentumOptimizer(Optimizer):
    """Paddle's LarsMomentumOptimizer, see `lars_momentum`, with Paddle's older argument names.

    A Parameter whose name contains one of the strings of exclude_from_weight_decay has no decay and no ratio.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: Any,
        lars_coeff: Any = 0.001,
        lars_weight_decay: Any = 0.0005,
        parameter_list: Any = None,
        regularization: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        exclude_from_weight_decay: Any = None,
        epsilon: Any = 0,
        multi_precision: bool = False,
        rescale_grad: Any = 1.0,
    ):
        excluded = exclude_from_weight_decay or ()
        if isinstance(excluded, str) or not all(isinstance(part, str) for part in excluded):
            found = f"found {exclude_from_weight_decay!r}, expected a list of str"
            raise TypeError(f"exclude_from_weight_decay: {found}")
        rule = rules.LarsMomentum(
            momentum, lars_coeff, lars_weight_decay, tuple(excluded), epsilon, rescale_grad
        )
        super().__init__(learning_rate, parameter_list, regularization, grad_clip, name, rule=rule)
        refuse_masters(self, multi_precision)
