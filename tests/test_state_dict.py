"""`state_dict` and `set_state_dict`: all that is wrong in one error, and nothing half changed."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import TWO, params, refuse, row, rows
from refused_calls import calls, good, lr, unharmed
from regression import X, Y, mse, tree

import paddlejax as paddle


def test_state_of_another_counter_and_with_a_name():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params, name="opt")
    opt.minimize(mse(params, X, Y))
    saved = opt.state_dict()
    assert "w_opt_moment1_0" in saved
    other = paddle.optimizer.Adam(0.1, parameters=paddle.parameters(tree()), name="opt")
    other.set_state_dict({k[:-1] + "1": np.asarray(v) for k, v in saved.items()})
    chex.assert_trees_all_equal(other.state_dict(), saved)
    empty = paddle.optimizer.Adam(0.1, parameters=params)
    empty.set_state_dict({})
    assert empty.state_dict() == {}


def test_a_schedule_that_does_not_load_stays_where_it_was():
    lr = paddle.optimizer.lr
    warmup = lr.LinearWarmup(lr.ExponentialDecay(0.4, 0.5), 4, 0.0, 0.4)
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(warmup, parameters=params)
    opt.minimize(mse(params, X, Y))
    bad = opt.state_dict() | {"LR_Scheduler": {"last_epoch": 7, "last_lr": 9.0, "LinearWarmup_LR": {}}}
    with pytest.raises(RuntimeError):
        opt.set_state_dict(bad)
    assert (warmup.last_epoch, opt.get_lr()) == (0, 0.0)
    step = lr.StepDecay(0.1, 2)
    with pytest.raises(TypeError):
        step.step("a")
    step.step()
    assert step.last_epoch == 1


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


@calls(
    **{
        "adam": [*ANY_STATE, *OF_ADAM],
        "momentum-scheduled": OF_SCHEDULED,
        "fluid-scheduled": [*ANY_STATE, *OF_FLUID],
    }
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


@rows(FRESH)
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
