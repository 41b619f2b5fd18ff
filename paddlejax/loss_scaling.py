"""Steps that a gradient overflow must not spoil: skip them, and scale the loss so that they stay rare."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .array_types import ArrayTree, Gradients, Numeric
from .collectives import in_parts
from .hyper import INT, NUMBER, ArgumentError, Interval, Must, checked, is_traced, unless
from .lifting import GradientTransformation
from .norms import sums
from .selected_rows import SelectedRows, is_rows
from .transform import chain
from .trees import at_params, compute_dtype, dtype_of, in_dtypes_of, is_array, next_count, unmoved
from .wrap import PAIR, check_state


class SkipState(NamedTuple):
    """The state of the transformation that is guarded, and how often it was spared a step."""

    inner: Any
    consecutive_skips: jax.Array  # () int32, since the last step that was taken
    total_skips: jax.Array  # () int32


class LossScaleState(NamedTuple):
    """What `dynamic_loss_scale` keeps: the factor on the loss, the counts behind it, the guarded state."""

    inner: Any
    scale: jax.Array  # () float32
    incr_count: jax.Array  # () int32, good steps in a row since the scale last changed
    decr_count: jax.Array  # () int32, bad steps in a row since the scale last changed
    consecutive_skips: jax.Array  # () int32
    total_skips: jax.Array  # () int32


LOWEST, HIGHEST = (
    1.0,
    2.0**126,
)  # between them a scale moves; one that was set lower or higher may stand there


def _narrowed(x: Any) -> np.float32:
    """Return x in float32: 0 or infinite where it is too small or too large."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(x)


@jax.jit
def times(x: Any, scale: Any) -> jax.Array:
    """Return x times the scale, in float32 or wider."""
    wide = compute_dtype((), x)
    return jnp.asarray(x, wide) * jnp.asarray(scale, wide)


@checked(tx=PAIR)
def skip_nonfinite(tx: Any, *, axis_name: Any = None) -> GradientTransformation:
    """Leave out every step with an infinite or NaN gradient: parameters and state stay bit for bit.

        all gradients finite   u, s ← tx(g, s);  consecutive_skips ← 0
        otherwise              u ← -0.0;  s as it was;  both counts + 1

    -0.0 is what leaves every number as it is; a None stays None. `s` is the whole state of `tx`: moments,
    beta powers, count and with it any schedule. Under `shard_map` name the mesh axes in `axis_name`, so that
    one bad shard stops all devices. optax.apply_if_finite takes the step all the same after so many bad ones
    in a row, writes +0.0 and agrees with no other device; this one never gives up.

    >>> tx = skip_nonfinite(sgd(0.5))
    >>> updates, state = tx.update(jnp.array([jnp.inf, 1.0]), tx.init(jnp.zeros(2)))
    >>> print(updates, state.total_skips)
    [-0. -0.] 1
    """
    it = _Skip(tx, axis_name)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Skip:
    tx: Any
    axis_name: Any

    @at_params
    def init(self, params: ArrayTree) -> SkipState:
        return SkipState(self.tx.init(params), *_zeros(2))

    def update(
        self, grads: Gradients, state: SkipState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, SkipState]:
        check_state("skip_nonfinite", state, SkipState)
        finite = all_finite(grads, self.axis_name)
        updates, inner = _guarded(self.tx, finite, grads, state.inner, params, extra)
        return updates, SkipState(inner, *_skips(finite, state))


SCALE = (
    NUMBER,
    Interval(0, above=True, open=True),
    unless(
        is_traced, Must(lambda x: 0 < _narrowed(x) < math.inf, "one that is so in float32", ArgumentError)
    ),
)
INCR_RATIO, DECR_RATIO = (NUMBER, Interval(1, above=True, open=True)), (NUMBER, Interval(high=1, open=True))


