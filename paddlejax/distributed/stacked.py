"""A pipeline of equal stages as one program: stacked layers, and micro-batches in a scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..array_types import ArrayTree
from ..hyper import COUNT, FLAG, ArgumentError, Must, checked, function_of, optional, refuse
from ..trees import path_name, varying_axes
from .data_parallel import MESH, check_leading, placed
from .sharding import AXIS, ONE_KIND

# A loop copies each layer's parameters out of their stack and each tick's activations into one. So layers and
# ticks are written out, up to so many calls of `layer`, for the compiler's sake. Ticks that are written out
# each keep the gradients of a stage: beyond so many bytes that costs more.
CALLS, BYTES = 64, 2**24
APART = Must(lambda batch_axis, axis: batch_axis != axis, "another axis than axis", ArgumentError)


@checked(
    layer=function_of("a layer's parameters and its input"),
    mesh=(MESH, ONE_KIND),
    axis=AXIS,
    micro_batches=COUNT,
    batch_axis=optional(AXIS, APART),
    remat=FLAG,
)
def pipelined(
    layer: Callable[[Any, Any], Any],
    mesh: Mesh,
    axis: str,
    micro_batches: int,
    *,
    batch_axis: str | None = None,
    remat: bool = False,
) -> Callable[[ArrayTree, ArrayTree], Any]:
    """A network of equal layers, cut into stages along a mesh axis, as a function apply(params, x).

        apply(params, x) = layer(params[L-1], ... layer(params[1], layer(params[0], x)))

    Here params[i] is the tree of layer i: every array of `params` has a leading axis of L layers, and each of
    the k devices along `axis` keeps L/k of them, a stage. Every array of x is (batch, ...), and so is every
    result. `layer(p, x)` returns a tree, shapes and dtypes like x, and treats each example by itself: it sees
    a part of the batch. What the layers do not have in common, such as an embedding, goes before and behind.

    x is cut into M = `micro_batches`. All devices run one program of M+k-1 ticks inside `jax.shard_map`: in
    each, a stage works on one micro-batch and a `ppermute` hands it on. Ticks are a `lax.scan`, or written
    out where that is faster: up to 64 calls of `layer` and 16 MiB of parameters times ticks. A device is idle
    for (k-1)/(M+k-1) of the time, so take M ≥ 9(k-1) for 10 %. The backward pass is JAX's own, of all
    micro-batches behind all forwards, as in GPipe: a device holds activations of the whole batch. With
    `remat` it holds the inputs of its stage only and computes its layers again.

    A step with Adam on 4 simulated devices that share 2 busy cores took 1.0 to 1.4 times the uncut one with 4
    or 8 micro-batches, for 8 and 16 layers of width 128 and 256 (tests/benchmarks/stacked.py).

    Loss and gradients are those of the layers in a row. So anything goes around it: `jit`, `jax.grad`, and
    any transformation. With `batch_axis`, another axis of the mesh, the batch is sharded over that, and
    gradients are summed over it. Along axes that are not named the work is repeated. Results are whole along
    `axis`; constrain them to P(axis) where the loss is costly, so that each device computes its part. What
    takes one norm per tensor, such as `lamb`, takes it over all layers of a stack.

    `apply` raises an ArgumentError that names the leaf where the arrays of params have no common leading axis
    that k divides, where M (times the size of `batch_axis`) does not divide the batch, and where a layer's
    result is not like its input.

    >>> from paddlejax.distributed import state_shardings
    >>> mesh = jax.make_mesh((jax.device_count(),), ("stage",))  # a divisor of 8
    >>> apply = pipelined(lambda p, x: x + jnp.tanh(x @ p["w"]), mesh, "stage", micro_batches=2)
    >>> params = {"w": jnp.full((8, 3, 3), 0.1)}  # 8 layers
    >>> params = jax.device_put(params, jax.NamedSharding(mesh, jax.P("stage")))
    >>> tx = adam(0.1)
    >>> state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)
    >>> def loss(params, x):
    ...     return jnp.mean(apply(params, x) ** 2)
    >>> @jax.jit
    ... def step(params, state, x):
    ...     value, grads = jax.value_and_grad(loss)(params, x)
    ...     updates, state = tx.update(grads, state, params)
    ...     return apply_updates(params, updates), state, value
    >>> params, state, value = step(params, state, jnp.ones((4, 3)))
    >>> print(f"{value:.4f}", params["w"].sharding.spec[0])
    34.3472 stage

    Huang et al. 2019, arXiv:1811.06965. `PipelineOptimizer` takes stages that differ, as Paddle's programs
    have them; torch has torch.distributed.pipelining, optax nothing like it.
    """
    k = mesh.shape[axis]
    stacked, of_batch = PartitionSpec(axis), PartitionSpec(batch_axis)
    axes = (axis,) if batch_axis is None else (axis, batch_axis)
    # Without a policy the parameters themselves would be saved in every tick: what `cond` needs for its
    # backward is a result of it.
    saved = None if remat else jax.checkpoint_policies.everything_saveable

    def vary(x: Any) -> Any:
        missing = tuple(a for a in axes if a not in varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    def one(x: Any, p: Any) -> tuple[Any, None]:
        return jax.tree.map(vary, _like(layer(p, x), x)), None

    def several(params: Any, x: Any) -> Any:
        for part in params:
            x, _ = lax.scan(one, x, part)
        return x

    def worker(params: Any, x: Any) -> Any:
        count, layers = micro_batches + k - 1, len(jax.tree.leaves(params)[0])
        me, ticks = lax.axis_index(axis), jnp.arange(count)
        kept = count * sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(params))
        unroll = count * layers <= CALLS and kept <= BYTES
        size = 1 if layers <= CALLS else layers
        parts = [slice(i, i + size) for i in range(0, layers, size)]
        params = [jax.tree.map(lambda p, part=part: p[part], params) for part in parts]

        def stage(params: Any, x: Any, is_busy: Any) -> Any:
            # Idle stages compute nothing: on what is no activation a layer could make NaN, also in gradients.
            return lax.cond(is_busy, several, lambda p, x: x, params, x)

        # Inside a loop XLA merges nothing that is computed again with what was before.
        stage = jax.checkpoint(stage, policy=saved, prevent_cse=remat and unroll)

        def tick(handed: Any, now: Any) -> tuple[Any, Any]:
            t, fresh = now
            x = jax.tree.map(lambda fresh, handed: jnp.where(me == 0, fresh, handed), fresh, handed)
            y = stage(params, x, (t >= me) & (t < me + micro_batches))
            return lax.ppermute(y, axis, [(i, i + 1) for i in range(k - 1)]), y

        def cut(x: Any) -> Any:
            x = vary(x.reshape(micro_batches, -1, *x.shape[1:]))
            return jnp.concatenate([x, jnp.zeros_like(x, shape=(k - 1, *x.shape[1:]))])

        xs = jax.tree.map(cut, x)
        first = jax.tree.map(lambda x: jnp.zeros_like(x[0]), xs)
        _, ys = lax.scan(tick, first, (ticks, xs), unroll=unroll)

        def of_last(ys: Any, x: Any) -> Any:
            ours = ys[k - 1 :].reshape(x.shape)
            ours = jnp.where(me == k - 1, ours, jnp.zeros_like(ours))
            is_bool = ours.dtype == bool  # which has no sum
            return lax.psum(ours.astype(jnp.int8) if is_bool else ours, axis).astype(x.dtype)

        return jax.tree.map(of_last, ys, x)

    mapped = jax.jit(
        jax.shard_map(worker, mesh=mesh, in_specs=(stacked, of_batch), out_specs=of_batch),
    )
    parts = micro_batches * (1 if batch_axis is None else mesh.shape[batch_axis])

    def apply(params: ArrayTree, x: ArrayTree) -> Any:
        _check("params", params, k, f"axis of layers that the {k} stages along {axis!r} share evenly")
        among = f"{micro_batches} micro-batches" + (f" on each of {batch_axis!r}" if batch_axis else "")
        _check("x", x, parts, f"axis of examples that {among} share evenly, a multiple of {parts}")
        return mapped(_put(params, NamedSharding(mesh, stacked)), _put(x, NamedSharding(mesh, of_batch)))

    return apply


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """The arrays of a tree on the mesh, without the weak types that a scan's carry may not change."""
    leaves = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: placed(lax.convert_element_type(x, x.dtype), sharding), leaves)


def _check(name: str, tree: Any, n: int, expected: str) -> None:
    if not jax.tree.leaves(tree):
        refuse(f"apply's {name}", tree, f"arrays with a leading {expected}")
    check_leading(f"apply's {name}:", tree, n, expected)


def _like(y: Any, x: Any) -> Any:
    """A layer's result; an error where it is not like its input."""
    found, expected = jax.tree.structure(y), jax.tree.structure(x)
    if found != expected:
        raise ArgumentError(
            f"pipelined's layer: found a result {found}, expected one like its input, {expected}"
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(y), jax.tree.leaves(x), strict=True):
        mine, own = ((jnp.shape(z), jnp.result_type(z)) for z in (a, b))
        if mine != own:
            told = "shape {} and dtype {}"
            raise ArgumentError(
                f"pipelined's layer: its result at {path_name(path)}: found {told.format(*mine)}, "
                f"expected those of its input, {told.format(*own)}"
            )
    return jax.tree.map(lambda a: lax.convert_element_type(a, jnp.result_type(a)), y)
