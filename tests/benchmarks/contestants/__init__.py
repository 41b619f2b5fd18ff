"""Who takes part. Each is a class with

    __init__(optimizer, shapes, rate)   parameters, gradients and state; float32 on CPU
    start()                             make the first step and wait; {phase: seconds} and what else is known
    step()                              one whole update; returns when the library does
    wait()                              until the results are there
    set_rate(rate)                      what a user does to change it
    compiles()                          programs compiled so far

and raises NotImplementedError for an optimizer that its library does not have.
"""

import importlib
from typing import Any

ROOF = "roof"
BASELINE = "optax"

# name: (the library it needs, module, class, arguments)
CONTESTANTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    BASELINE: ("optax", "functional", "Optax", {}),
    "optax inject": ("optax", "functional", "Optax", {"inject": True}),
    "paddlejax": ("paddlejax", "functional", "Paddlejax", {}),
    "paddlejax fused": ("paddlejax", "functional", "Paddlejax", {"fusion": True}),
    "class step": ("paddlejax", "objects", "Object", {}),
    "class minimize": ("paddlejax", "objects", "Object", {"minimize": True}),
    "class packed": ("paddlejax", "objects", "Object", {"packed": True}),
    "torch fused": ("torch", "eager", "Torch", {"fused": True}),
    "torch foreach": ("torch", "eager", "Torch", {"foreach": True}),
    "paddle dygraph": ("paddle", "eager", "Paddle", {}),
    ROOF: ("jax", "functional", "Roof", {}),
}


# Those of gpu.py; bf16 stands for parameters and gradients in bfloat16 beside masters in float32.
GPU: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "copy": ("jax", "narrow", "Copy", {}),
    **{name: CONTESTANTS[name] for name in ("optax", "paddlejax", "torch fused")},
    "optax bf16": ("optax", "narrow", "OptaxMasters", {}),
    "paddlejax bf16": ("paddlejax", "narrow", "PaddlejaxMasters", {}),
    "torch fused bf16": ("torch", "eager", "TorchMasters", {"fused": True}),
}


def make(name: str, optimizer: str, shapes: list[tuple[int, ...]], rate: float) -> Any:
    _, module, cls, arguments = {**CONTESTANTS, **GPU}[name]
    return getattr(importlib.import_module(f"contestants.{module}"), cls)(
        optimizer, shapes, rate, **arguments
    )
