"""PaddlePaddle's optimizers for JAX: the same numbers, optax's protocol, Paddle's objects.

Functions, as in optax: `sgd`, `momentum`, `adam`, `adamw`, `lamb`, `lars_momentum`, ... each return an
(init, update) pair; `chain`, `by_path`, the clips and decays, `with_master_weights`, `accumulate_gradients`,
`lookahead`, `exponential_moving_average`, `skip_nonfinite` go around them; `apply_updates`,
`set_learning_rate`, `get_learning_rate` go with them. `lift` makes an optimizer of a `rule` of your own.

Objects, as in Paddle: `Parameter`, `parameters`, `loss` and

- `optimizer`     2.x: SGD, Momentum, Adam, AdamW, Lamb, LBFGS, ..., and `optimizer.lr`, its schedulers
- `fluid`         1.x: `fluid.optimizer`, `fluid.clip`, `fluid.regularizer`, `fluid.dygraph`
- `incubate`, `static`, `amp`, `nn`, `regularizer`     wrappers, averages, GradScaler, clips, decays

Beside both:

- `schedules`     learning rates as functions of the count
- `sparse`        `embedding`, `value_and_grad`: gradients that are `SelectedRows`
- `checkpoint`    `load`, `save`, `load_optimizer`: Paddle's files; `python -m paddlejax inspect FILE`
- `distributed`   `dgc_momentum`, `PipelineOptimizer`, `zero1`, `launch`
- `rules`         the update rules themselves, one tensor each
"""

from . import (
    amp,
    checkpoint,
    distributed,
    fluid,
    incubate,
    nn,
    optimizer,
    regularizer,
    rules,
    schedules,
    sparse,
    static,
)
from .accumulate import accumulate_gradients
from .average import exponential_moving_average, lookahead, model_average
from .checkpoint import load, save
from .clip import clip_by_global_norm, clip_by_norm, clip_by_value
from .cpu_fusion import enable_cpu_fusion
from .distributed import dgc_momentum
from .info import Info, get_info, with_info
from .interop import as_optax
from .lifting import GradientTransformation, Rule, RuleState, lift, rule
from .loss_scaling import dynamic_loss_scale, loss_scale, skip_nonfinite
from .master import with_master_weights
from .optimizer.loss import Loss, loss
from .optimizer.parameter import ParamAttr, Parameter, parameters, values
from .packing import Packed, pack
from .paths import by_path
from .quasi_newton import lbfgs
from .regularizer import l1_decay, l2_decay
from .rules import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    decayed_adagrad,
    dpsgd,
    ftrl,
    lamb,
    lars_momentum,
    momentum,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from .selected_rows import SelectedRows
from .transform import apply_updates, chain, get_learning_rate, identity, set_learning_rate

__all__ = [
    "GradientTransformation",
    "Info",
    "Loss",
    "Packed",
    "ParamAttr",
    "Parameter",
    "Rule",
    "RuleState",
    "SelectedRows",
    "accumulate_gradients",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "amp",
    "apply_updates",
    "as_optax",
    "asgd",
    "by_path",
    "chain",
    "checkpoint",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "decayed_adagrad",
    "dgc_momentum",
    "distributed",
    "dpsgd",
    "dynamic_loss_scale",
    "enable_cpu_fusion",
    "exponential_moving_average",
    "fluid",
    "ftrl",
    "get_info",
    "get_learning_rate",
    "identity",
    "incubate",
    "l1_decay",
    "l2_decay",
    "lamb",
    "lars_momentum",
    "lbfgs",
    "lift",
    "lookahead",
    "load",
    "loss",
    "loss_scale",
    "model_average",
    "momentum",
    "nadam",
    "nn",
    "optimizer",
    "pack",
    "parameters",
    "radam",
    "regularizer",
    "rmsprop",
    "rprop",
    "rule",
    "rules",
    "save",
    "schedules",
    "set_learning_rate",
    "sgd",
    "skip_nonfinite",
    "sparse",
    "static",
    "values",
    "with_info",
    "with_master_weights",
]
