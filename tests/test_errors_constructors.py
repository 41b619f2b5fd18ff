"""Bad input to the constructors of the Paddle-style objects: Paddle's exception class, the argument named."""

import jax.numpy as jnp
import pytest
from test_errors_functional import lenient, refuse, row  # noqa: F401

import paddlejax as paddle

O, fluid, lr = paddle.optimizer, paddle.fluid.optimizer, paddle.optimizer.lr  # noqa: E741
Lars = paddle.incubate.optimizer.LarsMomentumOptimizer
Parameter = paddle.Parameter
TWO = jnp.array([0.1, 0.2])
INTS = jnp.arange(2)


def params(*more):
    return [Parameter(jnp.array([1.0, -2.0]), "w"), Parameter(jnp.array(0.5), "b"), *more]


def ids(rows, name):
    return [pytest.param(*r.values, id=f"{name}-{r.id}") for r in rows]


# ------------------------------------------------------------------------------------------ constructor

CLASSES = {
    "SGD": O.SGD, "Momentum": O.Momentum, "Adagrad": O.Adagrad, "Adadelta": O.Adadelta, "Adam": O.Adam,
    "Adamax": O.Adamax, "RMSProp": O.RMSProp, "Lamb": O.Lamb, "ASGD": O.ASGD,
    "Lars": lambda *a, parameters=None, weight_decay=None, **k: Lars(
        *a, **{"momentum": 0.9, **k}, parameter_list=parameters, regularization=weight_decay),
}  # fmt: skip
RATE_REQUIRED = {"Adagrad": O.Adagrad, "RMSProp": O.RMSProp, "Lars": Lars}


def opt(cls="SGD", rate=0.1, given=None, **kwargs):
    return CLASSES[cls](rate, parameters=params() if given is None else given, **kwargs)


# What Paddle 3.3.1 raises for None: argument by argument.
NONE = {
    "SGD": (ValueError, ["learning_rate"]),
    "Momentum": (ValueError, ["learning_rate", "momentum"]),
    "Adagrad": (AssertionError, ["learning_rate", "epsilon"]),
    "Adadelta": (ValueError, ["learning_rate", "epsilon", "rho"]),
    "Adam": (AssertionError, ["learning_rate", "beta1", "beta2", "epsilon"]),
    "Adamax": (AssertionError, ["learning_rate", "beta1", "beta2", "epsilon"]),
    "RMSProp": (ValueError, ["learning_rate", "rho", "epsilon", "momentum"]),
    "Lamb": (AssertionError, ["learning_rate", "beta1", "beta2", "epsilon"]),
    "ASGD": (ValueError, ["learning_rate", "batch_num"]),
    "Lars": (AssertionError, ["learning_rate", "momentum"]),
}


def nones():
    for name, (cls, arguments) in NONE.items():
        for argument in arguments:
            given = {"rate" if argument == "learning_rate" else argument: None}
            yield row(f"{name}-{argument}-none", lambda n=name, g=given: opt(n, **g), cls, argument, "None")


def shared():
    for name in CLASSES:
        decay = "lamb_weight_decay" if name == "Lamb" else "weight_decay"
        called = "regularization" if name == "Lars" else decay  # by its own name for it
        for what, kwargs, classes, *words in (
            ("rate-str", {"rate": "0.1"}, TypeError, "learning_rate", "'0.1'"),
            ("rate-shape", {"rate": TWO}, TypeError, "learning_rate", r"\(2,\)"),
            ("rate-bool", {"rate": True}, TypeError, "learning_rate", "True"),
            ("rate-class", {"rate": lr.NoamDecay}, TypeError, "learning_rate", "NoamDecay"),
            ("clip-number", {"grad_clip": 1.0}, TypeError, "grad_clip", "1.0", "ClipGradBy"),
            ("clip-class", {"grad_clip": paddle.nn.ClipGradByNorm}, TypeError, "grad_clip", "ClipGradByNorm"),
            ("clip-function", {"grad_clip": paddle.clip_by_norm(1.0)}, TypeError, "grad_clip", "ClipGradBy"),
            ("decay-str", {decay: "x"}, TypeError, called, "'x'", "number"),
            ("decay-shape", {decay: TWO}, TypeError, called, r"\(2,\)", "number"),
            ("name-int", {"name": 3}, TypeError, "name", "3", "str"),
            ("unknown", {"bogus": 1}, TypeError, "bogus"),
        ):
            yield row(f"{name}-{what}", lambda n=name, k=kwargs: opt(n, **k), classes, *words)
    for name, cls in RATE_REQUIRED.items():
        yield row(f"{name}-rate-missing", lambda c=cls: c(parameters=params()), TypeError)
    for name in ("SGD", "Momentum", "Adam", "Lamb", "ASGD", "Lars"):
        call = lambda n=name: opt(n, multi_precision="yes")  # noqa: E731
        yield row(f"{name}-multi_precision", call, TypeError, "multi_precision", "'yes'", "True or False")


