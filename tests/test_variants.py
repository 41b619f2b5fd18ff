"""Rules and clips give the same under jit and without, from arrays on the device and from numpy's.

Without chex's pmap variant: JAX replaces pmap by shard_map, which test_sharding and test_dgc are about.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import paddlejax as paddle

ARGUMENTS = {
    "dpsgd": {"clip": 1.0, "sigma": 0.5, "key": jax.random.key(3)},
    "lars_momentum": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "lamb": {"exclude_from_weight_decay_fn": lambda path: path == "b"},
}
RULES = {name: getattr(paddle, name) for name in paddle.rules.__all__ if name.islower()}
SIZE = np.sqrt(61.0)  # of the gradients together
CLIPS = {
    "value": (paddle.clip_by_value(2.0, -1.0), {"b": [0.0, -1.0], "w": [[2.0, -1.0], [0.0, 0.0]]}),
    "norm": (paddle.clip_by_norm(4.0), {"b": [0.0, -4.0], "w": [[2.4, -3.2], [0.0, 0.0]]}),
    "global_norm": (
        paddle.clip_by_global_norm(1.0),
        {"b": [0.0, -6 / SIZE], "w": [[3 / SIZE, -4 / SIZE], [0.0, 0.0]]},
    ),
}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {"b": rng.normal(size=2).astype(np.float32), "w": rng.normal(size=(3, 2)).astype(np.float32)}


def two_steps(init, update, params):
    """The updates and the state after each of two steps."""
    state, made = init(params), []
    for seed in (1, 2):
        updates, state = update(tree(seed), state, params)
        params = paddle.apply_updates(params, updates)
        made.append((updates, state))
    return made


every_variant = chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)


class VariantsTest(chex.TestCase):
    @every_variant
    @parameterized.named_parameters(*RULES.items())
    def test_a_rule(self, make):
        tx = make(0.1, **ARGUMENTS.get(make.__name__, {}))
        found = two_steps(self.variant(tx.init), self.variant(tx.update), tree(0))
        wanted = two_steps(tx.init, tx.update, jax.tree.map(jnp.asarray, tree(0)))
        chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
        chex.assert_trees_all_close(found, wanted, rtol=2e-6, atol=1e-7)
        chex.assert_tree_all_finite(found)

    @every_variant
    @parameterized.named_parameters(*((name, *about) for name, about in CLIPS.items()))
    def test_a_clip(self, tx, wanted):
        grads = {"b": np.float32([0, -6]), "w": np.float32([[3, -4], [0, 0]])}
        clipped, state = self.variant(tx.update)(grads, self.variant(tx.init)(grads), grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(clipped, grads)
        wanted = jax.tree.map(np.float32, wanted, is_leaf=lambda x: isinstance(x, list))
        chex.assert_trees_all_close(clipped, wanted, rtol=1e-6)
        chex.assert_trees_all_equal(state, ())
