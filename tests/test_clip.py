"""Clips as functions and as objects of 2.x and 1.x."""

import itertools

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from refusals import BOTH, TWO, refuse, row, rows

import paddlejax as pj


def clip_args(case):
    return {k: float("inf") if v == "inf" else v for k, v in case["args"].items()}


# The optional ones are about subnormal numbers, which XLA flushes to zero.
# Paddle takes a limit of 0 or less, divides 0 by 0, and turns the gradient around; see test_limits.py.
NO_LIMIT = {"zero-threshold", "zero-threshold-zero-grad", "negative-threshold"}
# Its squares overflow, and it makes gradients of 1e20 zeros.
OVERFLOWS = {"huge-ClipGradByGlobalNorm", "huge-ClipGradByGlobalNorm-skip"}
RECORDED = [
    c
    for c in golden_cases.load_clip()
    if c["kind"] == "clip" and c["id"] not in NO_LIMIT | OVERFLOWS and not {"error", "optional"} & set(c)
]
FUNCTIONS = {
    "ClipGradByValue": pj.clip_by_value,
    "ClipGradByNorm": pj.clip_by_norm,
    "ClipGradByGlobalNorm": pj.clip_by_global_norm,
}


class WithoutClip:
    need_clip = False


@pytest.mark.parametrize("form", ["object", "function"])
@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["id"])
def test_recorded_clip(case, form):
    """Zeros, infinities, NaN, mixed dtypes, parameters that opted out, None: element for element."""
    with jax.enable_x64(True):
        there = [k for k in case["arrays"] if k.startswith("in/")]
        grads = {k.removeprefix("in/"): jnp.asarray(case["arrays"][k]) for k in there}
        need = dict(enumerate(case.get("need_clip", [])))
        asked = {k: g for k, g in grads.items() if need.get(int(k), True)}
        if form == "object":
            clip = getattr(pj.nn, case["cls"])(**clip_args(case))
            pairs = [(None if k in asked else WithoutClip(), g) for k, g in grads.items()]
            found = dict(zip(grads, [g for _, g in clip([*pairs, (None, None)])], strict=True))
        else:
            tx = FUNCTIONS[case["cls"]](**{k: v for k, v in clip_args(case).items() if k != "group_name"})
            clipped, _ = jax.jit(tx.update)({**asked, "none": None}, tx.init(asked))
            assert clipped.pop("none") is None
            found = {**grads, **clipped}
        # A float32 tensor's sum of squares has float32's precision, and all share the factor made from it.
        rtol = 5e-7 if any(g.dtype == np.float32 for g in grads.values()) else 1e-13
        for k, g in found.items():
            want = case["arrays"][f"out/{k}"].reshape(g.shape)  # Paddle makes a 0-d gradient [1]
            assert g.dtype == want.dtype
            np.testing.assert_allclose(g, want, rtol=rtol, atol=0)


@pytest.mark.parametrize("limit", [2.0, 1e4])
def test_half_precision_norms_are_taken_in_float32(limit):
    """In float16 the sum of squares would overflow: 300² is beyond its range."""
    g = jnp.full(4, 300.0, jnp.float16)
    for clip in (pj.clip_by_norm, pj.clip_by_global_norm):
        found, _ = clip(limit).update(g, ())
        np.testing.assert_array_equal(found, jnp.full(4, min(limit / 2, 300.0), jnp.float16))


def test_the_global_norm_over_a_shard_map():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    g, shard = jnp.arange(8.0), PartitionSpec("x")
    for clip in (pj.clip_by_global_norm, pj.clip_by_norm):
        tx = clip(1.0, axis_name="x")
        found = jax.shard_map(
            lambda g, tx=tx: tx.update(g, ())[0], mesh=mesh, in_specs=shard, out_specs=shard
        )(g)
        np.testing.assert_allclose(found, clip(1.0).update(g, ())[0], rtol=1e-6)


ENTRIES = golden_cases.load_clip()


