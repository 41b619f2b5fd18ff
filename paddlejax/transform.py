"""What joins transformations: chain them, apply their updates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .alike import in_groups
from .array_types import ArrayTree, Gradients
from .hyper import verify
from .lifting import GradientTransformation
from .selected_rows import SelectedRows, dense, is_rows
from .trees import (
    Known,
    align,
    at_params,
    compute_dtype,
    dtype_of,
    flatten,
    gradients,
    handed_on,
    in_chain,
    in_dtype,
    is_whole,
    names_of,
    path_name,
)
from .wrap import PAIR, check_params

COMPLEX = (np.complex64, np.complex128)


class Named(GradientTransformation):
    """A transformation that says what it is."""

    text: str = ""
    packs: bool = False  # whether to tensors laid end to end it does what it does to each
    source: Any = None  # the object that it was made of

    def __repr__(self) -> str:
        return self.text


def named(pair: GradientTransformation, source: Any, packs: bool = False) -> Named:
    """Return a transformation made of an object, whose text `describe` shows; see `Named` for `packs`."""
    it = Named(pair.init, pair.update)
    it.text, it.packs, it.source = str(source), packs, source
    return it


def identity() -> GradientTransformation:
    """Let gradients through unchanged.

    >>> updates, _ = identity().update({"w": 1.0}, ())
    >>> updates
    {'w': 1.0}
    """
    return GradientTransformation(_no_state, _unchanged)


def _no_state(params: ArrayTree) -> tuple[()]:
    return ()


def _unchanged(
    grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
) -> tuple[Any, Any]:
    return grads, state


def chain(*transformations: Any) -> GradientTransformation:
    """Apply transformations one after another, each to what the one before it returned.

    Takes optax's transformations as well. Paddle's order is clip, then decay, then the rule; the rule comes
    last since it turns gradients into steps.

    >>> tx = chain(clip_by_value(1.0), l2_decay(0.5), sgd(0.1))
    >>> p = jnp.array([2.0])
    >>> updates, state = tx.update(jnp.array([9.0]), tx.init(p), p)
    >>> print(updates)
    [-0.2]
    """
    for i, t in enumerate(transformations):
        verify(PAIR, f"chain's argument {i}", t)

    it = _Chain(transformations)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Chain:
    transformations: tuple[Any, ...]

    @at_params
    def init(self, params: ArrayTree) -> tuple[Any, ...]:
        return tuple(t.init(params) for t in self.transformations)

    def update(
        self, grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        number = len(self.transformations)
        if not isinstance(state, tuple) or len(state) != number:
            found = f"{len(state)} states" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"chain expects a tuple of {number} states, found {found}")
        states = []
        with in_chain.set(Known()):
            for i, (t, s) in enumerate(zip(self.transformations, state, strict=True)):
                _check_rows(f"chain's argument {i}", t, grads)
                grads, s = t.update(grads, s, params, **(extra if takes_extra(t) else {}))
                states.append(s)
        return grads, tuple(states)


def _check_rows(what: str, t: Any, grads: Any) -> None:
    """Others' transformations would take row numbers for values."""
    rows = not isinstance(t, GradientTransformation) and any(
        isinstance(x, SelectedRows) for x in jax.tree.leaves(grads, is_leaf=is_rows)
    )
    if rows:
        for path, g in zip(*flatten(grads)[:2], strict=True):
            if isinstance(g, SelectedRows):
                found = f"{type(t).__name__} cannot take the SelectedRows gradient at {path_name(path)}"
                raise TypeError(f"{what}: {found}, expected an array, such as its to_dense()")


def takes_extra(t: Any) -> bool:
    """Ours always, optax's when it says so by its type."""
    names = {cls.__name__ for cls in type(t).__mro__}
    return isinstance(t, GradientTransformation) or "GradientTransformationExtraArgs" in names


