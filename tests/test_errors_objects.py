"""Bad input to a Paddle-style object that has stepped: Paddle's exception class, and nothing half changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_errors_constructors import INTS, TWO, O, Parameter, W, fluid, lr, opt, params
from test_errors_functional import lenient, refuse, row  # noqa: F401

import paddlejax as paddle


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
    row("grad-complex", lambda o: setattr(w_of(o), "grad", 1j * TWO), TypeError, "w", "complex64",
        "floating"),
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
    row("minimize-callable-vector", lambda o: o.minimize(lambda ps: ps[0]), AssertionError, "loss",
        r"\(2,\)", "scalar"),
    row("minimize-callable-int", lambda o: o.minimize(lambda ps: jnp.array(1)), AssertionError, "loss",
        "int32"),
    row("minimize-callable-none", lambda o: o.minimize(lambda ps: None), AssertionError, "loss", "None"),
    row("program", lambda o: o.minimize(good(*o.parameters), "program"), TypeError, "startup_program",
        "str", "None"),
    row("backward-program", lambda o: o.backward(good(*o.parameters), 1), TypeError, "startup_program",
        "int", "None"),
    row("optimize-program", lambda o: o.apply_optimize(None, 1, []), TypeError, "startup_program", "int",
        "None"),
    row("callbacks", lambda o: o.backward(good(*o.parameters), callbacks=[3]), TypeError, "callbacks",
        "None"),
    row("parameters-name", lambda o: o.minimize(good(*o.parameters), None, ["v"]), ValueError, "'v'", "w, b"),
    row("parameters-str", lambda o: o.minimize(good(*o.parameters), None, "v"), ValueError, "'v'", "w, b"),
    row("parameters-foreign", lambda o: o.minimize(good(*o.parameters), None, [W]), ValueError, "'w'",
        "w, b"),
    row("parameters-type", lambda o: o.minimize(good(*o.parameters), None, 3), TypeError, "parameter", "3"),
    row("no_grad_set-name", lambda o: o.minimize(good(*o.parameters), None, None, {"v"}), ValueError,
        "no_grad_set", "v"),
    row("no_grad_set-type", lambda o: o.minimize(good(*o.parameters), None, None, 3), TypeError,
        "no_grad_set", "3"),
    row("foreign", lambda o: o.apply_gradients([(W, TWO)]), ValueError, "params_grads", "w", "not one of"),
    row("twice", lambda o: o.apply_gradients([(w_of(o), TWO)] * 2), ValueError, "params_grads", "w", "twice"),
    row("swapped", lambda o: o.apply_gradients([(TWO, w_of(o))]), TypeError, "params_grads",
        r"\(Parameter, gradient\)"),
    row("bare", lambda o: o.apply_gradients([w_of(o)]), TypeError, "params_grads",
        r"\(Parameter, gradient\)"),
    row("triple", lambda o: o.apply_gradients([(w_of(o), TWO, 1)]), TypeError, "params_grads",
        r"\(Parameter"),
    row("names", lambda o: o.apply_gradients([("w", TWO)]), TypeError, "params_grads", "'w'"),
    row("no-pairs", lambda o: o.apply_gradients(None), TypeError, "params_grads", "None"),
    row("pair-shape", lambda o: o.apply_gradients([(w_of(o), jnp.ones(3))]), ValueError, "w", r"\(3,\)",
        r"\(2,\)"),
    row("pair-int", lambda o: o.apply_gradients([(w_of(o), INTS)]), TypeError, "w", "int32"),
    row("pair-after-good", lambda o: o.apply_gradients([(w_of(o), TWO), (W, TWO)]), ValueError, "not one of"),
    row("scheduler-float", lambda o: o.set_lr_scheduler(0.1), TypeError, "set_lr_scheduler", "float",
        "LRScheduler"),
    row("scheduler-class", lambda o: o.set_lr_scheduler(lr.NoamDecay), TypeError, "set_lr_scheduler",
        "LRScheduler"),
    row("vector", lambda o: o.minimize(vector(*o.parameters)), AssertionError, "vector", r"\(2,\)", "scalar"),
    row("vector-backward", lambda o: vector(*o.parameters).backward(), AssertionError, "vector", r"\(2,\)",
        "scalar"),
    row("vector-value", lambda o: float(vector(*o.parameters)), AssertionError, "vector", r"\(2,\)",
        "scalar"),
    row("int", lambda o: o.minimize(whole_number(*o.parameters)), AssertionError, "whole_number", "int32",
        "floating"),
    row("plain", lambda o: o.minimize(plain(*o.parameters)), AssertionError, "plain", "3", "scalar"),
    row("no-aux", lambda o: o.minimize(no_aux(*o.parameters)), TypeError, "no_aux", r"\(loss, aux\)",
        "has_aux"),
    row("three", lambda o: three(*o.parameters).backward(), TypeError, "three", r"\(loss, aux\)"),
    row("its-own", lambda o: o.minimize(raising(*o.parameters)), LookupError, "of its own"),
    row("unhashable", lambda o: o.minimize(good(w_of(o), {1, 2})), TypeError, "good", r"\{1, 2\}",
        "hashable"),
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
    """The call is refused, and neither what the optimizer holds nor its next step is any different."""
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


def test_a_step_that_fails():
    """A function of the user's that raises while the step is traced."""

    def exclude(p):
        raise LookupError(p.name)

    schedule = paddle.fluid.dygraph.PolynomialDecay(0.1, 10)
    o = fluid.Lamb(schedule, parameter_list=params(), exclude_from_weight_decay_fn=exclude)
    for p in o.parameters:
        p.grad = jnp.ones(p.shape)
    before = jax.tree.map(repr_, (o.state_dict(), [p.numpy() for p in o.parameters]))
    with pytest.raises(LookupError):
        o.step()
    assert jax.tree.map(repr_, (o.state_dict(), [p.numpy() for p in o.parameters])) == before
    assert schedule.step_num == 0 and all(p.grad is not None for p in o.parameters)


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
