"""Paddle 1.x's `fluid.optimizer`: a table of its names and arguments over the same rules, and one adapter."""

import inspect
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import distributed, pages, rules
from ..distributed import PipelineOptimizer as PipelineOptimizer
from ..lifting import Rule
from ..optimizer.arguments import checked_clip
from ..optimizer.gate import whole
from ..optimizer.ledger import CountField, Entries, written
from ..optimizer.optimizer import SCHEDULE, Optimizer, Pairs
from ..optimizer.parameter import Parameter
from ..optimizer.stepping import OWN
from ..pages import publish
from ..rates import refuse_rate
from ..regularizer import as_regularizer
from .dygraph import LearningRateDecay, LearningRateEpochDecay
from .positional import Order, by_name, orders_of, positional
from .wrappers import *  # noqa: F403

GLOBAL_STEP = CountField("global_step", np.int32)


class FluidOptimizer(Optimizer):
    """An optimizer with Paddle 1.x's methods and argument names: parameter_list, regularization, set_dict.

    By position arguments are taken in the order of 1.8.5, which is the signature, or in that of the 1.6
    pages, which have neither `parameter_list` nor `grad_clip`: the types tell which. `packed` is given by
    keyword. A schedule of `fluid.dygraph` is evaluated, and then advances, at every minimize.
    """

    _argument = "parameter_list"
    _replaces = True  # 1.8.5's backward does
    _used_rate: Any
    _schedule_before: Any
    _signature: inspect.Signature
    _orders: tuple[Order, ...]  # of the arguments by position
    _rule: type[Rule]
    _dialect: dict[str, Any]  # what 1.x computes differently

    def __init__(self, *args: Any, **kwargs: Any):
        if type(self) is FluidOptimizer:
            raise TypeError("FluidOptimizer has no rule of its own; use SGD, Adam or another of its classes")
        named = by_name(type(self).__name__, self._orders, args, kwargs)
        try:
            bound = self._signature.bind(**named)
        except TypeError as e:
            known = ", ".join(self._signature.parameters)
            raise TypeError(f"{type(self).__name__}(): {e}; its arguments are {known}") from None
        bound.apply_defaults()
        given = bound.arguments
        rate, parameters, decay, clip, name = (
            given.pop(argument, None)
            for argument in ("learning_rate", "parameter_list", "regularization", "grad_clip", "name")
        )
        decay = as_regularizer("regularization", decay)
        if "key" in given and given["key"] is None:  # 1.8.5 seeds from the clock
            given["key"] = jax.random.key(secrets.randbits(31))
        self._used_rate: Any = None  # what the last minimize took from a schedule
        packed = given.pop("packed")
        rule = self._rule(**given, **self._dialect)
        super().__init__(rate, parameters, decay, clip, name, rule=rule, packed=packed)

    def minimize(  # type: ignore[override]
        self,
        loss: Any,
        startup_program: None = None,
        parameter_list: Any = None,
        no_grad_set: Any = None,
        grad_clip: Any = OWN,
    ) -> tuple[list[Any], Pairs]:
        """As `Optimizer.minimize`; `grad_clip` takes the place of the constructor's for this call."""
        clip = OWN if grad_clip is OWN or grad_clip is None else checked_clip("grad_clip", grad_clip)
        return [], self._minimize(loss, startup_program, parameter_list, no_grad_set, clip)

    def backward(  # type: ignore[override]
        self,
        loss: Any,
        startup_program: None = None,
        parameter_list: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> Pairs:
        """As `Optimizer.backward`."""
        return super().backward(loss, startup_program, parameter_list, no_grad_set, callbacks)

    def current_step_lr(self) -> float:
        """The rate the last minimize used; under a schedule and before the first, the rate it will use."""
        schedule = self._learning_rate
        if not isinstance(schedule, LearningRateDecay):
            return self.get_lr()
        return float(schedule.current() if self._used_rate is None else self._used_rate)

    def _global_learning_rate(self, program: None = None) -> Parameter:
        """Return what `current_step_lr` says, (1,) float32: a Parameter, for its `numpy()`."""
        rate = jnp.full((1,), self.current_step_lr(), jnp.float32)
        return Parameter(rate, "learning_rate_0", trainable=False)

    def _checked_rate(self, learning_rate: Any) -> Any:
        return (
            learning_rate
            if isinstance(learning_rate, LearningRateDecay)
            else super()._checked_rate(learning_rate)
        )

    def _rate_for_step(self) -> float:
        if not isinstance(self._learning_rate, LearningRateDecay):
            return super()._rate_for_step()
        self._schedule_before = dict(vars(self._learning_rate))
        rate = float(self._learning_rate.upcoming())
        refuse_rate(f"what {type(self._learning_rate).__name__} returned as the rate", rate)
        return rate

    def _stepped(self) -> None:
        if isinstance(self._learning_rate, LearningRateDecay):
            vars(self._learning_rate).update(self._schedule_before)  # twice is as good as once
            self._used_rate = self._learning_rate()

    def get_lr(self) -> float:
        """The number, or under a schedule the rate of the next minimize."""
        schedule = self._learning_rate
        return float(schedule.current()) if isinstance(schedule, LearningRateDecay) else super().get_lr()

    @whole
    def state_dict(self) -> dict[str, Any]:
        """As `Optimizer.state_dict`, with `global_step` under a schedule that counts steps."""
        counts = [(GLOBAL_STEP, self._learning_rate.step_num)] if _counts(self._learning_rate) else []
        return super().state_dict() | written(counts)

    def _read_schedule(self, entries: Entries) -> Any:
        if _counts(self._learning_rate) and entries.has(SCHEDULE):
            entries.read(GLOBAL_STEP)  # needed, as in Paddle, but the schedule's own state has the number too
        entries.drop(GLOBAL_STEP.key)
        return super()._read_schedule(entries)

    def set_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """As `set_state_dict`."""
        self.set_state_dict(state_dict, strict)


@pages.of(distributed.DGCMomentumOptimizer)
class DGCMomentumOptimizer(distributed.DGCMomentumOptimizer, FluidOptimizer):
    """Paddle 1.x's DGCMomentumOptimizer, with the arguments by position in the order of 1.8.5 or of 1.6.

    >>> p = Parameter(jnp.zeros(2), "p")
    >>> opt = DGCMomentumOptimizer(0.1, momentum=0.9, rampup_begin_step=10, parameter_list=[p])
    >>> fit = loss(lambda p, x: jnp.mean(x @ p))
    >>> _ = opt.minimize(fit(p, jnp.ones((8, 2))))  # the rows are split over the workers
    >>> print(p.numpy())
    [-0.1 -0.1]
    """

    _used_rate = None

    @positional(
        "learning_rate momentum rampup_begin_step rampup_step sparsity "
        "parameter_list use_nesterov num_trainers regularization grad_clip name",
        "learning_rate momentum rampup_begin_step rampup_step sparsity "
        "use_nesterov local_grad_clip_norm num_trainers regularization name",
    )
    def __init__(
        self,
        learning_rate: Any,
        momentum: Any,
        rampup_begin_step: int,
        rampup_step: int = 1,
        sparsity: Any = (0.999,),
        parameter_list: Any = None,
        use_nesterov: bool = False,
        num_trainers: int | None = None,
        regularization: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        local_grad_clip_norm: Any = None,
        mesh: Any = None,
        axis_name: str = "data",
    ):
        super().__init__(
            learning_rate,
            momentum,
            rampup_begin_step,
            rampup_step,
            sparsity,
            use_nesterov,
            local_grad_clip_norm,
            num_trainers,
            regularization,
            name,
            parameter_list=parameter_list,
            grad_clip=grad_clip,
            mesh=mesh,
            axis_name=axis_name,
        )


DGCMomentum = DGCMomentumOptimizer


def _counts(rate: Any) -> bool:
    return isinstance(rate, LearningRateDecay) and not isinstance(rate, LearningRateEpochDecay)


def _define(
    name: str,
    rule: type[Rule],
    prints: str,
    arguments: str,
    rate: Any = inspect.Parameter.empty,
    common: str = "parameter_list regularization grad_clip name",
    keywords: str = "packed",
    **dialect: Any,
) -> type[FluidOptimizer]:
    """The class of a row: the rule's `arguments` and what is `common`, in 1.8.5's order; `!` is required.

    `prints` is what the example of its page prints.
    """
    defaults = {f.name: f.default for f in fields(rule)} | {"key": None, "packed": False}
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("learning_rate", positional, default=rate)]
    for kind, words in ((positional, f"{arguments} {common}"), (keyword, keywords)):
        for word in words.split():
            default = defaults.get(word.rstrip("!"))
            required = word.endswith("!") or default is MISSING
            default = inspect.Parameter.empty if required else default
            parameters.append(inspect.Parameter(word.rstrip("!"), kind, default=default))
    signature = inspect.Signature(parameters)
    doc = f"Paddle 1.x's {name}{signature}: the rule `rules.{rule.__name__}`"
    doc += f" with {', '.join(f'{k}={v}' for k, v in dialect.items())}." if dialect else "."
    body = {
        "_signature": signature,
        "_orders": orders_of(tuple(p.name for p in parameters if p.kind is positional)),
        "_rule": rule,
        "_dialect": dialect,
        "__signature__": signature,
        "__doc__": doc,
    }
    given = "0.1, momentum=0.9" if "momentum!" in arguments else "0.1"
    made = type(name, (FluidOptimizer,), {**body, "__module__": __name__})
    return pages.of(rule, f"fluid.optimizer.{name}({given}, parameter_list=[p])", prints)(made)


