"""What each device holds and does under zero1, on any number of devices, and parameters that are cut."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as paddle
from paddlejax.distributed import fsdp_shardings, state_shardings, zero1, zero1_shardings
from paddlejax.distributed.held import cuts_of, padded
from paddlejax.distributed.iterations import Matrices, assigned
from paddlejax.hyper import ArgumentError


def mesh_of(n, kind=AxisType.Auto):
    return jax.make_mesh((n,), ("data",), (kind,), devices=jax.devices()[:n])


def whole(mesh, values):
    return jax.device_put(values, NamedSharding(mesh, P()))


def values(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def steps(tx, place, shapes, number=3):
    """Parameters and state after so many steps; updates and their sum are two programs, as on one device."""
    update, apply = jax.jit(tx.update), jax.jit(paddle.apply_updates)
    params = place(values(shapes, 0))
    state = tx.init(params)
    for seed in range(1, number + 1):
        updates, state = update(place(values(shapes, seed)), state, params)
        params = apply(params, updates)
    return params, state


def worst(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(abs(np.asarray(x, np.float64) - np.asarray(y)), initial=0)) for x, y in pairs)


def held(state):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


def collectives(text):
    """(the computation, the kind) of every one in a compiled program."""
    found, inside = [], ""
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?[\w.\-]+ .*\{$", line):
            inside = "entry" if start[1] else "branch"
        if one := re.search(r"= (?:\([^)]*\)|\S+) (all-gather|all-reduce|all-to-all)(?:-start)?\(", line):
            found.append((inside, one[1]))
    return found


# ------------------------------------------------------------------------------------ what is held

ODD = {"table": (401, 31), "b": (48,), "s": ()}
TINY = {**{f"v{i}": (5,) for i in range(4)}, "w": (16, 9)}
CHAIN = "clip, decay, adamw"
CASES = {
    "adam": lambda: paddle.adam(0.01),
    "accumulate": lambda: paddle.accumulate_gradients(paddle.adam(0.01), 2),
    "lamb": lambda: paddle.lamb(0.01),
    CHAIN: lambda: paddle.chain(paddle.clip_by_global_norm(1.0), paddle.adamw(0.01)),
    "adafactor": lambda: optax.adafactor(0.01),  # whose state is of other shapes
    "muon": lambda: paddle.muon(0.01),
}
EXACT = "adam", "accumulate"


@pytest.mark.parametrize(
    "name, n, kind, shapes",
    [
        ("adam", 7, AxisType.Auto, ODD),
        ("accumulate", 6, AxisType.Explicit, ODD),
        ("lamb", 7, AxisType.Auto, ODD),
        (CHAIN, 6, AxisType.Explicit, ODD),
        ("adafactor", 7, AxisType.Auto, ODD),
        ("muon", 7, AxisType.Auto, ODD),
        ("muon", 8, AxisType.Explicit, TINY),
        ("adam", 8, AxisType.Auto, TINY),
    ],
)
def test_what_n_does_not_divide_is_held_in_equal_parts(name, n, kind, shapes):
    tx, mesh = CASES[name](), mesh_of(n, kind)
    spread = zero1(tx, mesh, "data")
    params, state = steps(spread, lambda x: whole(mesh, x), shapes)
    expected = steps(tx, jax.device_put, shapes)
    # Moments that go into a buffer are in other loops, where XLA contracts other products with sums.
    tolerance = 0 if name in EXACT and shapes is ODD else 2.4e-7
    assert worst((params, spread.whole(state, params)), expected) <= tolerance
    numbers = sum(x.nbytes for x in jax.tree.leaves(expected[1]) if x.size == 1)
    arrays = sum(x.nbytes for x in jax.tree.leaves(expected[1]) if x.size > 1)
    if name != "adafactor":
        assert held(state) - numbers <= 1.05 * arrays / n + (8 if shapes is TINY else 0)


def bert(v, h, layers, i):
    block = {**{q: (h, h) for q in "qkvo"}, "f1": (h, i), "f1b": (i,), "f2": (i, h)}
    block |= {f"b{j}": (h,) for j in range(9)}
    return {f"{n}{k}": s for n in range(layers) for k, s in block.items()} | {
        "word": (v, h),
        "pos": (512, h),
        "type": (2, h),
        "mlm": (v,),
        "nsp": (h, 2),
    }


def resnet50():
    found, before = {"c1": (7, 7, 3, 64)}, 64
    for stage, (n, c) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(n):
            for j, shape in enumerate([(1, 1, before, c), (3, 3, c, c), (1, 1, c, 4 * c)]):
                found |= {f"{stage}{block}{j}": shape, f"{stage}{block}{j}g": shape[-1:]}
            found |= {f"{stage}d": (1, 1, before, 4 * c)} if block == 0 else {}
            before = 4 * c
    return found | {"fc": (2048, 1000), "fcb": (1000,)}


MODELS = {
    "BERT-large": bert(30522, 1024, 24, 4096),
    "ResNet-50": resnet50(),
    "GloVe": {"glove": (400001, 300), "lstm": (300, 1200), "b": (1200,), "out": (300, 5)},
    "clicks": {f"t{i}": (r, 10) for i, r in enumerate((1460, 583, 10131227, 24, 3, 93145))},
    "a small one": {"w1": (100, 100), "w2": (100, 10), **{f"b{i}": (5,) for i in range(200)}},
}


@pytest.mark.parametrize("n", [2, 4, 6, 7, 8, 12, 16, 24, 32, 48, 64])
def test_every_model_is_held_in_equal_parts(n):
    # Nothing is computed, so that one device may stand for all.
    mesh = Mesh(np.array(jax.devices()[:1] * n), ("data",), axis_types=(AxisType.Auto,))
    for name, shapes in MODELS.items():
        params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
        state = zero1(paddle.momentum(0.1), mesh, "data").init(params)
        each = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
        total = sum(map(math.prod, shapes.values()))
        assert each <= 1.05 * total / n + 2, (name, each * n / total)


def test_a_tensor_is_cut_where_the_zeros_are_fewest():
    assert cuts_of(8, "x", [(9, 63), (16, 7), (), None, (0, 3)], [P()] * 5) == [
        (1, False),
        (0, False),
        (None, False),
        (None, False),
        (None, False),
    ]
    assert cuts_of(8, "x", [(16, 7), (5,), (80, 8)], [P(None, "m"), P("m"), P()])[1] == (None, False)
    assert padded(9, 8) == 16


@pytest.mark.parametrize("how", ["pack", "from shapes"])
def test_other_ways_to_begin(how):
    mesh = mesh_of(8)
    tx = zero1(paddle.adam(0.1), mesh, "data")
    if how == "pack":
        packed = whole(mesh, paddle.pack({"w": jnp.ones((64, 64)), "b": jnp.ones(65)}))
        assert held(tx.init(packed)) <= 2 * 4 * padded(4161, 8) // 8 + 16
        return
    params = whole(mesh, values(ODD, 0))
    structs = tx.init(jax.eval_shape(lambda: params))
    for made in (tx.init(params), jax.jit(tx.init)(params)):
        for x, s in zip(*map(jax.tree.leaves, (made, structs)), strict=True):
            assert (x.shape, x.dtype) == (s.shape, s.dtype)
            assert x.sharding.is_equivalent_to(s.sharding, x.ndim)
    assert zero1_shardings(tx, params, mesh, "data") == jax.tree.map(lambda s: s.sharding, structs)


@pytest.mark.parametrize("n, shapes", [(6, ODD), (1, TINY)])
def test_a_state_of_eight_devices_is_loaded_on_others(n, shapes):
    mesh, new = mesh_of(8), mesh_of(n)
    before, after = (zero1(paddle.adam(0.1), m, "data") for m in (mesh, new))
    params = whole(mesh, values(shapes, 0))
    _, state = before.update(params, before.init(params), params)
    there, saved = whole(new, values(shapes, 0)), jax.device_get(state)
    loaded = after.load(saved, there)
    for x, y in zip(*map(jax.tree.leaves, (loaded, after.init(there))), strict=True):
        assert x.shape == y.shape and x.sharding == y.sharding
    of_one_device = jax.device_get(before.whole(state, params))
    assert worst(after.whole(loaded, there), of_one_device) == 0
    assert worst(after.load(of_one_device, there), loaded) == 0
    step = jax.jit(after.update)
    want, _ = step(there, loaded, there)
    assert worst(step(there, saved, there)[0], want) < 1e-7  # also without `load`
    with pytest.raises(ValueError, match="zero1's state: found arrays at count, .*, expected them at count"):
        after.load(paddle.sgd(0.1).init(there), there)
    wrong = saved._replace(slots=jax.tree.map(lambda x: np.zeros((1, 2, 3, 4), np.float32), saved.slots))
    with pytest.raises(ValueError, match="at slots/moment1/.* of the state: found .*1, 2, 3, 4., expected"):
        after.load(wrong, there)


def test_describe_says_what_each_device_holds():
    params: Any = {"b": jnp.zeros((3, 3)), "w": jnp.zeros((16, 9)), "s": jnp.zeros(()), "none": None}
    lines = zero1(paddle.muon(0.1), mesh_of(8), "data").describe(params).splitlines()
    assert [re.split(r"  +", line) for line in lines[:4]] == [
        ["path", "shape", "on each device"],
        ["b", "(3, 3)", "1/8 of a buffer with others"],
        ["s", "()", "all of it"],
        ["w", "(16, 9)", "(2, 9)"],
    ]
    assert lines[4].startswith("state: ") and "bytes on each device, 1/" in lines[4]
    assert lines[5:] == [
        "matrices of 3 x 3 by device: 0, 1, 0, 0, 0, 0, 0, 0",
        "matrices of 16 x 9 by device: 1, 0, 0, 0, 0, 0, 0, 0",
        "largest share of their cost: 1/1.02",
    ]


# -------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    "name, kind, want",
    [
        ("adam", AxisType.Auto, "entry"),
        ("lookahead", AxisType.Auto, "entry"),
        ("accumulate", AxisType.Auto, "branch"),
        ("accumulate", AxisType.Explicit, "branch"),
        ("look(acc)", AxisType.Auto, "entry"),
        ("acc(look)", AxisType.Auto, "branch"),
    ],
)
def test_updates_are_sent_once_per_real_step(name, kind, want):
    """Those of many small tensors together."""
    adam = paddle.adam(0.1)
    acc, look = lambda tx: paddle.accumulate_gradients(tx, 2), paddle.lookahead
    made = {"adam": adam, "lookahead": look(adam), "accumulate": acc(adam)}
    made |= {"look(acc)": look(acc(adam)), "acc(look)": acc(look(adam))}
    mesh = mesh_of(8, kind)
    tx, params = zero1(made[name], mesh, "data"), whole(mesh, values(ODD, 0))

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state

    text = jax.jit(step).lower(params, tx.init(params), params).compile().as_text()
    assert collectives(text) == [(want, "all-gather")]


CLIP = paddle.clip_by_global_norm(1.0)


@pytest.mark.parametrize(
    "tx, kind, sent",
    [
        (paddle.lamb(0.1), AxisType.Auto, [16]),
        (paddle.lars_momentum(0.1, 0.9), AxisType.Explicit, [16]),
        (paddle.chain(paddle.clip_by_norm(1.0), paddle.adam(0.1)), AxisType.Auto, [8]),
        # whether all is finite; the clip, and once more for what overflows; the rule
        (paddle.skip_nonfinite(paddle.chain(CLIP, paddle.lamb(0.1))), AxisType.Auto, [8, 8, 8, 16]),
    ],
    ids=["lamb", "lars", "each", "all"],
)
def test_sums_over_all_tensors_are_one_message(tx, kind, sent):
    """Of eight tensors one array, whether the devices divide them or not."""
    mesh = mesh_of(8, kind)
    shapes = {"table": (401, 31), "b": (48,), **{f"w{i}": (8 * i + 8, 24 + i % 2) for i in range(6)}}
    spread, params = zero1(tx, mesh, "data"), whole(mesh, values(shapes, 0))
    text = jax.jit(spread.update).lower(params, spread.init(params), params).compile().as_text()
    found = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    assert sorted(found) == sorted(f"f32[{size}]{{0}}" for size in sent)


# -------------------------------------------------------------------------------------------- matrices

LAYERS = {f"{i:02}{k}": s for i in range(16) for k, s in dict(q=(32, 32), up=(32, 64), down=(64, 32)).items()}


def test_each_device_iterates_its_matrices():
    """48 matrices on 8 devices: an eighth of the state and of the work."""
    mesh, tx = mesh_of(8), paddle.muon(0.1, ns_steps=2)
    spread, params = zero1(tx, mesh, "data"), whole(mesh, values(LAYERS, 0))
    table = spread.describe(params)
    assert "matrices of 32 x 64 by device: 2, 2, 2, 2, 2, 2, 2, 2" in table
    assert "largest share of their cost: 1/8.00" in table
    made = {}
    for name, t in (("spread", spread), ("plain", tx)):
        state = t.init(params)
        program = jax.jit(t.update).lower(params, state, params).compile()
        made[name] = program, held(state), program(params, state, params)[0]
    assert worst(made["spread"][2], made["plain"][2]) < 1e-5
    assert made["spread"][1] * 8 <= 1.01 * made["plain"][1]
    # A loop counts once: of each kind one matrix of the two that a device has, on one device all sixteen.
    flops = {name: program.cost_analysis()["flops"] for name, (program, _, _) in made.items()}
    assert flops["spread"] * 8 <= flops["plain"]
    arguments = made["spread"][0].memory_analysis().argument_size_in_bytes
    assert arguments <= 2 * held(params) + 1.01 * made["plain"][1] / 8
    names = [name for _, name in collectives(made["spread"][0].as_text())]
    assert set(names) == {"all-to-all", "all-gather"} and names.count("all-gather") == 1


def test_costly_matrices_are_dealt_out_first():
    def of(number, *shape):
        return Matrices(jnp.zeros((number, *shape)), (), 5, 1e-9, None)

    owners, load = assigned([of(7, 8, 8), of(1, 64, 64), of(3, 32, 32)], 3)
    by_shape = {kind[0]: shares for kind, shares in owners.items()}
    assert by_shape[64, 64] == [[0], [], []]
    assert by_shape[32, 32] == [[], [0, 2], [1]]
    assert by_shape[8, 8] == [[], [], [0, 1, 2, 3, 4, 5, 6]]
    assert max(load) == load[0]


def test_matrices_that_other_axes_shard_are_gathered():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    shapes = {"a": (16, 8), "b": (8, 16), "heads": (3, 16, 8), "bias": (8,)}
    specs = {"a": P(None, "model"), "b": P("model"), "heads": P(None, None, "model"), "bias": P()}
    there = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    info: Any = {"b": paddle.optimizer.muon.MuonParamInfo(True, paddle.splits.gate_up())}
    tx = paddle.muon(0.1, muon_param_info_map=info)
    spread = zero1(tx, mesh, "data", there)
    params, state = steps(spread, lambda x: jax.device_put(x, there), shapes)
    assert worst((params, spread.whole(state, params)), steps(tx, jax.device_put, shapes)) < 1e-5
    assert {k: x.sharding.spec for k, x in params.items()} == specs


# -------------------------------------------------------------------------------- parameters that are cut


def test_fsdp_cuts_parameters_and_state():
    mesh = mesh_of(8)
    params = {"w": jnp.ones((64, 256)), "v": jnp.ones((24, 96)), "b": jnp.ones(96)}
    there = fsdp_shardings(params, mesh, "data")
    assert {k: s.spec for k, s in there.items()} == {
        "w": P(None, "data"),
        "v": P(None, "data"),
        "b": P(),  # few elements
    }
    assert fsdp_shardings(params, mesh, "data", min_size=1)["b"].spec == P("data")
    params = jax.device_put(params, there)
    state = jax.jit(paddle.adam(0.1).init, out_shardings=state_shardings(paddle.adam(0.1), params))(params)
    assert state.slots["moment1"]["w"].sharding == there["w"]
    for given in (None, there):
        with pytest.raises(ArgumentError, match="at v: .*over 'data' already.*zero1 is not needed"):
            zero1(paddle.adam(0.1), mesh, "data", given).init(params)
    with pytest.warns(UserWarning, match="fsdp_shardings: 100% of the elements .*most at w of shape"):
        fsdp_shardings({"w": jnp.ones((63, 65))}, mesh, "data")
    with pytest.warns(UserWarning, match="zero1_shardings: 100% of the elements .*; zero1.tx, mesh, axis"):
        zero1_shardings(paddle.adam(0.1), {"w": jnp.ones((63, 65))}, mesh, "data")
    with pytest.raises(ArgumentError, match="fsdp_shardings's axis: found 'rows'"):
        fsdp_shardings(params, mesh, "rows")


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_muon_gathers_matrices_that_explicit_axes_cut(spec):
    mesh = mesh_of(8, AxisType.Explicit)
    shapes = {"w": (16, 8), "stack": (8, 4, 8)}
    there = {"w": NamedSharding(mesh, spec), "stack": NamedSharding(mesh, P("data"))}
    info: Any = {"w": paddle.optimizer.muon.MuonParamInfo(True, paddle.splits.gate_up())}
    tx = paddle.muon(0.1, muon_param_info_map=info)
    found = steps(tx, lambda x: jax.device_put(x, there), shapes, 2)
    assert worst(found, steps(tx, jax.device_put, shapes, 2)) < 1e-6
    assert found[0]["w"].sharding.is_equivalent_to(there["w"], 2)


def test_a_state_may_rest_in_the_hosts_memory():
    mesh, tx = mesh_of(8), paddle.adam(0.1)
    params = jax.device_put(values({"w": (16, 8)}, 0), NamedSharding(mesh, P("data")))
    here, away = state_shardings(tx, params), state_shardings(tx, params, memory_kind="pinned_host")
    assert {s.memory_kind for s in jax.tree.leaves(away)} == {"pinned_host"}
    state = jax.device_put(tx.init(params), away)
    # jaxlib 0.10.0 has a partitioner for CPUs that refuses these `out_shardings` with an internal error.
    puts_back = jax.__version_info__ >= (0, 10, 2)
    step = jax.jit(
        lambda g, s, p: tx.update(g, jax.device_put(s, here), p),
        out_shardings=(None, away) if puts_back else None,
    )
    updates, state = step(params, state, params)
    state = state if puts_back else jax.device_put(state, away)
    assert worst(updates, tx.update(params, tx.init(params), params)[0]) < 1e-7
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state)} == {"pinned_host"}
    with pytest.raises(ArgumentError, match="memory_kind: found 'disk', expected one that .* pinned_host"):
        state_shardings(tx, params, memory_kind="disk")


REFUSED = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="jaxlib 0.10.0 has a partitioner for CPUs that refuses this"
)


@pytest.mark.parametrize("kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=REFUSED)])
def test_a_state_in_parts_may_rest_in_the_hosts_memory(kind):
    mesh, kinds = mesh_of(8, kind), lambda s: {x.sharding.memory_kind for x in jax.tree.leaves(s)}
    tx = zero1(CASES["lamb"](), mesh, "data", memory_kind="pinned_host")
    params, state = steps(tx, lambda x: whole(mesh, x), ODD)
    assert worst((params, tx.whole(state, params)), steps(CASES["lamb"](), jax.device_put, ODD)) <= 2.4e-7
    assert kinds(tx.init(jax.eval_shape(lambda: values(ODD, 0)))) == {"pinned_host"}
    # jaxlib 0.10.0 does not look at memories inside a program for CPUs.
    puts_back = jax.__version_info__ >= (0, 10, 2)
    assert kinds(state) == kinds(tx.load(state, params)) == {"pinned_host" if puts_back else "device"}
    assert kinds((params, tx.whole(state, params))) == {"device"}
    with pytest.raises(ArgumentError, match="zero1's memory_kind: found 'disk', expected one that .*_host"):
        zero1(paddle.lamb(0.1), mesh, "data", memory_kind="disk")


def test_matrices_without_elements_are_described():
    tx = paddle.distributed.zero1(paddle.muon(0.1), jax.make_mesh((8,), ("data",)), "data")
    assert "(0, 4)" in tx.describe({"w": jnp.zeros((0, 4)), "b": jnp.zeros(8)})
