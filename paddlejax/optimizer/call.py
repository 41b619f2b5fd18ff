"""The call of a loss function as a program takes it, and what is computed of it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..hyper import ArgumentError
from ..loss_scaling import times
from ..sparse import value_and_grads
from ..tracing import loss_inside
from .parameter import Parameter
from .programs import waited


@dataclass(frozen=True)
class Call:
    """The static half of a call: equal calls share a compiled program."""

    function: Callable[..., Any]
    has_aux: bool
    tree: Any  # structure of (args, kwargs)
    places: tuple[tuple[str, Any], ...]  # per leaf: where its value is, or the value itself if it is static
    tables: tuple[str | None, ...]  # per trained Parameter: its name if only `embedding` may read it
    scaled: bool = False  # whether the last of what is fixed is a factor on the loss; then aux is (loss, aux)

    @functools.cached_property
    def _hash(self) -> int:
        """The hash, computed only once."""
        return hash((self.function, self.has_aux, self.tree, self.places, self.tables, self.scaled))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def with_factor(self) -> "Call":
        """The same call of a loss that is scaled, made once: it keeps its hash."""
        return replace(self, scaled=True)

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> "Call":
        """The same call of what `wrap` makes of the function."""
        return replace(self, function=wrap(self.function))

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return getattr(self.function, "__name__", "the loss function")

    def __call__(self, trained: list[jax.Array], fixed: list[Any]) -> tuple[jax.Array, Any]:
        sources = {"trained": trained, "fixed": fixed}
        leaves = [where if kind == "static" else sources[kind][where] for kind, where in self.places]
        args, kwargs = self.tree.unflatten(leaves)
        with loss_inside.set(self.name):
            result: Any = self.function(*args, **kwargs)
        if self.has_aux and (not isinstance(result, tuple) or len(result) != 2):
            raise TypeError(
                f"{self.name}: found {type(result).__name__}, expected (loss, aux) because has_aux=True"
            )
        loss, aux = result if self.has_aux else (result, None)
        loss = total(self.name, loss)
        return (times(loss, fixed[-1]), (loss, aux)) if self.scaled else (loss, aux)


def scalar(name: str, loss: Any) -> jax.Array:
    """What a loss function returned as a scalar, or an error if it is none."""
    loss = getattr(loss, "value", loss)  # of another loss function, which it called
    if not hasattr(loss, "dtype") or jnp.size(loss) != 1 or not jnp.issubdtype(loss.dtype, jnp.floating):
        found = f"shape {jnp.shape(loss)} and dtype {loss.dtype}" if hasattr(loss, "dtype") else repr(loss)
        raise ArgumentError(f"{name}: found a loss of {found}, expected a real floating scalar")
    return jnp.reshape(loss, ())


def total(name: str, loss: Any) -> jax.Array:
    """As `scalar`; several elements are their sum, as for Paddle's backward."""
    loss = getattr(loss, "value", loss)
    several = hasattr(loss, "dtype") and jnp.size(loss) > 1 and jnp.issubdtype(loss.dtype, jnp.floating)
    return scalar(name, jnp.sum(loss) if several else loss)


def value_and_grad(call: Any, trained: list[jax.Array], fixed: list[Any]) -> tuple[Any, list[Any]]:
    """((loss, aux), the gradient of each trained Parameter) of a call."""
    return value_and_grads(lambda leaves: call(leaves, fixed), trained, call.tables)


def gradients_of(function: Callable[[Any], Any], parameters: Any) -> dict[Parameter, Any]:
    """Gradients of a function of the whole tree, not compiled here: it may be a new one every time."""
    leaves, tree = jax.tree.flatten(parameters)
    trained = [i for i, p in enumerate(leaves) if isinstance(p, Parameter) and p.trainable]
    values = [p.peek() if isinstance(p, Parameter) else p for p in leaves]
    name = f"the loss function {getattr(function, '__name__', '')}"

    def of(trained_values: list[jax.Array]) -> tuple[jax.Array, None]:
        replaced = dict(zip(trained, trained_values, strict=True))
        with loss_inside.set(name):
            loss = function(tree.unflatten([replaced.get(i, v) for i, v in enumerate(values)]))
        return total(name, loss), None

    tables = [leaves[i].name if leaves[i].sparse else None for i in trained]
    _, grads = waited(value_and_grads(of, [values[i] for i in trained], tables))
    return {leaves[i]: g for i, g in zip(trained, grads, strict=True)}
