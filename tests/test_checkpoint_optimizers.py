"""Optimizer states of real Paddle's checkpoints: loaded by name, continued, written, refused with reasons."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import CASES, END, HALF, TOLERANCE, error

import paddlejax as paddle
from paddlejax.checkpoint import (
    load,
    load_optimizer,
    load_parameters,
    parameter_names,
    save_optimizer,
    save_parameters,
)
from paddlejax.hyper import ArgumentError
from paddlejax.optimizer.ledger import StateDictError

BY_NAME = {case.name: case for case in CASES}
ADAM, SGD = BY_NAME["adam"], BY_NAME["sgd_bf16_master"]
lr, dygraph = paddle.optimizer.lr, paddle.fluid.dygraph
cases = pytest.mark.parametrize("case", CASES, ids=str)


def tensors(entries):
    """The accumulators and masters of a state_dict."""
    found = {k: v for k, v in entries.items() if hasattr(v, "shape") and k not in ("global_step",)}
    return found | {f"master of {k}": v for k, v in entries.get("master_weights", {}).items()}


def same(got, want):
    """Equal entries, bit for bit; numbers of a schedule too."""
    assert got.keys() == want.keys()
    for key, x in want.items():
        if isinstance(x, dict):
            same(got[key], x)
        elif hasattr(x, "shape"):
            np.testing.assert_array_equal(np.asarray(got[key]), np.asarray(x), strict=True, err_msg=key)
        else:
            assert got[key] == x, key


def test_all_cases_are_here():
    assert len(CASES) == 15 and sum(case.fluid for case in CASES) == 5


@cases
def test_object_continues_a_recorded_checkpoint(case, tmp_path):
    with case.precision():
        params = case.parameters()
        scheduler = case.scheduler()
        opt = case.optimizer(params, scheduler)
        load_parameters(params, case.model(HALF))
        load_optimizer(opt, case.state(HALF))
        for key, p in zip(case.names, params, strict=True):
            np.testing.assert_array_equal(p.numpy(), case.of(f"param/{HALF}")[key], strict=True)
        same(tensors(opt.state_dict()), case.expected(HALF)[1])

        rates = case.run(opt, scheduler, params, HALF + 1, END)
        np.testing.assert_allclose(rates, case.manifest["lr"][HALF:], rtol=1e-7 if case.fluid else 1e-14)
        pairs = list(zip(case.names, params, strict=True))
        expected, want = case.expected(END)
        assert max(error(p.value, expected[key]) for key, p in pairs) <= TOLERANCE
        state = opt.state_dict()
        assert tensors(state).keys() == want.keys()
        assert max([0.0, *(error(tensors(state)[k], want[k]) for k in want)]) <= TOLERANCE

        theirs = load(case.state(END), return_numpy=True)
        assert tensors(theirs).keys() == want.keys()
        assert set(theirs) == set(state)
        if (schedule := theirs.get("LR_Scheduler")) is not None:
            assert state["LR_Scheduler"].keys() == schedule.keys()
            for k, x in schedule.items():
                inner = isinstance(x, dict)
                pairs = (
                    [(state["LR_Scheduler"][k][i], x[i]) for i in x]
                    if inner
                    else [(state["LR_Scheduler"][k], x)]
                )
                np.testing.assert_allclose(
                    *map(np.array, zip(*pairs, strict=True)), rtol=1e-7 if case.fluid else 1e-13
                )

        protocol = 2 if case.fluid else 4
        save_optimizer(opt, tmp_path / "opt.pdopt", protocol=protocol)
        save_parameters(params, tmp_path / "model.pdparams", protocol=protocol)
        fresh = case.parameters()
        again = case.optimizer(fresh, case.scheduler())
        load_parameters(fresh, tmp_path / "model.pdparams")
        load_optimizer(again, tmp_path / "opt.pdopt")
        same(again.state_dict(), state)
        for p, q in zip(fresh, params, strict=True):
            np.testing.assert_array_equal(p.numpy(), q.numpy(), strict=True)


@cases
def test_functions_continue_a_recorded_checkpoint(case, tmp_path):
    with case.precision():
        names = parameter_names(case.model(HALF))
        assert names == {tensor: key for key, tensor in case.names.items()}
        params = load_parameters(case.tree("init"), case.model(HALF))
        tx = case.transformation()
        state = load_optimizer(tx.init(params), case.state(HALF), names)
        scheduler = case.scheduler()
        scheduled = isinstance(case.config["scheduler"], list)
        if not isinstance(scheduler, float):
            scheduler.set_state_dict(load(case.state(HALF))["LR_Scheduler"])
        counted = scheduled and case.schedule() is not None
        update = jax.jit(tx.update)
        for step in range(HALF + 1, END + 1):
            if scheduled and not counted:
                state = paddle.set_learning_rate(
                    state, float(scheduler() if callable(scheduler) else scheduler)
                )
                case.advance(scheduler, step)
            updates, state = update(case.tree(f"grad/{step}"), state, params)
            params = paddle.apply_updates(params, updates)
            used, recorded_rate = float(paddle.get_learning_rate(state)), case.manifest["lr"][step - 1]
            assert abs(used - recorded_rate) <= TOLERANCE * recorded_rate
        flat = {f"{a}.{b}": x for a, layer in params.items() for b, x in layer.items()}
        expected, want = case.expected(END)
        assert max(error(flat[key], x) for key, x in expected.items()) <= TOLERANCE

        file = tmp_path / "opt.pdopt"
        save_optimizer(state, file, names)
        entries = tensors(load(file, return_numpy=True))
        if case.name == "fluid18_lamb":  # the powers that Paddle 1.8.5 leaves at beta count as 0
            assert all(not entries[k].any() for k in want if "_pow_" in k)
            want = {k: x for k, x in want.items() if "_pow_" not in k}
            entries = {k: x for k, x in entries.items() if "_pow_" not in k}
        assert entries.keys() == want.keys()
        assert max([0.0, *(error(entries[k], want[k]) for k in want)]) <= TOLERANCE
        again = load_optimizer(tx.init(params), file)
        assert jax.tree.structure(again) == jax.tree.structure(state)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, state)


# ------------------------------------------------------------------------------------------ names and errors


def tree_of(case, layer="dense", kinds=("kernel", "bias")):
    """The case's initial parameters under names of a JAX user."""
    renamed = {"weight": kinds[0], "bias": kinds[1]}
    tree = case.tree("init")
    return {f"{layer}{i}": {renamed[k]: x for k, x in tree[name].items()} for i, name in enumerate(tree)}


