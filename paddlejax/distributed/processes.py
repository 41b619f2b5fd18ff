"""One program in several processes: started together on this machine, or by a cluster on many."""

import atexit
import ctypes
import gc
import ipaddress
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

from ..hyper import COUNT, ArgumentError, Interval, Must, Number, checked, each, instance, optional, whole
from .workers import (
    COORDINATOR,
    ENDED,
    JOINED,
    LEFT,
    PROCESS_ID,
    PROCESSES,
    VARIABLES,
    Run,
    Signals,
    Worker,
    forward,
    report,
)

TIMED_OUT = 124  # the exit status of a run that took too long, as of the command `timeout`
UNFINISHED = 1  # that of a run in which a process came to its end long before others


SECONDS = Number("a number of seconds"), Interval(0, above=True, open=True)


@checked(shutdown_timeout=SECONDS)
def initialize(*, shutdown_timeout: float = 15) -> bool:
    """Join the other processes of this run; False where there are none to join.

    Call it before anything else of JAX: afterwards `jax.devices()` are those of all processes, and every
    process must run the same program. It reads PADDLEJAX_COORDINATOR (host:port of process 0),
    PADDLEJAX_PROCESSES and PADDLEJAX_PROCESS_ID (0, 1, ...), which `launch` sets; without them it does
    nothing, so a script that starts with it also runs alone. CPU devices talk through Gloo. A process that
    does not join within 60 s is an error. When one dies, the others notice within about 10 s and abort; so
    that none waits for it, an exception that nobody catches, a SystemExit with a failure's status too, ends a
    process at once.

    A process that comes to its end waits there for the others, for `shutdown_timeout` seconds. Then it leaves
    with the status it has: either they took more steps and will wait for it, or they have other work, such as
    to save results, for which more seconds must be given.

    On a cluster set the three variables on every machine; under SLURM, Open MPI or on TPUs call
    `jax.distributed.initialize()` instead, which finds them by itself. Gloo listens where the machine's own
    name resolves to. If that is a loopback address, as Debian's and Ubuntu's /etc/hosts have it, or nothing,
    an ArgumentError says what to change.

    >>> initialize()
    False
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if not found:
        return False
    run = _read(found)
    if not jax.distributed.is_initialized():
        _check_own_name(run)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            run.coordinator,
            run.processes,
            run.process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=int(shutdown_timeout) + 10,  # when JAX would abort all processes
        )
        report(JOINED)
        sys.excepthook = _leave_at_once
        _watch_exits()
        atexit.register(_wait_for_others, run, shutdown_timeout)
    return True


def _check_own_name(run: Run) -> None:
    """Refuse a machine whose name leads others, or itself, to no address of it."""
    name, (host, _, port) = socket.gethostname(), run.coordinator.rpartition(":")
    try:
        own = {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(name, None)}
    except OSError:
        own = set()
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect((host, int(port)))
            address = probe.getsockname()[0]
    except OSError:
        address = "127.0.0.1"
    alone = ipaddress.ip_address(address).is_loopback
    if not own or not alone and all(ipaddress.ip_address(a).is_loopback for a in own):
        raise ArgumentError(
            f"this machine's name, {name!r}: found that it leads to {', '.join(sorted(own)) or 'nothing'}, "
            f"expected an address that the other processes reach; put the line '{address} {name}' first into "
            "/etc/hosts, and take the name out of other lines"
        )


def _leave_at_once(*error: Any) -> None:
    """Without this the process waits at its end for the others, who wait for it."""
    sys.__excepthook__(*error)
    _leave(1)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    report(LEFT, status)
    os._exit(status)


def _watch_exits() -> None:
    """Let a SystemExit of a failure end the process at once too: sys.excepthook is not asked then."""
    stored = SystemExit.__dict__["code"]

    def code(error: SystemExit) -> Any:
        status = stored.__get__(error)
        try:
            sys._getframe(1)
        except ValueError:  # no Python function asks but the interpreter, at its end: nobody caught it
            if status is not None and not isinstance(status, int):
                print(status, file=sys.stderr)
                _leave(1)
            if status:
                _leave(status & 0xFF)
        return status

    # `setattr` refuses built-in classes. Another class in its place would miss what C code raises.
    members = gc.get_referents(SystemExit.__dict__)[0]
    members["code"] = property(code, stored.__set__, stored.__delete__)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(SystemExit))


def _wait_for_others(run: Run, seconds: float) -> None:
    """At the end of the process: until all have come to it, or for some seconds."""
    report(ENDED)
    waiting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    waiting.start()
    waiting.join(seconds)
    if waiting.is_alive():
        print(
            f"initialize: process {run.process_id} of {run.processes} came to its end; others had not after "
            f"{seconds:g} s, and it leaves them",
            file=sys.stderr,
        )
        _leave(0)


def _read(found: Mapping[str, str]) -> Run:
    """What the environment says, or an error that names the variable."""
    missing = [name for name in VARIABLES if name not in found]
    if missing:
        raise ArgumentError(f"{', '.join(missing)}: not set, expected beside {', '.join(found)}")
    host, _, port = found[COORDINATOR].rpartition(":")
    if not host or not port.isdecimal():
        raise ArgumentError(f"{COORDINATOR}: found {found[COORDINATOR]!r}, expected host:port")
    for name in (PROCESSES, PROCESS_ID):
        if not found[name].isdecimal():
            raise ArgumentError(f"{name}: found {found[name]!r}, expected a number")
    processes, process_id = int(found[PROCESSES]), int(found[PROCESS_ID])
    if process_id >= processes:
        raise ArgumentError(
            f"{PROCESS_ID}: found {process_id}, expected less than {PROCESSES}, which is {processes}"
        )
    return Run(found[COORDINATOR], processes, process_id)


ARGS = "a list or tuple of strings, paths and numbers"


@checked(
    processes=COUNT,
    devices_per_process=COUNT,
    script=(
        instance(str | os.PathLike, "the path of a Python script"),
        Must(os.path.isfile, "the path of a file", FileNotFoundError),
    ),
    timeout=optional(*SECONDS),
    args=(instance(list | tuple, ARGS), each(instance(str | os.PathLike | int | float, ARGS))),
    max_restarts=whole(0),
    log_dir=optional(instance(str | os.PathLike, "the path of a folder")),
)
def launch(
    script: str | os.PathLike[str],
    processes: int,
    args: Sequence[Any] = (),
    devices_per_process: int = 1,
    *,
    timeout: float | None = None,
    max_restarts: int = 0,
    log_dir: str | os.PathLike[str] | None = None,
) -> int:
    """Run a Python script as several processes on this machine; 0, or the first exit status that is not.

    Each is `python script *args` and calls `initialize()`. It sees devices_per_process simulated CPU devices
    of its own (another JAX_PLATFORMS in the environment is kept). The output of process 0 goes where this
    process writes, without what Gloo tells. With `log_dir` all that process i writes is in
    `log_dir/process_i.log`. When one process fails, comes to its end long before the others, or `timeout`
    seconds are over, the others are stopped, and stderr says which it was, why, and what it last wrote. The
    status is 128 + n for signal n, 124 for a timeout, 1 for an early end.

    After a failure all are started again, up to `max_restarts` times; PADDLEJAX_RESTARTS counts them, and the
    script has to go on from what it saved. SIGTERM and SIGHUP are passed on, and what does not end within 5 s
    is killed. On Linux no process outlives this one, however that ends.

    It is meant for tests and for trying out a program; for many machines see `initialize`. From a shell:
    `python -m paddlejax.distributed --processes 2 --devices 4 script.py args`.

        if __name__ == "__main__":
            if not initialize():
                sys.exit(launch(__file__, 2, sys.argv[1:], devices_per_process=4))
            train()
    """
    if PROCESS_ID in os.environ:
        raise RuntimeError("launch was called by a process that launch started, expected initialize()")
    logs = None if log_dir is None else os.fspath(log_dir)
    if logs is not None:
        os.makedirs(logs, exist_ok=True)
    command = [os.fspath(script), *map(str, args)]
    deadline = None if timeout is None else time.monotonic() + timeout
    restarts = 0
    while True:
        status, again = _run_once(command, processes, devices_per_process, deadline, timeout, logs, restarts)
        if not again or restarts == max_restarts:
            return status
        restarts += 1
        _say(f"restart {restarts} of {max_restarts}\n")


def _run_once(
    command: list[str],
    processes: int,
    devices: int,
    deadline: float | None,
    timeout: float | None,
    logs: str | None,
    restarts: int,
) -> tuple[int, bool]:
    """The status of one try, and whether another may help."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()  # whose `put` a signal handler may call
    workers: list[Worker] = []
    with _free_port() as port, Signals(ended.put):
        try:
            for i in range(processes):
                run = Run(f"127.0.0.1:{port}", processes, i)
                workers.append(Worker(run, command, devices, logs, restarts))
            return _wait(workers, ended, deadline, timeout)
        finally:
            for worker in workers:
                worker.stop()


