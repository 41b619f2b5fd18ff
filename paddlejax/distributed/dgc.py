"""Deep gradient compression as a transformation, to be used inside `jax.shard_map` with local gradients."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..array_types import ArrayTree, Gradients, LearningRate, Numeric
from ..clip import clip_by_norm
from ..collectives import Arrays, waiting
from ..hyper import checked, require
from ..leaves import LeafOptions, per_leaf
from ..lifting import GradientTransformation, lift
from ..rates import RuleState, rate_in_force
from ..regularizer import as_regularizer
from ..transform import named
from ..trees import align, at_params, flatten, gradients, is_placeholder, next_count, path_name
from ..wrap import check_params, check_state
from .compression import DGCMomentum, U, V, levels
from .dgc_arguments import FUNCTION
from .exchange import Exchange, Sent

MIN_NUMEL = 16384  # Paddle compresses float32 tensors with at least so many elements


@checked(**FUNCTION)
def dgc_momentum(
    learning_rate: LearningRate,
    momentum: float,
    rampup_begin_step: int,
    rampup_step: int = 1,
    sparsity: Sequence[float] = (0.999,),
    use_nesterov: bool = False,
    local_grad_clip_norm: Numeric | None = None,
    num_trainers: int | None = None,
    weight_decay: Any = None,
    axis_name: str = "data",
    exchange: str = "auto",
    min_numel: int = MIN_NUMEL,
) -> GradientTransformation:
    """Deep gradient compression: momentum for N workers that send each other only their largest entries.

    `update` runs inside `jax.shard_map` over the mesh axis `axis_name` with each worker's own gradient G of
    its own mean loss; `make_step` and `local_grads` see to that. Tensors of float32 with at least `min_numel`
    elements are compressed, all others take `momentum` of the mean gradient. With s = 0 at the first step,
    until s = rampup_begin_step the compressed ones do so too, then

        g ← clip(G) + decay                  to ‖G‖₂ ≤ local_grad_clip_norm √N
        u ← μ u + g,  v ← v + u              or, with use_nesterov, u ← μ (u + g),  v ← v + u + g
        send the k largest |v|,  u, v ← 0 there           k = int(numel (1 - sparsity[i])) in float32
        p ← p - η/N Σ sent                   over all workers

    with i = int((s - rampup_begin_step) len(sparsity) / rampup_step), at most the last. So what is not sent
    is kept back and grows until it is. `weight_decay` is a number (L2) or a regularizer; the clip is on the
    scale of a gradient divided by N, as in Paddle.

    `exchange="auto"` sends (index, value) pairs where that is less than an all-reduce of the tensor, that is
    where N k < numel; "sparse" always, "dense" never. Each level is compiled once, into one program.

    `init` runs outside: u (`_dgc_u_`) and v (`_dgc_v_`) of compressed tensors have a leading axis of N
    workers that is to be sharded, as `state_specs` says. The rate is data in the state as everywhere.
    `num_trainers` must be the size of the axis; 1, the default, is `momentum` and warns. optax and torch have
    no namesake (torch's powerSGD_hook is of the same kind).

    >>> from paddlejax.distributed import make_step
    >>> tx = dgc_momentum(0.5, 0.9, 0, sparsity=[0.75], num_trainers=8, exchange="sparse", min_numel=1)
    >>> loss = lambda params, x: jnp.mean(x @ params["w"])
    >>> mesh = jax.make_mesh((8,), ("data",))
    >>> step, params, state = make_step(loss, tx, mesh, {"w": jnp.zeros(4)})
    >>> x = jnp.tile(jnp.arange(4.0), (8, 1))
    >>> for _ in range(2):
    ...     params, state, _ = step(params, state, x)
    >>> print(params["w"])  # the largest of 4 goes first; by then the next has grown to 2 (1 + 1.9)
    [ 0.   0.  -2.9 -1.5]

    Lin et al. 2018, arXiv:1712.01887; Paddle 1.8.5's `dgc` and `dgc_momentum`.
    """
    decay = as_regularizer("weight_decay", weight_decay)
    common = LeafOptions(None, weight_decay=decay and decay.transformation())
    return compressed_momentum(
        learning_rate,
        DGCMomentum(momentum, use_nesterov),
        levels=(rampup_begin_step, rampup_step, sparsity),
        local_grad_clip_norm=local_grad_clip_norm,
        num_trainers=1 if num_trainers is None else num_trainers,
        axis_name=axis_name,
        exchange=exchange,
        min_numel=min_numel,
        options=_Always(common),
        clips=_Always(True),
    )


def compressed_momentum(
    learning_rate: LearningRate,
    rule: DGCMomentum,
    *,
    levels: tuple[int, int, Any],
    local_grad_clip_norm: Numeric | None,
    num_trainers: int,
    axis_name: str,
    exchange: str,
    min_numel: int,
    options: Callable[[str], LeafOptions],
    clips: Callable[[str], bool],
    warns: bool = True,
) -> GradientTransformation:
    """`dgc_momentum` with options by path: factor on the rate, decay, and clip of what is not compressed.

    Compressed tensors are clipped by local_grad_clip_norm instead, those for which `clips` says so.
    """
    local = _Local(options, clips, _local_clip(local_grad_clip_norm, num_trainers))
    it = _DGC(learning_rate, rule, levels, num_trainers, axis_name, exchange, min_numel, options, local)
    if num_trainers == 1 and warns:
        text = "dgc_momentum: found one worker (num_trainers=1), so nothing is compressed: this is momentum"
        warnings.warn(text, stacklevel=3)
    return named(GradientTransformation(it.init, it.update), repr(it))


@dataclass(frozen=True, eq=False)
class _Always:
    """A function of anything; a lambda could not be pickled."""

    value: Any

    def __call__(self, path: str) -> Any:
        return self.value


@dataclass(frozen=True, eq=False)
class ByPosition:
    """A function of a path that is a position in a list."""

    entries: Sequence[Any]

    def __call__(self, path: str) -> Any:
        return self.entries[int(path)]


@dataclass(frozen=True, eq=False)
class _Local:
    """The options of what is compressed: with the local clip, or with none."""

    options: Callable[[str], LeafOptions]
    clips: Callable[[str], bool]
    clip: Any

    def __call__(self, path: str) -> LeafOptions:
        return self.options(path)._replace(grad_clip=self.clip if self.clips(path) else None)


def _local_clip(local_grad_clip_norm: Any, workers: int) -> Any:
    """Of a gradient that is not divided by the number of workers, as Paddle's is: c √N and not c / √N."""
    if local_grad_clip_norm is None:
        return None
    return clip_by_norm(local_grad_clip_norm * workers**0.5)


class _DGC:
    """Not a `Rule`: all tensors share one branch and one buffer, and a worker's slots are not p's shape."""

    def __init__(
        self,
        learning_rate: LearningRate,
        rule: DGCMomentum,
        warm_up: tuple[int, int, Any],
        workers: int,
        axis_name: str,
        how: str,
        min_numel: int,
        options: Callable[[str], LeafOptions],
        local: Callable[[str], LeafOptions],
    ):
        self.levels = levels(*warm_up)
        self.workers, self.axis_name, self.min_numel, self.options = workers, axis_name, min_numel, options
        self.local = local
        self.momentum = lift(rule, learning_rate, self._leaf)
        self.exchange = Exchange(axis_name, workers, rule.momentum, rule.use_nesterov, how)
        # Clip and decay of what is not compressed, and of what is: before the warm-up, and from then on.
        self.ordinary = per_leaf(self._ordinary)
        self.unclipped = per_leaf(self._unclipped)
        self.clipped = per_leaf(self._clipped)

    def _leaf(self, path: str) -> tuple[str, float]:
        return path, self.options(path).learning_rate

    def _ordinary(self, path: str) -> LeafOptions:
        return self.options(path)._replace(rule=None)

    def _unclipped(self, path: str) -> LeafOptions:
        return self.options(path)._replace(rule=None, grad_clip=None)

    def _clipped(self, path: str) -> LeafOptions:
        return self.local(path)._replace(rule=None)

    def __repr__(self) -> str:
        stages = ", ".join(f"{level.sparsity:g} from step {level.start}" for level in self.levels)
        return f"dgc_momentum({self.workers} workers on {self.axis_name!r}, sparsity {stages})"

    @at_params
    def init(self, params: ArrayTree) -> RuleState:
        """Return the state: momentum's, with U and V per worker for parameters that are compressed."""
        state = self.momentum.init(params)
        _, leaves, tree = flatten(params)
        us: list[Any] = tree.flatten_up_to(state.slots[U])
        vs: list[Any] = [None] * len(us)
        for i, p in enumerate(leaves):
            if p is not None and self._is_compressed(p):
                us[i], vs[i] = (jnp.zeros((self.workers, *jnp.shape(p)), jnp.float32) for _ in (U, V))
        if (
            is_placeholder(params) and self.workers > 1
        ):  # the slots of what is compressed are not shaped like it
            return state._replace(slots={name: jnp.zeros(()) for name in (U, V)})
        return state._replace(slots={U: tree.unflatten(us), V: tree.unflatten(vs)})

    def _is_compressed(self, p: Any) -> bool:
        """Return whether the gradient of this parameter is compressed: only large float32 ones are."""
        return self.workers > 1 and jnp.size(p) >= self.min_numel and jnp.result_type(p) == jnp.float32

    def update(
        self, grads: Gradients, state: RuleState, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, RuleState]:
        check_params("dgc_momentum", params)
        check_state("dgc_momentum", state, RuleState)
        require(set(state.slots) == {U, V}, "dgc_momentum's state", state, f"slots {U} and {V}", TypeError)
        paths, leaves, tree = flatten(params)
        gs = gradients(tree, paths, leaves, grads)
        us, vs = (align(tree, paths, state.slots[name], f"slot {name}") for name in (U, V))
        there = [i for i, g in enumerate(gs) if g is not None]
        if not there:
            return grads, state
        self._check_axis([(paths[i], gs[i]) for i in there])
        rate = rate_in_force("dgc_momentum", self.momentum.source.learning_rate, state)

        plain, compressed = ([i for i in there if (vs[i] is None) is whole] for whole in (True, False))
        for i in compressed:
            _check_local(paths[i], gs[i], us[i], vs[i])
        ride = waiting()
        all_sent, means = self._exchanged(
            params, tree, compressed, gs, us, vs, state.count, [*(gs[i] for i in plain), *ride.xs]
        )
        ride.arrived = means[len(plain) :]
        prepared = _prepared(self.ordinary, params, tree, plain, means[: len(plain)])
        before = state._replace(learning_rate=rate, slots={U: tree.unflatten(us)})
        updates, after = self.momentum.update(tree.unflatten(prepared), before, params)
        updates, us = tree.flatten_up_to(updates), tree.flatten_up_to(after.slots[U])

        for i, sent in zip(compressed, all_sent, strict=True):
            k = rate * jnp.asarray(self.options(path_name(paths[i])).learning_rate, rate.dtype)
            updates[i] = -k.astype(jnp.float32) * sent.direction
            us[i], vs[i] = sent.u[None], sent.v[None]
        slots = {U: tree.unflatten(us), V: tree.unflatten(vs)}
        return tree.unflatten(updates), before._replace(count=next_count(state.count), slots=slots)

    def _exchanged(
        self,
        params: Any,
        tree: Any,
        at: list[int],
        gs: list[Any],
        us: list[Any],
        vs: list[Any],
        count: jax.Array,
        others: Arrays,
    ) -> tuple[list[Sent], Arrays]:
        """What became of the compressed tensors `at` these places, and the means of others.

        One branch per level around all: what is sent really shrinks with the level. The others travel in it.
        """
        if self.workers == 1:  # inside shard_map they must also be typed as the same on all
            return [], [lax.pmean(x, self.axis_name) if _varies(x, self.axis_name) else x for x in others]
        if not at:
            return [], self.exchange.mean([], others)[1]
        gs = [gs[i].astype(jnp.float32) for i in at]
        us, vs = ([xs[i][0] for i in at] for xs in (us, vs))

        def dense(gs: Arrays, us: Arrays, vs: Arrays, others: Arrays) -> tuple[list[Sent], Arrays]:
            prepared = _prepared(self.unclipped, params, tree, at, gs)
            return self.exchange.dense([prepared[i] for i in at], us, vs, others)

        def sparse(
            sparsity: float, gs: Arrays, us: Arrays, vs: Arrays, others: Arrays
        ) -> tuple[list[Sent], Arrays]:
            prepared = _prepared(self.clipped, params, tree, at, gs)
            return self.exchange.sparse(sparsity, [prepared[i] for i in at], us, vs, others)

        branches = [functools.partial(sparse, level.sparsity) for level in self.levels]
        starts = [level.start for level in self.levels]
        if starts[0] == 0:
            starts = starts[1:]
        else:
            branches = [dense, *branches]
        if not starts:
            return branches[0](gs, us, vs, others)
        index = jnp.sum(count >= jnp.asarray(starts, count.dtype), dtype=jnp.int32)
        return lax.switch(index, branches, gs, us, vs, others)

    def _check_axis(self, gradients: list[tuple[Any, Any]]) -> None:
        """The axis has the right size, and gradients differ along it; one worker needs no axis."""
        axis = self.axis_name
        try:
            size = lax.axis_size(axis)
        except NameError:
            if self.workers == 1:
                return
            expected = f"expected it inside jax.shard_map over the axis {axis!r}, as in make_step"
            raise RuntimeError(f"dgc_momentum's update: found outside, {expected}") from None
        if size != self.workers:
            found = f"found {self.workers}, expected {size}, the size of the axis {axis!r}"
            raise ValueError(f"dgc_momentum's num_trainers: {found}")
        if size > 1 and _varies(
            lax.axis_index(axis), axis
        ):  # else shard_map was told not to check what varies
            for path, g in gradients:
                if not _varies(g, axis):
                    found = f"found a gradient that is the same on all workers of {axis!r}"
                    expected = "expected each worker's own: jax.grad sums over them, use local_grads"
                    raise ValueError(f"at {path_name(path)}: {found}, {expected}")


def _prepared(clip_and_decay: Any, params: Any, tree: Any, at: list[int], gs: Arrays) -> list[Any]:
    """The gradients of some leaves, clipped and decayed, each in the place of its leaf among Nones."""
    grads: list[Any] = [None] * tree.num_leaves
    for i, g in zip(at, gs, strict=True):
        grads[i] = g
    changed, _ = clip_and_decay.update(tree.unflatten(grads), clip_and_decay.init(params), params)
    return tree.flatten_up_to(changed)


def _varies(x: Any, axis: str) -> bool:
    """Return whether x may differ from device to device of this axis."""
    return axis in jax.typeof(x).mat.varying


def _check_local(path: Any, g: Any, u: Any, v: Any) -> None:
    """Raise if U or V is not that of one worker."""
    expected = (1, *jnp.shape(g))
    for name, slot in ((U, u), (V, v)):
        if jnp.shape(slot) != expected:
            found = f"{name} has shape {jnp.shape(slot)}, expected this worker's, {expected}"
            raise ValueError(f"at {path_name(path)}: {found}; give shard_map the specs of state_specs(state)")
