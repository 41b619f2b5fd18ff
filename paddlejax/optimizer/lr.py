"""Paddle's 18 learning-rate schedulers: objects that count, over the formulas of `paddlejax.schedules`.

All rates are Python floats. The constructor takes the first step, so a fresh scheduler stands at epoch 0.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from .. import attributes, schedules
from ..array_types import Numeric
from ..hyper import Must, Named, checked, instance, require
from ..pages import page, publish
from ..schedule import BASE_RATE
from ..tracing import check_outside
from .gate import alone, whole
from .ledger import AttributeField, DictField, Entries, Field, load, written
from .transaction import complete


def _whole(step: Callable[..., None]) -> Callable[..., None]:
    """A step that leaves its scheduler as it was if it is interrupted; after an error it has counted.

    It is made aside: who reads meanwhile, in another thread or a signal handler, finds what was before.
    """

    @alone
    @functools.wraps(step)
    def stepping(self: Any, *args: Any, **kwargs: Any) -> None:
        # There it would count once, while the program is made, and never again.
        check_outside(f"step of {type(self).__name__}", "call it outside, or use paddlejax.schedules")
        aside = object.__new__(type(self))
        vars(aside).update(vars(self))
        try:
            step(aside, *args, **kwargs)
        except Exception:
            vars(self).update(vars(aside))
            raise
        complete(lambda: vars(self).update(vars(aside)))

    return stepping


class LRScheduler(Named, attributes.Schedule):
    """The base of all schedulers; a subclass defines `get_lr` and may save more by overriding `state_keys`.

    >>> class Halving(LRScheduler):
    ...     def get_lr(self):
    ...         return self.base_lr * 0.5**self.last_epoch
    >>> halving = Halving(0.8)
    >>> halving.step(); halving()
    0.4
    """

    base_lr: Any
    last_lr: Any
    _attributes = ("last_epoch", "verbose", "keys")

    @checked(learning_rate=BASE_RATE)
    def __init__(self, learning_rate=0.1, last_epoch=-1, verbose=False):
        self.base_lr = self.last_lr = float(learning_rate)
        self.last_epoch = last_epoch
        self.verbose = verbose
        self._start()

    def _start(self):
        """Take the first step."""
        self.step()

    def __getstate__(self):
        """What it is now: a step replaces all at once."""
        return dict(vars(self))

    def __call__(self):
        """The rate in force; nothing is computed."""
        return self.last_lr

    def get_lr(self) -> Any:
        """The rate at `last_epoch`."""
        raise NotImplementedError(f"{type(self).__name__} must define get_lr()")

    @_whole
    def step(self, epoch: int | None = None) -> None:
        """Advance to the next epoch, or to the one given, and take its rate."""
        if epoch is None:
            self.last_epoch += 1
            self.last_lr = self.get_lr()
        else:
            require(isinstance(epoch, (int, float, np.number)), "epoch", epoch, "a number", TypeError)
            self.last_epoch = epoch
            self.last_lr = getattr(self, "_get_closed_form_lr", self.get_lr)()
        self._report()

    def _report(self):
        """Print the rate if `verbose`."""
        if self.verbose:
            print(f"Epoch {self.last_epoch}: {type(self).__name__} set learning rate to {self.last_lr}.")

    def state_keys(self):
        """Set `keys`, the names of the attributes to save."""
        self.keys = ["last_epoch", "last_lr"]

    @whole
    def state_dict(self):
        """The saved attributes; an array of one element becomes a float."""
        return written((f, vars(self)[f.key]) for f in self._fields() if f.key in vars(self))

    def set_state_dict(self, state_dict):
        """Restore what `state_dict` saved, or raise one error with all that is missing, and change nothing.

        A key that is not used is only warned of.
        """
        load(self._loading, state_dict, counters=False)

    def _fields(self) -> list[Field]:
        """Return the ledger's fields of the attributes that are saved."""
        self.state_keys()
        return [AttributeField(key) for key in self.keys]

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read the attributes, and after the `yield` take them over; entries that are unknown cause a
        warning."""
        found = {field.key: entries.read(field) for field in self._fields()}
        unused = sorted(entries.rest)
        entries.drop(*unused)
        yield
        if unused:
            warnings.warn(f"{type(self).__name__} does not use {unused} of state_dict", stacklevel=4)
        vars(self).update(found)

    def set_dict(self, state_dict):
        """The older name of `set_state_dict`."""
        self.set_state_dict(state_dict)


Rate = Numeric | LRScheduler  # what the optimizers take as learning_rate


class _Formula(LRScheduler):
    """A scheduler whose attributes are the arguments of a pure schedule, read anew at every step."""

    _family: ClassVar[Any]
    _base: ClassVar[str | None]

    def __init_subclass__(cls, family=None, base: str | None = "learning_rate", **others):
        """`base` is the argument of `family` that `base_lr` stands for; the others are attributes."""
        if family is not None:
            cls._family = staticmethod(family)  # a bare function would become a method
            cls._attributes = tuple(name for name in inspect.signature(family).parameters if name != base)
            cls._base = base
            cls.__doc__ = page(cls.__doc__, family)
        super().__init_subclass__(**others)

    def __init__(self, learning_rate, last_epoch, verbose):
        self._check(learning_rate)
        super().__init__(learning_rate, last_epoch, verbose)

    def _arguments(self, base_lr):
        """Return the arguments of the formula, from the attributes that hold them."""
        arguments = {name: getattr(self, name) for name in self._attributes}
        if self._base is not None:
            arguments[self._base] = base_lr
        return arguments

    def _check(self, base_lr=None):
        """Refuse bad arguments."""
        self._family.check(type(self).__name__, self._arguments(base_lr))

    def get_lr(self):
        """Return what the formula gives at this epoch."""
        return self._family.at(self.last_epoch, **self._arguments(self.base_lr))


class _FromTheLast(_Formula):
    """A scheduler that computes its rate from the last one, as Paddle does: a changed rate is carried on."""

    def _start(self):
        """Take the first step; with last_epoch=k the last rate is that of epoch k, where Paddle takes η₀."""
        if self.last_epoch >= 0:
            self.last_lr = super().get_lr()
        super()._start()


class NoamDecay(_Formula, family=schedules.noam_decay):
    """A linear rise, then a fall with the inverse square root of the epoch; see `schedules.noam_decay`.

    >>> NoamDecay(d_model=512, warmup_steps=10)()  # epoch 0
    0.0
    """

    def __init__(self, d_model, warmup_steps, learning_rate=1.0, last_epoch=-1, verbose=False):
        self.d_model, self.warmup_steps = d_model, warmup_steps
        super().__init__(learning_rate, last_epoch, verbose)


class PiecewiseDecay(_Formula, family=schedules.piecewise_decay, base=None):
    """A list of rates, each until the next boundary; see `schedules.piecewise_decay`.

    >>> PiecewiseDecay([3, 6], [0.1, 0.2, 0.3])()
    0.1
    """

    def __init__(self, boundaries, values, last_epoch=-1, verbose=False):
        self.boundaries, self.values = boundaries, values
        super().__init__(0.1, last_epoch, verbose)  # base_lr is never used


class NaturalExpDecay(_Formula, family=schedules.natural_exp_decay):
    """η₀ exp(-γ t); see `schedules.natural_exp_decay`.

    >>> scheduler = NaturalExpDecay(0.5, gamma=0.1)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.4524, 0.4094, 0.3704, 0.3352]
    """

    def __init__(self, learning_rate, gamma, last_epoch=-1, verbose=False):
        self.gamma = gamma
        super().__init__(learning_rate, last_epoch, verbose)


class InverseTimeDecay(_Formula, family=schedules.inverse_time_decay):
    """η₀ / (1 + γ t); see `schedules.inverse_time_decay`.

    >>> scheduler = InverseTimeDecay(0.5, gamma=1.0)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.1667, 0.125, 0.1]
    """

    def __init__(self, learning_rate, gamma, last_epoch=-1, verbose=False):
        self.gamma = gamma
        super().__init__(learning_rate, last_epoch, verbose)


class PolynomialDecay(_Formula, family=schedules.polynomial_decay):
    """A polynomial down to `end_lr`, once or in cycles; see `schedules.polynomial_decay`.

    >>> scheduler = PolynomialDecay(0.5, decay_steps=4)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.375, 0.25, 0.1251, 0.0001]
    """

    def __init__(
        self, learning_rate, decay_steps, end_lr=0.0001, power=1.0, cycle=False, last_epoch=-1, verbose=False
    ):
        self.decay_steps, self.end_lr, self.power, self.cycle = decay_steps, end_lr, power, cycle
        super().__init__(learning_rate, last_epoch, verbose)


INNER = DictField("LinearWarmup_LR")  # Paddle's name for the state of the scheduler inside


class LinearWarmup(_Formula, family=schedules.linear_warmup, base=None):
    """A linear rise before a number or another scheduler, which it drives; see `schedules.linear_warmup`.

    The inner scheduler stands still during the rise and is then given its epochs one by one, from 0.

    >>> warmup = LinearWarmup(ExponentialDecay(0.4, 0.5), 4, start_lr=0.0, end_lr=0.4)
    >>> warmup.step(5); warmup()
    0.2
    """

    @checked(
        learning_rate=(
            instance(int | float | LRScheduler, "a float or a scheduler"),
            # It would take the epochs it is given for metrics.
            Must(lambda rate: not isinstance(rate, ReduceOnPlateau), "a scheduler that counts epochs"),
        )
    )
    def __init__(self, learning_rate, warmup_steps, start_lr, end_lr, last_epoch=-1, verbose=False):
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.start_lr, self.end_lr = start_lr, end_lr
        super().__init__(start_lr, last_epoch, verbose)

    def get_lr(self):
        """Return the rate of the ramp; after it a scheduler inside runs on and gives its own rate."""
        arguments, inner = self._arguments(self.base_lr), self.learning_rate
        if isinstance(inner, LRScheduler):
            if self.last_epoch >= self.warmup_steps:
                inner.step(self.last_epoch - self.warmup_steps)
            arguments["learning_rate"] = inner()
        return self._family.at(self.last_epoch, **arguments)

    @whole
    def state_dict(self):
        """Return the state, with that of a scheduler inside."""
        state = super().state_dict()
        if isinstance(self.learning_rate, LRScheduler):
            state[INNER.key] = self.learning_rate.state_dict()
        return state

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read and take over the state, and that of a scheduler inside."""
        inner = self.learning_rate
        found = entries.read(INNER) if isinstance(inner, LRScheduler) else None
        own = super()._loading(entries, strict)
        yield next(own)
        if isinstance(inner, LRScheduler):
            inner.set_state_dict(found)  # before its own: the inner may be a user's and refuse it
        next(own, None)


