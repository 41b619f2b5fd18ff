"""The pipeline against training without one, its schedule against the textbook, its threads in failure."""

import functools
import itertools
import threading
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as pj
from paddlejax.distributed.pipeline import PipelineOptimizer
from paddlejax.distributed.pipeline_schedule import SCHEDULES, pipeline_schedule, stage_of
from paddlejax.distributed.placed import Placed
from paddlejax.distributed.processes import launch

DEVICES = jax.devices()
rng = np.random.default_rng(0)


def normal(*shape):
    return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


# Stages of different kinds: token ids that travel on beside floats, a dict between stages, a 0-d parameter.
def embed(params, ids):
    return {"h": params["table"][ids].mean(1), "ids": ids}


def hidden(params, a):
    h = a["h"] if isinstance(a, dict) else a
    h = jnp.tanh(h @ params["w"] + params["b"][None, :]) * params["scale"]
    return h * (1 + 0.01 * a["ids"].astype(jnp.float32).sum(1, keepdims=True)) if isinstance(a, dict) else h


def squares(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)


@functools.cache
def network(k):
    """k stages and their parameters."""
    widths = [12, *(16,) * (k - 2)]
    middle = [
        {"w": normal(n, 16), "b": np.zeros(16, np.float32), "scale": np.float32(1)} for n in widths[: k - 2]
    ]
    first, last = {"table": normal(20, 12)}, {"w": normal(12 if k == 2 else 16, 3)}
    if k == 2:
        return [lambda p, ids: embed(p, ids)["h"], squares], [first, last]
    return [embed, *(hidden,) * (k - 2), squares], [first, *middle, last]


X, Y = rng.integers(0, 20, (24, 5)), normal(24, 3)


def whole(stages):
    """The same network without a pipeline."""

    def loss(params, x, y):
        for f, p in zip(stages[:-1], params, strict=False):
            x = f(p, x)
        return stages[-1](params[-1], x, y)

    return loss


def unpipelined(tx, stages, params, steps, examples=24):
    """Parameters, state and loss after so many steps on all examples at once."""

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(whole(stages))(params, X[:examples], Y[:examples])
        updates, state = tx.update(grads, state, params)
        return pj.apply_updates(params, updates), state, loss

    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    for _ in range(steps):
        params, state, loss = step(params, state)
    return params, state, loss


