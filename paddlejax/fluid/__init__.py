"""Paddle 1.x's names."""

from . import clip, dygraph, optimizer, regularizer
from .clip import GradientClipByGlobalNorm, GradientClipByNorm, GradientClipByValue

__all__ = [
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByValue",
    "clip",
    "dygraph",
    "optimizer",
    "regularizer",
]
