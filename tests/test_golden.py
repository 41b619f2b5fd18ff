"""What real Paddle did, done again: every recorded run as functions, each way to use a class as an object."""

import numpy as np
import pytest
import reference
from replay import (
    ALL,
    COVERED,
    KERNELS,
    NOISY,
    PLAIN,
    TOLERANCE,
    WAITING,
    one_per_mode,
    precision,
    run_class,
    run_functional,
    warned,
    worst,
)

import paddlejax as paddle

REPLAYED = [case for case in COVERED if case.id not in WAITING | NOISY]


@pytest.mark.parametrize("case", REPLAYED, ids=str)
def test_recorded_case_as_functions(case):
    with precision(case), warned(case):
        assert max(worst(case, run_functional(case))) <= TOLERANCE[case.params[0].dtype]


@pytest.mark.parametrize("case", one_per_mode(REPLAYED), ids=str)
def test_recorded_case_as_an_object(case):
    with precision(case), warned(case):
        assert max(worst(case, run_class(case))) <= TOLERANCE[case.params[0].dtype]


def test_no_recorded_case_waits():
    assert not WAITING


STOCK_ADADELTA = [c for c in ALL if c.quirk == "step_uses_new_update_average"]


@pytest.mark.parametrize("case", STOCK_ADADELTA, ids=str)
def test_accumulators_of_adadelta_1x(case):
    """1.8.5's step uses the wrong average, but its accumulators are right."""
    with precision(case):
        *_, (_, _, state) = run_class(case)
        recorded = case.state()
        assert state.keys() == recorded.keys()
        for key, want in recorded.items():
            # decay sees the parameters, and those went another way
            if not case.weight_decay:
                np.testing.assert_allclose(state[key], want, rtol=5e-6, atol=0)


@pytest.mark.parametrize("case", [c for c in ALL if c.id == "sgd_bf16"], ids=str)
def test_bfloat16_differs_from_paddle_by_its_rounding_alone(case):
    """Paddle's CPU kernel rounds every operation to bfloat16, here only the result is: each at most half a
    unit."""
    import jax.numpy as jnp

    params = [paddle.Parameter(jnp.asarray(case.p0[s.name], jnp.bfloat16), s.name) for s in case.params]
    opt = paddle.optimizer.SGD(case.kwargs["learning_rate"], params)
    largest = {p.name: np.max(np.abs(case.p0[p.name])) for p in params}
    for step in range(1, case.steps + 1):
        for p in params:
            p.grad = jnp.asarray(case.grads(step)[p.name], jnp.bfloat16)
        opt.step()
        for name, want in case.expected(step).items():
            got = next(p for p in params if p.name == name).numpy().astype(np.float32)
            largest[name] = max(largest[name], np.max(np.abs(want)))
            # two roundings there and one here, of the parameter's size, plus those of lr and of the product
            assert np.max(np.abs(got - want)) <= step * 2 * 2.0**-8 * largest[name]


def test_every_class_is_replayed():
    assert {(c.oracle, c.cls) for c in REPLAYED} == set(reference.CLASSES)
    objects = {(c.oracle, c.cls) for c in one_per_mode(REPLAYED)}
    assert objects == {pair for pair in reference.CLASSES if pair[1] not in KERNELS}
    plain = {c.cls for c in COVERED if c.oracle == PLAIN}
    assert {"SGD", "Momentum", "Adagrad", "Adadelta", "Adam", "Adamax", "RMSProp", "Lamb", "ASGD"} <= plain
    assert {"AdamW", "NAdam", "RAdam", "Rprop"} <= plain
