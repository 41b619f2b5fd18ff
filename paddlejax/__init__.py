"""PaddlePaddle's optimizers for JAX: the same numbers, optax's protocol, Paddle's objects.

Functions, as in optax: `sgd`, `momentum`, `adam`, `adamw`, `lamb`, `muon`, ... each return an
(init, update) pair; `chain`, `by_path`, the clips and decays, `with_master_weights`, `accumulate_gradients`,
`lookahead`, `exponential_moving_average`, `skip_nonfinite` go around them; `apply_updates`,
`set_learning_rate`, `get_learning_rate` go with them. `lift` makes an optimizer of a `rule` of your own.

Objects, as in Paddle: `Parameter`, `parameters`, `loss` and

- `optimizer`     2.x: SGD, Momentum, Adam, AdamW, Lamb, LBFGS, ..., and `optimizer.lr`, its schedulers
- `optim`         the same with torch's arguments, and `optim.lr_scheduler`
- `fluid`         1.x: `fluid.optimizer`, `fluid.clip`, `fluid.regularizer`, `fluid.dygraph`
- `incubate`, `static`, `amp`, `nn`, `regularizer`     wrappers, averages, GradScaler, clips, decays

Beside both:

- `schedules`     learning rates as functions of the count
- `splits`        fused weights as the matrices that `muon` steps
- `sparse`        `embedding`, `value_and_grad`: gradients that are `SelectedRows`
- `checkpoint`    `load`, `save`, `load_optimizer`: Paddle's files; `python -m paddlejax inspect FILE`
- `distributed`   `dgc_momentum`, `PipelineOptimizer`, `zero1`, `launch`
- `interop`       `to_optax`, `from_optax`, `from_torch`: states of other libraries; `as_optax`
- `rules`         the update rules themselves, one tensor each
- `guide`         guides: all optimizers, coming from Paddle, optax and torch, differences, costs
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import elsewhere, regularizer, rules
from .clip import clip_by_global_norm, clip_by_norm, clip_by_value
from .cpu_fusion import enable_cpu_fusion
from .lifting import GradientTransformation, Rule, lift, rule
from .pages import publish
from .rates import RuleState, get_learning_rate, set_learning_rate
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
from .transform import apply_updates, chain, identity

__version__ = "0.1.0"

# What most programs never touch loads when it is first asked for, so that importing the package takes no
# longer than importing optax. Type checkers read the imports, Python the table; a test compares them.
if TYPE_CHECKING:
    from . import (
        amp,
        checkpoint,
        distributed,
        fluid,
        guide,
        incubate,
        interop,
        nn,
        optim,
        optimizer,
        schedules,
        sparse,
        splits,
        static,
    )
    from .accumulate import accumulate_gradients
    from .average import exponential_moving_average, lookahead, model_average
    from .checkpoint import load, save
    from .distributed import dgc_momentum
    from .info import Info, get_info, with_info
    from .interop import as_optax
    from .loss_scaling import dynamic_loss_scale, loss_scale, skip_nonfinite
    from .master import with_master_weights
    from .matrices import MuonParamInfo, muon
    from .optimizer.loss import Loss
    from .optimizer.loss_function import loss, no_grad
    from .optimizer.parameter import ParamAttr, Parameter, parameters, values
    from .packing import Packed, pack
    from .paths import by_path
    from .quasi_newton import lbfgs
else:
    _LAZY = {
        "": (
            "amp checkpoint distributed fluid guide incubate interop nn optim optimizer schedules sparse "
            "splits static"
        ),
        "accumulate": "accumulate_gradients",
        "average": "exponential_moving_average lookahead model_average",
        "checkpoint": "load save",
        "distributed": "dgc_momentum",
        "info": "Info get_info with_info",
        "interop": "as_optax",
        "loss_scaling": "dynamic_loss_scale loss_scale skip_nonfinite",
        "master": "with_master_weights",
        "matrices": "MuonParamInfo muon",
        "optimizer.loss": "Loss",
        "optimizer.loss_function": "loss no_grad",
        "optimizer.parameter": "ParamAttr Parameter parameters values",
        "packing": "Packed pack",
        "paths": "by_path",
        "quasi_newton": "lbfgs",
    }
    _HOME = {name: module for module, names in _LAZY.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            return elsewhere.found(__name__, name)
        module = importlib.import_module(f".{_HOME[name] or name}", __name__)
        found = globals()[name] = getattr(module, name) if _HOME[name] else module
        publish(globals(), [name])
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "GradientTransformation",
    "Info",
    "Loss",
    "MuonParamInfo",
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
    "guide",
    "identity",
    "incubate",
    "interop",
    "l1_decay",
    "l2_decay",
    "lamb",
    "lars_momentum",
    "lbfgs",
    "lift",
    "load",
    "lookahead",
    "loss",
    "loss_scale",
    "model_average",
    "momentum",
    "muon",
    "nadam",
    "nn",
    "no_grad",
    "optim",
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
    "splits",
    "static",
    "values",
    "with_info",
    "with_master_weights",
]

publish(globals())
