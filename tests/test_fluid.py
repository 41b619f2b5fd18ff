"""`fluid.optimizer`: the optimizers of Paddle 1.x, and the errors recorded from 1.8.5."""

import inspect
import itertools
import json
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import TWO, params, refuse, row, rows
from refused_calls import good
from regression import X, Y, mse, tree

import paddlejax as paddle
from paddlejax.fluid import clip, dygraph
from paddlejax.fluid import optimizer as fluid
from paddlejax.fluid.positional import FITS, orders_of

lr = paddle.optimizer.lr
W = paddle.Parameter(TWO, "w")


def test_the_rate_of_the_larsmomentum_page():
    """Boundaries 2, 4, 6, 8: 0.2 before the first minimize, then what each minimize used."""
    p = paddle.Parameter(jnp.ones(1), "p")
    rates = paddle.fluid.dygraph.PiecewiseDecay([2, 4, 6, 8], [0.2, 0.4, 0.6, 0.8, 1.0], 0)
    opt = paddle.fluid.optimizer.Adam(rates, parameter_list=[p])
    assert opt.current_step_lr() == pytest.approx(0.2)
    found = []
    for _ in range(12):
        opt.minimize(lambda p: jnp.sum(p[0]))
        found += [opt.current_step_lr(), opt.current_step_lr()]
        opt.clear_gradients()
    want = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert found[::2] == pytest.approx(want) and found[1::2] == found[::2]
    saved = opt.state_dict()
    assert saved["LR_Scheduler"] == {"step_num": 12} and saved["global_step"].tolist() == [12]
    plain = paddle.fluid.optimizer.Adam(0.001, parameter_list=[p])
    assert plain.current_step_lr() == 0.001


def test_a_schedule_advances_even_when_nothing_is_stepped():
    p = paddle.Parameter(jnp.ones(1), "p")
    rates = paddle.fluid.dygraph.PiecewiseDecay([1], [0.2, 0.4], 0)
    opt = paddle.fluid.optimizer.SGD(rates, parameter_list=[p])
    opt.step()
    opt.step()
    assert opt.current_step_lr() == pytest.approx(0.4)


def test_a_clip_given_to_minimize_replaces_the_constructors():
    p = paddle.Parameter(jnp.zeros(1), "p")
    clip = paddle.fluid.clip.GradientClipByValue
    opt = paddle.fluid.optimizer.SGD(1.0, parameter_list=[p], grad_clip=clip(0.5))
    loss = lambda p: 3 * jnp.sum(p[0])  # noqa: E731
    for given, want in ((None, -0.5), (clip(0.25), -0.75)):
        opt.minimize(loss, grad_clip=given)
        opt.clear_gradients()
        assert float(p) == want


def test_documented_examples_of_1x():
    """Every class and alias of the 1.x documents, with the arguments of its page."""
    fluid = paddle.fluid.optimizer
    given = {
        "Momentum": (0.001, 0.9),
        "LarsMomentum": (0.001, 0.9),
        "Adam": (),
        "Adadelta": (0.0003, 1e-6, 0.95),
    }
    given |= dict.fromkeys(["SGD", "Adagrad", "DecayedAdagrad", "Adamax", "RMSProp", "Ftrl", "Lamb"], (0.1,))
    for cls, args in given.items():
        assert getattr(fluid, cls) is getattr(fluid, cls + "Optimizer")
        params = paddle.parameters(tree())
        decay = paddle.fluid.regularizer.L2DecayRegularizer(regularization_coeff=0.1)
        opt = getattr(fluid, cls)(*args, parameter_list=params, regularization=decay)
        opt.minimize(mse(params, X, Y))
        opt.clear_gradients()
        assert all(np.isfinite(p.numpy()).all() for p in params.values())
        again = getattr(fluid, cls)(*args, parameter_list=params)
        again.set_dict(opt.state_dict())
        chex.assert_trees_all_equal(again.state_dict(), opt.state_dict())


# --------------------------------------------------------------------------- arguments by position