def assert_close(found, expected, atol=1e-6):
    chex.assert_trees_all_close(found, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("k, m", [(2, 8), (3, 8), (4, 16), (4, 3), (1, 4), (5, 5)])
def test_1f1b_is_the_textbooks(k, m):
    tasks = pipeline_schedule(k, m).tasks
    for s in range(k):
        warm_up = min(k - s, m)
        expected = [("F", j) for j in range(warm_up)]
        for j in range(m):
            expected += [("B", j)] + [("F", j + warm_up)] * (j + warm_up < m)
        mine = [t for t in tasks if stage_of(t.section, k) == s]
        found = [("F" if t.section < k - 1 else "B", t.micro_batch) for t in mine]
        if s == k - 1:  # forward and backward are one section there
            expected = [("B", j) for j in range(m)]
        assert found == expected


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("k, m", [(2, 4), (2, 8), (4, 8), (3, 1)])
def test_bubble_is_the_model(kind, k, m):
    assert pipeline_schedule(k, m, kind).bubble == pytest.approx((k - 1) / (m + k - 1))


def test_gpipe_runs_all_forwards_first():
    tasks = pipeline_schedule(3, 4, "GPipe").tasks
    assert [t.micro_batch for t in tasks if t.section in (0, 4)] == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_is_complete_ordered_and_bounded(kind):
    """Each task once, after all it waits for, one at a time on a device, no more in flight than allowed."""
    for k, m, queue_size, lanes in itertools.product(
        (1, 2, 4), (1, 3, 8), (1, 2, 5, 30), (None, [1, 3, 1, 2])
    ):
        lanes = [1] * k if lanes is None else lanes[:k]
        tasks = pipeline_schedule(k, m, kind, queue_size, lanes).tasks
        assert sorted(t[:2] for t in tasks) == list(itertools.product(range(2 * k - 1), range(m)))
        end, busy, in_flight = {}, {}, [0] * k
        for t in tasks:
            s = stage_of(t.section, k)
            lane = s, t.micro_batch % lanes[s]
            earliest = [busy.get(lane, 0.0), *(end[t.section - 1, t.micro_batch] for _ in [0] if t.section)]
            assert t.start >= max(earliest)
            assert t.after is None or end[t.after] <= t.start
            busy[lane] = end[t.section, t.micro_batch] = t.end
            in_flight[s] += (t.section <= k - 1) - (t.section >= k - 1)
            assert in_flight[s] <= min(queue_size, m, sum(lanes[s:]) if kind == "1F1B" else m)


# --------------------------------------------------------------------------------- equal to no pipeline


OPTIMIZERS = {
    "adam": pj.adam(0.01),
    "lamb": pj.chain(pj.clip_by_global_norm(0.1), pj.lamb(0.01)),
    "momentum": pj.chain(pj.l2_decay(0.01), pj.momentum(0.05, 0.9)),
}
COMBINATIONS = [  # optimizer, k, micro-batches, options: every value of each, and pairs that matter
    ("adam", 2, 1, {}),
    ("adam", 3, 8, {"place_list": "replicated"}),
    ("adam", 3, 4, {"schedule": "GPipe", "queue_size": 3, "place_list": "one device"}),
    ("lamb", 2, 8, {"recompute": True, "queue_size": 1}),
    ("lamb", 3, 2, {}),
    ("momentum", 2, 3, {"recompute": True, "schedule": "GPipe"}),
    ("momentum", 4, 8, {"queue_size": 2}),
    pytest.param("lamb", 4, 6, {"schedule": "GPipe"}, marks=pytest.mark.slow),
    ("adam", 4, 5, {}),
    ("momentum", 2, 7, {"schedule": "GPipe", "queue_size": 4}),
]
PLACES = {
    "replicated": [DEVICES[0], tuple(DEVICES[1:4]), DEVICES[4], tuple(DEVICES[1:4]), DEVICES[0]],
    "one device": [DEVICES[5]] * 5,
}


@functools.cache
def expected(name, k, examples):
    return unpipelined(OPTIMIZERS[name], *network(k), 3, examples)


@pytest.mark.parametrize("name, k, m, options", COMBINATIONS)
def test_pipeline_equals_training_without_one(name, k, m, options):
    stages, start = network(k)
    options = {
        **options,
        **({"place_list": PLACES[options["place_list"]]} if "place_list" in options else {}),
    }
    pipeline = PipelineOptimizer(OPTIMIZERS[name], stages, num_microbatches=m, **options)
    params, state = pipeline.init(start)
    examples = len(X) // m * m
    for _ in range(3):
        params, state, loss = pipeline.step(params, state, pipeline.split(X[:examples], Y[:examples]))
    assert_close((params, state, loss), expected(name, k, examples))
    for tree, slots, (device, *_) in zip(params, _slots(state), pipeline._places, strict=True):
        assert {d for x in jax.tree.leaves((tree, slots)) for d in x.devices()} == {device}


def _slots(state):
    """Per stage what the rule keeps for it."""
    rule = state if isinstance(state, pj.RuleState) else state[-1]
    return list(zip(*rule.slots.values(), strict=True))


def test_one_stage_is_plain_training():
    tx = pj.adam(0.01)
    pipeline = PipelineOptimizer(tx, [squares], num_microbatches=3)
    x = normal(24, 4)
    params, state = pipeline.init([{"w": np.ones((4, 3), np.float32)}])
    expected = tx.update(jax.grad(squares)(params[0], x, Y), tx.init(params[0]), params[0])[0]
    new, _, _ = pipeline.step(params, state, pipeline.split(x, Y))
    assert_close(new[0], pj.apply_updates(params[0], expected))


def test_a_global_norm_is_that_of_all_stages():
    """The clip bites: by a stage's own norm the steps would be far from these."""
    stages, start = network(3)
    tx = pj.chain(pj.clip_by_global_norm(0.01), pj.sgd(1.0))
    pipeline = PipelineOptimizer(tx, stages, num_microbatches=4)
    params, state = pipeline.init(start)
    new, _, _ = pipeline.step(params, state, pipeline.split(X, Y))
    steps = [np.asarray(a) - b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(start), strict=True)]
    assert np.sqrt(sum(np.sum(step**2) for step in steps)) == pytest.approx(0.01, rel=1e-4)
    assert_close(new, unpipelined(tx, stages, start, 1)[0], 1e-7)


def test_bfloat16_parameters_keep_their_dtype():
    stages, start = network(3)
    start = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), start)
    stages = [stages[0], lambda p, a: hidden(p, a["h"]), lambda p, x, y: squares(p, x, y.astype(x.dtype))]
    tx = pj.with_master_weights(pj.sgd(0.01))
    pipeline = PipelineOptimizer(tx, stages, num_microbatches=2)
    params, state = pipeline.init(start)
    params, state, _ = pipeline.step(params, state, pipeline.split(X, Y))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.leaves(state.master)[0].dtype == jnp.float32


