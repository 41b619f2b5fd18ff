"""What Paddle has and this package has not: its names can be imported, and using one says the way in JAX.

One table says the way of every name; a name that ends with a dot is a module, and the way holds for all that
is in it. `names_of(__name__)` is the `__getattr__` of a module of this package. A module that is not here can
be imported all the same: what does not exist as a file is looked for in this table, last of all.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.split(".")[0]

WAYS = {
    "there are no layers here; build the model with flax, equinox, haiku or plain functions, and give "
    "its parameters to paddlejax.parameters(tree)": """
        nn.AdaptiveAvgPool1D nn.AdaptiveAvgPool2D nn.AdaptiveAvgPool3D nn.AdaptiveMaxPool1D
        nn.AdaptiveMaxPool2D nn.AdaptiveMaxPool3D nn.AlphaDropout nn.AvgPool1D nn.AvgPool2D nn.AvgPool3D
        nn.BatchNorm nn.BatchNorm1D nn.BatchNorm2D nn.BatchNorm3D nn.BeamSearchDecoder nn.BiRNN nn.Bilinear
        nn.CELU nn.ChannelShuffle nn.Conv1D nn.Conv1DTranspose nn.Conv2D nn.Conv2DTranspose nn.Conv3D
        nn.Conv3DTranspose nn.CosineSimilarity nn.Dropout nn.Dropout2D nn.Dropout3D nn.ELU nn.Embedding
        nn.Flatten nn.Fold nn.GELU nn.GLU nn.GRU nn.GRUCell nn.GroupNorm nn.Hardshrink nn.Hardsigmoid
        nn.Hardswish nn.Hardtanh nn.Identity nn.InstanceNorm1D nn.InstanceNorm2D nn.InstanceNorm3D nn.LSTM
        nn.LSTMCell nn.Layer nn.LayerDict nn.LayerList nn.LayerNorm nn.LeakyReLU nn.Linear
        nn.LocalResponseNorm nn.LogSigmoid nn.LogSoftmax nn.MaxPool1D nn.MaxPool2D nn.MaxPool3D nn.MaxUnPool1D
        nn.MaxUnPool2D nn.MaxUnPool3D nn.Maxout nn.Mish nn.Module nn.ModuleDict nn.ModuleList
        nn.MultiHeadAttention nn.PReLU nn.Pad1D nn.Pad2D nn.Pad3D nn.PairwiseDistance nn.ParameterDict
        nn.ParameterList nn.PixelShuffle nn.PixelUnshuffle nn.RNN nn.RNNCellBase nn.RReLU nn.ReLU nn.ReLU6
        nn.SELU nn.Sequential nn.SiLU nn.Sigmoid nn.Silu nn.SimpleRNN nn.SimpleRNNCell nn.Softmax nn.Softmax2D
        nn.Softplus nn.Softshrink nn.Softsign nn.SpectralNorm nn.Swish nn.SyncBatchNorm nn.Tanh nn.Tanhshrink
        nn.ThresholdedReLU nn.Transformer nn.TransformerDecoder nn.TransformerDecoderLayer
        nn.TransformerEncoder nn.TransformerEncoderLayer nn.Unflatten nn.Unfold nn.Upsample
        nn.UpsamplingBilinear2D nn.UpsamplingNearest2D nn.ZeroPad1D nn.ZeroPad2D nn.ZeroPad3D
        nn.dynamic_decode nn.layer. nn.decode. nn.quant. nn.spectral_norm nn.utils.spectral_norm
        nn.utils.weight_norm nn.utils.remove_weight_norm vision.models. static.nn. incubate.nn. fluid.nets.
        fluid.layers. fluid.BatchNorm fluid.BilinearTensorProduct fluid.Conv2D fluid.Conv2DTranspose
        fluid.Conv3D fluid.Conv3DTranspose fluid.Dropout fluid.Embedding fluid.GRUUnit fluid.GroupNorm
        fluid.InstanceNorm fluid.Layer fluid.LayerNorm fluid.Linear fluid.NCE fluid.PRelu fluid.Pool2D
        fluid.SpectralNorm fluid.TreeConv fluid.embedding fluid.one_hot fluid.input. fluid.WeightNormParamAttr
        fluid.dygraph.BatchNorm fluid.dygraph.BilinearTensorProduct fluid.dygraph.Conv2D
        fluid.dygraph.Conv2DTranspose fluid.dygraph.Conv3D fluid.dygraph.Conv3DTranspose fluid.dygraph.Dropout
        fluid.dygraph.Embedding fluid.dygraph.GRUUnit fluid.dygraph.GroupNorm fluid.dygraph.InstanceNorm
        fluid.dygraph.Layer fluid.dygraph.LayerList fluid.dygraph.LayerNorm fluid.dygraph.Linear
        fluid.dygraph.NCE fluid.dygraph.PRelu fluid.dygraph.ParameterList fluid.dygraph.Pool2D
        fluid.dygraph.Sequential fluid.dygraph.SpectralNorm fluid.dygraph.TreeConv fluid.dygraph.nn.
        fluid.dygraph.container. fluid.dygraph.layers. LazyGuard""",
    "write the loss with jax.numpy or optax.losses, in a function under @paddlejax.loss": """
        nn.BCELoss nn.BCEWithLogitsLoss nn.CTCLoss nn.CosineEmbeddingLoss nn.CrossEntropyLoss
        nn.GaussianNLLLoss nn.HSigmoidLoss nn.HingeEmbeddingLoss nn.HuberLoss nn.KLDivLoss nn.L1Loss
        nn.MSELoss nn.MarginRankingLoss nn.MultiLabelMarginLoss nn.MultiLabelSoftMarginLoss nn.MultiMarginLoss
        nn.NLLLoss nn.PoissonNLLLoss nn.RNNTLoss nn.SmoothL1Loss nn.SoftMarginLoss nn.TripletMarginLoss
        nn.TripletMarginWithDistanceLoss nn.loss. fluid.BCELoss fluid.L1Loss fluid.MSELoss fluid.NLLLoss
        fluid.dygraph.BCELoss fluid.dygraph.L1Loss fluid.dygraph.MSELoss fluid.dygraph.NLLLoss""",
    "use jax.nn and jax.numpy, and jax.lax for convolutions": "nn.functional.",
    "make the first values with jax.nn.initializers; paddlejax.parameters makes Parameters of them": """
        nn.initializer. nn.init. fluid.initializer.""",
    "say paddlejax.Parameter(jax.numpy.zeros(shape), name)": """
        create_parameter nn.Parameter static.create_parameter fluid.layers.create_parameter
        static.create_global_var fluid.layers.create_global_var""",
    "write the loop yourself: loss = loss_of(params, x, y); opt.minimize(loss)": """
        Model callbacks. hapi. summary flops metric. fluid.metrics. fluid.evaluator. fluid.average.
        static.accuracy static.auc""",
    "feed arrays of numpy or JAX, from any loader that gives such: grain, tf.data, torch's": """
        io. dataset. reader. batch vision. text. audio. hub. fluid.io. fluid.reader. fluid.data_feeder.
        fluid.DataFeeder fluid.DataFeedDesc fluid.DatasetFactory fluid.InMemoryDataset fluid.QueueDataset
        fluid.dataset. fluid.dataloader. fluid.layers.data fluid.data static.data static.InputSpec
        distributed.InMemoryDataset distributed.QueueDataset distributed.shard_dataloader""",
    "there are no static programs: opt.minimize(loss_of(params, x, y)) compiles a step and runs it": """
        enable_static static.Executor static.Program static.Variable static.Scope static.BuildStrategy
        static.CompiledProgram static.ExecutionStrategy static.ParallelExecutor static.append_backward
        static.default_main_program static.default_startup_program static.device_guard static.global_scope
        static.gradients static.name_scope static.program_guard static.py_func static.scope_guard static.Print
        fluid.Executor fluid.Program fluid.Variable fluid.Scope fluid.BuildStrategy fluid.CompiledProgram
        fluid.ExecutionStrategy fluid.ParallelExecutor fluid.default_main_program
        fluid.default_startup_program fluid.device_guard fluid.global_scope fluid.gradients fluid.name_scope
        fluid.program_guard fluid.scope_guard fluid.backward. fluid.compiler. fluid.executor. fluid.framework.
        fluid.core. fluid.unique_name. fluid.layer_helper. fluid.profiler. fluid.LoDTensor
        fluid.LoDTensorArray fluid.Tensor fluid.create_lod_tensor fluid.memory_optimize fluid.release_memory
        fluid.dygraph.disable_dygraph fluid.dygraph.disable_imperative fluid.disable_dygraph
        fluid.disable_imperative fluid.contrib. base. framework. pir. device_guard""",
    "save parameters and optimizers with paddlejax.save, and export functions with jax.export": """
        static.save static.load static.save_inference_model static.load_inference_model
        static.load_program_state static.set_program_state static.serialize_program fluid.save fluid.load
        fluid.load_program_state fluid.set_program_state inference. onnx. async_save""",
    "put the batch on a jax.sharding.Mesh and step as before; paddlejax.distributed has zero1, "
    "dgc_momentum, PipelineOptimizer and launch": """
        DataParallel distributed.DataParallel distributed.ParallelEnv distributed.ProcessMesh
        distributed.ReduceOp distributed.Strategy distributed.all_gather distributed.all_gather_object
        distributed.all_reduce distributed.alltoall distributed.barrier distributed.broadcast
        distributed.destroy_process_group distributed.fleet. distributed.auto_parallel. distributed.gather
        distributed.get_group distributed.get_rank distributed.get_world_size
        distributed.group_sharded_parallel distributed.init_parallel_env distributed.is_initialized
        distributed.new_group distributed.parallel. distributed.parallelize distributed.recv
        distributed.reduce distributed.reduce_scatter distributed.reshard distributed.rpc. distributed.scatter
        distributed.send distributed.set_mesh distributed.shard_layer distributed.shard_optimizer
        distributed.shard_scaler distributed.shard_tensor distributed.spawn distributed.split
        distributed.utils. distributed.communication. distributed.collective.
        distributed.save_group_sharded_model distributed.to_static
        incubate.distributed. incubate.fleet. fluid.incubate. fluid.transpiler.
        fluid.DistributeTranspiler fluid.DistributeTranspilerConfig fluid.fleet.
        fluid.dygraph.DataParallel fluid.dygraph.ParallelEnv fluid.dygraph.prepare_context
        fluid.dygraph.parallel.""",
    "leave it out: JAX takes the accelerator that it finds, and jax.default_device(...) says another": """
        CPUPlace CUDAPlace CUDAPinnedPlace CustomPlace XPUPlace set_device get_device device. cuda.
        is_compiled_with_cuda is_compiled_with_rocm is_compiled_with_xpu is_compiled_with_custom_device
        get_cudnn_version static.cpu_places static.cuda_places fluid.CPUPlace fluid.CUDAPlace
        fluid.CUDAPinnedPlace fluid.cpu_places fluid.cuda_places fluid.cuda_pinned_places
        fluid.is_compiled_with_cuda set_flags get_flags fluid.set_flags fluid.get_flags""",
    "leave it out: there is no other mode than this one": """
        disable_static in_dynamic_mode fluid.in_dygraph_mode is_grad_enabled fluid.require_version
        fluid.install_check.""",
    "hold a key, jax.random.key(seed), and hand it to what draws": """
        seed get_rng_state set_rng_state get_cuda_rng_state set_cuda_rng_state Generator manual_seed""",
    "draw with jax.random and a key": """
        bernoulli binomial multinomial normal poisson rand rand_like randint randint_like randn randn_like
        random. randperm standard_gamma standard_normal uniform log_normal distribution.""",
    "say jax.numpy.asarray(x), or paddlejax.Parameter(x) for what is trained": """
        to_tensor as_tensor from_numpy assign fluid.dygraph.to_tensor""",
    "an array is a jax.Array, a trained one a paddlejax.Parameter": """
        Tensor is_tensor FloatTensor DoubleTensor IntTensor LongTensor HalfTensor BoolTensor""",
    "differentiate with jax.grad or jax.vjp, and with jax.custom_vjp by a rule of your own": """
        grad autograd. enable_grad set_grad_enabled fluid.dygraph.grad incubate.autograd.""",
    "call jax.jit on a function of arrays; a step of an optimizer is compiled as it is": """
        jit. fluid.dygraph.jit. fluid.dygraph.TracedLayer fluid.dygraph.ProgramTranslator
        fluid.dygraph.declarative fluid.dygraph.dygraph_to_static_func incubate.jit.""",
    "set jax_enable_x64 of jax.config for float64, or say the dtype where arrays are made": """
        set_default_dtype get_default_dtype""",
    "measure with jax.profiler": "profiler.",
    "give grad_clip= to the optimizer; 1.8.5 refuses this in dygraph too": """
        fluid.clip.set_gradient_clip nn.clip.set_gradient_clip fluid.clip.ErrorClipByValue""",
    "arrays are JAX's: use jax.numpy, jax.lax and jax.scipy": """
        add_n addmm bmm cast cat chunk clamp clone crop cumulative_trapezoid digamma dist div eq equal_all erf
        erfinv expand expand_as flatten floor_mod gather gather_nd ge greater_than gt increment index_add
        index_fill index_put index_sample index_select inverse is_complex is_empty is_floating_point
        is_integer kthvalue le lerp less_than lgamma logcumsumexp logit logsumexp lt masked_fill
        masked_scatter masked_select mm mode mul multiplex mv ne neg norm numel pdist permute range rank
        repeat_interleave rsqrt scale scatter scatter_add scatter_nd scatter_nd_add sgn shard_index sigmoid
        slice softmax stanh strided_slice sub t tensor. tolist topk unbind unflatten unfold unsqueeze view
        linalg. fft. signal. special. geometric. quantization. incubate.segment_sum incubate.segment_mean""",
}

_OPTIMIZERS = "adadelta adagrad adam adamax adamw asgd lamb momentum nadam radam rmsprop rprop sgd"
_INCUBATE = "gradient_merge lars_momentum lbfgs lookahead modelaverage pipeline recompute"
# Modules by which Paddle's programs import what lies in another one here.
ALIASES = {
    **{f"optimizer.{name}": "optimizer" for name in _OPTIMIZERS.split()},
    **{f"incubate.optimizer.{name}": "incubate.optimizer" for name in _INCUBATE.split()},
    "amp.grad_scaler": "amp",
    "nn.clip": "nn",
    "nn.utils.transform_parameters": "nn.utils",
    "fluid.param_attr": "fluid",
    "fluid.dygraph.checkpoint": "fluid.dygraph",
    "fluid.layers.learning_rate_scheduler": "fluid.layers",
}


class ElsewhereError(NotImplementedError, AttributeError, TypeError):
    """A name of Paddle's was used that this package does not have; the text says the way in JAX."""


