"""Everything that may differ from parameter to parameter, decided by one table over the tree's paths."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from .array_types import ArrayTree
from .clip import CLIP, as_clip
from .hyper import FACTOR, FLAG, ArgumentError, Declaration, Must, checked, instance, verify
from .leaves import LeafOptions, PathState, PerLeaf, per_leaf
from .lifting import GradientTransformation, Lifted, lift
from .regularizer import WeightDecayRegularizer, as_regularizer
from .trees import flatten, matches, path_name
from .wrap import PAIR, is_transformation


@checked(rule=PAIR, grad_clip=CLIP)
def by_path(
    table: Sequence[tuple[str | re.Pattern[str], Mapping[str, Any]]],
    rule: GradientTransformation,
    *,
    weight_decay: Any = None,
    grad_clip: Any = None,
) -> "ByPath":
    """An optimizer whose options depend on where a parameter stands in the tree.

    `table` lists (pattern, options); the first pattern that matches a path such as `layers/0/bias` decides. A
    pattern is a glob over the whole path (`*` also crosses `/`) or a compiled regular expression, searched in
    it. Options: `learning_rate` (a factor on the rate), `weight_decay` and `grad_clip` (in place of the
    general ones; None switches them off; for AdamW a number is its own decay), `frozen`, `rule` (another
    optimizer), and any hyperparameter of the rule, such as `beta1`. Order: clip, decay, rule. Leaves with one
    clip share one norm. A pattern that matches nothing is an error, unless there is no leaf at all. A frozen
    leaf may be of any dtype, and its gradient float0. `describe(params)` shows what every leaf gets. Master
    weights go around all of it: `with_master_weights(by_path(...))`. optax needs multi_transform and a tree
    of labels for this, torch a list of groups. optax.tree_map_params takes several rules for being in the
    order of the table, the general one last.

    >>> tx = by_path([("*/bias", {"weight_decay": None, "learning_rate": 2.0})], sgd(0.1), weight_decay=1.0)
    >>> p = {"out": {"bias": jnp.ones(1), "kernel": jnp.ones(1)}}
    >>> updates, _ = tx.update(p, tx.init(p), p)
    >>> print(updates["out"]["bias"], updates["out"]["kernel"])
    [-0.2] [-0.2]
    >>> print(tx.describe(p))
    path        shape  dtype    rate  decay                    clip  rule
    out/bias    (1,)   float32  x 2                                  SGD()
    out/kernel  (1,)   float32  x 1   L2Decay, coeff=1.000000        SGD()
    """
    decay = _decay("by_path's weight_decay", weight_decay)
    general = LeafOptions(rule, 1.0, decay, as_clip(grad_clip))
    rows = [(pattern, _row(pattern, options, general)) for pattern, options in _rows(table)]

    it = _Table(rows, general)
    pair = per_leaf(it.choose, [*(options for _, options in rows), general])
    by_path = ByPath(_Checked(it, pair).init, pair.update)
    by_path.describe = it.describe
    return by_path


@dataclass(frozen=True, eq=False)
class _Table:
    rows: list[tuple[Any, LeafOptions]]
    general: LeafOptions

    def choose(self, path: str) -> LeafOptions:
        return next((options for pattern, options in self.rows if matches(pattern, path)), self.general)

    def check(self, params: ArrayTree) -> None:
        """Refuse a pattern that matches nothing, unless there is nothing to match."""
        paths = [path_name(path) for path in flatten(params)[0]] if jax.tree.leaves(params) else []
        for pattern, _ in self.rows if paths else ():
            if not any(matches(pattern, path) for path in paths):
                raise ValueError(f"the pattern {pattern!r} matches no parameter: found {', '.join(paths)}")

    def describe(self, params: ArrayTree) -> str:
        self.check(params)
        return describe_leaves(params, self.choose)


@dataclass(frozen=True, eq=False)
class _Checked:
    """`per_leaf` of a table, every pattern of which must match."""

    table: _Table
    pair: PerLeaf

    def init(self, params: ArrayTree) -> PathState:
        self.table.check(params)
        return self.pair.init(params)


class ByPath(GradientTransformation):
    """What `by_path` returns: the pair, and `describe(params)`, a table of what every leaf gets."""

    describe: Callable[[Any], str]


def describe_leaves(params: ArrayTree, choose: Callable[[str], LeafOptions]) -> str:
    """One line per leaf: path, shape, dtype, factor on the rate, decay, clip and rule."""
    paths, leaves, _ = flatten(params)
    clips: dict[int, int] = {}
    rows = [("path", "shape", "dtype", "rate", "decay", "clip", "rule")]
    for path, p in zip(map(path_name, paths), leaves, strict=True):
        if p is None:
            continue
        o, shape, dtype = choose(path), str(tuple(jnp.shape(p))), str(jnp.result_type(p))
        if o.frozen:
            rows.append((path, shape, dtype, "", "", "", "frozen"))
            continue
        decay = "" if o.weight_decay is None else str(o.weight_decay)
        # Leaves with the same number are clipped together.
        clip = (
            ""
            if o.grad_clip is None
            else f"{o.grad_clip} [{clips.setdefault(id(o.grad_clip), len(clips) + 1)}]"
        )
        rows.append((path, shape, dtype, f"x {o.learning_rate:g}", decay, clip, _rule_text(o, path)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _rule_text(o: LeafOptions, path: str) -> str:
    """The rule on this leaf, with the hyperparameters that are not its defaults."""
    if not isinstance(o.rule, Lifted):
        return str(o.rule)
    rule = o.rule.source.rule.at(path if o.leaf is None else o.leaf)
    given = [(f, getattr(rule, f.name)) for f in fields(rule) if f.repr]
    changed = [f"{f.name}={x}" for f, x in given if x is not f.default and x != f.default]
    return f"{type(rule).__name__}({', '.join(changed)})"


def _rows(table: Any) -> list[Any]:
    """Return the rows of `by_path`'s table, checked."""
    verify(TABLE, "by_path's table", table)
    rows = list(table)
    for row in rows:
        verify(ROW, "a row of by_path's table", row)
        verify(PATTERN, "the pattern of a row of by_path's table", row[0])
        verify(OPTIONS, f"by_path's row {row[0]!r}", row[1])
    return rows


