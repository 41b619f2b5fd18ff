"""Bad input when a state is loaded, and what Paddle 1.x raises: all in one error, nothing half changed."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_errors_constructors import TWO, W, params
from test_errors_functional import lenient, refuse, row  # noqa: F401
from test_errors_objects import good, unharmed

import paddlejax as paddle
from paddlejax.fluid import clip, dygraph
from paddlejax.fluid import optimizer as fluid

lr = paddle.optimizer.lr
ALL_FOUR = (ValueError, AssertionError, RuntimeError, KeyError)  # Paddle's, by version and fault


def less(entries, key):
    return {k: v for k, v in entries.items() if k != key}


def load(change):
    """Load the optimizer's own state with something about it changed."""

    def call(o):
        entries = o.state_dict()
        changed = change(entries)
        o.set_state_dict(entries if changed is None else changed)

    return call


def everything_wrong(entries):
    del entries["b_opt_moment1_0"]
    entries["w_opt_momnet_0"] = TWO
    entries["w_opt_moment1_0"] = jnp.ones(3)
    entries["w_opt_moment2_0"] = np.ones(2)
    entries["b_opt_moment2_0"] = [0.5]
    entries["w_opt_beta1_pow_acc_1"] = entries["w_opt_beta1_pow_acc_0"]
    entries["b_opt_beta1_pow_acc_0"] = jnp.ones(2)


WRONG = (
    r"missing: b_opt_moment1_0 \(nearest: \w+_0\)", "unexpected: w_opt_momnet_0",
    r"misshapen: w_opt_moment1_0 has shape \(3,\), expected \(2,\)",
    "wrong dtype: w_opt_moment2_0 is float64, expected float32", "not an array: b_opt_moment2_0 is list",
    "ambiguous: w_opt_beta1_pow_acc_0 and w_opt_beta1_pow_acc_1", r"b_opt_beta1_pow_acc_0 has shape \(2,\)",
    "nothing was changed",
)  # fmt: skip
ANY_STATE = [
    *(row(f"{type(x).__name__}-{i}", load(lambda e, x=x: x), TypeError, "state_dict", type(x).__name__,
        "dict")
      for i, x in enumerate([3, "x", [1], np.ones(2)])),
    row("none", lambda o: o.set_state_dict(None), TypeError, "state_dict", "NoneType", "dict"),
    row("key", load(lambda e: e.update({3: TWO})), ALL_FOUR, "unexpected: 3", "nothing was changed"),
    row("empty-key", load(lambda e: e.update({"": TWO})), ALL_FOUR, "unexpected", "nothing was changed"),
]  # fmt: skip
OF_ADAM = [
    row("everything", load(everything_wrong), ALL_FOUR, *WRONG),
    row("empty", load(lambda e: {}), ALL_FOUR,
        *(f"missing: {p}_opt_{a}_0" for p in "wb" for a in ("moment1", "moment2"))),
    row("typo", load(lambda e: e.update(w_opt_momnet1_0=e.pop("w_opt_moment1_0"))), ALL_FOUR,
        r"missing: w_opt_moment1_0 \(nearest: w_opt_momnet1_0\)", "unexpected: w_opt_momnet1_0"),
    row("without-name", load(lambda e: {k.replace("_opt", ""): v for k, v in e.items()}), ALL_FOUR,
        r"missing: w_opt_moment1_0 \(nearest: w_moment1_0\)", "unexpected: w_moment1_0"),
    row("of-momentum", load(lambda e: {"w_opt_velocity_0": TWO, "b_opt_velocity_0": TWO[0]}), ALL_FOUR,
        "missing: w_opt_moment1_0", "unexpected: w_opt_velocity_0", "unexpected: b_opt_velocity_0"),
    row("of-another-parameter", load(lambda e: e.update(v_opt_moment1_0=TWO)), ALL_FOUR,
        "unexpected: v_opt_moment1_0"),
    row("number", load(lambda e: e.update(b_opt_moment1_0=0.5)), ALL_FOUR,
        "not an array: b_opt_moment1_0 is float"),
    row("none-entry", load(lambda e: e.update(b_opt_moment1_0=None)), ALL_FOUR,
        "b_opt_moment1_0 is NoneType"),
    row("int", load(lambda e: e.update(w_opt_moment1_0=jnp.arange(2))), ALL_FOUR,
        "w_opt_moment1_0 is int32", "float32"),
    row("power-shape", load(lambda e: e.update(w_opt_beta1_pow_acc_0=TWO)), ALL_FOUR, r"\(2,\)", r"\(1,\)"),
]  # fmt: skip
OF_SCHEDULED = [
    row("no-schedule", load(lambda e: less(e, "LR_Scheduler")), ALL_FOUR, "LR_Scheduler",
        "nothing was changed"),
    row("no-schedule-and-more", load(lambda e: {"w_velocity_0": jnp.ones(3)}), ALL_FOUR,
        "LR_Scheduler", r"w_velocity_0 has shape \(3,\)", "missing: b_velocity_0"),
    row("schedule-key", load(lambda e: e.update(LR_Scheduler={"last_lr": 0.5})), RuntimeError, "last_epoch"),
    row("schedule-and-more", load(lambda e: e.update(w_velocity_0=jnp.ones(3))), ALL_FOUR, r"\(3,\)"),
    *(row(f"schedule-{x!r}", load(lambda e, x=x: e.update(LR_Scheduler=x)), RuntimeError, "LR_Scheduler",
        "dict")
      for x in (3, "last_epoch, last_lr", [1])),
]  # fmt: skip
OF_FLUID = [
    row("no-schedule", load(lambda e: less(e, "LR_Scheduler")), KeyError, "LR_Scheduler",
        "nothing was changed"),
    row("no-step", load(lambda e: less(e, "global_step")), AssertionError, "global_step", "missing"),
    row("step-shape", load(lambda e: e.update(global_step=np.zeros(2, np.int32))), AssertionError,
        "global_step", r"\(2,\)"),
    row("step-int", load(lambda e: e.update(global_step=3)), RuntimeError, "global_step"),
    row("schedule-key", load(lambda e: e.update(LR_Scheduler={})), RuntimeError, "step_num"),
    row("schedule-type", load(lambda e: e.update(LR_Scheduler=3)), RuntimeError, "LR_Scheduler", "dict"),
    row("missing", load(lambda e: less(e, "w_moment1_0")), AssertionError, "missing: w_moment1_0"),
    row("shape", load(lambda e: e.update(w_moment1_0=jnp.ones(3))), ValueError, "w_moment1_0", r"\(3,\)",
        r"\(2,\)"),
    row("dtype", load(lambda e: e.update(w_moment1_0=np.ones(2))), ValueError, "w_moment1_0", "float64",
        "float32"),
    row("list", load(lambda e: e.update(w_moment1_0=[1.0, 2.0])), RuntimeError, "w_moment1_0", "list"),
]  # fmt: skip
LOADS = {"adam": OF_ADAM, "momentum-scheduled": OF_SCHEDULED, "fluid-scheduled": OF_FLUID}


