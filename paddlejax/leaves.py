"""The mechanism of all per-parameter options: what each leaf gets, and one state for those that share one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from .array_types import ArrayTree, Gradients
from .lifting import GradientTransformation, Lifted
from .selected_rows import SelectedRows
from .transform import takes_extra
from .trees import (
    align,
    at_params,
    check_array,
    flatten,
    gradients,
    is_frozen_gradient,
    is_placeholder,
    is_whole,
    path_name,
    unmoved,
)
from .wrap import check_params, check_state


class LeafOptions(NamedTuple):
    """What one leaf gets; leaves that get the same object share its state, and a clip's norm."""

    rule: Any  # a transformation, or None to hand on the clipped and decayed gradient
    learning_rate: float = 1.0  # factor on the rate
    weight_decay: Any = None  # a transformation, or None for no decay
    grad_clip: Any = None  # a transformation, or None for no clip
    frozen: bool = False
    leaf: Any = None  # what the rule's own exclusions are asked about, by default the path
    maximize: bool = False  # step along the gradient; a decay still pulls to zero, as in torch


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
        grads = _turned(grads, options)
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


def per_leaf(choose: Callable[[str], LeafOptions], table: Sequence[LeafOptions] = ()) -> PerLeaf:
    """Clip, decay and step every leaf as `choose(path)` says: the mechanism of all per-parameter options.

    `table` lists the options that `choose` may return. Optax's `tree_map_params` has no leaf to ask for: it
    is answered as if each option were used, in this order.
    """
    it = _PerLeaf(choose, tuple(table))
    pair = PerLeaf(it.init, it.update)
    pair.choose = choose
    return pair


@dataclass(frozen=True, eq=False)
class _PerLeaf:
    choose: Callable[[str], LeafOptions]
    table: tuple[LeafOptions, ...]

    def _resolve(self, params: Any) -> tuple[list[Any], list[Any], Any, list[Any]]:
        paths, leaves, tree = flatten(params)
        options = [
            None if p is None else self.choose(path_name(path)) for path, p in zip(paths, leaves, strict=True)
        ]
        return paths, leaves, tree, options

    @at_params
    def init(self, params: ArrayTree) -> PathState:
        paths, leaves, tree, options = self._resolve(params)
        for path, p, o in zip(paths, leaves, options, strict=True):
            if o is not None and o.frozen:
                check_array(path, p)
        used = self.table if is_placeholder(params) else options
        stages = [
            [(t, _only(tree, leaves, members)) for t, members in _stage(field, used)]
            for field in PathState._fields
        ]
        return PathState(*(tuple(t.init(own) for t, own in stage) for stage in stages))

    def update(
        self, grads: Gradients, state: PathState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, PathState]:
        check_params("a table of options by path", params)
        check_state("by_path", state, PathState)
        paths, leaves, tree, options = self._resolve(params)
        given = align(tree, paths, grads, "gradients")
        gs = _turned(gradients(tree, paths, leaves, grads, rows=True), options)
        still = {
            i: _stillness(g, leaves[i])
            for i, (g, o) in enumerate(zip(given, options, strict=True))
            if o and o.frozen and g is not None
        }
        states = []
        for field in PathState._fields:
            new_states = []
            stage, own_states = _stage(field, options), getattr(state, field)
            if len(stage) != len(own_states):
                found = f"{len(own_states)} {field} states"
                raise ValueError(f"the state is of another table: found {found}, expected {len(stage)}")
            for (t, members), s in zip(stage, own_states, strict=True):
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


def _turned(grads: list[Any], options: Sequence[Any]) -> list[Any]:
    """Return the gradients, with the other sign where the loss is to grow."""
    if not any(o is not None and o.maximize for o in options):
        return grads
    return [
        g if g is None or not o.maximize else g.with_values(-g.values) if isinstance(g, SelectedRows) else -g
        for g, o in zip(grads, options, strict=True)
    ]


def _stillness(g: Any, p: Any) -> Any:
    """Return the update that moves nothing: -0.0, 0 for an int, float0 for what is no number."""
    if isinstance(g, SelectedRows):
        return g.with_values(unmoved(g.values, jnp.result_type(p)))
    if is_frozen_gradient(g, p):
        return jnp.zeros_like(p) if is_whole(p) else g
    return unmoved(p)


def _stage(field: str, options: Sequence[Any]) -> list[tuple[Any, list[int]]]:
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
