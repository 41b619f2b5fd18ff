"""Averages of parameters beside an optimizer, and lookahead around one: pure functions over any pytree."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .array_types import ArrayTree, Gradients, Init, Numeric
from .hyper import (
    COUNT,
    FINITE,
    FRACTION,
    INT,
    NUMBER,
    ArgumentError,
    Interval,
    Must,
    check_rounded,
    checked,
    number,
    one_of,
    optional,
    unless,
)
from .lifting import GradientTransformation
from .selected_rows import dense, is_rows
from .spreading import whole_updates
from .transform import apply_updates, chain
from .trees import (
    align,
    at_params,
    compute_dtype,
    flatten,
    is_whole,
    moved_dtype,
    next_count,
    path_name,
    unmoved,
)
from .wrap import OPTIMIZER, check_params, check_state

BELOW_ONE = Interval(0, 1, open=True)
ROTATION = 16384  # after so many updates Paddle moves sum_1 to sum_2, to keep the small terms


class Average(NamedTuple):
    """Three pure functions: start an average, take the parameters as they are now into it, read it.

    >>> average = exponential_moving_average(0.5)
    >>> state = average.update(jnp.ones(2), average.init(jnp.ones(2)))
    >>> print(average.value(state))
    [1. 1.]
    """

    init: Init  # params -> state
    update: Callable[[ArrayTree, Any], Any]  # (params, state) -> state
    value: Callable[[Any], Any]  # state -> the averages, a tree like params in float32 or wider


class MovingAverageState(NamedTuple):
    """The state of `exponential_moving_average`."""

    count: jax.Array  # () int32, updates made  # type: ignore[assignment]
    decay: jax.Array  # () float32 (float64 beside float64 parameters), the rate of the last update
    ema: Any  # like params, not corrected


class ModelAverageState(NamedTuple):
    """The state of `model_average`, with Paddle's accumulator names."""

    sum_1: Any  # like params: the newest terms
    sum_2: Any  # the older ones of this window
    sum_3: Any  # the whole window before
    num_accumulates: jax.Array  # () int32, terms in sum_1 and sum_2
    old_num_accumulates: jax.Array  # () int32, terms in sum_3
    num_updates: jax.Array  # () int32


class LookaheadState(NamedTuple):
    """The state of `lookahead`."""

    count: jax.Array  # () int32, inner steps taken  # type: ignore[assignment]
    slow: Any  # like params
    inner: Any  # the wrapped transformation's


@checked(
    decay=(NUMBER, BELOW_ONE),
    thres_steps=optional(unless(callable, NUMBER, FINITE)),
)
def exponential_moving_average(decay: Numeric = 0.999, thres_steps: Any = None) -> Average:
    """Average the parameters with weights that fall off exponentially into the past.

        d ← min(decay, (s + 1)/(s + 10))   with thres_steps s; without, d = decay
        E ← d E + (1-d) p                  ema, from 0
        value = E/(1 - dᵗ)                 t updates; E itself at t = 0

    `thres_steps` is a function of the number of earlier updates, or a number. As in Paddle's kernel the
    correction uses the rate d of the last update only, also where earlier ones differed. Reading is pure:
    Paddle 1.8.5 overwrites E with the corrected value. optax.ema with debias averages updates, not
    parameters, and keeps d constant; torch's get_ema_multi_avg_fn starts at the first parameters and corrects
    nothing.

    >>> average = exponential_moving_average(0.9, lambda count: count)
    >>> state = average.init(jnp.zeros(1))
    >>> for p in (1.0, 2.0):
    ...     state = average.update(jnp.array([p]), state)
    >>> print(state.decay, average.value(state))
    0.18181819 [1.8615]

    Paddle's ExponentialMovingAverage.
    """

    it = _MovingAverage(decay, thres_steps)
    return Average(it.init, it.update, it.value)


