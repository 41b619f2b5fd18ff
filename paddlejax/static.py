"""Paddle's `paddle.static`: what of it has a meaning without programs."""

from .optimizer.averages import ExponentialMovingAverage

__all__ = ["ExponentialMovingAverage"]
