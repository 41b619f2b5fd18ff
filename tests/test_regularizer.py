"""Decays as functions and as objects of 2.x and 1.x."""

from refusals import TWO, P, refuse, row, rows

import paddlejax as pj

MAKERS = (
    pj.l1_decay, pj.l2_decay, pj.regularizer.L1Decay, pj.regularizer.L2Decay,
    pj.fluid.regularizer.L1Decay, pj.fluid.regularizer.L2DecayRegularizer,
)  # fmt: skip


def coefficients():
    for make in MAKERS:
        name = f"{make.__module__}.{make.__name__}"
        yield row(f"{name}-none", lambda m=make: m(None), AssertionError, "coeff", "None", "number")
        yield row(f"{name}-str", lambda m=make: m("x"), TypeError, "coeff", "'x'", "number")
    yield row("shape", lambda: pj.l2_decay(TWO), TypeError, "coeff", r"\(2,\)", "number")
    for make in (pj.l1_decay, pj.l2_decay):
        call = lambda m=make: m(0.1).update(P, ())  # noqa: E731
        yield row(f"{make.__name__}-no-params", call, ValueError, "Decay", "params")


@rows(coefficients())
def test_refused(call, classes, words):
    refuse(call, classes, words)


def test_a_coefficient_may_be_negative_or_left_out():
    pj.l2_decay(-0.1)
    pj.regularizer.L2Decay()
