"""Row-sparse gradients: what SelectedRows is, where it comes from, and what every part makes of it."""

import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES

import paddlejax as paddle
from paddlejax import SelectedRows, sparse
from paddlejax.optimizer.stepping import OWN

HEIGHT = 7
# name -> rows; 7 and -1 are padding
ROWS = {
    "distinct": [5, 0, 3],
    "repeated": [4, 1, 4, 4, 1],
    "padded": [2, -1, 7, 2, 6, -3],
    "all padding": [7, -1],
    "none": [],
    "every row": [6, 5, 4, 3, 2, 1, 0],
}


def rows_of(rows, width=3, seed=0, dtype=jnp.float32):
    values = np.random.default_rng(seed).normal(size=(len(rows), *([width] if width else [])))
    return SelectedRows(np.array(rows, np.int32), jnp.asarray(values, dtype), HEIGHT)


def summed(g):
    """The dense tensor, by numpy."""
    out = np.zeros(g.shape, np.float32)
    for row, value in zip(np.asarray(g.rows), np.asarray(g.values), strict=True):
        if 0 <= row < g.height:
            out[row] += value
    return out


def zeros_like(p):
    return jnp.full(p.shape, 0.5, p.dtype)


# ------------------------------------------------------------------------------------------ the container


@pytest.mark.parametrize("width", [3, 0], ids=["matrix", "vector"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_dense_and_merged_are_the_sums_of_numpy(rows, width):
    g = rows_of(rows, width)
    np.testing.assert_allclose(g.to_dense(), summed(g), rtol=1e-6)
    merged = jax.jit(SelectedRows.merge)(g)
    want = sorted({r for r in rows if 0 <= r < HEIGHT})
    assert merged.rows.tolist() == want + [HEIGHT] * (len(rows) - len(want))
    assert not np.any(merged.values[len(want) :])
    np.testing.assert_array_equal(merged.to_dense(), g.to_dense())


def test_padding_counts_for_nothing_whatever_its_value():
    g = SelectedRows(np.array([-1, 2, HEIGHT]), jnp.array([jnp.nan, 1.0, jnp.inf]), HEIGHT)
    assert g.to_dense().tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert g.merge().values.tolist() == [1, 0, 0]


def test_it_is_a_pytree_with_the_shape_of_what_it_stands_for():
    g = rows_of([1, 2])
    assert (g.shape, g.ndim, g.dtype) == ((HEIGHT, 3), 2, jnp.float32)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"emb": g})]
    assert paths == ["['emb'].rows", "['emb'].values"]
    again = jax.tree.unflatten(jax.tree.structure(g), jax.tree.leaves(g))
    assert again.height == HEIGHT and again.values is g.values
    assert jax.eval_shape(lambda g: g.merge(), g).shape == (HEIGHT, 3)


