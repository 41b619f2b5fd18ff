"""Learning-rate schedules: pure functions `count -> rate`, each formula written once.

The classes of `paddlejax.optimizer.lr` and `paddlejax.fluid.dygraph` count, and ask these functions for the
number. The file is long because it is the whole table: per schedule its formula, its page and its checks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .hyper import Check, Interval, Must, checked, function_of, instance, one_of, optional, unless
from .pages import publish
from .schedule import (
    DOUBLES,
    RATE,
    RISES,
    RISING,
    SEQUENCE,
    Arrays,
    Scalar,
    Schedule,
    is_array,
    number_like,
    real,
    schedule_family,
    steps,
)
from .trees import at_params, next_count
from .wrap import check_state

NOT_ZERO = Must(lambda x: is_array(x) or x != 0, "a number above 0", ZeroDivisionError)
FINITE = real(above=True, open=True, error=ValueError)
BELOW_ONE = real(high=1, open=True, error=ValueError)


def _half_cosine(m, angle, high, low):
    """From `high` at angle 0 to `low` at angle π along half a cosine."""
    return low + (high - low) * (1 + m.cos(angle)) / 2


def _pick(m, t, bounds, values):
    """The value of the first bound above t, else the last value."""
    picked = values[-1]
    for bound, value in reversed(list(zip(bounds, values, strict=False))):
        picked = m.where(m.less(t, bound), value, picked)
    return picked


@schedule_family(
    d_model=real(0, above=True, error=ValueError),
    warmup_steps=(NOT_ZERO, real(0, above=True, error=TypeError)),
)
def noam_decay(m: Any, t: Any, d_model: Scalar, warmup_steps: Scalar, learning_rate: Scalar = 1.0):
    """Rise linearly for `warmup_steps`, then fall with the inverse square root of the count.

        η(t) = η₀ d⁻¹ᐟ² min(t⁻¹ᐟ², t w⁻³ᐟ²)

    The rate is 0 at count 0, where Paddle's page divides by zero.

    >>> round(noam_decay(d_model=512, warmup_steps=10)(10), 6)
    0.013975
    """
    t = m.real(t)
    return learning_rate * d_model**-0.5 * m.minimum(m.maximum(t, 1.0) ** -0.5, t * warmup_steps**-1.5)


@schedule_family(
    boundaries=(SEQUENCE, Must(len, "at least one boundary", ValueError)),
    values=(
        SEQUENCE,
        Must(
            lambda values, boundaries: len(values) > len(boundaries),
            "one more value than boundaries",
            ValueError,
        ),
    ),
)
def piecewise_decay(m: Any, t: Any, boundaries: Sequence[Scalar], values: Sequence[Any]):
    """Hold each of `values` until the count reaches the next of `boundaries`.

        η(t) = values[i] for the first i with t < boundaries[i], else the last value

    optax.piecewise_constant_schedule takes factors instead of values.

    >>> [piecewise_decay([2, 4], [0.1, 0.2, 0.3])(t) for t in (1, 2, 4)]
    [0.1, 0.2, 0.3]
    """
    return _pick(m, t, boundaries, values)


@schedule_family(gamma=real(0, above=True, error=AssertionError))
def natural_exp_decay(m: Any, t: Any, learning_rate: Scalar, gamma: Scalar):
    """Decay exponentially at the rate `gamma`.

        η(t) = η₀ exp(-γ t)

    >>> round(natural_exp_decay(0.5, gamma=0.1)(10), 6)
    0.18394
    """
    return learning_rate * m.exp(-gamma * m.real(t))


@schedule_family(gamma=number_like(int, float, np.number))
def inverse_time_decay(m: Any, t: Any, learning_rate: Scalar, gamma: Scalar):
    """Decay with the inverse of the count.

        η(t) = η₀ / (1 + γ t)

    >>> inverse_time_decay(0.5, gamma=0.1)(10)
    0.25
    """
    return learning_rate / (1 + gamma * m.real(t))


@schedule_family(
    decay_steps=steps(AssertionError, AssertionError), power=real(0, above=True, error=AssertionError)
)
def polynomial_decay(
    m: Any,
    t: Any,
    learning_rate: Scalar,
    decay_steps: Scalar,
    end_lr: Scalar = 0.0001,
    power: Scalar = 1.0,
    cycle: bool = False,
):
    """Fall to `end_lr` along a polynomial, once or in ever longer cycles.

        η(t) = (η₀ - η₁) (1 - u/N)ᵖ + η₁      u = min(t, D), N = D;  cycle: u = t, N = D ⌈t/D⌉

    With `cycle` the rate rises again at t = kD + 1, not at kD. torch's PolynomialLR ends at 0; neither it nor
    optax.polynomial_schedule cycles.

    >>> [round(polynomial_decay(0.5, 20, end_lr=0.1)(t), 6) for t in (0, 10, 30)]
    [0.5, 0.3, 0.1]
    """
    whole = decay_steps * m.maximum(-(-t // decay_steps), 1) if cycle else decay_steps
    return (learning_rate - end_lr) * m.left(m.minimum(t, whole), whole) ** power + end_lr


@schedule_family(
    learning_rate=(
        instance((Callable, int, float, np.number, jax.Array, np.ndarray), "a number or a schedule"),
        unless(callable, *RATE),
    ),
    warmup_steps=steps(AssertionError, AssertionError),
    start_lr=RATE,
    end_lr=(RATE[0], RISES),
)
def linear_warmup(
    m: Any, t: Any, learning_rate: Scalar | Schedule, warmup_steps: Scalar, start_lr: Scalar, end_lr: Scalar
):
    """Rise linearly, then follow `learning_rate`: a number, an array or a schedule.

        η(t) = η₀ + (η₁ - η₀) t/W  for t < W, then learning_rate(t - W)

    The schedule starts at 0 after the ramp, which ends at `end_lr` whatever the schedule starts with.

    >>> ramp = linear_warmup(exponential_decay(0.4, 0.5), 4, start_lr=0.0, end_lr=0.4)
    >>> [round(ramp(t), 6) for t in (0, 1, 4, 5)]
    [0.0, 0.1, 0.4, 0.2]
    """
    after = _follow(m, learning_rate, t, warmup_steps)
    return m.where(m.less(t, warmup_steps), (end_lr - start_lr) * m.real(t) / warmup_steps + start_lr, after)


def _follow(m, schedule, t, start):
    """What a number or a schedule that begins at `start` gives; before that, its first rate."""
    return m.real(schedule(m.maximum(t - start, 0)) if callable(schedule) else schedule)


def warmup(
    learning_rate: Scalar | Schedule,
    warmup_steps: Scalar,
    start_lr: Scalar = 0.0,
    end_lr: Scalar | None = None,
) -> Schedule:
    """Put a linear warm-up before a number, an array or any schedule, optax's too.

    `linear_warmup` with defaults: from 0 to the first rate of what follows. A rate that lives in a state, as
    `reduce_on_plateau`'s does, warms up by being passed as an array.

    >>> [round(warmup(cosine_annealing_decay(0.4, T_max=8), 4)(t), 6) for t in (0, 2, 4, 12)]
    [0.0, 0.2, 0.4, 0.0]
    """
    first: Any = learning_rate(0) if callable(learning_rate) else learning_rate
    return linear_warmup(learning_rate, warmup_steps, start_lr, first if end_lr is None else end_lr)


@schedule_family(
    schedules=Must(
        lambda schedules, boundaries: len(schedules) == len(boundaries) + 1,
        "one more than boundaries",
        ValueError,
    ),
    boundaries=RISING,
)
def join(m: Any, t: Any, schedules: Sequence[Schedule | Scalar], boundaries: Sequence[int]):
    """Run schedules one after the other, each counting from its own beginning; a number stands for itself.

        η(t) = schedulesᵢ(t - boundariesᵢ₋₁)  for boundariesᵢ₋₁ ≤ t < boundariesᵢ

    >>> rate = join([0.1, polynomial_decay(0.1, 4, end_lr=0.0)], boundaries=[2])
    >>> [round(rate(t), 6) for t in (0, 2, 4, 6)]
    [0.1, 0.1, 0.05, 0.0]
    """
    rate = _follow(m, schedules[0], t, 0)
    for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
        rate = m.where(m.less(t, boundary), rate, _follow(m, schedule, t, boundary))
    return rate


@schedule_family(gamma=real(0, 1, open=True, above=True, error=AssertionError))
def exponential_decay(m: Any, t: Any, learning_rate: Scalar, gamma: Scalar):
    """Multiply by `gamma` at every count.

        η(t) = η₀ γᵗ

    optax.exponential_decay stretches this over `transition_steps`; Paddle and torch have none.

    >>> exponential_decay(0.5, gamma=0.5)(3)
    0.0625
    """
    return learning_rate * m.power(gamma, t)


@schedule_family(milestones=RISING, gamma=BELOW_ONE)
def multi_step_decay(m: Any, t: Any, learning_rate: Scalar, milestones: Sequence[int], gamma: Scalar = 0.1):
    """Multiply by `gamma` at every one of `milestones`.

        η(t) = η₀ γⁱ, i the number of milestones ≤ t

    >>> [multi_step_decay(0.5, [2, 4], gamma=0.5)(t) for t in (1, 2, 4)]
    [0.5, 0.25, 0.125]
    """
    return _pick(m, t, milestones, [learning_rate * gamma**i for i in range(len(milestones) + 1)])


@schedule_family(step_size=steps(TypeError, AssertionError), gamma=BELOW_ONE)
def step_decay(m: Any, t: Any, learning_rate: Scalar, step_size: Scalar, gamma: Scalar = 0.1):
    """Multiply by `gamma` every `step_size` counts.

        η(t) = η₀ γ^⌊t/s⌋

    >>> [step_decay(0.5, step_size=2, gamma=0.5)(t) for t in (1, 2, 4)]
    [0.5, 0.25, 0.125]
    """
    return learning_rate * m.power(gamma, t // step_size)


@schedule_family(lr_lambda=function_of("the count"))
def lambda_decay(m: Any, t: Any, learning_rate: Scalar, lr_lambda: Callable[[Any], Any]):
    """Multiply the rate by a function of the count.

        η(t) = η₀ f(t)

    For an array count, f sees it as floats, so that `0.95 ** e` works under strict promotion.

    >>> lambda_decay(0.5, lambda e: 1 / (1 + e))(4)
    0.1
    """
    return learning_rate * m.real(lr_lambda(m.shown(t)))


@schedule_family(lr_lambda=function_of("the count"))
def multiplicative_decay(m: Any, t: Any, learning_rate: Scalar, lr_lambda: Callable[[Any], Any]):
    """Multiply the rate by a function of the count, again and again.

        η(t) = η₀ f(1) f(2) ⋯ f(t)

    There is no closed form: the product costs t evaluations of f, as in Paddle's class, in a loop that JAX
    cannot differentiate backwards. For an array count, f sees floats.

    >>> multiplicative_decay(0.5, lambda e: 0.5)(3)
    0.0625
    """
    return m.product(learning_rate, lr_lambda, t)


@schedule_family(T_max=steps(TypeError, AssertionError), eta_min=number_like(int, float))
def cosine_annealing_decay(m: Any, t: Any, learning_rate: Scalar, T_max: Scalar, eta_min: Scalar = 0):
    """Swing between the rate and `eta_min` along a cosine.

        η(t) = η₁ + (η₀ - η₁) (1 + cos(π t/T)) / 2

    After `T_max` the rate climbs back, as in torch; optax.cosine_decay_schedule stays at the bottom.

    >>> [round(cosine_annealing_decay(0.5, T_max=10)(t), 6) for t in (0, 5, 10, 20)]
    [0.5, 0.25, 0.0, 0.5]
    """
    return _half_cosine(m, m.angle(t, T_max), learning_rate, eta_min)


@schedule_family(T_0=steps(ValueError, ValueError), T_mult=steps(ValueError, ValueError))
def cosine_annealing_warm_restarts(
    m: Any, t: Any, learning_rate: Scalar, T_0: Scalar, T_mult: int = 1, eta_min: Scalar = 0
):
    """Fall along half a cosine and restart, each cycle `T_mult` times as long as the one before.

        η(t) = η₁ + (η₀ - η₁) (1 + cos(π t′/T)) / 2,  t′ counted within the cycle of length T

    optax.sgdr_schedule takes a list of cycles instead; torch's CosineAnnealingWarmRestarts is the same.

    >>> [round(cosine_annealing_warm_restarts(0.5, T_0=4, T_mult=2)(t), 6) for t in (0, 2, 4, 8, 12)]
    [0.5, 0.25, 0.5, 0.25, 0.5]
    """
    begin, length = t // T_0 * T_0, T_0
    if T_mult > 1:
        # Comparing counts is exact where a logarithm rounds; counts beyond int32 stay in the last cycle.
        begins, lengths = [0], [float(T_0)]  # the last length may be beyond int32 too
        while (end := begins[-1] + int(lengths[-1])) < 2**31:
            begins.append(end)
            lengths.append(lengths[-1] * T_mult)
        begin, length = _pick(m, t, begins[1:], begins), _pick(m, t, begins[1:], lengths)
    return _half_cosine(m, math.pi * m.real(t - begin) / m.real(length), learning_rate, eta_min)


@schedule_family(
    max_learning_rate=RATE,
    end_learning_rate=RATE,
    total_steps=steps(TypeError, ValueError),
    phase_pct=(
        instance(float, "a float"),
        Interval(0, 1, error=ValueError),
        Must(
            lambda pct, three_phase: not three_phase or pct < 0.5,
            "a float below 0.5 for three phases",
            ValueError,
        ),
        Must(
            lambda pct, total_steps: pct * total_steps != 1,
            "a first phase of more or less than one step",
            ZeroDivisionError,
        ),
    ),
    divide_factor=(number_like(int, float), NOT_ZERO),
    anneal_strategy=one_of("cos", "linear", error=ValueError),
)
def one_cycle_lr(
    m: Any,
    t: Any,
    max_learning_rate: Scalar,
    total_steps: Scalar,
    divide_factor: Scalar = 25.0,
    end_learning_rate: Scalar = 0.0001,
    phase_pct: Scalar = 0.3,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
):
    """Rise to the largest rate and fall below the first one, in two or three phases.

        knots 0, pN - 1, N - 1            rates η/f, η, η₁
        knots 0, pN - 1, 2pN - 2, N - 1   rates η/f, η, η/f, η₁   (three_phase)

    Between knots the rate moves along half a cosine or a line. Count N is one past the end: there, as in
    Paddle, the cosine goes on; a line stays at η₁, where Paddle's falls below 0. Beyond N the class raises
    and this function stays at `end_learning_rate`.
    torch gives the last rate as a divisor and cycles momentum too.

    >>> [round(one_cycle_lr(1.0, total_steps=10, phase_pct=0.5)(t), 4) for t in (0, 2, 4, 9)]
    [0.04, 0.52, 1.0, 0.0001]
    """
    first, n, p = max_learning_rate / divide_factor, total_steps, phase_pct
    knots = [0, p * n - 1, 2 * p * n - 2, n - 1] if three_phase else [0, p * n - 1, n - 1]
    rates = [first, max_learning_rate, *([first] if three_phase else []), end_learning_rate]
    x = m.real(t)

    # With phase_pct = 1 the last phase has no length and nothing but count N in it.
    phases = list(zip(knots, knots[1:], rates, rates[1:], strict=False))
    rows = [(begin, end - begin or 1.0, low, high) for begin, end, low, high in phases]
    start, length, low, high = m.row(x, knots[1:], rows)
    q = (x - start) / length
    if anneal_strategy == "cos":
        rate = _half_cosine(m, math.pi * q, low, high)
    else:
        rate = (high - low) * m.minimum(q, 1.0) + low
    return m.where(x <= n, rate, end_learning_rate)


@schedule_family(
    max_learning_rate=RATE,
    step_size_up=steps(TypeError, ValueError),
    step_size_down=optional(*steps(TypeError, ValueError)),
    exp_gamma=number_like(float, expected="a float"),
    mode=unless(
        lambda mode, scale_fn: scale_fn is not None,
        one_of("triangular", "triangular2", "exp_range", error=ValueError),
    ),
    scale_mode=one_of("cycle", "iterations", error=ValueError),
    base_learning_rate=RATE,
)
def cyclic_lr(
    m: Any,
    t: Any,
    base_learning_rate: Scalar,
    max_learning_rate: Scalar,
    step_size_up: Scalar,
    step_size_down: int | None = None,
    mode: str = "triangular",
    exp_gamma: Scalar = 1.0,
    scale_fn: Callable | None = None,
    scale_mode: str = "cycle",
):
    """Go up and down between two rates, in cycles whose height may shrink.

        η(t) = η₀ + (η₁ - η₀) h s
        h = min(x/u, (u + d - x)/d), x counted within the cycle c = 1, 2, ... of u steps up and d down
        s = 1 (triangular), 2^(1-c) (triangular2), γᵗ (exp_range), scale_fn(c) or scale_fn(t) ("iterations")

    torch's CyclicLR cycles momentum too. For an array count, scale_fn sees floats.

    >>> [round(cyclic_lr(0.1, 0.5, step_size_up=2, mode="triangular2")(t), 6) for t in (0, 1, 2, 4, 6)]
    [0.1, 0.3, 0.5, 0.1, 0.3]
    """
    down = step_size_up if step_size_down is None else step_size_down
    cycle, x = m.turn(t, step_size_up + down)
    peak = step_size_up / (step_size_up + down)
    part = m.where(x <= peak, x / peak, (1 - x) / (1 - peak))
    height = (max_learning_rate - base_learning_rate) * part
    if scale_fn is not None:
        height = height * m.real(scale_fn(cycle if scale_mode == "cycle" else m.shown(t)))
    elif mode != "triangular":
        height = height * (m.power(0.5, cycle - 1) if mode == "triangular2" else m.power(exp_gamma, t))
    return base_learning_rate + height


@schedule_family(
    start_factor=real(0, 1, above=True, error=ValueError),
    end_factor=real(0, 1, error=ValueError),
    total_steps=real(0, above=True, error=ValueError),
)
def linear_lr(
    m: Any,
    t: Any,
    learning_rate: Scalar,
    total_steps: Scalar,
    start_factor: Scalar = 1.0 / 3,
    end_factor: Scalar = 1.0,
):
    """Move the rate linearly from one multiple of itself to another.

        η(t) = η₀ (a + (b - a) min(t, N)/N)

    torch's LinearLR calls N total_iters. Paddle's class gets there by recursion, so jumps lead it elsewhere.

    >>> [round(linear_lr(0.4, total_steps=4, start_factor=0.5)(t), 6) for t in (0, 2, 4, 9)]
    [0.2, 0.3, 0.4, 0.4]
    """
    done = m.minimum(m.real(t), float(total_steps)) / total_steps
    return learning_rate * (start_factor + (end_factor - start_factor) * done)


@schedule_family(
    step_each_epoch=real(0, above=True, error=ValueError), epochs=real(0, above=True, error=ValueError)
)
def cosine_decay(m: Any, t: Any, learning_rate: Scalar, step_each_epoch: Scalar, epochs: Scalar):
    """Fall along half a cosine in steps, one per epoch: the 1.x schedule.

        η(t) = η₀ (1 + cos(π ⌊t/s⌋ / E)) / 2

    After the last epoch the rate climbs back; optax.cosine_decay_schedule is smooth and stays at the bottom.

    >>> [round(cosine_decay(0.1, step_each_epoch=3, epochs=8)(t), 6) for t in (0, 2, 12, 24)]
    [0.1, 0.1, 0.05, 0.0]
    """
    return cosine_annealing_decay.at(t // step_each_epoch, learning_rate, epochs, 0.0)


class PlateauState(NamedTuple):
    """The rate in force and what it took to get there."""

    learning_rate: jax.Array  # () float32
    best: jax.Array  # () float32, meaningless while last_epoch is 0
    num_bad_epochs: jax.Array  # () int32
    cooldown_counter: jax.Array  # () int32
    last_epoch: jax.Array  # () int32, metrics seen


class Plateau(NamedTuple):
    """A pair of pure functions: `init() -> state` and `update(metric, state) -> state`.

    Beside parameters on a mesh, `init(params)` puts the state there as well.
    """

    init: Callable[..., PlateauState]
    update: Callable[[Any, PlateauState], PlateauState]


def _mode(*choices: str) -> tuple[Check, ...]:
    """A word in capitals or not; the errors are those of Paddle, which calls `lower()` first."""
    expected = " or ".join(map(repr, choices))
    return (
        Must(lambda mode: hasattr(mode, "lower"), expected, AttributeError),
        Must(lambda mode: mode.lower() in choices, expected, ValueError),
    )


MODES = {"mode": _mode("min", "max"), "threshold_mode": _mode("rel", "abs")}


class PlateauRule(NamedTuple):
    """When and how far a rate falls: the rule of `reduce_on_plateau` and of the classes."""

    mode: str
    factor: Scalar
    patience: int
    threshold: Scalar
    threshold_mode: str
    cooldown: int
    min_lr: Scalar
    epsilon: Scalar

    @classmethod
    def of(cls, mode, factor, patience, threshold, threshold_mode, *others):
        """The rule with its modes in lower case."""
        return cls(mode.lower(), factor, patience, threshold, threshold_mode.lower(), *others)

    def step(self, metric, seen, rate, best, bad, resting):
        """Take one metric; return the new rate, best metric, bad epochs in a row and epochs of rest left."""
        m: Any = Arrays(rate.dtype) if isinstance(bad, jax.Array) else DOUBLES
        best = m.where(seen, best, metric)
        known = m.finite(best)  # Paddle keeps a NaN or inf for ever, as nothing is better
        base = m.where(known, best, 0.0)
        margin = base * self.threshold if self.threshold_mode == "rel" else self.threshold
        better = metric < base - margin if self.mode == "min" else metric > base + margin
        better = m.where(known, better, True) & m.finite(metric)
        more = next_count(bad) if isinstance(bad, jax.Array) else bad + 1
        now_bad = m.where(seen, m.where(better, 0, more), 0)
        late = now_bad > self.patience
        lower = m.maximum(rate * self.factor, self.min_lr)
        lower = m.where(rate - lower > self.epsilon, lower, rate)
        rests = resting > 0  # then even a better metric is ignored
        return (
            m.where(rests, rate, m.where(late, lower, rate)),
            m.where(rests, best, m.where(better, metric, best)),
            m.where(rests, bad, m.where(late, 0, now_bad)),
            m.where(rests, resting - 1, m.where(late, self.cooldown, resting)),
        )


PLATEAU = {**MODES, "factor": (BELOW_ONE, FINITE), "threshold": FINITE, "min_lr": RATE, "epsilon": FINITE}


@checked(**PLATEAU, learning_rate=RATE)
def reduce_on_plateau(
    learning_rate: Scalar,
    mode: str = "min",
    factor: Scalar = 0.1,
    patience: int = 10,
    threshold: Scalar = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: Scalar = 0,
    epsilon: Scalar = 1e-8,
) -> Plateau:
    """Lower the rate when a metric stops improving: no function of the count, so a jit-able pair.

        better:  m < best - best·thr (rel), m < best - thr (abs); with mode "max" >, +
        after more than `patience` metrics in a row that are not better:  η ← max(η f, η_min), then rest

    A NaN or infinite metric is never better, and anything finite is better than it; in Paddle a first one
    stays the best for ever. During the `cooldown` even a better metric is ignored; torch's namesake
    remembers it. Warm up by wrapping the rate: `warmup(state.learning_rate, 100)(count)`.

    >>> plateau = reduce_on_plateau(1.0, factor=0.5, patience=0)
    >>> state = plateau.update(3.0, plateau.init())
    >>> float(plateau.update(3.0, state).learning_rate)
    0.5
    """
    rule = PlateauRule.of(mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, epsilon)

    it = _Plateau(rule, learning_rate)
    return Plateau(it.init, it.update)


@dataclass(frozen=True, eq=False)
class _Plateau:
    rule: PlateauRule
    learning_rate: Any

    def init(self, params: Any = ()) -> PlateauState:
        return self._start(params)

    @at_params
    def _start(self, params: Any) -> PlateauState:
        best, *counts = jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3))
        return PlateauState(jnp.array(self.learning_rate, jnp.float32), best, *counts)

    def update(self, metric: Any, state: PlateauState) -> PlateauState:
        check_state("reduce_on_plateau", state, PlateauState)
        metric = jnp.reshape(jnp.asarray(metric, state.best.dtype), ())
        *moved, last_epoch = state
        return PlateauState(*self.rule.step(metric, last_epoch > 0, *moved), next_count(last_epoch))


publish(globals())
