"""Averages and lookahead, as functions and as objects: what a user may do with them."""

import inspect
from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax.optimizer import flagged
from paddlejax.optimizer.averages import _decayed
from paddlejax.optimizer.cohorts import windowed

fluid = paddle.fluid.optimizer
# --------------------------------------------------------------------------------------------- the functions

TREE = {"a": jnp.array([[1.0, 2.0]]), "none": None, "b": jnp.array(3.0)}
AVERAGES = {
    "ema": lambda: paddle.exponential_moving_average(0.9, lambda count: count),
    "model_average": lambda: paddle.model_average(0.5, 2, 4),
}
every_average = pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)


@every_average
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_averages_under_scan_are_those_of_a_loop(make, dtype):
    with jax.enable_x64(True) if dtype == "float64" else nullcontext():
        average = make()
        start = jax.tree.map(lambda x: x.astype(dtype), TREE)
        tracks = jax.tree.map(lambda x: jnp.stack([x * (i + 1) for i in range(9)]), start)
        fresh = average.init(start)
        one = jax.lax.scan(lambda s, p: (average.update(p, s), None), fresh, tracks)[0]
        loop = average.init(start)
        for i in range(9):
            loop = average.update(jax.tree.map(lambda x, i=i: x[i], tracks), loop)
        chex.assert_trees_all_equal_shapes_and_dtypes(one, fresh, loop)
        weak = [jax.tree.map(lambda x: x.weak_type, state) for state in (one, fresh)]
        chex.assert_trees_all_equal(*weak)
        chex.assert_trees_all_close(one, loop, rtol=1e-6)
        wide = {"bfloat16": "float32"}.get(dtype, dtype)
        assert {str(x.dtype) for x in jax.tree.leaves(average.value(one))} == {wide}


@every_average
def test_fresh_averages_share_no_buffer_and_may_be_donated(make):
    average = make()
    state = average.init(TREE)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state, TREE))]
    assert len(set(pointers)) == len(pointers)
    update = jax.jit(chex.assert_max_traces(average.update, n=1), donate_argnums=1)
    for _ in range(3):
        state = update(TREE, state)
    assert update._cache_size() == 1
    np.testing.assert_allclose(average.value(state)["a"], TREE["a"], rtol=0.02)  # TREE is still there


def test_64_decays_in_one_vmap():
    track = jnp.linspace(0.0, 1.0, 10)

    def run(decay):
        average = paddle.exponential_moving_average(decay)
        state = jax.lax.scan(lambda s, p: (average.update(p, s), None), average.init(track[0]), track)[0]
        return average.value(state)

    decays = jnp.linspace(0.1, 0.99, 64)
    alone = jax.jit(run)
    np.testing.assert_allclose(jax.vmap(run)(decays), [alone(d) for d in decays], rtol=1e-5)


def test_a_schedule_of_decays():
    """d = min(decay, (s + 1)/(s + 10)); the correction uses the last one."""
    by_count = paddle.exponential_moving_average(0.5, lambda count: count)
    fixed = paddle.exponential_moving_average(0.5, 2)
    p = jnp.ones(1)
    one = by_count.update(p, by_count.init(p))
    assert float(one.decay) == pytest.approx(0.1)
    assert float(fixed.update(p, fixed.init(p)).decay) == pytest.approx(0.25)
    state = one
    for _ in range(20):
        state = by_count.update(p, state)
    assert float(state.decay) == 0.5


def test_lookahead_leaves_what_has_no_gradient_alone():
    tx = paddle.lookahead(paddle.adam(0.1), 0.5, 1, slow_start="initial")
    p = {"still": jnp.array([0.1, -0.0]), "w": jnp.ones(2)}
    state = tx.init(p)
    for _ in range(3):
        updates, state = jax.jit(tx.update)({"still": None, "w": jnp.ones(2)}, state, p)
        assert updates["still"] is None
        p = paddle.apply_updates(p, updates)
    frozen = paddle.by_path([("still", {"frozen": True})], paddle.sgd(0.1))
    tx = paddle.lookahead(frozen, 0.3, 2)
    q, state = p, tx.init(p)
    for _ in range(6):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, p), state, q)
        q = paddle.apply_updates(q, updates)
    assert q["still"].tobytes() == p["still"].tobytes()


