"""Gradients gathered over several small batches before an optimizer takes one step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .array_types import ArrayTree, Gradients
from .hyper import COUNT, FLAG, checked
from .lifting import GradientTransformation
from .selected_rows import dense
from .transform import chain
from .trees import align, compute_dtype, flatten, gradients, in_dtypes_of
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
    gathered waits. optax.MultiSteps keeps a running mean, in the parameters' dtype unless told otherwise.

    >>> tx = accumulate_gradients(sgd(1.0), 2)
    >>> first, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.zeros(1))
    >>> second, state = tx.update(jnp.full(1, 3.0), state, jnp.zeros(1))
    >>> print(first, second)
    [-0.] [-2.]

    Paddle's GradientMergeOptimizer.
    """
    if k == 1:
        return inner
    tx = chain(inner)

    def init(params: ArrayTree) -> AccumulateState:
        paths, leaves, tree = flatten(params)
        pairs = zip(paths, leaves, strict=True)
        zeros = [None if p is None else jnp.zeros(jnp.shape(p), compute_dtype(path, p)) for path, p in pairs]
        return AccumulateState(jnp.zeros((), jnp.int32), tree.unflatten(zeros), tx.init(params)[0])

    def update(
        grads: Gradients, state: AccumulateState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, AccumulateState]:
        check_state("accumulate_gradients", state, AccumulateState)
        like = state.gradients if params is None else params
        paths, leaves, tree = flatten(like)
        gs = [dense(g) for g in gradients(tree, paths, leaves, grads, rows=True)]
        here = [i for i, g in enumerate(gs) if g is not None]
        sums = align(tree, paths, state.gradients, "accumulated gradients")
        for i, total in zip(here, add([sums[i] for i in here], [gs[i] for i in here]), strict=True):
            sums[i] = total
        count = state.count + jnp.ones_like(state.count)

        def step(sums: list[Any], inner_state: Any) -> Any:
            merged: list[Any] = [None] * len(gs)
            for i, g in zip(here, merge([sums[i] for i in here], k, avg), strict=True):
                merged[i] = g
            updates, (new,) = tx.update(tree.unflatten(merged), (inner_state,), params, **extra)
            inner_state = in_dtypes_of(inner_state, new)
            emptied = [jnp.zeros_like(s) if i in set(here) else s for i, s in enumerate(sums)]
            return updates, emptied, inner_state

        def wait(sums: list[Any], inner_state: Any) -> Any:
            # -0.0 is the one number that leaves every other as it is, -0.0 included.
            shapes = align(tree, paths, jax.eval_shape(step, sums, inner_state)[0], "updates")
            pairs = zip(sums, shapes, strict=True)
            still = [None if u is None else jnp.full_like(s, -0.0, dtype=u.dtype) for s, u in pairs]
            return tree.unflatten(still), sums, inner_state

        # Outside jit a cond would be compiled again at every call.
        if isinstance(count, Tracer):
            updates, sums, inner_state = jax.lax.cond(count == k, step, wait, sums, state.inner)
        else:
            updates, sums, inner_state = (step if int(count) == k else wait)(sums, state.inner)
        return updates, AccumulateState(count % k, tree.unflatten(sums), inner_state)

    return GradientTransformation(init, update)


def add(sums: Sequence[jax.Array], grads: Sequence[Any]) -> list[jax.Array]:
    """Return sums + grads, each in the dtype of its sum."""
    return [s + jnp.asarray(g, s.dtype) for s, g in zip(sums, grads, strict=True)]


def merge(sums: Sequence[jax.Array], k: int, avg: bool) -> list[jax.Array]:
    """The one gradient that stands for k of them."""
    return [s / k if avg else s for s in sums]