def test_the_cotangent_in_flight_is_not_donated():
    """The gradient of a full-size bias is the very array that goes on to the stage before."""
    stages = [lambda p, x: x @ p["w"], lambda p, x: x + p["b"], squares]
    start = [{"w": normal(5, 4)}, {"b": normal(6, 4)}, {"w": normal(4, 3)}]
    tx, x = pj.sgd(0.1), X.astype(np.float32) / 20
    pipeline = PipelineOptimizer(tx, stages, [DEVICES[0]] * 5, num_microbatches=4)
    params, state = pipeline.init(start)
    batches = pipeline.split(x, Y)
    new, _, _ = pipeline.step(params, state, batches)
    mean = lambda params: sum(whole(stages)(params, *batch) for batch in batches) / 4  # noqa: E731
    expected = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, start, jax.grad(mean)(start))
    assert_close(new, expected)


# ------------------------------------------------------------------------------------ in flight, overlap


@pytest.mark.parametrize(
    "schedule, queue_size, allowed",
    [("1F1B", 1, 1), ("1F1B", 2, 2), ("1F1B", 30, 3), ("GPipe", 5, 5), ("GPipe", 30, 8)],
)
def test_queue_size_bounds_what_is_in_flight(schedule, queue_size, allowed):
    """Counted by the sections themselves, between a micro-batch's first forward and its last backward."""
    flying, most, lock = set(), [0], threading.Lock()

    def enter(j):
        with lock:
            flying.add(int(j[0]))
            most[0] = max(most[0], len(flying))
        return j

    def leave(j, g):
        with lock:
            flying.discard(int(j[0]))
        return g

    @jax.custom_vjp
    def count(w, j):
        return w

    count.defvjp(
        lambda w, j: (w + 0 * jax.pure_callback(enter, jax.ShapeDtypeStruct((1,), jnp.float32), j), j),
        lambda j, g: (jax.pure_callback(leave, jax.ShapeDtypeStruct((1,), jnp.float32), j, g), j * 0),
    )
    first = lambda p, x: x[0] * count(p["w"], x[1])  # noqa: E731
    inner = lambda p, x: x * p["w"]  # noqa: E731
    last = lambda p, x, y: jnp.mean((x * p["w"] - y) ** 2)  # noqa: E731
    tx = pj.sgd(0.1)
    pipeline = PipelineOptimizer(
        tx, [first, inner, last], num_microbatches=8, schedule=schedule, queue_size=queue_size
    )
    params, state = pipeline.init([{"w": jnp.ones(1)} for _ in range(3)])
    one = np.ones(1, np.float32)
    pipeline.step(params, state, [((one, np.full(1, j, np.float32)), one) for j in range(8)])
    assert not flying
    assert most[0] == allowed
    assert _in_flight(pipeline.timeline, 4) == allowed


def _in_flight(timeline, last_section):
    """The most micro-batches between the start of section 0 and the end of the last at one time."""
    events = [(span.start, 1) for span in timeline if span.section == 0]
    events += [(span.end, -1) for span in timeline if span.section == last_section]
    return max(itertools.accumulate(change for _, change in sorted(events)))


def sleeper(forward, backward):
    """x, after a sleep of so many seconds in the forward and in the backward pass."""

    def nap(seconds):
        def sleep(x):
            time.sleep(seconds)
            return x

        return lambda x: jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    @jax.custom_vjp
    def slow(x):
        return nap(forward)(x)

    slow.defvjp(lambda x: (nap(forward)(x), None), lambda _, g: (nap(backward)(g),))
    return slow


@pytest.mark.slow
@pytest.mark.parametrize("k, m, options", [(2, 8, {"schedule": "GPipe"}), (4, 8, {})])
def test_sections_run_at_the_same_time(k, m, options):
    """Sections that sleep need no processor: the speed-up is that of the model, k M / (M + k - 1)."""
    slow = sleeper(0.02, 0.04)
    inner = lambda p, x: slow(x @ p)  # noqa: E731
    last = lambda p, x, y: jnp.mean((slow(x @ p) - y) ** 2)  # noqa: E731
    pipeline = PipelineOptimizer(pj.sgd(0.1), [inner] * (k - 1) + [last], num_microbatches=m, **options)
    params, state = pipeline.init([normal(8, 8) for _ in range(k)])
    batches = [(np.ones((4, 8), np.float32), np.zeros((4, 8), np.float32))] * m
    pipeline.step(params, state, batches)  # compiles
    best, model = 0.0, k * m / (m + k - 1)
    for _ in range(3):  # the host is shared
        start = time.perf_counter()
        jax.block_until_ready(pipeline.step(params, state, batches))
        best = max(best, k * m * 0.06 / (time.perf_counter() - start))
        if best >= 0.8 * model:
            break
    assert best >= 0.8 * model


