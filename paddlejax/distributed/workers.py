"""The processes that `launch` starts on this machine: their environment, their output, their end."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COORDINATOR, PROCESSES, PROCESS_ID = VARIABLES = (
    "PADDLEJAX_COORDINATOR",
    "PADDLEJAX_PROCESSES",
    "PADDLEJAX_PROCESS_ID",
)
REPORT = "PADDLEJAX_REPORT"  # the file in which `initialize` tells `launch` how far the process came
RESTARTS = "PADDLEJAX_RESTARTS"  # how often all processes were started before
JOINED, ENDED, LEFT = "joined", "ended", "left"
DEVICE_COUNT = "--xla_force_host_platform_device_count"
LINES = 20  # of a failed process's output that are shown
GRACE = 5  # seconds between the signal that is passed on and SIGKILL
# Linux kills the process when its parent dies, even by SIGKILL. It is said here because a function that runs
# between fork and exec, which subprocess would take, is unsafe beside JAX's threads.
RUNNER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.executable, [sys.executable, "-u", *sys.argv[2:]])
"""


class Run(NamedTuple):
    """What the environment says of a process."""

    coordinator: str
    processes: int
    process_id: int


def report(word: str, status: int = 0) -> None:
    """Tell `launch`, if it started this process, how far it came and when."""
    if REPORT in os.environ:
        with open(os.environ[REPORT], "a") as f:
            f.write(f"{word} {status} {time.monotonic()}\n")


class Worker:
    """One process, what it wrote last, and the threads that pass on what it writes."""

    def __init__(self, run: Run, command: Sequence[str], devices: int, logs: str | None, restarts: int):
        self.run, self.forwarders = run, list[threading.Thread]()
        self.folder = tempfile.TemporaryDirectory()
        self.report = Path(self.folder.name, "report")
        path = Path(logs or self.folder.name, f"process_{run.process_id}.log")
        self.log = open(path, "ab+" if restarts else "wb+")  # noqa: SIM115  # closed by `stop`
        self.process = self._start(command, devices, restarts, bool(logs))

    def _start(self, command: Sequence[str], devices: int, restarts: int, logs: bool) -> Any:
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(DEVICE_COUNT + "=")]
        environment = {
            "JAX_PLATFORMS": "cpu",
            **os.environ,
            **dict(zip(VARIABLES, map(str, self.run), strict=True)),
            REPORT: str(self.report),
            RESTARTS: str(restarts),
            "JAX_COORDINATOR_BIND_ADDRESS": self.run.coordinator,  # out of reach from outside
            "XLA_FLAGS": " ".join([*flags, f"{DEVICE_COUNT}={devices}"]),
        }
        if any("_proxy" in name.lower() for name in os.environ):  # with which gRPC would ask it for 127.0.0.1
            environment["no_grpc_proxy"] = "127.0.0.1"
        first = self.run.process_id == 0
        # A pipe only where it is needed: through it a program does not see a terminal.
        out = subprocess.PIPE if logs or not os.isatty(1) else None
        err = subprocess.PIPE if logs else None
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUNNER, str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out if first else self.log,
            stderr=err if first else subprocess.STDOUT,
        )
        for pipe, target in ((process.stdout, 1), (process.stderr, 2)):
            if pipe is not None:
                thread = threading.Thread(target=self._forward, args=(pipe, target), daemon=True)
                thread.start()
                self.forwarders.append(thread)
        return process

    def _forward(self, pipe: Any, target: int) -> None:
        """Pass on what process 0 writes, but for what Gloo tells on stdout, where results go."""
        with pipe:
            for line in pipe:
                self.log.write(line)
                self.log.flush()
                if not (target == 1 and line.startswith(b"[Gloo] ")):
                    os.write(target, line)

    def __str__(self) -> str:
        return f"process {self.run.process_id} of {self.run.processes} (pid {self.process.pid})"

    def told(self, word: str) -> tuple[float, int] | None:
        """Return when the process reported this, and with which status; None if it has not."""
        lines = self.report.read_text().splitlines() if self.report.exists() else []
        found = [(float(when), int(status)) for w, status, when in map(str.split, lines) if w == word]
        return found[0] if found else None

    def stop(self) -> None:
        """Kill the process if it runs, and let go of its output."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self.forwarders:
            thread.join(GRACE)  # not for ever: a process that it started may hold the pipe
        self.log.close()
        self.folder.cleanup()

    def last_lines(self) -> str:
        """Return the last lines that it printed, indented, for the message about its failure."""
        if self.run.process_id == 0:  # they were shown
            return ""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()[-LINES:]
        return "".join(f"    {line}\n" for line in lines)


def forward(workers: Sequence[Worker], number: int) -> None:
    """Send all a signal, and wait for them for some seconds."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(number)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(w.process.poll() is None for w in workers):
        time.sleep(0.05)


class Signals:
    """While a block runs, SIGTERM and SIGHUP call a function with their number instead of ending Python."""

    def __init__(self, function: Callable[[int], Any]):
        self.function = function
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # only there Python lets one handle them
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self.before[number] = signal.signal(number, lambda n, frame: self.function(n))

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
