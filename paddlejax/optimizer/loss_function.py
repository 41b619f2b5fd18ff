"""The `loss` decorator: a function of Parameters and data whose calls build a Loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ..recent import Recent
from ..tracing import InForce
from ..trees import compute_dtype
from . import gate
from .call import Call
from .loss import Loss
from .parameter import Parameter

_without_grad = InForce()  # True in a `no_grad` block


class LossFunction:
    """What the `loss` decorator makes of a function."""

    def __init__(self, function: Callable[..., Any], has_aux: bool):
        functools.update_wrapper(self, function)
        self.function, self.has_aux = function, has_aux
        self._sorts: Recent[Any, _Sorts] = Recent()  # by the types of the leaves
        self._recipes: Recent[Any, _Recipe] = Recent()  # by all that a Call depends on

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Loss:
        leaves, tree = jax.tree.flatten((args, kwargs))
        types = tuple(map(type, leaves))
        sorts = self._sorts.get(types) or self._sorts.put(types, _sorted(leaves))
        mine = [leaves[i] for i in sorts.parameters]
        static = tuple([leaves[i] for i in sorts.static])
        traits = tuple([p.stop_gradient for p in mine]), tuple([p.traits for p in mine])
        ties = None if len(set(mine)) == len(mine) else tuple(map(mine.index, mine))
        frozen = _without_grad.value is True
        key = tree, types, traits, ties, static, frozen
        try:
            recipe = self._recipes.get(key)
        except TypeError:
            for leaf in static:
                self._check_static(leaf)
            raise
        if recipe is None:  # one for every value of a static argument
            recipe = self._recipes.put(key, self._recipe(leaves, tree, sorts, frozen))
        fixed = [leaves[i] for i in recipe.fixed]
        with gate.lock:  # all values are of one moment
            gate.settle()
            found = Loss(recipe.call, [leaves[i] for i in recipe.trained], fixed)
            if frozen or True in traits[0]:
                found.again = functools.partial(_read, fixed)
                found.fixed = found.again()
        return found

    def _recipe(self, leaves: list[Any], tree: Any, sorts: "_Sorts", frozen: bool) -> "_Recipe":
        """Return how a Loss is made of calls with such leaves; `frozen` if no Parameter is trained."""
        trained: dict[Parameter, int] = {}
        places: list[tuple[str, Any]] = []
        at: list[int] = []
        fixed: list[int] = []
        for i, leaf in enumerate(leaves):
            if i in sorts.static:
                places.append(("static", leaf))
            elif isinstance(leaf, Parameter) and leaf.trainable and not frozen:
                if not leaf.is_real:
                    compute_dtype((jax.tree_util.GetAttrKey(leaf.name),), leaf.peek())  # says what is wrong
                if leaf not in trained:
                    trained[leaf] = len(at)
                    at.append(i)
                places.append(("trained", trained[leaf]))
            else:
                places.append(("fixed", len(fixed)))
                fixed.append(i)
        tables = tuple(p.name if p.sparse else None for p in trained)
        return _Recipe(Call(self.function, self.has_aux, tree, tuple(places), tables), at, fixed)

    def _check_static(self, leaf: Any) -> None:
        """Raise if a static argument cannot be hashed: it could not be a part of the key."""
        try:
            hash(leaf)
        except TypeError:
            name = getattr(self.function, "__name__", "the loss function")
            expected = "arrays, numbers, Parameters and hashable values"
            raise TypeError(
                f"{name}: found an argument {leaf!r} that is not hashable, expected {expected}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sorts": Recent(), "_recipes": Recent()}


def _read(leaves: list[Any]) -> list[Any]:
    """Return what a program is given for these leaves of a call: arrays in place of Parameters."""
    return [x.peek() if isinstance(x, Parameter) else x for x in leaves]


class _Sorts(NamedTuple):
    """Which leaves of a call are what; it follows from their types."""

    parameters: list[int]
    static: list[int]


def _sorted(leaves: list[Any]) -> _Sorts:
    """Return which leaves are Parameters and which are static; all others are traced."""
    arrays = (Parameter, jax.Array, np.ndarray, np.generic)
    traced = [isinstance(x, arrays) or type(x) in (int, float, complex) for x in leaves]
    return _Sorts(
        [i for i, x in enumerate(leaves) if isinstance(x, Parameter)],
        [i for i, is_traced in enumerate(traced) if not is_traced],
    )


class _Recipe(NamedTuple):
    """How a Loss is made of the leaves of a call: each Parameter once, in the order of their first places."""

    call: Call
    trained: list[int]
    fixed: list[int]


def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """Paddle's no_grad: losses that are built in the block have no gradient. To read one costs one forward
    pass and never more.

    It is a context manager, and a decorator with or without brackets. Nothing else is switched off: JAX takes
    gradients only where it is told to.

    >>> w = Parameter(jnp.array([3.0]))
    >>> with no_grad():
    ...     y = loss(lambda w: jnp.sum(w * w))(w)
    >>> print(float(y), y.parameters)
    9.0 []
    """
    block = _without_grad.set(True)
    return block if function is None else block(function)


def with_gradients() -> Any:
    """A block in which losses have gradients, also within a `no_grad` block."""
    return _without_grad.set(None)


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
