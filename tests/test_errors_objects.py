"""Bad input to the Paddle-style objects: Paddle's exception class, everything named, and nothing half changed."""

import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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
        for what, kwargs, classes, *words in (
            ("rate-str", {"rate": "0.1"}, TypeError, "learning_rate", "'0.1'"),
            ("rate-shape", {"rate": TWO}, TypeError, "learning_rate", r"\(2,\)"),
            ("rate-bool", {"rate": True}, TypeError, "learning_rate", "True"),
            ("rate-class", {"rate": lr.NoamDecay}, TypeError, "learning_rate", "NoamDecay"),
            ("clip-number", {"grad_clip": 1.0}, TypeError, "grad_clip", "1.0", "ClipGradBy"),
            ("clip-class", {"grad_clip": paddle.nn.ClipGradByNorm}, TypeError, "grad_clip", "ClipGradByNorm"),
            ("clip-function", {"grad_clip": paddle.clip_by_norm(1.0)}, TypeError, "grad_clip", "ClipGradBy"),
            ("decay-str", {decay: "x"}, TypeError, "weight_decay", "'x'", "number"),
            ("decay-shape", {decay: TWO}, TypeError, "weight_decay", r"\(2,\)", "number"),
            ("name-int", {"name": 3}, TypeError, "name", "3", "str"),
            ("unknown", {"bogus": 1}, TypeError, "bogus"),
        ):
            yield row(f"{name}-{what}", lambda n=name, k=kwargs: opt(n, **k), classes, *words)
    for name, cls in RATE_REQUIRED.items():
        yield row(f"{name}-rate-missing", lambda c=cls: c(parameters=params()), TypeError)
    for name in ("SGD", "Momentum", "Adam", "Lamb", "ASGD", "Lars"):
        call = lambda n=name: opt(n, multi_precision="yes")  # noqa: E731
        yield row(f"{name}-multi_precision", call, TypeError, "multi_precision", "'yes'", "True or False")
        bf16 = Parameter(jnp.zeros(2, jnp.bfloat16), "h")
        masters = lambda n=name, p=bf16: opt(n, given=[p], multi_precision=True)  # noqa: E731
        yield row(f"{name}-masters", masters, NotImplementedError, "multi_precision", "h", "bfloat16")


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
    row("lamb-exclude", lambda: opt("Lamb", exclude_from_weight_decay_fn="b"), TypeError, "exclude_from", "'b'"),
    row("lamb-decay-none", lambda: opt("Lamb", lamb_weight_decay=None), (ValueError, AssertionError), "decay", "None"),
    row("lamb-weight_decay", lambda: opt("Lamb", weight_decay=0.1), TypeError, "weight_decay"),
    row("lars-exclude-str", lambda: opt("Lars", exclude_from_weight_decay="b"), TypeError, "exclude", "'b'", "list"),
    row("lars-exclude-int", lambda: opt("Lars", exclude_from_weight_decay=3), TypeError, "exclude", "3", "list"),
    row("lars-exclude-ints", lambda: opt("Lars", exclude_from_weight_decay=[3]), TypeError, "exclude", "3", "list"),
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
    row("one-name", lambda: opt(given=[W, Parameter(TWO, "w")]), ValueError, "parameters", "two different", "w"),
    row("int", lambda: opt(given=[Parameter(INTS, "n")]), TypeError, "n", "int32", "floating"),
    row("int-tree", lambda: opt(given={"a": {"n": INTS}}), TypeError, "a.n", "int32", "floating"),
    row("complex", lambda: opt(given={"z": jnp.array(1j)}), TypeError, "z", "complex64", "floating"),
    row("group-set", lambda: opt(given=[{"params": {W}}]), TypeError, "group 0", "set", "ordered"),
    row("second-group-set", lambda: opt(given=[{"params": params()}, {"params": {W}}]), TypeError, "group 1", "set"),
    row("no-params", lambda: opt(given=[{"params": [W]}, {"learning_rate": 1.0}]), AssertionError, "group 1", "params"),
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
    "none": nones(), "shared": shared(), "hyperparameters": HYPERPARAMETERS, "parameters": PARAMETERS, "cell": CELL,
}  # fmt: skip


