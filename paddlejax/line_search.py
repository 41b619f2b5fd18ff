"""The strong Wolfe line search, as a state machine that asks for one value and gradient at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ARMIJO, CURVATURE = 1e-4, 0.9  # c₁ and c₂ of the strong Wolfe conditions
MAX_TRIALS = 25  # after the first, over both phases
SMALLEST_BRACKET = 1e-9  # in units of the largest element of the direction


class Point(NamedTuple):
    """A point x + t d on the line."""

    t: jax.Array  # ()
    f: jax.Array  # ()
    slope: jax.Array  # () g·d
    g: jax.Array  # (n,)


class Search(NamedTuple):
    """A search under way, waiting for the value and the gradient at t = trial."""

    start: Point  # t = 0
    reach: jax.Array  # () largest element of d
    trial: jax.Array  # ()
    tried: jax.Array  # () int32, trials after the first
    zooming: jax.Array  # () bool: the second phase, in which the bracket only shrinks
    ends: tuple[Point, Point]  # of the bracket, in the order they were found; before, twice the last trial
    crowded: jax.Array  # () bool, the last trial fell close to an end


def start(f: jax.Array, slope: jax.Array, g: jax.Array, reach: jax.Array, trial: jax.Array) -> Search:
    """A search from the point with this value, slope and gradient, beginning at `trial`."""
    here = Point(jnp.zeros_like(f), f, slope, g)
    no = jnp.zeros((), bool)
    return Search(here, reach, trial, jnp.zeros((), jnp.int32), no, (here, here), no)


def advance(search: Search, p: Point) -> tuple[Search, jax.Array, Point]:
    """What the trial p leads to: the search to go on with, whether it is over, and where it ended.

    At first go further and further along the line, until p is acceptable, |g·d| ≤ -c₂ g₀·d and
    f ≤ f₀ + c₁ t g₀·d, or has an acceptable point before it. Then shrink this bracket around the
    minimizer of the cubic through its ends. Nocedal & Wright, Numerical Optimization, algorithms 3.5 and 3.6.
    """
    search, found = jax.lax.cond(search.zooming, _narrow, _bracket, search, defined(p))
    a, b = search.ends
    left, right = jnp.minimum(a.t, b.t), jnp.maximum(a.t, b.t)
    small = (right - left) * search.reach < SMALLEST_BRACKET
    found |= search.zooming & (small | (search.tried >= MAX_TRIALS))
    t = cubic(a, b, left, right)
    inset = 0.1 * (right - left)
    close = jnp.minimum(right - t, t - left) < inset
    move = close & (search.crowded | (t >= right) | (t <= left))
    inside = jnp.where(jnp.abs(t - right) < jnp.abs(t - left), right - inset, left + inset)
    trial = jnp.where(search.zooming, jnp.where(move, inside, t), search.trial)
    crowded = search.zooming & close & ~move
    return search._replace(trial=trial, crowded=crowded), found, select(b.f < a.f, b, a)


def _bracket(search: Search, p: Point) -> tuple[Search, jax.Array]:
    """Go on along the line unless p is acceptable or beyond an acceptable point."""
    before, _ = search.ends
    too_high = ~_armijo(search, p) | ((search.tried > 1) & (p.f >= before.f))
    good = ~too_high & _flat(search, p)
    bracketed = ~good & (too_high | (p.slope >= 0))
    spent = search.tried >= MAX_TRIALS
    go_on = ~(spent | good | bracketed)
    further = cubic(before, p, p.t + 0.01 * (p.t - before.t), 10 * p.t)
    other = select(spent, search.start, select(bracketed, before, p))
    search = search._replace(
        trial=jnp.where(go_on, further, search.trial),
        tried=search.tried + go_on.astype(search.tried.dtype),
        zooming=bracketed & ~spent,
        ends=(other, p),
    )
    return search, spent | good


def _narrow(search: Search, p: Point) -> tuple[Search, jax.Array]:
    """Replace an end of the bracket by the trial inside it."""
    a, b = search.ends
    swap = b.f < a.f
    low, high = select(swap, b, a), select(swap, a, b)
    too_high = ~_armijo(search, p) | (p.f >= low.f)
    good = ~too_high & _flat(search, p)
    beyond = ~good & (p.slope * (high.t - low.t) >= 0)
    low, high = select(too_high, low, p), select(too_high, p, select(beyond, low, high))
    ends = select(swap, (high, low), (low, high))
    return search._replace(tried=search.tried + 1, ends=ends), good


def _armijo(search: Search, p: Point) -> jax.Array:
    """Sufficient decrease; a value that is not a number has not decreased."""
    return p.f <= search.start.f + ARMIJO * p.t * search.start.slope


def _flat(search: Search, p: Point) -> jax.Array:
    return jnp.abs(p.slope) <= -CURVATURE * search.start.slope


def defined(p: Point) -> Point:
    """The point, with ∞ in place of -∞, which is no value to go down to: nothing comes after it."""
    return p._replace(f=jnp.where(p.f == -jnp.inf, jnp.inf, p.f))


def cubic(a: Point, b: Point, least: jax.Array, most: jax.Array) -> jax.Array:
    """The minimizer within [least, most] of the cubic through two values and slopes, ibid. (3.59).

    The middle where there is none, and where something is not finite.
    """
    left, right = select(a.t <= b.t, (a, b), (b, a))
    width = right.t - left.t
    c = left.slope + right.slope - 3 * (right.f - left.f) / jnp.where(width > 0, width, 1)
    square = c * c - left.slope * right.slope
    root = jnp.sqrt(jnp.maximum(square, 0))
    bend = right.slope - left.slope + 2 * root
    t = right.t - width * (right.slope + root - c) / jnp.where(bend == 0, 1, bend)
    there = (square >= 0) & (bend != 0) & jnp.isfinite(t)
    return jnp.where(there, jnp.clip(t, least, most), (least + most) / 2)


def select(condition: jax.Array, a: Any, b: Any) -> Any:
    """One of two trees of the same structure."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