@pytest.mark.parametrize(
    "name, call, classes, words",
    [pytest.param(n, *r.values, id=f"{n}-{r.id}") for n, rows in LOADS.items() for r in [*ANY_STATE, *rows]],
)
def test_load_into_a_stepped_optimizer(name, call, classes, words):
    unharmed(name, call, classes, words)


def fresh(change, make=paddle.optimizer.Adam, rate=0.1, **kwargs):
    old, new = (make(rate, parameters=params(), **kwargs) for _ in range(2))
    old.minimize(good(*old.parameters))
    entries = old.state_dict()
    changed = change(entries)
    before = new.state_dict()
    try:
        new.set_state_dict(entries if changed is None else changed)
    except Exception:
        assert new.state_dict() == before
        raise
    return new


FRESH = [
    row(
        "missing",
        lambda: fresh(lambda e: less(e, "w_moment1_0")),
        ALL_FOUR,
        "missing: w_moment1_0",
    ),
    row("shape", lambda: fresh(lambda e: e.update(w_moment1_0=jnp.ones(3))), ALL_FOUR, r"\(3,\)", r"\(2,\)"),
    row(
        "of-sgd",
        lambda: fresh(lambda e: {"LR_Scheduler": {}, "x": TWO}),
        ALL_FOUR,
        "missing",
        "unexpected: x",
    ),
    row(
        "into-sgd",
        lambda: fresh(lambda e: {"w_moment1_0": TWO}, paddle.optimizer.SGD),
        ALL_FOUR,
        "unexpected: w_mo",
    ),
]


@pytest.mark.parametrize("call, classes, words", FRESH)
def test_load_into_a_fresh_optimizer(call, classes, words):
    refuse(call, classes, words)


def other_counter(entries):
    return {k[:-1] + "1": v for k, v in entries.items()}


LOADED = {
    "unchanged": lambda: fresh(dict),
    "numpy": lambda: fresh(lambda e: {k: np.asarray(v) for k, v in e.items()}),
    "other-counter": lambda: fresh(other_counter),
    "empty-into-fresh": lambda: fresh(lambda e: {}),
    "scalar-powers": lambda: fresh(lambda e: {k: v.reshape(()) if "pow" in k else v for k, v in e.items()}),
    "schedule-for-a-number": lambda: fresh(
        lambda e: e.update(LR_Scheduler={"last_epoch": 1, "last_lr": 0.1})
    ),
    "part-not-strict": lambda: paddle.optimizer.Adam(0.1, parameters=params()).set_state_dict(
        {}, strict=False
    ),
    "lambda-decay-without-schedule": lambda: fresh(
        lambda e: less(e, "LR_Scheduler"), rate=lr.LambdaDecay(0.1, lambda n: 1.0)
    ),
}


@pytest.mark.parametrize("call", LOADED.values(), ids=LOADED)
def test_loads(call):
    call()


# -------------------------------------------------------------------------------- Paddle 1.8.5's errors

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


@pytest.mark.parametrize("call, classes, words", FURTHER)
def test_fluid(call, classes, words):
    refuse(call, classes, words)
