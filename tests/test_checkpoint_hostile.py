"""Files that attack or are damaged: an error that names them, nothing run, memory and time bounded."""

import json
import os
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from paddlejax.checkpoint import CheckpointError, load, read, save
from paddlejax.checkpoint.convert import FORMATS
from paddlejax.checkpoint.unpickle import DEPTH

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"
HOSTILE = GOLDEN / "hostile"
MANIFEST = json.loads((HOSTILE / "manifest.json").read_text())
MUTATIONS = int(os.environ.get("PADDLEJAX_MUTATIONS", "300"))


@pytest.mark.parametrize("name", [n for n in MANIFEST if not n.startswith("ok_")])
def test_a_hostile_or_damaged_file_is_refused_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        load(HOSTILE / name)
    assert not list(tmp_path.iterdir()) and not (HOSTILE / "pwned.txt").exists()


def test_every_hostile_file_is_in_the_manifest():
    assert {p.name for p in HOSTILE.iterdir()} == {*MANIFEST, "manifest.json"}


def test_a_cut_array_is_joined():
    loaded = load(HOSTILE / "ok_sliced.pdparams", return_numpy=True)
    np.testing.assert_array_equal(loaded.pop("w"), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert list(loaded) == ["b"]


def raw(value):
    """The instructions that make a value, without beginning and end."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def array(shape, data, code=b"f4", order=b"<"):
    """An array whose parts need not fit; `data` is an instruction."""
    dtype = b"cnumpy\ndtype\n" + raw((code.decode(), False, True)) + b"R"
    dtype += raw((3, order.decode(), None, None, None, -1, -1, 0)) + b"b"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + raw((0,)) + b"C\x01btR"
    return made + b"(K\x01" + raw(shape) + dtype + b"\x89" + data + b"tb"


def entry(value):
    return b"}" + raw("w") + value + b"s"


DATA = b"B" + struct.pack("<I", 4000) + bytes(4000)
BOMBS = {
    "laughs": program(
        b"}(" + raw("w") + b"]q\x00",
        *(raw(f"w{i}") + b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(60)),
        b"u",
    ),
    "nested lists": program(b"}" + raw("w") + b"]" * 100_000 + b"a" * 99_999 + b"s"),
    "nested tuple as key": program(b"}" + b")" + b"\x85" * 100_000 + b"Ns"),
    "a list as key": program(b"}]Ns"),
    "a cycle": program(b"}q\x00" + raw("w") + b"h\x00s"),
    "a huge text": b"\x80\x04}\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "huge bytes": b"\x80\x04}\x8e" + struct.pack("<Q", 2**63) + b"x.",
    "a negative length": program(b"T\xff\xff\xff\xff"),
    "a huge integer": program(entry(b"\x8a\xff" + b"\x7f" * 255)),
    "one piece of data for many arrays": program(
        b"}(" + raw("w0") + array((1000,), DATA + b"q\x00"),
        *(raw(f"w{i}") + array((1000,), b"h\x00") for i in range(1, 200)),
        b"u",
    ),
    "one text encoded many times": program(
        b"X" + struct.pack("<I", 4000) + b"x" * 4000 + b"q\x00",
        (b"c_codecs\nencode\nh\x00" + raw("latin1") + b"\x86R") * 500,
    ),
    "another encoding": program(entry(b"c_codecs\nencode\n" + raw(("x", "zlib")) + b"R")),
    "many dimensions": program(entry(array((1,) * 100, b"C\x04abcd"))),
    "a negative shape": program(entry(array((-1, -1), b"C\x04abcd"))),
    "a shape beyond all bounds": program(entry(array((0, 2**62, 2**62), b"C\x00"))),
    "too little data": program(entry(array((2,), b"C\x04abcd"))),
    "a string dtype": program(entry(array((1,), b"C\x04abcd", b"U1"))),
    "a void dtype": program(entry(array((1,), b"C\x04abcd", b"V4"))),
    "an unknown byte order": program(entry(array((1,), b"C\x04abcd", b"f4", b"x"))),
    "an array without contents": program(
        entry(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + raw((0,)) + b"C\x01btR")
    ),
    "an array built twice": program(entry(array((1,), b"C\x04abcd") + b"(K\x01)NNNtb")),
    "ndarray called": program(entry(b"cnumpy\nndarray\n" + raw((2**40,)) + b"\x85R")),
    "a dtype as a value": program(entry(b"cnumpy\ndtype\n" + raw(("f4", False, True)) + b"R")),
    "a global as a value": program(entry(b"cnumpy\nndarray\n")),
    "bytes as a value": program(entry(b"C\x01x")),
    "a persistent id": program(entry(b"Px\n")),
    "a binary persistent id": program(entry(b"K\x01Q")),
    "an extension code": program(entry(b"\x82\x01")),
    "an object": program(entry(b"cbuiltins\nobject\n)\x81")),
    "an instance": program(entry(b"(ibuiltins\nobject\n")),
    "an out-of-band buffer": program(entry(b"\x97")),
    "protocol 5": b"\x80\x05}.",
    "protocol 0": b"(dp0\n.",
    "a name without an end": program(b"c" + b"x" * 5000),
    "an empty stack": program(b"a"),
    "two values": program(b"NN"),
    "an open mark": program(b"}("),
    "bytes after the end": program(b"}") + b"x",
    "a missing memo": program(entry(b"h\x09")),
    "a dict made of a deep key": program(
        entry(b"ccollections\nOrderedDict\n])" + b"\x85" * 100_000 + b"N\x86a\x85R")
    ),
    "a tuple made of a list": program(entry(b"cbuiltins\ntuple\n](NNNe\x85R")),
    "a dtype named by a list": program(entry(b"cnumpy\ndtype\n](" + b"N" * 100_000 + b"e\x89\x88\x87R")),
    "a call with many arguments": program(entry(b"cnumpy\ndtype\n](" + b"N" * 100_000 + b"eR")),
    "a number of no dtype": program(entry(b"cnumpy.core.multiarray\nscalar\nNC\x01x\x86R")),
    "an unknown instruction": program(b"}\xff"),
    "a lone surrogate as key": program(b"}X\x03\x00\x00\x00\xed\xa0\x80Ns"),
    "a lone surrogate": program(entry(b"X\x03\x00\x00\x00\xed\xa0\x80")),
    "an odd number of items": program(b"}(Nu"),
    "a table of names that is none": program(raw({"StructuredToParameterName@@": [1]})),
    "a name of nothing": program(raw({"StructuredToParameterName@@": {"w": "w"}})),
    "a table of parts that is none": program(raw({"UnpackBigParamInfor@@": {"w": 3}})),
    "parts used twice": program(
        b"}(" + raw("p") + array((1,), b"C\x04abcd")
        + raw("UnpackBigParamInfor@@") + raw({"w": {"OriginShape": (2,), "slices": ["p", "p"]}}) + b"u"
    ),
    "parts that do not fit": program(
        b"}(" + raw("p") + array((1,), b"C\x04abcd")
        + raw("UnpackBigParamInfor@@") + raw({"w": {"OriginShape": (2,), "slices": ["p"]}}) + b"u"
    ),
}  # fmt: skip


def refused(path, bound):
    """Load a bad file within bounds on time and memory, and return what it says."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(CheckpointError) as e:
            load(path, return_numpy=True)
        assert tracemalloc.get_traced_memory()[1] < bound
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 10
    return str(e.value)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name, tmp_path):
    (tmp_path / "bomb.pdopt").write_bytes(BOMBS[name])
    assert "bomb.pdopt" in refused(tmp_path / "bomb.pdopt", 2_000_000 + 200 * len(BOMBS[name]))


