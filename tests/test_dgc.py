"""Deep gradient compression: its numbers, what goes on the wire, and the object that drives it."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import dgc_reference as reference
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import paddlejax as paddle
from paddlejax.distributed import (
    DGCMomentumOptimizer,
    dgc_momentum,
    local_grads,
    make_step,
    redistribute,
    state_specs,
)
from paddlejax.distributed.compression import Level, among_largest, entries_sent, largest, levels

N = 8
P = PartitionSpec
U, V = "_dgc_u_", "_dgc_v_"
WARM_UP = {"rampup_begin_step": 2, "rampup_step": 6, "sparsity": [0.75, 0.9, 0.99]}
SHORT = {"rampup_begin_step": 2, "sparsity": [0.9]}  # compiles faster
SMALL = {"num_trainers": N, "min_numel": 200}  # so that the tensors of `drawn` are compressed


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((N,), ("data",), axis_types=(kind,))


def drawn(steps=10, seed=0, workers=N):
    """Parameters, two to be compressed and one not, and gradients for each step and worker."""
    rng = np.random.default_rng(seed)
    params = {
        k: rng.normal(size=s).astype("f") for k, s in {"w": (16, 16), "a": (10, 30), "b": (16,)}.items()
    }
    grads = {k: rng.normal(size=(steps, workers, *p.shape)).astype("f") for k, p in params.items()}
    return params, grads


def run(tx, params, grads, mesh=None, **shard):
    """[(parameters, state) after each step]; every worker is handed its own gradients."""
    mesh = mesh or mesh_of()
    state = tx.init(params)
    specs = state_specs(state)

    def worker(params, state, grads):
        updates, state = tx.update(jax.tree.map(lambda g: g[0], grads), state, params)
        return paddle.apply_updates(params, updates), state

    step = jax.jit(
        jax.shard_map(worker, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs), **shard)
    )

    def place(tree, spec):
        return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)

    params = place(params, P())
    state = jax.tree.map(lambda x, spec: place(x, spec), state, specs)
    history = []
    for t in range(len(next(iter(grads.values())))):
        params, state = step(params, state, place({k: g[t] for k, g in grads.items()}, P("data")))
        history.append((params, state))
    return history


def check(got, want, tolerance=1e-6):
    assert got.keys() == want.keys()
    for k in want:
        error = np.max(np.abs(np.asarray(got[k], np.float64) - want[k]))
        assert error <= tolerance, (k, error)


DECAYS = {None: None, "l1": paddle.regularizer.L1Decay(0.01), "l2": 0.01}


@pytest.mark.parametrize(
    "nesterov, clip, decay, exchange",
    [
        (False, None, None, "auto"),
        (False, None, "l2", "sparse"),
        (False, 3.0, "l1", "auto"),
        (True, None, None, "sparse"),
        (True, 3.0, "l2", "auto"),
        (True, 3.0, "l1", "dense"),
    ],
)
def test_eight_workers_in_float64(nesterov, clip, decay, exchange):
    """Dense steps, then three levels; both ways of exchange occur in "auto"."""
    params, grads = drawn()
    options = {"use_nesterov": nesterov, "local_grad_clip_norm": clip, "weight_decay": DECAYS[decay]}
    tx = dgc_momentum(0.1, 0.9, **WARM_UP, **options, **SMALL, exchange=exchange)
    p, state = {k: x.astype(np.float64) for k, x in params.items()}, reference.start(params, N, 200)
    for t, (got, slots) in enumerate(run(tx, params, grads)):
        each = [{k: g[t, r] for k, g in grads.items()} for r in range(N)]
        p, state = reference.step(
            p, each, state, t, rate=0.1, momentum=0.9, begin=2, ramp=6, sparsity=[0.75, 0.9, 0.99],
            nesterov=nesterov, clip=clip, decay=decay and (decay, 0.01),
        )  # fmt: skip
        check(got, p)
        check(slots.slots[U], {k: s.u for k, s in state.items()}, 5e-6)
        check({k: v for k, v in slots.slots[V].items() if v is not None},
              {k: s.v for k, s in state.items() if s.v is not None}, 5e-6)  # fmt: skip


def test_the_clip_takes_hold():
    """Else the reference would agree whatever it was."""
    params, grads = drawn()
    tx = [dgc_momentum(0.1, 0.9, **SHORT, **SMALL, local_grad_clip_norm=c) for c in (None, 3.0)]
    free, clipped = (run(t, params, grads) for t in tx)
    same = [np.array_equal(f[0]["w"], c[0]["w"]) for f, c in zip(free, clipped, strict=True)]
    assert same == [True] * 2 + [False] * 8  # and not before the warm-up


@pytest.mark.parametrize("nesterov", [False, True])
def test_before_the_warm_up_it_is_momentum(nesterov):
    params, grads = drawn()
    tx = dgc_momentum(0.1, 0.9, 1000, use_nesterov=nesterov, weight_decay=0.01, **SMALL)
    got, slots = run(tx, params, grads)[-1]
    tx = paddle.chain(paddle.l2_decay(0.01), paddle.momentum(0.1, 0.9, nesterov))
    p, state = params, tx.init(params)
    for t in range(10):
        updates, state = tx.update({k: jnp.mean(g[t], axis=0) for k, g in grads.items()}, state, p)
        p = paddle.apply_updates(p, updates)
    check(got, {k: np.asarray(x) for k, x in p.items()}, 5e-7)
    check({"w": slots.slots[U]["w"][3]}, {"w": np.asarray(state[1].slots["velocity"]["w"])}, 2e-6)
    assert not np.any(slots.slots[V]["w"])


def test_when_all_is_sent_it_is_sgd():
    """Factor masking forgets the velocity of what is sent, here all; what is not compressed keeps it."""
    params, grads = drawn()
    got = run(dgc_momentum(0.1, 0.9, 0, sparsity=[0.0], **SMALL), params, grads)[-1][0]
    sgd = {k: params[k] - 0.1 * grads[k].astype(np.float64).mean(axis=1).sum(axis=0) for k in ("w", "a")}
    check({k: got[k] for k in sgd}, sgd)
    assert np.abs(got["b"] - (params["b"] - 0.1 * grads["b"].mean(axis=1).sum(axis=0))).max() > 0.05


@pytest.mark.parametrize("exchange", ["sparse", "dense"])
def test_nothing_is_lost(exchange):
    """Without momentum, what was sent and what is kept back are together the sum of all gradients."""
    params, grads = drawn(20)
    tx = dgc_momentum(1.0, 0.0, 0, sparsity=[0.99], exchange=exchange, **SMALL)
    for t, (got, state) in enumerate(run(tx, params, grads)):
        for k in ("w", "a"):
            sent = params[k] - np.asarray(got[k], np.float64)
            kept = np.asarray(state.slots[V][k], np.float64).mean(axis=0)
            np.testing.assert_allclose(
                sent + kept, grads[k][: t + 1].astype(float).mean(axis=1).sum(axis=0), atol=2e-6
            )
    assert np.abs(kept).max() > 1  # and there was something to lose


@pytest.mark.parametrize("nesterov", [False, True])
def test_nothing_is_lost_with_momentum(nesterov):
    """What was sent and what is kept back are together what was accumulated, as the reference defines it:
    the velocities, each of which forgets at its entry when that is sent."""
    params, grads = drawn(12)
    ramp = {"rampup_begin_step": 0, "rampup_step": 9, "sparsity": [0.5, 0.9, 0.99]}
    history = run(dgc_momentum(1.0, 0.9, **ramp, use_nesterov=nesterov, **SMALL), params, grads)
    for k in ("w", "a"):
        accumulated, u = np.zeros((N, *params[k].shape)), np.zeros((N, *params[k].shape))
        before = params[k].astype(np.float64)
        for t, (got, state) in enumerate(history):
            g = grads[k][t].astype(np.float64)
            u = 0.9 * (u + g) if nesterov else 0.9 * u + g
            accumulated += u + g if nesterov else u
            kept = np.asarray(state.slots[V][k], np.float64)
            sent = before - np.asarray(got[k], np.float64)
            np.testing.assert_allclose(sent + kept.mean(axis=0), accumulated.mean(axis=0), atol=2e-5)
            u = np.where(kept == 0, 0, u)  # forgotten where it was sent
        assert np.abs(kept).max() > 1


KERNEL = [case for case in golden_cases.load("paddle-3.3.1") if case.cls == "dgc_momentum"]


def test_the_recorded_kernels_are_two():
    assert len(KERNEL) == 2


@pytest.mark.parametrize("case", KERNEL, ids=str)
def test_recorded_kernel(case):
    """Before the warm-up. Afterwards the kernel is handed what was sent, and leaves the velocity alone."""
    kw, n = case.kwargs, case.kwargs["nranks"]
    begin = kw["rampup_begin_step"]
    tx = dgc_momentum(
        kw["learning_rate"], kw["momentum"], begin, use_nesterov=kw["use_nesterov"], weight_decay=kw["l2"],
        num_trainers=n, min_numel=1,
    )  # fmt: skip
    grads = np.stack([np.stack([case.grads(t)["w"]] * n) for t in range(1, begin + 1)])
    history = run(tx, case.p0, {"w": grads}, jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,)))
    checked = [t for t in case.record_steps if t <= begin]
    assert checked == [1, 2, 3, 5, 10][: len(checked)] and len(checked) >= 4
    for t in checked:
        want = case.expected(t)["w"]
        assert np.abs(history[t - 1][0]["w"] - want).max() <= 5e-6 * np.abs(want).max()
    velocity = case.state()["velocity", "w"]
    assert np.abs(history[-1][1].slots[U]["w"] - velocity[None]).max() <= 5e-6 * np.abs(velocity).max()


# ------------------------------------------------------------------------------------ when and how much


def test_levels_of_the_documents_example():
    found = levels(0, 100, [0.75, 0.9375, 0.984375, 0.996, 0.999])
    pairs = [(0, 0.75), (20, 0.9375), (40, 0.984375), (60, 0.996), (80, 0.999)]
    assert found == [Level(*pair) for pair in pairs]


def test_levels_that_never_come():
    assert levels(2**31 - 1, 3, [0.75, 0.9, 0.99]) == [Level(2**31 - 1, 0.75)]
    assert levels(1, 2**31 - 1, [0.75, 0.9]) == [Level(1, 0.75), Level(2**30 + 1, 0.9)]
    tx = dgc_momentum(0.1, 0.9, 2**31 - 1, 3, [0.75, 0.9], **SMALL)
    assert len(run(tx, *drawn(1))) == 1


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize("ramp", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("sparsity", [[0.9], [0.9, 0.9], [0.5, 0.9, 0.9], [0.9, 0.5, 0.9, 0.99]])
def test_levels_are_those_of_the_index(begin, ramp, sparsity):
    found = levels(begin, ramp, sparsity)
    assert all(a.sparsity != b.sparsity for a, b in zip(found, found[1:], strict=False))
    for t in range(begin + 15):
        now = [level.sparsity for level in found if level.start <= t]
        assert (now[-1] if now else None) == reference.sparsity_at(t, begin, ramp, sparsity)


@pytest.mark.parametrize(
    "numel, sparsity, k",
    [(25600, 0.9, 2560), (16384, 0.999, 16), (65536, 0.999, 65), (16384, 0.0, 16384), (16384, 0.99999, 1)],
)
def test_entries_sent_in_float32(numel, sparsity, k):
    assert entries_sent(numel, sparsity) == k == reference.sent_of(numel, sparsity)


def test_what_is_compressed():
    """16384 elements or more, float32."""
    shapes = {"yes": (128, 128), "small": (16383,), "half": (128, 128), "wide": (128, 128), "scalar": ()}
    dtypes = {"half": jnp.bfloat16, "wide": np.float64}
    with jax.enable_x64(True):
        params = {k: jnp.zeros(s, dtypes.get(k, jnp.float32)) for k, s in shapes.items()}
        state = dgc_momentum(0.1, 0.9, 0, num_trainers=N).init(params)
    assert {k for k, v in state.slots[V].items() if v is not None} == {"yes"}
    assert state.slots[V]["yes"].shape == state.slots[U]["yes"].shape == (N, 128, 128)
    assert {k: u.shape for k, u in state.slots[U].items() if k != "yes"} == {
        k: s for k, s in shapes.items() if k != "yes"
    }


@pytest.mark.parametrize("k", [1, 7, 100, 999])
def test_selection(k):
    rng = np.random.default_rng(0)
    v = rng.normal(size=1000).astype("f")
    order = np.argsort(-np.abs(v), kind="stable")
    np.testing.assert_array_equal(largest(v, k), order[:k])
    np.testing.assert_array_equal(np.flatnonzero(among_largest(v, k)), np.sort(order[:k]))


def test_selection_of_equals_zeros_and_nan():
    v = jnp.array([2.0, -2.0, 0.0, jnp.nan, 2.0, -0.0, jnp.inf])
    np.testing.assert_array_equal(largest(v, 3), [3, 6, 0])  # NaN goes out, where somebody will see it
    np.testing.assert_array_equal(among_largest(v, 3), [1, 1, 0, 1, 1, 0, 1])
    assert bool(among_largest(jnp.zeros((2, 3)), 1).all())


# ----------------------------------------------------------------------------------- what goes on the wire

BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)


def collectives(compiled):
    """[(kind, bytes of its result)] in a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        if m := COLLECTIVE.search(line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", m[1])
            found.append(
                (m[2], sum(BYTES[t] * np.prod([int(d) for d in s.split(",") if d]) for t, s in shapes))
            )
    return found


def wire(found):
    """Bytes that one device receives on a ring."""
    return sum(size * (N - 1) / N * (2 if kind == "all-reduce" else 1) for kind, size in found)


LARGE = {"w1": (1024, 512), "b1": (512,), "w2": (512, 512), "w3": (512, 256), "b3": (256,)}  # 918 272 numbers


def squares(params, x):
    """A loss that needs every parameter; x is (batch, 1024)."""
    x = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((jnp.tanh(x @ params["w2"]) @ params["w3"] + params["b3"][None]) ** 2)


def on_the_wire(**options):
    tx = dgc_momentum(0.1, 0.9, num_trainers=N, **options)
    step, params, state = make_step(squares, tx, mesh_of(), {k: jnp.zeros(s) for k, s in LARGE.items()})
    x = jax.device_put(np.zeros((N, 1024), "f"), NamedSharding(mesh_of(), P("data")))
    return collectives(jax.jit(step).lower(params, state, x).compile())


def test_a_hundredth_goes_on_the_wire():
    sparse = on_the_wire(rampup_begin_step=0)
    at_75 = on_the_wire(rampup_begin_step=0, sparsity=[0.75])
    pairs_at_75 = on_the_wire(rampup_begin_step=0, sparsity=[0.75], exchange="sparse")
    others, whole = 4 * (512 + 256 + 1), 4 * 918_272  # biases and the loss; all there is
    # 99.9 %: one message, in which the others travel too, as that is little more than to reduce them
    assert [kind for kind, _ in sparse] == ["all-gather"]
    assert sparse[0][1] == N * (others + 2 * 4 * sum(k for k in (524, 262, 131)))
    # 75 %: pairs would be more than all there is, so "auto" sends what is sent without compression
    assert at_75 == [("all-reduce", whole + 4)]
    assert wire(pairs_at_75) > 1.9 * wire(at_75)
    assert wire(at_75) / wire(sparse) >= 85
    assert 0.072e6 < wire(sparse) < 0.074e6


def test_gradients_that_were_summed_are_refused():
    """jax.grad with respect to replicated parameters is the sum over the workers: nothing to compress."""
    params, mesh = {"w": jnp.ones((16, 16))}, mesh_of()
    tx = dgc_momentum(0.1, 0.9, 0, **SMALL)
    state = tx.init(params)
    specs = state_specs(state)

    def worker(params, state, x):
        grads = jax.grad(lambda params: jnp.mean(x @ params["w"]))(params)
        return tx.update(grads, state, params)

    step = jax.shard_map(worker, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs))
    with pytest.raises(ValueError, match="at w: found a gradient that is the same on all workers of 'data'"):
        jax.jit(step)(params, state, jnp.ones((N, 16)))


