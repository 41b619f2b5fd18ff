"""Local steps of every worker, and now and then one of all: DiLoCo."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..array_types import ArrayTree, Gradients
from ..collectives import mean, waiting
from ..hyper import COUNT, NAME, Must, checked, optional, whole
from ..lifting import GradientTransformation
from ..rules import momentum
from ..transform import apply_updates, chain
from ..trees import at_params, in_dtypes_of, next_count
from ..wrap import OPTIMIZER, check_params, check_state, is_transformation


class DiLoCoState(NamedTuple):
    """The state of `diloco`: what each worker has for itself has a leading axis of workers."""

    count: jax.Array  # () int32, local steps since the last exchange  # type: ignore[assignment]
    local: Any  # like params, (N, ...): each worker's own parameters
    inner: Any  # the local optimizer's, (N, ...); its scalars are the same on all
    outer: Any  # the outer optimizer's
    losses: jax.Array  # (N,) float32, the sum of each worker's losses since the last exchange
    loss: jax.Array  # () float32, the mean over workers and steps before the last exchange; NaN before any


@checked(
    inner=OPTIMIZER,
    k=COUNT,
    num_trainers=whole(1),
    outer=optional(Must(is_transformation, "a transformation such as momentum(0.7, 0.9, True)")),
    axis_name=NAME,
)
def diloco(
    inner: Any, k: int, num_trainers: int, outer: Any = None, *, axis_name: str = "data"
) -> GradientTransformation:
    """Let N workers train for k steps each by itself, then move to where they came, with outer momentum.

        at every step     p_w ← inner step of worker w with its own gradient at p_w
        at every k-th     Δ ← p - mean over w of p_w;  p ← outer step with Δ as gradient;  p_w ← p

    So the network carries the parameters once in k steps, whole and exact; `dgc_momentum` sends a little at
    every step and pays its latency each time. `outer` is by default `momentum(0.7, 0.9, use_nesterov=True)`,
    the paper's; with `sgd(1.0)` this is local SGD, the mean of all. The paper takes AdamW as `inner` and
    k = 500.

    Use it with `make_step`: its parameters are p, which move at every k-th step only, and its loss is the
    mean over all workers and the k steps before the last exchange, NaN before the first. By hand, inside
    `jax.shard_map` over `axis_name` with the specs of `state_specs`, take the gradient at
    `jax.tree.map(lambda x: x[0], state.local)`. The state has p_w, the inner state of each worker (a leading
    axis of workers; scalars such as counts are the same on all) and the outer state. For another number of
    workers see `redistribute`: each starts from the mean. A bad gradient of one worker is its own affair:
    guard `inner` by `skip_nonfinite` with this axis_name. optax has no namesake (optax.lookahead is that of
    one worker), torchft's DiLoCo is of this kind.

    >>> from paddlejax.distributed import make_step
    >>> mesh = jax.make_mesh((8,), ("data",))
    >>> tx = diloco(sgd(0.25), 2, 8, outer=sgd(1.0))
    >>> step, w, state = make_step(lambda w, x: jnp.mean((w - x) ** 2), tx, mesh, jnp.zeros(()))
    >>> for _ in range(2):
    ...     w, state, loss = step(w, state, jnp.ones(8))
    ...     print(w, loss)
    0.0 nan
    0.75 0.625

    Douillard et al. 2023, arXiv:2311.08105.
    """
    outer = momentum(0.7, 0.9, use_nesterov=True) if outer is None else outer
    it = _DiLoCo(chain(inner), chain(outer), k, num_trainers, axis_name)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _DiLoCo:
    inner: GradientTransformation
    outer: GradientTransformation
    k: int
    workers: int
    axis_name: str

    @at_params
    def init(self, params: ArrayTree) -> DiLoCoState:
        def own(x: Any) -> Any:
            return jnp.tile(x[None], (self.workers, *[1] * jnp.ndim(x))) if jnp.ndim(x) else x

        local = jax.tree.map(
            lambda p: jnp.tile(jnp.asarray(p)[None], (self.workers, *[1] * jnp.ndim(p))), params
        )
        inner = jax.tree.map(own, self.inner.init(params))
        losses, loss = jnp.zeros(self.workers, jnp.float32), jnp.full((), jnp.nan, jnp.float32)
        return DiLoCoState(jnp.zeros((), jnp.int32), local, inner, self.outer.init(params), losses, loss)

    def update(
        self, grads: Gradients, state: DiLoCoState, params: Any = None, **extra: Any
    ) -> tuple[Any, DiLoCoState]:
        check_params("diloco", params)
        check_state("diloco", state, DiLoCoState)
        self._check_axis()
        own = own_parameters(state, params)
        inner = jax.tree.map(lambda x: x[0] if jnp.ndim(x) else x, state.inner)
        updates, new = self.inner.update(grads, inner, own, **extra)
        inner = jax.tree.map(lambda x: x[None] if jnp.ndim(x) else x, in_dtypes_of(inner, new))
        own = apply_updates(own, updates)
        ride = waiting()
        # Without a loss that travels along there is none to report.
        losses = state.losses + (sum(x.astype(jnp.float32) for x in ride.xs) if ride.xs else jnp.nan)
        count = next_count(state.count, self.k)

        def exchange(own: Any, outer: Any, losses: Any, loss: Any) -> Any:
            wide = jax.tree.map(_difference, params, own)
            deltas, tree = jax.tree.flatten(wide)
            *deltas, loss = self._means([*deltas, losses[0] / self.k])
            updates, new = self.outer.update(tree.unflatten(deltas), outer, params)
            updates = jax.tree.map(lambda u, p: u.astype(jnp.result_type(p)), updates, params)
            back = jax.tree.map(self._own, apply_updates(params, updates))
            return updates, back, in_dtypes_of(outer, new), self._own(jnp.zeros(1, jnp.float32)), loss

        def go_on(own: Any, outer: Any, losses: Any, loss: Any) -> Any:
            return jax.tree.map(lambda p: jnp.full_like(p, -0.0), params), own, outer, losses, loss

        updates, own, outer, losses, loss = lax.cond(
            count % self.k == 0, exchange, go_on, own, state.outer, losses, state.loss
        )
        ride.arrived = [loss.astype(x.dtype) for x in ride.xs]
        local = jax.tree.map(lambda x: x[None], own)
        return updates, DiLoCoState(count, local, inner, outer, losses, loss)

    def _check_axis(self) -> None:
        """The axis has the right size; one worker needs none."""
        if self.workers == 1:
            return
        axis = self.axis_name
        try:
            size = lax.axis_size(axis)
        except NameError:
            expected = f"expected it inside jax.shard_map over the axis {axis!r}, as in make_step"
            raise RuntimeError(f"diloco's update: found outside, {expected}") from None
        if size != self.workers:
            found = f"found {self.workers}, expected {size}, the size of the axis {axis!r}"
            raise ValueError(f"diloco's num_trainers: {found}")

    def _means(self, xs: list[Any]) -> list[Any]:
        return mean(xs, self.axis_name) if self.workers > 1 else xs

    def _own(self, x: Any) -> Any:
        """The same numbers, typed as this worker's own."""
        return lax.pcast(x, self.axis_name, to="varying") if self.workers > 1 else x


def _difference(p: Any, own: Any) -> jax.Array:
    """Return p - own in float32 or wider."""
    wide = jnp.promote_types(jnp.result_type(p), jnp.float32)
    return jnp.asarray(p, wide) - own.astype(wide)


def own_parameters(state: ArrayTree, params: Any) -> Any:
    """Where a worker takes its gradient: its own parameters if the state has such, else those of all."""
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, DiLoCoState))
    for part in parts:
        if isinstance(part, DiLoCoState):
            return jax.tree.map(lambda x: x[0], part.local)
    return params
