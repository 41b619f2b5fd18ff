"""Tensors alike are stepped many to a call, and each as if it were alone."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled_steps import DISTINCT

import paddlejax as paddle
from paddlejax import trees
from paddlejax.alike import TOGETHER

COUNT = TOGETHER + 1
SHAPES = [(3,)] * COUNT + [(2, 2)] * 2


def tree(seed):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES]


@pytest.mark.parametrize("case", DISTINCT.values(), ids=DISTINCT)
def test_many_are_stepped_as_each_alone(case):
    tx, params, grads = case.make(), tree(0), tree(1)
    state = tx.init(params)
    together = jax.jit(tx.update)(grads, state, params)
    alone = tx.update(grads, state, params)  # without a trace, a call for each
    chex.assert_trees_all_close(together, alone, rtol=2e-6, atol=1e-7)


def calls(tx, params):
    state = tx.init(params)
    jaxpr = jax.make_jaxpr(tx.update)(params, state, params)
    return collections.Counter(
        eqn.params["name"] for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name in ("jit", "pjit")
    )


def test_full_calls_and_then_one_by_one():
    found = calls(paddle.adam(0.1), tree(0))
    assert (found["_steps"], found["step"]) == (1, 1 + 2)
    assert calls(paddle.adam(0.1), tree(0)[: TOGETHER - 1])["_steps"] == 0


def test_only_what_is_stepped_alike_shares_a_call():
    rules = [("[0-7]", {"beta1": 0.5}), ("*", {})]  # by_path makes a rule of each
    found = calls(paddle.by_path(rules, paddle.adam(0.1)), [jnp.ones(3)] * (2 * TOGETHER))
    assert found["_steps"] == 2
    params = [jnp.ones(3, jnp.float32)] * (TOGETHER - 1) + [jnp.ones(3, jnp.bfloat16)]
    assert calls(paddle.adam(0.1), params)["_steps"] == 0
    tx = paddle.adamw(0.1, apply_decay_param_fun=lambda path: int(path) >= TOGETHER)
    assert calls(tx, [jnp.ones(3)] * (2 * TOGETHER))["_steps"] == 2
    fixed = lambda path: float(path) * 0.1  # noqa: E731
    apart = calls(paddle.adamw(0.1, lr_ratio=fixed), [jnp.ones(3)] * TOGETHER)
    assert apart["_steps"] == 0 and apart["step"] == TOGETHER


def test_a_missing_gradient_stays_missing():
    params = [jnp.ones(3)] * COUNT
    grads = [None if i % 5 == 0 else jnp.ones(3) for i in range(COUNT)]
    tx = paddle.momentum(0.1)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    for g, u, v in zip(grads, updates, state.slots["velocity"], strict=True):
        assert (g is None) == (u is None)
        np.testing.assert_array_equal(v, np.zeros(3) if g is None else np.ones(3))


def test_a_chain_looks_at_its_tree_once(monkeypatch):
    """However many of ours stand in it; one of others in between, which makes a tree of its own, may."""
    looked = []
    plain = trees._flattened
    monkeypatch.setattr(trees, "_flattened", lambda params: looked.append(params) or plain(params))
    before = [paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1)]
    params = dict(zip("abcdefghijk", tree(0), strict=True))
    for between in ([optax.scale(0.5)], []):
        tx = paddle.chain(*before, *between, paddle.adam(0.1))
        state = tx.init(params)
        looked.clear()
        jax.eval_shape(tx.update, params, state, params)
        assert len(looked) == 1
    grads = {**params, "a": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"at a: found a gradient of shape \(4,\), expected the parameter's"):
        tx.update(grads, state, params)


def test_clip_and_decay_of_many_alike():
    """In groups as one by one; 300 of a shape make larger groups, and a few are left over."""
    rng = np.random.default_rng(0)
    params = [*rng.normal(size=(300, 3)).astype(np.float32), *rng.normal(size=(9, 2)).astype(np.float32)]
    grads = [3 * p[::-1] for p in params]
    tx = paddle.chain(paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1), paddle.sgd(0.5))
    step = jax.jit(lambda p, g: paddle.apply_updates(p, tx.update(g, tx.init(p), p)[0]))
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads))
    expected = [p - 0.5 * (g / norm + 0.1 * p) for p, g in zip(params, grads, strict=True)]
    chex.assert_trees_all_close(step(params, grads), expected, rtol=2e-6, atol=1e-7)
    huge = step(params, [g * np.float32(1e30) for g in grads])  # squares overflow
    chex.assert_trees_all_close(huge, expected, rtol=2e-6, atol=1e-7)


def test_gradients_of_numpy_are_taken_as_they_are():
    grads, params = {"w": np.full(3, 2.0, np.float32)}, {"w": jnp.ones(3)}
    for tx in (paddle.clip_by_value(1.5), paddle.chain(paddle.clip_by_value(2.0), paddle.l2_decay(-0.5))):
        np.testing.assert_array_equal(tx.update(grads, tx.init(params), params)[0]["w"], 1.5)


def test_a_chain_sees_a_tree_that_others_changed_in_place():
    def halved(grads, state, params=None):
        grads["w"] = grads["w"] * 0.5
        return grads, state

    other = paddle.GradientTransformation(lambda params: (), halved)
    tx = paddle.chain(paddle.clip_by_value(1.0), other, paddle.sgd(1.0))
    params = {"w": jnp.zeros(3)}
    updates, _ = tx.update({"w": jnp.full(3, 9.0)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], -0.5)
