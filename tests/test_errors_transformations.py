"""Bad gradients, states, updates and tables: an error that names the leaf, what was found and expected."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_errors_functional import BOTH, OPTIMIZERS, RULES, TWO, P, build, lenient, refuse, row, with_w  # noqa: F401

import paddlejax as pj
from paddlejax.paths import per_leaf

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
    row("by_path-rule-state", updated(TABLE, START), TypeError, "PathState", "RuleState"),
    row("by_path-other-table", updated(TABLE, pj.by_path([("w", {"rule": SGD})], ADAM).init(P)), ValueError,
        "another table", "found 2", "expected 1"),
    row("by_path-other-rule", updated(TABLE, pj.by_path([], SGD).init(P)), ValueError, "Adam", "moment1"),
    row("chain-length", updated(pj.chain(ADAM), (START, START)), ValueError, "chain", "1", "2"),
    row("chain-not-a-tuple", updated(pj.chain(ADAM), {}), ValueError, "chain", "dict"),
    row("chain-order", updated(pj.chain(pj.identity(), ADAM), (START, ())), TypeError, "RuleState", "tuple"),
    *(row(f"{n}-no-params", lambda n=n: (t := build(n)).update(P, t.init(P)), ValueError, RULES[n].__name__,
        "params")
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
    row("no-match-regex", lambda: pj.by_path([(re.compile("^x"), {})], ADAM).init(P), ValueError, "x",
        "found b, w"),
    row("option", lambda: pj.by_path([("w", {"lr": 1.0})], ADAM), TypeError, "'w'", "'lr'", "learning_rate",
        "beta1"),
    row("option-of-another", lambda: pj.by_path([("w", {"rho": 0.9})], ADAM), TypeError, "'w'", "'rho'",
        "beta1"),
    row("option-of-a-foreign", lambda: pj.by_path([("w", {"beta1": 0.9})], FOREIGN), TypeError, "'w'",
        "'beta1'"),
    row("factor-of-a-foreign", lambda: pj.by_path([("w", {"learning_rate": 2.0})], FOREIGN), TypeError,
        "'w'", "learning_rate"),
    row("factor-none", lambda: pj.by_path([("w", {"learning_rate": None})], ADAM), TypeError,
        "learning_rate", "None"),
    row("factor-shape", lambda: pj.by_path([("w", {"learning_rate": TWO})], ADAM), TypeError,
        "learning_rate", "2,"),
    row("range", lambda: pj.by_path([("w", {"beta1": 1.5})], ADAM), BOTH, "'w'", "beta1", "1.5"),
    row("frozen", lambda: pj.by_path([("w", {"frozen": 1})], ADAM), TypeError, "'w'", "frozen", "1",
        "True or False"),
    row("decay", lambda: pj.by_path([("w", {"weight_decay": "x"})], ADAM), TypeError, "'w'", "weight_decay",
        "'x'"),
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


def test_an_error_leaves_state_and_parameters_usable():
    tx = pj.chain(pj.clip_by_global_norm(1.0), pj.adam(0.1))
    state = tx.init(P)
    expected = tx.update(P, state, P)
    for grads, cls, *_ in BAD_GRADIENTS.values():
        with pytest.raises(cls):
            tx.update(grads, state, P)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(tx.update(P, state, P)), strict=True):
        np.testing.assert_array_equal(a, b)
