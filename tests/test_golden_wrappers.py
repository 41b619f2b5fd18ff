"""Averages and lookahead of real Paddle, done again by the functions and by the objects."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from replay import ALL, PLAIN, error

import paddlejax as paddle

fluid = paddle.fluid.optimizer
TOLERANCE = 5e-6
WRAPPED = [case for case in ALL if case.wrapper and not case.quirk]
SHORT = 20  # steps up to which compiling is not worth it
LONG = 1000  # steps from which a case is slow


def of(*kinds):
    cases = [case for case in WRAPPED if case.wrapper in kinds]
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "case", [pytest.param(c, id=str(c), marks=marks[c.steps > LONG]) for c in cases]
    )


def arguments(case):
    """What the wrapper was given, as keyword arguments of the function and the object alike."""
    if case.oracle == PLAIN:
        return dict(case.kwargs)
    spec = case.raw["wrapper"]
    return {**spec["args"], **({"thres_steps": lambda count: count} if spec.get("thres_steps") else {})}


def inner_of(case):
    """The name and arguments of the optimizer inside, or beside."""
    if case.oracle == PLAIN:
        return case.raw["inner"]["class"], case.raw["inner"]["kwargs"]
    return case.cls, case.kwargs


def optimizer(case, params):
    name, kwargs = inner_of(case)
    if case.oracle == PLAIN:
        return getattr(paddle.optimizer, name)(parameters=params, **kwargs)
    return getattr(fluid, name)(parameter_list=params, **kwargs)


def transformation(case):
    name, kwargs = inner_of(case)
    name = name.removesuffix("Optimizer").lower()
    fluid_adam = {"scaled_epsilon": False} if name == "adam" and case.oracle != PLAIN else {}
    return getattr(paddle, name)(**kwargs, **fluid_adam)


def grads(case, step, convert=jnp.asarray):
    return {n: None if g is None else convert(g) for n, g in case.grads(step).items()}


def parameters(case):
    return [paddle.Parameter(jnp.asarray(case.p0[s.name]), s.name) for s in case.params]


# A parameter whose first gradient comes after the first step: Paddle's slow weights pull it to 0. Ours start
# where it stands; what follows is in test_traps.py.
LATE = {"lookahead_missing": {"b"}}


def in_time(case, recorded):
    """What was recorded of the parameters that are not late."""
    return {n: x for n, x in recorded.items() if n not in LATE.get(case.id, ())}


def close(got, want, worst):
    """Remember the largest error over what was recorded; NaN agrees with NaN only."""
    for name, w in want.items():
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(w))
        worst.append(error(got[name], w))


def check_average(case, step, params, averaged, worst):
    close(params, case.expected(step), worst)
    for what in ("avg", "ema_applied"):
        close(averaged, case.expected(step, what), worst)


def recorded_fields(case, step):
    """Sums, counters and uncorrected averages: (field, parameter) to array."""
    found = {}
    for key, a in case.arrays.items():
        part = key.split("/")
        if part[:2] == ["acc", str(step)] or part[:2] == ["state", str(step)] and case.oracle == PLAIN:
            found[part[2], part[3]] = a
        elif part[:2] == ["ema", str(step)]:
            found["ema", part[2]] = a
    return {k: a for k, a in found.items() if k[0] not in ("restore", "velocity")}


@of("ModelAverage", "ExponentialMovingAverage")
def test_recorded_average_as_functions(case):
    name = "model_average" if case.wrapper == "ModelAverage" else "exponential_moving_average"
    tx, average = transformation(case), getattr(paddle, name)(**arguments(case))
    params = {n: jnp.asarray(p) for n, p in case.p0.items()}

    def one(carry, g):
        params, state, averages = carry
        updates, state = tx.update(g, state, params)
        params = paddle.apply_updates(params, updates)
        return (params, state, average.update(params, averages)), None

    single = jax.jit(one) if case.steps > SHORT else one
    many = jax.jit(lambda carry, g, n: jax.lax.fori_loop(0, n, lambda _, c: one(c, g)[0], carry))
    carry, worst, step = (params, tx.init(params), average.init(params)), [], 0
    while step < case.steps:
        if case.raw.get("grad_constant"):  # as many steps at once as nothing was recorded in
            until = min(s for s in case.record_steps if s > step)
            carry = many(carry, grads(case, 1), until - step)
            step = until
        else:
            step += 1
            carry, _ = single(carry, grads(case, step))
        if step in case.record_steps:
            params, _, state = carry
            averaged = {n: np.asarray(a) for n, a in average.value(state).items()}
            check_average(case, step, {n: np.asarray(p) for n, p in params.items()}, averaged, worst)
            for (field, n), want in recorded_fields(case, step).items():
                x = getattr(state, field)
                if field.startswith("num") or field.startswith("old"):
                    assert int(x) == int(want[0])
                else:
                    worst.append(error(x[n], want))
    assert max(worst) <= TOLERANCE


@of("ModelAverage", "ExponentialMovingAverage")
def test_recorded_average_as_objects(case):
    home = {"ModelAverage": paddle.incubate, "ExponentialMovingAverage": paddle.static}[case.wrapper]
    home = home if case.oracle == PLAIN else fluid
    params = parameters(case)
    where = "parameters" if case.oracle == PLAIN else "parameter_list"

    def make():
        return getattr(home, case.wrapper)(**arguments(case), **{where: params})

    opt, average, worst = optimizer(case, params), make(), []
    for step in range(1, case.steps + 1):
        for p in params:
            p.grad = case.grads(step)[p.name]
        opt.step()
        average.update()
        if step not in case.record_steps:
            continue
        before = {p.name: p.numpy() for p in params}
        with average.apply():
            check_average(case, step, before, {p.name: p.numpy() for p in params}, worst)
        assert all((p.numpy() == before[p.name]).all() for p in params)
        entries = average.state_dict()
        for (field, n), want in recorded_fields(case, step).items():
            got = entries[f"{n}_{field}_0"]
            assert (got.shape, str(got.dtype)) == (want.shape, str(want.dtype))
            worst.append(error(got, want))
        if step == case.steps // 2:  # saved and resumed midway
            average = make()
            average.set_state_dict(entries)
    if case.oracle == PLAIN and case.wrapper == "ModelAverage":
        assert {k: (tuple(v.shape), str(v.dtype)) for k, v in entries.items()} == case.state_keys()
    assert max(worst) <= TOLERANCE


@of("LookAhead", "LookaheadOptimizer")
def test_recorded_lookahead_as_functions(case):
    start = {} if case.oracle == PLAIN else {"slow_start": "initial"}
    tx = paddle.lookahead(transformation(case), **arguments(case), **start)
    params, worst = {n: jnp.asarray(p) for n, p in case.p0.items()}, []
    state, update = tx.init(params), jax.jit(tx.update) if case.steps > SHORT else tx.update
    for step in range(1, case.steps + 1):
        updates, state = update(grads(case, step), state, params)
        params = paddle.apply_updates(params, updates)
        if step in case.record_steps:
            close(params, in_time(case, case.expected(step)), worst)
            close(state.slow, in_time(case, case.expected(step, "slow")), worst)
    for (field, n), want in recorded_fields(case, case.steps).items():
        if field == "slow" and n not in LATE.get(case.id, ()):
            worst.append(error(state.slow[n], want))
    assert max(worst) <= TOLERANCE


@of("LookAhead", "LookaheadOptimizer")
def test_recorded_lookahead_as_objects(case):
    params, worst = parameters(case), []
    plain = case.oracle == PLAIN

    def make():
        cls = paddle.incubate.LookAhead if plain else fluid.LookaheadOptimizer
        return cls(optimizer(case, params), **arguments(case))

    opt = make()
    for step in range(1, case.steps + 1):
        for p in params:
            p.grad = case.grads(step)[p.name]
        opt.step()
        entries = opt.state_dict()
        if step in case.record_steps:
            close({p.name: p.numpy() for p in params}, in_time(case, case.expected(step)), worst)
            slow = {p.name: entries.get(f"{p.name}@SLOW") for p in params}
            close(slow, in_time(case, case.expected(step, "slow")), worst)
        if step == case.steps // 2 + 1:  # between two synchronizations
            opt = make()
            opt.set_state_dict(entries)
    for (accumulator, n), want in case.state().items():
        if n not in LATE.get(case.id, ()):
            worst.append(error(entries[f"{n}_{accumulator}_0"], want))
    if plain:
        entries.pop("lookahead_step_0")
        assert {k: (tuple(v.shape), str(v.dtype)) for k, v in entries.items()} == case.state_keys()
    assert max(worst) <= TOLERANCE


def test_every_wrapper_case_is_replayed():
    kinds = {"ModelAverage", "ExponentialMovingAverage", "LookAhead", "LookaheadOptimizer"}
    assert {c.wrapper for c in WRAPPED} == kinds
    assert len(WRAPPED) == 24 and {c.id for c in ALL if c.wrapper and c.quirk} == {"ema-apply-twice"}


def test_the_average_of_1x_before_it_was_overwritten():
    """The quirk case is right up to its first apply(), and ours stays right beyond it."""
    case = next(c for c in golden_cases.load("fluid-1.8.5") if c.id == "ema-apply-twice")
    average = paddle.exponential_moving_average(0.9)
    state, worst = average.init({n: jnp.asarray(p) for n, p in case.p0.items()}), []
    for step in range(1, 6):
        state = average.update({n: jnp.asarray(p) for n, p in case.expected(step).items()}, state)
    close(average.value(state), case.expected(5, "ema_applied"), worst)
    assert max(worst) <= TOLERANCE
