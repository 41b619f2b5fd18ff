"""The rules under test: how to make each, and its numpy reference."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference

import paddlejax as paddle


class RuleCase(NamedTuple):
    name: str  # of the function and of the reference
    kwargs: dict[str, Any]
    reference: dict[str, Any] = {}  # where the reference's arguments differ
    rate: float = 0.05

    def make(self, learning_rate: Any = None, **changes: Any) -> Any:
        rate = self.rate if learning_rate is None else learning_rate
        return getattr(paddle, self.name)(rate, **{**self.kwargs, **changes})

    def expected(self, p: Any, grads: Any, learning_rate: float | None = None) -> tuple[Any, dict[str, Any]]:
        """The reference's parameter and accumulators after these gradients, in the dtype of p."""
        init, step = reference.REFERENCES[self.name]
        hyper = {**reference.HYPER[self.name], **self.kwargs, **self.reference}
        dialects = ("use_learning_rate", "scaled_epsilon", "bias_correction", "always_adapt")
        for dialect in (*dialects, "key", "per_element"):
            if dialect not in reference.HYPER[self.name]:
                hyper.pop(dialect, None)
        rate = self.rate if learning_rate is None else learning_rate
        if "learning_rate" in hyper:  # where the step sizes of rprop start
            hyper["learning_rate"] = rate
        state = init(p, **hyper)
        for g in grads:
            p, state = step(p, g, rate, state, **hyper)
        return p, state


OLD = {"dialect": "1.x"}
QUIET = {"sigma": 0.0, "key": jax.random.key(0)}  # without noise
CASES = [
    RuleCase("sgd", {}),
    RuleCase("momentum", {}),
    RuleCase("momentum", {"momentum": 0.5, "use_nesterov": True, "rescale_grad": 0.5}),
    RuleCase("lars_momentum", {"momentum": 0.9}),
    RuleCase("lars_momentum", {"momentum": 0.9, "lars_coeff": 0.1, "lars_weight_decay": 0.0}),
    RuleCase("lars_momentum", {"momentum": 0.5, "lars_coeff": 0.1, "epsilon": 0.01, "rescale_grad": 0.5}),
    RuleCase("lars_momentum", {"momentum": 0.9, "lars_weight_decay": 0.0, "always_adapt": True}, OLD),
    RuleCase("adagrad", {}),
    RuleCase("adagrad", {"epsilon": 1e-3, "initial_accumulator_value": 0.1}),
    RuleCase("decayed_adagrad", {}),
    RuleCase("decayed_adagrad", {"decay": 0.5, "epsilon": 1e-3}),
    RuleCase("adadelta", {}, rate=1.0),
    RuleCase("adadelta", {"rho": 0.5, "epsilon": 1e-3, "use_learning_rate": False}, OLD),
    RuleCase("adam", {}),
    RuleCase("adam", {"beta1": 0.5, "beta2": 0.7, "epsilon": 1e-2, "amsgrad": True}),
    RuleCase("adam", {"epsilon": 1e-2, "scaled_epsilon": False}, OLD),
    RuleCase("adamw", {}),
    RuleCase("adamw", {"beta1": 0.5, "beta2": 0.7, "epsilon": 1e-2, "weight_decay": 0.3, "amsgrad": True}),
    RuleCase("adamw", {"weight_decay": 0.0}),
    RuleCase("nadam", {}),
    RuleCase("nadam", {"beta1": 0.5, "beta2": 0.7, "epsilon": 1e-2, "momentum_decay": 0.1}),
    RuleCase("nadam", {"momentum_decay": 0.0}),
    RuleCase("radam", {}),
    RuleCase("radam", {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-2}),
    RuleCase("radam", {"beta2": 0.5}),
    RuleCase("rprop", {}),
    RuleCase("rprop", {"learning_rate_range": (0.01, 0.2), "etas": (0.3, 1.9)}),
    RuleCase("dpsgd", QUIET),
    RuleCase("dpsgd", {"clip": 1.5, "batch_size": 16.0, "per_element": True, **QUIET}),
    RuleCase("adamax", {}),
    RuleCase("adamax", {"beta1": 0.5, "beta2": 0.7, "epsilon": 1e-2}),
    RuleCase("rmsprop", {}),
    RuleCase("rmsprop", {"momentum": 0.9, "rho": 0.5}),
    RuleCase("rmsprop", {"momentum": 0.5, "centered": True, "epsilon": 1e-2}),
    RuleCase("ftrl", {}),
    RuleCase("ftrl", {"l1": 0.1, "l2": 0.2, "lr_power": -0.7, "guard": 0.0}),
    RuleCase("lamb", {}),
    RuleCase("lamb", {"lamb_weight_decay": 0.0, "always_adapt": True}),
    RuleCase("lamb", {"lamb_weight_decay": 0.0}),
    RuleCase("lamb", {"beta1": 0.5, "bias_correction": False, "always_adapt": True}, OLD),
    RuleCase("asgd", {}),
    RuleCase("asgd", {"batch_num": 3}),
]


def _id(case: RuleCase) -> str:
    return "-".join([case.name, *(f"{k}={v}" for k, v in case.kwargs.items() if k != "key")])


every_rule = pytest.mark.parametrize("case", CASES, ids=_id)
# With its first hyperparameters only: where others take another branch of a step, but no other way around it.
each_rule_once = pytest.mark.parametrize(
    "case", {case.name: case for case in reversed(CASES)}.values(), ids=_id
)


def drawn(*shape: int, steps: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A parameter and gradients for so many steps, float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=(steps, *shape))