class ExponentialDecay(_Formula, family=schedules.exponential_decay):
    """η₀ γᵗ; see `schedules.exponential_decay`.

    >>> scheduler = ExponentialDecay(0.5, gamma=0.5)
    >>> scheduler.step(); scheduler()
    0.25
    """

    def __init__(self, learning_rate, gamma, last_epoch=-1, verbose=False):
        self.gamma = gamma
        super().__init__(learning_rate, last_epoch, verbose)


class MultiStepDecay(_Formula, family=schedules.multi_step_decay):
    """A factor at every milestone; see `schedules.multi_step_decay`.

    >>> scheduler = MultiStepDecay(0.5, milestones=[1, 3], gamma=0.5)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.25, 0.125, 0.125]
    """

    def __init__(self, learning_rate, milestones, gamma=0.1, last_epoch=-1, verbose=False):
        self.milestones, self.gamma = milestones, gamma
        super().__init__(learning_rate, last_epoch, verbose)


class StepDecay(_Formula, family=schedules.step_decay):
    """A factor every `step_size` epochs; see `schedules.step_decay`.

    >>> scheduler = StepDecay(0.5, step_size=2, gamma=0.5)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.5, 0.25, 0.25, 0.125]
    """

    def __init__(self, learning_rate, step_size, gamma=0.1, last_epoch=-1, verbose=False):
        self.step_size, self.gamma = step_size, gamma
        super().__init__(learning_rate, last_epoch, verbose)


