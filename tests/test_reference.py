"""The numpy references reproduce the recorded runs of real Paddle."""

import pkgutil
from collections import Counter

import golden_cases
import numpy as np
import pytest
import reference
from cases import CASES
from replay import ALL, COVERED, PLAIN, TOLERANCE, as_recorded, recorded_state, rounded, why_not

import paddlejax as paddle
from paddlejax import rules


def not_covered():
    """{case: reason} for every recorded case that is not replayed."""
    return {str(case): reason for case in ALL if (reason := why_not(case))}


# written out, so that nothing drops out of the replay unnoticed
REASONS = {
    "bfloat16 arithmetic": 2,
    "class LBFGS has no reference": 7,
    "class dgc_momentum has no reference": 2,
    "record of a bug: a master that stays": 2,
    "record of a bug: beta_pow_one_ahead": 2,
    "record of a bug: l2_is_l1": 1,
    "record of a bug: nan_on_zero_norm": 1,
    "record of a bug: start_lr_ignored": 1,
    "record of a bug: step_uses_new_update_average": 7,
    "record of a bug: unsorted_rows_lost": 2,
    "wrapper ExponentialMovingAverage": 7,
    "wrapper LookAhead": 5,
    "wrapper LookaheadOptimizer": 4,
    "wrapper ModelAverage": 9,
}

DOUBLE = [case for case in COVERED if case.params[0].dtype == "float64"]


def check(what, got, want, tolerance, scale=None):
    """max|got − want| ≤ tolerance·scale, scale = max|want| unless given; shape and dtype exactly."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    error = np.max(np.abs(got - want), initial=0)
    assert error <= tolerance * (np.max(np.abs(want), initial=0) if scale is None else scale), (what, error)


def of(name, cases):
    """The cases whose class steps by the rule of this name."""
    return [case for case in cases if reference.CLASSES[case.oracle, case.cls][0] == name]


def check_replay(case, hyper, tolerance):
    trajectory, state = reference.replay(case, hyper=hyper)
    expected = {t: case.expected(t) for t in case.record_steps}
    assert trajectory.keys() == expected.keys(), case
    # FTRL sets p anew from differences of large numbers, so its error is that of the whole trajectory
    ftrl = reference.CLASSES[case.oracle, case.cls][0] == "ftrl"
    for name, p0 in case.p0.items():
        largest = max(np.max(np.abs(p)) for p in [p0, *(e[name] for e in expected.values())])
        for t in expected:
            what = f"{case}: {name} after step {t}"
            check(what, trajectory[t][name], expected[t][name], tolerance, largest if ftrl else None)
    recorded = recorded_state(case)
    assert state.keys() == case.state().keys(), case
    for key in recorded:
        check(f"{case}: {key}", state[key], recorded[key], tolerance)


@pytest.mark.parametrize("name", reference.REFERENCES)
def test_recorded_cases(name):
    cases = of(name, COVERED)
    assert cases
    for case in cases:
        check_replay(case, as_recorded(case), TOLERANCE[case.params[0].dtype])


# In these the kernel mixes rounded and unrounded numbers: a beta power that starts or advances by the
# unrounded beta, a clip limit, and a norm.
MIXED = {
    "paddle3/adamax_float64",
    "paddle3/lamb_float64",
    "fluid18/clip-value-f64",
    "fluid18/dpsgd-f64",
}


EXACT = [case for case in DOUBLE if str(case) not in MIXED]


@pytest.mark.parametrize("name", [name for name in reference.REFERENCES if of(name, EXACT)])
def test_float64_exactly(name):
    """With the attributes rounded to float32 as the kernels hold them, all float64 digits agree."""
    for case in of(name, EXACT):
        hyper = {**reference.HYPER[name], **reference.CLASSES[case.oracle, case.cls][1]}
        hyper |= {"learning_rate": 0.001, **case.kwargs}
        # 2.x keeps the rate, initial values and the numbers of Adam in double
        adams = ("beta1", "beta2", "epsilon") if name in ("adam", "adamw") else ()
        double = ("learning_rate", "initial_accumulator_value", *adams) if case.oracle == PLAIN else ()
        check_replay(case, {k: v if k in double else rounded(v) for k, v in hyper.items()}, 1e-12)


def test_every_case_is_replayed_or_has_a_reason():
    assert len(COVERED) + len(not_covered()) == len(ALL) == 569
    assert Counter(not_covered().values()) == REASONS
    assert set(reference.CLASSES) == {(case.oracle, case.cls) for case in COVERED}
    assert {name for name, _ in reference.CLASSES.values()} == set(reference.REFERENCES)


def clip(case, specs, grads):
    args = {k: float("inf") if v == "inf" else v for k, v in case["args"].items()}
    return reference.clipped(list(zip(specs, grads, strict=True)), case["cls"] and (case["cls"], args))


def spec(i, case):
    return golden_cases.ParamSpec(
        name=str(i),
        shape=case["arrays"][f"in/{i}"].shape,
        dtype=str(case["arrays"][f"in/{i}"].dtype),
        learning_rate=1.0,
        regularizer=case.get("regularizer", {i: None})[i],
        need_clip=case.get("need_clip", {i: True})[i],
        stop_gradient=False,
        sparse=False,
    )


CLIPS = [c for c in golden_cases.load_clip() if c["kind"] in ("clip", "sgd") and "error" not in c]


@pytest.mark.parametrize("cls", sorted({str(c["cls"]) for c in CLIPS}))
def test_recorded_clips(cls):
    """Clip, then decay, then one SGD step where the case has one; zeros, infinities and NaN in place."""
    for case in [c for c in CLIPS if str(c["cls"]) == cls]:
        check_clip(case)


def check_clip(case):
    arrays = case["arrays"]
    ids = [k.removeprefix("in/") for k in arrays if k.startswith("in/")]
    specs = {i: spec(int(i), case) for i in ids}
    for i, g in clip(case, list(specs.values()), [arrays[f"in/{i}"] for i in ids]).items():
        if case["kind"] == "clip":
            got, want = g, arrays[f"out/{i}"].reshape(g.shape)  # Paddle makes a 0-d gradient [1]
        else:
            p, own = arrays[f"param/{i}"], specs[i].regularizer
            how = case.get("weight_decay") if own is None else own
            if how is not None:
                g = g + reference.decay(p, tuple(how) if isinstance(how, list) else how)
            got, want = reference.REFERENCES["sgd"][1](p, g, case["lr"], {})[0], arrays[f"new/{i}"]
        rtol = 1e-6 if want.dtype == np.float32 else 1e-13
        np.testing.assert_allclose(got, want, rtol=rtol, atol=0, strict=True, err_msg=case["id"])


def test_every_public_rule_has_a_reference_and_a_row():
    """A new rule needs its numpy in reference.py and a row in cases.py: the other tests follow from these."""
    # Muon's function divides a tree: it stands above the rules, and test_muon.py tests it.
    files = {module.name for module in pkgutil.iter_modules(rules.__path__)} - {"muon"}
    functions = {name for name in rules.__all__ if not isinstance(getattr(rules, name), type)}
    assert functions == files and functions <= set(paddle.__all__)
    assert functions == set(reference.REFERENCES) == {case.name for case in CASES}
