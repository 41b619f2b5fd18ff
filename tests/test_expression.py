"""A Loss is a number: arithmetic, comparison, and one backward pass through the whole expression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regression import X, Y, mse, tree

import paddlejax as paddle


def pair():
    return paddle.parameters({"w": jnp.array([2.0, -1.0]), "b": jnp.array([3.0])})


@paddle.loss
def square(p):
    return jnp.sum(p["w"] ** 2)


@paddle.loss
def both(p, x):
    return jnp.sum(p["w"]) * jnp.sum(p["b"]) * x


def of(formula):
    """Value and gradients of a formula of the two, by JAX."""

    def value(v):
        return formula(jnp.sum(v["w"] ** 2), jnp.sum(v["w"]) * jnp.sum(v["b"]) * 2.0)

    return jax.value_and_grad(value)(paddle.values(pair()))


FORMULAS = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
    "1 + a": lambda a, b: 1 + a + 0 * b,
    "1 - a": lambda a, b: 1 - a + 0 * b,
    "2 * a / 3": lambda a, b: 2 * a / 3 + 0 * b,
    "2 / a": lambda a, b: 2 / a + 0 * b,
    "-a": lambda a, b: -a + 0 * b,
    "+a": lambda a, b: +a + 0 * b,
    "a ** 2": lambda a, b: a**2 + 0 * b,
    "a + a": lambda a, b: a + a + b,
    "sum": lambda a, b: sum([a, b, a]),
    "numpy": lambda a, b: np.float32(0.5) * a + b / np.float64(3),
    "arrays": lambda a, b: jnp.float32(0.5) * a + b * jnp.ones(1)[0],
    "(a + b) * (a - b)": lambda a, b: (a + b) * (a - b),
    "a / (1 + b)": lambda a, b: a / (1 + b),
}


@pytest.mark.parametrize("read", ["never", "before", "parts before"])
@pytest.mark.parametrize("name", FORMULAS)
def test_backward_goes_through_the_expression(name, read):
    want, grads = of(FORMULAS[name])
    for _ in range(3):  # what is read before is computed in another way from the second time on
        p = pair()
        parts = square(p), both(p, 2.0)
        y = FORMULAS[name](*parts)
        if read == "before":
            np.testing.assert_allclose(float(y), want, rtol=1e-6)
        if read == "parts before":
            _ = float(parts[0])
        y.backward()
        np.testing.assert_allclose(float(y), want, rtol=1e-6)
        for key, g in grads.items():
            np.testing.assert_allclose(p[key].grad, g, rtol=1e-5, atol=1e-6)
        assert float(parts[0]) == 5.0 and float(parts[1]) == 6.0
        with pytest.raises(RuntimeError, match=r"backward\(\) ran already"):
            y.backward()
        with pytest.raises(RuntimeError, match=r"backward\(\) ran already"):
            parts[0].backward()


def test_minimize_takes_an_expression_in_one_program():
    p, q = pair(), pair()
    opt, ref = (paddle.optimizer.Adam(0.1, parameters=x) for x in (p, q))
    whole = paddle.loss(lambda p: 0.5 * (jnp.sum(p["w"] ** 2) + jnp.sum(p["w"]) * jnp.sum(p["b"]) * 2.0))
    for factor in (0.5, 0.5, 0.5):
        opt.minimize((square(p) + both(p, 2.0)) * factor)
        ref.minimize(whole(q))
    for key in p:
        np.testing.assert_allclose(p[key].numpy(), q[key].numpy(), rtol=1e-5)
    assert len(opt.compiled_steps) == 1


def test_one_program_for_every_expression_of_one_shape():
    p = pair()
    traced = []
    counted = paddle.loss(lambda p, x: (traced.append(1), jnp.sum(p["w"]) * x)[1])
    for n in (2, 3, 4.5):
        (counted(p, 1.0) / n + counted(p, 2.0) * n).backward()
    assert len(traced) == 2  # both parts, once


def test_a_loss_that_is_read_first_runs_forward_once():
    p = pair()
    ran = []

    @paddle.loss
    def watched(p):
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sum(p["w"] ** 2)

    opt = paddle.optimizer.SGD(0.1, p)
    counts = []
    for step in range(4):
        ran.clear()
        y = watched(p)
        _ = float(y)
        if step % 2:
            opt.minimize(y)
        else:
            y.backward()
            opt.step()
            opt.clear_grad()
        jax.effects_barrier()
        counts.append(len(ran))
    assert counts == [2, 1, 1, 1]  # before the first one nobody knew that backward follows
    ran.clear()
    y = watched(p)
    _ = float(y), float(y)
    assert y.ready is not None  # nobody knew that it does not
    y = watched(p)
    _ = float(y)
    assert y.ready is None
    with paddle.no_grad():
        y = watched(p)
    assert y.parameters == [] and float(y) == float(watched(p))


def test_a_loss_may_be_read_scaled_and_unscaled():
    p = pair()
    scaler = paddle.amp.GradScaler(init_loss_scaling=4.0)
    for formula in (lambda: square(p), lambda: square(p) + both(p, 2.0)):
        plain = formula()
        want = float(formula())
        scaled = scaler.scale(plain)
        assert float(plain) == want and float(scaled) == 4 * want
        scaled.backward()
        assert float(plain) == want
    scaled = scaler.scale(square(p)) + scaler.scale(both(p, 2.0))
    assert float(scaled) == 4 * float(square(p) + both(p, 2.0))


def test_retain_graph_and_the_factor_of_backward():
    p = pair()
    y = square(p)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(p["w"].grad, [8.0, -4.0])
    paddle.optimizer.SGD(0.1, p).clear_grad()
    square(p).backward(jnp.asarray(0.5))
    np.testing.assert_allclose(p["w"].grad, [2.0, -1.0])
    y, z = square(p), both(p, 1.0)
    (y + z).backward(retain_graph=True)
    (y * z).backward()
    with pytest.raises(TypeError, match="retain_graph: found 1, expected True or False"):
        square(p).backward(retain_graph=1)


def test_minimize_after_a_retained_backward_steps_once():
    p = pair()
    opt = paddle.optimizer.SGD(0.25, p)
    y = square(p)
    y.backward(retain_graph=True)
    opt.minimize(y)
    np.testing.assert_allclose(p["w"].numpy(), [1.0, -0.5])


def test_a_running_total_for_the_log_does_not_grow():
    p = pair()
    opt, total = paddle.optimizer.SGD(0.0, p), 0.0
    for _ in range(50):
        y = square(p)
        opt.minimize(y)
        total = total + y
    assert not total.parameters and f"{total / 50:.2f}" == "5.00"
    kept = 0
    for _ in range(3):
        y = square(p)
        kept += y
        y.backward()
    assert float(kept) == 15.0
    with pytest.raises(RuntimeError, match=r"square: backward\(\) ran already for square"):
        kept.backward()
    with pytest.raises(RuntimeError, match=r"backward\(\) ran already for a loss in it; use its detach"):
        (total + square(p)).backward()


def test_the_mean_of_many_losses_is_read_one_by_one():
    p = pair()
    mean = sum(both(p, float(n)) for n in range(300)) / 300
    np.testing.assert_allclose(float(mean), 3 * 149.5)


def test_detach():
    p = pair()
    y = square(p)
    z = both(p, 2.0) * y.detach()
    z.backward()
    np.testing.assert_allclose(p["b"].grad, [2.0 * 1.0 * 5.0])
    np.testing.assert_allclose(p["w"].grad, [30.0, 30.0])
    assert y.detach().item() == 5.0 and "square" in repr(y.detach())
    with pytest.raises(RuntimeError, match="no trainable Parameter"):
        y.detach().backward()


def test_comparison_and_formatting():
    p = pair()
    y = square(p)
    assert y > 4 and y >= 5 and y < 6.0 and y <= np.float32(5) and y == 5 and y != 4 and y > both(p, 0.0)
    assert f"{y:.2f} {y + 1:6.1f}" == "5.00    6.0" and round(float(y), 1) == 5.0 and int(y) == 5 and bool(y)
    assert max([both(p, 1.0), y]) is y and np.isfinite(y) and y in {y} and y.mean() is y and y.sum() is y
    assert "square and both" in repr(square(p) + both(p, 2.0))


def test_losses_of_different_dtypes():
    half = paddle.Parameter(jnp.array([2.0], jnp.bfloat16), "h")
    y = paddle.loss(lambda h: jnp.sum(h * h))(half) * 0.5
    assert y.value.dtype == jnp.bfloat16
    mixed = y + square(pair())
    assert mixed.value.dtype == jnp.float32 and float(mixed) == 7.0
    mixed.backward()
    assert half.grad.dtype == jnp.bfloat16 and half.grad[0] == 2.0


def test_aux_of_parts():
    p = pair()
    with_aux = paddle.loss(lambda p, k: (jnp.sum(p["w"]), k), has_aux=True)
    y = with_aux(p, 3.0) / 2
    y.backward()
    assert y.aux == 3.0
    y = with_aux(p, 3.0) + with_aux(p, 4.0)
    assert y.aux == (3.0, 4.0)


def test_a_loss_function_may_call_another():
    p = pair()
    outer = paddle.loss(lambda p: square(p) + 2 * jnp.sum(p["b"]))
    plain = paddle.loss(lambda p: square(p))
    y = outer(p)
    y.backward()
    assert float(y) == 11.0 and float(plain(p)) == 5.0
    np.testing.assert_allclose(p["w"].grad, [4.0, -2.0])
    np.testing.assert_allclose(p["b"].grad, [2.0])


def test_what_is_no_number_is_refused():
    p = pair()
    y = square(p)
    for wrong in ("1", [1.0], None, 1j, jnp.ones(2)):
        with pytest.raises(TypeError, match="unsupported operand"):
            y + wrong
    with pytest.raises(TypeError, match="found Parameter b beside a Loss, .* among the arguments of a loss"):
        y * p["b"]
    with pytest.raises(TypeError):
        sorted([y, "1"])


def test_losses_from_before_and_after_a_step_cannot_be_joined():
    p = pair()
    opt = paddle.optimizer.SGD(0.1, p)
    before = square(p)
    opt.minimize(both(p, 1.0))
    with pytest.raises(RuntimeError, match="before and after a step moved their parameters"):
        (before + square(p)).backward()


@pytest.mark.parametrize("packed", [False, True])
def test_expressions_and_packed_values(packed):
    p = paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, p, packed=packed)
    for _ in range(3):
        opt.minimize((mse(p, X, Y) + mse(p, X[:16], Y[:16])) / 2)
    q = paddle.parameters(tree())
    ref = paddle.optimizer.SGD(0.1, q)
    for _ in range(3):
        (mse(q, X, Y) / 2).backward()
        (mse(q, X[:16], Y[:16]) / 2).backward()
        ref.step()
        ref.clear_grad()
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)
