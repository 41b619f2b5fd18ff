"""`load` and `save`: recorded files of Paddle 3.3.1 and 1.8.5 in, whatever a user saves out and back."""

import json
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import closure_of

import paddlejax as paddle
from paddlejax.checkpoint import CheckpointError, Tensor, files, load, read, save
from paddlejax.checkpoint.layout import LAYOUTS, is_tensor, leaves
from paddlejax.checkpoint.unpickle import DEPTH
from paddlejax.fluid.checkpoint import load_dygraph, save_dygraph

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"
SAMPLES = sorted(p for p in GOLDEN.glob("*/*.pd*") if p.parent.name != "hostile")
TABLE = "StructuredToParameterName@@"
samples = pytest.mark.parametrize("path", SAMPLES, ids=lambda p: f"{p.parent.name}-{p.name}")


def same(a, b):
    """The same types, dtypes, shapes and bits, all the way down."""
    assert type(a) is type(b), (type(a), type(b))
    if isinstance(a, dict):
        assert list(a) == list(b)
        return [same(a[k], b[k]) for k in a]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return [same(x, y) for x, y in zip(a, b, strict=True)]
    if isinstance(a, np.ndarray | np.generic | jax.Array):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    else:
        assert repr(a) == repr(b)


@samples
def test_a_recorded_file_holds_the_recorded_arrays(path):
    npz, manifest = (
        np.load(path.parent / "replay.npz"),
        json.loads((path.parent / "manifest.json").read_text()),
    )
    step, loaded = path.stem.split("_")[1], load(path, return_numpy=True)
    kinds = ("param",) if path.suffix == ".pdparams" else ("acc", "master")
    wanted = {
        k.split("/", 2)[2]: npz[k] for kind in kinds for k in npz.files if k.startswith(f"{kind}/{step}/")
    }
    found = {**loaded, **loaded.pop("master_weights", {})}
    found = {k: v for k, v in found.items() if isinstance(v, np.ndarray) and k != "global_step"}
    assert list(found) == list(wanted)
    for key, array in found.items():
        if array.dtype == jnp.bfloat16:
            assert manifest["config"]["dtype"] == "bfloat16"
            array = array.view(np.uint16)
        same(array, wanted[key])
        assert array.flags.writeable
    if path.suffix == ".pdparams":
        names = load(path, keep_name_table=True)[TABLE]
        assert names == {p["key"]: p["name"] for p in manifest["params"]}
    assert TABLE not in loaded


def test_a_scheduler_and_a_step_counter_come_back_as_they_are():
    opt = load(GOLDEN / "fluid18_adam" / "model_10.pdopt", return_numpy=True)
    assert opt["LR_Scheduler"] == {"step_num": 11}
    same(opt["global_step"], np.array([11], np.int32))


@samples
def test_a_file_read_and_written_is_the_same_file_to_paddle_and_old_numpy(path, tmp_path):
    """Each file by one of the protocols, each protocol by a third of the files of every kind."""
    protocol = 2 + SAMPLES.index(path) % 3
    save(load(path, keep_name_table=True), tmp_path / "again", protocol)
    same(list(read(tmp_path / "again")), list(read(path)))
    plain = [pickle.loads(p.read_bytes(), encoding="latin1") for p in (tmp_path / "again", path)]
    same(*plain)
    text = (tmp_path / "again").read_bytes()
    assert b"numpy._core" not in text and pickletools.optimize(text)[1] == protocol


@pytest.mark.parametrize(
    "dtype", "bool int8 int16 int32 uint8 uint32 float16 bfloat16 float32 complex64".split()
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_and_shape_comes_back_as_a_jax_array(dtype, protocol, tmp_path):
    shapes = [(), (1,), (0, 3), (2, 3)]
    arrays = [jnp.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype) for shape in shapes]
    obj = {str(x.shape): x for x in arrays} | {"nested": {"y": arrays, "n": 1}}
    save(obj, tmp_path / "x.pdparams", protocol)
    same(load(tmp_path / "x.pdparams"), obj)


