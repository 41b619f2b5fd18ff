"""The Paddle-style object: what a loop with it does, step for step."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import paddlejax as paddle

rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(32, 3)), jnp.float32)
Y = jnp.asarray(rng.normal(size=(32, 2)), jnp.float32)


def tree():
    return {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}


@paddle.loss
def mse(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"][None, :] - y) ** 2)


def values(params):
    return {k: p.numpy() for k, p in params.items()}


def assert_equal(a, b, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        np.testing.assert_allclose(
            np.asarray(a[k]), np.asarray(b[k]), **{"rtol": 0, "atol": 0, **tolerance}, err_msg=k
        )


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
    assert_equal(values(stepped), values(fused), atol=1e-6)
    assert_equal(values(stepped), plain, atol=1e-6)
    assert_equal(a.state_dict(), b.state_dict(), atol=1e-5)


@every_optimizer
def test_one_program_whatever_the_rate(name):
    params = paddle.parameters(tree())
    opt = MAKERS[name](params)
    traces = []

    @paddle.loss
    def counted(params, x, y):
        traces.append(1)
        return mse.function(params, x, y)

    for i in range(10):
        opt.set_lr(0.1 / (i + 1))
        opt.minimize(counted(params, X, Y))
        opt.clear_grad()
    assert len(traces) == 1
    for i in range(10):
        mse(params, X, Y).backward()
        opt.set_lr(0.1 / (i + 1))
        opt.step()
        opt.clear_grad()
    (plan,) = opt._plans.values()
    assert plan.step._cache_size() == 1 and plan.minimize._cache_size() == 1


def test_a_scheduler_never_compiles_again():
    params = paddle.parameters(tree())
    scheduler = paddle.optimizer.lr.ExponentialDecay(0.1, gamma=0.95)
    opt = paddle.optimizer.Adam(scheduler, parameters=params)
    rates = []
    for _ in range(100):
        opt.minimize(mse(params, X, Y))
        opt.clear_grad()
        rates.append(opt.get_lr())
        scheduler.step()
    np.testing.assert_allclose(rates, 0.1 * 0.95 ** np.arange(100), rtol=1e-12)
    (plan,) = opt._plans.values()
    assert plan.minimize._cache_size() == 1


def test_parameters_and_slots_are_donated_but_what_was_handed_out_survives():
    given = tree()
    params = paddle.parameters(given)
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    opt.minimize(mse(params, X, Y))
    before, moment = params["w"]._value, opt._cohorts[0].state.slots["moment1"][0]
    kept = params["b"].value
    snapshot, copies = np.array(kept), opt.state_dict()
    numbers = {k: np.array(v) for k, v in copies.items()}
    opt.minimize(mse(params, X, Y))
    assert before.is_deleted() and moment.is_deleted()
    np.testing.assert_array_equal(kept, snapshot)
    assert_equal(copies, numbers)
    np.testing.assert_array_equal(given["w"], np.ones((3, 2)))


def test_gradients_add_up_until_cleared():
    params = paddle.parameters(tree())
    mse(params, X, Y).backward()
    once = np.asarray(params["w"].grad)
    mse(params, X, Y).backward()
    np.testing.assert_allclose(params["w"].grad, 2 * once, rtol=1e-6)
    opt = paddle.optimizer.SGD(1.0, params)
    opt.minimize(mse(params, X, Y))  # joins the two that are there
    np.testing.assert_allclose(params["w"].numpy(), 1 - 3 * once, rtol=1e-5)
    opt.clear_grad(False)
    assert params["w"].grad is None
    assert opt.backward(mse(params, X, Y))[0][0] is params["b"]


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
    assert_equal(fresh.state_dict(), opt.state_dict())
    assert len(fresh._cohorts) == 2  # b and c agree again


def test_alternating_halves_compile_twice():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    for i in range(6):
        name = "wb"[i % 2]
        params[name].grad, params["bw"[i % 2]].grad = jnp.ones(params[name].shape), None
        opt.step()
    assert [plan.step._cache_size() for plan in opt._plans.values()] == [1, 1]


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
    assert_equal(values(params), values(other), rtol=1e-6)


def test_a_plain_function_is_a_loss_too():
    params, other = paddle.parameters(tree()), paddle.parameters(tree())
    a, b = paddle.optimizer.Adam(0.1, parameters=params), paddle.optimizer.Adam(0.1, parameters=other)
    a.minimize(lambda p: mse.function(p, X, Y))
    b.minimize(mse(other, X, Y))
    assert_equal(values(params), values(other), rtol=1e-5)


def test_a_bare_tree_is_wrapped():
    opt = paddle.optimizer.SGD(0.1, {"layer": [jnp.ones(2), None], "n": jnp.ones(1)})
    assert [p.name for p in jax.tree.leaves(opt.parameters)] == ["layer/0", "n"]
    opt.minimize(lambda p: jnp.sum(p["layer"][0]) + jnp.sum(p["n"]))
    np.testing.assert_allclose(opt.parameters["n"].numpy(), [0.9])


def test_a_tied_parameter_gets_both_gradients():
    w = paddle.Parameter(jnp.array([3.0]), "w")

    @paddle.loss
    def product(a, b):
        return jnp.sum(a * b)

    product(w, w).backward()
    np.testing.assert_allclose(w.grad, [6.0])


def test_losses_are_lazy_and_remember_their_value():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, params)
    loss = mse(params, X, Y)
    assert "not computed" in repr(loss)
    opt.minimize(loss)
    want = mse.function(tree(), X, Y)
    np.testing.assert_allclose([float(loss), loss.item(), loss.numpy()], want, rtol=1e-6)
    assert mse(params, X, Y).item() < loss.item()

    @paddle.loss(has_aux=True)
    def with_aux(params, x, scale, mode):
        assert mode == "double"
        out = x @ params["w"] * scale
        return jnp.mean(out), {"out": out}

    loss = with_aux(params, X, 2.0, mode="double")
    assert loss.aux["out"].shape == (32, 2)
    loss.backward()
    assert params["w"].grad is not None and with_aux(params, X, 3.0, mode="double").call == loss.call


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


def test_state_of_another_counter_and_with_a_name():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params, name="opt")
    opt.minimize(mse(params, X, Y))
    saved = opt.state_dict()
    assert "w_opt_moment1_0" in saved
    other = paddle.optimizer.Adam(0.1, parameters=paddle.parameters(tree()), name="opt")
    other.set_state_dict({k[:-1] + "1": np.asarray(v) for k, v in saved.items()})
    assert_equal(other.state_dict(), saved)
    empty = paddle.optimizer.Adam(0.1, parameters=params)
    empty.set_state_dict({})
    assert empty.state_dict() == {}


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
    assert_equal(values(whole[0]), values(rest[0]))
    opt = whole[2]
    opt.set_lr_scheduler(paddle.optimizer.lr.ExponentialDecay(0.5, 0.9))
    assert opt.get_lr() == 0.5


def test_parameters_behave_like_their_arrays():
    p = paddle.Parameter(jnp.array([1.0, 2.0, 3.0]), "p")
    np.testing.assert_allclose([p[1], p[-1]], [2, 3])
    np.testing.assert_allclose(2 * p - p / 2 + (-p) ** 2, [2.5, 7.0, 13.5])
    np.testing.assert_allclose(np.asarray(p) @ np.ones(3), 6.0)
    assert list(map(float, p)) == [1, 2, 3] and len(p) == 3 and p == p and p in [p] and float(abs(p)[0]) == 1
    np.testing.assert_allclose(jnp.sum(jnp.asarray(p)), 6.0)
    attr = paddle.ParamAttr(name="q", trainable=False, need_clip=False)
    q = paddle.Parameter(p, attr=attr)
    assert (q.name, q.trainable, q.need_clip) == ("q", False, False)
    q.set_value(np.zeros(3))
    np.testing.assert_allclose(p.numpy(), [1, 2, 3])


def test_double_precision_is_not_truncated():
    with jax.enable_x64(True):
        p = paddle.Parameter(np.zeros(1), "p")
        opt = paddle.optimizer.SGD(0.1, [p])
        p.grad = np.ones(1)
        opt.step()
        assert p.numpy()[0] == -0.1


# ------------------------------------------------------------------------------------------ fluid


def test_the_rate_of_the_larsmomentum_page():
    """Boundaries 2, 4, 6, 8: 0.2 before the first minimize, then what each minimize used."""
    p = paddle.Parameter(jnp.ones(1), "p")
    rates = paddle.fluid.dygraph.PiecewiseDecay([2, 4, 6, 8], [0.2, 0.4, 0.6, 0.8, 1.0], 0)
    opt = paddle.fluid.optimizer.Adam(rates, parameter_list=[p])
    assert opt.current_step_lr() == pytest.approx(0.2)
    found = []
    for _ in range(12):
        opt.minimize(lambda p: jnp.sum(p[0]))
        found += [opt.current_step_lr(), opt.current_step_lr()]
        opt.clear_gradients()
    want = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert found[::2] == pytest.approx(want) and found[1::2] == found[::2]
    saved = opt.state_dict()
    assert saved["LR_Scheduler"] == {"step_num": 12} and saved["global_step"].tolist() == [12]
    plain = paddle.fluid.optimizer.Adam(0.001, parameter_list=[p])
    assert plain.current_step_lr() == 0.001


def test_a_schedule_advances_even_when_nothing_is_stepped():
    p = paddle.Parameter(jnp.ones(1), "p")
    rates = paddle.fluid.dygraph.PiecewiseDecay([1], [0.2, 0.4], 0)
    opt = paddle.fluid.optimizer.SGD(rates, parameter_list=[p])
    opt.step()
    opt.step()
    assert opt.current_step_lr() == pytest.approx(0.4)


def test_a_clip_given_to_minimize_replaces_the_constructors():
    p = paddle.Parameter(jnp.zeros(1), "p")
    clip = paddle.fluid.clip.GradientClipByValue
    opt = paddle.fluid.optimizer.SGD(1.0, parameter_list=[p], grad_clip=clip(0.5))
    loss = lambda p: 3 * jnp.sum(p[0])  # noqa: E731
    for given, want in ((None, -0.5), (clip(0.25), -0.75)):
        opt.minimize(loss, grad_clip=given)
        opt.clear_gradients()
        assert float(p) == want


def test_documented_examples_of_1x():
    """Every class and alias of the 1.x documents, with the arguments of its page."""
    fluid = paddle.fluid.optimizer
    given = {
        "Momentum": (0.001, 0.9),
        "LarsMomentum": (0.001, 0.9),
        "Adam": (),
        "Adadelta": (0.0003, 1e-6, 0.95),
    }
    given |= dict.fromkeys(["SGD", "Adagrad", "DecayedAdagrad", "Adamax", "RMSProp", "Ftrl", "Lamb"], (0.1,))
    for cls, args in given.items():
        assert getattr(fluid, cls) is getattr(fluid, cls + "Optimizer")
        params = paddle.parameters(tree())
        decay = paddle.fluid.regularizer.L2DecayRegularizer(regularization_coeff=0.1)
        opt = getattr(fluid, cls)(*args, parameter_list=params, regularization=decay)
        opt.minimize(mse(params, X, Y))
        opt.clear_gradients()
        assert all(np.isfinite(p.numpy()).all() for p in params.values())
        again = getattr(fluid, cls)(*args, parameter_list=params)
        again.set_dict(opt.state_dict())
        assert_equal(again.state_dict(), opt.state_dict())


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


def test_a_parameter_that_a_loss_was_not_given_is_refused():
    w, b = paddle.Parameter(jnp.ones(3), "w"), paddle.Parameter(jnp.ones(3), "b")
    for body in (lambda w: w * b, lambda w: w + b[0], lambda w: w * b.value, lambda w: w * jnp.asarray(b)):
        loss = paddle.loss(lambda w, body=body: jnp.sum(body(w)))
        with pytest.raises(RuntimeError, match="found Parameter b inside the loss function"):
            loss(w).backward()
    np.testing.assert_array_equal(b * 2, np.full(3, 2.0))  # outside it is what it was
    with pytest.raises(TypeError, match=r"found an assignment such as \+="):
        w += 1


def test_parameters_are_copied_and_pickled_with_their_cleared_gradients():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, params)
    opt.minimize(mse(params, X, Y))
    opt.clear_grad()
    for other in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        np.testing.assert_array_equal(other["w"].grad, np.zeros((3, 2)))
        mse(other, X, Y).backward()


def test_a_schedule_that_does_not_load_stays_where_it_was():
    lr = paddle.optimizer.lr
    warmup = lr.LinearWarmup(lr.ExponentialDecay(0.4, 0.5), 4, 0.0, 0.4)
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(warmup, parameters=params)
    opt.minimize(mse(params, X, Y))
    bad = opt.state_dict() | {"LR_Scheduler": {"last_epoch": 7, "last_lr": 9.0, "LinearWarmup_LR": {}}}
    with pytest.raises(RuntimeError):
        opt.set_state_dict(bad)
    assert (warmup.last_epoch, opt.get_lr()) == (0, 0.0)
    step = lr.StepDecay(0.1, 2)
    with pytest.raises(TypeError):
        step.step("a")
    step.step()
    assert step.last_epoch == 1


def test_the_loss_function_itself_is_not_a_loss():
    params = paddle.parameters(tree())
    with pytest.raises(AssertionError, match=r"found the function mse itself, expected mse\(...\)"):
        paddle.optimizer.SGD(0.1, params).minimize(mse)
