# ruff: noqa: E501
"""A message names the argument or the leaf, says what was found and what is expected, or the way.

The tables of the other tests are about single functions; here stand the kinds of mistakes that one makes
everywhere, tried on everything that is public.
"""

import inspect
import pickle
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from refusals import P, params, refuse, row, rows
from test_docs import public

import paddlejax as pj
from paddlejax.hyper import Named

O, lr = pj.optimizer, pj.optimizer.lr  # noqa: E741
FUNCTIONS = [name for name in pj.__all__ if hasattr(getattr(pj, name), "described_by")] + ["muon"]
CLASSES = {
    n: c
    for n, c in public()
    if inspect.isclass(c) and (issubclass(c, Named) or hasattr(c.__init__, "declared"))
}
REQUIRED = {"momentum": 0.9, "key": jax.random.key(0), "learning_rate": 0.1}


def given(function):
    """What a rule's function needs to be called at all."""
    needed = inspect.signature(function).parameters
    return {name: REQUIRED[name] for name, p in needed.items() if p.default is p.empty}


def wrong_values():
    """Every argument of every rule, each with a value of another type."""
    for name in FUNCTIONS:
        function = getattr(pj, name)
        for argument, p in inspect.signature(function).parameters.items():
            if isinstance(p.default, bool):
                yield row(
                    f"{name}-{argument}",
                    wrong(function, argument, "yes"),
                    TypeError,
                    argument,
                    "yes",
                    "True or False",
                )
            elif argument == "muon_version":
                continue  # one of three ints, which has a row of its own
            elif isinstance(p.default, int | float) or p.default is p.empty and argument != "key":
                words = argument, "found 'much'", "expected|of type str"
                yield row(f"{name}-{argument}", wrong(function, argument, "much"), TypeError, *words)


def wrong(function, argument, value):
    return lambda: function(**{**given(function), argument: value})


def unknown_names():
    """An argument that is not there, of every function and class; the message lists those that are."""
    for name, thing in {**{n: getattr(pj, n) for n in FUNCTIONS}, **CLASSES}.items():
        signature = inspect.signature(thing)
        if not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.parameters.values()):
            words = (
                "lrate",
                "unexpected keyword",
                *([next(iter(signature.parameters))] if signature.parameters else []),
            )
            needed = {p.name: 1 for p in signature.parameters.values() if p.default is p.empty}
            yield row(name, lambda thing=thing, needed=needed: thing(**needed, lrate=0.1), TypeError, *words)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x)


def parameter():
    return params()[0]


def a_loss():
    return pj.loss(lambda w: jnp.sum(w**2))(parameter())


def small():
    return params()[:1]


