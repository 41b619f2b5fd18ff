"""`python -m paddlejax inspect|convert`: what it prints, what it writes, how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from paddlejax.__main__ import main
from paddlejax.checkpoint import load, read, save

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"
OPT = GOLDEN / "adam_l2_globalclip" / "opt_10.pdopt"


def ended(arguments, capsys):
    """The exit status, and what went to stdout and stderr."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as e:
        status = e.code
    return status, *capsys.readouterr()


def shell(*arguments, **options):
    command = [sys.executable, "-m", "paddlejax", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, **options)


def test_inspect_prints_a_table_of_all_arrays(tmp_path, capsys):
    state = {"w_moment1_0": jnp.array([[3.0, 4.0]]), "w_beta1_pow_acc_0": jnp.array([jnp.nan])}
    save({**state, "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.5}}, tmp_path / "x.pdopt")
    status, out, err = ended(["inspect", tmp_path / "x.pdopt"], capsys)
    size = (tmp_path / "x.pdopt").stat().st_size
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "name  slot           shape   dtype    norm  NaNs",
        "w     moment1        (1, 2)  float32  5     0",
        "w     beta1_pow_acc  (1,)    float32  nan   1",
        "",
        "LR_Scheduler/last_epoch: 3",
        "LR_Scheduler/last_lr: 0.5",
        f"{tmp_path / 'x.pdopt'}: 2 arrays, 3 numbers, {size} bytes, layout: state dict with names",
    ]


def test_inspect_prints_a_dash_for_what_is_compressed(tmp_path, capsys):
    np.savez_compressed(tmp_path / "x.npz", w=np.ones((2, 3), np.float32))
    status, out, err = ended(["inspect", tmp_path / "x.npz"], capsys)
    assert (status, err) == (0, "")
    assert out.splitlines()[1] == "w           (2, 3)  float32  -     -"


def test_inspect_prints_strict_json(tmp_path, capsys):
    save({"w": jnp.array([jnp.nan]), "best": float("inf"), "log": [1.5, {}]}, tmp_path / "x")
    status, out, _ = ended(["inspect", "--json", tmp_path / "x"], capsys)
    report = json.loads(out, parse_constant=pytest.fail)
    assert status == 0 and report["others"] == {"best": "inf", "log/0": 1.5}
    row = {"name": "w", "slot": "", "shape": [1], "dtype": "float32", "norm": "nan", "nans": 1}
    assert report["rows"] == [row]


def test_a_terminal_with_rich_gets_a_drawn_table(capsys, monkeypatch):
    pytest.importorskip("rich", reason="needs paddlejax[formats]")
    monkeypatch.setenv("COLUMNS", "150")
    plain = ended(["inspect", OPT], capsys)[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    drawn = ended(["inspect", OPT], capsys)[1]
    assert "┃" in drawn and "┃" not in plain
    for word in plain.split():
        assert word.strip(",") in drawn
    monkeypatch.setattr("paddlejax.__main__.find_spec", lambda name: None)
    assert ended(["inspect", OPT], capsys)[1] == plain


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path, capsys, monkeypatch):
    save({"\x1b[31mred\n[bold]": jnp.ones(1), "\x1b]0;t": "\x07"}, tmp_path / "x")
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        out = ended(["inspect", tmp_path / "x"], capsys)[1]
        assert r"\x1b[31mred\n[bold]" in out and "\x1b]0" not in out and "\x07" not in out


@pytest.mark.parametrize("endings", [(".npz", ".pdopt"), (".safetensors", ".npz", ".pdparams")])
def test_convert_goes_there_and_back(endings, tmp_path, capsys):
    if ".safetensors" in endings:
        pytest.importorskip("safetensors", reason="needs paddlejax[formats]")
    chain = [OPT, *(tmp_path / f"x{ending}" for ending in endings)]
    for source, target in zip(chain, chain[1:], strict=False):
        assert ended(["convert", source, target], capsys) == (0, "", "")
    assert str(read(chain[-1])) == str(read(OPT))
    back, there = load(chain[-1], return_numpy=True), load(OPT, return_numpy=True)
    assert back.pop("LR_Scheduler") == there.pop("LR_Scheduler")
    for key, value in there.items():
        np.testing.assert_array_equal(back[key], value)


def test_convert_overwrites_only_with_force(tmp_path, capsys):
    (tmp_path / "x.npz").write_text("old")
    status, _, err = ended(["convert", OPT, tmp_path / "x.npz"], capsys)
    assert status == 1 and "there is such a file already" in err and err.count("\n") == 1
    assert (tmp_path / "x.npz").read_text() == "old"
    assert ended(["convert", "--force", OPT, tmp_path / "x.npz"], capsys)[0] == 0


@pytest.mark.parametrize("arguments", [
    ["inspect", GOLDEN / "hostile" / "evil_os_system.pdopt"],
    ["inspect", GOLDEN / "hostile" / "bad_truncated.pdopt"],
    ["inspect", "missing.pdopt"],
    ["inspect", "missing.npz"],
    ["inspect", "."],
    ["convert", GOLDEN / "hostile" / "evil_eval.pdopt", "out.npz"],
    ["convert", "missing\n.pdopt", "out.npz"],
    ["convert", OPT, f"{os.devnull}/out.npz"],
])  # fmt: skip
def test_a_bad_file_is_one_line_on_stderr_and_status_1(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = ended(arguments, capsys)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"paddlejax {arguments[0]}: ") and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [
    [], ["other"], ["inspect"], ["inspect", "a", "b"], ["convert", OPT], ["convert", OPT, "x.txt"],
    ["convert", "x", "x.npz"], ["inspect", "--what", OPT],
])  # fmt: skip
def test_a_wrong_command_is_status_2(arguments, capsys):
    status, out, err = ended(arguments, capsys)
    assert (status, out) == (2, "") and "usage: python -m paddlejax" in err


def test_help_shows_examples(capsys):
    status, out, _ = ended(["--help"], capsys)
    assert status == 0 and "python -m paddlejax convert model.pdopt model.safetensors" in out
    for command in ("inspect", "convert"):
        assert ended([command, "--help"], capsys)[0] == 0


def test_the_command_runs_as_a_module():
    done = shell("inspect", OPT)
    assert (done.returncode, done.stderr) == (0, "") and "linear_0.w_0  moment1" in done.stdout
    bad = shell("inspect", GOLDEN / "hostile" / "evil_key.pdopt")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and not bad.stdout


def test_ascii_terminals_and_closed_pipes_are_no_error(tmp_path):
    save({"é": jnp.ones(1)} | {f"w{i}": jnp.ones(1) for i in range(3000)}, tmp_path / "x")
    done = shell("inspect", tmp_path / "x", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "") and r"\xe9 " in done.stdout
    command = f"{sys.executable} -m paddlejax inspect {tmp_path / 'x'} | head -1"
    piped = subprocess.run(command, shell=True, text=True, capture_output=True)
    assert piped.stderr == "" and piped.stdout.startswith("name")