class Elsewhere(ModuleType):
    """A class, function or module of Paddle's that is not here: to import it works, to use it does not.

    A module gives whatever name it is asked for, as another of these.
    """

    def __init__(self, path: str, way: str, is_module: bool):
        super().__init__(f"{PACKAGE}.{path}", f"Not in {PACKAGE}: {way}.")
        vars(self).update(_path=path, _way=way, _is_module=is_module)
        if is_module:
            self.__path__ = []  # so that `import` goes on below it

    def __getattr__(self, name: str) -> Any:
        if self._is_module and not name.startswith("_"):
            return found(self.__name__, name)
        raise self._error()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse but what `import` sets."""
        if not name.startswith("__") and not isinstance(value, Elsewhere):
            raise self._error()
        super().__setattr__(name, value)

    def _error(self) -> ElsewhereError:
        return ElsewhereError(f"{self.__name__} is not here: {self._way}")

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise self._error()

    __call__ = __mro_entries__ = __instancecheck__ = __subclasscheck__ = _refuse
    __enter__ = __exit__ = __iter__ = __getitem__ = __setitem__ = __contains__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __or__ = __ror__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _refuse

    def __reduce__(self) -> Any:
        return _made, (self._path,)

    def __repr__(self) -> str:
        return f"<{self.__name__}, not here: {self._way}>"


@functools.cache
def _table() -> dict[str, str]:
    return {name: way for way, names in WAYS.items() for name in names.split()}


def _way(path: str) -> tuple[str | None, bool]:
    """The way of a name, its own or that of the innermost module around it; and whether it is a module.

    Below a module of the table what begins with a small letter may be a module too.
    """
    table = _table()
    inside = path.split(".")
    around = next((o for i in range(len(inside), 0, -1) if (o := ".".join(inside[:i]) + ".") in table), None)
    is_module = around is not None and (around == f"{path}." or inside[-1][0].islower())
    return table.get(path) or (table[around] if around else _of_jax(path)), is_module


def _of_jax(path: str) -> str | None:
    """The way of a function of Paddle's that jax.numpy has by the same name."""
    numpy = sys.modules.get("jax.numpy")
    return f"use jax.numpy.{path}" if "." not in path and hasattr(numpy, path) else None