MAP = {"linear_0.w_0": "dense0/kernel", "linear_0.b_0": "dense0/bias",
       "linear_1.w_0": "dense1/kernel", "linear_1.b_0": "dense1/bias"}  # fmt: skip


def targets(case=ADAM):
    """The same names as a functional state and as an object."""
    tree = tree_of(case)
    return {"functional": paddle.adam(0.1).init(tree), "object": paddle.optimizer.Adam(0.1, parameters=tree)}


@pytest.mark.parametrize("style", ["functional", "object"])
def test_other_names_are_proposed_and_never_guessed(style):
    target = targets()[style]
    with pytest.raises(ValueError) as e:
        load_optimizer(target, ADAM.state(HALF))
    for text in (
        "missing: dense0/kernel_moment1_0",
        "unexpected: linear_0.w_0_moment1_0",
        "nothing was changed",
    ):
        assert text in str(e.value)
    proposed = re.search(r"names=(\{.*\})", str(e.value), re.DOTALL)
    assert proposed and eval(proposed[1]) == MAP  # as a user would paste it
    if style == "object":
        assert target.state_dict() == {}
    loaded = load_optimizer(target, ADAM.state(HALF), eval(proposed[1]))
    moment = ADAM.arrays[f"acc/{HALF}/linear_1.w_0_moment1_0"]
    got = loaded.slots["moment1"]["dense1"]["kernel"] if style == "functional" else None
    got = target.state_dict()["dense1/kernel_moment1_0"] if got is None else got
    np.testing.assert_array_equal(got, moment)


