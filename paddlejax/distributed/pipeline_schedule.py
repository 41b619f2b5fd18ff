"""Which section of a pipeline works on which micro-batch, and when: list scheduling, without arrays.

k stages make 2k-1 sections, as in Paddle: the forwards of stages 0 to k-2, forward and backward of the last
stage in one, and the backwards of stages k-2 to 0. Sections i and 2k-2-i belong to one stage and one place.
"""

from collections.abc import Sequence
from typing import NamedTuple

SCHEDULES = ("1F1B", "GPipe")


class Task(NamedTuple):
    """One section at work on one micro-batch."""

    section: int
    micro_batch: int
    start: float
    end: float
    after: tuple[int, int] | None  # (section, micro-batch) that must be done first, beside the section before


class Schedule(NamedTuple):
    """Tasks in an order in which each comes after all that it waits for, and how long they take together."""

    tasks: tuple[Task, ...]
    span: float
    bubble: float  # share of the span in which a device waits, mean over devices


def stage_of(section: int, stages: int) -> int:
    """The stage that a section belongs to.

    >>> from paddlejax.distributed.pipeline_schedule import stage_of
    >>> [stage_of(section, 3) for section in range(5)]
    [0, 1, 2, 1, 0]
    """
    return min(section, 2 * stages - 2 - section)


def pipeline_schedule(
    stages: int,
    micro_batches: int,
    kind: str = "1F1B",
    queue_size: int = 30,
    lanes: Sequence[int] | None = None,
    *,
    forward: float = 1.0,
    backward: float = 2.0,
) -> Schedule:
    """List scheduling of `micro_batches` through the sections of a pipeline.

    "1F1B" prefers backward sections and lets stage s hold at most as many micro-batches as there are devices
    from s to the end: no more are needed to keep all busy. "GPipe" runs all forwards first, then all
    backwards. Neither ever holds more than `queue_size`, GPipe by working in groups of that size. `lanes[s]`
    devices work on stage s, micro-batch j on device j mod lanes[s]. `forward` and `backward` are the seconds
    (or any unit) that a section is taken to need. Held means: between the start of a micro-batch's forward
    and the end of its backward.

    >>> from paddlejax.distributed.pipeline_schedule import pipeline_schedule
    >>> print(f"{pipeline_schedule(2, 8).bubble:.4f}")  # (k-1) / (M+k-1)
    0.1111

    Huang et al. 2019, arXiv:1811.06965 (GPipe); Narayanan et al. 2021, arXiv:2104.04473 (1F1B).
    """
    lanes = [1] * stages if lanes is None else list(lanes)
    last, gpipe = stages - 1, kind == "GPipe"
    cap = [min(queue_size, micro_batches if gpipe else sum(lanes[s:])) for s in range(stages)]
    sections = 2 * stages - 1
    begun = [0] * sections  # micro-batches that each section has taken, always in order
    free = [[0.0] * n for n in lanes]
    done: dict[tuple[int, int], float] = {}
    tasks: list[Task] = []

    def candidate(section: int) -> Task | None:
        """The section's next task, if all that it waits for is placed already."""
        j, s = begun[section], stage_of(section, stages)
        if j == micro_batches or (section and (section - 1, j) not in done):
            return None
        after = None
        if section < last:
            # GPipe's group begins when the one before it is through, 1F1B's forward when a place is free.
            released = j // cap[s] * cap[s] - 1 if gpipe else j - cap[s]
            after = (sections - 1 - section, released) if released >= 0 else None
        elif section > last and gpipe:
            after = (sections - 1 - section, min((j // cap[s] + 1) * cap[s], micro_batches) - 1)
        if after is not None and after not in done:
            return None
        waits = [free[s][j % lanes[s]], *(done[key] for key in ((section - 1, j), after) if key in done)]
        cost = forward + backward if section == last else forward if section < last else backward
        return Task(section, j, max(waits), max(waits) + cost, after)

    while len(tasks) < sections * micro_batches:
        ready = [task for section in range(sections) if (task := candidate(section))]
        # Of those that may start first, the one nearest to the end: backward before forward.
        task = min(ready, key=lambda task: (task.start, -task.section))
        s = stage_of(task.section, stages)
        free[s][task.micro_batch % lanes[s]] = done[task.section, task.micro_batch] = task.end
        begun[task.section] += 1
        tasks.append(task)
    span = max(task.end for task in tasks)
    work = sum(task.end - task.start for task in tasks)
    return Schedule(tuple(tasks), span, 1 - work / (sum(lanes) * span))
