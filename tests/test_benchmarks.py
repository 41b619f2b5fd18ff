"""The comparison with other libraries runs, on workloads so small that its numbers mean nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from test_cpu_fusion import xla_obeys

BENCHMARKS = Path(__file__).parent / "benchmarks"
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "MPLBACKEND": "agg"}


def run(script: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / script, *options]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_peers_measures_and_reports(tmp_path):
    fused = ["paddlejax fused"] if xla_obeys() else []
    asked = ["paddlejax", *fused, "class step", "torch fused"]
    options = ["--quick", "--workloads", "6 tiny", "--rounds", "2", "--contestants", ",".join(asked)]
    ran = run("peers.py", *options, "--torch-python", "", "--json", "records.json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "missing: torch, not in any Python given; say where with --torch-python" in ran.stdout
    assert "**Step (times that of optax" in ran.stdout and "Failed" not in ran.stdout

    found = {r["contestant"]: r for r in json.loads((tmp_path / "records.json").read_text())["records"]}
    assert set(found) == {"optax", "paddlejax", *fused, "class step", "roof"}
    for name, record in found.items():
        assert "error" not in record, record
        assert len(record["steps"]) == len(record["dispatches"]) == 2
        assert 0 < min(record["dispatches"]) and max(record["steps"]) < 1 and record["peak"] > 0
        assert record["compiles"] == (
            1 if name == "optax" else 0
        )  # a new rate is data, but in optax's closures
    assert {"trace", "lower", "compile", "temp"} <= set(found["paddlejax"]["phases"])
    height, width, _ = matplotlib.image.imread(tmp_path / "peers.png").shape
    assert height > 200 and width > 300


@pytest.mark.slow
def test_the_comparison_on_a_gpu_runs_on_cpu_too(tmp_path):
    options = ["--quick", "--device", "cpu", "--workloads", "6", "--optimizers", "adam", "--rounds", "1"]
    ran = run("gpu.py", *options, "--torch-python", "", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for dtype in ("fp32", "bf16"):
        line = next(line for line in ran.stdout.splitlines() if line.startswith(f"| 6 tiny, adam, {dtype}"))
        optax, paddlejax, torch = (cell.strip() for cell in line.split("|")[2:5])
        assert "%)" in optax and "%)" in paddlejax and torch == ""


@pytest.mark.slow
def test_a_slow_network_is_measured_where_it_can_be_built(tmp_path):
    options = ["--numbers", "2e4", "--small", "2", "--steps", "2", "--kinds", "dense,dgc"]
    ran = run("network.py", *options, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    if "skipped: this machine lacks" not in ran.stdout:
        dense, compressed = (
            re.search(rf"{kind} +[\d.]+ +[\d.]+ +([\d.]+)", ran.stdout) for kind in ("dense", "dgc")
        )
        assert dense and compressed and 0 < float(compressed[1]) < float(dense[1])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--optimizers", "adam,adamw8"], "--optimizers: found 'adamw8', expected some of sgd, momentum"),
        (["--contestants", "jax"], "--contestants: found 'jax', expected some of optax"),
        (["--workloads", "gpt"], "--workloads: found 'gpt', expected beginnings of 1 x 50M"),
        (["--out", "no/such/picture.png"], "--out: there is no folder no/such"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(options, message, tmp_path):
    ran = run("peers.py", *options, cwd=tmp_path)
    assert ran.returncode != 0 and message in ran.stderr


# What the quick run gave in quiet on two cores with jax 0.10.2; the test allows a third more.
BOUNDS = {
    "update, Adam, one tensor": 1.1,
    "update, Adam, 200 tensors": 1.0,
    "update, LAMB, matrices": 0.7,
    "update, LARS, matrices": 0.4,
    "step, 6 tiny tensors": 1.1,
    "step, 6 tiny tensors, packed": 0.5,
    "minimize, one tensor": 1.2,
    "minimize, 200 tensors of a network": 1.1,
    "minimize, 200 tensors, gradients": 1.05,
    "step, a random half of 50": 1.2,
    "first minimize, 200 tensors": 1.0,
    "trace, 300 leaves": 0.2,
    "trace, chain of 3, 300 leaves": 0.26,
    "trace to program, 300 leaves": 0.65,
}


@pytest.mark.slow  # three minutes, and nothing else should run beside it
def test_the_main_ratios_hold(tmp_path):
    """Of a row that is beyond its bound another run has to say the same."""
    beyond = list(BOUNDS)
    for _ in range(2):
        options = ["--quick", "--only", ";".join(beyond), "--json", "found.json"]
        ran = run("ratios.py", *options, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        rows = json.loads((tmp_path / "found.json").read_text())["rows"]
        assert set(beyond) <= set(rows) and all(name in ran.stdout for name in beyond)
        beyond = [name for name in beyond if rows[name]["ratio"] > 1.3 * BOUNDS[name]]
    assert not beyond, {name: rows[name] for name in beyond}
