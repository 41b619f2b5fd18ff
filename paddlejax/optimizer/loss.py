"""Losses as Paddle has them: a call builds a deferred scalar that can be run backward."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import ArgumentError
from ..sparse import value_and_grads
from ..trees import compute_dtype
from .parameter import Parameter, inside_loss


class Call(NamedTuple):
    """The static half of a call: equal calls share a compiled program."""

    function: Callable[..., Any]
    has_aux: bool
    tree: Any  # structure of (args, kwargs)
    places: tuple[tuple[str, Any], ...]  # per leaf: where its value is, or the value itself if it is static
    tables: tuple[str | None, ...]  # per trained Parameter: its name if only `embedding` may read it

    def running(self, function: Callable[..., Any]) -> "Call":
        """The same call of another function."""
        return self._replace(function=function)

    def __call__(self, trained: list[jax.Array], fixed: list[Any]) -> tuple[jax.Array, Any]:
        sources = {"trained": trained, "fixed": fixed}
        leaves = [where if kind == "static" else sources[kind][where] for kind, where in self.places]
        args, kwargs = self.tree.unflatten(leaves)
        name = getattr(self.function, "__name__", "the loss function")
        with inside_loss(name):
            result: Any = self.function(*args, **kwargs)
        if self.has_aux and (not isinstance(result, tuple) or len(result) != 2):
            raise TypeError(
                f"{name}: found {type(result).__name__}, expected (loss, aux) because has_aux=True"
            )
        loss: Any = result[0] if self.has_aux else result
        return scalar(name, loss), result[1] if self.has_aux else None


def scalar(name: str, loss: Any) -> jax.Array:
    """What a loss function returned as a scalar, or an error if it is none."""
    if not hasattr(loss, "dtype") or jnp.size(loss) != 1 or not jnp.issubdtype(loss.dtype, jnp.floating):
        found = f"shape {jnp.shape(loss)} and dtype {loss.dtype}" if hasattr(loss, "dtype") else repr(loss)
        raise ArgumentError(f"{name}: found a loss of {found}, expected a real floating scalar")
    return jnp.reshape(loss, ())


def value_and_grad(call: Any, trained: list[jax.Array], fixed: list[Any]) -> tuple[Any, list[Any]]:
    """((loss, aux), the gradient of each trained Parameter) of a call."""
    return value_and_grads(lambda leaves: call(leaves, fixed), trained, call.tables)


@functools.partial(jax.jit, static_argnums=0)
def _forward(call: Call, trained: list[jax.Array], fixed: list[Any]) -> Any:
    return call(trained, fixed)


@functools.partial(jax.jit, static_argnums=0)
def _backward(call: Call, trained: list[jax.Array], fixed: list[Any]) -> Any:
    return value_and_grad(call, trained, fixed)


class Loss:
    """A scalar that has not been computed yet: `float()`, `.item()`, `.numpy()`, `.backward()`, or `minimize`
    it.

    It speaks of the parameters as they were when it was built. Once a step has moved them it cannot be
    computed any more (their old values are gone) and says so; a value that was computed before stays.
    """

    def __init__(self, call: Call, parameters: list[Parameter], fixed: list[Any]):
        self.call, self.parameters, self.fixed = call, parameters, fixed
        self.trained = [p._value for p in parameters]
        self.ran_backward = False
        self._result: Any = None

    def backward(self) -> None:
        """Compute the gradients and add them to every Parameter's `.grad`."""
        if self.ran_backward:
            raise RuntimeError(
                "backward() ran already for this loss; call the loss function again for another"
            )
        result, grads = self._run(_backward)
        self.done(result, grads)

    def done(self, result: Any, grads: list[jax.Array]) -> None:
        """Take what a backward pass computed, here or inside the optimizer's program."""
        self._result, self.ran_backward = result, True
        self.trained, self.fixed = [], []
        for p, g in zip(self.parameters, grads, strict=True):
            p.accumulate(g)

    def is_current(self) -> bool:
        return all(p._value is old for p, old in zip(self.parameters, self.trained, strict=True))

    def _run(self, compiled: Any) -> Any:
        gone = [x for x in (*self.trained, *self.fixed) if isinstance(x, jax.Array) and x.is_deleted()]
        if gone:
            raise RuntimeError(
                f"{self._name}: this loss was built before a step moved its parameters and was not computed "
                "in time; call the loss function again"
            )
        return compiled(self.call, self.trained, self.fixed)

    def _computed(self) -> Any:
        if self._result is None:
            self._result = self._run(_forward)
        return self._result

    @property
    def _name(self) -> str:
        return getattr(self.call.function, "__name__", "loss")

    @property
    def value(self) -> jax.Array:
        return self._computed()[0]

    @property
    def aux(self) -> Any:
        """What the function returned beside the loss, with `@loss(has_aux=True)`."""
        return self._computed()[1]

    def item(self) -> float:
        return float(self.value)

    __float__ = item

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def numpy(self) -> np.ndarray:
        return np.array(self.value)

    def __repr__(self) -> str:
        return f"Loss({self._name}" + (
            ", not computed yet)" if self._result is None else f" = {self.item():g})"
        )


