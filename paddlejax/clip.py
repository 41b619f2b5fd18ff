"""Gradient clipping: Paddle's objects, and the same as transformations of any pytree."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .alike import in_groups
from .array_types import Numeric
from .attributes import Adjustable, is_users, number_text
from .hyper import (
    DECAY,
    LIMIT,
    SHARDED,
    ArgumentError,
    Must,
    checked,
    instance,
    is_array,
    optional,
)
from .lifting import GradientTransformation
from .norms import asked, norms, scaled_norm, times
from .transform import named, stateless
from .wrap import is_transformation


class ClipGradBase(Adjustable):
    """What `grad_clip=` of an optimizer must be: it changes a list of gradients, seen together.

    Called with Paddle's list of (param, grad) it returns the list with clipped gradients, without the pairs
    whose grad is None; parameters with need_clip=False neither count nor change. A changed limit takes effect
    at the next step.

    A clip of your own defines `clip(grads)`, a list of arrays to a list of arrays, which becomes a part of
    the compiled step. One that defines Paddle's `_dygraph_clip(params_grads)` works too: it is called before
    the step with the list of (param, grad), outside of the compiled program, and a pair that it leaves out
    is not stepped. `_static_clip` beside it is never called, and one that has nothing else is refused.

    >>> class Halved(ClipGradBase):
    ...     def _dygraph_clip(self, params_grads):
    ...         return [(p, g / 2) for p, g in params_grads]
    >>> p = Parameter(jnp.ones(1))
    >>> opt = optimizer.SGD(1.0, [p], grad_clip=Halved())
    >>> _ = opt.apply_gradients([(p, jnp.ones(1))])
    >>> print(p.numpy())
    [0.5]
    """

    need_clip: Callable[[Any], bool] | None = None  # 1.x: which parameters, besides those that opted out
    _derived = ("_across",)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        hooks = [h for h in ("_static_clip", "_pir_clip", "_process_context") if is_users(cls, h)]
        own = cls.clip is not ClipGradBase.clip or cls.outside()
        if hooks and not own:
            way = "define clip(self, grads), or _dygraph_clip(self, params_grads) for outside the program"
            raise TypeError(f"{cls.__name__} defines {hooks[0]}, which is never called here: {way}")

    @classmethod
    def outside(cls) -> bool:
        """Return whether it changes pairs as Paddle's hooks do, and so cannot be a part of the program."""
        hooks = ("_dygraph_clip", "__call__")
        return any(getattr(cls, hook) is not getattr(ClipGradBase, hook) for hook in hooks)

    def selects(self, p: Any) -> bool:
        """Return whether this parameter is clipped: its `need_clip` and the clip's own must agree."""
        return getattr(p, "need_clip", True) and (self.need_clip is None or bool(self.need_clip(p)))

    def _read(self, name: str, value: Any) -> Any:
        """Return a limit as the constructor stores it."""
        value = super()._read(name, value)
        if name not in self.numbers:
            return value
        return -vars(self)["max"] if value is None else _limit(value)

    def clip(self, grads: list[jax.Array]) -> list[jax.Array]:
        """Return the gradients, clipped; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} has no clip")

    across_groups = False  # whether parameter groups share one norm; in Paddle each has its own
    packs = False  # whether to tensors laid end to end it does what it does to each

    def transformation(self) -> GradientTransformation:
        """The same as functions of any pytree; leaves that are clipped by one object share one norm."""
        return named(stateless(self._change), self, self.packs)

    def _change(self, grads: list[jax.Array], params: list[jax.Array], paths: list[str]) -> list[jax.Array]:
        return self.clip(grads)

    @functools.cached_property
    def _across(self) -> GradientTransformation:
        return self.transformation()

    def for_group(self) -> GradientTransformation:
        """The transformation for one parameter group."""
        return self._across if self.across_groups else self.transformation()

    def __call__(self, params_grads: Any) -> list[tuple[Any, Any]]:
        return self._dygraph_clip(params_grads)

    def _dygraph_clip(self, params_grads: Any) -> list[tuple[Any, Any]]:
        """Return the pairs with clipped gradients; Paddle's hook, which a subclass may define."""
        there = [(p, g) for p, g in params_grads if g is not None]
        asked = [i for i, (p, _) in enumerate(there) if self.selects(p)]
        clipped, _ = self.transformation().update([there[i][1] for i in asked], ())
        for i, g in zip(asked, clipped, strict=True):
            there[i] = (there[i][0], g)
        return there


