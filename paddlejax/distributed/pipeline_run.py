"""One pass of all micro-batches through a pipeline: workers that walk the schedule and run its sections."""

import _thread
import operator
import threading
import time
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, NamedTuple

import jax

from .pipeline_schedule import Schedule, Task, stage_of
from .sections import Sections, add_to, floats, section_note, start_sum
from .transfer import elsewhere, is_here, put_tree


class Span(NamedTuple):
    """When a section worked on a micro-batch, in seconds since the pass began."""

    section: int
    micro_batch: int
    device: Any
    start: float
    end: float


class Pass(NamedTuple):
    """What came of a pass, stage by stage."""

    losses: list[jax.Array]  # one per micro-batch, ()
    grads: list[Any]  # per stage: a list of leaves, summed over micro-batches; None if it updates as it goes
    params: list[Any]  # per stage, as the last update left them
    carries: list[Any]
    timeline: list[Span]


ACQUIRE = operator.methodcaller("acquire")


class _Stopped(Exception):
    """Another section has failed: there is nothing to wait for."""


class Handover:
    """What sections hand on to one another: whoever waits is woken by the result or by a failure."""

    def __init__(self):
        self._changed = threading.Condition()
        self._results: dict[Any, Any] = {}
        self._done: set[Any] = set()
        self.failure: BaseException | None = None

    def give(self, key: Any, result: Any) -> None:
        """Hand over a result under its key, and wake whoever waits for it."""
        with self._changed:
            self._results[key] = result
            self._done.add(key)
            self._changed.notify_all()

    def wait(self, key: Any) -> None:
        """Wait until the result with this key is there; raise if a worker failed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._done or self.failure is not None)
            self.check()

    def check(self) -> None:
        """Raise if a worker failed, so that all others stop too."""
        if self.failure is not None:
            raise _Stopped

    def take(self, key: Any) -> Any:
        """The result, which is then nobody else's."""
        self.wait(key)
        with self._changed:
            return self._results.pop(key)

    def stop(self, failure: BaseException) -> None:
        """Let everybody who waits go; the first failure is the one that counts."""
        with self._changed:
            self.failure = self.failure or failure
            self._changed.notify_all()


class _Lane:
    """One device of a stage: what it holds for its micro-batches."""

    def __init__(self, stage: int, device: Any, params: Any, carry: Any):
        self.stage, self.device, self.params, self.carry = stage, device, put_tree(params, device), carry
        self.residuals: dict[int, Any] = {}
        self.losses: dict[int, Any] = {}
        self.grads: Any = None


