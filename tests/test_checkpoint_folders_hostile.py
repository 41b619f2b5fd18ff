"""Folders that lie: one CheckpointError that names the place, before an array is read, and nothing runs."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from paddlejax.checkpoint import CheckpointError, inspect, load, load_optimizer, load_parameters
from paddlejax.checkpoint.folders.metadata import MODULES, records
from paddlejax.checkpoint.folders.pieces import Joined, check_tiling, rectangles
from paddlejax.checkpoint.folders.shards import Mapped, header

FOLDER = Path(__file__).parent / "golden" / "large_checkpoints"
UNIFIED = FOLDER / "uc_adamw_bf16_tp2_nlp" / "checkpoint-10"
RANKS = FOLDER / "hybrid_adamw_shard2" / "checkpoint-10"
SHARD, INDEX = "model-00001-of-00002.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of a recorded folder, and files beside it that nobody may open."""
    shutil.copytree(UNIFIED, tmp_path / "x")
    shutil.copy(UNIFIED / SHARD, tmp_path / "outside.safetensors")
    return tmp_path / "x"


def shard(listed, data=b"", length=None):
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def f4(shape, span):
    return {"dtype": "F32", "shape": shape, "data_offsets": span}


@pytest.mark.parametrize(
    "contents, words",
    [
        (b"", "8 of a header's length"),
        (shard({}, length=2**62), "its header has 4611686018427387904 bytes"),
        (shard(b'{"a":'), "cannot be read"),
        (shard(b"[" * 5000), "nested too deep|cannot be read"),
        (shard(b"[]"), "found a list|is a list"),
        (shard(b'{"a": 1, "a": 1}'), "'a' twice"),
        (shard({"a": f4([2], [0, 4])}, bytes(4)), "shape .2,. and 4 bytes"),
        (shard({"a": f4([2], [0, 8])}, bytes(4)), "cut short"),
        (shard({"a": f4([2], [8, 16])}, bytes(16)), "leaves a hole before it"),
        (shard({"a": f4([2], [0, 8]), "b": f4([2], [4, 12])}, bytes(12)), "overlaps"),
        (shard({"a": f4([2], [0, 8])}, bytes(12)), "end at byte"),
        (shard({"a": f4([-2], [0, 8])}, bytes(8)), "no shape"),
        (shard({"a": f4([2**62, 4], [0, 0])}), "no shape"),
        (shard({"a": f4([2.0], [0, 8])}, bytes(8)), "no shape"),
        (shard({"a": f4([2], [8, 0])}, bytes(8)), "shape .2,. and -8 bytes"),
        (shard({"a": {"dtype": "Q8", "shape": [1], "data_offsets": [0, 1]}}, b"1"), "dtype 'Q8'"),
        (shard({"a": [1]}), "dtype None"),
        (shard({"__metadata__": {"a": 1}}), "table of texts"),
    ],
)
def test_a_header_that_lies(tmp_path, contents, words):
    (tmp_path / "a.safetensors").write_bytes(contents)
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*({words})"):
        header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        "",
        ".",
        "..",
        "a\0b",
        "a\nb",
        3,
        None,
        [],
        "x" * 300,
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, name):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["encoder.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=f"{INDEX}: .*'encoder.weight' is in .*, expected the bare name"
    ):
        load(folder)


def test_a_link_out_of_the_folder_is_refused_and_a_cache_of_links_is_read(folder, tmp_path):
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=f"{SHARD}: .*a link out of its folder"):
        load(folder)
    (tmp_path / "blobs").mkdir()  # as huggingface_hub keeps a snapshot
    (tmp_path / "snapshot").mkdir()
    for i, file in enumerate(sorted(UNIFIED.iterdir())):
        shutil.copy(file, tmp_path / "blobs" / str(i))
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..") / "blobs" / str(i))
    assert load(tmp_path / "snapshot").keys() == load(UNIFIED).keys()


