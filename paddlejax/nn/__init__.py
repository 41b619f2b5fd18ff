"""Paddle's gradient clips under their names in `paddle.nn`."""

from typing import TYPE_CHECKING

from ..clip import ClipGradBase, ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from ..elsewhere import names_of
from ..pages import publish
from . import utils

__all__ = ["ClipGradBase", "ClipGradByGlobalNorm", "ClipGradByNorm", "ClipGradByValue", "utils"]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
