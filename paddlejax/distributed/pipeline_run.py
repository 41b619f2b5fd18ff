"""One pass of all micro-batches through a pipeline: a thread for each device, walking its part of the
schedule."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax

from .pipeline_schedule import Schedule, Task, stage_of
from .sections import Sections, add_to, section_note, start_sum


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


class _Lane(NamedTuple):
    """One device of a stage, and which of the stage's micro-batches it works on."""

    stage: int
    at: int
    device: Any


class PipelinePass:
    """Runs the schedule once; `places[s]` are the devices of stage s.

    `update(stage, params, carry, grads) -> (params, carry)`, if given, is called after every backward of a
    stage (asynchronous training); `carries` are what it starts from. A worker waits until a result is
    computed, and then hands it on. So there are never more micro-batches under way than the schedule says,
    and an error is raised in the section that caused it. After a failure all threads end, and the first
    error is raised.
    """

    def __init__(
        self,
        sections: Sections,
        schedule: Schedule,
        places: Sequence[tuple[Any, ...]],
        update: Callable[..., tuple[Any, Any]] | None = None,
    ):
        self.sections, self.schedule, self.places, self.update = sections, schedule, places, update
        self.lanes = [_Lane(s, at, d) for s, devices in enumerate(places) for at, d in enumerate(devices)]

    def __call__(self, params: Sequence[Any], carries: Sequence[Any], micro_batches: Sequence[Any]) -> Pass:
        handover, began = Handover(), time.perf_counter()
        workers = [_Worker(self, lane, handover, micro_batches, began) for lane in self.lanes]

        def guarded(worker: _Worker) -> None:
            try:
                worker.run(params[worker.lane.stage], carries[worker.lane.stage])
            except BaseException as e:
                if not isinstance(e, _Stopped):
                    handover.stop(e)

        with ThreadPoolExecutor(len(workers), "paddlejax-pipeline") as pool:
            futures = [pool.submit(guarded, worker) for worker in workers]
            try:
                wait(futures)
            except BaseException as e:  # such as KeyboardInterrupt
                handover.stop(e)
                raise
        if handover.failure is not None:
            raise handover.failure
        losses = {j: loss for worker in workers for j, loss in worker.losses.items()}
        timeline = sorted((span for worker in workers for span in worker.spans), key=lambda span: span.start)
        homes = [worker for worker in workers if worker.lane.at == 0]
        grads = [self._sum(home, workers) for home in homes]
        params, carries = [home.params for home in homes], [home.carry for home in homes]
        return Pass([losses[j] for j in sorted(losses)], grads, params, carries, timeline)

    def _sum(self, home: "_Worker", workers: Sequence["_Worker"]) -> Any:
        """The gradients of a stage from all its devices, on the first."""
        total = home.grads
        for worker in workers:
            if worker.lane.stage == home.lane.stage and worker is not home and worker.grads is not None:
                total = add_to(total, jax.device_put(worker.grads, home.lane.device))
        return total


class _Worker:
    """The thread of one device."""

    def __init__(
        self, whole: PipelinePass, lane: _Lane, handover: Handover, micro_batches: Sequence[Any], began: float
    ):
        self.whole, self.lane, self.handover = whole, lane, handover
        self.micro_batches, self.began = micro_batches, began
        self.residuals: dict[int, Any] = {}
        self.losses: dict[int, jax.Array] = {}
        self.grads: Any = None
        self.carry: Any = None
        self.spans: list[Span] = []

    def run(self, params: Any, carry: Any) -> None:
        """Do all tasks of this worker's lane, in the order of the schedule."""
        lane, stages = self.lane, self.whole.sections.stages
        self.params, self.carry = jax.device_put(params, lane.device), carry
        for task in self.whole.schedule.tasks:
            mine = task.micro_batch % len(self.whole.places[lane.stage]) == lane.at
            if mine and stage_of(task.section, stages) == lane.stage:
                with section_note(task.section, task.micro_batch):
                    self._do(task)

    def _do(self, task: Task) -> None:
        """Do one task: wait for what it needs, run it, and hand its result over."""
        section, j, last = task.section, task.micro_batch, self.whole.sections.stages - 1
        self.handover.check()  # the first forwards wait for nothing
        if task.after is not None:
            self.handover.wait(task.after)
        if section:
            entered = self.handover.take((section - 1, j))
        else:
            entered = jax.device_put(self.micro_batches[j][0], self.lane.device)
        start = time.perf_counter()
        if section < last:
            result, self.residuals[j] = self.whole.sections.forward(section, self.params, entered)
        elif section == last:
            y = jax.device_put(self.micro_batches[j][1], self.lane.device)
            self.losses[j], grads, result = self.whole.sections.last(self.params, entered, y)
            self._gather(grads)
        else:
            grads, result = self.whole.sections.backward(section, self.residuals.pop(j), entered)
            self._gather(grads)
        del entered
        jax.block_until_ready((result, self.grads, self.params, self.losses.get(j)))
        self.spans.append(
            Span(section, j, self.lane.device, start - self.began, time.perf_counter() - self.began)
        )
        self.handover.give((section, j), self._sent(section + 1, j, result))

    def _gather(self, grads: list[Any]) -> None:
        """Step by these gradients if there is an update for every micro-batch, else add them up."""
        if self.whole.update is not None:
            self.params, self.carry = self.whole.update(self.lane.stage, self.params, self.carry, grads)
        else:
            self.grads = start_sum(grads) if self.grads is None else add_to(self.grads, grads)

    def _sent(self, section: int, micro_batch: int, result: Any) -> Any:
        """The result on its way to the device of the next section, if there is one."""
        stages = self.whole.sections.stages
        if section == 2 * stages - 1:
            return None
        devices = self.whole.places[stage_of(section, stages)]
        return jax.device_put(result, devices[micro_batch % len(devices)])