def test_shards_that_disagree_with_their_index(folder):
    index = json.loads((folder / INDEX).read_text())
    twice = (folder / INDEX).read_text().replace('"encoder.bias"', '"encoder.weight"')
    cases = {
        "weight_map is 3": json.dumps({"weight_map": 3}),
        "'encoder.weight' twice": twice,
        "has no 'x', which": json.dumps({"weight_map": {**index["weight_map"], "x": SHARD}}),
        "is silent": json.dumps({"weight_map": {"head.bias": "model-00002-of-00002.safetensors"}}),
        "no weight_map": "{}",
        "expected an object": "[]",
        "cannot be read": "{",
    }
    for words, text in cases.items():
        (folder / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match=words):
            load(folder / INDEX)
    (folder / INDEX).write_text(json.dumps(index))
    arrays = {"encoder.weight": {"dtype": "U16", "shape": [6, 8], "data_offsets": [0, 96]}}
    (folder / SHARD).write_bytes(shard(arrays, bytes(96)))
    more = folder / "model-00002-of-00002.safetensors"
    found = header(more)
    grown = {
        k: {"dtype": "U16", "shape": list(x.shape), "data_offsets": [0, 0]} for k, x in found.arrays.items()
    }
    at, data = 0, b""
    for key, x in found.arrays.items():
        grown[key]["data_offsets"] = [at, at := at + x.nbytes]
        data += x.bits(0, x.nbytes).tobytes()
    grown |= {"encoder.weight": {"dtype": "U16", "shape": [6, 8], "data_offsets": [at, at + 96]}}
    more.write_bytes(shard(grown, data + bytes(96)))
    assert not np.any(load(folder)["model"]["encoder.weight"])  # the same bytes twice are one array
    more.write_bytes(shard(grown, data + bytes(95) + b"1"))
    with pytest.raises(CheckpointError, match="and so has model-00001.*which differs"):
        load(folder)


def test_what_may_run_something_is_never_opened(folder, monkeypatch):
    """Not by its contents, whatever else is asked of the folder."""
    for name in ("training_args.bin", "rng_state_0.pth", "trainer_state.bin", "rng_state.pth", "x.pdmodel"):
        os.mkfifo(folder / name)  # whoever opens it waits for ever
    report = inspect(folder)
    assert report.layout == "unified checkpoint" and len(report.rows) == 24
    assert {"model", "optimizer", "master_weights", "LR_Scheduler"} == load(folder).keys()


