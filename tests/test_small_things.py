"""What Paddle takes beside the usual: arrays of shape (1,), empty lists, buffers, losses of many elements."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax import fluid

ONES = [np.array([0.5], np.float32), jnp.array([0.5])]


def one():
    return paddle.Parameter(jnp.array([2.0, 4.0]), "w")


@pytest.mark.parametrize("half", ONES, ids=["numpy", "jax"])
def test_an_array_of_shape_1_is_a_number(half):
    w = one()
    opt = paddle.optimizer.Momentum(half, half, parameters=[w], weight_decay=half)
    assert opt.get_lr() == 0.5
    for want in (1.5, 0.875):  # v = 0.5 v + (1 + 0.5 w); w -= 0.5 v
        opt.apply_gradients([(w, jnp.zeros(2))])
        assert float(w.value[0]) == want
    opt.set_lr(half / 2)
    assert opt.get_lr() == 0.25
    adam = paddle.optimizer.Adam(0.1, half, half, parameters=[w])
    adam.apply_gradients([(w, jnp.ones(2))])
    assert adam.state_dict()["w_beta1_pow_acc_0"].tolist() == [0.25]
    assert fluid.optimizer.SGD(half, [w]).current_step_lr() == 0.5
    for wrong in (np.ones(2), np.ones((1, 1))):
        with pytest.raises(TypeError, match="learning_rate: found an array of shape"):
            paddle.optimizer.SGD(wrong, parameters=[w])


def test_no_callbacks_are_none():
    w = one()
    opt = paddle.optimizer.SGD(0.5, parameters=[w])
    pairs = opt.backward(paddle.loss(lambda w: jnp.sum(w))(w), callbacks=[])
    assert [p for p, _ in pairs] == [w]
    with pytest.raises(TypeError, match=r"callbacks: found \[3\], expected None or \[\]"):
        opt.backward(paddle.loss(lambda w: jnp.sum(w))(w), callbacks=[3])


def test_save_and_load_take_a_bytesio():
    buffer = io.BytesIO()
    paddle.save({"w": one(), "epoch": 3}, buffer)
    buffer.seek(0)
    found = paddle.load(buffer)
    assert found["epoch"] == 3 and found["w"].tolist() == [2.0, 4.0]
    untouched = io.BytesIO()
    with pytest.raises(TypeError):
        paddle.save({"w": object()}, untouched)
    assert untouched.getvalue() == b""
    with pytest.raises(ValueError, match="the BytesIO: cannot be read as a checkpoint"):
        paddle.load(io.BytesIO(b"nothing"))


def test_rprop_takes_arrays_of_two_numbers():
    rule = paddle.optimizer.Rprop(
        0.1, np.array([1e-5, 50.0]), parameters=[one()], etas=np.array([0.5, 1.5])
    ).rules[0]
    assert (rule.learning_rate_range, rule.etas) == ((1e-5, 50.0), (0.5, 1.5))
    for wrong in (np.ones(3), np.ones((1, 2))):
        with pytest.raises(TypeError, match="Rprop's learning_rate_range: found .* expected two numbers"):
            paddle.optimizer.Rprop(0.1, wrong, parameters=[one()])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: paddle.optimizer.Adam(0.1, beta1=2.0), "Adam's beta1: found 2.0"),
        (lambda: paddle.optimizer.Adam(0.1, epsilon=-1), "Adam's epsilon: found -1"),
        (lambda: paddle.optimizer.Momentum(0.1, None), "Momentum's momentum: found None"),
        (lambda: paddle.optimizer.RMSProp(0.1, rho=None), "RMSProp's rho: found None"),
        (lambda: paddle.optimizer.SGD(None), "learning_rate is not set"),
        (lambda: paddle.optimizer.SGD("x"), "learning_rate: found 'x'"),
        (lambda: paddle.optimizer.Lamb(0.1, lamb_weight_decay=None), "Lamb's lamb_weight_decay: found None"),
        (lambda: fluid.optimizer.Adam(0.1, 2.0), "Adam's beta1: found 2.0"),
        (lambda: paddle.optimizer.SGD(0.1), "parameters: found None"),
    ],
)
def test_a_bad_hyperparameter_is_told_before_missing_parameters(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_a_loss_of_many_elements_is_their_sum():
    """As recorded: backward of w * 2 gives [2, 2, 2] in 1.8.5 and in 3.3.1."""
    doubled = paddle.loss(lambda w: w * 2)
    w = paddle.Parameter(jnp.array([1.0, 2.0, 3.0]), "w")
    y = doubled(w)
    y.backward()
    assert w.grad.tolist() == [2.0, 2.0, 2.0] and float(y) == 12.0
    opt = fluid.optimizer.SGD(0.5, [w])
    opt.minimize(doubled(w))
    assert w.numpy().tolist() == [0.0, 1.0, 2.0]
    opt.minimize(lambda params: params[0] * 2)
    assert w.numpy().tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="found a loss of shape \\(0,\\)"):
        paddle.loss(lambda w: w[:0])(w).backward()
    with pytest.raises(ValueError, match="int32, expected a real floating scalar"):
        paddle.loss(lambda w: w.astype("int32"))(w).backward()
