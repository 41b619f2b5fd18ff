"""Bad arguments of the functional form: an error that names the argument, what was found and expected."""

import dataclasses
import inspect
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as pj
from paddlejax import rules

BOTH = (ValueError, AssertionError)  # of a hyperparameter Paddle raises the one or the other


def row(name, call, expected, *words):
    """One bad input: every class in `expected` must catch the error, every pattern must be in its message."""
    classes = expected if isinstance(expected, tuple) else (expected,)
    return pytest.param(call, classes, words, id=name)


def refuse(call, classes, words):
    with pytest.raises(classes) as caught:
        call()
    for cls in classes:
        assert isinstance(caught.value, cls)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    # said by this library on purpose, not a crash somewhere inside JAX, numpy or the standard library
    last = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "/paddlejax/" in last or "/test_errors" in last, last


@pytest.fixture(autouse=True)
def lenient():
    """No error here may come from the strict promotion that the other tests run under."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


OPTIMIZERS = {
    name: getattr(pj, name)
    for name in (
        "adadelta adagrad adam adamax asgd decayed_adagrad ftrl lamb lars_momentum momentum rmsprop sgd"
    ).split()
}
REQUIRED = {"lars_momentum": {"momentum": 0.9}}  # hyperparameters without a default


def build(name, learning_rate=0.1, **given):
    return OPTIMIZERS[name](learning_rate, **{**REQUIRED.get(name, {}), **given})


RULES = {name: type(build(name).source.rule) for name in OPTIMIZERS}


def hyperparameters(kind):
    """(optimizer, argument) for every argument of every rule whose default is a `kind`."""
    for name, cls in RULES.items():
        for field in dataclasses.fields(cls):
            default = 0.0 if field.default is dataclasses.MISSING else field.default
            if type(default) is kind:
                yield name, field.name


P = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TWO = jnp.array([0.1, 0.2])


def with_w(w):
    return {**P, "w": w}


def names():
    for name in OPTIMIZERS:
        yield row(
            f"{name}-unknown",
            lambda n=name: build(n, bogus=1),
            TypeError,
            rf"{name}\(\)",
            "bogus",
            "learning_rate",
        )
        yield row(f"{name}-rate-none", lambda n=name: build(n, None), BOTH, "learning_rate", "None")
        yield row(
            f"{name}-rate-str",
            lambda n=name: build(n, "0.1"),
            TypeError,
            "learning_rate",
            "'0.1'",
            "expected",
        )
        yield row(
            f"{name}-rate-shape", lambda n=name: build(n, TWO), TypeError, "learning_rate", r"\(2,\)", "0-d"
        )
        if inspect.signature(OPTIMIZERS[name]).parameters["learning_rate"].default is inspect.Parameter.empty:
            yield row(f"{name}-rate-missing", OPTIMIZERS[name], TypeError, rf"{name}\(\)", "learning_rate")
    yield row(
        "lars-momentum-missing", lambda: pj.lars_momentum(0.1), TypeError, r"lars_momentum\(\)", "'momentum'"
    )


def values():
    for name, field in hyperparameters(float):
        for what, value, classes, found in (
            ("none", None, BOTH, "None"),
            ("str", "x", TypeError, "'x'"),
            ("bool", True, TypeError, "True"),
            ("complex", 1j, TypeError, "1j"),
            ("complex-array", jnp.array(1j), TypeError, "complex64"),
            ("shape", TWO, TypeError, r"\(2,\)"),
            ("list", [0.5], TypeError, r"\[0.5\]"),
        ):
            call = lambda n=name, f=field, v=value: build(n, **{f: v})  # noqa: E731
            yield row(f"{name}-{field}-{what}", call, classes, field, "found", found, "expected")
    for name, field in hyperparameters(bool):
        for value in (1, "yes", None):
            call = lambda n=name, f=field, v=value: build(n, **{f: v})  # noqa: E731
            yield row(
                f"{name}-{field}-{value!r}", call, TypeError, field, f"found {value!r}", "True or False"
            )


RANGES = [  # argument, one value too low or too high; Paddle checks some of them, and then raises ValueError
    *((n, b, x) for n in ("adam", "adamax", "lamb") for b in ("beta1", "beta2") for x in (-0.1, 1.0, 1.5,
        np.nan)),
    *((n, "epsilon",
        -1e-8) for n in OPTIMIZERS if any(f.name == "epsilon" for f in dataclasses.fields(RULES[n]))),
    *((n, r, x) for n, r in (("adadelta", "rho"), ("rmsprop", "rho"), ("decayed_adagrad",
        "decay")) for x in (-0.1, 1.1)),
    ("rmsprop", "momentum", -0.5),
    ("adagrad", "initial_accumulator_value", -1.0),
    ("ftrl", "l1", -1.0),
    ("ftrl", "l2", -1.0),
    ("ftrl", "lr_power", 0.5),
    ("ftrl", "guard", -1.0),
    ("asgd", "batch_num", 0),
    ("asgd", "batch_num", -1),
]  # fmt: skip


def ranges():
    for name, field, value in RANGES:
        call = lambda n=name, f=field, v=value: build(n, **{f: v})  # noqa: E731
        yield row(f"{name}-{field}-{value}", call, BOTH, field, f"found {value}", r"expected .*[\[(].*[\])]")
    for kind in (np.asarray, jnp.asarray, np.float32):
        call = lambda k=kind: pj.adam(0.1, beta1=k(1.5))  # noqa: E731
        yield row(f"adam-beta1-{kind.__module__}.{kind.__name__}", call, BOTH, "beta1", "1.5", "expected")


STATIC = [
    row("batch_num-none", lambda: pj.asgd(0.1, None), ValueError, "batch_num", "None"),
    row("batch_num-float", lambda: pj.asgd(0.1, 2.0), TypeError, "batch_num", "2.0", "int"),
    row("batch_num-bool", lambda: pj.asgd(0.1, True), TypeError, "batch_num", "True", "int"),
    row("exclude-lamb", lambda: pj.lamb(0.1, exclude_from_weight_decay_fn="bias"), TypeError,
        "exclude_from_weight_decay_fn", "'bias'", "function"),
    row("exclude-lars-str", lambda: pj.lars_momentum(0.1, 0.9, exclude_from_weight_decay="bias"), TypeError,
        "exclude_from_weight_decay", "'bias'", "tuple"),
    row("exclude-lars-int", lambda: pj.lars_momentum(0.1, 0.9, exclude_from_weight_decay=(3,)), TypeError,
        "exclude_from_weight_decay", "3", "str"),
    row("axis_name", lambda: pj.lamb(0.1, axis_name=3), TypeError, "axis_name", "3", "str"),
    row("lift-class", lambda: pj.lift(rules.Adam, 0.1), TypeError, "Adam", "expected"),
    row("lift-number", lambda: pj.lift(0.1, 0.1), TypeError, "0.1", "Rule"),
    row("lift-bool-rate", lambda: pj.lift(rules.SGD(), True), TypeError, "learning_rate", "True"),
    row("lift-complex-rate", lambda: pj.lift(rules.SGD(), jnp.array(1j)), TypeError, "learning_rate",
        "complex64"),
    row("lift-text-rate", lambda: pj.lift(rules.SGD(), np.array("x")), TypeError, "learning_rate",
        "expected"),
    row("schedule-shape", lambda: pj.sgd(lambda count: TWO).init(P), (TypeError,), "learning_rate",
        r"\(2,\)"),
    row("schedule-none", lambda: pj.sgd(lambda count: None).init(P), (TypeError,), "learning_rate", "None"),
]  # fmt: skip


@pytest.mark.parametrize("call, classes, words", [*names(), *values(), *ranges(), *STATIC])
def test_construction(call, classes, words):
    refuse(call, classes, words)


# ----------------------------------------------------------------------------------- clips and decay


def clips():
    for where, value, norm, globally in (
        ("function", pj.clip_by_value, pj.clip_by_norm, pj.clip_by_global_norm),
        ("object", pj.nn.ClipGradByValue, pj.nn.ClipGradByNorm, pj.nn.ClipGradByGlobalNorm),
        (
            "fluid",
            pj.fluid.clip.GradientClipByValue,
            pj.fluid.clip.GradientClipByNorm,
            pj.fluid.clip.GradientClipByGlobalNorm,
        ),
    ):
        for clip, argument in ((value, "max"), (norm, "clip_norm"), (globally, "clip_norm")):
            name = f"{where}-{clip.__name__}"
            yield row(f"{name}-missing", clip, TypeError, f"'{argument}'")
            yield row(f"{name}-none", lambda c=clip: c(None), BOTH, argument, "None", "number")
            yield row(f"{name}-str", lambda c=clip: c("x"), TypeError, argument, "'x'", "number")
            yield row(f"{name}-shape", lambda c=clip: c(TWO), TypeError, argument, r"\(2,\)", "number")
            yield row(f"{name}-nan", lambda c=clip: c(np.nan), BOTH, argument, "nan", "number")
        yield row(
            f"{where}-value-negative", lambda v=value: v(-1.0), AssertionError, "max", "-1.0", "above 0"
        )
        yield row(f"{where}-value-order", lambda v=value: v(-1.0, 1.0), ValueError, "min", "1.0", "-1.0")
        yield row(f"{where}-value-min", lambda v=value: v(1.0, "x"), TypeError, "min", "'x'")
        yield row(f"{where}-value-min-nan", lambda v=value: v(1.0, np.nan), BOTH, "min", "nan")
        for bad in (0.0, -1.0):
            yield row(
                f"{where}-norm-{bad}",
                lambda n=norm, b=bad: n(b),
                ValueError,
                "clip_norm",
                f"{bad}",
                "above 0",
            )
        if where != "fluid":
            skip = lambda g=globally: g(1.0, auto_skip_clip=1)  # noqa: E731
            yield row(f"{where}-skip", skip, AssertionError, "auto_skip_clip", "1", "True or False")
        else:
            for clip in (value, norm, globally):
                call = lambda c=clip: c(1.0, need_clip=3)  # noqa: E731
                yield row(f"{where}-{clip.__name__}-need_clip", call, TypeError, "need_clip", "3", "function")


def decays():
    for make in (
        pj.l1_decay, pj.l2_decay, pj.regularizer.L1Decay, pj.regularizer.L2Decay,
        pj.fluid.regularizer.L1Decay, pj.fluid.regularizer.L2DecayRegularizer,
    ):  # fmt: skip
        name = f"{make.__module__}.{make.__name__}"
        yield row(f"{name}-none", lambda m=make: m(None), AssertionError, "coeff", "None", "number")
        yield row(f"{name}-str", lambda m=make: m("x"), TypeError, "coeff", "'x'", "number")
        yield row(f"{name}-shape", lambda m=make: m(TWO), TypeError, "coeff", r"\(2,\)", "number")


@pytest.mark.parametrize("call, classes, words", [*clips(), *decays()])
def test_clips_and_decay(call, classes, words):
    refuse(call, classes, words)


KIND = {  # accepted where Paddle refuses, or where one might expect an error
    "int-rate": lambda: pj.adam(1),
    "zero-rate": lambda: pj.adam(0),
    "negative-rate": lambda: pj.sgd(-0.1),
    "numpy-rate": lambda: pj.sgd(np.float32(0.1)),
    "0-d-rate": lambda: pj.sgd(jnp.array(0.1)),
    "0-d-beta": lambda: pj.adam(0.1, beta1=jnp.array(0.5)),
    "int-beta": lambda: pj.adam(0.1, beta1=0),
    "traced-beta": lambda: jax.eval_shape(lambda b: pj.adam(0.1, beta1=b).init(P), 0.5),
    "zero-epsilon": lambda: pj.adam(0.1, epsilon=0.0),
    "negative-decay": lambda: pj.l2_decay(-0.1),
    "no-decay-argument": lambda: pj.regularizer.L2Decay(),
    "zero-global-norm": lambda: pj.clip_by_global_norm(0.0),
    "negative-global-norm": lambda: pj.clip_by_global_norm(-1.0),
    "momentum-above-one": lambda: pj.momentum(0.1, 1.5),
    "negative-lamb-decay": lambda: pj.lamb(0.1, lamb_weight_decay=-0.1),
    "none-gradient": lambda: pj.adam(0.1).update({"w": None, "b": P["b"]}, pj.adam(0.1).init(P), P),
    "other-dtype-of-gradient": lambda: pj.adam(0.1).update(
        with_w(P["w"].astype(jnp.bfloat16)), pj.adam(0.1).init(P), P
    ),
    "none-parameter": lambda: pj.adam(0.1).init(with_w(None)),
    "empty-tree": lambda: pj.adam(0.1).update({}, pj.adam(0.1).init({}), {}),
}


@pytest.mark.parametrize("call", KIND.values(), ids=KIND)
def test_accepted(call):
    call()
