"""However long a program runs, and whatever is new at every step: memory, arrays and programs stay as many.

Each scenario is one step of a long run. The quick tests make some, the slow ones 100,000 (2,000 where every
step compiles), in which the memory of the process must not grow either.
"""

import gc
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import paddlejax as paddle
from paddlejax import recent
from paddlejax.distributed.placed import Placed
from paddlejax.distributed.spread import Spread

MEMORY = 16  # MB by which the peak of the second half of a run may exceed that of the first
compiled = [0]
monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: compiled.__setitem__(0, compiled[0] + ("backend_compile" in event))
)


@paddle.loss
def squares(params, x):
    return sum(jnp.sum(p * p) for p in params) * jnp.mean(x)


@paddle.loss
def named(params, name):
    return jnp.sum(params[0] * params[0])


class Run:
    """Parameters under Adam, and what a step of each scenario does."""

    def __init__(self, n=2):
        self.params = [paddle.Parameter(jnp.ones(4), f"p{i}") for i in range(n)]
        self.opt = paddle.optimizer.Adam(1e-3, parameters=self.params)
        self.fluid = paddle.fluid.optimizer.SGDOptimizer(1e-3, parameter_list=self.params)
        self.g, self.rng = jnp.ones(4), np.random.default_rng(0)
        self.tx = paddle.adam(1e-3)
        self.values = {"a": jnp.ones(4)}
        self.state = self.tx.init(self.values)
        self.update = jax.jit(self.tx.update)

    def some(self, present):
        for p, here in zip(self.params, present, strict=True):
            p.grad = self.g if here else None
        self.opt.step()

    def object(self, i):
        self.some([True] * len(self.params))
        self.opt.clear_grad()

    def minimize(self, i):
        self.opt.minimize(squares(self.params, self.g))

    def function(self, i):
        self.opt.minimize(lambda params: jnp.sum(params[0] ** 2))

    def functional(self, i):
        updates, self.state = self.update(self.values, self.state, self.values)
        self.values = paddle.apply_updates(self.values, updates)

    def alternating(self, i):
        self.some([(k + i) % 2 for k in range(len(self.params))])

    def random(self, i):
        self.some(self.rng.random(len(self.params)) < 0.7)

    def chosen(self, i):
        here = [p for p, h in zip(self.params, self.rng.random(len(self.params)) < 0.7, strict=True) if h]
        self.opt.minimize(squares(self.params, self.g), parameters=here or self.params)

    def clips(self, i):
        clip = paddle.fluid.clip.GradientClipByGlobalNorm(1.0 + i % 3)
        self.fluid.minimize(squares(self.params, self.g), grad_clip=clip)

    def states(self, i):
        self.object(i)
        self.opt.set_state_dict(self.opt.state_dict())

    def statics(self, i):
        self.opt.minimize(named(self.params, str(i)))

    def losses(self, i):
        loss = paddle.loss(lambda params: jnp.sum(params[0] ** 2))(self.params)
        assert float(loss) > 0
        self.opt.minimize(loss)


# How many Parameters, and whether every step compiles.
SCENARIOS = {
    "object": (2, False),
    "minimize": (2, False),
    "function": (2, False),
    "functional": (2, False),
    "alternating": (2, False),
    "random": (8, False),
    "chosen": (8, False),
    "clips": (2, False),
    "states": (2, False),
    "statics": (1, True),
    "losses": (1, True),
}


def sizes():
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)
    return len(jax.live_arrays()), compiled[0], peak


def check(name, warm, steps):
    """Make steps, and return by how much the memory grew in the second half; arrays and programs must not."""
    n, compiles = SCENARIOS[name]
    run = Run(n)
    step = getattr(run, name)
    for i in range(warm):
        step(i)
    arrays, programs, memory = sizes()
    for i in range(warm, warm + steps):
        step(i)
    after = sizes()
    print(name, warm + steps, "steps; arrays, programs, MB:", (arrays, programs, round(memory)), after)
    assert after[0] <= arrays
    if not compiles:
        assert after[1] == programs
    assert len(run.opt._steps.fused) <= recent.KEPT and len(named._recipes) <= recent.KEPT
    return after[2] - memory


@pytest.mark.parametrize("name", SCENARIOS)
def test_some_steps(name, monkeypatch):
    monkeypatch.setattr(recent, "KEPT", 4)
    check(name, 20 if not SCENARIOS[name][1] else 6, 40 if not SCENARIOS[name][1] else 6)


def test_tables_of_layouts_are_bounded(monkeypatch):
    """Of trees of ever other shapes; what has gone is made anew."""
    monkeypatch.setattr(recent, "KEPT", 2)
    mesh, first = jax.make_mesh((8,), ("data",)), jax.devices()[0]
    spread, placed = Spread(paddle.sgd(0.1), mesh, "data", None), Placed(lambda x: x + 1, first)
    opt = paddle.incubate.DistributedFusedLamb(parameters=[paddle.Parameter(jnp.ones(8))], mesh=mesh)
    guard = opt.inner_optimizer._part
    for n in (1, 2, 3, 1):
        assert f"({n}" in spread.describe(jnp.zeros(n))
        assert float(placed(jax.device_put(np.ones(n, "f"), first)).sum()) == 2 * n
        guard._shardings([0] * n, jnp.ones(8))
    assert [len(table) for table in (spread._layouts, placed._plans, guard._parts)] == [2, 2, 2]


@pytest.mark.slow  # minutes each
@pytest.mark.parametrize("name", SCENARIOS)
def test_many_steps(name):
    steps = 1_000 if SCENARIOS[name][1] else 50_000
    assert check(name, steps, steps) < MEMORY


@pytest.mark.slow  # times mean something only where nothing else runs
def test_a_random_subset_costs_at_most_three_full_steps():
    from time import perf_counter

    full, some = Run(50), Run(50)
    full.object(0)
    for i in range(20):
        some.random(i)
    ratios = []
    for i in range(9):
        start = perf_counter()
        for _ in range(50):
            full.object(i)
        middle = perf_counter()
        for _ in range(50):
            some.random(i)
        ratios.append((perf_counter() - middle) / (middle - start))
    assert sorted(ratios)[4] < 3