def test_proposal_marks_what_only_the_order_decides():
    sizes = {f"layer{i}": jnp.zeros((2, 2)) for i in (10, 9)}
    state = {f"linear_{i}.w_0_velocity_0": np.zeros((2, 2), np.float32) for i in range(2)}
    with pytest.raises(ValueError, match="order") as e:
        load_optimizer(paddle.momentum(0.1, 0.9).init(sizes), state)
    lines = ['"linear_0.w_0": "layer9",  # by their order: check it', '"linear_1.w_0": "layer10",']
    assert str(e.value).endswith("names={\n    " + "\n    ".join(lines) + "\n}")


@pytest.mark.parametrize("style", ["functional", "object"])
def test_everything_wrong_is_said_at_once(style):
    entries = load(ADAM.state(HALF), return_numpy=True)
    entries["linear_0.w_0_moment3_0"] = entries.pop("linear_0.w_0_moment1_0")
    entries["linear_1.b_0_moment1_0"] = np.zeros(4, np.float32)
    entries["linear_1.w_0_moment2_0"] = np.zeros((5, 3))
    entries["linear_1.w_0_beta1_pow_acc_0"] = [0.9]
    entries["linear_0.b_0_moment2_1"] = entries["linear_0.b_0_moment2_0"]
    target = targets()[style]
    with pytest.raises(ValueError) as e:
        load_optimizer(target, entries, MAP)
    for text in (
        "missing: dense0/kernel_moment1_0 (nearest: dense",
        "unexpected: dense0/kernel_moment3_0",
        "misshapen: dense1/bias_moment1_0 has shape (4,), expected (3,)",
        "wrong dtype: dense1/kernel_moment2_0 is float64, expected float32",
        "not an array: dense1/kernel_beta1_pow_acc_0 is list",
        "ambiguous: dense0/bias_moment2_0 and dense0/bias_moment2_1",
        "nothing was changed",
    ):
        assert text in str(e.value)
    if style == "object":
        assert target.state_dict() == {}


@pytest.mark.parametrize(
    "names, error, words",
    [
        ([("linear_0.w_0", "w")], TypeError, "names: found list, expected a dict"),
        ({"linear_0.w_0": 3}, TypeError, "names: found 'linear_0.w_0': 3, expected two names"),
        ({"a": "w", "b": "w"}, ValueError, "names: found w more than once"),
        ({**MAP, "linear_0.w_0": "dense0/kernal"}, ValueError, "missing: dense0/kernel_moment1_0"),
    ],
)
def test_a_wrong_map_is_refused(names, error, words):
    for target in targets().values():
        with pytest.raises(error, match=words):
            load_optimizer(target, ADAM.state(HALF), names)


def test_a_map_beside_the_names_in_the_file_is_refused():
    entries = {re.sub(r"^linear_1.b_0", "dense1/bias", k): v for k, v in load(ADAM.state(HALF)).items()}
    for target in targets().values():
        with pytest.raises(ValueError, match="'linear_1.b_0': 'dense1/bias', but the file has dense1/bias"):
            load_optimizer(target, entries, MAP)
        load_optimizer(target, entries, {k: v for k, v in MAP.items() if v != "dense1/bias"} | {"x": "y"})
    with pytest.raises(ValueError, match="'zzz': '0/bias', but the file has 0/bias and no zzz"):
        load_parameters(ADAM.tree("init"), ADAM.model(HALF), {"zzz": "0/bias"})


