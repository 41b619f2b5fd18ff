"""Paddle 1.x's `fluid.clip`: the same clips, with `need_clip`, a function that says which parameters are
clipped."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import clip, pages
from ..array_types import Numeric
from ..elsewhere import names_of
from ..hyper import checked, function_of, optional
from ..pages import publish

GradientClipBase = clip.ClipGradBase
PREDICATE = optional(function_of("the parameter"))


@pages.of(clip.ClipGradByValue)
class GradientClipByValue(clip.ClipGradByValue):
    """Paddle 1.x's GradientClipByValue: `need_clip(parameter)` says what takes part.

    >>> p = Parameter(jnp.zeros(2))
    >>> opt = fluid.optimizer.SGD(1.0, parameter_list=[p], grad_clip=GradientClipByValue(max=1.0))
    >>> _ = opt.apply_gradients([(p, jnp.array([3.0, 4.0]))])
    >>> print(p.numpy())
    [-1. -1.]
    """

    @checked(need_clip=PREDICATE)
    def __init__(
        self, max: Numeric, min: Numeric | None = None, need_clip: Callable[[Any], bool] | None = None
    ):
        super().__init__(max, min)
        self.need_clip = need_clip


@pages.of(clip.ClipGradByNorm)
class GradientClipByNorm(clip.ClipGradByNorm):
    """Paddle 1.x's GradientClipByNorm: `need_clip(parameter)` says what takes part.

    >>> p = Parameter(jnp.zeros(2))
    >>> opt = fluid.optimizer.SGD(1.0, parameter_list=[p], grad_clip=GradientClipByNorm(1.0))
    >>> _ = opt.apply_gradients([(p, jnp.array([3.0, 4.0]))])
    >>> print(p.numpy())
    [-0.6 -0.8]
    """

    @checked(need_clip=PREDICATE)
    def __init__(self, clip_norm: Numeric, need_clip: Callable[[Any], bool] | None = None):
        super().__init__(clip_norm)
        self.need_clip = need_clip


@pages.of(clip.ClipGradByGlobalNorm)
class GradientClipByGlobalNorm(clip.ClipGradByGlobalNorm):
    """Paddle 1.x's GradientClipByGlobalNorm: `need_clip(parameter)` says what takes part.

    >>> p = Parameter(jnp.zeros(2))
    >>> opt = fluid.optimizer.SGD(1.0, parameter_list=[p], grad_clip=GradientClipByGlobalNorm(1.0))
    >>> _ = opt.apply_gradients([(p, jnp.array([3.0, 4.0]))])
    >>> print(p.numpy())
    [-0.6 -0.8]
    """

    @checked(need_clip=PREDICATE)
    def __init__(
        self,
        clip_norm: Numeric,
        group_name: str = "default_group",
        need_clip: Callable[[Any], bool] | None = None,
    ):
        super().__init__(clip_norm, group_name)
        self.need_clip = need_clip


if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