HYPERPARAMETERS = [
    row("adam-beta1", lambda: opt("Adam", beta1=1.0), ValueError, "beta1", r"1\.0", r"\[0, 1\)"),
    row("adam-epsilon", lambda: opt("Adam", epsilon=-1.0), ValueError, "epsilon", r"-1\.0"),
    row("adamax-beta2", lambda: opt("Adamax", beta2=-0.1), ValueError, "beta2", r"-0\.1"),
    row("rmsprop-rho", lambda: opt("RMSProp", rho=-0.1), ValueError, "rho", r"-0\.1"),
    row("rmsprop-momentum", lambda: opt("RMSProp", momentum=-0.1), ValueError, "momentum", r"-0\.1"),
    row("asgd-zero", lambda: opt("ASGD", batch_num=0), ValueError, "batch_num", "0"),
    row("asgd-float", lambda: opt("ASGD", batch_num=1.5), TypeError, "batch_num", r"1\.5", "int"),
    row("momentum-nesterov", lambda: opt("Momentum", use_nesterov=1), TypeError, "use_nesterov", "1"),
    row("adam-amsgrad", lambda: opt("Adam", amsgrad="x"), TypeError, "amsgrad", "'x'"),
    row("lamb-exclude", lambda: opt("Lamb", exclude_from_weight_decay_fn="b"), TypeError, "exclude_from",
        "'b'"),
    row("lamb-decay-none", lambda: opt("Lamb", lamb_weight_decay=None), (ValueError, AssertionError),
        "decay", "None"),
    row("lamb-weight_decay", lambda: opt("Lamb", weight_decay=0.1), TypeError, "weight_decay"),
    row("lars-exclude-str", lambda: opt("Lars", exclude_from_weight_decay="b"), TypeError, "exclude", "'b'",
        "list"),
    row("lars-exclude-int", lambda: opt("Lars", exclude_from_weight_decay=3), TypeError, "exclude", "3",
        "list"),
    row("lars-exclude-ints", lambda: opt("Lars", exclude_from_weight_decay=[3]), TypeError, "exclude", "3",
        "list"),
    row("str", lambda: opt("Adam", beta1="x"), TypeError, "beta1", "'x'"),
]  # fmt: skip

W = Parameter(TWO, "w")


def group(**options):
    return lambda: opt("Adam", given=[{"params": params(), **options}])


