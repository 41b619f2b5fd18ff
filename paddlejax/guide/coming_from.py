"""Coming from Paddle, optax or torch: what you write there, and what you write here.

## Paddle

| Paddle | paddlejax |
|---|---|
| `import paddle` | `import paddlejax as paddle` |
| `paddle.optimizer.Lamb(1e-3, parameters=net.parameters())` | `paddle.optimizer.Lamb(1e-3, parameters=params)`, `params = paddle.parameters(tree)` |
| `fluid.optimizer.LarsMomentumOptimizer(1e-3, 0.9, parameter_list=...)` | `paddle.fluid.optimizer.LarsMomentumOptimizer(1e-3, 0.9, parameter_list=params)` |
| `loss = loss_fn(net(x), y)` | `loss = loss_of(params, x, y)`, where `@paddle.loss` stands above `loss_of` |
| `loss.backward(); opt.step(); opt.clear_grad()` | the same; `opt.minimize(loss)` does the three in one compiled program |
| `(loss_a + 0.5 * loss_b).backward()`, `loss / k`, `sum(losses)`, `float(loss)`, `f"{loss:.3f}"` | the same: a Loss is a number, and backward goes through all of it |
| `with paddle.no_grad():` around an evaluation | the same; evaluation may also call the model with `paddle.values(params)` |
| `paddle.optimizer.lr.StepDecay(0.1, step_size=5)`, `scheduler.step()` | the same |
| `opt.set_lr(0.01)`, `opt.get_lr()`, `opt.state_dict()`, `opt.set_state_dict(d)` | the same |
| `paddle.nn.ClipGradByGlobalNorm(1.0)`, `paddle.regularizer.L2Decay(1e-4)` | the same |
| `paddle.ParamAttr(learning_rate=2.0)`, group dicts | the same; in functions `by_path([("*/b", {"learning_rate": 2.0})], rule)` |
| `p.stop_gradient = True` | the same; in functions `by_path([("embedding/*", {"frozen": True})], rule)` |
| `p.optimize_attr["learning_rate"] = 0.1`, `p.need_clip`, `p.regularizer`, `opt._grad_clip`, `opt._momentum`, ... | the same, between steps; a name that nobody reads raises an AttributeError |
| `p.no_weight_decay = True`, a mark of your own | the same, after `paddle.Parameter.allow_tags("no_weight_decay")` |
| `multi_precision=True` | the same, for every optimizer; in functions `with_master_weights(tx)` |
| `paddle.amp.decorate(net, opt, level="O2")` | the same, of a tree of Parameters; instead of `auto_cast` cast in the loss |
| a subclass with `_append_optimize_op` or `_create_accumulators` | refused: `lr_ratio=`, group dicts, or a `Rule` of your own |
| a clip with `_dygraph_clip(params_grads)` | the same, outside the compiled step |
| `fluid.optimizer.Momentum(0.1, 0.9, params, True)` | the same, in the order of 1.8.5 or of the 1.6 pages |
| `fluid.layers.polynomial_decay(...)`, `with fluid.dygraph.guard():`, `to_variable` | the same |
| a model of flax, equinox or haiku | the lines of `help("paddlejax.optimizer.models")` |
| `paddle.nn.Linear`, `paddle.io`, `fleet`, ... | can be imported; using one says in a sentence what JAX has instead |
| `fluid.Executor`, `fluid.layers.data`, a static program | none: `minimize` compiles by itself; `jax.jit` is for functions of `values(params)`, since objects inside a trace are refused |

This is the example of LarsMomentumOptimizer's page of Paddle 1.x, `reduce_sum(fc(inp, size=3))`:

>>> import jax.numpy as jnp
>>> import paddlejax.fluid as fluid
>>> from paddlejax import loss, parameters
>>> inp = jnp.array([[1.0, 2.0], [3.0, 4.0]])
>>> params = parameters({"w": jnp.full((2, 3), 0.1), "b": jnp.zeros(3)})
>>> out = loss(lambda p, inp: jnp.sum(inp @ p["w"] + p["b"]))(params, inp)
>>> optimizer = fluid.optimizer.LarsMomentumOptimizer(learning_rate=0.001, momentum=0.9, parameter_list=params)
>>> _ = optimizer.minimize(out)
>>> print(f"{float(out):.2f}, {params['w'].numpy()[0, 0]:.7f}")
3.00, 0.0999999

## optax

| optax | paddlejax |
|---|---|
| `optax.adam(1e-3)` | `pj.adam(1e-3)`: Paddle's numbers, strict dtypes, the rate in the state |
| `optax.chain(optax.clip_by_global_norm(1.0), tx)` | the same, or `pj.chain(pj.clip_by_global_norm(1.0), tx)`: either takes the other's parts |
| `optax.add_decayed_weights(1e-4)` before the rule | `pj.l2_decay(1e-4)` |
| `optax.apply_updates(params, updates)` | the same, or `pj.apply_updates` |
| `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)` | `pj.adam(1e-3)` |
| `state.hyperparams["learning_rate"] = jnp.array(1e-4)` | `state = pj.set_learning_rate(state, 1e-4)` |
| `optax.multi_transform`, `optax.masked`, a tree of labels | the same, or one table over paths: `pj.by_path` |
| `optax.MultiSteps(tx, 4)` | the same, or `pj.accumulate_gradients(tx, 4)` |
| `optax.apply_if_finite(tx, 3)` | the same, or `pj.skip_nonfinite(tx)` |
| `optax.warmup_cosine_decay_schedule(...)` | the same as a `learning_rate`; our `pj.schedules` work in optax |
| `optax.lars`, `optax.lamb` | `pj.lars_momentum`, `pj.lamb`: other formulas, see their pages |
| the state of a run | `interop.from_optax(opt_state, tx.init(params))`, and back: `interop.to_optax(state, optax_tx.init(params))` |
| extra arguments of `update` inside optax's wrappers | `as_optax(pj.lbfgs())`: optax drops them before a type that is not its own |

`nnx.Optimizer(model, tx, wrt=nnx.Param)`, flax's `TrainState.create(..., tx=tx)` and an equinox loop over
`eqx.partition(model, eqx.is_inexact_array)` take every optimizer of paddlejax. See `examples/flax_nnx.py`,
`examples/optax_chain.py` and `examples/equinox_model.py`. In an `nnx.Optimizer` the rate is a Variable:
`opt_state.learning_rate[...] = 1e-4` sets it.

A clip, a decay and LAMB in optax's chain:

>>> import jax.numpy as jnp
>>> import optax
>>> import paddlejax as pj
>>> params = {"w": jnp.ones((13, 1)), "b": jnp.zeros(1)}
>>> tx = optax.chain(optax.clip_by_global_norm(1.0), pj.l2_decay(1e-4), pj.lamb(1e-3))
>>> state = tx.init(params)
>>> updates, state = tx.update(params, state, params)
>>> params = optax.apply_updates(params, updates)
>>> print(params["w"][0], pj.get_learning_rate(pj.set_learning_rate(state, 1e-4)))
[0.999] 1e-04

## torch

| torch | paddlejax |
|---|---|
| `torch.optim.AdamW(net.parameters(), lr=1e-3)` | `paddle.optim.AdamW(params, lr=1e-3)`, or `paddle.optimizer.AdamW(learning_rate=1e-3, parameters=params)` |
| `opt.zero_grad(); loss.backward(); opt.step()` | `loss.backward(); opt.step(); opt.clear_grad()` |
| `SGD(params, lr=0.1, momentum=0.9, dampening=0.1)` | the same, from `optim`; with a dampening of 0 also `Momentum(0.1, 0.9)` |
| `RMSprop(lr, alpha=0.99, eps=1e-8)` | `decayed_adagrad(lr, decay=0.99, epsilon=1e-8)`; `rmsprop` has its epsilon under the root |
| `Adam(amsgrad=True)`, `NAdam`, `RAdam`, `Adadelta(rho=0.9)` | the same numbers, with torch's values of the arguments |
| `ASGD` | none: Paddle's `asgd` is another method |
| `SparseAdam` | `adam(lazy_mode=True)` with `sparse.value_and_grad` |
| `LBFGS(...).step(closure)` | `optimizer.LBFGS`, or `lbfgs()` as a function |
| `[{"params": head, "lr": 1e-2}]` | the same in `optim`; in `optimizer` `[{"params": head, "learning_rate": 10.0}]`, a factor on the optimizer's rate |
| `opt.param_groups[0]["lr"] = 1e-4` | `opt.set_lr(1e-4)`; of a function `set_learning_rate(state, 1e-4)` |
| `lr_scheduler.StepLR(opt, 5, 0.6)` | `optim.lr_scheduler.StepLR(opt, 5, 0.6)`, or `optimizer.Momentum(optimizer.lr.StepDecay(0.1, 5, 0.6))` |
| the `state_dict` of a run | `interop.from_torch(file, opt)`, or with `tx.init(params)` in place of `opt` |
| `clip_grad_norm_(net.parameters(), 1.0)` | the same, from `nn.utils`; or `grad_clip=` of the optimizer |
| `torch.amp.GradScaler` | `amp.GradScaler` |
| `swa_utils.AveragedModel` | `incubate.ModelAverage`, `static.ExponentialMovingAverage` |
"""  # noqa: E501
