"""Chains, options by path, clips and decay as functions."""

import re

import chex
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from refusals import P, refuse, row, rows, with_w

import paddlejax as paddle
from paddlejax.paths import PathState

PARAMS = {"body": {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0])}, "head": {"w": jnp.array([2.0])}}
GRADS = jax.tree.map(lambda p: p * 0.5, PARAMS)


def update(tx, grads=GRADS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)[0]


def test_paddles_order_is_clip_then_decay_then_rule():
    """SGD at rate 1, p = 1, g = (3, 4), global norm 1, L2 0.5: as measured on Paddle."""
    p = jnp.ones(2)
    tx = paddle.chain(paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.5), paddle.sgd(1.0))
    new = paddle.apply_updates(p, update(tx, jnp.array([3.0, 4.0]), p))
    np.testing.assert_allclose(new, [1 - (0.6 + 0.5), 1 - (0.8 + 0.5)], rtol=1e-6)
    by_path = paddle.by_path([], paddle.sgd(1.0), weight_decay=0.5, grad_clip=paddle.clip_by_global_norm(1.0))
    np.testing.assert_array_equal(paddle.apply_updates(p, update(by_path, jnp.array([3.0, 4.0]), p)), new)


def clip_args(case):
    return {k: float("inf") if v == "inf" else v for k, v in case["args"].items()}


# The optional ones are about subnormal numbers, which XLA flushes to zero.
CLIPS = [c for c in golden_cases.load_clip() if c["kind"] == "clip" and not {"error", "optional"} & set(c)]
FUNCTIONS = {
    "ClipGradByValue": paddle.clip_by_value,
    "ClipGradByNorm": paddle.clip_by_norm,
    "ClipGradByGlobalNorm": paddle.clip_by_global_norm,
}


class WithoutClip:
    need_clip = False


@pytest.mark.parametrize("form", ["object", "function"])
@pytest.mark.parametrize("case", CLIPS, ids=lambda c: c["id"])
def test_recorded_clip(case, form):
    """Zeros, infinities, NaN, mixed dtypes, parameters that opted out, None: element for element."""
    with jax.enable_x64(True):
        there = [k for k in case["arrays"] if k.startswith("in/")]
        grads = {k.removeprefix("in/"): jnp.asarray(case["arrays"][k]) for k in there}
        need = dict(enumerate(case.get("need_clip", [])))
        asked = {k: g for k, g in grads.items() if need.get(int(k), True)}
        if form == "object":
            clip = getattr(paddle.nn, case["cls"])(**clip_args(case))
            pairs = [(None if k in asked else WithoutClip(), g) for k, g in grads.items()]
            found = dict(zip(grads, [g for _, g in clip([*pairs, (None, None)])], strict=True))
        else:
            tx = FUNCTIONS[case["cls"]](**{k: v for k, v in clip_args(case).items() if k != "group_name"})
            clipped, _ = jax.jit(tx.update)({**asked, "none": None}, tx.init(asked))
            assert clipped.pop("none") is None
            found = {**grads, **clipped}
        # A float32 tensor's sum of squares has float32's precision, and all share the factor made from it.
        rtol = 5e-7 if any(g.dtype == np.float32 for g in grads.values()) else 1e-13
        for k, g in found.items():
            want = case["arrays"][f"out/{k}"].reshape(g.shape)  # Paddle makes a 0-d gradient [1]
            assert g.dtype == want.dtype
            np.testing.assert_allclose(g, want, rtol=rtol, atol=0)


@pytest.mark.parametrize("limit", [2.0, 1e4])
def test_half_precision_norms_are_taken_in_float32(limit):
    """In float16 the sum of squares would overflow: 300² is beyond its range."""
    g = jnp.full(4, 300.0, jnp.float16)
    for clip in (paddle.clip_by_norm, paddle.clip_by_global_norm):
        found, _ = clip(limit).update(g, ())
        np.testing.assert_array_equal(found, jnp.full(4, min(limit / 2, 300.0), jnp.float16))


