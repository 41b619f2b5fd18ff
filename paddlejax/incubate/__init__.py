"""Paddle's `paddle.incubate`."""

from . import optimizer
from .optimizer import LookAhead, ModelAverage

__all__ = ["LookAhead", "ModelAverage", "optimizer"]
