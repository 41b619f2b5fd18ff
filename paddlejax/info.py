"""What a step did, as values: norms, the clip's factor, trust ratios, the rate in force, skipped steps.

`with_info` measures each step: the gradient's norm before the clip, the clip's factor, the norms of update
and parameters, and the trust ratios of LAMB and LARS. `get_info(state)` returns them as arrays, with the
rate in force and the skipped steps; it works inside `jit`, `scan` and optax's chain. Objects have
`set_info()` and `get_info()`. Where it is off, a step is the program that it always was. `python
examples/monitor.py` plots all of it.

>>> tx = skip_nonfinite(with_info(lamb(0.01), grad_clip=clip_by_global_norm(1.0)))
>>> params, grads = {"w": jnp.ones((3, 2))}, {"w": jnp.full((3, 2), 2.0)}
>>> updates, state = tx.update(grads, tx.init(params), params)
>>> info = get_info(state)
>>> print(f"{info.gradient_norm:.3f} {info.clip_factor:.3f} {info.trust_ratios['w']:.3f} {info.skipped}")
4.899 0.204 0.990 0
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .array_types import ArrayTree, Gradients
from .clip import CLIP, as_clip
from .collectives import attempt, lockstep
from .hyper import SHARDED, checked
from .lifting import GradientTransformation
from .loss_scaling import LossScaleState, SkipState
from .norms import asked, root, squared_norms
from .rates import RuleState, get_learning_rate
from .selected_rows import SelectedRows
from .transform import chain
from .trees import (
    align,
    at_params,
    compute_dtype,
    dtype_of,
    flatten,
    gradients,
    is_placeholder,
    moved_dtype,
    path_name,
)
from .wrap import PAIR, check_params, check_state


class Info(NamedTuple):
    """What the last step did. Norms are ‖·‖₂ over all leaves that have a gradient; () float32 or wider.

    What nothing measures is None: the factor of a clip where there is none, the trust ratios of a rule
    without, the count of skips where nothing skips.
    """

    gradient_norm: Any  # before the clip
    update_norm: Any
    parameter_norm: Any  # before the update
    clip_factor: Any = None  # ‖clipped gradient‖ / ‖gradient‖: 1 where the clip changes nothing
    trust_ratios: Any = None  # () per leaf: what lamb and lars_momentum multiply the rate by
    learning_rate: Any = None  # the rate in force
    skipped: Any = None  # () int32, all steps that were left out so far


class Measures(NamedTuple):
    """What a state keeps of an Info: what `get_info` finds elsewhere is not there a second time."""

    gradient_norm: Any
    update_norm: Any
    parameter_norm: Any
    clip_factor: Any = None
    trust_ratios: Any = None


class InfoState(NamedTuple):
    """What `with_info` keeps."""

    info: Measures
    inner: tuple[Any, ...]  # the state of chain(tx), or chain(grad_clip, tx)


@checked(tx=PAIR, grad_clip=CLIP, sharded=SHARDED)
def with_info(
    tx: Any, *, grad_clip: Any = None, axis_name: Any = None, sharded: Any = None
) -> GradientTransformation:
    """The same optimizer, which also measures each step; `get_info(state)` says what it measured.

        gradient_norm    ‖g‖           update_norm    ‖u‖,  u ← tx(c)
        clip_factor      ‖c‖ / ‖g‖     parameter_norm ‖p‖
                         c ← grad_clip(g)

    It measures what comes in and goes out here, so it goes next to the rule, and all else around it:
    `skip_nonfinite(with_info(lamb(0.01), grad_clip=clip_by_global_norm(1.0)))`. There the gradients are
    unscaled, parameters are the masters, and a step that is skipped leaves the Info of the one before. Trust
    ratios are there if `tx` is `lamb(...)`, `lars_momentum(...)` or another lifted rule that has a
    `trust_ratio`; it is 1 where the rule does not adapt. Updates are those of `chain(grad_clip, tx)`, bit
    for bit. The norms cost a few more passes over the leaves; on CPU XLA also stores what it sums up, one or
    two trees beside the step's own (three for lamb). Squares are not guarded, as a clip's are: a norm
    beyond 1e19 in float32 is inf, one below 1e-22 is 0; the guard would keep one tree more.

    A leaf without a gradient does not count and keeps its ratio. A SelectedRows counts with its rows merged;
    where the update is one too, so do the same rows of the parameter. Before the first step all is 0. Under
    `shard_map` name the mesh axes over which leaves are sharded in `axis_name`; with check_vma=False also say
    in `sharded` which are, as for `clip_by_global_norm`. optax has no such wrapper; blackjax's `step` returns
    an Info.

    >>> tx = with_info(sgd(0.5), grad_clip=clip_by_global_norm(1.0))
    >>> p = jnp.array([6.0, 8.0])
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(p), p)
    >>> info = get_info(state)
    >>> print(info.gradient_norm, info.clip_factor, info.update_norm, info.parameter_norm)
    5.0 0.2 0.5 10.0
    """
    clip = as_clip(grad_clip)
    it = _WithInfo(
        tx, chain() if clip is None else chain(clip), chain(tx), clip is not None, axis_name, sharded
    )
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _WithInfo:
    tx: Any
    clips: GradientTransformation  # a chain of the clip, or of nothing
    step: GradientTransformation  # a chain of tx
    has_clip: bool
    axis_name: Any
    sharded: Any

    @at_params
    def init(self, params: ArrayTree) -> InfoState:
        paths, leaves, tree = flatten(params)
        dtypes = [moved_dtype(path, p) for path, p in zip(paths, leaves, strict=True)]
        dtype = widest(leaves)
        names = map(path_name, paths)
        adapts = getattr(self.tx, "adapts", lambda path: False)
        ratios = [
            jnp.zeros((), wide) if wide is not None and adapts(name) else None
            for name, wide in zip(names, dtypes, strict=True)
        ]
        kept = tree.unflatten(ratios) if any(r is not None for r in ratios) else None
        if is_placeholder(params) and adapts(""):
            kept = jnp.zeros(())  # ratios are no parameters, though their tree is like one
        info = Measures(
            *(jnp.zeros((), dtype) for _ in range(3)),
            clip_factor=jnp.zeros((), dtype) if self.has_clip else None,
            trust_ratios=kept,
        )
        return InfoState(info, (*self.clips.init(params), *self.step.init(params)))

    def update(
        self, grads: Gradients, state: InfoState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, InfoState]:
        check_params("with_info", params)
        check_state("with_info", state, InfoState)
        paths, leaves, tree = flatten(params)
        gs = gradients(tree, paths, leaves, grads, rows=True)
        clipped, clip_state = self.clips.update(grads, state.inner[:-1], params, **extra)
        updates, tx_state = self.step.update(clipped, state.inner[-1:], params, **extra)
        cs, us = (align(tree, paths, x, what) for x, what in ((clipped, "clipped"), (updates, "updates")))
        again = None
        if self.has_clip:
            again, _ = self.clips.update(apart(grads), state.inner[:-1], params, **extra)
            again = align(tree, paths, again, "clipped")
        names = list(map(path_name, paths))
        cuts = self.axis_name, [asked(self.sharded, name) for name in names]
        info = measure(gs, again, us, leaves, *cuts)
        if state.info.trust_ratios is not None:
            new = self.tx.trust_ratios(names, cs, leaves, state.inner[-1], tx_state[0])
            old = align(tree, paths, state.info.trust_ratios, "trust ratios")
            kept = [o if n is None else n for o, n in zip(old, new, strict=True)]
            info = info._replace(trust_ratios=tree.unflatten(kept))
        return updates, InfoState(info, (*clip_state, *tx_state))


def get_info(state: Any) -> Info:
    """What the `with_info` inside a state measured at the last step, with the rate and the skips beside it.

    A pure function of the state: inside `jit` and `scan` return its result. `learning_rate` is that of
    `get_learning_rate(state)`; `skipped` is what `skip_nonfinite` or `dynamic_loss_scale` counted.

    >>> tx = skip_nonfinite(with_info(sgd(0.5)))
    >>> p = jnp.ones(1)
    >>> _, state = tx.update(jnp.array([jnp.nan]), tx.init(p), p)
    >>> print(get_info(state).learning_rate, get_info(state).skipped, get_info(state).update_norm)
    0.5 1 0.0
    """
    found = _inside(state, InfoState)
    if len(found) != 1:
        expected = "the one that with_info makes"
        raise TypeError(
            f"state: found {len(found)} InfoStates in {type(state).__name__}, expected {expected}"
        )
    guards = _inside(state, (SkipState, LossScaleState))
    return Info(
        *found[0].info,
        learning_rate=get_learning_rate(state) if _inside(state, RuleState) else None,
        skipped=sum((s.total_skips for s in guards[1:]), guards[0].total_skips) if guards else None,
    )


def _inside(state: Any, kind: Any) -> list[Any]:
    """Return all states of this kind inside a state."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def measure(
    grads: list[Any],
    clipped: list[Any] | None,
    updates: list[Any],
    params: list[Any],
    axis_name: Any = None,
    sharded: list[Any] | None = None,
) -> Measures:
    """The norms of one step, from its leaves; `clipped` is None if there is no clip."""
    dtype = widest(params)
    reached = [_reached(u, p) for u, p in zip(updates, params, strict=True)]
    asked = [grads, updates, reached, *([] if clipped is None else [clipped])]

    def norm(leaves: list[Any]) -> jax.Array:
        return _norm(leaves, dtype, axis_name, sharded or [None] * len(leaves))

    attempts = {i: partial(attempt, partial(norm, leaves)) for i, leaves in enumerate(asked)}
    before, update, param, *after = lockstep(attempts).values()
    factor = None
    if after:
        nothing = before == 0
        factor = jnp.where(nothing, 1, after[0] / jnp.where(nothing, 1, before))
    return Measures(before, update, param, factor)


