"""Masters for every optimizer object, and what of `paddle.amp` beside the scaler means something here."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refuse, row, rows
from test_classes import CLASSES

import paddlejax as paddle
from paddlejax import Parameter, amp

O, incubate = paddle.optimizer, paddle.incubate  # noqa: E741


def half(name="p"):
    return Parameter(jnp.array([1.0, -2.0], jnp.bfloat16), name)


def grads():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=2), jnp.bfloat16) for _ in range(12)]


@pytest.mark.parametrize("way", ["argument", "assigned", "decorated"])
@pytest.mark.parametrize("name", list(CLASSES))
def test_every_class_keeps_masters(name, way):
    """The master goes where a float32 Parameter goes with the same gradients."""
    wide, p = Parameter(jnp.array([1.0, -2.0]), "p"), half()
    if way == "decorated":
        p = Parameter(jnp.array([1.0, -2.0]), "p")
    kwargs = {"multi_precision": True} if way == "argument" else {}
    opt, twin = CLASSES[name](1e-3, parameters=[p], **kwargs), CLASSES[name](1e-3, parameters=[wide])
    if way == "assigned":
        opt._multi_precision = True
    if way == "decorated":
        assert amp.decorate([p], opt, level="O2", dtype="bfloat16") == ([p], opt)
        assert p.dtype == jnp.bfloat16
    for g in grads():
        p.grad, wide.grad = g, g.astype(jnp.float32)
        opt.step(), twin.step()
    master = opt.state_dict()["master_weights"]["p"]
    np.testing.assert_array_equal(master, wide.numpy())
    np.testing.assert_array_equal(p.numpy(), wide.value.astype(jnp.bfloat16))


def test_decorate_casts_in_place_but_for_what_is_excluded():
    tree = paddle.parameters({"w": jnp.full(2, 1.001), "norm": {"scale": jnp.ones(2)}, "n": jnp.arange(2)})
    tree["n"].stop_gradient = True
    opt = O.Momentum(0.5, parameters=[tree["w"], tree["norm"]["scale"]])
    models, opts = amp.decorate([tree], [opt], level="O2", excluded_layers=tree["norm"])
    assert models[0] is tree and opts == [opt]
    assert [p.dtype for p in (tree["w"], tree["norm"]["scale"], tree["n"])] == ["float16", "float32", "int32"]

    @paddle.loss
    def fit(p, x):
        return jnp.sum(p["w"] * x).astype(jnp.float32) + jnp.sum(p["norm"]["scale"])

    opt.minimize(fit(tree, jnp.ones(2, jnp.float16)))
    assert list(opt.state_dict()["master_weights"]) == ["w"] and tree["w"].numpy().dtype == "float16"


def test_decorate_reaches_the_optimizer_inside_wrappers():
    p = Parameter(jnp.ones(2), "p")
    opt = incubate.LookAhead(O.SGD(0.5, [p]))
    assert amp.decorate([p], opt, level="O2", master_weight=False)[1] is opt
    assert p.dtype == "float16" and opt.inner_optimizer.masters is None
    amp.decorate([p], opt, level="O2")
    assert opt.inner_optimizer.masters == {}


def test_other_levels_change_nothing():
    p = Parameter(jnp.ones(2), "p")
    opt = O.SGD(0.5, [p])
    assert amp.decorate([p], level="O1") == [p] and amp.decorate([p], opt) == ([p], opt)
    assert p.dtype == "float32" and opt.masters is None


def stepped():
    p = Parameter(jnp.ones(2), "p")
    opt = O.Adam(0.1, parameters=[p])
    p.grad = jnp.ones(2)
    opt.step()
    return p, opt


def test_a_refused_decorate_changes_nothing():
    (p, opt), q = stepped(), Parameter(jnp.ones(2), "q")
    fresh = O.SGD(0.1, [q])
    with pytest.raises(AttributeError, match="first step"):
        amp.decorate([q, p], [fresh, opt], level="O2")
    assert (p.dtype, q.dtype) == ("float32", "float32") and fresh.masters is None


REFUSED = [
    row("level", lambda: amp.decorate([half()], level="O3"), ValueError, "level", "'O3'"),
    row("dtype", lambda: amp.decorate([half()], level="O2", dtype="float8"), ValueError, "dtype", "'float8'"),
    row(
        "array", lambda: amp.decorate({"w": jnp.ones(2)}, level="O2"), TypeError, "models", "parameters.tree"
    ),
    row("optimizer", lambda: amp.decorate([half()], "x", level="O2"), TypeError, "optimizers", "'x'"),
    row("save", lambda: amp.decorate([half()], save_dtype="float32"), TypeError, "save_dtype"),
    row("grad", lambda: amp.decorate([half()], master_grad=True), TypeError, "master_grad"),
    row("cast", lambda: amp.auto_cast(), NotImplementedError, "astype.jnp.float16.", "decorate"),
    row("cast-bf16", lambda: amp.auto_cast(dtype="bfloat16"), NotImplementedError, "astype.jnp.bfloat16."),
    row("cast-level", lambda: amp.auto_cast(level="O3"), ValueError, "level"),
]


@rows(REFUSED)
def test_refused(call, classes, words):
    refuse(call, classes, words)


def test_auto_cast_that_is_off_is_a_context():
    for context in (amp.auto_cast(enable=False), amp.auto_cast(False), amp.amp_guard(level="O0")):
        with context:
            pass
    assert amp.is_bfloat16_supported() and amp.is_float16_supported("cpu")