@functools.cache
def _made(path: str) -> Elsewhere | None:
    way, is_module = _way(path)
    return None if way is None else Elsewhere(path, way, is_module)


def found(module: str, name: str) -> Any:
    """What a module of this package gives for a name that it does not have, or an AttributeError."""
    path = f"{module}.{name}".removeprefix(f"{PACKAGE}.")
    if path in ALIASES:
        return importlib.import_module(f"{PACKAGE}.{path}")
    placeholder = None if name.startswith("_") else _made(path)
    if placeholder is not None:
        return placeholder
    import difflib  # only for the error

    near = ", ".join(difflib.get_close_matches(name, vars(sys.modules[module]).get("__all__", ())))
    message = f"module {module!r} has no attribute {name!r}"
    raise AttributeError(f"{message} (nearest: {near})" if near else message, name=name)


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module of this package."""
    return functools.partial(found, module)


class _Finder:
    """Finds the modules of the table, and the aliases, where there is no file."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how such a module is imported, None for any other."""
        inner = name.removeprefix(f"{PACKAGE}.")
        if inner == name or inner not in ALIASES and not _way(inner)[1]:
            return None
        return ModuleSpec(name, cls, is_package=inner not in ALIASES)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """Return the placeholder; of an alias a module with the names of the other."""
        inner = spec.name.removeprefix(f"{PACKAGE}.")
        if inner not in ALIASES:
            return _made(inner)  # type: ignore[return-value]
        home = importlib.import_module(f"{PACKAGE}.{ALIASES[inner]}")
        module = ModuleType(spec.name, f"The names of {home.__name__}, under a path of Paddle's.")
        vars(module).update({name: getattr(home, name) for name in home.__all__}, __all__=home.__all__)
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing is left to do."""


sys.meta_path.append(_Finder)  # type: ignore[arg-type]
