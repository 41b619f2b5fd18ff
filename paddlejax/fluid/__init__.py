"""Paddle 1.x's names."""

from typing import TYPE_CHECKING

from ..elsewhere import names_of
from ..optimizer.parameter import ParamAttr
from ..pages import publish
from . import checkpoint, clip, dygraph, layers, optimizer, regularizer
from .checkpoint import load_dygraph, save_dygraph
from .clip import GradientClipByGlobalNorm, GradientClipByNorm, GradientClipByValue
from .dygraph import enable_dygraph, enable_imperative

__all__ = [
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByValue",
    "ParamAttr",
    "checkpoint",
    "clip",
    "dygraph",
    "enable_dygraph",
    "enable_imperative",
    "layers",
    "load_dygraph",
    "optimizer",
    "regularizer",
    "save_dygraph",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
