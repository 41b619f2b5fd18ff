"""Paddle 1.x's `save_dygraph` and `load_dygraph`."""

import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint.files import PathLike, load, write
from ..checkpoint.layout import NAMED, arranged
from ..optimizer.parameter import Parameter

PARAMETERS, OPTIMIZER = ".pdparams", ".pdopt"


def save_dygraph(state_dict: Mapping[str, Any], model_path: PathLike) -> None:
    """Write a model's or an optimizer's state as Paddle 1.8.5 does, in pickle protocol 2.

    `model_path` is a name without its ending: if the first value is a Parameter the file is
    `<model_path>.pdparams`, else `<model_path>.pdopt`, so that a model and its optimizer share a name. An
    empty state is an AssertionError, as in 1.8.5. `paddlejax.save` describes what may be saved; nested
    arrays, which 1.8.5 cannot read, are a TypeError.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model")
    >>> save_dygraph({"weight": pj.Parameter(jnp.ones(2), "fc_0.w_0")}, path)
    >>> load_dygraph(path)
    ({'weight': array([1., 1.], dtype=float32)}, None)
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"save_dygraph: found {type(state_dict).__name__}, expected a state_dict")
    path = os.fspath(model_path)
    if not os.path.basename(path):
        raise AssertionError(f"save_dygraph: found the path {path!r}, expected folder/name")
    if not state_dict:
        raise AssertionError("save_dygraph: found an empty state_dict, which there is no need to save")
    checkpoint = arranged(state_dict)
    if checkpoint.layout != NAMED:
        raise TypeError(
            "save_dygraph: found nested arrays, or keys or numbers that 1.8.5 does not read, "
            "expected a flat dict of arrays; paddlejax.save writes any"
        )
    first = next(iter(state_dict.values()))
    write(checkpoint, path + (PARAMETERS if isinstance(first, Parameter) else OPTIMIZER), protocol=2)


def load_dygraph(
    model_path: PathLike, keep_name_table: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The parameters and the optimizer state, or None, that `save_dygraph` or Paddle 1.8.5 wrote: numpy
    arrays.

    `model_path` is the name without its ending, or with either. keep_name_table=True keeps the tables of
    tensor names, under "StructuredToParameterName@@"; 1.8.5 leaves the optimizer's in at all times. A missing
    `.pdparams` is a RuntimeError, as in 1.8.5; a file that cannot be read safely a CheckpointError.
    """
    path = os.fspath(model_path)
    stem = path.removesuffix(PARAMETERS) if path.endswith(PARAMETERS) else path.removesuffix(OPTIMIZER)
    if not os.path.exists(stem + PARAMETERS):
        raise RuntimeError(f"load_dygraph: found no file {stem + PARAMETERS}")
    parameters = load(stem + PARAMETERS, True, keep_name_table)
    optimizer = load(stem + OPTIMIZER, True, keep_name_table) if os.path.exists(stem + OPTIMIZER) else None
    return parameters, optimizer
