"""Checkpoints: Paddle's files and folders in and out, `.safetensors` and `.npz`.

The functional state needs no wrapper here: it is a tree of arrays and NamedTuples, which orbax-checkpoint
takes as it is.

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"params": params, "state": state})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder, {"params": params, "state": tx.init(params)})

The second argument of `restore` gives structure, dtypes and sharding; `jax.eval_shape(tx.init, params)` does
as well, with a sharding in each `jax.ShapeDtypeStruct` to restore onto other devices. Without it the
NamedTuples come back as dicts and lists, such as `restored["state"]["slots"]["moment1"]`.

## Paddle's files

`save` and `load` write and read `.pdparams` and `.pdopt` of Paddle 3.3.1 and 1.8.5. Loading runs nothing
that is in a file. A damaged or hostile file is one `CheckpointError`. Saving leaves the old file or the new
one, never half of one.

>>> import tempfile
>>> folder = tempfile.mkdtemp()
>>> model = paddle.parameters({"w": jnp.ones((4, 2)), "b": jnp.zeros(2)})
>>> opt = paddle.optimizer.Adam(0.1, parameters=model)
>>> _ = opt.minimize(lambda p: jnp.sum(p["w"] @ p["b"] + p["w"].sum()))
>>> save(model, f"{folder}/model.pdparams")
>>> save(opt.state_dict(), f"{folder}/model.pdopt")
>>> model = load_parameters(model, f"{folder}/model.pdparams")  # sets the Parameters; of arrays a new tree
>>> opt.set_state_dict(load(f"{folder}/model.pdopt"))

The same file is read as functions, and written back:

>>> tx = adam(0.1)
>>> state = load_optimizer(tx.init(values(model)), f"{folder}/model.pdopt")
>>> save_optimizer(state, f"{folder}/model.pdopt")

## Names

A file of Paddle's may call a parameter `linear_0.w_0` that you call `dense/w`. Then `load_optimizer` and
`load_parameters` take `names={"linear_0.w_0": "dense/w"}`. Without it the error proposes the map; paste it.
All that is missing, unexpected or misshapen is reported in one error, and nothing is changed then.

## Folders of large trainings

`load_parameters`, `load_optimizer`, `load`, `inspect` and `convert` take a folder, its `index.json` or its
`.metadata` where they take a file. A Unified Checkpoint of PaddleNLP, ERNIEKit or PaddleFormers, a flex
checkpoint, a folder of `paddle.distributed.save_state_dict`, and the `.pdopt` files of the ranks of sharding
stage 1 are read. Dots in a name are the levels of your tree. bfloat16, masters and the schedule come along.

    params = load_parameters(params, "run/checkpoint-1000")
    state = load_optimizer(tx.init(params), "run/checkpoint-1000")
    ...
    save_checkpoint("run/checkpoint-2000", params, state, schedule=schedule)

A folder may be larger than a host. A leaf of the template that has a sharding, such as a
`jax.ShapeDtypeStruct`, is filled part by part from memory maps: a process reads what its own devices hold.
All is checked by the headers before an array is read. What cannot be joined is refused with the reason:
slices of tensor parallelism that were not merged, stretches of `split_param`, states in 4 bits.

`save_checkpoint` writes a Unified Checkpoint that PaddleNLP and PaddleFormers go on from. Each process writes
shards of its own, and the folder appears when all of it is on the disk.

>>> params = {"dense": {"weight": jnp.ones((4, 2))}}
>>> tx = adam(0.1)
>>> save_checkpoint(f"{folder}/checkpoint-1", params, tx.init(params))
>>> for row in inspect(f"{folder}/checkpoint-1").rows[:2]:
...     print(row.name, row.slot, row.shape)
dense.weight  (4, 2)
dense.weight moment1 (4, 2)

## Other formats

`save_parameters`, `load_parameters`, `save_optimizer` and `load_optimizer` choose by the ending of the file:
`.safetensors` and `.npz` carry the same (`pip install "paddlejax[formats]"`). `save` and `load` are Paddle's
and write and read Paddle's format whatever the ending is. On the command line:

    python -m paddlejax inspect model.pdopt
    python -m paddlejax convert model.pdopt model.safetensors
"""

from ..pages import publish
from .convert import convert
from .errors import CheckpointError
from .files import load, read, save
from .folder_writer import save_checkpoint
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
    "save_checkpoint",
    "save_npz",
    "save_optimizer",
    "save_parameters",
    "save_safetensors",
]

publish(globals())
