"""What the arguments of deep gradient compression may be, of the function and of the object."""

from collections.abc import Sequence
from typing import Any

import jax

from ..clip import ClipGradByNorm
from ..hyper import (
    LIMIT,
    ArgumentError,
    Arguments,
    Declaration,
    Must,
    instance,
    number,
    one_of,
    optional,
    require,
    whole,
)
from ..optimizer.arguments import ParametersError, has_groups
from ..optimizer.call import Call
from ..optimizer.loss import Loss
from ..optimizer.parameter import ZEROS, Parameter
from .data_parallel import MESH, WORKERS

LIST = "a list of numbers in [0, 1), such as [0.75, 0.9375, 0.999]"


def _check_each(name: str, sparsity: Any, arguments: Arguments) -> None:
    """Raise if a sparsity is no number in [0, 1)."""
    for s in sparsity:
        if isinstance(s, jax.Array):
            raise TypeError(f"{name}: found an array in it, expected {LIST}; it decides what is compiled")
        number(name, s, LIST)
        require(0 <= s < 1, name, s, LIST)


COMMON: dict[str, Declaration] = {
    "rampup_begin_step": whole(0, 2**31),
    "rampup_step": whole(1, 2**31),
    "sparsity": (instance(list | tuple, LIST), Must(len, LIST, ArgumentError), _check_each),
    "local_grad_clip_norm": optional(*LIMIT),
}
FUNCTION: dict[str, Declaration] = {
    **COMMON,
    "num_trainers": WORKERS,
    "axis_name": instance(str, "the name of a mesh axis"),
    "exchange": one_of("auto", "sparse", "dense"),
    "min_numel": whole(1),
}
OBJECT: dict[str, Declaration] = {
    **COMMON,
    "num_trainers": (
        WORKERS,
        Must(lambda n, grad_clip: grad_clip is None or n is not None, "an int beside grad_clip"),
    ),
    "grad_clip": optional(
        instance(ClipGradByNorm, "a ClipGradByNorm"),
        Must(
            lambda clip, local_grad_clip_norm: local_grad_clip_norm is None,
            "None beside local_grad_clip_norm",
            ArgumentError,
        ),
    ),
    "mesh": optional(MESH),
    "parameter_list": Must(
        lambda given: not has_groups(given), "Parameters or a tree of arrays, no groups", ParametersError
    ),
}


def check_is_loss(loss: Any) -> None:
    """Raise unless several workers could compute it: a Loss, and not a function of arrays."""
    if not isinstance(loss, Loss):
        expected = "expected what a @paddle.loss function returned: its arrays are split over the workers"
        raise ArgumentError(f"loss: found {type(loss).__name__}, {expected}")


def check_for_workers(loss: Loss, workers: int, parameters: Sequence[Parameter], wrapped: bool) -> None:
    """Raise if this loss cannot be minimized by several workers, of which each sees a part of the batch."""
    if not isinstance(loss.call, Call):
        raise ArgumentError(
            "loss: found a sum of losses, expected what one @paddle.loss function returned: each worker "
            "computes it on its part of the batch; add up inside the function"
        )
    if loss.call.scaled:
        raise ArgumentError(
            "loss: found one that GradScaler scaled, expected the unscaled; use dgc_momentum inside "
            "dynamic_loss_scale(..., axis_name=...)"
        )
    if wrapped:
        raise RuntimeError(
            f"minimize: found a wrapper around {workers} workers, expected none: the wrapper would see no "
            "gradient"
        )
    if loss.ran_backward:
        raise RuntimeError(
            "minimize: found a loss whose backward ran, expected one that did not: its gradients are sums "
            "over all workers, which cannot be compressed any more"
        )
    if not loss.is_current():
        raise RuntimeError(
            "minimize: found a loss built before its parameters changed; call its function again"
        )
    live = [p.name for p in parameters if p.lazy_grad is not None and p.lazy_grad is not ZEROS]
    if live:
        raise RuntimeError(
            f"minimize: found a gradient of an earlier backward at Parameter {live[0]}, which no worker can "
            "add to its own; call clear_grad first"
        )