def test_local_grads_are_not_summed():
    def worker(w, x):
        (value, aux), g = local_grads(lambda w, x: (jnp.sum(w * x), x), has_aux=True)(w, x)
        return jnp.stack([value, aux[0], g])[None]

    rows = jax.shard_map(worker, mesh=mesh_of(), in_specs=(P(), P("data")), out_specs=P("data"))
    x = np.arange(8.0, dtype="f")
    np.testing.assert_array_equal(rows(jnp.full((), 2.0), x), np.stack([2 * x, x, x], axis=1))


# ------------------------------------------------------------------------------------------------ meshes


def mlp(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"] + params["b"][None]) @ params["w2"] - y) ** 2)


def problem():
    rng = np.random.default_rng(0)
    shapes = {"w1": (32, 32), "b": (32,), "w2": (32, 32)}
    params = {k: (rng.normal(size=s) / 6).astype("f") for k, s in shapes.items()}
    return params, rng.normal(size=(64, 32)).astype("f"), rng.normal(size=(64, 32)).astype("f")


def trained(mesh, params=None, workers=N, **options):
    start, x, y = problem()
    tx = dgc_momentum(0.3, 0.9, 2, 1, [0.9], num_trainers=workers, min_numel=200, **options)
    step, params, state = make_step(mlp, tx, mesh, params or start)
    for _ in range(8):
        params, state, loss = step(params, state, x, y)
    return params, state, float(loss)


def test_kinds_of_meshes_agree():
    """Auto, Explicit, and four workers with an axis beside theirs over which the parameters are sharded."""
    auto, explicit = trained(mesh_of()), trained(mesh_of(AxisType.Explicit))
    check(explicit[0], auto[0], 0)
    assert auto[2] < 0.9 * mlp(problem()[0], *problem()[1:])

    alone = trained(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), workers=4)
    both = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = {"w1": P(None, "model"), "b": P("model"), "w2": P("model", None)}
    params = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(both, s)), problem()[0], spec)
    params, state, loss = trained(both, params, workers=4)
    check(params, alone[0], 2e-6)
    assert loss == pytest.approx(alone[2], rel=1e-6)
    for k in spec:
        assert params[k].sharding.is_equivalent_to(NamedSharding(both, spec[k]), params[k].ndim)
    own = NamedSharding(both, P("data", None, "model"))
    assert state.slots[V]["w1"].sharding.is_equivalent_to(own, 3)


