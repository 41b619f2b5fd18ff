"""One contestant in a process of its own: takes orders as lines of JSON, answers each with one.

    {"build": [optimizer, shapes, rate]}   {"phases": {phase: seconds, "temp": bytes}}
    {"turn": seconds}                      {"step": seconds, "dispatch": seconds}, medians over so long
    {"rate": [rate, rate]}                 {"change": seconds of a change and the step after it, "compiles",
                                           "slower": times a step without}; medians, or one that compiled
    {"end": true}                          {"peak": bytes beyond those before the build}

What fails is answered with {"error"} or, where the library has no such thing, {"missing"}.
"""

import gc
import json
import os
import statistics
import sys
import time
from typing import Any

import contestants

CHANGES = 15  # of the rate


def memory(field: str) -> int:
    """This process's VmHWM or VmRSS in bytes; 0 where /proc is not there."""
    try:
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))
    except OSError:
        return 0


class Worker:
    def __init__(self, name: str):
        self.name = name
        contestant: Any = None
        self.contestant = contestant
        self.before = 0

    def build(self, optimizer: str, shapes: list[list[int]], rate: float) -> dict[str, Any]:
        small = contestants.make(self.name, optimizer, [(4,)], rate)  # imports and starts the library
        small.start()
        small.set_rate(rate)
        del small
        gc.collect()
        self.before = memory("VmRSS")
        self.contestant = contestants.make(self.name, optimizer, [tuple(s) for s in shapes], rate)
        phases = self.contestant.start()
        self.contestant.step()
        self.contestant.wait()
        return {"phases": phases}

    def turn(self, seconds: float) -> dict[str, Any]:
        it, steps, dispatches = self.contestant, [], []
        end = time.perf_counter() + seconds
        while not steps or time.perf_counter() < end:
            start = time.perf_counter()
            it.step()
            dispatched = time.perf_counter()
            it.wait()
            steps.append(time.perf_counter() - start)
            dispatches.append(dispatched - start)
        return {"step": statistics.median(steps), "dispatch": statistics.median(dispatches)}

    def rate(self, *rates: float) -> dict[str, Any]:
        it, before = self.contestant, self.contestant.compiles()
        steps, changes = [], []
        for i in range(CHANGES):
            for times in (steps, changes):
                start = time.perf_counter()
                if times is changes:
                    it.set_rate(rates[i % len(rates)])
                it.step()
                it.wait()
                times.append(time.perf_counter() - start)
            if it.compiles() > before:
                break
        change = statistics.median(changes)
        slower = change / statistics.median(steps)
        return {"change": change, "slower": slower, "compiles": it.compiles() - before}

    def end(self, _: bool) -> dict[str, Any]:
        return {"peak": max(0, memory("VmHWM") - self.before)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        ((order, argument),) = json.loads(line).items()
        try:
            arguments = argument if isinstance(argument, list) else [argument]
            answer = getattr(worker, order)(*arguments)
        except (NotImplementedError, ImportError) as e:
            answer = {"missing": str(e)}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
