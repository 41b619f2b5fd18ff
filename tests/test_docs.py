"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax

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