class LambdaDecay(_Formula, family=schedules.lambda_decay):
    """A function of the epoch times the rate; see `schedules.lambda_decay`. The function is not saved.

    >>> scheduler = LambdaDecay(0.5, lambda epoch: 0.5**epoch)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.125, 0.0625, 0.0312]
    """

    def __init__(self, learning_rate, lr_lambda, last_epoch=-1, verbose=False):
        self.lr_lambda = lr_lambda
        super().__init__(learning_rate, last_epoch, verbose)


class MultiplicativeDecay(_Formula, family=schedules.multiplicative_decay):
    """The product of a function of all epochs so far; see `schedules.multiplicative_decay`.

    >>> scheduler = MultiplicativeDecay(0.5, lambda epoch: 0.5)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.125, 0.0625, 0.0312]
    """

    _known: tuple[Any, ...]  # epoch, base rate and function of the last step, and its rate

    def __init__(self, learning_rate, lr_lambda, last_epoch=-1, verbose=False):
        self.lr_lambda = lr_lambda
        self._known = ()
        super().__init__(learning_rate, last_epoch, verbose)

    def get_lr(self):
        """Return the last rate times one more factor; after a jump, the whole product."""
        # One factor more than at the epoch before: from the start, a step would cost more the later it is.
        before = (self.last_epoch - 1, self.base_lr, self.lr_lambda)
        known = self._known[:3] == before
        rate = self._known[3] * self.lr_lambda(self.last_epoch) if known else super().get_lr()
        self._known = (self.last_epoch, self.base_lr, self.lr_lambda, rate)
        return rate