def test_a_large_memo_index_costs_nothing(tmp_path):
    (tmp_path / "x").write_bytes(program(b"}r\xff\xff\xff\xff"))
    tracemalloc.start()
    assert load(tmp_path / "x") == {}
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_what_is_nested_as_deep_as_allowed_comes_back(tmp_path):
    tree = 1
    for _ in range(DEPTH - 1):
        tree = {"d": tree}
    save(tree, tmp_path / "x")
    assert load(tmp_path / "x") == tree


def test_python_2_texts_are_latin_1(tmp_path):
    text = b"U\x01w" + array((1,), b"U\x04\x00\x00\x80?") + b"s"
    (tmp_path / "x").write_bytes(program(b"}" + text))
    np.testing.assert_array_equal(load(tmp_path / "x")["w"], [1.0])


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = (GOLDEN / "sgd_bf16_master" / "opt_10.pdopt").read_bytes()
    path = tmp_path / "x.pdopt"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read(path)


def mutated(rng, data, other):
    """The bytes with a few changed, cut, doubled, or replaced by those of another file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 50))
        there = rng.randrange(len(other))
        change = rng.randrange(6)
        if change < 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = data[there : there + length]
        elif change == 4:
            data[at : at + length] = other[there : there + length]
        else:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"))
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Good files of every format, small enough that a mutation hits something."""
    folder = tmp_path_factory.mktemp("good")
    paths = [p for p in sorted(GOLDEN.glob("*/*10.pd*")) if p.parent.name != "hostile"]
    paths += [HOSTILE / "ok_sliced.pdparams"]
    for source in ("adam_l2_globalclip/opt_10.pdopt", "sgd_bf16_master/opt_10.pdopt"):
        for ending in (".npz", ".safetensors"):
            if ending == ".safetensors":
                pytest.importorskip("safetensors", reason="needs paddlejax[formats]")
            path = folder / (source.replace("/", "_") + ending)
            FORMATS[ending][1](read(GOLDEN / source), path)
            paths.append(path)
    return [(p.suffix, p.read_bytes()) for p in paths]