def test_sums():
    a, b, p = rows_of([1, 1]), rows_of([6, 1], seed=1), jnp.ones((HEIGHT, 3))
    np.testing.assert_allclose((a + b).to_dense(), summed(a) + summed(b), rtol=1e-6)
    np.testing.assert_allclose(p + a, 1 + summed(a), rtol=1e-6)
    np.testing.assert_allclose(np.ones((HEIGHT, 3), np.float32) + a, 1 + summed(a), rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(7, 3\) \+ shape \(7, 2\)"):
        a + rows_of([1], width=2)
    with pytest.raises(ValueError, match=r"found an array of shape \(3,\) to add to"):
        jnp.ones(3) + a


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_are_added_to_narrow_parameters_with_one_rounding(dtype):
    p, g = jnp.ones((HEIGHT, 3), dtype), rows_of(ROWS["repeated"])
    g = g.with_values(g.values * jnp.asarray(1e-2))
    want = (p.astype(jnp.float32) + g.to_dense()).astype(dtype)
    np.testing.assert_array_equal(paddle.apply_updates(p, g), want)
    assert paddle.apply_updates(p, g).dtype == dtype


REFUSED = {
    "height": (lambda: SelectedRows([0], jnp.ones((1, 2)), 0), ValueError, "height: found 0, expected a pos"),
    "float rows": (lambda: SelectedRows([0.5], jnp.ones((1, 2)), 3), TypeError, "rows: found dtype float64"),
    "beyond": (lambda: SelectedRows([0, 4], jnp.ones((2, 2)), 3), ValueError, "rows: found 4, expected at m"),
    "int values": (lambda: SelectedRows([0], jnp.ones((1, 2), int), 3), TypeError, "values: found dtype int"),
    "lengths": (lambda: SelectedRows([0], jnp.ones((2, 2)), 3), ValueError, r"rows of shape \(1,\) and val"),
    "ids": (lambda: sparse.embedding(jnp.ones((3, 2)), [1.5]), TypeError, "embedding's ids: found dtype fl"),
    "id": (lambda: sparse.embedding(jnp.ones((3, 2)), [9]), ValueError, "embedding's ids: found 9, expected"),
    "padding": (
        lambda: sparse.embedding(jnp.ones((3, 2)), [0], 3),
        ValueError,
        r"found 3, expected one in \[",
    ),
    "scalar": (lambda: sparse.embedding(jnp.ones(()), [0]), ValueError, r"table: found shape \(\)"),
    "function": (lambda: sparse.value_and_grad(3, "t"), TypeError, "found 3, expected a function"),
    "tables": (lambda: sparse.value_and_grad(len, 3), TypeError, "tables: found 3, expected patterns"),
    "aux": (
        lambda: sparse.value_and_grad(len, "t", has_aux="x"),
        TypeError,
        "has_aux: found 'x', expected T",
    ),
    "no aux": (
        lambda: sparse.value_and_grad(lambda p: jnp.sum(sparse.embedding(p, [0])), "*", has_aux=True)(
            jnp.ones((2, 2))
        ),
        TypeError,
        r"found \w+, expected \(loss, aux\)",
    ),
    "int table": (
        lambda: sparse.value_and_grad(len, "t")({"t": jnp.ones((2, 2), int)}),
        TypeError,
        "at t: found a parameter of dtype int32",
    ),
    "flat table": (
        lambda: sparse.value_and_grad(len, "t")({"t": jnp.ones(())}),
        ValueError,
        "at t: found a ta",
    ),
    "tall": (
        lambda: SelectedRows([0], jnp.ones((1, 2)), 2**31),
        ValueError,
        "found 2147483648, expected one b",
    ),
    "numpy": (lambda: np.asarray(rows_of([1])), TypeError, r"in place of an array; to_dense\(\) makes one"),
    "flag": (lambda: paddle.Parameter(jnp.ones(2), sparse=1), TypeError, "sparse: found 1, expected True"),
    "0-d": (lambda: paddle.Parameter(jnp.ones(()), sparse=True), ValueError, "found a scalar with sparse"),
}


@pytest.mark.parametrize("build, error, message", REFUSED.values(), ids=REFUSED)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


# ---------------------------------------------------------------------------------- where it comes from


def two_tables(params, users, items, look_up=sparse.embedding):
    """One table read twice, one once, a dense weight, and an auxiliary result."""
    u, i = look_up(params["user"], users), look_up(params["item"]["table"], items)
    u2 = look_up(params["user"], items % 5)
    score = jnp.sum(u * i, -1) @ params["w"] + jnp.sum(u2**2)
    return jnp.sum(jnp.tanh(score)), score


def start():
    rng = np.random.default_rng(1)
    tables = {"user": (9, 4), "item": {"table": (5, 4)}, "w": (3,)}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        tables,
        is_leaf=lambda s: isinstance(s, tuple),
    )


USERS, ITEMS = jnp.array([[0, 8, 3], [8, 8, 1]]), jnp.array([[4, 4, 0], [1, 2, 4]])


@pytest.mark.parametrize("tables", [["user", "item/*"], [re.compile("table|user")], "user", []], ids=str)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_gradients_are_those_of_jax(tables, jitted):
    f = sparse.value_and_grad(two_tables, tables, has_aux=True)
    (value, aux), grads = (jax.jit(f) if jitted else f)(start(), USERS, ITEMS)
    plain = lambda p, i, padding_idx=None: p[i]  # noqa: E731
    (want, want_aux), dense = jax.value_and_grad(two_tables, has_aux=True)(start(), USERS, ITEMS, plain)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(aux, want_aux, rtol=1e-6)
    found = jax.tree.leaves(grads, is_leaf=lambda g: isinstance(g, SelectedRows))
    assert sum(isinstance(g, SelectedRows) for g in found) == {"user": 1, "[]": 0}.get(str(tables), 2)
    found = [g.to_dense() if isinstance(g, SelectedRows) else g for g in found]
    chex.assert_trees_all_close(found, jax.tree.leaves(dense), rtol=1e-5, atol=1e-6)


