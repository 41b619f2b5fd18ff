"""No state that can be reached is a trap: what comes after it is finite, and moves.

Gradients and parameters are of magnitudes from 1e-15 to 1e15, or 0, and rates from 1e-10 to 1e3, or 0. What
overflows beyond that is Paddle's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import every_rule

import paddlejax as paddle

STEPS, RUNS = 200, 48


def magnitudes(rng, shape, low, high):
    """Numbers of all magnitudes, of either sign; in some runs all alike, in some often 0, in some only 0."""
    wild = rng.uniform(low, high, (RUNS, STEPS, *shape))
    ends = rng.choice([low, high], (RUNS, STEPS, *shape))
    steady = np.broadcast_to(rng.uniform(low, high, (RUNS, 1, 1)), wild.shape)
    steady = np.where(rng.integers(2, size=(RUNS, 1, 1)), steady, rng.choice([low, high], (RUNS, 1, 1)))
    kind = rng.integers(4, size=(RUNS, 1, 1))
    size = 10.0 ** np.choose(kind, [wild, ends, steady, steady])
    sign = np.where(kind == 3, 1, rng.choice([-1, 1], wild.shape))  # one number again and again
    there = rng.random(wild.shape) >= rng.choice([0, 0, 0.5, 1], (RUNS, 1, 1))
    # In some runs it starts late, or ends.
    time = np.arange(STEPS).reshape(1, STEPS, 1)
    from_, to = rng.choice([0, 0, 1, 100], (RUNS, 1, 1)), rng.choice([STEPS, STEPS, 150], (RUNS, 1, 1))
    return jnp.asarray(sign * size * there * (time >= from_) * (time < to), jnp.float32)


def drawn(seed):
    """(gradients, parameters, rates), each (RUNS, STEPS, 3)."""
    rng = np.random.default_rng(seed)
    grads, params = (magnitudes(rng, (3,), -15, 15) for _ in range(2))
    return grads, params, jnp.abs(magnitudes(rng, (1,), -10, 3))[..., 0]


def is_finite(tree):
    """Whether all is finite; () bool."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def check(tx, seed=0, scaled=False):
    """Run `tx` through all these; fail with a run that went wrong and what was there."""

    def run(grads, params, rates):
        state = tx.init(params[0])

        def update(state, g, p, rate):
            g = g * paddle.loss_scale(state) if scaled else g
            return tx.update(g, paddle.set_learning_rate(state, rate), p)

        def step(state, given):
            updates, state = update(state, *given)
            return state, is_finite((updates, state))

        state, finite = jax.lax.scan(step, state, (grads, params, rates))
        # Now of usual size, with a gradient that sometimes turns.
        usual = jnp.broadcast_to(jnp.where(jnp.arange(60) % 7 < 5, 1.0, -1.0)[:, None], (60, 3))
        p = jnp.array([1.0, -1.0, 0.5])

        def usually(state, g):
            updates, state = update(state, g, p, 0.1)
            return state, (is_finite((updates, state)), updates != 0)

        _, (later, moved) = jax.lax.scan(usually, state, usual)
        return finite, later, jnp.any(moved, axis=0)

    given = drawn(seed)
    finite, later, moved = map(np.asarray, jax.jit(jax.vmap(run))(*given))
    for i in np.flatnonzero(~finite.all(axis=1)):
        at = np.flatnonzero(~finite[i])[0]
        last = [np.asarray(x[i])[max(at - 1, 0) : at + 1].tolist() for x in given]
        raise AssertionError(f"run {i}: not finite after step {at}: gradients, parameters, rates {last}")
    assert later.all()
    assert moved.all()


@every_rule
def test_no_state_of_a_rule_is_a_trap(case):
    check(case.make())


