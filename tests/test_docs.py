"""The examples in the docstrings and in the README run."""

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

README = Path(__file__).parent.parent / "README.md"
MODULES = [
    m.name for m in pkgutil.walk_packages(paddlejax.__path__, "paddlejax.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    public = {name: getattr(paddlejax, name) for name in paddlejax.__all__}
    names = {**public, "jax": jax, "jnp": jnp, "np": np, "paddle": paddlejax, "pj": paddlejax}
    with np.printoptions(precision=4, suppress=True):  # the examples show four digits
        failed, _ = doctest.testmod(module, extraglobs={**names, **vars(module)})
    assert failed == 0


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves files
    readme = README.read_text()
    names: dict[str, object] = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has it
        for block in re.findall(r"```python\n(.*?)```", readme, re.S):
            exec(block, names)
    assert set(names["saved"]) >= {"w_moment1_0", "b_beta1_pow_acc_0", "LR_Scheduler"}


def test_the_sessions_of_the_readme_print_what_it_says():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        failed, tried = doctest.testfile(str(README), module_relative=False)
    assert failed == 0 and tried >= 18


PUBLIC = """
    paddlejax paddlejax.optimizer paddlejax.incubate paddlejax.incubate.optimizer paddlejax.static
    paddlejax.amp paddlejax.nn paddlejax.nn.utils paddlejax.regularizer paddlejax.sparse
    paddlejax.splits paddlejax.optimizer.muon paddlejax.incubate.optimizer.functional
    paddlejax.checkpoint paddlejax.rules paddlejax.distributed paddlejax.fluid
    paddlejax.fluid.wrappers paddlejax.fluid.layers paddlejax.fluid.dygraph paddlejax.interop
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