@checked(
    tx=PAIR,
    init_loss_scaling=SCALE,
    incr_ratio=INCR_RATIO,
    decr_ratio=DECR_RATIO,
    incr_every_n_steps=INT,
    decr_every_n_nan_or_inf=INT,
)
def dynamic_loss_scale(
    tx: Any,
    init_loss_scaling: Numeric = 65536.0,
    incr_ratio: Numeric = 2.0,
    decr_ratio: Numeric = 0.5,
    incr_every_n_steps: int = 2000,
    decr_every_n_nan_or_inf: int = 1,
    *,
    axis_name: Any = None,
) -> GradientTransformation:
    """Keep small float16 gradients from vanishing: the loss is scaled, `tx` sees the gradients unscaled.

        all gradients finite   u, s ← tx(g · (1/scale), s);  every incr_every_n_steps-th time in a row
                               scale ← scale · incr_ratio
        otherwise              u ← -0.0;  s as it was;  every decr_every_n_nan_or_inf-th time in a row
                               scale ← scale · decr_ratio

    Multiply the loss by `loss_scale(state)` and hand over the gradients as they come: they are unscaled in
    float32, and skipped as `skip_nonfinite` does. All is data, so no new scale compiles again. The rule is
    that of Paddle's and torch's GradScaler, and an interval of 0 means never. The scale never grows beyond
    2¹²⁶, whose inverse is still a normal float32, and never shrinks below 1, or below where it started if
    that is less: Paddle's GradScaler has no bounds, so that its scale becomes inf or 0 and skips every later
    step (its kernel `update_loss_scaling` has these: finite, and 1). optax has none.

    >>> tx = dynamic_loss_scale(sgd(0.5), 4.0)
    >>> updates, state = tx.update(jnp.array([4.0, jnp.nan]), tx.init(jnp.zeros(2)))
    >>> print(updates, loss_scale(state))
    [-0. -0.] 2.0
    """
    settings = incr_ratio, decr_ratio, incr_every_n_steps, decr_every_n_nan_or_inf
    it = _LossScale(tx, init_loss_scaling, settings, axis_name)
    return GradientTransformation(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _LossScale:
    tx: Any
    start: Any
    settings: tuple[Any, Any, Any, Any]
    axis_name: Any

    @at_params
    def init(self, params: ArrayTree) -> LossScaleState:
        return LossScaleState(self.tx.init(params), jnp.array(self.start, jnp.float32), *_zeros(4))

    def update(
        self, grads: Gradients, state: LossScaleState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, LossScaleState]:
        check_state("dynamic_loss_scale", state, LossScaleState)
        clean = unscaled(grads, state.scale)  # may overflow where the scaled gradients did not
        finite = all_finite((grads, clean), self.axis_name)
        updates, inner = _guarded(self.tx, finite, clean, state.inner, params, extra)
        counts = state.incr_count, state.decr_count
        scaling = next_scale(state.scale, *counts, ~finite, *self.settings)
        return updates, LossScaleState(inner, *scaling, *_skips(finite, state))


def loss_scale(state: Any) -> jax.Array:
    """The factor by which to multiply the loss of the next step, () float32, from a state or one around it.

    >>> print(loss_scale(chain(dynamic_loss_scale(sgd(0.1), 8.0)).init(jnp.zeros(2))))
    8.0
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, LossScaleState))
    found = [s for s in nodes if isinstance(s, LossScaleState)]
    if len(found) != 1:
        raise TypeError(
            f"state: found {len(found)} LossScaleStates in {type(state).__name__}, expected the one that "
            "dynamic_loss_scale makes"
        )
    return found[0].scale


def next_scale(
    scale: Any,
    incr_count: Any,
    decr_count: Any,
    found_inf: Any,
    incr_ratio: Numeric,
    decr_ratio: Numeric,
    incr_every_n_steps: Any,
    decr_every_n_nan_or_inf: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scale and counts after one more step, good or bad: Paddle's rule, here for object and function alike.

    A count is compared with its interval by ==, so an interval that is lowered below the running count acts
    only after the next change of luck.
    """
    found_inf = jnp.asarray(found_inf)
    incr_count = jnp.where(found_inf, 0, next_count(incr_count))
    decr_count = jnp.where(found_inf, next_count(decr_count), 0)
    grows = ~found_inf & (incr_count == incr_every_n_steps)
    shrinks = found_inf & (decr_count == decr_every_n_nan_or_inf)
    ratio = jnp.where(grows, incr_ratio, decr_ratio).astype(jnp.float32)
    moved = jnp.clip(scale * ratio, jnp.minimum(scale, LOWEST), HIGHEST)
    moved = jnp.where(scale > 0, moved, LOWEST).astype(
        jnp.float32
    )  # a scale of 0 or NaN was loaded from a file
    return (
        jnp.where(grows | shrinks, moved, scale),
        jnp.where(grows, 0, incr_count),
        jnp.where(shrinks, 0, decr_count),
    )


def all_finite(grads: Gradients, axis_name: Any = None) -> jax.Array:
    """Whether no gradient anywhere is infinite or NaN, on no device of the axes either; () bool."""
    leaves = [g for g in jax.tree.leaves(grads) if is_array(g) and jnp.issubdtype(dtype_of(g), jnp.inexact)]
    if in_parts.value is not None:  # one message; a count in float32 never comes round to 0
        counts = sums([(~jnp.isfinite(g)).astype(jnp.float32) for g in leaves])
        return jnp.array(True) if not counts else sum(counts[1:], counts[0]) == 0
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in leaves])) if leaves else jnp.array(True)
    return finite if axis_name is None else jax.lax.psum((~finite).astype(jnp.int32), axis_name) == 0


