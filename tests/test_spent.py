"""`minimize` in a loop: the gradients that it computed are spent by its step."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax import fluid
from paddlejax.distributed import DGCMomentumOptimizer, PipelineOptimizer

SGD = paddle.optimizer.SGD


@paddle.loss
def total(p, x=1.0):
    """Its gradient with respect to w is x, always."""
    return jnp.sum(p["w"]) * x


def cells(*names):
    return paddle.parameters({name: jnp.ones(1) for name in names or ("w",)})


def number(p):
    return round(float(p.numpy().ravel()[0]), 4)


def walk(opt, params, minimize=None, steps=5, **kwargs):
    """Where w is after each of these steps."""
    minimize = minimize or (lambda: opt.minimize(total(params, **kwargs)))
    return [(minimize(), number(params["w"]))[1] for _ in range(steps)]


FIVE = [0.9, 0.8, 0.7, 0.6, 0.5]  # of 1.8.5 too, static and dygraph


def scaled(params, how):
    """A way to minimize with a GradScaler."""
    opt, scaler = SGD(0.1, params), paddle.amp.GradScaler(init_loss_scaling=4.0)

    def minimize():
        loss = total(params)
        if how == "scale in minimize":
            return scaler.minimize(opt, loss)
        loss = scaler.scale(loss)
        if how == "backward first":
            loss.backward()
        return scaler.minimize(opt, loss)

    return opt, minimize


def piped(params):
    opt = PipelineOptimizer(
        SGD(0.1, [{"w": params["w"]}, {"v": paddle.Parameter(jnp.ones(1), "v")}]),
        [lambda p, x: p["w"][None] * x, lambda p, x, y: jnp.sum(x + 0 * p["v"][None])],
        num_microbatches=1,
    )
    one = jnp.ones((1, 1))
    return opt, lambda: opt.minimize(opt.loss(one, one))


def both(make):
    """A maker of (optimizer, None), by a maker of the optimizer."""
    return lambda params: (make(params), None)


WAYS = {
    "plain": both(lambda p: SGD(0.1, p)),
    "packed": both(lambda p: SGD(0.1, p, packed=True)),
    "fluid": both(lambda p: fluid.optimizer.SGD(0.1, parameter_list=p)),
    "LookAhead": both(lambda p: paddle.incubate.LookAhead(SGD(0.1, p), alpha=1.0, k=2)),
    "Recompute": both(lambda p: fluid.optimizer.RecomputeOptimizer(SGD(0.1, p))),
    "GradientMerge": both(lambda p: fluid.optimizer.GradientMergeOptimizer(SGD(0.1, p), k_steps=1)),
    "GradScaler, scale in minimize": lambda p: scaled(p, "scale in minimize"),
    "GradScaler, scaled": lambda p: scaled(p, "scaled"),
    "GradScaler, backward first": lambda p: scaled(p, "backward first"),
    "Pipeline": piped,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_loop_of_minimize_needs_no_clear_grad(name):
    params = cells()
    opt, minimize = WAYS[name](params)
    assert walk(opt, params, minimize) == FIVE


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.filterwarnings("ignore:.*one device:UserWarning")
@pytest.mark.filterwarnings("ignore:.*one worker:UserWarning")
def test_dgc_does_so_with_one_worker_and_with_four(workers):
    params = cells()
    mesh = jax.make_mesh((workers,), ("data",), devices=jax.devices()[:workers])
    opt = DGCMomentumOptimizer(0.1, 0.0, 100, parameter_list=params, mesh=mesh)
    fit = paddle.loss(lambda p, x: jnp.mean(x) * jnp.sum(p["w"]))
    assert walk(opt, params, lambda: opt.minimize(fit(params, jnp.ones((4, 1))))) == FIVE


def test_a_gradient_of_an_earlier_backward_is_refused_by_several_workers():
    params = cells()
    opt = DGCMomentumOptimizer(0.1, 0.0, 100, parameter_list=params)
    total(params).backward()
    fit = paddle.loss(lambda p, x: jnp.mean(x) * jnp.sum(p["w"]))
    with pytest.raises(RuntimeError, match="an earlier backward at Parameter w, .* call clear_grad first"):
        opt.minimize(fit(params, jnp.ones((8, 1))))
    opt.clear_grad()
    opt.minimize(fit(params, jnp.ones((8, 1))))
    assert number(params["w"]) == 0.9


def test_gradient_merge_takes_the_mean_of_single_gradients():
    params = cells()
    opt = fluid.optimizer.GradientMergeOptimizer(SGD(0.1, params), k_steps=2)
    assert walk(opt, params, steps=6) == [1.0, 0.9, 0.9, 0.8, 0.8, 0.7]


def test_minimize_of_a_function():
    params = cells()
    opt = SGD(0.1, params)
    assert walk(opt, params, lambda: opt.minimize(lambda p: jnp.sum(p["w"]))) == FIVE


def test_a_skipped_step_spends_its_gradient_too():
    params = cells()
    opt, scaler = SGD(0.1, params), paddle.amp.GradScaler(init_loss_scaling=4.0)
    scaler.minimize(opt, scaler.scale(total(params, jnp.inf)))
    assert number(params["w"]) == 1.0 and np.isinf(params["w"].grad[0])
    scaler.minimize(opt, scaler.scale(total(params)))
    assert number(params["w"]) == 0.9


def test_adam_trains():
    params = cells()
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    square = paddle.loss(lambda p: jnp.sum(p["w"] ** 2))
    for _ in range(60):
        opt.minimize(square(params))
    assert abs(number(params["w"])) < 0.05


def test_a_spent_gradient_can_be_read_and_moves_nothing():
    params = cells()
    opt = paddle.optimizer.Momentum(0.1, parameters=params)
    pairs = opt.minimize(total(params))[1]
    assert params["w"].grad[0] == pairs[0][1][0] == 1.0
    opt.step()
    assert number(params["w"]) == 0.9
    total(params, 2.0).backward()
    assert params["w"].grad[0] == 2.0  # not 3
    opt.clear_grad()
    assert params["w"].grad[0] == 0.0


def test_a_parameter_that_the_next_loss_does_not_reach_reads_none():
    params = cells("w", "b")
    opt = SGD(0.1, params)
    opt.minimize(paddle.loss(lambda w, b: jnp.sum(w + b))(params["w"], params["b"]))
    assert params["b"].grad[0] == 1.0
    opt.minimize(total({"w": params["w"]}))
    assert params["b"].grad is None and number(params["b"]) == 0.9 and number(params["w"]) == 0.8


def test_gradients_of_an_explicit_backward_add_up_and_are_spent_together():
    params = cells()
    opt = SGD(0.1, params)
    total(params).backward()
    total(params, 2.0).backward()
    opt.minimize(total(params, 4.0))
    assert params["w"].grad[0] == 7.0 and number(params["w"]) == 0.3
    opt.minimize(total(params))
    assert number(params["w"]) == 0.2
    loss = total(params)
    loss.backward()
    opt.minimize(loss)
    opt.minimize(total(params))
    assert number(params["w"]) == 0.0


def test_a_fluid_backward_replaces_as_1_8_5_does():
    params = cells()
    opt = fluid.optimizer.SGD(0.1, parameter_list=params)
    total(params, 5.0).backward()
    opt.minimize(total(params))
    assert number(params["w"]) == 0.9
    for _ in range(2):
        pairs = opt.backward(total(params))
        opt.apply_gradients(pairs)
    assert number(params["w"]) == 0.7
    total(params).backward()
    total(params).backward()  # it cannot know whose it is: it adds up
    assert params["w"].grad[0] == 3.0


@pytest.mark.parametrize("chosen", [{"no_grad_set": ["b"]}, {"parameters": ["w"]}])
def test_what_a_minimize_leaves_alone_gets_no_gradient(chosen):
    params = cells("w", "b")
    opt = SGD(0.1, params)
    sum_of = paddle.loss(lambda p: jnp.sum(p["w"] + p["b"]))
    for _ in range(2):
        opt.minimize(sum_of(params), **chosen)
    assert number(params["w"]) == 0.8 and params["b"].grad is None
    opt.step()
    assert number(params["b"]) == 1.0


def test_two_optimizers_minimize_one_loss():
    params = cells("w", "b")
    first, second = SGD(0.1, [params["w"]]), SGD(1.0, [params["b"]])
    sum_of = paddle.loss(lambda p: jnp.sum(p["w"] + 2 * p["b"]))
    for _ in range(2):
        loss = sum_of(params)
        first.minimize(loss)
        assert params["b"].grad[0] == 2.0
        second.minimize(loss)
    assert number(params["w"]) == 0.8 and number(params["b"]) == -3.0


def test_the_loss_of_one_optimizer_adds_nothing_to_the_gradients_of_another():
    params = cells("generator", "critic")
    g, c = SGD(0.1, [params["generator"]]), SGD(0.1, [params["critic"]])
    score = paddle.loss(lambda p, sign: sign * jnp.sum(p["generator"] * p["critic"]))
    g.minimize(score(params, 1.0))
    c.minimize(score(params, -1.0))
    assert number(params["generator"]) == 0.9 and number(params["critic"]) == 1.09


def test_a_failed_minimize_spends_nothing():
    params = cells()
    opt = SGD(paddle.optimizer.lr.LambdaDecay(0.1, lambda n: 1 / 0 if n == 1 else 1.0), params)
    with pytest.raises(ZeroDivisionError):
        opt._learning_rate.step()
    total(params).backward()
    opt2 = SGD(0.1, params)
    loss = paddle.loss(lambda p: jnp.sum(p["w"]) / [][0])(params)
    with pytest.raises(IndexError):
        opt2.minimize(loss)
    assert params["w"].grad[0] == 1.0
    opt2.step()
    assert number(params["w"]) == 0.9


def test_averages_count_a_spent_gradient():
    params = cells()
    opt, average = SGD(1.0, params), paddle.incubate.ModelAverage(1.0, [params["w"]])
    for _ in range(2):
        opt.minimize(total(params))
        average.step()
    with average.apply():
        assert number(params["w"]) == -0.5


def test_raw_trees_and_foreign_losses_are_refused():
    tree = {"w": jnp.ones(1)}
    opt = SGD(0.1, parameters=tree)
    with pytest.raises(ValueError, match=r"total\(\.\.\.\) without any .* own \(w\); give .* opt.parameters"):
        opt.minimize(total(tree))
    with pytest.raises(RuntimeError, match="total: found a loss of no trainable Parameter"):
        total(tree).backward()
    with pytest.raises(ValueError, match=r"over other Parameters \(w\), which are not this optimizer's"):
        opt.minimize(total(cells()))
    foreign = total(cells())
    foreign.backward()
    with pytest.raises(ValueError, match="over other Parameters"):
        opt.backward(foreign)
    opt.minimize(total(opt.parameters))
    assert number(opt.parameters["w"]) == 0.9


@pytest.mark.parametrize("formula", ["half", "sum", "scaled sum"])
def test_a_sum_of_scaled_losses_is_scaled_once(formula):
    params = cells()
    opt, scaler = SGD(0.1, params), paddle.amp.GradScaler(init_loss_scaling=1024.0)

    def loss():
        scaled = lambda x: scaler.scale(total(params, x))  # noqa: E731
        return {
            "half": lambda: scaled(2.0) / 2,
            "sum": lambda: scaled(0.25) + scaled(0.75),
            "scaled sum": lambda: scaler.scale(total(params, 0.25) + total(params, 0.75)),
        }[formula]()

    assert walk(opt, params, lambda: scaler.minimize(opt, loss())) == FIVE
    with pytest.raises(TypeError, match="which is scaled already"):
        scaler.scale(loss())
    with pytest.raises(TypeError, match="total is not scaled, expected that all are, or none"):
        scaler.minimize(opt, loss() + total(params))


@pytest.mark.parametrize("bad", [None, "w", "b"])
@pytest.mark.parametrize("how", ["minimize", "backward first"])
def test_two_optimizers_minimize_one_scaled_loss(bad, how):
    """Each judges its own gradients."""
    params = cells("w", "b")
    first, second = SGD(0.1, [params["w"]]), SGD(1.0, [params["b"]])
    scaler = paddle.amp.GradScaler(init_loss_scaling=8.0, use_dynamic_loss_scaling=False)
    sum_of = paddle.loss(lambda p, x, y: jnp.sum(p["w"] * x + 2 * p["b"] * y))
    loss = scaler.scale(sum_of(params, *(jnp.inf if name == bad else 1.0 for name in ("w", "b"))))
    if how == "backward first":
        loss.backward()
    scaler.minimize(first, loss)
    scaler.minimize(second, loss)
    want = {"w": 1.0 if bad == "w" else 0.9, "b": 1.0 if bad == "b" else -1.0}
    assert {name: number(p) for name, p in params.items()} == want
    assert scaler.total_skips == (bad is not None)


# ------------------------------------------------------------------ where they lie

SHAPES = {"half": (4,), "large": (200, 100), "pair": (2, 2), "small": (3,)}


def several():
    trees = {name: jnp.ones(shape, "bfloat16" if name == "half" else None) for name, shape in SHAPES.items()}
    params = paddle.parameters(trees)
    return params, paddle.optimizer.Adam(0.1, parameters=params)


@paddle.loss
def scaled_sum(p, x):
    """The gradient of every element is x."""
    return x * sum(jnp.sum(jnp.asarray(w, "float32")) for w in p.values())


def arrays_of(params):
    """The arrays in which the last gradients lie."""
    return params["small"].spent.arrays


def test_the_next_minimize_writes_into_the_memory_of_gradients_that_nobody_has():
    params, opt = several()
    opt.minimize(scaled_sum(params, 1.0))
    before = arrays_of(params)
    assert sorted(x.shape for x in before) == [(4,), (7,), (200, 100)]  # small ones of one dtype are joined
    live = len(jax.live_arrays())
    for x in range(5):
        opt.minimize(scaled_sum(params, float(x)))
        opt.clear_grad(set_to_zero=False)
    assert all(x.is_deleted() for x in before) and len(jax.live_arrays()) <= live
    opt.minimize(scaled_sum(params, 7.0))
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(params[name].grad, np.full(shape, 7.0))
        assert params[name].grad.dtype == params[name].dtype


def test_a_gradient_that_somebody_has_stays_as_it_is():
    params, opt = several()
    opt.minimize(scaled_sum(params, 1.0))
    read = {name: p.grad for name, p in params.items()}
    kept = opt.minimize(scaled_sum(params, 2.0))[1]
    opt.minimize(scaled_sum(params, 3.0))
    opt.minimize(scaled_sum(params, 4.0))
    pairs = opt.minimize(scaled_sum(params, 5.0))[1]
    copied, again = copy.deepcopy((params, opt))
    opt.minimize(scaled_sum(params, 6.0))
    for at, name in enumerate(SHAPES):
        np.testing.assert_array_equal(read[name], np.full(SHAPES[name], 1.0))
        for value, found in ((2.0, kept[at]), (5.0, pairs[at]), (5.0, list(pairs)[at])):
            assert found[0] is params[name]
            np.testing.assert_array_equal(found[1], np.full(SHAPES[name], value))
        np.testing.assert_array_equal(copied[name].grad, np.full(SHAPES[name], 5.0))
    again.minimize(scaled_sum(copied, 6.0))
    for name in SHAPES:
        np.testing.assert_array_equal(copied[name].value, params[name].value)


def test_the_pairs_are_a_list_to_whoever_asks():
    params, opt = several()
    pairs = opt.minimize(scaled_sum(params, 1.0))[1]
    assert len(pairs) == 4 and [p.name for p, _ in pairs] == list(SHAPES)
    assert len(pairs + [1]) == len([1] + pairs) == 5 and isinstance(pairs[1:], list)
    assert [p for p, _ in pickle.loads(pickle.dumps(pairs))][0].name == "half"
    opt.apply_gradients(pairs)


def test_gradients_on_several_devices_or_in_another_dtype_are_right():
    params, _ = several()
    opt = SGD(0.0, params)  # without a state, which would stay on its device
    opt.minimize(scaled_sum(params, 1.0))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    large = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for name, p in params.items():
        p.store.put(jax.device_put(p.value, large if name == "large" else whole))
    opt.minimize(scaled_sum(params, 2.0))
    for p in params.values():
        p.store.put(jax.device_put(p.value, jax.devices()[1]))
    opt.minimize(scaled_sum(params, 3.0))
    opt.minimize(scaled_sum(params, 4.0))
    assert params["pair"].grad.devices() == {jax.devices()[1]}
    paddle.amp.decorate(models=list(params.values()), level="O2", dtype="bfloat16")
    opt.minimize(scaled_sum(params, 5.0))
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(params[name].grad, np.full(shape, 5.0))
        assert params[name].grad.dtype == jnp.bfloat16