def test_64_bits_are_never_narrowed(tmp_path):
    wide = {
        "f": np.array([1 + 2**-40]),
        "i": np.array([2**40]),
        "c": np.array([1j]),
        "u": np.array([2**63], "u8"),
    }
    save(wide, tmp_path / "x")
    same(load(tmp_path / "x"), wide)
    with jax.enable_x64(True):
        same(load(tmp_path / "x"), {k: jnp.asarray(v) for k, v in wide.items()})


def test_other_orders_of_memory_and_bytes_are_read_and_written(tmp_path):
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    for odd in (np.asfortranarray(x), x.astype(">f4"), np.broadcast_to(x, (2, 2, 3))[1], x[::-1][::-1]):
        save({"x": odd}, tmp_path / "ours")
        (tmp_path / "theirs").write_bytes(pickle.dumps({"x": odd}, 4))
        for name in ("ours", "theirs"):
            same(load(tmp_path / name, return_numpy=True), {"x": x})


def trained(optimizer, **options):
    params = paddle.parameters({"w": jnp.ones((3, 2), options.pop("dtype", "float32")), "b": jnp.ones(2)})
    opt = optimizer(parameters=params, **options)
    for p in params.values():
        p.grad = jnp.full_like(p.value, 0.25)
    opt.step()
    return params, opt


def test_a_model_an_optimizer_and_a_counter_in_one_file(tmp_path):
    rate = paddle.optimizer.lr.StepDecay(0.5, step_size=3)
    params, opt = trained(paddle.optimizer.Adam, learning_rate=rate)
    obj = {
        "model": params,
        "opt": opt.state_dict(),
        "epoch": 3,
        "best": np.float32(0.5),
        "log": [0.1, None, "x"],
    }
    save(obj, tmp_path / "all.pdparams")
    back = load(tmp_path / "all.pdparams")
    values = {k: p.value for k, p in sorted(params.items())}
    same(back, {**obj, "model": dict(values)} | {"opt": dict(obj["opt"])})
    assert read(tmp_path / "all.pdparams").layout == "general"
    opt.set_state_dict(back["opt"])


@pytest.mark.parametrize("make", ["masters", "lookahead", "ema", "scaler", "lbfgs", "scheduler"])
def test_the_state_of_everything_that_has_one_comes_back(make, tmp_path):
    if make == "masters":
        state = trained(paddle.optimizer.AdamW, multi_precision=True, dtype="bfloat16")[1].state_dict()
        assert set(state["master_weights"]) == {"w"}
    elif make == "lookahead":
        params, inner = trained(paddle.optimizer.SGD)
        opt = paddle.incubate.LookAhead(inner, k=2)
        for p in params.values():
            p.grad = jnp.ones_like(p.value)
        opt.step()
        state = opt.state_dict()
    elif make == "ema":
        params, _ = trained(paddle.optimizer.SGD)
        ema = paddle.static.ExponentialMovingAverage(0.9, parameters=params)
        ema.update()
        state = ema.state_dict()
    elif make == "scaler":
        state = paddle.amp.GradScaler().state_dict()
    elif make == "scheduler":
        state = paddle.optimizer.lr.ReduceOnPlateau(0.1)
        state.step(jnp.float32(2.0))
        state = state.state_dict()
    else:
        w = paddle.Parameter(jnp.ones(2), "w")
        square = paddle.loss(lambda p: jnp.sum(p * p))
        opt = paddle.optimizer.LBFGS(parameters=[w])
        opt.step(closure_of(opt, square, w))
        state = opt.state_dict()
    save(state, tmp_path / "x.pdopt")
    as_saved = jax.tree.map(lambda x: x, state)
    same(jax.tree.map(np.asarray, load(tmp_path / "x.pdopt")), jax.tree.map(np.asarray, as_saved))


