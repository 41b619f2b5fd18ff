"""Everything that may differ from parameter to parameter, decided by one table over the tree's paths."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from .array_types import ArrayTree, Gradients
from .clip import CLIP, as_clip
from .hyper import FACTOR, FLAG, ArgumentError, Declaration, Must, checked, instance, verify
from .lifting import GradientTransformation, Lifted, lift
from .regularizer import WeightDecayRegularizer, as_regularizer
from .selected_rows import SelectedRows
from .transform import takes_extra
from .trees import align, flatten, gradients, matches, path_name
from .wrap import PAIR, check_params, check_state, is_transformation


class LeafOptions(NamedTuple):
    """What one leaf gets; leaves that get the same object share its state, and a clip's norm."""

    rule: Any  # a transformation, or None to hand on the clipped and decayed gradient
    learning_rate: float = 1.0  # factor on the rate
    weight_decay: Any = None  # a transformation, or None for no decay
    grad_clip: Any = None  # a transformation, or None for no clip
    frozen: bool = False
    leaf: Any = None  # what the rule's own exclusions are asked about, by default the path


class PathState(NamedTuple):
    """One state per distinct clip, decay and rule, in the order of the first leaf that has it."""

    grad_clip: tuple[Any, ...]
    weight_decay: tuple[Any, ...]
    rule: tuple[Any, ...]


class PerLeaf(GradientTransformation):
    """What `per_leaf` returns: the pair, and how each leaf's rule adapts."""

    choose: Callable[[str], LeafOptions]

    def adapts(self, path: str) -> bool:
        """Return whether the leaf at this path has a trust ratio."""
        return hasattr(rule := self.choose(path).rule, "adapts") and rule.adapts(path)

    def trust_ratios(
        self, paths: list[str], grads: list[Any], params: list[Any], before: PathState, after: PathState
    ) -> list[Any]:
        """Return the factor on the rate that a step chose for each leaf, None where there is none."""
        options: list[Any] = [self.choose(path) for path in paths]
        for (t, members), s in zip(_stage("grad_clip", options), before.grad_clip, strict=True):
            grads = _changed(t, members, s, grads, params)
        for (t, members), s in zip(_stage("weight_decay", options), before.weight_decay, strict=True):
            grads = _changed(t, members, s, grads, params)
        ratios: list[Any] = [None] * len(params)
        states = zip(_stage("rule", options), before.rule, after.rule, strict=True)
        for (t, members), old, new in states:
            if self.adapts(paths[members[0]]):
                t = _about(t, {paths[i]: options[i] for i in members})
                mine = t.trust_ratios(paths, _of(members, grads), params, old, new)
                ratios = [r if m is None else m for r, m in zip(ratios, mine, strict=True)]
        return ratios


def per_leaf(choose: Callable[[str], LeafOptions]) -> PerLeaf:
    """Clip, decay and step every leaf as `choose(path)` says: the mechanism of all per-parameter options."""

    def resolve(params: Any):
        paths, leaves, tree = flatten(params)
        options = [
            None if p is None else choose(path_name(path)) for path, p in zip(paths, leaves, strict=True)
        ]
        return paths, leaves, tree, options

    def init(params: ArrayTree) -> PathState:
        _, leaves, tree, options = resolve(params)
        return PathState(
            *(
                tuple(t.init(_only(tree, leaves, members)) for t, members in _stage(field, options))
                for field in PathState._fields
            )
        )

    def update(
        grads: Gradients, state: PathState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, PathState]:
        check_params("a table of options by path", params)
        check_state("by_path", state, PathState)
        paths, leaves, tree, options = resolve(params)
        gs = gradients(tree, paths, leaves, grads, rows=True)
        # -0.0 is the one number that leaves every other as it is, -0.0 included.
        still = {
            i: _stillness(gs[i], leaves[i])
            for i, o in enumerate(options)
            if o and o.frozen and gs[i] is not None
        }
        states = []
        for field in PathState._fields:
            new_states = []
            stage = _stage(field, options)
            if len(stage) != len(getattr(state, field)):
                found = f"{len(getattr(state, field))} {field} states"
                raise ValueError(f"the state is of another table: found {found}, expected {len(stage)}")
            for (t, members), s in zip(stage, getattr(state, field), strict=True):
                if field == "rule":
                    t = _about(t, {path_name(paths[i]): o for i in members if (o := options[i])})
                own = extra if takes_extra(t) else {}
                changed, s = t.update(_only(tree, gs, members), s, _only(tree, leaves, members), **own)
                changed = align(tree, paths, changed, field)
                for i in members:
                    gs[i] = changed[i]
                new_states.append(s)
            states.append(tuple(new_states))
        return tree.unflatten([still.get(i, g) for i, g in enumerate(gs)]), PathState(*states)

    pair = PerLeaf(init, update)
    pair.choose = choose
    return pair


