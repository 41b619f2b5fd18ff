"""Losses as Paddle has them: a call builds a deferred scalar that can be run backward."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import ArgumentError
from ..loss_scaling import times
from ..sparse import value_and_grads
from ..trees import compute_dtype
from .parameter import Parameter, inside_loss
from .store import Values, Where


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

    def running(self, function: Callable[..., Any]) -> "Call":
        """The same call of another function."""
        return replace(self, function=function)

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
        loss, aux = result if self.has_aux else (result, None)
        loss = scalar(name, loss)
        return (times(loss, fixed[-1]), (loss, aux)) if self.scaled else (loss, aux)


def scalar(name: str, loss: Any) -> jax.Array:
    """What a loss function returned as a scalar, or an error if it is none."""
    if not hasattr(loss, "dtype") or jnp.size(loss) != 1 or not jnp.issubdtype(loss.dtype, jnp.floating):
        found = f"shape {jnp.shape(loss)} and dtype {loss.dtype}" if hasattr(loss, "dtype") else repr(loss)
        raise ArgumentError(f"{name}: found a loss of {found}, expected a real floating scalar")
    return jnp.reshape(loss, ())


def value_and_grad(call: Any, trained: list[jax.Array], fixed: list[Any]) -> tuple[Any, list[Any]]:
    """((loss, aux), the gradient of each trained Parameter) of a call."""
    return value_and_grads(lambda leaves: call(leaves, fixed), trained, call.tables)


def backward_of(function: Callable[[Any], Any], parameters: Any) -> None:
    """Gradients of a function of the whole tree, not compiled here: it may be a new one every time."""
    leaves, tree = jax.tree.flatten(parameters)
    trained = [i for i, p in enumerate(leaves) if isinstance(p, Parameter) and p.trainable]
    values = [p.peek() if isinstance(p, Parameter) else p for p in leaves]

    def of(trained_values: list[jax.Array]) -> tuple[jax.Array, None]:
        replaced = dict(zip(trained, trained_values, strict=True))
        loss = function(tree.unflatten([replaced.get(i, v) for i, v in enumerate(values)]))
        return scalar(f"the loss function {getattr(function, '__name__', '')}", loss), None

    tables = [leaves[i].name if leaves[i].sparse else None for i in trained]
    _, grads = value_and_grads(of, [values[i] for i in trained], tables)
    for i, g in zip(trained, grads, strict=True):
        leaves[i].accumulate(g)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(call: Call, where: Where | None, trained: list[jax.Array], fixed: list[Any]) -> Any:
    """Return (loss, aux)."""
    return call(trained if where is None else where.spread(trained), fixed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(call: Call, where: Where | None, trained: list[jax.Array], fixed: list[Any]) -> Any:
    """Return (loss, aux) and the gradients."""
    return value_and_grad(call, trained if where is None else where.spread(trained), fixed)


class Loss:
    """A scalar that has not been computed yet: `float()`, `.item()`, `.numpy()`, `.backward()`, or `minimize`
    it.

    It speaks of the parameters as they were when it was built. Once a step has moved them it cannot be
    computed any more (their old values are gone) and says so; a value that was computed before stays.
    """

    def __init__(self, call: Call, parameters: list[Parameter], fixed: list[Any]):
        self.call, self.parameters, self.fixed = call, parameters, fixed
        self.trained: Any = Values.of([p.store for p in parameters])
        self.ran_backward = False
        self.result: Any = None

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
        grads = [p.accumulated(g) for p, g in zip(self.parameters, grads, strict=True)]
        try:
            self.take(result, grads)
        except BaseException:
            self.take(result, grads)
            raise

    def take(self, result: Any, grads: list[Any]) -> None:
        """Keep the value, and these gradients in place of what is there; twice is as good as once."""
        self.settle(result)
        for p, g in zip(self.parameters, grads, strict=True):
            p.lazy_grad = g

    def settle(self, result: Any) -> None:
        """Backward has run, wherever: keep the value and let go of what it was computed from."""
        self.result, self.ran_backward = result, True
        self.trained, self.fixed = Values([], None), []

    def is_current(self) -> bool:
        """Return whether all its parameters still hold the arrays that they held when it was built."""
        return self.trained.are_still([p.store for p in self.parameters])

    def _run(self, compiled: Any) -> Any:
        """Run a program over what the loss was built from; raise if a step has taken that memory."""
        given = (*self.trained.arrays, *self.fixed)
        if any([isinstance(x, jax.Array) and x.is_deleted() for x in given]):
            raise RuntimeError(
                f"{self._name}: this loss was built before a step moved its parameters and was not computed "
                "in time; call the loss function again"
            )
        return compiled(self.call, self.trained.where, self.trained.arrays, self.fixed)

    def _computed(self) -> Any:
        """Return (loss, aux), after the forward pass if nothing has computed them yet."""
        if self.result is None:
            self.result = self._run(_forward)
        return self.result

    @property
    def _name(self) -> str:
        """The name of the loss function, for messages."""
        return getattr(self.call.function, "__name__", "loss")

    @property
    def value(self) -> jax.Array:
        """The loss as an array; it is computed now if it was not."""
        return self._computed()[0]

    @property
    def aux(self) -> Any:
        """What the function returned beside the loss, with `@loss(has_aux=True)`."""
        return self._computed()[1]

    def item(self) -> float:
        """Return the loss as a Python float; it is computed now if it was not."""
        return float(self.value)

    __float__ = item

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def numpy(self) -> np.ndarray:
        """Return the loss as a NumPy array; it is computed now if it was not."""
        return np.array(self.value)

    def __repr__(self) -> str:
        return f"Loss({self._name}" + (
            ", not computed yet)" if self.result is None else f" = {self.item():g})"
        )


class LossFunction:
    """What the `loss` decorator makes of a function."""

    def __init__(self, function: Callable[..., Any], has_aux: bool):
        functools.update_wrapper(self, function)
        self.function, self.has_aux = function, has_aux
        self._sorts: dict[Any, _Sorts] = {}  # by the types of the leaves
        self._recipes: dict[Any, _Recipe] = {}  # by all that a Call depends on

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Loss:
        leaves, tree = jax.tree.flatten((args, kwargs))
        types = tuple(map(type, leaves))
        sorts = self._sorts.get(types) or self._sorts.setdefault(types, _sorted(leaves))
        mine = [leaves[i] for i in sorts.parameters]
        static = tuple([leaves[i] for i in sorts.static])
        traits = tuple([p.stop_gradient for p in mine]), tuple([p.traits for p in mine])
        ties = None if len(set(mine)) == len(mine) else tuple(map(mine.index, mine))
        key = tree, types, traits, ties, static
        try:
            recipe = self._recipes.get(key)
        except TypeError:
            for leaf in static:
                self._check_static(leaf)
            raise
        if recipe is None:
            if len(self._recipes) > 1000:  # one for every value of a static argument
                self._recipes.clear()
            recipe = self._recipes[key] = self._recipe(leaves, tree, sorts)
        fixed = [leaves[i] for i in recipe.fixed]
        if True in traits[0]:
            fixed = [x.peek() if isinstance(x, Parameter) else x for x in fixed]
        return Loss(recipe.call, [leaves[i] for i in recipe.trained], fixed)

    def _recipe(self, leaves: list[Any], tree: Any, sorts: "_Sorts") -> "_Recipe":
        """Return how a Loss is made of calls with such leaves."""
        trained: dict[Parameter, int] = {}
        places: list[tuple[str, Any]] = []
        at: list[int] = []
        fixed: list[int] = []
        for i, leaf in enumerate(leaves):
            if i in sorts.static:
                places.append(("static", leaf))
            elif isinstance(leaf, Parameter) and leaf.trainable:
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
        return {**vars(self), "_sorts": {}, "_recipes": {}}


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
