"""Paddle's `paddle.optim`: the optimizers of `paddle.optimizer` with torch's arguments, `params` first.

    opt = paddle.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = paddle.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=1000)

They are subclasses of those, and theirs are the numbers, the state_dict and the files. So what differs
between Paddle and torch stays: RMSProp has its epsilon inside the root, ASGD is Paddle's average of
gradients, and Muon takes Paddle's arguments. Paddle's own `paddle.optim.SGD` ignores momentum, dampening and
nesterov with a warning; here they act, as in torch.
"""

from typing import TYPE_CHECKING, Any

from .. import optimizer, rules
from ..elsewhere import names_of
from ..optimizer import LBFGS as _LBFGS
from ..optimizer import Muon as _Muon
from ..optimizer import Optimizer
from ..pages import publish
from . import lr_scheduler
from .faces import face

BETAS = (0.9, 0.999)


def _sgd(self: Any, momentum: Any, dampening: Any, use_nesterov: Any, **common: Any) -> None:
    """Descent along the gradient, with torch's momentum, dampening and Nesterov if there is a momentum.

        v ← μ v + (1-τ) g           velocity; τ = dampening, but at the first step v ← g
        p ← p - η v                 or, with nesterov, p - η (g + μ v) with the new v

    Without a momentum p ← p - η g, and there is no velocity. torch.optim.SGD, to rounding.
    """
    masters = common.pop("multi_precision")
    rule = rules.Momentum(momentum, use_nesterov, dampening=dampening or None) if momentum else rules.SGD()
    if use_nesterov and (not momentum or dampening):
        raise ValueError(
            f"nesterov: found True with momentum {momentum} and dampening {dampening}, expected a momentum "
            "and no dampening"
        )
    Optimizer.__init__(self, **common, rule=rule, masters=masters)


def _adagrad(self: Any, epsilon: Any, lr_decay: Any, initial_accumulator_value: Any, **common: Any) -> None:
    """Divide the gradient by the root of the sum of its squares so far.

        m ← m + g²                  moment, from initial_accumulator_value
        p ← p - η g / (√m + ε)      η = lr / (1 + n lr_decay) after n steps; beside a scheduler both act

    torch.optim.Adagrad, to rounding.
    """
    masters = common.pop("multi_precision")
    rule = rules.Adagrad(epsilon, initial_accumulator_value, lr_decay or None)
    Optimizer.__init__(self, **common, rule=rule, masters=masters)


SGD = face(optimizer.SGD, _sgd, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False)
Adagrad = face(
    optimizer.Adagrad, _adagrad, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10
)
Adam = face(optimizer.Adam, lr=1e-3, betas=BETAS, eps=1e-8, weight_decay=0, amsgrad=False)
AdamW = face(optimizer.AdamW, lr=1e-3, betas=BETAS, eps=1e-8, weight_decay=1e-2, amsgrad=False)
Adamax = face(optimizer.Adamax, lr=2e-3, betas=BETAS, eps=1e-8, weight_decay=0)
NAdam = face(optimizer.NAdam, lr=2e-3, betas=BETAS, eps=1e-8, weight_decay=0, momentum_decay=4e-3)
RAdam = face(optimizer.RAdam, lr=1e-3, betas=BETAS, eps=1e-8, weight_decay=0)
Adadelta = face(optimizer.Adadelta, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0)
RMSProp = face(optimizer.RMSProp, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False)
Rprop = face(optimizer.Rprop, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50))
ASGD = face(optimizer.ASGD, lr=1e-3, batch_num=1, weight_decay=0)
LBFGS = face(
    _LBFGS, lr=1.0, max_iter=20, max_eval=None, tolerance_grad=1e-7, tolerance_change=1e-9, history_size=100,
    line_search_fn=None,
)  # fmt: skip
Muon = face(
    _Muon, lr=0.02, momentum=0.95, adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.01, ns_steps=5,
    ns_coeff_type="simple", ns_coeffs=None, nesterov=True, adam_epsilon=1e-9, lr_ratio=None,
    apply_decay_param_fun=None, muon_version=1, muon_exclude_patterns=None, muon_extra_scale_factor=0.2,
    muon_param_info_map=None, ns_matmul_dtype=None,
)  # fmt: skip

__all__ = [
    "ASGD", "LBFGS", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "Optimizer",
    "RAdam", "RMSProp", "Rprop", "lr_scheduler",
]  # fmt: skip

publish(globals())

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
