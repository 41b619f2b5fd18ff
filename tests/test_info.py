"""What a step says about itself is what numpy measures around it, and saying it changes nothing."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import drawn
from compiled_steps import functional, of_object, temp_bytes
from jax.sharding import PartitionSpec

import paddlejax as paddle
from paddlejax.info import Info, InfoState, get_info, with_info
from paddlejax.nn import ClipGradByGlobalNorm, ClipGradByNorm
from paddlejax.rates import RuleState

SHAPES = {"b": (4,), "w": (3, 4)}
STEPS = 3
CLOSE: dict[str, Any] = {"rtol": 2e-6, "atol": 0}


def tree(seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {
        name: jnp.asarray(drawn(*shape, steps=1, seed=seed + i)[0], dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def norm(x: Any) -> np.ndarray:
    return np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(x)))


def lamb_ratio(g: Any, p: Any, moments: list[Any], t: int, decay: float) -> float:
    """‖p‖/‖r‖, from the formula in numpy; moments are changed."""
    moments[0] = 0.9 * moments[0] + 0.1 * g
    moments[1] = 0.999 * moments[1] + 0.001 * g * g
    r = moments[0] / (1 - 0.9**t) / (np.sqrt(moments[1] / (1 - 0.999**t)) + 1e-6) + decay * p
    return norm(p) / norm(r) if decay else 1.0


def lars_ratio(g: Any, p: Any, moments: list[Any], t: int, decay: float) -> float:
    return 0.01 * norm(p) / (norm(g) + decay * norm(p)) if decay else 1.0


LAMB = {"lamb_weight_decay": 0.02, "exclude_from_weight_decay_fn": lambda path: path == "b"}
LARS = {"momentum": 0.9, "lars_coeff": 0.01, "lars_weight_decay": 0.02, "exclude_from_weight_decay": ["b"]}
RULES = {
    "sgd": (paddle.sgd(0.1), None),
    "adam": (paddle.adam(0.1), None),
    "chain": (paddle.chain(paddle.l2_decay(0.1), paddle.momentum(0.1)), None),
    "optax": (optax.sgd(0.1, momentum=0.9), None),
    "lamb": (paddle.lamb(0.1, **LAMB), lamb_ratio),
    "lars_momentum": (paddle.lars_momentum(0.1, **LARS), lars_ratio),
}
CLIPS = {
    "none": (None, lambda g: g),
    "value": (paddle.clip_by_value(0.5), lambda g: jax.tree.map(lambda x: np.clip(x, -0.5, 0.5), g)),
    "norm": (
        ClipGradByNorm(1.5),
        lambda g: jax.tree.map(lambda x: x * min(1, 1.5 / norm(x)), g),
    ),
    "global": (
        paddle.clip_by_global_norm(1.5),
        lambda g: jax.tree.map(lambda x: x * min(1, 1.5 / norm(g)), g),
    ),
    "loose": (paddle.clip_by_global_norm(100.0), lambda g: g),
}


def check(info: Info, g: Any, c: Any, u: Any, p: Any, clips: bool) -> None:
    np.testing.assert_allclose(info.gradient_norm, norm(g), **CLOSE)
    np.testing.assert_allclose(info.update_norm, norm(u), **CLOSE)
    np.testing.assert_allclose(info.parameter_norm, norm(p), **CLOSE)
    if clips:
        np.testing.assert_allclose(info.clip_factor, norm(c) / norm(g), **CLOSE)
    else:
        assert info.clip_factor is None


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("rule", RULES)
def test_every_field_is_what_numpy_measures(rule, clip):
    (tx, ratio), (clips, clipped) = RULES[rule], CLIPS[clip]
    p, measured = tree(0), with_info(tx, grad_clip=clips)
    state, update = measured.init(p), jax.jit(measured.update)
    moments = {name: [np.zeros(shape), np.zeros(shape)] for name, shape in SHAPES.items()}
    for t in range(1, STEPS + 1):
        g = tree(10 * t)
        u, state = update(g, state, p)
        info, c = get_info(state), clipped(jax.tree.map(lambda x: np.asarray(x, np.float64), g))
        check(info, g, c, u, p, clips is not None)
        if ratio is None:
            assert info.trust_ratios is None
        else:
            for name in SHAPES:
                expected = ratio(c[name], np.asarray(p[name]), moments[name], t, 0.02 * (name == "w"))
                np.testing.assert_allclose(info.trust_ratios[name], expected, rtol=1e-5)
        if rule == "optax":
            assert info.learning_rate is None
        else:
            np.testing.assert_allclose(info.learning_rate, 0.1)
        assert info.skipped is None
        p = paddle.apply_updates(p, u)


@pytest.mark.parametrize("rule", RULES)
def test_measuring_changes_neither_updates_nor_the_state_inside(rule):
    tx, clip = RULES[rule][0], paddle.clip_by_global_norm(1.5)
    plain, measured = paddle.chain(clip, tx), with_info(tx, grad_clip=clip)
    p, q = tree(0), tree(0)
    s, state = plain.init(p), measured.init(q)
    for t in range(STEPS):
        u, s = jax.jit(plain.update)(tree(10 * t), s, p)
        v, state = jax.jit(measured.update)(tree(10 * t), state, q)
        chex.assert_trees_all_equal((u, s), (v, state.inner))
        p, q = paddle.apply_updates(p, u), paddle.apply_updates(q, v)


def test_a_clip_that_changes_nothing_has_the_factor_1_and_so_has_no_gradient():
    tx = with_info(paddle.sgd(0.1), grad_clip=paddle.clip_by_global_norm(100.0))
    p = tree(0)
    for g in (tree(1), jax.tree.map(jnp.zeros_like, p)):
        assert get_info(tx.update(g, tx.init(p), p)[1]).clip_factor == 1


def test_the_ratio_is_the_one_by_which_the_rule_stepped():
    """‖u‖ = η ‖p‖ wherever LAMB adapts, and otherwise ratio · η ‖r‖: here against the rule itself."""
    p, g = tree(0), tree(1)
    own = paddle.lars_momentum(0.1, **LARS)
    state = with_info(own).init(p)
    u, state = with_info(own).update(g, state, p)
    for name, decay in (("w", 0.02), ("b", 0.0)):
        direction = np.asarray(g[name]) + decay * np.asarray(p[name])
        ratio = norm(u[name]) / (0.1 * norm(direction))
        np.testing.assert_allclose(get_info(state).trust_ratios[name], ratio, rtol=1e-5)


def test_inside_scan_it_is_one_of_the_results_and_inside_optax_chain_it_is_found():
    tx = optax.chain(optax.scale(2.0), with_info(paddle.lamb(lambda count: 0.1 / (1 + count), **LAMB)))
    p = tree(0)
    gs = jax.tree.map(lambda *x: jnp.stack(x), *[tree(10 * t) for t in range(STEPS)])

    def step(carry: Any, g: Any) -> Any:
        p, state = carry
        u, state = tx.update(g, state, p)
        return (optax.apply_updates(p, u), state), (get_info(state), norm_of(g))

    def norm_of(x: Any) -> jax.Array:
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in x.values()))

    _, (infos, norms) = jax.lax.scan(step, (p, tx.init(p)), gs)
    np.testing.assert_allclose(infos.gradient_norm, 2 * norms, **CLOSE)
    np.testing.assert_allclose(infos.learning_rate, [0.1, 0.05, 0.1 / 3], **CLOSE)
    assert (
        infos.trust_ratios["w"].shape == (STEPS,) and len(set(np.asarray(infos.trust_ratios["w"]))) == STEPS
    )


def test_vmap_over_rates_measures_each():
    rates, p, g = jnp.array([0.1, 0.2, 0.4]), tree(0), tree(1)

    def one(rate: jax.Array) -> Info:
        tx = with_info(paddle.sgd(rate), grad_clip=paddle.clip_by_global_norm(1.0))
        return get_info(tx.update(g, tx.init(p), p)[1])

    infos = jax.vmap(one)(rates)
    np.testing.assert_allclose(infos.update_norm, rates, **CLOSE)
    np.testing.assert_array_equal(infos.learning_rate, rates)
    assert infos.gradient_norm.shape == (3,)


@pytest.mark.parametrize("guard", [paddle.skip_nonfinite, paddle.dynamic_loss_scale])
def test_skips_are_counted_and_leave_the_info_of_the_step_before(guard):
    tx = guard(with_info(paddle.sgd(0.1)))
    p = tree(0)
    state, update, seen = tx.init(p), jax.jit(tx.update), []
    scale = 1.0 if guard is paddle.skip_nonfinite else 65536.0
    for t, bad in enumerate([False, True, True, False]):
        g = jax.tree.map(lambda x: x * scale * (jnp.inf if bad else 1.0), tree(t))  # noqa: B023
        _, state = update(g, state, p)
        scale = scale / 2 if bad and guard is paddle.dynamic_loss_scale else scale
        seen.append(get_info(state))
    assert [int(info.skipped) for info in seen] == [0, 1, 2, 2]
    expected = [norm(tree(t)) for t in (0, 0, 0, 3)]  # unscaled
    np.testing.assert_allclose([info.gradient_norm for info in seen], expected, **CLOSE)


def test_around_the_guard_it_shows_the_bad_gradient_and_that_nothing_moved():
    tx, p = with_info(paddle.skip_nonfinite(paddle.sgd(0.1))), tree(0)
    g = tree(1)
    g["b"] = g["b"].at[0].set(jnp.nan)
    info = get_info(tx.update(g, tx.init(p), p)[1])
    assert np.isnan(info.gradient_norm) and info.update_norm == 0 and info.skipped == 1


def test_masters_are_what_is_measured():
    p = tree(0, jnp.bfloat16)
    tx = paddle.with_master_weights(with_info(paddle.lamb(1e-4, **LAMB)))
    u, first = tx.update(tree(1), tx.init(p), p)
    p = paddle.apply_updates(p, u)
    info = get_info(tx.update(tree(2), first, p)[1])
    np.testing.assert_allclose(info.parameter_norm, norm(first.master), **CLOSE)
    assert abs(info.parameter_norm - norm(p)) > 1e-5
    assert {x.dtype for x in jax.tree.leaves(info)} == {jnp.dtype(jnp.float32)}


def test_narrow_leaves_are_measured_in_float32():
    p = {"w": jnp.full(4096, 1.0, jnp.bfloat16)}
    tx = with_info(paddle.sgd(1.0))
    assert get_info(tx.update(p, tx.init(p), p)[1]).gradient_norm == 64  # bfloat16 would stop adding at 256


def test_a_leaf_without_a_gradient_does_not_count_and_keeps_its_ratio():
    tx, p, g = with_info(paddle.lamb(0.1, **LAMB), grad_clip=paddle.clip_by_norm(0.5)), tree(0), tree(1)
    _, first = tx.update(g, tx.init(p), p)
    u, second = tx.update({"b": g["b"], "w": None}, first, p)
    info = get_info(second)
    check(info, g["b"], g["b"] * 0.5 / norm(g["b"]), u["b"], p["b"], True)
    assert info.trust_ratios["w"] == get_info(first).trust_ratios["w"] != 0
    nothing, third = tx.update({"b": None, "w": None}, second, p)
    assert nothing == {"b": None, "w": None} and get_info(third).gradient_norm == 0


def test_selected_rows_count_once_merged():
    p = {"table": jnp.asarray(drawn(6, 2, steps=1)[0], jnp.float32)}
    g = {"table": paddle.SelectedRows([4, 1, 4, 6], jnp.arange(8.0).reshape(4, 2), 6)}
    tx = with_info(paddle.sgd(0.1), grad_clip=paddle.clip_by_global_norm(2.0))
    u, state = jax.jit(tx.update)(g, tx.init(p), p)
    dense = g["table"].to_dense()
    expected = norm(dense), 2 / norm(dense), 0.2, norm(p["table"][jnp.array([1, 4])])
    info = get_info(state)
    found = info.gradient_norm, info.clip_factor, info.update_norm, info.parameter_norm
    np.testing.assert_allclose(found, expected, **CLOSE)
    whole = with_info(paddle.adam(0.1))  # whose update is an array: it reaches the whole table
    np.testing.assert_allclose(
        get_info(whole.update(g, whole.init(p), p)[1]).parameter_norm, norm(p), **CLOSE
    )


def test_under_shard_map_the_norms_are_those_of_all_shards():
    split, kinds = PartitionSpec("x"), (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=kinds)
    p, g = ({"w": jnp.asarray(drawn(8, steps=1, seed=i)[0], jnp.float32)} for i in range(2))
    clip = paddle.clip_by_global_norm(1.0, axis_name="x")
    tx = with_info(paddle.lamb(0.1, axis_name="x"), grad_clip=clip, axis_name="x")

    def step(p: Any, g: Any) -> Info:
        return get_info(tx.update(g, tx.init(p), p)[1])

    found = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=PartitionSpec()))(p, g)
    alone = with_info(paddle.lamb(0.1), grad_clip=paddle.clip_by_global_norm(1.0))
    expected = get_info(alone.update(g, alone.init(p), p)[1])
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_the_state_keeps_its_kinds_so_that_a_step_compiles_once():
    tx, p = with_info(paddle.lamb(0.1), grad_clip=paddle.clip_by_global_norm(1.0)), tree(0)
    before = tx.init(p)
    after = jax.eval_shape(tx.update, p, before, p)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


# What the norms cost on CPU, in trees of float32 beside what the step takes without them. A donated parameter
# that is also summed is copied first, and updates that are summed are stored; the clip is done twice instead.
@pytest.mark.parametrize("name, trees", [("sgd", 1.6), ("adam", 1.1), ("lars_momentum", 0.1), ("lamb", 3.1)])
def test_the_memory_it_takes_is_documented(name, trees):
    params = {"w": jnp.ones((128, 256)), "v": jnp.ones((256, 128))}
    tx = getattr(paddle, name)(0.1, **({"momentum": 0.9} if name == "lars_momentum" else {}))
    clip = paddle.clip_by_global_norm(1.0)
    off = temp_bytes(functional(paddle.chain(clip, tx), params))
    on = temp_bytes(functional(with_info(tx, grad_clip=clip), params))
    assert on - off <= trees * 4 * 2 * 128 * 256


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda p: with_info(0.1), TypeError, "with_info's tx: found 0.1, expected an .init, update. pair"),
        (
            lambda p: with_info(paddle.sgd(0.1), grad_clip=1.0),
            TypeError,
            "grad_clip: found 1.0, expected a clip",
        ),
        (
            lambda p: with_info(paddle.sgd(0.1)).update(p, (), p),
            TypeError,
            "state: found tuple, expected the InfoState",
        ),
        (
            lambda p: with_info(paddle.sgd(0.1)).update(p, with_info(paddle.sgd(0.1)).init(p)),
            ValueError,
            "with_info needs the parameters",
        ),
        (
            lambda p: with_info(paddle.sgd(0.1)).update(
                {**p, "w": jnp.ones(3)}, with_info(paddle.sgd(0.1)).init(p), p
            ),
            ValueError,
            "at w: found a gradient of shape",
        ),
        (lambda p: get_info(paddle.sgd(0.1).init(p)), TypeError, "found 0 InfoStates in RuleState"),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call(tree(0))


# ----------------------------------------------------------------------------- the Paddle-style object


def stepped(opt: Any, grads: Any) -> Any:
    for name, p in opt.parameters.items():
        p.grad = grads[name]
    opt.step()
    return {name: np.asarray(p.value) for name, p in opt.parameters.items()}


OBJECTS = {
    "Lamb": (lambda p, **o: paddle.optimizer.Lamb(0.1, 0.02, parameters=p, **o), paddle.lamb(0.1, 0.02)),
    "Adam": (lambda p, **o: paddle.optimizer.Adam(0.1, parameters=p, **o), paddle.adam(0.1)),
    "packed": (lambda p, **o: paddle.optimizer.Adam(0.1, parameters=p, packed=True, **o), paddle.adam(0.1)),
    "Momentum": (
        lambda p, **o: paddle.optimizer.Momentum(0.1, parameters=p, weight_decay=0.1, **o),
        paddle.chain(paddle.l2_decay(0.1), paddle.momentum(0.1)),
    ),
}


@pytest.mark.parametrize("clip", [None, ClipGradByGlobalNorm(1.0)], ids=str)
@pytest.mark.parametrize("name", OBJECTS)
def test_the_object_measures_what_the_function_does_and_steps_as_without(name, clip):
    make, tx = OBJECTS[name]
    opt, plain = (make(tree(0), grad_clip=clip) for _ in range(2))
    opt.set_info()
    p, tx = tree(0), with_info(tx, grad_clip=clip)
    state = tx.init(p)
    for t in range(STEPS):
        new = stepped(opt, tree(10 * t))
        chex.assert_trees_all_equal(new, stepped(plain, tree(10 * t)))
        u, state = tx.update(tree(10 * t), state, p)
        found, expected = opt.get_info(), get_info(state)
        chex.assert_trees_all_close(found, expected, rtol=1e-5)
        p = paddle.apply_updates(p, u)


def test_the_object_measures_minimize_rows_masters_and_absent_gradients():
    table = paddle.Parameter(jnp.ones((6, 2)), "table")
    opt = paddle.optimizer.SGD(0.1, parameters=[table, paddle.Parameter(jnp.ones(3), "b")])
    opt.set_info()
    opt.apply_gradients([(table, paddle.SelectedRows([4, 1, 4], jnp.ones((3, 2)), 6))])
    info = opt.get_info()
    expected = np.sqrt(10), np.sqrt(10) / 10, 2.0, np.float32(0.1)
    np.testing.assert_allclose(
        [info.gradient_norm, info.update_norm, info.parameter_norm, info.learning_rate], expected, **CLOSE
    )
    narrow = paddle.optimizer.Lamb(0.1, parameters={"w": jnp.full(4, 3.0, jnp.float16)}, multi_precision=True)
    narrow.set_info()
    loss_of = paddle.loss(lambda params: jnp.sum(params["w"].astype(jnp.float32) ** 2))
    narrow.minimize(loss_of(narrow.parameters))
    assert narrow.get_info().parameter_norm == 6 and narrow.get_info().gradient_norm == 12
    np.testing.assert_allclose(narrow.get_info().update_norm, 0.6, rtol=1e-5)  # LAMB's: η ‖p‖
    assert list(narrow.get_info().trust_ratios) == [p.name for p in narrow.parameter_list]


def test_off_the_object_runs_the_program_it_always_did():
    first, second = (paddle.optimizer.Adam(0.1, parameters=tree(0)) for _ in range(2))
    second.set_info()
    stepped(second, tree(1))
    second.set_info(False)
    for opt in (first, second):
        stepped(opt, tree(1))
    texts = [of_object(opt).as_text() for opt in (first, second)]
    assert texts[0] == texts[1]
    with pytest.raises(RuntimeError, match="call set_info.. before the step"):
        second.get_info()
    with pytest.raises(TypeError, match="set_info's enabled: found 1"):
        second.set_info(1)


def test_the_state_without_info_is_that_of_the_rule():
    p = tree(0)
    state = with_info(paddle.adam(0.1)).init(p)
    assert isinstance(state, InfoState) and isinstance(state.inner[0], RuleState)
    chex.assert_trees_all_equal(state.inner, (paddle.adam(0.1).init(p),))
