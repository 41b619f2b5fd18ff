"""Paddle 1.x's `fluid.dygraph`: the mode that is always on, the schedules, and the files."""

from typing import TYPE_CHECKING

from ...elsewhere import names_of
from ...pages import publish
from ..checkpoint import load_dygraph, save_dygraph
from . import base, learning_rate_scheduler
from .base import enable_dygraph, enable_imperative, enabled, guard, no_grad, to_variable
from .learning_rate_scheduler import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LambdaDecay,
    LearningRateDecay,
    LearningRateEpochDecay,
    LinearLrWarmup,
    MultiStepDecay,
    NaturalExpDecay,
    NoamDecay,
    PiecewiseDecay,
    PolynomialDecay,
    ReduceLROnPlateau,
    StepDecay,
)

__all__ = [
    "CosineDecay",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LambdaDecay",
    "LearningRateDecay",
    "LearningRateEpochDecay",
    "LinearLrWarmup",
    "MultiStepDecay",
    "NaturalExpDecay",
    "NoamDecay",
    "PiecewiseDecay",
    "PolynomialDecay",
    "ReduceLROnPlateau",
    "StepDecay",
    "base",
    "enable_dygraph",
    "enable_imperative",
    "enabled",
    "guard",
    "learning_rate_scheduler",
    "load_dygraph",
    "no_grad",
    "save_dygraph",
    "to_variable",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