def test_lookahead_takes_optax_and_bfloat16_and_runs_in_scan():
    optax = pytest.importorskip("optax")
    p = jnp.ones(3, jnp.bfloat16)
    for inner in (optax.adam(0.1), paddle.with_master_weights(paddle.adam(0.1)), paddle.adam(0.1)):
        with jax.numpy_dtype_promotion("standard"):
            tx = paddle.lookahead(inner, 0.5, 3)

            def step(carry, _, tx=tx):
                p, state = carry
                updates, state = tx.update(p, state, p)
                return (paddle.apply_updates(p, updates), state), None

            (q, state), _ = jax.lax.scan(step, (p, tx.init(p)), None, 9)
        assert q.dtype == state.slow.dtype == jnp.bfloat16 and int(state.count) == 9
        assert (np.asarray(q, np.float32) < 0.9).all()


def test_lookahead_with_alpha_one_is_its_inner_optimizer():
    p, track = jnp.array([1.0, -2.0]), {}
    for tx in (paddle.momentum(0.1), paddle.lookahead(paddle.momentum(0.1), 1.0, 2)):
        q, state = p, tx.init(p)
        for _ in range(7):
            updates, state = tx.update(q, state, q)
            q = paddle.apply_updates(q, updates)
        track[tx] = q
    np.testing.assert_allclose(*track.values(), rtol=1e-6)


# ----------------------------------------------------------------------------------------------- the objects


def pair():
    return [paddle.Parameter(jnp.array([1.0, 2.0]), "w"), paddle.Parameter(jnp.array([3.0]), "b")]


def moved(params, by=1.0):
    for p in params:
        p.set_value(p.value + by)


def objects(params):
    for p in params:
        p.grad = jnp.zeros_like(p.value)
    return [
        paddle.static.ExponentialMovingAverage(0.5, parameters=params),
        paddle.incubate.ModelAverage(1.0, params, 2, 4),
        fluid.ExponentialMovingAverage(0.5, parameter_list=params),
        fluid.ModelAverage(1.0, 2, 4, parameter_list=params),
    ]


each_object = pytest.mark.parametrize("which", range(4))


def trained(which, steps=3):
    params = pair()
    average = objects(params)[which]
    for _ in range(steps):
        moved(params)
        average.update()
    return params, average


def held(params):
    return [p.numpy().tolist() for p in params]


@each_object
def test_apply_restores_even_when_the_body_raises(which):
    params, average = trained(which)
    before = held(params)
    with pytest.raises(KeyError, match="inside"):
        with average.apply(None):
            assert held(params) != before
            raise KeyError("inside")
    assert held(params) == before
    with average.apply():  # and it can be applied again
        pass
    assert held(params) == before


@each_object
def test_without_need_restore_parameters_stay_averaged_until_restore(which):
    params, average = trained(which)
    before = held(params)
    with average.apply("executor", need_restore=False):
        inside = held(params)
    assert held(params) == inside != before
    average.restore("executor")
    assert held(params) == before
    with pytest.raises(RuntimeError, match=r"restore\(\): found nothing to restore"):
        average.restore()


@each_object
def test_apply_is_pure(which):
    params, average = trained(which)
    state = {k: np.array(v) for k, v in average.state_dict().items()}
    seen = []
    for _ in range(3):
        with average.apply():
            seen.append(held(params))
    assert seen[0] == seen[1] == seen[2]
    for k, v in average.state_dict().items():
        np.testing.assert_array_equal(v, state[k])


@each_object
def test_applying_inside_apply_and_updating_inside_are_errors(which):
    params, average = trained(which)
    before = held(params)
    with average.apply():
        inside = held(params)
        with pytest.raises(RuntimeError, match="found another apply"):
            with average.apply():
                raise AssertionError("not reached")
        with pytest.raises(RuntimeError, match=r"found an update between apply\(\) and restore"):
            average.update()
        assert held(params) == inside
    assert held(params) == before


@each_object
def test_averages_are_saved_and_resumed(which):
    params, average = trained(which, 5)
    entries = average.state_dict()
    saved = {k: np.array(v) for k, v in entries.items()}
    new = pair()
    for p, q in zip(new, params, strict=True):
        p.set_value(q)
    resumed = objects(new)[which]
    resumed.set_state_dict(saved)
    for _ in range(4):
        for ps, a in ((params, average), (new, resumed)):
            moved(ps, 0.7)
            a.update()
    with average.apply(), resumed.apply():
        assert held(params) == held(new)
    for k, v in entries.items():  # copies, that outlive donation
        np.testing.assert_array_equal(v, saved[k])


@each_object
def test_a_state_that_does_not_fit_changes_nothing(which):
    _, average = trained(which)
    good = average.state_dict()
    bad = {k: v for k, v in good.items() if not k.startswith("b_")} | {"stray": jnp.ones(1)}
    first = next(k for k in bad if k.startswith("w_"))
    bad[first] = jnp.ones(5)
    with pytest.raises(ValueError) as e:
        average.set_state_dict(bad)
    for word in ("missing: b_", "unexpected: stray", f"misshapen: {first} has shape (5,), expected (2,)"):
        assert word in str(e.value)
    for k, v in average.state_dict().items():
        np.testing.assert_array_equal(v, good[k])