@pytest.mark.parametrize("case", [c for c in ENTRIES if c["kind"] == "sgd"], ids=lambda c: c["id"])
def test_recorded_step_with_clip_and_decay(case):
    """One SGD step of the object: clip, then decay; a parameter's own regularizer comes first."""
    decay = lambda d: getattr(pj.regularizer, d[0])(d[1]) if isinstance(d, list) else d  # noqa: E731
    arrays, params = case["arrays"], []
    for i in range(len(case["shapes"])):
        own = decay(case.get("regularizer", [None] * 3)[i])
        need = case.get("need_clip", [True] * 3)[i]
        params.append(pj.Parameter(arrays[f"param/{i}"], str(i), regularizer=own, need_clip=need))
        params[i].grad = jnp.asarray(arrays[f"in/{i}"])
    clip = case["cls"] and getattr(pj.nn, case["cls"])(**clip_args(case))
    pj.optimizer.SGD(case["lr"], params, decay(case.get("weight_decay")), clip).step()
    for i, p in enumerate(params):
        want = arrays[f"new/{i}"]
        np.testing.assert_allclose(p.numpy(), want, rtol=0, atol=5e-7 * np.max(np.abs(want)))


BAD = [c for c in ENTRIES if c["kind"] == "clip" and "error" in c]


@pytest.mark.parametrize("case", BAD, ids=lambda c: c["id"])
def test_recorded_errors_of_clips_at_construction(case):
    with pytest.raises(getattr(__import__("builtins"), case["error"])):
        getattr(pj.nn, case["cls"])(**clip_args(case))


# ------------------------------------------------------------------------------------------ errors

CLIPS = {
    "function": (pj.clip_by_value, pj.clip_by_norm, pj.clip_by_global_norm),
    "object": (pj.nn.ClipGradByValue, pj.nn.ClipGradByNorm, pj.nn.ClipGradByGlobalNorm),
    "fluid": (
        pj.fluid.clip.GradientClipByValue,
        pj.fluid.clip.GradientClipByNorm,
        pj.fluid.clip.GradientClipByGlobalNorm,
    ),
}


def limits():
    for where, (value, norm, globally) in CLIPS.items():
        for clip, argument in ((value, "max"), (norm, "clip_norm"), (globally, "clip_norm")):
            name = f"{where}-{clip.__name__}"
            yield row(f"{name}-missing", clip, TypeError, f"'{argument}'")
            yield row(f"{name}-none", lambda c=clip: c(None), BOTH, argument, "None", "number")
            yield row(f"{name}-str", lambda c=clip: c("x"), TypeError, argument, "'x'", "number")
            yield row(f"{name}-nan", lambda c=clip: c(np.nan), BOTH, argument, "nan", "number")
            if where == "fluid":
                call = lambda c=clip: c(1.0, need_clip=3)  # noqa: E731
                yield row(f"{name}-need_clip", call, TypeError, "need_clip", "3", "function")
        yield row(
            f"{where}-value-negative", lambda v=value: v(-1.0), AssertionError, "max", "-1.0", "above 0"
        )
        yield row(f"{where}-value-order", lambda v=value: v(-1.0, 1.0), ValueError, "min", "1.0", "-1.0")
        yield row(f"{where}-value-min", lambda v=value: v(1.0, "x"), TypeError, "min", "'x'")
        yield row(f"{where}-value-min-nan", lambda v=value: v(1.0, np.nan), BOTH, "min", "nan")
        for bad, clip in itertools.product((0.0, -1.0, np.inf), (norm, globally)):
            call = lambda c=clip, b=bad: c(b)  # noqa: E731
            yield row(f"{where}-{clip.__name__}-{bad}", call, ValueError, "clip_norm", f"{bad}", "above 0")
        if where != "fluid":
            skip = lambda g=globally: g(1.0, auto_skip_clip=1)  # noqa: E731
            yield row(f"{where}-skip", skip, AssertionError, "auto_skip_clip", "1", "True or False")
    yield row("shape", lambda: pj.clip_by_norm(TWO), TypeError, "clip_norm", r"\(2,\)", "number")


@rows(limits())
def test_refused(call, classes, words):
    refuse(call, classes, words)


@pytest.mark.parametrize(
    "make",
    [
        lambda one: pj.nn.ClipGradByValue(one, -one),
        lambda one: pj.nn.ClipGradByNorm(clip_norm=one),
        pj.nn.ClipGradByGlobalNorm,
        pj.regularizer.L2Decay,
    ],
)
def test_an_array_of_one_element_is_a_number(make):
    made = make(np.ones(1))
    for name in made.numbers:
        assert np.shape(getattr(made, name)) == ()
        setattr(made, name, np.full(1, 2.0 if name != "min" else -2.0))
        assert np.shape(getattr(made, name)) == ()
