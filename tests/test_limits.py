"""Rates, limits and decays are refused alike wherever they are given; norms of any magnitude are right."""

import inspect
import itertools

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refuse, row, rows

import paddlejax as pj

ONE = jnp.ones(2)


def w():
    return pj.Parameter(ONE, "w")


def object_with(rate=0.1, **options):
    return pj.optimizer.SGD(rate, parameters=[w()], **options)


def group(**options):
    return pj.optimizer.Adam(0.1, parameters=[{"params": [w()], **options}])


RATES = {
    "function": pj.adam,
    "lbfgs": pj.lbfgs,
    "lift": lambda x: pj.lift(pj.rules.SGD(), x),
    "object": object_with,
    "lbfgs-object": lambda x: pj.optimizer.LBFGS(x, parameters=[w()]),
    "fluid": lambda x: pj.fluid.optimizer.SGD(x, parameter_list=[w()]),
    "set_lr": lambda x: object_with().set_lr(x),
    "set_learning_rate": lambda x: pj.set_learning_rate(pj.sgd(0.1).init(ONE), x),
    "parameter": lambda x: pj.Parameter(ONE, learning_rate=x),
    "group": lambda x: group(learning_rate=x),
    "by_path": lambda x: pj.by_path([("*", {"learning_rate": x})], pj.sgd(0.1)),
    "schedule": lambda x: pj.schedules.exponential_decay(x, 0.9),
    "plateau": pj.schedules.reduce_on_plateau,
    "plateau-least": lambda x: pj.schedules.reduce_on_plateau(0.1, min_lr=x),
    "scheduler": lambda x: pj.optimizer.lr.StepDecay(x, 3),
    "plateau-scheduler": pj.optimizer.lr.ReduceOnPlateau,
    "own-scheduler": lambda x: type("Own", (pj.optimizer.lr.LRScheduler,), {"get_lr": lambda s: 0.1})(x),
    "fluid-plateau": pj.fluid.dygraph.ReduceLROnPlateau,
}
DECAYS = {
    "last rate": lambda x: pj.schedules.polynomial_decay(0.1, 5, end_lr=x),
    "one of the rates": lambda x: pj.schedules.piecewise_decay([1], [x, 0.1]),
    "window": pj.model_average,
    "l1": pj.l1_decay,
    "l2": pj.l2_decay,
    "L1Decay": pj.regularizer.L1Decay,
    "L2Decay": pj.regularizer.L2Decay,
    "object": lambda x: object_with(weight_decay=x),
    "adamw": lambda x: pj.adamw(0.1, weight_decay=x),
    "lamb": lambda x: pj.lamb(0.1, lamb_weight_decay=x),
    "lars": lambda x: pj.lars_momentum(0.1, 0.9, lars_weight_decay=x),
    "group": lambda x: group(weight_decay=x),
    "group-adamw": lambda x: pj.optimizer.AdamW(0.1, parameters=[{"params": [w()], "weight_decay": x}]),
    "parameter": lambda x: pj.Parameter(ONE, regularizer=x),
    "by_path": lambda x: pj.by_path([("*", {"weight_decay": x})], pj.sgd(0.1)),
    "fluid": lambda x: pj.fluid.regularizer.L2Decay(x),
}
NORMS = {
    "by_norm": pj.clip_by_norm,
    "by_global_norm": pj.clip_by_global_norm,
    "ByNorm": pj.nn.ClipGradByNorm,
    "ByGlobalNorm": pj.nn.ClipGradByGlobalNorm,
    "fluid-norm": pj.fluid.clip.GradientClipByNorm,
    "fluid-global": pj.fluid.clip.GradientClipByGlobalNorm,
    "dpsgd": lambda x: pj.dpsgd(0.1, clip=x, key=jax.random.key(0)),
    "dgc": lambda x: pj.dgc_momentum(0.1, 0.9, 0, num_trainers=2, local_grad_clip_norm=x),
}
IN_PLACE = {
    "norm_": lambda x: pj.nn.utils.clip_grad_norm_([w()], x),
    "value_": lambda x: pj.nn.utils.clip_grad_value_([w()], x),
}
VALUES = {
    "value": pj.clip_by_value,
    "min": lambda x: pj.clip_by_value(1e9, x),
    "ByValue": pj.nn.ClipGradByValue,
    "fluid-value": pj.fluid.clip.GradientClipByValue,
}


def refused():
    nan, inf = float("nan"), float("inf")
    tables = (
        (RATES, (nan, inf, -inf, -0.1, np.float64(nan))),
        (DECAYS, (nan, inf, -inf)),
        (NORMS, (nan, inf, -inf, -1.0, 0.0, np.float64(nan))),
        (IN_PLACE, (nan, -inf, -1.0)),
        (VALUES, (nan, inf, -inf)),
    )
    for table, bad in tables:
        for (name, make), x in itertools.product(table.items(), bad):
            call = lambda make=make, x=x: make(x)  # noqa: E731
            yield row(f"{name}-{x!r}", call, ValueError, "found", str(float(x)), "expected")


