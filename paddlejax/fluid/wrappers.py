"""Paddle 1.x's averages and wrappers: its argument names and order, and its start of the slow weights."""

from typing import Any

from .. import pages
from ..array_types import Numeric
from ..optimizer import averages, lookahead
from ..optimizer.gradient_merge import GradientMergeOptimizer
from ..optimizer.parameter import Parameter
from ..optimizer.wrappers import RecomputeOptimizer
from ..pages import publish

__all__ = [
    "ExponentialMovingAverage",
    "ExponentialMovingAverageOptimizer",
    "GradientMergeOptimizer",
    "LookaheadOptimizer",
    "ModelAverage",
    "ModelAverageOptimizer",
    "RecomputeOptimizer",
]


@pages.of(averages.ExponentialMovingAverage)
class ExponentialMovingAverage(averages.ExponentialMovingAverage):
    """Paddle 1.x's ExponentialMovingAverage; call `update()` after every step.

    >>> p = Parameter(jnp.array([2.0]), "p")
    >>> ema = ExponentialMovingAverage(0.5, parameter_list=[p])
    >>> ema.update()
    >>> with ema.apply():
    ...     print(p.numpy())
    [2.]
    """

    _argument = "parameter_list"

    def __init__(
        self,
        decay: Numeric = 0.999,
        thres_steps: Any = None,
        name: str | None = None,
        parameter_list: Any = None,
    ):
        super().__init__(decay, thres_steps, name, parameter_list)


@pages.of(averages.ModelAverage)
class ModelAverage(averages.ModelAverage):
    """Paddle 1.x's ModelAverage; call `update()` after every step.

    It takes in every parameter, with a gradient or without. `regularization` has no effect.

    >>> p = Parameter(jnp.array([2.0]), "p")
    >>> average = ModelAverage(1.0, parameter_list=[p])
    >>> average.update()
    >>> with average.apply():
    ...     print(p.numpy())
    [2.]
    """

    _argument = "parameter_list"

    def __init__(
        self,
        average_window_rate: Numeric,
        min_average_window: int = 10000,
        max_average_window: int = 10000,
        regularization: Any = None,
        name: str | None = None,
        parameter_list: Any = None,
    ):
        super().__init__(average_window_rate, parameter_list, min_average_window, max_average_window, name)

    def _takes_part(self, p: Parameter) -> bool:
        return True


@pages.of(lookahead.LookAhead)
class LookaheadOptimizer(lookahead.LookAhead):
    """Paddle 1.x's LookaheadOptimizer: slow weights start as the initial parameters.

    >>> p = Parameter(jnp.zeros(1), "p")
    >>> opt = LookaheadOptimizer(fluid.optimizer.SGD(1.0, parameter_list=[p]), alpha=0.5, k=2)
    >>> for _ in range(2):
    ...     _ = opt.apply_gradients([(p, -jnp.ones(1))])
    >>> print(p.numpy())
    [1.]
    """

    _slow_from_the_start = True
    _counter = "lookahead_step"

    def __init__(self, inner_optimizer: Any, alpha: Numeric = 0.5, k: int = 5):
        super().__init__(inner_optimizer, alpha, k)

    def _key(self, p: Parameter) -> str:
        return f"{p.name}@SLOW"


# Every name of 1.x has "Optimizer" behind it too.
ExponentialMovingAverageOptimizer, ModelAverageOptimizer = ExponentialMovingAverage, ModelAverage

publish(globals())