@pytest.mark.parametrize(
    "call, classes, words", [r for n, rows in CONSTRUCTION.items() for r in ids(rows, n)]
)
def test_construction(call, classes, words):
    refuse(call, classes, words)


# --------------------------------------------------------------- calls on an optimizer that has stepped


@paddle.loss
def good(w, b):
    return jnp.sum(w * w) + b * b


@paddle.loss
def vector(w, b):
    return w * b


@paddle.loss
def whole_number(w, b):
    return jnp.array(3)


@paddle.loss
def plain(w, b):
    return 3


@paddle.loss
def raising(w, b):
    raise LookupError("of its own")


@paddle.loss(has_aux=True)
def no_aux(w, b):
    return jnp.sum(w)


@paddle.loss(has_aux=True)
def three(w, b):
    return jnp.sum(w), b, b


def moved_loss(o):
    w, b = o.parameters
    y = good(w, b)
    o.minimize(good(w, b))
    y.backward()


class World:
    """An optimizer that has taken two steps, what it holds, and what its next step does."""

    def __init__(self, make, schedule=None):
        self.schedule = schedule and schedule()
        self.opt = make(self.schedule or 0.1, params())
        self.step()
        self.step()

    def step(self):
        for p in self.opt.parameters:
            p.grad = jnp.full(p.shape, 0.25)
        self.opt.step()
        for p in self.opt.parameters:
            p.grad = jnp.full(p.shape, 0.5)

    def everything(self):
        cells = {
            p.name: (p.numpy(), None if p.grad is None else np.array(p.grad)) for p in self.opt.parameters
        }
        return jax.tree.map(repr_, (cells, self.opt.state_dict(), self.opt.get_lr()))


def repr_(x):
    return (np.asarray(x).dtype.name, np.asarray(x).shape, np.asarray(x).tobytes())


ADAM = (lambda rate, ps: O.Adam(rate, parameters=ps, name="opt"),)
STEPPED = (lambda rate, ps: O.Momentum(rate, parameters=ps), lambda: lr.StepDecay(0.1, 3))
FLUID = (
    lambda rate, ps: fluid.Adam(rate, parameter_list=ps),
    lambda: paddle.fluid.dygraph.PolynomialDecay(0.1, 10),
)


def w_of(o):
    return o.parameters[0]


