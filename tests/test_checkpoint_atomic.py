"""A save is whole or not at all: killed, interrupted, on a full disk, by two at once."""

import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from paddlejax.checkpoint import atomic, load, save, save_npz
from paddlejax.checkpoint.atomic import replacing

KILLS = 50
SIZE = 500_000
WORKER = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
for i in itertools.count():
    with atomic.replacing(sys.argv[2]) as file:
        for _ in range(10):
            file.write((b"old", b"new")[i % 2][:1] * (int(sys.argv[3]) // 10))
    print(i, flush=True)
"""


def temporaries(folder):
    return [p for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_a_killed_save_leaves_the_old_file_or_the_new_one_whole(tmp_path):
    target, rng, cut = tmp_path / "x.pdopt", random.Random(0), 0
    wholes = {b"o" * SIZE, b"n" * SIZE}
    for _ in range(KILLS):
        command = [sys.executable, "-I", "-S", "-c", WORKER, atomic.__file__, str(target), str(SIZE)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout and worker.stdout.readline() == b"0\n"
            time.sleep(rng.uniform(0, 0.02))
            worker.kill()
        assert worker.returncode == -signal.SIGKILL
        assert target.read_bytes() in wholes
        left = temporaries(tmp_path)
        cut += any(0 < p.stat().st_size for p in left)
        for p in left:
            p.unlink()
    assert cut > KILLS // 10  # many were in the middle of a file
    assert [p.name for p in tmp_path.iterdir()] == ["x.pdopt"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(error, tmp_path):
    for old in (None, b"old"):
        if old:
            (tmp_path / "x").write_bytes(old)
        with pytest.raises(error), replacing(tmp_path / "x") as file:
            file.write(b"half")
            raise error
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("write", [save, save_npz])
def test_a_full_disk_is_an_oserror_that_leaves_the_old_file(write, tmp_path):
    write({"w": np.ones(3)}, tmp_path / "x")
    before, (_, hard) = (tmp_path / "x").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError):
            write({"w": np.ones(100_000)}, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "x").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_failing_rename_or_sync_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")

    def fail(*_):
        raise OSError("no")

    for name in ("replace", "fsync", "chmod"):
        with monkeypatch.context() as m, pytest.raises(OSError, match="no"):
            m.setattr(os, name, fail)
            save({"a": 1}, tmp_path / "x")
        assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, true=true: (order.append(name), true(*a))[1])
    save({"a": 1}, tmp_path / "x")
    assert order == ["fsync", "replace", "fsync"]  # the file, the name, the folder


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_new_file(mask, tmp_path):
    before = os.umask(mask)
    try:
        save({"a": 1}, tmp_path / "x")
        (tmp_path / "y").write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "y").stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_replaced_file_keeps_its_permissions(mode, tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(mode)
    save({"a": 1}, tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/x")
    for value in (1, 2):  # the target is missing at first
        save({"a": value}, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and load(tmp_path / "there" / "x") == {"a": value}
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["x"]


def test_other_names_of_a_file_keep_the_old_contents(tmp_path):
    save({"a": 1}, tmp_path / "x")
    os.link(tmp_path / "x", tmp_path / "y")
    save({"a": 2}, tmp_path / "x")
    assert (load(tmp_path / "x"), load(tmp_path / "y")) == ({"a": 2}, {"a": 1})


def test_folders_and_devices_are_not_replaced(tmp_path):
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match="expected a file to replace, found a folder or a device"):
            save({"a": 1}, path)
    assert not Path(os.devnull).is_file() and not list(tmp_path.iterdir())


def test_long_names_and_bare_names_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 250, "é" * 120, "x"):
        save({"a": 1}, name)
        assert load(name) == {"a": 1}


def killed_in_the_middle(target):
    """Leave what a killed save leaves."""
    command = [sys.executable, "-I", "-S", "-c", HALF_WAY, atomic.__file__, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        assert worker.stdout and worker.stdout.readline() == b"half\n"
        yield worker
        worker.kill()
    assert worker.returncode == -signal.SIGKILL


HALF_WAY = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
with atomic.replacing(sys.argv[2]) as file:
    file.write(b"half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_the_next_save_of_that_name_removes_what_a_killed_one_left(tmp_path):
    save({"a": 1}, tmp_path / "y.pdopt")
    for _ in killed_in_the_middle(tmp_path / "x.pdopt"):
        save({"a": 1}, tmp_path / "x.pdopt")
        assert len(temporaries(tmp_path)) == 1  # its writer lives
    save({"a": 2}, tmp_path / "y.pdopt")
    assert len(temporaries(tmp_path)) == 1  # another name's
    save({"a": 2}, tmp_path / "x.pdopt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pdopt", "y.pdopt"]


def test_only_what_is_surely_left_is_removed(tmp_path):
    mine = atomic._prefix(tmp_path / "x") + f"{os.getpid()}."
    gone = [f"{mine}{'0' * 16}.tmp"]  # by a process that had our number: it does not write now
    stay = [
        mine.replace(str(os.getpid()), "1") + "0" * 16 + ".tmp",  # alive
        f".x.elsewhere.{os.getpid()}.{'0' * 16}.tmp",  # of another host
        f"{mine}{'0' * 15}.tmp", f"{mine}{'0' * 16}.tmp2", f".x.{'0' * 16}.tmp",
    ]  # fmt: skip
    for name in (*gone, *stay):
        (tmp_path / name).touch()
    with replacing(tmp_path / "x"), replacing(tmp_path / "x"):  # one does not remove the other's
        assert len(temporaries(tmp_path)) == 6
    assert {p.name for p in tmp_path.iterdir()} == {"x", *stay}


def test_two_who_save_at_once_do_not_mix(tmp_path):
    def work(value):
        for _ in range(20):
            save({"w": np.full(20_000, value)}, tmp_path / "x")

    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        if (tmp_path / "x").exists():
            assert len(set(load(tmp_path / "x", return_numpy=True)["w"])) == 1
    for t in threads:
        t.join()
    assert len(list(tmp_path.iterdir())) == 1
