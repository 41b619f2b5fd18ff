"""Our files in the real PaddlePaddle and its files here; needs PADDLEJAX_ORACLE3 / PADDLEJAX_ORACLE18.

The variables name a Python that has paddlepaddle 3.3.1 and 1.8.5.
"""

import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax.checkpoint import files, load, save
from paddlejax.fluid.checkpoint import load_dygraph, save_dygraph

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"


def oracle(version, script, folder):
    """Run a script with the real Paddle; it gets the folder as its argument."""
    python = os.environ.get(f"PADDLEJAX_ORACLE{version}")
    if not python:
        pytest.skip(f"PADDLEJAX_ORACLE{version} names no Python with PaddlePaddle")
    (folder / "script.py").write_text(script)
    command = [python, "-W", "ignore", str(folder / "script.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"HOME": str(folder)})
    assert done.returncode == 0, done.stderr[-3000:]


def objects():
    """What is saved, by name: flat and nested, every dtype that Paddle's tensors have."""
    dtypes = "bool int8 int16 int32 int64 uint8 float16 bfloat16 float32 float64 complex64 complex128".split()
    arrays = {d: np.arange(6).reshape(2, 3).astype(jnp.dtype(d)) for d in dtypes}
    named = {"layer.w": paddle.Parameter(jnp.ones((2, 3)), "linear_0.w_0"), "layer.s": jnp.float32(2.0)}
    params = paddle.parameters({"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)})
    rate = paddle.optimizer.lr.StepDecay(0.5, step_size=3)
    opt = paddle.optimizer.AdamW(rate, parameters=params, multi_precision=True)
    for p in params.values():
        p.grad = jnp.full_like(p.value, 0.25)
    opt.step()
    plain = {k: v for k, v in opt.state_dict().items() if k != "master_weights"}
    return {
        "dtypes": arrays,
        "model": named,
        "opt": plain,
        "masters": opt.state_dict(),
        "nested": {
            "model": named,
            "opt": opt.state_dict(),
            "epoch": 3,
            "log": [1.5, None, arrays["bfloat16"]],
        },
        "cut": {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "b": np.ones(2, np.float32)},
        "empty": {},
    }


LEAVES = """
import glob, json, os, sys
import numpy as np
import paddle

def leaves(x, path=()):
    if isinstance(x, dict):
        return [l for k, v in x.items() for l in leaves(v, path + (str(k),))]
    if isinstance(x, (list, tuple)):
        return [l for i, v in enumerate(x) for l in leaves(v, path + (str(i),))]
    return [("/".join(path), x)]
"""
READ3 = (
    LEAVES
    + """
for file in glob.glob(os.path.join(sys.argv[1], "*.pdparams")):
    arrays, notes = {}, {}
    for path, x in leaves(paddle.load(file)):
        if isinstance(x, paddle.Tensor):
            arrays[path], notes[path] = np.asarray(x), [x.name, str(x.dtype).split(".")[-1]]
        else:
            assert not isinstance(x, np.ndarray), path
            notes[path] = x
    np.savez(file + ".npz", **arrays)
    json.dump(notes, open(file + ".json", "w"))
"""
)


def plain(tree):
    """{path: numpy array or number}, as the script sees it."""
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    words = [("/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path), x) for path, x in entries]
    return {k: x if x is None or isinstance(x, int | float) else np.asarray(x) for k, x in words}


@pytest.mark.slow
def test_paddle_3_reads_every_layout_and_protocol(tmp_path, monkeypatch):
    made = objects()
    for name, obj in made.items():
        for protocol in (2, 3, 4):
            if name == "cut":
                monkeypatch.setattr(files, "SLICE", 1000)
            save(obj, tmp_path / f"{name}-{protocol}.pdparams", protocol)
            monkeypatch.undo()
    oracle(3, READ3, tmp_path)
    names = {}
    for name, obj in made.items():
        for protocol in (2, 3, 4):
            file = str(tmp_path / f"{name}-{protocol}.pdparams")
            arrays, notes, wanted = (
                np.load(f"{file}.npz"),
                json.loads(Path(f"{file}.json").read_text()),
                plain(obj),
            )
            assert set(notes) == set(wanted)
            for path, x in wanted.items():
                if not isinstance(x, np.ndarray):
                    assert notes[path] == x
                    continue
                names[name, path], dtype = notes[path]
                assert dtype == str(x.dtype), path
                bits = x.view(np.uint16) if x.dtype == jnp.bfloat16 else x
                assert arrays[path].shape == x.shape and arrays[path].tobytes() == bits.tobytes(), path
    assert names["model", "layer.w"] == names["nested", "model/layer.w"] == "linear_0.w_0"
    assert names["masters", "master_weights/w"] == "w_fp32_master_0"


WRITE3 = (
    LEAVES
    + """
folder = sys.argv[1]
layer = paddle.nn.Linear(3, 2)
layer.bfloat16()
dtypes = "bool int8 int16 int32 int64 uint8 float16 bfloat16 float32 float64 complex64 complex128".split()
arrays = {d: paddle.to_tensor(np.arange(6).reshape(2, 3)).astype(d) for d in dtypes}
best = {"epoch": 3, "best": np.float32(0.5), "raw": np.arange(3, dtype=np.uint16)}
nested = dict(best, model=layer.state_dict(), l=[arrays["int8"]])
objects = {"dtypes": arrays, "model": layer.state_dict(), "nested": nested}
for name, obj in objects.items():
    for protocol in (2, 3, 4):
        paddle.save(obj, os.path.join(folder, "%s-%d.pdparams" % (name, protocol)), protocol)
    np.savez(os.path.join(folder, name + ".npz"), **{k: np.asarray(v) for k, v in leaves(obj)})
"""
)


@pytest.mark.slow
def test_what_paddle_3_writes_is_read_here(tmp_path):
    oracle(3, WRITE3, tmp_path)
    for name, half in (
        ("dtypes", {"bfloat16"}),
        ("model", {"weight", "bias"}),
        ("nested", {"model/weight", "model/bias"}),
    ):
        wanted = np.load(tmp_path / f"{name}.npz")
        for protocol in (2, 3, 4):
            found = plain(load(tmp_path / f"{name}-{protocol}.pdparams", return_numpy=True))
            assert set(found) == set(wanted.files)
            assert {k for k, v in found.items() if getattr(v, "dtype", None) == jnp.bfloat16} == half
            for path, x in found.items():
                x = np.asarray(x)
                bits = x.view(np.uint16) if path in half else x
                assert bits.shape == wanted[path].shape and bits.tobytes() == wanted[path].tobytes(), path


READ18 = """
import json, os, sys
import numpy as np
import paddle.fluid as fluid

folder = sys.argv[1]
with fluid.dygraph.guard():
    params, opt = fluid.load_dygraph(os.path.join(folder, "ours"), keep_name_table=True)
    table = params.pop("StructuredToParameterName@@")
    names = opt.pop("StructuredToParameterName@@")
    assert set(names) == set(opt) - {"LR_Scheduler"}, names
    schedule = opt.pop("LR_Scheduler")
    json.dump([table, schedule], open(os.path.join(folder, "notes.json"), "w"))
    np.savez(os.path.join(folder, "ours.npz"), **dict(params, **opt))

    layer = fluid.dygraph.Linear(3, 2)
    rate = fluid.dygraph.NoamDecay(16, 6)
    adam = fluid.optimizer.AdamOptimizer(rate, parameter_list=layer.parameters())
    adam.set_dict(dict(opt, LR_Scheduler=schedule))
    for _ in range(2):
        loss = fluid.layers.mean(layer(fluid.dygraph.to_variable(np.ones((1, 3), "float32"))))
        loss.backward()
        adam.minimize(loss)
        layer.clear_gradients()
    fluid.save_dygraph(layer.state_dict(), os.path.join(folder, "theirs"))
    fluid.save_dygraph(adam.state_dict(), os.path.join(folder, "theirs"))
    state = {k: v.numpy() for k, v in layer.state_dict().items()}
    state.update({k: v.numpy() for k, v in adam.state_dict().items() if hasattr(v, "numpy")})
    np.savez(os.path.join(folder, "theirs.npz"), **state)
"""


@pytest.mark.slow
def test_paddle_1_8_and_we_read_each_other(tmp_path):
    model = load(GOLDEN / "fluid18_adam" / "model_10.pdparams", keep_name_table=True)
    table = model.pop("StructuredToParameterName@@")
    state = load(GOLDEN / "fluid18_adam" / "model_10.pdopt")
    own = {key: paddle.Parameter(value, table[key]) for key, value in model.items()}
    # Paddle numbers its one layer linear_0, whose shapes these have.
    shapes = {"linear_0.w_0": (3, 2), "linear_0.b_0": (2,)}
    opt = {f"{p}_{a}_0": jnp.full(s, 0.5) for a in ("moment1", "moment2") for p, s in shapes.items()}
    opt |= {f"{p}_beta{i}_pow_acc_0": jnp.full(1, 0.5) for i in (1, 2) for p in shapes}
    opt |= {k: state[k] for k in ("LR_Scheduler", "global_step")}
    save_dygraph(own, tmp_path / "ours")
    save_dygraph(opt, tmp_path / "ours")
    oracle(18, READ18, tmp_path)
    wanted, found = {**model, **opt}, np.load(tmp_path / "ours.npz")
    assert json.loads((tmp_path / "notes.json").read_text()) == [table, wanted.pop("LR_Scheduler")]
    assert set(found.files) == set(wanted)
    for key, x in wanted.items():
        np.testing.assert_array_equal(found[key], x)
    theirs, schedule = load_dygraph(tmp_path / "theirs"), {"step_num": state["LR_Scheduler"]["step_num"] + 2}
    assert theirs[1] is not None and theirs[1].pop("LR_Scheduler") == schedule
    for key, x in {**theirs[0], **theirs[1]}.items():
        wanted = np.load(tmp_path / "theirs.npz")
        np.testing.assert_array_equal(x, wanted[key])
