"""One file per update rule: the rule's class and its functional form."""

from .adadelta import Adadelta, adadelta
from .adagrad import Adagrad, adagrad
from .adam import Adam, adam
from .adamax import Adamax, adamax
from .asgd import ASGD, asgd
from .decayed_adagrad import DecayedAdagrad, decayed_adagrad
from .ftrl import Ftrl, ftrl
from .lamb import Lamb, lamb
from .lars_momentum import LarsMomentum, lars_momentum
from .momentum import Momentum, momentum
from .rmsprop import RMSProp, rmsprop
from .sgd import SGD, sgd

__all__ = [
    "ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "DecayedAdagrad", "Ftrl", "Lamb", "LarsMomentum",
    "Momentum", "RMSProp", "adadelta", "adagrad", "adam", "adamax", "asgd", "decayed_adagrad", "ftrl", "lamb",
    "lars_momentum", "momentum", "rmsprop", "sgd",
]  # fmt: skip
