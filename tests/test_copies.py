"""Objects through copy and pickle: optimizers, wrappers, schedulers and what hangs on them."""

import copy
import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bits import bits
from running import closure_of

import paddlejax as pj
from paddlejax import fluid, incubate, optimizer
from paddlejax.optimizer import lr


def through_pickle(x):
    return pickle.loads(pickle.dumps(x))


both = pytest.mark.parametrize("how", [copy.deepcopy, through_pickle], ids=["copy", "pickle"])
RATE = {"learning_rate": 0.1}
NAMES = "SGD Momentum Adagrad Adadelta Adam AdamW Adamax RMSProp Lamb ASGD NAdam RAdam Rprop".split()
OPTIMIZERS = {
    **{name: lambda ps, name=name: getattr(optimizer, name)(parameters=ps, **RATE) for name in NAMES},
    "packed": lambda ps: optimizer.Adam(0.1, parameters=ps, packed=True),
    "masters": lambda ps: optimizer.Adam(0.1, parameters=ps, multi_precision=True),
    "clip and decay": lambda ps: optimizer.Momentum(
        0.1, 0.9, ps, weight_decay=pj.regularizer.L1Decay(0.1), grad_clip=pj.nn.ClipGradByGlobalNorm(1.0)
    ),
    "groups": lambda ps: optimizer.AdamW(
        0.1, parameters=[{"params": [ps[0]], "learning_rate": 0.5}, {"params": [ps[1]], "weight_decay": 0.2}]
    ),
    "own rule": lambda ps: optimizer.Optimizer(0.1, ps, rule=pj.rules.Adam()),
    "Lars": lambda ps: incubate.optimizer.LarsMomentumOptimizer(0.1, 0.9, parameter_list=ps),
    "Recompute": lambda ps: incubate.optimizer.RecomputeOptimizer(optimizer.Adam(0.1, parameters=ps)),
    "LookAhead": lambda ps: incubate.LookAhead(optimizer.Adam(0.1, parameters=ps), k=2),
    "Merge": lambda ps: incubate.optimizer.GradientMergeOptimizer(optimizer.Adam(0.1, parameters=ps), 2),
    "fluid": lambda ps: fluid.optimizer.FtrlOptimizer(0.1, parameter_list=ps),
    "scheduled": lambda ps: optimizer.Adam(lr.LinearWarmup(lr.StepDecay(0.1, 2), 2, 0.0, 0.1), parameters=ps),
}  # fmt: skip


def parameters():
    return [pj.Parameter(jnp.arange(4.0), "a"), pj.Parameter(jnp.ones((2, 3)), "b")]


def steps(ps, opt, n):
    for _ in range(n):
        for p in ps:
            p.grad = p.value * 0.5 + 1
        opt.step()
        opt.clear_grad()
        if isinstance(getattr(opt, "_learning_rate", None), lr.LRScheduler):
            opt._learning_rate.step()
    return [p.numpy() for p in ps]


