"""Parameters that have made equally many steps are stepped together, each by its own count."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from regression import X, Y, mse, tree

import paddlejax as paddle


def adam_by_hand(grads, rate=0.1):
    case = next(c for c in CASES if c.name == "adam" and not c.kwargs)
    return case.expected(np.ones(1, np.float32), [np.full(1, g, np.float32) for g in grads], rate)[0]


def test_every_parameter_counts_its_own_steps():
    a, b, c = (paddle.Parameter(jnp.ones(1), name) for name in "abc")
    opt = paddle.optimizer.Adam(0.1, parameters=[a, b, c])
    plan = {"a": [1.0, 2.0, 3.0, 4.0], "b": [None, 2.0, None, 4.0], "c": [None, None, 3.0, 4.0]}
    for step in range(4):
        for p in (a, b, c):
            g = plan[p.name][step]
            p.grad = None if g is None else jnp.full(1, g)
        opt.step()
    for p in (a, b, c):
        want = adam_by_hand([g for g in plan[p.name] if g is not None])
        np.testing.assert_allclose(p.numpy(), want, rtol=1e-5)
    powers = {k: float(v[0]) for k, v in opt.state_dict().items() if "beta1" in k}
    want = {"a_beta1_pow_acc_0": 0.9**5, "b_beta1_pow_acc_0": 0.9**3, "c_beta1_pow_acc_0": 0.9**3}
    assert powers == pytest.approx(want, rel=1e-5)
    fresh = paddle.optimizer.Adam(0.1, parameters=[a, b, c])
    fresh.set_state_dict(opt.state_dict())
    chex.assert_trees_all_equal(fresh.state_dict(), opt.state_dict())
    assert len(fresh._steps.groups) == 2  # b and c agree again


def test_alternating_halves_compile_twice():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    for i in range(6):
        name = "wb"[i % 2]
        params[name].grad, params["bw"[i % 2]].grad = jnp.ones(params[name].shape), None
        opt.step()
    assert [plan.step._cache_size() for plan in opt.compiled_steps] == [1, 1]


def test_frozen_parameters_rest_and_may_wake():
    params = paddle.parameters(tree())
    params["b"].stop_gradient = True
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    opt.minimize(mse(params, X, Y))
    opt.clear_grad()
    np.testing.assert_array_equal(params["b"].numpy(), [0, 0])
    assert params["b"].grad is None and not any(k.startswith("b_") for k in opt.state_dict())
    params["b"].stop_gradient = False
    opt.minimize(mse(params, X, Y))
    np.testing.assert_allclose(np.abs(params["b"].numpy()), [0.1, 0.1], rtol=1e-4)  # its first step
