"""Whole donated steps as XLA compiled them: what memory they take, and in how many loops they run."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from cases import CASES

import paddlejax as paddle

# The cases whose programs differ in more than numbers.
FLAGS = ("rescale_grad", "per_element", "batch_num", "amsgrad", "centered", "use_nesterov", "bias_correction")
DISTINCT = {"-".join([c.name, *(flag for flag in FLAGS if flag in c.kwargs)]): c for c in reversed(CASES)}


def functional(tx: Any, params: Any, grads: Any = None) -> Any:
    """Update and apply in one program that is given parameters and state for good."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    return (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(params, state, params if grads is None else grads)
        .compile()
    )


def of_object(opt: Any) -> Any:
    """The program behind `opt.step()`, from the plan of the step it made last."""
    (plan,) = opt.compiled_steps
    values = [s.share() for s in plan.stores]
    state, grads = plan.state(), [jnp.zeros_like(v) for v in values]
    return plan.step.lower(values, state, grads, plan.base.rates(0.1)).compile()


def temp_bytes(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes


def loops(program: Any, shape: tuple[int, ...]) -> list[str]:
    """Of every loop, reduction and copy in the program that writes an array of this shape, what it writes."""
    text = program.as_text()
    dimensions = ",".join(map(str, shape))
    written = re.findall(
        r"^ +(?:ROOT )?\S+ = (.*?) (?:fusion|copy|\w+-update-slice)\(", text[text.index("ENTRY") :], re.M
    )
    return [result for result in written if f"[{dimensions}]" in result]
