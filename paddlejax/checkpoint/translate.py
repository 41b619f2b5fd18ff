"""What Paddle 1.x and Paddle 3.x write differently: a scheduler's state, and Lamb's powers."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..optimizer.ledger import StateDictError, base
from ..optimizer.lr import LinearLR, LRScheduler, ReduceOnPlateau
from .errors import listed

EPOCHS = {"epoch_num": "last_epoch", "learning_rate": "last_lr"}
PLATEAU = {
    **EPOCHS,
    "best_loss": "best",
    "num_bad_epochs": "num_bad_epochs",
    "cooldown_counter": "cooldown_counter",
}


def translate_schedule(entries: dict[Any, Any], scheduler: Any) -> None:
    """Rewrite `LR_Scheduler` and `global_step` of the other version for this scheduler.

    A step number of 1.x is the argument of the formula at the next step, and so is last_epoch: the formula
    goes on where it was, whatever it began at.
    """
    found = entries.get("LR_Scheduler")
    counts = getattr(scheduler, "counts", None)  # what a schedule of 1.x says it counts
    fluid = counts is not None
    if not fluid:
        entries.pop("global_step", None)
    if not isinstance(found, Mapping) or not (fluid or isinstance(scheduler, LRScheduler)):
        return
    if fluid and "last_epoch" in found:
        entries["LR_Scheduler"] = _to_fluid(found, scheduler)
        if counts != "epochs":
            step = found["last_epoch"] if counts == "steps" else 0
            entries["global_step"] = np.array([step], np.int32)
    elif not fluid and "last_epoch" not in found:
        entries["LR_Scheduler"] = _from_fluid(found, scheduler)


def _from_fluid(found: Mapping[str, Any], scheduler: LRScheduler) -> Mapping[str, Any]:
    """Return a 1.x scheduler's saved state as this scheduler of 2.x and later would have saved it."""
    if "step_num" not in found:
        return {PLATEAU.get(k, k): _plain(v) for k, v in found.items()}
    if isinstance(scheduler, ReduceOnPlateau | LinearLR):
        kind = type(scheduler).__name__
        raise StateDictError(f"LR_Scheduler: found {listed(found)}, which has no counterpart in {kind}")
    moved = copy.deepcopy(scheduler)
    moved.verbose = False
    moved.step(int(found["step_num"]))
    return moved.state_dict()


def _to_fluid(found: Mapping[str, Any], scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's saved state as Paddle 1.x would have saved it."""
    if scheduler.counts != "steps":
        words = EPOCHS if scheduler.counts == "epochs" else PLATEAU
        return {word: found[theirs] for word, theirs in words.items() if theirs in found}
    state: dict[str, Any] = {"step_num": int(found["last_epoch"])}
    inner = getattr(scheduler, "learning_rate", None)  # a warm-up may lead to another schedule
    if getattr(inner, "counts", "steps") != "steps" and "LinearWarmup_LR" in found:
        state["learning_rate"] = _to_fluid(found["LinearWarmup_LR"], inner)
    return state


def _plain(x: Any) -> Any:
    """Return a NumPy scalar as a Python number, all else as it is."""
    return x.item() if isinstance(x, np.generic) else x


def _single(x: Any) -> Any:
    """The number in an array of one."""
    return x.item() if isinstance(x, np.generic | np.ndarray | jax.Array) and x.size == 1 else x


def place_of(entries: Mapping[Any, Any], whole: bool) -> float | None:
    """The argument of the schedule's formula at the next step, if the file has it.

    A `whole` place is one that counts: what a state's `count` can be. A scheduler may stand between epochs.
    """
    found = entries.get("LR_Scheduler")
    word = next((w for w in ("last_epoch", "step_num") if isinstance(found, Mapping) and w in found), None)
    if word is None:
        return None
    place = _single(found[word])  # type: ignore[index]
    number = isinstance(place, int | float) and not isinstance(place, bool) and math.isfinite(place)
    if not number or place < 0 or whole and not (place < 2**31 and place == int(place)):
        expected = "an int >= 0" if whole else "a number >= 0"
        raise StateDictError(f"LR_Scheduler: {word} is {place!r:.80}, expected {expected}")
    return place


def free_powers(entries: dict[Any, Any], starts: Mapping[str, Mapping[str, Any]]) -> None:
    """Set to 0 the powers that stand where they started although the moments have moved.

    `starts` gives for each owner of accumulators where its powers start. Paddle 1.8.5's Lamb corrects no bias
    and leaves its powers there for ever. A power of 0 says just that: m / (1 - 0) is m, and 0 stays 0.
    """
    keys = {base(key): key for key in entries if isinstance(key, str)}
    for owner, powers in starts.items():
        moments = [entries[keys[k]] for k in (f"{owner}_moment1", f"{owner}_moment2") if k in keys]
        there = {keys[k]: start for name, start in powers.items() if (k := f"{owner}_{name}") in keys}
        arrays = [*moments, *(entries[key] for key in there)]
        if not there or not all(isinstance(x, jax.Array | np.ndarray) for x in arrays):
            continue
        still = [
            np.all(np.asarray(entries[key]) == np.asarray(s, entries[key].dtype)) for key, s in there.items()
        ]
        if all(still) and any(np.any(np.asarray(m)) for m in moments):
            entries.update({key: np.zeros_like(np.asarray(entries[key])) for key in there})