def test_unchecked_shard_map():
    """Where shard_map does not track what varies, gradients are local by themselves."""
    params, grads = drawn(5)
    tx = dgc_momentum(0.1, 0.9, **SHORT, **SMALL)
    checked, unchecked = run(tx, params, grads), run(tx, params, grads, check_vma=False)
    check(unchecked[-1][0], {k: np.asarray(p) for k, p in checked[-1][0].items()}, 0)


# --------------------------------------------------------------------------------------- the functional form


def test_a_new_rate_compiles_nothing():
    def after(rate, changes):
        chex.clear_trace_counter()

        @chex.assert_max_traces(n=1)
        def loss(params, x):
            return jnp.mean((x @ params["w"]) ** 2)

        tx = dgc_momentum(rate, 0.9, 1, **SMALL)
        step, params, state = make_step(loss, tx, mesh_of(), {"w": jnp.ones((16, 16))})
        for t in range(4):
            if t in changes:
                state = paddle.set_learning_rate(state, changes[t])
            params, state, _ = step(params, state, jnp.ones((N, 16)))
        return params["w"], paddle.get_learning_rate(state)

    changed, rate = after(0.5, {1: 0.25, 3: 0.125})
    assert rate == 0.125
    scheduled, rate = after(lambda count: jnp.array([0.5, 0.25, 0.25, 0.125])[count], {})
    assert rate == 0.125
    np.testing.assert_array_equal(changed, scheduled)