@contextmanager
def _free_port() -> Iterator[int]:
    """A port that the system gives to nobody else meanwhile; the coordinator may share it."""
    with socket.socket() as reserved:
        if hasattr(socket, "SO_REUSEPORT"):
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        if not hasattr(socket, "SO_REUSEPORT"):
            reserved.close()
        yield port


def _wait(
    workers: list[Worker], ended: queue.SimpleQueue[Any], deadline: float | None, timeout: float | None
) -> tuple[int, bool]:
    """Until all have ended well, one has not, the time is over, or a signal has come."""
    for worker in workers:  # a thread for each, to see in which order they end
        threading.Thread(target=lambda w=worker: ended.put((w, w.process.wait())), daemon=True).start()
    running = list(workers)
    while running:
        try:
            event = ended.get(timeout=None if deadline is None else max(0, deadline - time.monotonic()))
        except queue.Empty:
            names = ", ".join(map(str, running))
            _say(f"after {timeout:g} s these had not ended and were stopped: {names}\n")
            return TIMED_OUT, False
        if isinstance(event, int):
            _say(f"{_signal(event)}: passed on to {', '.join(map(str, running))}\n")
            forward(running, event)
            return 128 + event, False
        worker, status = _first_to_leave(workers, *event)
        if status:
            how = f"was killed by {_signal(-status)}" if status < 0 else f"ended with status {status}"
            _say(f"{worker} {how}; the others were stopped\n{worker.last_lines()}")
            return 128 - status if status < 0 else status, True
        running.remove(worker)
        if worker.told(LEFT):
            _say(
                f"{worker} came to its end (status 0) long before {', '.join(map(str, running))}, which "
                "were stopped: has it fewer steps to take than others?\n"
            )
            return UNFINISHED, True
    if len(workers) > 1 and not any(w.told(JOINED) for w in workers):
        _say("no process called paddlejax.distributed.initialize(): each ran the whole script by itself\n")
    return 0, False


def _first_to_leave(workers: list[Worker], worker: Worker, status: int) -> tuple[Worker, int]:
    """Of a process that ended and those that left before, the first: the rest fail for its sake."""
    told, left = worker.told(LEFT), {w: w.told(LEFT) for w in workers}
    earlier = [(*found, w) for w, found in left.items() if found and (not told or found < told)]
    if not earlier or not status or not told and status != -signal.SIGABRT:  # which JAX sends itself
        return worker, status
    _, status, worker = min(earlier, key=lambda entry: entry[0])
    return worker, status


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(message: str) -> None:
    print(f"launch: {message}", end="", file=sys.stderr, flush=True)
