"""`loss`: lazy, computed once for all that ask, and refused where it is none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import INTS, TWO, params, refuse, row, rows
from refused_calls import O, bits, calls, empty, fluid, good, no_aux, raising, unharmed
from regression import X, Y, mse, tree, values

import paddlejax as paddle
from paddlejax import Parameter


def test_a_plain_function_is_a_loss_too():
    params, other = paddle.parameters(tree()), paddle.parameters(tree())
    a, b = paddle.optimizer.Adam(0.1, parameters=params), paddle.optimizer.Adam(0.1, parameters=other)
    a.minimize(lambda p: mse.function(p, X, Y))
    b.minimize(mse(other, X, Y))
    chex.assert_trees_all_close(values(params), values(other), rtol=1e-5)


def test_a_tied_parameter_gets_both_gradients():
    w = paddle.Parameter(jnp.array([3.0]), "w")

    @paddle.loss
    def product(a, b):
        return jnp.sum(a * b)

    product(w, w).backward()
    np.testing.assert_allclose(w.grad, [6.0])


def test_losses_are_lazy_and_remember_their_value():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, params)
    loss = mse(params, X, Y)
    assert "not computed" in repr(loss)
    opt.minimize(loss)
    want = mse.function(tree(), X, Y)
    np.testing.assert_allclose([float(loss), loss.item(), loss.numpy()], want, rtol=1e-6)
    assert mse(params, X, Y).item() < loss.item()

    @paddle.loss(has_aux=True)
    def with_aux(params, x, scale, mode):
        assert mode == "double"
        out = x @ params["w"] * scale
        return jnp.mean(out), {"out": out}

    loss = with_aux(params, X, 2.0, mode="double")
    assert loss.aux["out"].shape == (32, 2)
    loss.backward()
    assert params["w"].grad is not None and with_aux(params, X, 3.0, mode="double").call == loss.call


def test_a_parameter_that_a_loss_was_not_given_is_refused():
    w, b = paddle.Parameter(jnp.ones(3), "w"), paddle.Parameter(jnp.ones(3), "b")
    for body in (lambda w: w * b, lambda w: w + b[0], lambda w: w * b.value, lambda w: w * jnp.asarray(b)):
        loss = paddle.loss(lambda w, body=body: jnp.sum(body(w)))
        with pytest.raises(RuntimeError, match="found Parameter b inside the loss function"):
            loss(w).backward()
    np.testing.assert_array_equal(b * 2, np.full(3, 2.0))  # outside it is what it was
    with pytest.raises(TypeError, match=r"found an assignment such as \+="):
        w += 1


def test_the_loss_function_itself_is_not_a_loss():
    params = paddle.parameters(tree())
    with pytest.raises(AssertionError, match=r"found the function mse itself, expected mse\(...\)"):
        paddle.optimizer.SGD(0.1, params).minimize(mse)


def test_gradients_add_up_until_cleared():
    params = paddle.parameters(tree())
    mse(params, X, Y).backward()
    once = np.asarray(params["w"].grad)
    mse(params, X, Y).backward()
    np.testing.assert_allclose(params["w"].grad, 2 * once, rtol=1e-6)
    opt = paddle.optimizer.SGD(1.0, params)
    opt.minimize(mse(params, X, Y))  # joins the two that are there
    np.testing.assert_allclose(params["w"].numpy(), 1 - 3 * once, rtol=1e-5)
    opt.clear_grad(False)
    assert params["w"].grad is None
    assert opt.backward(mse(params, X, Y))[0][0] is params["b"]


# ------------------------------------------------------------------------------------------ errors


@paddle.loss
def whole_number(w, b):
    return jnp.array(3)


@paddle.loss
def plain(w, b):
    return 3


@paddle.loss(has_aux=True)
def three(w, b):
    return jnp.sum(w), b, b


def moved_loss(o):
    w, b = o.parameters
    y = good(w, b)
    o.minimize(good(w, b))
    y.backward()


def w_of(o):
    return o.parameters[0]


CALLS = [
    row("minimize-number", lambda o: o.minimize(1.0), AssertionError, "loss", "float", "expected"),
    row("minimize-none", lambda o: o.minimize(None), AssertionError, "loss", "NoneType", "expected"),
    row("minimize-array", lambda o: o.minimize(jnp.array(1.0)), AssertionError, "loss", "expected"),
    row("minimize-decorated", lambda o: o.minimize(good), (AssertionError,), "loss", "good"),
    row("minimize-callable-empty", lambda o: o.minimize(lambda ps: ps[0][:0]), AssertionError, "loss",
        r"\(0,\)", "scalar"),
    row("minimize-callable-int", lambda o: o.minimize(lambda ps: jnp.array(1)), AssertionError, "loss",
        "int32"),
    row("minimize-callable-none", lambda o: o.minimize(lambda ps: None), AssertionError, "loss", "None"),
    row("empty", lambda o: o.minimize(empty(*o.parameters)), AssertionError, "empty", r"\(0,\)", "scalar"),
    row("empty-backward", lambda o: empty(*o.parameters).backward(), AssertionError, "empty", r"\(0,\)",
        "scalar"),
    row("empty-value", lambda o: float(empty(*o.parameters)), AssertionError, "empty", r"\(0,\)",
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


@calls(**{"adam": CALLS, "fluid-scheduled": CALLS})
def test_refused_by_an_optimizer(name, call, classes, words):
    unharmed(name, call, classes, words)


@pytest.mark.parametrize("function", [empty, raising, no_aux], ids=lambda f: f.__name__)
@pytest.mark.parametrize("clear", [True, False], ids=["zeros", "none"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stepped"])
def test_a_loss_that_fails_inside_the_one_program(function, clear, fresh):
    """Forward, backward and step are one program here: state and schedule must not run ahead of it."""
    schedule = paddle.fluid.dygraph.PolynomialDecay(0.1, 10)
    o = fluid.Adam(schedule, parameter_list=params())
    if not fresh:
        o.minimize(good(*o.parameters))
    o.clear_grad(clear)
    before = jax.tree.map(bits, (o.state_dict(), schedule.step_num, o.get_lr(), o.current_step_lr()))
    with pytest.raises((AssertionError, LookupError, TypeError)):
        o.minimize(function(*o.parameters))
    after = jax.tree.map(bits, (o.state_dict(), schedule.step_num, o.get_lr(), o.current_step_lr()))
    assert before == after


def test_a_step_that_fails():
    """A function of the user's that raises while the step is traced."""

    def exclude(p):
        raise LookupError(p.name)

    schedule = paddle.fluid.dygraph.PolynomialDecay(0.1, 10)
    o = fluid.Lamb(schedule, parameter_list=params(), exclude_from_weight_decay_fn=exclude)
    for p in o.parameters:
        p.grad = jnp.ones(p.shape)
    before = jax.tree.map(bits, (o.state_dict(), [p.numpy() for p in o.parameters]))
    with pytest.raises(LookupError):
        o.step()
    assert jax.tree.map(bits, (o.state_dict(), [p.numpy() for p in o.parameters])) == before
    assert schedule.step_num == 0 and all(p.grad is not None for p in o.parameters)


LOSSES = [
    row(
        "moved",
        lambda: moved_loss(O.SGD(0.1, params())),
        RuntimeError,
        "good",
        "before a step moved",
        "again",
    ),
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


@rows(LOSSES)
def test_refused(call, classes, words):
    refuse(call, classes, words)
