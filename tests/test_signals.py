"""Real signals at random moments: what was interrupted has happened as a whole or not at all.

test_interrupts.py raises at every place of the package's own code. Here a timer of the operating system sends
SIGALRM, which also arrives inside JAX. Each object is judged by what a user sees of it, beside another one
that nobody interrupts.
"""

import conftest  # isort: skip  # noqa: F401  the settings of JAX, also in a process of its own

import contextlib
import json
import multiprocessing
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interrupts import OBJECTS, Scaled, Told, Wrapped, cells

import paddlejax as paddle
from paddlejax.optimizer import lr

DISORDER = 77  # the exit status where JAX itself does not work any more
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")


def flat(state):
    """The numbers of a state_dict, and of the dicts in it."""
    return {
        k if inner is None else f"{k}/{inner}": value
        for k, v in state.items()
        for inner, value in (v.items() if isinstance(v, dict) else [(None, v)])
        if isinstance(value, int | float | np.ndarray | jnp.ndarray)
    }


class Stepped:
    """An optimizer, or a wrapper of one, whose n-th step has its own gradients."""

    def __init__(self, make, shapes=((2, 3), (3,), ())):
        self.params = [paddle.Parameter(jnp.full(s, 2.0), f"p{i}") for i, s in enumerate(shapes)]
        self.opt = make(self.params)

    def step(self, n):
        for p in self.params:
            p.grad = jnp.full(p.shape, n % 7 + 1.0)
        self.opt.step()

    def subset(self, n):
        for i, p in enumerate(self.params):
            p.grad = jnp.full(p.shape, n % 7 + 1.0) if (n * 5 >> i) % 2 else None
        self.opt.step()

    def seen(self):
        return {p.name: p.numpy() for p in self.params} | flat(self.opt.state_dict())


class Compressed(Stepped):
    """DGC on one worker, where it compresses from the third step on."""

    def __init__(self):
        def make(params):
            return paddle.incubate.optimizer.DGCMomentumOptimizer(
                0.1, 0.9, rampup_begin_step=2, sparsity=[0.5], num_trainers=1, parameter_list=params
            )

        super().__init__(make, ((4, 5), (3,)))


