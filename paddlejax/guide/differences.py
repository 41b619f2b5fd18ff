"""Where paddlejax differs from Paddle, sorted by what you notice, and then by class.

Paddle's kernel decides where its page says something else. paddlejax differs where the kernel has a bug, or
where its behaviour would surprise you. A version before a row says that only this Paddle does so. A test
stands behind every row.

## The numbers of a step differ

| of | Paddle | paddlejax |
|---|---|---|
| every optimizer | 3.3.1: hyperparameters are rounded to float32 in float64 training | they are not |
| every optimizer | bfloat16: every operation is rounded; accumulators of some optimizers are bfloat16 | float32 inside, step and sum rounded once each, accumulators float32 |
| every optimizer | subnormal gradients | XLA flushes them to zero |
| Adadelta | 1.8.5: Adadelta's step uses the new average of updates, by an aliasing accident | the documented old one |
| Adam | sparse Adam on CPU corrects its bias by step t+1 | by step t |
| Momentum | Momentum adds `regularization` that is assigned later to its own decay | it takes the place of it |
| Momentum | 3.3.1: Momentum's `rescale_grad` has no effect on CPU | it rescales |
| Momentum | 3.3.1: Momentum built twice over the same group dicts loses its decay | it does not |
| Momentum | 3.3.1: Momentum with an L1Decay ignores a group's `weight_decay=0.0` | the group has none |
| optim.SGD | the main branch's `optim.SGD` ignores momentum, dampening and nesterov with a warning | they act, as in torch |
| Momentum, RMSProp | sparse Momentum and RMSProp lose rows whose ids come unsorted | they do not |
| Ftrl | 1.8.5: the Ftrl class hands l1 to the kernel in place of l2 | l2 is l2 |
| Ftrl, RMSProp | FTRL at a rate of 0 sets parameters to 0 and its state to NaN; centered RMSProp may become NaN by rounding | all stays; it does not |
| Muon | on CPU `lr_ratio` reaches the decay only; float64 parameters fail in AdamW's branch | the whole AdamW step, as on GPU; they work |
| Muon | Muon without masters rounds decay and step apart | their sum, once |
| Dpsgd | 1.8.5: Dpsgd's noise is seeded by the clock | by `key`, which is given again to resume |
| clips | 1.8.5: clip by norm turns a zero gradient into NaN | into zero |
| clips | ClipGradByGlobalNorm: gradients of 1e20 or 1e-30 have a norm of inf or 0; limits of 0 and below pass | the right norm; refused |
| schedulers | 3.3.1: LinearLR and CosineAnnealingDecay with `last_epoch=k` start at wrong rates (`LinearLR(0.5, 10, last_epoch=0)`: 0.6), CosineAnnealingWarmRestarts in a wrong cycle | on the curve (0.2) |
| schedulers | `optim.lr_scheduler.ConstantLR` is PiecewiseDecay | given an optimizer, `ConstantLR(opt)` is torch's |
| schedulers | 1.8.5: LinearLrWarmup and `linear_lr_warmup` rise from 0 | from `start_lr`, as documented |
| schedulers | ReduceOnPlateau keeps a first NaN or inf as the best for ever | the next number is the best |
| LookAhead | a parameter that joins LookAhead late is pulled towards 0 | its slow weight begins where it is |
| minimizers | `minimize_bfgs` updates H by the transposed formula and stalls on Rosenbrock | by the right one |
| minimizers | `minimize_lbfgs` hangs at iteration 2·history_size - 1; both minimizers step onto NaN | it does not; the search backs off |
| GradScaler | a loss scale may grow to inf or fall to 0, and every later step is skipped | it stays between 1 (or a lower start) and 2^126 |
| GradScaler | an infinite gradient is applied if another optimizer was unscaled after it | it is skipped |
| GradScaler | at a scale that has fallen to 0 infinite gradients are applied | skipped |
| GradScaler | `scale(loss)` has shape [1]; 16-bit gradients are unscaled in 16 bits | shape (); in float32 |
| DGC | k by a threshold from samples; Nesterov with a clip adds the unclipped gradient to v | the exact k largest; the clipped one |
| checkpoints | 1.8.5's Lamb checkpoint would be corrected for bias in 2.x Lamb | it goes on without correction |

## It works here

| of | Paddle | paddlejax |
|---|---|---|
| every optimizer | an int, a numpy float32 or an array as an optimizer's learning rate is a TypeError | accepted (schedulers take a Python number, as there) |
| every optimizer | a learning rate, or an optimizer's `weight_decay`, of shape [1] is an error | accepted |
| every optimizer | `minimize` on objects with groups fails | works |
| every optimizer | 1.8.5: `minimize` has no `grad_clip`, 1.6 has | accepted |
| every optimizer | 3.3.1: on CPU a bfloat16 parameter's master is never updated | it is |
| sparse gradients | a sparse gradient with weight decay is a RuntimeError | it becomes dense, with one warning |
| AdamW | 3.3.1: AdamW's `lr_ratio` raises on CPU | it works |
| LBFGS | LBFGS's state is not restored; of groups it steps the last; `set_lr` does nothing | restored in full; all; it sets the rate |
| LookAhead | 3.3.1: LookAhead saves neither its counter nor the inner state; `get_lr` is alpha; groups fail | all is saved; the inner rate; groups work |
| averages | 3.3.1: static.ExponentialMovingAverage cannot be constructed | it can |
| wrappers | 1.8.5: wrappers need a static program | none does |
| DistributedFusedLamb | DistributedFusedLamb needs a static program and a GPU, and saves two buffers of all moments | it needs neither, and saves Lamb's state_dict |
| RecomputeOptimizer | 1.8.5: RecomputeOptimizer demands checkpoints | it does not |
| GradScaler | GradScaler switches itself off on CPU and outside float16 | it works everywhere |
| clips | `clip_grad_norm_` of a generator scales nothing; negative limits pass | it scales; they are refused |
| schedulers | a 3.x scheduler cannot load what a 1.x one saved | it does, and the other way round |
| DGC | one worker is an error, and so is sparsity 0 | momentum, with a warning; allowed |
| DGC | the number of workers is fixed | a state loads onto another number of several (as functions: `distributed.redistribute`) |

## It is refused here, or earlier

| of | Paddle | paddlejax |
|---|---|---|
| every optimizer | a None or out-of-range hyperparameter may fail at the first step, as ValueError or AssertionError | at construction, as one error that is both |
| every optimizer | weight_decay of a wrong type, clip limits min > max or not above 0 fail at the first step | at construction |
| every optimizer | True passes as an optimizer's rate or decay | refused |
| every optimizer | an unknown key in a group dict is ignored | an error that names the known ones |
| every optimizer | a parameter listed twice is updated twice per step | an error |
| every optimizer | a loss over parameters that are not the optimizer's moves nothing | an error that names both |
| every optimizer | no parameters: an error at the first step, or none | an error at construction |
| state_dict | a state entry that is missing, unexpected or misshapen shows at the first step, or not at all | all of them are reported at load, nothing is changed |
| sparse gradients | a sparse gradient in an optimizer that cannot take it fails inside the framework | a clear error, at construction for a Parameter with sparse=True |
| AdamW | an AdamW group's `weight_decay` of None fails at the first step | at construction |
| Muon | an unknown argument, or a key of the map that names nothing, is ignored | refused |
| LBFGS | LBFGS ignores `weight_decay` and `grad_clip` | refused at construction: put such terms into the closure's loss |
| LBFGS | an unknown `line_search_fn` fails at the first step; the search steps onto NaN | at construction; it backs off |
| averages | min > max fails at the first step; a parameter never averaged is NaN in `apply()` | at construction; it stays as it is |
| GradScaler | a missing entry of the scaler's state is a KeyError, an unexpected one ignored | all are reported at load |
| checkpoints | `paddle.load` unpickles, and runs what a file says | nothing is run; DenseTensors stored as `eval`, a file that is not a dict, integers above 64 bits are refused |
| checkpoints | an empty file is an EOFError, others are ValueError, KeyError, ... | one CheckpointError, a ValueError |
| checkpoints | numpy arrays in `paddle.save` stay ndarrays; uint16 becomes bfloat16 on the way back | they are tensors; uint16 is refused |

## Objects behave otherwise

| of | Paddle | paddlejax |
|---|---|---|
| every optimizer | `ClipGradByGlobalNorm` overwrites `p.grad` with the clipped gradient | `p.grad` stays |
| every optimizer | group dicts erase `ParamAttr` settings, and some are rewritten | settings they do not mention stay, dicts stay |
| every optimizer | a group's `weight_decay=None` keeps the optimizer's decay, an int fails | None switches decay off, an int is a number |
| every optimizer | 3.3.1: a group's `learning_rate` stays on the parameter for later optimizers | it does not |
| state_dict | the counter at the end of a key (`_0`, `_1`) must match, so a second optimizer in a process cannot load | it does not matter |
| state_dict | `state_dict()` holds the live arrays | copies |
| every optimizer | `_parameter_list`, `_accumulators` and the like are live | copies that cannot be written into |
| minimize | `minimize` does not run backward | it does, unless it has run, in one program with the update |
| minimize | gradients that `minimize` used count again in the next step unless they are cleared | they are spent: to be read in `.grad`, and None for the next `backward`, `step`, `minimize` |
| minimize | 1.8.5: every backward replaces the gradients that are there | so do `minimize(loss)` and `backward(loss)` of a fluid optimizer; a bare `loss.backward()` adds up, as in 2.x |
| minimize | a loss of several elements is differentiated as its sum, and shows its elements | the same gradient; its value is the sum |
| averages | 1.8.5: EMA's `apply()` overwrites the average | `apply()` is pure |
| GradScaler | after a step skipped by GradScaler a plain `opt.step()` is skipped too | it is not |
| GradScaler | a skipped step creates the accumulators | it changes nothing |
| checkpoints | `paddle.save` leaves half a file when it is interrupted | the old file or the new one; what cannot be read back is refused, by its place, before |
| checkpoints | 1.8.5: `load_dygraph` keeps the optimizer's name table; `save_dygraph` takes nested arrays | dropped unless kept; refused |
| PipelineOptimizer | PipelineOptimizer is asynchronous; `cut_list` holds variables; `queue_size` counts mini-batches; lengths are not checked | synchronous unless mode="async"; stage functions; micro-batches; they are |
| PipelineOptimizer | `sync_steps` averages pipelines | checked, without effect: there is one pipeline |
"""  # noqa: E501
