"""BFGS and L-BFGS as Paddle's functional minimizers: a whole minimization in one call.

One loop evaluates the objective once in every round, at a point of the line search that is under way. So
minimizations under `vmap`, whose searches have different lengths, do not wait for one another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .array_types import ArrayTree
from .hyper import (
    INT,
    NAME,
    NUMBER,
    ArgumentError,
    Interval,
    Must,
    checked,
    function_of,
    is_traced,
    one_of,
    unless,
    whole,
)
from .line_search import ARMIJO, CURVATURE, Point, cubic, defined, select
from .quasi_newton import Layout, two_loop
from .trees import flatten, path_name

LONGEST_STEP, SMALLEST_BRACKET = 10.0, 1e-8
NO_CURVATURE = 1000.0  # 1 / s·y where s·y is zero


class Search(NamedTuple):
    """A line search under way, waiting for the value and the gradient at t = trial."""

    start: Point  # t = 0
    zooming: jax.Array  # () bool: the second phase, in which the bracket only shrinks
    rounds: jax.Array  # () int32, trials of this phase
    trial: jax.Array  # ()
    low: Point  # the best end of the bracket; before, the last trial, with the slope of the start
    high: Point


class History(NamedTuple):
    """The last m pairs of n elements; pair k, counted from 0, is in row k mod m."""

    old_yk: jax.Array  # (m, n) y, changes of the gradient
    old_sk: jax.Array  # (m, n) s, the steps they came from
    ro: jax.Array  # (m,) 1 / y·s
    al: jax.Array  # (m,) first half of the last recursion
    stored: jax.Array  # () int32, pairs ever remembered


class Run(NamedTuple):
    """A minimization under way."""

    x: jax.Array  # (n,) where this iteration started
    f: jax.Array  # () the value there
    g: jax.Array  # (n,) and the gradient
    p: jax.Array  # (n,) the direction
    memory: Any  # the inverse Hessian (n, n), or a History
    search: Search
    iterations: jax.Array  # () int32
    calls: jax.Array  # () int32, counted as Paddle does
    converged: jax.Array  # () bool
    done: jax.Array  # () bool


class Method(NamedTuple):
    """The arguments of a minimization, and how it takes its direction from what it remembers."""

    direction: Callable[[Any, jax.Array], jax.Array]  # (memory, g) -> p
    remember: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]  # (memory, s, y, ρ) -> memory
    max_iters: Any
    tolerance_grad: Any
    tolerance_change: Any
    max_line_search_iters: Any
    initial_step_length: Any


def _begun(method: Method, x: jax.Array, f: jax.Array, g: jax.Array, memory: Any, **state: Any) -> Run:
    """Return the run at the start of an iteration at x."""
    p = method.direction(memory, g)
    start = Point(jnp.zeros_like(f), f, jnp.vdot(g, p), g)
    no, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    first = jnp.asarray(method.initial_step_length, f.dtype)
    # H that saw s·y < 0 need not lead down; beyond the dtype no step is one.
    done = state.pop("done") | ~(start.slope <= 0) | (start.slope == -jnp.inf)
    return Run(x, f, g, p, memory, Search(start, no, none, first, start, start), done=done, **state)


def _evaluated(method: Method, run: Run, f: jax.Array, g: jax.Array) -> Run:
    """Go on with the value and the gradient at the trial."""
    trial = defined(Point(run.search.trial, f, jnp.vdot(g, run.p), g))
    first = ~run.search.zooming & (run.search.rounds == 0)
    search, over, accepted, end = _advanced(run.search, trial, method.max_line_search_iters)
    # Paddle evaluates the start of each search again, and forgets the trial that ends a second phase.
    counted = 1 + first.astype(jnp.int32) - (run.search.zooming & accepted).astype(jnp.int32)
    run = run._replace(search=search, calls=run.calls + counted)
    return jax.lax.cond(over, lambda: _iterated(method, run, end), lambda: run)


def _iterated(method: Method, run: Run, end: Point) -> Run:
    """End the iteration at this point of the line, and begin the next one."""
    s = jnp.where(end.t > 0, end.t * run.p, jnp.zeros_like(run.p))
    y = end.g - run.g
    sy = jnp.vdot(s, y)
    ro = jnp.where(sy == 0, NO_CURVATURE, 1 / jnp.where(sy == 0, 1, sy))
    memory = method.remember(run.memory, s, y, ro)
    small = [jnp.asarray(x, end.f.dtype) for x in (method.tolerance_grad, method.tolerance_change)]
    converged = (_largest(end.g) < small[0]) | (_largest(run.p) < small[1])
    iterations, done = run.iterations + 1, converged | (end.t == 0)
    state = {"iterations": iterations, "calls": run.calls, "converged": converged}
    done |= iterations >= method.max_iters
    return _begun(method, run.x + s, end.f, end.g, memory, done=done, **state)


def _advanced(search: Search, p: Point, most: Any) -> tuple[Search, jax.Array, jax.Array, Point]:
    """Return what the trial leads to: (the search, whether it is over, whether p is accepted, its end).

    Nocedal & Wright, Numerical Optimization, algorithms 3.5 and 3.6; a search that fails ends at the best
    point of its bracket, which may be the start. A value that is not finite counts as too high.
    """
    start, low = search.start, search.low
    too_high = ~(p.f <= start.f + ARMIJO * p.t * start.slope)
    good = jnp.abs(p.slope) <= -CURVATURE * start.slope
    rounds = search.rounds + 1

    def bracket() -> tuple[Search, jax.Array, jax.Array, Point]:
        above = too_high | (search.rounds > 1) & (p.f >= low.f)
        accepted = ~above & good
        turned = ~above & ~good & (p.slope >= 0)
        before, further = low._replace(slope=start.slope), p._replace(slope=start.slope)
        zooming = above | turned
        new = search._replace(
            zooming=zooming,
            rounds=jnp.where(zooming, 0, rounds),
            trial=jnp.minimum(2 * p.t, LONGEST_STEP),
            low=select(turned, p, select(above, before, further)),
            high=select(turned, before, p),
        )
        spent = ~zooming & (rounds >= most)
        return new, accepted | spent, accepted, select(accepted, p, start)

    def narrow() -> tuple[Search, jax.Array, jax.Array, Point]:
        above = too_high | (p.f >= low.f)
        accepted = ~above & good
        beyond = p.slope * (search.high.t - low.t) >= 0
        high = select(above, p, select(beyond, low, search.high))
        new = search._replace(rounds=rounds, low=select(above, low, p), high=high)
        return new, accepted | (rounds >= most), accepted, select(accepted, p, new.low)

    new, over, accepted, end = jax.lax.cond(search.zooming, narrow, bracket)
    left, right = jnp.minimum(new.low.t, new.high.t), jnp.maximum(new.low.t, new.high.t)
    over |= new.zooming & (right - left < SMALLEST_BRACKET)
    t = cubic(new.low, new.high, left, right)
    close = jnp.minimum(t - left, right - t) < 0.1 * (right - left)
    inside = jnp.where(close, (left + right) / 2, t)
    new = new._replace(trial=jnp.where(new.zooming, inside, new.trial))
    failed = over & ~accepted
    return new, over, accepted, select(failed & new.zooming, new.low, end)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)


class Objective:
    """The objective as a function of one vector, and the tree of the start around it."""

    def __init__(self, function: Callable[[Any], Any], start: ArrayTree, dtype: str):
        paths, leaves, self.tree = flatten(start)
        for path, x in zip(paths, leaves, strict=True):
            found = str(getattr(x, "dtype", type(x).__name__))
            if found != dtype:
                where = "" if len(paths) == 1 and not path else f" at {path_name(path)}"
                expected = f"an array of dtype {dtype}, as the argument dtype says"
                raise ArgumentError(f"initial_position{where}: found {found}, expected {expected}")
        if dtype == "float64" and jnp.result_type(float) != jnp.float64:
            raise ArgumentError("dtype: found 'float64', which JAX has only with jax_enable_x64")
        self.function, self.layout = function, Layout.of(paths, leaves)
        self.x = self.layout.join(leaves)
        self.shape = jax.eval_shape(self.value, self.x)[1].shape

    def value(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the value () at this vector, and as the objective returned it."""
        value = jnp.asarray(self.function(self.split(x)))
        if value.shape not in ((), (1,)) or not jnp.issubdtype(value.dtype, jnp.floating):
            found = f"found a value of shape {value.shape} and dtype {value.dtype}"
            raise ArgumentError(f"objective_func: {found}, expected one real floating number")
        return jnp.asarray(value.reshape(()), x.dtype), value

    def value_and_grad(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the value () and the gradient at this vector."""
        (value, _), g = jax.value_and_grad(self.value, has_aux=True)(x)
        return value, g

    def split(self, x: jax.Array) -> Any:
        """Return the tree that this vector holds."""
        return self.tree.unflatten(self.layout.split(x))

    def inverse_hessian(self, estimate: Any) -> jax.Array | None:
        """Return the given estimate (n, n), checked, or None."""
        if estimate is None:
            return None
        n, argument = self.x.size, "initial_inverse_hessian_estimate"
        if not isinstance(estimate, jax.Array | np.ndarray) or estimate.shape != (n, n):
            found = getattr(estimate, "shape", type(estimate).__name__)
            raise ArgumentError(f"{argument}: found {found}, expected an array of shape {(n, n)}")
        if not is_traced(estimate):
            h = np.asarray(estimate, np.float64)
            if not np.allclose(h, h.T) or not np.all(np.linalg.eigvalsh(h) > 0):
                raise ArgumentError(f"{argument}: expected a symmetric and positive definite matrix")
        return jnp.asarray(estimate, self.x.dtype)

    def minimized(self, method: Method, memory: Any) -> Run:
        """Run the minimization from the start."""
        f, g = self.value_and_grad(self.x)
        none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        done = jnp.asarray(method.max_iters <= 0)
        run = _begun(method, self.x, f, g, memory, iterations=none, calls=none + 1, converged=no, done=done)

        def go_on(run: Run) -> Run:
            return _evaluated(method, run, *self.value_and_grad(run.x + run.search.trial * run.p))

        return jax.lax.while_loop(lambda run: ~run.done, go_on, run)

    def results(self, run: Run) -> tuple[Any, ...]:
        """Return what both functions return, in Paddle's shapes."""
        calls = run.calls.astype(jnp.result_type(int)).reshape(1)
        return (
            run.converged.reshape(1),
            calls,
            self.split(run.x),
            run.f.reshape(self.shape),
            self.split(run.g),
        )


class LineSearchError(ArgumentError, NotImplementedError):
    """There is no line search of this name; Paddle raises NotImplementedError."""


TOLERANCE = NUMBER, Interval(0)
ARGUMENTS = {
    "objective_func": function_of("the position"),
    "max_iters": unless(is_traced, INT),
    "tolerance_grad": TOLERANCE,
    "tolerance_change": TOLERANCE,
    "line_search_fn": Must(
        lambda x: isinstance(x, str) and x == "strong_wolfe", "'strong_wolfe'", LineSearchError
    ),
    "max_line_search_iters": whole(1),
    "initial_step_length": (NUMBER, Interval(0, above=True)),
    "dtype": one_of("float32", "float64"),
    "name": NAME,
}


@checked(**ARGUMENTS)
def minimize_bfgs(
    objective_func: Callable[[Any], Any],
    initial_position: ArrayTree,
    max_iters: int = 50,
    tolerance_grad: Any = 1e-7,
    tolerance_change: Any = 1e-9,
    initial_inverse_hessian_estimate: Any = None,
    line_search_fn: str = "strong_wolfe",
    max_line_search_iters: int = 50,
    initial_step_length: Any = 1.0,
    dtype: str = "float32",
    name: str | None = None,
) -> tuple[Any, ...]:
    """Minimize a function of a vector by BFGS; up to max_iters iterations from initial_position.

        p = -H g                                      H starts at the estimate, by default the identity
        s = α p,  y = g₊ - g,  ρ = 1/s·y              α by a strong Wolfe search that first tries
        H ← (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ      initial_step_length; ρ = 1000 where s·y = 0

    Returns (is_converge [1], num_func_calls [1], position, objective_value, objective_gradient,
    inverse_hessian_estimate [n, n]). It has converged when max|g| < tolerance_grad or
    max|p| < tolerance_change; a search that fails ends the run where it is, unconverged, and so does a p that
    does not lead down, as where f has no minimum. The search makes up to max_line_search_iters trials, then
    as many to narrow a bracket, which never gets smaller than 1e-8: as in Paddle, a function whose gradients
    are beyond 1e7 or so is not moved. Divide it by a constant. Calls are counted as Paddle does: the
    start of every search counts again, a trial that ends a narrowing does not. `name` has no effect.

    The start is a vector or any tree of arrays, all of the given dtype, "float32" or "float64"; position and
    gradient are such trees, H is over their elements in order. Inside `jit` it is one program, under `vmap`
    over starts too; outside, every call compiles anew.

    Paddle 3.3.1 updates H by the transposed formula, which does not converge on Rosenbrock's function, and
    steps onto values that are infinite or NaN; here the search backs off. jax.scipy.optimize.minimize makes
    such steps too, up to 20 n of them, and stops by the norm of the gradient.

    >>> from paddlejax.incubate.optimizer.functional import minimize_bfgs
    >>> f = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> converged, calls, x, *_ = minimize_bfgs(f, jnp.array([-1.2, 1.0]), tolerance_grad=1e-3)
    >>> print(converged, x.round(3))
    [ True] [1. 1.]

    ArgumentError (a ValueError and an AssertionError) for a start of another dtype, an estimate that is not
    symmetric and positive definite, and an objective that returns more than one number.

    Nocedal & Wright, Numerical Optimization, 2006, algorithm 6.1 and (6.17).
    """
    objective = Objective(objective_func, initial_position, dtype)
    h = objective.inverse_hessian(initial_inverse_hessian_estimate)
    one = jnp.eye(objective.x.size, dtype=objective.x.dtype)

    def remember(h: jax.Array, s: jax.Array, y: jax.Array, ro: jax.Array) -> jax.Array:
        turn = one - ro * jnp.outer(s, y)
        return turn @ h @ turn.T + ro * jnp.outer(s, s)

    limits = max_iters, tolerance_grad, tolerance_change, max_line_search_iters, initial_step_length
    run = objective.minimized(Method(lambda h, g: -h @ g, remember, *limits), one if h is None else h)
    return *objective.results(run), run.memory


@checked(**ARGUMENTS, history_size=whole(1))
def minimize_lbfgs(
    objective_func: Callable[[Any], Any],
    initial_position: ArrayTree,
    history_size: int = 100,
    max_iters: int = 50,
    tolerance_grad: Any = 1e-8,
    tolerance_change: Any = 1e-8,
    initial_inverse_hessian_estimate: Any = None,
    line_search_fn: str = "strong_wolfe",
    max_line_search_iters: int = 50,
    initial_step_length: Any = 1.0,
    dtype: str = "float32",
    name: str | None = None,
) -> tuple[Any, ...]:
    """Minimize a function of a vector by L-BFGS: `minimize_bfgs` without the matrix H.

    p = -H g comes from the last history_size pairs (s, y) by the two-loop recursion, around the given
    estimate or the identity, which is not scaled by s·y / y·y. Arguments, results (without H), search and
    errors are those of `minimize_bfgs`.

    Paddle 3.3.1 hangs at iteration 2 history_size - 1, and uses two pairs less from when its history is full.
    `paddlejax.lbfgs` scales H, takes a rate, and goes on over many calls, as torch.optim.LBFGS;
    optax.lbfgs makes one iteration per update.

    >>> from paddlejax.incubate.optimizer.functional import minimize_lbfgs
    >>> f = lambda p: jnp.sum((p["w"] - 1) ** 2) + p["b"] ** 2
    >>> converged, calls, p, *_ = minimize_lbfgs(f, {"b": jnp.array(2.0), "w": jnp.zeros(2)})
    >>> print(converged, p["b"], p["w"])
    [ True] 0.0 [1. 1.]

    Liu & Nocedal 1989; Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.4.
    """
    objective = Objective(objective_func, initial_position, dtype)
    h = objective.inverse_hessian(initial_inverse_hessian_estimate)
    x, m = objective.x, history_size
    pairs, factors = jnp.zeros((m, x.size), x.dtype), jnp.zeros(m, x.dtype)
    history = History(pairs, pairs, factors, factors, jnp.zeros((), jnp.int32))

    def direction(memory: History, g: jax.Array) -> jax.Array:
        return two_loop(memory, -g, lambda q: q if h is None else h @ q)[0]

    def remember(memory: History, s: jax.Array, y: jax.Array, ro: jax.Array) -> History:
        row = memory.stored % m
        rows = {"old_yk": y, "old_sk": s, "ro": ro}
        new = {k: getattr(memory, k).at[row].set(v) for k, v in rows.items()}
        return memory._replace(**new, stored=memory.stored + 1)

    limits = max_iters, tolerance_grad, tolerance_change, max_line_search_iters, initial_step_length
    return objective.results(objective.minimized(Method(direction, remember, *limits), history))
