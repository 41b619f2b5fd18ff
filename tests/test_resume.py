"""Stop at any step, save, load into fresh objects, go on: bit for bit what not stopping gives."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from running import closure_of

import paddlejax as paddle
from paddlejax.checkpoint import load_optimizer, load_parameters, save_optimizer, save_parameters

two, fluid, lr, dygraph = (
    paddle.optimizer,
    paddle.fluid.optimizer,
    paddle.optimizer.lr,
    paddle.fluid.dygraph.learning_rate_scheduler,
)
STEPS = 6
SHAPES = {"a": (2, 2), "b": (3,), "c": ()}


def fluid_class(make, **kwargs):
    return lambda rate, params, **more: make(rate, parameter_list=params, **kwargs, **more)


def class_of(make, **kwargs):
    return lambda rate, params, **more: make(rate, parameters=params, **kwargs, **more)


OPTIMIZERS = {
    "SGD": class_of(two.SGD), "Momentum": class_of(two.Momentum, use_nesterov=True),
    "Adagrad": class_of(two.Adagrad), "Adadelta": class_of(two.Adadelta), "Adam": class_of(two.Adam),
    "Adam-amsgrad": class_of(two.Adam, amsgrad=True, name="opt"), "AdamW": class_of(two.AdamW),
    "Adamax": class_of(two.Adamax), "NAdam": class_of(two.NAdam), "RAdam": class_of(two.RAdam),
    "RMSProp": class_of(two.RMSProp, centered=True, momentum=0.5), "Rprop": class_of(two.Rprop),
    "Lamb": class_of(two.Lamb), "ASGD": class_of(two.ASGD, batch_num=2),
    "Lars": fluid_class(paddle.incubate.optimizer.LarsMomentumOptimizer, momentum=0.9),
    "fluid-SGD": fluid_class(fluid.SGD), "fluid-Momentum": fluid_class(fluid.Momentum, momentum=0.9),
    "fluid-Lars": fluid_class(fluid.LarsMomentum, momentum=0.9), "fluid-Adagrad": fluid_class(fluid.Adagrad),
    "fluid-DecayedAdagrad": fluid_class(fluid.DecayedAdagrad), "fluid-Adadelta": fluid_class(fluid.Adadelta),
    "fluid-Adam": fluid_class(fluid.Adam), "fluid-Adamax": fluid_class(fluid.Adamax),
    "fluid-RMSProp": fluid_class(fluid.RMSProp), "fluid-Ftrl": fluid_class(fluid.Ftrl, l1=0.01),
    "fluid-Lamb": fluid_class(fluid.Lamb), "Muon": class_of(two.Muon),
    "fluid-Dpsgd": fluid_class(fluid.Dpsgd, sigma=0.1, key=jax.random.key(3)),
}  # fmt: skip
MASTERED = ("SGD", "Momentum", "Adam", "AdamW", "Lamb", "ASGD", "Rprop")

WRAPPERS = {
    "none": lambda opt: opt,
    "LookAhead": lambda opt: paddle.incubate.LookAhead(opt, alpha=0.3, k=2),
    "fluid-Lookahead": lambda opt: fluid.LookaheadOptimizer(opt, alpha=0.3, k=2),
    "GradientMerge": lambda opt: fluid.GradientMergeOptimizer(opt, k_steps=2),
    "Recompute": fluid.RecomputeOptimizer,
    "both": lambda opt: paddle.incubate.LookAhead(fluid.GradientMergeOptimizer(opt, k_steps=2), k=3),
}

SCHEDULERS = {
    "Noam": lambda: lr.NoamDecay(4, 2), "Piecewise": lambda: lr.PiecewiseDecay([2, 4], [0.1, 0.05, 0.01]),
    "NaturalExp": lambda: lr.NaturalExpDecay(0.1, 0.3), "InverseTime": lambda: lr.InverseTimeDecay(0.1, 0.3),
    "Polynomial": lambda: lr.PolynomialDecay(0.1, 3, cycle=True),
    "LinearWarmup": lambda: lr.LinearWarmup(lr.CosineAnnealingDecay(0.1, 4), 2, 0.01, 0.1),
    "Exponential": lambda: lr.ExponentialDecay(0.1, 0.7), "MultiStep": lambda: lr.MultiStepDecay(0.1, [2, 4]),
    "Step": lambda: lr.StepDecay(0.1, 2), "Lambda": lambda: lr.LambdaDecay(0.1, lambda e: 0.9**e),
    "Multiplicative": lambda: lr.MultiplicativeDecay(0.1, lambda e: 1 / e),
    "OneCycle": lambda: lr.OneCycleLR(0.1, 9),
    "ReduceOnPlateau": lambda: lr.ReduceOnPlateau(0.1, patience=1, cooldown=1, factor=0.5),
    "Cosine": lambda: lr.CosineAnnealingDecay(0.1, 3), "Linear": lambda: lr.LinearLR(0.1, 4),
    "Restarts": lambda: lr.CosineAnnealingWarmRestarts(0.1, 2, T_mult=2),
    "Cyclic": lambda: lr.CyclicLR(0.01, 0.1, 2, mode="exp_range", exp_gamma=0.9),
}  # fmt: skip
FLUID_SCHEDULERS = {
    "Noam": lambda: dygraph.NoamDecay(4, 2),
    "Piecewise": lambda: dygraph.PiecewiseDecay([2, 4], [0.1, 0.05, 0.01], 0),
    "NaturalExp": lambda: dygraph.NaturalExpDecay(0.1, 2, 0.5),
    "Exponential": lambda: dygraph.ExponentialDecay(0.1, 2, 0.5, staircase=True),
    "InverseTime": lambda: dygraph.InverseTimeDecay(0.1, 2, 0.5),
    "Polynomial": lambda: dygraph.PolynomialDecay(0.1, 3, cycle=True),
    "Cosine": lambda: dygraph.CosineDecay(0.1, 2, 3),
    "Warmup": lambda: dygraph.LinearLrWarmup(dygraph.PolynomialDecay(0.1, 5), 3, 0.0, 0.1),
    "Warmup-Step": lambda: dygraph.LinearLrWarmup(dygraph.StepDecay(0.1, 2), 2, 0.0, 0.1),
    "Warmup-Warmup": lambda: dygraph.LinearLrWarmup(dygraph.LinearLrWarmup(0.2, 3, 0.0, 0.1), 2, 0.0, 0.1),
    "Step": lambda: dygraph.StepDecay(0.1, 2, 0.5), "MultiStep": lambda: dygraph.MultiStepDecay(0.1, [2, 4]),
    "Lambda": lambda: dygraph.LambdaDecay(0.1, lambda e: 0.9**e),
    "ReduceLROnPlateau": lambda: dygraph.ReduceLROnPlateau(0.1, patience=1, cooldown=1, decay_rate=0.5),
}  # fmt: skip
LOSSES = [3.0, 2.0, 2.5, 2.4, 2.6, 2.7, 2.1, 2.2]


def test_every_class_is_here():
    shown = {c for c in vars(two).values() if isinstance(c, type) and issubclass(c, two.Optimizer)}
    shown |= {c for c in vars(fluid).values() if isinstance(c, type) and issubclass(c, fluid.FluidOptimizer)}
    mine = {type(make(0.1, {"w": jnp.zeros(2)})) for make in OPTIMIZERS.values()}
    assert shown - mine == {two.Optimizer, two.LBFGS, fluid.FluidOptimizer, fluid.DGCMomentumOptimizer}
    for home, table, none in (
        (lr, SCHEDULERS, {"LRScheduler", "_Formula", "_FromTheLast"}),
        (dygraph, FLUID_SCHEDULERS, {"LearningRateDecay", "_Stretched", "LearningRateEpochDecay"}),
    ):
        classes = {n for n, c in vars(home).items() if isinstance(c, type) and c.__module__ == home.__name__}
        assert {type(make()).__name__ for make in table.values()} == classes - none


def advance(scheduler, step):
    """What a training loop does with a scheduler after every step."""
    if isinstance(scheduler, lr.LRScheduler):
        plateau = isinstance(scheduler, lr.ReduceOnPlateau)
        scheduler.step(*([LOSSES[step]] if plateau else []))
    elif isinstance(scheduler, dygraph.ReduceLROnPlateau):
        scheduler.step(np.array([LOSSES[step]]))
    for s in (scheduler, getattr(scheduler, "learning_rate", None)):
        if isinstance(s, dygraph.LearningRateEpochDecay):
            s.epoch()


class Training:
    """Parameters, an optimizer and what is around it, a scheduler and averages, all made anew."""

    def __init__(self, make, wrap, schedule, dtype=jnp.float32, averaged=False):
        rng = np.random.default_rng(0)
        self.params = [
            paddle.Parameter(jnp.asarray(rng.standard_normal(shape), dtype), name)
            for name, shape in SHAPES.items()
        ]
        self.scheduler = schedule()
        self.opt = wrap(make(self.scheduler, self.params))
        self.averages = []
        if averaged:
            self.averages = [
                paddle.static.ExponentialMovingAverage(0.9, lambda n: n, parameters=self.params),
                paddle.incubate.ModelAverage(0.5, self.params, 2, 3, name="avg"),
            ]

    def run(self, first, last, presence):
        for step in range(first, last):
            rng = np.random.default_rng(step + 1)
            for p, here in zip(self.params, presence[step], strict=True):
                g = jnp.asarray(rng.standard_normal(p.shape), p.dtype)
                p.grad = g if here else None
            self.opt.step()
            for average in self.averages:
                average.update()
            advance(self.scheduler, step)

    def save(self, folder):
        save_parameters(self.params, folder / "model.pdparams")
        for i, part in enumerate([self.opt, *self.averages]):
            save_optimizer(part, folder / f"{i}.pdopt")

    def load(self, folder):
        load_parameters(self.params, folder / "model.pdparams")
        for i, part in enumerate([self.opt, *self.averages]):
            # a parameter that never had a gradient has no accumulators in the file
            load_optimizer(part, folder / f"{i}.pdopt", **({} if i else {"strict": False}))

    def everything(self):
        state = [self.opt.state_dict(), *(a.state_dict() for a in self.averages)]
        rate = self.scheduler.state_dict() if hasattr(self.scheduler, "state_dict") else None
        return [p.value for p in self.params], state, rate


def equal(a, b):
    a, b = jax.tree.map(np.asarray, (a, b))
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b, strict=True)


def check(make, folder, save_at, presence):
    whole, first, second = make(), make(), make()
    whole.run(0, STEPS, presence)
    first.run(0, save_at, presence)
    first.save(folder)
    second.load(folder)
    equal(second.everything(), first.everything())
    second.run(save_at, STEPS, presence)
    equal(second.everything(), whole.everything())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


every = partial(settings, derandomize=True, deadline=None, database=None, phases=(Phase.generate,))
patterns = st.lists(st.tuples(*[st.booleans()] * 3), min_size=STEPS, max_size=STEPS)
clips = st.sampled_from([None, "norm", "global"])


def maker(name, wrapper="none", schedule=lambda: 0.1, clip=None, masters=False, averaged=False):
    make, more = OPTIMIZERS[name], {}
    if clip and "Dpsgd" not in name:  # which takes no clip
        more["grad_clip"] = (
            paddle.nn.ClipGradByNorm(0.5) if clip == "norm" else paddle.nn.ClipGradByGlobalNorm(0.5)
        )
    if masters:
        more["multi_precision"] = True
    dtype = jnp.bfloat16 if masters else jnp.float32
    return lambda: Training(partial(make, **more), WRAPPERS[wrapper], schedule, dtype, averaged)


@pytest.mark.parametrize("name", OPTIMIZERS)
@every(max_examples=3)
@given(st.integers(0, STEPS), patterns, st.sampled_from(list(WRAPPERS)), clips, st.data())
def test_every_class_resumes(folder, name, save_at, presence, wrapper, clip, data):
    """Uncompiled, where an example costs little; the logic of states and groups is the same."""
    table = FLUID_SCHEDULERS if name.startswith("fluid") else SCHEDULERS
    schedule = (lambda: 0.1) if name == "Rprop" else table[data.draw(st.sampled_from(list(table)))]
    masters = name in MASTERED and data.draw(st.booleans())
    with jax.disable_jit():
        check(
            maker(name, wrapper, schedule, clip, masters, data.draw(st.booleans())), folder, save_at, presence
        )


# Parameters that join one by one, so that each has bias corrections of its own.
JOINS = [(True, False, False), (True, True, False), (True, True, False), *[(True, True, True)] * 3]
COMPILED = [("Adam", False), ("AdamW", True), ("Lamb", True), ("fluid-Adam", False)]


@pytest.mark.slow
@pytest.mark.parametrize("name, masters", [*COMPILED, ("Momentum", True), ("fluid-RMSProp", False)])
def test_compiled_steps_resume(folder, name, masters):
    """The same programs run after a load, also where a global norm is summed over groups."""
    presence = JOINS if (name, masters) in COMPILED else [(True, True, True)] * STEPS
    check(maker(name, clip="global", masters=masters), folder, 4, presence)


def rates(opt, scheduler, first, last):
    """The rates of some steps, without the steps."""
    found = []
    for step in range(first, last):
        found.append(opt._rate_for_step())
        opt._stepped()
        advance(scheduler, step)
    return found


ALL_SCHEDULERS = [*((n, False) for n in SCHEDULERS), *((n, True) for n in FLUID_SCHEDULERS)]


@pytest.mark.parametrize(
    "name, old", ALL_SCHEDULERS, ids=[f"{'fluid-' * old}{n}" for n, old in ALL_SCHEDULERS]
)
def test_every_scheduler_resumes(folder, name, old):
    def made():
        scheduler = (FLUID_SCHEDULERS if old else SCHEDULERS)[name]()
        make = OPTIMIZERS["fluid-SGD" if old else "SGD"]
        return make(scheduler, {"w": jnp.zeros(2)}), scheduler

    want = rates(*made(), 0, 8)
    for save_at in range(8):
        first, second = made(), made()
        rates(*first, 0, save_at)
        save_optimizer(first[0], folder / "rate.pdopt")
        load_optimizer(second[0], folder / "rate.pdopt")
        assert rates(*second, save_at, 8) == want[save_at:]


@pytest.mark.parametrize("save_at, search", [(0, None), (1, "strong_wolfe"), (3, None), (3, "strong_wolfe")])
def test_lbfgs_resumes(folder, save_at, search):
    @paddle.loss
    def quartic(params):
        return jnp.sum((params[0] - 1) ** 4) + jnp.sum(params[1] ** 2)

    def made():
        params = [paddle.Parameter(jnp.arange(3.0), "a"), paddle.Parameter(jnp.ones(2), "b")]
        return params, two.LBFGS(0.5, max_iter=2, history_size=3, line_search_fn=search, parameters=params)

    def run(params, opt, n):
        for _ in range(n):
            opt.step(closure_of(opt, quartic, params))
        return [p.value for p in params], opt.state_dict()

    want = run(*made(), 5)
    first, second = made(), made()
    run(*first, save_at)
    save_parameters(first[0], folder / "model.pdparams")
    save_optimizer(first[1], folder / "lbfgs.pdopt")
    load_parameters(second[0], folder / "model.pdparams")
    load_optimizer(second[1], folder / "lbfgs.pdopt")
    equal(run(*second, 5 - save_at), want)


RATE = paddle.schedules.exponential_decay(0.1, 0.9)
FUNCTIONS = {
    "sgd": paddle.sgd(0.1), "scheduled": paddle.sgd(RATE), "momentum": paddle.momentum(0.1, 0.9),
    "lars_momentum": paddle.lars_momentum(0.1, 0.9), "adagrad": paddle.adagrad(0.1),
    "adadelta": paddle.adadelta(0.1), "decayed_adagrad": paddle.decayed_adagrad(0.1),
    "adam": paddle.adam(RATE), "adamw": paddle.adamw(0.1), "amsgrad": paddle.adam(0.1, amsgrad=True),
    "adamax": paddle.adamax(0.1), "nadam": paddle.nadam(0.1),
    "radam": paddle.radam(0.1), "rmsprop": paddle.rmsprop(0.1, centered=True), "rprop": paddle.rprop(0.1),
    "ftrl": paddle.ftrl(0.1, 0.1), "lamb": paddle.lamb(0.1),
    "fluid-lamb": paddle.lamb(0.1, bias_correction=False),
    "asgd": paddle.asgd(0.1, 2), "dpsgd": paddle.dpsgd(0.1, key=jax.random.key(1)),
    "chain": paddle.chain(paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1), paddle.adam(RATE)),
    "by_path": paddle.by_path([("a", {"rule": paddle.momentum(0.2, 0.9)}), ("b", {"frozen": True}),
                               ("c", {"beta1": 0.8})], paddle.adam(0.1)),
    "masters": paddle.with_master_weights(paddle.chain(paddle.l1_decay(0.1), paddle.adamw(RATE))),
    "accumulate": paddle.accumulate_gradients(paddle.adam(0.1), 4),
    "lookahead": paddle.lookahead(paddle.momentum(0.1, 0.9), 0.5, 2),
    "skip_nonfinite": paddle.skip_nonfinite(paddle.adam(0.1)),
    "with-optax": paddle.chain(optax.trace(0.9), paddle.adam(0.1)),
}  # fmt: skip


def test_every_function_is_here():
    rules = (
        {n for n in paddle.__all__ if n in paddle.rules.__all__}
        if hasattr(paddle.rules, "__all__")
        else set()
    )
    rules |= {
        n for n in paddle.__all__ if getattr(getattr(paddle, n), "__module__", "") == "paddlejax.lifting"
    }
    assert {n for n in rules if n.islower()} - {"lift", "rule"} <= set(FUNCTIONS) | {"dgc_momentum"}


@pytest.mark.parametrize("name", FUNCTIONS)
@every(max_examples=2)
@given(st.integers(0, STEPS), patterns)
def test_every_function_resumes(folder, name, save_at, presence):
    tx, narrow = FUNCTIONS[name], name == "masters"
    rng = np.random.default_rng(0)
    start = {
        n: jnp.asarray(rng.standard_normal(s), jnp.bfloat16 if narrow else jnp.float32)
        for n, s in SHAPES.items()
    }

    def run(params, state, first, last):
        for step in range(first, last):
            rng = np.random.default_rng(step + 1)
            grads = {n: jnp.asarray(rng.standard_normal(p.shape), p.dtype) for n, p in params.items()}
            if name not in ("with-optax", "skip_nonfinite", "lookahead"):  # which want every gradient
                grads = {
                    n: g if here else None for (n, g), here in zip(grads.items(), presence[step], strict=True)
                }
            updates, state = tx.update(grads, state, params)
            params = paddle.apply_updates(params, updates)
        return params, state

    with jax.disable_jit():
        whole = run(start, tx.init(start), 0, STEPS)
        params, state = run(start, tx.init(start), 0, save_at)
        save_parameters(params, folder / "model.pdparams")
        save_optimizer(
            state, folder / "opt.pdopt", params=params, schedule=RATE if name == "scheduled" else None
        )
        fresh = jax.tree.map(jnp.zeros_like, start)
        again = load_parameters(fresh, folder / "model.pdparams")
        loaded = load_optimizer(tx.init(fresh), folder / "opt.pdopt", params=fresh)
        equal(loaded, state)
        equal(run(again, loaded, save_at, STEPS), whole)
