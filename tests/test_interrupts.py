"""An interrupt anywhere leaves an object as it was or as it would have become; threads do not meet.

Ctrl-C is raised wherever CPython may raise it in the package's own code, one place after another.
"""

import collections
import contextlib
import dis
import functools
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from running import closure_of, in_threads

import paddlejax as paddle
from paddlejax.distributed.dgc_optimizer import COUNTER
from paddlejax.fluid import dygraph
from paddlejax.optimizer import gate, lr, saved
from paddlejax.optimizer.compiled import CompiledStep
from paddlejax.optimizer.group import StepGroup
from paddlejax.optimizer.loss import Loss
from paddlejax.optimizer.optimizer import Optimizer
from paddlejax.optimizer.packing import Buffer
from paddlejax.optimizer.parts import Rules
from paddlejax.optimizer.store import Store
from paddlejax.optimizer.transaction import run_atomically

PACKAGE = str(Path(paddle.__file__).parent)
CHECKED = {
    "CALL",
    "CALL_FUNCTION_EX",
    "CALL_KW",
    "RESUME",
    "JUMP_BACKWARD",
}  # after these it looks for signals
RATE = 0.05
SHAPES = {"w": (2, 3), "b": (3,), "s": ()}


@contextlib.contextmanager
def watched(begins, comes):
    """Calls of the package's code run `begins(frame)` at their start, `comes(frame)` before an instruction.

    Python 3.12 and later have sys.monitoring for this. What sys.settrace reports there leaves out a function
    now and then, after an interrupt in another.
    """
    if sys.version_info < (3, 12):

        def inside(frame, event, arg):
            if event == "opcode":
                comes(frame)
            return inside

        def outside(frame, event, arg):
            if frame.f_code.co_filename.startswith(PACKAGE):
                frame.f_trace_opcodes, frame.f_trace_lines = True, False
                begins(frame)
                return inside

        tracing = sys.gettrace()
        sys.settrace(outside)
        try:
            yield
        finally:
            sys.settrace(tracing)
        return

    monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID
    events = monitoring.events

    def start(code, at):
        if not code.co_filename.startswith(PACKAGE):
            return monitoring.DISABLE
        monitoring.set_local_events(tool, code, events.INSTRUCTION)
        begins(sys._getframe(1))

    def instruction(code, at):
        comes(sys._getframe(1))

    monitoring.use_tool_id(tool, "interrupts")
    monitoring.register_callback(tool, events.PY_START, start)
    monitoring.register_callback(tool, events.INSTRUCTION, instruction)
    monitoring.set_events(tool, events.PY_START)
    try:
        yield
    finally:
        monitoring.set_events(tool, events.NO_EVENTS)
        monitoring.register_callback(tool, events.PY_START, None)
        monitoring.register_callback(tool, events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)


class Places:
    """Where a KeyboardInterrupt was tried, and the functions of the package that were met on the way.

    A place is an instruction in a certain call of a function, and how often that call has come by; with
    `once` it is the instruction alone. Python reports the instructions of a function for certain only from
    the call on after the one in which they were asked for, so until then none of them counts.
    """

    def __init__(self, once=False):
        self.once, self.tried, self.met = once, set(), set()

    def interrupt(self, action):
        """Run `action` with an interrupt at the first place not tried; False if it met nothing new."""
        known, tried = frozenset(self.met), len(self.tried)
        calls, times = collections.Counter(), collections.Counter()
        running = {}  # frame: which call of its code it is, and the instruction before

        def begins(frame):
            self.met.add(frame.f_code)
            calls[frame.f_code] += 1
            running[frame] = calls[frame.f_code], "RESUME"

        def comes(frame):
            code, at = frame.f_code, frame.f_lasti
            if code not in known or frame not in running or len(self.tried) > tried:
                return
            call, before = running[frame]
            running[frame] = call, dis.opname[code.co_code[at]]
            if before in CHECKED:
                times[frame, at] += 1
                place = (code, at) if self.once else (code, at, call, times[frame, at])
                if place not in self.tried:
                    self.tried.add(place)
                    raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt), watched(begins, comes):
            action()
        return self.met > known or len(self.tried) > tried


