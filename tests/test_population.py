"""Many optimizers in one program: hyperparameters are data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

import paddlejax as paddle


def test_64_rates_in_one_program():
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
    together, alone = jax.jit(jax.vmap(run))(rates), jax.jit(chex.assert_max_traces(run, n=1))
    for i, rate in enumerate(rates):
        one = alone(rate)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), one, rtol=1e-5, atol=1e-6)
    assert alone._cache_size() == 1
    np.testing.assert_array_equal(together[1].learning_rate, rates)