def test_layouts_and_names_are_paddles(tmp_path):
    w, v = paddle.Parameter(jnp.ones(2), "linear_0.w_0"), jnp.ones(2)
    cases = [
        ({"0.weight": w, "v": v}, 0, {("0.weight",): "linear_0.w_0", ("v",): "v"}),
        ({"v": v, TABLE: {"v": "named"}}, 0, {("v",): "named"}),
        ({"w_moment_0": v, "LR_Scheduler": {"last_epoch": 1}}, 0, {("w_moment_0",): "w_moment_0"}),
        ({"master_weights": {"w": v}}, 2, {("master_weights", "w"): "w_fp32_master_0"}),
        ({"model": {"a": w}, "l": [v]}, 2, {("model", "a"): "linear_0.w_0", ("l", 0): "l_0"}),
        ({"v": v, "epoch": 1}, 2, {("v",): "v"}),
        (OrderedDict(v=v), 0, {("v",): "v"}),
        ({}, 0, {}),
    ]
    for obj, layout, names in cases:
        save(obj, tmp_path / "x")
        found = read(tmp_path / "x")
        assert found.layout == LAYOUTS[layout]
        assert {path: x.name for path, x in leaves(found.tree, is_tensor) if is_tensor(x)} == names


def test_which_arrays_are_tensors_is_decided_as_in_paddle(tmp_path):
    bits, path = np.array([0x3F80, 0x4000], np.uint16), tmp_path / "x"
    ones = bits.view(jnp.bfloat16)
    cases = [
        ({"a": bits}, {"a": Tensor("a", ones)}),
        ({"a": bits, "b": bits, TABLE: {"a": "n"}}, {"a": Tensor("n", ones), "b": bits}),
        ({"a": ("n", bits), "b": bits}, {"a": Tensor("n", ones), "b": bits}),
        ({"l": [bits], 3: {"x": 1}}, {"l": [Tensor("l_0", ones)], 3: {"x": 1}}),
    ]
    for raw, tree in cases:
        path.write_bytes(pickle.dumps(raw, 4))
        same(read(path).tree, tree)
        assert isinstance(load(path).get("b", bits), np.ndarray)