CLIP = Must(
    lambda x: x is None or isinstance(x, ClipGradBase) or is_transformation(x),
    "a clip such as clip_by_global_norm(1.0), or None",
)


def as_clip(value: Any) -> Any:
    """A clip as a transformation: Paddle's objects become one, None stays None."""
    return value.transformation() if isinstance(value, ClipGradBase) else value


BOUND = DECAY  # any finite number
FLAG = instance(bool, "True or False", ArgumentError)  # as in Paddle, which asserts it


def _limit(value: Any) -> Any:
    """A number becomes a float, a 0-d array stays what it is."""
    return value if is_array(value) else float(value)


class ClipGradByValue(ClipGradBase):
    """Clamp every element to [min, max]; min defaults to -max. NaN stays NaN.

    >>> print(str(ClipGradByValue(1.0)))
    Clip Gradient By Value, min = -1.000000, max=1.000000
    """

    max: Any
    min: Any
    packs = True
    numbers = ("max", "min")

    @checked(
        max=(
            *BOUND,
            Must(
                lambda high, min: min is not None or is_array(high) or high > 0,
                "a number above 0 where min is not given",
                ArgumentError,
            ),
        ),
        min=optional(
            *BOUND,
            Must(
                lambda low, max: is_array(low) or is_array(max) or low <= max,
                "at most max, {max}",
                ArgumentError,
            ),
        ),
    )
    def __init__(self, max: Numeric, min: Numeric | None = None):
        self.max = _limit(max)
        self.min = -self.max if min is None else _limit(min)

    def clip(self, grads):
        """Return every element, moved into [min, max]."""
        return [jnp.clip(g, jnp.asarray(self.min, g.dtype), jnp.asarray(self.max, g.dtype)) for g in grads]

    def __str__(self):
        return f"Clip Gradient By Value, min = {number_text(self.min)}, max={number_text(self.max)}"


class _ClipByNorms(ClipGradBase):
    """A clip that takes norms: over devices, it has to know which tensors are cut."""

    axis_name: Any
    sharded: Any

    def clip(self, grads):
        """Return the gradients, clipped; for `sharded` their paths are their places in the list."""
        return self._change(grads, grads, list(map(str, range(len(grads)))))

    def _cuts(self, paths: list[str]) -> list[Any]:
        return [asked(self.sharded, path) for path in paths]


class ClipGradByNorm(_ClipByNorms):
    """Scale each tensor whose 2-norm exceeds clip_norm down to it.

    As in Paddle an infinite norm, also of squares that overflow (beyond 1e19 in float32), leaves zeros, and
    NaN where the gradient is infinite.

    >>> print(str(ClipGradByNorm(1.0)))
    Gradient Clip By Norm, clip_norm=1.000000
    """

    clip_norm: Any
    numbers = ("clip_norm",)

    @checked(clip_norm=LIMIT, sharded=SHARDED)
    def __init__(self, clip_norm: Numeric, *, axis_name: Any = None, sharded: Any = None):
        self.clip_norm, self.axis_name, self.sharded = _limit(clip_norm), axis_name, sharded

    def _change(self, grads, params, paths):
        each = norms(grads, self.axis_name, self._cuts(paths))
        return [g * _factor(norm, self.clip_norm) for g, norm in zip(grads, each, strict=True)]

    def __str__(self):
        return f"Gradient Clip By Norm, clip_norm={number_text(self.clip_norm)}"


