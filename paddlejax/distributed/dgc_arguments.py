"""What the arguments of deep gradient compression may be, of the function and of the object."""

from typing import Any

import jax

from ..clip import ClipGradByNorm
from ..hyper import (
    NUMBER,
    ArgumentError,
    Arguments,
    Declaration,
    Interval,
    Must,
    instance,
    number,
    one_of,
    optional,
    require,
    whole,
)
from ..optimizer.arguments import ParametersError, has_groups
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
    "local_grad_clip_norm": optional(NUMBER, Interval(0, above=True)),
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