def _stillness(g: Any, p: Any) -> Any:
    """Return the update that moves nothing: -0.0 everywhere."""
    if isinstance(g, SelectedRows):
        return g.with_values(jnp.full_like(g.values, -0.0, dtype=jnp.result_type(p)))
    return jnp.full_like(p, -0.0)


def _stage(field: str, options: list[Any]) -> list[tuple[Any, list[int]]]:
    """The distinct transformations of a stage, each with the positions of its leaves."""
    stage: dict[int, tuple[Any, list[int]]] = {}
    for i, o in enumerate(options):
        t = None if o is None or o.frozen else getattr(o, field)
        if t is not None:
            stage.setdefault(id(t), (t, []))[1].append(i)
    return list(stage.values())


def _only(tree: Any, entries: list[Any], members: list[int]) -> Any:
    """Return the tree with these members of its entries, and None at all others."""
    return tree.unflatten(_of(members, entries))


def _of(members: list[int], entries: list[Any]) -> list[Any]:
    """Return the entries of these members, None in place of the others."""
    chosen = set(members)
    return [x if i in chosen else None for i, x in enumerate(entries)]


def _changed(t: Any, members: list[int], state: Any, grads: list[Any], params: list[Any]) -> list[Any]:
    """Return the gradients of all leaves, those of the members as a clip or decay leaves them."""
    new, _ = t.update(_of(members, grads), state, _of(members, params))
    return [n if i in set(members) else g for i, (g, n) in enumerate(zip(grads, new, strict=True))]


def _is_one(factor: Any) -> bool:
    """Return whether this factor on the rate is known to change nothing; it may be traced."""
    return isinstance(factor, int | float) and factor == 1


def _about(t: Any, options: dict[str, LeafOptions]) -> Any:
    """The same rule, told each leaf's factor on the rate and what its exclusions are asked about."""
    if all(o.leaf is None and _is_one(o.learning_rate) for o in options.values()):
        return t
    if not isinstance(t, Lifted):
        raise TypeError(f"a learning_rate factor needs a rule of paddlejax, such as adam(0.001), found {t!r}")
    source = t.source

    def leaf(path: str) -> tuple[Any, float]:
        about, factor = source.leaf(path)
        o = options.get(path)
        if o is None:
            return about, factor
        # Not times 1: a traced factor of many leaves must stay the same one.
        own = o.learning_rate if _is_one(factor) else factor * o.learning_rate
        return about if o.leaf is None else o.leaf, own

    return Lifted(*replace(source, leaf=leaf).pair())  # its rule was checked when it was lifted


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
    clip share one norm. A pattern that matches nothing is an error. `describe(params)` shows what every leaf
    gets. Master weights go around all of it: `with_master_weights(by_path(...))`. optax needs multi_transform
    and a tree of labels for this, torch a list of groups.

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

    def choose(path: str) -> LeafOptions:
        return next((options for pattern, options in rows if matches(pattern, path)), general)

    pair = per_leaf(choose)

    def check(params: ArrayTree) -> None:
        paths = [path_name(path) for path in flatten(params)[0]]
        for pattern, _ in rows:
            if not any(matches(pattern, path) for path in paths):
                raise ValueError(f"the pattern {pattern!r} matches no parameter: found {', '.join(paths)}")

    def init(params: ArrayTree) -> PathState:
        check(params)
        return pair.init(params)

    def describe(params: ArrayTree) -> str:
        check(params)
        return describe_leaves(params, choose)

    by_path = ByPath(init, pair.update)
    by_path.describe = describe
    return by_path


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
