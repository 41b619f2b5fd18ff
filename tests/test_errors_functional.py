"""Bad input to the functional form: an error that names the argument or leaf, what was found and what was expected."""

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
from paddlejax.paths import per_leaf

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
        "adadelta adagrad adam adamax asgd decayed_adagrad ftrl lamb lars_momentum momentum rmsprop sgd".split()
    )
}
REQUIRED = {"lars_momentum": {"momentum": 0.9}}  # hyperparameters without a default


def build(name, learning_rate=0.1, **given):
    return OPTIMIZERS[name](learning_rate, **{**REQUIRED.get(name, {}), **given})


RULES = {name: type(build(name).source.rule) for name in OPTIMIZERS}


def hyperparameters(kind):
    """(optimizer, argument) for every argument of every rule that by its default, or by its lack of one, is a `kind`."""
    for name, cls in RULES.items():
        for field in dataclasses.fields(cls):
            default = 0.0 if field.default is dataclasses.MISSING else field.default
            if type(default) is kind:
                yield name, field.name


P = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TWO = jnp.array([0.1, 0.2])


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
    *((n, b, x) for n in ("adam", "adamax", "lamb") for b in ("beta1", "beta2") for x in (-0.1, 1.0, 1.5, np.nan)),
    *((n, "epsilon", -1e-8) for n in OPTIMIZERS if any(f.name == "epsilon" for f in dataclasses.fields(RULES[n]))),
    *((n, r, x) for n, r in (("adadelta", "rho"), ("rmsprop", "rho"), ("decayed_adagrad", "decay")) for x in (-0.1, 1.1)),
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
    row("lift-complex-rate", lambda: pj.lift(rules.SGD(), jnp.array(1j)), TypeError, "learning_rate", "complex64"),
    row("lift-text-rate", lambda: pj.lift(rules.SGD(), np.array("x")), TypeError, "learning_rate", "expected"),
    row("schedule-shape", lambda: pj.sgd(lambda count: TWO).init(P), (TypeError,), "learning_rate", r"\(2,\)"),
    row("schedule-none", lambda: pj.sgd(lambda count: None).init(P), (TypeError,), "learning_rate", "None"),
]  # fmt: skip


@pytest.mark.parametrize("call, classes, words", [*names(), *values(), *ranges(), *STATIC])
def test_construction(call, classes, words):
    refuse(call, classes, words)


# ------------------------------------------------------------------------------------------- one step


def with_w(w):
    return {**P, "w": w}


BAD_GRADIENTS = {  # for the parameters P
    "shape": (with_w(jnp.ones(3)), ValueError, "at w", r"\(3,\)", r"\(2,\)"),
    "would-broadcast": (with_w(jnp.ones(())), ValueError, "at w", r"\(\)", r"\(2,\)"),
    "missing": ({"b": P["b"]}, ValueError, "missing at w"),
    "extra": ({**P, "c": P["b"]}, ValueError, "unexpected at c"),
    "int": (with_w(jnp.ones(2, jnp.int32)), TypeError, "at w", "int32", "real floating"),
    "bool": (with_w(jnp.ones(2, bool)), TypeError, "at w", "bool", "real floating"),
    "complex": (with_w(jnp.ones(2, jnp.complex64)), TypeError, "at w", "complex64", "real floating"),
    "nested": (with_w({"u": P["w"]}), ValueError, "at w", "dict", "array"),
    "list": (with_w([1.0, 2.0]), ValueError, "at w", "list", "array"),
    "text": (with_w("x"), ValueError, "at w", "str", "array"),
    "other-structure": ([P["b"], P["w"]], ValueError, "gradients", "missing at b, w"),
    "one-array": (P["w"], ValueError, "gradients", "missing at b, w"),
    "none": (None, ValueError, "gradients", "missing at b, w"),
}  # fmt: skip
TRANSFORMATIONS = {
    **{name: build(name) for name in OPTIMIZERS},
    "by_path": pj.by_path([("w", {"learning_rate": 2.0})], pj.adam(0.1)),
    "chain": pj.chain(pj.clip_by_global_norm(1.0), pj.sgd(0.1)),
    "l2_decay": pj.l2_decay(0.1),
    "clip_by_value": pj.clip_by_value(1.0),
    "clip_by_norm": pj.clip_by_norm(1.0),
}


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_gradients(name, bad):
    tx, (grads, cls, *words) = TRANSFORMATIONS[name], BAD_GRADIENTS[bad]
    state = tx.init(P)
    refuse(lambda: tx.update(grads, state, P), (cls,), words)
    refuse(
        lambda: jax.eval_shape(lambda s: tx.update(grads, s, P), state), (cls,), words
    )  # and while tracing