class CosineAnnealingDecay(_FromTheLast, family=schedules.cosine_annealing_decay):
    """A cosine between the rate and `eta_min`; see `schedules.cosine_annealing_decay`.

    As in Paddle and torch, `step()` derives the rate from the last one, so that a changed `last_lr` is
    carried on; `step(epoch)` uses the closed form. The two agree, with last_epoch=k too.

    >>> scheduler = CosineAnnealingDecay(0.5, T_max=2)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.0, 0.25, 0.5]
    """

    def __init__(self, learning_rate, T_max, eta_min=0, last_epoch=-1, verbose=False):
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(learning_rate, last_epoch, verbose)

    def get_lr(self):
        """Return the rate computed from the last rate."""
        t, low, last = self.last_epoch, self.eta_min, self.last_lr
        if t == 0:
            return self.base_lr
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:  # the last rate is the lowest: nothing to scale
            return last + (self.base_lr - low) * (1 - math.cos(math.pi / self.T_max)) / 2
        now, before = (1 + math.cos(math.pi * k / self.T_max) for k in (t, t - 1))
        return now / before * (last - low) + low

    def _get_closed_form_lr(self):
        """Return the rate computed from the epoch alone."""
        return super().get_lr()


class LinearLR(_FromTheLast, family=schedules.linear_lr):
    """A line from one multiple of the rate to another; see `schedules.linear_lr`.

    As in Paddle every step, `step(epoch)` too, applies one factor to the last rate: a jump leaves the line.
    With last_epoch=k it starts on the line, at epoch k + 1.

    >>> scheduler = LinearLR(0.5, total_steps=2, start_factor=0.5)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.375, 0.5, 0.5, 0.5]
    """

    def __init__(
        self, learning_rate, total_steps, start_factor=1.0 / 3, end_factor=1.0, last_epoch=-1, verbose=False
    ):
        self.total_steps, self.start_factor, self.end_factor = total_steps, start_factor, end_factor
        super().__init__(learning_rate, last_epoch, verbose)

    def get_lr(self):
        """Return the rate computed from the last rate."""
        if self.last_epoch == 0:
            return self.base_lr * self.start_factor
        if self.last_epoch > self.total_steps:
            return self.last_lr
        rise = self.end_factor - self.start_factor
        return self.last_lr * (
            1 + rise / (self.total_steps * self.start_factor + (self.last_epoch - 1) * rise)
        )


class OneCycleLR(_Formula, family=schedules.one_cycle_lr, base=None):
    """One rise and one fall in `total_steps`, beyond which `step` raises; see `schedules.one_cycle_lr`.

    >>> scheduler = OneCycleLR(1.0, total_steps=4)
    >>> [round(scheduler(), 4) for _ in range(3) if scheduler.step() is None]
    [0.8118, 0.2831, 0.0001]
    """

    def __init__(
        self,
        max_learning_rate,
        total_steps,
        divide_factor=25.0,
        end_learning_rate=0.0001,
        phase_pct=0.3,
        anneal_strategy="cos",
        three_phase=False,
        last_epoch=-1,
        verbose=False,
    ):
        self.max_learning_rate, self.end_learning_rate = max_learning_rate, end_learning_rate
        self.total_steps, self.divide_factor, self.phase_pct = total_steps, divide_factor, phase_pct
        self.anneal_strategy, self.three_phase = anneal_strategy, three_phase
        self._check()
        super().__init__(max_learning_rate / divide_factor, last_epoch, verbose)

    def get_lr(self):
        """Return the rate; an epoch after the end of the cycle is an error."""
        last, total = self.last_epoch, self.total_steps
        require(last <= total, "epoch", last, f"at most total_steps, {total}", ValueError)
        return super().get_lr()


