"""Inside optax, flax and equinox, and theirs inside ours: the same numbers as alone."""

import builtins
import contextlib

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import each_rule_once
from flax import nnx
from flax.training.train_state import TrainState
from transformations import RULES, TRANSFORMATIONS, objective

import paddlejax as paddle
from paddlejax.interop import as_optax

PARAMS = {
    "body": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])},
    "head": {"w": jnp.array([[1.5, 2.0], [0.25, -1.0]])},
}
GRADS = [jax.tree.map(lambda p, k=k: 0.5 * p + 0.1 * (-1) ** k * k, PARAMS) for k in range(4)]
LABELS = {"body": "body", "head": "head"}


def train(tx, grads=GRADS, params=PARAMS, apply=optax.apply_updates):
    """Parameters and state after these gradients."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = apply(params, updates)
    return params, state


def close(found, want):
    """To the last bit or two: inside a cond XLA fuses differently."""
    chex.assert_trees_all_close(found, want, rtol=2e-6, atol=1e-7)


# ------------------------------------------------------------------------- every rule inside optax


@each_rule_once
def test_in_chain(case):
    doubled = [jax.tree.map(lambda x: 2 * x, g) for g in GRADS]
    alone, state = train(case.make(), doubled)
    found, (_, inner) = train(optax.chain(optax.scale(2.0), case.make()))
    chex.assert_trees_all_equal((found, inner), (alone, state))


@each_rule_once
def test_in_multi_transform(case):
    """Each half of the tree as under its own rule alone: state, shared scalars and all."""
    rules = {"body": case.make(), "head": case.make(case.rate / 2)}
    found, state = train(optax.multi_transform(rules, LABELS))
    for half, rule in rules.items():
        alone, own = train(rule, [{half: g[half]} for g in GRADS], {half: PARAMS[half]})
        inner = state.inner_states[half].inner_state
        assert float(inner.learning_rate) == float(own.learning_rate)
        chex.assert_trees_all_equal(
            (found[half], jax.tree.leaves(inner)), (alone[half], jax.tree.leaves(own))
        )


@each_rule_once
def test_in_masked(case):
    """Masked leaves pass through as they are, and a mask within a mask is no different."""
    mask = {"body": True, "head": False}
    alone, own = train(case.make(), [{"body": g["body"]} for g in GRADS], {"body": PARAMS["body"]})
    for wrap in (
        lambda tx: optax.masked(tx, mask),
        lambda tx: optax.masked(optax.masked(tx, lambda tree: jax.tree.map(lambda _: True, tree)), mask),
    ):
        tx = wrap(case.make())
        found, state = train(optax.chain(tx, optax.masked(optax.scale(-0.1), {"body": False, "head": True})))
        plain, _ = train(optax.sgd(0.1), [{"head": g["head"]} for g in GRADS], {"head": PARAMS["head"]})
        chex.assert_trees_all_equal((found["body"], found["head"]), (alone["body"], plain["head"]))
        chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(own))


@each_rule_once
def test_in_multi_steps(case):
    """Four gradients in pairs are two gradients, the means; between them nothing moves."""
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in (0, 2)]
    alone, own = train(case.make(), means)
    steps = optax.MultiSteps(case.make(), 2)
    with jax.numpy_dtype_promotion("standard"):  # it mixes dtypes
        found, state = train(optax.GradientTransformation(steps.init, jax.jit(steps.update)))
    close((found, state.inner_opt_state), (alone, own))


@each_rule_once
def test_in_apply_if_finite(case):
    """A gradient that is not finite might never have come."""
    bad = jax.tree.map(lambda g: g.at[0, 0].set(jnp.nan), GRADS[1])
    alone, own = train(case.make(), [GRADS[0], *GRADS[2:]])
    tx = optax.apply_if_finite(case.make(), 3)
    found, state = train(tx._replace(update=jax.jit(tx.update)), [GRADS[0], bad, *GRADS[2:]])
    close((found, state.inner_state), (alone, own))
    assert int(state.total_notfinite) == 1


# ------------------------------------------------------------------------- more of optax around ours


def test_every_wrapper_at_once_in_one_program():
    """Two rules by label around a clip, with accumulation and a guard, compiled once."""
    inner = optax.multi_transform({"body": paddle.lamb(0.1), "head": paddle.momentum(0.1)}, LABELS)
    steps = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.apply_if_finite(inner, 3)), 2)
    update = jax.jit(chex.assert_max_traces(steps.update, n=1))
    with jax.numpy_dtype_promotion("standard"):
        found, _ = train(optax.GradientTransformation(steps.init, update))
    assert update._cache_size() == 1
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in (0, 2)]
    for half, rule in {"body": paddle.lamb(0.1), "head": paddle.momentum(0.1)}.items():
        clipped = [optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())[0][half] for g in means]
        alone, _ = train(rule, clipped, PARAMS[half])
        close(found[half], alone)


def test_the_rate_inside_optax_is_read_and_replaced():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(paddle.adam(0.1), True))
    state = tx.init(PARAMS)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    fast, state = update(GRADS[0], state, PARAMS)
    assert float(paddle.get_learning_rate(state)) == np.float32(0.1)
    first = tx.init(PARAMS)
    slow, _ = update(GRADS[0], paddle.set_learning_rate(first, 0.01), PARAMS)
    close(jax.tree.map(lambda u: 10 * u, slow), fast)
    assert update._cache_size() == 1


def test_what_inject_hyperparams_reaches():
    """A scheduled beta acts."""
    schedule = lambda count: jnp.where(count < 2, 0.5, 0.9)  # noqa: E731
    tx = optax.inject_hyperparams(paddle.adam)(learning_rate=0.1, beta1=schedule)
    found, state = train(tx)
    p, own = PARAMS, paddle.adam(0.1, beta1=0.5).init(PARAMS)
    for count, g in enumerate(GRADS):
        updates, own = paddle.adam(0.1, beta1=0.5 if count < 2 else 0.9).update(g, own, p)
        p = optax.apply_updates(p, updates)
    close((found, tuple(state.inner_state)), (p, tuple(own)))


INJECTED = {
    "sgd": paddle.sgd,
    "adam": paddle.adam,
    "lamb": paddle.lamb,
    "chain": lambda learning_rate: paddle.chain(paddle.clip_by_value(1.0), paddle.momentum(learning_rate)),
    "by_path": lambda learning_rate: paddle.by_path(
        [("head/*", {"learning_rate": 0.5})], paddle.adamw(learning_rate)
    ),
    "guarded": lambda learning_rate: paddle.skip_nonfinite(paddle.rmsprop(learning_rate)),
}
RATES = [0.1, 0.1, 0.02, 0.5]


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", INJECTED)
def test_a_rate_that_inject_hyperparams_hands_in_acts(name, jitted):
    """A schedule, a write, tree_set and set_learning_rate: each as these rates in our own state."""
    make = INJECTED[name]

    def steps(tx, before):
        update = jax.jit(tx.update) if jitted else tx.update
        p, state, seen = PARAMS, tx.init(PARAMS), []
        for rate, g in zip(RATES, GRADS, strict=False):
            updates, state = update(g, before(state, rate), p)
            p = optax.apply_updates(p, updates)
            seen.append(float(paddle.get_learning_rate(state)))
        np.testing.assert_array_equal(np.float32(seen), np.float32(RATES[: len(seen)]))
        return p, state

    def write(state, rate):
        return state._replace(hyperparams={"learning_rate": jnp.asarray(rate, jnp.float32)})

    want, _ = steps(make(RATES[0]), paddle.set_learning_rate)
    schedule = lambda count: jnp.asarray(RATES)[count]  # noqa: E731
    scheduled, state = steps(
        optax.inject_hyperparams(make)(learning_rate=schedule), lambda state, rate: state
    )
    close(scheduled, want)
    is_array = lambda path, value: isinstance(value, jax.Array)  # noqa: E731
    read = optax.tree_utils.tree_get(state, "learning_rate", filtering=is_array)
    assert float(read) == np.float32(RATES[len(GRADS) - 1])
    injected = optax.inject_hyperparams(make)(learning_rate=7.0)
    tree_set = lambda state, rate: optax.tree_utils.tree_set(  # noqa: E731
        state, learning_rate=jnp.asarray(rate, jnp.float32)
    )
    for before in (write, tree_set, paddle.set_learning_rate):
        found, state = steps(injected, before)
        close(found, want)
        assert float(optax.tree_utils.tree_get(state, "learning_rate")) == np.float32(RATES[len(GRADS) - 1])


@pytest.mark.parametrize("make", [paddle.sgd, paddle.adamw, paddle.ftrl, INJECTED["by_path"]])
def test_a_traced_rate_of_a_step_acts_on_a_state_of_another_rate(make):
    """So also its gradient, and the state keeps its type, so that it goes through a scan."""

    @jax.jit
    def run(rates, state):
        def step(carry, rate):
            p, state = carry
            updates, state = make(rate).update(GRADS[0], state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (PARAMS, state), rates)[0]

    rates, state = jnp.asarray(RATES), make(0.3).init(PARAMS)
    found, after = run(rates, state)
    p, own = PARAMS, state
    for rate in RATES:
        updates, own = make(0.3).update(GRADS[0], paddle.set_learning_rate(own, rate), p)
        p = optax.apply_updates(p, updates)
    close((found, after), (p, own))
    slope = jax.grad(lambda r: sum(map(jnp.sum, jax.tree.leaves(run(r, state)[0]))))(rates)
    assert np.isfinite(slope).all() and (np.asarray(slope) != 0).all()


def test_a_number_lives_in_the_state_and_an_array_acts():
    p = jnp.ones(2)
    state = paddle.sgd(0.1).init(p)
    for rate, acts in (
        (0.5, False),
        (np.float32(0.5), False),
        (np.array(0.5), False),
        (jnp.float32(0.5), True),
    ):
        updates, _ = paddle.sgd(rate).update(p, state, p)
        close(updates, jnp.full(2, -0.5 if acts else -0.1))
        assert paddle.get_learning_rate(paddle.sgd(rate).init(p)) == 0.5
    read = optax.tree_utils.tree_get(optax.tree_utils.tree_set(state, learning_rate=0.25), "learning_rate")
    updates, _ = paddle.sgd(0.1).update(p, optax.tree_utils.tree_set(state, learning_rate=read), p)
    close(updates, jnp.full(2, -0.25))


# ------------------------------------------------------------------ optax's utilities and contributions


FLAT = {"w": PARAMS["body"]["w"], "b": jnp.ones(2)}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_tree_get_and_tree_set_reach_the_rate(name):
    """Where one rule is in a state, its rate is the one entry of that name."""
    tx = optax.chain(TRANSFORMATIONS[name]())
    state = tx.init(FLAT)
    found = optax.tree_utils.tree_get_all_with_path(state, "learning_rate")
    is_rule = lambda s: isinstance(s, paddle.RuleState)  # noqa: E731
    rules = list(filter(is_rule, jax.tree.leaves(state, is_leaf=is_rule)))
    assert len(found) == len(rules)
    if len(rules) == 1:
        assert optax.tree_utils.tree_get(state, "learning_rate") == paddle.get_learning_rate(state)
    if rules:
        new = optax.tree_utils.tree_set(state, learning_rate=jnp.float32(0.25))
        chex.assert_trees_all_equal_structs(new, state)
        assert float(paddle.get_learning_rate(new)) == 0.25


def test_tree_get_finds_accumulators_and_counts():
    tx = optax.chain(optax.clip(1.0), paddle.lookahead(paddle.adam(0.1), k=2))
    _, state = train(tx)
    get = optax.tree_utils.tree_get
    chex.assert_trees_all_equal(get(state, "moment1"), state[1].inner.slots["moment1"])
    chex.assert_trees_all_equal(get(state, "slow"), state[1].slow)
    assert float(get(state, "beta1_pow_acc")) == pytest.approx(0.9**5)
    inner = get(state, "count", filtering=lambda path, _: "RuleState" in str(path))
    assert int(inner) == 4


@each_rule_once
def test_in_named_chain(case):
    alone, own = train(case.make())
    found, state = train(optax.named_chain(("scale", optax.scale(1.0)), ("rule", case.make())))
    chex.assert_trees_all_equal((found, state["rule"]), (alone, own))


@each_rule_once
def test_in_conditionally_mask(case):
    """A step that the condition leaves out might never have come."""
    masked = optax.transforms.conditionally_mask(case.make(), lambda step: step % 2 == 0)
    state, p = masked.init(PARAMS), PARAMS
    tx = case.make()
    own = tx.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for i, g in enumerate(GRADS):
            updates, state = masked.update(g, state, p)
            still = jax.tree.map(jnp.zeros_like, g)
            want, own = tx.update(g, own, p) if i % 2 == 0 else (still, own)
            close(updates, want)
            p = optax.apply_updates(p, updates)
    close(state.inner_state, own)


CONTRIBUTED = {
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.05, b1=0.9),
    "mechanize": lambda tx: optax.contrib.mechanize(tx, weight_decay=0.0),
    "sam": lambda tx: optax.contrib.sam(tx, optax.sgd(0.01), sync_period=2),
    "reduce_on_plateau": lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau(patience=50)),
}
TWINS = {  # the same optimizer by optax
    "sgd": (lambda: paddle.sgd(0.05), lambda: optax.sgd(0.05)),
    "momentum": (lambda: paddle.momentum(0.05, 0.9), lambda: optax.sgd(0.05, 0.9)),
    "rmsprop": (
        lambda: paddle.rmsprop(0.05, rho=0.9, epsilon=1e-4),
        lambda: optax.rmsprop(0.05, 0.9, 1e-4, eps_in_sqrt=True),
    ),
}


@pytest.mark.parametrize("rule", TWINS)
@pytest.mark.parametrize("name", CONTRIBUTED)
def test_contributed_wrappers_do_with_ours_what_they_do_with_optaxs(name, rule):
    wrap, (ours, theirs) = CONTRIBUTED[name], TWINS[rule]

    def run(tx):
        tx = optax.with_extra_args_support(wrap(tx))
        p, state = PARAMS, tx.init(PARAMS)

        @jax.jit
        def step(p, state):
            value, grads = jax.value_and_grad(lambda p: objective(p))(p)
            updates, state = tx.update(grads, state, p, **({} if name == "sam" else {"value": value}))
            return optax.apply_updates(p, updates), state

        for _ in range(6):
            p, state = step(p, state)
        return p

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        chex.assert_trees_all_close(run(ours()), run(theirs()), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------ optax inside ours


OPTAX = {
    "clip": lambda: optax.clip(0.5),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "centralize": lambda: optax.centralize(),
    "ema": lambda: optax.ema(0.9),
    "trace": lambda: optax.trace(0.9),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax_inside_our_chain_and_table(name):
    """Before a rule at rate 0.1 or, in the table's row, instead of one."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        want, _ = train(optax.chain(OPTAX[name](), optax.sgd(0.1)))
        close(train(paddle.chain(OPTAX[name](), paddle.sgd(0.1)))[0], want)
        as_rule = optax.chain(OPTAX[name](), optax.sgd(0.1))
        table = paddle.by_path([("head/*", {"rule": as_rule})], paddle.sgd(0.1))
        alone, _ = train(as_rule, [{"head": g["head"]} for g in GRADS], {"head": PARAMS["head"]})
        plain, _ = train(optax.sgd(0.1))
        close(train(table)[0], {"body": plain["body"], "head": alone["head"]})