def test_a_table_that_is_not_read_has_no_rows():
    _, grads = sparse.value_and_grad(lambda p: jnp.sum(p["w"]), "t")(
        {"t": jnp.ones((4, 2)), "w": jnp.ones(2)}
    )
    assert grads["t"].shape == (4, 2) and len(grads["t"].rows) == 0


@pytest.mark.parametrize("padding_idx, dead", [(None, None), (2, 2), (-1, 3)])
def test_padding_gives_zeros_and_no_gradient(padding_idx, dead):
    table = jnp.arange(1.0, 5.0).reshape(4, 1)
    ids = jnp.array([0, 2, -1, 3, 4], jnp.int8)
    want = [0 if i in (-1, 4, dead) else i + 1 for i in ids.tolist()]
    f = lambda p, ids: jnp.sum(sparse.embedding(p, ids, padding_idx) * jnp.arange(1.0, 6.0)[:, None])  # noqa: E731
    assert sparse.embedding(table, ids, padding_idx)[:, 0].tolist() == want
    _, g = sparse.value_and_grad(f, "*")(table, ids)
    np.testing.assert_array_equal(g.to_dense(), jax.grad(f)(table, ids))
    assert not np.any(g.to_dense()[dead]) if dead is not None else np.any(g.to_dense()[2])


IN_VAIN = {
    "scan": lambda p, ids: jnp.sum(jax.lax.map(lambda i: sparse.embedding(p["t"], i), ids)),
    "vmap": lambda p, ids: jnp.sum(jax.vmap(lambda i: sparse.embedding(p["t"], i))(ids)),
    "jit": lambda p, ids: jnp.sum(jax.jit(lambda i: sparse.embedding(p["t"], i))(ids)),
    "checkpoint": lambda p, ids: jnp.sum(jax.checkpoint(lambda i: sparse.embedding(p["t"], i))(ids)),
    "cond": lambda p, ids: jax.lax.cond(
        ids[0] > 0, lambda: jnp.sum(sparse.embedding(p["t"], ids)), lambda: jnp.zeros(())
    ),
}


@pytest.mark.parametrize("loss_fn", IN_VAIN.values(), ids=IN_VAIN)
def test_a_lookup_that_cannot_be_seen_is_refused(loss_fn):
    with pytest.raises(RuntimeError, match="table t: found inside a jit, vmap, scan"):
        sparse.value_and_grad(loss_fn, "t")({"t": jnp.ones((4, 2))}, jnp.array([1, 2]))


DENSE_USES = {
    "matmul": lambda p: jnp.sum(jnp.ones(4) @ p["t"]),
    "jnp": lambda p: jnp.sum(p["t"]),
    "operator": lambda p: jnp.sum(2.0 * p["t"]),
    "index": lambda p: jnp.sum(p["t"][jnp.array([0])]),
    "method": lambda p: p["t"].sum(),
    "transposed": lambda p: jnp.sum(p["t"].T),
    "length": lambda p: jnp.ones(len(p["t"])).sum(),
    "take": lambda p: jnp.sum(jnp.take(p["t"], jnp.array([0]), axis=0)),
}


@pytest.mark.parametrize("loss_fn", DENSE_USES.values(), ids=DENSE_USES)
def test_other_uses_of_a_table_are_refused(loss_fn):
    with pytest.raises((TypeError, ValueError), match=r"only embedding\(table, ids\)"):
        sparse.value_and_grad(loss_fn, "t")({"t": jnp.ones((4, 2))})


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_every_device_has_its_own_rows(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    one, each = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    params = {"t": jnp.arange(8.0).reshape(4, 2), "w": jnp.array([2.0, 3.0])}
    ids = jnp.array([1, 3, 1, 0])

    def loss_fn(params, ids):
        return jnp.sum((sparse.embedding(params["t"], ids) @ params["w"]) ** 2)

    def local(params, ids):
        g = sparse.value_and_grad(loss_fn, "t")(params, ids)[1]["t"]
        return g.all_gather("data").to_dense()[None], g.values

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(one, each), out_specs=(each, each), check_vma=check_vma
    )
    whole, values = mapped(params, ids)
    want = jax.grad(loss_fn)(params, ids)["t"]
    np.testing.assert_allclose(whole[0], want, rtol=1e-6)
    np.testing.assert_allclose(whole[1], want, rtol=1e-6)
    np.testing.assert_allclose(values[1], jax.grad(loss_fn)(params, ids[1:2])["t"][3], rtol=1e-6)