class PipelinePass:
    """Runs the schedule once; `places[s]` are the devices of stage s, `handed` what `Sections.shapes` says.

    `update(stage, params, carry, grads) -> (params, carry)`, if given, is called after every backward of a
    stage (asynchronous training); `carries` are what it starts from. A worker waits until a result is
    computed, and then hands it on. So there are never more micro-batches under way than the schedule says,
    and an error is raised in the section that caused it. After a failure all threads end, and the first
    error is raised.

    In one process each device of a stage has a thread, its worker. With stages in several processes each
    process has one worker that walks the whole schedule, for both ends of a hand-over must come to it in one
    order: its own sections take turns, those of different processes work at the same time. What another
    process has is stood for by ShapeDtypeStructs.
    """

    def __init__(
        self,
        sections: Sections,
        schedule: Schedule,
        places: Sequence[tuple[Any, ...]],
        handed: Sequence[Any],
        update: Callable[..., tuple[Any, Any]] | None = None,
    ):
        self.sections, self.schedule, self.places, self.handed = sections, schedule, places, handed
        self.update, self.handover, self.spans = update, Handover(), list[Span]()

    def __call__(self, params: Sequence[Any], carries: Sequence[Any], micro_batches: Sequence[Any]) -> Pass:
        self.micro_batches, self.began = micro_batches, time.perf_counter()
        given = zip(self.places, params, carries, strict=True)
        self.lanes = [[_Lane(s, d, p, c) for d in devices] for s, (devices, p, c) in enumerate(given)]
        flat = [lane for lanes in self.lanes for lane in lanes]
        workers = [[lane] for lane in flat] if all(is_here(lane.device) for lane in flat) else [flat]
        self._work(workers)
        if self.handover.failure is not None:
            raise self.handover.failure
        losses = {j: loss for lane in self.lanes[-1] for j, loss in lane.losses.items()}
        grads, homes = list(map(self._sum, self.lanes)), [lanes[0] for lanes in self.lanes]
        params, carries = [home.params for home in homes], [home.carry for home in homes]
        timeline = sorted(self.spans, key=lambda span: span.start)
        return Pass([losses[j] for j in sorted(losses)], grads, params, carries, timeline)

    def _sum(self, lanes: Sequence[_Lane]) -> Any:
        """The gradients of a stage from all its devices, on the first."""
        total, *others = [lane.grads for lane in lanes[: len(self.micro_batches)]]
        for other in others:
            other = put_tree(other, lanes[0].device)
            total = add_to(total, other) if is_here(lanes[0].device) else total
        return total

    def _work(self, workers: Sequence[Sequence[_Lane]]) -> None:
        """Let each of these walk in a thread, and wait for all; a single one walks in this."""
        if len(workers) == 1:
            return self._walk(workers[0])
        at_work = [threading.Lock() for _ in workers]  # each is held until its worker has ended
        for lock in at_work:
            lock.acquire()

        def work(lanes: Sequence[_Lane], lock: Any) -> None:
            try:
                self._walk(lanes)
            finally:
                lock.release()

        rows = zip(workers, at_work, strict=True)
        threads = [
            threading.Thread(target=work, args=r, name="paddlejax-pipeline", daemon=True) for r in rows
        ]

        def start() -> None:
            for thread, lock in zip(threads, at_work, strict=True):
                try:
                    thread.start()
                except BaseException as e:
                    self.handover.stop(e)
                    lock.release()

        # A KeyboardInterrupt comes in the main thread alone. Inside `Thread.start` it could leave a lock held
        # for which the new thread waits for ever. Here it comes before or after a call into C, and the lists
        # say how far that came.
        started: list[int] = []
        ended: list[bool] = []
        try:
            started.extend(starmap(_thread.start_new_thread, [(start, ())]))
            ended.extend(map(ACQUIRE, at_work))
        except BaseException as e:
            self.handover.stop(e)
            if started:
                ended.extend(map(ACQUIRE, at_work[len(ended) :]))
            raise
        for thread in threads:
            if thread.ident is not None:  # else it could not be started, which is the failure
                thread.join()

    def _walk(self, lanes: Sequence[_Lane]) -> None:
        """Do all tasks of these lanes, in the order of the schedule."""
        try:
            for task in self.schedule.tasks:
                lane = self._lane(task.section, task.micro_batch)
                if lane in lanes:
                    with section_note(task.section, task.micro_batch):
                        self._do(task, lane)
        except BaseException as e:
            if not isinstance(e, _Stopped):
                self.handover.stop(e)

    def _lane(self, section: int, micro_batch: int) -> _Lane:
        """The lane that runs this section for this micro-batch."""
        lanes = self.lanes[stage_of(section, self.sections.stages)]
        return lanes[micro_batch % len(lanes)]

    def _do(self, task: Task, lane: _Lane) -> None:
        """Do one task: wait for what it needs, run it, and hand its result over."""
        section, j, last = task.section, task.micro_batch, self.sections.stages - 1
        self.handover.check()  # the first forwards wait for nothing
        if task.after is not None:
            self.handover.wait(task.after)
        x, y = self.micro_batches[j]
        entered = self.handover.take((section - 1, j)) if section else x
        if is_here(lane.device):
            result = self._run(section, j, lane, entered, y)
        else:
            result = self._elsewhere(section, j, lane)
        del entered
        goes_on = section < 2 * last
        self.handover.give(
            (section, j), put_tree(result, self._lane(section + 1, j).device) if goes_on else None
        )

    def _run(self, section: int, j: int, lane: _Lane, entered: Any, y: Any) -> Any:
        """Run one section on one micro-batch; what it hands on."""
        sections, last = self.sections, self.sections.stages - 1
        entered, y = jax.device_put((entered, y if section == last else None), lane.device)
        jax.block_until_ready(entered)
        start, grads = time.perf_counter(), None
        if section < last:
            result, lane.residuals[j] = sections.forward(section, lane.params, entered)
        elif section == last:
            lane.losses[j], grads, result = sections.last(lane.params, entered, y)
        else:
            grads, result = sections.backward(section, lane.residuals.pop(j), entered)
        del entered
        if grads is not None and self.update is not None:
            lane.params, lane.carry = self.update(lane.stage, lane.params, lane.carry, grads)
        elif grads is not None:
            lane.grads = start_sum(grads) if lane.grads is None else add_to(lane.grads, grads)
        jax.block_until_ready((result, lane.grads, lane.params, lane.losses.get(j)))
        self.spans.append(Span(section, j, lane.device, start - self.began, time.perf_counter() - self.began))
        return result

    def _elsewhere(self, section: int, j: int, lane: _Lane) -> Any:
        """What stands for the results of a section that another process runs."""
        last = self.sections.stages - 1
        if section < last:
            like = self.handed[lane.stage]
        else:
            like = floats(self.handed[lane.stage - 1]) if lane.stage else []
            sums = jax.eval_shape(start_sum, jax.tree.leaves(lane.params))
            lane.grads = [elsewhere(x, lane.device) for x in sums]
        if section == last:
            lane.losses[j] = elsewhere(self.handed[-1], lane.device)
        return jax.tree.map(lambda x: elsewhere(x, lane.device), like)
