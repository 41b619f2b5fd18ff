"""The examples run, draw what they promise, and train the same network in either style."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

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
    "train_dgc.py": ["--epochs", "2"],
    "train_digits.py": ["--epochs", "2", "--optimizer", "momentum", "lamb"],
    "train_embedding.py": ["--steps", "20", "--snippets", "60"],
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
}


@pytest.fixture
def train_digits(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_digits")


def test_every_example_is_in_the_table():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(QUICK)


@pytest.mark.parametrize("script", QUICK)
def test_example_runs_and_draws(script, tmp_path):
    out = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLES / script, *QUICK[script], "--out", out]
    ran = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    assert out.name in ran.stdout
    assert list(tmp_path.iterdir()) == [out]
    picture = matplotlib.image.imread(out)
    height, width, _ = picture.shape
    assert height > 300 and width > 600
    assert np.std(picture[..., :3]) > 0.02  # more than an empty canvas


@pytest.mark.parametrize(
    "name", ["momentum", "adam", "adamw", "nadam", "lamb", "lars_momentum", "rmsprop", "ftrl"]
)
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