def apart(grads: Gradients) -> Any:
    """The same gradients, as others to XLA: clipped once more for the norm alone they are never stored."""
    return jax.lax.optimization_barrier(grads)


def _reached(update: Any, p: Any) -> Any:
    """What of the parameter the update changes."""
    if update is None:
        return None
    return update.merge().read(p) if isinstance(update, SelectedRows) else p


def _norm(leaves: list[Any], dtype: Any, axis_name: Any, sharded: list[Any]) -> jax.Array:
    """Return the norm of all leaves together, rows of a table merged first; 0 if there are none."""
    pairs = zip(leaves, sharded, strict=True)
    pairs = [(x, cut) for x, cut in pairs if x is not None and jnp.issubdtype(dtype_of(x), jnp.floating)]
    arrays = [(x.merge().values if isinstance(x, SelectedRows) else x, cut) for x, cut in pairs]
    wide = [jnp.asarray(x, compute_dtype((), x)) for x, _ in arrays]
    squares = [total.astype(dtype) for total in squared_norms(wide, axis_name, [cut for _, cut in arrays])]
    return root(sum(squares[1:], squares[0])) if squares else jnp.zeros((), dtype)


def widest(leaves: list[Any]) -> Any:
    """float32, or float64 beside a parameter of that."""
    dtypes = [moved_dtype((), p) for p in leaves]
    return jnp.result_type(jnp.float32, *(dtype for dtype in dtypes if dtype is not None))
