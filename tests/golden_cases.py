"""The recorded runs of real Paddle under tests/golden, as one kind of case for both versions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {"paddle-3.3.1": "paddle3", "fluid-1.8.5": "fluid18"}
WRAPPERS = ("LookAhead", "ModelAverage", "ExponentialMovingAverage")


@dataclass(frozen=True)
class ParamSpec:
    """One parameter as `ParamAttr` described it; `regularizer` is None or (type, coeff)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    learning_rate: float
    regularizer: tuple[str, float] | None
    need_clip: bool
    stop_gradient: bool
    sparse: bool


@dataclass(frozen=True, eq=False)
class Case:
    """One recorded run; the arrays are read from its npz when first asked for."""

    id: str
    oracle: str
    cls: str
    kwargs: dict[str, Any]  # no learning_rate where a scheduler sets it
    params: list[ParamSpec]
    steps: int
    record_steps: list[int]
    weight_decay: float | tuple[str, float] | None
    grad_clip: tuple[str, dict[str, Any]] | None
    groups: list[dict[str, Any]] | None  # params by name; a key that is absent differs from None
    scheduler: dict[str, Any] | None  # {"type", "args", "kwargs"}
    events: list[dict[str, Any]]
    exclude_names: list[str] | None
    decay_names: list[str] | None
    need_clip: list[str] | None
    restore_at: int | None
    wrapper: str | None
    quirk: str | None
    raw: dict[str, Any]

    def __str__(self) -> str:
        return f"{FOLDERS[self.oracle]}/{self.id}"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the npz under its recorded name."""
        return _arrays(GOLDEN / FOLDERS[self.oracle] / self.raw["file"])

    @property
    def p0(self) -> dict[str, np.ndarray]:
        """The parameters before the first step."""
        return {p.name: self.arrays[f"p0/{p.name}"] for p in self.params}

    def grads(self, step: int) -> dict[str, Any]:
        """What the optimizer saw at `step`: an array, (rows, values), or None for no gradient."""
        return {p.name: self._grad(p, step) for p in self.params}

    def _grad(self, p: ParamSpec, step: int) -> Any:
        arrays, at = self.arrays, 1 if self.raw.get("grad_constant") else step
        if p.stop_gradient:
            return None
        if p.sparse:
            return arrays[f"g_rows/{at}/{p.name}"], arrays[f"g_values/{at}/{p.name}"]
        g = arrays.get(f"g/{at}/{p.name}")
        # 1.8.5 clears a gradient to zeros, so a parameter that once had one keeps being stepped
        if g is None and any(f"g/{s}/{p.name}" in arrays for s in range(1, step)) and "absent" in self.raw:
            return np.zeros(p.shape, p.dtype)
        return g

    def expected(self, step: int, what: str = "p") -> dict[str, np.ndarray]:
        """The parameters after `step`; `what` may name a wrapper's record instead, such as "avg"."""
        found = {p.name: self.arrays.get(f"{what}/{step}/{p.name}") for p in self.params}
        return {name: a for name, a in found.items() if a is not None}

    def state(self) -> dict[tuple[str, str], np.ndarray]:
        """The accumulators after the last step, by (accumulator, parameter)."""
        start = f"state/{self.steps}/"
        found = {k.removeprefix(start): a for k, a in self.arrays.items() if k.startswith(start)}
        # 1.8.5 puts the optimizer's name before the accumulator's
        prefix = f"{self.kwargs['name']}_" if self.kwargs.get("name") else ""
        pairs = {k.removeprefix(prefix): a for k, a in found.items()}
        return {(k.partition("/")[0], k.partition("/")[2]): a for k, a in pairs.items()}

    def state_keys(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The tensors of `state_dict()` after the last step: key to (shape, dtype).

        `LR_Scheduler` and `master_weights` are dicts there and are left out; a wrapper's rows are
        followed by those of its inner optimizer; nothing is known for bare kernels and static graphs.
        """
        if self.oracle == "paddle-3.3.1":
            rows = [r for r in self.raw["state"] if r["accumulator"] != "master_weight"]
            return {r["state_key"]: (tuple(r["shape"]), r["dtype"]) for r in rows}
        rows = self.raw.get("final_state_dict", {})
        return {k: (tuple(v["shape"]), v["dtype"]) for k, v in rows.items() if k != "LR_Scheduler"}

    @property
    def lr(self) -> np.ndarray | None:
        """The rate that each step used, or None where only `kwargs` tells it."""
        if "lr" in self.arrays:
            return self.arrays["lr"]
        if "lr/1" in self.arrays:
            return np.array([self.arrays[f"lr/{s}"] for s in range(1, self.steps + 1)])
        return None


@lru_cache(maxsize=32)
def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as f:
        arrays = dict(f)
    for a in arrays.values():
        a.setflags(write=False)
    return arrays


def _decay(spec: Any) -> Any:
    return (spec["type"], spec["coeff"]) if isinstance(spec, dict) else spec


def _clip(spec: Any) -> Any:
    return spec and (spec["type"], spec["args"])


def _scheduler(spec: Any, extra: dict[str, Any]) -> Any:
    if spec is None:
        return None
    named = isinstance(spec["args"], dict)
    return {
        "type": spec["type"],
        "args": [] if named else spec["args"],
        "kwargs": {**(spec["args"] if named else {}), **extra},
    }


def _group(spec: dict[str, Any]) -> dict[str, Any]:
    convert = {"weight_decay": _decay, "grad_clip": _clip}
    return {k: convert.get(k, lambda v: v)(v) for k, v in spec.items()}


def _case(raw: dict[str, Any]) -> Case:
    fluid = raw["oracle"] == "fluid-1.8.5"
    need = raw.get("need_clip")
    rules = raw.get("name_rules", {})
    events = raw.get("events", [])
    saves = [e["after_step"] for e in events if e["op"] == "save_restore"] + [raw.get("restore_at")]
    wrapper = raw["wrapper"]["type"] if raw.get("wrapper") else None
    if raw["class"] in WRAPPERS:
        wrapper = raw["class"]
    params = [
        ParamSpec(
            name=p["name"],
            shape=tuple(p["shape"]),
            dtype=p["dtype"],
            learning_rate=p["learning_rate"],
            regularizer=_decay(p["regularizer"]),
            need_clip=p.get("need_clip", need is None or p["name"] in need),
            stop_gradient=p["stop_gradient"],
            sparse=bool(p.get("sparse")),
        )
        for p in raw["params"]
    ]
    return Case(
        id=raw["id"],
        oracle=raw["oracle"],
        cls=raw["class"],
        kwargs=raw["kwargs"],
        params=params,
        steps=raw["steps"],
        record_steps=raw["record_steps"],
        weight_decay=_decay(raw["regularization" if fluid else "weight_decay"]),
        grad_clip=_clip(raw["grad_clip"]),
        groups=raw.get("param_groups") and [_group(g) for g in raw["param_groups"]],
        scheduler=_scheduler(raw["lr_schedule" if fluid else "scheduler"], raw.get("sched_kwargs", {})),
        events=events,
        exclude_names=raw["exclude_from_weight_decay"] if fluid else rules.get("exclude_names"),
        decay_names=rules.get("decay_names"),
        need_clip=need,
        restore_at=saves[0],
        wrapper=wrapper,
        quirk=raw.get("quirk"),
        raw=raw,
    )


@cache
def load(oracle: str) -> list[Case]:
    """Every recorded case of "paddle-3.3.1" or "fluid-1.8.5", in the order of its manifest."""
    manifest = json.loads((GOLDEN / FOLDERS[oracle] / "manifest.json").read_text())
    return [_case(raw) for raw in manifest["cases"]]


@cache
def load_clip() -> list[dict[str, Any]]:
    """The recorded clips: each entry of clip.json with its arrays under "arrays", "in/0" and so on."""
    by_case: dict[str, dict[str, np.ndarray]] = {}
    for key, a in _arrays(GOLDEN / "clip.npz").items():
        case, _, name = key.partition("/")
        by_case.setdefault(case, {})[name] = a
    entries = json.loads((GOLDEN / "clip.json").read_text())
    return [{**e, "arrays": by_case.get(e["id"], {})} for e in entries]
