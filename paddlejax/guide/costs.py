"""What a step costs, and which mode is for whom.

Memory and the number of arrays decide what a step costs. Arithmetic hardly ever does. Four laws, measured
on a 2-core CPU with AVX-512:

| law | cost | who feels it |
| --- | --- | --- |
| bytes | each loop that XLA makes reads and writes its arrays once. Adam: 40 bytes per float32 parameter in three loops by default, 28 in one with `enable_cpu_fusion()`; a roof of about 50 GB/s in place makes 28 bytes 0.5 ms per million parameters | large models on CPU |
| arrays | handing one array into and out of a compiled program costs 1.3 µs (200 arrays) to 1.8 µs (1000), whatever is in it: Adam's 3 per parameter, and the gradient | hundreds of small tensors; any GPU |
| leaves | XLA compiles every leaf: 3 to 5 ms each, faster than linear beyond 1000. Tracing is once per shape, and lowering eight leaves alike is one call (0.4 ms a leaf for both, optax 2.1) | the first step |
| rates | a new rate, by hand or by schedule, is data: nothing is compiled | every scheduler |

## Which mode

| you have | use |
| --- | --- |
| anything, by default | one program with `tx.update` and `apply_updates`, or `opt.minimize(loss)`; donate parameters and state (`donate_argnums`), which halves peak memory and is 6 times as fast |
| a large model on CPU | `paddlejax.enable_cpu_fusion()`, the first thing after the import |
| hundreds of small tensors, gradients at hand | the object with `packed=True` |
| an embedding of which a batch reads few rows | `SelectedRows` with `adam(lazy_mode=True)`, `sgd` or `adagrad` (with `enable_cpu_fusion` from jaxlib 0.12 on) |
| a GPU | the default; XLA fuses there by itself |

## Memory

A step whose arguments are donated allocates nothing beside them; `pytest tests/test_memory.py` checks that.
On CPU, in the default form, there are exceptions. LAMB allocates one tree for its direction. LARS allocates
one if it rescales gradients. Adadelta, Ftrl and Rprop allocate two. ASGD allocates one, and with
`batch_num` n it allocates n. Before jaxlib 0.10.2 XLA also stores the squares that a norm sums: a tree for
each norm. In the fused form Adadelta, Ftrl and Rprop allocate nothing, and a clip or a decay in front of
the rule costs one tree.

## The fused form

It is one option of XLA for the whole process. So you must ask for it before JAX starts:
`enable_cpu_fusion()` adds it to `XLA_FLAGS`, compiles a small program to see whether XLA obeys, and says so
if it does not. The numbers stay within 1e-6. Before jaxlib 0.12 XLA aborts the process where it compiles
two scatters whose values come out of one loop: two embeddings that share a gradient computation, or lazy
rows, which are refused. Try it on your program before you rely on it.

## Measured

`python tests/benchmarks/peers.py --paddle-python PATH --torch-python PATH --json records.json` runs all
contestants on a CPU, each in a process of its own, in turns, and prints such tables. It takes about an
hour. `python tests/benchmarks/gpu.py` is the benchmark for one GPU.

Adam, as a multiple of the time of optax under jit with donation in the same round. Below 1 is faster.
Medians of 9 rounds on 2 cores of an Intel Xeon with nothing else running; paddlejax 0.1, jax 0.10.2, optax
0.2.8, torch 2.13, Paddle 3.3.1:

| Adam | paddlejax | with cpu fusion | object, `step` | object, packed | torch fused | torch foreach | Paddle |
|---|---|---|---|---|---|---|---|
| 1 x 50M | 0.96 | **0.60** | 1.01 | 1.01 | 0.63 | 2.69 | 1.94 |
| BERT, 199 tensors, 110M | 0.99 | **0.63** | 1.01 | 0.98 | 0.67 | 2.18 | 2.09 |
| ResNet-50, 161 tensors, 25.6M | 0.86 | 0.53 | 0.85 | 0.78 | **0.41** | 1.64 | 1.23 |
| 2000 small | 1.02 | 1.01 | 1.05 | **0.09** | 0.64 | 1.69 | 1.10 |
| 1000 x 64 | 0.98 | 1.07 | 1.08 | **0.09** | 0.70 | 1.76 | 1.33 |
| 6 tiny | 1.09 | 0.72 | 0.97 | 0.75 | **0.71** | 1.55 | 1.16 |

Memory allows 0.64 at 50M: with the fused form Adam is there.

| other optimizers | paddlejax | Paddle | | paddlejax | Paddle |
|---|---|---|---|---|---|
| 1 x 50M, AdamW | 1.01 | 2.08 | BERT, AdamW | 1.02 | 2.03 |
| 1 x 50M, SGD | 0.98 | 1.87 | BERT, SGD | 1.00 | 1.94 |
| 1 x 50M, Momentum | 0.96 | 1.74 | BERT, Momentum | 0.99 | 1.81 |
| 1 x 50M, RMSProp | 0.99 | 1.71 | BERT, RMSProp | 1.02 | 1.73 |
| ResNet-50, LARS | 0.35 | 0.40 | BERT, LARS | 0.22 | 0.44 |
| ResNet-50, LAMB | 0.67 | 1.71 | BERT, LAMB | 0.58 | 2.34 |

Tracing and lowering of 1000 tensors takes 0.20 of optax's time. With compilation optax needs 7.3 s,
paddlejax 4.2 s, the object 4.4 s, and the packed object 2.2 s. Of 2000 tensors of several shapes these are
19, 14, 10 and 1.9 s. A new rate compiles nothing. `minimize` keeps the gradients of its loss in `.grad`,
which costs one tree of memory.

## The object beside the functions

`python tests/benchmarks/ratios.py` measures the main ratios in one process, in turns; `--quick` takes two
minutes, and `--table` puts the records of several versions of JAX side by side. Its quick run:

| | peer | ours, 0.10.2 | 0.10.2, ratio (quartiles) | 0.12.0.1, ratio (quartiles) |
|---|---|---|---|---|
| update, Adam, one tensor | optax | 3.86 ms | 1.08 (1.05 to 1.09) | 1.13 (1.10 to 1.18) |
| update, AdamW, one tensor | optax | 3.88 ms | 1.12 (1.01 to 1.18) | 1.20 (1.07 to 1.21) |
| update, Adam, 200 tensors | optax | 1.36 ms | 0.96 (0.94 to 0.97) | 0.98 (0.93 to 1.03) |
| update, Momentum, matrices | optax | 621 µs | 0.94 (0.89 to 1.04) | 0.93 (0.82 to 1.05) |
| update, LAMB, matrices | optax | 2.52 ms | 0.68 (0.66 to 0.70) | 0.61 (0.60 to 0.63) |
| update, LARS, matrices | optax | 1.27 ms | 0.39 (0.39 to 0.40) | 0.23 (0.22 to 0.26) |
| update, Adam with masters, bfloat16 | optax | 5.19 ms | 1.13 (1.12 to 1.13) | 1.11 (1.06 to 1.12) |
| step, 6 tiny tensors | optax | 118 µs | 1.03 (0.94 to 1.19) | 0.99 (0.91 to 1.07) |
| step, 6 tiny tensors, packed | optax | 49 µs | 0.45 (0.44 to 0.47) | 0.32 (0.32 to 0.34) |
| minimize, one tensor | functions | 8.1 ms | 1.19 (1.11 to 1.20) | 1.27 (1.17 to 1.30) |
| minimize, one tensor, gradients | functions that return gradients | 9.79 ms | 1.02 (0.97 to 1.06) | 1.06 (1.02 to 1.12) |
| minimize, 200 tensors | functions | 4.62 ms | 1.23 (1.09 to 1.38) | 1.40 (1.24 to 1.61) |
| minimize, 200 tensors, gradients | functions that return gradients | 5.42 ms | 1.02 (0.99 to 1.07) | 0.93 (0.88 to 0.94) |
| minimize, 200 tensors of a network | functions | 6.8 ms | 1.11 (1.07 to 1.12) | 1.02 (1.01 to 1.06) |
| minimize, 200 tensors of a network, gradients | functions that return gradients | 7.04 ms | 1.05 (1.03 to 1.10) | 1.13 (1.12 to 1.15) |
| minimize, BERT's 199 tensors | functions | 36.6 ms | 1.08 (1.06 to 1.09) | 1.03 (1.01 to 1.06) |
| minimize, BERT's 199 tensors, gradients | functions that return gradients | 34.3 ms | 0.96 (0.93 to 0.98) | 0.96 (0.94 to 0.98) |
| minimize, 6 tiny tensors | functions | 207 µs | 2.31 (2.09 to 2.42) | 2.47 (2.44 to 2.55) |
| minimize, 6 tiny tensors, gradients | functions that return gradients | 162 µs | 1.24 (1.21 to 1.33) | 1.32 (1.25 to 1.36) |
| step, a random half of 50 | all of them | 533 µs | 1.20 (1.16 to 1.21) | 1.18 (1.15 to 1.20) |
| first minimize, 200 tensors | optax and jit | 1.64e+03 ms | 0.98 (0.97 to 0.99) | 1.03 (0.98 to 1.06) |
| trace, 300 leaves | optax | 50.3 ms | 0.17 (0.17 to 0.21) | 0.24 (0.20 to 0.24) |
| trace, chain of 3, 300 leaves | optax | 105 ms | 0.26 (0.25 to 0.26) | 0.31 (0.27 to 0.31) |
| trace to program, 300 leaves | optax | 843 ms | 0.65 (0.61 to 0.65) | 0.67 (0.66 to 0.69) |

A gradient that nobody has looked at gives its memory to the next one. So `minimize` of one tensor of 50M,
which is bound by bytes, takes 1.03 to 1.08 of what the functions take (1.4 if they return their gradients
in new memory). 200 small tensors are bound by the number of arrays that go into and out of a program, six by
what Python does. There `minimize` costs about what functions cost that return their gradients. Three designs
were measured for 200 tensors at Σ (w - 1)²: gradients in the memory of the last ones 1.44, small ones in one
array 1.40 to 1.53, and no gradients but the old values, from which they could be computed again, 1.44. A loss
whose backward does any work hides this, as the rows of a network and of BERT's tensors show.
"""  # noqa: E501
