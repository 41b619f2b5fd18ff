"""Bad input to AdamW, NAdam, RAdam, Rprop and Dpsgd, as functions and as objects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_errors_functional import BOTH, lenient, refuse, row  # noqa: F401

import paddlejax as paddle

O, Dpsgd = paddle.optimizer, paddle.fluid.optimizer.Dpsgd  # noqa: E741
L2Decay, StepDecay = paddle.regularizer.L2Decay, paddle.optimizer.lr.StepDecay
KEY = jax.random.key(0)
TWO = jnp.array([0.1, 0.2])
CLASSES = {"adamw": O.AdamW, "nadam": O.NAdam, "radam": O.RAdam, "rprop": O.Rprop}
MOMENTS = ("adamw", "nadam", "radam")


def params():
    return [paddle.Parameter(jnp.array([1.0, -2.0]), "w")]


def opt(name, rate=0.1, given=None, **kwargs):
    return CLASSES[name](rate, parameters=given or params(), **kwargs)


def function(name, rate=0.1, **kwargs):
    return getattr(paddle, name)(rate, **kwargs)


def both(name, what, classes, *words, **kwargs):
    """The same bad arguments to the function and to the class."""
    for form in (function, opt):
        yield row(f"{form.__name__}-{name}-{what}", lambda f=form: f(name, **kwargs), classes, *words)


def hyperparameters():
    for name in MOMENTS:
        for beta in ("beta1", "beta2"):
            for value in (1.0, -0.1, np.nan):
                yield from both(
                    name, f"{beta}-{value}", ValueError, beta, f"{value}", r"\[0, 1\)", **{beta: value}
                )
            yield from both(name, f"{beta}-str", TypeError, beta, "'x'", **{beta: "x"})
            yield from both(name, f"{beta}-shape", TypeError, beta, r"\(2,\)", **{beta: TWO})
            yield from both(name, f"{beta}-none", AssertionError, beta, "None", **{beta: None})
        yield from both(name, "epsilon", ValueError, "epsilon", "-1e-08", epsilon=-1e-8)
    yield from both("nadam", "momentum_decay", ValueError, "momentum_decay", "-0.1", momentum_decay=-0.1)
    yield from both("adamw", "amsgrad", TypeError, "amsgrad", "1", amsgrad=1)
    for value in (L2Decay(0.1), "x", TWO, True):
        yield from both(
            "adamw", f"decay-{type(value).__name__}", TypeError, "weight_decay", weight_decay=value
        )
    yield from both(
        "adamw", "lr_ratio", (AssertionError, TypeError), "lr_ratio", "0.5", "function", lr_ratio=0.5
    )
    yield from both("adamw", "fun", TypeError, "apply_decay", "'w'", "function", apply_decay_param_fun="w")


RPROP = [
    *both("rprop", "below", ValueError, "learning_rate", r"1e-06", "low <= learning_rate", rate=1e-6),
    *both("rprop", "above", ValueError, "learning_rate", r"100\.0", rate=100.0),
    *both("rprop", "low", ValueError, "learning_rate_range", r"\(0, 1\)", learning_rate_range=(0, 1)),
    *both("rprop", "order", ValueError, "learning_rate_range", learning_rate_range=(1.0, 0.01)),
    *both("rprop", "shrink", ValueError, "etas", r"1\.0", "etas.0. < 1", etas=(1.0, 1.2)),
    *both("rprop", "grow", ValueError, "etas", r"0\.9", etas=(0.5, 0.9)),
    *both("rprop", "zero", ValueError, "etas", etas=(0.0, 1.2)),
    *both("rprop", "one", TypeError, "etas", "0.5", "two numbers", etas=0.5),
    *both("rprop", "three", TypeError, "etas", "two numbers", etas=(0.5, 1.2, 1.3)),
    *both("rprop", "str", TypeError, "etas", "'x'", "number", etas=("x", 1.2)),
    *both("rprop", "none", TypeError, "learning_rate_range", "None", learning_rate_range=(None, 1.0)),
    *both("rprop", "rate-str", TypeError, "learning_rate", "'x'", rate="x"),
    *both("rprop", "rate-none", BOTH, "learning_rate", "None", rate=None),
    row("scheduler", lambda: opt("rprop", StepDecay(0.1, 3)), TypeError, "learning_rate", "StepDecay",
        "number"),
    row("schedule", lambda: paddle.rprop(lambda count: 0.1), TypeError, "learning_rate", "function"),
    row("weight_decay", lambda: opt("rprop", weight_decay=0.1), TypeError, "weight_decay"),
]  # fmt: skip


def group(**options):
    return lambda: opt("adamw", given=[{"params": params(), **options}])


OBJECTS = [
    *(row(f"{name}-negative", lambda n=name: opt(n, -0.1), ValueError, "learning_rate", "-0.1")
        for name in ("nadam", "radam")),
    *(row(f"{name}-rate-none", lambda n=name: opt(n, None), TypeError, "learning_rate", "None")
        for name in ("nadam", "radam")),
    row("adamw-rate-none", lambda: opt("adamw", None), AssertionError, "learning_rate", "None"),
    row("adamw-decay-none", lambda: opt("adamw", weight_decay=None), TypeError, "weight_decay", "None",
        "int or float"),
    row("adamw-coeff", lambda: opt("adamw", coeff=0.1), TypeError, "coeff"),
    row("adamw-group-none", group(weight_decay=None), TypeError, "group", "weight_decay", "None"),
    row("adamw-group-regularizer", group(weight_decay=L2Decay(0.1)), TypeError, "group", "weight_decay",
        "L2Decay"),
    row("adamw-group-unknown", group(rho=0.1), TypeError, "group", "'rho'", "beta1"),
    row("adamw-group-beta", group(beta1=1.5), ValueError, "group", "beta1", "1.5"),
    *(row(f"{name}-masters", lambda n=name: opt(n, multi_precision="yes"), TypeError, "multi_precision")
        for name in ("adamw", "rprop")),
    row("ratio", lambda: paddle.adamw(0.1, lr_ratio=lambda path: "x").update(TWO, paddle.adamw().init(TWO),
        TWO), TypeError, "lr_ratio returned", "'x'"),
]  # fmt: skip

DPSGD = [
    row("key-missing", lambda: paddle.dpsgd(0.1), TypeError, r"dpsgd\(\)", "'key'"),
    row("key-none", lambda: paddle.dpsgd(0.1, key=None), TypeError, "key", "None", "jax.random.key"),
    row("key-int", lambda: paddle.dpsgd(0.1, key=3), TypeError, "key", "3", "jax.random.key"),
    row("key-array", lambda: paddle.dpsgd(0.1, key=TWO), TypeError, "key", r"0\.1, 0\.2", "jax.random.key"),
    row("key-batch", lambda: paddle.dpsgd(0.1, key=jax.random.split(KEY)), TypeError, "key", "one key"),
    row("clip", lambda: paddle.dpsgd(0.1, clip=-1.0, key=KEY), BOTH, "clip", "-1.0"),
    row("sigma", lambda: paddle.dpsgd(0.1, sigma=-1.0, key=KEY), BOTH, "sigma", "-1.0"),
    row("batch_size", lambda: paddle.dpsgd(0.1, batch_size="x", key=KEY), TypeError, "batch_size", "'x'"),
    row("per_element", lambda: paddle.dpsgd(0.1, per_element=1, key=KEY), TypeError, "per_element", "1"),
    row("fluid-clip-none", lambda: Dpsgd(0.1, clip=None, parameter_list=params()), AssertionError, "clip",
        "None"),
    row("fluid-rate-none", lambda: Dpsgd(None, parameter_list=params()), AssertionError, "learning_rate"),
    *(row(f"fluid-{other}", lambda o=other: Dpsgd(0.1, parameter_list=params(), **{o: None}), TypeError,
        other) for other in ("regularization", "grad_clip", "name")),
]  # fmt: skip


@pytest.mark.parametrize("call, classes, words", [*hyperparameters(), *RPROP, *OBJECTS, *DPSGD])
def test_refused(call, classes, words):
    refuse(call, classes, words)


KIND = {  # accepted where Paddle refuses, or where one might expect an error
    "int-decay": lambda: opt("adamw", weight_decay=1),
    "negative-decay": lambda: opt("adamw", weight_decay=-0.1),
    "int-group-decay": group(weight_decay=1),
    "lr_ratio": lambda: opt("adamw", lr_ratio=lambda p: 0.5),
    "lowprecision": lambda: opt("adamw", use_lowprecision_moment=True, lazy_mode=True),
    "list-of-etas": lambda: opt("rprop", etas=[0.5, 1.2], learning_rate_range=[0.01, 1]),
    "traced-etas": lambda: jax.eval_shape(lambda e: function("rprop", etas=(0.5, e)).init(TWO), 1.2),
    "array-rate": lambda: function("rprop", jnp.array(0.1)).init(TWO),
    "fluid-without-key": lambda: Dpsgd(0.1, parameter_list=params()),
    "raw-key": lambda: paddle.dpsgd(0.1, key=jax.random.PRNGKey(0)).init(TWO),
}


@pytest.mark.parametrize("call", KIND.values(), ids=KIND)
def test_accepted(call):
    call()
