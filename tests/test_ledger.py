"""The ledger of saved state: fields, one error for everything, and what a file must know of a rule."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as pj
from paddlejax.optimizer.ledger import (
    ArrayField,
    CountField,
    DictField,
    Entries,
    Field,
    NumberField,
    SharedField,
    StateDictError,
    load,
    written,
)

# -------------------------------------------------------------------------------- fields

VECTOR = ArrayField("x", (2,), np.float32)
ONE = ArrayField("x", (1,), np.float32)
POWER = SharedField("x", (2,), np.float32, 0.5)
MISFITS = {
    "list": (VECTOR, [1.0, 2.0], "not an array: x is list"),
    "shape": (VECTOR, np.zeros(3, np.float32), r"misshapen: x has shape \(3,\), expected \(2,\)"),
    "dtype": (VECTOR, np.zeros(2), "wrong dtype: x is float64, expected float32"),
    "elements": (POWER, np.array([1, 2], np.float32), "not one number: x has different elements"),
    "float": (NumberField("x", int), 1.5, "not an int: x is 1.5, expected an int from 0 to 2147483647"),
    "bool": (NumberField("x", float), True, "not a float: x is True, expected a float"),
    "many": (NumberField("x", float), np.ones(2), r"misshapen: x has shape \(2,\)"),
    "negative": (CountField("x"), np.array([-1]), "out of range: x is -1, expected an int from 0"),
    "large": (CountField("x"), np.array([2**31]), "out of range: x is 2147483648"),
    "plain": (CountField("x"), 3, "not an array: x is int"),
    "no-dict": (DictField("x"), 3, "not a dict: x is int"),
}


@pytest.mark.parametrize("field, value, words", MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_told(field, value, words):
    entries = Entries({"x": value})
    assert entries.read(field) is None
    with pytest.raises(StateDictError, match=words):
        entries.close()


def test_what_is_written_is_read():
    fields = [VECTOR, POWER, NumberField("x", float), NumberField("x", bool), CountField("x"), Field("x")]
    for field, value in zip(fields, (jnp.ones(2), 0.25, 1.5, True, 3, "any"), strict=True):
        entries = Entries(written([(field, value)]))
        np.testing.assert_array_equal(entries.read(field), value)
        entries.close()
    assert ArrayField("x", (1,), np.float32).read(np.ones((), np.float32), "x").shape == (1,)
    empty = SharedField("x", (0,), np.float32, 0.5)
    assert empty.read(empty.write(0.25), "x") == 0.5  # no element to read it from: where it starts


def test_a_load_changes_all_or_nothing():
    seen = []

    def loading(entries, strict):
        found = entries.read(CountField("a", required=strict))
        yield
        seen.append(found)

    load(loading, {"a_0": np.array([3])})
    for wrong in ({}, {"a": 3}, {"a": np.array([3]), "b": 0}, {"a_0": np.array([3]), "a_1": np.array([3])}):
        with pytest.raises(StateDictError, match="nothing was changed"):
            load(loading, wrong)
    load(loading, {}, strict=False)
    assert seen == [3, None]


def test_one_error_speaks_of_a_wrapper_and_of_all_inside_it():
    def made():
        p = pj.Parameter(jnp.ones(2), "w")
        scheduler = pj.optimizer.lr.StepDecay(0.5, 2)
        inner = pj.optimizer.Momentum(scheduler, parameters=[p])
        opt = pj.incubate.LookAhead(pj.incubate.optimizer.GradientMergeOptimizer(inner, 2), k=3)
        for _ in range(3):
            opt.apply_gradients([(p, jnp.ones(2))])
        return opt, scheduler

    opt, scheduler = made()
    good = opt.state_dict()
    scheduler.step()
    before = opt.state_dict()
    wrong = {k: v for k, v in good.items() if k != "w_slow_0"} | {
        "w_velocity_0": jnp.ones(3),
        "w@GRAD@GradientMerge": 1,
        "stray": 0,
        "LR_Scheduler": 3,
    }
    with pytest.raises(StateDictError) as e:
        opt.set_state_dict(wrong)
    for words in (
        "missing: w_slow_0",
        "misshapen: w_velocity_0",
        "not an array: w@GRAD@GradientMerge is int",
        "not a dict: LR_Scheduler is int",
        "unexpected: stray",
    ):
        assert words in str(e.value)
    # The scheduler refuses its part last of all, and still nothing changes.
    with pytest.raises(StateDictError, match="missing: last_lr"):
        opt.set_state_dict({**good, "LR_Scheduler": {"last_epoch": 0}})
    after = opt.state_dict()
    assert after.keys() == before.keys()
    for k, v in before.items():
        np.testing.assert_array_equal(after[k], v)
    opt.set_state_dict(good)
    assert scheduler.last_epoch == 0


def test_a_wrapped_scheduler_that_is_refused_leaves_the_outer_one():
    def inner():
        return pj.optimizer.lr.StepDecay(0.5, 2)

    warmup = pj.optimizer.lr.LinearWarmup(inner(), 2, 0.0, 0.5)
    before = warmup.state_dict()
    with pytest.raises(StateDictError, match="missing: last_lr"):
        warmup.set_state_dict({**before, "last_epoch": 9, "LinearWarmup_LR": {"last_epoch": 9}})
    with pytest.raises(KeyError, match="missing: LinearWarmup_LR"):
        warmup.set_state_dict({"last_epoch": 9, "last_lr": 0.5})
    assert warmup.state_dict() == before


# -------------------------------------------------------------------------------- what a file knows of a rule


@pj.rule
class PerElement(pj.Rule):
    """Its scalar is stored once per element, as Paddle's NAdam does."""

    slots: ClassVar = ("m",)
    full_shape: ClassVar = ("decay_pow",)

    def shared(self):
        return {"decay_pow": 1.0}

    def advance(self, rate, shared):
        return rate, {"decay_pow": shared["decay_pow"] * 0.5}

    def step(self, g, p, k, slots):
        return -k * g, {"m": slots["m"] + g}


