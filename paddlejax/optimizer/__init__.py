"""Paddle's optimizers as objects: parameters, gradients, state and rate in one place."""

from . import lr
from .classes import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, Lamb, Momentum, RMSProp
from .optimizer import Optimizer

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "Lamb",
    "Momentum",
    "Optimizer",
    "RMSProp",
    "lr",
]
