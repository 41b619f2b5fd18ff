"""Checkpoints: Paddle's files in and out, `.safetensors` and `.npz`.

The functional state needs no wrapper here: it is a tree of arrays and NamedTuples, which orbax-checkpoint
takes as it is.

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"params": params, "state": state})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder, {"params": params, "state": tx.init(params)})

The second argument of `restore` gives structure, dtypes and sharding; `jax.eval_shape(tx.init, params)` does
as well, with a sharding in each `jax.ShapeDtypeStruct` to restore onto other devices. Without it the
NamedTuples come back as dicts and lists, such as `restored["state"]["slots"]["moment1"]`.
"""

from .convert import convert
from .errors import CheckpointError
from .files import load, read, save
from .formats import load_npz, load_safetensors, save_npz, save_safetensors
from .inspect import inspect
from .layout import Checkpoint, Tensor
from .optimizers import load_optimizer, save_optimizer
from .parameters import load_parameters, parameter_names, save_parameters

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Tensor",
    "convert",
    "inspect",
    "load",
    "load_npz",
    "load_optimizer",
    "load_parameters",
    "load_safetensors",
    "parameter_names",
    "read",
    "save",
    "save_npz",
    "save_optimizer",
    "save_parameters",
    "save_safetensors",
]
