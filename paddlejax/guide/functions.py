"""Optimizers as functions: the state, the rate, options by path, bfloat16.

## The state

`tx.init(params)` returns a `RuleState(count, learning_rate, shared, slots)`. `slots` is `{name: tree like
params}` under Paddle's accumulator names. A gradient that is `None` leaves its parameter and its slots
exactly as they were. `tx.init` of `jax.ShapeDtypeStruct`s returns such, with shardings: a target into which
a checkpoint is restored.

>>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
>>> state = adam(0.1).init(params)
>>> sorted(state.slots), sorted(state.shared), state.slots["moment1"]["w"].shape
(['moment1', 'moment2'], ['beta1_pow_acc', 'beta2_pow_acc'], (2, 3))

## The rate

A Python or NumPy number lives in the state. `set_learning_rate` changes it there, and nothing is compiled
again.

>>> print(get_learning_rate(set_learning_rate(state, 0.01)))
0.01

A schedule or a JAX array acts at every update. So does what `optax.inject_hyperparams` hands in.

## Options by path

What differs from parameter to parameter is one table over paths. The first pattern that matches decides. A
pattern that matches nothing is an error. `describe` shows what every leaf gets.

>>> tx = by_path(
...     [
...         ("*b", {"weight_decay": None, "learning_rate": 2.0}),  # no decay, twice the rate
...         ("embedding/*", {"frozen": True}),
...         ("head/*", {"rule": sgd(0.1)}),  # another optimizer
...         ("*norm*", {"grad_clip": None, "beta1": 0.8}),  # another hyperparameter
...     ],
...     adam(1e-3),
...     weight_decay=1e-4,
...     grad_clip=clip_by_global_norm(1.0),
... )
>>> one = jnp.ones(2)
>>> tree = {"hidden": {"w": one, "b": one}, "norm": one, "embedding": {"w": one}, "head": {"w": one}}
>>> updates, state = tx.update(tree, tx.init(tree), tree)
>>> print(updates["hidden"]["b"] / updates["hidden"]["w"], updates["head"]["w"])
[2. 2.] [-0.0408 -0.0408]

## bfloat16 and float16

`with_master_weights` goes around the whole chain. Then the state holds a float32 copy of every narrow
parameter, and no small step is lost. Without it a step of 1e-3 from 1.0 moves a bfloat16 parameter by
nothing:

>>> p = jnp.ones(1, jnp.bfloat16)
>>> for tx in (sgd(1e-3), with_master_weights(sgd(1e-3))):
...     q, state = p, tx.init(p)
...     for _ in range(100):
...         updates, state = tx.update(p, state, q)
...         q = apply_updates(q, updates)
...     print(q)
[1]
[0.898438]

## Where norms cross devices

Under `shard_map`, `axis_name` of `lamb`, `lars_momentum`, `dpsgd`, the clips and `skip_nonfinite` names the
mesh axes. Under `shard_map(check_vma=False)` also say in `sharded=` which leaves are cut. Under `jit`
nothing needs to be said.
"""
