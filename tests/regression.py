"""A small linear regression that the tests of the Paddle-style objects train."""

import jax.numpy as jnp
import numpy as np

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