P = paddle.Parameter(TWO, "p")
DECAY, CLIP, EXCLUDE = paddle.fluid.regularizer.L2Decay(0.1), clip.GradientClipByNorm(1.0), lambda p: True
# Per class what comes before the arguments that 1.6 has elsewhere, and what 1.8.5 and 1.6 have after that.
LEADING = {
    "SGD": (0.1,),
    "Momentum": (0.1, 0.8),
    "LarsMomentum": (0.1, 0.8, 0.002, 0.003),
    "Adagrad": (0.1, 1e-5),
    "DecayedAdagrad": (0.1, 0.8, 1e-5),
    "Adadelta": (0.1, 1e-5, 0.8),
    "Adam": (0.1, 0.8, 0.9, 1e-5),
    "Adamax": (0.1, 0.8, 0.9, 1e-5),
    "RMSProp": (0.1, 0.8, 1e-5, 0.5, True),
    "Ftrl": (0.1, 0.2, 0.3, -0.4),
    "Lamb": (0.1, 0.02, 0.8, 0.9, 1e-5),
    "DGCMomentum": (0.1, 0.8, 3, 2, [0.75]),
}
ORDERS = dict.fromkeys(LEADING, ([P, DECAY, CLIP, "name"], [DECAY, "name"])) | {
    "Momentum": ([P, True, DECAY, CLIP, "name"], [True, DECAY, "name"]),
    "Adagrad": ([P, DECAY, CLIP, "name", 0.5], [DECAY, "name", 0.5]),
    "Adam": ([P, DECAY, CLIP, "name", True], [DECAY, "name", True]),
    "Lamb": ([P, DECAY, CLIP, EXCLUDE, "name"], [DECAY, EXCLUDE, "name"]),
    "DGCMomentum": ([P, True, 1, DECAY, CLIP, "name"], [True, 2.0, 1, DECAY, "name"]),
}
POSITIONS = [
    (name, tuple([x] if x is P else x for x in after[:length]))
    for name, orders in ORDERS.items()
    for after in orders
    for length in range(len(after) + 1)
]


def of_bound(monkeypatch, name, *args, **keywords):
    """The arguments by name that the constructor's own code gets."""
    seen = {}
    cls = getattr(fluid, name)
    if name == "DGCMomentum":
        base = paddle.distributed.DGCMomentumOptimizer
        names = list(inspect.signature(base.__init__).parameters)[1:]
        monkeypatch.setattr(
            base, "__init__", lambda self, *a, **k: seen.update(zip(names, a, strict=False), **k)
        )
        cls(*args, **keywords)
        return seen
    rule = cls._rule
    monkeypatch.setattr(
        paddle.optimizer.Optimizer,
        "__init__",
        lambda self, rate, parameters, decay, clip, name, rule, packed: seen.update(
            learning_rate=rate,
            parameter_list=parameters,
            regularization=decay,
            grad_clip=clip,
            name=name,
            **{f: getattr(rule, f) for f in vars(rule)},
        ),
    )
    cls(*args, **keywords)
    assert isinstance(rule, type)
    return seen


@pytest.mark.parametrize("name, after", POSITIONS)
def test_positions_of_185_and_of_16_are_told_apart(monkeypatch, name, after):
    leading = LEADING[name]
    names = list(inspect.signature(getattr(fluid, name)).parameters)
    seen = of_bound(monkeypatch, name, *leading, *after)
    for argument, value in zip(names, leading, strict=False):
        assert seen[argument] == value
    kinds = {
        DECAY: "regularization",
        CLIP: "grad_clip",
        "name": "name",
        EXCLUDE: "exclude_from_weight_decay_fn",
    }
    for value in after:
        if isinstance(value, list):
            assert seen["parameter_list"] == [P]
        elif value is True:
            assert seen["lazy_mode" if name == "Adam" else "use_nesterov"] is True
        elif isinstance(value, float):
            assert seen["initial_accumulator_value" if name == "Adagrad" else "local_grad_clip_norm"] == value
        elif isinstance(value, int):
            assert seen["num_trainers"] == 1
        else:
            assert seen[kinds[value]] is value


def test_no_call_by_position_has_two_meanings():
    """Whatever the types: where several orders could take them, they say the same."""
    values = [None, [P], DECAY, CLIP, "x", True, 3, 0.5, EXCLUDE]
    dgc = [row.split() for row in (
        "parameter_list use_nesterov num_trainers regularization grad_clip name",
        "use_nesterov local_grad_clip_norm num_trainers regularization name")]  # fmt: skip
    tails = [orders_of(cls._orders[0][len(LEADING[name]):]) for name in LEADING if name != "DGCMomentum"
             for cls in [getattr(fluid, name)]]  # fmt: skip
    for orders in [*{o: None for o in tails}, dgc]:
        for length in range(1, 5):
            for given in itertools.product(values, repeat=length):
                meanings = [
                    {n: v for n, v in zip(order, given, strict=False) if v is not None}
                    for order in orders
                    if length <= len(order) and all(FITS[n](v) for n, v in zip(order, given, strict=False))
                ]
                assert all(m == meanings[0] for m in meanings[1:]), given