@pj.rule
class CalledRho(pj.Rule):
    """Its scalar has the name of one of RAdam's, and nothing else of it."""

    slots: ClassVar = ("m",)

    def shared(self):
        return {"rho": 1.0}

    def advance(self, rate, shared):
        return rate, {"rho": shared["rho"] * 0.5}

    def step(self, g, p, k, slots):
        return -k * g, {"m": slots["m"] + g}


@pytest.mark.parametrize("rule, name, shape", [(PerElement, "decay_pow", (3,)), (CalledRho, "rho", (1,))])
def test_function_and_object_write_and_load_the_same(rule, name, shape, tmp_path):
    file, p = tmp_path / "a.pdopt", {"w": jnp.ones(3)}
    tx = pj.lift(rule(), 0.1)
    _, state = tx.update(p, tx.init(p), p)
    pj.checkpoint.save_optimizer(state, file)
    opt = pj.optimizer.Optimizer(0.1, pj.parameters(p), rule=rule())
    opt.minimize(lambda q: q["w"].sum())
    theirs, ours = pj.load(file), opt.state_dict()
    assert theirs[f"w_{name}_0"].shape == ours[f"w_{name}_0"].shape == shape
    assert float(pj.checkpoint.load_optimizer(tx.init(p), ours).shared[name]) == 0.5
    again = pj.optimizer.Optimizer(0.1, pj.parameters(p), rule=rule())
    pj.checkpoint.load_optimizer(again, file)
    for k, v in ours.items():
        np.testing.assert_array_equal(again.state_dict()[k], v)
    assert {row.slot for row in pj.checkpoint.inspect(file).rows} == {"m", name}


def test_rules_that_disagree_about_the_same_accumulators_are_refused():
    def of(full):
        @pj.rule
        class Rule(pj.Rule):
            slots: ClassVar = ("m",)
            full_shape: ClassVar = full

            def shared(self):
                return {"disputed": 1.0}

        Rule.__qualname__ = f"Full{len(full)}"
        return pj.lift(Rule(), 0.1).init(jnp.ones(3))

    from paddlejax.checkpoint.states import State

    entries, _ = State(of(("disputed",))).entries(None)
    assert entries["param_disputed_0"].shape == (3,)
    with pytest.raises(ValueError, match="accumulators disputed, m.*Full1: disputed; .*Full0: none"):
        State(of(()))


def test_a_state_that_no_rule_here_made_is_refused():
    state = pj.momentum(0.1).init({"w": jnp.ones(2)})._replace(shared={"nobodys": jnp.ones(())})
    with pytest.raises(ValueError, match="accumulators nobodys, velocity.*no rule"):
        pj.checkpoint.save_optimizer(state, "never.pdopt")


def test_masters_of_parameters_that_differ_in_a_counter_only(tmp_path):
    p = {"w_0": jnp.ones(2, jnp.bfloat16), "w_1": jnp.ones(2, jnp.bfloat16)}
    tx = pj.with_master_weights(pj.momentum(0.1))
    _, state = tx.update(p, tx.init(p), p)
    pj.checkpoint.save_optimizer(state, tmp_path / "a.pdopt")
    loaded = pj.checkpoint.load_optimizer(tx.init(p), tmp_path / "a.pdopt")
    np.testing.assert_array_equal(loaded.master["w_1"], state.master["w_1"])
