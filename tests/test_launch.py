"""How processes that `launch` starts end: early, by a signal, again; this file is also their script."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def trained(mode, who):
    """Sum over two processes, of which one leaves before the others."""
    from paddlejax.distributed import initialize

    assert initialize(shutdown_timeout=2)
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
    x = jax.make_array_from_callback((2,), sharding, lambda index: np.ones(2, "f")[index])
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))
    for step in range(10**6):
        value = float(total(x))
        if step == 0 and jax.process_index() == 0:
            print("sum", value, flush=True)
        if step == 3 and jax.process_index() == who:
            if mode == "caught":
                try:
                    sys.exit(4)
                except SystemExit as e:
                    assert e.code == 4
                    e.code = 5
                    assert vars(SystemExit)["code"].__get__(e) == e.code == 5
                mode = "short"
            if mode == "short":
                return
            if mode == "status":
                raise SystemExit(3)


def alone(mode, folder):
    """Nothing of JAX."""
    me, tries = os.environ["PADDLEJAX_PROCESS_ID"], os.environ["PADDLEJAX_RESTARTS"]
    print(f"[Gloo] process {me}\nhello from {me}, try {tries}", flush=True)
    print(f"warning from {me}", file=sys.stderr, flush=True)
    if mode == "stays":
        signal.signal(signal.SIGTERM, lambda *_: Path(folder, f"{me}.asked").touch())
        Path(folder, f"{me}.pid").write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)
    if mode == "second" and tries == "0" and me == "1":
        sys.exit(5)


if __name__ == "__main__":
    trained(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "trained" else alone(*sys.argv[2:])


# ---------------------------------------------------------------------------------------------- the tests

SHELL = [sys.executable, "-m", "paddlejax.distributed", "--processes", "2"]


def launched(*args, options=()):
    command = [*SHELL, *map(str, options), __file__, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    "mode, who, status, said",
    [
        ("caught", 1, 1, r"launch: process 1 of 2 \(pid \d+\) came to its end \(status 0\) long before proc"),
        ("short", 0, 1, r"launch: process 0 of 2 \(pid \d+\) came to its end \(status 0\) long before proc"),
        ("status", 1, 3, r"launch: process 1 of 2 \(pid \d+\) ended with status 3"),
    ],
)
def test_a_process_that_ends_early_is_named(mode, who, status, said):
    """It neither leaves the others waiting for minutes, nor is the one named that waited for it."""
    start = time.monotonic()
    ran = launched("trained", mode, who)
    assert ran.returncode == status and re.search(said, ran.stderr), ran.stderr
    assert ran.stdout == "sum 2.0\n"  # and not what Gloo tells
    assert time.monotonic() - start < 60  # 306 s before


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc, and only Linux has a parent-death signal"
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_outlives_the_launcher(number, tmp_path):
    """Signals are passed on first; after SIGKILL nobody can."""
    launcher = subprocess.Popen([*SHELL, __file__, "alone", "stays", tmp_path], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.1)
        pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        assert len(pids) == 2 and all(map(is_running, pids))
        launcher.send_signal(number)
        launcher.wait(timeout=30)
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, pids))
    finally:
        launcher.kill()
        launcher.wait()
    assert launcher.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert len(list(tmp_path.glob("*.asked"))) == (2 if number == signal.SIGTERM else 0)


def test_a_failed_run_is_started_again_and_all_output_is_kept(tmp_path):
    logs = tmp_path / "logs"
    ran = launched("alone", "second", "", options=["--max-restarts", 2, "--log-dir", logs])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["hello from 0, try 0", "hello from 0, try 1"]
    assert "process 1 of 2" in ran.stderr and "launch: restart 1 of 2\n" in ran.stderr
    for i in range(2):
        written = (logs / f"process_{i}.log").read_text()
        assert all(f"hello from {i}, try {n}" in written for n in range(2)) and f"warning from {i}" in written


def test_after_the_last_restart_the_status_is_that_of_the_failure():
    ran = launched("alone", "second", "", options=["--max-restarts", 0])
    assert ran.returncode == 5 and "restart" not in ran.stderr


def test_a_script_without_initialize_is_noticed():
    ran = launched("alone", "nothing", "")
    assert ran.returncode == 0
    assert "no process called paddlejax.distributed.initialize()" in ran.stderr


@pytest.mark.parametrize(
    "coordinator, resolves_to, said",
    [
        ("192.0.2.1:80", ["127.0.1.1", "::1"], "'box': found that it leads to 127.0.1.1, ::1, expected"),
        ("192.0.2.1:80", None, "'box': found that it leads to nothing, expected an address"),
        ("127.0.0.1:80", None, "leads to nothing, .* the line '127.0.0.1 box' first into /etc/hosts"),
    ],
)
def test_a_machine_whose_name_leads_nowhere_is_refused(monkeypatch, coordinator, resolves_to, said):
    from paddlejax.distributed.processes import VARIABLES, initialize
    from paddlejax.hyper import ArgumentError

    class Socket:
        def __init__(self, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def connect(self, address):
            self.address = address[0]

        def getsockname(self):
            return self.address, 0

    def getaddrinfo(name, port):
        if resolves_to is None:
            raise socket.gaierror("Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in resolves_to]

    for name, value in zip(VARIABLES, (coordinator, "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    for name, value in (("gethostname", lambda: "box"), ("getaddrinfo", getaddrinfo), ("socket", Socket)):
        monkeypatch.setattr(socket, name, value)
    with pytest.raises(ArgumentError, match=said):
        initialize()


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"max_restarts": -1}, ValueError, "max_restarts: found -1"),
        ({"max_restarts": 1.0}, TypeError, "max_restarts: found 1.0, expected an int"),
        ({"log_dir": 3}, TypeError, "log_dir: found 3, expected the path of a folder"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(options, kind, message):
    from paddlejax.distributed import launch

    with pytest.raises(kind, match=message):
        launch(__file__, 1, **options)


@pytest.mark.parametrize("value", [0, float("inf"), "1", None])
def test_a_wrong_shutdown_timeout_is_refused(value):
    from paddlejax.distributed import initialize

    with pytest.raises((TypeError, ValueError), match="shutdown_timeout: found"):
        initialize(shutdown_timeout=value)