# --------------------------------------------------------------------------------------------- failures


class Broken(Exception):
    pass


@pytest.mark.parametrize("section, micro_batch, queue_size", [(0, 5, 1), (1, 2, 30), (2, 3, 2), (4, 7, 30)])
def test_a_failure_reaches_the_caller_and_changes_nothing(section, micro_batch, queue_size):
    armed = [True]

    def check(at, j):
        def look(j):
            if armed[0] and int(j[0]) == micro_batch and at == section:
                raise Broken("no luck")
            return j

        return jax.pure_callback(look, jax.ShapeDtypeStruct((1,), jnp.float32), j)

    def stage(s):
        @jax.custom_vjp
        def watched(w, j):
            return w

        watched.defvjp(lambda w, j: (w + 0 * check(s, j), j), lambda j, g: (g + 0 * check(4 - s, j), j * 0))
        return lambda p, x: (x[0] * watched(p["w"], x[1]), x[1])

    def last(p, x, y):
        return jnp.mean((stage(2)(p, x)[0] - y) ** 2)

    pipeline = PipelineOptimizer(
        pj.adam(0.1), [stage(0), stage(1), last], num_microbatches=8, queue_size=queue_size
    )
    params, state = pipeline.init([{"w": jnp.ones(1)} for _ in range(3)])
    before = jax.tree.map(np.array, (params, state))
    one = np.ones(1, np.float32)
    batches = [((one, np.full(1, j, np.float32)), one) for j in range(8)]
    threads = threading.active_count()
    with pytest.raises(Exception, match="no luck") as failure:
        pipeline.step(params, state, batches)
    assert failure.value.__notes__[-1] == f"in section {section} of the pipeline on micro-batch {micro_batch}"
    assert not [t for t in threading.enumerate() if t.name.startswith("paddlejax-pipeline")]
    assert threading.active_count() <= threads
    assert_close((params, state), before, 0)
    armed[0] = False
    new, _, loss = pipeline.step(params, state, batches)
    chex.assert_tree_all_finite((loss, new))


def test_a_failure_does_not_wait_for_the_first_forwards():
    """GPipe's first stage waits for nobody: it must look whether another has failed."""
    armed, ran = [False], []

    def nap(x):
        ran.append(1)
        time.sleep(0.05)
        return x

    def fail(x):
        if armed[0]:
            raise Broken("no luck")
        return x

    def calling(f):
        @jax.custom_vjp
        def call(x):
            return jax.pure_callback(f, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

        call.defvjp(lambda x: (call(x), None), lambda _, g: (g,))
        return call

    slow, broken = calling(nap), calling(fail)
    stages = [lambda p, x: slow(x @ p), lambda p, x, y: jnp.mean((broken(x @ p) - y) ** 2)]
    pipeline = PipelineOptimizer(pj.sgd(0.1), stages, num_microbatches=16, schedule="GPipe")
    params, state = pipeline.init([normal(3, 3), normal(3, 3)])
    batches = [(np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))] * 16
    pipeline.step(params, state, batches)  # compiles
    assert len(ran) == 16
    armed[0] = True
    with pytest.raises(Exception, match="no luck"):
        pipeline.step(params, state, batches)
    assert len(ran) - 16 <= 8


def test_a_stage_that_does_not_fit_is_refused_before_anything_runs():
    ran = []

    def first(p, x):
        jax.debug.callback(lambda: ran.append(1))
        return x @ p["w"]

    pipeline = PipelineOptimizer(pj.sgd(0.1), [first, squares])
    params, state = pipeline.init([{"w": normal(5, 4)}, {"w": normal(7, 3)}])
    with pytest.raises(TypeError, match="dot_general") as failure:
        pipeline.step(params, state, [(X.astype(np.float32), Y)])
    assert failure.value.__notes__[-1] == "in section 1 of the pipeline"
    assert not ran


# ------------------------------------------------------------------------------------------------- async


def test_async_with_one_in_flight_is_one_step_for_each_micro_batch():
    stages, start = network(2)
    tx = pj.momentum(0.1, 0.9)
    pipeline = PipelineOptimizer(tx, stages, num_microbatches=8, mode="async", queue_size=1)
    params, state = pipeline.init(start)
    params, state, _ = pipeline.step(params, state, pipeline.split(X, Y))
    expected, s = start, tx.init(start)
    for x, y in pipeline.split(X, Y):
        updates, s = tx.update(jax.grad(whole(stages))(expected, x, y), s, expected)
        expected = pj.apply_updates(expected, updates)
    assert_close(params, expected)
    assert [int(one.count) for one in state] == [8, 8]