def test_momentum_and_clip_may_be_traced():
    params, grads = drawn(4)

    def last(momentum, clip):
        tx = dgc_momentum(0.1, momentum, 1, sparsity=[0.9], local_grad_clip_norm=clip, **SMALL)
        return {k: np.asarray(p) for k, p in run(tx, params, grads)[-1][0].items()}

    check(last(jnp.float32(0.9), jnp.float32(3.0)), last(0.9, 3.0), 0)


def test_without_a_gradient_a_leaf_stays():
    params, grads = drawn(6)
    tx = dgc_momentum(0.1, 0.9, **SHORT, **SMALL)
    state = tx.init(params)
    specs = state_specs(state)
    absent = {"a": None, "b": None}

    def worker(params, state, g):
        return tx.update({"w": g[0], **absent}, state, params)

    step = jax.jit(
        jax.shard_map(worker, mesh=mesh_of(), in_specs=(P(), specs, P("data")), out_specs=(P(), specs))
    )
    updates, new = step(params, state, grads["w"][0])
    assert updates["a"] is None and updates["b"] is None and new.count == 1
    for k in absent:
        np.testing.assert_array_equal(new.slots[U][k], state.slots[U][k])
    assert np.any(new.slots[U]["w"])


def test_gradients_of_sixteen_bits():
    """They are widened before anything else."""
    params, grads = drawn(5)
    narrow = {k: jnp.asarray(g, jnp.bfloat16) for k, g in grads.items() if k != "b"}
    tx = dgc_momentum(0.1, 0.9, **SHORT, **SMALL, local_grad_clip_norm=3.0)
    params.pop("b")
    got = run(tx, params, {k: np.asarray(g) for k, g in narrow.items()})[-1][0]
    want = run(tx, params, {k: np.asarray(g, "f") for k, g in narrow.items()})[-1][0]
    check(got, {k: np.asarray(p) for k, p in want.items()}, 0)


def test_inside_a_chain():
    params, grads = drawn(4)
    tx = paddle.chain(paddle.clip_by_value(0.5), dgc_momentum(0.1, 0.9, **SHORT, **SMALL))
    got = run(tx, params, grads)[-1][0]
    alone = run(
        dgc_momentum(0.1, 0.9, **SHORT, **SMALL), params, {k: g.clip(-0.5, 0.5) for k, g in grads.items()}
    )
    check(got, {k: np.asarray(p) for k, p in alone[-1][0].items()}, 0)


@pytest.mark.parametrize("inside", [False, True])
def test_one_worker_is_momentum_and_warned(inside):
    params, grads = drawn(5, workers=1)
    with pytest.warns(UserWarning, match="one worker .* nothing is compressed") as caught:
        tx = dgc_momentum(0.1, 0.9, 0, use_nesterov=True, weight_decay=0.1)
    assert len(caught) == 1
    want = paddle.chain(paddle.l2_decay(0.1), paddle.momentum(0.1, 0.9, True))
    p, state, q, other = params, tx.init(params), params, want.init(params)
    for t in range(5):
        g = {k: g[t, 0] for k, g in grads.items()}
        updates, state = tx.update(g, state, p)
        p = paddle.apply_updates(p, updates)
        updates, other = want.update(g, other, q)
        q = paddle.apply_updates(q, updates)
    check(p, {k: np.asarray(x) for k, x in q.items()}, 0)
    if inside:  # compiled, which may fuse multiplications and additions
        got = run(tx, params, grads, jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)))
        check(got[-1][0], {k: np.asarray(x) for k, x in q.items()}, 5e-7)


def test_redistribute_keeps_what_was_not_sent():
    params, grads = drawn(6)
    state = run(dgc_momentum(0.1, 0.9, **SHORT, **SMALL), params, grads)[-1][1]
    four = redistribute((state, "else"), 4)
    assert four[1] == "else" and four[0].count == state.count
    for name in (U, V):
        for k in ("w", "a"):
            new, old = np.asarray(four[0].slots[name][k]), np.asarray(state.slots[name][k])
            assert new.shape == (4, *old.shape[1:]) and not np.array_equal(old[0], old[1])
            np.testing.assert_allclose(new, np.stack([old.mean(axis=0)] * 4), rtol=0, atol=1e-6)
        assert four[0].slots[name]["b"] is state.slots[name]["b"]
    same = redistribute(state, N)
    assert same.slots[V]["w"] is state.slots[V]["w"]
    for wrong in (1, 0, 2.0, None):
        with pytest.raises(ValueError, match="num_trainers: found .*, expected an int"):
            redistribute(state, wrong)