class LossFunction:
    """What the `loss` decorator makes of a function."""

    def __init__(self, function: Callable[..., Any], has_aux: bool):
        functools.update_wrapper(self, function)
        self.function, self.has_aux = function, has_aux

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Loss:
        leaves, tree = jax.tree.flatten((args, kwargs))
        trained: dict[Parameter, int] = {}
        fixed: list[Any] = []
        places = []
        for leaf in leaves:
            if isinstance(leaf, Parameter) and leaf.trainable:
                if not leaf.is_real:
                    compute_dtype((jax.tree_util.GetAttrKey(leaf.name),), leaf._value)  # says what is wrong
                places.append(("trained", trained.setdefault(leaf, len(trained))))
            elif isinstance(leaf, Parameter | jax.Array | np.ndarray | np.generic) or type(leaf) in (
                int,
                float,
                complex,
            ):
                places.append(("fixed", len(fixed)))
                fixed.append(leaf._value if isinstance(leaf, Parameter) else leaf)
            else:
                places.append(("static", leaf))
                self._check_static(leaf)
        tables = tuple(p.name if p.sparse else None for p in trained)
        call = Call(self.function, self.has_aux, tree, tuple(places), tables)
        return Loss(call, list(trained), fixed)

    def _check_static(self, leaf: Any) -> None:
        try:
            hash(leaf)
        except TypeError:
            name = getattr(self.function, "__name__", "the loss function")
            expected = "arrays, numbers, Parameters and hashable values"
            raise TypeError(
                f"{name}: found an argument {leaf!r} that is not hashable, expected {expected}"
            ) from None


def loss(function: Callable[..., Any] | None = None, *, has_aux: bool = False) -> Any:
    """Decorate a function of parameters and data that returns a scalar; a call then builds a `Loss`, and runs
    nothing.

    Inside, Parameters are plain arrays. Compiled once per function and shapes: arrays and numbers among the
    arguments are traced, everything else (str, bool, functions, objects) is static: what an object holds,
    `self` too, is read when the function is compiled and not again. Parameters must come as arguments. With
    has_aux=True the function returns (loss, aux), and aux is found in `.aux`.

    >>> @loss
    ... def square(w):
    ...     return jnp.sum(w * w)
    >>> w = Parameter(jnp.array([3.0, 4.0]))
    >>> y = square(w)
    >>> y.backward()
    >>> print(float(y), w.grad)
    25.0 [6. 8.]
    """
    if function is None:
        return functools.partial(loss, has_aux=has_aux)
    if not callable(function):
        raise TypeError(f"loss: found {function!r}, expected a function")
    return LossFunction(function, has_aux)