def _row(pattern: str | re.Pattern[str], options: Mapping[str, Any], general: LeafOptions) -> LeafOptions:
    """Return the options of a leaf that this row describes; what the row does not say is `general`'s."""
    where = f"by_path's row {pattern!r}"
    options, own_decay = dict(options), {}
    rule = options.get("rule", general.rule)
    if isinstance(rule, Lifted) and hasattr(rule.source.rule, "weight_decay") and "weight_decay" in options:
        # AdamW's own decay: a number replaces it, None switches both kinds off; a regularizer comes on top.
        given = options["weight_decay"]
        if given is None:
            own_decay = {"weight_decay": 0.0}
        elif not isinstance(given, WeightDecayRegularizer) and not is_transformation(given):
            own_decay = {"weight_decay": options["weight_decay"]}
            options["weight_decay"] = None
    own = {
        name: read(f"{where}: {name}", options.pop(name)) for name, read in READERS.items() if name in options
    }
    row = general._replace(**own)
    if "learning_rate" in own and not isinstance(row.rule, Lifted):
        needs = "learning_rate needs a rule of paddlejax, such as adam(0.001)"
        raise TypeError(f"{where}: {needs}, found {row.rule!r}")
    options |= own_decay
    return row._replace(rule=with_hyperparameters(where, row.rule, options, READERS)) if options else row


def with_hyperparameters(where: str, t: Any, changes: Mapping[str, Any], others: Iterable[str]) -> Lifted:
    """The same optimizer with some of its rule's hyperparameters replaced."""
    known = [f.name for f in fields(t.source.rule)] if isinstance(t, Lifted) else []
    for name in changes:
        if name not in known or not isinstance(t, Lifted):
            options = ", ".join([*others, *known])
            raise TypeError(f"{where}: found the option {name!r}, expected one of {options}")
    try:
        return lift(replace(t.source.rule, **changes), t.source.learning_rate, t.source.leaf)
    except (ArgumentError, TypeError) as e:
        raise type(e)(f"{where}: {e}") from None


TABLE = Must(
    lambda x: isinstance(x, Iterable) and not isinstance(x, Mapping | str), "a list of (pattern, options)"
)
ROW = Must(lambda x: isinstance(x, tuple | list) and len(x) == 2, "(pattern, options)")
PATTERN = instance(str | re.Pattern, "a str or a compiled expression")
OPTIONS = instance(Mapping, "a dict of options")


def _as_declared(declaration: Declaration) -> Callable[[str, Any], Any]:
    """Return a reader of an option that only checks its value."""

    def read(where: str, value: Any) -> Any:
        verify(declaration, where, value)
        return value

    return read


def _decay(where: str, value: Any) -> Any:
    """Return the weight decay of an option as a transformation, or None."""
    if is_transformation(value):
        return value
    regularizer = as_regularizer(where, value)
    return None if regularizer is None else regularizer.transformation()


def _clip(where: str, value: Any) -> Any:
    """Return the clip of an option as a transformation, or None."""
    verify(CLIP, where, value)
    return as_clip(value)


READERS: dict[str, Callable[[str, Any], Any]] = {  # of the options that are not the rule's own
    "rule": _as_declared(PAIR),
    "learning_rate": _as_declared(FACTOR),
    "weight_decay": _decay,
    "grad_clip": _clip,
    "frozen": _as_declared(FLAG),
}
