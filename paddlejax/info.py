"""What a step did, as values: norms, the clip's factor, trust ratios, the rate in force, skipped steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .array_types import ArrayTree, Gradients
from .clip import CLIP, as_clip
from .hyper import checked
from .lifting import GradientTransformation
from .loss_scaling import LossScaleState, SkipState
from .norms import root, squared_norm
from .rates import RuleState, get_learning_rate
from .selected_rows import SelectedRows
from .transform import chain
from .trees import align, beside, compute_dtype, flatten, gradients, path_name
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


class InfoState(NamedTuple):
    """What `with_info` keeps."""

    info: Info  # without what `get_info` reads elsewhere in the state
    inner: tuple[Any, ...]  # the state of chain(tx), or chain(grad_clip, tx)


@checked(tx=PAIR, grad_clip=CLIP)
def with_info(tx: Any, *, grad_clip: Any = None, axis_name: Any = None) -> GradientTransformation:
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
    two trees beside the step's own (three for lamb).

    A leaf without a gradient does not count and keeps its ratio. A SelectedRows counts with its rows merged;
    where the update is one too, so do the same rows of the parameter. Before the first step all is 0. Under
    `shard_map` name the mesh axes over which leaves are sharded in `axis_name`. optax has no such wrapper;
    blackjax's `step` returns an Info.

    >>> tx = with_info(sgd(0.5), grad_clip=clip_by_global_norm(1.0))
    >>> p = jnp.array([6.0, 8.0])
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(p), p)
    >>> info = get_info(state)
    >>> print(info.gradient_norm, info.clip_factor, info.update_norm, info.parameter_norm)
    5.0 0.2 0.5 10.0
    """
    clip = as_clip(grad_clip)
    clips = chain() if clip is None else chain(clip)
    step = chain(tx)
    adapts = getattr(tx, "adapts", lambda path: False)

    def init(params: ArrayTree) -> InfoState:
        paths, leaves, tree = flatten(params)
        dtypes = [
            None if p is None else compute_dtype(path, p) for path, p in zip(paths, leaves, strict=True)
        ]
        dtype = widest(leaves)
        names = map(path_name, paths)
        ratios = [
            jnp.zeros((), wide) if wide is not None and adapts(name) else None
            for name, wide in zip(names, dtypes, strict=True)
        ]
        info = Info(
            *(jnp.zeros((), dtype) for _ in range(3)),
            clip_factor=None if clip is None else jnp.zeros((), dtype),
            trust_ratios=tree.unflatten(ratios) if any(r is not None for r in ratios) else None,
        )
        return InfoState(beside(leaves, info), (*clips.init(params), *step.init(params)))

    def update(
        grads: Gradients, state: InfoState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, InfoState]:
        check_params("with_info", params)
        check_state("with_info", state, InfoState)
        paths, leaves, tree = flatten(params)
        gs = gradients(tree, paths, leaves, grads, rows=True)
        clipped, clip_state = clips.update(grads, state.inner[:-1], params, **extra)
        updates, tx_state = step.update(clipped, state.inner[-1:], params, **extra)
        cs, us = (align(tree, paths, x, what) for x, what in ((clipped, "clipped"), (updates, "updates")))
        again = None
        if clip is not None:
            again, _ = clips.update(apart(grads), state.inner[:-1], params, **extra)
            again = align(tree, paths, again, "clipped")
        info = measure(gs, again, us, leaves, axis_name)
        if state.info.trust_ratios is not None:
            new = tx.trust_ratios(list(map(path_name, paths)), cs, leaves, state.inner[-1], tx_state[0])
            old = align(tree, paths, state.info.trust_ratios, "trust ratios")
            kept = [o if n is None else n for o, n in zip(old, new, strict=True)]
            info = info._replace(trust_ratios=tree.unflatten(kept))
        return updates, InfoState(info, (*clip_state, *tx_state))

    return GradientTransformation(init, update)


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
    return found[0].info._replace(
        learning_rate=get_learning_rate(state) if _inside(state, RuleState) else None,
        skipped=sum((s.total_skips for s in guards[1:]), guards[0].total_skips) if guards else None,
    )


def _inside(state: Any, kind: Any) -> list[Any]:
    """Return all states of this kind inside a state."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def measure(
    grads: list[Any], clipped: list[Any] | None, updates: list[Any], params: list[Any], axis_name: Any = None
) -> Info:
    """The norms of one step, from its leaves; `clipped` is None if there is no clip."""
    dtype = widest(params)
    before, update = _norm(grads, dtype, axis_name), _norm(updates, dtype, axis_name)
    reached = [_reached(u, p) for u, p in zip(updates, params, strict=True)]
    factor = None
    if clipped is not None:
        nothing = before == 0
        factor = jnp.where(nothing, 1, _norm(clipped, dtype, axis_name) / jnp.where(nothing, 1, before))
    return Info(before, update, _norm(reached, dtype, axis_name), factor)


def apart(grads: Gradients) -> Any:
    """The same gradients, as others to XLA: clipped once more for the norm alone they are never stored."""
    return jax.lax.optimization_barrier(grads)


def _reached(update: Any, p: Any) -> Any:
    """What of the parameter the update changes."""
    if update is None:
        return None
    return update.merge().read(p) if isinstance(update, SelectedRows) else p


def _norm(leaves: list[Any], dtype: Any, axis_name: Any) -> jax.Array:
    """Return the norm of all leaves together, rows of a table merged first; 0 if there are none."""
    arrays = [x.merge().values if isinstance(x, SelectedRows) else x for x in leaves if x is not None]
    squares = [squared_norm(jnp.asarray(x, compute_dtype((), x)), axis_name).astype(dtype) for x in arrays]
    return root(sum(squares[1:], squares[0])) if squares else jnp.zeros((), dtype)


def widest(leaves: list[Any]) -> Any:
    """float32, or float64 beside a parameter of that."""
    return jnp.result_type(jnp.float32, *(compute_dtype((), p) for p in leaves if p is not None))
