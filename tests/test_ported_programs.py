"""Programs written for Paddle, which run here with an import changed and a loss function in place of a net.

`ported_programs.py` has the programs, `oracle/record_ported.py` runs them with the real Paddle.
"""

import functools
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ported_programs import NETS, PROGRAMS, STEPS, batches_of, first_values

import paddlejax as paddle

TOLERANCE = 1e-6  # of a tensor's largest element
GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def recorded(name):
    """What Paddle made of a program: {parameter: values stacked over the steps}, and "#loss", "#rate"."""
    folder = "fluid18" if name.startswith("fluid_") else "paddle3"
    with np.load(GOLDEN / folder / "ported.npz") as f:
        return {key.split("/", 1)[1]: f[key] for key in f.files if key.startswith(name + "/")}


# ------------------------------------------------------------------ the models, as functions


def linear(p, path, x):
    return x @ p[f"{path}.weight"] + p[f"{path}.bias"]


def mlp(p, x):
    return linear(p, "fc1", jnp.tanh(linear(p, "fc0", x)))


def layer_norm(p, path, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * p[f"{path}.weight"] + p[f"{path}.bias"]


@paddle.loss
def mlp_loss(p, x, y):
    return jnp.mean((mlp(p, x) - y) ** 2)


@paddle.loss
def mlp_loss_against(p, target, x, y):
    return jnp.mean((mlp(p, x) - (y + 0.5 * mlp(target, x))) ** 2)


@paddle.loss
def encoder_loss(p, ids, labels):
    x = p["embed.weight"][ids].mean(1)
    for k in range(2):
        x = x + jnp.tanh(linear(p, f"blocks.{k}.linear", layer_norm(p, f"blocks.{k}.norm", x)))
    logits = jax.nn.log_softmax(linear(p, "head", x))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))


class Net:
    """What the programs ask of Paddle's net: Parameters by their paths, and a loss over them."""

    def __init__(self, kind):
        names = {name: path for path, name, _ in NETS[kind]}
        tree = OrderedDict(first_values(kind))  # in Paddle's order; JAX sorts the keys of a dict
        self.params = paddle.parameters(tree, names=names)
        self.loss_of = {"mlp": mlp_loss, "encoder": encoder_loss}[kind]

    def parameters(self):
        return list(self.params.values())

    def named_parameters(self):
        return self.params.items()

    def state_dict(self):
        return dict(self.params)

    def set_state_dict(self, values):
        for path, p in self.params.items():
            p.set_value(values[path])

    set_dict = set_state_dict

    def clear_gradients(self):
        for p in self.parameters():
            p.clear_gradient()

    def loss(self, *batch):
        return self.loss_of(self.params, *batch)

    def loss_against(self, target, x, y):
        return mlp_loss_against(self.params, target.params, x, y)


@pytest.fixture(autouse=True)
def the_jax_of_users():
    """Their models add biases to batches."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", PROGRAMS)
def test_ported_program(name):
    kind, function = PROGRAMS[name]
    want, found = recorded(name), {}

    def record(net, loss, rate):
        rows = {path: p.numpy() for path, p in net.named_parameters()}
        for key, x in {**rows, "#loss": float(loss), "#rate": float(rate)}.items():
            found.setdefault(key, []).append(x)

    module = paddle.fluid if name.startswith("fluid_") else paddle
    function(module, lambda: Net(kind), batches_of(kind), record)
    assert found.keys() == want.keys()
    for key, steps in want.items():
        for step, (a, b) in enumerate(zip(found[key], steps, strict=True)):
            atol = TOLERANCE * np.abs(b).max() if np.isfinite(b).all() else 0
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"{key}, step {step}")


def test_every_program_is_recorded():
    assert [len(x) for name in PROGRAMS for x in recorded(name).values()] == [
        STEPS for name in PROGRAMS for _ in (*NETS[PROGRAMS[name][0]], "#loss", "#rate")
    ]