def test_a_map_of_unknown_names_is_not_saved(tmp_path):
    state = paddle.adam(0.1).init(tree_of(ADAM))
    with pytest.raises(ValueError, match="names: found dense0/kernal, expected some of dense0/bias"):
        save_optimizer(state, tmp_path / "a.pdopt", {"linear_0.w_0": "dense0/kernal"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["functional", "object"])
@pytest.mark.parametrize("target", ["functional", "object"])
def test_a_file_of_ours_knows_its_names(source, target, tmp_path):
    """Under Paddle's names for Paddle, and back without a map, into either style."""
    filled = targets()[source]
    filled = load_optimizer(filled, ADAM.state(HALF), MAP) or filled
    save_optimizer(filled, tmp_path / "opt.pdopt", MAP)
    entries, theirs = (load(f, return_numpy=True) for f in (tmp_path / "opt.pdopt", ADAM.state(HALF)))
    same(tensors(entries), tensors(theirs))
    assert entries["paddlejax"]["names"] == MAP
    fresh = targets()[target]
    again = load_optimizer(fresh, tmp_path / "opt.pdopt") or fresh
    save_optimizer(again, tmp_path / "again.pdopt", MAP)
    same(tensors(load(tmp_path / "again.pdopt", return_numpy=True)), tensors(theirs))


def test_trailing_counters_and_optimizer_names_do_not_matter():
    entries = load(ADAM.state(HALF), return_numpy=True)
    second = {re.sub(r"_0$", "_1", k): v for k, v in entries.items()}
    state = load_optimizer(targets()["functional"], second, MAP)
    moment = ADAM.arrays[f"acc/{HALF}/linear_0.b_0_moment2_0"]
    np.testing.assert_array_equal(state.slots["moment2"]["dense0"]["bias"], moment)
    named = {re.sub(r"(w_0|b_0)_(\w+_0)$", r"\1_abc_\2", k): v for k, v in entries.items()}
    tree = tree_of(ADAM)
    state = load_optimizer(paddle.adam(0.1).init(tree), named, MAP, name="abc")
    opt = paddle.optimizer.Adam(0.1, parameters=tree, name="abc")
    load_optimizer(opt, named, MAP)
    for got in (state.slots["moment1"]["dense0"]["kernel"], opt.state_dict()["dense0/kernel_abc_moment1_0"]):
        np.testing.assert_array_equal(got, ADAM.arrays[f"acc/{HALF}/linear_0.w_0_moment1_0"])


def test_powers_that_differ_need_an_object():
    entries = load(ADAM.state(HALF), return_numpy=True)
    entries["linear_0.b_0_beta1_pow_acc_0"] = np.array([0.9], np.float32)
    functional, opt = targets().values()
    with pytest.raises(
        ValueError, match=r"beta1_pow_acc differs between parameters \(dense0/bias: 0.9, .*object"
    ):
        load_optimizer(functional, entries, MAP)
    load_optimizer(opt, entries, MAP)
    assert float(opt.state_dict()["dense0/bias_beta1_pow_acc_0"][0]) == np.float32(0.9)


def test_not_strict_leaves_what_is_absent():
    entries = {k: v for k, v in load(ADAM.state(HALF)).items() if not k.startswith("linear_1")}
    functional, opt = targets().values()
    for target in (functional, opt):
        with pytest.raises(ValueError, match="missing: dense1/kernel_moment1_0"):
            load_optimizer(target, entries, MAP)
    state = load_optimizer(functional, entries, MAP, strict=False)
    assert not np.any(state.slots["moment1"]["dense1"]["kernel"]) and np.any(
        state.slots["moment1"]["dense0"]["bias"]
    )
    load_optimizer(opt, entries, MAP, strict=False)
    assert all(key.startswith("dense0") for key in tensors(opt.state_dict()))


@pytest.mark.parametrize("steps", [0, 1, 3, 700, 3000])
def test_count_is_told_by_the_powers(steps):
    tx, params = paddle.adam(0.1), {"w": jnp.zeros(2)}
    beta1, beta2 = np.float32(0.9), np.float32(0.999)
    for _ in range(steps):
        beta1, beta2 = beta1 * np.float32(0.9), beta2 * np.float32(0.999)
    entries = {"w_moment1_0": np.ones(2, np.float32), "w_moment2_0": np.ones(2, np.float32),
               "w_beta1_pow_acc_0": beta1[None], "w_beta2_pow_acc_0": beta2[None]}  # fmt: skip
    assert int(load_optimizer(tx.init(params), entries).count) == steps
    scheduled = {**entries, "LR_Scheduler": {"last_epoch": 5, "last_lr": 0.1}}
    assert int(load_optimizer(tx.init(params), scheduled).count) == 5
    unknown = {
        **entries,
        "w_beta1_pow_acc_0": np.array([0.5], np.float32),
        "w_beta2_pow_acc_0": np.array([0.25], np.float32),
    }
    assert int(load_optimizer(tx.init(params)._replace(count=jnp.int32(7)), unknown).count) == 7


def test_functions_write_the_schedule_they_are_told(tmp_path):
    rate = paddle.schedules.exponential_decay(0.5, 0.5)
    tx, params = paddle.momentum(rate, 0.9), {"w": jnp.zeros(2)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    save_optimizer(state, tmp_path / "a.pdopt", schedule=rate)
    assert load(tmp_path / "a.pdopt")["LR_Scheduler"] == {"last_epoch": 3, "last_lr": 0.0625}
    scheduler = lr.ExponentialDecay(0.5, 0.5)
    opt = paddle.optimizer.Momentum(scheduler, parameters=params)
    load_optimizer(opt, tmp_path / "a.pdopt")
    assert opt.get_lr() == 0.0625 and scheduler.last_epoch == 3
    with pytest.raises(TypeError, match="schedule: found 0.1, expected a function"):
        save_optimizer(state, tmp_path / "a.pdopt", schedule=0.1)


JUNK = [  # what a file may hold, and what is said of it; objects know no state of ours
    *(({"LR_Scheduler": {"last_epoch": x}}, f"LR_Scheduler: last_epoch is {re.escape(repr(x))}, expected", 2)
      for x in (None, "x", True, [1], -5, float("nan"), float("inf"))),
    ({"LR_Scheduler": {"step_num": 2.5}}, "LR_Scheduler: step_num is 2.5, expected an int", 1),
    ({"LR_Scheduler": {"last_epoch": 2**40}}, "last_epoch is 1099511627776, expected an int", 1),
    ({"master_weights": 3}, "master_weights", 2),
    ({"paddlejax": {"names": [1]}}, "the file's paddlejax: names: found list", 2),
    ({"paddlejax": {"names": {"a": 3}}}, "the file's paddlejax: names: found 'a': 3", 2),
    *(({"LR_Scheduler": None, "paddlejax": {"state": {"0/count": x, "0/learning_rate": 1}}},
       f"0/count is {x}, expected an int", 1)
      for x in (2.5, -1, 2**40)),
]  # fmt: skip


@pytest.mark.parametrize("change, words, styles", JUNK, ids=lambda x: str(x)[:60])
def test_junk_in_a_file_is_one_kind_of_error(change, words, styles):
    tree = {"w": jnp.ones(2)}
    state = paddle.adam(0.1).init(tree)
    opt = paddle.optimizer.Adam(lr.StepDecay(0.1, 3), parameters=tree)
    (w,) = opt.parameter_list
    w.grad = jnp.ones(2)
    opt.step()
    before = opt.state_dict()
    for target in (state, opt)[:styles]:
        with pytest.raises(StateDictError, match=words):
            load_optimizer(target, {**before, **change})
    same(opt.state_dict(), before)


def test_wrong_arguments(tmp_path):
    functional, opt = targets().values()
    with pytest.raises(TypeError, match="params: found .*, expected None"):
        load_optimizer(opt, ADAM.state(HALF), MAP, params={})
    with pytest.raises(TypeError, match="schedule: found .*, expected None"):
        save_optimizer(opt, tmp_path / "a", schedule=len)
    for bad in ((), {"w": jnp.zeros(2)}, paddle.adam(0.1)):
        with pytest.raises(TypeError, match=r"expected tx.init\(params\)"):
            load_optimizer(bad, ADAM.state(HALF))
    for argument, kind, words in (
        ({"strict": "no"}, TypeError, "strict: found 'no', expected True or False"),
        ({"name": 3}, TypeError, "name: found 3, expected the name="),
        ({"params": 3}, TypeError, "params: at param: found 3, expected an array"),
        ({"params": {"w": jnp.ones(2)}}, ValueError, "params: found no dense0/bias, dense0/kernel"),
    ):
        with pytest.raises(kind, match=words):
            load_optimizer(functional, ADAM.state(HALF), MAP, **argument)
    for other, method in ((lr.StepDecay(0.1, 3), "set"), (paddle.amp.GradScaler(), "load")):
        expected = f"found {type(other).__name__}, expected an optimizer, a wrapper of one, or tx.init"
        with pytest.raises(TypeError, match=rf"{expected}.*; its own {method}_state_dict takes"):
            load_optimizer(other, ADAM.state(HALF))
        with pytest.raises(TypeError, match=rf"{expected}.*; its own state_dict\(\) is for paddlejax.save"):
            save_optimizer(other, tmp_path / "a")
    tx = paddle.adam(0.1)
    with pytest.raises(TypeError, match="the state: 0/count is a ShapeDtypeStruct, expected an array"):
        save_optimizer(jax.eval_shape(tx.init, tree_of(ADAM)), tmp_path / "a")
    with pytest.raises(TypeError, match="the state: 0/count is a .*Tracer, .* outside of jax.jit"):
        jax.jit(lambda s: save_optimizer(s, tmp_path / "a"))(functional)
    with pytest.raises(ValueError, match="found two parameters called a/b, expected distinct paths"):
        save_optimizer(tx.init({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}), tmp_path / "a")
    two = paddle.chain(paddle.adam(0.1), paddle.adam(0.1)).init(tree_of(ADAM))
    with pytest.raises(ValueError, match="two rules with dense0/bias_moment1_0"):
        save_optimizer(two, tmp_path / "a")
    dpsgd = paddle.dpsgd(0.1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="params: draws are filed"):
        save_optimizer(dpsgd.init(jnp.zeros(2)), tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- between the two versions


SCHEDULES = [  # a fluid schedule, the 2.x scheduler of the same rates, and whether it moves by epoch
    (lambda: dygraph.NoamDecay(16, 6, learning_rate=0.3), lambda: lr.NoamDecay(16, 6, 0.3), False),
    (lambda: dygraph.CosineDecay(0.1, 1, 12), lambda: lr.CosineAnnealingDecay(0.1, 12), False),
    (lambda: dygraph.PiecewiseDecay([3, 8], [0.3, 0.2, 0.1], 0),
     lambda: lr.PiecewiseDecay([3, 8], [0.3, 0.2, 0.1]), False),
    (lambda: dygraph.PolynomialDecay(0.1, 9), lambda: lr.PolynomialDecay(0.1, 9), False),
    (lambda: dygraph.LinearLrWarmup(0.1, 4, 0.0, 0.1), lambda: lr.LinearWarmup(0.1, 4, 0.0, 0.1), False),
    (lambda: dygraph.StepDecay(0.1, 2, 0.5), lambda: lr.StepDecay(0.1, 2, 0.5), True),
    (lambda: dygraph.MultiStepDecay(0.1, [2, 7], 0.5), lambda: lr.MultiStepDecay(0.1, [2, 7], 0.5), True),
    (lambda: dygraph.LambdaDecay(0.1, lambda e: 0.9**e), lambda: lr.LambdaDecay(0.1, lambda e: 0.9**e), True),
]  # fmt: skip


def stepped(opt, scheduler, by_epoch, steps):
    """The rates of some steps, each followed by what moves the scheduler."""
    (w,) = opt.parameter_list
    rates = []
    for _ in range(steps):
        w.grad = jnp.ones(2)
        opt.step()
        rates.append(opt.current_step_lr() if hasattr(opt, "current_step_lr") else opt.get_lr())
        if isinstance(scheduler, dygraph.LearningRateDecay):
            if by_epoch:
                scheduler.epoch()
        else:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    "old, new, by_epoch", SCHEDULES, ids=lambda x: x()[0] if isinstance(x, list) else None
)
def test_schedules_go_on_in_the_other_version(old, new, by_epoch, tmp_path):
    def made(make, fluid):
        scheduler, params = make(), {"w": jnp.zeros(2)}
        cls = paddle.fluid.optimizer.Momentum if fluid else paddle.optimizer.Momentum
        kwargs = {"parameter_list" if fluid else "parameters": params}
        return cls(scheduler, momentum=0.9, **kwargs), scheduler

    for first, second, fluid in ((old, new, True), (new, old, False)):
        source, whole = made(first, fluid), made(second, not fluid)
        begin = 1 if source[1].__class__.__name__ in ("NoamDecay", "LinearLrWarmup") and fluid else 0
        stepped(*source, by_epoch, 5)
        save_optimizer(source[0], tmp_path / "opt.pdopt")
        target = made(second, not fluid)
        load_optimizer(target[0], tmp_path / "opt.pdopt")
        shift = {"NoamDecay": 1, "LinearWarmup": 1, "LinearLrWarmup": 1}.get(whole[1].__class__.__name__, 0)
        want = stepped(*whole, by_epoch, 12)
        # Noam and the warm-up count from 1 in 1.x, and what is restored is the argument of the formula
        start = 5 + (begin if fluid else -shift)
        np.testing.assert_allclose(
            stepped(*target, by_epoch, 6), want[start : start + 6], rtol=2e-6, atol=1e-9
        )


def test_plateau_goes_on_in_the_other_version(tmp_path):
    losses = [3.0, 2.0, 2.5, 2.4, 2.6, 2.7, 2.1, 2.2, 2.3, 2.4]

    def made(fluid):
        if fluid:
            scheduler = dygraph.ReduceLROnPlateau(0.1, decay_rate=0.5, patience=1, cooldown=1)
            return paddle.fluid.optimizer.SGD(scheduler, parameter_list={"w": jnp.zeros(2)}), scheduler
        scheduler = lr.ReduceOnPlateau(0.1, factor=0.5, patience=1, cooldown=1)
        return paddle.optimizer.SGD(scheduler, parameters={"w": jnp.zeros(2)}), scheduler

    def run(pair, losses):
        rates = []
        for loss in losses:
            pair[1].step(
                np.float64(loss).reshape(1) if isinstance(pair[1], dygraph.ReduceLROnPlateau) else loss
            )
            rates.append(pair[1].upcoming() if isinstance(pair[1], dygraph.ReduceLROnPlateau) else pair[1]())
        return rates

    for fluid in (True, False):
        source, target = made(fluid), made(not fluid)
        before = run(source, losses[:5])
        save_optimizer(source[0], tmp_path / "opt.pdopt")
        load_optimizer(target[0], tmp_path / "opt.pdopt")
        got = before + run(target, losses[5:])
        np.testing.assert_allclose(got, run(made(True), losses), rtol=1e-6)


def test_a_schedule_without_counterpart_is_refused():
    entries = {"LR_Scheduler": {"step_num": 5}, "global_step": np.array([5], np.int32)}
    opt = paddle.optimizer.SGD(lr.LinearLR(0.1, 10), parameters={"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="LR_Scheduler: found .*step_num.* no counterpart in LinearLR"):
        load_optimizer(opt, entries)


LAMB = BY_NAME["fluid18_lamb"]


def test_lamb_of_1x_goes_on_without_bias_correction():
    """Its powers never advance: a Lamb that corrects would take step 10 for step 1."""
    params = LAMB.parameters(f"param/{HALF}")
    rate = LAMB.schedule()
    opt = paddle.optimizer.Lamb(0.1, 0.02, parameters=params, always_adapt=True)
    load_optimizer(opt, LAMB.state(HALF))
    powers = {k: v for k, v in opt.state_dict().items() if "_pow_" in k}
    assert len(powers) == 8 and not any(np.any(v) for v in powers.values())
    for step in range(HALF + 1, END + 1):
        opt.set_lr(float(rate(step - 1)))
        for key, p in zip(LAMB.names, params, strict=True):
            p.grad = jnp.asarray(LAMB.of(f"grad/{step}")[key])
        opt.step()
    expected = LAMB.of(f"param/{END}")
    assert max(error(p.value, expected[k]) for k, p in zip(LAMB.names, params, strict=True)) <= TOLERANCE
    # the fluid class takes them as they are
    fluid = LAMB.optimizer(LAMB.parameters(), LAMB.scheduler())
    load_optimizer(fluid, LAMB.state(HALF))
    assert float(fluid.state_dict()["linear_0.w_0_beta1_pow_acc_0"][0]) == np.float32(0.9)


def test_lamb_of_3x_keeps_its_powers():
    case = BY_NAME["lamb"]
    opt = case.optimizer(case.parameters(), case.scheduler())
    load_optimizer(opt, case.state(HALF))
    assert float(opt.state_dict()["linear_0.w_0_beta1_pow_acc_0"][0]) == pytest.approx(0.9**11)


# ----------------------------------------------------------------------------------------------- parameters


def test_parameters_by_any_name(tmp_path):
    want = ADAM.of(f"param/{HALF}")
    by_tensor = ADAM.parameters()
    assert load_parameters(by_tensor, ADAM.model(HALF)) is not None
    by_key = [paddle.Parameter(jnp.zeros_like(x), key) for key, x in want.items()]
    load_parameters(by_key, ADAM.model(HALF))
    mapped = load_parameters(tree_of(ADAM), ADAM.model(HALF), MAP)
    from_dict = load_parameters(ADAM.tree("init"), load(ADAM.model(HALF)))
    for (key, x), p, q in zip(want.items(), by_tensor, by_key, strict=True):
        layer, kind = key.split(".")
        ours = mapped[f"dense{layer}"][{"weight": "kernel"}.get(kind, kind)]
        for got in (p.numpy(), q.numpy(), ours, from_dict[layer][kind]):
            np.testing.assert_array_equal(np.asarray(got), x, strict=True)

    save_parameters(mapped, tmp_path / "a.pdparams", MAP)
    assert parameter_names(tmp_path / "a.pdparams") == {t: o.replace("/", ".") for t, o in MAP.items()}
    save_parameters(ADAM.tree("init"), tmp_path / "b.pdparams", parameter_names(ADAM.model(HALF)))
    table = "StructuredToParameterName@@"
    files = (load(f, keep_name_table=True) for f in (tmp_path / "b.pdparams", ADAM.model(HALF)))
    assert len({tuple(sorted(f[table].items())) for f in files}) == 1


def test_wrong_parameters_are_said_at_once():
    tree = tree_of(ADAM)
    tree["dense0"]["kernel"] = jnp.zeros((6, 4))
    with pytest.raises(ValueError) as e:
        load_parameters(tree, ADAM.model(HALF), {k: v for k, v in MAP.items() if k != "linear_1.b_0"})
    for text in ("misshapen: 0.weight has shape (6, 5), expected (6, 4)", "missing: dense1/bias",
                 "unexpected: 1.bias (tensor linear_1.b_0)", '"1.bias": "dense1/bias"'):  # fmt: skip
        assert text in str(e.value)
    params = SGD.parameters()
    with pytest.raises(ValueError, match="wrong dtype: 0.weight is float32, expected bfloat16"):
        load_parameters(params, ADAM.model(HALF))
    for p, x in zip(params, SGD.of("init").values(), strict=True):
        np.testing.assert_array_equal(p.numpy(), x)
    with pytest.raises(ValueError, match="StructuredToParameterName@@: found 3, expected a dict of names"):
        load_parameters({"a": jnp.ones(1)}, {"a": np.ones(1), "StructuredToParameterName@@": 3})
    with pytest.raises(TypeError, match="at a: found 3, expected an array"):
        load_parameters({"a": 3}, ADAM.model(HALF))


@pytest.mark.parametrize("tree, key", [
    ([paddle.Parameter(jnp.ones(1), "x"), paddle.Parameter(jnp.zeros(1), "x")], "x"),
    ({"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(1)}, "a.b"),
    ({"a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1)}, "a.b"),
], ids=["names", "dots", "paths"])  # fmt: skip
def test_parameters_of_one_name_are_refused(tree, key, tmp_path):
    words = f"found {key} more than once, expected distinct names"
    with pytest.raises(ArgumentError, match=words):
        save_parameters(tree, tmp_path / "x")
    with pytest.raises(ArgumentError, match=words):
        load_parameters(tree, {key: np.ones(1)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("objects", [False, True])
def test_parameters_come_back_from_what_save_made_of_a_tree(objects, tmp_path):
    """The levels of a tree are nested dicts in the file, or names with dots: both mean the same."""
    tree = {"layers": [{"w": jnp.ones(2)}, {"w": jnp.full(2, 2.0), "b": jnp.zeros(1)}], "scale": jnp.ones(())}
    empty = jax.tree.map(jnp.zeros_like, tree)
    if objects:
        tree, empty = paddle.parameters(tree), paddle.parameters(empty)
    paddle.save(tree, tmp_path / "model.pdparams")
    for file in (tmp_path / "model.pdparams", load(tmp_path / "model.pdparams")):
        found = load_parameters(empty, file)
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(StateDictError, match="found layers.0.w more than once"):
        load_parameters(empty, {"layers": {"0": {"w": 1}}, "layers.0.w": 2})