class CyclicLR(_Formula, family=schedules.cyclic_lr, base="base_learning_rate"):
    """Up and down between two rates; see `schedules.cyclic_lr`.

    Its attributes are the arguments and, as in Paddle, `max_lr`, `amplitude`, `cycle_size`, `step_up_pct`,
    `gamma`, and in `scale_fn` the function that is in force.

    >>> cyclic = CyclicLR(0.5, 1.0, step_size_up=2)
    >>> cyclic.step(); cyclic()
    0.75
    """

    def __init__(
        self,
        base_learning_rate,
        max_learning_rate,
        step_size_up,
        step_size_down=None,
        mode="triangular",
        exp_gamma=1.0,
        scale_fn=None,
        scale_mode="cycle",
        last_epoch=-1,
        verbose=False,
    ):
        self.max_learning_rate, self.mode, self.exp_gamma = max_learning_rate, mode, exp_gamma
        self.step_size_up, self.step_size_down = step_size_up, step_size_down
        self.scale_fn, self.scale_mode = scale_fn, scale_mode
        self._check(base_learning_rate)  # while None still says that no function was given
        if scale_fn is None:
            self.scale_fn = self._scale_of_mode
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        super().__init__(base_learning_rate, last_epoch, verbose)

    def _scale_of_mode(self, x):
        """Return the height of cycle x, or at count x where `mode` is exp_range."""
        if self.mode == "triangular":
            return 1.0
        return 1 / 2.0 ** (x - 1) if self.mode == "triangular2" else self.exp_gamma**x

    @property
    def max_lr(self):
        """The larger rate."""
        return float(self.max_learning_rate)

    @max_lr.setter
    def max_lr(self, max_lr):
        """Set `max_learning_rate`."""
        self.max_learning_rate = max_lr

    @property
    def amplitude(self):
        """How far the two rates lie apart."""
        return self.max_learning_rate - self.base_lr

    @amplitude.setter
    def amplitude(self, amplitude):
        """Set the larger rate."""
        self.max_learning_rate = self.base_lr + amplitude

    @property
    def gamma(self):
        """The base of the power in mode exp_range."""
        return self.exp_gamma

    @gamma.setter
    def gamma(self, gamma):
        """Set `exp_gamma`."""
        self.exp_gamma = gamma

    @property
    def cycle_size(self):
        """The number of steps of a cycle."""
        return float(self.step_size_up + (self.step_size_down or self.step_size_up))

    @property
    def step_up_pct(self):
        """The part of a cycle in which the rate rises."""
        return self.step_size_up / self.cycle_size


CYCLE = ("T_cur", "T_i")


