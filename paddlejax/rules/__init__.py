"""One file per update rule: the rule's class and its functional form."""

from ..pages import publish
from .adadelta import Adadelta, adadelta
from .adagrad import Adagrad, adagrad
from .adam import Adam, adam
from .adamax import Adamax, adamax
from .adamw import AdamW, adamw
from .asgd import ASGD, asgd
from .decayed_adagrad import DecayedAdagrad, decayed_adagrad
from .dpsgd import Dpsgd, dpsgd
from .ftrl import Ftrl, ftrl
from .lamb import Lamb, lamb
from .lars_momentum import LarsMomentum, lars_momentum
from .momentum import Momentum, momentum
from .muon import Muon
from .nadam import NAdam, nadam
from .radam import RAdam, radam
from .rmsprop import RMSProp, rmsprop
from .rprop import Rprop, rprop
from .sgd import SGD, sgd

__all__ = [
    "ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "DecayedAdagrad", "Dpsgd", "Ftrl",
    "Lamb", "LarsMomentum", "Momentum", "Muon", "NAdam", "RAdam", "RMSProp", "Rprop", "adadelta", "adagrad",
    "adam", "adamax", "adamw", "asgd", "decayed_adagrad", "dpsgd", "ftrl", "lamb", "lars_momentum",
    "momentum", "nadam", "radam", "rmsprop", "rprop", "sgd",
]  # fmt: skip

publish(globals())
