"""The constructors of the Paddle-style objects: Paddle's exception class, the argument named."""

import jax.numpy as jnp
from refusals import INTS, TWO, params, refuse, row, rows

import paddlejax as paddle

O, lr = paddle.optimizer, paddle.optimizer.lr  # noqa: E741
Lars = paddle.incubate.optimizer.LarsMomentumOptimizer
Parameter = paddle.Parameter

CLASSES = {
    "SGD": O.SGD, "Momentum": O.Momentum, "Adagrad": O.Adagrad, "Adadelta": O.Adadelta, "Adam": O.Adam,
    "Adamax": O.Adamax, "RMSProp": O.RMSProp, "Lamb": O.Lamb, "ASGD": O.ASGD, "AdamW": O.AdamW,
    "NAdam": O.NAdam, "RAdam": O.RAdam, "Rprop": O.Rprop, "Muon": O.Muon,
    
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
    "AdamW": (AssertionError, ["learning_rate"]),
    "NAdam": (TypeError, ["learning_rate"]),
    "Muon": (TypeError, ["learning_rate", "weight_decay"]),
    "RAdam": (TypeError, ["learning_rate"]),
}


def nones():
    for name, (cls, arguments) in NONE.items():
        for argument in arguments:
            given = {"rate" if argument == "learning_rate" else argument: None}
            yield row(f"{name}-{argument}-none", lambda n=name, g=given: opt(n, **g), cls, argument, "None")


SHARED = {
    "rate-str": ({"rate": "0.1"}, "learning_rate", "'0.1'"),
    "rate-shape": ({"rate": TWO}, "learning_rate", r"\(2,\)"),
    "rate-bool": ({"rate": True}, "learning_rate", "True"),
    "rate-class": ({"rate": lr.NoamDecay}, "learning_rate", "NoamDecay"),
    "clip-number": ({"grad_clip": 1.0}, "grad_clip", "1.0", "ClipGradBy"),
    "clip-class": ({"grad_clip": paddle.nn.ClipGradByNorm}, "grad_clip", "ClipGradByNorm"),
    "clip-function": ({"grad_clip": paddle.clip_by_norm(1.0)}, "grad_clip", "ClipGradBy"),
    "decay-str": ({"weight_decay": "x"}, "weight_decay", "'x'", "number"),
    "decay-shape": ({"weight_decay": TWO}, "weight_decay", r"\(2,\)", "number"),
    "name-int": ({"name": 3}, "name", "3", "str"),
    "unknown": ({"bogus": 1}, "bogus"),
    "multi_precision": ({"multi_precision": "yes"}, "multi_precision", "'yes'", "True or False"),
}


def shared():
    """Each wrong value of one class, then one for each class: what all share is checked in one place."""
    for what, (kwargs, *words) in SHARED.items():
        yield row(f"SGD-{what}", lambda k=kwargs: opt(**k), TypeError, *words)
    for name in CLASSES:
        decay = "lamb_weight_decay" if name == "Lamb" else "weight_decay"
        called = "regularization" if name == "Lars" else decay  # by its own name for it
        for kwargs, *words in (({decay: "x"}, called, "'x'"), ({"grad_clip": 1.0}, "grad_clip", "1.0")):
            if name == "Rprop" and decay in kwargs:
                continue  # it has none
            yield row(f"{name}-{words[0]}", lambda n=name, k=kwargs: opt(n, **k), TypeError, *words)
    for name, cls in RATE_REQUIRED.items():
        yield row(f"{name}-rate-missing", lambda c=cls: c(parameters=params()), TypeError)
    for name in CLASSES:
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
    *(row(f"{name}-negative", lambda n=name: opt(n, -0.1), ValueError, "learning_rate", "-0.1")
      for name in ("NAdam", "RAdam")),
    row("adamw-decay-none", lambda: opt("AdamW", weight_decay=None), TypeError, "weight_decay", "None",
        "int or float"),
    row("adamw-coeff", lambda: opt("AdamW", coeff=0.1), TypeError, "coeff"),
]  # fmt: skip

W = Parameter(TWO, "w")


def group(cls="Adam", **options):
    return lambda: opt(cls, given=[{"params": params(), **options}])


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
    row("group-str", lambda: opt(given=[{"params": ["w"]}]), TypeError, "group 0", "'w'", "Parameter"),
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
    row("adamw-group-none", group("AdamW", weight_decay=None), TypeError, "group", "weight_decay", "None"),
    row("adamw-group-regularizer", group("AdamW", weight_decay=paddle.regularizer.L2Decay(0.1)), TypeError,
        "group", "weight_decay", "L2Decay"),
    row("adamw-group-unknown", group("AdamW", rho=0.1), TypeError, "group", "'rho'", "beta1"),
]  # fmt: skip


@rows(none=nones(), shared=shared(), hyperparameters=HYPERPARAMETERS, parameters=PARAMETERS)
def test_refused(call, classes, words):
    refuse(call, classes, words)


def test_an_int_may_be_the_decay_of_a_group():
    group("AdamW", weight_decay=1)()