def apply_updates(params: ArrayTree, updates: Gradients) -> Any:
    """Parameters plus updates, added in float32 or wider and returned in each parameter's dtype.

    Where the update is None, or JAX's float0, the parameter stays as it is.

    >>> apply_updates({"fixed": 2.0, "w": 1.0}, {"fixed": None, "w": -0.25})
    {'fixed': 2.0, 'w': Array(0.75, dtype=float32)}
    """
    paths, leaves, tree = flatten(params)
    new, moved = list(leaves), {}
    for i, (path, p, u) in enumerate(zip(paths, leaves, align(tree, paths, updates, "updates"), strict=True)):
        if p is None or u is None or getattr(u, "dtype", None) == jax.dtypes.float0:
            continue
        if isinstance(u, SelectedRows) and u.shape == jnp.shape(p):
            new[i] = u.added_to(jnp.asarray(p))
            continue
        u = dense(u)
        if not hasattr(u, "dtype") and not isinstance(u, float | int):
            raise TypeError(
                f"at {path_name(path)}: found an update of type {type(u).__name__}, expected an array"
            )
        if jnp.shape(p) != jnp.shape(u):
            shapes = f"found an update of shape {jnp.shape(u)}, the parameter's is {jnp.shape(p)}"
            raise ValueError(f"at {path_name(path)}: {shapes}")
        if dtype_of(u) in COMPLEX:
            found = f"found an update of dtype {dtype_of(u)}, expected a real dtype"
            raise TypeError(f"at {path_name(path)}: {found}")
        if is_whole(p) and dtype_of(u) == dtype_of(p):  # by_path's zeros for a frozen one
            new[i] = jnp.add(p, u)
            continue
        compute_dtype(path, p)  # says what is wrong, and where
        moved[i] = p, u
    for i, p in zip(moved, in_groups(_moved, list(moved.values())), strict=True):
        new[i] = p
    return tree.unflatten(new)


def _moved(pairs: list[tuple[Any, Any]]) -> list[jax.Array]:
    wide = [compute_dtype((), p) for p, _ in pairs]
    sums = [jax.lax.add(in_dtype(p, w), in_dtype(u, w)) for (p, u), w in zip(pairs, wide, strict=True)]
    return [in_dtype(x, dtype_of(p)) for x, (p, _) in zip(sums, pairs, strict=True)]


Change = Callable[[list[jax.Array], list[jax.Array], list[str]], list[jax.Array]]


def merged(path: str, g: SelectedRows) -> SelectedRows:
    """A SelectedRows with every row once."""
    return g.merge()


def stateless(
    change: Change, rows: Callable[[str, SelectedRows], Any] = merged, reads_params: str | None = None
) -> GradientTransformation:
    """A transformation without state from a function of the gradients that exist, their parameters and paths.

    Gradients and parameters come as lists in float32 or wider; the results go back in the gradients' dtypes.
    A SelectedRows is first made what `rows` says; if it is one still, its values take part (with themselves
    as parameters). `reads_params` names who needs the parameters. What is to be pickled takes no lambdas.
    """
    it = _Stateless(change, rows, reads_params)
    return GradientTransformation(_no_state, it.update)


@dataclass(frozen=True, eq=False)
class _Stateless:
    change: Change
    rows: Callable[[str, SelectedRows], Any]
    reads_params: str | None

    def update(
        self, grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        if self.reads_params is not None:
            check_params(self.reads_params, params)
        paths, leaves, tree = flatten(grads if params is None else params)
        gs = gradients(tree, paths, leaves, grads, rows=True)
        given = list(gs) if all(g is not None for g in gs) else align(tree, paths, grads, "gradients")
        names, here, values, beside = names_of(paths), [], [], []
        for i, (path, g, p) in enumerate(zip(paths, gs, leaves, strict=True)):
            if isinstance(g, SelectedRows):
                gs[i] = g = self.rows(names[i], g)
            if g is None:
                continue
            g, p = (g.values, g.values) if isinstance(g, SelectedRows) else (g, p)
            wide, other = compute_dtype(path, g), compute_dtype(path, leaves[i])
            wide = wide if wide is other else jnp.promote_types(wide, other)
            here.append(i)
            values.append(in_dtype(g, wide))
            beside.append(in_dtype(p, wide))
        changed = self.change(values, beside, [names[i] for i in here]) if here else []
        for i, new in zip(here, changed, strict=True):
            g = gs[i]
            new = in_dtype(new, dtype_of(g))
            given[i] = g.with_values(new) if isinstance(g, SelectedRows) else new
        return handed_on(tree, given, [None if g is None else jnp.shape(g) for g in gs]), state
