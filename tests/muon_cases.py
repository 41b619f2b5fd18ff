"""The recorded runs of Muon, of Paddle's development branch on its CPU build, under tests/golden/muon.

`manifest.json.gz` describes them, `arrays.npz` holds the arrays of each case end to end, as bytes, in the
order of the manifest. `hyperball.json` is not recorded but derived from the description.
"""

import gzip
import json
from functools import cache, lru_cache
from typing import Any

import numpy as np
from golden_cases import GOLDEN

FOLDER = GOLDEN / "muon"
TOLERANCE = 5e-6  # of the largest element
STEP_TOLERANCE = {"steps_polar_express_10": 1e-4, "steps_quintic_7": 1e-4, "rank_one": 1e-3}  # else 2e-5


@cache
def manifest() -> dict[str, Any]:
    """What is recorded: coefficients, cases, and the bare iterations."""
    return json.loads(gzip.decompress((FOLDER / "manifest.json.gz").read_bytes()))


@cache
def hyperball() -> list[dict[str, Any]]:
    """The derived cases of a step that keeps the norm."""
    return json.loads((FOLDER / "hyperball.json").read_text())["cases"]


def unpacked(name: str, index: list[Any]) -> dict[str, np.ndarray]:
    """The arrays of a case by their recorded names."""
    with np.load(FOLDER / "arrays.npz") as f:
        raw, at, found = f[name].tobytes(), 0, {}
    for key, shape, dtype in index:
        size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        found[key] = np.frombuffer(raw[at : at + size], dtype).reshape(shape)
        at += size
    assert at == len(raw)
    return found


class Case:
    """One recorded run."""

    def __init__(self, raw: dict[str, Any]):
        self.raw, self.id, self.params, self.steps = raw, raw["id"], raw["params"], raw["steps"]
        self.names = [p["name"] for p in self.params]
        decay = {} if raw["weight_decay"] is None else {"weight_decay": raw["weight_decay"]}
        self.kwargs = {**raw.get("kwargs", {}), **decay}
        self.restore_at = next((e["after_step"] for e in self.events("save_restore")), None)

    def __str__(self) -> str:
        return self.id

    def events(self, op: str) -> list[dict[str, Any]]:
        """What happens between steps."""
        return [e for e in self.raw.get("events", ()) if e["op"] == op]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array under its recorded name."""
        return _arrays(self.id)

    def rate(self, step: int) -> float:
        """The rate of this step."""
        return (
            float(self.arrays["lr"][step - 1])
            if "lr" in self.arrays
            else self.kwargs.get("learning_rate", 0.02)
        )

    def expected(self, step: int) -> dict[str, np.ndarray]:
        """The parameters after this step; where the CPU kernel errs, what the GPU's rule gives."""
        kind = "gpu_rule" if self.id == "lr_ratio_adamw" else "p"
        return {
            n: self.arrays[f"{kind}/{step}/{n}"] for n in self.names if f"{kind}/{step}/{n}" in self.arrays
        }

    def state(self, step: int) -> dict[tuple[str, str], np.ndarray]:
        """The accumulators after this step, by (accumulator, parameter)."""
        start = f"state/{step}/"
        keys = [k.split("/", 3)[2:] for k in self.arrays if k.startswith(start)]
        return {(a, n): self.arrays[f"{start}{a}/{n}"] for a, n in keys}


@lru_cache(maxsize=4)
def _arrays(name: str) -> dict[str, np.ndarray]:
    raw = next(raw for raw in manifest()["cases"] if raw["id"] == name)
    return unpacked(name, raw["arrays"])


CASES = [Case(raw) for raw in manifest()["cases"]]
