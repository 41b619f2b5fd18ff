"""PaddlePaddle's optimizers for JAX: the same numbers, optax's protocol, Paddle's objects."""

from . import fluid, incubate, nn, optimizer, regularizer, rules, schedules
from .clip import clip_by_global_norm, clip_by_norm, clip_by_value
from .master import with_master_weights
from .optimizer.loss import Loss, loss
from .optimizer.parameter import ParamAttr, Parameter, parameters, values
from .paths import by_path
from .regularizer import l1_decay, l2_decay
from .rule import GradientTransformation, Rule, RuleState, lift
from .rules import (
    adadelta,
    adagrad,
    adam,
    adamax,
    asgd,
    decayed_adagrad,
    ftrl,
    lamb,
    lars_momentum,
    momentum,
    rmsprop,
    sgd,
)
from .transform import apply_updates, chain, get_learning_rate, identity, set_learning_rate

__all__ = [
    "GradientTransformation",
    "Loss",
    "ParamAttr",
    "Parameter",
    "Rule",
    "RuleState",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "apply_updates",
    "asgd",
    "by_path",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "decayed_adagrad",
    "fluid",
    "ftrl",
    "get_learning_rate",
    "identity",
    "incubate",
    "l1_decay",
    "l2_decay",
    "lamb",
    "lars_momentum",
    "lift",
    "loss",
    "momentum",
    "nn",
    "optimizer",
    "parameters",
    "regularizer",
    "rmsprop",
    "rules",
    "schedules",
    "set_learning_rate",
    "sgd",
    "values",
    "with_master_weights",
]
