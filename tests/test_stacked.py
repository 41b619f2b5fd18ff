"""Equal stages as one program: the loss and gradients of the layers in a row, on every kind of mesh."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as pj
from paddlejax.distributed import pipelined, stacked, state_shardings


def layer(p, x):
    return x + jnp.tanh(x @ p["w"] + jnp.broadcast_to(p["b"], x.shape))


def in_a_row(p, x):
    return jax.lax.scan(lambda x, p: (layer(p, x), None), x, p)[0]


def mesh_of(shape, names=("stage",), kind=AxisType.Auto):
    n = int(np.prod(shape))
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=jax.devices()[:n])


def given(layers=8, examples=24, width=16):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(layers, width, width)).astype(np.float32) / 4
    b = rng.normal(size=(layers, width)).astype(np.float32)
    return {"w": w, "b": b}, rng.normal(size=(examples, width)).astype(np.float32)


def close(found, expected, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)))


@pytest.mark.parametrize(
    "shape, kind, batch_axis, remat, calls",
    [
        ((1, 4), AxisType.Auto, None, False, 2),  # ticks are a loop, the two layers of a stage are not
        ((1, 4), AxisType.Explicit, None, True, 64),
        ((2, 2), AxisType.Auto, "data", True, 1),  # both are
        ((2, 2), AxisType.Explicit, "data", False, 64),
        ((2, 4), AxisType.Auto, None, False, 64),  # repeated along data
        ((1, 1), AxisType.Auto, None, False, 64),
    ],
)
def test_loss_and_gradients_are_those_of_the_layers_in_a_row(
    shape, kind, batch_axis, remat, calls, monkeypatch
):
    monkeypatch.setattr(stacked, "CALLS", calls)
    mesh = mesh_of(shape, ("data", "stage"), kind)
    params, x = given()
    apply = pipelined(layer, mesh, "stage", 6, batch_axis=batch_axis, remat=remat)

    def both(f):
        return jax.jit(jax.value_and_grad(lambda p, x: jnp.mean(f(p, x) ** 2), (0, 1)))

    with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
        found = jax.device_get(both(apply)(params, x))
    close(found, both(in_a_row)(params, x))


@pytest.mark.parametrize("tx", [pj.adam(0.01), pj.chain(pj.clip_by_global_norm(0.1), pj.lamb(0.01))])
def test_steps_are_those_of_the_layers_in_a_row(tx):
    mesh = mesh_of((4,))
    params, x = given()
    cut = jax.device_put(params, NamedSharding(mesh, P("stage")))

    def trained(f, params, **where):
        @jax.jit
        def step(params, state):
            grads = jax.grad(lambda p: jnp.mean(f(p, x) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return pj.apply_updates(params, updates), state

        state = jax.jit(tx.init, **where)(params)
        for _ in range(3):
            params, state = step(params, state)
        return params, state

    params = jax.tree.map(jnp.asarray, params)
    found = trained(pipelined(layer, mesh, "stage", 4), cut, out_shardings=state_shardings(tx, cut))
    assert found[0]["w"].sharding.spec[0] == "stage"
    close(jax.device_get(found[0]), trained(in_a_row, params)[0], 1e-5)


def test_a_tree_travels_and_idle_stages_make_no_nan():
    """Of what is no activation this layer is not finite, nor are its gradients."""

    def masked(p, x):
        safe = jnp.log(x["h"]) * p + 2
        return {**x, "h": jnp.where(x["mask"][:, None], jnp.exp(safe), x["h"])}

    mesh = mesh_of((4,))
    x = {"h": jnp.full((6, 2), 2.0), "mask": jnp.arange(6) % 2 == 0, "ids": jnp.arange(6)}
    apply = pipelined(masked, mesh, "stage", 3)
    scales = jnp.array([0.1, 0.2, 0.3, 0.4])
    y = apply(scales, x)
    assert y["mask"].dtype == bool
    np.testing.assert_array_equal(y["ids"], x["ids"])

    def row(p, x):
        for i in range(4):
            x = masked(p[i], x)
        return x

    def total(f):
        return jax.value_and_grad(lambda p: jnp.sum(f(p, x)["h"]))

    close(jax.device_get(total(apply)(scales)), total(row)(scales))


def test_bfloat16_and_few_micro_batches():
    mesh = mesh_of((4,))
    params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), given(4, 2))
    apply = pipelined(layer, mesh, "stage", 1)
    np.testing.assert_array_equal(apply(params, x), jax.jit(in_a_row)(params, x))
    grads = jax.grad(lambda x: jnp.sum(apply(params, x).astype(jnp.float32)))(x)
    assert grads.dtype == jnp.bfloat16


def test_parameters_are_not_saved_in_every_tick():
    params, x = given(4)
    apply = pipelined(layer, mesh_of((4,)), "stage", 6)
    text = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(apply(p, x))))(params))
    assert "f32[9,1,4,16]" in text  # activations: ticks, layers of a stage, micro-batch
    assert "f32[9,1,16,16]" not in text


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(layer=3), "pipelined's layer: found 3, expected a function of a layer's parameters"),
        (dict(mesh="cpu"), "pipelined's mesh: found 'cpu', expected a jax.sharding.Mesh"),
        (dict(axis="model"), "pipelined's axis: found 'model', expected one of ('data', 'stage')"),
        (dict(micro_batches=0), "pipelined's micro_batches: found 0, expected a positive int"),
        (dict(batch_axis="stage"), "pipelined's batch_axis: found 'stage', expected another axis"),
        (dict(batch_axis="b"), "pipelined's batch_axis: found 'b', expected one of ('data', 'stage')"),
        (dict(remat=1), "pipelined's remat: found 1, expected True or False"),
    ],
)
def test_wrong_arguments(change, words):
    right = dict(layer=layer, mesh=mesh_of((2, 4), ("data", "stage")), axis="stage", micro_batches=2)
    with pytest.raises((ValueError, TypeError)) as e:
        pipelined(**{**right, **change})
    assert str(e.value).startswith(words)


@pytest.mark.parametrize(
    "function, params, x, words",
    [
        (layer, {}, 4, "apply's params: found {}, expected arrays with a leading axis of layers"),
        (layer, 6, 4, "apply's params: at b: found shape (6, 16), expected a leading axis of layers that"),
        (layer, {"a": jnp.ones(4), "b": jnp.ones(8)}, 4, "apply's params: at b: found shape (8,)"),
        (layer, {"a": 1.0}, 4, "apply's params: at a: found shape ()"),
        (
            layer,
            4,
            6,
            "apply's x: at the root: found shape (6, 16), expected a leading axis of examples that 4 micro",
        ),
        (
            lambda p, x: x[:, :3],
            4,
            4,
            "pipelined's layer: its result at the root: found shape (1, 3) and dtype float32",
        ),
        (
            lambda p, x: x > 0,
            4,
            4,
            "pipelined's layer: its result at the root: found shape (1, 16) and dtype bool",
        ),
        (lambda p, x: (x, x), 4, 4, "pipelined's layer: found a result PyTreeDef((*, *)), expected one"),
    ],
)
def test_wrong_calls(function, params, x, words):
    apply = pipelined(function, mesh_of((4,)), "stage", 4)
    with pytest.raises(pj.hyper.ArgumentError) as e:
        apply(given(params)[0] if isinstance(params, int) else params, given(4, x)[1])
    assert words in str(e.value)
