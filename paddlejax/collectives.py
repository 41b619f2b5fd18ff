"""What devices tell each other at one time goes as one message: on a slow network each costs its latency."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import get_opaque_trace_state

from .tracing import InForce
from .trees import varying_axes

K = TypeVar("K")
Arrays = list[jax.Array]
Sums = dict[tuple[str, ...], Arrays]  # what is to be summed over the devices of these axes, or has been
# While a step is traced: the axis of the devices of one machine, which hold the same, so that each of them
# carries a part of what goes to other machines.
inner_axis = InForce()
# While `zero1` steps tensors of which each device has a part, without naming an axis: who sums them up.
in_parts = InForce()
_riding = InForce()
_known = InForce()


def joined(xs: Sequence[jax.Array], message: Callable[[jax.Array], jax.Array]) -> Arrays:
    """Return the arrays as `message` changes them, laid end to end, all of one dtype in one call.

    `lax.psum` of a list is one instruction too, but XLA hands it to Gloo array by array. An array that is
    sharded over other axes goes by itself: to join it would be to gather it. Nor are arrays joined that
    differ over different axes: all would be typed as differing over all of them.
    """
    done = list(xs)
    kinds: dict[Any, list[int]] = {}
    for i, x in enumerate(xs):
        cut = any(jax.typeof(x).sharding.spec)
        kinds.setdefault((x.dtype, frozenset(varying_axes(x)), i if cut else None), []).append(i)
    for same in kinds.values():
        if len(same) == 1:
            done[same[0]] = message(xs[same[0]])
            continue
        buffer, start = message(jnp.concatenate([jnp.reshape(xs[i], -1) for i in same])), 0
        for i in same:
            done[i] = jnp.reshape(lax.slice_in_dim(buffer, start, start + xs[i].size), xs[i].shape)
            start += xs[i].size
    return done


def mean(xs: Sequence[jax.Array], axis_name: Any) -> Arrays:
    """Return the means over the workers of an axis, typed as the same on all: one all-reduce per dtype."""

    def message(x: jax.Array) -> jax.Array:
        return across(x, lambda part: lax.pmean(part, axis_name))

    return joined(xs, message)


def across(x: jax.Array, collective: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return what a collective makes of an array that all devices of a machine have, sent once.

    Each of the n devices along `inner_axis` sends the n-th part of its elements, and then they gather the
    results, which may have other dimensions before. A number, and what other axes shard, each sends whole.
    """
    inner = inner_axis.value
    if inner is None or not x.ndim or any(jax.typeof(x).sharding.spec):
        return collective(x)
    n = lax.axis_size(inner)
    parts = jnp.reshape(jnp.pad(jnp.reshape(x, -1), (0, -x.size % n)), (n, -1))
    result = collective(lax.dynamic_index_in_dim(parts, lax.axis_index(inner), keepdims=False))
    whole = lax.all_gather(result, inner, axis=result.ndim - 1, tiled=True, to="invarying")
    flat = lax.slice_in_dim(whole, 0, x.size, axis=whole.ndim - 1)
    return jnp.reshape(flat, (*flat.shape[:-1], *x.shape))


@dataclass(eq=False)
class Ride:
    """Arrays that travel with the next message of means, if one is sent from the same trace."""

    xs: Arrays
    trace: Any
    arrived: Arrays | None = None


def with_riders(xs: Arrays, axis_name: Any, update: Callable[[], Any]) -> tuple[Any, Arrays]:
    """Return what `update` returns, and the means of these arrays, which travel with what it sends."""
    ride = Ride(xs, get_opaque_trace_state())
    with _riding.set(ride):
        result = update()
    return result, mean(xs, axis_name) if ride.arrived is None else ride.arrived


def waiting() -> Ride:
    """Return the arrays that wait to travel: none in a branch, which they could not leave again."""
    ride: Ride | None = _riding.value
    if ride is None or ride.arrived is not None or ride.trace != get_opaque_trace_state():
        return Ride([], None)
    return ride


def totals(sums: Sums) -> Sums:
    """Return the sums over the devices of the axes: one message per dtype, also with others in `lockstep`."""
    known: _Known | None = _known.value
    if known is None or known.trace != get_opaque_trace_state():
        return _summed(sums)
    try:
        return next(known.sums)
    except StopIteration:
        raise _Asked(sums) from None


def _summed(sums: Sums) -> Sums:
    def total(xs: Arrays, axes: tuple[str, ...]) -> Arrays:
        if in_parts.value is not None:
            return in_parts.value.total(xs)
        return joined(xs, lambda x: lax.psum(x, axes))

    return {axes: total(xs, axes) if axes else xs for axes, xs in sums.items()}


@dataclass(eq=False)
class _Known:
    """The sums that one of several has asked for so far, in order."""

    sums: Iterator[Sums]
    trace: Any


class _Asked(BaseException):
    """Ends a run that asks for sums which are not known yet: no error, so that nobody catches it."""


def attempt(run: Callable[[], Any], sums: Sequence[Sums]) -> tuple[Any, Sums | None]:
    """Return (what `run` returns, None), or (None, what it asks `totals` for beyond these sums)."""
    with _known.set(_Known(iter(sums), get_opaque_trace_state())):
        try:
            return run(), None
        except _Asked as asked:
            return None, asked.args[0]


def lockstep(attempts: Mapping[K, Callable[[list[Sums]], tuple[Any, Sums | None]]]) -> dict[K, Any]:
    """Return what each of several returns; what they ask `totals` for at the same time is one message.

    An attempt runs from its start with the sums that it has got so far: XLA keeps one of what is computed
    twice. It may be jitted, so that those alike are traced once.
    """
    known: dict[K, list[Sums]] = {key: [] for key in attempts}
    done: dict[K, Any] = {}
    while waiting := {key: run(known[key]) for key, run in attempts.items() if key not in done}:
        done |= {key: result for key, (result, asked) in waiting.items() if asked is None}
        requests = {key: asked for key, (_, asked) in waiting.items() if asked is not None}
        together: Sums = {}
        for asked in requests.values():
            for axes, xs in asked.items():
                together.setdefault(axes, []).extend(xs)
        arrived = {axes: iter(xs) for axes, xs in _summed(together).items()}
        for key, asked in requests.items():
            known[key].append({axes: [next(arrived[axes]) for _ in xs] for axes, xs in asked.items()})
    return {key: done[key] for key in attempts}