SCHEDULES = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(0.0, 0.3, 2, 6),
    "exponential": lambda: optax.exponential_decay(0.1, 2, 0.5, staircase=True),
    "piecewise": lambda: optax.piecewise_constant_schedule(0.1, {1: 0.5, 3: 0.1}),
    "joined": lambda: optax.join_schedules(
        [optax.constant_schedule(0.3), optax.linear_schedule(0.1, 0.0, 3)], [2]
    ),
    "polynomial": lambda: optax.polynomial_schedule(0.1, 0.01, 2.0, 3),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_optax_schedule_in_our_rule(name, compiled):
    """Under strict promotion too, though optax's mix the int count with floats."""
    tx = paddle.momentum(SCHEDULES[name]())
    found, _ = train(tx._replace(update=jax.jit(tx.update)) if compiled else tx)
    with jax.numpy_dtype_promotion("standard"):
        rates = [SCHEDULES[name]()(jnp.int32(count)) for count in range(4)]
        plain = paddle.momentum(0.1)
    p, state = PARAMS, plain.init(PARAMS)
    for g, rate in zip(GRADS, rates, strict=True):
        updates, state = plain.update(g, paddle.set_learning_rate(state, rate), p)
        p = paddle.apply_updates(p, updates)
    close(found, p)


@pytest.mark.parametrize(
    "schedule",
    [
        paddle.schedules.step_decay(0.1, 2, gamma=0.5),
        paddle.schedules.cosine_annealing_decay(0.1, 4),
        paddle.schedules.noam_decay(16, 2),
        paddle.schedules.piecewise_decay([1, 3], [0.1, 0.05, 0.01]),
    ],
    ids=["step", "cosine", "noam", "piecewise"],
)
def test_our_schedule_in_optax(schedule):
    found, _ = train(optax.sgd(schedule))
    p = PARAMS
    for count, g in enumerate(GRADS):
        p = jax.tree.map(lambda x, d, count=count: x - float(schedule(count)) * d, p, g)
    close(found, p)


