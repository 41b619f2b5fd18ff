"""The strictest JAX there is, for every test and doctest, before JAX starts."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import chex  # noqa: E402


def pytest_runtest_setup():
    """`chex.assert_max_traces` counts by function and stack, which the cases of one test have in common."""
    chex.clear_trace_counter()
