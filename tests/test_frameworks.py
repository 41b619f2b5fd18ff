"""Models of flax linen, flax nnx, equinox and haiku under the object: by the documented lines, or whole."""

import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import paddlejax as paddle
from paddlejax.optimizer.models import WAYS

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def promotion():
    """As users of these frameworks have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=False, momentum=0.5)(nn.Dense(4)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(self.norm(self.hidden(x))))


def haiku_model():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")

    def net(x):
        return hk.Linear(1)(hk.BatchNorm(True, True, 0.5)(hk.Linear(4)(x), is_training=True))

    return hk.transform_with_state(net)


def equinox_model():
    return eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))


MODELS = {
    "flax linen": Linen,
    "flax nnx": lambda: Nnx(nnx.Rngs(0)),
    "equinox": equinox_model,
    "haiku": haiku_model,
}
# The names of what is no parameter in the lines, and the function to train without the object.
REST = {"flax linen": "stats", "flax nnx": "rest", "equinox": None, "haiku": "state"}


def lines(framework):
    """The lines before the step, with the loss, and those of the step."""
    begin, step = WAYS[framework].split("\nloss = ")
    return begin, "loss = " + step


@pytest.mark.parametrize("framework", MODELS)
def test_the_lines_train_as_optax_does_with_the_functions(framework):
    begin, step = lines(framework)
    names = {"paddle": paddle, "jnp": jnp, "jax": jax, "nnx": nnx, "eqx": eqx, "model": MODELS[framework]()}
    names |= {"key": jax.random.key(1), "x": X, "y": Y}
    exec(begin, names)
    params, loss_of, rest = names["params"], names["loss_of"], REST[framework]
    names["opt"] = paddle.optimizer.Momentum(0.1, 0.9, parameters=params)
    tx = paddle.momentum(0.1, 0.9)
    plain = paddle.values(params)
    state, kept = tx.init(plain), names[rest] if rest else None
    for _ in range(4):
        exec(step, names)
        names["opt"].clear_grad()
        others = [kept] if rest else []
        others += [names["key"]] if framework == "haiku" else []

        def of(plain, others=others):
            others = jax.tree.map(lambda x: x, others)  # Variables of this trace
            out = loss_of.function(plain, *others, X, Y)
            return out if rest else (out, None)

        (value, kept), grads = jax.value_and_grad(of, has_aux=True)(plain)
        updates, state = tx.update(grads, state, plain)
        plain = optax.apply_updates(plain, updates)
        np.testing.assert_allclose(float(names["loss"]), value, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(paddle.values(params)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    if rest:
        same = zip(jax.tree.leaves(names[rest]), jax.tree.leaves(kept), strict=True)
        assert all(_equal(a, b) for a, b in same)


def _equal(a, b):
    a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
    return np.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("framework", ["flax linen", "haiku"])
@pytest.mark.parametrize("place", [lambda m: m, lambda m: {"encoder": m}])
def test_a_module_without_parameters_in_it_is_refused_with_the_lines(framework, place):
    model = place(MODELS[framework]())
    for take in (paddle.parameters, lambda m: paddle.optimizer.SGD(0.1, parameters=m)):
        with pytest.raises(TypeError, match=f"found a model of {framework}, expected its parameters") as e:
            take(model)
        assert WAYS[framework] in str(e.value)


def names_of(tree):
    return {p.name for p in jax.tree.leaves(tree) if isinstance(p, paddle.Parameter)}


NNX_PARAMETERS = {f"{a}/{b}" for a in ("hidden", "out") for b in ("kernel", "bias")} | {
    "norm/scale",
    "norm/bias",
}


def test_of_a_whole_nnx_model_only_the_params_are_trained():
    model = MODELS["flax nnx"]()
    left = r"norm/mean, norm/var|drop/rngs"
    with pytest.warns(UserWarning, match=f"no parameters and stay as they are: .*({left}).*"):
        params = paddle.parameters(model)
    assert names_of(params) == NNX_PARAMETERS
    assert isinstance(params.norm.var[...], jax.Array) and isinstance(model.hidden.kernel[...], jax.Array)
    with pytest.warns(UserWarning, match="drop/rngs/count, drop/rngs/key"):
        opt = paddle.optimizer.AdamW(0.1, weight_decay=0.5, parameters=model)
    assert {p.name for p in opt.parameter_list} == NNX_PARAMETERS

    @paddle.loss
    def loss_of(model, x, y):
        return jnp.mean((model(x) - y) ** 2)

    losses = []
    for _ in range(5):
        loss = loss_of(opt.parameters, X, Y)
        opt.minimize(loss)
        opt.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    after = paddle.values(opt.parameters)
    np.testing.assert_array_equal(after.norm.var[...], 1.0)  # a decay would have moved it
    np.testing.assert_array_equal(after.norm.mean[...], 0.0)
    assert after(X).shape == (8, 1)


def test_a_state_of_nnx_is_taken_by_what_its_variables_are():
    model = MODELS["flax nnx"]()
    assert names_of(paddle.parameters(nnx.state(model, nnx.Param))) == NNX_PARAMETERS
    with pytest.warns(UserWarning, match="norm/mean"):
        assert names_of(paddle.parameters(nnx.state(model))) == NNX_PARAMETERS

    class Special(nnx.Param):
        pass

    class Counter(nnx.Variable):
        pass

    mine = {"a": Special(jnp.ones(2)), "n": Counter(jnp.ones(2))}
    with pytest.warns(UserWarning, match="stay as they are: n;"):
        assert names_of(paddle.parameters(mine)) == {"a"}
    single = nnx.Linear(2, 2, rngs=nnx.Rngs(0))  # it has a dtype and is no array
    assert len(paddle.optimizer.SGD(0.1, parameters=single).parameter_list) == 2


def test_of_linens_variables_only_the_collection_params_is_trained():
    model = Linen()
    variables = model.init(jax.random.key(0), X)
    with pytest.warns(UserWarning, match="stay as they are: batch_stats/BatchNorm_0/mean, batch_stats"):
        taken = paddle.parameters(variables)
    assert {n.split("/")[0] for n in names_of(taken)} == {"params"} and len(names_of(taken)) == 6
    only = paddle.parameters({"params": variables["params"]})
    assert names_of(only) == names_of(taken)
    assert len(names_of(paddle.parameters(nn.FrozenDict(variables["params"])))) == 6

    @paddle.loss
    def loss_of(variables, x, y):
        return jnp.mean((model.apply(variables, x, mutable=["batch_stats"])[0] - y) ** 2)

    opt = paddle.optimizer.SGD(0.1, parameters=taken)
    first, last = (loss_of(taken, X, Y) for _ in range(2))
    opt.minimize(first)
    last = loss_of(taken, X, Y)
    assert float(last) < float(first)


def test_of_a_whole_equinox_model_only_floating_arrays_are_trained():
    model = equinox_model()
    params = paddle.parameters(model)  # functions and flags are no arrays: nothing to say
    assert len(names_of(params)) == 4

    @paddle.loss
    def loss_of(model, x, y):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    opt = paddle.optimizer.Adam(0.1, parameters=params)
    losses = []
    for _ in range(5):
        loss = loss_of(params, X, Y)
        opt.minimize(loss)
        losses.append(float(loss))
    assert losses[-1] < losses[0] and paddle.values(params).activation is model.activation

    class Mine(eqx.Module):
        w: jax.Array
        ids: jax.Array
        key: jax.Array
        norm: eqx.nn.BatchNorm

    mine = Mine(jnp.ones(2), jnp.arange(3), jax.random.key(0), eqx.nn.BatchNorm(3, "batch", mode="batch"))
    with pytest.warns(
        UserWarning, match="stay as they are: ids, key, norm/batch_counter/init, norm/batch_state"
    ):
        assert names_of(paddle.parameters(mine)) == {"w", "norm/weight", "norm/bias"}


def test_a_key_in_a_plain_tree_is_never_a_parameter():
    for take in (paddle.parameters, lambda t: paddle.optimizer.SGD(0.1, parameters=t)):
        with pytest.raises(TypeError, match="at key found a key of jax.random, expected an array of numbers"):
            take({"w": jnp.ones(2), "key": jax.random.key(0)})


def test_haikus_parameters_are_a_plain_tree():
    params, _ = haiku_model().init(jax.random.key(0), X)
    taken = paddle.parameters(params)
    assert "batch_norm/scale" in names_of(taken) and len(names_of(taken)) == 6
    again = pickle.loads(pickle.dumps(taken))
    assert names_of(again) == names_of(taken)
