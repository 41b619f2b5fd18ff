"""Optimizers around an optimizer: their base, and recomputation."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ..attributes import Attributes, check_hooks
from ..hyper import Must, checked, given
from ..recent import Recent
from .arguments import check_program
from .copies import Copied
from .gate import alone, whole
from .ledger import Entries, load
from .loss import Loss
from .optimizer import Optimizer, Pairs
from .parameter import Parameter
from .settings import ANEW, HOOKS, SET_LR

INNER = "assign it to the inner_optimizer"
WAYS = {
    **dict.fromkeys(("regularization", "_grad_clip", "_learning_rate", "_multi_precision"), INNER),
    **dict.fromkeys(("lr", "learning_rate"), SET_LR),
    **dict.fromkeys(("parameter_list", "parameters", "_parameter_list"), ANEW),
}


class Wrapper(Attributes, Copied):
    """Base of the wrappers: whatever they do not change is the inner optimizer's.

    `clear_grad`, `get_lr`, `set_lr`, `current_step_lr` and so on are forwarded.
    """

    inner_optimizer: Any
    _ways = WAYS
    _once = {"inner_optimizer": "it is fixed; make a new wrapper"}
    _hooks = HOOKS
    _part: Any = None  # what it adds to a step of the innermost optimizer
    _donated = ("_part",)

    def __init__(self, inner_optimizer: Any):
        check_hooks(type(self))
        self.inner_optimizer = inner_optimizer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner_optimizer":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.inner_optimizer, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner_optimizer!r})"

    @alone
    def _within(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the inner optimizer; the step that it makes has this wrapper's part in it."""
        if self._part is None:
            return method(*args, **kwargs)
        base = innermost(self)
        # Into the dict, since an assignment is a call here, in which an interrupt may come.
        own, outer = base.__dict__, base.layers
        try:
            own["layers"], own["passed"] = (self._part, *outer), False
            result = method(*args, **kwargs)
        finally:
            own["layers"] = outer
        if not base.passed:
            found = f"found that {type(base).__name__}.{method.__name__} makes no step of its base class"
            raise RuntimeError(
                f"{type(self).__name__}: {found}, expected it to call super().{method.__name__}(...)"
            )
        return result

    @property
    def parameter_list(self) -> list[Parameter]:
        """The Parameters of the innermost optimizer, in its order."""
        return self.inner_optimizer.parameter_list

    @property
    def _parameter_list(self) -> tuple[Any, ...]:
        """What the innermost optimizer's `_parameter_list` is."""
        return innermost(self)._parameter_list

    def step(self, *closure: Any) -> Any:
        """One step from the parameters' `.grad`, or with the closure that the inner optimizer wants."""
        return self._within(self.inner_optimizer.step, *closure)

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward and step; further arguments are those of the inner optimizer's `minimize`."""
        return self._within(self.inner_optimizer.minimize, loss, startup_program, *args, **kwargs)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """One step with exactly these gradients."""
        return self._within(self.inner_optimizer.apply_gradients, params_grads)

    def apply_optimize(
        self, loss: Any, startup_program: None, params_grads: Iterable[tuple[Parameter, Any]]
    ) -> list[Any]:
        """`apply_gradients`, with the arguments of Paddle's older method."""
        check_program(startup_program)
        return self.apply_gradients(params_grads)

    @whole
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the wrapper's own entries."""
        return self.inner_optimizer.state_dict()

    def set_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over what `state_dict()` returned, or raise an error that tells what does not fit, and change
        nothing."""
        load(self._loading, state_dict, strict)

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read the wrapper's entries and the inner optimizer's, and after the `yield` put them in force."""
        return self.inner_optimizer._loading(entries, strict)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """The same as `set_state_dict`."""
        self.set_state_dict(state_dict, strict)

    def set_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """The same as `set_state_dict`."""
        self.set_state_dict(state_dict, strict)


def innermost(optimizer: Any) -> Any:
    """The optimizer that all wrappers are around."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.inner_optimizer
    return optimizer


def is_optimizer(x: Any) -> bool:
    """Return whether x is an optimizer object or a wrapper of one."""
    return isinstance(x, Optimizer | Wrapper)


OPTIMIZER = given("an optimizer"), Must(is_optimizer, "an optimizer")


class RecomputeOptimizer(Wrapper):
    """Paddle's RecomputeOptimizer: the backward pass computes activations again instead of keeping them.

    The loss function runs under `jax.checkpoint`; memory changes, values do not. Checkpoints are names given
    to activations inside the loss with `jax.ad_checkpoint.checkpoint_name`: these are kept. Without any, only
    the arguments of the loss are.

    >>> w = Parameter(jnp.ones(1), "w")
    >>> opt = RecomputeOptimizer(paddle.optimizer.SGD(0.5, [w]))
    >>> _ = opt.minimize(lambda params: jnp.sum(jnp.sin(params[0])))
    >>> print(w.value)
    [0.7298]
    """

    _checkpoints: tuple[str, ...]
    _functions: Recent[Callable[..., Any], Callable[..., Any]]

    @checked(optimizer=OPTIMIZER)
    def __init__(self, optimizer: Any):
        super().__init__(optimizer)
        self._set_checkpoints([])

    @checked(
        checkpoints=Must(
            lambda names: isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
            "a list of names given with jax.ad_checkpoint.checkpoint_name",
        )
    )
    def _set_checkpoints(self, checkpoints: Any) -> None:
        """Names of activations to keep."""
        self._checkpoints = tuple(checkpoints)
        self._functions = Recent()

    def minimize(
        self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Pairs]:
        """Backward, with activations computed again, and step."""
        return super().minimize(self.recomputing(loss), startup_program, *args, **kwargs)

    def backward(self, loss: Any, startup_program: None = None, *args: Any, **kwargs: Any) -> Pairs:
        """The first half of `minimize`."""
        return self.inner_optimizer.backward(self.recomputing(loss), startup_program, *args, **kwargs)

    def load(self, state_dict: Any) -> None:
        """Not there, as in Paddle: `set_state_dict` is."""
        raise NotImplementedError("RecomputeOptimizer has no load; use set_state_dict")

    def recomputing(self, loss: Any) -> Any:
        """Return the loss with its function under `jax.checkpoint`."""
        if isinstance(loss, Loss):
            if not loss.ran_backward:
                loss.call = loss.call.wrapped(self._wrapped)
            return loss
        return _recomputing(loss, self._checkpoints) if callable(loss) else loss

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function under `jax.checkpoint`, the same one every time, so that equal calls share a
        compiled program."""
        if hasattr(function, "recomputes"):
            return function
        known = self._functions.get(function)
        return known or self._functions.put(function, _recomputing(function, self._checkpoints))


def _recomputing(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The function under jax.checkpoint, which takes arrays only: what else it is given stays outside."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        at = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)]

        @functools.partial(jax.checkpoint, policy=policy)
        def on_arrays(arrays: list[Any]) -> Any:
            new = dict(zip(at, arrays, strict=True))
            args, kwargs = tree.unflatten([new.get(i, x) for i, x in enumerate(leaves)])
            return function(*args, **kwargs)

        return on_arrays([leaves[i] for i in at])

    run.recomputes = True  # type: ignore[attr-defined]
    return run
