"""All optimizers: the function, the object, the name in Paddle 1.x, and the accumulators.

| function | object | 1.x (`fluid.optimizer`) | slots; shared scalars |
|---|---|---|---|
| `sgd` | `optimizer.SGD` | `SGD` | |
| `momentum` | `optimizer.Momentum` | `Momentum` | velocity |
| `lars_momentum` | `incubate.optimizer.LarsMomentumOptimizer` | `LarsMomentum` | velocity |
| `adagrad` | `optimizer.Adagrad` | `Adagrad` | moment |
| `decayed_adagrad` | | `DecayedAdagrad` | moment |
| `adadelta` | `optimizer.Adadelta` | `Adadelta` | _avg_squared_grad, _avg_squared_update |
| `adam` | `optimizer.Adam` | `Adam` | moment1, moment2 (moment2_max); beta1_pow_acc, beta2_pow_acc |
| `adamw` | `optimizer.AdamW` | | as adam |
| `nadam` | `optimizer.NAdam` | | moment1, moment2; momentum_decay_pow, beta2_pow, mu_product |
| `radam` | `optimizer.RAdam` | | moment1, moment2; beta1_pow, beta2_pow, rho |
| `adamax` | `optimizer.Adamax` | `Adamax` | moment, inf_norm; beta1_pow_acc |
| `rmsprop` | `optimizer.RMSProp` | `RMSProp` | momentum, mean_square, mean_grad |
| `ftrl` | | `Ftrl` | squared, linear |
| `lamb` | `optimizer.Lamb` | `Lamb` | moment1, moment2; beta1_pow_acc, beta2_pow_acc |
| `muon` | `optimizer.Muon` | | momentum of each matrix, made orthogonal; the other leaves as adamw. Heads: `splits` |
| `asgd` | `optimizer.ASGD` | | d, y; m |
| `rprop` | `optimizer.Rprop` | | prevs, learning_rates |
| `dpsgd` | | `Dpsgd` | ; draws |
| `lbfgs` | `optimizer.LBFGS` | | its history, `step(closure)` |
| `dgc_momentum` | `incubate.optimizer.DGCMomentumOptimizer` | `DGCMomentum` | _dgc_u_, _dgc_v_ |

Accumulators are trees like the parameters, in the state's `slots` and in `state_dict()`. After the
semicolon stand numbers that all tensors share.

These go around an optimizer:

| function | object | 1.x (`fluid.optimizer`) |
|---|---|---|
| `exponential_moving_average` | `static.ExponentialMovingAverage` | `ExponentialMovingAverage` |
| `model_average` | `incubate.ModelAverage` | `ModelAverage` |
| `lookahead` | `incubate.LookAhead` | `LookaheadOptimizer` |
| `accumulate_gradients` | `incubate.optimizer.GradientMergeOptimizer` | `GradientMergeOptimizer` |
| `jax.checkpoint` | `incubate.optimizer.RecomputeOptimizer` | `RecomputeOptimizer` |
| `with_master_weights` | `multi_precision=True` | |
| `skip_nonfinite`, `dynamic_loss_scale` | `amp.GradScaler` | |

Every class of 1.x also has a name with `Optimizer` behind it: `fluid.optimizer.Adam` is
`fluid.optimizer.AdamOptimizer`.

- Clips: `clip_by_value`, `clip_by_norm`, `clip_by_global_norm`; as objects `nn.ClipGradByValue`,
  `nn.ClipGradByNorm`, `nn.ClipGradByGlobalNorm`; of gradients in place `nn.utils.clip_grad_norm_`,
  `nn.utils.clip_grad_value_`; in 1.x `fluid.clip.GradientClipByValue` and so on.
- Decays: `l1_decay`, `l2_decay`; as objects `regularizer.L1Decay`, `regularizer.L2Decay`.
- Schedules: `schedules` as functions of the count; `optimizer.lr` with Paddle's scheduler classes;
  `fluid.dygraph` with those of 1.x. `python examples/plot_schedules.py` draws them. `python
  tests/benchmarks/scheduler_cost.py` measures what a scheduler adds to a step.

Paddle's order holds: first the clip, then the decay, then the rule.
"""  # noqa: E501
