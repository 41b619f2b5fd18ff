"""Gradients gathered over several small batches before an optimizer takes one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .array_types import ArrayTree, Gradients
from .hyper import COUNT, FLAG, checked
from .lifting import GradientTransformation
from .selected_rows import dense
from .spreading import delivered
from .transform import chain
from .trees import align, at_params, flatten, gradients, in_dtypes_of, moved_dtype, unmoved
from .wrap import OPTIMIZER, check_state


class AccumulateState(NamedTuple):
    """The state of `accumulate_gradients`."""

    count: jax.Array  # () int32, gradients in the sum  # type: ignore[assignment]
    gradients: Any  # like params, float32 or wider: their sum
    inner: Any  # the wrapped transformation's


@checked(inner=OPTIMIZER, k=COUNT, avg=FLAG)
def accumulate_gradients(inner: Any, k: int, avg: bool = True) -> GradientTransformation:
    """Step once for every k gradients, with their mean: k small batches train as one large batch.

        A ← A + g                                gradients, float32 or wider
        at every k-th call:  p ← inner step with A/k (A itself if not avg);  A ← 0

    All other updates are zeros, and the inner state does not move. With k = 1 this is `inner` itself. A leaf
    without a gradient gathers none; one that has none in the k-th call is left alone, and what it has
    gathered waits.

    An epoch may end before the k-th call. `update(grads, state, params, flush=True)` steps at once, with the
    mean of as many as have been gathered. With gradients that are all None it only steps, or does nothing if
    nothing has been gathered. `flush` may be traced, and wrappers of paddlejax hand it on. optax.MultiSteps
    keeps a running mean, in the parameters' dtype unless told otherwise, and has no flush.

    >>> tx = accumulate_gradients(sgd(1.0), 2)
    >>> first, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.zeros(1))
    >>> second, state = tx.update(jnp.full(1, 3.0), state, jnp.zeros(1))
    >>> print(first, second)
    [-0.] [-2.]

    Paddle's GradientMergeOptimizer.
    """
    if k == 1:
        return inner
    it = _Accumulate(chain(inner), k, avg)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Accumulate:
    """What is stepped, as a chain, and how often."""

    tx: GradientTransformation
    k: int
    avg: bool

    @at_params
    def init(self, params: ArrayTree) -> AccumulateState:
        paths, leaves, tree = flatten(params)
        pairs = [(p, moved_dtype(path, p)) for path, p in zip(paths, leaves, strict=True)]
        zeros = [None if dtype is None else jnp.zeros_like(p, dtype) for p, dtype in pairs]
        return AccumulateState(jnp.zeros((), jnp.int32), tree.unflatten(zeros), self.tx.init(params)[0])

    def update(
        self,
        grads: Gradients,
        state: AccumulateState,
        params: ArrayTree | None = None,
        *,
        flush: Any = False,
        **extra: Any,
    ) -> tuple[Any, AccumulateState]:
        check_state("accumulate_gradients", state, AccumulateState)
        tx, k = self.tx, self.k
        like = state.gradients if params is None else params
        paths, leaves, tree = flatten(like)
        gs = [dense(g) for g in gradients(tree, paths, leaves, grads, rows=True)]
        here = [i for i, g in enumerate(gs) if g is not None]
        sums = align(tree, paths, state.gradients, "accumulated gradients")
        for i, total in zip(here, add([sums[i] for i in here], [gs[i] for i in here]), strict=True):
            sums[i] = total
        if flush is False:
            count = state.count + jnp.ones_like(state.count)
            full, terms, stepped = count == k, k, here
        else:
            # A call without any gradient only flushes: it is not counted, and all that was gathered steps.
            number = 1 if here else 0
            count = state.count + jnp.full_like(state.count, number)
            full = (count == k) | (jnp.asarray(flush, bool) & (count > 0))
            terms = jnp.maximum(count, jnp.ones_like(count))
            stepped = here or [i for i, s in enumerate(sums) if s is not None]

        def step(sums: list[Any], inner_state: Any) -> Any:
            merged: list[Any] = [None] * len(gs)
            for i, g in zip(stepped, merge([sums[i] for i in stepped], terms, self.avg), strict=True):
                merged[i] = g
            updates, (new,) = tx.update(tree.unflatten(merged), (inner_state,), params, **extra)
            inner_state = in_dtypes_of(inner_state, new)
            emptied = [jnp.zeros_like(s) if i in set(stepped) else s for i, s in enumerate(sums)]
            return delivered(updates), emptied, inner_state

        def wait(sums: list[Any], inner_state: Any) -> Any:
            shapes = align(tree, paths, jax.eval_shape(step, sums, inner_state)[0], "updates")
            pairs = zip(sums, shapes, strict=True)
            still = [None if u is None else unmoved(s, u.dtype) for s, u in pairs]
            return tree.unflatten(still), sums, inner_state

        # Outside jit a cond would be compiled again at every call.
        if isinstance(full, Tracer):
            updates, sums, inner_state = jax.lax.cond(full, step, wait, sums, state.inner)
        else:
            updates, sums, inner_state = (step if bool(full) else wait)(sums, state.inner)
        left = count % k if flush is False else jnp.where(full, jnp.zeros_like(count), count)
        return updates, AccumulateState(left, tree.unflatten(sums), inner_state)


def add(sums: Sequence[jax.Array], grads: Sequence[Any]) -> list[jax.Array]:
    """Return sums + grads, each in the dtype of its sum."""
    return [s + jnp.asarray(g, s.dtype) for s, g in zip(sums, grads, strict=True)]


def merge(sums: Sequence[jax.Array], k: Any, avg: bool) -> list[jax.Array]:
    """The one gradient that stands for k of them."""
    return [s / jnp.asarray(k, s.dtype) if avg else s for s in sums]
