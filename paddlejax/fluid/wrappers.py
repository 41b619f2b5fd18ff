"""Paddle 1.x's averages and wrappers: its argument names and order, and its start of the slow weights."""

from typing import Any

from ..optimizer import averages, wrappers
from ..optimizer.parameter import Parameter
from ..optimizer.wrappers import GradientMergeOptimizer, RecomputeOptimizer

__all__ = [
    "ExponentialMovingAverage",
    "GradientMergeOptimizer",
    "LookaheadOptimizer",
    "ModelAverage",
    "RecomputeOptimizer",
]


class ExponentialMovingAverage(averages.ExponentialMovingAverage):
    """Paddle 1.x's ExponentialMovingAverage, see `exponential_moving_average`; call `update()` after every
    step."""

    _argument = "parameter_list"

    def __init__(
        self,
        decay: Any = 0.999,
        thres_steps: Any = None,
        name: str | None = None,
        parameter_list: Any = None,
    ):
        super().__init__(decay, thres_steps, name, parameter_list)


class ModelAverage(averages.ModelAverage):
    """Paddle 1.x's ModelAverage, see `model_average`; call `update()` after every step.

    It takes in every parameter, with a gradient or without. `regularization` has no effect.
    """

    _argument = "parameter_list"

    def __init__(
        self,
        average_window_rate: Any,
        min_average_window: int = 10000,
        max_average_window: int = 10000,
        regularization: Any = None,
        name: str | None = None,
        parameter_list: Any = None,
    ):
        super().__init__(average_window_rate, parameter_list, min_average_window, max_average_window, name)

    def _takes_part(self, p: Parameter) -> bool:
        return True


class LookaheadOptimizer(wrappers.LookAhead):
    """Paddle 1.x's LookaheadOptimizer, see `lookahead`: slow weights start as the initial parameters."""

    _slow_from_the_start = True
    _counter = "lookahead_step"

    def __init__(self, inner_optimizer: Any, alpha: Any = 0.5, k: int = 5):
        super().__init__(inner_optimizer, alpha, k)

    def _key(self, p: Parameter) -> str:
        return f"{p.name}@SLOW"
