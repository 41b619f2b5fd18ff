"""The functional minimizers against Paddle's records, and BFGS against numpy: Paddle's own has a fault."""

import functools
import gzip
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN
from refusals import refuse, row, rows

from paddlejax.incubate.optimizer import functional
from paddlejax.incubate.optimizer.functional import minimize_bfgs, minimize_lbfgs

RECORD = json.loads(gzip.decompress((GOLDEN / "functional.json.gz").read_bytes()))
CASES = RECORD["cases"]

FUNCTIONS = {
    "quadratic": lambda x, m, c: 0.5 * (x * m.matmul(c["A"], x)).sum() - (c["b"] * x).sum(),
    "rosenbrock": lambda x, m, c: (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum(),
    "himmelblau": lambda x, m, c: (x[0] ** 2 + x[1] - 11.0) ** 2 + (x[0] + x[1] ** 2 - 7.0) ** 2,
    "beale": lambda x, m, c: (
        (1.5 - x[0] + x[0] * x[1]) ** 2
        + (2.25 - x[0] + x[0] * x[1] ** 2) ** 2
        + (2.625 - x[0] + x[0] * x[1] ** 3) ** 2
    ),
    "booth": lambda x, m, c: (x[0] + 2.0 * x[1] - 7.0) ** 2 + (2.0 * x[0] + x[1] - 5.0) ** 2,
    "quartic": lambda x, m, c: (x**4 + 0.5 * x**2 - x).sum(),
    "logistic": lambda x, m, c: (
        m.log(1.0 + m.exp(-c["y"] * m.matmul(c["Z"], x))).mean() + 0.05 * (x * x).sum()
    ),
    "logsumexp": lambda x, m, c: m.log(m.exp(m.matmul(c["A"], x) + c["b"]).sum()) + 0.5 * (x * x).sum(),
    "styblinski": lambda x, m, c: 0.5 * (x**4 - 16.0 * x**2 + 5.0 * x).sum(),
    "powell": lambda x, m, c: (
        (x[0] + 10.0 * x[1]) ** 2
        + 5.0 * (x[2] - x[3]) ** 2
        + (x[1] - 2.0 * x[2]) ** 4
        + 10.0 * (x[0] - x[3]) ** 4
    ),
    "pseudo_huber": lambda x, m, c: (m.sqrt(1.0 + (x - c["t"]) ** 2) - 1.0).sum(),
}
FUNCTIONS["rosenbrock4"] = FUNCTIONS["rosenbrock"]


@functools.cache
def objective(function, dtype):
    constants = {k: jnp.asarray(v, dtype) for k, v in RECORD["constants"][function].items()}
    return lambda x: FUNCTIONS[function](x, jnp, constants)


DATA = ("max_iters", "tolerance_grad", "tolerance_change", "initial_step_length")


@functools.cache
def program(method, size, dtype, **options):
    """(which, start, limits) -> results, one program for all recorded functions of so many variables."""
    names = sorted({c["function"] for c in CASES if len(c["x0"]) == size})
    functions = [objective(name, dtype) for name in names]
    minimize = {"bfgs": minimize_bfgs, "lbfgs": minimize_lbfgs}[method]
    limits = {k: inspect.signature(minimize).parameters[k].default for k in DATA}

    @jax.jit
    def run(which, start, given):
        return minimize(lambda x: jax.lax.switch(which, functions, x), start, dtype=dtype, **options, **given)

    return lambda name, start, **given: run(names.index(name), start, limits | given)


def minimized(case, **limits):
    """What the recorded call returns here, with other limits if they are given."""
    given = {**arguments(case), **limits}
    options = {k: given.pop(k) for k in ("dtype", "max_line_search_iters", "history_size") if k in given}
    run = program(case["method"], len(case["x0"]), **options)
    return run(case["function"], jnp.asarray(case["x0"], case["dtype"]), **given)


def arguments(case):
    kwargs = {**case["kwargs"], "dtype": case["dtype"]}
    if "initial_inverse_hessian_estimate" in kwargs:
        h = np.array(kwargs["initial_inverse_hessian_estimate"], case["dtype"])
        kwargs["initial_inverse_hessian_estimate"] = h
    return kwargs


def name(case):
    return "-".join([case["function"], case["method"], *map(str, case["kwargs"]), str(case["x0"][0])])


# ----------------------------------------------------------------------------------------- numpy, float64


def cubic(a, b):
    """The minimum of the cubic through (t, value, slope) twice, clamped; the middle without one."""
    (x1, f1, s1), (x2, f2, s2) = sorted([a[:3], b[:3]])
    c = s1 + s2 - 3 * (f1 - f2) / (x1 - x2)
    square = c * c - s1 * s2
    if square < 0:
        return (x1 + x2) / 2
    root = np.sqrt(square)
    return min(max(x2 - (x2 - x1) * (s2 + root - c) / (s2 - s1 + 2 * root), x1), x2)


def searched(line, f0, s0, g0, first, most):
    """(alpha, f, g, calls), of Paddle's line search."""
    start, calls = (0.0, f0, s0, g0), 1
    before, t = start, first
    for i in range(most):
        p, calls = line(t), calls + 1
        if p[1] > f0 + 1e-4 * t * s0 or p[1] >= before[1] and i > 1:
            low, high = before, p
        elif abs(p[2]) <= -0.9 * s0:
            return p[0], p[1], p[3], calls
        elif p[2] >= 0:
            low, high = p, before
        else:
            before, t = (p[0], p[1], s0, p[3]), min(2 * t, 10.0)
            continue
        break
    else:
        return 0.0, f0, g0, calls
    for _ in range(most):
        size = abs(high[0] - low[0])
        if size < 1e-8:
            break
        t = cubic(low, high)
        if min(abs(t - low[0]), abs(t - high[0])) < 0.1 * size:
            t = (low[0] + high[0]) / 2
        p = line(t)
        if p[1] > f0 + 1e-4 * t * s0 or p[1] >= low[1]:
            high = p
        elif abs(p[2]) <= -0.9 * s0:
            return p[0], p[1], p[3], calls
        else:
            high, low = low if p[2] * (high[0] - low[0]) >= 0 else high, p
        calls += 1
    return low[0], low[1], low[3], calls


def bfgs(f, x, transposed, initial_inverse_hessian_estimate=None, dtype=None, **kwargs):
    """What minimize_bfgs returns; `transposed` is Paddle's formula for H."""
    o = {"max_iters": 50, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "max_line_search_iters": 50}
    o |= {"initial_step_length": 1.0, **kwargs}
    h = np.eye(len(x)) if initial_inverse_hessian_estimate is None else initial_inverse_hessian_estimate
    value, g = f(x)
    calls, converged = 1, False
    for _ in range(o["max_iters"]):
        p = -h @ g

        def line(t, x=x, p=p):
            value, g = f(x + t * p)
            return t, value, g @ p, g

        limits = o["initial_step_length"], o["max_line_search_iters"]
        alpha, value, new, more = searched(line, value, g @ p, g, *limits)
        s, y, calls = alpha * p, new - g, calls + more
        x, g = x + s, new
        ro = 1 / (s @ y) if s @ y else 1000.0
        turn = np.eye(len(x)) - ro * (np.outer(y, s) if transposed else np.outer(s, y))
        h = turn @ h @ turn.T + ro * np.outer(s, s)
        converged = bool(np.max(np.abs(g)) < o["tolerance_grad"] or np.max(np.abs(p)) < o["tolerance_change"])
        if converged or alpha == 0:
            break
    return converged, calls, x, value, g, h


@functools.cache
def compiled(function, dtype):
    f = jax.jit(jax.value_and_grad(objective(function, dtype)))

    def run(x):
        value, g = f(jnp.asarray(x))
        return float(value), np.asarray(g)

    return run


# ------------------------------------------------------------------------------------------------- records

BFGS = [c for c in CASES if c["method"] == "bfgs" and c["dtype"] == "float64"]
LBFGS = [c for c in CASES if c["method"] == "lbfgs" and c["dtype"] == "float64"]
NARROW = [c for c in CASES if c["dtype"] == "float32" and c["method"] == "lbfgs" and not c["kwargs"]]


def same(found, want, tolerance=1e-6):
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance * max(1, np.max(np.abs(want))))


