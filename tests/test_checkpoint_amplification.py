"""Small files that ask for much get memory and time by their size, as the system enforces it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import amplifying_files
import jax.numpy as jnp
import numpy as np
import pytest
from amplifying_files import ARRAY, state, text

import paddlejax as paddle
from paddlejax.checkpoint import (
    CheckpointError,
    convert,
    inspect,
    load,
    load_npz,
    load_optimizer,
    load_parameters,
    load_safetensors,
    parameter_names,
    save,
    save_npz,
    save_optimizer,
)
from paddlejax.checkpoint.budget import Budget, cost
from paddlejax.checkpoint.convert import read_any
from paddlejax.checkpoint.errors import SHOWN, shown

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")


def fuzzed(first, count, size):
    """Read the files of these seeds in other processes, and return what they say of it."""
    pytest.importorskip("safetensors", reason="needs paddlejax[formats]")
    command = [sys.executable, "-W", "ignore", amplifying_files.__file__, *map(str, (first, count, size))]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(paddle.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    print(report)
    assert not report["broken"], report["broken"]
    assert report["loaded"] > count // 10 and report["refused"] > count // 10
    return report


@LINUX
def test_files_that_ask_for_much_get_memory_and_time_by_their_size():
    fuzzed(0, 200, 20_000)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("first", range(100_000, 120_000, 1_000))
def test_twenty_thousand_files_that_ask_for_much(first):
    fuzzed(first, 950, 20_000)
    fuzzed(first + 950, 50, 1_000_000)


def program(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


LONG = text("a" * 100_000) + b"q\x01"
MANY = 20_000
ONE = ARRAY + state(1, "i1") + b"b"
AMPLIFIED = {
    "a text listed as missing parts": (
        b"}(", text("UnpackBigParamInfor@@") + b"}(" + text("k") + b"}(" + text("OriginShape") + b"(K\x01t",
        text("slices") + b"](" + LONG + b"h\x01" * MANY + b"eu", b"uu",
    ),
    "names made of a long key": (b"}(", LONG, b"](" + ONE + b"q\x02" + b"h\x02" * MANY, b"eu"),
    "a text in many places": (b"}", text("w"), b"](" + LONG + b"h\x01" * MANY + b"es"),
    "a long key of many dicts": (b"}", text("w"), b"](}" + LONG + b"Ns" + b"}h\x01Ns" * MANY + b"es"),
    "parts that are one array": (
        b"}(" + text("p0") + ARRAY + state(100_000, "i1") + b"bq\x01",
        *(text(f"p{i}") + b"h\x01" for i in range(1, 1000)),
        text("UnpackBigParamInfor@@") + b"}" + text("w") + b"}(" + text("OriginShape"),
        b"(J" + (100_000_000).to_bytes(4, "little") + b"t" + text("slices"),
        b"](" + b"".join(text(f"p{i}") for i in range(1000)) + b"eusu",
    ),
    "millions of empty lists": (b"}", text("w"), b"](" + b"]" * 1_000_000 + b"es"),
    "millions of marks": (b"}", text("w"), b"(" * 1_000_000),
    "numbers far apart in the memo": (
        b"}N", *(b"r" + (9 * i + 5).to_bytes(4, "little") for i in range(400_000)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AMPLIFIED)
def test_what_is_named_again_counts_again(name, tmp_path):
    path = tmp_path / "x.pdparams"
    path.write_bytes(program(*AMPLIFIED[name]))
    with pytest.raises(CheckpointError, match="x.pdparams") as e:
        load(path, return_numpy=True)
    assert len(str(e.value)) < 500 and not isinstance(e.value.__cause__, MemoryError)


def test_the_bits_of_one_bfloat16_array_in_many_places_are_one_array(tmp_path):
    array = ARRAY + state(10_000, "u2") + b"bq\x01"
    (tmp_path / "x").write_bytes(program(b"}" + text("w") + b"](" + array + b"h\x01" * 2000 + b"es"))
    loaded = load(tmp_path / "x", return_numpy=True)["w"]
    assert len(loaded) == 2001 and len({id(x) for x in loaded}) == 1 and loaded[0].dtype == jnp.bfloat16
    assert {row.norm for row in inspect(tmp_path / "x").rows} == {0.0}


def test_inspect_refuses_to_list_a_long_key_for_each_number(tmp_path):
    (tmp_path / "x").write_bytes(program(b"}" + LONG + b"](" + b"N" * MANY + b"es"))
    assert len(load(tmp_path / "x")["a" * 100_000]) == MANY
    with pytest.raises(CheckpointError, match="longer names, than its size allows to list; load reads it"):
        inspect(tmp_path / "x")


def test_shown_formats_no_container():
    deep = []
    for _ in range(40):
        deep = [deep] * 10
    assert shown(deep) == "a list of 10" and shown({1: deep}) == "a dict of 1"
    assert shown("a" * 10**6) == repr("a" * SHOWN) + "... (1000000 long)" and shown("a'b") == '"a\'b"'
    assert shown(2**80) == "an int of 81 bits" and shown(1.5) == "1.5" and shown(None) == "None"
    assert shown(np.ones((2, 3))) == "an array of shape (2, 3) and dtype float64"


LARGE = {
    "numbers": {"log": [0.5] * 100_000}, "dicts": {"log": [{"loss": 0.5, "step": i} for i in range(10_000)]},
    "texts": {"vocabulary": {f"token{i}": i for i in range(50_000)}},
    "ids": {"seen": dict.fromkeys(range(10_000))},
    "arrays": {f"w{i}": np.ones(1, np.float32) for i in range(3_000)},
    "scalars": {"log": [np.float32(i) for i in range(10_000)]}, "nothing": {"log": [None] * 200_000},
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_what_an_honest_log_or_table_needs_is_there(name, tmp_path):
    for protocol in (2, 4):
        save(LARGE[name], tmp_path / "x", protocol)
        assert len(load(tmp_path / "x", return_numpy=True)) == len(LARGE[name])
    save_npz(LARGE[name], tmp_path / "x.npz")
    assert len(load_npz(tmp_path / "x.npz", return_numpy=True)) == len(LARGE[name])


class Spent(Budget):
    """A budget without an end."""

    def __init__(self, size):
        super().__init__(size)
        self.left = self.start = 10**12


@pytest.mark.parametrize(
    "item",
    [
        [], {}, (), [[]], {"a": 1}, {1: None}, {1: 2.5}, "ab", "é" * 9, "\U0001f600" * 5, 7, 2**40, 1.5, None,
        True, (1, 2), np.float32(1), np.ones(1), np.ones((1, 2, 3), np.int8), {"k": np.ones(1)}, [np.ones(1)],
        [1, "x"],
    ],
    ids=lambda x: repr(x)[:20],
)  # fmt: skip
def test_save_counts_at_least_what_load_counts(item, tmp_path, monkeypatch):
    n = 2000
    save({"w": [item] * n}, tmp_path / "x", 2)
    budgets = []
    monkeypatch.setattr(
        "paddlejax.checkpoint.files.Budget", lambda size: budgets.append(Spent(size)) or budgets[0]
    )
    load(tmp_path / "x", return_numpy=True)
    assert budgets[0].start - budgets[0].left <= cost({"w": [item] * n}) * 7 / 6


def test_save_says_why_it_refuses_millions_of_empty_lists(tmp_path):
    for write, ending in ((save, "pdparams"), (save_npz, "npz")):
        with pytest.raises(ValueError, match="more objects than|could not be read back"):
            write({"w": [[] for _ in range(200_000)]}, tmp_path / f"x.{ending}")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- compressed npz


def packed(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_a_compressed_npz_is_measured_before_it_is_unpacked(tmp_path):
    path = packed(tmp_path / "x.npz", a=np.zeros(50_000_000, np.uint8))
    assert path.stat().st_size < 100_000
    for call in (
        lambda: load_npz(path, max_bytes=10**6),
        lambda: convert(path, tmp_path / "y.pdopt", max_bytes=9),
    ):
        with pytest.raises(
            CheckpointError, match="unpacks to 50000128 bytes, expected at most .*max_bytes allows"
        ):
            call()
    assert load_npz(path, True, max_bytes=10**8)["a"].shape == (50_000_000,)
    assert load_npz(path, True)["a"].shape == (50_000_000,)  # 1 GB unless the caller says more
    with pytest.raises(ValueError, match="max_bytes: found -1, expected an int"):
        load_npz(path, max_bytes=-1)


def test_long_headers_that_are_packed_are_not_parsed_without_end(tmp_path):
    header = b"{" + b"'descr':'<f4'," * 600 + b"'fortran_order':False,'shape':(1,)}"
    header += b" " * (-len(header) - 11 & 63) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(2000):
            archive.writestr(f"a{i}.npy", array)
    for read in (load_npz, inspect):
        with pytest.raises(CheckpointError, match="again and again"):
            read(tmp_path / "x.npz")


def test_thousands_of_empty_arrays_in_a_few_bytes_of_safetensors_are_refused(tmp_path):
    pytest.importorskip("safetensors", reason="needs paddlejax[formats]")
    entries = (f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(30_000))
    header = ("{" + ",".join(entries) + "}").encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="more objects than its size allows"):
        load_safetensors(tmp_path / "x.safetensors")


def test_a_template_says_what_a_compressed_npz_may_unpack_to(tmp_path):
    bomb = packed(tmp_path / "bomb.npz", w_moment_0=np.zeros(30_000_000, np.uint8))
    params = {"w": jnp.ones((300, 300))}
    tx = paddle.adam(0.1)
    own = paddle.parameters(params)
    targets = [
        lambda file: load_parameters(params, file),
        lambda file: load_optimizer(tx.init(params), file),
        lambda file: load_optimizer(paddle.optimizer.Adam(parameters=own), file),
    ]
    for target in targets:
        with pytest.raises(CheckpointError, match="unpacks to 30000128 bytes, expected at most"):
            target(bomb)
    _, state = tx.update(params, tx.init(params), params)
    save_optimizer(state, tmp_path / "x.npz")
    arrays = dict(np.load(tmp_path / "x.npz"))
    again = load_optimizer(tx.init(params), packed(tmp_path / "y.npz", **arrays))
    assert np.array_equal(again.slots["moment1"]["w"], state.slots["moment1"]["w"])


def test_inspect_and_parameter_names_unpack_nothing(tmp_path):
    save_npz(
        {"w": np.ones((2, 3), np.float32), "b": jnp.ones(2, jnp.bfloat16), "epoch": 3}, tmp_path / "x.npz"
    )
    arrays = dict(np.load(tmp_path / "x.npz"))
    path = packed(tmp_path / "y.npz", **arrays)
    rows = {(row.name, row.slot, row.shape, row.dtype, row.norm, row.nans) for row in inspect(path).rows}
    assert rows == {("w", "", (2, 3), "float32", None, None), ("b", "", (2,), "bfloat16", None, None)}
    assert inspect(path).others == {"epoch": 3}
    huge = packed(tmp_path / "z.npz", a=np.zeros(60_000_000, np.uint8))
    with zipfile.ZipFile(huge) as archive:
        damaged, at = bytearray(huge.read_bytes()), archive.infolist()[0].header_offset + 20_000
    damaged[at] ^= 255
    huge.write_bytes(damaged)
    assert inspect(huge).rows[0][2:] == ((60_000_000,), "uint8", None, None)  # the damage is not seen
    assert parameter_names(huge) == {"a": "a"}
    with pytest.raises(CheckpointError):
        load_npz(huge)


@pytest.mark.parametrize("names", [("a.npy", "a"), ("a.npy", "a.npy")])
def test_two_members_of_one_name_are_refused(names, tmp_path, recwarn):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for i, name in enumerate(names):
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                np.lib.format.write_array(member, np.full(2, i))
    for read in (load_npz, inspect, read_any):
        with pytest.raises(CheckpointError, match="two arrays called 'a'"):
            read(tmp_path / "x.npz")