def test_large_arrays_are_cut_for_old_protocols_only(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SLICE", 10)
    obj = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    for protocol in (2, 3, 4):
        save(obj, tmp_path / "x", protocol)
        same(load(tmp_path / "x", return_numpy=True), obj)
        keys = list(pickle.loads((tmp_path / "x").read_bytes(), encoding="latin1"))
        parts = ["w@@.0", "w@@.1", "w@@.2", "b", "UnpackBigParamInfor@@", TABLE]
        assert keys == (parts if protocol < 4 else ["w", "b", TABLE])
    with pytest.raises(ValueError, match="protocol 3: found 24 bytes at n/w, expected protocol 4"):
        save({"n": obj}, tmp_path / "x", 3)


def test_an_array_spread_over_devices_is_saved_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("devices",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    save({"w": jax.device_put(jnp.arange(16.0).reshape(8, 2), rows)}, tmp_path / "x")
    same(load(tmp_path / "x"), {"w": jnp.arange(16.0).reshape(8, 2)})


class Pair(NamedTuple):
    a: int


DEEP: dict = {}
for _ in range(150):
    DEEP = {"d": DEEP}
REFUSED = [
    ({"a": {"f": print}}, TypeError, "a/f is of type builtin_function_or_method"),
    ({"a": [1, {2}]}, TypeError, "a/1 is of type set"),
    ({"a": Pair(1)}, TypeError, "a is of type Pair"),
    ({"a": b"x"}, TypeError, "a is of type bytes"),
    ({"a": np.array([1], np.uint16)}, TypeError, "a has dtype uint16"),
    ({"a": np.array([None])}, TypeError, "a has dtype object"),
    ({"a": np.array(["x"])}, TypeError, "a has dtype <U1"),
    ({"a": np.ma.masked_array([1.0, 2.0], [0, 1])}, TypeError, "a is a masked array"),
    ({"a": {"k": jax.random.key(0)}}, TypeError, "a/k has dtype key<fry>"),
    ({"a": jnp.ones(1, jnp.float8_e4m3fn)}, TypeError, "a has dtype float8_e4m3fn"),
    ({"a": {True: 1}}, TypeError, "a has the key True of type bool"),
    ({(1, 2): 1}, TypeError, "the dict has the key (1, 2) of type tuple"),
    ({"a": {"\ud800": 1}}, ValueError, "is no text that can be written"),
    ({"a": "\ud800"}, ValueError, "a is no text that can be written"),
    ({"a": 2**80}, ValueError, "a is an int of 81 bits"),
    ({"a": {"b": np.ones((1,) * 33)}}, ValueError, "a/b has 33 dimensions"),
    ({"a": np.ones((0, 2**48))}, ValueError, "expected at most 32 dimensions, each below 2**48"),
    ({"a": paddle.Parameter(jnp.ones((1,) * 33), "w")}, ValueError, "a has 33 dimensions"),
    ({"d": DEEP}, ValueError, "d/d/d/... is nested more than"),
    ({"UnpackBigParamInfor@@": {}}, ValueError, "the table of cut arrays"),
    ({TABLE: 3}, TypeError, "expected a dict of names"),
    ([jnp.ones(1)], TypeError, "found list, expected a dict"),
    (jnp.ones(1), TypeError, "expected a dict"),
]


@pytest.mark.parametrize("obj, kind, message", REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_could_not_be_read_back_is_refused_before_the_file_is_touched(obj, kind, message, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(kind) as e:
        save(obj, tmp_path / "x")
    assert message in str(e.value)
    with pytest.raises(kind):
        save(obj, tmp_path / "new" / "x")
    assert (tmp_path / "x").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_donated_array_is_refused_with_its_place(tmp_path):
    gone = jnp.ones(2)
    gone.delete()
    with pytest.raises(ValueError, match="a/b was donated or deleted"):
        save({"a": {"b": gone}}, tmp_path / "x")


def test_a_traced_array_is_refused_with_its_place(tmp_path):
    with pytest.raises(TypeError, match="a/b is traced, as under jax.jit"):
        jax.jit(lambda x: save({"a": {"b": x}}, tmp_path / "x"))(1.0)


def test_the_name_of_a_folder_is_no_files(tmp_path):
    with pytest.raises(OSError, match="expected the name of a file, found that of a folder.*new/"):
        save({}, f"{tmp_path}/new/")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [1, 5, True, None, "4"])
def test_only_paddles_protocols_are_written(protocol, tmp_path):
    with pytest.raises(ValueError, match="save's protocol: found .*, expected 2, 3 or 4"):
        save({}, tmp_path / "x", protocol)


def test_a_missing_file_is_an_error_that_names_what_is_near(tmp_path):
    for name in ("model_10.pdparams", "model_10.pdopt", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for name, near in [
        ("model_10", "near it there are model_10.pdopt, model_10.pdparams$"),
        ("other.pdopt", "near it there are model_10.pdopt, model_10.pdparams$"),
        ("nowhere/x.pdopt", "no such file, nor a folder .*nowhere$"),
        ("", "found .model_10.pdopt.* in the folder, expected a Unified Checkpoint"),
    ]:
        with pytest.raises(CheckpointError, match=near) as e:
            load(tmp_path / name)
        assert isinstance(e.value, ValueError) and str(tmp_path / name) in str(e.value)
    with pytest.raises(TypeError, match="load's return_numpy: found 1, expected True or False"):
        load(GOLDEN / "adam" / "opt_10.pdopt", 1)


def test_a_folder_that_cannot_be_listed_is_the_same_error(tmp_path, monkeypatch):
    def fail(self):
        raise PermissionError(13, "Permission denied")

    for name in ("iterdir", "is_dir"):
        with monkeypatch.context() as m, pytest.raises(CheckpointError, match="there is no such file$"):
            m.setattr(Path, name, fail)
            load(tmp_path / "x")
    with monkeypatch.context() as m, pytest.raises(CheckpointError, match="Permission denied"):
        m.setattr(Path, "exists", fail)
        load(tmp_path / "x")


@pytest.mark.parametrize(
    "path", [b"x.pdparams", (GOLDEN / "adam" / "opt_10.pdopt").read_bytes(), None, 3, ["x"]]
)
def test_what_is_no_path_is_refused(path):
    for call in (
        load,
        read,
        paddle.checkpoint.inspect,
        paddle.checkpoint.load_npz,
        paddle.checkpoint.parameter_names,
    ):
        with pytest.raises(
            CheckpointError, match="found .*, expected the name of a file as a str or a path"
        ) as e:
            call(path)
        assert len(str(e.value)) < 400


@pytest.mark.parametrize("ending", ["pdparams", "npz"])
def test_the_most_dimensions_and_the_deepest_array_come_back(ending, tmp_path):
    write, back = (
        (save, load) if ending == "pdparams" else (paddle.checkpoint.save_npz, paddle.checkpoint.load_npz)
    )
    tree = np.ones((1,) * 32, np.float32)
    for _ in range(DEPTH - 1):
        tree = {"d": tree}
    write(tree, tmp_path / "x")
    same(back(tmp_path / "x", return_numpy=True), tree)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        write({"d": tree}, tmp_path / "x")


def test_missing_folders_are_made(tmp_path):
    save({"a": 1}, tmp_path / "a" / "b" / "x")
    assert load(str(tmp_path / "a" / "b" / "x")) == {"a": 1}


def test_dygraph_files_share_a_name_and_are_read_together(tmp_path):
    params, opt = trained(paddle.optimizer.Adam)
    save_dygraph({k: p for k, p in params.items()}, tmp_path / "m" / "x")
    with pytest.raises(RuntimeError, match="y.pdparams"):
        load_dygraph(tmp_path / "m" / "y")
    values = {k: p.numpy() for k, p in params.items()}
    same(load_dygraph(str(tmp_path / "m" / "x")), (values, None))
    save_dygraph(opt.state_dict(), str(tmp_path / "m" / "x"))
    state = {k: np.asarray(v) for k, v in opt.state_dict().items()}
    for name in ("x", "x.pdparams", "x.pdopt"):
        same(load_dygraph(tmp_path / "m" / name), (values, state))
    assert load_dygraph(tmp_path / "m" / "x", keep_name_table=True)[0][TABLE] == {"b": "b", "w": "w"}
    for name in ("x.pdparams", "x.pdopt"):
        assert (tmp_path / "m" / name).read_bytes()[1] == 2


def test_dygraph_reads_what_1_8_5_wrote():
    params, opt = load_dygraph(GOLDEN / "fluid18_lamb" / "model_10")
    same(params, load(GOLDEN / "fluid18_lamb" / "model_10.pdparams", return_numpy=True))
    same(opt, load(GOLDEN / "fluid18_lamb" / "model_10.pdopt", return_numpy=True))


def test_dygraph_refuses_what_1_8_5_cannot_read(tmp_path):
    with pytest.raises(AssertionError, match="empty state_dict"):
        save_dygraph({}, tmp_path / "x")
    with pytest.raises(AssertionError, match="expected folder/name"):
        save_dygraph({"a": jnp.ones(1)}, f"{tmp_path}/")
    with pytest.raises(TypeError, match="found nested arrays"):
        save_dygraph({"a": {"b": jnp.ones(1)}}, tmp_path / "x")
    with pytest.raises(TypeError, match="found list"):
        save_dygraph([1], tmp_path / "x")
    assert not list(tmp_path.iterdir())
