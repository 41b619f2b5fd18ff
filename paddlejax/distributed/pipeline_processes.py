"""A pipeline with stages in several processes: each walks the whole schedule and runs its own sections."""

import time
from collections.abc import Sequence
from typing import Any

import jax

from ..trees import compute_dtype
from .pipeline_run import Pass, Span
from .pipeline_schedule import Schedule, Task, stage_of
from .sections import Sections, add_to, floats, section_note, start_sum
from .transfer import elsewhere, is_here, put_tree


class ProcessesPass:
    """One pass as PipelinePass, here without threads: both ends of a hand-over must come in one order.

    Sections of one process take turns; those of different processes work at the same time. What another
    process has is stood for by ShapeDtypeStructs.
    """

    def __init__(self, sections: Sections, schedule: Schedule, places: Sequence[tuple[Any, ...]]):
        self.sections, self.schedule, self.places = sections, schedule, places

    def __call__(self, params: Sequence[Any], micro_batches: Sequence[Any]) -> Pass:
        walk = _Walk(self, params, micro_batches)
        for task in self.schedule.tasks:
            with section_note(task.section, task.micro_batch):
                walk.do(task)
        grads = []
        for devices, tree, by_lane in zip(self.places, params, walk.grads, strict=True):
            total, *others = [
                by_lane.get(d, [elsewhere(start, d) for start in jax.tree.leaves(_sums_like(tree))])
                for d in devices[: len(micro_batches)]
            ]
            for other in others:
                other = put_tree(other, devices[0])
                total = add_to(total, other) if is_here(devices[0]) else total
            grads.append(total)
        losses = [walk.losses[j] for j in sorted(walk.losses)]
        return Pass(losses, grads, list(params), [None] * len(grads), walk.spans)


class _Walk:
    def __init__(self, whole: ProcessesPass, params: Sequence[Any], micro_batches: Sequence[Any]):
        self.whole, self.micro_batches = whole, micro_batches
        self.params = [
            {d: put_tree(tree, d) for d in devices}
            for tree, devices in zip(params, whole.places, strict=True)
        ]
        # What every stage hands on for a micro-batch: the other end must know it beforehand.
        like = [jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree) for tree in params]
        self.handed = whole.sections.shapes(like, *micro_batches[0])
        self.sent: dict[tuple[int, int], Any] = {}
        self.residuals: dict[tuple[int, int], Any] = {}
        self.losses: dict[int, Any] = {}
        self.grads: list[dict[Any, Any]] = [{} for _ in params]
        self.spans: list[Span] = []
        self.began = time.perf_counter()

    def do(self, task: Task) -> None:
        """Do one task if it is this process's; else note that its result is elsewhere."""
        section, j, stages = task.section, task.micro_batch, self.whole.sections.stages
        stage = stage_of(section, stages)
        device = self._device(section, j)
        entered = self.sent.pop((section - 1, j)) if section else None
        if is_here(device):
            result = self._run(section, j, stage, device, entered)
        else:
            result = jax.tree.map(lambda x: elsewhere(x, device), self._like(section))
            if section == stages - 1:
                self.losses[j] = elsewhere(self.handed[-1], device)
        if section < 2 * stages - 2:
            self.sent[section, j] = put_tree(result, self._device(section + 1, j))

    def _run(self, section: int, j: int, stage: int, device: Any, entered: Any) -> Any:
        """Run one section on one micro-batch and return what it hands on."""
        sections, params = self.whole.sections, self.params[stage][device]
        x, y = self.micro_batches[j]
        if section == 0:
            entered = jax.device_put(x, device)
        jax.block_until_ready(entered)
        start, grads = time.perf_counter(), None
        if section < sections.stages - 1:
            result, self.residuals[stage, j] = sections.forward(section, params, entered)
        elif section == sections.stages - 1:
            self.losses[j], grads, result = sections.last(params, entered, jax.device_put(y, device))
        else:
            grads, result = sections.backward(section, self.residuals.pop((stage, j)), entered)
        if grads is not None:
            mine = self.grads[stage]
            mine[device] = add_to(mine[device], grads) if device in mine else start_sum(grads)
        jax.block_until_ready((result, self.grads[stage].get(device)))
        self.spans.append(Span(section, j, device, start - self.began, time.perf_counter() - self.began))
        return result

    def _like(self, section: int) -> Any:
        """What a section hands on."""
        stage, last = stage_of(section, self.whole.sections.stages), self.whole.sections.stages - 1
        if section < last:
            return self.handed[stage]
        return floats(self.handed[stage - 1]) if stage else []

    def _device(self, section: int, j: int) -> Any:
        """Return the device that runs this section for this micro-batch."""
        devices = self.whole.places[stage_of(section, self.whole.sections.stages)]
        return devices[j % len(devices)]


def _sums_like(tree: Any) -> Any:
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, compute_dtype((), p)), tree)


def homes_of_state(init: Any, params: Sequence[Any], only: Any) -> Any:
    """For every leaf of init(params) the stage that it belongs to; stage 0 for what all have in common."""
    stages = range(len(params))
    tree = jax.eval_shape(init, params)
    owned = [_paths(jax.eval_shape(init, only(params, s))) for s in stages]
    owners = {path: [s for s in stages if path in owned[s]] for path in _paths(tree)}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: owners[path][0] if len(owners[path]) == 1 else 0, tree
    )


def _paths(tree: Any) -> list[Any]:
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
