"""The strictest JAX there is, for every test and doctest, before JAX starts."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests make their functions anew and compile many a program that an earlier test has compiled. Each process
# of the suite keeps its programs for as long as it runs. They are its own: JAX writes its files in place, so
# that another process could read half of one.
if not jax.config.jax_compilation_cache_dir:
    compiled = tempfile.mkdtemp(prefix="paddlejax-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

import chex  # noqa: E402


def pytest_runtest_setup():
    """`chex.assert_max_traces` counts by function and stack, which the cases of one test have in common."""
    chex.clear_trace_counter()
