"""L-BFGS: a quasi-Newton method that remembers the last few steps and how the gradient changed along them.

The algorithm stands here once, as a state machine that asks for one value and gradient at a time: `begin`,
then `absorb` until it is done, each time at `proposed`. `lbfgs` drives it with `lax.while_loop`,
the class `optimizer.LBFGS` with a Python loop around the closure.
"""

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import line_search
from .array_types import ArrayTree, Gradients, LearningRate
from .hyper import COEFFICIENT, RATE, ArgumentError, Interval, checked, one_of, optional, whole
from .lifting import GradientTransformation
from .line_search import Point, Search, select
from .rates import RuleState, rate_at, rate_in_force, state_type
from .trees import at_params, compute_dtype, flatten, gradients, next_count, node
from .wrap import check_state

SMALLEST_CURVATURE = 1e-10  # of a pair (y, s) that is worth remembering


@partial(
    node,
    data=["max_iter", "max_eval", "tolerance_grad", "tolerance_change"],
    static=["history_size", "line_search_fn"],
)
@dataclass(frozen=True)
class Method:
    """The hyperparameters of L-BFGS but for the rate, under Paddle's names; limits are data."""

    max_iter: int = 20
    max_eval: int | None = None
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    history_size: int = 100
    line_search_fn: str | None = None

    @property
    def evaluations(self) -> int:
        """How often a step may evaluate the loss: `max_eval`, by default 5/4 of `max_iter`."""
        return self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval


class LineSearchError(ArgumentError, RuntimeError):
    """There is no line search of this name; Paddle raises RuntimeError."""


METHOD = {
    "line_search_fn": one_of(None, "strong_wolfe", error=LineSearchError),
    "max_iter": whole(1),
    "tolerance_grad": (*COEFFICIENT, Interval(0)),
    "tolerance_change": (*COEFFICIENT, Interval(0)),
    "history_size": whole(1),
    "max_eval": optional(*whole(1)),
}


class LBFGSState(NamedTuple):
    """What one call leaves to the next, for n parameters and m = history_size; the names are Paddle's.

    Pair k of the history, counted from 0 over the optimizer's life, is in row k mod m.
    """

    rate: RuleState  # calls made and the rate in force, where `set_learning_rate` finds it
    func_evals: jax.Array  # () int32, values and gradients used
    n_iter: jax.Array  # () int32
    d: jax.Array  # (n,) the last direction
    alpha: jax.Array  # () the step length along it
    stored: jax.Array  # () int32, pairs ever remembered
    old_yk: jax.Array  # (m, n) y, changes of the gradient
    old_sk: jax.Array  # (m, n) s, the steps they came from
    ro: jax.Array  # (m,) 1 / y·s
    al: jax.Array  # (m,) first half of the last recursion
    H_diag: jax.Array  # () y·s / y·y of the last pair
    prev_flat_grad: jax.Array  # (n,) gradient where the last direction was chosen
    prev_loss: jax.Array  # () and the value there
    last: Any = ()  # an Evaluated, of the function `lbfgs` only


class Evaluated(NamedTuple):
    """What is known where a call ended, under optax's names: `optax.value_and_grad_from_state` finds it."""

    value: jax.Array  # () inf if the value there is not known
    grad: Any  # like the parameters


class Call(NamedTuple):
    """A call under way, waiting for the value and the gradient at `proposed`."""

    state: LBFGSState
    x: jax.Array  # (n,) where this iteration started
    f: jax.Array  # () the value there
    g: jax.Array  # (n,) and the gradient
    iterations: jax.Array  # () int32, of this call
    evals: jax.Array  # () int32, of this call
    done: jax.Array  # () bool: nothing is wanted any more, x is the result
    search: Search  # along state.d


def begin(state: LBFGSState, x: jax.Array) -> Call:
    """Start a call at x, where the first value is wanted."""
    zero, g, none = jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros((), jnp.int32)
    search = line_search.start(zero, zero, g, zero, zero)
    return Call(state, x, zero, g, none, none, jnp.zeros((), bool), search)


def proposed(call: Call) -> jax.Array:
    """Where the value and the gradient are wanted, or the result when the call is done."""
    here = call.done | (call.evals == 0)
    return jnp.where(here, call.x, call.x + call.search.trial * call.state.d)