def test_by_position_and_by_keyword_together():
    adam = fluid.Adam(0.1, 0.9, 0.999, 1e-8, DECAY, parameter_list=[P])
    assert adam.parameter_list == [P] and "L2Decay" in adam.describe()
    tree = {"a": jnp.ones(2), "b": jnp.ones(2)}
    assert len(fluid.SGD(0.1, tree).parameter_list) == len(fluid.SGD(0.1, iter([P, W])).parameter_list) == 2


# -------------------------------------------------------------------------------- Paddle 1.8.5's errors


def less(entries, key):
    return {k: v for k, v in entries.items() if k != key}


RAISES = {"AssertionError": AssertionError, "ValueError": ValueError, "TypeError": TypeError,
"NameError": ValueError,
          "AttributeError": AttributeError, "RuntimeError": RuntimeError, "KeyError": KeyError,
          None: None}  # fmt: skip
RECORDED = {
    e["id"]: RAISES.get(e["raises"], e["raises"])
    for e in json.loads((Path(__file__).parent / "golden/fluid18/manifest.json").read_text())["errors"]
    if e["mode"] == "dygraph"
}


def decided(raises, *ids):
    for i in ids:
        assert i in RECORDED
        RECORDED[i] = raises


decided(None, "lr-int", "lr-float32", "lr-tensor")  # more kinds of numbers are accepted
decided(None, "minimize-clip")  # documented until 1.7
decided(ValueError, "lr-none-RMSProp", "lr-none-Ftrl")  # documented; 1.8.5 checks too late
decided(AssertionError, "sd-extra")  # an entry that nothing will read is an error at load


def one(name, rate=0.1, *args, **kwargs):
    return getattr(fluid, name)(rate, *args, **{"parameter_list": params(), **kwargs})


def stepped(change=dict, schedule=None):
    o = one("Adam", 0.1 if schedule is None else schedule)
    o.minimize(good(*o.parameters))
    entries = o.state_dict()
    changed = change(entries)
    o.set_dict(entries if changed is None else changed)


def begun(change):
    old, new = one("Adam"), one("Adam")
    old.minimize(good(*old.parameters))
    new.set_dict(change(old.state_dict()))
    new.minimize(good(*new.parameters))


def scheduled(change):
    return lambda: stepped(change, dygraph.PolynomialDecay(0.1, 10))


def minimized(*args, **kwargs):
    o = one("SGD")
    return o.minimize(*args or [good(*o.parameters)], **kwargs)


CALLS = {
    **{f"lr-none-{n}": (lambda n=n: one(n, None), "learning_rate", "None") for n in (
        "SGD", "Adam", "Adagrad", "Adamax", "DecayedAdagrad", "Adadelta", "RMSProp", "Ftrl", "Lamb")},
    **{f"lr-none-{n}": (lambda n=n: one(n, None, 0.9), "learning_rate") for n in ("Momentum",
        "LarsMomentum")},
    **{f"momentum-none-{n}": (lambda n=n: one(n, 0.1, None), "momentum") for n in ("Momentum",
        "LarsMomentum")},
    **{f"none-{n}-{a}": (lambda n=n, a=a: one(n, **{a: None}), a, "None") for n, a in (
        i.split("-")[1:] for i in RECORDED if i.startswith("none-") and "Dpsgd" not in i)},
    "lr-int": (lambda: one("SGD", 1),),
    "lr-str": (lambda: one("SGD", "0.1"), "learning_rate", "'0.1'"),
    "lr-float32": (lambda: one("SGD", np.float32(0.1)),),
    "lr-float64": (lambda: one("SGD", np.float64(0.1)),),
    "lr-tensor": (lambda: one("SGD", jnp.array(0.1)),),
    "no-params": (lambda: fluid.SGD(0.1), "parameter", "None"),
    "clip-type": (lambda: one("SGD", grad_clip=1.0), "grad_clip", "1.0"),
    "loss-type": (lambda: minimized(1.0), "loss", "float"),
    "minimize-clip": (lambda: minimized(grad_clip=clip.GradientClipByNorm(1.0)),),
    "clip-negative": (lambda: clip.GradientClipByValue(max=-1), "max", "-1"),
    "clip-need-type": (lambda: clip.GradientClipByNorm(1.0, need_clip=3), "need_clip", "3"),
    "sd-same": (stepped,),
    "sd-extra": (lambda: stepped(lambda e: {**e, "unused": TWO}), "unexpected: unused"),
    "sd-missing": (lambda: stepped(lambda e: less(e, "w_moment1_0")), "missing: w_moment1_0"),
    "sd-shape": (lambda: stepped(lambda e: {**e, "w_moment1_0": jnp.ones(3)}), "w_moment1_0", r"\(3,\)",
    r"\(2,\)"),
    "sd-dtype": (lambda: stepped(lambda e: {**e, "w_moment1_0": np.ones(2)}), "w_moment1_0", "float64",
    "float32"),
    "sd-list": (lambda: stepped(lambda e: {**e, "w_moment1_0": [1.0, 2.0]}), "w_moment1_0", "list"),
    "sd-fresh-missing": (lambda: begun(lambda e: less(e, "w_moment1_0")), "missing: w_moment1_0"),
    "sd-fresh-empty": (lambda: begun(lambda e: {}),),
    "sd-fresh-shape": (lambda: begun(lambda e: {**e, "w_moment1_0": jnp.ones(3)}), r"\(3,\)", r"\(2,\)"),
    "sd-no-sched": (scheduled(lambda e: less(e, "LR_Scheduler")), "LR_Scheduler"),
    "sd-no-step": (scheduled(lambda e: less(e, "global_step")), "global_step"),
    "sd-step-shape": (scheduled(lambda e: {**e, "global_step": np.ones(2, np.int32)}), "global_step",
    r"\(2,\)"),
    "sd-step-int": (scheduled(lambda e: {**e, "global_step": 1}), "global_step"),
    "sd-sched-key": (scheduled(lambda e: {**e, "LR_Scheduler": {}}), "step_num"),
}  # fmt: skip
ELSEWHERE = ("Dpsgd", "dygraph-", "sparse-", "warmup-", "step-", "multi-", "lambda-", "plateau-")


