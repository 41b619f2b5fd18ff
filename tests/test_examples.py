"""The examples run, draw what they promise, and train the same network in either style."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = {  # script -> arguments that make it quick; --out is added
    "equinox_model.py": ["--epochs", "2"],
    "flax_nnx.py": ["--epochs", "2"],
    "large_batch.py": "--optimizer Momentum LAMB --epochs 1 --depth 1 --batch-size 32 256".split(),
    "monitor.py": ["--epochs", "3"],
    "optax_chain.py": ["--epochs", "2"],
    "population.py": ["--epochs", "2", "--optimizer", "momentum", "lamb"],
    "plot_schedules.py": ["--steps", "20"],
    "resume_from_paddle.py": [],
    "train_characters.py": ["--steps", "4"],
    "train_dgc.py": ["--epochs", "2"],
    "train_digits.py": ["--epochs", "2", "--optimizer", "momentum", "lamb"],
    "train_embedding.py": ["--steps", "20", "--snippets", "60"],
    "train_fsdp.py": ["--epochs", "1", "--hidden", "64"],
    "train_pipeline.py": ["--epochs", "1", "--stages", "3", "--wait", "2"],
    "train_zero1.py": ["--epochs", "1"],
}
# As strict as tests/conftest.py, but on the devices that a reader has.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "MPLBACKEND": "agg",
    # What the examples have in common is compiled once, see tests/conftest.py.
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@pytest.fixture
def train_digits(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_digits")


def test_every_example_is_in_the_table():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(QUICK)


@pytest.mark.parametrize("script", sorted(QUICK))
def test_an_example_draws_the_picture_of_its_name(script):
    """By default, and in the gallery; and what takes long shows a bar."""
    source, name = (EXAMPLES / script).read_text(), f"{Path(script).stem}.png"
    assert f'default=Path("{name}")' in source or f'default="{name}"' in source
    assert (EXAMPLES.parent / ".github" / "pictures" / name).is_file()
    assert "tqdm" in source or script in ("plot_schedules.py", "resume_from_paddle.py")  # a second each


def test_every_picture_is_of_an_example():
    pictures = {path.stem for path in (EXAMPLES.parent / ".github" / "pictures").iterdir()}
    assert pictures == {Path(script).stem for script in QUICK}


# One process runs several scripts, each as if from a shell in a folder of its own: JAX starts once for all.
RUNNER = """
import contextlib, io, json, os, runpy, sys, traceback
import matplotlib.pyplot as plt
examples, folder, scripts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, examples)
results = {}
for script, arguments in scripts.items():
    os.makedirs(os.path.join(folder, script))
    os.chdir(os.path.join(folder, script))
    for after, given in (("", arguments), (" --help", ["--help"])):
        sys.argv = [os.path.join(examples, script), *given]
        out, err, ended = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as stop:
                ended = stop.code or 0
            except BaseException:
                ended = traceback.format_exc()
        plt.close("all")
        results[script + after] = ended, out.getvalue(), err.getvalue()
print(json.dumps(results))
"""
ON_EIGHT_DEVICES = [
    "train_dgc.py",
    "train_fsdp.py",
    "train_pipeline.py",
    "train_zero1.py",
]  # they ask JAX for them at its start
ON_ONE_DEVICE = [script for script in QUICK if script not in ON_EIGHT_DEVICES]


@pytest.mark.parametrize("scripts", [ON_ONE_DEVICE, ON_EIGHT_DEVICES], ids=["one device", "eight devices"])
def test_examples_run_and_draw(scripts, tmp_path):
    name = "picture.png"
    given = {script: [*QUICK[script], "--out", str(tmp_path / script / name)] for script in scripts}
    command = [sys.executable, "-c", RUNNER, EXAMPLES, tmp_path, json.dumps(given)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stderr
    for script, (ended, printed, warned) in json.loads(ran.stdout.splitlines()[-1]).items():
        assert ended == 0, (script, ended, warned)
        assert "Warning" not in warned, (script, warned)
        if script.endswith(" --help"):
            assert f"usage: {script.split()[0]}" in printed and "--out" in printed, script
            continue
        assert name in printed, script
        assert [path.name for path in (tmp_path / script).iterdir()] == [name], script
        picture = matplotlib.image.imread(tmp_path / script / name)
        height, width, _ = picture.shape
        assert height > 300 and width > 600, script
        assert np.std(picture[..., :3]) > 0.02, script  # more than an empty canvas


@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb", "ftrl"])
def test_styles_agree(train_digits, name):
    """Same batches, same start: the Paddle-style object computes what the functional loop does."""
    ours, paddles = (train_digits.train(name, style, epochs=3) for style in ("functional", "paddle"))
    assert ours.losses.shape == paddles.losses.shape == (3 * (1437 // 32),)
    assert ours.losses[-1] < 0.5 * ours.losses[0]
    np.testing.assert_allclose(paddles.losses, ours.losses, rtol=0, atol=1e-6 * ours.losses.max())
    np.testing.assert_array_equal(paddles.test_accuracy, ours.test_accuracy)


def test_digits_are_learnt(train_digits):
    assert train_digits.train("adam").test_accuracy[-1] > 0.96


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--optimizer", "adamw8"], "invalid choice: 'adamw8'"),
        (["--style", "torch"], "invalid choice: 'torch'"),
        (["--epochs", "0"], "--epochs: expected at least 1"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--lr", "-1"], "--lr: expected a number above 0"),
        (["--lr", "nan"], "--lr: expected a number above 0"),
        (["--batch-size", "1438"], "--batch-size: expected 1 to 1437"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
        (["--out", "digits.docx"], "--out: expected a .png file"),
        (["--out", "no/such/folder/digits.png"], "--out: there is no folder no/such/folder"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(train_digits, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        train_digits.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
