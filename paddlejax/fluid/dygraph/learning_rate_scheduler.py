"""The 1.x learning-rate schedules, over the formulas of `paddlejax.schedules`.

The optimizer calls a schedule once per minimize: it evaluates, then advances by its step size. Schedules by
epoch, and ReduceLROnPlateau, move only by their own `.epoch()` and `.step(loss)`. Rates are float32 scalars.
"""

from collections.abc import Iterator

import numpy as np

from ... import pages, schedules
from ...attributes import Schedule
from ...hyper import checked, function_of, instance, require
from ...optimizer.gate import whole
from ...optimizer.ledger import Entries, Field, load, written
from ...pages import publish
from ...schedule import BASE_RATE, RATE, RISES, RISING
from ...schedules import BELOW_ONE, FINITE, MODES, NOT_ZERO


class LearningRateDecay(Schedule):
    """The base of all schedules; a subclass defines `step`, the rate at `step_num`.

    >>> class Halving(LearningRateDecay):
    ...     def step(self):
    ...         return 0.5**self.step_num
    >>> halving = Halving()
    >>> [float(halving()) for _ in range(3)]
    [1.0, 0.5, 0.25]
    """

    counts = "steps"  # what moves it, and so what its saved state tells: steps, epochs or losses
    _attributes = ("step_num", "step_size", "dtype", "keys")

    def __init__(self, begin=0, step=1, dtype="float32"):
        self.step_num, self.step_size, self.dtype = begin, step, dtype

    def __call__(self):
        """The rate at `step_num`, which then advances."""
        rate = self.upcoming()
        self._advance()
        return rate

    def upcoming(self):
        """The rate the next call will return; nothing advances, however often this is asked."""
        return self._rounded(self._rate())

    def current(self):
        """What `current_step_lr` shows before the first minimize: the upcoming rate."""
        return self.upcoming()

    def step(self):
        """The rate at `step_num`."""
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def _rate(self):
        return self.step()

    def _advance(self, calls=1):
        self.step_num += calls * self.step_size

    def create_lr_var(self, lr):
        """Return a rate, a number or an array of one element, as the scalar that a call returns."""
        return self._rounded(lr)

    def _rounded(self, rate):
        return np.asarray(rate, self.dtype).reshape(())[()]

    def _state_keys(self):
        """Set `keys`, the names of the attributes to save."""
        self.keys = ["step_num"]

    @whole
    def state_dict(self):
        """The saved attributes: Python numbers."""
        return written((field, getattr(self, field.key)) for field in self._fields())

    def set_state_dict(self, state_dict):
        """Restore what `state_dict` saved; nothing changes if a key is missing."""
        load(self._loading, state_dict, counters=False)

    def _fields(self) -> list[Field]:
        self._state_keys()
        return [Field(key) for key in self.keys]

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        found = {field.key: entries.read(field) for field in self._fields()}
        entries.drop(*entries.rest)  # as in 1.8.5
        yield
        vars(self).update(found)

    def set_dict(self, state_dict):
        """The older name of `set_state_dict`."""
        self.set_state_dict(state_dict)


@pages.of(schedules.noam_decay)
class NoamDecay(LearningRateDecay):
    """A linear rise, then a fall with the inverse square root; counts from 1. See `schedules.noam_decay`.

    >>> rate = NoamDecay(512, warmup_steps=10)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.0014, 0.0028, 0.0042, 0.0056]
    """

    _attributes = ("learning_rate", "d_model", "warmup_steps")

    @checked(begin=NOT_ZERO)
    def __init__(self, d_model, warmup_steps, begin=1, step=1, dtype="float32", learning_rate=1.0):
        super().__init__(begin, step, dtype)
        self.learning_rate, self.d_model, self.warmup_steps = learning_rate, d_model, warmup_steps

    def step(self):
        """Return the rate at `step_num`."""
        return schedules.noam_decay.at(self.step_num, self.d_model, self.warmup_steps, self.learning_rate)


