"""Paddle 1.x's names."""

from . import checkpoint, clip, dygraph, optimizer, regularizer
from .checkpoint import load_dygraph, save_dygraph
from .clip import GradientClipByGlobalNorm, GradientClipByNorm, GradientClipByValue

__all__ = [
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByValue",
    "checkpoint",
    "clip",
    "dygraph",
    "load_dygraph",
    "optimizer",
    "regularizer",
    "save_dygraph",
]