def test_the_global_norm_over_a_shard_map():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    g, shard = jnp.arange(8.0), PartitionSpec("x")
    for clip in (paddle.clip_by_global_norm, paddle.clip_by_norm):
        tx = clip(1.0, axis_name="x")
        found = jax.shard_map(
            lambda g, tx=tx: tx.update(g, ())[0], mesh=mesh, in_specs=shard, out_specs=shard
        )(g)
        np.testing.assert_allclose(found, clip(1.0).update(g, ())[0], rtol=1e-6)


# ------------------------------------------------------------------------------------------ by path


def test_by_path_alone_changes_nothing():
    for make in (paddle.adam, paddle.rmsprop):
        found = update(paddle.by_path([], make(0.1)))
        chex.assert_trees_all_equal(found, update(make(0.1)))


def test_the_first_pattern_decides():
    table = [
        ("body/w", {"learning_rate": 2.0}),
        (re.compile("w$"), {"learning_rate": 3.0}),
        ("*", {"frozen": True}),
    ]
    found = update(paddle.by_path(table, paddle.sgd(1.0)))
    np.testing.assert_array_equal(found["body"]["w"], -2 * GRADS["body"]["w"])
    np.testing.assert_array_equal(found["head"]["w"], -3 * GRADS["head"]["w"])
    np.testing.assert_array_equal(found["body"]["b"], [0.0])


def test_frozen_parameters_keep_every_bit_and_have_no_state():
    params = {"a": jnp.array([-0.0, 1e-30, jnp.nan]), "b": jnp.ones(1)}
    tx = paddle.by_path([("a", {"frozen": True})], paddle.adam(0.1), weight_decay=0.5)
    state = tx.init(params)
    assert isinstance(state, PathState) and state.rule[0].slots["moment1"]["a"] is None
    updates, _ = jax.jit(tx.update)(params, state, params)
    new = paddle.apply_updates(params, updates)
    assert np.asarray(new["a"]).tobytes() == np.asarray(params["a"]).tobytes()


def test_frozen_parameters_are_not_in_the_norm():
    tx = paddle.by_path(
        [("head/*", {"frozen": True})], paddle.sgd(1.0), grad_clip=paddle.clip_by_global_norm(1.0)
    )
    norm = np.sqrt(1.5**2 + 2**2 + 0.5**2)
    np.testing.assert_allclose(update(tx)["body"]["b"], [-0.5 / norm], rtol=1e-6)


def test_decay_and_clip_by_path():
    table = [
        ("*/b", {"weight_decay": None, "grad_clip": None}),
        ("head/*", {"weight_decay": paddle.l1_decay(0.25)}),
    ]
    found = update(
        paddle.by_path(table, paddle.sgd(1.0), weight_decay=0.5, grad_clip=paddle.clip_by_value(0.1))
    )
    np.testing.assert_allclose(found["body"]["b"], [-0.5])
    np.testing.assert_allclose(found["body"]["w"], [[-(0.1 + 1.5), -(0.1 + 2.0)]], rtol=1e-6)
    np.testing.assert_allclose(found["head"]["w"], [-(0.1 + 0.25)], rtol=1e-6)


def test_another_rule_and_other_hyperparameters_by_path():
    table = [("head/*", {"rule": paddle.sgd(0.5)}), ("*/b", {"beta1": 0.5})]
    tx = paddle.by_path(table, paddle.adam(0.1))
    state = tx.init(PARAMS)
    assert len(state.rule) == 3  # adam, adam with another beta, sgd: leaves in the tree's order
    update_ = jax.jit(tx.update)
    params, want = PARAMS, {}
    for _ in range(3):
        updates, state = update_(GRADS, state, params)
        params = paddle.apply_updates(params, updates)
    for path, alone in {("body", "w"): paddle.adam(0.1), ("body", "b"): paddle.adam(0.1, beta1=0.5)}.items():
        p, s = PARAMS[path[0]][path[1]], alone.init(PARAMS[path[0]][path[1]])
        for _ in range(3):
            u, s = alone.update(GRADS[path[0]][path[1]], s, p)
            p = paddle.apply_updates(p, u)
        want[path] = p
    np.testing.assert_allclose(params["body"]["w"], want["body", "w"], rtol=1e-6)
    np.testing.assert_allclose(params["body"]["b"], want["body", "b"], rtol=1e-6)
    np.testing.assert_allclose(
        params["head"]["w"], PARAMS["head"]["w"] - 3 * 0.5 * GRADS["head"]["w"], rtol=1e-6
    )