class CosineAnnealingWarmRestarts(_Formula, family=schedules.cosine_annealing_warm_restarts):
    """Half a cosine again and again, in ever longer cycles; see `schedules.cosine_annealing_warm_restarts`.

    Unlike Paddle's its state holds the place in the cycle, `T_cur` and `T_i`, so it resumes exactly; from
    Paddle's own state the two are counted. As in Paddle a jump `step(epoch)` may be fractional, and with
    `T_mult > 1` a rounded logarithm may take it to the end of a cycle instead of the first epoch of the next.

    >>> scheduler = CosineAnnealingWarmRestarts(0.5, T_0=2)
    >>> [round(scheduler(), 4) for _ in range(4) if scheduler.step() is None]
    [0.25, 0.5, 0.25, 0.5]
    """

    T_i: Any
    T_cur: Any

    def __init__(self, learning_rate, T_0, T_mult=1, eta_min=0, last_epoch=-1, verbose=False):
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        self.T_i, self.T_cur = T_0, last_epoch
        super().__init__(learning_rate, last_epoch, verbose)

    def _start(self):
        """Take the first step; with last_epoch=k from where epoch k lies, in whichever cycle."""
        if self.last_epoch >= 0:
            vars(self).update(self._counted())
        super()._start()

    def get_lr(self):
        """Return the rate at this place of the cycle."""
        return schedules.cosine_annealing_decay.at(self.T_cur, self.base_lr, self.T_i, self.eta_min)

    @_whole
    def step(self, epoch=None):
        """Go to the next epoch, or to this one, which may have a fraction."""
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch += 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur -= self.T_i
                self.T_i *= self.T_mult
        else:
            epoch = 0 if epoch is None else epoch
            require(epoch >= 0, "epoch", epoch, "a number of at least 0", ValueError)
            self.last_epoch = math.floor(epoch)
            self._jump(epoch)
        self.last_lr = self.get_lr()
        self._report()

    def _jump(self, epoch):
        """Find the cycle that this epoch lies in, and the place in it."""
        if epoch < self.T_0:
            self.T_cur, self.T_i = epoch, self.T_0
        elif self.T_mult == 1:
            self.T_cur = epoch % self.T_0
        else:
            cycle = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
            self.T_cur = epoch - self.T_0 * (self.T_mult**cycle - 1) / (self.T_mult - 1)
            self.T_i = self.T_0 * self.T_mult**cycle

    @whole
    def state_dict(self):
        """Return the state, with the place in the cycle."""
        return super().state_dict() | {key: getattr(self, key) for key in CYCLE}

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read and take over the state; a state without the place in the cycle counts it from the epoch."""
        told = any(map(entries.has, CYCLE))
        cycle = {key: entries.read(Field(key, required=told)) for key in CYCLE}
        yield from super()._loading(entries, strict)
        vars(self).update(cycle if told else self._counted())

    def _counted(self) -> dict[str, Any]:
        """The place in the cycle at `last_epoch`, and the cycle's length."""
        place, length = self.last_epoch, self.T_0
        while place >= length and self.T_mult > 1:
            place, length = place - length, length * self.T_mult
        return {"T_cur": place % length, "T_i": length}


class ReduceOnPlateau(LRScheduler):
    """A rate that falls when a metric stops improving; see `schedules.reduce_on_plateau`.

    >>> plateau = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    >>> plateau.step(3.0); plateau.step(3.0); plateau()
    0.5
    """

    _attributes = ("best", "num_bad_epochs", "cooldown_counter", *schedules.PlateauRule._fields)

    @checked(**schedules.PLATEAU, learning_rate=BASE_RATE)
    def __init__(
        self,
        learning_rate,
        mode="min",
        factor=0.1,
        patience=10,
        threshold=1e-4,
        threshold_mode="rel",
        cooldown=0,
        min_lr=0,
        epsilon=1e-8,
        verbose=False,
    ):
        rule = (mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, epsilon)
        self.__dict__.update(schedules.PlateauRule.of(*rule)._asdict())
        self.verbose = verbose
        self.base_lr = self.last_lr = float(learning_rate)
        self.best = None
        self.last_epoch = self.num_bad_epochs = self.cooldown_counter = 0  # no first step: there is no metric

    def state_keys(self):
        """Say which attributes are saved: more than the base's."""
        self.keys = ["cooldown_counter", "best", "num_bad_epochs", "last_epoch", "last_lr"]

    @_whole
    def step(self, metrics, epoch=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one metric: a number, or an array or loss of one element."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        before = self.last_lr
        rule = schedules.PlateauRule(*(getattr(self, name) for name in schedules.PlateauRule._fields))
        moved = (before, self.best, self.num_bad_epochs, self.cooldown_counter)
        moved = rule.step(_metric(metrics), self.best is not None, *moved)
        self.last_lr, self.best, self.num_bad_epochs, self.cooldown_counter = moved
        if self.last_lr != before:
            self._report()


def _metric(x: Any):
    """Return a metric that can be compared: a float, or an array of one element; raise on anything else."""
    if hasattr(x, "numpy"):  # a loss
        return float(x)
    if isinstance(x, (jax.Array, np.ndarray)):
        require(x.size == 1, "metrics", x, "one element", AssertionError)
        # It may become the best, which must not follow the caller's array.
        x = x.copy() if isinstance(x, np.ndarray) else x
    else:
        known = isinstance(x, (int, float)) or type(x) is np.float32
        require(known, "metrics", x, "a float, or an array or loss of one element", TypeError)
    return x


publish(globals())