WRONG = [  # arguments, what is raised, what it says
    ({"momentum": None}, ValueError, "DGCMomentum's momentum: found None"),
    ({"momentum": "0.9"}, TypeError, "DGCMomentum's momentum: found '0.9'"),
    ({"learning_rate": None}, ValueError, "learning_rate.*: found None"),
    ({"use_nesterov": [1]}, TypeError, r"use_nesterov: found \[1\], expected True or False"),
    (
        {"rampup_begin_step": -1},
        ValueError,
        "rampup_begin_step: found -1, expected an int in .0, 2147483648.",
    ),
    ({"rampup_begin_step": 0.0}, TypeError, "rampup_begin_step: found 0.0, expected an int"),
    ({"rampup_begin_step": 2**31}, ValueError, "rampup_begin_step: found 2147483648"),
    ({"rampup_step": 0}, ValueError, "rampup_step: found 0, expected an int in .1, 2147483648."),
    ({"rampup_step": True}, TypeError, "rampup_step: found True"),
    ({"sparsity": []}, ValueError, "sparsity: found .., expected a list of numbers in"),
    ({"sparsity": 0.999}, TypeError, "sparsity: found 0.999, expected a list"),
    ({"sparsity": [0.9, 1.0]}, ValueError, "sparsity: found 1.0"),
    ({"sparsity": [-0.1]}, ValueError, "sparsity: found -0.1"),
    ({"sparsity": [float("nan")]}, ValueError, "sparsity: found nan"),
    ({"sparsity": ["0.9"]}, TypeError, "sparsity: found '0.9'"),
    ({"sparsity": [np.zeros(2)]}, TypeError, "sparsity: found an array"),
    ({"sparsity": [jnp.zeros(())]}, TypeError, "sparsity: found an array"),
    ({"local_grad_clip_norm": 0.0}, ValueError, "local_grad_clip_norm: found 0.0, expected a number above 0"),
    ({"local_grad_clip_norm": "1"}, TypeError, "local_grad_clip_norm: found '1'"),
    ({"num_trainers": 0}, ValueError, "num_trainers: found 0, expected an int of at least 1"),
    ({"num_trainers": 8.0}, TypeError, "num_trainers: found 8.0, expected an int"),
]
FUNCTIONAL = [
    ({"weight_decay": "l2"}, TypeError, "weight_decay: found 'l2'"),
    ({"axis_name": 3}, TypeError, "axis_name: found 3, expected the name of a mesh axis"),
    ({"exchange": "psum"}, ValueError, "exchange: found 'psum', expected 'auto', 'sparse' or 'dense'"),
    ({"min_numel": 0}, ValueError, "min_numel: found 0, expected an int of at least 1"),
]
RIGHT = {"learning_rate": 0.1, "momentum": 0.9, "rampup_begin_step": 0, "num_trainers": N}


@pytest.mark.parametrize("arguments, kind, message", WRONG + FUNCTIONAL)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        dgc_momentum(**{**RIGHT, **arguments})


def test_wrong_use():
    params, mesh = {"w": jnp.ones((16, 16))}, mesh_of()
    tx = dgc_momentum(0.1, 0.9, 0, **SMALL)
    state, g = tx.init(params), jnp.ones((N, 16, 16))
    with pytest.raises(
        RuntimeError, match="found outside, expected it inside jax.shard_map over the axis 'data'"
    ):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, state)
    with pytest.raises(TypeError, match="state: found tuple, expected the RuleState that its init made"):
        tx.update(params, (), params)
    with pytest.raises(TypeError, match="state: found RuleState.*, expected slots"):
        tx.update(params, paddle.sgd(0.1).init(params), params)

    def inside(tx, state, specs, mesh=mesh):
        def worker(params, state, g):
            return tx.update({"w": g[0]}, state, params)

        return jax.shard_map(worker, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs))(
            params, state, g
        )

    with pytest.raises(ValueError, match=r"at w: _dgc_u_ has shape \(8, 16, 16\), expected this worker's"):
        inside(tx, state, P())
    four = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="num_trainers: found 8, expected 4, the size of the axis 'data'"):
        inside(tx, state, state_specs(state), four)
    with pytest.raises(ValueError, match="axis_name: found 'data', expected one of the mesh's"):
        make_step(mlp, tx, jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), params)
    sharded = {"w": jax.device_put(params["w"], NamedSharding(mesh, P("data")))}
    with pytest.raises(ValueError, match="at w: found a parameter sharded over 'data'"):
        make_step(mlp, tx, mesh, sharded)
    step, placed, state = make_step(lambda p, x: jnp.mean(x @ p["w"]), tx, mesh, params)
    with pytest.raises(
        ValueError, match=r"batch at 0: found shape \(12, 16\), expected a leading dimension that"
    ):
        step(placed, state, jnp.ones((12, 16)))
    for other, found in ((jnp.ones(8), r"\(8,\)"), (jnp.ones(()), r"\(\)")):
        with pytest.raises(
            ValueError, match=rf"batch at 1: found shape {found}, expected .* as others have 16$"
        ):
            step(placed, state, jnp.ones((16, 16)), other)
    for arguments, message in (
        ((None, tx, mesh, params), "loss_fn: found None, expected a function"),
        ((mlp, dgc_momentum, mesh, params), "tx: found .*, expected a transformation"),
        ((mlp, tx, 8, params), "mesh: found 8, expected a jax.sharding.Mesh"),
    ):
        with pytest.raises(TypeError, match=message):
            make_step(*arguments)


# ---------------------------------------------------------------------------------------------- accuracy


def digits_accuracies(seeds, **options):
    """Test accuracies after 30 epochs of 11 batches of 128; an epoch is one program."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, order = (x / 16).astype("f"), np.random.default_rng(0).permutation(len(x))
    training, testing = order[:1408], order[1408:]

    def initial(rng):
        sizes = {"w1": (64, 256), "w2": (256, 256), "w3": (256, 10)}
        weights = {k: (rng.normal(size=s) * (2 / s[0]) ** 0.5).astype("f") for k, s in sizes.items()}
        return weights | {"b1": np.zeros(256, "f"), "b2": np.zeros(256, "f"), "b3": np.zeros(10, "f")}

    def logits(p, x):
        x = jax.nn.relu(x @ p["w1"] + p["b1"][None])
        return jax.nn.relu(x @ p["w2"] + p["b2"][None]) @ p["w3"] + p["b3"][None]

    def loss(p, x, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(p, x)), y[:, None], 1))

    tx = dgc_momentum(0.05, 0.9, num_trainers=N, **options)
    specs = state_specs(jax.eval_shape(tx.init, initial(np.random.default_rng(0))))

    def epoch(params, state, xs, ys):
        def step(carry, batch):
            params, state = carry
            _, grads = local_grads(loss)(params, *batch)
            updates, state = tx.update(grads, state, params)
            return (paddle.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), (xs, ys))[0]

    each = P(None, "data")
    epoch = jax.jit(
        jax.shard_map(epoch, mesh=mesh_of(), in_specs=(P(), specs, each, each), out_specs=(P(), specs)),
        donate_argnums=(0, 1),
    )
    for seed in seeds:
        rng = np.random.default_rng(seed)
        _, params, state = make_step(loss, tx, mesh_of(), initial(rng))
        for _ in range(30):
            batches = rng.permutation(training).reshape(11, 128)
            params, state = epoch(params, state, x[batches], y[batches].astype(np.int32))
        right = np.argmax(logits(jax.device_get(params), x[testing]), axis=1) == y[testing]
        yield float(np.mean(right))


@pytest.mark.slow
def test_digits_are_learnt_as_well_as_without_compression():
    """0.1 % of two tensors' gradients, reached in four epochs after one of momentum."""
    warm_up = {"rampup_begin_step": 11, "rampup_step": 44, "sparsity": [0.75, 0.9375, 0.984375, 0.996, 0.999]}
    dense = list(digits_accuracies(range(3), rampup_begin_step=2**31 - 1, sparsity=[0.0]))
    sparse = list(digits_accuracies(range(3), **warm_up))
    assert min(dense) > 0.97
    assert np.mean(sparse) >= np.mean(dense) - 0.01, (dense, sparse)


