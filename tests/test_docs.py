"""The examples in the docstrings and in the README run, and what they name exists."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MODULES = [
    m.name for m in pkgutil.walk_packages(paddlejax.__path__, "paddlejax.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    public = {name: getattr(paddlejax, name) for name in paddlejax.__all__}
    names = {**public, "jax": jax, "jnp": jnp, "np": np, "paddle": paddlejax, "pj": paddlejax}
    reader = (
        ("allow", "standard") if "guide" in name else ("raise", "strict")
    )  # these show a reader's programs
    with (
        np.printoptions(precision=4, suppress=True),  # the examples show four digits
        jax.numpy_rank_promotion(reader[0]),
        jax.numpy_dtype_promotion(reader[1]),
    ):
        failed, _ = doctest.testmod(module, extraglobs={**names, **vars(module)})
    assert failed == 0


BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code, prints", BLOCKS, ids=["functions", "objects", "flax"])
def test_each_program_of_the_readme_runs_alone(code, prints, tmp_path, monkeypatch, capsys):
    """As copied: with nothing but what it imports, and it prints what stands below it."""
    monkeypatch.chdir(tmp_path)  # it saves files
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has it
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == prints


def test_the_readme_is_short_and_has_no_other_code():
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    assert text.count("```python") == len(BLOCKS) == 3


def guides():
    """Every text that names commands: README, and the pages of packages and guides."""
    yield "README.md", README.read_text()
    for name in MODULES:
        yield name, importlib.import_module(name).__doc__ or ""


def test_every_command_that_is_named_exists():
    """Scripts and tests are there, and take the options that are named with them."""
    found = 0
    for where, text in guides():
        for script, rest in re.findall(r"(?:python|pytest)\s+([\w/]+\.py)([^`\n]*)", text):
            if "/" in script:  # else it stands for the reader's own
                source = (ROOT / script).read_text()
                for option in re.findall(r"--[\w-]+", rest):
                    assert f'"{option}"' in source, f"{where}: {script} has no {option}"
                found += 1
    assert found > 15


def test_every_name_that_the_tables_give_exists():
    """Of the optimizers in README and in the guides: functions, and classes as dotted names."""
    for where, text in guides():
        if where == "README.md" or "guide" in where:
            for name in re.findall(r"`pj\.([\w.]+)", text):
                assert getattr(paddlejax, name.split(".")[0]) is not None, f"{where}: {name}"
            for name in re.findall(r"\| `((?:optimizer|incubate|nn|static|amp)\.[\w.]+)`", text):
                thing = paddlejax
                for part in name.split("."):
                    thing = getattr(thing, part)
                assert "not here" not in repr(thing), f"{where}: {name}"


PUBLIC = """
    paddlejax paddlejax.optimizer paddlejax.incubate paddlejax.incubate.optimizer paddlejax.static
    paddlejax.amp paddlejax.nn paddlejax.nn.utils paddlejax.regularizer paddlejax.sparse
    paddlejax.splits paddlejax.optimizer.muon paddlejax.incubate.optimizer.functional
    paddlejax.checkpoint paddlejax.rules paddlejax.distributed paddlejax.fluid
    paddlejax.fluid.wrappers paddlejax.fluid.layers paddlejax.fluid.dygraph paddlejax.interop
    paddlejax.optim paddlejax.optim.lr_scheduler
""".split()
WITHOUT_EXAMPLE = {
    "CheckpointError": "an exception",
    "Checkpoint": "what read returns",
    "Tensor": "a part of a Checkpoint",
    "Info": "what get_info returns",
    "Packed": "what pack holds parameters in",
    "RuleState": "what init returns",
    "Optimizer": "the base; every class below it has one",
    "WeightDecayRegularizer": "a base",
    "FluidOptimizer": "a base",
    "enabled": "in the example of guard",
    "LearningRateEpochDecay": "a base",
    "rule": "in the example of Rule",
    "launch": "starts processes",
    "load_npz": "in the example of save_npz",
    "load_safetensors": "in the example of save_safetensors",
    "load_dygraph": "in the example of save_dygraph",
}


def public():
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                yield name, thing
    schedules = "fluid.dygraph.learning_rate_scheduler"
    for module in ("optimizer.lr", schedules, "fluid.optimizer", "fluid.clip", "fluid.regularizer"):
        for name, thing in vars(importlib.import_module(f"paddlejax.{module}")).items():
            if isinstance(thing, type) and thing.__module__ == f"paddlejax.{module}" and name[0] != "_":
                yield name, thing
    for name, thing in vars(paddlejax.schedules).items():
        if isinstance(thing, paddlejax.schedules.Schedule):
            yield name, thing


def test_every_public_name_has_a_page_with_an_example():
    named = dict(public())
    assert len(named) > 120
    bare = {n for n, thing in named.items() if ">>>" not in (thing.__doc__ or "")}
    assert bare == set(WITHOUT_EXAMPLE)