def test_async_with_more_in_flight_sees_older_weights():
    stages, start = network(3)
    results = []
    for queue_size in (1, 30):
        pipeline = PipelineOptimizer(
            pj.sgd(0.1), stages, num_microbatches=8, mode="async", queue_size=queue_size
        )
        results.append(pipeline.step(*pipeline.init(start), pipeline.split(X, Y))[0])
    sequential, stale = (np.asarray(params[0]["table"]) for params in results)
    assert 1e-5 < np.abs(sequential - stale).max() < 0.1


@pytest.mark.parametrize(
    "tx", [OPTIMIZERS["lamb"], pj.by_path([("1/*", {})], pj.sgd(0.1), grad_clip=pj.clip_by_global_norm(1.0))]
)
def test_async_refuses_what_joins_stages(tx):
    stages, start = network(3)
    with pytest.raises(ValueError, match="gradients of stage 1.*mode='sync' takes any"):
        PipelineOptimizer(tx, stages, mode="async").init(start)


# ---------------------------------------------------------------------------------------- Paddle's objects


def adam(start, rate=0.01):
    clip = pj.nn.ClipGradByGlobalNorm(0.1)
    return pj.optimizer.Adam(rate, parameters=start, grad_clip=clip)


def test_object_equals_the_object_without_a_pipeline():
    stages, start = network(3)
    with_frozen = [pj.parameters(tree) for tree in start]
    with_frozen[1]["b"].stop_gradient = True
    for tree, s in zip(with_frozen, range(3), strict=True):
        for name, p in tree.items():
            p.name = f"{s}/{name}"
    scheduler = pj.optimizer.lr.StepDecay(0.01, step_size=2)
    ours = adam(with_frozen, scheduler)
    pipeline = PipelineOptimizer(ours, stages, num_microbatches=4)
    alone = adam(start)
    alone.parameters[1]["b"].stop_gradient = True
    loss_of = pj.loss(whole(stages))
    for step in range(5):
        alone.set_lr(0.01 * 0.1 ** (step // 2))
        one, other = pipeline.loss(X, Y), loss_of(alone.parameters, X, Y)
        found, pairs = pipeline.minimize(one)
        alone.minimize(other)
        assert float(one) == pytest.approx(float(other), abs=1e-6)
        assert found == [] and [p.name for p, _ in pairs] == ["0/table", "1/scale", "1/w", "2/w"]
        pipeline.clear_grad()
        alone.clear_grad()
        scheduler.step()
    assert pipeline.get_lr() == pytest.approx(1e-4)
    state, expected = pipeline.state_dict(), alone.state_dict()
    assert state.pop("LR_Scheduler")["last_epoch"] == 5
    assert_close(state, expected)
    for p, q in zip(ours.parameter_list, alone.parameter_list, strict=True):
        assert_close(p.value, q.value)


def test_state_dict_resumes_an_object():
    stages, start = network(2)
    first = PipelineOptimizer(adam(start), stages, num_microbatches=2)
    for _ in range(2):
        first.minimize(first.loss(X, Y))
        first.clear_grad()
    saved = first.state_dict()
    second = PipelineOptimizer(adam(pj.values(first.parameters)), stages, num_microbatches=2)
    second.set_state_dict(jax.tree.map(np.asarray, saved))
    for pipeline in (first, second):
        pipeline.minimize(pipeline.loss(X, Y))
    assert_close(pj.values(second.parameters), pj.values(first.parameters), 0)
    assert_close(second.state_dict(), first.state_dict(), 0)


def test_backward_accumulates_and_a_failure_leaves_all_as_it_was():
    stages, start = network(2)
    pipeline = PipelineOptimizer(adam(start), stages, num_microbatches=2)
    loss = pipeline.loss(X, Y)
    with pytest.raises(RuntimeError, match="known once backward"):
        float(loss)
    loss.backward()
    with pytest.raises(RuntimeError, match="ran already"):
        loss.backward()
    once = [np.asarray(p.grad) for p in pipeline._update.optimizer.parameter_list]
    with pytest.raises(TypeError):
        pipeline.loss(X.astype(np.float32), Y).backward()  # ids must be integers
    assert_close([p.grad for p in pipeline.inner_optimizer.parameter_list], once, 0)
    assert pipeline.state_dict() == {}
    pipeline.minimize(loss)
    assert pipeline.state_dict()


@pytest.mark.parametrize("form", ["functional", "object"])
def test_a_new_rate_compiles_nothing(form):
    stages, start = network(2)
    tx = OPTIMIZERS["lamb"]
    pipeline = PipelineOptimizer(tx if form == "functional" else adam(start), stages, num_microbatches=2)
    if form == "functional":
        params, state = pipeline.init(start)
    moved = []
    for rate in (0.01, 0.02, 0.0):
        if form == "functional":
            state = pj.set_learning_rate(state, rate)
            old, (params, state, _) = params, pipeline.step(params, state, pipeline.split(X, Y))
            moved.append(float(np.abs(np.asarray(params[1]["w"]) - np.asarray(old[1]["w"])).max()))
            plans = pipeline._update._whole._plans
        else:
            pipeline.set_lr(rate)
            old = np.asarray(pipeline.parameters[1]["w"])
            pipeline.minimize(pipeline.loss(X, Y))
            pipeline.clear_grad()
            moved.append(float(np.abs(np.asarray(pipeline.parameters[1]["w"]) - old).max()))
            (compiled,) = pipeline.inner_optimizer.compiled_steps
            (placed,) = compiled.elsewhere.values()
            plans = placed._plans
    assert moved[2] == 0 < moved[0]
    (plan,) = plans.values()
    assert {program.run._cache_size() for program in plan.programs} == {1}


# --------------------------------------------------------------------------------------------- processes


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from paddlejax.distributed.processes import initialize
assert initialize()
import jax
import numpy as np
import test_pipeline as t
d = jax.devices()
assert len(d) == 8 and jax.process_count() == 2
places = [d[0], (d[1], d[4]), d[5], (d[1], d[4]), d[0]]  # the stage in the middle has one in each process
pipeline = t.PipelineOptimizer(t.OPTIMIZERS["lamb"], t.network(3)[0], places, num_microbatches=4)
params, state = pipeline.init(t.network(3)[1])
for _ in range(2):
    params, state, loss = pipeline.step(params, state, pipeline.split(t.X, t.Y))
here = [isinstance(jax.tree.leaves(tree)[0], jax.Array) for tree in params]
assert here == ([True, True, False] if jax.process_index() == 0 else [False, False, True])
state = t.pj.set_learning_rate(state, 0.0)
still, state, _ = pipeline.step(params, state, pipeline.split(t.X, t.Y))
params, still, state = pipeline.gather((params, still, state))
t.assert_close(still, params, 0)
expected = t.unpipelined(t.OPTIMIZERS["lamb"], *t.network(3), 2)
t.assert_close((params, loss), (expected[0], expected[2]))
print("equal in process", jax.process_index())
"""


def test_stages_in_two_processes(tmp_path, capfd):
    """Each has some of the stages, and one stage is in both; the norm of the clip spans them."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    assert launch(script, 2, [Path(__file__).parent], 4, timeout=200) == 0, capfd.readouterr().err
    assert "equal in process 0" in capfd.readouterr().out


# ------------------------------------------------------------------------------------------------ Placed


@pytest.mark.parametrize(
    "tx, jitted",
    [
        (pj.chain(pj.clip_by_global_norm(0.5), pj.lars_momentum(0.1, 0.9)), True),
        (pj.skip_nonfinite(pj.momentum(0.1, 0.9)), False),  # a branch over the whole tree
        (pj.by_path([("1/b", {"frozen": True})], pj.sgd(0.1), grad_clip=pj.clip_by_global_norm(0.5)), False),
    ],
)
def test_placed_computes_what_the_function_does(tx, jitted):
    update = jax.jit(tx.update) if jitted else tx.update
    params = network(3)[1]
    grads = [jax.tree.map(lambda p: np.cos(p).astype(np.float32), tree) for tree in params]
    on = [jax.device_put(tree, DEVICES[s + 1]) for s, tree in enumerate(params)]
    placed = Placed(update, DEVICES[0])
    state, expected = tx.init(on), tx.init(params)
    for _ in range(2):
        updates, state = placed(grads, state, on)
        correct, expected = jax.jit(tx.update)(grads, expected, params)
        assert_close((updates, state), (correct, expected))


def test_placed_sends_only_scalars():
    """What a program takes from another device has no shape."""
    tx = pj.chain(pj.clip_by_global_norm(0.5), pj.lamb(0.1))
    on = [jax.device_put(tree, DEVICES[s]) for s, tree in enumerate(network(4)[1])]
    placed = Placed(tx.update, DEVICES[0])
    placed(on, tx.init(on), on)
    (plan,) = placed._plans.values()
    taken = [v for program in plan.programs for v in program.inputs if v.home not in (program.device, None)]
    assert taken and not any(v.is_array for v in taken)


# ------------------------------------------------------------------------------------------------- wrong


STAGES = [lambda p, x: x @ p, lambda p, x, y: jnp.mean((x @ p - y) ** 2)]
D = DEVICES
WRONG = [
    ({"optimizer": None}, ValueError, "optimizer: found None"),
    ({"optimizer": 0.1}, TypeError, "optimizer: found 0.1, expected a transformation"),
    ({"optimizer": pj.optimizer.LBFGS(parameters=[jnp.ones(1)] * 2)}, TypeError, "found LBFGS"),
    ({"cut_list": None}, ValueError, "cut_list: found None"),
    ({"cut_list": []}, ValueError, "cut_list: found .., expected a list"),
    ({"cut_list": STAGES[0]}, TypeError, "cut_list: found <function .*, expected a list"),
    ({"cut_list": [STAGES[0], "loss"]}, TypeError, "cut_list: entry 1: found 'loss'"),
    ({"place_list": D[:2]}, ValueError, "place_list: found .*, expected 3 entries: a cut_list of k=2"),
    ({"place_list": [D[0], D[1], D[2]]}, ValueError, "entry 0 is cpu:0 and entry 2 cpu:2"),
    ({"place_list": [0, 1, 0]}, TypeError, "place_list: entry 0: found 0, expected a device"),
    ({"place_list": [D[0], (), D[0]]}, ValueError, "entry 1: found .., expected different devices"),
    ({"place_list": [D[0], (D[1], D[1]), D[0]]}, ValueError, "entry 1: found .*, expected different devices"),
    ({"place_list": D[0]}, TypeError, "place_list: found .*, expected a list of devices"),
    ({"concurrency_list": [1, 1]}, ValueError, "concurrency_list: found .1, 1., expected 3 entries"),
    (
        {"concurrency_list": [1, 0, 1]},
        ValueError,
        "concurrency_list: entry 1: found 0, expected a positive int",
    ),
    (
        {"place_list": [D[0], (D[1], D[2]), D[0]], "concurrency_list": [1, 3, 1]},
        ValueError,
        "concurrency_list: entry 1: found 3, expected 2",
    ),
    ({"queue_size": 0}, ValueError, "queue_size: found 0, expected a positive int"),
    ({"sync_steps": 0}, ValueError, "sync_steps: found 0, expected a positive int, or -1"),
    ({"sync_steps": 1.0}, ValueError, "sync_steps: found 1.0"),
    ({"start_cpu_core_id": -1}, ValueError, "start_cpu_core_id: found -1"),
    ({"num_microbatches": 2.0}, ValueError, "num_microbatches: found 2.0"),
    ({"schedule": "1f1b"}, ValueError, "schedule: found '1f1b', expected '1F1B' or 'GPipe'"),
    ({"schedule": 1}, TypeError, "schedule: found 1"),
    ({"recompute": 1}, TypeError, "recompute: found 1, expected True or False"),
    ({"mode": "fast"}, ValueError, "mode: found 'fast', expected 'sync' or 'async'"),
    (
        {"mode": "async", "place_list": [D[0], (D[1], D[2]), D[0]]},
        ValueError,
        "place_list: found .*, expected one device for each section",
    ),
    (
        {"optimizer": pj.optimizer.SGD(0.1, [jnp.ones(1)] * 3)},
        ValueError,
        "optimizer's parameters: found 3 entries, expected a list of 2 trees",
    ),
    (
        {"optimizer": pj.optimizer.SGD(0.1, {"w": jnp.ones(1)})},
        ValueError,
        "optimizer's parameters: found dict",
    ),
]


@pytest.mark.parametrize("arguments, error, message", WRONG)
def test_wrong_arguments_of_the_constructor(arguments, error, message):
    with pytest.raises(error, match=message):
        PipelineOptimizer(**{"optimizer": pj.sgd(0.1), "cut_list": STAGES, **arguments})


def test_paddles_own_example_of_lists_is_accepted():
    """One device with concurrency 4, steps that are never synchronized: accepted, without effect."""
    places = [D[0], D[1], D[0]]
    PipelineOptimizer(pj.sgd(0.5), STAGES, places, [1, 1, 4], 2, sync_steps=-1, start_cpu_core_id=3)


ONE = np.ones((2, 3), np.float32)
WRONG_CALLS = [
    (lambda p: p.init([ONE]), ValueError, "params: found 1 entries, expected a list of 2 trees"),
    (lambda p: p.init({"a": ONE}), ValueError, "params: found dict"),
    (lambda p: p.init([{"w": ONE}, {"w": ONE}]), ValueError, "0/w and 1/w are one array"),
    (lambda p: p.init([{"w": ONE}, {"w": "x"}]), TypeError, "at 1/w found a parameter of type str"),
    (lambda p: p.init([{"w": ONE}, {"w": np.ones(2, int)}]), TypeError, "at 1/w found .* dtype int64"),
    (lambda p: p.step([ONE, ONE * 2], (), [(ONE, ONE)]), ValueError, "found 1, expected num_microbatches, 2"),
    (lambda p: p.step([ONE, ONE * 2], (), (ONE for _ in "ab")), TypeError, "found generator"),
    (lambda p: p.step([ONE, ONE * 2], (), [ONE, ONE]), TypeError, "entry 0 is a ndarray, expected a pair"),
    (
        lambda p: p.step([ONE, ONE * 2], (), [(ONE, ONE), (ONE[:1], ONE)]),
        ValueError,
        r"entry 1 has x of shape \(1, 3\) .*, expected shape \(2, 3\)",
    ),
    (
        lambda p: p.step([ONE, ONE * 2], (), [({"a": ONE}, ONE), ({"b": ONE}, ONE)]),
        ValueError,
        "entry 1 holds x/b, y, expected x/a, y",
    ),
    (lambda p: p.step([ONE, ONE * 2], (), [(1, ONE)] * 2), TypeError, "x of type int, expected an array"),
    (lambda p: p.split(ONE[:1], ONE[:1]), ValueError, "examples: found 1, expected a multiple of num_micro"),
    (lambda p: p.split(ONE, ONE[:1]), ValueError, "found x has 2, y has 1"),
    (lambda p: p.split(ONE, np.float32(1)), ValueError, "batch's y: found 1.0, expected an array"),
    (lambda p: p.minimize(None), TypeError, "was given a transformation"),
    (lambda p: p.loss(ONE, ONE), TypeError, "was given a transformation"),
    (lambda p: p.set_lr(0.1), AttributeError, "has no attribute 'set_lr'"),
    (lambda p: p.step(), ValueError, "params: found NoneType, expected a list of 2 trees"),
    (lambda p: p.step([ONE, ONE * 2], ()), TypeError, "micro_batches: found NoneType, expected a list"),
]


@pytest.mark.parametrize("call, error, message", WRONG_CALLS)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(PipelineOptimizer(pj.sgd(0.1), STAGES, num_microbatches=2))


def test_wrong_calls_of_the_object_form():
    pipeline = PipelineOptimizer(pj.optimizer.SGD(0.1, [ONE[0], ONE[1]]), STAGES)
    for call in (lambda: pipeline.init([ONE, ONE]), lambda: pipeline.step([], (), []), pipeline.step):
        with pytest.raises(TypeError, match=r"an optimizer object, expected minimize\(loss\(x, y\)\)"):
            call()
    for name in ("backward", "apply_gradients", "apply_optimize"):
        with pytest.raises(AttributeError, match=rf"{name}: .*expected minimize\(loss\(x, y\)\)"):
            getattr(pipeline, name)
    for name in ("parameter_list", "no_grad_set"):
        with pytest.raises(TypeError, match=rf"{name}: found \[\], expected None"):
            pipeline.minimize(pipeline.loss(ONE, ONE), **{name: []})
    with pytest.raises(TypeError, match="scale's loss: found PipelineLoss, expected what a @paddle.loss"):
        pj.amp.GradScaler().scale(pipeline.loss(ONE, ONE))
    with pytest.raises(TypeError, match="expected what this pipeline's loss"):
        pipeline.minimize(lambda p: 0.0)
    with pytest.raises(TypeError, match="startup_program"):
        pipeline.minimize(pipeline.loss(ONE, ONE), startup_program="program")
    with pytest.raises(ValueError, match="mode: found 'async'"):
        PipelineOptimizer(pj.optimizer.SGD(0.1, [ONE[0], ONE[1]]), STAGES, mode="async")


def test_a_sharded_parameter_is_refused():
    mesh = jax.make_mesh((2,), ("data",), devices=D[:2])
    spread = jax.device_put(ONE, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    with pytest.raises(ValueError, match=r"an array of shape \(2, 3\) on 2 devices, expected .* a single"):
        PipelineOptimizer(pj.sgd(0.1), STAGES).init([spread, ONE * 2])


def test_a_loss_that_is_no_scalar_is_refused():
    pipeline = PipelineOptimizer(pj.sgd(0.1), [STAGES[0], lambda p, x, y: x @ p - y])
    params, state = pipeline.init([np.ones((3, 3), np.float32), np.ones((3, 3), np.float32)])
    with pytest.raises(ValueError, match="expected a real floating scalar") as failure:
        pipeline.step(params, state, [(ONE, ONE)])
    assert failure.value.__notes__[-1] == "in section 1 of the pipeline"
