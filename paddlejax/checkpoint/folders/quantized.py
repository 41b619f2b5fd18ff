"""The optimizer states that PaddleNLP compresses (`ckpt_quant_stage`).

    O1   moment1 = q / 127 * scale, of int8, with a scale for each channel of the last axis;
         moment2 = (1 / r - 1e-8)², with r = q / 255 * (max - min) + min, of uint8
    O2   both moments in the two halves of one int8

O1 is read: within about 1 % of the largest entry, so a training goes on, but not on the same numbers. O2 is
refused.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ...array_types import Stored
from ..errors import CheckpointError, shown

MARKS = ("@scales", "@min_scales", "@max_scales")


def dequantized(folder: Path, arrays: dict[str, Stored], stage: Any) -> tuple[dict[str, Stored], str]:
    """The arrays in float32, and what is to be said of them: nothing if none was compressed."""
    marked = sorted({key.rpartition("@")[0] for key in arrays if key.endswith(MARKS)})
    if stage in (None, "O0") and not marked:
        return arrays, ""
    if stage != "O1":
        raise CheckpointError(
            f"{folder}: the optimizer's state is quantized, stage {shown(stage)}, expected none or 'O1'; "
            "in 4 bits too little of it is left to go on from"
        )
    found = {key: x for key, x in arrays.items() if not key.endswith(MARKS)}
    for key in marked:
        scales = [arrays.get(key + mark) for mark in MARKS]
        if (x := found.get(key)) is None:
            raise CheckpointError(f"{folder}: it has scales of {shown(key)}, and not the array")
        found[key] = Quantized(folder, key, x, *scales)
    if raw := [k for k, x in found.items() if not isinstance(x, Quantized) and x.dtype.itemsize == 1]:
        raise CheckpointError(f"{folder}: it has {shown(raw[0])} in {found[raw[0]].dtype}, without a scale")
    return found, "its moments were stored in 8 bits: the training goes on, but not on the same numbers"


class Quantized(Stored):
    """A moment of 8 bits, in float32 when it is read."""

    def __init__(self, folder: Path, key: str, x: Stored, scale: Any, low: Any, high: Any):
        self.x, self.shape, self.dtype = x, x.shape, np.dtype(np.float32)
        first = scale is not None and low is None and high is None and x.dtype == np.int8
        second = scale is None and low is not None and high is not None and x.dtype == np.uint8
        given = [s for s in (scale, low, high) if s is not None]
        fits = all(s.shape in ((), x.shape[-1:]) and s.dtype == np.float32 for s in given)
        if not (first or second) or not fits:
            raise CheckpointError(f"{folder}: the scales of {shown(key)} do not fit it")
        self.scales = [np.broadcast_to(s[...], x.shape) for s in given]

    def __getitem__(self, index: Any) -> np.ndarray:
        q = self.x[index].astype(np.float32)
        if len(self.scales) == 1:
            return q / np.float32(127) * self.scales[0][index]
        low, high = (s[index] for s in self.scales)
        ratio = q / np.float32(255) * (high - low) + low
        with np.errstate(divide="ignore"):
            return np.square(1 / ratio - np.float32(1e-8))
