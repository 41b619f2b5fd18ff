"""Who reads an object while a step of it runs finds all of it before the step, or all of it after."""

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import paddlejax as paddle
from paddlejax.optimizer import gate
from paddlejax.optimizer.programs import Watched

STEPS = 40
inc = paddle.incubate


def cells(n=3):
    return [paddle.Parameter(jnp.zeros(50 + i), f"p{i}") for i in range(n)]


class Counting:
    """An optimizer under which all elements of all values say how many steps were made."""

    def __init__(self, make=lambda ps: paddle.optimizer.Momentum(1.0, 0.0, ps)):
        self.params = cells()
        self.opt = make(self.params)
        self.loss = paddle.loss(lambda params: -sum(jnp.sum(p) for p in params))

    def step(self):
        for p in self.params:
            p.grad = -jnp.ones(p.shape)
        self.opt.step()

    def minimize(self):
        self.opt.minimize(self.loss(self.params))

    def values(self):
        return paddle.values(self.params)

    def velocities(self):
        return [x for k, x in self.opt.state_dict().items() if "velocity" in k]


def one_number(arrays):
    found = {float(x) for array in arrays for x in np.unique(array)}
    assert len(found) <= 1, f"torn: {found}"
    return found


def beside(act, *reads, times=STEPS):
    """Make steps, and let other threads read at the same time, as often as they can."""
    failures, done = [], threading.Event()
    reading = [threading.Event() for _ in reads]

    def run(read, begun):
        try:
            while not done.is_set():
                read()
                begun.set()
        except BaseException as e:
            failures.append(e)
            begun.set()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(reads, reading, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for t in threads:
            t.start()
        for begun in reading:
            begun.wait(60)
        for _ in range(times):
            act()
    finally:
        done.set()
        for t in threads:
            t.join()
        sys.setswitchinterval(interval)
    assert not failures, failures


KINDS = {
    "SGD": Counting,
    "packed": lambda: Counting(lambda ps: paddle.optimizer.Momentum(1.0, 0.0, ps, packed=True)),
    "LookAhead": lambda: Counting(lambda ps: inc.LookAhead(paddle.optimizer.Momentum(1.0, 0.0, ps), 1.0, 2)),
    "masters": lambda: Counting(lambda ps: paddle.optimizer.Momentum(1.0, 0.0, ps, multi_precision=True)),
}


@pytest.mark.parametrize("act", [Counting.step, Counting.minimize], ids=["step", "minimize"])
@pytest.mark.parametrize("kind", KINDS)
def test_readers_in_other_threads(kind, act):
    m = KINDS[kind]()
    act(m)

    def each():
        for p in m.params:
            one_number([p.value])
            one_number([p.numpy()])
            one_number([p * 1.0])
            if p.grad is not None:
                one_number([p.grad])

    beside(lambda: act(m), lambda: one_number(m.values()), lambda: one_number(m.velocities()), each)
    assert one_number(m.values()) == {STEPS + 1.0}


def test_averages_and_schedulers_in_other_threads():
    m = Counting()
    schedule = paddle.optimizer.lr.LambdaDecay(1.0, lambda epoch: 1.0 + epoch)
    ema = paddle.static.ExponentialMovingAverage(0.5, parameters=m.params)
    average = inc.ModelAverage(1.0, m.params)

    def act():
        m.step()
        ema.update()
        average.step()
        schedule.step()

    def rates():
        state = schedule.state_dict()
        assert state["last_lr"] == 1.0 + state["last_epoch"]

    def averaged():
        found = ema.state_dict()
        one_number([x for k, x in found.items() if "_ema_0" in k])
        average.state_dict()

    act()
    beside(act, rates, averaged)


@pytest.mark.parametrize("act", [Counting.step, Counting.minimize], ids=["step", "minimize"])
def test_two_threads_step_one_optimizer(act):
    m = Counting()
    act(m)
    threads = [threading.Thread(target=lambda: [act(m) for _ in range(STEPS)]) for _ in range(2)]
    failures, hook = [], threading.excepthook
    threading.excepthook = failures.append
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        threading.excepthook = hook
    assert not failures
    assert one_number(m.values()) == {2 * STEPS + 1.0}


def test_a_loss_follows_what_other_threads_move_and_no_more():
    m = Counting()
    loss, late = m.loss(m.params), m.loss(m.params)
    other = threading.Thread(target=m.minimize)
    other.start()
    other.join()
    m.opt.minimize(loss)
    assert one_number(m.values()) == {2.0}
    with pytest.raises(RuntimeError, match="built before a step moved its parameters"):
        m.opt.minimize(late)


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
@pytest.mark.parametrize("packed", [False, True])
def test_a_signal_handler_that_saves(packed, monkeypatch):
    """It comes when the program has run and nothing, or a part, is stored: it sees the step as done."""
    m = Counting(lambda ps: paddle.optimizer.Momentum(1.0, 0.0, ps, packed=packed))
    m.step()
    found = []

    def save(*_):
        found.append((one_number([p.numpy() for p in m.params]), one_number(m.velocities())))

    old = signal.signal(signal.SIGTERM, save)
    try:
        (compiled,) = m.opt.compiled_steps
        keep = type(compiled).keep

        come = []

        def interrupted(self, values, state):
            if come:
                return keep(self, values, state)
            come.append(True)
            signal.raise_signal(signal.SIGTERM)  # nothing is stored
            self.stores[0].array = values[0]
            signal.raise_signal(signal.SIGTERM)  # a part is
            return keep(self, values, state)

        with monkeypatch.context() as patch:
            patch.setattr(type(compiled), "keep", interrupted)
            m.step()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert len(found) == 2 and all(values == {2.0} for values, _ in found)
    m.step()
    assert one_number(m.values()) == {3.0}


def test_a_signal_handler_may_not_step(monkeypatch):
    m = Counting()
    m.step()
    (compiled,) = m.opt.compiled_steps
    keep, first = type(compiled).keep, []

    def nested(self, values, state):
        if not first:
            first.append(True)
            with pytest.raises(RuntimeError, match="found a step or an update in a signal handler"):
                m.opt.step()
        return keep(self, values, state)

    with monkeypatch.context() as patch:
        patch.setattr(type(compiled), "keep", nested)
        m.step()
    m.step()
    assert first and one_number(m.values()) == {3.0}


@pytest.mark.parametrize("where", ["loss", "rule"])
def test_a_callback_may_read_from_any_thread(where):
    seen = []

    def read(x):
        def look():
            seen.append((one_number(m.values()), len(m.opt.state_dict())))

        look()
        other = threading.Thread(target=look)  # as a device may call it
        other.start()
        other.join(60)
        assert not other.is_alive()

    def call(x):
        io_callback(read, None, jax.lax.stop_gradient(x))

    @paddle.rule
    class Calling(paddle.Rule):
        slots = ("velocity",)

        def step(self, g, p, lr, s):
            call(p)
            return -lr * g, {"velocity": s["velocity"]}

    m = Counting(
        (lambda ps: paddle.optimizer.Optimizer(1.0, ps, rule=Calling()))
        if where == "rule"
        else (lambda ps: paddle.optimizer.SGD(1.0, ps))
    )
    if where == "loss":
        m.loss = paddle.loss(lambda params: (call(params[0]), -sum(jnp.sum(p) for p in params))[1])
    for n in range(3):
        m.minimize()
        assert seen and all(values == {float(n)} for values, _ in seen)
        seen.clear()


def test_a_reader_does_not_wait_for_what_calls_out_or_is_compiled():
    """The locks are free while a loss is traced and while its callback runs."""
    free = []

    def look(*_):
        def ask():
            free.append(gate.lock.acquire(blocking=False))
            if free[-1]:
                gate.lock.release()

        other = threading.Thread(target=ask)
        other.start()
        other.join()

    m = Counting()
    m.loss = paddle.loss(lambda params: (look(), -sum(jnp.sum(p) for p in params))[1])
    m.minimize()
    m.loss = paddle.loss(lambda params: (jax.debug.callback(look), -sum(jnp.sum(p) for p in params))[1])
    m.minimize()
    assert len(free) > 1 and all(free)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("holder", ["another thread", "this thread"])
def test_a_process_that_was_forked_reads(holder):
    """Whoever held the locks, they are free in the new process, which has one thread."""
    p = paddle.Parameter(jnp.ones(3), "p")
    held, go = threading.Event(), threading.Event()

    def hold():
        with gate.turn, gate.lock:
            held.set()
            go.wait(60)

    def child():
        with gate.turn, gate.lock:
            os._exit(0 if p.shape == (3,) and not gate.pending else 1)

    if holder == "another thread":
        other = threading.Thread(target=hold)
        other.start()
        held.wait(60)
    else:
        gate.turn.acquire()
        gate.lock.acquire()
    try:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(30)
        code = process.exitcode
        process.kill()
    finally:
        if holder == "another thread":
            go.set()
            other.join()
        else:
            gate.lock.release()
            gate.turn.release()
    assert code == 0


def test_copies_leave_locks_out():
    m = Counting()
    m.minimize()
    for again in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        opt = again(m.opt)
        for p in opt.parameter_list:
            p.grad = -jnp.ones(p.shape)
        opt.step()
    assert isinstance(m.opt.compiled_steps[0].step, Watched)
