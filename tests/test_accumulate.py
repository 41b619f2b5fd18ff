"""Gradient accumulation and recomputation: small batches train as one large one, values do not change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import each_rule_once
from jax.ad_checkpoint import checkpoint_name

import paddlejax as paddle

incubate, fluid = paddle.incubate.optimizer, paddle.fluid.optimizer
K, STEPS = 4, 3
START = {"b": np.linspace(0.5, 1.5, 3), "w": np.linspace(-1, 1, 15).reshape(5, 3)}


def batches():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(STEPS, 8, 5)), rng.normal(size=(STEPS, 8, 3))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def mean_loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w"]) + p["b"][None] - y) ** 2)


def start():
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)


def largest_error(got, want):
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), got, want)
    return max(map(float, jax.tree.leaves(errors)))


@jax.jit
@jax.grad
def gradient(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w"]) + x @ p["v"] - y) ** 2)


def train(tx, parts, compiled=False):
    """Each batch whole, or in so many equal parts; if compiled, one program for all calls."""
    w = start()["w"]
    p = {"v": -w, "w": w}
    state = tx.init(p)

    def step(p, state, x, y):
        updates, state = tx.update(gradient(p, x, y), state, p)
        return paddle.apply_updates(p, updates), state

    step = jax.jit(chex.assert_max_traces(step, n=1)) if compiled else step

    for x, y in zip(*batches(), strict=True):
        for xs, ys in zip(jnp.split(x, parts), jnp.split(y, parts), strict=True):
            p, state = step(p, state, xs, ys)
    assert not compiled or step._cache_size() == 1
    return p, state


@each_rule_once
def test_small_batches_are_one_large_batch(case):
    """k micro-batches and their mean loss, or one batch of k: to 1e-6, state included, for every rule."""
    whole, inner = train(case.make(), 1)
    parts, state = train(paddle.accumulate_gradients(case.make(), K), K)
    assert largest_error(parts, whole) <= 1e-6
    chex.assert_trees_all_equal_structs(state.inner, inner)
    assert int(state.count) == 0 and int(state.inner.count) == STEPS
    chex.assert_trees_all_equal(state.gradients, jax.tree.map(jnp.zeros_like, state.gradients))


def test_one_compiled_program_serves_all_calls():
    tx = paddle.accumulate_gradients(paddle.chain(paddle.clip_by_global_norm(0.5), paddle.lamb(0.1)), K)
    (loose, _), (compiled, _) = train(tx, K), train(tx, K, compiled=True)
    assert largest_error(compiled, loose) <= 1e-6


def test_with_k_1_nothing_is_added():
    tx = paddle.adam(0.1)
    assert paddle.accumulate_gradients(tx, 1) is tx
    params = [paddle.Parameter(jnp.ones(2), "w")]
    opt = incubate.GradientMergeOptimizer(paddle.optimizer.SGD(0.5, params), 1)
    opt.minimize(lambda p: jnp.sum(p[0]))
    assert params[0].numpy().tolist() == [0.5, 0.5]
    assert opt._part.sums == {} and opt.state_dict() == opt.inner_optimizer.state_dict()


def test_between_steps_nothing_moves():
    p = {"w": jnp.array([1.0, -0.0])}
    tx = paddle.accumulate_gradients(paddle.adam(0.1), 3)
    state = fresh = tx.init(p)
    for update in (tx.update, jax.jit(tx.update)):
        updates, state = update({"w": jnp.array([1.0, 2.0])}, state, p)
        assert paddle.apply_updates(p, updates)["w"].tobytes() == p["w"].tobytes()
        chex.assert_trees_all_equal(state.inner, fresh.inner)
    assert int(state.count) == 2 and state.gradients["w"].tolist() == [2.0, 4.0]
    updates, state = tx.update({"w": jnp.array([1.0, 2.0])}, state, p)
    assert np.all(updates["w"]) and int(state.inner.count) == 1


def test_a_sum_instead_of_a_mean():
    p, g = jnp.zeros(2), jnp.ones(2)
    tx = paddle.accumulate_gradients(paddle.sgd(0.5), 2, avg=False)
    _, state = tx.update(g, tx.init(p), p)
    np.testing.assert_array_equal(tx.update(g, state, p)[0], [-1.0, -1.0])


def test_bfloat16_gradients_are_summed_in_float32():
    p = jnp.zeros(1, jnp.bfloat16)
    tx = paddle.accumulate_gradients(paddle.with_master_weights(paddle.sgd(1.0)), 300, avg=False)
    state, update = tx.init(p), jax.jit(chex.assert_max_traces(tx.update, n=1))
    for _ in range(300):  # in bfloat16 the sum would stop at 256
        updates, state = update(jnp.ones(1, jnp.bfloat16), state, p)
    assert state.gradients.dtype == jnp.float32
    np.testing.assert_array_equal(updates, [-300.0])
    assert update._cache_size() == 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("avg", [True, False])
def test_the_last_unfull_window_is_flushed(avg, compiled):
    """With the last gradient, or after it with none; the inner state counts the steps that were taken."""
    p = {"a": jnp.ones(2), "w": jnp.zeros(3)}
    tx = paddle.chain(paddle.accumulate_gradients(paddle.momentum(0.5, 0.9), 4, avg=avg))
    update = jax.jit(tx.update) if compiled else tx.update
    grads = [jax.tree.map(lambda x, i=i: jnp.full_like(x, i + 1.0), p) for i in range(7)]
    none = jax.tree.map(lambda _: None, p)

    def run(calls):
        state = tx.init(p)
        for g, extra in calls:
            updates, state = update(g, state, p, **extra)
        return updates, state[0]

    with_last = run([(g, {}) for g in grads[:-1]] + [(grads[-1], {"flush": True})])
    traced = run([(g, {"flush": jnp.array(i == 6)}) for i, g in enumerate(grads)])
    after = run([(g, {}) for g in grads] + [(none, {"flush": True})])
    inner = paddle.momentum(0.5, 0.9)
    state = inner.init(p)
    for some in (grads[:4], grads[4:]):
        mean = jax.tree.map(lambda *x: sum(x) / (len(x) if avg else 1), *some)
        want, state = inner.update(mean, state, p)
    for updates, found in (with_last, traced, after):
        chex.assert_trees_all_close((updates, found.inner), (want, state), rtol=1e-6)
        assert int(found.count) == 0 and not any(np.any(x) for x in jax.tree.leaves(found.gradients))


def test_a_flush_of_nothing_moves_nothing():
    p = {"a": jnp.ones(2), "w": jnp.zeros(3)}
    tx = paddle.accumulate_gradients(paddle.adam(0.1), 3)
    updates, state = tx.update(jax.tree.map(lambda _: None, p), tx.init(p), p, flush=True)
    chex.assert_trees_all_equal(state, tx.init(p))
    chex.assert_trees_all_equal(paddle.apply_updates(p, updates), p)
    _, state = tx.update(p, state, p)
    for flush in (jnp.array(False), jnp.array(True)):  # what may flush counts no call without a gradient
        assert int(state.count) == 1
        updates, state = tx.update(jax.tree.map(lambda _: None, p), state, p, flush=flush)
    assert int(state.count) == 0 and int(state.inner.count) == 1 and np.all(updates["a"])


def test_leaves_without_gradients():
    p = {"a": jnp.ones(2), "none": None, "w": jnp.ones(2)}
    tx = paddle.accumulate_gradients(paddle.momentum(0.5, 0.9), 2)
    state, update = tx.init(p), jax.jit(tx.update)
    grads = {"a": None, "none": None, "w": jnp.ones(2)}
    for _ in range(2):
        updates, state = update(grads, state, p)
    assert updates["a"] is None and updates["none"] is None
    np.testing.assert_array_equal(updates["w"], [-0.5, -0.5])
    assert not np.any(state.inner.slots["velocity"]["a"])
    # what was gathered and not used waits for the next step of its leaf
    both = {"a": jnp.ones(2), "none": None, "w": jnp.ones(2)}
    for g in (both, grads):
        updates, state = update(g, state, p)
    assert updates["a"] is None and state.gradients["a"].tolist() == [1.0, 1.0]


def test_accumulation_scans_vmaps_and_wraps_optax():
    optax = pytest.importorskip("optax")
    x, y = batches()

    def run(inner):
        tx = paddle.accumulate_gradients(inner, 2)

        def step(carry, batch):
            p, state = carry
            updates, state = tx.update(jax.grad(mean_loss)(p, *batch), state, p)
            return (paddle.apply_updates(p, updates), state), None

        p = start()
        xs, ys = (jnp.concatenate([v, v]) for v in (x, y))
        return jax.lax.scan(step, (p, tx.init(p)), (xs, ys))[0][0]

    rates = jnp.array([0.01, 0.1])
    alone = [run(paddle.momentum(r, 0.9)) for r in rates]
    together = jax.vmap(lambda r: run(paddle.momentum(r, 0.9)))(rates)
    for i, one in enumerate(alone):
        assert largest_error(jax.tree.map(lambda v, i=i: v[i], together), one) <= 1e-6
    with jax.numpy_dtype_promotion("standard"):
        assert largest_error(run(optax.sgd(0.1, 0.9)), alone[1]) <= 1e-6


# ----------------------------------------------------------------------------------------------- the objects


@paddle.loss
def objective(params, x, y):
    return mean_loss(params, x, y)


def make(inner="Adam"):
    params = paddle.parameters(start())
    return params, getattr(paddle.optimizer, inner)(0.1, parameters=params)


@pytest.mark.parametrize("how", ["minimize", "step", "apply_gradients"])
@pytest.mark.parametrize("home", [incubate, fluid])
def test_gradient_merge_is_one_large_batch(home, how):
    (params, inner), (whole, plain) = make(), make()
    opt = home.GradientMergeOptimizer(inner, k_steps=K)
    for x, y in zip(*batches(), strict=True):
        plain.minimize(objective(whole, x, y))
        plain.clear_grad()
        for xs, ys in zip(jnp.split(x, K), jnp.split(y, K), strict=True):
            loss = objective(params, xs, ys)
            if how == "minimize":
                _, pairs = opt.minimize(loss)
                assert [p.name for p, _ in pairs] == ["b", "w"]
            else:
                loss.backward()
                leaves = jax.tree.leaves(params)
                opt.step() if how == "step" else opt.apply_gradients([(p, p.grad) for p in leaves])
            opt.clear_grad(set_to_zero=how != "step")
    assert largest_error(paddle.values(params), paddle.values(whole)) <= 1e-6
    assert opt.get_lr() == 0.1


def test_gradient_merge_is_saved_between_steps():
    (params, inner), (twin, other) = make(), make()
    x, y = batches()
    opt = incubate.GradientMergeOptimizer(inner, 3)
    for _ in range(4):
        opt.minimize(objective(params, x[0], y[0]))
        opt.clear_grad()
    entries = opt.state_dict()
    assert {"w@GRAD@GradientMerge", "b@GRAD@GradientMerge", "gradient_merge_step"} <= set(entries)
    for p, q in zip(twin.values(), params.values(), strict=True):
        p.set_value(q)
    resumed = incubate.GradientMergeOptimizer(other, 3)
    resumed.set_state_dict(entries)
    for tree, o in ((params, opt), (twin, resumed)):
        for _ in range(2):
            o.minimize(objective(tree, x[1], y[1]))
            o.clear_grad()
    chex.assert_trees_all_equal(paddle.values(params), paddle.values(twin))
    with pytest.raises(ValueError, match="gradient_merge_step is 7, expected an int from 0 to 2"):
        resumed.set_state_dict({**entries, "gradient_merge_step": np.array([7])})
    with pytest.raises(ValueError, match="unexpected: stray"):
        resumed.set_state_dict({**entries, "stray": jnp.ones(1)})


def test_gradient_merge_steps_what_a_loss_reads_as_a_constant():
    """It was frozen when the loss was built, and joins the step with the gradient it had before."""
    a, b = ps = [paddle.Parameter(jnp.ones(3), name) for name in "ab"]
    opt = paddle.fluid.optimizer.GradientMergeOptimizer(paddle.optimizer.SGD(1.0, ps), 2)
    squares = paddle.loss(lambda a, b: jnp.sum(a * a) + jnp.sum(b * b))
    opt.minimize(squares(a, b))
    b.stop_gradient = True
    y = squares(a, b)
    b.stop_gradient = False
    opt.minimize(y)
    assert float(y) == 6.0
    np.testing.assert_array_equal([a.numpy(), b.numpy()], [np.full(3, -1.0), np.zeros(3)])


def test_gradient_merge_steps_whoever_had_a_gradient():
    a, b = paddle.Parameter(jnp.zeros(1), "a"), paddle.Parameter(jnp.zeros(1), "b")
    opt = incubate.GradientMergeOptimizer(paddle.optimizer.SGD(1.0, [a, b]), 2)
    opt.apply_gradients([(a, jnp.ones(1)), (b, jnp.ones(1))])
    opt.apply_gradients([(a, jnp.ones(1))])
    assert (a.item(), b.item()) == (-1.0, -0.5)


def test_wrappers_take_the_arguments_of_the_inner_minimize():
    for wrap in (
        incubate.RecomputeOptimizer,
        lambda o: fluid.GradientMergeOptimizer(o, 1),
        lambda o: fluid.GradientMergeOptimizer(o, 2),
        fluid.LookaheadOptimizer,
    ):
        w, b = paddle.Parameter(jnp.ones(1), "w"), paddle.Parameter(jnp.ones(1), "b")
        opt = wrap(fluid.SGD(0.5, parameter_list=[w, b]))
        for _ in range(2):
            opt.minimize(lambda p: jnp.sum(p[0] * p[1]), parameter_list=["w"])
            opt.clear_gradients()
        assert (w.item() < 1, b.item()) == (True, 1.0)


def test_wrappers_nest():
    params, inner = make("SGD")
    opt = incubate.RecomputeOptimizer(incubate.GradientMergeOptimizer(incubate.LookAhead(inner, 0.5, 1), 2))
    x, y = batches()
    for _ in range(4):
        opt.minimize(objective(params, x[0], y[0]))
        opt.clear_grad()
    assert int(opt.state_dict()["lookahead_step_0"][0]) == 2
    opt.set_lr(0.5)
    assert inner.get_lr() == 0.5
    with pytest.raises(AttributeError):
        opt.nothing_of_that_name  # noqa: B018


# --------------------------------------------------------------------------------------------- recomputation


@paddle.loss(has_aux=True)
def deep(params, x, y, activation="tanh"):
    for _ in range(3):
        x = x @ params["w"] @ params["w"].T
        x = checkpoint_name(getattr(jnp, activation)(x), "hidden")
    return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2), {"hidden": x}


@pytest.mark.parametrize("checkpoints", [[], ["hidden"]], ids=str)
@pytest.mark.parametrize("home", [incubate, fluid])
def test_recomputation_changes_no_value(home, checkpoints):
    (params, inner), (plain, other) = make(), make()
    opt = home.RecomputeOptimizer(inner)
    opt._set_checkpoints(checkpoints)
    for x, y in zip(*batches(), strict=True):
        losses = deep(params, x, y, activation="sin"), deep(plain, x, y, activation="sin")
        opt.minimize(losses[0])
        other.minimize(losses[1])
        np.testing.assert_allclose(float(losses[0]), float(losses[1]), rtol=1e-6)
        np.testing.assert_allclose(losses[0].aux["hidden"], losses[1].aux["hidden"], rtol=1e-5)
        opt.clear_grad()
        other.clear_grad()
    assert largest_error(paddle.values(params), paddle.values(plain)) <= 1e-6
    assert len(opt._functions) == 1  # equal calls share a compiled program


def test_recomputation_keeps_less():
    """The backward pass really runs under jax.checkpoint: its program computes the sine twice as often."""
    params, inner = make()
    opt = incubate.RecomputeOptimizer(inner)
    x, y = (v[0] for v in batches())
    counts = []
    for recompute in (False, True):
        loss = deep(params, x, y, "sin")
        if recompute:
            opt.recomputing(loss)
        grad = jax.grad(loss.call, has_aux=True)
        values = [p.value for p in loss.parameters]
        counts.append(str(jax.make_jaxpr(grad)(values, loss.fixed)).count("= sin "))
    assert counts[1] == 2 * counts[0]


def test_recomputation_of_a_function_and_by_halves():
    (params, inner), (plain, other) = make("SGD"), make("SGD")
    x, y = (v[0] for v in batches())
    opt = incubate.RecomputeOptimizer(inner)
    opt.minimize(lambda p: mean_loss(p, x, y))
    other.minimize(lambda p: mean_loss(p, x, y))
    opt.clear_grad()
    other.clear_grad()
    opt.apply_gradients(opt.backward(objective(params, x, y)))
    other.minimize(objective(plain, x, y))
    assert largest_error(paddle.values(params), paddle.values(plain)) <= 1e-6


REFUSED = {
    "none": (lambda: paddle.accumulate_gradients(None, 2), AssertionError, "found None"),
    "type": (lambda: paddle.accumulate_gradients(3, 2), TypeError, "found 3"),
    "k": (lambda: paddle.accumulate_gradients(paddle.sgd(0.1), 0), ValueError, "k: found 0"),
    "k-float": (lambda: paddle.accumulate_gradients(paddle.sgd(0.1), 2.0), AssertionError, "k: found 2.0"),
    "avg": (lambda: paddle.accumulate_gradients(paddle.sgd(0.1), 2, 1), TypeError, "avg: found 1"),
    "merge-none": (lambda: incubate.GradientMergeOptimizer(None), AssertionError, "found None"),
    "merge-type": (lambda: incubate.GradientMergeOptimizer(paddle.sgd(0.1)), TypeError, "expected an optim"),
    "merge-k": (
        lambda: incubate.GradientMergeOptimizer(make()[1], 0),
        AssertionError,
        "k_steps: found 0",
    ),
    "recompute-none": (lambda: fluid.RecomputeOptimizer(None), AssertionError, "found None"),
    "recompute-type": (lambda: fluid.RecomputeOptimizer(1), TypeError, "found 1"),
    "recompute-names": (
        lambda: fluid.RecomputeOptimizer(make()[1])._set_checkpoints([jnp.ones(1)]),
        TypeError,
        "checkpoint_name",
    ),
    "recompute-load": (
        lambda: fluid.RecomputeOptimizer(make()[1]).load({}),
        NotImplementedError,
        "set_state_dict",
    ),
    "shape": (
        lambda: paddle.accumulate_gradients(paddle.sgd(0.1), 2).update(
            {"w": jnp.ones(3)},
            paddle.accumulate_gradients(paddle.sgd(0.1), 2).init({"w": jnp.ones(2)}),
            {"w": jnp.ones(2)},
        ),
        ValueError,
        r"at w: found a gradient of shape \(3,\)",
    ),
    "pairs": (
        lambda: incubate.GradientMergeOptimizer(make()[1], 2).apply_gradients(None),
        TypeError,
        "params_grads: found None",
    ),
    "pair": (
        lambda: incubate.GradientMergeOptimizer(make()[1], 2).apply_gradients([3]),
        TypeError,
        "params_grads: found 3",
    ),
    "stranger": (
        lambda: incubate.GradientMergeOptimizer(make()[1], 2).apply_gradients(
            [(paddle.Parameter(jnp.ones(1), "other"), jnp.ones(1))]
        ),
        ValueError,
        "other",
    ),
}


@pytest.mark.parametrize("call, kind, words", REFUSED.values(), ids=REFUSED)
def test_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_in_a_shard_map_and_around_optax_with_narrow_parameters():
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    tx, p = paddle.accumulate_gradients(paddle.sgd(0.1), 2), jnp.ones(4)
    state = tx.init(p)
    specs = jax.tree.map(lambda x: spec("d") if x.shape == (4,) else spec(), state)
    args = {"in_specs": (spec("d"), specs, spec("d")), "out_specs": (spec("d"), specs)}
    update = jax.jit(jax.shard_map(tx.update, mesh=mesh, **args))
    first, state = update(p, state, p)
    second, state = update(p, state, p)
    np.testing.assert_allclose(np.stack([first, second]), [[0] * 4, [-0.1] * 4], rtol=1e-6)
    narrow = {"w": jnp.ones(3, jnp.bfloat16)}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for tx in (
            paddle.accumulate_gradients(optax.adam(1e-3), 2),
            paddle.dynamic_loss_scale(optax.adam(1e-3)),
        ):
            state = tx.init(narrow)
            _, after = jax.jit(tx.update)(narrow, state, narrow)
            chex.assert_trees_all_equal_dtypes(after, state)


def test_a_step_that_fails_leaves_the_sums():
    def refuses(name):
        raise ValueError("boom")

    w = paddle.Parameter(jnp.ones(1), "w")
    inner = paddle.optimizer.AdamW(0.1, parameters=[w], apply_decay_param_fun=refuses)
    opt = paddle.incubate.optimizer.GradientMergeOptimizer(inner, k_steps=2)
    opt.apply_gradients([(w, jnp.ones(1))])
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="boom"):
        opt.apply_gradients([(w, jnp.ones(1))])
    chex.assert_trees_all_equal(opt.state_dict(), saved)
    with pytest.raises(ValueError, match="gradient_merge_step is 0, but there are 1 sums"):
        opt.set_state_dict({k: v for k, v in saved.items() if k != "gradient_merge_step"})
