"""States of optax and torch in ours and back: both sides take ten more steps together."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paddlejax as pj
from paddlejax import interop
from paddlejax.checkpoint import CheckpointError
from paddlejax.optimizer.ledger import StateDictError

PARAMS = {"a": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}, "b": jnp.array([0.3, -0.7])}
RNG = np.random.default_rng(0)
GRADS = [
    jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(20)
]
FALLING = optax.linear_schedule(0.1, 0.0, 20)


def train(tx, params, state, grads):
    """Parameters and state after these gradients."""
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for g in grads:
            updates, state = update(g, state, params)
            params = optax.apply_updates(params, updates)
    return params, state


def stepped(tx, steps=1):
    """The state after the first steps."""
    return train(tx, PARAMS, tx.init(PARAMS), GRADS[:steps])[1]


def apart(found, want):
    """The largest difference."""
    return max(
        float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True)
    )


# ------------------------------------------------------------------------- optax

PAIRS = {
    "adam": lambda: (pj.adam(FALLING), optax.adam(FALLING)),
    "adamw": lambda: (pj.adamw(FALLING, weight_decay=0.1), optax.adamw(FALLING, weight_decay=0.1)),
    "sgd": lambda: (pj.sgd(FALLING), optax.sgd(FALLING)),
    "momentum": lambda: (pj.momentum(FALLING), optax.sgd(FALLING, 0.9)),
    "nesterov": lambda: (pj.momentum(0.01, use_nesterov=True), optax.sgd(0.01, 0.9, nesterov=True)),
    "rmsprop": lambda: (pj.rmsprop(0.01, 0.9, 1e-8), optax.rmsprop(0.01, 0.9, 1e-8)),
    "rmsprop, all of it": lambda: (
        pj.rmsprop(0.01, 0.9, 1e-8, 0.9, True),
        optax.rmsprop(0.01, 0.9, 1e-8, centered=True, momentum=0.9),
    ),
    "lamb": lambda: (pj.lamb(0.01, 0.01), optax.lamb(0.01, weight_decay=0.01)),
    "adagrad": lambda: (pj.adagrad(0.1, 1e-7, initial_accumulator_value=0.1), optax.adagrad(0.1)),
    "injected": lambda: (pj.adam(0.03), optax.inject_hyperparams(optax.adam)(0.03)),
    "injected schedule": lambda: (pj.adam(FALLING), optax.inject_hyperparams(optax.adam)(FALLING)),
    "MultiSteps": lambda: (
        pj.accumulate_gradients(pj.adam(FALLING), 2),
        optax.MultiSteps(optax.adam(FALLING), 2),
    ),
    "chain in a guard": lambda: (
        pj.chain(pj.clip_by_global_norm(1.0), pj.adam(0.01)),
        optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), 3),
    ),
    "multi_transform": lambda: (
        pj.by_path([("b", {"rule": pj.momentum(0.1)})], pj.adam(0.01)),
        optax.multi_transform({"x": optax.adam(0.01), "y": optax.sgd(0.1, 0.9)}, {"a": "x", "b": "y"}),
    ),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_a_run_goes_on_in_optax_and_from_optax(make):
    ours, theirs = make()
    fresh = ours.init(PARAMS), theirs.init(PARAMS)
    params, state = train(ours, PARAMS, fresh[0], GRADS[:10])
    there = interop.to_optax(state, fresh[1])
    assert jax.tree.map(jnp.result_type, there) == jax.tree.map(jnp.result_type, fresh[1])
    want, _ = train(ours, params, state, GRADS[10:])
    assert apart(train(theirs, params, there, GRADS[10:])[0], want) < 2e-6
    if "schedule" in str(jax.tree.structure(there)).lower():
        assert apart(train(theirs, params, fresh[1], GRADS[10:])[0], want) > 1e-2

    params, state = train(theirs, PARAMS, fresh[1], GRADS[:10])
    here = interop.from_optax(state, fresh[0])
    assert jax.tree.map(jnp.result_type, here) == jax.tree.map(jnp.result_type, fresh[0])
    want, _ = train(theirs, params, state, GRADS[10:])
    assert apart(train(ours, params, here, GRADS[10:])[0], want) < 2e-6


def test_an_injected_rate_goes_with_the_state_and_a_count_can_be_said():
    injected = optax.inject_hyperparams(optax.sgd)(0.1)
    state = pj.set_learning_rate(pj.momentum(0.1).init(PARAMS), 0.02)
    there = interop.to_optax(pj.set_learning_rate(pj.sgd(0.1).init(PARAMS), 0.02), injected.init(PARAMS))
    assert float(there.hyperparams["learning_rate"]) == pytest.approx(0.02)
    back = interop.from_optax(there, pj.sgd(0.5).init(PARAMS))
    assert float(pj.get_learning_rate(back)) == pytest.approx(0.02)
    assert int(interop.from_optax(optax.sgd(0.1, 0.9).init(PARAMS), state, count=7).count) == 7


def test_masters_and_bfloat16_moments():
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    _, state = train(
        optax.adam(0.1, mu_dtype=jnp.bfloat16),
        PARAMS,
        optax.adam(0.1, mu_dtype=jnp.bfloat16).init(PARAMS),
        GRADS[:3],
    )
    tx = pj.with_master_weights(pj.adam(0.1))
    found = interop.from_optax(state, tx.init(narrow))
    assert found.inner.slots["moment1"]["b"].dtype == jnp.float32 and int(found.inner.count) == 3
    assert (
        apart(found.inner.slots["moment1"], jax.tree.map(lambda x: x.astype(jnp.float32), state[0].mu)) == 0
    )


OTHER = {"a": {"w": jnp.zeros((2, 3))}, "c": jnp.zeros(2)}
HALF = optax.MultiSteps(optax.adam(0.1), 2)
ADAM = pj.adam(0.1).init(PARAMS)
WRONG = [
    (
        lambda: interop.to_optax(ADAM, optax.sgd(0.1, 0.9).init(PARAMS)),
        StateDictError,
        "missing: velocity of a/w(.|\n)*unexpected: moment1 of a/w",
    ),
    (
        lambda: interop.to_optax(ADAM, optax.adam(0.1).init(OTHER)),
        StateDictError,
        "missing: moment1 of c(.|\n)*misshapen: moment1 of a/w has shape(.|\n)*unexpected: moment2 of b",
    ),
    (lambda: interop.to_optax(ADAM, optax.amsgrad(0.1).init(PARAMS)), TypeError, "maximum of the corrected"),
    (
        lambda: interop.to_optax(pj.adam(0.1, amsgrad=True).init(PARAMS), optax.amsgrad(0.1).init(PARAMS)),
        TypeError,
        "amsgrad's moment2_max",
    ),
    (
        lambda: interop.to_optax(pj.nadam(0.1).init(PARAMS), optax.nadam(0.1).init(PARAMS)),
        TypeError,
        "expected Adam, AdamW, Lamb",
    ),
    (
        lambda: interop.to_optax(optax.adam(0.1).init(PARAMS), ADAM),
        TypeError,
        "state: found tuple without a rule's state",
    ),
    (lambda: interop.to_optax(ADAM, ADAM), TypeError, "opt_state: found a state of paddlejax"),
    (
        lambda: interop.to_optax(stepped(pj.accumulate_gradients(pj.sgd(0.1), 2)), HALF.init(PARAMS)),
        ValueError,
        "state: found 1 gradients",
    ),
    (
        lambda: interop.to_optax(stepped(pj.rmsprop(0.1, centered=True)), optax.rmsprop(0.1).init(PARAMS)),
        StateDictError,
        "unexpected: mean_grad of a/w",
    ),
    (
        lambda: interop.from_optax(optax.adam(0.1).init(OTHER), ADAM),
        StateDictError,
        "missing: b_moment1_0(.|\n)*misshapen: a/w_moment1_0(.|\n)*unexpected: c_moment1_0",
    ),
    (
        lambda: interop.from_optax(optax.lion(0.1).init(PARAMS), ADAM),
        TypeError,
        "found ScaleByLionState at 0, of which there is no counterpart",
    ),
    (
        lambda: interop.from_optax(optax.chain(optax.adam(0.1), optax.adam(0.1)).init(PARAMS), ADAM),
        ValueError,
        "and another one for a/w, b",
    ),
    (
        lambda: interop.from_optax(optax.chain(optax.trace(0.9), optax.adam(0.1)).init(PARAMS), ADAM),
        StateDictError,
        "unexpected: a/w_velocity_0",
    ),
    (
        lambda: interop.from_optax(optax.masked(optax.adam(0.1), {"a": True, "b": False}).init(PARAMS), ADAM),
        StateDictError,
        "missing: b_moment1_0",
    ),
    (
        lambda: interop.from_optax(optax.adam(0.1).init(PARAMS), stepped(pj.adam(0.1))),
        ValueError,
        "found one after 1 updates",
    ),
    (lambda: interop.from_optax(stepped(HALF), ADAM), ValueError, "found 1 gradients gathered in mini_step"),
    (lambda: interop.from_optax(optax.adam(0.1).init(PARAMS), ADAM, count=-1), ValueError, "count: found -1"),
    (
        lambda: interop.from_optax(optax.adam(0.1).init(PARAMS), ADAM, names={"z": 1}),
        TypeError,
        "names: found 'z': 1",
    ),
    (
        lambda: jax.jit(lambda s: interop.to_optax(s, optax.adam(0.1).init(PARAMS)))(ADAM),
        RuntimeError,
        "to_optax",
    ),
]


@pytest.mark.parametrize("call, error, words", WRONG)
def test_what_does_not_fit_optax_is_said_at_once(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_optax_masks_keeps_what_it_has_if_not_strict():
    theirs = optax.masked(optax.adam(0.1), {"a": True, "b": False})
    state = stepped(theirs, 2)
    found = interop.from_optax(state, ADAM, strict=False)
    assert int(found.count) == 2 and not found.slots["moment1"]["b"].any()
    assert apart(found.slots["moment1"]["a"], state.inner_state[0].mu["a"]) == 0


# ------------------------------------------------------------------------- torch

TORCH = np.load(Path(__file__).parent / "golden" / "torch.npz")
CASES = json.loads(str(TORCH["cases"]))["cases"]
RULES = {
    "adam": lambda: pj.adam(0.01),
    "amsgrad": lambda: pj.adam(0.01, amsgrad=True),
    "adamw": lambda: pj.adamw(0.01, weight_decay=0.1),
    "momentum": lambda: pj.momentum(0.01),
    "nesterov": lambda: pj.momentum(0.01, use_nesterov=True),
    "rmsprop": lambda: pj.rmsprop(0.01, 0.95, 1e-16),
    "rmsprop_momentum": lambda: pj.rmsprop(0.01, 0.95, 1e-16, 0.9, True),
    "adagrad": lambda: pj.adagrad(0.1, 1e-10),
}
KERNEL = ["fc/kernel"]
NAMES = {"fc.weight": "fc/kernel"}


def recorded(case, step):
    """The parameters of torch after so many steps, in our layout."""
    found = {name: jnp.asarray(TORCH[f"{case}/{step}/fc.{name}"]) for name in ("weight", "bias")}
    return {"fc": {"kernel": found["weight"].T, "bias": found["bias"]}}


def gradients(steps):
    """The recorded gradients of these steps, in our layout."""
    for i in steps:
        weight, bias = (jnp.asarray(TORCH[f"grads/{i}/fc.{name}"]) for name in ("weight", "bias"))
        yield {"fc": {"kernel": weight.T, "bias": bias}}


def flat(case):
    """The recorded state, flat."""
    start = f"{case}/state."
    return {key.removeprefix(start): TORCH[key] for key in TORCH.files if key.startswith(start)}


def numbered(case):
    """The recorded state as state_dict() has it."""
    state = {}
    for key, x in flat(case).items():
        name, slot = key.rsplit(".", 1)
        state.setdefault(["fc.weight", "fc.bias"].index(name), {})[slot] = x
    return {"state": state, "param_groups": [{"lr": CASES[case][1]["lr"], "params": [0, 1]}]}


@pytest.mark.parametrize("case", RULES)
def test_a_run_goes_on_from_torch(case):
    tx = RULES[case]()
    state = interop.from_torch(flat(case), tx.init(recorded(case, 10)), NAMES, KERNEL)
    params, after = train(tx, recorded(case, 10), state, gradients(range(10, 20)))
    # Torch has RMSprop's epsilon outside the root; here it is so small that both are the same.
    assert apart(params, recorded(case, 20)) < 2e-6
    assert int(after.count) == (20 if "nesterov" not in case and case != "momentum" else 10)
    if case != "rmsprop":  # whose mean is near 1 after few steps
        assert (
            apart(train(tx, recorded(case, 10), tx.init(params), gradients(range(10, 20)))[0], params) > 1e-2
        )


def test_all_forms_of_a_torch_state_are_one():
    tx, start, order = RULES["adam"](), recorded("adam", 10), ["fc.weight", "fc.bias"]
    want = interop.from_torch(flat("adam"), tx.init(start), NAMES, KERNEL)
    given = numbered("adam")
    named = {**given, "param_groups": [{**given["param_groups"][0], "param_names": order}]}
    sharded = {"state": {name: given["state"][i] for i, name in enumerate(order)}, "param_groups": []}
    for arrays, names, turned in (
        (given, {0: "fc/kernel", 1: "fc.bias"}, {"fc/kernel": (1, 0)}),
        (given, ["fc.kernel", "fc.bias"], KERNEL),
        (given["state"], ["fc.kernel", "fc.bias"], KERNEL),
        (named, NAMES, ["fc.weight"]),
        (sharded, NAMES, KERNEL),
        ({f"state.{k}": x for k, x in flat("adam").items()}, NAMES, KERNEL),
    ):  # fmt: skip
        assert apart(interop.from_torch(arrays, tx.init(start), names, turned), want) == 0


def test_an_object_takes_it_over():
    scheduler = pj.optimizer.lr.StepDecay(0.01, 100)
    opt = pj.optimizer.Adam(scheduler, parameters=recorded("adam", 10))
    interop.from_torch(flat("adam"), opt, NAMES, KERNEL)
    for g in gradients(range(10, 20)):
        opt.apply_gradients(zip(opt.parameter_list, jax.tree.leaves(g), strict=True))
    assert apart([p.value for p in opt.parameter_list], recorded("adam", 20)) < 2e-6


def torch_call(case="adam", names=NAMES, transpose=KERNEL, change=lambda x: x, **more):
    return lambda: interop.from_torch(
        change(flat(case)), RULES["adam"]().init(recorded(case, 10)), names, transpose, **more
    )


WRONG_TORCH = [
    (
        torch_call("momentum"),
        StateDictError,
        "missing: fc/bias_moment1_0(.|\n)*unexpected: fc/kernel_velocity_0",
    ),
    (torch_call("amsgrad"), StateDictError, "unexpected: fc/kernel_moment2_max_0"),
    (
        torch_call(transpose=()),
        StateDictError,
        "misshapen: fc/kernel_moment1_0 has shape \\(2, 3\\), expected \\(3, 2\\)",
    ),
    (
        torch_call(names=None, transpose=["fc.weight"]),
        StateDictError,
        'missing: fc/kernel_moment1_0(.|\n)*"fc.weight": "fc/kernel"',
    ),
    (torch_call(transpose=["x"]), ValueError, "transpose: found 'x', expected some of fc.weight"),
    (
        torch_call(transpose=[*KERNEL, "fc/bias"]),
        StateDictError,
        "misshapen: exp_avg of fc/bias has shape \\(2,\\)",
    ),
    (torch_call(transpose={"fc.weight": (0, 0)}), ValueError, "every axis once"),
    (torch_call(transpose="fc"), TypeError, "transpose: found 'fc'"),
    (torch_call(names={"fc.weight": "fc/kernel", "x": "y"}), ValueError, "names: found 'x'"),
    (
        torch_call(names={"fc.weight": "fc/bias"}),
        ValueError,
        "names: found 'fc/bias', expected every parameter once",
    ),
    (torch_call(names=3), TypeError, "names: found 3"),
    (
        torch_call(change=lambda x: x | {"fc.bias.exp_avg": "text"}),
        StateDictError,
        "not an array: exp_avg of fc/bias is str",
    ),
    (torch_call(change=lambda x: 3), TypeError, "arrays: found 3"),
    (torch_call(change=lambda x: {"a": 1}), TypeError, "arrays: found 'a'"),
    (
        torch_call(change=lambda _: numbered("adam"), names=["fc.weight"], transpose=()),
        ValueError,
        "torch's parameters 1 have no name, found 1",
    ),
    (
        torch_call(change=lambda _: numbered("adam"), names=None, transpose=()),
        ValueError,
        "torch's parameters 0, 1 have no name",
    ),
    (torch_call(count=-1), ValueError, "count: found -1"),
]


@pytest.mark.parametrize("call, error, words", WRONG_TORCH)
def test_what_does_not_fit_torch_is_said_at_once(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_file_of_torch(tmp_path, monkeypatch):
    """Where torch is missing, a file is refused in words; where it is there, nothing in the file is run."""
    tx, file = RULES["adam"](), tmp_path / "run.pt"
    file.write_bytes(b"no file of torch")
    fresh = tx.init(recorded("adam", 10))
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(ImportError, match="from_torch needs torch to read .*run.pt: pip install torch"):
            interop.from_torch(file, fresh)
        return
    with pytest.raises(CheckpointError, match="weights_only"):
        interop.from_torch(file, fresh)
    tensors = {
        i: {k: torch.tensor(x) for k, x in slots.items()} for i, slots in numbered("adam")["state"].items()
    }
    groups = [{"lr": 0.01, "params": [0, 1], "param_names": ["fc.weight", "fc.bias"]}]
    torch.save({"model": {}, "optimizer": {"state": tensors, "param_groups": groups}}, file)
    want = interop.from_torch(flat("adam"), fresh, NAMES, KERNEL)
    assert apart(interop.from_torch(str(file), fresh, NAMES, KERNEL), want) == 0
    torch.save({"model": {}}, file)
    with pytest.raises(CheckpointError, match="found none, expected one state_dict"):
        interop.from_torch(file, fresh)
    torch.save(Path, file)
    with pytest.raises(CheckpointError, match="weights_only"):
        interop.from_torch(file, fresh)


def test_masters_of_an_object_that_has_stepped_stay():
    """A master has more digits than its parameter, from which it could not be made again."""
    p = pj.Parameter(jnp.ones(2, jnp.bfloat16), "p")
    opt = pj.optimizer.Adam(1e-4, parameters=[p], multi_precision=True)
    opt.apply_gradients([(p, jnp.ones(2, jnp.bfloat16))])
    before = np.asarray(opt.masters[p])
    there = {0: {"step": 3, "exp_avg": np.ones(2, "f"), "exp_avg_sq": np.ones(2, "f")}}
    interop.from_torch({"state": there}, opt, ["p"])
    np.testing.assert_array_equal(opt.masters[p], before)
    assert not np.array_equal(before, p.numpy().astype("f"))
