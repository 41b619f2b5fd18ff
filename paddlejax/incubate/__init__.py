"""Paddle's `paddle.incubate`."""

from typing import TYPE_CHECKING

from ..elsewhere import names_of
from ..pages import publish
from . import optimizer
from .optimizer import DistributedFusedLamb, LookAhead, ModelAverage

__all__ = ["DistributedFusedLamb", "LookAhead", "ModelAverage", "optimizer"]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
