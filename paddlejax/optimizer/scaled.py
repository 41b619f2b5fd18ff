"""What a GradScaler makes of a loss, and what its steps change."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from .ledger import NumberField
from .loss import Loss
from .transaction import complete


class ScaledLoss(Loss):
    """What `GradScaler.scale` makes of a Loss that has not run backward.

    Computing it also computes the loss it was made from, whose value stays readable after the step.
    """

    def __init__(self, loss: Loss, scale: np.ndarray):
        self._unscaled, loss.outer = loss, self
        super().__init__(loss.call.with_factor, loss.parameters, [*loss.fixed, scale])
        self.trained = loss.trained

    @property
    def left(self) -> dict[Any, Any]:  # type: ignore[override]
        """What a `minimize` left for other optimizers; it is the unscaled loss's too."""
        return self._unscaled.left

    @left.setter
    def left(self, left: dict[Any, Any]) -> None:  # type: ignore[override]
        """Leave it with the unscaled loss."""
        self._unscaled.left = left

    def check_runs(self) -> None:
        """Raise if there is nothing to differentiate, here or in the unscaled loss."""
        super().check_runs()
        if not self.ran_backward:
            self._unscaled.check_runs()

    def learn(self, result: Any) -> None:
        """Keep the value, and that of the unscaled loss."""
        super().learn(result)
        self._unscaled.learn(result[1])

    def settle(self, result: Any) -> None:
        """Settle this loss, and the unscaled one with its own value: their one backward pass has run."""
        super().settle(result)
        self._unscaled.settle(result[1])

    def retain(self, retain_graph: bool) -> None:
        """Say it of the unscaled loss too."""
        super().retain(retain_graph)
        self._unscaled.retain(retain_graph)

    @property
    def aux(self) -> Any:
        """What the function returned beside the loss, unscaled."""
        self.computed()
        return self._unscaled.aux


def is_scaled(loss: Loss) -> bool:
    """Return whether a loss is scaled: it is what `scale` made, or a sum of such; raise on a mixed sum."""
    parts = getattr(loss, "parts", [loss])
    scaled = [isinstance(part, ScaledLoss) for part in parts]
    if any(scaled) and not all(scaled):
        plain = next(part.name for part, known in zip(parts, scaled, strict=True) if not known)
        raise TypeError(
            f"{loss.name}: found a sum of losses of which {plain} is not scaled, "
            "expected that all are, or none"
        )
    return any(scaled)


class Progress(NamedTuple):
    """What steps and updates change; it is replaced as a whole, in one assignment."""

    scale: np.float32
    counts: tuple[int, int] = (0, 0)  # good and bad steps in a row
    found_inf: bool = False  # by the last unscale_, of whichever optimizer
    last_was_bad: bool = False  # what `update` goes by; it keeps it, as Paddle does
    # An optimizer that is not here has gradients that are still scaled.
    unscaled: Mapping[Any, bool] = {}  # unscale_ has run: whether it found inf or NaN
    stepped: frozenset[Any] = frozenset()
    consecutive_skips: int = 0
    total_skips: int = 0


class _Scale(NumberField):
    """Paddle stores the scale as a float32 array of shape (1,)."""

    def write(self, value: Any) -> np.ndarray:
        return np.array([value], np.float32)


FIELDS = (
    _Scale("scale", float),
    NumberField("incr_ratio", float),
    NumberField("decr_ratio", float),
    NumberField("incr_every_n_steps", int),
    NumberField("decr_every_n_nan_or_inf", int),
    NumberField("incr_count", int),
    NumberField("decr_count", int),
    NumberField("use_dynamic_loss_scaling", bool),
)


def noted(inner: Any, step: Callable[[], Any] | None, note: Callable[[], None]) -> Any:
    """Take this step, if there is one, and note it: both or neither; what the step returns."""
    result = None
    if step is not None:
        with getattr(inner, "noting", nullcontext)(note):
            result = step()
    complete(note)
    return result
