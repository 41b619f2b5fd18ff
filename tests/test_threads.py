"""Who reads an object while a step of it runs finds all of it before the step, or all of it after."""

import copy
import multiprocessing
import os
import pickle
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from running import closure_of, in_threads

import paddlejax as paddle
from paddlejax.optimizer import gate
from paddlejax.optimizer.programs import Watched
from paddlejax.optimizer.store import Store

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
    done, reading = threading.Event(), [threading.Event() for _ in reads]

    def run(read, begun):
        try:
            while not done.is_set():
                read()
                begun.set()
        finally:
            begun.set()

    with in_threads(*(lambda pair=pair: run(*pair) for pair in zip(reads, reading, strict=True))):
        try:
            for begun in reading:
                assert begun.wait(60)
            for _ in range(times):
                act()
        finally:
            done.set()


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


def test_a_search_shows_all_parameters_at_one_point():
    """All elements take the same way, from one point of the search to the next."""
    params = cells()
    opt = paddle.optimizer.LBFGS(0.5, max_iter=3, parameters=params)
    loss = paddle.loss(lambda params: sum(jnp.sum((p - 1.0) ** 4) for p in params))

    closure, found = closure_of(opt, loss, params), []
    beside(lambda: opt.step(closure), lambda: found.extend(one_number(paddle.values(params))), times=10)
    assert len(found) > 1


@pytest.mark.parametrize("kind", ["SGD", "LookAhead"])
@pytest.mark.parametrize("act", [Counting.step, Counting.minimize], ids=["step", "minimize"])
def test_two_threads_step_one_optimizer(act, kind):
    m = KINDS[kind]()
    act(m)
    with in_threads(*2 * [lambda: [act(m) for _ in range(STEPS)]]):
        pass
    assert one_number(m.values()) == {2 * STEPS + 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_computes_losses(kind):
    """With gradients and without, as an evaluation beside the training does."""
    m = KINDS[kind]()
    between = paddle.loss(lambda params: jnp.max(params[0]) - jnp.min(params[-1]))

    def evaluate():
        with paddle.no_grad():
            assert float(between(m.params)) == 0.0
        assert float(between(m.params)) == 0.0
        assert m.params[0].abs().shape == m.params[0].shape

    m.step()
    evaluate()
    beside(m.step, evaluate)


def test_two_threads_step_one_scheduler():
    schedule = paddle.optimizer.lr.LinearWarmup(paddle.optimizer.lr.StepDecay(1.0, 9), 5, 0.0, 1.0)
    with in_threads(*4 * [lambda: [schedule.step() for _ in range(500)]]):
        pass
    assert schedule.last_epoch == 2000


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


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
def test_a_signal_handler_that_reads_while_a_buffer_forgets(monkeypatch):
    """What it read is forgotten by the next step."""
    m, come = Counting(lambda ps: paddle.optimizer.Momentum(1.0, 0.0, ps, packed=True)), []
    forget = Store.forget

    def forgetting(self, buffer):
        forget(self, buffer)
        if self is m.params[-1].store and not come:
            come.append(True)
            signal.raise_signal(signal.SIGTERM)

    m.step()
    m.values()
    old = signal.signal(signal.SIGTERM, lambda *_: one_number([p.numpy() for p in m.params]))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "forget", forgetting)
            m.step()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert come
    m.step()
    assert one_number([p.numpy() for p in m.params]) == {3.0}


def test_a_callback_may_step():
    """It donates a copy of what the program reads: a wait for that program would not end."""
    m, come = Counting(), []

    def step(x):
        come.append(True)
        m.step()
        for p in m.params:
            p.grad = None

    def calling(params):
        io_callback(step, None, jax.lax.stop_gradient(params[0]))
        return -sum(jnp.sum(p) for p in params)

    m.loss = paddle.loss(calling)
    m.step()
    ended = []
    other = threading.Thread(target=lambda: (m.minimize(), ended.append(True)), daemon=True)
    other.start()
    other.join(60)
    assert ended and come and one_number(m.values()) == {3.0}


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
    """Whoever had the turn, it is free in the new process, which has one thread; nothing is half stored."""
    m, forked = Counting(), []
    m.step()

    def child():
        with gate.turn, gate.lock:
            os._exit(0 if not gate.pending and not any(x.is_deleted() for x in m.values()) else 1)

    def fork():
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(30)
        forked.append(process.exitcode)
        process.kill()

    if holder == "another thread":
        beside(fork, m.step, times=10)
    else:
        with gate.turn, gate.lock:
            fork()
    assert forked and set(forked) == {0}


COPIES = {
    **KINDS,
    "GradientMerge": lambda: Counting(
        lambda ps: paddle.fluid.optimizer.GradientMergeOptimizer(paddle.optimizer.Momentum(1.0, 0.0, ps), 2)
    ),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_in_another_thread(kind):
    m = COPIES[kind]()
    m.step()
    failed = []

    def copies():
        for again in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), copy.copy):
            opt = again(m.opt)
            state = opt.state_dict()
            if again is copy.copy:
                return
            found = one_number([p.numpy() for p in opt.parameter_list])
            if kind != "GradientMerge":
                assert one_number([x for k, x in state.items() if "velocity" in k]) <= {-1.0}
            failed.append(len(found) != 1)

    beside(m.step, copies)
    assert failed and not any(failed)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_averages_in_another_thread(how):
    m = Counting()
    m.step()
    ema = paddle.static.ExponentialMovingAverage(0.5, parameters=m.params)
    average = inc.ModelAverage(1.0, m.params)

    def act():
        ema.update()
        average.step()

    act()
    beside(act, lambda: how(ema).state_dict(), lambda: how(average).state_dict())


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
def test_a_signal_handler_that_saves_before_and_after_the_program(monkeypatch):
    """The second of two signals finds what the first left to be stored."""
    m, found, come = Counting(), [], set()
    m.step()
    (compiled,) = m.opt.compiled_steps
    kind = type(compiled)
    old = signal.signal(signal.SIGTERM, lambda *_: found.append(one_number([p.numpy() for p in m.params])))

    def signalled(method):
        def run(self, *args):
            if method not in come:
                come.add(method)
                signal.raise_signal(signal.SIGTERM)
            return method(self, *args)

        return run

    try:
        with monkeypatch.context() as patch:
            for name in ("state", "keep"):
                patch.setattr(kind, name, signalled(getattr(kind, name)))
            m.step()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert found[0] == {1.0} and found[-1] == {2.0}
    m.step()
    assert one_number(m.values()) == {3.0}


def test_copies_leave_locks_out():
    m = Counting()
    m.minimize()
    for again in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        opt = again(m.opt)
        for p in opt.parameter_list:
            p.grad = -jnp.ones(p.shape)
        opt.step()
    assert isinstance(m.opt.compiled_steps[0].step, Watched)
