"""Optimizers under torch's names: a table of the same arguments, and one function that reads it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .. import pages
from ..hyper import FACTOR, FLAG, RATE, instance, require, verify
from ..optimizer.lr import LRScheduler
from ..optimizer.optimizer import Optimizer

# Torch's arguments, by Paddle's names; all others are called alike.
NAMES: dict[str, tuple[str, ...]] = {
    "params": ("parameters",),
    "lr": ("learning_rate",),
    "betas": ("beta1", "beta2"),
    "eps": ("epsilon",),
    "alpha": ("rho",),
    "nesterov": ("use_nesterov",),
    "step_sizes": ("learning_rate_range",),
}
ONLY_NAMED = {"maximize": False, "grad_clip": None, "name": None, "multi_precision": False, "packed": False}
# Torch's choices of a kernel: here a step is one compiled program anyway.
WITHOUT_EFFECT = ("foreach", "fused", "capturable")
PAIR = instance(tuple | list, "two numbers")

NOTE = """

`params` are what `parameters` is for `optimizer.{0}`, and a group's `lr` is its own. `lr` may be a scheduler,
or one of `optim.lr_scheduler` is given this optimizer. With `maximize` a step goes along the gradients, and a
weight decay still pulls to zero. `foreach`, `fused` and `capturable` have no effect: a step is one compiled
program anyway. Called with `parameters=` it takes all of Paddle's arguments instead.

>>> p = Parameter(jnp.array([1.0, -2.0]), "p")
>>> opt = optim.{0}([p], lr=0.1)
>>> opt.get_lr()
0.1
"""


def face(cls: type[Optimizer], begin: Callable[..., None] | None = None, /, **arguments: Any) -> Any:
    """The same optimizer with torch's arguments: {name: default}, in torch's order after `params`.

    `begin(self, **Paddle's arguments)` stands for the constructor of `cls` where that does not take all.
    """
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(cls.__init__).parameters
    named = {k: x for k, x in ONLY_NAMED.items() if k in own or k == "maximize"}
    signature = inspect.Signature(
        [
            inspect.Parameter("params", kinds[0]),
            *(inspect.Parameter(k, kinds[0], default=x) for k, x in arguments.items()),
            *(inspect.Parameter(k, kinds[1], default=x) for k, x in named.items()),
            *(inspect.Parameter(k, kinds[1], default=None) for k in WITHOUT_EFFECT),
        ]
    )

    own_decay = own["weight_decay"].default if "weight_decay" in own else None

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "parameters" in kwargs:
            cls.__init__(self, *args, **kwargs)
            return
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            known = ", ".join(signature.parameters)
            raise TypeError(f"{cls.__name__}(): {e}; its arguments are {known}") from None
        bound.apply_defaults()
        given = {k: x for k, x in bound.arguments.items() if k not in WITHOUT_EFFECT}
        maximize = given.pop("maximize")
        verify(FLAG, "maximize", maximize)
        verify(RATE, "lr", given["lr"])
        given["params"] = _groups(given["params"], given["lr"], own)
        found = _translated("", given, own)
        if own_decay is None and _is_zero(found.get("weight_decay")):
            found["weight_decay"] = None
        (begin or cls.__init__)(self, **found)
        if maximize:
            self.maximize = True

    body = {"__init__": __init__, "__module__": f"{__package__}", "__signature__": signature}
    made = type(cls.__name__, (cls,), body)
    own_words = pages.page(f"`optimizer.{cls.__name__}` with torch's arguments.", begin or cls)
    made.__doc__ = own_words.split("\n\n>>>")[0] + NOTE.format(cls.__name__)
    return made


def _is_zero(x: Any) -> bool:
    return isinstance(x, int | float) and x == 0


def _translated(where: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by Paddle's names; those that Paddle's constructor has as its own stay."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        theirs = (name,) if name in own else NAMES.get(name, (name,))
        if len(theirs) == 1:
            found[theirs[0]] = value
            continue
        verify(PAIR, where + name, value)
        require(len(value) == len(theirs), where + name, value, "two numbers")
        found |= zip(theirs, value, strict=True)
    return found


def _groups(params: Any, lr: Any, own: Mapping[str, Any]) -> Any:
    """Torch's parameter groups as Paddle's, whose rate is a factor on the optimizer's."""
    if not (
        isinstance(params, list | tuple) and any(isinstance(g, Mapping) and "params" in g for g in params)
    ):
        return params
    return [
        _group(i, group, lr, own) if isinstance(group, Mapping) else group for i, group in enumerate(params)
    ]


def _group(i: int, group: Mapping[str, Any], lr: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    where = f"params: group {i}: "
    found = _translated(where, {k: x for k, x in group.items() if k not in ("params", "lr")}, own)
    if "lr" in group:
        verify(FACTOR, f"{where}lr", group["lr"])
        base = lr.base_lr if isinstance(lr, LRScheduler) else lr
        verify(FACTOR, "lr", base)
        require(
            base or not group["lr"],
            "lr",
            base,
            "a rate above 0 beside groups that have their own",
            ValueError,
        )
        found["learning_rate"] = group["lr"] / base if base else 0.0
    return {"params": group["params"], **found}