@each_object
def test_arrays_handed_out_survive_updates_and_apply(which):
    params, average = trained(which)
    opt = paddle.optimizer.SGD(0.1, params)
    kept = params[0].value
    copy = np.array(kept)
    with average.apply():
        inside = params[0].value
        inside_copy = np.array(inside)
    for _ in range(3):
        for p in params:
            p.grad = jnp.ones_like(p.value)
        opt.step()
        average.update()
    np.testing.assert_array_equal(kept, copy)
    np.testing.assert_array_equal(inside, inside_copy)


def test_what_an_average_leaves_out():
    w, b = pair()
    attr = paddle.ParamAttr(name="kept", do_model_average=False)
    kept, count = paddle.Parameter(jnp.ones(1), attr=attr), paddle.Parameter(jnp.array(7), "count")
    count.stop_gradient = b.stop_gradient = True
    ema = paddle.static.ExponentialMovingAverage(0.5, parameters=[w, b, kept, count])
    ema.update()
    assert {"w_ema_0", "b_ema_0"} == {k for k in ema.state_dict() if "ema_0" in k}
    w.grad = jnp.zeros(2)
    late = paddle.Parameter(jnp.ones(1), "late")
    average = paddle.incubate.ModelAverage(1.0, [w, b, kept, count, late], 1, 9)
    with pytest.raises(RuntimeError, match=r"expected step\(\) before apply\(\)"):
        with average.apply():
            pass
    for step in range(4):
        if step == 2:
            late.grad = jnp.zeros(1)
        moved([w, late])
        average.step()
        average.minimize(None) if step == 3 else None
    entries = average.state_dict()
    counts = {n: int(entries[f"{n}_num_updates_0"][0]) for n in ("w", "b", "late")}
    assert counts == {"w": 5, "b": 0, "late": 3}
    with average.apply():
        assert held([b, kept]) == [[3.0], [1.0]]
        np.testing.assert_allclose(late.numpy(), [(4 + 5 + 5) / 3], rtol=1e-6)
    again = paddle.incubate.ModelAverage(1.0, [w, b, kept, count, late], 1, 9)
    again.set_state_dict(entries)
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in entries.items()
    }
    with pytest.raises(ValueError, match="missing: w_sum_1_0"):
        average.set_state_dict({})


def test_a_model_average_of_many_subsets_has_few_programs():
    """It is what an average of each Parameter alone is, to the bit."""
    rng = np.random.default_rng(0)
    ps = [paddle.Parameter(jnp.zeros(3), f"p{i}") for i in range(7)]
    average = paddle.incubate.ModelAverage(0.5, ps, 2, 5)
    alone = [paddle.incubate.ModelAverage(0.5, [p], 2, 5) for p in ps]
    before = windowed._cache_size()
    for n in range(40):
        for p in ps:
            p.set_value(rng.normal(size=3))
            p.grad = jnp.ones(3) if n < 2 or rng.random() < 0.5 else None
        average.step()
        for one in alone:
            one.step()
    assert windowed._cache_size() - before <= flagged.FEW + 3
    found = average.state_dict()
    for one in alone:
        for key, value in one.state_dict().items():
            np.testing.assert_array_equal(found[key], value)


def test_thres_steps_is_read_at_every_update_and_compiles_once():
    params = pair()
    by_count = paddle.static.ExponentialMovingAverage(0.9, lambda count: count, parameters=params)
    by_hand = paddle.static.ExponentialMovingAverage(0.9, 0, parameters=params)
    by_count.update()
    by_hand.update()
    compiled = _decayed._cache_size()
    for step in range(1, 12):
        by_hand.thres_steps = step
        by_count.update()
        by_hand.update()
        moved(params)
    np.testing.assert_array_equal(by_count.state_dict()["w_ema_0"], by_hand.state_dict()["w_ema_0"])
    assert _decayed._cache_size() == compiled
    rate = by_count.state_dict()["scheduled_ema_decay_rate"]
    assert rate.shape == (1,) and float(rate[0]) == pytest.approx(12 / 21)
    assert int(by_count.state_dict()["@EMA_STEP_COUNTER@"][0]) == 12


def test_an_average_before_its_first_update():
    params = pair()
    ema = paddle.static.ExponentialMovingAverage(parameters=params)
    with ema.apply():
        assert held(params) == [[0.0, 0.0], [0.0]]  # E itself, as in Paddle
    assert held(params) == [[1.0, 2.0], [3.0]]


