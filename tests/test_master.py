"""Float32 masters of 16-bit parameters, as a wrapper and inside the object."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import drawn, each_rule_once

import paddlejax as paddle
from paddlejax import rules
from paddlejax.optimizer import Optimizer

NARROW = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


def test_a_thousand_small_steps_follow_float32_rounded(capsys):
    """Adam at 1e-3 from 1.0: half a unit of bfloat16 is 2e-3, so without masters nothing ever moves."""
    p = jnp.ones(100_000, jnp.bfloat16)
    g = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, p.shape), jnp.bfloat16)
    tx, twin, theirs = paddle.with_master_weights(paddle.adam(1e-3)), paddle.adam(1e-3), optax.adam(1e-3)

    def step(carry, _):
        (a, sa), (b, sb), (c, sc) = carry
        ua, sa = tx.update(g, sa, a)
        ub, sb = twin.update(g.astype(jnp.float32), sb, b)
        with jax.numpy_dtype_promotion("standard"):
            uc, sc = theirs.update(g, sc, c)
            c = optax.apply_updates(c, uc)
        return ((paddle.apply_updates(a, ua), sa), (paddle.apply_updates(b, ub), sb), (c, sc)), None

    wide = p.astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        start = ((p, tx.init(p)), (wide, twin.init(wide)), (p, theirs.init(p)))
    (a, _), (b, _), (c, _) = jax.lax.scan(step, start, length=1000)[0]
    assert np.sum(np.asarray(a) != np.asarray(b.astype(jnp.bfloat16))) == 0
    ours, true, optax_ = (float(jnp.mean(x.astype(jnp.float32))) for x in (a, b, c))
    print(
        f"after 1000 steps of 1e-3 from 1.0: float32 {true:.4f}, masters {ours:.4f}, optax.adam {optax_:.4f}"
    )
    assert abs(ours - true) < 1e-3 and abs(true) < 0.02
    assert optax_ > 0.9  # it stays where steps are below half a unit


@each_rule_once
@NARROW
def test_the_master_is_the_float32_run(case, dtype):
    p, grads = drawn(4, steps=5)
    p, grads = jnp.asarray(p, dtype), [jnp.asarray(g, dtype) for g in grads]
    tx, twin = paddle.with_master_weights(case.make()), case.make()
    q, wide = {"p": p, "wide": p.astype(jnp.float32)}, p.astype(jnp.float32)
    state, wide_state = tx.init(q), twin.init(wide)
    assert state.master["wide"] is None
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for g in grads:
        updates, state = update({"p": g, "wide": g.astype(jnp.float32)}, state, q)
        q = paddle.apply_updates(q, updates)
        updates, wide_state = twin.update(g.astype(jnp.float32), wide_state, wide)
        wide = paddle.apply_updates(wide, updates)
        np.testing.assert_allclose(state.master["p"], wide, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(q["wide"], wide, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(q["p"], state.master["p"].astype(dtype))
        assert q["p"].dtype == dtype
    assert update._cache_size() == 1


def test_optax_lands_on_the_rounded_master_too():
    p = jnp.ones(1000, jnp.bfloat16)
    tx = paddle.with_master_weights(paddle.sgd(1e-3))
    state = tx.init(p)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(5):
            updates, state = tx.update(p, state, p)
            p = optax.apply_updates(p, updates)
            np.testing.assert_array_equal(p, state.master.astype(jnp.bfloat16))


def test_a_parameter_that_was_set_is_believed_and_others_keep_their_master():
    p = jnp.ones(2, jnp.bfloat16)
    tx = paddle.with_master_weights(paddle.sgd(1e-3))
    updates, state = tx.update(jnp.ones(2, jnp.bfloat16), tx.init(p), p)
    p = paddle.apply_updates(p, updates).at[0].set(3.0)
    updates, state = tx.update(jnp.ones(2, jnp.bfloat16), state, p)
    np.testing.assert_allclose(state.master, [3 - 1e-3, 1 - 2e-3], rtol=1e-6)


def test_a_missing_gradient_leaves_parameter_and_master():
    params = {"a": jnp.ones(1, jnp.bfloat16), "b": jnp.ones(1, jnp.bfloat16)}
    tx = paddle.with_master_weights(paddle.adam(0.1))
    updates, state = tx.update({"a": None, "b": params["b"]}, tx.init(params), params)
    assert updates["a"] is None and float(state.master["a"][0]) == 1.0


# ------------------------------------------------------------------------------------------ the object


def make(params, **kwargs):
    return Optimizer(1e-3, params, rule=rules.Adam(), masters=True, **kwargs)


def pair():
    return [paddle.Parameter(jnp.ones(3, jnp.bfloat16), "w"), paddle.Parameter(jnp.ones(2), "b")]


def run(opt, params, steps):
    for _ in range(steps):
        for p in params:
            p.grad = jnp.full(p.shape, 0.5, p.dtype)
        opt.step()


def test_the_object_keeps_masters_under_paddles_names():
    params = pair()
    opt = make(params)
    run(opt, params, 3)
    entries = opt.state_dict()
    want = {f"{owner}_{a}_0" for owner in ("w_fp32_master_0", "b") for a in ("moment1", "moment2")}
    want |= {
        f"{owner}_{a}_0" for owner in ("w_fp32_master_0", "b") for a in ("beta1_pow_acc", "beta2_pow_acc")
    }
    assert set(entries) == want | {"master_weights"} and set(entries["master_weights"]) == {"w"}
    master = entries["master_weights"]["w"]
    assert master.dtype == jnp.float32 and params[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(master, np.full(3, 1 - 3e-3), rtol=1e-6)
    np.testing.assert_array_equal(params[0].numpy(), np.asarray(master.astype(jnp.bfloat16)))
    assert next(iter(opt.compiled_steps)).step._cache_size() == 1


def test_masters_are_saved_and_restored():
    whole, half, rest = pair(), pair(), pair()
    run(make(whole), whole, 6)
    opt = make(half)
    run(opt, half, 3)
    saved = opt.state_dict()
    other = make(rest)
    other.set_state_dict(saved)
    for p, q in zip(rest, half, strict=True):  # after the state: the order does not matter
        p.set_value(q)
    run(other, rest, 3)
    for p, q in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    run(opt, half, 3)
    np.testing.assert_array_equal(
        opt.state_dict()["master_weights"]["w"], other.state_dict()["master_weights"]["w"]
    )


def test_masters_that_do_not_fit_change_nothing():
    params = pair()
    opt = make(params)
    run(opt, params, 1)
    good = opt.state_dict()
    for masters, words in (
        ({}, "missing: master_weights of w"),
        ({"w": np.zeros(3, np.float32), "x": 1}, "unexpected: master_weights of x"),
        ({"w": np.zeros(2, np.float32)}, "misshapen: master_weights of w has shape"),
        (3, "not a dict: master_weights"),
    ):
        with pytest.raises(AssertionError, match=words):
            opt.set_state_dict({**good, "master_weights": masters})
    with pytest.raises(AssertionError, match="unexpected: master_weights"):
        Optimizer(1e-3, pair(), rule=rules.Adam()).set_state_dict(good)
    chex.assert_trees_all_equal(opt.state_dict(), good)


def test_float32_parameters_need_no_masters():
    p = paddle.Parameter(jnp.ones(2), "w")
    opt = Optimizer(0.1, [p], rule=rules.SGD(), masters=True)
    p.grad = jnp.ones(2)
    opt.step()
    assert opt.state_dict() == {}


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "AdamW", "Lamb", "ASGD", "Rprop", "Lars"])
def test_every_class_that_takes_multi_precision_keeps_masters(name):
    incubate = {"Lars": paddle.incubate.optimizer.LarsMomentumOptimizer}
    cls, more = incubate.get(name) or getattr(paddle.optimizer, name), {}
    p = paddle.Parameter(jnp.ones(3, jnp.bfloat16), "w")
    more = {"momentum": 0.9, "parameter_list": [p]} if name == "Lars" else {"parameters": [p]}
    opt = cls(1e-4, **more, multi_precision=True)
    for _ in range(4):
        p.grad = jnp.full(3, 0.5, jnp.bfloat16)
        opt.step()
    master = opt.state_dict()["master_weights"]["w"]
    assert np.all(master < 1) and np.all(master > 0.9)  # far less than half a unit of bfloat16
    assert p.dtype == jnp.bfloat16


def test_lookahead_goes_back_on_the_masters():
    """In bfloat16 the way back from a step of 5e-4 would be rounded away, and nothing would ever move."""
    p = paddle.Parameter(jnp.ones(4, jnp.bfloat16), "w")
    inner = paddle.optimizer.Adam(1e-3, parameters=[p], multi_precision=True)
    opt = paddle.incubate.LookAhead(inner, alpha=0.5, k=5)
    q = paddle.Parameter(jnp.ones(4), "w")
    twin = paddle.incubate.LookAhead(paddle.optimizer.Adam(1e-3, parameters=[q]), alpha=0.5, k=5)
    for _ in range(100):
        p.grad, q.grad = jnp.ones(4, jnp.bfloat16), jnp.ones(4)
        opt.step()
        twin.step()
    np.testing.assert_allclose(inner.state_dict()["master_weights"]["w"], q.numpy(), rtol=1e-5)
    saved = opt.state_dict()
    assert saved["w_slow_0"].dtype == jnp.float32
    opt.set_state_dict(saved)
    assert p.dtype == jnp.bfloat16 and float(p.value[0]) < 1


def test_a_float16_parameter_comes_back_from_beyond_its_range():
    p = paddle.Parameter(jnp.array([60000.0], jnp.float16), "w")
    opt = paddle.optimizer.SGD(1.0, [p], multi_precision=True)
    start = np.float32(np.float16(60000))
    for g, want in ((-10000.0, np.inf), (20000.0, np.float16(start - 10000))):
        p.grad = jnp.array([g], jnp.float16)
        opt.step()
        assert float(p) == want


def test_lookahead_from_the_start_is_saved_before_its_first_way_back():
    """Its slow weights are taken before there is a master, and are float32 all the same."""
    make = lambda p: paddle.fluid.optimizer.LookaheadOptimizer(  # noqa: E731
        paddle.optimizer.Adam(1e-3, parameters=[p], multi_precision=True), k=5
    )
    p = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "w")
    opt = make(p)
    opt.apply_gradients([(p, jnp.ones(2, jnp.bfloat16))])
    saved = opt.state_dict()
    assert saved["w@SLOW"].dtype == jnp.float32
    make(paddle.Parameter(p, "w")).set_state_dict(saved)
