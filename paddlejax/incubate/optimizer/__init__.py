"""Paddle's `paddle.incubate.optimizer`."""

from typing import TYPE_CHECKING, Any

from ... import pages, rules
from ...distributed import DGCMomentumOptimizer, PipelineOptimizer
from ...elsewhere import names_of
from ...optimizer.averages import ModelAverage
from ...optimizer.gradient_merge import GradientMergeOptimizer
from ...optimizer.lbfgs import LBFGS
from ...optimizer.lookahead import LookAhead
from ...optimizer.optimizer import Optimizer
from ...optimizer.wrappers import RecomputeOptimizer
from ...pages import publish
from ...regularizer import as_regularizer
from . import functional
from .distributed_fused_lamb import DistributedFusedLamb

__all__ = [
    "LBFGS",
    "DGCMomentumOptimizer",
    "DistributedFusedLamb",
    "GradientMergeOptimizer",
    "LarsMomentumOptimizer",
    "LookAhead",
    "ModelAverage",
    "PipelineOptimizer",
    "RecomputeOptimizer",
    "functional",
]


@pages.of(
    rules.LarsMomentum,
    "incubate.optimizer.LarsMomentumOptimizer(0.1, momentum=0.9, parameter_list=[p])",
    "[ 0.9999 -1.9998]",
)
class LarsMomentumOptimizer(Optimizer):
    """Paddle's LarsMomentumOptimizer, see `lars_momentum`, with Paddle's older argument names.

    A Parameter whose name contains one of the strings of exclude_from_weight_decay has no decay and no ratio.
    """

    _argument = "parameter_list"

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
        *,
        packed: bool = False,
    ):
        excluded = () if exclude_from_weight_decay is None else exclude_from_weight_decay
        decay = as_regularizer("regularization", regularization)
        rule = rules.LarsMomentum(momentum, lars_coeff, lars_weight_decay, excluded, epsilon, rescale_grad)
        super().__init__(
            learning_rate,
            parameter_list,
            decay,
            grad_clip,
            name,
            rule=rule,
            packed=packed,
            masters=multi_precision,
        )


if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