def test_a_model_of_pytorch_quantized_in_4_bits_or_without_its_masters_is_refused(folder):
    data = (folder / SHARD).read_bytes().replace(b'"np"', b'"pt"')
    (folder / SHARD).write_bytes(data)
    with pytest.raises(CheckpointError, match="Linear layers are transposed"):
        load_parameters({}, folder)
    (folder / SHARD).write_bytes(data.replace(b'"pt"', b'"np"'))
    for name in folder.glob("master_weights*"):
        name.unlink()
    import paddlejax as paddle

    state = paddle.adam(0.1).init({"w": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="expected master_weights.safetensors.index.json"):
        load_optimizer(state, folder)
    index = folder / "optimizer.safetensors.index.json"
    index.write_text(index.read_text().replace('"master_weights": true', '"ckpt_quant_stage": "O2"'))
    with pytest.raises(CheckpointError, match="stage 'O2', expected none or 'O1'"):
        load_optimizer(state, folder)


# -------------------------------------------------------------------------------- the records


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def program(fields, module=MODULES[0], name="Metadata"):
    """A pickle of an object of a class, protocol 4, as Paddle writes it."""
    body = pickle.dumps(fields, 4)[2:-1]
    return b"\x80\x04" + f"c{module}\n{name}\n".encode() + b")\x81" + body + b"b."


@pytest.mark.parametrize(
    "contents, words",
    [
        (pickle.dumps(Call(os.system, "echo > pwned"), 4), "wants 'posix' 'system'"),
        (pickle.dumps(Call(os.system, "echo > pwned"), 2), "posix|system"),
        (pickle.dumps({"a": 1}, 4), "expected a Metadata"),
        (pickle.dumps(np.ones(2), 4), "wants 'numpy"),
        (program({}, module="os", name="system"), "wants 'os' 'system'"),
        (program({}, name="Metadata2"), "wants"),
        (program({}), "has no state_dict_metadata, storage_metadata"),
        (program({"state_dict_metadata": [], "storage_metadata": {}, "flat_mapping": {}}), "is a list"),
        (program({"state_dict_metadata": {"a": []}, "storage_metadata": {}}), "'a' are no list"),
        (program({"state_dict_metadata": {"a": [1]}, "storage_metadata": {}}), "'a' are no list"),
        (program({"state_dict_metadata": {}, "storage_metadata": {"a": "b"}}), "no LocalTensorIndex"),
        (program({"state_dict_metadata": {}, "storage_metadata": {}, "x": 1}), "other fields"),
        (program({"global_offset": (-1,)}, name="LocalTensorIndex"), "global_offset of a LocalTensorIndex"),
        (program({"local_shape": (2**60,)}, name="LocalTensorMetadata"), "local_shape of a"),
        (program({"flattened_range": (1, 2, 3)}, name="LocalTensorMetadata"), "flattened_range of a"),
        (program({"dtype": 3}, name="LocalTensorMetadata"), "dtype of a"),
    ],
)
def test_metadata_that_is_no_record(tmp_path, monkeypatch, contents, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.metadata").write_bytes(contents)
    with pytest.raises(CheckpointError, match=f"0.metadata: .*({words})"):
        records(tmp_path / "0.metadata")
    assert [p.name for p in tmp_path.iterdir()] == ["0.metadata"]


@pytest.mark.parametrize("name", ["dist_adamw", "dist_adam_paddle300", "flex_adamw_flat_2rank"])
def test_every_cut_or_changed_file_of_a_distributed_checkpoint_is_one_error(tmp_path, name):
    """Cut anywhere, or with one byte changed, it is read as it was, or refused: never another exception."""
    (source,) = (p for p in (FOLDER / name).iterdir() if p.is_dir())
    source = source / "optimizer_state" if name.startswith("flex") else source
    want = load(source / "0.metadata", return_numpy=True)
    rng = np.random.default_rng(0)
    for file in ("0.metadata", "0_0.distcp"):
        shutil.copytree(source, tmp_path / file)
        data = (source / file).read_bytes()
        refused = 0
        for i in rng.integers(0, len(data), 60):
            for changed in (data[:i], data[:i] + bytes([data[i] ^ 1 << int(i) % 8]) + data[i + 1 :]):
                (tmp_path / file / file).write_bytes(changed)
                try:
                    found = load(tmp_path / file / "0.metadata", return_numpy=True)
                    assert {k: v.shape for k, v in found.items()}.keys() <= want.keys() | found.keys()
                except CheckpointError as e:
                    assert str(tmp_path / file) in str(e)
                    refused += 1
        assert refused >= 60


# -------------------------------------------------------------------------------- pieces


def test_stretches_of_any_cut_are_joined_as_numpy_joins_them(tmp_path):
    """Against numpy: arrays of up to four axes, cut into rectangles and those into stretches."""
    rng = np.random.default_rng(0)
    for trial in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 6, trial % 5))
        x = rng.normal(size=shape).astype(np.float32)
        flat, parts, file = x.reshape(-1), [], tmp_path / "data"
        x.tofile(file)
        cuts = sorted({0, flat.size, *map(int, rng.integers(0, flat.size + 1, 3))})
        for a, b in zip(cuts, cuts[1:], strict=False):
            source = Mapped(file, 4 * a, (b - a,), np.float32) if trial % 2 else flat[a:b]
            parts += rectangles((0,) * x.ndim, shape, (a, b), source)
        check_tiling("x", shape, parts)
        joined = Joined(shape, np.float32, parts)
        assert np.array_equal(joined[...], x)
        low = [int(rng.integers(0, n)) for n in shape]
        index = tuple(slice(a, int(rng.integers(a, n + 1))) for a, n in zip(low, shape, strict=True))
        assert np.array_equal(joined[index], x[index])
        if len(parts) > 1:
            for bad in (parts[1:], [*parts, parts[0]]):
                with pytest.raises(ValueError, match="overlap|elements|expected once"):
                    check_tiling("x", shape, bad)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    np.arange(4096, dtype=np.float32).tofile(tmp_path / "data")
    x = Mapped(tmp_path / "data", 0, (4096,), np.float32)
    os.truncate(tmp_path / "data", 100)
    with pytest.raises(CheckpointError, match="shrank"):
        x[...]


# -------------------------------------------------------------------------------- ranks


def test_ranks_that_cannot_be_joined(tmp_path):
    def copied(name, **renamed):
        target = tmp_path / name
        target.mkdir()
        for file in RANKS.iterdir():
            shutil.copy(file, target / renamed.get(file.name.replace(".", "_"), file.name))
        return target

    from paddlejax.checkpoint import read, save

    sliced = copied("tp", optimizer_shard00_pdopt="optimizer.tp00_shard00.pdopt")
    with pytest.raises(CheckpointError, match="tp00_shard00.*slices of tensor parallelism"):
        load(sliced)
    assert read(sliced / "model_state.pdparams")
    cut = copied("cut")
    state = {"linear_0.w_0_moment1_0": np.zeros(16, np.float32)}
    save(state, cut / "optimizer.shard00.pdopt")
    with pytest.raises(
        CheckpointError, match=r"shape \(16,\), the parameter \(6, 5\): .*split_param, or stage 2"
    ):
        load(cut)
    twice = copied("twice")
    save({"linear_1.b_0_moment1_0": np.zeros(3, np.float32)}, twice / "optimizer.shard00.pdopt")
    with pytest.raises(CheckpointError, match="'moment1_0', and so has another rank, which differs"):
        load(twice)
