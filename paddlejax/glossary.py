"""What the arguments of public functions and classes mean: one sentence each, written once.

A row is `name: words`, or `owner.name: words` where one function or class means something of its own. A
symbol of the formulas comes first. `pages.publish` makes the section Args of every page of it.
"""

import functools

TABLE = """
learning_rate: η, the factor on every step. A number lives in the state or in the optimizer, where it can be set without a new compilation; also a schedule or scheduler
schedule.learning_rate: η₀, the rate from which the schedule starts
rprop.learning_rate: where the step size of every element starts
lr: η, the factor on every step: a number, or a scheduler
rprop.lr: where the step size of every element starts
muon.lr: η, the factor on every step, and on AdamW's for the other parameters
beta1: β₁, the part of the running mean of gradients that a step keeps
beta2: β₂, the part of the running mean of squares that a step keeps
epsilon: ε, what keeps the division from a denominator of zero
betas: β₁ and β₂, the parts of the running means of gradients and of squares that a step keeps: two numbers in [0, 1)
eps: ε, what keeps the division from a denominator of zero
rmsprop.alpha: ρ, the part of the running means that a step keeps
rho: ρ, the part of the running means that a step keeps
decay: ρ, the part of the running mean of squares that a step keeps
momentum: μ, the part of the velocity that a step keeps
dampening: τ, the part of a gradient that does not enter the velocity
maximize: whether a step goes along the gradients, not against them
use_nesterov: whether the step looks ahead along the new velocity
rescale_grad: c, the factor on the gradient before all else
lars_coeff: κ, the trust coefficient
lars_weight_decay: λ, the decay inside the rule
lamb_weight_decay: λ, the decay inside the rule
weight_decay: λ, the decay of the weights: a number (L2) or a regularizer such as `L1Decay`; None for none
adamw.weight_decay: λ, the decay beside Adam's step, times the rate
muon.weight_decay: λ, the decay beside the step, times the rate
exclude_from_weight_decay: parts of names; a tensor whose path or name contains one does not decay
exclude_from_weight_decay_fn: of a tensor's path, or of a Parameter: whether it does not decay
apply_decay_param_fun: of a tensor's path or name: whether it decays
lr_ratio: of a tensor's path, or of a Parameter: the factor on its step and decay
ratio: a factor on step and decay; `by_path` may set it for some leaves
always_adapt: whether tensors that do not decay have a trust ratio too
bias_correction: whether the running means are corrected for their start at zero
amsgrad: whether the largest mean of squares so far divides
scaled_epsilon: whether ε is multiplied by √(1-c₂), as Paddle 2 and 3 do
lazy_mode: whether a gradient of rows (`SelectedRows`) moves those rows only
initial_accumulator_value: where the sum of squares starts
lr_decay: the rate is divided by 1 + n lr_decay after n steps
use_learning_rate: whether the step is multiplied by η, as Paddle 2 and 3 do
momentum_decay: ψ, how fast the momentum grows towards β₁
centered: whether the mean gradient is subtracted from the mean square
l1: l₁, the L1 penalty; the larger, the more weights are exactly 0
l2: l₂, the L2 penalty
lr_power: the power of the sum of squares in the rate; -0.5 is the square root
guard: what is added to both penalties, as Paddle 3's kernel does
batch_num: n, how many batches an epoch has; a gradient of each is kept
learning_rate_range: the smallest and the largest step of an element
step_sizes: the smallest and the largest step of an element
etas: η₋ and η₊, the factors on an element's step where the gradient changes its sign, and where it does not
clip: the largest norm of a tensor's gradient
batch_size: how many examples a gradient is the mean of; the noise is divided by it
sigma: σ, the standard deviation of the noise
per_element: whether every element has noise of its own
key: a key such as `jax.random.key(0)`, from which all noise is drawn
axis_name: under `shard_map`, the mesh axis or axes over which tensors are cut
muon.learning_rate: η, the factor on every step, and on AdamW's for the other leaves; set and scheduled as any rate
adam_beta1: β₁ of the leaves that AdamW steps
adam_beta2: β₂ of the leaves that AdamW steps
adam_epsilon: ε of the leaves that AdamW steps
ns_steps: how often the iteration is repeated
ns_coeff_type: which triples (a, b, c) the iteration takes: "simple", "quintic", "polar_express", "aol" or "custom"
ns_coeffs: the triples of "custom"
ns_matmul_dtype: the dtype of the iteration's products; None for bfloat16 on accelerators, float32 on a CPU
nesterov: whether the step looks ahead along the new momentum
muon_version: which of the three scales s
muon_exclude_patterns: parts of paths, or functions (path, shape) -> bool, of leaves that AdamW steps
muon_extra_scale_factor: f, a factor on the step of a matrix
muon_param_info_map: {path or glob: MuonParamInfo}, what is known of single leaves
muon_epsilon: ε, the least norm that a matrix is divided by
use_hyperball: whether leaves keep their norm
sharded: under `shard_map(check_vma=False)`: whether, or over which axes, a leaf is cut; also a function of its path
split_concat_func: how a fused matrix is divided, one of `splits`
parameters: a list of Parameters, a list of group dicts, or a tree of arrays or Parameters
parameter_list: a list of Parameters, or a tree of arrays or Parameters
regularization: the decay, such as `L2Decay(1e-4)`; None for none
grad_clip: the clip of the gradients before all else, such as `nn.ClipGradByGlobalNorm(1.0)`; None for none
multi_precision: whether bfloat16 and float16 parameters have float32 masters
name: becomes a part of the keys of `state_dict()`
packed: whether small parameters lie end to end in common buffers, which makes many of them fast
use_multi_tensor: without effect: a step is one program anyway
foreach: without effect: a step is one program anyway
fused: without effect: a step is one program anyway
capturable: without effect: a step is one program anyway
use_lowprecision_moment: without effect: accumulators are float32 or wider
rule: the `Rule` that makes the step
masters: whether narrow parameters have float32 masters
max_iter: the most iterations of one `step`
max_eval: the most evaluations of the closure in one `step`; None for 1.25 times `max_iter`
tolerance_grad: stop where no element of the gradient is larger
tolerance_change: stop where function or step change by less
history_size: how many differences of steps and gradients are kept
line_search_fn: "strong_wolfe", or None for a step of fixed length
inner: the transformation that this one goes around
inner_optimizer: the optimizer that this one goes around
optimizer: the optimizer that this one goes around, or whose rate it sets
alpha: how far the slow weights go towards the fast ones
k: how many steps are taken between two of what this adds
k_steps: how many gradients are summed up before a step
avg: whether the gradients' mean is applied, not their sum
average_window_rate: the window as a part of all updates
min_average_window: the least number of updates in a window
max_average_window: the largest number of updates in a window
thres_steps: of the EMA: the count that lets the decay grow towards `decay`
exponential_moving_average.decay: the part of the average that an update keeps
exponentialmovingaverage.decay: the part of the average that an update keeps
init_loss_scaling: the loss scale at the start
incr_ratio: the factor by which the scale grows
decr_ratio: the factor by which the scale shrinks
incr_every_n_steps: after how many finite steps it grows
decr_every_n_nan_or_inf: after how many steps with NaN or inf it shrinks
enable: whether anything is scaled at all
use_dynamic_loss_scaling: whether the scale moves; else it stays where it starts
custom_white_list: checked and without effect: a loss says its dtypes itself
custom_black_list: checked and without effect: a loss says its dtypes itself
use_promote: checked and without effect
save_dtype: the dtype in which `state_dict()` hands parameters out
master_grad: checked; gradients of masters are float32 in any case
level: "O1" leaves parameters as they are, "O2" casts them
clip_norm: the largest norm that passes unchanged
max_norm: the largest norm that passes unchanged
norm_type: which norm; inf for the largest magnitude
error_if_nonfinite: whether a norm of NaN or inf is an error
clip_value: the largest magnitude that passes
max: the largest value that passes
min: the smallest value that passes; the default is -max
group_name: clips of one name take their norm together
auto_skip_clip: whether gradients stay untouched where their norm is small enough; the numbers are the same
coeff: λ, the factor on the penalty's gradient
regularization_coeff: λ, the factor on the penalty's gradient
vec: the vector
model: what frameworks call a model, or a tree of arrays
trainable: whether it is stepped; `stop_gradient` is its opposite
attr: a `ParamAttr`
initializer: not used: a Parameter is made of its value
regularizer: the decay of this parameter, in place of the optimizer's
do_model_average: whether ModelAverage averages this parameter
need_clip: whether the optimizer's clip sees this parameter
value: the array
call: what computes the loss
fixed: the arguments that are not Parameters
places: where each parameter lies in the buffers
count: updates made
params: the parameters, a tree of arrays; for an optimizer also a list of Parameters or of group dicts
updates: what is to be added to the parameters
cls: the class
function: the function
loss_fn: the function of the loss, whose first argument is the tree of parameters
has_aux: whether the function returns a pair (loss, anything else)
tables: the path of the table, or several
gradient_norm: () norm of all gradients before the clip
update_norm: () norm of all updates
parameter_norm: () norm of all parameters before the step
clip_factor: () norm behind the clip over the norm before it
trust_ratios: tree like the parameters: () where a rule has a trust ratio, else None
info.learning_rate: () the rate in force
skipped: () how many steps were skipped so far
objective_func: the function of x that is minimized; it returns a number
initial_position: where x starts, of shape (n,)
max_iters: the most iterations
initial_inverse_hessian_estimate: H at the start, of shape (n, n) and symmetric; None for the identity
max_line_search_iters: the most steps of one line search
initial_step_length: the step that a line search tries first
dtype: "float32" or "float64"
tree: the content as nested dicts and lists
source: the file that is read
target: what the entries are read into: a tree of arrays or Parameters
path: the file
obj: what is saved: nested dicts of arrays, Parameters and numbers
return_numpy: whether arrays come as numpy's
keep_name_table: whether Paddle's table of names stays in the dict
state_dict: the dict that is saved
place: without effect: JAX takes the device that it finds
verbose: whether a new rate is printed
last_epoch: the epoch to go on from; -1 for a new start
begin: the count at the start
step: how much the count grows with each step
lr_lambda: a function of the epoch: the factor
warmup_steps: how many steps the warm-up takes
start_lr: the rate at which the warm-up starts
end_lr: the rate at which it ends
decay_steps: after how many steps the decay has its full effect
decay_rate: the factor, or the factor in the exponent, of one such span
staircase: whether the rate falls in steps, at the end of each span
power: the power of the polynomial
cycle: whether it begins anew behind `decay_steps`
d_model: the width of the model
step_each_epoch: how many steps an epoch has
epochs: how many epochs there are
boundaries: the counts at which the rate changes
values: the rates, one more than there are boundaries
gamma: the factor
cycliclr.gamma: the factor of "exp_range"
step_size: after how many epochs the rate falls
milestones: the epochs at which the rate falls
T_max: half the period of the cosine
T_0: the length of the first cycle
T_mult: the factor on the length from cycle to cycle
eta_min: the lowest rate
start_factor: the factor at the start
end_factor: the factor at the end
total_steps: how many steps there are
total_iters: for how many epochs the factor acts or changes
steps_per_epoch: how many steps an epoch has
max_learning_rate: the highest rate
max_lr: the highest rate
base_learning_rate: the lowest rate
base_lr: the lowest rate
divide_factor: the highest rate over the first one
div_factor: the highest rate over the first one
final_div_factor: the first rate over the last one
end_learning_rate: the last rate
phase_pct: which part of the steps the rate rises
pct_start: which part of the steps the rate rises
anneal_strategy: "cos" or "linear"
three_phase: whether the rate falls in two phases
step_size_up: how many steps the rate rises
step_size_down: how many steps it falls; None for as many
mode: which shape; of a plateau "min" or "max", whether less or more is better
exp_gamma: the factor of "exp_range"
scale_fn: a function in place of `mode`
scale_mode: whether `scale_fn` sees the cycle or the iteration
factor: the factor on the rate
patience: how many epochs without progress pass before the rate falls
threshold: how much better counts as progress
threshold_mode: whether the threshold is relative, "rel", or absolute, "abs"
cooldown: how many epochs pass after a fall before it counts again
min_lr: the lowest rate
reduceonplateau.epsilon: a fall by less is left out
reduce_on_plateau.epsilon: a fall by less is left out
reducelronplateau.eps: a fall by less is left out
rampup_begin_step: the step at which compression begins
rampup_step: over how many steps the sparsity rises
sparsity: which part of the elements is not sent; a list while it rises
layer: a function (p, x) of one layer's parameters and its input, whose result is like x
mesh: the devices, with named axes
pipelined.axis: the mesh axis of the stages
micro_batches: M, into how many parts the batch is cut
batch_axis: the mesh axis over which the batch is sharded; None for none
remat: whether the backward pass computes the layers again, and holds less
num_trainers: how many workers there are; for the clip of DGC
buffers: {dtype: (n,) array}, one buffer for each dtype
init: a function of the parameters that returns the state
update: a function (updates, state, params) that returns the new updates and the new state
shared: {name: () array}, the accumulators that all parameters share, such as `beta1_pow_acc`
slots: {name: tree like the parameters}, the accumulators of each parameter, such as `moment1`
rows: (n,) int, which rows `values` belong to
selectedrows.values: (n, ...) the values of those rows
height: how many rows the whole tensor has
by_path.table: a list of pairs (pattern, options); the first pattern that matches a path decides
local_grad_clip_norm: a worker's gradient has at most this norm times √N; None for no clip
state: what `tx.init(params)` or an `update` returned
from_optax.state: what `tx.init(params)` of ours returned, or an optimizer object
from_torch.state: what `tx.init(params)` of ours returned, or an optimizer object
to_optax.state: a state of ours, or an optimizer object
to_optax.opt_state: what `init` of optax's optimizer returned
save_checkpoint.state: what an `update` returned, or an optimizer object; None for the parameters alone
leaf: a function of a path: what the rule is asked about, and the factor on the leaf's rate
dampening: τ, the part of a new gradient that does not enter the velocity; None keeps no state for it
parameters.tree: the model's parameters, nested dicts and lists of arrays
separator: what stands between the parts of a path
names: {name there, in the file or the other library: path or name here}; None where both are the same
parameters.names: {Paddle's name: path}; None to name every Parameter by its path
from_torch.names: the names of the model's parameters, in torch's order; None where the keys have them
protocol: the pickle protocol: 2, 3 or 4; Paddle 1.8.5 needs 2
schedules: the schedules, in their order; a number stands for a constant one
best: the best value so far
num_bad_epochs: how many epochs have passed since then
cooldown_counter: how many epochs are left in which none counts as bad
plateaustate.learning_rate: the rate in force
plateaustate.last_epoch: the epoch
checkpoint.layout: which kind of file it was read from
save_checkpoint.layout: which kind of folder is written
array: the values, a numpy array
max_bytes: the most bytes that a compressed file may unpack to
file: the file, or the folder of a large training where the page says so
folder: the new folder, which must not exist or be empty
max_shard_size: the most bytes of one file, a number or a text such as "5GB"
schedule: `count -> rate`, which the transformation was made with; None for a constant rate
save_optimizer.source: an optimizer object, or the state of a transformation
save_parameters.source: a tree of arrays or Parameters
mesh: the mesh of devices, such as `jax.make_mesh((8,), ("data",))`
place_list: a device for each section; None for `jax.devices()` in turn
concurrency_list: how many devices each section has; None for one
outer: the transformation of the step between the workers; None for `momentum(0.7, 0.9, use_nesterov=True)`
fsdp_shardings.axis: the name of the mesh axis along which the batch is cut
zero1.axis: the name of the mesh axis along which the state is cut
zero1_shardings.axis: the name of the mesh axis along which the state is cut
distributedfusedlamb.axis: the name of the mesh axis along which the moments are cut
param_shardings: a tree of NamedShardings, for parameters that other axes shard; None where there are none
timeout: the seconds after which all processes are ended; None for no limit
log_dir: the folder for the output of each process; None for none
inner_axis: the mesh axis of the devices inside one machine; None where each worker is one device
join: whether all gradients travel as one message; None for yes on CPUs and no elsewhere
embedding.table: (height, ...) array or Parameter
ids: int array of any shape: which rows are taken
padding_idx: the id whose row is zeros and has no gradient; None for none
split: how each matrix is divided further; None for not at all
head_sizes: how wide the parts of one head are; None for `heads` equal blocks
v_head_dim: how wide the values of a head are; None for `head_dim`
models: a tree of Parameters, or a list of such trees
optimizers: one optimizer object, or a list; None for none
master_weight: whether the optimizers keep float32 masters; None for yes
excluded_layers: a tree of Parameters that stay as they are
device: without effect
nproc_per_node: without effect
decorate.dtype: the dtype of the Parameters
to_variable.dtype: the dtype of the array; None to keep it
to_variable.name: without effect
make_step.axis_name: the mesh axis over which the batch is split
state_specs.axis_name: the mesh axis of the workers
diloco.axis_name: the mesh axis of the workers
diloco.num_trainers: how many workers there are
redistribute.num_trainers: how many workers there will be
convert.target: the file that is written
pipelineoptimizer.mode: "sync" for the step of the uncut network, "async" for Paddle 1.x's
model_path: the name of the file without its ending
zero_copy: without effect
opt_state: the state of optax's optimizer: what its `init` or `update` returned
arrays: the `state_dict()` of torch's optimizer, or a file of torch.save with one in it
transpose: the names of weights that torch holds as [out, in] and you as [in, out], or {name: order of axes}
"""  # noqa: E501


@functools.cache
def words() -> dict[str, str]:
    """Return the table as {name or owner.name: words}."""
    rows = (line.split(": ", 1) for line in TABLE.strip().splitlines())
    return dict(rows)  # type: ignore[arg-type]


def meaning(owner: str, name: str) -> str | None:
    """Return what an argument of this function or class means, None where the page itself says so."""
    known = words()
    return known.get(f"{owner.lower()}.{name}") or known.get(name)
