"""The Paddle-style object: what a loop with it does, step for step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import INTS, TWO, row
from refused_calls import calls, good, lr, unharmed
from regression import X, Y, mse, tree, values

import paddlejax as paddle

W = paddle.Parameter(TWO, "w")

MAKERS = {
    "SGD": lambda p: paddle.optimizer.SGD(0.1, p, weight_decay=0.1),
    "Momentum": lambda p: paddle.optimizer.Momentum(0.1, 0.9, p, grad_clip=paddle.nn.ClipGradByNorm(0.5)),
    "Adam": lambda p: paddle.optimizer.Adam(0.1, parameters=p, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5)),
    "Lamb": lambda p: paddle.optimizer.Lamb(0.1, parameters=p),
    "ASGD": lambda p: paddle.optimizer.ASGD(0.1, 3, p),
    "Lars": lambda p: paddle.incubate.optimizer.LarsMomentumOptimizer(0.1, 0.9, parameter_list=p),
    "fluid.Ftrl": lambda p: paddle.fluid.optimizer.Ftrl(0.1, l1=0.01, parameter_list=p),
}
CHAINS = {
    "SGD": paddle.chain(paddle.l2_decay(0.1), paddle.sgd(0.1)),
    "Momentum": paddle.chain(paddle.clip_by_norm(0.5), paddle.momentum(0.1, 0.9)),
    "Adam": paddle.chain(paddle.clip_by_global_norm(0.5), paddle.adam(0.1)),
    "Lamb": paddle.lamb(0.1),
    "ASGD": paddle.asgd(0.1, 3),
    "Lars": paddle.lars_momentum(0.1, 0.9),
    "fluid.Ftrl": paddle.ftrl(0.1, l1=0.01, guard=0.0),
}
every_optimizer = pytest.mark.parametrize("name", MAKERS)


@every_optimizer
def test_step_minimize_and_functions_are_one_optimizer(name):
    stepped, fused, plain = paddle.parameters(tree()), paddle.parameters(tree()), tree()
    a, b, tx = MAKERS[name](stepped), MAKERS[name](fused), CHAINS[name]
    state, losses = tx.init(plain), []
    for _ in range(5):
        loss = mse(stepped, X, Y)
        loss.backward()
        a.step()
        a.clear_grad()
        other = mse(fused, X, Y)
        ops, pairs = b.minimize(other)
        assert ops == [] and [p.name for p, _ in pairs] == ["b", "w"]
        b.clear_grad()
        value, grads = jax.value_and_grad(mse.function)(plain, X, Y)
        updates, state = tx.update(grads, state, plain)
        plain = paddle.apply_updates(plain, updates)
        losses.append([float(loss), float(other), float(value)])
    np.testing.assert_allclose(losses, np.asarray(losses)[:, :1] * np.ones(3), rtol=1e-5)
    chex.assert_trees_all_close(values(stepped), values(fused), rtol=0, atol=1e-6)
    chex.assert_trees_all_close(values(stepped), plain, rtol=0, atol=1e-6)
    chex.assert_trees_all_close(a.state_dict(), b.state_dict(), rtol=0, atol=1e-5)


@every_optimizer
def test_one_program_whatever_the_rate(name):
    params = paddle.parameters(tree())
    opt = MAKERS[name](params)

    @paddle.loss
    @chex.assert_max_traces(n=1)
    def counted(params, x, y):
        return mse.function(params, x, y)

    for i in range(10):
        opt.set_lr(0.1 / (i + 1))
        opt.minimize(counted(params, X, Y))
        opt.clear_grad()
    for i in range(10):
        mse(params, X, Y).backward()
        opt.set_lr(0.1 / (i + 1))
        opt.step()
        opt.clear_grad()
    (plan,) = opt.compiled_steps
    (fused,) = opt._steps.fused.values()
    assert plan.step._cache_size() == 1 and fused._cache_size() == 1


def test_a_scheduler_never_compiles_again():
    params = paddle.parameters(tree())
    scheduler = paddle.optimizer.lr.ExponentialDecay(0.1, gamma=0.95)
    opt = paddle.optimizer.Adam(scheduler, parameters=params)
    rates = []

    @paddle.loss
    @chex.assert_max_traces(n=1)
    def counted(params, x, y):
        return mse.function(params, x, y)

    for _ in range(100):
        opt.minimize(counted(params, X, Y))
        opt.clear_grad()
        rates.append(opt.get_lr())
        scheduler.step()
    np.testing.assert_allclose(rates, 0.1 * 0.95 ** np.arange(100), rtol=1e-12)
    (fused,) = opt._steps.fused.values()
    assert fused._cache_size() == 1


def test_parameters_and_slots_are_donated_but_what_was_handed_out_survives():
    given = tree()
    params = paddle.parameters(given)
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    opt.minimize(mse(params, X, Y))
    before, moment = params["w"].peek(), opt._steps.groups[0].state.slots["moment1"][0]
    kept = params["b"].value
    snapshot, copies = np.array(kept), opt.state_dict()
    numbers = {k: np.array(v) for k, v in copies.items()}
    opt.minimize(mse(params, X, Y))
    assert before.is_deleted() and moment.is_deleted()
    np.testing.assert_array_equal(kept, snapshot)
    chex.assert_trees_all_equal(copies, numbers)
    np.testing.assert_array_equal(given["w"], np.ones((3, 2)))


def test_cleared_gradients_still_drive_momentum_and_dropped_ones_do_not():
    p = paddle.Parameter(jnp.zeros(1), "p")
    opt = paddle.optimizer.Momentum(1.0, 0.5, [p])
    p.grad = jnp.ones(1)
    opt.step()
    opt.clear_grad()
    opt.step()
    np.testing.assert_allclose(p.numpy(), [-1.5])
    opt.clear_grad(set_to_zero=False)
    opt.step()
    np.testing.assert_allclose(p.numpy(), [-1.5])


def test_which_parameters_to_minimize_over():
    for chosen in ({"parameters": ["w"]}, {"no_grad_set": {"b"}}, {"no_grad_set": "b"}):
        params = paddle.parameters(tree())
        opt = paddle.optimizer.SGD(0.1, params)
        _, pairs = opt.minimize(mse(params, X, Y), **chosen)
        assert [p.name for p, _ in pairs] == ["w"]
        np.testing.assert_array_equal(params["b"].numpy(), [0, 0])
        assert not np.array_equal(params["w"].numpy(), np.ones((3, 2)))
    params = paddle.parameters(tree())
    _, pairs = paddle.optimizer.SGD(0.1, params).minimize(mse(params, X, Y), parameters=[params["b"]])
    assert pairs[0][0] is params["b"]


def test_backward_then_apply():
    params, other = paddle.parameters(tree()), paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, params)
    pairs = opt.backward(mse(params, X, Y))
    assert opt.apply_gradients([(p, g * 2) for p, g in pairs]) == []
    twin = paddle.optimizer.SGD(0.2, other)
    loss = mse(other, X, Y)
    twin.apply_optimize(loss, None, twin.backward(loss))
    chex.assert_trees_all_close(values(params), values(other), rtol=1e-6)


def test_groups_keep_what_they_do_not_mention():
    """Paddle erases ParamAttr settings, ignores a None decay, refuses an int decay and rewrites the dicts."""
    make = lambda n, **kw: paddle.Parameter(jnp.ones(1), n, **kw)  # noqa: E731
    a, b, c = make("a", learning_rate=0.5), make("b", regularizer=paddle.regularizer.L1Decay(0.5)), make("c")
    groups = [{"params": [a], "weight_decay": None}, {"params": b}, {"params": [c], "weight_decay": 1}]
    as_given = [dict(g) for g in groups]
    opt = paddle.optimizer.SGD(0.1, groups, weight_decay=0.25)
    assert groups == as_given
    for p in (a, b, c):
        p.grad = jnp.zeros(1)
    opt.step()
    np.testing.assert_allclose([float(p) for p in (a, b, c)], [1.0, 1 - 0.05, 1 - 0.1], rtol=1e-6)
    for p in (a, b, c):
        p.set_value(np.ones(1))
        p.grad = jnp.ones(1)
    paddle.optimizer.SGD(0.1, groups).step()
    np.testing.assert_allclose(float(a), 1 - 0.05)


def test_own_regularizer_and_own_clip():
    p = paddle.Parameter(jnp.ones(1), "p", regularizer=paddle.regularizer.L2Decay(0.0), need_clip=False)
    q = paddle.Parameter(jnp.ones(1), "q")
    opt = paddle.optimizer.SGD(1.0, [p, q], weight_decay=0.5, grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))
    p.grad, q.grad = jnp.full(1, 9.0), jnp.full(1, 2.0)
    opt.step()
    np.testing.assert_allclose([float(p), float(q)], [1 - 9, 1 - (1 + 0.5)])
    np.testing.assert_array_equal(q.grad, [2.0])  # Paddle's global clip overwrites it


def test_a_rate_may_be_an_int_or_an_array():
    for rate in (1, np.float32(1), jnp.asarray(1.0), np.array(1)):
        p = paddle.Parameter(jnp.zeros(1))
        p.grad = jnp.ones(1)
        opt = paddle.optimizer.SGD(rate, [p])
        opt.step()
        assert float(p) == -1.0 and opt.get_lr() == 1.0
        opt.set_lr(np.float32(0.5))
        assert opt.get_lr() == 0.5


def test_a_scheduler_is_saved_restored_and_replaced():
    def make():
        scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=2)
        params = paddle.parameters(tree())
        return params, scheduler, paddle.optimizer.Momentum(scheduler, parameters=params)

    def run(params, scheduler, opt, steps):
        for _ in range(steps):
            opt.minimize(mse(params, X, Y))
            opt.clear_grad()
            scheduler.step()

    whole, half, rest = make(), make(), make()
    run(*whole, 6)
    run(*half, 3)
    for name, p in rest[0].items():
        p.set_value(half[0][name])
    rest[2].set_state_dict(half[2].state_dict())
    assert rest[1].last_epoch == 3
    run(*rest, 3)
    chex.assert_trees_all_equal(values(whole[0]), values(rest[0]))
    opt = whole[2]
    opt.set_lr_scheduler(paddle.optimizer.lr.ExponentialDecay(0.5, 0.9))
    assert opt.get_lr() == 0.5


def test_describe_and_one_norm_across_groups():
    make = lambda n: paddle.Parameter(jnp.zeros(1), n)  # noqa: E731
    for across, want in ((False, [-1.0, -1.0]), (True, [-0.6, -0.8])):
        a, b = make("a"), make("b")
        clip = paddle.nn.ClipGradByGlobalNorm(1.0, across_groups=across)
        opt = paddle.optimizer.SGD(1.0, [{"params": [a]}, {"params": [b]}], grad_clip=clip)
        a.grad, b.grad = jnp.full(1, 3.0), jnp.full(1, 4.0)
        opt.step()
        np.testing.assert_allclose([float(a), float(b)], want, rtol=1e-6)
        numbers = [line.split("[")[1][0] for line in opt.describe().split("\n")[1:]]
        assert numbers == (["1", "1"] if across else ["1", "2"])
    b.stop_gradient = True
    assert opt.describe().split("\n")[2].endswith("frozen")


# ------------------------------------------------------------------------------------------ errors


def w_of(o):
    return o.parameters[0]


CALLS = [
    row("program", lambda o: o.minimize(good(*o.parameters), "program"), TypeError, "startup_program",
        "'program'", "None"),
    row("backward-program", lambda o: o.backward(good(*o.parameters), 1), TypeError, "startup_program",
        "found 1", "None"),
    row("optimize-program", lambda o: o.apply_optimize(None, 1, []), TypeError, "startup_program", "found 1",
        "None"),
    row("callbacks", lambda o: o.backward(good(*o.parameters), callbacks=[3]), TypeError, "callbacks",
        "None"),
    row("parameters-name", lambda o: o.minimize(good(*o.parameters), None, ["v"]), ValueError, "'v'", "w, b"),
    row("parameters-str", lambda o: o.minimize(good(*o.parameters), None, "v"), ValueError, "'v'", "w, b"),
    row("parameters-foreign", lambda o: o.minimize(good(*o.parameters), None, [W]), ValueError, "'w'",
        "w, b"),
    row("parameters-type", lambda o: o.minimize(good(*o.parameters), None, 3), TypeError, "parameter", "3"),
    row("no_grad_set-name", lambda o: o.minimize(good(*o.parameters), None, None, {"v"}), ValueError,
        "no_grad_set", "v"),
    row("no_grad_set-type", lambda o: o.minimize(good(*o.parameters), None, None, 3), TypeError,
        "no_grad_set", "3"),
    row("foreign", lambda o: o.apply_gradients([(W, TWO)]), ValueError, "params_grads", "w", "not one of"),
    row("twice", lambda o: o.apply_gradients([(w_of(o), TWO)] * 2), ValueError, "params_grads", "w", "twice"),
    row("swapped", lambda o: o.apply_gradients([(TWO, w_of(o))]), TypeError, "params_grads",
        r"\(Parameter, gradient\)"),
    row("bare", lambda o: o.apply_gradients([w_of(o)]), TypeError, "params_grads",
        r"\(Parameter, gradient\)"),
    row("triple", lambda o: o.apply_gradients([(w_of(o), TWO, 1)]), TypeError, "params_grads",
        r"\(Parameter"),
    row("names", lambda o: o.apply_gradients([("w", TWO)]), TypeError, "params_grads", "'w'"),
    row("no-pairs", lambda o: o.apply_gradients(None), TypeError, "params_grads", "None"),
    row("pair-shape", lambda o: o.apply_gradients([(w_of(o), jnp.ones(3))]), ValueError, "w", r"\(3,\)",
        r"\(2,\)"),
    row("pair-int", lambda o: o.apply_gradients([(w_of(o), INTS)]), TypeError, "w", "int32"),
    row("pair-after-good", lambda o: o.apply_gradients([(w_of(o), TWO), (W, TWO)]), ValueError, "not one of"),
    row("scheduler-float", lambda o: o.set_lr_scheduler(0.1), TypeError, "set_lr_scheduler", "float",
        "LRScheduler"),
    row("scheduler-class", lambda o: o.set_lr_scheduler(lr.NoamDecay), TypeError, "set_lr_scheduler",
        "LRScheduler"),
]  # fmt: skip
RATE = [
    row("str", lambda o: o.set_lr("0.1"), TypeError, "set_lr", "'0.1'"),
    row("none", lambda o: o.set_lr(None), TypeError, "set_lr", "None"),
    row("shape", lambda o: o.set_lr(TWO), TypeError, "set_lr", r"\(2,\)"),
    row("complex", lambda o: o.set_lr(1j), TypeError, "set_lr", "1j"),
    row("scheduler", lambda o: o.set_lr(lr.StepDecay(0.1, 3)), TypeError, "set_lr", "StepDecay"),
]
SCHEDULED = [
    row(
        "set_lr",
        lambda o: o.set_lr(0.1),
        RuntimeError,
        "set_lr",
        "StepDecay|PolynomialDecay",
        "set_lr_scheduler",
    ),
    row("set_lr-str", lambda o: o.set_lr("x"), RuntimeError, "set_lr"),
]


@calls(**{"adam": [*CALLS, *RATE], "momentum-scheduled": SCHEDULED, "fluid-scheduled": [*CALLS, *SCHEDULED]})
def test_refused(name, call, classes, words):
    unharmed(name, call, classes, words)
