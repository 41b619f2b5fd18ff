"""Float32 masters for parameters of 16 bits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .array_types import ArrayTree, Gradients
from .hyper import checked
from .lifting import GradientTransformation
from .selected_rows import SelectedRows
from .transform import apply_updates
from .trees import align, at_params, check_array, flatten, gradients, is_narrow
from .wrap import PAIR, check_params, check_state


class MasterState(NamedTuple):
    """What `with_master_weights` keeps."""

    master: Any  # tree like the parameters: float32 where they are narrower, None elsewhere
    inner: Any  # the state of what it wraps


@checked(inner=PAIR)
def with_master_weights(inner: GradientTransformation) -> GradientTransformation:
    """Let a whole optimizer work on float32 masters of bfloat16 and float16 parameters.

        M ← M + update(float32(g), M),    p ← round(M)

    Wrap the chain, decay and clip included: `with_master_weights(chain(l2_decay(1e-4), adam(1e-3)))`. The
    update it returns is M - p in float32, so that `apply_updates`, ours or optax's, lands on the rounded
    master; equinox's does not cast and would leave float32. Where somebody has changed p since the last
    update (p is not the rounded M) the master starts from the new p. Wider parameters are their own masters
    and cost nothing. A float16 parameter beyond its range is inf, to which no update can be added: NaN.
    A SelectedRows gradient is stepped in its rows, but the update, new master less p, is dense.
    optax has no such wrapper: its updates are rounded to 16 bits, and those smaller than half a unit are
    lost.

    >>> p = jnp.ones((), jnp.bfloat16)
    >>> tx = with_master_weights(sgd(0.001))
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(apply_updates(p, updates), state.master)
    1 0.999

    Micikevicius et al. 2018, arXiv:1710.03740; Paddle's multi_precision.
    """

    it = _Masters(inner)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Masters:
    inner: Any

    @at_params
    def init(self, params: ArrayTree) -> MasterState:
        paths, leaves, tree = flatten(params)
        for path, p in zip(paths, leaves, strict=True):
            if p is not None:
                check_array(path, p)
        master = [jnp.array(p, jnp.float32) if p is not None and is_narrow(p) else None for p in leaves]
        wide = [p if m is None else m for m, p in zip(master, leaves, strict=True)]
        return MasterState(tree.unflatten(master), self.inner.init(tree.unflatten(wide)))

    def update(
        self, grads: Gradients, state: MasterState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, MasterState]:
        check_params("with_master_weights", params)
        check_state("with_master_weights", state, MasterState)
        paths, leaves, tree = flatten(params)
        gs = gradients(tree, paths, leaves, grads, rows=True)
        master = list(map(_current, align(tree, paths, state.master, "masters"), leaves))
        wide = tree.unflatten([p if m is None else m for m, p in zip(master, leaves, strict=True)])
        for i, m in enumerate(master):
            if m is not None and gs[i] is not None:
                g = gs[i]
                gs[i] = g.astype(jnp.float32) if isinstance(g, SelectedRows) else jnp.asarray(g, jnp.float32)
        updates, inner_state = self.inner.update(tree.unflatten(gs), state.inner, wide, **extra)
        us = align(tree, paths, updates, "updates")
        news = align(tree, paths, apply_updates(wide, updates), "updates")
        for i, m in enumerate(master):
            if m is not None and us[i] is not None:
                master[i] = news[i]
                us[i] = news[i] - leaves[i].astype(jnp.float32)
        return tree.unflatten(us), MasterState(tree.unflatten(master), inner_state)


def _current(master: jax.Array | None, p: Any) -> jax.Array | None:
    return None if master is None else jnp.where(master.astype(p.dtype) == p, master, p.astype(jnp.float32))