@pytest.mark.parametrize("case", BFGS, ids=name)
def test_bfgs_as_numpy_with_the_right_formula(case):
    """Paddle's formula for H is transposed: with it the numpy reference makes every recorded run."""
    with jax.enable_x64(True):
        f, start = compiled(case["function"], case["dtype"]), np.array(case["x0"])
        recorded = bfgs(f, start, True, **arguments(case))
        assert recorded[:2] == (case["is_converge"], case["num_func_calls"])
        same(recorded[2], case["position"])
        want = bfgs(f, start, False, **arguments(case))
        found = minimized(case)
        assert [list(x.shape) for x in found] == case["shapes"]
        assert [str(x.dtype) for x in found] == case["dtypes"]
        assert (bool(found[0][0]), int(found[1][0])) == want[:2]
        for x, y in zip(found[2:], want[2:], strict=True):
            same(x, y, 1e-5)


def converges(case):
    return not case["kwargs"] and case["function"] != "rosenbrock4"


def test_the_right_formula_converges_where_paddles_does_not():
    failed = [c for c in BFGS if converges(c) and not c["is_converge"]]
    assert {c["function"] for c in failed} == {"rosenbrock", "beale", "powell"}
    with jax.enable_x64(True):
        for c in failed:
            assert minimized(c)[0][0], c["function"]