# ---------------------------------------------------------------------------------------------- the object


@paddle.loss
def mse(params, x, y):
    return mlp(params, x, y)


def large():
    """Of three tensors two are just large enough to be compressed; five batches."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (128, 128), "b": (128,), "w2": (128, 128)}
    params = {k: (rng.normal(size=s) / 10).astype("f") for k, s in shapes.items()}
    x, y = rng.normal(size=(2, 5, 16, 128)).astype("f")
    return params, x, y


ARGUMENTS = {"momentum": 0.9, "rampup_begin_step": 2, "sparsity": [0.99]}


def minimized(params, x, y, **options):
    """After five steps, with the last loss; parameters and state_dict after three."""
    opt = DGCMomentumOptimizer(0.3, **{**ARGUMENTS, **options}, parameter_list=params)
    for t in range(5):
        loss = mse(opt.parameters, x[t], y[t])
        opt.minimize(loss)
        opt.clear_grad()
        if t == 2:
            halfway = values(opt), {k: np.asarray(v) for k, v in opt.state_dict().items()}
    return opt, loss, halfway


def values(opt):
    return {k: p.numpy() for k, p in opt.parameters.items()}


def test_minimize_is_the_functional_step():
    params, x, y = large()
    options = {"use_nesterov": True, "local_grad_clip_norm": 0.1}
    opt, loss, _ = minimized(params, x, y, **options, regularization=0.01)
    tx = dgc_momentum(0.3, **ARGUMENTS, **options, weight_decay=0.01, num_trainers=N)
    step, p, state = make_step(mlp, tx, mesh_of(), params)
    for t in range(5):
        p, state, value = step(p, state, x[t], y[t])
    check(values(opt), {k: np.asarray(v) for k, v in p.items()})
    assert float(loss) == pytest.approx(float(value), rel=1e-6)
    assert opt.parameters["w1"].grad is None
    entries = opt.state_dict()
    assert {k: v.shape for k, v in entries.items()} == {
        "w1__dgc_u__0": (N, 128, 128), "w1__dgc_v__0": (N, 128, 128), "b__dgc_u__0": (128,),
        "w2__dgc_u__0": (N, 128, 128), "w2__dgc_v__0": (N, 128, 128), "__g_dgc_counter__": (1,),
    }  # fmt: skip
    check({"v": entries["w2__dgc_v__0"]}, {"v": np.asarray(state.slots[V]["w2"])})
    assert entries["__g_dgc_counter__"] == 5


def test_minimize_compiles_once_whatever_the_rate():
    params, x, y = large()

    @paddle.loss(has_aux=True)
    @chex.assert_max_traces(n=1)
    def loss_of(params, x, y, scale):
        return scale * mlp(params, x, y), {"first": x[0, 0], "rows": len(x), "whole": scale}

    scheduler = paddle.optimizer.lr.StepDecay(0.5, step_size=2, gamma=0.5)
    opt = DGCMomentumOptimizer(scheduler, **ARGUMENTS, parameter_list=params)
    frozen = opt.parameters["b"]
    frozen.stop_gradient = True
    for t in range(5):
        loss = loss_of(opt.parameters, x[t], y[t], 2.0)
        assert [g for _, g in opt.minimize(loss)[1]] == [None, None]
        scheduler.step()
        if t == 1:
            opt.set_lr_scheduler(paddle.optimizer.lr.ExponentialDecay(0.2, 0.9))
    np.testing.assert_array_equal(loss.aux["first"], x[4][::2, 0])  # each worker's own
    np.testing.assert_array_equal(loss.aux["rows"], [2] * N)
    np.testing.assert_array_equal(loss.aux["whole"], [2.0] * N)
    np.testing.assert_array_equal(frozen.numpy(), params["b"])


def test_options_of_each_parameter():
    """Factor on the rate, own regularizer, need_clip; and which are to be updated."""
    params, x, y = large()
    own = [
        paddle.Parameter(params["w1"], "w1", learning_rate=0.5, need_clip=False),
        paddle.Parameter(params["b"], "b"),
        paddle.Parameter(params["w2"], "w2", regularizer=paddle.regularizer.L1Decay(0.1)),
    ]
    clip = paddle.nn.ClipGradByNorm(0.01)
    opt = DGCMomentumOptimizer(
        1.0, 0.0, 0, sparsity=[0.0], regularization=0.2, grad_clip=clip, num_trainers=N, parameter_list=own
    )
    loss = mse({p.name: p for p in own}, x[0], y[0])
    assert opt.minimize(loss, no_grad_set=["b"]) == ([], [(own[0], None), (own[2], None)])
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    each = [jax.grad(mlp)(params, x[0][r : r + 2], y[0][r : r + 2]) for r in range(0, 16, 2)]
    w1 = np.mean([g["w1"] for g in each], axis=0) + 0.2 * p["w1"]
    norms = [np.linalg.norm(g["w2"]) for g in each]
    assert min(norms) > 0.01 * N**0.5
    w2 = np.mean([g["w2"] * 0.01 * N**0.5 / n for g, n in zip(each, norms, strict=True)], axis=0)
    check({q.name: q.value for q in own}, {
        "w1": p["w1"] - 0.5 * w1, "b": p["b"], "w2": p["w2"] - (w2 + 0.1 * np.sign(p["w2"])),
    })  # fmt: skip
    loss = mse({q.name: q for q in own}, x[0], y[0])
    assert opt.minimize(loss, no_grad_set=own) == ([], []) and float(loss) < 2
    # what is not compressed is clipped as a whole
    opt.minimize(mse({q.name: q for q in own}, x[0], y[0]), parameter_list=[own[1]])
    assert np.linalg.norm(own[1].numpy() - p["b"] + 0.2 * p["b"]) == pytest.approx(0.01, rel=1e-3)


@pytest.fixture(scope="module")
def halfway():
    """(parameters, state_dict) after three steps, and the parameters after two more."""
    opt, _, saved = minimized(*large())
    return *saved, values(opt)


def test_a_state_continues(halfway):
    params, entries, after_five = halfway
    _, x, y = large()
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    assert opt.state_dict() == {}
    opt.set_state_dict(entries)
    for t in (3, 4):
        opt.minimize(mse(opt.parameters, x[t], y[t]))
    check(values(opt), after_five, 0)


def test_a_state_of_other_workers(halfway):
    """Of eight workers for four: the mean of what is not sent yet stays; of one worker for eight: its u."""
    params, eight, _ = halfway
    _, x, y = large()
    four_devices = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    four = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params, mesh=four_devices)
    four.set_state_dict(eight)
    loaded = four.state_dict()
    for k in ("w1__dgc_v__0", "w2__dgc_u__0", "w2__dgc_v__0"):
        assert loaded[k].shape == (4, 128, 128) and np.std(eight[k], axis=0).max() > 1e-3
        np.testing.assert_allclose(loaded[k], np.stack([eight[k].mean(axis=0)] * 4), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(loaded["b__dgc_u__0"], eight["b__dgc_u__0"])
    four.minimize(mse(four.parameters, x[0], y[0]))
    assert four.state_dict()["__g_dgc_counter__"] == 4

    with pytest.warns(UserWarning, match="one worker"):
        one = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params, num_trainers=1)
    with pytest.raises(ValueError, match=r"(?s)nothing was changed.*unexpected: w1__dgc_v__0"):
        one.set_state_dict(eight)
    one.set_state_dict({k: v for k, v in eight.items() if "_v_" not in k})
    alone = one.state_dict()
    np.testing.assert_allclose(alone["w1__dgc_u__0"], eight["w1__dgc_u__0"].mean(axis=0), rtol=0, atol=1e-7)
    first = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    first.set_state_dict(alone)
    assert first.state_dict()["w1__dgc_u__0"].shape == (N, 128, 128)
    np.testing.assert_array_equal(first.state_dict()["w1__dgc_u__0"][5], alone["w1__dgc_u__0"])
    assert not np.any(first.state_dict()["w1__dgc_v__0"])


def test_a_state_that_does_not_fit(halfway):
    params, entries, _ = halfway
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    opt.set_state_dict(entries)
    wrong = {
        **{k: v for k, v in entries.items() if k not in ("b__dgc_u__0", "w2__dgc_v__0")},
        "w1__dgc_v__0": entries["w1__dgc_v__0"][:, :64],
        "w3__dgc_u__0": entries["b__dgc_u__0"],
    }
    with pytest.raises(ValueError) as error:
        opt.set_state_dict(wrong)
    for problem in (
        "missing: b__dgc_u__0", "missing: w2__dgc_v__0", "unexpected: w3__dgc_u__0",
        "misshapen: w1__dgc_v__0 has shape (8, 64, 128), expected (8, 128, 128)",
    ):  # fmt: skip
        assert problem in str(error.value)
    np.testing.assert_array_equal(opt.state_dict()["b__dgc_u__0"], entries["b__dgc_u__0"])
    with pytest.raises(TypeError, match="state_dict: found list, expected a dict"):
        opt.set_state_dict([])
    with pytest.raises(ValueError, match="missing: w1__dgc_u__0"):
        opt.set_state_dict({})
    scheduled = DGCMomentumOptimizer(
        paddle.optimizer.lr.StepDecay(0.1, 2), **ARGUMENTS, parameter_list=params
    )
    with pytest.raises(ValueError, match="missing: LR_Scheduler"):
        scheduled.set_state_dict(entries)
    opt.set_state_dict({k: v for k, v in entries.items() if not k.startswith("b_")}, strict=False)
    assert not np.any(opt.state_dict()["b__dgc_u__0"])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"__g_dgc_counter__": np.array([-1])}, "__g_dgc_counter__ is -1, expected an int from 0"),
        ({f"w1__dgc_{s}__0": np.zeros((0, 128, 128), "f") for s in "uv"}, r"w1_.* has shape \(0, 128, 128\)"),
        ({"b__dgc_v__0": np.zeros(128, "f")}, "b__dgc_v__0, what was not sent yet, but here b is not compr"),
    ],
)
def test_a_state_that_cannot_be(halfway, changed, message):
    params, entries, _ = halfway
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    with pytest.raises(ValueError, match=message):
        opt.set_state_dict({**entries, **changed})
    assert opt.state_dict() == {}


def test_a_list_of_trees_is_no_list_of_groups():
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=[{"w": jnp.ones(2)}, {"w": jnp.ones(3)}])
    assert [p.shape for p in jax.tree.leaves(opt.parameters)] == [(2,), (3,)]


def test_a_scaled_loss_is_refused():
    params, x, y = large()
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    scaler, loss = paddle.amp.GradScaler(), mse(opt.parameters, x[0], y[0])
    with pytest.raises(ValueError, match="loss: found one that GradScaler scaled, expected the unscaled"):
        opt.minimize(scaler.scale(loss))
    for call in (lambda: scaler.minimize(opt, loss), lambda: scaler.step(opt), lambda: scaler.unscale_(opt)):
        with pytest.raises(ValueError, match="found DGCMomentumOptimizer with 8 workers, expected one; use"):
            call()
    assert not loss.ran_backward


def test_the_fluid_class_takes_the_orders_of_both_versions():
    """Of Paddle 1.6 and 1.8 the sixth argument is use_nesterov and parameter_list."""
    given = (0.3, 0.9, 2, 1, [0.99])
    params = {"w": jnp.ones(2)}
    for opt in (
        paddle.fluid.optimizer.DGCMomentumOptimizer(*given, parameter_list=params),
        paddle.fluid.optimizer.DGCMomentumOptimizer(*given, params),
        paddle.fluid.optimizer.DGCMomentumOptimizer(*given, False, None, parameter_list=params),
    ):
        assert [p.name for p in opt.parameter_list] == ["w"]
    with pytest.raises(TypeError, match="found 3.0 as argument 6, expected parameter_list or use_nesterov"):
        paddle.fluid.optimizer.DGCMomentumOptimizer(*given, 3.0)


def test_one_worker_is_an_ordinary_momentum():
    params, x, y = large()
    with pytest.warns(UserWarning, match="one worker"):
        opt = DGCMomentumOptimizer(0.1, **ARGUMENTS, parameter_list=params, num_trainers=1)
    other = paddle.optimizer.Momentum(0.1, 0.9, parameters=params)
    for o in (opt, other):
        o.minimize(mse(o.parameters, x[0], y[0]))
        o.clear_grad()
        mse(o.parameters, x[1], y[1]).backward()
        o.step()
        o.clear_grad(set_to_zero=False)
        o.apply_gradients([(o.parameters["w1"], x[2, 0] + x[2, :1].T)])
    check(values(opt), values(other), 5e-7)
    assert opt.parameters["w1"].grad is None
    assert {k: v.shape for k, v in opt.state_dict().items()} == {
        "w1__dgc_u__0": (128, 128), "b__dgc_u__0": (128,), "w2__dgc_u__0": (128, 128),
        "__g_dgc_counter__": (1,),
    }  # fmt: skip


def test_it_takes_the_fluid_methods():
    """The 1.x class: schedules that advance by themselves, and current_step_lr."""
    params, x, y = large()
    fluid = paddle.fluid

    class Optimizer(DGCMomentumOptimizer, fluid.optimizer.FluidOptimizer):
        _used_rate = None

    schedule = fluid.dygraph.PiecewiseDecay([2], [0.3, 0.1], 0)
    opt = Optimizer(schedule, **ARGUMENTS, parameter_list=params)
    rates = []
    for t in range(4):
        opt.minimize(mse(opt.parameters, x[t], y[t]))
        rates.append(opt.current_step_lr())
    assert rates == pytest.approx([0.3, 0.3, 0.1, 0.1])
    entries = opt.state_dict()
    assert entries["global_step"] == 4 == entries["__g_dgc_counter__"]
    again = Optimizer(
        fluid.dygraph.PiecewiseDecay([2], [0.3, 0.1], 0), **ARGUMENTS, parameter_list=values(opt)
    )
    again.set_dict(entries)
    for o in (opt, again):
        o.minimize(mse(o.parameters, x[4], y[4]))
    check(values(again), values(opt), 0)


CLASS = [
    ({"regularization": "l2"}, TypeError, "regularization: found 'l2'"),
    ({"parameter_list": None}, TypeError, "parameter_list: found None"),
    ({"parameter_list": [{"params": []}]}, TypeError, "parameter_list: found .*, no groups"),
    ({"grad_clip": paddle.nn.ClipGradByValue(1.0)}, TypeError, "grad_clip: found .*, expected a Clip"),
    ({"grad_clip": 1.0}, TypeError, "grad_clip: found 1.0"),
    ({"grad_clip": paddle.nn.ClipGradByNorm(1.0), "num_trainers": None}, TypeError,
     "num_trainers: found None, expected an int beside grad_clip"),
    ({"grad_clip": paddle.nn.ClipGradByNorm(1.0), "local_grad_clip_norm": 1.0}, ValueError,
     "grad_clip: found .*, expected None beside local_grad_clip_norm"),
    ({"num_trainers": 4}, ValueError, "num_trainers: found 4, expected 8, the devices, or a mesh"),
    ({"mesh": 8}, TypeError, "mesh: found 8, expected a jax.sharding.Mesh"),
    ({"mesh": mesh_of(), "num_trainers": 4}, ValueError, "num_trainers: found 4, expected 8, the size of"),
    ({"mesh": mesh_of(), "axis_name": "workers"}, ValueError, "axis_name: found 'workers', expected one of"),
    ({"name": 3}, TypeError, "name: found 3"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, kind, message", WRONG + CLASS)
def test_wrong_arguments_of_the_class(arguments, kind, message):
    with pytest.raises(kind, match=message):
        DGCMomentumOptimizer(**{**RIGHT, "parameter_list": {"w": jnp.zeros(2)}, **arguments})


def test_wrong_use_of_the_class():
    params, x, y = large()
    opt = DGCMomentumOptimizer(0.3, **ARGUMENTS, parameter_list=params)
    p, (x, y) = opt.parameters, (x[0], y[0])
    for call in (opt.step, lambda: opt.backward(mse(p, x, y)), lambda: opt.apply_gradients([(p["b"], y[0])]),
                 lambda: opt.apply_optimize(None, None, [])):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"found 8 workers, expected one; use minimize\(loss\)"):
            call()

    @paddle.loss
    def closed(params):
        return mlp(params, x, y)

    ran = mse(p, x, y)
    ran.backward()
    built_before = mse(p, x, y)
    p["b"].set_value(params["b"])
    with pytest.raises(RuntimeError, match="a gradient of an earlier backward at Parameter b, .* clear_grad"):
        opt.minimize(mse(p, x, y))
    opt.clear_grad()
    for loss, kind, message in [
        (mse(p, x[:12], y[:12]), ValueError,
         r"batch at argument 1: found shape \(12, 128\), expected a leading dimension that the 8 workers"),
        (mse(p, x=x, y=y[:8]), ValueError, r"batch at argument y: found shape \(8, 128\), .* as others have"),
        (closed(p), ValueError, "closed: found no arrays among its arguments, expected the batch"),
        (lambda p: mlp(p, x, y), ValueError, "loss: found function, expected what a @paddle.loss function"),
        (mse, ValueError, "loss: found LossFunction, expected what"),
        (ran, RuntimeError, "found a loss whose backward ran"),
        (built_before, RuntimeError, "found a loss built before its parameters changed"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=message):
            opt.minimize(loss)
    with pytest.raises(TypeError, match="minimize's grad_clip: found .*, expected it in the constructor"):
        opt.minimize(mse(p, x, y), grad_clip=paddle.nn.ClipGradByNorm(1.0))
    with pytest.raises(TypeError, match="startup_program"):
        opt.minimize(mse(p, x, y), startup_program=1)
    assert opt.state_dict() == {}
    check(values(opt), params, 0)


EXAMPLES = Path(__file__).parent.parent / "examples"


def test_two_processes_train_as_one(monkeypatch, tmp_path):
    """The example as 2 processes of 4 workers each, against 8 workers here: four epochs, both exchanges."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("train_dgc")
    here = example.train(example.warm_up(0.9), epochs=4, lr=0.05, seed=0)
    command = [sys.executable, EXAMPLES / "train_dgc.py", "--epochs", "4", "--sparsity", "0.9"]
    command += ["--processes", "2", "--out", tmp_path / "picture.png"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    loss, accuracy = re.search(r"DGC, 90 % +([\d.]+) +([\d.]+)", ran.stdout).groups()
    # sums in another order may send the other one of two entries that are equal but for the last bit
    assert float(loss) == pytest.approx(here.losses[-example.STEPS :].mean(), rel=1e-5)
    assert float(accuracy) == pytest.approx(here.test_accuracy[-1], abs=5e-5)
    momentum = float(re.search(r"momentum +([\d.]+)", ran.stdout)[1])
    here = example.train(
        {"rampup_begin_step": example.NEVER, "rampup_step": 1, "sparsity": [0.0]}, 4, 0.05, 0
    )
    assert momentum == pytest.approx(here.losses[-example.STEPS :].mean(), rel=1e-6)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
