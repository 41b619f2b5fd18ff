"""Paddle 2.x's signatures, one class each; everything they do is in `Optimizer` and in their rule.

`multi_precision` and `packed` are given by keyword where Paddle has no such argument.

The arguments that all share are explained at `Optimizer`, the hyperparameters and formulas at the rules.
"""

from typing import Any

from .. import pages, rules
from ..hyper import Interval, Must, Number, checked, unless
from .lr import Rate
from .optimizer import Optimizer

# Paddle's NAdam and RAdam check that and others do not; schedulers pass.
NOT_NEGATIVE = (
    Must(lambda rate: rate is not None, "a number or an LRScheduler"),
    unless(lambda rate: not isinstance(rate, int | float), Interval(0, error=ValueError)),
)


@pages.of(rules.SGD, "optimizer.SGD(0.1, parameters=[p])", "[ 0.8 -1.6]")
class SGD(Optimizer):
    """Paddle's SGD: p ← p - η g, see `sgd`."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        multi_precision: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.SGD()
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Momentum, "optimizer.Momentum(0.1, parameters=[p])", "[ 0.8 -1.6]")
class Momentum(Optimizer):
    """Paddle's Momentum, see `momentum`. `use_multi_tensor` has no effect: a step is one program anyway."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        momentum: Any = 0.9,
        parameters: Any = None,
        use_nesterov: bool = False,
        weight_decay: Any = None,
        grad_clip: Any = None,
        multi_precision: bool = False,
        rescale_grad: Any = 1.0,
        use_multi_tensor: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.Momentum(momentum, use_nesterov, rescale_grad)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Adagrad, "optimizer.Adagrad(0.1, parameters=[p])", "[ 0.9 -1.9]")
class Adagrad(Optimizer):
    """Paddle's Adagrad, see `adagrad`."""

    def __init__(
        self,
        learning_rate: Rate,
        epsilon: Any = 1e-6,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        initial_accumulator_value: Any = 0.0,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.Adagrad(epsilon, initial_accumulator_value)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Adadelta, "optimizer.Adadelta(1.0, parameters=[p])", "[ 0.9955 -1.9955]")
class Adadelta(Optimizer):
    """Paddle's Adadelta, see `adadelta`; as in Paddle 2 and 3 the step is multiplied by the rate."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        epsilon: Any = 1e-6,
        rho: Any = 0.95,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.Adadelta(epsilon, rho)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Adam, "optimizer.Adam(0.1, parameters=[p])", "[ 0.9 -1.9]")
class Adam(Optimizer):
    """Paddle's Adam, see `adam`.

    With `lazy_mode` a SelectedRows gradient moves its rows only. `use_multi_tensor` has no effect: a step is
    one program anyway.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        lazy_mode: bool = False,
        multi_precision: bool = False,
        use_multi_tensor: bool = False,
        amsgrad: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.Adam(beta1, beta2, epsilon, amsgrad, lazy_mode=lazy_mode)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.AdamW, "optimizer.AdamW(0.1, parameters=[p])", "[ 0.899 -1.898]")
class AdamW(Optimizer):
    """Paddle's AdamW, see `adamw`; apply_decay_param_fun is asked about names, lr_ratio about Parameters.

    A regularizer of a Parameter is added to its gradient, beside the decay; a group's weight_decay is the
    decay there. `use_lowprecision_moment` has no effect, moments are float32 or wider; `lazy_mode` has
    none either: a SelectedRows gradient is refused, as in Paddle.
    """

    @checked(weight_decay=Number("an int or float"))
    def __init__(
        self,
        learning_rate: Rate = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        parameters: Any = None,
        weight_decay: Any = 0.01,
        use_lowprecision_moment: bool = False,
        lr_ratio: Any = None,
        apply_decay_param_fun: Any = None,
        grad_clip: Any = None,
        lazy_mode: bool = False,
        multi_precision: bool = False,
        amsgrad: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.AdamW(
            beta1,
            beta2,
            epsilon,
            amsgrad,
            weight_decay=weight_decay,
            lr_ratio=lr_ratio,
            apply_decay_param_fun=apply_decay_param_fun,
        )
        common = learning_rate, parameters, None, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Adamax, "optimizer.Adamax(0.1, parameters=[p])", "[ 0.9 -1.9]")
class Adamax(Optimizer):
    """Paddle's Adamax, see `adamax`."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.Adamax(beta1, beta2, epsilon)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.NAdam, "optimizer.NAdam(0.1, parameters=[p])", "[ 0.8944 -1.8944]")
class NAdam(Optimizer):
    """Paddle's NAdam, see `nadam`."""

    @checked(learning_rate=NOT_NEGATIVE)
    def __init__(
        self,
        learning_rate: Rate = 0.002,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        momentum_decay: Any = 0.004,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.NAdam(beta1, beta2, epsilon, momentum_decay)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.RAdam, "optimizer.RAdam(0.1, parameters=[p])", "[ 0.8 -1.6]")
class RAdam(Optimizer):
    """Paddle's RAdam, see `radam`."""

    @checked(learning_rate=NOT_NEGATIVE)
    def __init__(
        self,
        learning_rate: Rate = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.RAdam(beta1, beta2, epsilon)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.RMSProp, "optimizer.RMSProp(0.1, parameters=[p])", "[ 0.5528 -1.5528]")
class RMSProp(Optimizer):
    """Paddle's RMSProp, see `rmsprop`."""

    def __init__(
        self,
        learning_rate: Rate,
        rho: Any = 0.95,
        epsilon: Any = 1e-6,
        momentum: Any = 0.0,
        centered: bool = False,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        name: str | None = None,
        *,
        multi_precision: bool = False,
        packed: bool = False,
    ):
        rule = rules.RMSProp(rho, epsilon, momentum, centered)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Rprop, "optimizer.Rprop(0.1, parameters=[p])", "[ 0.9 -1.9]")
class Rprop(Optimizer):
    """Paddle's Rprop, see `rprop`; what sets the rate later has no effect, and a scheduler is refused."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_range: Any = (1e-5, 50),
        parameters: Any = None,
        etas: Any = (0.5, 1.2),
        grad_clip: Any = None,
        multi_precision: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.Rprop(learning_rate, learning_rate_range, etas)
        common = learning_rate, parameters, None, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.Lamb, "optimizer.Lamb(0.1, parameters=[p])", "[ 0.8427 -1.8411]")
class Lamb(Optimizer):
    """Paddle's Lamb, see `lamb`; exclude_from_weight_decay_fn is asked about each Parameter."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        lamb_weight_decay: Any = 0.01,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-6,
        parameters: Any = None,
        grad_clip: Any = None,
        exclude_from_weight_decay_fn: Any = None,
        multi_precision: bool = False,
        always_adapt: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.Lamb(
            lamb_weight_decay, beta1, beta2, epsilon, exclude_from_weight_decay_fn, always_adapt
        )
        common = learning_rate, parameters, None, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)


@pages.of(rules.ASGD, "optimizer.ASGD(0.1, parameters=[p])", "[ 0.8 -1.6]")
class ASGD(Optimizer):
    """Paddle's ASGD, stochastic average gradient, see `asgd`."""

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        batch_num: Any = 1,
        parameters: Any = None,
        weight_decay: Any = None,
        grad_clip: Any = None,
        multi_precision: bool = False,
        name: str | None = None,
        *,
        packed: bool = False,
    ):
        rule = rules.ASGD(batch_num)
        common = learning_rate, parameters, weight_decay, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)