def test_an_average_of_nothing_is_refused():
    with pytest.raises(IndexError, match="parameters: found none, expected at least one Parameter"):
        paddle.static.ExponentialMovingAverage(parameters=[])


def test_bfloat16_parameters_are_averaged_in_float32():
    p = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "w")
    p.grad = jnp.zeros(2, jnp.bfloat16)
    for average in (
        paddle.static.ExponentialMovingAverage(0.999, parameters=[p]),
        paddle.incubate.ModelAverage(0.5, [p]),
    ):
        for _ in range(5):
            average.update()
        with average.apply():
            assert p.dtype == jnp.bfloat16 and p.numpy().astype(np.float32).tolist() == [1, 1]
        sums = [v for k, v in average.state_dict().items() if "ema" in k or "sum" in k]
        assert {str(v.dtype) for v in sums} == {"float32"}


# -------------------------------------------------------------------------------------- lookahead, the object


@paddle.loss
def square(params):
    return sum(jnp.sum(p * p) for p in params)


@pytest.mark.parametrize("cls", [paddle.incubate.LookAhead, fluid.LookaheadOptimizer])
def test_lookahead_minimizes_and_forwards(cls):
    by_step, by_minimize, by_pairs = pair(), pair(), pair()
    opts = [cls(paddle.optimizer.Adam(0.1, parameters=p), 0.5, 3) for p in (by_step, by_minimize, by_pairs)]
    for _ in range(7):
        square(by_step).backward()
        opts[0].step()
        _, pairs = opts[1].minimize(square(by_minimize))
        assert [p.name for p, _ in pairs] == ["w", "b"]
        opts[2].apply_optimize(None, None, [(p, 2 * p.value) for p in by_pairs])
        for o in opts:
            o.clear_grad()
    np.testing.assert_allclose(held(by_step)[0], held(by_minimize)[0], rtol=1e-6)
    np.testing.assert_allclose(held(by_step)[0], held(by_pairs)[0], rtol=1e-6)
    opts[0].set_lr(0.25)
    assert opts[0].get_lr() == opts[0].inner_optimizer.get_lr() == 0.25
    opts[0].clear_gradients()
    assert opts[0].parameters is by_step or list(opts[0].parameters) == by_step


def test_lookahead_state_is_refused_whole():
    params = pair()
    opt = paddle.incubate.LookAhead(paddle.optimizer.Adam(0.1, parameters=params), 0.5, 3, name="la")
    assert opt.state_dict() == {}
    opt.set_state_dict({})
    opt.minimize(square(params))
    good = opt.state_dict()
    assert {"w_la_slow_0", "b_la_slow_0", "lookahead_step_0", "w_moment1_0"} <= set(good)
    for bad, word in (
        ({k: v for k, v in good.items() if k != "lookahead_step_0"}, "missing: lookahead_step_0"),
        ({k: v for k, v in good.items() if k != "w_la_slow_0"}, "missing: w_la_slow_0"),
        ({k: v for k, v in good.items() if k != "w_moment1_0"}, "missing: w_moment1_0"),
        ({**good, "stray": jnp.ones(1)}, "unexpected: stray"),
        ({**good, "w_la_slow_0": jnp.ones(5)}, "misshapen: w_la_slow_0"),
    ):
        with pytest.raises(ValueError, match=word):
            opt.set_state_dict(bad)
        for k, v in opt.state_dict().items():
            np.testing.assert_array_equal(v, good[k])
    only_paddles = {
        k: v for k, v in good.items() if "slow" in k
    }  # Paddle saves neither T nor the inner state
    opt.set_state_dict(only_paddles, strict=False)
    opt.set_dict(good)


def test_lookahead_pulls_masters_along():
    """Masters start anew from what a synchronization made of the parameters."""
    ends = []
    for dtype in (jnp.bfloat16, jnp.float32):
        tx, p = L(paddle.with_master_weights(paddle.sgd(0.1)), 0.5, 2), jnp.ones(2, dtype)
        state = tx.init(p)
        for _ in range(8):
            updates, state = tx.update(p, state, p)
            p = paddle.apply_updates(p, updates)
        ends.append(np.asarray(p, np.float32))
    np.testing.assert_allclose(*ends, rtol=0.02)


# ---------------------------------------------------------------------------------------------------- errors


def sgd():
    return paddle.optimizer.SGD(0.1, pair())