CALLS = [
    row("grad-shape", lambda o: setattr(w_of(o), "grad", jnp.ones(3)), ValueError, "w", r"\(3,\)", r"\(2,\)"),
    row("grad-int", lambda o: setattr(w_of(o), "grad", INTS), TypeError, "w", "int32", "floating"),
    row("grad-complex", lambda o: setattr(w_of(o), "grad", 1j * TWO), TypeError, "w", "complex64", "floating"),
    row("grad-list", lambda o: setattr(w_of(o), "grad", [1.0, 2.0]), TypeError, "w", "list", "array"),
    row("grad-number", lambda o: setattr(w_of(o), "grad", 1.0), TypeError, "w", "float", "array"),
    row("value-shape", lambda o: w_of(o).set_value(jnp.ones(3)), ValueError, "w", r"\(3,\)", r"\(2,\)"),
    row("value-none", lambda o: w_of(o).set_value(None), TypeError, "w", "NoneType", "array"),
    row("value-text", lambda o: setattr(w_of(o), "value", "x"), TypeError, "w", "str", "array"),
    row("value-complex", lambda o: w_of(o).set_value(1j * TWO), TypeError, "w", "complex64", "float32"),
    row("rate-fixed", lambda o: setattr(w_of(o), "learning_rate", 2.0), AttributeError, "learning_rate"),
    row("minimize-number", lambda o: o.minimize(1.0), AssertionError, "loss", "float", "expected"),
    row("minimize-none", lambda o: o.minimize(None), AssertionError, "loss", "NoneType", "expected"),
    row("minimize-array", lambda o: o.minimize(jnp.array(1.0)), AssertionError, "loss", "expected"),
    row("minimize-decorated", lambda o: o.minimize(good), (AssertionError,), "loss", "good"),
    row("minimize-callable-vector", lambda o: o.minimize(lambda ps: ps[0]), AssertionError, "loss", r"\(2,\)", "scalar"),
    row("minimize-callable-int", lambda o: o.minimize(lambda ps: jnp.array(1)), AssertionError, "loss", "int32"),
    row("minimize-callable-none", lambda o: o.minimize(lambda ps: None), AssertionError, "loss", "None"),
    row("program", lambda o: o.minimize(good(*o.parameters), "program"), TypeError, "startup_program", "str", "None"),
    row("backward-program", lambda o: o.backward(good(*o.parameters), 1), TypeError, "startup_program", "int", "None"),
    row("optimize-program", lambda o: o.apply_optimize(None, 1, []), TypeError, "startup_program", "int", "None"),
    row("callbacks", lambda o: o.backward(good(*o.parameters), callbacks=[3]), TypeError, "callbacks", "None"),
    row("parameters-name", lambda o: o.minimize(good(*o.parameters), None, ["v"]), ValueError, "'v'", "w, b"),
    row("parameters-str", lambda o: o.minimize(good(*o.parameters), None, "v"), ValueError, "'v'", "w, b"),
    row("parameters-foreign", lambda o: o.minimize(good(*o.parameters), None, [W]), ValueError, "'w'", "w, b"),
    row("parameters-type", lambda o: o.minimize(good(*o.parameters), None, 3), TypeError, "parameter", "3"),
    row("no_grad_set-name", lambda o: o.minimize(good(*o.parameters), None, None, {"v"}), ValueError, "no_grad_set", "v"),
    row("no_grad_set-type", lambda o: o.minimize(good(*o.parameters), None, None, 3), TypeError, "no_grad_set", "3"),
    row("foreign", lambda o: o.apply_gradients([(W, TWO)]), ValueError, "params_grads", "w", "not one of"),
    row("twice", lambda o: o.apply_gradients([(w_of(o), TWO)] * 2), ValueError, "params_grads", "w", "twice"),
    row("swapped", lambda o: o.apply_gradients([(TWO, w_of(o))]), TypeError, "params_grads", r"\(Parameter, gradient\)"),
    row("bare", lambda o: o.apply_gradients([w_of(o)]), TypeError, "params_grads", r"\(Parameter, gradient\)"),
    row("triple", lambda o: o.apply_gradients([(w_of(o), TWO, 1)]), TypeError, "params_grads", r"\(Parameter"),
    row("names", lambda o: o.apply_gradients([("w", TWO)]), TypeError, "params_grads", "'w'"),
    row("no-pairs", lambda o: o.apply_gradients(None), TypeError, "params_grads", "None"),
    row("pair-shape", lambda o: o.apply_gradients([(w_of(o), jnp.ones(3))]), ValueError, "w", r"\(3,\)", r"\(2,\)"),
    row("pair-int", lambda o: o.apply_gradients([(w_of(o), INTS)]), TypeError, "w", "int32"),
    row("pair-after-good", lambda o: o.apply_gradients([(w_of(o), TWO), (W, TWO)]), ValueError, "not one of"),
    row("scheduler-float", lambda o: o.set_lr_scheduler(0.1), TypeError, "set_lr_scheduler", "float", "LRScheduler"),
    row("scheduler-class", lambda o: o.set_lr_scheduler(lr.NoamDecay), TypeError, "set_lr_scheduler", "LRScheduler"),
    row("vector", lambda o: o.minimize(vector(*o.parameters)), AssertionError, "vector", r"\(2,\)", "scalar"),
    row("vector-backward", lambda o: vector(*o.parameters).backward(), AssertionError, "vector", r"\(2,\)", "scalar"),
    row("vector-value", lambda o: float(vector(*o.parameters)), AssertionError, "vector", r"\(2,\)", "scalar"),
    row("int", lambda o: o.minimize(whole_number(*o.parameters)), AssertionError, "whole_number", "int32", "floating"),
    row("plain", lambda o: o.minimize(plain(*o.parameters)), AssertionError, "plain", "3", "scalar"),
    row("no-aux", lambda o: o.minimize(no_aux(*o.parameters)), TypeError, "no_aux", r"\(loss, aux\)", "has_aux"),
    row("three", lambda o: three(*o.parameters).backward(), TypeError, "three", r"\(loss, aux\)"),
    row("its-own", lambda o: o.minimize(raising(*o.parameters)), LookupError, "of its own"),
    row("unhashable", lambda o: o.minimize(good(w_of(o), {1, 2})), TypeError, "good", r"\{1, 2\}", "hashable"),
    row("arguments", lambda o: o.minimize(good(w_of(o))), TypeError, "'b'"),
]  # fmt: skip
RATE = [
    row("str", lambda o: o.set_lr("0.1"), TypeError, "set_lr", "'0.1'"),
    row("none", lambda o: o.set_lr(None), TypeError, "set_lr", "None"),
    row("shape", lambda o: o.set_lr(TWO), TypeError, "set_lr", r"\(2,\)"),
    row("complex", lambda o: o.set_lr(1j), TypeError, "set_lr", "1j"),
    row("scheduler", lambda o: o.set_lr(lr.StepDecay(0.1, 3)), TypeError, "set_lr", "StepDecay"),
]
SCHEDULED = [
    row(
        "set_lr",
        lambda o: o.set_lr(0.1),
        RuntimeError,
        "set_lr",
        "StepDecay|PolynomialDecay",
        "set_lr_scheduler",
    ),
    row("set_lr-str", lambda o: o.set_lr("x"), RuntimeError, "set_lr"),
]
WORLDS = {
    "adam": (ADAM, [*CALLS, *RATE]),
    "momentum-scheduled": (STEPPED, [*CALLS, *SCHEDULED]),
    "fluid-scheduled": (FLUID, [*CALLS, *SCHEDULED]),
}