@pytest.mark.parametrize("name", [*OPTIMIZERS, "by_path", "chain"])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_parameters_of_a_wrong_dtype(name, dtype):
    tx, words = TRANSFORMATIONS[name], ("at w", jnp.dtype(dtype).name, "real floating")
    refuse(lambda: tx.init(with_w(jnp.ones(2, dtype))), (TypeError,), words)


def updated(tx, state, params=P):
    return lambda: tx.update(P, state, params)


def without(state, field, name):
    return state._replace(**{field: {k: v for k, v in getattr(state, field).items() if k != name}})


ADAM, SGD, ASGD2, TABLE = pj.adam(0.1), pj.sgd(0.1), pj.asgd(0.1, 2), TRANSFORMATIONS["by_path"]
START = ADAM.init(P)
MANY = jax.vmap(lambda _: ADAM.init(P))(jnp.arange(2))  # the states of two runs at once
STATES = [
    row("of-sgd", updated(ADAM, SGD.init(P)), ValueError, "Adam", "found", "moment1"),
    row("of-adam", updated(SGD, START), ValueError, "SGD", "moment1"),
    row("of-amsgrad", updated(ADAM, pj.adam(0.1, amsgrad=True).init(P)), ValueError, "moment2_max"),
    row("without-a-slot", updated(ADAM, without(START, "slots", "moment2")), ValueError, "Adam", "moment2"),
    row("without-a-scalar", updated(ADAM, without(START, "shared", "beta1_pow_acc")), ValueError, "beta1_pow_acc"),
    row("of-another-tree", updated(ADAM, ADAM.init({"w": P["w"]})), ValueError, "moment1", "missing at b"),
    row("of-other-shapes", updated(ADAM, ADAM.init(with_w(jnp.ones(3)))), ValueError, "at w", r"\(3,\)", r"\(2,\)"),
    row("of-many-runs", updated(ADAM, MANY), ValueError, r"\(2,\)"),
    row("slots-of-many-runs", updated(ADAM, START._replace(slots=MANY.slots)), ValueError, "at ", r"\(2,", "moment1"),
    row("scalar-shape", updated(ADAM, START._replace(shared=MANY.shared)), ValueError, "beta._pow_acc", r"\(2,\)"),
    row("rate-shape", updated(ADAM, START._replace(learning_rate=TWO)), ValueError, "learning_rate", r"\(2,\)"),
    row("of-another-batch_num", updated(ASGD2, pj.asgd(0.1, 3).init(P)), ValueError, "at ", "y", r"\(3,", r"\(2,"),
    row("none", updated(ADAM, None), TypeError, "RuleState", "NoneType"),
    row("empty", updated(ADAM, ()), TypeError, "RuleState", "tuple"),
    row("swapped-with-params", lambda: ADAM.update(P, P, START), TypeError, "RuleState", "dict"),
    row("by_path-rule-state", updated(TABLE, START), TypeError, "PathState", "RuleState"),
    row("by_path-other-table", updated(TABLE, pj.by_path([("w", {"rule": SGD})], ADAM).init(P)), ValueError,
        "another table", "found 2", "expected 1"),
    row("by_path-other-rule", updated(TABLE, pj.by_path([], SGD).init(P)), ValueError, "Adam", "moment1"),
    row("chain-length", updated(pj.chain(ADAM), (START, START)), ValueError, "chain", "1", "2"),
    row("chain-not-a-tuple", updated(pj.chain(ADAM), {}), ValueError, "chain", "dict"),
    row("chain-order", updated(pj.chain(pj.identity(), ADAM), (START, ())), TypeError, "RuleState", "tuple"),
    *(row(f"{n}-no-params", lambda n=n: (t := build(n)).update(P, t.init(P)), ValueError, RULES[n].__name__, "params")
      for n in ("ftrl", "lamb", "lars_momentum")),
    *(row(f"{t}-no-params", lambda t=t: getattr(pj, t)(0.1).update(P, ()), ValueError, "Decay", "params")
      for t in ("l1_decay", "l2_decay")),
    row("by_path-no-params", lambda: TABLE.update(P, TABLE.init(P)), ValueError, "params"),
    row("per_leaf-no-params", lambda: per_leaf(lambda path: None).update(P, None), ValueError, "params"),
    row("init-text", lambda: ADAM.init({"w": "x"}), TypeError, "at w", "str", "expected"),
]  # fmt: skip
APPLY = [
    row("shape", lambda: pj.apply_updates(P, with_w(jnp.ones(3))), ValueError, "at w", r"\(3,\)", r"\(2,\)"),
    row("would-broadcast", lambda: pj.apply_updates(P, with_w(1.0)), ValueError, "at w:", r"\(\)", r"\(2,\)"),
    row("missing", lambda: pj.apply_updates(P, {"b": P["b"]}), ValueError, "updates", "missing at w"),
    row("extra", lambda: pj.apply_updates(P, {**P, "c": 1.0}), ValueError, "updates", "unexpected at c"),
    row(
        "int-parameter",
        lambda: pj.apply_updates({"n": jnp.arange(2)}, {"n": P["w"]}),
        TypeError,
        "at n",
        "int32",
    ),
    row("complex-update", lambda: pj.apply_updates(P, with_w(1j * P["w"])), TypeError, "at w", "complex64"),
    row("text-update", lambda: pj.apply_updates(P, with_w("x")), (TypeError,), "at w", "str"),
]
CHAIN = [
    row("number", lambda: pj.chain(pj.sgd(0.1), 3), TypeError, "argument 1", "3", "expected"),
    row("factory", lambda: pj.chain(pj.sgd), TypeError, "argument 0", "expected"),
    row("list", lambda: pj.chain([pj.sgd(0.1)]), TypeError, "argument 0", "expected"),
    row("clip-object", lambda: pj.chain(pj.nn.ClipGradByValue(1.0), pj.sgd(0.1)), TypeError, "argument 0"),
]
RATE = [
    row("no-rule", lambda: pj.set_learning_rate(((), ()), 0.1), TypeError, "no learning rate", "RuleState"),
    row("read-no-rule", lambda: pj.get_learning_rate({}), TypeError, "no learning rate", "dict"),
    row("none", lambda: pj.set_learning_rate(START, None), TypeError, "learning_rate", "None"),
    row("str", lambda: pj.set_learning_rate(START, "0.1"), TypeError, "learning_rate", "'0.1'"),
    row(
        "schedule",
        lambda: pj.set_learning_rate(START, lambda count: 0.1),
        TypeError,
        "learning_rate",
        "function",
    ),
    row("shape", lambda: pj.set_learning_rate(START, TWO), ValueError, "learning_rate", r"\(2,\)", r"\(\)"),
    row(
        "complex", lambda: pj.set_learning_rate(START, jnp.array(1j)), TypeError, "learning_rate", "complex64"
    ),
    row("bool", lambda: pj.set_learning_rate(START, jnp.array(True)), TypeError, "learning_rate", "bool"),
    row(
        "read-different", lambda: pj.get_learning_rate((START, pj.sgd(0.2).init(P))), ValueError, "0.1", "0.2"
    ),
]
FOREIGN = pj.GradientTransformation(lambda params: (), lambda g, s, params=None: (g, s))
BY_PATH = [
    row("no-match", lambda: pj.by_path([("*/bias", {})], ADAM).init(P), ValueError, r"\*/bias", "found b, w"),
    row("no-match-regex", lambda: pj.by_path([(re.compile("^x"), {})], ADAM).init(P), ValueError, "x", "found b, w"),
    row("option", lambda: pj.by_path([("w", {"lr": 1.0})], ADAM), TypeError, "'w'", "'lr'", "learning_rate", "beta1"),
    row("option-of-another", lambda: pj.by_path([("w", {"rho": 0.9})], ADAM), TypeError, "'w'", "'rho'", "beta1"),
    row("option-of-a-foreign", lambda: pj.by_path([("w", {"beta1": 0.9})], FOREIGN), TypeError, "'w'", "'beta1'"),
    row("factor-of-a-foreign", lambda: pj.by_path([("w", {"learning_rate": 2.0})], FOREIGN), TypeError,
        "'w'", "learning_rate"),
    row("factor-none", lambda: pj.by_path([("w", {"learning_rate": None})], ADAM), TypeError, "learning_rate", "None"),
    row("factor-shape", lambda: pj.by_path([("w", {"learning_rate": TWO})], ADAM), TypeError, "learning_rate", "2,"),
    row("range", lambda: pj.by_path([("w", {"beta1": 1.5})], ADAM), BOTH, "'w'", "beta1", "1.5"),
    row("frozen", lambda: pj.by_path([("w", {"frozen": 1})], ADAM), TypeError, "'w'", "frozen", "1", "True or False"),
    row("decay", lambda: pj.by_path([("w", {"weight_decay": "x"})], ADAM), TypeError, "'w'", "weight_decay", "'x'"),
    row("clip", lambda: pj.by_path([("w", {"grad_clip": 1.0})], ADAM), TypeError, "'w'", "grad_clip", "1.0"),
    row("row-rule", lambda: pj.by_path([("w", {"rule": 1.0})], ADAM), TypeError, "'w'", "rule", "1.0"),
    row("rule", lambda: pj.by_path([], pj.adam), TypeError, "rule", "expected"),
    row("general-decay", lambda: pj.by_path([], ADAM, weight_decay="x"), TypeError, "weight_decay", "'x'"),
    row("general-clip", lambda: pj.by_path([], ADAM, grad_clip=1.0), TypeError, "grad_clip", "1.0"),
    row("pattern", lambda: pj.by_path([(3, {})], ADAM), TypeError, "pattern", "3"),
    row("options", lambda: pj.by_path([("w", 2.0)], ADAM), TypeError, "'w'", "2.0", "dict"),
    row("not-pairs", lambda: pj.by_path(["w"], ADAM), TypeError, "table", "'w'", "expected"),
    row("dict", lambda: pj.by_path({"w": {"frozen": True}}, ADAM), TypeError, "table", "expected"),
    row("swapped", lambda: pj.by_path(ADAM, []), TypeError, "rule", r"\[\]", "expected"),
]  # fmt: skip
TABLES = {"state": STATES, "apply_updates": APPLY, "chain": CHAIN, "learning_rate": RATE, "by_path": BY_PATH}


@pytest.mark.parametrize(
    "call, classes, words",
    [pytest.param(*r.values, id=f"{table}-{r.id}") for table, rows in TABLES.items() for r in rows],
)
def test_transformations(call, classes, words):
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
    "none-gradient": lambda: ADAM.update({"w": None, "b": P["b"]}, START, P),
    "other-dtype-of-gradient": lambda: ADAM.update(with_w(P["w"].astype(jnp.bfloat16)), START, P),
    "none-parameter": lambda: ADAM.init(with_w(None)),
    "empty-tree": lambda: ADAM.update({}, ADAM.init({}), {}),
}


@pytest.mark.parametrize("call", KIND.values(), ids=KIND)
def test_accepted(call):
    call()


def test_an_error_leaves_state_and_parameters_usable():
    tx = pj.chain(pj.clip_by_global_norm(1.0), pj.adam(0.1))
    state = tx.init(P)
    expected = tx.update(P, state, P)
    for grads, cls, *_ in BAD_GRADIENTS.values():
        with pytest.raises(cls):
            tx.update(grads, state, P)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(tx.update(P, state, P)), strict=True):
        np.testing.assert_array_equal(a, b)
