"""Bad input as rows of a table: a call, the class of exception that it raises, words of its message."""

import re
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import paddlejax as paddle

BOTH = (ValueError, AssertionError)  # of a hyperparameter Paddle raises the one or the other
P = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TWO = jnp.array([0.1, 0.2])
INTS = jnp.arange(2)


def with_w(w):
    return {**P, "w": w}


def params(*more):
    return [paddle.Parameter(jnp.array(P["w"]), "w"), paddle.Parameter(jnp.array(P["b"]), "b"), *more]


def row(name, call, expected, *words):
    """One bad input: every class in `expected` must catch the error, every pattern must be in its message."""
    classes = expected if isinstance(expected, tuple) else (expected,)
    return pytest.param(call, classes, words, id=name)


def rows(*lists, **tables):
    """A test for each row; the rows of a named table have its name before their own."""
    named = [pytest.param(*r.values, id=f"{name}-{r.id}") for name, table in tables.items() for r in table]
    return pytest.mark.parametrize("call, classes, words", [*(r for table in lists for r in table), *named])


def refuse(call, classes, words):
    # without the strict promotion of the other tests, from which no error here may come
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.raises(classes) as caught,
    ):
        call()
    for cls in classes:
        assert isinstance(caught.value, cls)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    # said by this library on purpose, not a crash somewhere inside JAX, numpy or the standard library
    last = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert "paddlejax" in last.parts or last.parent == Path(__file__).parent, last
