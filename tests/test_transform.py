"""Chains, and what reads and applies what they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import P, refuse, row, rows, with_w

import paddlejax as paddle

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
