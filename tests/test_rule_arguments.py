"""Bad arguments of rules, as functions and as objects: what the argument is, what was found and expected."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import BOTH, TWO, P, params, refuse, row, rows

import paddlejax as pj
from paddlejax import rules

KEY = jax.random.key(0)
OPTIMIZERS = {name: getattr(pj, name) for name in rules.__all__ if not isinstance(getattr(rules, name), type)}
REQUIRED = {"lars_momentum": {"momentum": 0.9}, "dpsgd": {"key": KEY}}  # without a default


def build(name, rate=0.1, **given):
    return OPTIMIZERS[name](rate, **{**REQUIRED.get(name, {}), **given})


RULES = {name: type(build(name).source.rule) for name in OPTIMIZERS}


def arguments(kind):
    """(optimizer, argument) for every argument of every rule whose default is a `kind`."""
    for name, cls in RULES.items():
        for field in dataclasses.fields(cls):
            default = 0.0 if field.default is dataclasses.MISSING else field.default
            if type(default) is kind and field.name != "learning_rate":  # which rprop keeps
                yield name, field.name


def names():
    for name, make in OPTIMIZERS.items():
        function = rf"{name}\(\)"
        yield row(f"{name}-unknown", lambda n=name: build(n, bogus=1), TypeError, function, "bogus")
        yield row(
            f"{name}-rate", lambda n=name: build(n, "0.1"), TypeError, "learning_rate", "'0.1'", "expected"
        )
        if inspect.signature(make).parameters["learning_rate"].default is inspect.Parameter.empty:
            yield row(f"{name}-rate-missing", make, TypeError, function, "learning_rate")
    yield row("its-arguments", lambda: pj.adam(lr=1), TypeError, "'lr'", "learning_rate", "beta1")
    yield row("rate-none", lambda: pj.adam(None), BOTH, "learning_rate", "None")
    yield row("rate-shape", lambda: pj.adam(TWO), TypeError, "learning_rate", r"\(2,\)", "0-d")
    yield row("lars-momentum-missing", lambda: pj.lars_momentum(0.1), TypeError, r"lars_momentum\(\)",
        "'momentum'")  # fmt: skip


NO_NUMBER = [
    ("none", None, BOTH, "None"),
    ("bool", True, TypeError, "True"),
    ("complex", 1j, TypeError, "1j"),
    ("complex-array", jnp.array(1j), TypeError, "complex64"),
    ("shape", TWO, TypeError, r"\(2,\)"),
    ("list", [0.5], TypeError, r"\[0.5\]"),
]


def values():
    """Each kind of wrong value for one argument, then one for each argument: all are refused in one place."""
    for what, value, classes, found in NO_NUMBER:
        call = lambda v=value: build("adam", beta1=v)  # noqa: E731
        yield row(f"beta1-{what}", call, classes, "beta1", "found", found, "expected")
    for value in (1, "yes", None):
        call = lambda v=value: build("adam", amsgrad=v)  # noqa: E731
        yield row(f"amsgrad-{value!r}", call, TypeError, "amsgrad", f"found {value!r}", "True or False")
    for name, field in arguments(float):
        call = lambda n=name, f=field: build(n, **{f: "x"})  # noqa: E731
        yield row(f"{name}-{field}", call, TypeError, field, "found 'x'", "expected")
    for name, field in arguments(bool):
        call = lambda n=name, f=field: build(n, **{f: 1})  # noqa: E731
        yield row(f"{name}-{field}", call, TypeError, field, "found 1", "True or False")


RANGES = [  # argument, a value too low or too high; Paddle checks some of them, and then raises ValueError
    *(("adam", "beta1", x) for x in (-0.1, 1.0, 1.5, np.nan)),
    ("adam", "beta2", 1.0),
    *((n, b, 1.0) for n in ("adamax", "adamw", "lamb", "nadam", "radam") for b in ("beta1", "beta2")),
    *((n, "epsilon", -1e-8) for n, cls in RULES.items() if "epsilon" in cls.__dataclass_fields__),
    *((n, r, x) for n, r in (("adadelta", "rho"), ("rmsprop", "rho"), ("decayed_adagrad", "decay"))
      for x in (-0.1, 1.1)),
    ("rmsprop", "momentum", -0.5),
    ("adagrad", "initial_accumulator_value", -1.0),
    ("nadam", "momentum_decay", -0.1),
    ("ftrl", "l1", -1.0),
    ("ftrl", "l2", -1.0),
    ("ftrl", "lr_power", 0.5),
    ("ftrl", "guard", -1.0),
    ("dpsgd", "clip", -1.0),
    ("dpsgd", "sigma", -1.0),
    ("asgd", "batch_num", 0),
    ("asgd", "batch_num", -1),
]  # fmt: skip


def ranges():
    for name, field, value in RANGES:
        call = lambda n=name, f=field, v=value: build(n, **{f: v})  # noqa: E731
        expected = r"expected (a number|an int) (in|of|above|below)"
        yield row(f"{name}-{field}-{value}", call, BOTH, field, f"found {value}", expected)
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
    row("schedule-shape", lambda: pj.sgd(lambda count: TWO).init(P), TypeError, "learning_rate", r"\(2,\)"),
    row("schedule-none", lambda: pj.sgd(lambda count: None).init(P), TypeError, "learning_rate", "None"),
    row("ratio", lambda: pj.adamw(0.1, lr_ratio=lambda path: "x").update(TWO, pj.adamw().init(TWO), TWO),
        TypeError, "lr_ratio returned", "'x'"),
]  # fmt: skip


@rows(names(), values(), ranges(), STATIC)
def test_refused(call, classes, words):
    refuse(call, classes, words)


# ------------------------------------------------------------- what function and class refuse in one wording

O, Dpsgd = pj.optimizer, pj.fluid.optimizer.Dpsgd  # noqa: E741
CLASSES = {"adamw": O.AdamW, "nadam": O.NAdam, "radam": O.RAdam, "rprop": O.Rprop}


def opt(name, rate=0.1, **kwargs):
    return CLASSES[name](rate, parameters=params(), **kwargs)


def both(name, what, classes, *words, **kwargs):
    """The same bad arguments to the function and to the class."""
    for form in (build, opt):
        yield row(f"{form.__name__}-{name}-{what}", lambda f=form: f(name, **kwargs), classes, *words)


L2Decay, StepDecay = pj.regularizer.L2Decay, pj.optimizer.lr.StepDecay
MOMENTS = [
    *(r for name in ("adamw", "nadam", "radam") for r in (
        *both(name, "beta1", ValueError, "beta1", r"1\.0", r"\[0, 1\)", beta1=1.0),
        *both(name, "beta2-none", AssertionError, "beta2", "None", beta2=None))),
    *both("adamw", "amsgrad", TypeError, "amsgrad", "1", amsgrad=1),
    *(r for value in (L2Decay(0.1), "x", TWO, True)
      for r in both("adamw", f"decay-{type(value).__name__}", TypeError, "weight_decay", weight_decay=value)),
    *both("adamw", "lr_ratio", (AssertionError, TypeError), "lr_ratio", "0.5", "function", lr_ratio=0.5),
    *both("adamw", "fun", TypeError, "apply_decay", "'w'", "function", apply_decay_param_fun="w"),
]  # fmt: skip
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
    row("schedule", lambda: pj.rprop(lambda count: 0.1), TypeError, "learning_rate", "function"),
    row("weight_decay", lambda: opt("rprop", weight_decay=0.1), TypeError, "weight_decay"),
]  # fmt: skip
DPSGD = [
    row("key-missing", lambda: pj.dpsgd(0.1), TypeError, r"dpsgd\(\)", "'key'"),
    row("key-none", lambda: pj.dpsgd(0.1, key=None), TypeError, "key", "None", "jax.random.key"),
    row("key-int", lambda: pj.dpsgd(0.1, key=3), TypeError, "key", "3", "jax.random.key"),
    row("key-array", lambda: pj.dpsgd(0.1, key=TWO), TypeError, "key", r"0\.1, 0\.2", "jax.random.key"),
    row("key-batch", lambda: pj.dpsgd(0.1, key=jax.random.split(KEY)), TypeError, "key", "one key"),
    row("fluid-clip-none", lambda: Dpsgd(0.1, clip=None, parameter_list=params()), AssertionError, "clip",
        "None"),
    row("fluid-rate-none", lambda: Dpsgd(None, parameter_list=params()), AssertionError, "learning_rate"),
    *(row(f"fluid-{other}", lambda o=other: Dpsgd(0.1, parameter_list=params(), **{o: None}), TypeError,
        other) for other in ("regularization", "grad_clip", "name")),
]  # fmt: skip


@rows(MOMENTS, RPROP, DPSGD)
def test_refused_by_function_and_class(call, classes, words):
    refuse(call, classes, words)


ACCEPTED = {  # where Paddle refuses, or where one might expect an error
    "int-rate": lambda: pj.adam(1),
    "zero-rate": lambda: pj.adam(0),
    "numpy-rate": lambda: pj.sgd(np.float32(0.1)),
    "0-d-rate": lambda: pj.sgd(jnp.array(0.1)),
    "0-d-beta": lambda: pj.adam(0.1, beta1=jnp.array(0.5)),
    "int-beta": lambda: pj.adam(0.1, beta1=0),
    "traced-beta": lambda: jax.eval_shape(lambda b: pj.adam(0.1, beta1=b).init(P), 0.5),
    "zero-epsilon": lambda: pj.adam(0.1, epsilon=0.0),
    "momentum-above-one": lambda: pj.momentum(0.1, 1.5),
    "negative-lamb-decay": lambda: pj.lamb(0.1, lamb_weight_decay=-0.1),
    "int-decay": lambda: opt("adamw", weight_decay=1),
    "negative-decay": lambda: opt("adamw", weight_decay=-0.1),
    "lr_ratio": lambda: opt("adamw", lr_ratio=lambda p: 0.5),
    "lowprecision": lambda: opt("adamw", use_lowprecision_moment=True, lazy_mode=True),
    "list-of-etas": lambda: opt("rprop", etas=[0.5, 1.2], learning_rate_range=[0.01, 1]),
    "traced-etas": lambda: jax.eval_shape(lambda e: build("rprop", etas=(0.5, e)).init(TWO), 1.2),
    "array-rate": lambda: build("rprop", jnp.array(0.1)).init(TWO),
    "fluid-without-key": lambda: Dpsgd(0.1, parameter_list=params()),
    "raw-key": lambda: pj.dpsgd(0.1, key=jax.random.PRNGKey(0)).init(TWO),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(call):
    call()
