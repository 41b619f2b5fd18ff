"""DiLoCo: the numbers of Douillard et al. in numpy, one message in k steps, and other numbers of workers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import paddlejax as paddle
from paddlejax.distributed import diloco, make_step, redistribute

N, K, STEPS = 4, 3, 7


def mesh_of(n=N):
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


def loss_of(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)


def problem():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(5, 3)), "b": rng.normal(size=3)}
    x, y = rng.normal(size=(STEPS, 2 * N, 5)), rng.normal(size=(STEPS, 2 * N, 3))
    return {k: p.astype("f") for k, p in params.items()}, x.astype("f"), y.astype("f")


def reference():
    """Momentum 0.9 at rate 0.05 on each worker, in float64; outside Nesterov's, 0.9 at rate 0.7."""
    start, xs, ys = problem()
    p = {k: a.astype(np.float64) for k, a in start.items()}
    own, inner = [dict(p) for _ in range(N)], [{k: 0.0 for k in p} for _ in range(N)]
    outer, history, losses, loss = {k: 0.0 for k in p}, [], [], np.nan
    for t in range(STEPS):
        for r in range(N):
            x, y = (a[t, 2 * r : 2 * r + 2].astype(np.float64) for a in (xs, ys))
            error = x @ own[r]["w"] + own[r]["b"] - y
            losses.append(np.mean(error**2))
            g = {"w": x.T @ error * 2 / error.size, "b": error.sum(axis=0) * 2 / error.size}
            for k in p:
                inner[r][k] = 0.9 * inner[r][k] + g[k]
                own[r][k] = own[r][k] - 0.05 * inner[r][k]
        if (t + 1) % K == 0:
            for k in p:
                delta = p[k] - np.mean([o[k] for o in own], axis=0)
                outer[k] = 0.9 * outer[k] + delta
                p[k] = p[k] - 0.7 * (delta + 0.9 * outer[k])
            own, loss, losses = [dict(p) for _ in range(N)], np.mean(losses), []
        history.append((dict(p), loss))
    return history


def step_of(tx, n=N):
    params, x, y = problem()
    return *make_step(loss_of, tx, mesh_of(n), params), x, y


def test_it_computes_what_the_paper_says():
    step, params, state, x, y = step_of(diloco(paddle.momentum(0.05, 0.9), K, N))
    for t, (expected, loss) in enumerate(reference()):
        params, state, found = step(params, state, x[t], y[t])
        for k, p in expected.items():
            np.testing.assert_allclose(params[k], p, rtol=0, atol=2e-6, err_msg=f"{k} at {t}")
        np.testing.assert_allclose(found, loss, rtol=1e-5)


def test_nothing_is_sent_but_in_the_branch_of_the_exchange():
    step, params, state, x, y = step_of(diloco(paddle.adam(0.01), K, N))
    text = jax.jit(step).lower(params, state, x[0], y[0]).compile().as_text()
    assert len(re.findall(r" all-(?:reduce|gather)(?:-start)?\(", text)) == 1
    entry = text[text.index("\nENTRY") :]
    assert " conditional(" in entry and " all-reduce(" not in entry


def test_another_number_of_workers_starts_from_the_mean():
    step, params, state, x, y = step_of(diloco(paddle.momentum(0.05, 0.9), K, N))
    params, state, _ = step(params, state, x[0], y[0])
    params = jax.tree.map(np.asarray, params)
    half = redistribute(jax.tree.map(np.asarray, state), 2)
    np.testing.assert_allclose(half.local["w"][1], np.mean(state.local["w"], axis=0), rtol=1e-6)
    assert half.inner[0].slots["velocity"]["b"].shape == (2, 3) and half.count == state.count
    step, _, _, x, y = step_of(diloco(paddle.momentum(0.05, 0.9), K, 2), 2)
    _, after, _ = step(params, half, x[1], y[1])
    assert after.count == 2


def test_one_worker_needs_no_axis():
    tx = diloco(paddle.sgd(0.5), 2, 1, outer=paddle.sgd(1.0))
    p, state = jnp.zeros(2), tx.init(jnp.zeros(2))
    for expected in (0.0, 1.0):
        updates, state = tx.update(-jnp.ones(2), state, p)
        p = paddle.apply_updates(p, updates)
        np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, 2, 2), "inner: "),
        ((paddle.sgd(0.1), 0, 2), "k: found 0"),
        ((paddle.sgd(0.1), 2, 0), "num_trainers: found 0"),
        ((paddle.sgd(0.1), 2, 2, 0.7), "outer: found 0.7, expected a transformation"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        diloco(*arguments)


def test_wrong_use_says_what_is_wrong():
    params, x, y = problem()
    with pytest.raises(ValueError, match="num_trainers: found 3, expected 4, the size of the axis 'data'"):
        step, p, state = make_step(loss_of, diloco(paddle.sgd(0.1), 2, 3), mesh_of(), params)
        step(p, state, x[0], y[0])
    tx = diloco(paddle.sgd(0.1), 2, 2)
    with pytest.raises(RuntimeError, match="expected it inside jax.shard_map over the axis 'data'"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="diloco's state: found tuple"):
        tx.update(params, (), params)
