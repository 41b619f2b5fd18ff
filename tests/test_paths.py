"""Options by path."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import BOTH, TWO, P, refuse, row, rows

import paddlejax as pj
from paddlejax.leaves import PathState, per_leaf

PARAMS = {"body": {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0])}, "head": {"w": jnp.array([2.0])}}
GRADS = jax.tree.map(lambda p: p * 0.5, PARAMS)


def update(tx, grads=GRADS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)[0]


def test_by_path_alone_changes_nothing():
    for make in (pj.adam, pj.rmsprop):
        found = update(pj.by_path([], make(0.1)))
        chex.assert_trees_all_equal(found, update(make(0.1)))


def test_the_first_pattern_decides():
    table = [
        ("body/w", {"learning_rate": 2.0}),
        (re.compile("w$"), {"learning_rate": 3.0}),
        ("*", {"frozen": True}),
    ]
    found = update(pj.by_path(table, pj.sgd(1.0)))
    np.testing.assert_array_equal(found["body"]["w"], -2 * GRADS["body"]["w"])
    np.testing.assert_array_equal(found["head"]["w"], -3 * GRADS["head"]["w"])
    np.testing.assert_array_equal(found["body"]["b"], [0.0])


def test_frozen_parameters_keep_every_bit_and_have_no_state():
    params = {"a": jnp.array([-0.0, 1e-30, jnp.nan]), "b": jnp.ones(1)}
    tx = pj.by_path([("a", {"frozen": True})], pj.adam(0.1), weight_decay=0.5)
    state = tx.init(params)
    assert isinstance(state, PathState) and state.rule[0].slots["moment1"]["a"] is None
    updates, _ = jax.jit(tx.update)(params, state, params)
    new = pj.apply_updates(params, updates)
    assert np.asarray(new["a"]).tobytes() == np.asarray(params["a"]).tobytes()


def test_frozen_parameters_are_not_in_the_norm():
    tx = pj.by_path([("head/*", {"frozen": True})], pj.sgd(1.0), grad_clip=pj.clip_by_global_norm(1.0))
    norm = np.sqrt(1.5**2 + 2**2 + 0.5**2)
    np.testing.assert_allclose(update(tx)["body"]["b"], [-0.5 / norm], rtol=1e-6)


def test_decay_and_clip_by_path():
    table = [
        ("*/b", {"weight_decay": None, "grad_clip": None}),
        ("head/*", {"weight_decay": pj.l1_decay(0.25)}),
    ]
    found = update(pj.by_path(table, pj.sgd(1.0), weight_decay=0.5, grad_clip=pj.clip_by_value(0.1)))
    np.testing.assert_allclose(found["body"]["b"], [-0.5])
    np.testing.assert_allclose(found["body"]["w"], [[-(0.1 + 1.5), -(0.1 + 2.0)]], rtol=1e-6)
    np.testing.assert_allclose(found["head"]["w"], [-(0.1 + 0.25)], rtol=1e-6)


def test_another_rule_and_other_hyperparameters_by_path():
    table = [("head/*", {"rule": pj.sgd(0.5)}), ("*/b", {"beta1": 0.5})]
    tx = pj.by_path(table, pj.adam(0.1))
    state = tx.init(PARAMS)
    assert len(state.rule) == 3  # adam, adam with another beta, sgd: leaves in the tree's order
    update_ = jax.jit(tx.update)
    params, want = PARAMS, {}
    for _ in range(3):
        updates, state = update_(GRADS, state, params)
        params = pj.apply_updates(params, updates)
    for path, alone in {("body", "w"): pj.adam(0.1), ("body", "b"): pj.adam(0.1, beta1=0.5)}.items():
        p, s = PARAMS[path[0]][path[1]], alone.init(PARAMS[path[0]][path[1]])
        for _ in range(3):
            u, s = alone.update(GRADS[path[0]][path[1]], s, p)
            p = pj.apply_updates(p, u)
        want[path] = p
    np.testing.assert_allclose(params["body"]["w"], want["body", "w"], rtol=1e-6)
    np.testing.assert_allclose(params["body"]["b"], want["body", "b"], rtol=1e-6)
    np.testing.assert_allclose(
        params["head"]["w"], PARAMS["head"]["w"] - 3 * 0.5 * GRADS["head"]["w"], rtol=1e-6
    )


def test_a_factor_reaches_the_slots_as_in_paddle():
    """RMSProp keeps the rate inside its velocity."""
    p = {"w": jnp.ones(2)}
    tx, plain = pj.by_path([("w", {"learning_rate": 0.5})], pj.rmsprop(0.1)), pj.rmsprop(0.05)
    _, state = tx.update(p, tx.init(p), p)
    _, want = plain.update(p, plain.init(p), p)
    np.testing.assert_allclose(state.rule[0].slots["momentum"]["w"], want.slots["momentum"]["w"], rtol=1e-6)


def test_describe_says_what_every_leaf_gets():
    table = [
        ("head/*", {"frozen": True}),
        ("*/b", {"weight_decay": None, "learning_rate": 0.5, "beta1": 0.8}),
    ]
    tx = pj.by_path(table, pj.adam(0.1), weight_decay=0.25, grad_clip=pj.clip_by_global_norm(1.0))
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
    tx = pj.by_path(table, pj.adamw(0.1, weight_decay=0.25))
    found, bare = update(tx), update(pj.adam(0.1))
    for path, decay in {("body", "w"): 0.25, ("body", "b"): 0.0, ("head", "w"): 0.5}.items():
        want = bare[path[0]][path[1]] - 0.1 * decay * PARAMS[path[0]][path[1]]
        np.testing.assert_allclose(found[path[0]][path[1]], want, rtol=1e-6)
    assert "AdamW(weight_decay=0.5)" in tx.describe(PARAMS)


def test_a_regularizer_comes_on_top_of_adamws_decay():
    tx = pj.by_path([("head/*", {"weight_decay": pj.regularizer.L2Decay(0.5)})], pj.adamw(0.1))
    want = update(pj.chain(pj.l2_decay(0.5), pj.adamw(0.1)))["head"]["w"]
    np.testing.assert_allclose(update(tx)["head"]["w"], want, rtol=1e-6)


def test_an_adamw_rows_number_replaces_both_decays():
    tx = pj.by_path([("b", {"weight_decay": 0.0})], pj.adamw(0.1, weight_decay=0.0), weight_decay=10.0)
    p = {"w": jnp.ones(1), "b": jnp.ones(1)}
    updates, _ = tx.update({"w": -jnp.ones(1), "b": -jnp.ones(1)}, tx.init(p), p)
    np.testing.assert_allclose([updates["b"][0], updates["w"][0]], [0.1, -0.1], rtol=1e-5)


# ------------------------------------------------------------------------------------------ errors

ADAM, SGD = pj.adam(0.1), pj.sgd(0.1)
TABLE = pj.by_path([("w", {"learning_rate": 2.0})], ADAM)
OTHER_TABLE, OTHER_RULE = pj.by_path([("w", {"rule": SGD})], ADAM), pj.by_path([], SGD)
START = ADAM.init(P)
FOREIGN = pj.GradientTransformation(lambda params: (), lambda g, s, params=None: (g, s))
BY_PATH = [
    row("no-match", lambda: pj.by_path([("*/bias", {})], ADAM).init(P), ValueError, r"\*/bias", "found b, w"),
    row("no-match-regex", lambda: pj.by_path([(re.compile("^x"), {})], ADAM).init(P), ValueError, "x",
        "found b, w"),
    row("option", lambda: pj.by_path([("w", {"lr": 1.0})], ADAM), TypeError, "'w'", "'lr'", "learning_rate",
        "beta1"),
    row("option-of-another", lambda: pj.by_path([("w", {"rho": 0.9})], ADAM), TypeError, "'w'", "'rho'",
        "beta1"),
    row("option-of-a-foreign", lambda: pj.by_path([("w", {"beta1": 0.9})], FOREIGN), TypeError, "'w'",
        "'beta1'"),
    row("factor-of-a-foreign", lambda: pj.by_path([("w", {"learning_rate": 2.0})], FOREIGN), TypeError,
        "'w'", "learning_rate"),
    row("factor-none", lambda: pj.by_path([("w", {"learning_rate": None})], ADAM), TypeError,
        "learning_rate", "None"),
    row("factor-shape", lambda: pj.by_path([("w", {"learning_rate": TWO})], ADAM), TypeError,
        "learning_rate", "2,"),
    row("range", lambda: pj.by_path([("w", {"beta1": 1.5})], ADAM), BOTH, "'w'", "beta1", "1.5"),
    row("frozen", lambda: pj.by_path([("w", {"frozen": 1})], ADAM), TypeError, "'w'", "frozen", "1",
        "True or False"),
    row("decay", lambda: pj.by_path([("w", {"weight_decay": "x"})], ADAM), TypeError, "'w'", "weight_decay",
        "'x'"),
    row("clip", lambda: pj.by_path([("w", {"grad_clip": 1.0})], ADAM), TypeError, "'w'", "grad_clip", "1.0"),
    row("row-rule", lambda: pj.by_path([("w", {"rule": 1.0})], ADAM), TypeError, "'w'", "rule", "1.0"),
    row("rule", lambda: pj.by_path([], pj.adam), TypeError, "rule", "expected"),
    row("general-decay", lambda: pj.by_path([], ADAM, weight_decay="x"), TypeError, "weight_decay", "'x'"),
    row("general-clip", lambda: pj.by_path([], ADAM, grad_clip=1.0), TypeError, "grad_clip", "1.0"),
    row("pattern", lambda: pj.by_path([(3, {})], ADAM), TypeError, "pattern", "3"),
    row("options", lambda: pj.by_path([("w", 2.0)], ADAM), TypeError, "'w'", "2.0", "dict"),
    row("not-pairs", lambda: pj.by_path(["w"], ADAM), TypeError, "table", "'w'", "expected"),
    row("dict", lambda: pj.by_path({"w": {"frozen": True}}, ADAM), TypeError, "table", "expected"),
    row("swapped", lambda: pj.by_path(ADAM, []), TypeError, "rule", r"\[\]", "expected"),
]  # fmt: skip
STATES = [
    row("rule-state", lambda: TABLE.update(P, START, P), TypeError, "PathState", "RuleState"),
    row("other-table", lambda: TABLE.update(P, OTHER_TABLE.init(P), P), ValueError,
        "another table", "found 2", "expected 1"),
    row("other-rule", lambda: TABLE.update(P, OTHER_RULE.init(P), P), ValueError, "Adam", "moment1"),
    row("no-params", lambda: TABLE.update(P, TABLE.init(P)), ValueError, "params"),
    row("per_leaf-no-params", lambda: per_leaf(lambda path: None).update(P, None), ValueError, "params"),
]  # fmt: skip


@rows(BY_PATH, state=STATES)
def test_refused(call, classes, words):
    refuse(call, classes, words)
