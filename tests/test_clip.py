"""Clips as functions and as objects of 2.x and 1.x."""

import numpy as np
import pytest
from refusals import BOTH, TWO, refuse, row, rows

import paddlejax as pj

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
        for bad in (0.0, -1.0):
            call = lambda n=norm, b=bad: n(b)  # noqa: E731
            yield row(f"{where}-norm-{bad}", call, ValueError, "clip_norm", f"{bad}", "above 0")
        if where != "fluid":
            skip = lambda g=globally: g(1.0, auto_skip_clip=1)  # noqa: E731
            yield row(f"{where}-skip", skip, AssertionError, "auto_skip_clip", "1", "True or False")
    yield row("shape", lambda: pj.clip_by_norm(TWO), TypeError, "clip_norm", r"\(2,\)", "number")


@rows(limits())
def test_refused(call, classes, words):
    refuse(call, classes, words)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_global_norm_may_be_anything(limit):
    pj.clip_by_global_norm(limit)
