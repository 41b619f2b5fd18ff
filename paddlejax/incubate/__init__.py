"""Paddle's `paddle.incubate`."""

from . import optimizer

__all__ = ["optimizer"]
