"""Checkpoint folders onto several devices, in real processes that are smaller than the folder.

This file is also the script that those processes run.
"""

import json
import os
import resource
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as paddle
from paddlejax.checkpoint import load_optimizer, load_parameters, save, save_checkpoint
from paddlejax.distributed.processes import initialize, launch
from paddlejax.distributed.sharding import state_shardings

# ----------------------------------------------------------------------------------- a large sparse folder


def marks(n):
    """The elements of an (n, n) array that are not 0."""
    return np.arange(0, n, 7), (np.arange(0, n, 7) * 5) % n


def sparse_folder(folder, layers, n):
    """A Unified Checkpoint of AdamW: float32 arrays (n, n) that take no room on the disk."""
    folder.mkdir()
    keys = [f"layer_{i}.weight" for i in range(layers)]
    parts = {
        "model": {key: (n, n) for key in keys},
        "optimizer": {
            f"{key}/{name}": (1,) if "beta" in name else (n, n)
            for key in keys
            for name in ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")
        },
    }
    for stem, arrays in parts.items():
        files = [f"{stem}-{i:05d}-of-00002.safetensors" for i in (1, 2)]
        where = {key: files[i % 2] for i, key in enumerate(arrays)}
        for file in files:
            at, listed = 0, {}
            for key in (k for k in arrays if where[k] == file):
                size = 4 * int(np.prod(arrays[key]))
                listed[key] = {"dtype": "F32", "shape": list(arrays[key]), "data_offsets": [at, at + size]}
                at += size
            text = json.dumps(listed).encode()
            with (folder / file).open("wb") as f:
                f.write(struct.pack("<Q", len(text)) + text)
                f.truncate(8 + len(text) + at)
                for entry in listed.values():
                    start = 8 + len(text) + entry["data_offsets"][0]
                    if entry["shape"] == [1]:
                        f.seek(start)
                        f.write(np.float32(0.5).tobytes())
                    else:
                        for i, (row, column) in enumerate(zip(*marks(n), strict=True)):
                            f.seek(start + 4 * (int(row) * n + int(column)))
                            f.write(np.float32(i + 1).tobytes())
        index = {"metadata": {}, "weight_map": where} | ({"master_weights": False} if stem != "model" else {})
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    save({"last_epoch": 7, "last_lr": 0.25}, folder / "scheduler.pdparams")


# ------------------------------------------------------------------------------------ what a process does


def used(word):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(word))


def check(x, n):
    """Every part on a device of this process has what the file has there."""
    rows, columns = marks(n)
    for shard in x.addressable_shards:
        expected = np.zeros(shard.data.shape, np.float32)
        (r0, r1, _), (c0, c1, _) = (s.indices(n) for s in shard.index)
        inside = (rows >= r0) & (rows < r1) & (columns >= c0) & (columns < c1)
        expected[rows[inside] - r0, columns[inside] - c0] = np.flatnonzero(inside) + 1
        assert np.array_equal(np.asarray(shard.data), expected)


def template(mesh, layers, n, tx):
    """Abstract parameters and state, cut along rows and columns in turn."""
    specs = {f"layer_{i}": P("data") if i % 2 else P(None, "data") for i in range(layers)}

    def abstract(path, x):
        layer = next((k.key for k in path if getattr(k, "key", None) in specs), None)
        sharding = NamedSharding(mesh, specs[layer]) if layer else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shape = jax.ShapeDtypeStruct((n, n), jnp.float32)
    params = {layer: {"weight": shape} for layer in specs}
    return [jax.tree_util.tree_map_with_path(abstract, x) for x in (params, jax.eval_shape(tx.init, params))]


def read_large(mesh, folder, layers, n, slack):
    """Load with room for this process's half of the folder and for `slack` bytes."""
    tx = paddle.adamw(0.25)
    params, state = template(mesh, layers, n, tx)
    warm = jax.make_array_from_callback(
        (2,), NamedSharding(mesh, P("data")), lambda i: np.ones(2, np.float32)[i]
    )
    float(jnp.sum(warm.addressable_data(0)))
    half = 3 * layers * 4 * n * n // jax.process_count()
    limit = used("VmSize") + half + slack
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = used("VmHWM")
    params = load_parameters(params, folder)
    state = load_optimizer(state, folder)
    taken = used("VmHWM") - before
    assert int(state.count) == 7 and float(state.learning_rate) == 0.25
    for x in jax.tree.leaves((params, state.slots)):
        check(x, n)
    if jax.process_index() == 0:
        print(f"folder {6 * half // 3 / 1e6:.0f} MB, part {half / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB")