AS_JAX = ("Parameter w", "expected an array", r"w\.value", "@paddlejax.loss")
PLACES = [
    row("linen in init", lambda: pj.adam(0.1).init(Linen()), TypeError, "Linen", "model.init"),
    row("linen as parameters", lambda: O.Adam(0.1, parameters=Linen()), TypeError, "flax linen", "model.init"),
    row("jnp of a Parameter", lambda: jnp.sum(parameter()), ValueError, *AS_JAX),
    row("jit of a Parameter", lambda: jax.jit(lambda w: w)(parameter()), ValueError, *AS_JAX),
    row("grad of a Parameter", lambda: jax.grad(lambda w: w.sum())(parameter()), ValueError, *AS_JAX),
    row("vmap of a Parameter", lambda: jax.vmap(lambda w: w)(parameter()), ValueError, *AS_JAX),
    row("jnp of a Loss", lambda: jnp.sum(a_loss()), ValueError, "a Loss", r"loss\.value"),
    row("Executor", lambda: pj.fluid.Executor(), NotImplementedError, "fluid.Executor", "no static programs"),
    row("Linear", lambda: pj.nn.Linear(1, 2), NotImplementedError, "nn.Linear", "flax, equinox"),
    row("a misspelt name", lambda: pj.optimizer.AdamX, AttributeError, "AdamX", "nearest: Adam"),
    row("a class of objects", lambda: pj.Adam, AttributeError, "Adam", "nearest: adam"),
    row("scheduler as a schedule", lambda: pj.sgd(lr.StepDecay(0.1, 3)), TypeError, "learning_rate", "StepDecay", "schedules.step_decay"),
    row("schedule as a scheduler", lambda: O.SGD(pj.schedules.step_decay(0.1, 3), small()), TypeError, "learning_rate", "step_decay", "LRScheduler"),
    row("clip as a function", lambda: O.SGD(0.1, small(), grad_clip=pj.clip_by_norm(1.0)), TypeError, "grad_clip", "found", r"ClipGradBy"),
    row("clip as a number", lambda: O.SGD(0.1, small(), grad_clip=1.0), TypeError, "grad_clip", "found 1.0", "ClipGradBy"),
    row("function not called", lambda: pj.chain(pj.adam), TypeError, "argument 0", "function adam", r"adam\(0.001\)"),
    row("rule not lifted", lambda: pj.with_master_weights(pj.rules.SGD()), TypeError, "inner", "found SGD", "pair"),
    row("table that is a tree", lambda: pj.sparse.embedding(P, jnp.array([0])), TypeError, "table", "found dict", "array"),
    row("table that is not there", lambda: pj.sparse.value_and_grad(lambda p: p["w"].sum(), "t")(P), ValueError, "'t'", "found"),
    row("state and gradients swapped", lambda: pj.adam(0.1).update(pj.adam(0.1).init(P), P, P), TypeError, "state", "found dict", "RuleState"),
    row("update of another shape", lambda: pj.apply_updates(P, {**P, "w": jnp.ones(3)}), ValueError, "at w", r"\(3,\)", r"\(2,\)"),
    row("update of another tree", lambda: pj.apply_updates(P, {"c": P["w"]}), ValueError, "missing at b, w", "unexpected at c"),
    row("rate of no state", lambda: pj.set_learning_rate(P, 0.1), TypeError, "found dict", "RuleState"),
    row("array for a loss", lambda: O.SGD(0.1, small()).minimize(jnp.ones(())), ValueError, "loss: found Array", "@paddle.loss"),
    row("number for a parameter", lambda: pj.parameters({"w": 3}), TypeError, "at w", "found 3", "expected"),
    row("pattern for a table", lambda: pj.by_path("*b", pj.adam(0.1)), TypeError, "table", r"'\*b'", "list of"),
    row("option of torch", lambda: pj.by_path([("*", {"lr": 1.0})], pj.adam(0.1)), TypeError, "lr", "learning_rate"),
]  # fmt: skip


@rows(argument=list(wrong_values()), unknown=list(unknown_names()), place=PLACES)
def test_the_message_says_what_is_wrong(call, classes, words):
    refuse(call, classes, words)


def test_there_are_many():
    """Of all kinds together at least 150, so that nothing has dropped out of the tables unseen."""
    assert len([*wrong_values(), *unknown_names(), *PLACES]) >= 150


@pytest.mark.parametrize("new", [True, False], ids=["zip", "pickle"])
def test_a_file_of_torch_is_known(new, tmp_path):
    path = tmp_path / "model.pt"
    if new:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps({}, 2))
    else:
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})))
    with pytest.raises(
        pj.checkpoint.CheckpointError, match=r"model.pt.*torch.save.*safetensors.torch.save_file"
    ):
        pj.load(path)


def test_where_jax_takes_a_parameter_it_is_its_array():
    w = parameter()
    np.testing.assert_array_equal(jnp.asarray(w), w.numpy())
    np.testing.assert_array_equal(jnp.ones(2) + w, 1 + w.numpy())
    assert re.fullmatch(r"[\d.]+", str(jnp.asarray(a_loss())))
