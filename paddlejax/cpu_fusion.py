"""Opt in to updates in one pass over memory on CPU."""

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from . import step as stepping

Result = tuple[Any, dict[str, Any]]
OPTION = "xla_cpu_use_multi_output_fusion"
SCATTERS = (0, 12)  # the first jaxlib that compiles any scatters with it


def enable_cpu_fusion() -> bool:
    """Let an update on CPU read and write every array once; returns whether it now does.

    Call it once, before JAX starts (before the first array, `jax.devices()` or compile, after
    `jax.distributed.initialize`):

        import paddlejax as pj
        pj.enable_cpu_fusion()

    By default XLA writes an optimizer's results on CPU in one loop each: Adam moves 40 bytes per float32
    parameter. With XLA's option for fusions of several results it is one loop, 28 bytes, and no array beside
    the donated ones, for every rule whose elements do not depend on each other (not lamb, lars_momentum and
    dpsgd; asgd keeps its copy of the gradients). What stands in front of the rule and changes the gradients,
    such as a clip, writes them once more. Parameters of 16 bits are left out unless they have masters. The
    last digit may differ. Hundreds of small tensors gain nothing and compile longer, and ftrl, which is bound
    by its powers and not by memory, gets slower.

    The option holds for every program of the process, so it is never set unasked. jaxlib before 0.12 (tried:
    0.10.0, 0.10.2, 0.11.0, 0.11.2) then aborts where it compiles two scatters whose values come out of one
    loop. A SelectedRows gradient may lead there with a rule that has slots, and is refused with a
    RuntimeError. In a program of yours, two embeddings may. jaxlib 0.12 compiles both.

    The option is added to XLA_FLAGS and what stands there stays; whether XLA obeys is tried out on a small
    program. If not, that is a RuntimeError and XLA_FLAGS is as before. Where JAX runs on something else than
    CPU (XLA fuses there by itself) nothing changes but the option, and it returns False. A second call does
    nothing.

    >>> started = jnp.zeros(2)
    >>> try:
    ...     enable_cpu_fusion()
    ... except RuntimeError as e:
    ...     print(str(e)[:50])
    enable_cpu_fusion: XLA does not fuse several resul

    optax and torch have no such switch; torch's fused optimizers are kernels of this form.
    """
    if stepping.reform is single_pass:
        return True
    before = os.environ.get("XLA_FLAGS")
    if OPTION not in (before or ""):
        os.environ["XLA_FLAGS"] = f"{before or ''} --xla_backend_extra_options={OPTION}=true".strip()
    if jax.default_backend() != "cpu":
        return False
    if not _fuses():
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before
        found = f"JAX started already, or jaxlib {jaxlib.version.__version__} without this option"
        raise RuntimeError(
            f"enable_cpu_fusion: XLA does not fuse several results into one loop: found {found}; expected "
            "the call before anything else of JAX, or a process started with "
            f"XLA_FLAGS=--xla_backend_extra_options={OPTION}=true"
        )
    jax.clear_caches()  # rules that were traced before, if the option was in XLA_FLAGS from the start
    stepping.reform, stepping.refuse_rows = single_pass, _refuse_rows
    return True


def _refuse_rows(where: str) -> None:
    """Say that XLA would abort, where it would."""
    if jaxlib.version.__version_info__ < SCATTERS:
        found = f"{where}: found a SelectedRows gradient under enable_cpu_fusion, where XLA would abort"
        expected = "an array such as its to_dense(), a process without it, or jaxlib 0.12 or later"
        raise RuntimeError(f"{found}; expected {expected}")


def single_pass(step: Callable[[Any], Result], result: Result, arguments: Any) -> Result:
    """What `step(arguments)` returned, in the form that XLA makes one loop of.

    It fuses results that share inputs, not one that is made from another. So each is computed by itself, from
    the arguments times one, or XLA would see that they are the same. The one stands behind a barrier, so that
    XLA does not know it before it has fused; what is not asked for is never computed.
    """
    one = jnp.ones((), jnp.float32)

    def again(arguments: Any) -> Any:
        """The arguments, times a one that differs from those before. (Two equal barriers would be merged.)"""
        nonlocal one
        one = jax.lax.optimization_barrier(one)
        return jax.tree.map(lambda x: x * one.astype(x.dtype) if _is_array(x) else x, arguments)

    slots, given = dict(result[1]), jax.tree.leaves(arguments)
    for name in list(slots):
        if not any(slots[name] is x for x in given):  # a slot that the rule leaves alone need not be written
            slots[name] = step(again(arguments))[1][name]
    return (step(again(arguments)) if slots else result)[0], slots


def _is_array(x: Any) -> bool:
    return jnp.ndim(x) > 0 and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _fuses() -> bool:
    """Whether XLA makes one loop, in place, of an update in this form."""

    def update(p: jax.Array, m: jax.Array, v: jax.Array) -> Any:
        def step(arguments: Any) -> Any:
            p, m, v = arguments
            return (m + p) * (v - p), {"m": m + p, "v": v - p}

        delta, slots = single_pass(step, step((p, m, v)), (p, m, v))
        return p + delta, slots["m"], slots["v"]

    one = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = jax.jit(update, donate_argnums=(0, 1, 2)).lower(one, one, one).compile()
    fusions = re.findall(r"= (\S).*\bfusion\(", program.as_text() or "")
    memory: Any = program.memory_analysis()
    return fusions == ["("] and memory.temp_size_in_bytes < 1024  # pointers, no array