class ClipGradByGlobalNorm(_ClipByNorms):
    """Scale all tensors by one factor so that their common 2-norm is at most clip_norm.

    Parameter groups each have their own norm, as in Paddle, or with across_groups=True one in common.
    A NaN anywhere makes everything NaN, an infinite gradient everything else 0 and itself NaN; gradients
    whose squares overflow are clipped like others, where Paddle makes them 0. With auto_skip_clip only a
    norm that is above clip_norm changes anything. `group_name` is Paddle's and has
    no effect.

    >>> print(str(ClipGradByGlobalNorm(1.0)))
    Gradient Clip By GlobalNorm, global_norm=1.000000
    """

    clip_norm: Any
    group_name: str
    auto_skip_clip: bool
    packs = True
    numbers = ("clip_norm",)

    @checked(auto_skip_clip=FLAG, across_groups=FLAG, clip_norm=LIMIT, sharded=SHARDED)
    def __init__(
        self,
        clip_norm: Numeric,
        group_name: str = "default_group",
        auto_skip_clip: bool = False,
        *,
        axis_name: Any = None,
        sharded: Any = None,
        across_groups: bool = False,
    ):
        self.clip_norm = _limit(clip_norm)
        self.group_name, self.auto_skip_clip, self.axis_name = group_name, auto_skip_clip, axis_name
        self.across_groups, self.sharded = across_groups, sharded

    def _change(self, grads, params, paths):
        """If the dtypes differ, the norm is summed up in float64, or the widest dtype that JAX allows."""
        if not grads:
            return []
        length, scale = scaled_norm(grads, self.axis_name, self._cuts(paths))
        if self.auto_skip_clip:
            limit = self.clip_norm if scale is None else self.clip_norm * scale
            none = 1 if scale is None else 1 / scale
            factor = jnp.where(length > limit, _factor(length, self.clip_norm, scale), none)
        else:
            factor = _factor(length, self.clip_norm, scale)
        return in_groups(times, grads, factor, scale)

    def __str__(self):
        return f"Gradient Clip By GlobalNorm, global_norm={number_text(self.clip_norm)}"


def _factor(norm: jax.Array, clip_norm: Any, scale: jax.Array | None = None) -> jax.Array:
    """min(1, clip_norm / norm): exactly 1 up to clip_norm, NaN for NaN, without a division by zero.

    The limit may be traced: at 0 the factor is 0, also for a norm of 0, and below 0 it is as at 0. With a
    `scale` of both norm and gradients, as `scaled_norm` returns it, what the scaled gradients are to be
    multiplied by.
    """
    limit = jnp.maximum(jnp.asarray(clip_norm, norm.dtype), 0)
    largest = jnp.maximum(norm, limit if scale is None else limit * scale)
    return limit / jnp.where(largest == 0, 1, largest)


def clip_by_value(max: Numeric, min: Numeric | None = None) -> GradientTransformation:
    """Clamp every element of every gradient to [min, max]; min defaults to -max.

    optax.clip takes one symmetric bound.

    >>> updates, _ = clip_by_value(1.0, -0.5).update(jnp.array([-3.0, 0.2, 3.0]), ())
    >>> print(updates)
    [-0.5  0.2  1. ]
    """
    return ClipGradByValue(max, min).transformation()


def clip_by_norm(clip_norm: Numeric, *, axis_name: Any = None, sharded: Any = None) -> GradientTransformation:
    """Scale each tensor by min(1, clip_norm / ‖g‖), its own norm, in float32 or wider.

    Under `shard_map` name the mesh axes over which tensors are sharded in `axis_name`. A tensor that is whole
    on every device counts once: JAX knows which are, but not with check_vma=False. There say it in `sharded`:
    True if all are cut, False if none is, or a function of a leaf's path that returns one of both, or the
    axes over which that leaf is cut.
    optax.clip_by_block_rms is its nearest kin; optax.clip_by_global_norm is `clip_by_global_norm`.

    >>> updates, _ = clip_by_norm(1.0).update({"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2)}, ())
    >>> print(updates["a"], updates["b"])
    [0.6 0.8] [0. 0.]
    """
    return ClipGradByNorm(clip_norm, axis_name=axis_name, sharded=sharded).transformation()


def clip_by_global_norm(
    clip_norm: Numeric, *, auto_skip_clip: bool = False, axis_name: Any = None, sharded: Any = None
) -> GradientTransformation:
    """Scale all gradients by min(1, clip_norm / √Σ‖g‖²), one factor for the tree, in float32 or wider.

    optax.clip_by_global_norm and torch's clip_grad_norm_ do the same, torch with 1e-6 added to the norm.
    Under `shard_map` name the mesh axes over which tensors are sharded in `axis_name`; for `sharded` see
    `clip_by_norm`.

    >>> updates, _ = clip_by_global_norm(1.0).update({"a": jnp.array(3.0), "b": jnp.array(4.0)}, ())
    >>> print(updates["a"], updates["b"])
    0.6 0.8
    """
    return ClipGradByGlobalNorm(
        clip_norm, "default_group", auto_skip_clip, axis_name=axis_name, sharded=sharded
    ).transformation()