def test_a_factor_reaches_the_slots_as_in_paddle():
    """RMSProp keeps the rate inside its velocity."""
    p = {"w": jnp.ones(2)}
    tx, plain = paddle.by_path([("w", {"learning_rate": 0.5})], paddle.rmsprop(0.1)), paddle.rmsprop(0.05)
    _, state = tx.update(p, tx.init(p), p)
    _, want = plain.update(p, plain.init(p), p)
    np.testing.assert_allclose(state.rule[0].slots["momentum"]["w"], want.slots["momentum"]["w"], rtol=1e-6)


def test_the_rate_is_read_and_replaced_anywhere_in_a_state():
    tx = paddle.chain(
        paddle.clip_by_norm(1.0), paddle.by_path([("head/*", {"beta1": 0.5})], paddle.adam(0.1))
    )
    state = paddle.set_learning_rate(tx.init(PARAMS), 0.25)
    assert float(paddle.get_learning_rate(state)) == 0.25
    state = paddle.by_path([("head/*", {"rule": paddle.sgd(0.5)})], paddle.adam(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match=r"different rates: 0\.1, 0\.5"):
        paddle.get_learning_rate(state)


def test_apply_updates_rounds_once_and_keeps_dtypes():
    params = {"w": jnp.array([1.0], jnp.bfloat16), "v": jnp.array([1.0])}
    # In bfloat16 1 + 2^-8 + 2^-17 lies above the middle between 1 and its neighbour; the update rounded first
    # does not.
    new = paddle.apply_updates(params, {"w": jnp.array([2.0**-8 + 2.0**-17]), "v": None})
    assert new["w"].dtype == jnp.bfloat16 and new["v"] is params["v"]
    assert float(new["w"][0]) == 1.0 + 2.0**-7


def test_extra_arguments_pass_through_a_chain():
    seen = {}

    def update_(grads, state, params=None, **extra):
        seen.update(extra)
        return grads, state

    tx = paddle.chain(paddle.GradientTransformation(lambda p: (), update_), paddle.sgd(0.1))
    tx.update(GRADS, tx.init(PARAMS), PARAMS, value=3.0)
    assert seen == {"value": 3.0}


def test_describe_says_what_every_leaf_gets():
    table = [
        ("head/*", {"frozen": True}),
        ("*/b", {"weight_decay": None, "learning_rate": 0.5, "beta1": 0.8}),
    ]
    tx = paddle.by_path(table, paddle.adam(0.1), weight_decay=0.25, grad_clip=paddle.clip_by_global_norm(1.0))
    lines = tx.describe(PARAMS).split("\n")
    assert lines[0].split() == ["path", "shape", "dtype", "rate", "decay", "clip", "rule"]
    assert [line.split()[0] for line in lines[1:]] == ["body/b", "body/w", "head/w"]
    assert "x 0.5" in lines[1] and "L2Decay" not in lines[1] and lines[1].endswith("Adam(beta1=0.8)")
    assert "L2Decay, coeff=0.250000" in lines[2] and "global_norm=1.000000 [1]" in lines[2]
    assert lines[3].endswith("frozen")
    with pytest.raises(ValueError, match="matches no parameter"):
        tx.describe({"other": jnp.ones(1)})


def test_adamws_decay_by_path_is_its_own():
    table = [("*/b", {"weight_decay": None}), ("head/*", {"weight_decay": 0.5})]
    tx = paddle.by_path(table, paddle.adamw(0.1, weight_decay=0.25))
    found, bare = update(tx), update(paddle.adam(0.1))
    for path, decay in {("body", "w"): 0.25, ("body", "b"): 0.0, ("head", "w"): 0.5}.items():
        want = bare[path[0]][path[1]] - 0.1 * decay * PARAMS[path[0]][path[1]]
        np.testing.assert_allclose(found[path[0]][path[1]], want, rtol=1e-6)
    assert "AdamW(weight_decay=0.5)" in tx.describe(PARAMS)


ENTRIES = golden_cases.load_clip()


@pytest.mark.parametrize("case", [c for c in ENTRIES if c["kind"] == "sgd"], ids=lambda c: c["id"])
def test_recorded_step_with_clip_and_decay(case):
    """One SGD step of the object: clip, then decay; a parameter's own regularizer comes first."""
    decay = lambda d: getattr(paddle.regularizer, d[0])(d[1]) if isinstance(d, list) else d  # noqa: E731
    arrays, params = case["arrays"], []
    for i in range(len(case["shapes"])):
        own = decay(case.get("regularizer", [None] * 3)[i])
        need = case.get("need_clip", [True] * 3)[i]
        params.append(paddle.Parameter(arrays[f"param/{i}"], str(i), regularizer=own, need_clip=need))
        params[i].grad = jnp.asarray(arrays[f"in/{i}"])
    clip = case["cls"] and getattr(paddle.nn, case["cls"])(**clip_args(case))
    paddle.optimizer.SGD(case["lr"], params, decay(case.get("weight_decay")), clip).step()
    for i, p in enumerate(params):
        want = arrays[f"new/{i}"]
        np.testing.assert_allclose(p.numpy(), want, rtol=0, atol=5e-7 * np.max(np.abs(want)))


BAD = [c for c in ENTRIES if c["kind"] == "clip" and "error" in c]


@pytest.mark.parametrize("case", BAD, ids=lambda c: c["id"])
def test_recorded_errors_of_clips_at_construction(case):
    with pytest.raises(getattr(__import__("builtins"), case["error"])):
        getattr(paddle.nn, case["cls"])(**clip_args(case))


def test_a_regularizer_comes_on_top_of_adamws_decay():
    tx = paddle.by_path([("head/*", {"weight_decay": paddle.regularizer.L2Decay(0.5)})], paddle.adamw(0.1))
    want = update(paddle.chain(paddle.l2_decay(0.5), paddle.adamw(0.1)))["head"]["w"]
    np.testing.assert_allclose(update(tx)["head"]["w"], want, rtol=1e-6)


def test_an_adamw_rows_number_replaces_both_decays():
    tx = paddle.by_path(
        [("b", {"weight_decay": 0.0})], paddle.adamw(0.1, weight_decay=0.0), weight_decay=10.0
    )
    p = {"w": jnp.ones(1), "b": jnp.ones(1)}
    updates, _ = tx.update({"w": -jnp.ones(1), "b": -jnp.ones(1)}, tx.init(p), p)
    np.testing.assert_allclose([updates["b"][0], updates["w"][0]], [0.1, -0.1], rtol=1e-5)


# ------------------------------------------------------------------------------------------ errors

APPLY = [
    row(
        "shape",
        lambda: paddle.apply_updates(P, with_w(jnp.ones(3))),
        ValueError,
        "at w",
        r"\(3,\)",
        r"\(2,\)",
    ),
    row(
        "would-broadcast",
        lambda: paddle.apply_updates(P, with_w(1.0)),
        ValueError,
        "at w:",
        r"\(\)",
        r"\(2,\)",
    ),
    row("missing", lambda: paddle.apply_updates(P, {"b": P["b"]}), ValueError, "updates", "missing at w"),
    row("extra", lambda: paddle.apply_updates(P, {**P, "c": 1.0}), ValueError, "updates", "unexpected at c"),
    row(
        "int-parameter",
        lambda: paddle.apply_updates({"n": jnp.arange(2)}, {"n": P["w"]}),
        TypeError,
        "at n",
        "int32",
    ),
    row(
        "complex-update", lambda: paddle.apply_updates(P, with_w(1j * P["w"])), TypeError, "at w", "complex64"
    ),
    row("text-update", lambda: paddle.apply_updates(P, with_w("x")), (TypeError,), "at w", "str"),
]
CHAIN = [
    row("number", lambda: paddle.chain(paddle.sgd(0.1), 3), TypeError, "argument 1", "3", "expected"),
    row("factory", lambda: paddle.chain(paddle.sgd), TypeError, "argument 0", "expected"),
    row("list", lambda: paddle.chain([paddle.sgd(0.1)]), TypeError, "argument 0", "expected"),
    row(
        "clip-object",
        lambda: paddle.chain(paddle.nn.ClipGradByValue(1.0), paddle.sgd(0.1)),
        TypeError,
        "argument 0",
    ),
]


@rows(apply_updates=APPLY, chain=CHAIN)
def test_refused(call, classes, words):
    refuse(call, classes, words)