def everywhere(action, check, through, once=False):
    """Interrupt `action` at every place and check each time; how many places there were.

    The last run goes past all its places, so there is none that was not tried. `through` are functions of
    which we know that it passes them: else it would be enough to find no places at all.
    """
    places = Places(once)
    while places.interrupt(action):
        try:
            check()
        except Exception as e:
            raise AssertionError(f"after an interrupt at place {len(places.tried)}") from e
    check()
    assert not gate.lock._is_owned() and not gate.turn._is_owned()  # other threads would wait for ever
    missing = {f.__code__ for f in map(inspect.unwrap, through)} - {place[0] for place in places.tried}
    assert not missing, f"not interrupted in {missing}"
    return len(places.tried)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@paddle.loss
def along(params, directions):
    """A loss with these gradients."""
    return sum(jnp.sum(p * d) for p, d in zip(params, directions, strict=True))


class Adam:
    """Some Parameters under Adam, and the same in numpy."""

    init, rule = reference.REFERENCES["adam"]

    def __init__(self, make=paddle.optimizer.Adam, rate=RATE, parameters="parameters", **options):
        self.values, self.grads = arrays(0), arrays(1)
        self.parameters = {name: paddle.Parameter(p, name) for name, p in self.values.items()}
        self.states = {name: Adam.init(p) for name, p in self.values.items()}
        self.opt = make(rate, **{parameters: list(self.parameters.values())}, **options)
        self.dialect = {"dialect": "1.x"} if parameters == "parameter_list" else {}
        self.taken = 0

    def step(self, missing=()):
        for name, p in self.parameters.items():
            p.grad = None if name in missing else self.grads[name]
        self.opt.step()

    def minimize(self):
        for p in self.parameters.values():
            p.grad = None
        self.opt.minimize(along(list(self.parameters.values()), list(self.grads.values())))

    def advance(self, missing=()):
        """The step in numpy."""
        for name, g in self.grads.items():
            if name not in missing:
                p, state = self.values[name], self.states[name]
                self.values[name], self.states[name] = Adam.rule(p, g, RATE, state, **self.dialect)
        self.taken += 1

    def agrees(self):
        found = self.opt.state_dict()
        pairs = [(self.parameters[name].numpy(), p) for name, p in self.values.items()]
        for name, state in self.states.items():
            pairs += [(found.get(f"{name}_{k}_0", a), a) for k, a in state.items()]
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)

    def check(self):
        """The step happened as a whole or not at all."""
        values, states, taken = dict(self.values), dict(self.states), self.taken
        self.advance()
        if not self.agrees():
            self.values, self.states, self.taken = values, states, taken
            assert self.agrees(), "neither before the step nor after it"


FLUID = {"make": paddle.fluid.optimizer.Adam, "parameters": "parameter_list"}
STEPS = {
    "step": ({}, Adam.step),
    "step, packed": ({"packed": True}, Adam.step),
    "minimize": ({}, Adam.minimize),
    "minimize, packed": ({"packed": True}, Adam.minimize),
}


@pytest.mark.parametrize("options, act", STEPS.values(), ids=STEPS)
def test_a_step_happens_as_a_whole_or_not_at_all(options, act):
    m = Adam(**options)
    for _ in range(2):
        act(m)
        m.check()
    assert m.taken == 2
    method = getattr(type(m.opt), act.__name__)
    places = everywhere(lambda: act(m), m.check, [method, run_atomically, CompiledStep.keep])
    assert 2 < m.taken < places  # some came too late to keep the step from happening, others did not
    act(m)
    m.advance()
    assert m.agrees()


@pytest.mark.parametrize("act", [Adam.step, Adam.minimize], ids=["step", "minimize"])
def test_a_schedule_that_counts_steps_counts_those_that_happened(act):
    schedule = dygraph.PiecewiseDecay([10**6], [RATE, RATE], begin=0)
    m = Adam(rate=schedule, **FLUID)
    act(m)
    m.check()

    def check():
        m.check()
        assert schedule.step_num == m.taken

    everywhere(lambda: act(m), check, [getattr(type(m.opt), act.__name__), run_atomically, CompiledStep.keep])


