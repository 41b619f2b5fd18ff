"""Fused weights: each way to cut one against plain slices, and declarations that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refuse, row, rows

import paddlejax as paddle
from paddlejax import MuonParamInfo, splits


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def ortho(x):
    """Something that depends on the whole of every matrix, and on its shape."""
    rows, columns = x.shape[-2:]
    return x / jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)) * (rows + 2 * columns)


def columns(x, *groups):
    """`ortho` of the matrix that each group of columns makes, put back."""
    new = np.array(x)
    for group in groups:
        new[..., list(group)] = ortho(x[..., jnp.array(list(group))])
    return new


X = drawn(5, 24)
CUTS = {
    "qkv_head": (splits.qkv_head(2, 2, 3), X, [range(i, i + 3) for i in range(0, 24, 3)]),
    "qkv_sep": (
        splits.qkv_sep(2, 2, 3),
        X,
        [[*range(6), *range(12, 18)], [*range(6, 9), *range(18, 21)], [*range(9, 12), *range(21, 24)]],
    ),
    "qkv_contiguous": (
        splits.qkv_contiguous(4, 2, 3, 2),
        drawn(5, 22),
        [*(range(i, i + 3) for i in range(0, 18, 3)), range(18, 20), range(20, 22)],
    ),
    "qkv_roles": (
        splits.qkv_roles(2, [4, 4, 2, 2], 2),
        X,
        [range(i, i + 2) for i in range(0, 24, 2)],
    ),
    "qkv_roles-sep": (
        splits.qkv_roles(2, [6, 4, 2], per_head=False),
        X,
        [[*range(6), *range(12, 18)], [*range(6, 10), *range(18, 22)], [10, 11, 22, 23]],
    ),
    "gate_up": (splits.gate_up(), X, [range(12), range(12, 24)]),
    "gate_up-stack": (splits.gate_up(), drawn(2, 3, 8), [range(4), range(4, 8)]),
    "per_head": (splits.per_head(4), X, [range(i, i + 6) for i in range(0, 24, 6)]),
    "per_head-sizes": (
        splits.per_head(3, [5, 3]),
        X,
        [range(i, j) for i, j in ((0, 5), (5, 8), (8, 13), (13, 16), (16, 21), (21, 24))],
    ),
    "experts": (splits.experts(), drawn(3, 4, 2), [range(2)]),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_of_the_columns_it_names(name):
    split, x, groups = CUTS[name]
    np.testing.assert_allclose(split(x, ortho), columns(x, *groups), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: split(x, ortho))(x), split(x, ortho), rtol=1e-6)


def test_rows():
    x = drawn(12, 5)
    want = columns(x.T, *(range(i, i + 4) for i in range(0, 12, 4))).T
    turned = lambda y: ortho(y.T).T if y.ndim == 2 else jnp.moveaxis(ortho(jnp.moveaxis(y, -1, -2)), -1, -2)  # noqa: E731
    np.testing.assert_allclose(splits.per_head(3, axis=-2)(x, turned), want, rtol=1e-6)


def test_axes():
    square = lambda m: m @ jnp.swapaxes(m, -1, -2) @ m  # noqa: E731
    kernel = drawn(4, 3, 2)  # DenseGeneral: in, head, dim
    whole = square(kernel.reshape(4, 6)).reshape(4, 3, 2)
    np.testing.assert_allclose(splits.axes(0, (1, 2))(kernel, square), whole, rtol=1e-6)
    heads = np.stack([square(kernel[:, i]) for i in range(3)], 1)
    np.testing.assert_allclose(splits.axes(0, 2, batch=1)(kernel, square), heads, rtol=1e-5)
    np.testing.assert_allclose(splits.axes([-3], [-1], [-2])(kernel, square), heads, rtol=1e-5)
    conv = drawn(2, 2, 3, 5)
    found = splits.axes((0, 1, 2), 3)(conv, square)
    np.testing.assert_allclose(found, square(conv.reshape(12, 5)).reshape(conv.shape), rtol=1e-5)
    turned = drawn(6, 4)  # [out, in]
    found = splits.axes(rows=1, columns=0, split=splits.gate_up())(turned, ortho)
    np.testing.assert_allclose(found, splits.gate_up()(turned.T, ortho).T, rtol=1e-6)


def test_equal_cuts_are_equal():
    assert splits.gate_up() == splits.gate_up() and hash(splits.per_head(2)) == hash(splits.per_head(2))
    assert splits.per_head(2) != splits.per_head(3) and splits.axes(0, 1) == splits.axes([0], [1])
    assert repr(splits.qkv_sep(2, 1, 4)) == "qkv_sep(kv_heads=2, groups=1, head_dim=4)"
    assert repr(splits.axes(0, 1, split=splits.gate_up())) == (
        "axes(rows=(0,), columns=(1,), batch=(), split=gate_up())"
    )


ARGUMENTS = [
    row("heads", lambda: splits.qkv_head(0, 1, 2), ValueError, "qkv_head's kv_heads", "0", "positive"),
    row("float", lambda: splits.qkv_sep(1, 1, 2.0), ValueError, "head_dim", r"2\.0", "positive int"),
    row("value-heads", lambda: splits.qkv_contiguous(1, 1, 2, 0), ValueError, "v_head_dim", "0"),
    row("roles", lambda: splits.qkv_roles(1, [2, 1]), ValueError, "role_sizes", r"\[2, 1\]", "three"),
    row("uneven", lambda: splits.qkv_roles(1, [3, 1, 1], 2), ValueError, "role_sizes", "multiples of 2"),
    row("role", lambda: splits.qkv_roles(1, [3, "x", 1]), ValueError, "role_sizes: entry 1", "'x'"),
    row("sizes", lambda: splits.per_head(2, 3), TypeError, "head_sizes", "3", "list"),
    row("axis", lambda: splits.per_head(2, axis=0), ValueError, "axis", "0", "-1", "-2"),
    row("no-rows", lambda: splits.axes((), 0), ValueError, "rows", r"\(\)", "axis"),
    row("axes-type", lambda: splits.axes(0, "x"), TypeError, "columns", "'x'", "axis"),
    row("split", lambda: splits.axes(0, 1, split=3), TypeError, "split", "3", "function"),
]


def declared(shape, split, **info):
    infos = {"a/w": MuonParamInfo(split_concat_func=split, **info)}
    params = {"a": {"w": jnp.ones(shape)}, "b": jnp.ones(2)}
    return lambda: paddle.muon(0.1, muon_param_info_map=infos).init(params)


LEAVES = [
    row("columns", declared((5, 25), splits.qkv_head(2, 2, 3)), ValueError, "at a/w", r"\(5, 25\)",
        "24 columns"),
    row("rows", declared((5, 4), splits.per_head(3, axis=-2)), ValueError, "at a/w", "multiple of 3 rows"),
    row("odd", declared((5, 5), splits.gate_up()), ValueError, "at a/w", "gate_up", "multiple of 2 columns"),
    row("one-axis-missing", declared((2, 3, 4), splits.axes(0, 1)), ValueError, "at a/w", r"\(2, 3, 4\)",
        "each of its 3 axes"),
    row("twice", declared((2, 3), splits.axes(0, (0, 1))), ValueError, "at a/w", "named once"),
    row("beyond", declared((2, 3), splits.axes(0, 2)), ValueError, "at a/w", "named once"),
    row("vector", declared((3,), splits.gate_up()), ValueError, "at a/w", r"\(3,\)", "rows, columns"),
    row("vector-of-parts", declared((3, 4), lambda w, f: f(w[0])), ValueError, "at a/w", r"\(4,\)"),
    row("shape", declared((3, 4), lambda w, f: f(w[:2])), ValueError, "at a/w", r"\(2, 4\)", r"\(3, 4\)"),
    row("no-split", declared((2, 2, 2, 2), None), ValueError, "at a/w", "splits.axes"),
    row("hyperball", declared((2, 2, 2, 2), splits.axes((0, 1), (2, 3)), use_hyperball=True), ValueError,
        "at a/w", "use_hyperball"),
    row("unknown", lambda: paddle.muon(0.1, muon_param_info_map={"c": MuonParamInfo()}).init({"w": X}),
        ValueError, "muon_param_info_map", "'c'", "found w"),
    row("object", lambda: paddle.optimizer.Muon(0.1, [paddle.Parameter(jnp.ones(2), "w")],
        muon_param_info_map={"w": MuonParamInfo()}), ValueError, "at w", r"\(2,\)"),
]  # fmt: skip


@rows(arguments=ARGUMENTS, leaves=LEAVES)
def test_refused(call, classes, words):
    refuse(call, classes, words)


def test_an_output_axis_of_out_in_weights_is_the_transposed_of_in_out():
    """Version 1's scale is not symmetric, so it matters which axis is declared as which."""
    w, g = drawn(6, 3), drawn(6, 3)
    plain = paddle.muon(0.1, muon_extra_scale_factor=1.0)
    info = {"w": MuonParamInfo(split_concat_func=splits.axes(rows=1, columns=0))}
    turned = paddle.muon(0.1, muon_extra_scale_factor=1.0, muon_param_info_map=info)
    want, _ = plain.update({"w": g}, plain.init({"w": w}), {"w": w})
    found, _ = turned.update({"w": g.T}, turned.init({"w": w.T}), {"w": w.T})
    np.testing.assert_allclose(found["w"].T, want["w"], rtol=2e-5, atol=1e-6)