# Paddle uses two pairs less than history_size; near Powell's flat minimum rounding decides when it ends.
OTHER_PAIRS, FLAT = "history_size", "powell"


@pytest.mark.parametrize("case", [c for c in LBFGS if OTHER_PAIRS not in c["kwargs"]], ids=name)
def test_lbfgs_as_recorded(case):
    with jax.enable_x64(True):
        found = minimized(case)
        assert [list(x.shape) for x in found] == case["shapes"]
        assert [str(x.dtype) for x in found] == case["dtypes"]
        assert bool(found[0][0]) == case["is_converge"]
        flat = case["function"] == FLAT
        assert flat or int(found[1][0]) == case["num_func_calls"]
        same(found[2], case["position"], 1e-3 if flat else 1e-6)
        same(found[3], case["objective_value"], 1e-3 if flat else 1e-6)
        for k, at in case.get("path", {}).items():
            converged, calls, x, *_ = minimized(case, max_iters=int(k))
            assert (bool(converged[0]), int(calls[0])) == (at["is_converge"], at["num_func_calls"])
            same(x, at["position"])


@pytest.mark.parametrize("case", NARROW, ids=name)
def test_in_float32_the_position_is_near(case):
    found = minimized(case)
    same(found[3], case["objective_value"], 1e-3)
    same(found[2], case["position"], 2e-2 if case["function"] == FLAT else 1e-3)


# ------------------------------------------------------------------------------------------------- beyond


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_short_history_does_not_hang(size):
    with jax.enable_x64(True):
        found = minimize_lbfgs(rosenbrock, jnp.array([-1.2, 1.0, 0.5]), size, max_iters=300, dtype="float64")
        assert found[0][0]
        np.testing.assert_allclose(found[2], 1, atol=1e-6)


def test_a_full_history_uses_all_its_pairs():
    """Three pairs reach as far as a hundred while no more than three were made."""
    with jax.enable_x64(True):
        start = jnp.array([-1.2, 1.0, 0.5])
        short, full = (
            jax.jit(lambda k, m=m: minimize_lbfgs(rosenbrock, start, m, max_iters=k, dtype="float64")[2])
            for m in (3, 100)
        )
        np.testing.assert_array_equal(short(4), full(4))
        assert not np.array_equal(short(6), full(6))


@pytest.mark.parametrize("minimize", [minimize_bfgs, minimize_lbfgs])
def test_many_starts_are_one_program_and_do_what_each_does(minimize):
    starts = jnp.array([[-1.2, 1.0], [0.5, -0.5], [1.0, 1.0], [2.0, 3.0]])
    with jax.enable_x64(True):
        starts = starts.astype(jnp.float64)
        run = jax.jit(lambda x: minimize(rosenbrock, x, max_iters=80, dtype="float64"))
        found = jax.jit(jax.vmap(run))(starts)
        for i, x in enumerate(starts):
            converged, calls, position, *_ = run(x)
            assert converged[0] and found[0][i, 0] and calls[0] == found[1][i, 0]
            np.testing.assert_allclose(found[2][i], position, rtol=1e-6)


@pytest.mark.parametrize("minimize", [minimize_bfgs, minimize_lbfgs])
def test_a_tree_is_the_vector_of_its_leaves(minimize):
    target = jnp.array([1.0, -2.0, 4.0])
    of_vector = lambda x: jnp.sum(jnp.sqrt(1 + (x - target) ** 2))  # noqa: E731
    vector = lambda p: jnp.concatenate([p["a"].ravel(), p["b"][None]])  # noqa: E731
    start = {"a": jnp.zeros((1, 2)), "b": jnp.array(0.5)}
    found = minimize(lambda p: of_vector(vector(p)), start, max_iters=5)
    want = minimize(of_vector, jnp.array([0.0, 0.0, 0.5]), max_iters=5)
    assert found[2]["a"].shape == (1, 2) and found[4]["b"].shape == () and found[1] == want[1]
    np.testing.assert_allclose(vector(found[2]), want[2], rtol=1e-4)


def test_an_objective_may_return_one_element():
    found = minimize_bfgs(lambda x: jnp.sum(x * x)[None], jnp.ones(3))
    assert found[3].shape == (1,) and found[0].shape == (1,)