def absorb(method: Method, call: Call, f: jax.Array, g: jax.Array) -> Call:
    """Go on with the value and the gradient at `proposed`."""
    first = call.evals == 0
    counted = call.state._replace(func_evals=next_count(call.state.func_evals))
    p, found = Point(call.search.trial, f, jnp.vdot(g, call.state.d), g), jnp.ones((), bool)
    if method.line_search_fn is not None:
        search, found, end = line_search.advance(call.search, p)
        p, found = select(first, p, end), first | found
        call = call._replace(search=search)
    call = call._replace(state=counted, evals=call.evals + 1)
    return jax.lax.cond(found, partial(_settle, method), lambda c, *_: c, call, p, first)


def _settle(method: Method, call: Call, p: Point, first: jax.Array) -> Call:
    """The call starts at p or an iteration ends there: stop, or go on."""
    step, change = p.t * call.state.d, jnp.asarray(method.tolerance_change, p.f.dtype)
    over = (_largest(p.g) <= jnp.asarray(method.tolerance_grad, p.f.dtype)) | ~first & (
        (_largest(step) <= change)
        | (jnp.abs(p.f - call.f) < change)
        | (call.evals >= method.evaluations)
        | (call.iterations >= method.max_iter)
    )
    state = call.state._replace(alpha=jnp.where(first, call.state.alpha, p.t))
    x = jnp.where(first, call.x, call.x + step)
    call = call._replace(state=state, x=x, f=p.f, g=p.g, done=jnp.ones((), bool))
    return jax.lax.cond(over, lambda c: c, partial(_next_direction, method), call)


def _next_direction(method: Method, call: Call) -> Call:
    """Start an iteration at x: remember the last step, choose the direction and the first trial."""
    state, g, x = call.state, call.g, call.x
    first, n_iter, iterations = state.n_iter == 0, next_count(state.n_iter), call.iterations + 1
    state = _remember(state, g, first)
    d, al = two_loop(state, -g, lambda q: q * state.H_diag)
    t = jnp.where(first, jnp.minimum(1, 1 / jnp.sum(jnp.abs(g))), 1) * state.rate.learning_rate
    slope = jnp.vdot(g, d)
    done = ~(slope <= -jnp.asarray(method.tolerance_change, g.dtype))  # NaN stops as well
    f = call.f
    if method.line_search_fn is None:  # the last step of a call is left to the next one to evaluate
        last = ~done & (iterations >= method.max_iter)
        x, f, done = jnp.where(last, x + t * d, x), jnp.where(last, jnp.inf, f), done | last
    state = state._replace(n_iter=n_iter, d=d, al=al, alpha=t, prev_flat_grad=g, prev_loss=call.f)
    search = line_search.start(call.f, slope, g, _largest(d), t)
    return call._replace(state=state, x=x, f=f, iterations=iterations, done=done, search=search)


def _remember(state: LBFGSState, g: jax.Array, first: jax.Array) -> LBFGSState:
    """Take the pair of the last step into the history, in place of the oldest, if it curves upward."""
    y, s = g - state.prev_flat_grad, state.alpha * state.d
    ys, yy = jnp.vdot(y, s), jnp.vdot(y, y)
    keep = ~first & (ys > SMALLEST_CURVATURE)
    ys, yy = jnp.where(keep, ys, 1), jnp.where(keep, yy, 1)
    row = state.stored % state.ro.shape[0]

    def put(rows: jax.Array, new: jax.Array) -> jax.Array:
        return rows.at[row].set(jnp.where(keep, new, rows[row]))

    return state._replace(
        old_yk=put(state.old_yk, y),
        old_sk=put(state.old_sk, s),
        ro=put(state.ro, 1 / ys),
        stored=state.stored + keep.astype(state.stored.dtype),
        H_diag=jnp.where(first, 1, jnp.where(keep, ys / yy, state.H_diag)),
    )


def two_loop(
    state: Any, q: jax.Array, start: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """H q from the pairs remembered, newest to oldest and back, and al: Nocedal & Wright, algorithm 7.4.

    `start` multiplies by the matrix that H was before any pair.
    """
    y, s, ro, m = state.old_yk, state.old_sk, state.ro, state.ro.shape[0]
    kept = jnp.minimum(state.stored, m)

    def back(i: Any, carry: Any) -> Any:
        q, al = carry
        k = (state.stored - 1 - i) % m
        a = jnp.vdot(s[k], q) * ro[k]
        return q - a * y[k], al.at[k].set(a)

    def forth(i: Any, r: Any) -> Any:
        k = (state.stored - kept + i) % m
        return r + (al[k] - jnp.vdot(y[k], r) * ro[k]) * s[k]

    none = jnp.zeros_like(kept)
    q, al = jax.lax.fori_loop(none, kept, back, (q, state.al))
    return jax.lax.fori_loop(none, kept, forth, start(q)), al


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)