@dataclass(frozen=True, eq=False)
class _MovingAverage:
    decay: Any
    thres_steps: Any

    @at_params
    def init(self, params: ArrayTree) -> MovingAverageState:
        wide, zeros = _zeros(params)
        for path, zero in zip(*flatten(zeros)[:2], strict=True):
            if zero is not None:
                name = f"at {path_name(path)}: exponential_moving_average's decay"
                check_rounded(name, self.decay, BELOW_ONE, zero.dtype)
        return MovingAverageState(jnp.zeros((), jnp.int32), jnp.array(self.decay, wide), zeros)

    def update(self, params: ArrayTree, state: MovingAverageState) -> MovingAverageState:
        check_state("exponential_moving_average", state, MovingAverageState)
        dtype = state.decay.dtype
        d = jnp.asarray(self.decay, dtype)
        if self.thres_steps is not None:
            s = self.thres_steps(state.count) if callable(self.thres_steps) else self.thres_steps
            number("what exponential_moving_average's thres_steps returned", s)
            s = jnp.asarray(s, dtype)
            d = jnp.minimum(d, (s + 1) / (s + 10))
        leaves, (averages,), tree = _columns(params, ema=state.ema)
        one = jnp.ones((), dtype)
        moved = [
            e if p is None else d.astype(e.dtype) * e + (one - d).astype(e.dtype) * p
            for p, e in zip(leaves, averages, strict=True)
        ]
        return MovingAverageState(next_count(state.count), d, tree.unflatten(moved))

    def value(self, state: MovingAverageState) -> Any:
        check_state("exponential_moving_average", state, MovingAverageState)
        d = state.decay
        correction = jnp.ones((), d.dtype) - d ** state.count.astype(d.dtype)
        divisor = jnp.where(state.count == 0, jnp.ones((), d.dtype), correction)
        return jax.tree.map(lambda e: e / divisor.astype(e.dtype), state.ema)


@checked(
    average_window_rate=(NUMBER, FINITE),
    max_average_window=INT,
    min_average_window=(
        INT,
        Must(
            lambda low, max_average_window: low <= max_average_window,
            "at most max_average_window, {max_average_window}",
            ArgumentError,
        ),
    ),
)
def model_average(
    average_window_rate: Numeric, min_average_window: int = 10000, max_average_window: int = 10000
) -> Average:
    """Average the parameters of the last steps with equal weights, over a window that grows with training.

        N ← N + 1;  n ← n + 1;  S₁ ← S₁ + p        num_updates, num_accumulates, sum_1
        if N mod 16384 = 0:  S₂ ← S₂ + S₁;  S₁ ← 0                               sum_2
        if n ≥ min_average_window and n ≥ min(max_average_window, ⌊N·rate⌋):
            S₃ ← S₁ + S₂;  S₁, S₂ ← 0;  o ← n;  n ← 0         sum_3, old_num_accumulates
        value = (S₁ + S₂ + S₃)/(n + o)                             0/0 before any update

    The average covers the current window and the whole one before it; the product N·rate is float32.
    torch's AveragedModel never forgets; optax has no average over a window.

    >>> average = model_average(1.0, 2, 2)
    >>> state = average.init(jnp.zeros(1))
    >>> for p in (1.0, 2.0, 3.0, 4.0, 5.0):
    ...     state = average.update(jnp.array([p]), state)
    >>> print(average.value(state))
    [4.]

    Paddle's ModelAverage. Polyak & Juditsky 1992.
    """
    largest = jnp.iinfo(jnp.int32).max
    shortest, longest = (min(size, largest) for size in (min_average_window, max_average_window))
    it = _ModelAverage(average_window_rate, shortest, longest)
    return Average(it.init, it.update, it.value)


