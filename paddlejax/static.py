"""Paddle's `paddle.static`: what of it has a meaning without programs."""

from typing import TYPE_CHECKING

from .elsewhere import names_of
from .optimizer.averages import ExponentialMovingAverage
from .pages import publish

__all__ = ["ExponentialMovingAverage"]

__path__: list[str] = []  # Paddle has modules below this one, see elsewhere.py

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