FIRST = [
    "StepGroup.__init__",
    "StepGroup.split",
    "CompiledStep.__init__",
    "Rules.arrange",
    "CompiledStep.rate",
    "take",
]


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("place", FIRST)
def test_a_step_that_would_have_split_or_begun_a_state(place, packed, monkeypatch):
    """Interrupted while the programs are made: the state is as before, and the same steps lead on."""
    owner, name = place.split(".") if "." in place else ("Buffer" if packed else "Store", place)
    cls = {c.__name__: c for c in (StepGroup, CompiledStep, Rules, Buffer, Store)}[owner]
    m = Adam(packed=packed)
    for missing in ([], ["b"]):
        m.parameters["w"].value  # noqa: B018  so that it has to be copied
        before = m.opt.state_dict()
        with monkeypatch.context() as patch:

            def stop(*args, **kwargs):
                raise KeyboardInterrupt

            patch.setattr(cls, name, stop)
            if place != "StepGroup.split" or missing:  # nothing to split at first
                with pytest.raises(KeyboardInterrupt):
                    m.step(missing)
        assert m.opt.state_dict().keys() == before.keys() and m.agrees()
        m.step(missing)
        m.advance(missing)
        assert m.agrees()


def test_backward_adds_all_gradients_or_none():
    m = Adam()
    ps, ds = list(m.parameters.values()), list(m.grads.values())
    along(ps, ds).backward()
    times = [1]

    def check():
        now = [round(float(np.mean(p.grad / d)), 3) for p, d in zip(ps, ds, strict=True)]
        assert len(set(now)) == 1 and now[0] in (times[0], times[0] + 1)
        times[0] = now[0]

    everywhere(lambda: along(ps, ds).backward(), check, [Loss.backward])


def test_a_state_is_taken_over_as_a_whole_or_not_at_all():
    m, later = Adam(), Adam()
    m.step()
    for _ in range(2):
        later.step()
        later.advance()
    old, new = m.opt.state_dict(), later.opt.state_dict()

    def check():
        found = m.opt.state_dict()
        assert any(all(np.array_equal(found[k], want[k]) for k in want) for want in (old, new))
        m.opt.set_state_dict(old)

    everywhere(lambda: m.opt.set_state_dict(new), check, [Optimizer.set_state_dict, saved.read], once=True)


@pytest.mark.parametrize("kind", ["ExponentialMovingAverage", "ModelAverage"])
def test_an_average_takes_a_value_in_as_a_whole_or_not_at_all(kind):
    p = paddle.Parameter(jnp.ones(3), "w")
    p.grad = jnp.ones(3)
    make = {
        "ExponentialMovingAverage": lambda: paddle.static.ExponentialMovingAverage(0.5, parameters=[p]),
        "ModelAverage": lambda: paddle.incubate.ModelAverage(1.0, [p]),
    }[kind]
    average = make()
    average.update()
    count = [1]

    def entries():
        return {k: float(np.max(v)) for k, v in average.state_dict().items()}

    def after(n):
        if n == 0:
            return 0, 0.0
        return (n, 1 - 0.5**n) if kind == "ExponentialMovingAverage" else (n, float(n))

    def check():
        found = entries()
        if kind == "ExponentialMovingAverage":
            now = found["@EMA_STEP_COUNTER@"], found["w_ema_0"]
        else:
            now = found["w_num_accumulates_0"], sum(v for k, v in found.items() if "_sum_" in k)
        assert any(np.allclose(now, after(n)) for n in (count[0], count[0] + 1)), now
        count[0] = now[0]
        with average.apply():
            np.testing.assert_allclose(p.numpy(), 1, rtol=1e-5)

    everywhere(average.update, check, [type(average).update, run_atomically])


def plateau():
    scheduler = lr.ReduceOnPlateau(0.5, patience=1)
    scheduler.step = functools.partial(scheduler.step, 1.0)
    return scheduler


