"""Tensors alike are stepped many to a call, and each as if it were alone."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import DISTINCT

import paddlejax as paddle
from paddlejax.step import TOGETHER

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