E, M, L = paddle.exponential_moving_average, paddle.model_average, paddle.lookahead
LOOK, EMA, MA = (
    paddle.incubate.LookAhead,
    paddle.static.ExponentialMovingAverage,
    paddle.incubate.ModelAverage,
)
REFUSED = {
    "ema-decay": (lambda: E(1.5), ValueError, "decay: found 1.5"),
    "ema-decay-type": (lambda: E("x"), TypeError, "decay: found 'x'"),
    "ema-thres": (lambda: E(0.9, "x"), TypeError, "thres_steps: found 'x'"),
    "ma-order": (lambda: M(0.1, 5, 4), ValueError, "min_average_window: found 5"),
    "ma-type": (lambda: M(0.1, 5.0), TypeError, "min_average_window: found 5.0"),
    "ma-rate": (lambda: M(None), TypeError, "average_window_rate: found None"),
    "l-none": (lambda: L(None), AssertionError, "found None"),
    "l-type": (lambda: L(3), TypeError, "found 3"),
    "l-alpha": (lambda: L(paddle.sgd(0.1), 1.5), AssertionError, "alpha: found 1.5"),
    "l-k": (lambda: L(paddle.sgd(0.1), 0.5, 0), AssertionError, "k: found 0, expected a positive int"),
    "l-start": (lambda: L(paddle.sgd(0.1), slow_start="x"), ValueError, "slow_start: found 'x'"),
    "l-params": (lambda: L(paddle.sgd(0.1)).update(1.0, None), ValueError, "needs the parameters"),
    "look-none": (lambda: LOOK(None), AssertionError, "LookAhead's inner_optimizer: found None"),
    "look-type": (lambda: LOOK(paddle.sgd(0.1)), TypeError, "expected an optimizer"),
    "look-alpha": (lambda: LOOK(sgd(), alpha=-0.1), AssertionError, "alpha: found -0.1"),
    "look-k": (lambda: LOOK(sgd(), k=2.0), AssertionError, "k: found 2.0"),
    "lookahead-none": (lambda: fluid.LookaheadOptimizer(None), AssertionError, "LookaheadOptimizer"),
    "lookahead-alpha": (lambda: fluid.LookaheadOptimizer(sgd(), alpha=1.5), AssertionError, "alpha"),
    "lookahead-k": (lambda: fluid.LookaheadOptimizer(sgd(), k=0), AssertionError, "k: found 0"),
    "lookahead-k-float": (lambda: fluid.LookaheadOptimizer(sgd(), k=2.0), AssertionError, "k: found 2.0"),
    "ema-params": (lambda: EMA(0.9), AttributeError, "parameters: found None"),
    "ma-params": (lambda: MA(0.1), TypeError, "parameters: found None"),
    "fluid-params": (lambda: fluid.ModelAverage(0.1), AttributeError, "parameter_list: found None"),
    "ma-object-order": (lambda: MA(0.1, pair(), 5, 4), ValueError, "expected at most max_average_window, 4"),
    "shape": (
        lambda: E().update({"w": jnp.ones(3)}, E().init({"w": jnp.ones(2)})),
        ValueError,
        r"at w: ema is of shape \(2,\), the parameter's shape is \(3,\)",
    ),
    "keys": (lambda: M(1.0).update({"w": jnp.ones(3)}, M(1.0).init({})), ValueError, "missing at w"),
    "integers": (lambda: E().init({"n": jnp.array(1)}), TypeError, "at n: found a parameter of dtype int32"),
}


@pytest.mark.parametrize("call, kind, words", REFUSED.values(), ids=REFUSED)
def test_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_signatures_are_paddles():
    fluid_ma = "average_window_rate min_average_window max_average_window regularization name parameter_list"
    for cls, names in (
        (LOOK, "inner_optimizer alpha k name"),
        (MA, "average_window_rate parameters min_average_window max_average_window name"),
        (EMA, "decay thres_steps name parameters"),
        (fluid.ExponentialMovingAverage, "decay thres_steps name parameter_list"),
        (fluid.ModelAverage, fluid_ma),
        (fluid.LookaheadOptimizer, "inner_optimizer alpha k"),
    ):
        assert list(inspect.signature(cls).parameters) == names.split()


@each_object
def test_a_second_apply_before_restore_is_refused(which):
    params, average = trained(which)
    before = held(params)
    with average.apply(need_restore=False):
        pass
    with pytest.raises(RuntimeError, match=r"expected .* restore\(\)"):
        with average.apply(need_restore=False):
            raise AssertionError("not reached")
    with pytest.raises(RuntimeError, match="found an update"):
        average.update()
    average.restore()
    assert held(params) == before
    with average.apply():
        average.restore()
    assert held(params) == before
