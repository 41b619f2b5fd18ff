"""Objects inside a trace: nothing is read, nothing is changed, and the error says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regression import X, Y, mse, tree, values

import paddlejax as paddle
from paddlejax import fluid

STEP = "found a call inside jax.jit, grad, vmap, scan .* (call it outside|jax.grad|pass |assign it outside)"
READ = r"found a call inside jax.jit, grad, vmap, scan .* pass (values\(params\)|it to the function)"


def made():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    opt.minimize(mse(params, X, Y))
    mse(params, X, Y).backward()
    return params, opt


def traced(call):
    """The call inside each kind of trace."""
    return {
        "jit": lambda: jax.jit(lambda x: (call(x), x)[1])(X),
        "grad": lambda: jax.grad(lambda x: (call(x), jnp.sum(x))[1])(X),
        "vmap": lambda: jax.vmap(lambda x: (call(x[None]), x)[1])(X),
        "scan": lambda: jax.lax.scan(lambda c, x: (c, (call(x), x)[1]), 0.0, X[None]),
        "eval_shape": lambda: jax.eval_shape(lambda x: (call(x), x)[1], X),
        "checkpoint": lambda: jax.grad(jax.checkpoint(lambda x: (call(x), jnp.sum(x))[1]))(X),
    }


CHANGES = {
    "minimize": lambda p, o, x: o.minimize(mse(p, x, Y[: len(x)])),
    "minimize a function": lambda p, o, x: o.minimize(lambda v: jnp.mean((x @ v["w"]) ** 2)),
    "step": lambda p, o, x: o.step(),
    "apply_gradients": lambda p, o, x: o.apply_gradients([(p["w"], p["w"].grad)]),
    "backward": lambda p, o, x: mse(p, x, Y[: len(x)]).backward(),
    "optimizer.backward": lambda p, o, x: o.backward(mse(p, x, Y[: len(x)])),
    "set_value": lambda p, o, x: p["w"].set_value(jnp.zeros((3, 2)) + jnp.sum(x)),
    "value": lambda p, o, x: setattr(p["w"], "value", jnp.zeros((3, 2)) + jnp.sum(x)),
    "grad": lambda p, o, x: setattr(p["w"], "grad", jnp.zeros((3, 2)) + jnp.sum(x)),
    "Parameter": lambda p, o, x: paddle.Parameter(x),
    "set_state_dict": lambda p, o, x: o.set_state_dict({}),
    "state_dict": lambda p, o, x: o.state_dict(),
    "GradScaler.step": lambda p, o, x: paddle.amp.GradScaler().step(o),
    "GradScaler.minimize": lambda p, o, x: paddle.amp.GradScaler().minimize(o, mse(p, x, Y[: len(x)])),
    "GradScaler.update": lambda p, o, x: paddle.amp.GradScaler().update(),
    "LookAhead": lambda p, o, x: paddle.incubate.LookAhead(o).step(),
    "GradientMerge": lambda p, o, x: fluid.optimizer.GradientMergeOptimizer(o, 2).step(),
    "EMA.update": lambda p, o, x: fluid.optimizer.ExponentialMovingAverage(0.9, parameter_list=p).update(),
    "a hyperparameter": lambda p, o, x: setattr(o, "_beta1", jnp.sum(x)),
    "clip_grad_norm_": lambda p, o, x: paddle.nn.utils.clip_grad_norm_(list(p.values()), 1.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_and_nothing_is_lost(name):
    params, opt = made()
    before, state = values(params), opt.state_dict()
    for kind, run in traced(lambda x: CHANGES[name](params, opt, x)).items():
        with pytest.raises(RuntimeError, match=STEP):
            run()
            pytest.fail(kind)
    jax.tree.map(np.testing.assert_array_equal, values(params), before)
    jax.tree.map(np.testing.assert_array_equal, opt.state_dict(), state)
    opt.step()
    assert all(np.isfinite(p.numpy()).all() for p in params.values())


READS = {
    "value": lambda p, o: p["w"].value,
    "values": lambda p, o: paddle.values(p),
    "numpy": lambda p, o: p["w"].numpy(),
    "asarray": lambda p, o: np.asarray(p["w"]),
    "operators": lambda p, o: p["w"] * 2,
    "reflected": lambda p, o: 2 - p["w"],
    "minus": lambda p, o: -p["w"],
    "matmul": lambda p, o: jnp.ones((1, 3)) @ p["w"],
    "index": lambda p, o: p["w"][0],
    "grad": lambda p, o: p["w"].grad,
    "iterate": lambda p, o: list(p["w"]),
    "the loss": lambda p, o: float(mse(p, X, Y)),
}


@pytest.mark.parametrize("name", READS)
def test_reading_is_refused(name):
    params, opt = made()
    for run in traced(lambda x: READS[name](params, opt)).values():
        with pytest.raises(RuntimeError, match=READ):
            run()


def test_what_a_trace_may_do():
    params, opt = made()
    jitted = jax.jit(lambda v, x: x @ v["w"])
    first = jitted(paddle.values(params), X)
    opt.step()
    assert not np.array_equal(jitted(paddle.values(params), X), first)
    shapes = jax.jit(lambda x: x * (params["w"].size + params["w"].ndim + len(params["w"])))(1.0)
    assert shapes == 11.0
    seen = []
    jax.jit(lambda x: (jax.debug.callback(lambda: seen.append(params["w"].numpy())), x)[1])(1.0)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0], params["w"].numpy())
    with jax.disable_jit():
        jax.jit(lambda: opt.step())()


def test_a_module_that_is_imported_inside_a_trace():
    import importlib

    from paddlejax import tracing

    jax.jit(lambda x: (importlib.reload(tracing), x)[1])(1.0)
    assert tracing.is_outside()
    jax.jit(lambda x: (pytest.raises(RuntimeError, tracing.check_outside, "it"), x)[1])(1.0)


@pytest.mark.parametrize("name", ["clip_norm", "coeff", "_grad_clip", "set_lr", "set_lr_scheduler", "step"])
def test_a_setting_is_not_changed_inside_a_trace(name):
    p = paddle.Parameter(jnp.ones(2), "w")
    clip, decay = paddle.nn.ClipGradByNorm(100.0), paddle.regularizer.L2Decay(0.0)
    schedule = paddle.optimizer.lr.StepDecay(0.1, 1)
    opt = paddle.optimizer.SGD(0.5, [p], weight_decay=decay, grad_clip=clip)
    change = {
        "clip_norm": lambda x: setattr(clip, "clip_norm", x),
        "coeff": lambda x: setattr(decay, "coeff", x),
        "_grad_clip": lambda x: setattr(opt, "_grad_clip", paddle.nn.ClipGradByNorm(x)),
        "set_lr": opt.set_lr,
        "set_lr_scheduler": lambda x: opt.set_lr_scheduler(schedule),
        "step": lambda x: schedule.step(),
    }[name]
    with pytest.raises(RuntimeError, match="found a call inside jax.jit, grad"):
        jax.jit(change)(1e-3)
    p.grad = jnp.ones(2)
    opt.step()
    assert p.numpy().tolist() == [0.5, 0.5] and schedule() == 0.1