@dataclass(frozen=True, eq=False)
class _ModelAverage:
    rate: Any
    shortest: int
    longest: int

    @at_params
    def init(self, params: ArrayTree) -> ModelAverageState:
        one, two, three = (_zeros(params)[1] for _ in range(3))
        none, old, updates = (jnp.zeros((), jnp.int32) for _ in range(3))
        return ModelAverageState(one, two, three, none, old, updates)

    def update(self, params: ArrayTree, state: ModelAverageState) -> ModelAverageState:
        check_state("model_average", state, ModelAverageState)
        leaves, sums, tree = _columns(params, sum_1=state.sum_1, sum_2=state.sum_2, sum_3=state.sum_3)
        updates, n = next_count(state.num_updates, ROTATION), next_count(state.num_accumulates)
        window = updates.astype(jnp.float32) * jnp.asarray(self.rate, jnp.float32)
        window = jnp.minimum(jnp.asarray(self.longest, n.dtype), window.astype(n.dtype))
        rotates = updates % ROTATION == 0
        closes = (n >= self.shortest) & (n >= window)

        def move(p: jax.Array, s1: jax.Array, s2: jax.Array, s3: jax.Array) -> tuple[jax.Array, ...]:
            zero = jnp.zeros_like(s1)
            s1 = s1 + p
            s1, s2 = jnp.where(rotates, zero, s1), jnp.where(rotates, s2 + s1, s2)
            s3 = jnp.where(closes, s1 + s2, s3)
            return jnp.where(closes, zero, s1), jnp.where(closes, zero, s2), s3

        moved = [(p, p, p) if p is None else move(p, *s) for p, *s in zip(leaves, *sums, strict=True)]
        one, two, three = (tree.unflatten([row[i] for row in moved]) for i in range(3))
        kept, old = jnp.where(closes, jnp.zeros_like(n), n), jnp.where(closes, n, state.old_num_accumulates)
        return ModelAverageState(one, two, three, kept, old, updates)

    def value(self, state: ModelAverageState) -> Any:
        check_state("model_average", state, ModelAverageState)
        counts = state.num_accumulates, state.old_num_accumulates

        def mean(s1: jax.Array, s2: jax.Array, s3: jax.Array) -> jax.Array:
            new, old = (n.astype(s1.dtype) for n in counts)  # whose sum may be no int32
            return (s1 + s2 + s3) / (new + old)

        return jax.tree.map(mean, state.sum_1, state.sum_2, state.sum_3)