class InTurn(Scaled):
    """The step of a GradScaler and its update, one after the other; a step that was made says so."""

    def step(self, n):
        if n % 2:
            return self.scaler.update()
        self.given(n // 2)
        with contextlib.suppress(RuntimeError):
            self.scaler.step(self.opt)


class Moving:
    """A moving average, whose values stand in for the Parameters' inside a block."""

    def __init__(self):
        self.params = cells()
        self.average = paddle.static.ExponentialMovingAverage(0.5, parameters=self.params)
        self.average.update()
        for p in self.params:
            p.set_value(p.numpy() + 1)

    def update(self, n):
        self.average.update()

    def apply(self, n):
        with self.average.apply():
            pass

    def seen(self):
        outside = {p.name: p.numpy() for p in self.params}
        with self.average.apply():
            inside = {f"{p.name} inside": p.numpy() for p in self.params}
        return outside | inside | self.average.state_dict()


class Loaded:
    """An optimizer with a scheduler around a scheduler that takes over one state after another."""

    def __init__(self):
        made = [self.made(steps) for steps in (1, 5)]
        self.states, self.opt = [opt.state_dict() for opt in made], made[0]

    @staticmethod
    def made(steps):
        schedule = lr.LinearWarmup(lr.StepDecay(0.5, 3, 0.5), 4, 0.0, 0.5)
        opt = paddle.incubate.LookAhead(paddle.optimizer.Adam(schedule, parameters=cells()), 0.5, 3)
        for n in range(steps):
            for p in opt.parameter_list:
                p.grad = jnp.full(p.shape, n + 1.0)
            opt.step()
            schedule.step()
        return opt

    def load(self, n):
        self.opt.set_state_dict(self.states[(n + 1) % 2])

    def seen(self):
        return flat(self.opt.state_dict()) | {"rate": self.opt.get_lr()}


class Piped:
    """An optimizer around a network that is cut into two stages."""

    def __init__(self):
        def hidden(params, x):
            return jnp.tanh(x @ params["w"])

        def last(params, x, y):
            return jnp.mean((x @ params["w"] - y) ** 2)

        self.params = [paddle.Parameter(jnp.full((2, 2), 0.5), f"p{i}") for i in range(2)]
        trees = [{"w": p} for p in self.params]
        self.opt = paddle.optimizer.Adam(0.05, parameters=trees)
        self.pipeline = paddle.fluid.optimizer.PipelineOptimizer(
            self.opt, [hidden, last], place_list=jax.devices()[:1] * 3, num_microbatches=2
        )

    def minimize(self, n):
        x = jnp.arange(8.0).reshape(4, 2) + n % 7
        self.pipeline.minimize(self.pipeline.loss(x, x))

    def seen(self):
        return {p.name: p.numpy() for p in self.params} | flat(self.opt.state_dict())


class Scheduled:
    """A scheduler around a scheduler."""

    def __init__(self):
        self.schedule = lr.LinearWarmup(lr.StepDecay(0.5, 3, 0.9), 4, 0.0, 0.5)

    def step(self, n):
        self.schedule.step()

    def seen(self):
        return {"rate": self.schedule(), "epoch": self.schedule.last_epoch}


def around(make):
    return lambda: Stepped(make)


ADAM = around(lambda params: paddle.optimizer.Adam(0.05, parameters=params))
CALLS = {
    "step": (ADAM, Stepped.step, Stepped.seen),
    "step, packed": (
        around(lambda params: paddle.optimizer.Adam(0.05, parameters=params, packed=True)),
        Stepped.step,
        Stepped.seen,
    ),
    "step, subsets": (ADAM, Stepped.subset, Stepped.seen),
    "minimize": (lambda: Wrapped(lambda opt: opt), Wrapped.minimize, Wrapped.seen),
    "Muon.step": (around(lambda params: paddle.optimizer.Muon(0.05, params)), Stepped.step, Stepped.seen),
    "DGC.step": (Compressed, Stepped.step, Stepped.seen),
    "GradScaler.step, update": (InTurn, InTurn.step, InTurn.seen),
    **{name: (make, act, seen) for name, (make, act, seen, _) in OBJECTS.items()},
    "LookAhead.step": (
        around(lambda params: paddle.incubate.LookAhead(paddle.optimizer.SGD(0.05, params), 0.5, 2)),
        Stepped.step,
        Stepped.seen,
    ),
    "ExponentialMovingAverage.update": (Moving, Moving.update, Moving.seen),
    "ExponentialMovingAverage.apply": (Moving, Moving.apply, Moving.seen),
    "PipelineOptimizer.minimize": (Piped, Piped.minimize, Piped.seen),
    "LinearWarmup.step": (Scheduled, Scheduled.step, Scheduled.seen),
    "set_state_dict": (Loaded, Loaded.load, Loaded.seen),
}
QUICK = ["step", "minimize", "GradScaler.step, update", "LookAhead", "GradientMerge", "set_state_dict"]


def works():
    """Leave the process if JAX by itself fails: a signal hit it between two of its own steps."""
    try:
        jnp.copy(jnp.ones(1)).block_until_ready()
    except Exception:
        os._exit(DISORDER)


def bombard(names, hits, seed, path):
    """Send signals into the calls of these objects until so many have hit each; write down what was found."""
    rng = np.random.default_rng(seed)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for name in names:
        told, times, found = None, [], {"object": name, "hits": 0, "wrong": []}
        while found["hits"] < hits:
            try:
                if told is None:
                    told = Told(*CALLS[name])
                if len(times) < 5 or told.calls % 20 == 19:  # the first compiles
                    start = time.perf_counter()
                    told()
                    times = [*times[-6:], time.perf_counter() - start]
                else:
                    length = max(1e-6, rng.uniform(0, 1.1) * float(np.median(times)))
                    try:
                        signal.setitimer(signal.ITIMER_REAL, length)
                        told()
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except BaseException:  # JAX makes some KeyboardInterrupts another error
                        found["hits"] += 1
                    signal.setitimer(signal.ITIMER_REAL, 0)
                told.check()
            except Exception as e:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, 0)
                told, times = None, []
                works()
                found["wrong"].append(f"{type(e).__name__}: {e}"[:300])
            if found["hits"] % 10 == 0:
                path.write_text(json.dumps(found))
        path.write_text(json.dumps(found))
        with path.with_suffix(".all").open("a") as f:
            f.write(json.dumps(found) + "\n")


def results(names, hits, tmp_path):
    """What `bombard` found, in a process of its own: a signal that hits JAX while it cleans up leaves its
    caches in disorder. There nothing can be said of the object any more, so another process goes on."""
    found, path = {name: {"hits": 0, "wrong": []} for name in names}, tmp_path / "found"
    for seed in range(40):
        left = [name for name in names if found[name]["hits"] < hits]
        if not left:
            break
        least = min(hits - found[name]["hits"] for name in left)
        process = multiprocessing.get_context("spawn").Process(target=bombard, args=(left, least, seed, path))
        process.start()
        process.join(1200)
        process.kill()
        done = path.with_suffix(".all")
        rows = done.read_text().splitlines() if done.exists() else []
        if process.exitcode == DISORDER and path.exists():
            rows.append(path.read_text())
        for row in map(json.loads, dict.fromkeys(rows)):
            found[row["object"]]["hits"] += row["hits"]
            found[row["object"]]["wrong"] += row["wrong"]
        for file in (done, path):
            file.unlink(missing_ok=True)
        assert process.exitcode in (0, DISORDER)
    for name, row in found.items():
        print(f"{name:32} hits {row['hits']:5} wrong {len(row['wrong'])}")
    return found


def check(names, hits, tmp_path):
    found = results(names, hits, tmp_path)
    assert {name: row["wrong"] for name, row in found.items() if row["wrong"]} == {}
    assert all(row["hits"] >= hits for row in found.values())


def test_some_signals(tmp_path):
    check(QUICK, 17, tmp_path)


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("name", CALLS)
def test_two_thousand_signals(name, tmp_path):
    check([name], 2000, tmp_path)
