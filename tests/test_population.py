"""Many optimizers in one program: hyperparameters are data."""

import jax
import jax.numpy as jnp
import numpy as np

import paddlejax as paddle


def test_64_rates_in_one_vmap():
    """A population of Adams with rates of their own is 64 separate runs in one program."""
    target = jnp.arange(6.0).reshape(2, 3)
    start = {"w": jnp.zeros((2, 3)), "b": jnp.ones(3)}

    def loss(p):
        return jnp.sum((p["w"] + p["b"][None] - target) ** 2)

    def run(rate):
        tx = paddle.adam(rate)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (paddle.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), None, 30)[0]

    rates = jnp.logspace(-4, 0, 64)
    together, alone = jax.jit(jax.vmap(run))(rates), jax.jit(run)
    for i, rate in enumerate(rates):
        one = alone(rate)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, 1e-5, 1e-6), together, one)
    assert alone._cache_size() == 1
    np.testing.assert_array_equal(together[1].learning_rate, rates)