@pages.of(schedules.piecewise_decay)
class PiecewiseDecay(LearningRateDecay):
    """A list of rates, each until the next boundary; see `schedules.piecewise_decay`.

    >>> rate = PiecewiseDecay([2, 4], [0.5, 0.25, 0.125], begin=0)
    >>> [float(rate()) for _ in range(5)]
    [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    _attributes = ("boundaries", "values")

    def __init__(self, boundaries, values, begin, step=1, dtype="float32"):
        super().__init__(begin, step, dtype)
        self.boundaries, self.values = boundaries, values

    def step(self):
        """Return the rate at `step_num`."""
        return schedules.piecewise_decay.at(self.step_num, self.boundaries, self.values)


class _Stretched(LearningRateDecay):
    """A decay at the rate `decay_rate` per `decay_steps` steps, smoothly or in stairs."""

    _attributes = ("learning_rate", "decay_steps", "decay_rate", "staircase")

    def __init__(
        self, learning_rate, decay_steps, decay_rate, staircase=False, begin=0, step=1, dtype="float32"
    ):
        super().__init__(begin, step, dtype)
        self.learning_rate, self.decay_steps, self.decay_rate = learning_rate, decay_steps, decay_rate
        self.staircase = staircase

    def _count(self):
        return self.step_num // self.decay_steps if self.staircase else self.step_num / self.decay_steps


@pages.of(schedules.natural_exp_decay)
class NaturalExpDecay(_Stretched):
    """η₀ exp(-r n/D); see `schedules.natural_exp_decay`.

    >>> rate = NaturalExpDecay(0.5, decay_steps=1, decay_rate=0.1)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.5, 0.4524, 0.4094, 0.3704]
    """

    def step(self):
        """Return the rate at `step_num`, over decay_steps and with `staircase` rounded down."""
        return schedules.natural_exp_decay.at(self._count(), self.learning_rate, self.decay_rate)


@pages.of(schedules.exponential_decay)
class ExponentialDecay(_Stretched):
    """η₀ r^(n/D); see `schedules.exponential_decay`.

    >>> rate = ExponentialDecay(0.5, decay_steps=2, decay_rate=0.5, staircase=True)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.5, 0.5, 0.25, 0.25]
    """

    def step(self):
        """Return the rate at `step_num`, over decay_steps and with `staircase` rounded down."""
        return schedules.exponential_decay.at(self._count(), self.learning_rate, self.decay_rate)


@pages.of(schedules.inverse_time_decay)
class InverseTimeDecay(_Stretched):
    """η₀ / (1 + r n/D); see `schedules.inverse_time_decay`.

    >>> rate = InverseTimeDecay(0.5, decay_steps=1, decay_rate=1.0)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.5, 0.25, 0.1667, 0.125]
    """

    def step(self):
        """Return the rate at `step_num`, over decay_steps and with `staircase` rounded down."""
        return schedules.inverse_time_decay.at(self._count(), self.learning_rate, self.decay_rate)


@pages.of(schedules.polynomial_decay)
class PolynomialDecay(LearningRateDecay):
    """A polynomial down to `end_learning_rate`, once or in cycles; see `schedules.polynomial_decay`.

    >>> rate = PolynomialDecay(0.5, decay_steps=4)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.5, 0.375, 0.2501, 0.1251]
    """

    _attributes = ("learning_rate", "decay_steps", "power", "end_learning_rate", "cycle")

    def __init__(
        self,
        learning_rate,
        decay_steps,
        end_learning_rate=0.0001,
        power=1.0,
        cycle=False,
        begin=0,
        step=1,
        dtype="float32",
    ):
        super().__init__(begin, step, dtype)
        self.learning_rate, self.decay_steps, self.power = learning_rate, decay_steps, power
        self.end_learning_rate, self.cycle = end_learning_rate, cycle

    def step(self):
        """Return the rate at `step_num`."""
        shape = self.decay_steps, self.end_learning_rate, self.power, self.cycle
        return schedules.polynomial_decay.at(self.step_num, self.learning_rate, *shape)


@pages.of(schedules.cosine_decay)
class CosineDecay(LearningRateDecay):
    """Half a cosine in steps, one per epoch of `step_each_epoch` steps; see `schedules.cosine_decay`.

    >>> rate = CosineDecay(0.5, step_each_epoch=1, epochs=4)
    >>> [round(float(rate()), 4) for _ in range(4)]
    [0.5, 0.4268, 0.25, 0.0732]
    """

    _attributes = ("learning_rate", "step_each_epoch", "epochs")

    def __init__(self, learning_rate, step_each_epoch, epochs, begin=0, step=1, dtype="float32"):
        super().__init__(begin, step, dtype)
        self.learning_rate, self.step_each_epoch, self.epochs = learning_rate, step_each_epoch, epochs

    def step(self):
        """Return the rate at `step_num`."""
        return schedules.cosine_decay.at(self.step_num, self.learning_rate, self.step_each_epoch, self.epochs)


INNER = Field("learning_rate", required=False)  # the state of a wrapped schedule


@pages.of(schedules.linear_warmup)
class LinearLrWarmup(LearningRateDecay):
    """A linear rise before a rate or another schedule; see `schedules.linear_warmup`.

    The rise begins at `start_lr`, as documented; Paddle 1.8.5 begins at 0. A wrapped schedule advances from
    the first step on, also during the rise, and does not start anew after it.

    >>> rate = LinearLrWarmup(0.5, 4, start_lr=0.0, end_lr=0.5, begin=0)
    >>> [float(rate()) for _ in range(5)]
    [0.0, 0.125, 0.25, 0.375, 0.5]
    """

    _attributes = ("learning_rate", "warmup_steps", "start_lr", "end_lr")

    @checked(learning_rate=instance(int | float | LearningRateDecay, "a float or a schedule"), end_lr=RISES)
    def __init__(self, learning_rate, warmup_steps, start_lr, end_lr, begin=1, step=1, dtype="float32"):
        super().__init__(begin, step, dtype)
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.start_lr, self.end_lr = start_lr, end_lr

    def step(self):
        """Return the rate at `step_num`; a decay inside is asked, and so counts, at every step."""
        inner = self.learning_rate
        rate = inner._rate() if isinstance(inner, LearningRateDecay) else inner
        return schedules.linear_warmup.at(self.step_num, rate, self.warmup_steps, self.start_lr, self.end_lr)

    def _advance(self, calls=1):
        super()._advance(calls)
        if isinstance(self.learning_rate, LearningRateDecay):
            self.learning_rate._advance(calls)

    @whole
    def state_dict(self):
        """Also the state of a wrapped schedule that moves on its own, which 1.8.5 loses."""
        state = super().state_dict()
        if isinstance(self.learning_rate, (LearningRateEpochDecay, ReduceLROnPlateau)):
            state[INNER.key] = self.learning_rate.state_dict()
        return state

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        before, inner, found = self.step_num, self.learning_rate, entries.read(INNER)
        own = super()._loading(entries, strict)
        yield next(own)
        if isinstance(inner, LearningRateDecay) and found is not None:
            inner.set_state_dict(found)  # before its own: the inner may be a user's and refuse it
        next(own, None)
        if isinstance(inner, LearningRateDecay) and found is None:
            # 1.8.5's state has no place for the wrapped schedule, but the two move in step.
            inner._advance(round((self.step_num - before) / (self.step_size or 1)))


class LearningRateEpochDecay(LearningRateDecay):
    """The base of schedules that only `.epoch()` moves; a subclass defines `get_lr`, the rate of an epoch."""

    counts = "epochs"
    _attributes = ("learning_rate", "base_lr", "epoch_num")

    @checked(learning_rate=BASE_RATE)
    def __init__(self, learning_rate, step=1, dtype="float32"):
        super().__init__(step=step, dtype=dtype)
        self.base_lr = float(learning_rate)
        self.epoch_num = -1
        self.epoch()

    def get_lr(self):
        """The rate at `epoch_num`."""
        raise NotImplementedError(f"{type(self).__name__} must define get_lr()")

    def epoch(self, epoch=None):
        """Advance to the next epoch, or to the one given, and take its rate."""
        self.epoch_num = self.epoch_num + 1 if epoch is None else epoch
        self.learning_rate = float(self._rounded(self.get_lr()))

    def step(self):
        """Return the rate of this epoch."""
        return self.learning_rate

    def _advance(self, calls=1):
        """A minimize leaves the epoch as it is."""

    def _state_keys(self):
        self.keys = ["epoch_num", "learning_rate"]


@pages.of(schedules.step_decay)
class StepDecay(LearningRateEpochDecay):
    """A factor every `step_size` epochs; see `schedules.step_decay`.

    >>> rate = StepDecay(0.5, step_size=1, decay_rate=0.5)
    >>> rate.epoch()
    >>> float(rate()), float(rate())
    (0.25, 0.25)
    """

    _attributes = ("decay_rate",)

    @checked(step_size=(instance(int, "an int"), NOT_ZERO), decay_rate=BELOW_ONE)
    def __init__(self, learning_rate, step_size, decay_rate=0.1):
        self.decay_rate = decay_rate
        super().__init__(learning_rate, step_size)  # counted in epochs here

    def get_lr(self):
        """Return the rate of epoch `epoch_num`."""
        return schedules.step_decay.at(self.epoch_num, self.base_lr, self.step_size, self.decay_rate)


@pages.of(schedules.multi_step_decay)
class MultiStepDecay(LearningRateEpochDecay):
    """A factor at every milestone; see `schedules.multi_step_decay`.

    >>> rate = MultiStepDecay(0.5, milestones=[1, 3], decay_rate=0.5)
    >>> [round(float(rate()), 4) for _ in range(4) if rate.epoch() is None]
    [0.25, 0.25, 0.125, 0.125]
    """

    _attributes = ("milestones", "decay_rate")

    @checked(milestones=RISING, decay_rate=BELOW_ONE)
    def __init__(self, learning_rate, milestones, decay_rate=0.1):
        self.milestones, self.decay_rate = milestones, decay_rate
        super().__init__(learning_rate)

    def get_lr(self):
        """Return the rate of epoch `epoch_num`."""
        return schedules.multi_step_decay.at(self.epoch_num, self.base_lr, self.milestones, self.decay_rate)


@pages.of(schedules.lambda_decay)
class LambdaDecay(LearningRateEpochDecay):
    """A function of the epoch times the rate; see `schedules.lambda_decay`.

    >>> rate = LambdaDecay(0.5, lambda epoch: 0.5**epoch)
    >>> [round(float(rate()), 4) for _ in range(4) if rate.epoch() is None]
    [0.25, 0.125, 0.0625, 0.0312]
    """

    _attributes = ("lr_lambda",)

    @checked(lr_lambda=function_of("the epoch"))
    def __init__(self, learning_rate, lr_lambda):
        self.lr_lambda = lr_lambda
        super().__init__(learning_rate)

    def get_lr(self):
        """Return the rate of epoch `epoch_num`."""
        return schedules.lambda_decay.at(self.epoch_num, self.base_lr, self.lr_lambda)


@pages.of(schedules.reduce_on_plateau)
class ReduceLROnPlateau(LearningRateDecay):
    """A rate that falls when a loss stops improving; see `schedules.reduce_on_plateau`.

    >>> rate = ReduceLROnPlateau(1.0, decay_rate=0.5, patience=0)
    >>> for loss in np.ones((2, 1)):
    ...     rate.step(loss)
    >>> float(rate())
    0.5
    """

    counts = "losses"
    _attributes = (
        "rule",
        "verbose",
        "learning_rate",
        "best_loss",
        "epoch_num",
        "num_bad_epochs",
        "cooldown_counter",
    )

    @checked(
        **MODES,
        decay_rate=(BELOW_ONE, FINITE),
        threshold=FINITE,
        min_lr=RATE,
        eps=FINITE,
        learning_rate=BASE_RATE,
    )
    def __init__(
        self,
        learning_rate,
        mode="min",
        decay_rate=0.1,
        patience=10,
        verbose=False,
        threshold=1e-4,
        threshold_mode="rel",
        cooldown=0,
        min_lr=0,
        eps=1e-8,
        dtype="float32",
    ):
        super().__init__(dtype=dtype)
        rule = (mode, decay_rate, patience, threshold, threshold_mode, cooldown, min_lr, eps)
        self.rule, self.verbose = schedules.PlateauRule.of(*rule), verbose
        self.learning_rate = float(learning_rate)
        self.best_loss = None
        self.epoch_num = self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, loss):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one loss: an array or loss of one element."""
        known = hasattr(loss, "shape") or hasattr(loss, "numpy")
        require(known, "loss", loss, "an array or a loss of one element", AttributeError)
        if hasattr(loss, "shape"):
            require(np.size(loss) == 1, "loss", loss, "one element", AssertionError)
            loss = np.reshape(loss, ())
        self.epoch_num += 1
        before = self.learning_rate
        moved = (before, self.best_loss, self.num_bad_epochs, self.cooldown_counter)
        moved = self.rule.step(float(loss), self.best_loss is not None, *moved)
        self.learning_rate, self.best_loss, self.num_bad_epochs, self.cooldown_counter = moved
        if self.verbose and self.learning_rate != before:
            print(f"Epoch {self.epoch_num}: reducing learning rate from {before} to {self.learning_rate}.")

    def current(self):
        """As in 1.8.5 there is none to ask for before the first minimize; `learning_rate` is the number."""
        raise TypeError("under ReduceLROnPlateau there is no current rate before the first minimize")

    def _rate(self):
        return self.learning_rate

    def _advance(self, calls=1):
        """A minimize changes nothing."""

    def _state_keys(self):
        self.keys = ["cooldown_counter", "best_loss", "num_bad_epochs", "epoch_num", "learning_rate"]


publish(globals())