@both
@pytest.mark.parametrize("used", [0, 3], ids=["fresh", "used"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_trains_on_by_itself(name, used, how):
    ps = parameters()
    opt = OPTIMIZERS[name](ps)
    before = steps(ps, opt, used)
    ps2, opt2 = how((ps, opt))
    moved = steps(ps2, opt2, 3)
    for p, old, new in zip(ps, before, moved, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)
        assert not np.array_equal(new, old)
    for new, want in zip(moved, steps(ps, opt, 3), strict=True):
        np.testing.assert_array_equal(new, want)
    for key, value in opt.state_dict().items():
        np.testing.assert_equal(bits(opt2.state_dict()[key]), bits(value))


@pytest.mark.filterwarnings("ignore:.*one worker")
def test_a_copy_of_dgc_goes_on():
    """A copy only: it holds a compiled program and a mesh, which JAX does not pickle."""
    ps = parameters()
    opt = incubate.optimizer.DGCMomentumOptimizer(0.1, 0.9, 0, parameter_list=ps, num_trainers=1)
    ps2, opt2 = copy.deepcopy((ps, opt))
    for params, one in ((ps, opt), (ps2, opt2)):
        for _ in range(2):
            one.minimize(pj.loss(lambda a, b: jnp.sum(a * a) + jnp.sum(b * b))(*params))
    for p, q in zip(ps, ps2, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@both
def test_lbfgs_and_a_scaler_go_on(how):
    ps = parameters()[:1]
    opt = optimizer.LBFGS(parameters=ps, line_search_fn="strong_wolfe", max_iter=2)

    def run(ps, opt):
        opt.step(closure_of(opt, loss, ps[0]))
        return ps[0].numpy()

    loss = pj.loss(lambda w: jnp.sum((w - 3.0) ** 4))
    run(ps, opt)
    ps2, opt2 = how((ps, opt))
    np.testing.assert_array_equal(run(ps2, opt2), run(ps, opt))
    scaler = pj.amp.GradScaler(init_loss_scaling=8.0)
    assert how(scaler).state_dict() == scaler.state_dict()


def square(t):
    return 0.9**t


SCHEDULERS = {
    "step": lambda: lr.StepDecay(0.1, 2),
    "warmup": lambda: lr.LinearWarmup(lr.CosineAnnealingDecay(0.1, 5), 2, 0.0, 0.1),
    "lambda": lambda: lr.LambdaDecay(0.1, square),
    "multiplicative": lambda: lr.MultiplicativeDecay(0.1, square),
    "plateau": lambda: lr.ReduceOnPlateau(0.1),
    "one cycle": lambda: lr.OneCycleLR(0.1, 9),
    "cyclic": lambda: lr.CyclicLR(0.1, 0.5, 2),
    "restarts": lambda: lr.CosineAnnealingWarmRestarts(0.1, 4),
}


@both
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_copied_scheduler_goes_on(name, how):
    scheduler = SCHEDULERS[name]()
    metric = [1.0] if name == "plateau" else []

    def go_on(scheduler, n):
        for _ in range(n):
            scheduler.step(*metric)
        return scheduler()

    go_on(scheduler, 2)
    other = how(scheduler)
    assert type(other) is type(scheduler) and other.state_dict() == scheduler.state_dict()
    assert go_on(other, 3) != pytest.approx(0) and other.last_epoch == scheduler.last_epoch + 3
    assert go_on(scheduler, 3) == other()


PLAIN = {
    "schedule": lambda: pj.schedules.step_decay(0.1, 3),
    "nested schedule": lambda: pj.schedules.warmup(pj.schedules.cosine_annealing_decay(0.4, T_max=8), 4),
    "plateau": lambda: pj.schedules.reduce_on_plateau(0.1),
    "plateau state": lambda: pj.schedules.reduce_on_plateau(0.1).init(),
    "clip": lambda: pj.nn.ClipGradByNorm(1.0),
    "decay": lambda: pj.regularizer.L2Decay(0.1),
    "used decay": lambda: (decay := pj.regularizer.L2Decay(0.1), decay.transformation())[0],
    "param attr": lambda: pj.ParamAttr("w", learning_rate=0.5),
    "rows": lambda: pj.SelectedRows([0, 2], jnp.ones((2, 3)), 4),
    "packed": lambda: pj.pack({"w": jnp.ones(2)}),
    "rule": pj.rules.Lamb,
    "ema object": lambda: pj.static.ExponentialMovingAverage(0.5, parameters=parameters()),
    "model average object": lambda: incubate.ModelAverage(0.5, parameters(), 2, 4),
    "info": lambda: pj.get_info(pj.with_info(pj.sgd(0.1)).init(jnp.ones(2))),
}


@both
@pytest.mark.parametrize("name", PLAIN)
def test_plain_things_are_copied(name, how):
    x = PLAIN[name]()
    other = how(x)
    assert type(other) is type(x)
    if name.endswith("schedule"):
        assert other(5) == x(5)


def train_elsewhere(ps, opt, tx, state, queue):
    """What another process makes of an optimizer that it is given."""
    queue.put((steps(ps, opt, 2), jax.tree.map(np.asarray, tx.update(jnp.ones(2), state, jnp.ones(2))[0])))


def test_an_optimizer_goes_to_another_process(monkeypatch):
    """By spawn, which pickles it; there it goes on as here."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    ps = parameters()
    opt = optimizer.Adam(0.1, parameters=ps)
    steps(ps, opt, 2)
    tx = pj.chain(pj.clip_by_global_norm(1.0), pj.by_path([], pj.adam(0.1), weight_decay=0.1))
    state = tx.init(jnp.ones(2))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=train_elsewhere, args=(ps, opt, tx, state, queue))
    process.start()
    found, update = queue.get(timeout=60)
    process.join(60)
    for there, here in zip(found, steps(ps, opt, 2), strict=True):
        np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(update, tx.update(jnp.ones(2), state, jnp.ones(2))[0])
