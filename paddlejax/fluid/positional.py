"""Which argument is meant by position: 1.6 and 1.8.5 have different orders, and the types tell them apart."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import jax

from ..clip import ClipGradBase
from ..hyper import shown
from ..regularizer import WeightDecayRegularizer

F = TypeVar("F", bound=Callable[..., Any])
Order = tuple[str, ...]


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _is_function(x: Any) -> bool:
    """Whether it can be called, and is no clip and no model: a model is a tree, or can be iterated."""
    return callable(x) and not isinstance(x, Iterable | ClipGradBase) and jax.tree_util.all_leaves([x])


def _is_parameters(x: Any) -> bool:
    """Whether it may be meant as parameters: it is nothing that another of these arguments may be."""
    others = bool | int | float | str | WeightDecayRegularizer | ClipGradBase
    return not isinstance(x, others) and not _is_function(x)


# None is for all but the flags, whose default is another.
FITS: dict[str, Callable[[Any], bool]] = {
    "parameter_list": lambda x: x is None or _is_parameters(x),
    "regularization": lambda x: isinstance(x, WeightDecayRegularizer | None),
    "grad_clip": lambda x: isinstance(x, ClipGradBase | None),
    "name": lambda x: isinstance(x, str | None),
    "exclude_from_weight_decay_fn": lambda x: x is None or _is_function(x),
    "num_trainers": lambda x: x is None or isinstance(x, int) and _is_number(x),
    "local_grad_clip_norm": lambda x: x is None or _is_number(x),
    "initial_accumulator_value": _is_number,
    "use_nesterov": lambda x: isinstance(x, bool),
    "lazy_mode": lambda x: isinstance(x, bool),
}


def orders_of(order: Order) -> tuple[Order, ...]:
    """An order of 1.8.5, then that of 1.7, without grad_clip, and that of 1.6, without parameter_list too."""
    older = tuple(name for name in order if name != "grad_clip")
    return order, older, tuple(name for name in older if name != "parameter_list")


def by_name(
    owner: str, orders: tuple[Order, ...], args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of a call by name: those by position as in the first order whose types they have."""
    for order in orders:
        if len(args) <= len(order) and _fitting(order, args, keywords) == len(args):
            return {**dict(zip(order, args, strict=False)), **keywords}
    # The place that the best of the orders cannot take.
    i = max(_fitting(order, args, keywords) for order in orders)
    open_to = [order[i] for order in orders if i < len(order) and _fitting(order, args, keywords) == i]
    taken = [name for name in open_to if name in keywords]
    expected = " or ".join(dict.fromkeys(open_to)) or f"at most {max(map(len, orders))}"
    why = f", and {taken[0]} by keyword" if taken else ""
    found = f"found {shown(args[i])} as argument {i + 1}{why}"
    raise TypeError(f"{owner}(): {found}, expected {expected}; give it by keyword")


def _fitting(order: Order, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> int:
    """How many of the arguments, from the first, have the types of this order."""
    for i, (name, value) in enumerate(zip(order, args, strict=False)):
        if name in keywords or name in FITS and not FITS[name](value):
            return i
    return min(len(args), len(order))


def positional(*orders: str) -> Callable[[F], F]:
    """Let a constructor, which has the arguments of all these orders, take them by position in each."""
    names = tuple(tuple(order.split()) for order in orders)

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            return function(self, **by_name(type(self).__name__, names, args, keywords))

        return cast(F, call)

    return decorate
