"""Paddle's `paddle.optim.lr_scheduler`: the schedulers of `optimizer.lr` under torch's names.

`StepLR(0.1, step_size=30)` is Paddle's `StepDecay`, with Paddle's arguments, and goes into an optimizer as
its lr. `StepLR(opt, step_size=30)` has torch's arguments: it begins at the rate of the optimizer and sets its
rate from then on. One scheduler sets the rate of an optimizer; torch multiplies those of several. Momentum is
not cycled. Paddle's `ConstantLR` is PiecewiseDecay; given an optimizer it is torch's.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..hyper import FACTOR, NUMBER, Interval, verify, whole
from ..optimizer import lr
from ..optimizer.lr import LRScheduler
from ..optimizer.wrappers import is_optimizer
from ..pages import publish

NEEDED = inspect.Parameter.empty
NOTE = """

>>> p = Parameter(jnp.array([1.0, -2.0]), "p")
>>> opt = optim.SGD([p], lr=0.1)
>>> scheduler = optim.lr_scheduler.{0}({1})
>>> scheduler() == opt.get_lr()
True
"""


def _plain(rate: float, **given: Any) -> Mapping[str, Any]:
    return {"learning_rate": rate, **given}


def scheduler(
    name: str,
    cls: type[LRScheduler],
    example: str,
    begin: Callable[..., Mapping[str, Any]] = _plain,
    /,
    **arguments: Any,
) -> Any:
    """The scheduler under torch's name. Given an optimizer it takes torch's arguments, {name: default}.

    `begin(rate, **torch's)` returns Paddle's arguments.
    """
    kind, more = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        {} if cls is lr.ReduceOnPlateau else {"last_epoch": -1},
    )
    signature = inspect.Signature(
        [inspect.Parameter(k, kind, default=x) for k, x in {"optimizer": NEEDED, **arguments, **more}.items()]
    )

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "optimizer" not in kwargs and not (args and is_optimizer(args[0])):
            cls.__init__(self, *args, **kwargs)
            return
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"{name}(): {e}; its arguments are {', '.join(signature.parameters)}") from None
        bound.apply_defaults()
        given = bound.arguments
        optimizer = given.pop("optimizer")
        if not is_optimizer(optimizer):
            cls.__init__(self, optimizer, **given)
            return
        rate = optimizer.get_lr()
        optimizer.set_lr(rate)  # raises where a scheduler sets the rate
        cls.__init__(self, **begin(rate, **given))
        optimizer.set_lr_scheduler(self)

    body = {"__init__": __init__, "__module__": __name__, "__signature__": signature}
    made = type(name, (cls,), body)
    words = f"`optimizer.lr.{cls.__name__}`; given an optimizer, with torch's arguments and attached to it:"
    made.__doc__ = f"{words}\n\n    {name}{signature}{NOTE.format(name, example)}"
    return made


def _constant(rate: float, factor: float, total_iters: int, last_epoch: int) -> Mapping[str, Any]:
    verify(FACTOR, "factor", factor)
    verify(whole(1), "total_iters", total_iters)
    return {"boundaries": [total_iters], "values": [rate * factor, rate], "last_epoch": last_epoch}


def _linear(rate: float, total_iters: int, **given: Any) -> Mapping[str, Any]:
    return {"learning_rate": rate, "total_steps": total_iters, **given}


def _plateau(rate: float, eps: float, **given: Any) -> Mapping[str, Any]:
    return {"learning_rate": rate, "epsilon": eps, **given}


def _cyclic(rate: float, base_lr: float, max_lr: float, gamma: float, **given: Any) -> Mapping[str, Any]:
    return {"base_learning_rate": base_lr, "max_learning_rate": max_lr, "exp_gamma": gamma, **given}


def _one_cycle(
    rate: float, max_lr: float, total_steps: Any, epochs: Any, steps_per_epoch: Any, pct_start: float,
    div_factor: float, final_div_factor: float, **given: Any
) -> Mapping[str, Any]:  # fmt: skip
    for name, value in (
        ("max_lr", max_lr),
        ("div_factor", div_factor),
        ("final_div_factor", final_div_factor),
    ):
        verify((NUMBER, Interval(0, above=True, open=True)), name, value)
    if total_steps is None and (epochs is None or steps_per_epoch is None):
        raise ValueError("total_steps: found None, expected a number, or epochs and steps_per_epoch")
    if total_steps is None:
        verify(whole(1), "epochs", epochs)
        verify(whole(1), "steps_per_epoch", steps_per_epoch)
    return {
        "max_learning_rate": max_lr,
        "total_steps": epochs * steps_per_epoch if total_steps is None else total_steps,
        "divide_factor": div_factor,
        "end_learning_rate": max_lr / div_factor / final_div_factor,
        "phase_pct": pct_start,
        **given,
    }


LambdaLR = scheduler("LambdaLR", lr.LambdaDecay, "opt, lambda epoch: 0.9**epoch", lr_lambda=NEEDED)
MultiplicativeLR = scheduler(
    "MultiplicativeLR", lr.MultiplicativeDecay, "opt, lambda epoch: 0.9", lr_lambda=NEEDED
)
StepLR = scheduler("StepLR", lr.StepDecay, "opt, step_size=30", step_size=NEEDED, gamma=0.1)
MultiStepLR = scheduler(
    "MultiStepLR", lr.MultiStepDecay, "opt, milestones=[30, 80]", milestones=NEEDED, gamma=0.1
)
ConstantLR = scheduler("ConstantLR", lr.PiecewiseDecay, "opt", _constant, factor=1 / 3, total_iters=5)
LinearLR = scheduler(
    "LinearLR", lr.LinearLR, "opt", _linear, start_factor=1 / 3, end_factor=1.0, total_iters=5
)
ExponentialLR = scheduler("ExponentialLR", lr.ExponentialDecay, "opt, gamma=0.9", gamma=NEEDED)
CosineAnnealingLR = scheduler(
    "CosineAnnealingLR", lr.CosineAnnealingDecay, "opt, T_max=100", T_max=NEEDED, eta_min=0.0
)
CosineAnnealingWarmRestarts = scheduler(
    "CosineAnnealingWarmRestarts",
    lr.CosineAnnealingWarmRestarts,
    "opt, T_0=10",
    T_0=NEEDED,
    T_mult=1,
    eta_min=0.0,
)
ReduceLROnPlateau = scheduler(
    "ReduceLROnPlateau", lr.ReduceOnPlateau, "opt", _plateau, mode="min", factor=0.1, patience=10,
    threshold=1e-4, threshold_mode="rel", cooldown=0, min_lr=0.0, eps=1e-8,
)  # fmt: skip
CyclicLR = scheduler(
    "CyclicLR", lr.CyclicLR, "opt, 0.01, 0.1", _cyclic, base_lr=NEEDED, max_lr=NEEDED, step_size_up=2000,
    step_size_down=None, mode="triangular", gamma=1.0, scale_fn=None, scale_mode="cycle",
)  # fmt: skip
OneCycleLR = scheduler(
    "OneCycleLR", lr.OneCycleLR, "opt, max_lr=0.1, total_steps=100", _one_cycle, max_lr=NEEDED,
    total_steps=None, epochs=None, steps_per_epoch=None, pct_start=0.3, anneal_strategy="cos",
    div_factor=25.0, final_div_factor=1e4, three_phase=False,
)  # fmt: skip

__all__ = [
    "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
    "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR",
    "ReduceLROnPlateau", "StepLR",
]  # fmt: skip

publish(globals())