@rows(refused())
def test_refused(call, classes, words):
    refuse(call, classes, words)


ARRAYS = ["set_learning_rate", "function", "lift", "by_path", "lbfgs"]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_an_array_whose_value_is_known_is_checked_too(name, bad):
    """Also inside jit, where its comparison would be traced; what is traced passes."""
    x = jnp.float32(bad)
    for make in (lambda: RATES[name](x), lambda: jax.jit(lambda: RATES[name](x) and 0)()):
        with pytest.raises(ValueError, match="expected a number of at least 0 and finite"):
            make()
    jax.jit(lambda x: RATES[name](x) and 0)(x)


def test_every_rate_of_a_population_is_checked():
    state = jax.vmap(lambda rate: pj.sgd(rate).init(ONE))(jnp.ones(3))
    with pytest.raises(ValueError, match="learning_rate"):
        pj.set_learning_rate(state, jnp.array([0.1, -0.1, 0.1]))


# ----------------------------------------------------------------------- a limit that is an array

ZERO = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
CLIPS = {"global": pj.clip_by_global_norm, "norm": pj.clip_by_norm}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("limit", [0.0, -1.0])
@pytest.mark.parametrize("grads", [ZERO, {"a": jnp.ones(3), "b": jnp.zeros(2)}])
def test_a_limit_that_has_decayed_to_0_or_below_leaves_0(clip, limit, grads):
    found = jax.jit(lambda limit: CLIPS[clip](limit).update(grads, ())[0])(limit)
    np.testing.assert_equal(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, ZERO))
    if limit == 0:
        found = CLIPS[clip](jnp.float32(0.0)).update(grads, ())[0]
        np.testing.assert_equal(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, ZERO))


def test_a_limit_of_0_gives_what_was_recorded():
    case = next(c for c in golden_cases.load_clip() if c["id"] == "zero-threshold")
    grads = {k: jnp.asarray(x) for k, x in case["arrays"].items() if k.startswith("in/")}
    found, _ = pj.clip_by_global_norm(jnp.float32(0.0)).update(grads, ())
    for k, g in found.items():
        np.testing.assert_array_equal(g, case["arrays"][k.replace("in/", "out/")])


# ----------------------------------------------------------------------- numbers that round to no such number

ALMOST = 1 - 1e-8
ROUNDED = {
    "adam": lambda: pj.adam(0.1, beta1=ALMOST),
    "adamw": lambda: pj.adamw(0.1, beta2=ALMOST),
    "nadam": lambda: pj.nadam(0.1, beta2=ALMOST),
    "radam": lambda: pj.radam(0.1, beta2=ALMOST),
    "adamax": lambda: pj.adamax(0.1, beta1=ALMOST),
    "lamb": lambda: pj.lamb(0.1, beta1=ALMOST),
    "dpsgd": lambda: pj.dpsgd(0.1, clip=1e-50, sigma=0.0, key=jax.random.key(0)),
    "by_path": lambda: pj.by_path([("w", {"beta2": ALMOST})], pj.adam(0.1)),
    "ema": lambda: pj.exponential_moving_average(ALMOST),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_to_no_such_number_is_refused_where_the_dtype_is_known(name):
    """In float32 1 - 1e-8 is 1, and 1 - 1 a divisor; in float64 it is right."""
    with jax.enable_x64(True):
        tx = ROUNDED[name]()
        with pytest.raises(ValueError, match=r"at w: .*, which float32 rounds to (1|0).0, expected a number"):
            tx.init({"w": jnp.ones(2, jnp.float32)})
        with pytest.raises(ValueError, match="at w: "):
            tx.init({"w": jnp.ones(2, jnp.bfloat16)})
        p = {"w": jnp.ones(2, jnp.float64)}
        state = tx.init(p)
        if name != "ema":
            updates, _ = tx.update(p, state, p)
            assert np.isfinite(updates["w"]).all() and np.all(updates["w"] < 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, np.float32(-1), jnp.float32("nan")])
def test_a_rate_that_a_schedule_gives_is_checked_where_it_is_known(bad):
    """At the step, of which nothing happens; a rate that is 0 but for rounding is one."""
    for tx in (pj.adam(lambda count: bad), pj.lbfgs(lambda count: bad)):
        extra = {"value": 1.0} if "value" in inspect.signature(tx.update).parameters else {}
        with pytest.raises(ValueError, match="learning_rate schedule returned: found .*at least 0"):
            tx.update(ONE, tx.init(ONE), ONE, **extra)
    assert pj.sgd(lambda count: -1e-9).update(ONE, pj.sgd(lambda count: -1e-9).init(ONE), ONE)

    class Own(pj.optimizer.lr.LRScheduler):
        def get_lr(self):
            return bad

    class Older(pj.fluid.dygraph.LearningRateDecay):
        def step(self):
            return bad

    for name, make in {
        "Own": lambda q: pj.optimizer.Adam(Own(), parameters=[q]),
        "Older": lambda q: pj.fluid.optimizer.Adam(Older(), parameter_list=[q]),
        "LBFGS": lambda q: pj.optimizer.LBFGS(Own(), parameters=[q]),
    }.items():
        q = w()
        opt = make(q)
        with pytest.raises(ValueError, match="what O.* returned as the rate: found .*at least 0"):
            q.grad = ONE
            loss = pj.loss(lambda x: jnp.sum(x))
            opt.step(lambda loss=loss, q=q: loss(q)) if name == "LBFGS" else opt.step()
        np.testing.assert_array_equal(q.numpy(), ONE)