@dataclass(frozen=True)
class Layout:
    """How the leaves of a tree lie in one vector of the widest dtype among them; hashable."""

    shapes: tuple[tuple[int, ...] | None, ...]  # None for a leaf that is None
    dtypes: tuple[Any, ...]
    wide: Any

    @classmethod
    def of(cls, paths: list[Any], leaves: list[Any]) -> "Layout":
        """Return the layout of these leaves; the vector is float64 if a leaf computes in float64, else
        float32."""
        pairs = zip(paths, leaves, strict=True)
        dtypes = [None if p is None else compute_dtype(path, p) for path, p in pairs]
        return cls(
            tuple(None if p is None else jnp.shape(p) for p in leaves),
            tuple(None if p is None else jnp.result_type(p) for p in leaves),
            jnp.float64 if jnp.float64 in dtypes else jnp.float32,
        )

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each leaf, 0 where the leaf is None."""
        return [0 if shape is None else math.prod(shape) for shape in self.shapes]

    def join(self, leaves: list[Any]) -> jax.Array:
        """One vector; what is missing counts as zeros."""
        parts = [
            jnp.zeros(size, self.wide) if x is None else jnp.ravel(jnp.asarray(x, self.wide))
            for size, x in zip(self.sizes, leaves, strict=True)
        ]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, self.wide)

    def split(self, x: jax.Array) -> list[Any]:
        """Return the leaves that this vector holds, in their shapes and dtypes."""
        ends = list(itertools.accumulate(self.sizes))
        parts = zip(self.sizes, ends, self.shapes, self.dtypes, strict=True)
        return [
            None if shape is None else x[end - size : end].reshape(shape).astype(dtype)
            for size, end, shape, dtype in parts
        ]

    def value(self, value: Any) -> jax.Array:
        """Return a loss in the dtype of the vector, or raise if it is no real floating scalar."""
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            found = f"shape {jnp.shape(value)} and dtype {jnp.result_type(value)}"
            raise TypeError(f"LBFGS: found a value of {found}, expected a real floating scalar")
        return jnp.asarray(value, self.wide)

    def state(self, method: Method, learning_rate: LearningRate) -> LBFGSState:
        """The state before the first call; no two of its arrays share a buffer."""
        n, m = sum(self.sizes), method.history_size
        vectors = {name: jnp.zeros(n, self.wide) for name in ("d", "prev_flat_grad")}
        history = {name: jnp.zeros((m, n), self.wide) for name in ("old_yk", "old_sk")}
        factors = {name: jnp.zeros(m, self.wide) for name in ("ro", "al")}
        scalars = {name: jnp.zeros((), self.wide) for name in ("alpha", "prev_loss")}
        counts = {name: jnp.zeros((), jnp.int32) for name in ("func_evals", "n_iter", "stored")}
        count = jnp.zeros((), jnp.int32)
        first = jnp.array(rate_at("LBFGS", learning_rate, count), self.wide)
        rate = state_type(learning_rate)(count, first, {}, {})
        scale = jnp.ones((), self.wide)
        return LBFGSState(rate=rate, H_diag=scale, **vectors, **history, **factors, **scalars, **counts)


@checked(**METHOD, learning_rate=RATE)
def lbfgs(
    learning_rate: LearningRate = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
) -> GradientTransformation:
    """Up to max_iter iterations of L-BFGS in every update, which evaluates the objective by itself.

        y = g - g₋, s = p - p₋       remembered if y·s > 1e-10, the last history_size of them
        d = -H g                     two-loop recursion, from y·s / y·y times the identity
        p ← p + t d                  t = η, in the first iteration η min(1, 1/Σ|g|)

    With line_search_fn="strong_wolfe" t is only the first trial; without it nothing guarantees descent.
    It stops where g or t d has no element above its tolerance, the value changes by less than
    tolerance_change, or after max_eval evaluations (5/4 max_iter). The history lives on in the state.

    `update(grads, state, params, value=value, value_and_grad=f)` wants the value beside the gradient, and the
    function `f(params) -> (value, grads)` that gave both. Put it inside `jit`: outside, every call compiles
    anew. In `chain`, change no gradient before it. A missing gradient counts as zeros. The rate may be a
    schedule of the calls, or a jax array, which acts at every call. The parameters lie in one vector,
    float32 or as wide as the widest of them.

    optax's arguments `value=value, grad=grads, value_fn=objective` do as well; what else `update` is given
    goes to value_fn if it has an argument of that name. With a line search the state holds value and gradient
    of the last point, for `optax.value_and_grad_from_state`. optax.lbfgs makes one iteration per update and
    remembers 10 pairs. torch's LBFGS makes the same steps without a line search, other ones with
    "strong_wolfe": the search here is Paddle's, and it backs off from values that are not finite.

    >>> f = jax.value_and_grad(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)
    >>> tx, p = lbfgs(max_iter=100, line_search_fn="strong_wolfe"), jnp.array([-1.2, 1.0])
    >>> value, grads = f(p)
    >>> updates, state = tx.update(grads, tx.init(p), p, value=value, value_and_grad=f)
    >>> print((p + updates).round(3))
    [1. 1.]

    Liu & Nocedal 1989; Nocedal & Wright, Numerical Optimization, 2006, chapter 7.
    """
    method = Method(max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)
    pair = _Lbfgs(method, learning_rate)
    return GradientTransformation(pair.init, pair.update)


@dataclass(frozen=True, eq=False)
class _Lbfgs:
    method: Method
    learning_rate: Any

    @at_params
    def init(self, params: ArrayTree) -> LBFGSState:
        paths, leaves, tree = flatten(params)
        layout = Layout.of(paths, leaves)
        grad = tree.unflatten([None if p is None else jnp.zeros_like(p) for p in leaves])
        last = Evaluated(jnp.array(jnp.inf, layout.wide), grad)
        return layout.state(self.method, self.learning_rate)._replace(last=last)

    def update(
        self,
        grads: Gradients,
        state: LBFGSState,
        params: ArrayTree | None = None,
        *,
        value: Any = None,
        value_and_grad: Callable[[Any], tuple[Any, Any]] | None = None,
        grad: Gradients = None,
        value_fn: Callable[..., Any] | None = None,
        **extra: Any,
    ) -> tuple[Any, LBFGSState]:
        if value_and_grad is None and callable(value_fn):
            value_and_grad, grads = _of_value(value_fn, extra), grads if grad is None else grad
        if params is None or value is None or not callable(value_and_grad):
            raise TypeError(
                "lbfgs evaluates the objective by itself: update(grads, state, params, value=value, "
                "value_and_grad=f), where f = jax.value_and_grad(objective) also gave value and grads; "
                "or, as in optax, value=value, grad=grads, value_fn=objective"
            )
        paths, leaves, tree = flatten(params)
        layout = Layout.of(paths, leaves)
        x = layout.join(leaves)
        state = self._called(state, layout)

        def flat(value: Any, grads: Any) -> tuple[jax.Array, jax.Array]:
            return layout.value(value), layout.join(gradients(tree, paths, leaves, grads))

        def go_on(call: Call) -> Call:
            def evaluated() -> tuple[jax.Array, jax.Array]:
                return flat(*value_and_grad(tree.unflatten(layout.split(proposed(call)))))

            found = jax.lax.cond(call.evals == 0, lambda: flat(value, grads), evaluated)
            return absorb(self.method, call, *found)

        call = jax.lax.while_loop(lambda call: ~call.done, go_on, begin(state, x))
        last = Evaluated(call.f, tree.unflatten(layout.split(call.g)))
        return tree.unflatten(layout.split(call.x - x)), call.state._replace(last=last)

    def _called(self, state: Any, layout: Layout) -> LBFGSState:
        """The state with this call counted and its rate in force, or an error if it does not fit."""
        check_state("lbfgs", state, LBFGSState)
        expected = (self.method.history_size, sum(layout.sizes))
        if state.old_yk.shape != expected:
            raise ValueError(f"the state's history has shape {state.old_yk.shape}, expected {expected}")
        rate = rate_in_force("LBFGS", self.learning_rate, state.rate)
        count = next_count(state.rate.count)
        return state._replace(rate=state.rate._replace(count=count, learning_rate=rate))


def _of_value(value_fn: Callable[..., Any], extra: dict[str, Any]) -> Callable[[Any], tuple[Any, Any]]:
    """An objective's value and gradient, with those of the extra arguments that it takes, as in optax."""
    taken = inspect.signature(value_fn).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    own = {name: x for name, x in extra.items() if every or name in taken}
    return jax.value_and_grad(partial(value_fn, **own))