SGDOptimizer = SGD = _define("SGDOptimizer", rules.SGD, "[ 0.8 -1.6]", "")
MomentumOptimizer = Momentum = _define(
    "MomentumOptimizer",
    rules.Momentum,
    "[ 0.8 -1.6]",
    "momentum!",
    common="parameter_list use_nesterov regularization grad_clip name",
)
LarsMomentumOptimizer = LarsMomentum = _define(
    "LarsMomentumOptimizer",
    rules.LarsMomentum,
    "[ 0.9999 -1.9998]",
    "momentum! lars_coeff lars_weight_decay",
    always_adapt=True,
)
AdagradOptimizer = Adagrad = _define(
    "AdagradOptimizer",
    rules.Adagrad,
    "[ 0.9 -1.9]",
    "epsilon",
    common="parameter_list regularization grad_clip name initial_accumulator_value",
)
DecayedAdagradOptimizer = DecayedAdagrad = _define(
    "DecayedAdagradOptimizer", rules.DecayedAdagrad, "[ 0.5528 -1.5528]", "decay epsilon"
)
AdadeltaOptimizer = Adadelta = _define(
    "AdadeltaOptimizer", rules.Adadelta, "[ 0.9955 -1.9955]", "epsilon rho", use_learning_rate=False
)
AdamOptimizer = Adam = _define(
    "AdamOptimizer",
    rules.Adam,
    "[ 0.9 -1.9]",
    "beta1 beta2 epsilon",
    0.001,
    common="parameter_list regularization grad_clip name lazy_mode",
    scaled_epsilon=False,
)
AdamaxOptimizer = Adamax = _define(
    "AdamaxOptimizer", rules.Adamax, "[ 0.9 -1.9]", "beta1 beta2 epsilon", 0.001
)
RMSPropOptimizer = RMSProp = _define(
    "RMSPropOptimizer", rules.RMSProp, "[ 0.5528 -1.5528]", "rho epsilon momentum centered"
)
FtrlOptimizer = Ftrl = _define("FtrlOptimizer", rules.Ftrl, "[ 0.9 -1.9]", "l1 l2 lr_power", guard=0.0)
LambOptimizer = Lamb = _define(
    "LambOptimizer",
    rules.Lamb,
    "[ 0.8421 -1.8416]",
    "lamb_weight_decay beta1 beta2 epsilon",
    0.001,
    common="parameter_list regularization grad_clip exclude_from_weight_decay_fn name",
    always_adapt=True,
    bias_correction=False,
)
DpsgdOptimizer = Dpsgd = _define(
    "DpsgdOptimizer",
    rules.Dpsgd,
    "[ 0.9598 -1.9195]",
    "clip batch_size sigma",
    0.001,
    common="parameter_list",
    keywords="per_element key packed",
)

publish(globals())