@pytest.mark.parametrize("minimize", [minimize_bfgs, minimize_lbfgs])
def test_the_search_backs_off_from_what_is_not_finite(minimize):
    """Paddle ends at once on an infinite value, and steps onto NaN."""
    edge = {
        "nan": lambda x: jnp.sum(x - jnp.log(x)),
        "inf": lambda x: jnp.sum(jnp.where(x > 0, x - jnp.log(jnp.where(x > 0, x, 1)), jnp.inf)),
    }
    functions = [*edge.values(), lambda x: jnp.sum(x) * jnp.nan]
    run = jax.jit(lambda i, x: minimize(lambda x: jax.lax.switch(i, functions, x), x, tolerance_grad=1e-3))
    for i in range(len(edge)):
        converged, _, x, *_ = run(i, jnp.array([8.0, 0.1]))
        assert converged[0]
        np.testing.assert_allclose(x, 1, atol=1e-2)
    never = run(len(edge), jnp.ones(2))
    assert not never[0][0] and np.array_equal(never[2], [1, 1])


@pytest.mark.parametrize("minimize", [minimize_bfgs, minimize_lbfgs])
def test_the_search_does_not_step_onto_minus_infinity(minimize):
    _, _, x, f, *_ = minimize(lambda x: jnp.sum(jnp.log(jnp.maximum(x, 0))), jnp.ones(2))
    assert np.isfinite(f) and np.all(x > 0) and f < 0


def test_no_iteration_is_one_evaluation():
    start = jnp.array([1.0, 2.0])
    for limit in (0, -3):
        converged, calls, x, *_ = minimize_bfgs(rosenbrock, start, max_iters=limit)
        assert (bool(converged[0]), int(calls[0])) == (False, 1)
        np.testing.assert_array_equal(x, start)


X, H = jnp.ones(2), "initial_inverse_hessian_estimate"
BAD = [
    row("function", lambda m: m(3, X), TypeError, "objective_func", "3"),
    row("dtype", lambda m: m(rosenbrock, X, dtype="float16"), ValueError, "dtype", "'float16'", "'float64'"),
    row("start-dtype", lambda m: m(rosenbrock, X.astype(jnp.float16)), ValueError, "initial_position",
        "float16", "float32"),
    row("start-int", lambda m: m(rosenbrock, {"a": jnp.arange(2)}), ValueError, "at a", "int32"),
    row("start-list", lambda m: m(rosenbrock, [1.0, 2.0]), ValueError, "initial_position at 0", "float"),
    row("no-x64", lambda m: m(rosenbrock, np.ones(2), dtype="float64"), ValueError, "jax_enable_x64"),
    row("asymmetric", lambda m: m(rosenbrock, X, **{H: jnp.array([[1.0, 1.0], [0.0, 1.0]])}), ValueError, H,
        "symmetric"),
    row("indefinite", lambda m: m(rosenbrock, X, **{H: -jnp.eye(2)}), ValueError, H, "positive definite"),
    row("h-shape", lambda m: m(rosenbrock, X, **{H: jnp.eye(3)}), ValueError, H, r"\(3, 3\)", r"\(2, 2\)"),
    row("search", lambda m: m(rosenbrock, X, line_search_fn="armijo"), NotImplementedError, "line_search_fn",
        "'armijo'"),
    row("vector-valued", lambda m: m(lambda x: x, X), AssertionError, "objective_func", r"\(2,\)"),
    row("iterations", lambda m: m(rosenbrock, X, max_iters=1.5), TypeError, "max_iters", r"1\.5"),
    row("trials", lambda m: m(rosenbrock, X, max_line_search_iters=0), ValueError,
        "max_line_search_iters", "0"),
    row("step", lambda m: m(rosenbrock, X, initial_step_length=0.0), ValueError, "initial_step_length",
        r"0\.0"),
    row("tolerance", lambda m: m(rosenbrock, X, tolerance_grad=-1.0), ValueError, "tolerance_grad", r"-1\.0"),
]  # fmt: skip


@pytest.mark.parametrize("minimize", functional.__all__)
@rows(arguments=BAD)
def test_refused(minimize, call, classes, words):
    refuse(lambda: call(getattr(functional, minimize)), classes, words)


def test_history_size():
    refuse(lambda: minimize_lbfgs(rosenbrock, X, 0), (ValueError,), ("history_size", "0"))


@pytest.mark.parametrize("minimize", [minimize_bfgs, minimize_lbfgs])
def test_a_direction_that_does_not_lead_down_ends_the_run(minimize):
    """Paddle's L-BFGS goes to -inf here, where the value is the largest, and says that it has converged."""
    converged, _, x, value, *_ = minimize(lambda x: -jnp.sum(jnp.exp(x)), jnp.array([1.0, 2.0]), max_iters=20)
    assert not converged[0] and np.all(np.isfinite(x)) and value < -1e30