@checked(inner=OPTIMIZER, alpha=FRACTION, k=COUNT, slow_start=one_of("first_step", "initial"))
def lookahead(
    inner: Any, alpha: Numeric = 0.5, k: int = 5, *, slow_start: str = "first_step"
) -> GradientTransformation:
    """Let an optimizer run ahead for k steps, then go back part of the way to where slow weights stand.

        p ← inner step;  T ← T + 1
        if T mod k = 0:  p ← α p + (1-α) φ;  φ ← p        slow

    With slow_start "first_step", as in Paddle 2 and 3, the slow weights φ start as what the first inner
    step leads to, for a leaf whose gradient comes later as the leaf itself (in Paddle at 0, which pulls
    it half-way there); with "initial", as in Paddle 1.x and the paper, they start as the initial
    parameters. A leaf without a gradient is left alone, also at a synchronization. optax.lookahead needs
    parameters in pairs (LookaheadParams); here they stay as they are.

    >>> tx = lookahead(sgd(1.0), alpha=0.5, k=2, slow_start="initial")
    >>> p, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    >>> for _ in range(2):
    ...     updates, state = tx.update(-jnp.ones(1), state, p)
    ...     p = apply_updates(p, updates)
    >>> print(p)
    [1.]

    Zhang, Lucas, Hinton & Ba 2019, arXiv:1907.08610.
    """
    it = _Lookahead(chain(inner), alpha, k, slow_start == "initial")
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Lookahead:
    tx: GradientTransformation
    alpha: Any
    k: int
    initial: bool

    @at_params
    def init(self, params: ArrayTree) -> LookaheadState:
        paths, leaves, tree = flatten(params)
        start = jnp.array if self.initial else jnp.zeros_like
        moved = [moved_dtype(path, p) is not None for path, p in zip(paths, leaves, strict=True)]
        slow = tree.unflatten([start(p) if here else None for p, here in zip(leaves, moved, strict=True)])
        return LookaheadState(jnp.zeros((), jnp.int32), slow, self.tx.init(params)[0])

    def update(
        self, grads: Gradients, state: LookaheadState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, LookaheadState]:
        check_params("lookahead", params)
        check_state("lookahead", state, LookaheadState)
        with whole_updates.set(None):  # they are not the last word yet
            updates, (inner_state,) = self.tx.update(grads, (state.inner,), params, **extra)
        updates = jax.tree.map(dense, updates, is_leaf=is_rows)
        leaves, (slow,), tree = _columns(params, slow=state.slow, wide=False)
        paths = flatten(params)[0]
        gs, us = (align(tree, paths, t, name) for t, name in ((grads, "gradients"), (updates, "updates")))
        count = next_count(state.count, self.k)
        syncs = count % self.k == 0
        for i, (p, u) in enumerate(zip(leaves, us, strict=True)):
            if gs[i] is None or u is None or is_whole(p):
                if slow[i] is not None and not self.initial:  # who joins later starts from where it stands
                    slow[i] = jnp.where(count == 1, jnp.asarray(p, slow[i].dtype), slow[i])
                continue
            new, wide = apply_updates(p, u), compute_dtype(paths[i], p)
            start = slow[i] if self.initial else jnp.where(count == 1, new, slow[i])
            synced = interpolate(new, start, self.alpha)
            slow[i] = jnp.where(syncs, synced, start)
            back = synced.astype(wide) - jnp.asarray(p, wide)
            back = jnp.where(back == 0, unmoved(back), back)
            us[i] = jnp.where(syncs, back.astype(u.dtype), u)
        return tree.unflatten(us), LookaheadState(count, tree.unflatten(slow), inner_state)


def interpolate(p: jax.Array, slow: jax.Array, alpha: Numeric) -> jax.Array:
    """α p + (1-α) φ in p's dtype, computed in float32 or wider."""
    wide = compute_dtype((), p)
    a, x, y = jnp.asarray(alpha, wide), p.astype(wide), slow.astype(wide)
    # Where both agree, a parameter that never moves must not be moved by rounding either.
    return jnp.where(x == y, x, a * x + (jnp.ones((), wide) - a) * y).astype(p.dtype)


def _zeros(params: Any) -> tuple[Any, Any]:
    """The widest dtype the parameters are averaged in, and zeros like them, each in its own such dtype."""
    paths, leaves, tree = flatten(params)
    dtypes = [None if p is None else compute_dtype(path, p) for path, p in zip(paths, leaves, strict=True)]
    zeros = [None if d is None else jnp.zeros_like(p, d) for p, d in zip(leaves, dtypes, strict=True)]
    return jnp.float64 if jnp.float64 in dtypes else jnp.float32, tree.unflatten(zeros)


def _columns(params: Any, wide: bool = True, **trees: Any) -> tuple[list[Any], list[list[Any]], Any]:
    """The leaves of the parameters, and those of trees like them: of equal shapes, or an error by name."""
    paths, leaves, tree = flatten(params)
    columns = [align(tree, paths, other, name) for name, other in trees.items()]
    for name, column in zip(trees, columns, strict=True):
        for path, p, x in zip(paths, leaves, column, strict=True):
            if p is not None and not is_whole(p) and (x is None or jnp.shape(x) != jnp.shape(p)):
                found = "None" if x is None else f"shape {jnp.shape(x)}"
                raise ValueError(
                    f"at {path_name(path)}: {name} is of {found}, the parameter's shape is {jnp.shape(p)}"
                )
    if wide:
        pairs = zip(paths, leaves, strict=True)
        leaves = [None if p is None else jnp.asarray(p, compute_dtype(path, p)) for path, p in pairs]
    return leaves, columns, tree