def test_extra_arguments_reach_optax_inside_ours():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=1)
    tx = paddle.chain(paddle.sgd(1.0), plateau)
    state, scales = tx.init(PARAMS), []
    with jax.numpy_dtype_promotion("standard"):
        for value in (3.0, 2.0, 2.0, 2.0):
            updates, state = tx.update(PARAMS, state, PARAMS, value=jnp.array(value))
            scales.append(float(updates["head"]["w"][0, 0] / -PARAMS["head"]["w"][0, 0]))
    assert scales[0] == 1.0 and scales[-1] < 1.0


# ------------------------------------------------------------------------------------- as_optax


def rosenbrock(p):
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "multi_transform": lambda tx: optax.multi_transform({"all": tx}, "all"),
    "masked": lambda tx: optax.masked(tx, True),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": optax.flatten,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_as_optax_keeps_extra_arguments(name):
    """L-BFGS evaluates the objective by itself: value and value_and_grad must reach it."""
    f, p = jax.value_and_grad(rosenbrock), jnp.array([-1.2, 1.0])
    value, grads = f(p)
    tx = paddle.lbfgs(max_iter=3, line_search_fn="strong_wolfe")
    extra = {"value": value, "value_and_grad": f}
    want, _ = jax.jit(lambda: tx.update(grads, tx.init(p), p, **extra))()

    with jax.numpy_dtype_promotion("standard"):  # MultiSteps mixes dtypes
        wrapped = WRAPPERS[name](as_optax(tx))
        found, _ = jax.jit(lambda: wrapped.update(grads, wrapped.init(p), p, **extra))()
        np.testing.assert_allclose(found, want, rtol=1e-5)
        bare = WRAPPERS[name](tx)  # optax drops them
        with pytest.raises(TypeError, match="lbfgs evaluates the objective by itself"):
            bare.update(grads, bare.init(p), p, **extra)


