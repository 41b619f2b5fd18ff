"""Paddle 1.x's `fluid.layers`: the schedules by their function names; of layers there are none."""

from typing import TYPE_CHECKING, Any

from ..elsewhere import names_of
from ..hyper import Must, checked
from ..pages import publish
from .dygraph import learning_rate_scheduler as classes

__all__ = [
    "cosine_decay",
    "exponential_decay",
    "inverse_time_decay",
    "linear_lr_warmup",
    "natural_exp_decay",
    "noam_decay",
    "piecewise_decay",
    "polynomial_decay",
]

ONE_MORE = Must(
    lambda values, boundaries: len(values) - len(boundaries) == 1,
    "one more value than boundaries",
    ValueError,
)


def noam_decay(d_model: Any, warmup_steps: Any, learning_rate: Any = 1.0) -> classes.NoamDecay:
    """Return a `fluid.dygraph.NoamDecay`.

    >>> float(noam_decay(64, 2)())
    0.04419417306780815
    """
    return classes.NoamDecay(d_model, warmup_steps, learning_rate=learning_rate)


def exponential_decay(
    learning_rate: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> classes.ExponentialDecay:
    """Return a `fluid.dygraph.ExponentialDecay`.

    >>> rate = exponential_decay(0.5, 1, 0.5)
    >>> float(rate()), float(rate())
    (0.5, 0.25)
    """
    return classes.ExponentialDecay(learning_rate, decay_steps, decay_rate, staircase)


def natural_exp_decay(
    learning_rate: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> classes.NaturalExpDecay:
    """Return a `fluid.dygraph.NaturalExpDecay`.

    >>> float(natural_exp_decay(0.5, 1, 0.5)())
    0.5
    """
    return classes.NaturalExpDecay(learning_rate, decay_steps, decay_rate, staircase)


def inverse_time_decay(
    learning_rate: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> classes.InverseTimeDecay:
    """Return a `fluid.dygraph.InverseTimeDecay`.

    >>> rate = inverse_time_decay(0.5, 1, 1.0)
    >>> float(rate()), float(rate())
    (0.5, 0.25)
    """
    return classes.InverseTimeDecay(learning_rate, decay_steps, decay_rate, staircase)


def polynomial_decay(
    learning_rate: Any,
    decay_steps: Any,
    end_learning_rate: Any = 0.0001,
    power: Any = 1.0,
    cycle: bool = False,
) -> classes.PolynomialDecay:
    """Return a `fluid.dygraph.PolynomialDecay`.

    >>> rate = polynomial_decay(0.5, 2, end_learning_rate=0.0)
    >>> float(rate()), float(rate())
    (0.5, 0.25)
    """
    return classes.PolynomialDecay(learning_rate, decay_steps, end_learning_rate, power, cycle)


@checked(values=ONE_MORE)
def piecewise_decay(boundaries: Any, values: Any) -> classes.PiecewiseDecay:
    """Return a `fluid.dygraph.PiecewiseDecay` that counts from 0.

    >>> rate = piecewise_decay([1], [0.5, 0.25])
    >>> float(rate()), float(rate())
    (0.5, 0.25)
    """
    return classes.PiecewiseDecay(boundaries, values, 0)


def cosine_decay(learning_rate: Any, step_each_epoch: Any, epochs: Any) -> classes.CosineDecay:
    """Return a `fluid.dygraph.CosineDecay`.

    >>> float(cosine_decay(0.5, 10, 10)())
    0.5
    """
    return classes.CosineDecay(learning_rate, step_each_epoch, epochs)


def linear_lr_warmup(
    learning_rate: Any, warmup_steps: Any, start_lr: Any, end_lr: Any
) -> classes.LinearLrWarmup:
    """Return a `fluid.dygraph.LinearLrWarmup`, which counts from 1.

    >>> rate = linear_lr_warmup(0.5, 2, 0.0, 0.5)
    >>> float(rate()), float(rate())
    (0.25, 0.5)
    """
    return classes.LinearLrWarmup(learning_rate, warmup_steps, start_lr, end_lr)


__path__: list[str] = []  # Paddle has modules below this one, see elsewhere.py

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
