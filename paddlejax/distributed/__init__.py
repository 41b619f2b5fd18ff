"""Training on many devices: compressed gradients, pipelines, sharded state, several processes.

Everything runs on jax.sharding, shard_map and jax.distributed; nothing here carries bytes by itself.

## What to use

An optimizer is a pure function of arrays. So `jax.jit` does with it what it does with sharded arrays. This
package is for the cases where that is not enough.

| you have | use | what changes |
|---|---|---|
| a model that fits on one device, and several devices | `jit`, parameters replicated, the batch sharded over `data` | nothing: `jit` averages the gradients |
| the same over a network | `make_step(loss, tx, mesh, params)` | all gradients are one message, not one per tensor |
| an optimizer state that does not fit | `zero1(tx, mesh, "data")` | each of N devices keeps 1/N of the state |
| a slow network between the machines | `dgc_momentum`, as object `DGCMomentumOptimizer` | only the largest gradients are sent |
| the same, and another optimizer than momentum | `diloco(adamw(1e-3), 500, N)` | the workers meet once in 500 steps |
| machines of several devices each | `make_step(..., inner_axis="local")` | each device sends its part to other machines |
| a model that does not fit on one device | `fsdp_shardings(params, mesh, "data")` | parameters are divided too, over the axis of the batch |
| the same, and tensors that are large beside the batch | parameters sharded over `model` | products are divided |
| the same, and its layers are equal | `pipelined(layer, mesh, "stage", 16)` | each device has some of the layers |
| a Paddle program with a pipeline, to port | `PipelineOptimizer` | layers are divided |
| a batch of many thousands | `lamb` or `lars_momentum` | the rate follows the norms of each tensor |

What a step takes on a network of 100 Mbit/s and 10 ms each way, between 2 machines with a CPU each: a million
parameters in 4 matrices and 64 vectors, `python tests/benchmarks/network.py`.

| | ms a step | times as fast | kB received |
|---|---|---|---|
| `jit`, one message per tensor | 3313 | 1 | 4358 |
| `make_step` with `momentum`, one message | 392 | 8.4 | 4276 |
| `dgc_momentum` at 99.9 % | 56 to 68 | 49 to 59 | 143 |
| `diloco`, one exchange in 20 steps | 80 | 41 | 214 |

## ZeRO-1

It is one line. It needs no `out_shardings`, goes around any transformation, optax's included, and works on
Auto and Explicit meshes. The numbers are those of one device.

>>> from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
>>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
>>> tx = zero1(adam(1e-3), mesh, "data")
>>> weights = jax.device_put({"w": jnp.ones((64, 256))}, NamedSharding(mesh, P()))  # a copy on every device
>>> state = tx.init(weights)  # 1/N of it on each
>>> updates, state = jax.jit(tx.update)(weights, state, weights)
>>> print(updates["w"][0, 0])
-0.001

Tensors are held in equal parts, with zeros behind them where N does not divide a dimension: at most 1.05/N
of the state is on each device. Norms of all tensors, and whether all are finite, are one message each.
`memory_kind="pinned_host"` keeps the state in the host's memory. `param_shardings` names parameters that are
sharded already. Without ZeRO-1, `jax.jit(tx.init, out_shardings=state_shardings(tx, params))` puts a state
beside its sharded parameters; a plain `jax.jit(tx.init)` puts all of it on the first device. Inside `shard_map`, give an `axis_name` to what
takes a norm (`lamb`, `lars_momentum`, `clip_by_norm`, `clip_by_global_norm`, `dpsgd`) or looks for NaN
(`skip_nonfinite`, `dynamic_loss_scale`). Under `jit` norms are right by themselves.

## FSDP

A model that does not fit on one device fits on N of them, on the axis that splits the batch: put each
parameter where `fsdp_shardings` says, and the state beside it. Any transformation steps its part, and XLA
gathers a weight where it is used. `zero1` is not needed then, and says so.

>>> weights = {"w": jnp.ones((64, 256))}
>>> weights = jax.device_put(weights, fsdp_shardings(weights, mesh, "data"))
>>> state = jax.jit(adam(1e-3).init, out_shardings=state_shardings(adam(1e-3), weights))(weights)
>>> print(state.slots["moment1"]["w"].sharding.spec)
P(None, 'data')

`python examples/train_fsdp.py` trains so on 8 devices, and goes on from its checkpoint on 4.

## DGC and pipelines

DGC runs its own step over the mesh: `minimize` of the object, `make_step` of the functions. `python
examples/train_dgc.py` compares it with dense sums. A pipeline is a list of stage functions. The norm of a
clip is that of all stages, and the state is the one you would have without a pipeline. `python
examples/train_pipeline.py` measures the overlap: stages that only wait reach 1.66 of 1.78 that are possible
at 2 stages and 8 micro-batches, and 2.74 of 2.91 at 4 stages. Small arithmetic on a CPU gets slower. 1F1B
holds the activations of 2 micro-batches, GPipe those of 8; `recompute` halves that and more.

## Several processes

`python examples/train_zero1.py --processes 2` trains in two real processes, and so do `train_dgc.py` and
`train_pipeline.py`. A script that starts with `initialize()` runs alone, under `launch`, and on a cluster:

    python -m paddlejax.distributed --processes 2 --devices 4 train.py
    # by hand, on machine i of 2; the first one is the coordinator
    PADDLEJAX_COORDINATOR=10.0.0.1:1234 PADDLEJAX_PROCESSES=2 PADDLEJAX_PROCESS_ID=$i python train.py

Under SLURM, Open MPI or on TPUs call `jax.distributed.initialize()` instead: it finds all three by itself.
If a process dies, the others stop within about 10 s.

## What it costs

N devices, P parameters, float32, per step and device. Measured on 8 simulated CPU devices with 919,296
parameters and Adam: the bytes in the compiled program, counted as `pytest tests/test_sharding.py` does. A
ring all-reduce of B bytes receives 2 B (N-1)/N, an all-gather B (N-1)/N.

| | bytes received | measured | state | measured |
|---|---|---|---|---|
| data parallel, Adam | 8P (N-1)/N | 6.44 MB | 8P | 7,354,384 |
| ZeRO-1, Adam | 12P (N-1)/N on CPU; 8P (N-1)/N where the compiler makes a reduce-scatter of it | 9.65 MB | 8P/N | 919,312 |
| DGC, sparsity s | 8P (1-s)(N-1), and 4 (N-1) per number in small tensors | 73 kB at s = 99.9 % (88 times fewer than dense) | 8P (u and v, own to each device) | as Adam's |
| pipeline, k stages, M micro-batches | the activations at the cuts, forward and backward | - | 8P/k | - |

The pipeline is idle for (k-1)/(M+k-1) of the time, under 1F1B and GPipe alike: 11 % at k = 2, M = 8. A
`queue_size` below k raises it. XLA makes a reduce-scatter on GPU and TPU only. No GPU cluster was measured:
these are counts, not times.

## A plan for thousands of devices

- **State.** Adam needs 8 bytes per parameter beside the 4 of the parameter and the 4 of its gradient. For
  10⁹ parameters that is 8 GB on every device; with ZeRO-1 over 64 devices 125 MB, over 1024 8 MB. Past
  about 64 devices parameters and gradients (8 GB) are what is left: cut those over the same axis, by
  `fsdp_shardings`. A device then holds 16 GB / N.
- **Wire.** A ring all-reduce costs nearly 8P bytes whatever N is, so adding devices adds none, only
  latency.
- **DGC.** Its gain over dense is 1/(N(1-s)): at s = 99.9 % it is 125 for 8 devices, 16 for 64 and nothing
  at 1000. So use it *between* machines, over an axis of 8 to 64 slow links, and dense sums inside each
  machine (`inner_axis`).
- **Batch.** 4096 devices at 8 examples each are a batch of 32,768. LAMB and LARS are made for that, with a
  warm-up; their norms cost one number per tensor and device.
- **Pipeline.** For at most 10 % idle time take M ≥ 9(k-1) micro-batches: 27 for 4 stages, 63 for 8. Keep k
  small, and multiply by data parallelism: 4 stages x 1024 replicas, rather than 64 stages x 64.
- **Failures.** With thousands of devices one is always failing: `initialize` makes a death end the run
  within about 10 s, instead of the 100 s of JAX's default, and a checkpoint brings it back.
- **Checkpoints.** Orbax saves a state from N processes and restores it into M, each its part; nothing is
  gathered. What a run starts with, of `make_step`, `pipelined` or `fsdp_shardings`, says where all belongs:

      with orbax.checkpoint.CheckpointManager(folder) as manager:
          manager.save(count, args=orbax.checkpoint.args.StandardSave((params, state)))

      step, params, state = make_step(loss, tx, mesh, params)  # on another mesh
      target = jax.tree.map(orbax.checkpoint.utils.to_shape_dtype_struct, (params, state))
      params, state = manager.restore(count, args=orbax.checkpoint.args.StandardRestore(target))

  `zero1` holds a state in parts that depend on N: save `tx.whole(state, params)`, restore it where the
  state of the transformation inside lies (`state_shardings`), and `tx.load(state, params)` holds it again.
  `dgc_momentum` and `diloco` keep something for each worker: restore it for as many as there were, then
  `redistribute`.
"""  # noqa: E501

from typing import TYPE_CHECKING

from ..elsewhere import names_of
from ..pages import publish
from .data_parallel import local_grads, make_step, redistribute, state_specs
from .dgc import dgc_momentum
from .dgc_optimizer import DGCMomentumOptimizer
from .diloco import diloco
from .pipeline import PipelineOptimizer
from .processes import initialize, launch
from .sharding import fsdp_shardings, state_shardings, zero1, zero1_shardings
from .stacked import pipelined

__all__ = [
    "DGCMomentumOptimizer",
    "PipelineOptimizer",
    "dgc_momentum",
    "diloco",
    "fsdp_shardings",
    "initialize",
    "launch",
    "local_grads",
    "make_step",
    "pipelined",
    "redistribute",
    "state_shardings",
    "state_specs",
    "zero1",
    "zero1_shardings",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