PARAMETERS = [
    row("none", lambda: O.SGD(0.1), AttributeError, "parameters", "None", "list"),
    row("array", lambda: opt(given=TWO), TypeError, "parameters", "list"),
    row("parameter", lambda: opt(given=W), TypeError, "parameters", "Parameter", "list"),
    row("list-of-str", lambda: opt(given=["w"]), AttributeError, "parameters", "'w'", "array"),
    row("str", lambda: opt(given="w"), TypeError, "parameters", "'w'", "array"),
    row("number", lambda: opt(given=[0.1]), TypeError, "parameters", "0.1", "array"),
    row("set", lambda: opt(given={W}), TypeError, "parameters", "set", "ordered|list"),
    row("twice", lambda: opt(given=[W, W]), ValueError, "parameters", "w", "more than once"),
    row("one-name", lambda: opt(given=[W, Parameter(TWO, "w")]), ValueError, "parameters", "two different",
        "w"),
    row("int", lambda: opt(given=[Parameter(INTS, "n")]), TypeError, "n", "int32", "floating"),
    row("int-tree", lambda: opt(given={"a": {"n": INTS}}), TypeError, "a.n", "int32", "floating"),
    row("complex", lambda: opt(given={"z": jnp.array(1j)}), TypeError, "z", "complex64", "floating"),
    row("group-set", lambda: opt(given=[{"params": {W}}]), TypeError, "group 0", "set", "ordered"),
    row("second-group-set", lambda: opt(given=[{"params": params()}, {"params": {W}}]), TypeError,
        "group 1", "set"),
    row("no-params", lambda: opt(given=[{"params": [W]}, {"learning_rate": 1.0}]), AssertionError,
        "group 1", "params"),
    row("group-and-parameter", lambda: opt(given=[{"params": [W]}, W]), TypeError, "group 1", "params"),
    row("group-none", lambda: opt(given=[{"params": None}]), TypeError, "group 0", "None"),
    row("group-str", lambda: opt(given=[{"params": ["w"]}]), TypeError, "group 0", "str", "Parameter"),
    row("group-array", lambda: opt(given=[{"params": TWO}]), TypeError, "group 0", "expected Parameters"),
    row("two-groups", lambda: opt(given=[{"params": [W]}, {"params": W}]), ValueError, "w", "more than once"),
    row("group-rate", group(learning_rate="x"), TypeError, "group", "learning_rate", "'x'"),
    row("group-clip", group(grad_clip=1.0), TypeError, "group", "grad_clip", "1.0"),
    row("group-decay", group(weight_decay="x"), TypeError, "group", "weight_decay", "'x'"),
    row("group-unknown", group(lr=0.1), TypeError, "group", "'lr'", "learning_rate", "beta1"),
    row("group-frozen", group(frozen=True), TypeError, "group", "'frozen'", r"\A(?!.*frozen.*frozen)"),
    row("group-of-another", group(rho=0.1), TypeError, "group", "'rho'", "beta1"),
    row("group-range", group(beta1=1.5), ValueError, "group", "beta1", "1.5"),
    row("group-hyperparameter-none", group(beta1=None), AssertionError, "beta1", "None"),
]  # fmt: skip
CELL = [
    row("none", lambda: Parameter(None), TypeError, "Parameter", "NoneType", "array"),
    row("text", lambda: Parameter("x", "w"), TypeError, "Parameter w", "str", "array"),
    row("ragged", lambda: Parameter([[1.0], [1.0, 2.0]], "w"), TypeError, "Parameter w", "list", "array"),
    row("name", lambda: Parameter(TWO, 3), TypeError, "name", "3", "str"),
    row("trainable", lambda: Parameter(TWO, trainable=1), TypeError, "trainable", "1", "True or False"),
    row("need_clip", lambda: Parameter(TWO, need_clip="no"), TypeError, "need_clip", "'no'", "True or False"),
    row("rate", lambda: Parameter(TWO, learning_rate="x"), TypeError, "learning_rate", "'x'"),
    row("rate-none", lambda: Parameter(TWO, learning_rate=None), TypeError, "learning_rate", "None"),
    row("regularizer", lambda: Parameter(TWO, "w", regularizer="l2"), TypeError, "w's regularizer", "'l2'"),
    row(
        "attr-and-more",
        lambda: Parameter(TWO, learning_rate=0.5, attr=paddle.ParamAttr()),
        TypeError,
        "attr",
        "one or the other",
    ),
    row("attr", lambda: Parameter(TWO, attr="w"), TypeError, "attr", "'w'", "ParamAttr"),
    row(
        "attr-rate",
        lambda: Parameter(TWO, attr=paddle.ParamAttr(learning_rate="x")),
        TypeError,
        "learning_rate",
    ),
    row("attr-initializer", lambda: paddle.ParamAttr(initializer=1), TypeError, "initializer"),
    row("attr-unknown", lambda: paddle.ParamAttr(bogus=1), TypeError, "bogus"),
    row("tree-number", lambda: paddle.parameters({"a": {"w": 1.0}}), TypeError, "a.w", "1.0", "array"),
    row("tree-text", lambda: paddle.parameters(["x"]), TypeError, "at 0", "'x'", "array"),
]
CONSTRUCTION = {
    "none": nones(), "shared": shared(), "hyperparameters": HYPERPARAMETERS, "parameters": PARAMETERS,
    "cell": CELL,
}  # fmt: skip


@pytest.mark.parametrize(
    "call, classes, words", [r for n, rows in CONSTRUCTION.items() for r in ids(rows, n)]
)
def test_construction(call, classes, words):
    refuse(call, classes, words)
