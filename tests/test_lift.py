"""What `lift` makes of a rule refuses gradients, states and parameters that do not fit and names the leaf."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import TWO, P, refuse, row, rows, with_w

import paddlejax as pj
from paddlejax import rules

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
ADAM, SGD, ASGD2 = pj.adam(0.1), pj.sgd(0.1), pj.asgd(0.1, 2)
# The rule, the options by path, a pair without state and a chain each look at gradients of their own.
TRANSFORMATIONS = {
    "adam": ADAM,
    "by_path": pj.by_path([("w", {"learning_rate": 2.0})], ADAM),
    "chain": pj.chain(pj.clip_by_global_norm(1.0), SGD),
    "l2_decay": pj.l2_decay(0.1),
}


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_gradients(name, bad):
    tx, (grads, cls, *words) = TRANSFORMATIONS[name], BAD_GRADIENTS[bad]
    state = tx.init(P)
    refuse(lambda: tx.update(grads, state, P), (cls,), words)
    # and while tracing
    refuse(lambda: jax.eval_shape(lambda s: tx.update(grads, s, P), state), (cls,), words)


@pytest.mark.parametrize("name", ["adam", "by_path", "chain"])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_parameters_of_a_wrong_dtype(name, dtype):
    tx, words = TRANSFORMATIONS[name], ("at w", jnp.dtype(dtype).name, "real floating")
    refuse(lambda: tx.init(with_w(jnp.ones(2, dtype))), (TypeError,), words)


def updated(tx, state, params=P):
    return lambda: tx.update(P, state, params)


def without(state, field, name):
    return state._replace(**{field: {k: v for k, v in getattr(state, field).items() if k != name}})


START = ADAM.init(P)
MANY = jax.vmap(lambda _: ADAM.init(P))(jnp.arange(2))  # the states of two runs at once
STATES = [
    row("of-sgd", updated(ADAM, SGD.init(P)), ValueError, "Adam", "found", "moment1"),
    row("of-adam", updated(SGD, START), ValueError, "SGD", "moment1"),
    row("of-amsgrad", updated(ADAM, pj.adam(0.1, amsgrad=True).init(P)), ValueError, "moment2_max"),
    row("without-a-slot", updated(ADAM, without(START, "slots", "moment2")), ValueError, "Adam", "moment2"),
    row("without-a-scalar", updated(ADAM, without(START, "shared", "beta1_pow_acc")), ValueError,
        "beta1_pow_acc"),
    row("of-another-tree", updated(ADAM, ADAM.init({"w": P["w"]})), ValueError, "moment1", "missing at b"),
    row("of-other-shapes", updated(ADAM, ADAM.init(with_w(jnp.ones(3)))), ValueError, "at w", r"\(3,\)",
        r"\(2,\)"),
    row("of-many-runs", updated(ADAM, MANY), ValueError, r"\(2,\)"),
    row("slots-of-many-runs", updated(ADAM, START._replace(slots=MANY.slots)), ValueError, "at ", r"\(2,",
        "moment1"),
    row("scalar-shape", updated(ADAM, START._replace(shared=MANY.shared)), ValueError, "beta._pow_acc",
        r"\(2,\)"),
    row("rate-shape", updated(ADAM, START._replace(learning_rate=TWO)), ValueError, "learning_rate",
        r"\(2,\)"),
    row("of-another-batch_num", updated(ASGD2, pj.asgd(0.1, 3).init(P)), ValueError, "at ", "y", r"\(3,",
        r"\(2,"),
    row("none", updated(ADAM, None), TypeError, "RuleState", "NoneType"),
    row("empty", updated(ADAM, ()), TypeError, "RuleState", "tuple"),
    row("swapped-with-params", lambda: ADAM.update(P, P, START), TypeError, "RuleState", "dict"),
    row("chain-length", updated(pj.chain(ADAM), (START, START)), ValueError, "chain", "1", "2"),
    row("chain-not-a-tuple", updated(pj.chain(ADAM), {}), ValueError, "chain", "dict"),
    row("chain-order", updated(pj.chain(pj.identity(), ADAM), (START, ())), TypeError, "RuleState", "tuple"),
    *(row(f"{type(t.source.rule).__name__}-no-params", lambda t=t: t.update(P, t.init(P)), ValueError,
        type(t.source.rule).__name__, "params")
      for t in (pj.ftrl(0.1), pj.lamb(0.1), pj.lars_momentum(0.1, 0.9))),
    row("init-text", lambda: ADAM.init({"w": "x"}), TypeError, "at w", "str", "expected"),
]  # fmt: skip
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
LIFT = [
    row("class", lambda: pj.lift(rules.Adam, 0.1), TypeError, "Adam", "expected"),
    row("number", lambda: pj.lift(0.1, 0.1), TypeError, "0.1", "Rule"),
    row("bool-rate", lambda: pj.lift(rules.SGD(), True), TypeError, "learning_rate", "True"),
    row("complex-rate", lambda: pj.lift(rules.SGD(), jnp.array(1j)), TypeError, "learning_rate", "complex64"),
    row("text-rate", lambda: pj.lift(rules.SGD(), np.array("x")), TypeError, "learning_rate", "expected"),
]


@rows(state=STATES, learning_rate=RATE, lift=LIFT)
def test_refused(call, classes, words):
    refuse(call, classes, words)


ACCEPTED = {  # where one might expect an error
    "none-gradient": lambda: ADAM.update({"w": None, "b": P["b"]}, START, P),
    "other-dtype-of-gradient": lambda: ADAM.update(with_w(P["w"].astype(jnp.bfloat16)), START, P),
    "none-parameter": lambda: ADAM.init(with_w(None)),
    "empty-tree": lambda: ADAM.update({}, ADAM.init({}), {}),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(call):
    call()


def test_an_error_leaves_state_and_parameters_usable():
    tx = pj.chain(pj.clip_by_global_norm(1.0), pj.adam(0.1))
    state = tx.init(P)
    expected = tx.update(P, state, P)
    for grads, cls, *_ in BAD_GRADIENTS.values():
        with pytest.raises(cls):
            tx.update(grads, state, P)
    chex.assert_trees_all_equal(expected, tx.update(P, state, P))