@pytest.mark.parametrize("case", CALLS)
def test_recorded_error(case):
    call, *words = CALLS[case]
    if RECORDED[case] is None:
        call()
    else:
        refuse(call, (RECORDED[case],), words)


def test_every_recorded_error_is_tried():
    assert [i for i in RECORDED if i not in CALLS and not any(part in i for part in ELSEWHERE)] == []


NAMES = "SGD Momentum LarsMomentum Adagrad DecayedAdagrad Adadelta Adam Adamax RMSProp Ftrl Lamb".split()
FURTHER = [
    *(row(f"{n}-unknown", lambda n=n: one(n, bogus=1, **({"momentum": 0.9} if "Mom" in n else {})),
        TypeError, rf"{n}Optimizer\(\)", "bogus", "learning_rate")
      for n in NAMES),
    *(row(f"{n}-2.x-argument", lambda n=n: getattr(fluid, n)(0.1, parameters=params()), TypeError,
        "parameter_list")
      for n in NAMES),
    *(row(f"{n}-missing", lambda n=n: one(n), TypeError, rf"{n}Optimizer\(\)", "'momentum'")
      for n in ("Momentum", "LarsMomentum")),
    row("position-type", lambda: fluid.SGD(0.1, 3), TypeError, r"SGDOptimizer\(\)", "found 3 as argument 2",
        "parameter_list or regularization"),
    row("position-clip", lambda: fluid.SGD(0.1, params(), CLIP), TypeError, "as argument 3",
        "regularization"),
    row("position-many", lambda: fluid.SGD(0.1, params(), None, None, "x", 5), TypeError, "as argument 6",
        "at most 5"),
    row("position-twice", lambda: fluid.Momentum(0.1, 0.9, params(), momentum=0.5), TypeError,
        "momentum by keyword"),
    row("rate-missing", lambda: fluid.SGD(), TypeError, r"SGDOptimizer\(\)", "learning_rate"),
    row("minimize-clip-type", lambda: minimized(grad_clip=1.0), TypeError, "grad_clip", "1.0"),
    row("regularization-type", lambda: one("SGD", regularization="x"), TypeError, "regularization", "'x'"),
    row("scheduler-of-2.x-class", lambda: one("SGD", lr.NoamDecay), TypeError, "learning_rate"),
    row("schedule-of-1.x-in-2.x", lambda: paddle.optimizer.SGD(dygraph.PolynomialDecay(0.1, 10),
        parameters=params()),
        TypeError, "learning_rate", "LRScheduler"),
    row("parameters-name", lambda: minimized(parameter_list=["v"]), ValueError, "'v'", "w, b"),
    row("program", lambda: minimized(startup_program="main"), TypeError, "startup_program"),
    row("foreign", lambda: one("SGD").apply_gradients([(W, TWO)]), ValueError, "w", "not one of"),
    row("base-class", lambda: fluid.FluidOptimizer(0.1), TypeError, "FluidOptimizer"),
]  # fmt: skip


@rows(FURTHER)
def test_refused(call, classes, words):
    refuse(call, classes, words)
