"""What an optimizer's constructor is given, checked and resolved to one set of options per parameter."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from ..clip import ClipGradBase
from ..hyper import DECAY, FACTOR, NAME, Must, instance, require, verify
from ..leaves import LeafOptions
from ..lifting import Lifted
from ..paths import with_hyperparameters
from ..regularizer import WeightDecayRegularizer, as_regularizer
from ..trees import compute_dtype
from .parameter import Parameter
from .parameter import parameters as wrap


class ParametersError(TypeError, AttributeError, AssertionError):
    """`parameters=` is missing or of the wrong kind; Paddle raises one of these three."""


class Group(NamedTuple):
    """Parameters, and what a group dict or the constructor says of all of them."""

    members: list[Parameter]
    rule: Lifted
    factor: float | None  # on the rate; None where each Parameter has its own
    decides: bool  # whether the group says what the decay is
    decay: WeightDecayRegularizer | None
    clip: ClipGradBase | None
    edits: list[tuple[int, int]]  # how often each Parameter's rate and regularizer had been assigned
    maximize: bool = False

    def options(self, decay: WeightDecayRegularizer | None) -> Iterator[LeafOptions]:
        """What each parameter gets: what was assigned to it after the group was made, else the group's word,
        else its own from before, else the optimizer's `decay`."""
        clip = None if self.clip is None or self.clip.outside() else self.clip
        clipping = None if clip is None else clip.for_group()
        for p, (rates, regularizers) in zip(self.members, self.edits, strict=True):
            by_group = self.decides and p.edits[1] == regularizers
            regularizer = self.decay if by_group else p.regularizer or decay
            yield LeafOptions(
                self.rule,
                p.own_rate if self.factor is None or p.edits[0] != rates else self.factor,
                None if regularizer is None else regularizer.transformation(),
                clipping if clip is not None and clip.selects(p) else None,
                leaf=p,
                maximize=self.maximize,
            )


def read_group(
    members: list[Parameter], base: Lifted, own: Mapping[str, Any], clip: ClipGradBase | None
) -> Group:
    """Return a group of these Parameters; `own` is what its dict says, `clip` the optimizer's."""
    own = dict(own)
    factor = own.pop("learning_rate", None)
    if factor is not None:
        verify(FACTOR, "a group's learning_rate", factor)
    decides, decay = "weight_decay" in own, None
    if decides and hasattr(base.source.rule, "weight_decay"):  # AdamW's, a number; no regularizer
        verify(DECAY[1:], "a group's weight_decay", own["weight_decay"])
        decides = False
    elif decides:
        decay = as_regularizer("a group's weight_decay", own.pop("weight_decay"))
    clip = checked_clip("a group's grad_clip", own.pop("grad_clip", clip))
    others = ("learning_rate", "weight_decay", "grad_clip")
    rule = with_hyperparameters("a parameter group", base, own, others) if own else base
    factor = None if factor is None else float(factor)
    return Group(members, rule, factor, decides, decay, clip, [p.edits for p in members])


def is_array(x: Any) -> bool:
    """Whether this is an array; layers of flax have a dtype too."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def read_parameters(argument: str, given: Any) -> tuple[Any, list[tuple[list[Parameter], dict[str, Any]]]]:
    """The tree to show as `.parameters`, and the groups: (parameters, options)."""
    expected = "expected a list of Parameters, group dicts, or a tree of arrays"
    if given is None or isinstance(given, Parameter) or is_array(given):
        found = "None" if given is None else f"one {type(given).__name__}"
        raise ParametersError(f"{argument}: found {found}, {expected}")
    if isinstance(given, Mapping) and isinstance(given.get("params"), list | tuple | Parameter | Iterator):
        found = "found one dict with 'params', expected a list of such dicts, [{'params': [...]}]"
        raise ParametersError(f"{argument}: {found}, or a tree whose layers have other names")
    given = _ordered(given, argument)
    tree, groups = _read(argument, given, expected)
    if not any(members for members, _ in groups):
        raise IndexError(f"{argument}: found none, expected at least one Parameter")
    return tree, groups


def _read(
    argument: str, given: Any, expected: str
) -> tuple[Any, list[tuple[list[Parameter], dict[str, Any]]]]:
    """Return what `read_parameters` does, of what has an order."""
    if has_groups(given):
        groups = [_read_group(f"{argument}: group {i}", g) for i, g in enumerate(given)]
        return [p for members, _ in groups for p in members], groups
    try:
        tree = wrap(given)
    except TypeError as e:
        more = "" if "expected" in str(e) else f"; {expected}"
        raise ParametersError(f"{argument}: {e}{more}") from None
    return tree, [([p for p in jax.tree.leaves(tree) if isinstance(p, Parameter)], {})]


def has_groups(given: Any) -> bool:
    """Whether these are Paddle's group dicts; a list of dicts of parameters is a tree."""
    return isinstance(given, list | tuple) and any(isinstance(g, Mapping) and "params" in g for g in given)