def write_together(mesh, folder):
    """Both processes write one folder, with arrays that are spread over them, and read it back."""
    rng = np.random.default_rng(0)
    values = {f"w{i}": rng.normal(size=(4, 6)).astype(np.float32) for i in range(5)}
    tx = paddle.with_master_weights(paddle.adam(0.1))

    def place(i, x):
        sharding = NamedSharding(mesh, (P("data"), P(None, "data"), P())[i % 3])
        return jax.make_array_from_callback(x.shape, sharding, lambda j: x.astype(jnp.bfloat16)[j])

    params = {k: place(i, x) for i, (k, x) in enumerate(values.items())}
    _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
    save_checkpoint(folder, params, state, max_shard_size=200)
    found = load_parameters(params, folder), load_optimizer(state, folder)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves(found), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim) and a.dtype == b.dtype
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert np.array_equal(np.asarray(x.data), np.asarray(y.data))
    if jax.process_index() == 0:
        print("written", len(os.listdir(folder)))


if __name__ == "__main__":
    assert initialize()
    grid = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    if sys.argv[1] == "read":
        read_large(grid, sys.argv[2], *map(int, sys.argv[3:]))
    write_together(grid, f"{sys.argv[2]}-again")


# ---------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize(
    "layers, n, slack",
    [
        (5, 2048, 90_000_000),
        pytest.param(10, 4096 + 128, 300_000_000, marks=pytest.mark.slow),  # 2.1 GB; above is the quick one
    ],
)
def test_two_processes_read_a_folder_that_neither_could_hold(tmp_path, capfd, layers, n, slack):
    """Each gets room for its half, and for less than the other half besides; then both write one folder."""
    sparse_folder(tmp_path / "x", layers, n)
    size = 3 * layers * 4 * n * n
    assert slack < size / 2
    assert launch(__file__, 2, ["read", tmp_path / "x", layers, n, slack], timeout=150) == 0
    out = capfd.readouterr().out
    assert "taken" in out and "written" in out


def test_a_template_says_where_its_leaves_go(tmp_path):
    """One process with several devices: the same arrays, however they are cut; also from plain files."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), "b": jnp.arange(4.0)}
    tx = paddle.adam(0.1)
    _, state = tx.update(params, tx.init(params), params)
    save_checkpoint(tmp_path / "x", params, state)
    paddle.checkpoint.save_parameters(params, tmp_path / "x.pdparams")
    for specs in (
        {"w": P("a", "b"), "b": P("b")},
        {"w": P(("a", "b")), "b": P()},
        {"w": P("b"), "b": P("a")},
    ):
        place = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
        abstract = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place[k]) for k, x in params.items()}
        for target in (abstract, jax.device_put(params, place)):
            for source in (tmp_path / "x", tmp_path / "x.pdparams"):
                found = load_parameters(target, source)
                for k, x in params.items():
                    assert np.array_equal(found[k], x) and found[k].sharding.is_equivalent_to(
                        place[k], x.ndim
                    )
        sharded = jax.device_put(params, place)
        made = jax.jit(tx.init, out_shardings=state_shardings(tx, sharded))(sharded)
        found = load_optimizer(made, tmp_path / "x")
        assert np.array_equal(found.slots["moment2"]["w"], state.slots["moment2"]["w"])
        assert found.slots["moment2"]["w"].sharding.is_equivalent_to(place["w"], 2)
    with pytest.raises(ValueError, match="0/learning_rate") as e:
        (tmp_path / "x" / "optimizer.safetensors.index.json").write_text(
            (tmp_path / "x" / "optimizer.safetensors.index.json")
            .read_text()
            .replace('"paddlejax"', '"other"')
        )
        load_optimizer(jax.eval_shape(tx.init, params), tmp_path / "x")
    assert "expected a number in the template" in str(e.value)