def test_a_mutated_file_loads_or_is_refused_and_nothing_else(originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, worked, slowest = random.Random(20), 0, 0.0
    tracemalloc.start()
    try:
        for i in range(MUTATIONS):
            ending, data = rng.choice(originals)
            path = tmp_path / f"x{ending}"
            path.write_bytes(mutated(rng, data, rng.choice(originals)[1]))
            begin = time.perf_counter()
            try:
                FORMATS[ending][0](path)
                worked += 1
            except CheckpointError as e:
                assert path.name in str(e) and len(str(e)) < 5000, i
            slowest = max(slowest, time.perf_counter() - begin)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert 0 < worked < MUTATIONS and slowest < 5
    assert {p.stem for p in tmp_path.iterdir()} == {"x"}


@pytest.mark.parametrize("member", ["object", "huge", "void", "version", "bomb", "bzip2", "outline", "zip"])
def test_a_hostile_npz_is_refused(member, tmp_path):
    path, good = tmp_path / "x.npz", np.lib.format
    with zipfile.ZipFile(path, "w") as archive:
        if member == "object":
            np.savez(tmp_path / "o.npz", a=np.array([print], dtype=object))
            archive.writestr("a.npy", zipfile.ZipFile(tmp_path / "o.npz").read("a.npy"))
        elif member in ("huge", "void"):
            shape, dtype = ((2**50,), "<f4") if member == "huge" else ((1,), "|V4")
            with archive.open("a.npy", "w") as f:
                good.write_array_header_1_0(f, {"shape": shape, "fortran_order": False, "descr": dtype})
                f.write(bytes(4))
        elif member == "version":
            archive.writestr("a.npy", b"\x93NUMPY\x09\x00" + bytes(100))
        elif member == "bomb":
            archive.writestr("a.npy", bytes(10_000_000), zipfile.ZIP_DEFLATED, 9)
        elif member == "bzip2":
            archive.writestr("a.npy", bytes(10_000_000), zipfile.ZIP_BZIP2)
        elif member == "outline":
            with archive.open("paddlejax.npy", "w") as f:
                good.write_array(f, np.frombuffer(b'{"layout": "general", "tree": ' + b"[" * 9999, np.uint8))
    if member == "zip":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="x.npz"):
        FORMATS[".npz"][0](path)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