def test_as_optax_changes_neither_state_nor_numbers():
    for tx in (paddle.adam(0.1), paddle.chain(paddle.clip_by_norm(1.0), paddle.lamb(0.1))):
        wrapped = as_optax(tx)
        assert isinstance(wrapped, optax.GradientTransformationExtraArgs)
        chex.assert_trees_all_equal(train(wrapped), train(tx))
    already = as_optax(optax.sgd(0.1))
    assert isinstance(already, optax.GradientTransformationExtraArgs) and as_optax(already) is already
    updates, _ = already.update(PARAMS, already.init(PARAMS), PARAMS, value=1.0)  # which sgd does not know
    chex.assert_trees_all_equal_structs(updates, PARAMS)


def test_as_optax_says_what_is_wrong(monkeypatch):
    with pytest.raises(TypeError, match=r"as_optax's tx: found 0\.1, expected an \(init, update\) pair"):
        as_optax(0.1)
    imported = builtins.__import__

    def without_optax(name, *args, **kwargs):
        if name.split(".")[0] == "optax":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_optax)
    with pytest.raises(ImportError, match="as_optax needs optax: pip install optax"):
        as_optax(paddle.adam(0.1))


# ------------------------------------------------------------------------------------------- flax


class Regression(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.noise = nnx.Dropout(0.0, rngs=rngs)  # a module with state of its own that is not trained
        self.output = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.output(self.noise(jnp.tanh(self.hidden(x))))


X, Y = jnp.arange(12.0).reshape(4, 3) / 10, jnp.ones((4, 1))
MAKE = {
    "adam": lambda: paddle.adam(0.1),
    "lamb, clipped, by path": lambda: paddle.by_path(
        [("*bias*", {"learning_rate": 2.0})], paddle.lamb(0.1), grad_clip=paddle.clip_by_global_norm(0.1)
    ),
    "in optax's chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), paddle.rmsprop(0.01)),
}


def squared_error(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@contextlib.contextmanager
def as_flax_wants_it():
    """flax's own layers mix ranks and dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def set_rate(opt_state, rate):
    """In an nnx.Optimizer the arrays of a state are Variables: written in place."""
    for state in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, paddle.RuleState)):
        if isinstance(state, paddle.RuleState):
            state.learning_rate[...] = jnp.full_like(state.learning_rate[...], rate)


@pytest.mark.parametrize("name", MAKE)
def test_nnx_optimizer(name):
    """The same as the plain loop, with the rate changed after the second step; one program."""
    with as_flax_wants_it():
        model = Regression(nnx.Rngs(0))
        params, make = nnx.to_pure_dict(nnx.state(model, nnx.Param)), MAKE[name]
        optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)

        @nnx.jit
        @chex.assert_max_traces(n=1)
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(squared_error)(model, X, Y))

        graph, _, rest = nnx.split(Regression(nnx.Rngs(0)), nnx.Param, ...)

        def loss(p):
            state = nnx.state(Regression(nnx.Rngs(0)), nnx.Param)
            nnx.replace_by_pure_dict(state, p)
            return squared_error(nnx.merge(graph, state, rest), X, Y)

        tx = make()
        state = tx.init(params)
        for i in range(4):
            if i == 2:
                set_rate(optimizer.opt_state, 0.02)
                state = paddle.set_learning_rate(state, 0.02)
            step(model, optimizer)
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = paddle.apply_updates(params, updates)
        assert int(optimizer.step[...]) == 4
        close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)


@pytest.mark.parametrize("name", RULES)
def test_nnx_optimizer_with_every_rule(name):
    """As the plain loop, without recompilation."""
    with as_flax_wants_it():
        model, tx = Regression(nnx.Rngs(0)), RULES[name]()
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        grads = jax.tree.map(lambda p: 0.5 * p + 0.1, params)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        @chex.assert_max_traces(n=1)
        def step(model, optimizer, grads):
            given = nnx.state(model, nnx.Param)
            nnx.replace_by_pure_dict(given, grads)
            optimizer.update(model, given)

        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(3):
            step(model, optimizer, grads)
            updates, state = update(grads, state, params)
            params = paddle.apply_updates(params, updates)
        if name != "dpsgd":  # whose noise depends on the paths, and those of nnx end with value
            close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)


@pytest.mark.parametrize("name", MAKE)
def test_flax_train_state(name):
    with as_flax_wants_it():
        params = {"kernel": jnp.arange(3.0).reshape(3, 1), "bias": jnp.zeros(1)}

        def apply(p, x):
            return x @ p["kernel"] + p["bias"]

        def loss(p):
            return jnp.mean((apply(p, X) - Y) ** 2)

        tx = MAKE[name]()
        state = TrainState.create(apply_fn=apply, params=params, tx=tx)

        @jax.jit
        @chex.assert_max_traces(n=2)  # the first call sees the Python number 0 as the count
        def step(state):
            return state.apply_gradients(grads=jax.grad(loss)(state.params))

        own = tx.init(params)
        for i in range(4):
            if i == 2:
                traces = step._cache_size()
                state = state.replace(opt_state=paddle.set_learning_rate(state.opt_state, 0.02))
                own = paddle.set_learning_rate(own, 0.02)
            state = step(state)
            updates, own = tx.update(jax.grad(loss)(params), own, params)
            params = paddle.apply_updates(params, updates)
        assert step._cache_size() == traces and int(state.step) == 4
        close((state.params, state.opt_state), (params, own))


# ----------------------------------------------------------------------------------------- equinox


def test_equinox_with_leaves_that_are_not_arrays():
    """filter_value_and_grad gives None where the model holds a function, a flag or an integer array."""
    model = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.layers[0].bias, model, jnp.zeros(4, jnp.bfloat16))
    model = (model, jnp.arange(3), "a name", None)

    def loss(model, x, y):
        return jnp.mean((jax.vmap(model[0])(x) - y) ** 2)

    tx = paddle.with_master_weights(paddle.chain(paddle.l2_decay(0.01), paddle.lamb(0.1)))

    @eqx.filter_jit
    def step(model, state, x, y):
        grads = eqx.filter_grad(loss)(model, x, y)
        trained, rest = eqx.partition(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, trained)
        return eqx.combine(paddle.apply_updates(trained, updates), rest), state

    start = model
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), [loss(model, X, Y)]
        for _ in range(20):
            model, state = step(model, state, X, Y)
            losses.append(loss(model, X, Y))
    assert losses[-1] < 0.5 * losses[0]
    assert model[0].activation is start[0].activation and model[2:] == ("a name", None)
    np.testing.assert_array_equal(model[1], start[1])
    dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, eqx.filter(tree, eqx.is_array))  # noqa: E731
    assert eqx.tree_equal(dtypes(model), dtypes(start))  # eqx.apply_updates would have widened the bias


def test_a_state_that_has_no_counterpart_is_called_by_its_type():
    params = {"w": jnp.ones(2)}
    there = optax.chain(optax.clip(1.0), optax.lion(0.1)).init(params)
    with pytest.raises(TypeError, match="opt_state: found ScaleByLionState at 1/0, of which"):
        paddle.interop.from_optax(there, paddle.adam(0.1).init(params))


def test_a_name_that_optax_does_not_have_is_refused():
    params = {"w": jnp.ones(2)}
    there, state = optax.adam(0.1).init(params), paddle.adam(0.1).init(params)
    with pytest.raises(ValueError, match="names: found v, expected some of w"):
        paddle.interop.from_optax(there, state, names={"v": "w"})


def test_transpose_takes_the_names_of_a_list():
    moments = {"exp_avg": np.arange(6.0).reshape(3, 2), "exp_avg_sq": np.ones((3, 2))}
    state = paddle.adam(0.1).init({"net.0": {"kernel": jnp.ones((2, 3))}})
    names = ["net.0.kernel"]
    found = paddle.interop.from_torch({0: {"step": 3, **moments}}, state, names, transpose=names)
    assert found.slots["moment1"]["net.0"]["kernel"].tolist() == moments["exp_avg"].T.tolist()
