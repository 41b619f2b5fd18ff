"""Paddle 1.x's `fluid.clip`: the same clips, with `need_clip`, a function that says which parameters are
clipped."""

from collections.abc import Callable
from typing import Any

from .. import clip


def _predicate(name: str, need_clip: Any) -> Any:
    if need_clip is not None and not callable(need_clip):
        raise TypeError(f"{name}'s need_clip: found {need_clip!r}, expected a function of the parameter")
    return need_clip


class GradientClipByValue(clip.ClipGradByValue):
    """See `clip.ClipGradByValue`."""

    def __init__(self, max: Any, min: Any = None, need_clip: Callable[[Any], bool] | None = None):
        super().__init__(max, min)
        self.need_clip = _predicate("GradientClipByValue", need_clip)


class GradientClipByNorm(clip.ClipGradByNorm):
    """See `clip.ClipGradByNorm`."""

    def __init__(self, clip_norm: Any, need_clip: Callable[[Any], bool] | None = None):
        super().__init__(clip_norm)
        self.need_clip = _predicate("GradientClipByNorm", need_clip)


class GradientClipByGlobalNorm(clip.ClipGradByGlobalNorm):
    """See `clip.ClipGradByGlobalNorm`."""

    def __init__(
        self,
        clip_norm: Any,
        group_name: str = "default_group",
        need_clip: Callable[[Any], bool] | None = None,
    ):
        super().__init__(clip_norm, group_name)
        self.need_clip = _predicate("GradientClipByGlobalNorm", need_clip)