SCHEDULERS = {
    "ReduceOnPlateau": plateau,
    "StepDecay": lambda: lr.StepDecay(0.5, 3, 0.5),
    "MultiplicativeDecay": lambda: lr.MultiplicativeDecay(0.5, lambda epoch: 0.9),
    "LinearWarmup": lambda: lr.LinearWarmup(lr.StepDecay(0.5, 3, 0.5), 4, 0.0, 0.5),
    "CosineAnnealingDecay": lambda: lr.CosineAnnealingDecay(0.5, 7),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_steps_as_a_whole_or_not_at_all(make):
    straight, scheduler = make(), make()

    def check():
        if scheduler.last_epoch != straight.last_epoch:
            straight.step()
        assert (scheduler.last_epoch, scheduler()) == (straight.last_epoch, straight())

    for _ in range(6):
        everywhere(scheduler.step, check, [type(scheduler).step])
        assert scheduler.state_dict() == straight.state_dict()


class Told:
    """A KeyboardInterrupt as the caller of an object sees it: the call is done, or may be made again."""

    def __init__(self, make, act, seen):
        """`make` returns an object, `act(object, n)` makes the n-th call, `seen(object)` is what shows."""
        self.act, self.seen = act, seen
        self.thing, self.straight = make(), make()  # `straight` is never interrupted, and one call ahead
        self.calls, self.now = 0, seen(self.straight)
        self.ahead()

    def ahead(self):
        self.act(self.straight, self.calls)
        self.then = self.seen(self.straight)

    def __call__(self):
        self.act(self.thing, self.calls)

    def check(self):
        found = self.seen(self.thing)
        if not alike(found, self.now):
            assert alike(found, self.then), f"neither {self.calls} calls nor one more: {found}"
            self.calls, self.now = self.calls + 1, self.then
            self.ahead()


def alike(a, b):
    return a.keys() == b.keys() and all(np.allclose(a[k], b[k], 1e-5, 1e-7) for k in b)


def cells():
    return [paddle.Parameter(jnp.full(n, 2.0), f"p{n}") for n in (1, 2)]


class Scaled:
    """A GradScaler, and an optimizer that it steps."""

    def __init__(self):
        self.params = cells()
        self.opt = paddle.optimizer.Momentum(0.1, parameters=self.params)
        self.scaler = paddle.amp.GradScaler(init_loss_scaling=8.0, incr_every_n_steps=2)
        self.loss = paddle.loss(lambda a, b, x: (jnp.sum(a * a) + jnp.sum(b)) * x)
        self.begun = -1

    def given(self, n):
        """The gradients of the n-th step, scaled, unless they lie there already."""
        if self.begun != n:
            scale = float(self.scaler.state_dict()["scale"][0])
            for p in self.params:
                p.grad = jnp.full(p.shape, scale * (n + 1.0) if n % 5 != 3 else jnp.inf)
            self.begun = n

    def step(self, n):
        self.given(n)
        with contextlib.suppress(RuntimeError):  # "called twice": it was done before the interrupt
            self.scaler.step(self.opt)
        self.scaler.update()

    def minimize(self, n):
        self.scaler.minimize(self.opt, self.loss(*self.params, 1.0 + n if n % 5 != 3 else jnp.inf))

    def seen(self):
        own = {p.name: p.numpy() for p in self.params}
        state = self.scaler.state_dict()
        return own | self.opt.state_dict() | state | {"skips": self.scaler.total_skips}


class Wrapped:
    """A wrapper around an optimizer."""

    def __init__(self, wrap):
        self.params = cells()
        self.opt = wrap(paddle.optimizer.Momentum(0.1, parameters=self.params))

    def minimize(self, n):
        self.opt.minimize(along(self.params, [jnp.full(p.shape, n + 1.0) for p in self.params]))

    def seen(self):
        return {p.name: p.numpy() for p in self.params} | self.opt.state_dict()


class Searched:
    """L-BFGS."""

    def __init__(self, line_search_fn=None):
        self.params = cells()
        self.opt = paddle.optimizer.LBFGS(
            0.5, max_iter=2, line_search_fn=line_search_fn, parameters=self.params
        )
        self.loss = paddle.loss(lambda a, b: jnp.sum((a - 1) ** 4) + jnp.sum((b + 1) ** 2))

    def step(self, n):
        self.opt.step(closure_of(self.opt, self.loss, *self.params))

    def seen(self):
        state = self.opt.state_dict()["state"]
        counts = {k: state[k] for k in ("n_iter", "func_evals") if k in state}
        return {p.name: p.numpy() for p in self.params} | counts


class Averaged:
    """A ModelAverage of which one Parameter joins late."""

    def __init__(self):
        self.params = cells()
        self.average = paddle.incubate.ModelAverage(1.0, self.params)

    def step(self, n):
        for i, p in enumerate(self.params):
            p.grad = jnp.ones(p.shape) if n % 2 or not i else None
        self.average.step()

    def seen(self):
        return self.average.state_dict()


OBJECTS = {
    "GradScaler.minimize": (Scaled, Scaled.minimize, Scaled.seen, paddle.amp.GradScaler.minimize),
    "LookAhead": (
        lambda: Wrapped(lambda o: paddle.incubate.LookAhead(o, 0.5, 2)),
        Wrapped.minimize,
        Wrapped.seen,
        paddle.incubate.LookAhead.minimize,
    ),
    "GradientMerge": (
        lambda: Wrapped(lambda o: paddle.fluid.optimizer.GradientMergeOptimizer(o, 2)),
        Wrapped.minimize,
        Wrapped.seen,
        paddle.fluid.optimizer.GradientMergeOptimizer.minimize,
    ),
    "LBFGS": (Searched, Searched.step, Searched.seen, paddle.optimizer.LBFGS.step),
    "ModelAverage": (Averaged, Averaged.step, Averaged.seen, paddle.incubate.ModelAverage.step),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_call_of_an_object_happens_as_a_whole_or_not_at_all(name):
    make, act, seen, through = OBJECTS[name]
    told = Told(make, act, seen)
    places = everywhere(told, told.check, [through], once=True)
    assert 2 < told.calls < places


class Repeated(Told):
    """The call that was interrupted is made again, as a user would: then it has happened once."""

    def __call__(self):
        self.done = False
        self.act(self.thing, self.calls)
        self.done = True

    def check(self):
        if not self.done:
            self.act(self.thing, self.calls)
        assert alike(self.seen(self.thing), self.then), f"not {self.calls + 1} calls"
        self.calls, self.now = self.calls + 1, self.then
        self.ahead()


def test_a_scaled_step_and_its_update_can_be_repeated():
    told = Repeated(Scaled, Scaled.step, Scaled.seen)
    everywhere(told, told.check, [paddle.amp.GradScaler.step, paddle.amp.GradScaler.update], once=True)


def test_averages_stand_in_for_values_inside_the_block_alone():
    params = cells()
    average = paddle.static.ExponentialMovingAverage(0.5, parameters=params)
    average.update()
    for p in params:
        p.set_value(jnp.zeros(p.shape))

    def act():
        with average.apply():
            assert all(np.all(p.numpy() == 2.0) for p in params)

    def check():
        assert all(np.all(p.numpy() == 0.0) for p in params)
        with average.apply():
            assert all(np.all(p.numpy() == 2.0) for p in params)

    everywhere(act, check, [type(average).restore], once=True)


def test_a_state_with_a_scheduler_is_taken_over_as_a_whole():
    def made(steps):
        params = cells()
        schedule = lr.LinearWarmup(lr.StepDecay(0.5, 3, 0.5), 4, 0.0, 0.5)
        opt = paddle.incubate.LookAhead(paddle.optimizer.Adam(schedule, parameters=params), 0.5, 3)
        for n in range(steps):
            for p in params:
                p.grad = jnp.full(p.shape, n + 1.0)
            opt.step()
            schedule.step()
        return opt

    def flat(state):
        return {k: float(np.sum(x)) for k, x in state.items() if k != "LR_Scheduler"} | {
            k: v for k, v in state["LR_Scheduler"].items() if isinstance(v, int | float)
        }

    old, new = made(1).state_dict(), made(5).state_dict()
    opt = made(1)

    def check():
        assert flat(opt.state_dict()) in (flat(old), flat(new))
        opt.set_state_dict(old)

    everywhere(lambda: opt.set_state_dict(new), check, [type(opt).set_state_dict], once=True)


def test_a_compressed_step_happens_as_a_whole_or_not_at_all():
    """On eight workers, before they compress anything: momentum, whose value and count must agree."""
    w = paddle.Parameter(jnp.ones(3), "w")
    opt = paddle.incubate.optimizer.DGCMomentumOptimizer(0.1, 0.9, rampup_begin_step=1000, parameter_list=[w])
    mean = paddle.loss(lambda w, x: jnp.mean(x @ w))
    expected, velocity, value = [], 0.0, 1.0
    for _ in range(1000):
        expected.append(value)
        velocity = 0.9 * velocity + 1.0
        value -= 0.1 * velocity

    def taken():
        return int(opt.state_dict()[COUNTER.key].item())

    def check():
        np.testing.assert_allclose(w.numpy(), expected[taken()], rtol=1e-4)

    def act():
        opt.minimize(mean(w, jnp.ones((8, 3))))

    act()
    places = everywhere(act, check, [type(opt).minimize, run_atomically])
    assert 1 < taken() < places
    act()
    check()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
@pytest.mark.parametrize("act", ["step", "minimize"])
def test_signals_from_outside(act):
    """In a process of its own: a signal that hits JAX while it cleans up leaves its caches in disorder.

    There nothing can be said of the object any more, so another process begins anew.
    """
    for _ in range(5):
        process = multiprocessing.get_context("spawn").Process(target=bombard, args=(getattr(Adam, act),))
        process.start()
        process.join(120)
        process.kill()
        if process.exitcode != DISORDER:
            break
    assert process.exitcode == 0  # else it has said why


DISORDER = 77  # the exit status where JAX itself does not work any more


def check_jax():
    """Leave the process if JAX by itself fails: a signal hit it between two of its own steps."""
    try:
        jnp.copy(jnp.ones(1)).block_until_ready()
    except Exception:
        os._exit(DISORDER)


def bombard(act):
    m = Adam()
    for _ in range(3):
        start = time.perf_counter()
        act(m)
        once = time.perf_counter() - start
        m.check()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    hits = 0
    try:
        for part in np.linspace(0.05, 1.5, 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, once * part)
                act(m)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            check_jax()
            m.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert hits and m.taken > 3


# ------------------------------------------------------------------------------------------ threads


def at_once(*actions):
    """Each in a thread of its own, all from one moment on."""
    gate = threading.Barrier(len(actions))
    with in_threads(*(lambda action=action: (gate.wait(), action()) for action in actions)):
        pass


@pytest.mark.parametrize("options, act", STEPS.values(), ids=STEPS)
def test_two_optimizers_in_two_threads(options, act):
    """From the first step on, compilation included."""
    models = [Adam(**options) for _ in range(3)]

    def steps(m):
        for _ in range(20):
            act(m)

    at_once(*(lambda m=m: steps(m) for m in models[:2]))
    steps(models[2])
    straight = models[2].opt.state_dict()
    for m in models[:2]:
        for name, p in m.parameters.items():
            np.testing.assert_array_equal(p.numpy(), models[2].parameters[name].numpy())
        for key, value in m.opt.state_dict().items():
            np.testing.assert_array_equal(value, straight[key])


def test_losses_in_two_threads():
    """One function, called with different static arguments, some traced while others are built."""

    @paddle.loss
    def power(p, cubed, shift):
        return jnp.sum(p * p * p if cubed else p * p) + shift

    found = {}

    def build(name):
        p = paddle.Parameter(jnp.full(3, 2.0), name)
        for i in range(40):
            p.clear_grad(set_to_zero=False)
            loss = power(p, i % 2 == 0, float(i))
            loss.backward()
            found[name, i] = float(loss), p.grad.tolist()

    at_once(lambda: build("a"), lambda: build("b"))
    for name in "ab":
        for i in range(40):
            n = 2 if i % 2 else 3
            value, grad = found[name, i]
            assert value == pytest.approx(3 * 2**n + i) and grad == pytest.approx([n * 2.0 ** (n - 1)] * 3)
