"""`.safetensors` and `.npz`: everything there and back, files from elsewhere, the optional library."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint_files import SAMPLES, same

import paddlejax as pj
import paddlejax.checkpoint as checkpoint
from paddlejax.checkpoint import (
    CheckpointError,
    convert,
    load,
    load_npz,
    load_safetensors,
    read,
    save,
    save_npz,
    save_safetensors,
)
from paddlejax.checkpoint.convert import read_any

FORMATS = {".npz": (save_npz, load_npz), ".safetensors": (save_safetensors, load_safetensors)}
NESTED = {
    "model": {"w": jnp.ones((2, 3), jnp.bfloat16), 3: [jnp.zeros(()), (1, "x")]},
    "model/w": jnp.arange(3),
    "paddlejax": np.arange(2.0),
    "__metadata__": jnp.zeros((0, 2), bool),
    "file": np.float32(0.1),
    "nul\0": jnp.ones(1, jnp.int8),
    "best": float("inf"),
    "nothing": [None, True, 2**60, {}],
    "é": {"complex": jnp.ones(2, jnp.complex64), "fortran": np.asfortranarray(np.ones((2, 3)))},
}


def formats(test):
    return pytest.mark.parametrize("ending", FORMATS)(test)


@pytest.fixture(autouse=True)
def library(request):
    if "safetensors" in request.node.name:
        pytest.importorskip("safetensors", reason="needs paddlejax[formats]")


@pytest.mark.parametrize("path", SAMPLES[::2], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_paddles_file_through_safetensors_and_npz_is_the_same_file(path, tmp_path):
    chain = [path, tmp_path / "a.safetensors", tmp_path / "b.npz", tmp_path / f"c{path.suffix}"]
    for source, target in zip(chain, chain[1:], strict=False):
        convert(source, target)
    for step in chain[1:]:
        same(list(read_any(step)), list(read(path)))


@formats
def test_nested_checkpoints_and_odd_keys_come_back(ending, tmp_path):
    save, load = FORMATS[ending]
    save(NESTED, tmp_path / "x")
    same(load(tmp_path / "x"), NESTED)
    same(load(tmp_path / "x", return_numpy=True)["model"]["w"], np.ones((2, 3), jnp.bfloat16))
    save({"a": jnp.ones(1)}, tmp_path / "x")
    assert load(tmp_path / "x", keep_name_table=True)["StructuredToParameterName@@"] == {"a": "a"}


def test_others_read_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="needs paddlejax[formats]")
    state = {"w": jnp.ones((2, 3), jnp.bfloat16), "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.5}}
    save_safetensors(state, tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as f:
        assert f.get_tensor("w").dtype == jnp.bfloat16
        outline = json.loads(f.metadata()["paddlejax"])
    save_npz(state, tmp_path / "x.npz")
    npz = np.load(tmp_path / "x.npz")
    assert outline == json.loads(npz["paddlejax"].tobytes())
    assert outline["tree"]["dict"][1][1] == {"dict": [["last_epoch", 3], ["last_lr", 0.5]]}
    same(npz["w"], np.full((2, 3), 0x3F80, np.uint16))


def test_files_from_elsewhere_are_flat_dicts(tmp_path):
    arrays = {"b": np.ones(2, np.float32), "a": np.arange(3, dtype=np.uint16), "n/c": np.ones((), np.int8)}
    np.savez(tmp_path / "x.npz", **arrays)
    np.savez_compressed(tmp_path / "y.npz", **arrays)
    for name in ("x.npz", "y.npz"):
        same(load_npz(tmp_path / name), {**arrays, "b": jnp.ones(2), "n/c": jnp.int8(1)})
        convert(tmp_path / name, tmp_path / "x.pdparams", force=True)
        same(load(tmp_path / "x.pdparams", return_numpy=True), arrays)


def test_safetensors_from_elsewhere(tmp_path):
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors", {"format": "pt"})
    same(load_safetensors(tmp_path / "x.safetensors"), {"a": jnp.ones(2)})


@formats
@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"layout": "general", "tree": 3}', '{"layout": "general", "tree": {"dict": []}}',
    '{"layout": "general", "tree": {"dict": [["a", {"array": "b"}]]}}',
    '{"layout": "general", "tree": {"dict": [["a", {"tensor": "a"}]]}}',
    '{"layout": "general", "tree": {"dict": [[[1], {"array": "a"}]]}}',
    '{"layout": "general", "tree": {"dict": [["a", {"array": "a"}], ["b", {"array": "a"}]]}}',
    '{"layout": "general", "tree": {"dict": [["a", {"scalar": ["O", ""]}]]}}',
    '{"layout": "general", "tree": {"dict": [["a", {"call": "os.system"}]]}}',
    '{"layout": "general", "tree": {"dict": [["n", 1180591620717411303424], ["a", {"array": "a"}]]}}',
    '{"layout": "general", "tree": ' + '{"dict": [["d", ' * 120 + '{"array": "a"}' + "]]}" * 121,
    "[" * 100_000,
])  # fmt: skip
def test_an_outline_that_does_not_fit_is_refused(ending, text, tmp_path):
    path, arrays = tmp_path / f"x{ending}", {"a": np.ones(2, np.float32)}
    if ending == ".npz":
        np.savez(path, **arrays, paddlejax=np.frombuffer(text.encode(), np.uint8))
    else:
        import safetensors.numpy

        safetensors.numpy.save_file(arrays, path, {"paddlejax": text})
    with pytest.raises(CheckpointError, match=f"x{ending}"):
        FORMATS[ending][1](path)


@formats
def test_what_cannot_be_saved_is_refused_before_the_file_is_touched(ending, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError, match="a/f is of type"):
        FORMATS[ending][0]({"a": {"f": print}}, tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_npz_refuses_a_key_too_long_for_it(tmp_path):
    save_npz({"n" * 65_531: jnp.ones(1)}, tmp_path / "x")
    assert list(load_npz(tmp_path / "x")) == ["n" * 65_531]
    with pytest.raises(ValueError, match="the key nnn.* has 65532 bytes, expected 65531 at most"):
        save_npz({"n" * 65_530 + "é": jnp.ones(1)}, tmp_path / "y")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@formats
def test_load_names_the_reader_of_another_format(ending, tmp_path):
    FORMATS[ending][0]({"a": jnp.ones(1)}, tmp_path / f"x{ending}")
    with pytest.raises(
        CheckpointError, match=f"(no pickle of protocol 2 to 4|a zip archive).*; load_{ending[1:]} reads"
    ):
        load(tmp_path / f"x{ending}")


@formats
def test_optimizers_and_parameters_come_from_every_format(ending, tmp_path):
    tx, params = pj.adam(0.1), {"a": {"b": jnp.ones(3, jnp.bfloat16), "w": jnp.ones((2, 3))}}
    _, state = tx.update(params, tx.init(params), params)
    names = {"linear_0.w_0": "a/w", "linear_0.b_0": "a/b"}
    checkpoint.save_optimizer(state, tmp_path / "x.pdopt", names)
    checkpoint.save_parameters(params, tmp_path / "x.pdparams", names)
    convert(tmp_path / "x.pdopt", tmp_path / f"opt{ending}")
    convert(tmp_path / "x.pdparams", tmp_path / f"model{ending}")
    for stem in ("", "direct-"):  # converted, then written as such
        same(checkpoint.load_optimizer(tx.init(params), tmp_path / f"{stem}opt{ending}"), state)
        model = tmp_path / f"{stem}model{ending}"
        same(checkpoint.load_parameters(jax.tree.map(jnp.zeros_like, params), model), params)
        assert checkpoint.parameter_names(model) == {"linear_0.b_0": "a.b", "linear_0.w_0": "a.w"}
        checkpoint.save_optimizer(state, tmp_path / f"direct-opt{ending}", names)
        checkpoint.save_parameters(params, tmp_path / f"direct-model{ending}", names)


def test_safetensors_has_no_complex128(tmp_path):
    with pytest.raises(TypeError, match="a/b has dtype complex128"):
        save_safetensors({"a": {"b": np.ones(2, complex)}}, tmp_path / "x")


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda p: save_safetensors({}, p), load_safetensors, checkpoint.inspect):
        with pytest.raises(ImportError, match=r'pip install "paddlejax\[formats\]"'):
            call(tmp_path / "x.safetensors")


def test_convert_overwrites_only_if_told_to(tmp_path):
    save({"a": jnp.ones(1)}, tmp_path / "a.pdparams")
    save({"b": jnp.ones(1)}, tmp_path / "b.pdopt")
    with pytest.raises(FileExistsError, match="b.pdopt: there is such a file already"):
        convert(tmp_path / "a.pdparams", tmp_path / "b.pdopt")
    assert set(load(tmp_path / "b.pdopt")) == {"b"}
    convert(tmp_path / "a.pdparams", tmp_path / "b.pdopt", force=True)
    assert set(load(tmp_path / "b.pdopt")) == {"a"}
    for source, target in (("a.txt", "b.pdopt"), ("a.pdparams", "b")):
        with pytest.raises(ValueError, match="found the ending .*, expected one of .pdparams"):
            convert(tmp_path / source, tmp_path / target)


def test_a_report_counts_norms_and_nans(tmp_path):
    state = {
        "linear_0.w_0_moment1_0": jnp.array([3.0, 4.0]),
        "w_beta1_pow_acc_0": jnp.array([0.5]),
        "u__avg_squared_grad_12": jnp.zeros((0, 2)),
        "global_step": np.array([7], np.int32),
        "model": {
            "moment1_0": jnp.array([jnp.nan, 1.0, jnp.inf, jnp.nan], jnp.bfloat16),
            "b": jnp.array(True),
        },
        "opt": {"master_weights": {"w": jnp.array([3 + 4j])}, "LR_Scheduler": {"last_lr": 0.5}},
        "epoch": 3,
    }
    save(state, tmp_path / "x.pdopt")
    report = checkpoint.inspect(tmp_path / "x.pdopt")
    assert [tuple(row) for row in report.rows if row.nans == 0] == [
        ("linear_0.w_0", "moment1", (2,), "float32", 5.0, 0),
        ("w", "beta1_pow_acc", (1,), "float32", 0.5, 0),
        ("u", "_avg_squared_grad", (0, 2), "float32", 0.0, 0),
        ("global_step", "", (1,), "int32", 7.0, 0),
        ("model/b", "", (), "bool", 1.0, 0),
        ("opt/w", "master_weights", (1,), "complex64", 5.0, 0),
    ]
    (bad,) = (row for row in report.rows if row.nans)
    assert bad[:4] == ("model/moment1_0", "", (4,), "bfloat16") and np.isnan(bad.norm) and bad.nans == 2
    assert report.others == {"opt/LR_Scheduler/last_lr": 0.5, "epoch": 3}
    assert report.size == Path(report.file).stat().st_size and report.layout == "general"


@pytest.mark.parametrize("wrong", ["load", "load_npz", "load_safetensors"])
def test_a_file_whose_name_ends_as_another_format_does_says_who_reads_it(wrong, tmp_path):
    writers = {
        "load": pj.save,
        "load_npz": checkpoint.save_npz,
        "load_safetensors": checkpoint.save_safetensors,
    }
    for ending in (".npz", ".safetensors", ".pdparams"):
        own = {".npz": "load_npz", ".safetensors": "load_safetensors", ".pdparams": "load"}[ending]
        file = tmp_path / f"model{ending}"
        writers[wrong]({"w": jnp.ones(2)}, file)
        if own == wrong:
            continue
        words = "its name ends in .npz" if (own, wrong) == ("load", "load_npz") else f"{wrong} reads"
        with pytest.raises(checkpoint.CheckpointError, match=words):
            checkpoint.load_parameters({"w": jnp.zeros(2)}, file)


def test_a_header_of_any_length_is_one_of_safetensors(tmp_path):
    """Of some its length, which comes first, is what a pickle begins with."""
    first = set()
    for n in (107, 108, 171, 172, 235, 236):
        checkpoint.save_safetensors({"w" * n: jnp.ones(2)}, tmp_path / "x.safetensors")
        first.add((tmp_path / "x.safetensors").read_bytes()[:2])
        assert list(checkpoint.load_safetensors(tmp_path / "x.safetensors")) == ["w" * n]
    assert first & {b"\x80\x02", b"\x80\x03", b"\x80\x04"}
