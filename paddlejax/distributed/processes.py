"""One program in several processes: started together on this machine, or by a cluster on many."""

import functools
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from ..hyper import COUNT, ArgumentError, Interval, Must, Number, checked, each, instance, optional

COORDINATOR, PROCESSES, PROCESS_ID = VARIABLES = (
    "PADDLEJAX_COORDINATOR",
    "PADDLEJAX_PROCESSES",
    "PADDLEJAX_PROCESS_ID",
)
TIMED_OUT = 124  # the exit status of a run that took too long, as of the command `timeout`
DEVICE_COUNT = "--xla_force_host_platform_device_count"
LINES = 20  # of a failed process's output that are shown


def initialize() -> bool:
    """Join the other processes of this run; False where there are none to join.

    Call it before anything else of JAX: afterwards `jax.devices()` are those of all processes, and every
    process must run the same program. It reads PADDLEJAX_COORDINATOR (host:port of process 0),
    PADDLEJAX_PROCESSES and PADDLEJAX_PROCESS_ID (0, 1, ...), which `launch` sets; without them it does
    nothing, so a script that starts with it also runs alone. CPU devices talk through Gloo. A process that
    does not join within 60 s is an error. When one dies, the others notice within about 10 s and abort; so
    that none waits for it, an exception that nobody catches ends a process at once.

    On a cluster set the three variables on every machine; under SLURM, Open MPI or on TPUs call
    `jax.distributed.initialize()` instead, which finds them by itself.

    >>> initialize()
    False
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if not found:
        return False
    run = _read(found)
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            run.coordinator,
            run.processes,
            run.process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
        )
        sys.excepthook = _leave_at_once
    return True


def _leave_at_once(*error: Any) -> None:
    """Without this the process waits at its end for the others, who wait for it."""
    sys.__excepthook__(*error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _Run(NamedTuple):
    coordinator: str
    processes: int
    process_id: int


def _read(found: Mapping[str, str]) -> _Run:
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
    return _Run(found[COORDINATOR], processes, process_id)


ARGS = "a list or tuple of strings, paths and numbers"


@checked(
    processes=COUNT,
    devices_per_process=COUNT,
    script=(
        instance(str | os.PathLike, "the path of a Python script"),
        Must(os.path.isfile, "the path of a file", FileNotFoundError),
    ),
    timeout=optional(Number("a number of seconds"), Interval(0, above=True, open=True)),
    args=(instance(list | tuple, ARGS), each(instance(str | os.PathLike | int | float, ARGS))),
)
def launch(
    script: str | os.PathLike[str],
    processes: int,
    args: Sequence[Any] = (),
    devices_per_process: int = 1,
    *,
    timeout: float | None = None,
) -> int:
    """Run a Python script as several processes on this machine; 0, or the first exit status that is not.

    Each is `python script *args` and calls `initialize()`. It sees devices_per_process simulated CPU devices
    of its own (another JAX_PLATFORMS in the environment is kept). The output of process 0 goes where this
    process writes. When one process fails or `timeout` seconds are over, the others are stopped, and stderr
    says which it was, why, and what it last wrote. The status is 128 + n for signal n, 124 for a timeout.

    It is meant for tests and for trying out a program; for many machines see `initialize`. From a shell:
    `python -m paddlejax.distributed --processes 2 --devices 4 script.py args`.

        if __name__ == "__main__":
            if not initialize():
                sys.exit(launch(__file__, 2, sys.argv[1:], devices_per_process=4))
            train()
    """
    if PROCESS_ID in os.environ:
        raise RuntimeError("launch was called by a process that launch started, expected initialize()")
    with _free_port() as port:
        coordinator = f"127.0.0.1:{port}"
        workers: list[_Worker] = []
        try:
            for i in range(processes):
                run = _Run(coordinator, processes, i)
                workers.append(_Worker.start(run, [os.fspath(script), *map(str, args)], devices_per_process))
            return _wait(workers, timeout)
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


class _Worker(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    output: Any  # the file that it writes to, or None for process 0

    @classmethod
    def start(cls, run: _Run, command: list[str], devices: int) -> "_Worker":
        """Start one process with the environment that `initialize` reads."""
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(DEVICE_COUNT + "=")]
        environment = {
            "JAX_PLATFORMS": "cpu",
            **os.environ,
            **dict(zip(VARIABLES, map(str, run), strict=True)),
            "JAX_COORDINATOR_BIND_ADDRESS": run.coordinator,  # out of reach from outside
            "XLA_FLAGS": " ".join([*flags, f"{DEVICE_COUNT}={devices}"]),
        }
        if any("_proxy" in name.lower() for name in os.environ):  # with which gRPC would ask it for 127.0.0.1
            environment["no_grpc_proxy"] = "127.0.0.1"
        output = None if run.process_id == 0 else tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
        return cls(f"process {run.process_id} of {run.processes} (pid {process.pid})", process, output)

    def stop(self) -> None:
        """Kill the process if it runs, and let go of its output."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.output is not None:
            self.output.close()

    def last_lines(self) -> str:
        """Return the last lines that it printed, indented, for the message about its failure."""
        if self.output is None:
            return ""
        self.output.seek(0)
        return "".join(
            f"    {line}\n" for line in self.output.read().decode(errors="replace").splitlines()[-LINES:]
        )


def _wait(workers: list[_Worker], timeout: float | None) -> int:
    """Until all have ended well, one has not, or the time is over."""
    ended: queue.SimpleQueue[tuple[_Worker, int]] = queue.SimpleQueue()
    for worker in workers:  # a thread for each, to see in which order they end
        wait = functools.partial(lambda w: ended.put((w, w.process.wait())), worker)
        threading.Thread(target=wait, daemon=True).start()
    deadline = None if timeout is None else time.monotonic() + timeout
    running = list(workers)
    while running:
        try:
            worker, status = ended.get(
                timeout=None if deadline is None else max(0, deadline - time.monotonic())
            )
        except queue.Empty:
            names = ", ".join(worker.name for worker in running)
            _say(f"after {timeout:g} s these had not ended and were stopped: {names}\n")
            return TIMED_OUT
        running.remove(worker)
        if status:
            how = f"was killed by {_signal(-status)}" if status < 0 else f"ended with status {status}"
            _say(f"{worker.name} {how}; the others were stopped\n{worker.last_lines()}")
            return 128 - status if status < 0 else status
    return 0


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(message: str) -> None:
    print(f"launch: {message}", end="", file=sys.stderr, flush=True)
