"""Muon over a tree: which leaves are matrices, and what steps the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from . import rules
from .array_types import ArrayTree, Gradients, LearningRate
from .hyper import FACTOR, optional, verify
from .lifting import GradientTransformation, Lifted, lift, lifted
from .paths import LeafOptions, PathState, PerLeaf, describe_leaves, per_leaf
from .rules.muon import MuonParamInfo
from .selected_rows import is_rows
from .trees import is_placeholder, matches, path_name
from .wrap import check_params

P = ParamSpec("P")
Shapes = dict[str, tuple[int, ...] | None]  # None for a leaf that is not there, or is stepped elsewhere


class Division:
    """The optimizers that step the leaves of one tree, made of Muon's arguments; at most one of a kind."""

    def __init__(self, rule: rules.Muon, learning_rate: LearningRate):
        verify(optional(*FACTOR), "Muon's muon_epsilon", rule.muon_epsilon)  # finite, and at least 0
        self.rule, self._rate = rule, learning_rate
        self._kinds: dict[tuple[bool, bool], Lifted] = {}

    def of(self, name: str, shape: tuple[int, ...]) -> Lifted:
        """Return the optimizer of the leaf with this path or name."""
        info = self.rule.info(name, shape)
        kind = info.use_muon, info.use_hyperball
        if kind not in self._kinds:
            self._kinds[kind] = lift(self.rule.of(info), self._rate)
        return self._kinds[kind]

    def used(self) -> list[Lifted]:
        """Return the optimizers in the order of the leaves that had them first; both if there was no leaf."""
        for shape in () if self._kinds else ((1, 1), ()):
            self.of("", shape)
        return list(self._kinds.values())

    def check(self, shapes: Shapes) -> None:
        """Raise if an entry of the map is of no leaf, or if a leaf cannot be stepped as its entry says."""
        for key, _ in self.rule.muon_param_info_map or ():
            if not any(key == name or matches(key, name) for name in shapes):
                found = f"matches no parameter: found {', '.join(shapes)}"
                raise ValueError(f"Muon's muon_param_info_map: the key {key!r} {found}")
        for name, shape in shapes.items():
            if shape is not None:
                self.matrices(name, shape)

    def matrices(self, name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes (..., rows, columns) that a leaf of this shape is iterated in, or raise."""
        info, found = self.rule.info(name, shape), []
        if not info.use_muon:
            return []
        where, split = f"at {name}: found a parameter of shape {shape}, expected", info.split_concat_func
        if split is None and len(shape) not in (2, 3):
            raise ValueError(f"{where} (rows, columns), a stack of these, or splits.axes(...) in the map")
        if info.use_hyperball and len(shape) not in (2, 3):
            raise ValueError(f"{where} (rows, columns) or a stack of these with use_hyperball")

        def ortho(x: jax.Array) -> jax.Array:
            if x.ndim < 2:
                raise ValueError(f"found a part of shape {x.shape}, expected (..., rows, columns)")
            found.append(x.shape)
            return x

        def run(x: jax.Array) -> jax.Array:
            return ortho(x) if split is None else split(x, ortho)

        try:
            result = jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))
        except (ValueError, TypeError, AttributeError, LookupError) as e:  # the function may be the user's
            raise ValueError(f"at {name}: {e}") from e
        if result.shape != shape:
            raise ValueError(f"at {name}: {split} returned the shape {result.shape}, expected {shape}")
        return found


class Divided(GradientTransformation):
    """What `muon` returns: the pair, and `describe(params)`, a table of what every leaf gets."""

    describe: Callable[[Any], str]
    division: Division

    def __repr__(self) -> str:
        return f"muon({self.division.rule})"


def divided(division: Division) -> Divided:
    """Return the optimizer that steps every leaf of a tree as the division says."""
    it = _Divided(division)
    pair = Divided(it.init, it.update)
    pair.describe, pair.division = it.describe, division
    return pair


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What every leaf gets, by its path."""

    division: Division
    shapes: Shapes

    def __call__(self, path: str) -> LeafOptions:
        return LeafOptions(self.division.of(path, self.shapes[path] or ()))


@dataclass(frozen=True, eq=False)
class _Divided:
    division: Division

    def _over(self, params: Any) -> tuple[Shapes, PerLeaf]:
        shapes = _shapes(params)
        return shapes, per_leaf(_Chosen(self.division, shapes))

    def init(self, params: ArrayTree) -> PathState:
        if is_placeholder(params):  # for the state of the tree that this optimizer was given
            choose = _Chosen(self.division, {})
            return per_leaf(choose, list(map(LeafOptions, self.division.used()))).init(params)
        shapes, pair = self._over(params)
        self.division.check(shapes)
        return pair.init(params)

    def update(
        self, grads: Gradients, state: PathState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, PathState]:
        check_params("muon", params)
        return self._over(params)[1].update(grads, state, params, **extra)

    def describe(self, params: ArrayTree) -> str:
        shapes, pair = self._over(params)
        self.division.check(shapes)
        head, *lines = describe_leaves(params, pair.choose).split("\n")
        rows = [(head, "matrices")]
        there = [(name, shape) for name, shape in shapes.items() if shape is not None]
        rows += zip(lines, [_text(self.division.matrices(*leaf)) for leaf in there], strict=True)
        width = max(len(line) for line, _ in rows)
        return "\n".join(f"{line.ljust(width)}  {cell}".rstrip() for line, cell in rows)


def _shapes(params: ArrayTree) -> Shapes:
    """Return the shape of every leaf, by path; None also for a node without leaves, as of optax.masked."""
    pairs, _ = tree_flatten_with_path(params, is_leaf=lambda x: is_rows(x) or not jax.tree.leaves(x))
    return {path_name(path): jnp.shape(p) if jax.tree.leaves(p) else None for path, p in pairs}


def _text(matrices: Iterable[tuple[int, ...]]) -> str:
    """Say what one leaf is iterated as: `8 of 64 x 16`."""
    counts: dict[str, int] = {}
    for *batch, rows, columns in matrices:
        size = f"{rows} x {columns}"
        counts[size] = counts.get(size, 0) + int(np.prod(batch, dtype=int))
    return ", ".join(size if n == 1 else f"{n} of {size}" for size, n in counts.items())


class Factory(Generic[P]):
    """The type of `muon`: the rate, then the rule's own arguments."""

    def __call__(self, learning_rate: LearningRate = 0.02, *args: P.args, **kwargs: P.kwargs) -> Divided: ...


def _factory(cls: Callable[P, rules.Muon]) -> Factory[P]:
    """Make `muon`: arguments, page and errors are those of its rule's function."""
    of_one = lifted(cls, 0.02)

    def muon(*args: Any, **kwargs: Any) -> Divided:
        source: Any = of_one(*args, **kwargs).source
        return divided(Division(source.rule, source.learning_rate))

    muon.__doc__, muon.__qualname__ = of_one.__doc__, "muon"
    muon.__signature__ = of_one.__signature__  # type: ignore[attr-defined]
    return muon  # type: ignore[return-value]


muon = _factory(rules.Muon)
__all__ = ["Divided", "Division", "Factory", "MuonParamInfo", "divided", "muon"]
