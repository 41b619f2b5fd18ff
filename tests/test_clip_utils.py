"""`paddle.nn.utils` against its record, in place on Parameters."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax.nn import utils

UTILS = [c for c in golden_cases.load_clip() if c["kind"] == "util"]
# The optional ones are about subnormal numbers, which XLA flushes to zero.
# Without the one whose squares overflow in Paddle, which makes gradients of 1e20 zeros.
GOOD = [c for c in UTILS if c["id"] != "huge-util-2.0" and not {"error", "optional"} & set(c)]
BAD = [c for c in UTILS if "error" in c]


def with_gradients(case):
    there = [k for k in case["arrays"] if k.startswith("in/")]
    params = [paddle.Parameter(jnp.zeros_like(jnp.asarray(case["arrays"][k]))) for k in there]
    for p, k in zip(params, there, strict=True):
        p.grad = case["arrays"][k]
    return params


def arguments(case):
    return {k: float("inf") if v == "inf" else v for k, v in case["args"].items()}


def grown(*grads, dtype=jnp.float32):
    params = [paddle.Parameter(jnp.zeros_like(jnp.asarray(g, dtype))) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = jnp.asarray(g, dtype)
    return params


@pytest.mark.parametrize("form", [list, iter], ids=["list", "generator"])
@pytest.mark.parametrize("case", GOOD, ids=lambda c: c["id"])
def test_recorded(case, form):
    """Zeros, infinities and NaN in place."""
    with jax.enable_x64(True):
        params = with_gradients(case)
        total = getattr(utils, case["cls"])(form(params), **arguments(case))
        rtol = 5e-7 if case["dtype"] == "float32" else 1e-13
        for i, p in enumerate(params):
            want = case["arrays"][f"out/{i}"]
            np.testing.assert_allclose(p.grad, want, rtol=rtol, atol=0, strict=True)
        if case["cls"] == "clip_grad_value_":
            assert total is None
        else:
            np.testing.assert_allclose(
                total, case["arrays"]["norm"].astype(total.dtype), rtol=rtol, atol=0, strict=True
            )


@pytest.mark.parametrize("case", BAD, ids=lambda c: c["id"])
def test_recorded_errors_change_nothing(case):
    params = grown([3.0, jnp.nan], [1.0])
    before = [p.grad for p in params]
    with pytest.raises({"ValueError": ValueError, "RuntimeError": RuntimeError}[case["error"]]):
        getattr(utils, case["cls"])(params, **arguments(case))
    assert all(p.grad is g for p, g in zip(params, before, strict=True))


def test_there_are_as_many_as_recorded():
    assert (len(UTILS), len(GOOD), len(BAD)) == (59, 50, 2)


def test_a_tree_a_single_parameter_and_shared_ones():
    params = paddle.parameters({"w": jnp.zeros((2, 1)), "more": [jnp.zeros(()), None]})
    params["w"].grad, params["more"][0].grad = jnp.array([[0.0], [3.0]]), jnp.array(4.0)
    # The same Parameter twice counts once.
    np.testing.assert_allclose(utils.clip_grad_norm_([params, params["w"]], 1.0), 5.0)
    np.testing.assert_allclose(params["w"].grad, [[0.0], [0.6]], rtol=1e-6)
    np.testing.assert_allclose(params["more"][0].grad, 0.8, rtol=1e-6)
    np.testing.assert_allclose(utils.clip_grad_norm_(params["w"], 0.3), 0.6, rtol=1e-6)
    np.testing.assert_allclose(params["w"].grad, [[0.0], [0.3]], rtol=1e-5)
    utils.clip_grad_value_(params, 0.2)
    np.testing.assert_allclose(params["more"][0].grad, 0.2)


def test_without_gradients():
    w = paddle.Parameter(jnp.zeros(2))
    total = utils.clip_grad_norm_([w], 1.0)
    assert (total.shape, float(total), w.grad) == ((), 0.0, None)
    utils.clip_grad_value_([], 1.0)
    w.grad = jnp.ones(2)
    w.clear_grad()
    assert utils.clip_grad_norm_([w], 1.0) == 0
    np.testing.assert_array_equal(w.grad, [0.0, 0.0])


@pytest.mark.parametrize("norm_type, total", [(2.0, 600.0), (1, 1200.0), (float("inf"), 300.0), (0, 1.0)])
def test_half_precision_norms_are_taken_in_float32(norm_type, total):
    """300² is beyond float16."""
    (w,) = grown([300.0] * 4, dtype=jnp.float16)
    np.testing.assert_allclose(utils.clip_grad_norm_([w], 30.0, norm_type), total, rtol=1e-6)
    assert w.grad.dtype == jnp.float16
    np.testing.assert_allclose(w.grad, [300 * min(30 / total, 1)] * 4, rtol=1e-3)


def test_compiled_once_for_any_limit_and_values():
    programs = utils._clip_norm._cache_size(), utils._clip_value._cache_size()
    for limit in (1.0, 2.0, np.float32(3.0)):
        params = grown([[limit]] * 7, [1.0] * 11)
        utils.clip_grad_norm_(params, limit)
        utils.clip_grad_value_(params, limit)
    utils.clip_grad_norm_(params, jnp.float32(0.5))
    after = utils._clip_norm._cache_size(), utils._clip_value._cache_size()
    assert (after[0] - programs[0], after[1] - programs[1]) == (1, 1)


def test_what_was_handed_out_survives():
    (w,) = grown([3.0, 4.0])
    before = w.grad
    utils.clip_grad_norm_([w], 1.0)
    np.testing.assert_array_equal(before, [3.0, 4.0])


ERRORS = {
    "norm_type": (lambda p: utils.clip_grad_norm_(p, 1.0, 3.0), "norm_type: found 3.0, expected inf, 0, 1"),
    "norm_type-str": (lambda p: utils.clip_grad_norm_(p, 1.0, "fro"), "norm_type: found 'fro'"),
    "max_norm": (lambda p: utils.clip_grad_norm_(p, -1.0), "max_norm: found -1.0, expected a number of at"),
    "max_norm-nan": (lambda p: utils.clip_grad_norm_(p, float("nan")), "max_norm: found nan"),
    "max_norm-type": (lambda p: utils.clip_grad_norm_(p, "1"), "max_norm: found '1' of type str"),
    "clip_value": (lambda p: utils.clip_grad_value_(p, -0.5), "clip_value: found -0.5, expected a number of"),
    "parameters": (lambda p: utils.clip_grad_value_([jnp.ones(2)], 1.0), "parameters: found an array"),
    "nonfinite": (
        lambda p: utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True),
        "found a norm of inf of order 2.0 over 1 gradients, expected a finite one",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_found(call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(grown([jnp.inf, 1.0]))