def _read_group(where: str, group: Any) -> tuple[list[Parameter], dict[str, Any]]:
    """Return the Parameters of a group dict, and what else the dict says."""
    is_group = isinstance(group, Mapping) and "params" in group
    require(is_group, where, group, "a dict with 'params'", ParametersError)
    require(group["params"] is not None, where, None, "Parameters", ParametersError)
    members = jax.tree.leaves(_ordered(group["params"], where))
    for p in members:
        require(isinstance(p, Parameter), where, p, "Parameters", ParametersError)
    return members, {k: v for k, v in group.items() if k != "params"}


def _ordered(given: Any, where: str) -> Any:
    """A tree as it is, a generator or view as a list; a set has no order to restore a state by."""
    unordered = isinstance(given, set | frozenset)
    require(not unordered, where, given, "an ordered collection, not a set", ParametersError)
    loose = isinstance(given, Iterable) and not isinstance(given, Parameter | str)
    return list(given) if loose and jax.tree_util.all_leaves([given]) else given


def check_distinct(argument: str, parameters: list[Parameter]) -> None:
    """Raise if two Parameters have one name, one appears twice, or a trainable one has no real dtype."""
    names: dict[str, Parameter] = {}
    for p in parameters:
        if names.setdefault(p.name, p) is not p:
            raise ValueError(f"{argument}: two different Parameters are named {p.name}")
        if p.trainable:
            compute_dtype((jax.tree_util.GetAttrKey(p.name),), p.peek())
    if len(names) < len(parameters):
        twice = next(name for name in names if sum(p.name == name for p in parameters) > 1)
        raise ValueError(f"{argument}: {twice} appears more than once")


CLIP = instance(ClipGradBase | None, "an instance of nn.ClipGradBy*, or None")
PROGRAM = Must(lambda x: x is None, "None; JAX has no programs")
PAIRS = instance(Iterable, "(Parameter, gradient) pairs")
PAIR = Must(
    lambda x: isinstance(x, tuple | list) and len(x) == 2 and isinstance(x[0], Parameter),
    "(Parameter, gradient)",
)
CHOSEN = instance(Iterable, "Parameters or names")


def checked_clip(argument: str, value: Any) -> ClipGradBase | None:
    """Return a clip or None; raise on anything else."""
    verify(CLIP, argument, value)
    return value


def checked_name(name: Any) -> str | None:
    """Return the name of an optimizer, a str or None; raise on anything else."""
    verify(NAME, "name", name)
    return name


def check_program(startup_program: Any) -> None:
    """Raise unless `startup_program` is None: there are no programs here."""
    verify(PROGRAM, "startup_program", startup_program)


def checked_pairs(params_grads: Any, known: Collection[Parameter]) -> dict[Parameter, Any]:
    """(Parameter, gradient) pairs as a dict of those that are to be stepped, each one of `known` and once."""
    verify(PAIRS, "params_grads", params_grads)
    seen, checked = set(), {}
    for pair in params_grads:
        verify(PAIR, "params_grads", pair)
        p, g = pair
        if p not in known:
            raise ValueError(f"params_grads: Parameter {p.name} is not one of this optimizer's")
        if p in seen:
            raise ValueError(f"params_grads: Parameter {p.name} appears twice")
        seen.add(p)
        if g is not None and p.trainable:
            checked[p] = p.check_gradient(g)
    return checked


def selected(argument: str, chosen: Any, known: Collection[Parameter]) -> set[Parameter]:
    """The Parameters that were chosen among those known, by themselves or by name."""
    by_name = {p.name: p for p in known}
    members = set(known)
    verify(CHOSEN, argument, chosen)
    found = set()
    for p in [chosen] if isinstance(chosen, str | Parameter) else chosen:
        one = by_name.get(p) if isinstance(p, str) else p
        if not isinstance(one, Parameter) or one not in members:
            raise ValueError(f"{argument}: {p!r} is not one of this optimizer's: {', '.join(by_name)}")
        found.add(one)
    return found