def unscaled(grads: Gradients, scale: Any) -> Any:
    """Gradients times 1/scale, reciprocal first as in Paddle's kernel, in float32 or wider.

    16-bit gradients come back as float32: in their own dtype, what the scale had saved would vanish again.
    """
    reciprocal = 1 / scale

    def one(g: Any) -> Any:
        if isinstance(g, SelectedRows):
            return g.with_values(one(g.values))
        if not is_array(g) or not jnp.issubdtype(dtype_of(g), jnp.floating):
            return g  # no gradient at all; whoever takes it says at which leaf
        wide = compute_dtype((), g)
        return jnp.asarray(g, wide) * reciprocal.astype(wide)

    return jax.tree.map(one, grads, is_leaf=is_rows)


def _zeros(n: int) -> list[jax.Array]:
    """Each its own buffer, so that a state can be donated."""
    return [jnp.zeros((), jnp.int32) for _ in range(n)]


def _skips(finite: jax.Array, state: Any) -> tuple[jax.Array, jax.Array]:
    consecutive = jnp.where(finite, 0, next_count(state.consecutive_skips))
    return consecutive, jnp.where(finite, state.total_skips, next_count(state.total_skips))


def _guarded(
    tx: Any, finite: Any, grads: Any, inner: Any, params: Any, extra: dict[str, Any]
) -> tuple[Any, Any]:
    """`tx.update` if all is finite; if not, updates of -0.0 and the state as it is."""
    one = chain(tx)  # knows what extra arguments tx takes

    def step(grads: Gradients, inner: Any, params: ArrayTree) -> tuple[Any, Any]:
        updates, (new,) = one.update(grads, (inner,), params, **extra)
        return updates, in_dtypes_of(inner, new)

    if not isinstance(finite, Tracer) and finite:  # outside jit, where a branch would compile
        return step(grads, inner, params)
    traced_once = jax.jit(step)  # the shape of its result is asked for before it is branched to
    nothing, _ = jax.eval_shape(traced_once, grads, inner, params)

    def skip(grads: Any, inner: Any, params: Any) -> tuple[Any, Any]:
        return jax.tree.map(unmoved, nothing), inner

    if not isinstance(finite, Tracer):
        return skip(grads, inner, params)
    # A branch, not a `where` over every update and slot: those selects all fuse with the reduction that
    # feeds them, which takes XLA 8 times as long to compile at 200 leaves, and the step half as long
    # again. A branch also keeps what `tx` does (collectives, noise) from happening at all. Both reuse
    # donated memory; under vmap this becomes the `where`.
    return jax.lax.cond(finite, traced_once, skip, grads, inner, params)
