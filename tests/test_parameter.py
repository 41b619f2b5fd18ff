"""`Parameter`, `ParamAttr` and trees of them."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import INTS, TWO, refuse, row, rows
from refused_calls import calls, unharmed
from regression import X, Y, mse, tree

import paddlejax as paddle
from paddlejax import Parameter


def test_a_bare_tree_is_wrapped():
    opt = paddle.optimizer.SGD(0.1, {"layer": [jnp.ones(2), None], "n": jnp.ones(1)})
    assert [p.name for p in jax.tree.leaves(opt.parameters)] == ["layer/0", "n"]
    opt.minimize(lambda p: jnp.sum(p["layer"][0]) + jnp.sum(p["n"]))
    np.testing.assert_allclose(opt.parameters["n"].numpy(), [0.9])


def test_parameters_behave_like_their_arrays():
    p = paddle.Parameter(jnp.array([1.0, 2.0, 3.0]), "p")
    np.testing.assert_allclose([p[1], p[-1]], [2, 3])
    np.testing.assert_allclose(2 * p - p / 2 + (-p) ** 2, [2.5, 7.0, 13.5])
    np.testing.assert_allclose(np.asarray(p) @ np.ones(3), 6.0)
    assert list(map(float, p)) == [1, 2, 3] and len(p) == 3 and p == p and p in [p] and float(abs(p)[0]) == 1
    np.testing.assert_allclose(jnp.sum(jnp.asarray(p)), 6.0)
    attr = paddle.ParamAttr(name="q", trainable=False, need_clip=False)
    q = paddle.Parameter(p, attr=attr)
    assert (q.name, q.trainable, q.need_clip) == ("q", False, False)
    q.set_value(np.zeros(3))
    np.testing.assert_allclose(p.numpy(), [1, 2, 3])


def test_parameters_are_copied_and_pickled_with_their_cleared_gradients():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.SGD(0.1, params)
    opt.minimize(mse(params, X, Y))
    opt.clear_grad()
    for other in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        np.testing.assert_array_equal(other["w"].grad, np.zeros((3, 2)))
        mse(other, X, Y).backward()


def test_double_precision_is_not_truncated():
    with jax.enable_x64(True):
        p = paddle.Parameter(np.zeros(1), "p")
        opt = paddle.optimizer.SGD(0.1, [p])
        p.grad = np.ones(1)
        opt.step()
        assert p.numpy()[0] == -0.1


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


@rows(CELL)
def test_refused(call, classes, words):
    refuse(call, classes, words)


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
    row("rate-text", lambda o: setattr(w_of(o), "learning_rate", "x"), TypeError, "w's learning_rate", "'x'"),
    row("clip-int", lambda o: setattr(w_of(o), "need_clip", 1), TypeError, "w's need_clip", "1", "True or"),
    row("trainable-int", lambda o: setattr(w_of(o), "trainable", 1), TypeError, "w's trainable", "1"),
    row("decay-text", lambda o: setattr(w_of(o), "regularizer", "x"), TypeError, "w's regularizer", "'x'"),
    row("slip", lambda o: setattr(w_of(o), "trainble", True), AttributeError, "trainable", "allow_tags"),
    row("unknown", lambda o: setattr(w_of(o), "head_axis", 1), AttributeError, "allow_tags.'head_axis'"),
    row("fixed", lambda o: setattr(w_of(o), "dtype", 1), AttributeError, "dtype", "make another"),
    row("attr-other", lambda o: w_of(o).optimize_attr.update(lr=1), KeyError, "'lr'", "'learning_rate'"),
    row("attr-text", lambda o: setattr(w_of(o), "optimize_attr", "x"), TypeError, "optimize_attr", "dict"),
]  # fmt: skip


@calls(**{"adam": CALLS, "fluid-scheduled": CALLS})
def test_refused_by_a_parameter_of_an_optimizer(name, call, classes, words):
    unharmed(name, call, classes, words)


def test_a_key_is_no_value():
    with pytest.raises(TypeError, match="found PRNGKeyArray, expected an array"):
        paddle.Parameter(jax.random.key(0), "k")