def test_an_object_refuses_it_when_it_is_made():
    with pytest.raises(ValueError, match="at w: Adam's beta2: found 0.99999999, which float32 rounds to 1.0"):
        pj.optimizer.Adam(0.1, beta2=ALMOST, parameters=[w()])


# ----------------------------------------------------------------------- norms of any magnitude


def clipped_by_global_norm(grads):
    return pj.clip_by_global_norm(1.0).update(grads, ())[0]


def clipped_in_place(grads):
    params = {k: pj.Parameter(jnp.zeros_like(g)) for k, g in grads.items()}
    for k, p in params.items():
        p.grad = grads[k]
    total = pj.nn.utils.clip_grad_norm_(list(params.values()), 1.0)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(total, np.float32(length(grads)), rtol=1e-6)
    return {k: p.grad for k, p in params.items()}


def length(grads):
    return np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))


HOW = {
    "function": clipped_by_global_norm,
    "jit": lambda grads: jax.jit(clipped_by_global_norm)(grads),
    "vmap": lambda grads: jax.tree.map(
        lambda x: x[0],
        jax.vmap(clipped_by_global_norm)(jax.tree.map(lambda g: jnp.stack([g, jnp.ones_like(g)]), grads)),
    ),
    "in place": clipped_in_place,
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [1e-35, 1e-30, 1e-20, 1e-13, 1.0, 1e18, 1e20, 1e30, 1e37, 1e38])
def test_a_global_norm_is_right_whatever_its_squares_are(how, size):
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,)}
    grads = {k: jnp.asarray(size * rng.normal(size=shape), jnp.float32) for k, shape in shapes.items()}
    factor = min(1.0, 1.0 / length(grads))
    for k, g in HOW[how](grads).items():
        np.testing.assert_allclose(g, np.asarray(grads[k], np.float64) * factor, rtol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("limit, factor", [(1e-3, 1e-3 / 6e38), (1.0, 1 / 6e38), (3e38, 0.5), (0.0, 0.0)])
def test_a_norm_above_the_largest_number_is_clipped_to_the_limit(limit, factor, skip):
    """Also of a gradient that is a constant to the compiler."""

    def clipped(limit, g):
        return pj.clip_by_global_norm(limit, auto_skip_clip=skip).update(g, ())[0]

    g, limit = jnp.full(9, 2e38), jnp.float32(limit)  # an array may be 0
    for found in (clipped(limit, g), jax.jit(clipped)(limit, g), jax.jit(lambda x: clipped(x, g))(limit)):
        np.testing.assert_allclose(found, np.full(9, 2e38 * factor), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-14, 1.0, 1e15])
def test_a_small_limit_holds_and_the_derivative_is_right(size):
    """Of the clipped gradient's first element, against numpy's difference in float64."""
    g, limit = size * np.array([3.0, -4.0, 12.0]), 0.5 * size

    def first(x):
        return pj.clip_by_global_norm(limit).update(x, ())[0][0]

    def reference(x):
        return x[0] * limit / np.sqrt((x**2).sum())

    x = jnp.asarray(g, jnp.float32)
    np.testing.assert_allclose(first(x), reference(g), rtol=1e-6)
    ends = [[reference(g + sign * 1e-6 * size * e) for sign in (1, -1)] for e in np.eye(3)]
    want = [(a - b) / (2e-6 * size) for a, b in ends]
    for found in (jax.grad(first)(x), jax.jit(jax.grad(first))(x)):
        np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_a_global_norm_over_devices_is_right(size):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    g = {"cut": jnp.asarray(size * np.arange(1.0, 9), jnp.float32), "whole": jnp.float32(size) * jnp.ones(3)}
    specs = {"cut": jax.sharding.PartitionSpec("data"), "whole": jax.sharding.PartitionSpec()}
    tx = pj.clip_by_global_norm(0.1 * size, axis_name="data")
    run = jax.shard_map(lambda g: tx.update(g, ())[0], mesh=mesh, in_specs=(specs,), out_specs=specs)
    for k, found in jax.jit(run)(g).items():
        np.testing.assert_allclose(found, np.asarray(g[k], np.float64) * 0.1 * size / length(g), rtol=1e-5)