PAIRS = {}  # per world two optimizers in the same state, so that each is compiled once and not once per row


def unharmed(name, call, classes, words):
    """The call is refused, and neither what the optimizer holds nor what its next step does is any different."""
    here, twin = PAIRS.pop(name, None) or [World(*WORLDS[name][0]) for _ in range(2)]
    assert here.everything() == twin.everything()
    refuse(lambda: call(here.opt), classes, words)
    assert here.everything() == twin.everything()
    here.step()
    twin.step()
    assert here.everything() == twin.everything()
    PAIRS[name] = here, twin


@pytest.mark.parametrize(
    "name, call, classes, words",
    [pytest.param(name, *r.values, id=f"{name}-{r.id}") for name, (_, rows) in WORLDS.items() for r in rows],
)
def test_calls(name, call, classes, words):
    unharmed(name, call, classes, words)


@pytest.mark.parametrize("function", [vector, raising, no_aux], ids=lambda f: f.__name__)
@pytest.mark.parametrize("clear", [True, False], ids=["zeros", "none"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stepped"])
def test_a_loss_that_fails_inside_the_one_program(function, clear, fresh):
    """Forward, backward and step are one program here: state and schedule must not run ahead of it."""
    schedule = paddle.fluid.dygraph.PolynomialDecay(0.1, 10)
    o = fluid.Adam(schedule, parameter_list=params())
    if not fresh:
        o.minimize(good(*o.parameters))
    o.clear_grad(clear)
    before = jax.tree.map(repr_, (o.state_dict(), schedule.step_num, o.get_lr(), o.current_step_lr()))
    with pytest.raises((AssertionError, LookupError, TypeError)):
        o.minimize(function(*o.parameters))
    after = jax.tree.map(repr_, (o.state_dict(), schedule.step_num, o.get_lr(), o.current_step_lr()))
    assert before == after


LOSSES = [
    row("moved", lambda: moved_loss(opt()), RuntimeError, "good", "before a step moved", "again"),
    row(
        "twice",
        lambda: [y := good(*params()), y.backward(), y.backward()],
        RuntimeError,
        "backward",
        "already",
    ),
    row(
        "int-parameter",
        lambda: good(Parameter(INTS, "n"), Parameter(TWO)).backward(),
        TypeError,
        "n",
        "int32",
    ),
    row("decorate-number", lambda: paddle.loss(3), TypeError, "loss", "3", "function"),
    row("base-class", lambda: stepped_base(), NotImplementedError, "no step"),
]


def stepped_base():
    o = O.Optimizer(0.1, params())
    o.parameters[0].grad = TWO
    o.step()


@pytest.mark.parametrize("call, classes, words", LOSSES)
def test_losses(call, classes, words):
    refuse(call, classes, words)
