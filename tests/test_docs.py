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
    names = {**vars(paddlejax), "jax": jax, "jnp": jnp, "np": np, "paddle": paddlejax, "pj": paddlejax}
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