@pytest.mark.parametrize("far", [np.iinfo(np.int64).min, -(2**40), -(2**32), -(2**31) - 1])
def test_ids_beyond_int32_are_padding_and_no_other_row(far):
    assert not np.any(sparse.embedding(jnp.ones((3, 2)), np.array([far])))
    assert not np.any(sparse.embedding(jnp.ones((3, 2)), [far]))
    assert not np.any(SelectedRows([far], jnp.ones((1, 2)), 3).to_dense())
    with jax.enable_x64(True):
        far = jnp.array([2**32 + 1], jnp.uint64)
        assert not np.any(sparse.embedding(jnp.ones((3, 2), jnp.float32), far))


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="pattern 'emb' matches no parameter: found item/table, user, w"):
        sparse.value_and_grad(two_tables, ["user", "emb"], has_aux=True)(start(), USERS, ITEMS)


# ---------------------------------------------------------------------------------- what rules make of it


def steps(tx, p, grads):
    state = tx.init(p)
    for g in grads:
        updates, state = tx.update(g, state, p)
        p = paddle.apply_updates(p, updates)
    return p, state


TAKERS = {
    "sgd": paddle.sgd(0.1),
    "momentum": paddle.momentum(0.1, 0.9),
    "nesterov": paddle.momentum(0.1, 0.9, use_nesterov=True),
    "adagrad": paddle.adagrad(0.1),
    "rmsprop": paddle.rmsprop(0.1, momentum=0.5, centered=True),
    "adam": paddle.adam(0.1),
    "amsgrad": paddle.adam(0.1, amsgrad=True),
    "lamb": paddle.lamb(0.1),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("tx", TAKERS.values(), ids=TAKERS)
def test_without_lazy_mode_it_is_dense_with_zeros_to_the_bit(tx, jitted):
    p = {"t": jnp.asarray(np.random.default_rng(2).normal(size=(HEIGHT, 3)), jnp.float32), "b": jnp.ones(2)}
    grads = [{"t": rows_of(rows, seed=i), "b": jnp.ones(2)} for i, rows in enumerate(ROWS.values())]
    dense = [{**g, "t": g["t"].to_dense()} for g in grads]
    tx = tx._replace(update=jax.jit(tx.update)) if jitted else tx
    chex.assert_trees_all_equal(steps(tx, p, grads), steps(tx, p, dense))


def test_lazy_mode_moves_the_listed_rows_as_if_they_were_alone_and_no_other():
    p = jnp.asarray(np.random.default_rng(3).normal(size=(HEIGHT, 3)), jnp.float32)
    tx = paddle.adam(0.1, lazy_mode=True, amsgrad=True)
    state = tx.init(p)
    for i, rows in enumerate(ROWS.values()):
        g = rows_of(rows, seed=i)
        listed = sorted({r for r in rows if 0 <= r < HEIGHT})
        others = [r for r in range(HEIGHT) if r not in listed]
        updates, new = jax.jit(tx.update)(g, state, p)
        after = paddle.apply_updates(p, updates)
        for before, now in [(p, after), *((state.slots[k], new.slots[k]) for k in tx.source.rule.slots)]:
            np.testing.assert_array_equal(now[np.array(others, int)], before[np.array(others, int)])
        # the very same step of a table that has these rows only
        if listed:
            here = np.array(listed)
            slots = {name: slot[here] for name, slot in state.slots.items()}
            alone = paddle.adam(0.1, amsgrad=True).update(
                g.to_dense()[here], state._replace(slots=slots), p[here]
            )
            np.testing.assert_allclose(
                after[here], paddle.apply_updates(p[here], alone[0]), rtol=1e-6, atol=1e-7
            )
            for name, slot in alone[1].slots.items():
                np.testing.assert_allclose(new.slots[name][here], slot, rtol=1e-6, atol=1e-12)
        # rows that are all padding still count as a step; no rows at all are no gradient
        assert int(new.count) == int(state.count) + bool(rows)
        p, state = after, new


def test_the_bias_correction_is_that_of_this_step():
    """Step one moves by the rate, whatever the gradient; Paddle's CPU kernel is a step ahead here."""
    p, g = jnp.zeros((HEIGHT, 2)), SelectedRows([3], jnp.array([[0.5, -2.0]]), HEIGHT)
    for lazy in (True, False):
        tx = paddle.adam(0.1, lazy_mode=lazy)
        updates, _ = tx.update(g, tx.init(p), p)
        np.testing.assert_allclose(paddle.apply_updates(p, updates)[3], [-0.1, 0.1], rtol=1e-5)


def test_lazy_mode_says_nothing_of_arrays():
    p, g = jnp.ones((3, 2)), jnp.array([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    lazy, plain = (steps(paddle.adam(0.1, lazy_mode=flag), p, [g, g]) for flag in (True, False))
    np.testing.assert_array_equal(lazy[0], plain[0])


def test_every_other_rule_refuses_it_by_name():
    refused = set()
    for case in CASES:
        tx, p = case.make(), {"t": jnp.ones((HEIGHT, 3))}
        if tx.source.rule.sparse is None:
            refused.add(name := type(tx.source.rule).__name__)
            with pytest.raises(TypeError, match=f"at t: found a SelectedRows gradient, which {name} cannot"):
                tx.update({"t": rows_of([1])}, tx.init(p), p)
    assert {"AdamW", "Adamax", "Adadelta", "NAdam", "RAdam", "ASGD", "LarsMomentum", "Ftrl"} <= refused
    assert not refused & {"SGD", "Momentum", "Adagrad", "RMSProp", "Adam", "Lamb"}


def test_a_gradient_that_does_not_fit_is_refused_by_path():
    tx, p = paddle.sgd(0.1), {"t": jnp.ones((HEIGHT, 3))}
    with pytest.raises(ValueError, match=r"at t: found a gradient of shape \(7, 2\), expected .*\(7, 3\)"):
        tx.update({"t": rows_of([1], width=2)}, tx.init(p), p)
    mangled = jax.tree.map(lambda x: x.astype(jnp.float32), {"t": rows_of([1])})
    with pytest.raises(TypeError, match="at t: .* rows of dtype float32.*a transformation took them for"):
        tx.update(mangled, tx.init(p), p)
    with pytest.raises(ValueError, match="SGD needs the parameters beside a SelectedRows"):
        tx.update({"t": rows_of([1])}, tx.init(p))
    with pytest.raises(TypeError, match="chain's argument 0: .*cannot take the SelectedRows gradient at t"):
        both = paddle.chain(optax.clip(1.0), tx)
        both.update({"t": rows_of([1])}, both.init(p), p)


@pytest.mark.parametrize("apply", [paddle.apply_updates, optax.apply_updates], ids=["ours", "optax"])
def test_updates_are_rows_that_anyone_can_apply(apply):
    tx, p = paddle.adagrad(0.5), {"t": jnp.zeros((HEIGHT, 3))}
    g = {"t": rows_of(ROWS["repeated"])}
    updates, _ = tx.update(g, tx.init(p), p)
    assert isinstance(updates["t"], SelectedRows)
    want, _ = tx.update({"t": g["t"].to_dense()}, tx.init(p), p)
    np.testing.assert_array_equal(apply(p, updates)["t"], p["t"] + want["t"])


# ---------------------------------------------------------------------------------- what others make of it

CLIPS = {
    "norm": paddle.clip_by_norm(0.7),
    "global norm": paddle.clip_by_global_norm(0.7),
    "value": paddle.clip_by_value(0.3),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_clips_merge_first(clip):
    g = {"t": rows_of(ROWS["padded"]), "b": jnp.ones(2)}
    got, _ = clip.update(g, ())
    want, _ = clip.update({**g, "t": g["t"].to_dense()}, ())
    assert isinstance(got["t"], SelectedRows)
    np.testing.assert_allclose(got["t"].to_dense(), want["t"], rtol=1e-6)
    np.testing.assert_allclose(got["b"], want["b"], rtol=1e-6)


def test_decay_makes_it_dense_with_one_warning():
    p, grads = jnp.ones((HEIGHT, 3)), [rows_of(ROWS["padded"], seed=i) for i in range(3)]
    lazy = paddle.chain(paddle.l2_decay(0.1), paddle.adam(0.1, lazy_mode=True))
    plain = paddle.chain(paddle.l2_decay(0.1), paddle.adam(0.1))
    with pytest.warns(UserWarning, match="L2Decay.* decays every row: .* lazy_mode has no effect") as seen:
        got, _ = steps(lazy, p, grads)
    assert len(seen) == 1
    want, _ = steps(plain, p, [g.to_dense() for g in grads])
    np.testing.assert_array_equal(got, want)


AROUND = {
    "by_path": lambda tx: paddle.by_path([("b", {"learning_rate": 0.5})], tx, grad_clip=CLIPS["norm"]),
    "skip_nonfinite": paddle.skip_nonfinite,
    "dynamic_loss_scale": lambda tx: paddle.dynamic_loss_scale(tx, init_loss_scaling=1.0),
    "with_master_weights": paddle.with_master_weights,
    "lookahead": lambda tx: paddle.lookahead(tx, alpha=0.5, k=2),
    "accumulate": lambda tx: paddle.accumulate_gradients(tx, 2),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_transformations_around_a_rule_take_it(around):
    tx, p = around(paddle.momentum(0.1, 0.9)), {"t": jnp.ones((HEIGHT, 3)), "b": jnp.ones(2)}
    grads = [{"t": rows_of(ROWS["padded"], seed=i), "b": jnp.ones(2)} for i in range(4)]
    tx = tx._replace(update=jax.jit(tx.update)) if hasattr(tx, "_replace") else tx
    got, _ = steps(tx, p, grads)
    want, _ = steps(tx, p, [{**g, "t": g["t"].to_dense()} for g in grads])
    for name in p:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6)


def test_a_frozen_table_stays():
    tx = paddle.by_path([("t", {"frozen": True})], paddle.sgd(0.1))
    p = {"t": -jnp.zeros((HEIGHT, 3)), "b": jnp.ones(2)}
    got, _ = steps(tx, p, [{"t": rows_of([1, 2]), "b": jnp.ones(2)}])
    np.testing.assert_array_equal(np.signbit(got["t"]), np.signbit(p["t"]))
    assert not np.any(got["t"])


def test_a_narrow_table_with_a_master():
    p = jnp.ones((HEIGHT, 3), jnp.bfloat16)
    tx = paddle.with_master_weights(paddle.adam(1e-3, lazy_mode=True))
    g = rows_of([1, 4, 1], dtype=jnp.bfloat16)
    got, state = steps(tx, p, [g] * 20)
    want, _ = steps(paddle.adam(1e-3, lazy_mode=True), p.astype(jnp.float32), [g.astype(jnp.float32)] * 20)
    np.testing.assert_allclose(state.master, want, rtol=1e-6)
    np.testing.assert_array_equal(got, state.master.astype(jnp.bfloat16))


def test_lbfgs_refuses_it():
    p = {"t": jnp.ones((HEIGHT, 3))}
    tx = paddle.lbfgs(1.0)
    with pytest.raises(TypeError, match="at t: found a SelectedRows gradient, expected an array"):
        f = lambda p: (jnp.sum(p["t"]), {"t": rows_of([1])})  # noqa: E731
        tx.update({"t": rows_of([1])}, tx.init(p), p, value=jnp.ones(()), value_and_grad=f)


# ------------------------------------------------------------------------------------------ the object


@paddle.loss
def regression(params, ids, y):
    rows = sparse.embedding(params["t"], ids)
    return jnp.mean((jnp.sum(rows, -2) @ params["w"] - y) ** 2)


def plain_regression(params, ids, y):
    return jnp.mean((jnp.sum(params["t"][ids], -2) @ params["w"] - y) ** 2)


def batch(i):
    rng = np.random.default_rng(i)
    return jnp.asarray(rng.integers(0, HEIGHT, (4, 2)), jnp.int32), jnp.asarray(
        rng.normal(size=4), jnp.float32
    )


def made(optimizer=paddle.optimizer.Adam, is_sparse=True, **kwargs):
    rng = np.random.default_rng(5)
    t, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((HEIGHT, 3), (3,)))
    params = {"t": paddle.Parameter(t, "t", sparse=is_sparse), "w": paddle.Parameter(w, "w")}
    return params, optimizer(learning_rate=0.1, parameters=params, **kwargs)


def by_minimize(opt, params, i):
    return opt.minimize(regression(params, *batch(i)))[1]


def by_step(opt, params, i):
    regression(params, *batch(i)).backward()
    opt.step()


def by_callable(opt, params, i):
    def f(values):
        rows = sparse.embedding(values["t"], batch(i)[0])
        return jnp.mean((jnp.sum(rows, -2) @ values["w"] - batch(i)[1]) ** 2)

    opt.minimize(f)


@pytest.mark.parametrize("go", [by_minimize, by_step, by_callable])
def test_the_object_and_the_functions_agree_to_the_bit(go):
    params, opt = made(lazy_mode=True)
    tx = paddle.adam(0.1, lazy_mode=True)
    p = paddle.values(params)
    f = jax.jit(sparse.value_and_grad(lambda p, *b: regression.function(p, *b), "t"))
    state = tx.init(p)
    for i in range(5):
        go(opt, params, i)
        assert isinstance(params["t"].grad, SelectedRows) and params["t"].grad.shape == (HEIGHT, 3)
        _, grads = f(p, *batch(i))
        updates, state = jax.jit(tx.update)(grads, state, p)
        p = paddle.apply_updates(p, updates)
        opt.clear_grad()
        assert params["t"].grad is None and not np.any(params["w"].grad)
    for name in p:
        np.testing.assert_allclose(params[name].value, p[name], rtol=2e-7 if go is by_step else 2e-6)


def test_without_lazy_mode_the_object_equals_that_of_a_dense_table():
    (params, opt), (dense, other) = made(), made(is_sparse=False)
    for i in range(5):
        for q, o in ((params, opt), (dense, other)):
            o.minimize(regression(q, *batch(i)))
            o.clear_grad()
    for name in params:
        np.testing.assert_allclose(params[name].value, dense[name].value, rtol=1e-5, atol=1e-6)


def test_two_backwards_add_up():
    params, opt = made(paddle.optimizer.SGD)
    for i in range(2):
        regression(params, *batch(i)).backward()
    want = sum(jax.grad(plain_regression)(paddle.values(params), *batch(i))["t"] for i in range(2))
    np.testing.assert_allclose(params["t"].grad.to_dense(), want, rtol=1e-5, atol=1e-6)
    before = params["t"].numpy()
    opt.step()
    np.testing.assert_allclose(params["t"].value, before - 0.1 * want, rtol=1e-5, atol=1e-6)


def test_a_gradient_set_by_hand():
    params, opt = made(paddle.optimizer.Momentum)
    params["t"].grad, params["w"].grad = rows_of([1]), None
    opt.step()
    assert "t_velocity_0" in opt.state_dict() and "w_velocity_0" not in opt.state_dict()
    with pytest.raises(ValueError, match=r"Parameter t: found a gradient of shape \(7, 2\)"):
        params["t"].grad = rows_of([1], width=2)


def test_optimizers_that_cannot_take_it_say_so_at_once():
    with pytest.raises(
        TypeError, match="Parameter t has sparse=True, and AdamW takes no SelectedRows; expected spa"
    ):
        made(paddle.optimizer.AdamW)
    params, opt = made(paddle.optimizer.Adamax, is_sparse=False)
    params["t"].grad = rows_of([1])
    before = params["t"].numpy()
    with pytest.raises(TypeError, match="Parameter t: found a SelectedRows gradient, which Adamax cannot"):
        opt.step()
    np.testing.assert_array_equal(params["t"].value, before)


def test_the_old_names_take_it():
    params, _ = made()
    opt = paddle.fluid.optimizer.AdamOptimizer(0.1, parameter_list=params, lazy_mode=True)
    before = params["t"].numpy()
    opt.minimize(regression(params, jnp.array([[2, 2]]), jnp.ones(1)))
    moved = np.any(params["t"].numpy() != before, axis=1)
    assert moved.tolist() == [row == 2 for row in range(HEIGHT)]
    opt.clear_gradients()
    assert params["t"].grad is None


WRAPPED = {
    "LookAhead": lambda opt: paddle.incubate.LookAhead(opt, k=2),
    "GradientMerge": lambda opt: paddle.incubate.optimizer.GradientMergeOptimizer(opt, 2),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_take_it(wrap):
    (params, opt), (dense, other) = (made(paddle.optimizer.Momentum, is_sparse=s) for s in (True, False))
    for q, o in ((params, wrap(opt)), (dense, wrap(other))):
        for i in range(4):
            o.minimize(regression(q, *batch(i)))
            o.clear_grad()
    for name in params:
        np.testing.assert_allclose(params[name].value, dense[name].value, rtol=1e-5, atol=1e-6)


def test_the_scaler_and_the_clips_in_place_take_it():
    params, opt = made(lazy_mode=True)
    scaler = paddle.amp.GradScaler(init_loss_scaling=8.0)
    scaler.scale(regression(params, *batch(0))).backward()
    scaler.unscale_(opt)
    want = jax.grad(plain_regression)(paddle.values(params), *batch(0))
    np.testing.assert_allclose(params["t"].grad.to_dense(), want["t"], rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(want)))
    np.testing.assert_allclose(paddle.nn.utils.clip_grad_norm_(params, 0.5), norm, rtol=1e-5)
    np.testing.assert_allclose(params["t"].grad.to_dense(), want["t"] * min(0.5 / norm, 1), rtol=1e-4)
    paddle.nn.utils.clip_grad_value_(params, 0.01)
    assert np.max(np.abs(params["t"].grad.to_dense())) <= np.float32(0.01)
    scaler.step(opt)
    scaler.update()


def test_a_lookup_under_recomputation_is_refused():
    params, opt = made()
    with pytest.raises(RuntimeError, match="table t: found inside a jit, vmap, scan, cond or checkpoint"):
        paddle.incubate.optimizer.RecomputeOptimizer(opt).minimize(regression(params, *batch(0)))


# ------------------------------------------------------------------------------------------ what it costs

BIG = (50_000, 16)
BIG_BYTES = 4 * BIG[0] * BIG[1]


def train_step(tx, tables):
    f = sparse.value_and_grad(plain_lookup, tables)

    def step(params, state, ids):
        value, grads = f(params, ids)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1))


def plain_lookup(params, ids):
    return jnp.mean((sparse.embedding(params["t"], ids) @ params["w"]) ** 2)


@pytest.mark.parametrize(
    "tx",
    [
        paddle.adam(0.1, lazy_mode=True),
        paddle.adagrad(0.1),
        paddle.sgd(0.1),
        paddle.chain(paddle.clip_by_global_norm(1.0), paddle.adam(0.1, lazy_mode=True)),
    ],
    ids=["adam", "adagrad", "sgd", "clipped"],
)
def test_nothing_of_the_size_of_the_table_is_made(tx):
    params = {"t": jnp.ones(BIG), "w": jnp.ones(BIG[1])}
    compiled = train_step(tx, "t").lower(params, tx.init(params), jnp.arange(64)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < BIG_BYTES / 20
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < BIG_BYTES / 20
    # every value of the table's shape is an argument, or an argument written in place
    shape = re.escape(f"f32[{BIG[0]},{BIG[1]}]")
    made_by = set(re.findall(rf"= {shape}\S* ([\w-]+)\(", compiled.as_text()))
    assert made_by <= {"parameter", "scatter", "fusion", "bitcast", "get-tuple-element", "while", "tuple"}
    dense = train_step(tx, []).lower(params, tx.init(params), jnp.arange(64)).compile()
    assert dense.memory_analysis().temp_size_in_bytes >= BIG_BYTES


def test_minimize_makes_nothing_of_the_size_of_the_table():
    params = {"t": paddle.Parameter(jnp.ones(BIG), "t", sparse=True), "w": paddle.Parameter(jnp.ones(BIG[1]))}
    opt = paddle.optimizer.Adam(0.1, parameters=params, lazy_mode=True)
    loss = paddle.loss(plain_lookup)(params, jnp.arange(64))
    plan = opt._compiled((True, True), OWN)
    values, state, rate = plan.values(), plan.state(), plan.base.rates(0.1)
    lowered = plan.minimize(loss.call, loss.parameters, None).lower(values, state, [], [], loss.fixed, rate)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < BIG_BYTES / 20
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < BIG_BYTES / 20


def test_a_new_batch_of_the_same_size_compiles_nothing():
    params, opt = made(lazy_mode=True)
    by_minimize(opt, params, 0)
    opt.clear_grad()
    with warnings.catch_warnings(), jax.log_compiles():
        by_minimize(opt, params, 1)
    (program,) = opt._steps.fused.values()
    assert program._cache_size() == 1