WRAPPERS = {
    "lookahead": lambda tx: paddle.lookahead(tx, k=3),
    "lookahead_initial": lambda tx: paddle.lookahead(tx, k=3, slow_start="initial"),
    "accumulate": lambda tx: paddle.accumulate_gradients(tx, 3),
    "skip": paddle.skip_nonfinite,
    "scale": lambda tx: paddle.dynamic_loss_scale(tx, incr_every_n_steps=1),
    "info": lambda tx: paddle.with_info(tx, grad_clip=paddle.clip_by_global_norm(1.0)),
    "masters": paddle.with_master_weights,
    "clip_global": lambda tx: paddle.chain(paddle.clip_by_global_norm(1.0), tx),
    "clip_norm": lambda tx: paddle.chain(paddle.clip_by_norm(1.0), paddle.l2_decay(0.01), tx),
    "clip_value": lambda tx: paddle.chain(paddle.clip_by_value(1.0), paddle.l1_decay(0.01), tx),
    "by_path": lambda tx: paddle.by_path([("*", {"learning_rate": 0.5, "weight_decay": 0.01})], tx),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_no_state_of_a_wrapper_is_a_trap(name):
    for make in (paddle.adam, paddle.momentum):
        check(WRAPPERS[name](make(0.1)), 1, scaled=name == "scale")


def test_a_centered_root_of_a_steady_gradient_is_no_nan():
    """E[g²] - E[g]² is rounded to less than -ε for about half of the steady gradients, with ρ = 0.5."""
    g = jnp.asarray(10.0 ** np.linspace(0, 15, 400), jnp.float32)
    tx = paddle.rmsprop(0.1, rho=0.5, momentum=0.9, centered=True)
    state, update = tx.init(g), jax.jit(tx.update)
    for _ in range(100):
        updates, state = update(g, state, g)
        assert np.isfinite(updates).all() and (updates < 0).all()


@pytest.mark.parametrize("form", ["function", "object"])
def test_ftrl_waits_where_the_rate_is_zero(form):
    """As a warm-up starts: nothing moves, and afterwards all is as if those steps had not been."""
    p, gs = jnp.array([1.0, -2.0]), [jnp.array([0.3, -0.1]), jnp.array([0.2, 0.4])]

    def run(rates):
        tx, w = paddle.ftrl(0.1), paddle.Parameter(p, "w")
        opt = paddle.fluid.optimizer.FtrlOptimizer(0.1, parameter_list=[w])
        q, state = p, tx.init(p)
        for i, rate in enumerate(rates):
            opt.set_lr(rate)
            opt.apply_gradients([(w, gs[i % 2])])
            updates, state = tx.update(gs[i % 2], paddle.set_learning_rate(state, rate), q)
            q = paddle.apply_updates(q, updates)
        return (q, state.slots) if form == "function" else (w.value, None)

    found, slots = run([0.0, 0.0])
    np.testing.assert_array_equal(found, p)
    assert slots is None or not any(np.any(x) for x in jax.tree.leaves(slots))
    for a, b in zip(
        jax.tree.leaves(run([0.0, 0.0, 0.1, 0.2])), jax.tree.leaves(run([0.1, 0.2])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


TOP = np.iinfo(np.int32).max
COUNTING = {
    "schedule": lambda: paddle.sgd(paddle.schedules.exponential_decay(0.1, 0.9999)),
    "asgd": lambda: paddle.asgd(0.1, batch_num=3),
    "dpsgd": lambda: paddle.dpsgd(0.1, sigma=0.1, key=jax.random.key(0)),
    **{name: lambda name=name: WRAPPERS[name](paddle.adam(0.1)) for name in ("lookahead", "skip", "scale")},
}


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("name", COUNTING)
def test_counts_stay_at_the_largest(name, bad):
    tx, p = COUNTING[name](), jnp.ones(2)
    state = jax.tree.map(lambda x: jnp.full_like(x, TOP) if x.dtype == jnp.int32 else x, tx.init(p))
    update = jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(jnp.full(2, jnp.nan) if bad else p, state, p)
        assert bad or np.isfinite(updates).all()
        counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
        assert name == "dpsgd" or all(x >= 0 for x in counts)
        if name == "schedule":
            assert 0 <= paddle.get_learning_rate(state) <= 0.1


@pytest.mark.parametrize(
    "make", [lambda c: paddle.lookahead(paddle.sgd(0.1), 0.5, c), lambda c: paddle.asgd(0.1, c)]
)
@pytest.mark.parametrize("cycle", [1, 2, 3, 5, 7])
def test_what_goes_around_keeps_its_place_beyond_the_largest_count(make, cycle):
    """The same steps as from a small count that stands at the same place."""
    gs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    tx, p = make(cycle), jnp.ones(2)
    update = jax.jit(tx.update)

    def run(count):
        state, found = tx.init(p), []
        for g in gs:
            _, state = update(g, state, p)
        at = {"count": count} if hasattr(state, "slow") else {"shared": {"m": count}}
        state = state._replace(**at)
        for g in gs:
            updates, state = update(g, state, p)
            found.append(updates)
        return found

    small = (TOP - 4) % cycle + 10 * cycle
    np.testing.assert_array_equal(run(jnp.int32(TOP - 4)), run(jnp.int32(small)))


AVERAGES = {
    "ema": lambda: paddle.exponential_moving_average(0.9),
    "ema-scheduled": lambda: paddle.exponential_moving_average(0.9, lambda count: count),
    "model": lambda: paddle.model_average(0.5, 10, 10),
    "model-long": lambda: paddle.model_average(1.0, TOP, TOP),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_go_on_beyond_the_largest_count(name):
    average, p = AVERAGES[name](), jnp.ones(2)
    state = average.update(p, average.init(p))
    state = jax.tree.map(lambda x: jnp.full_like(x, TOP) if x.dtype == jnp.int32 else x, state)
    for _ in range(3):
        state = average.update(p, state)
        value = average.value(state)
        assert np.isfinite(value).all() and (value >= 0).all()
        assert all(x >= 0 for x in jax.tree.leaves(state) if x.dtype == jnp.int32)


@pytest.mark.parametrize("slow_start", ["first_step", "initial"])
def test_lookahead_does_not_pull_a_late_leaf_to_zero(slow_start):
    """Its slow weights start where it stands; numpy is the reference."""
    tx = paddle.lookahead(paddle.sgd(0.1), 0.5, 2, slow_start=slow_start)
    params = {"early": jnp.full(2, 10.0), "late": jnp.full(2, 10.0)}
    state = tx.init(params)
    for step in range(6):
        grads = {"early": jnp.ones(2), "late": jnp.ones(2) if step >= 2 else None}
        updates, state = tx.update(grads, state, params)
        params = paddle.apply_updates(params, updates)
    # From 10 two steps of 0.1 to 9.8, half-way back to 9.9, and again to 9.8.
    np.testing.assert_allclose(params["late"], np.full(2, 9.8), rtol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_lookahead_object_does_not_pull_a_late_parameter_to_zero(frozen):
    params = [paddle.Parameter(jnp.full(2, 10.0), name) for name in ("early", "late")]
    opt = paddle.incubate.LookAhead(paddle.optimizer.SGD(0.1, params), 0.5, 2)
    params[1].stop_gradient = frozen
    for step in range(6):
        params[0].grad = jnp.ones(2)
        if step == 2:
            params[1].stop_gradient = False
        params[1].grad = jnp.ones(2) if step >= 2 else None
        opt.step()
    np.testing.assert_allclose(params[1].numpy(), np.full(2, 9.8), rtol=1e-6)
