"""Sums, multiples and other expressions of losses: one Loss, with one backward pass through all."""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..loss_scaling import times
from . import gate
from .call import scalar
from .loss import Loss
from .parameter import Parameter
from .store import Values

# In postfix notation: (0, 1, "add") is the operand 0 plus the operand 1.
Formula = tuple[int | str, ...]


@dataclass(frozen=True)
class Sum:
    """The static half of an expression, as `Call` is of a call: it computes all losses and then the formula.

    The formula's operands are the losses, and after them the numbers.
    """

    calls: tuple[Any, ...]
    members: tuple[tuple[int, ...], ...]  # per call where its Parameters are among all
    fixed: tuple[int, ...]  # per call how many arrays are fixed; the numbers come after those of all calls
    formula: Formula
    tables: tuple[str | None, ...]
    scaled: bool = False  # as in `Call`

    @functools.cached_property
    def with_factor(self) -> "Sum":
        """The same expression of a loss that is scaled, made once."""
        return replace(self, scaled=True)

    def wrapped(self, wrap: Callable[..., Any]) -> "Sum":
        """The same expression of what `wrap` makes of every function."""
        return replace(self, calls=tuple(call.wrapped(wrap) for call in self.calls))

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return " and ".join(dict.fromkeys(call.name for call in self.calls))

    def __call__(self, trained: list[jax.Array], fixed: list[Any]) -> tuple[jax.Array, Any]:
        """Return the loss and the results of all calls."""
        results, at = [], 0
        for call, members, count in zip(self.calls, self.members, self.fixed, strict=True):
            results.append(call([trained[i] for i in members], fixed[at : at + count]))
            at += count
        numbers = fixed[at:-1] if self.scaled else fixed[at:]
        loss = evaluated(self.formula, [*(result[0] for result in results), *numbers])
        return (times(loss, fixed[-1]), (loss, results)) if self.scaled else (loss, results)


def evaluated(formula: Formula, operands: Sequence[Any]) -> jax.Array:
    """Return the value of a formula. Losses of different dtypes give the wider."""
    stack: list[Any] = []
    with jax.numpy_dtype_promotion("standard"):
        for token in formula:
            if isinstance(token, int):
                stack.append(operands[token])
            else:
                right = stack.pop()
                stack.append(getattr(operator, token)(stack.pop(), right))
    return scalar("an expression of losses", jnp.asarray(stack.pop()))


@functools.partial(jax.jit, static_argnums=0)
def _joined(call: Sum, losses: list[Any], grads: list[list[Any]], numbers: list[Any]) -> Any:
    """Return the value of an expression and the gradient of every Parameter, from those of the calls."""
    loss, weights = jax.value_and_grad(lambda x: evaluated(call.formula, [*x, *numbers]))(losses)
    totals: list[Any] = [None] * len(call.tables)
    for members, weight, own in zip(call.members, weights, grads, strict=True):
        for i, g in zip(members, own, strict=True):
            term = jax.tree.map(lambda x, w=weight: _weighted(x, w), g)
            totals[i] = term if totals[i] is None else totals[i] + term
    return loss, totals


def _weighted(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return a gradient times a number; the row numbers of a SelectedRows stay."""
    return x * weight.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


class Constant(Loss):
    """A number among losses that has no gradient: one that was detached, or one whose backward ran."""

    def __init__(self, source: Any, freed: bool = False):
        super().__init__(None, [], [])
        self.source = source
        self.ran_backward = freed
        if not isinstance(source, Loss):
            self.result = source, None

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return getattr(self.source, "name", "a number")

    def read(self) -> None:
        """Take the value from what it was detached from."""
        self.result = self.source.computed()


class Expression(Loss):
    """A Loss of other losses. Its parts are losses that are no expressions.

    Reading it reads every part by itself. Backward is one program for all parts, unless the gradients of some
    were computed when they were read.
    """

    def __init__(self, postfix: tuple[Any, ...], freed: bool):
        self.postfix = postfix  # losses, numbers, and names of operations
        self._freed = freed  # whether one of the numbers was a loss whose backward ran
        self.parts: list[Loss] = list({id(x): x for x in postfix if isinstance(x, Loss)}.values())
        self._numbers = [x for x in postfix if not isinstance(x, Loss | str)]
        self.moves = gate.own.moves
        self.ran_backward = False
        self.result = self.ready = None
        self.left = {}

    @functools.cached_property
    def parameters(self) -> list[Parameter]:
        """The Parameters of all parts, each once."""
        return list(dict.fromkeys(p for part in self.parts for p in part.parameters))

    @functools.cached_property
    def fixed(self) -> list[Any]:
        """What else the program is given: the arrays of all parts, and the numbers."""
        return [*(x for part in self.parts for x in part.fixed), *self._numbers]

    @functools.cached_property
    def trained(self) -> Values:
        """The values of the Parameters; they are those of every part, or the parts cannot be joined."""
        if not all(part.is_current() for part in self.parts):
            raise RuntimeError(
                f"{self.name}: found losses that were built before and after a step moved their parameters, "
                "expected that all were built after it; call the loss functions again"
            )
        return Values.of([p.store for p in self.parameters])

    @functools.cached_property
    def _formula(self) -> Formula:
        """The formula over the parts and the numbers."""
        at = {id(part): i for i, part in enumerate(self.parts)}
        numbers = iter(range(len(self.parts), len(self.postfix)))
        return tuple(
            x if isinstance(x, str) else at[id(x)] if isinstance(x, Loss) else next(numbers)
            for x in self.postfix
        )

    @functools.cached_property
    def call(self) -> Any:
        """The static half."""
        place = {p: i for i, p in enumerate(self.parameters)}
        members = tuple(tuple(place[p] for p in part.parameters) for part in self.parts)
        tables: dict[int, str | None] = {}
        for part, own in zip(self.parts, members, strict=True):
            tables |= dict(zip(own, part.call.tables, strict=True))
        counts = tuple(len(part.fixed) for part in self.parts)
        calls = tuple(part.call for part in self.parts)
        return Sum(calls, members, counts, self._formula, tuple(tables[i] for i in range(len(place))))

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return " and ".join(dict.fromkeys(part.name for part in self.parts))

    def is_current(self) -> bool:
        """Return whether the Parameters hold the arrays that they held when the parts were built."""
        return all(part.is_current() for part in self.parts) and super().is_current()

    def is_finished(self) -> bool:
        """Return whether only its value is left, as backward ran for all of it."""
        return all(part.is_finished() for part in self.parts)

    def has_gradients(self) -> bool:
        """Return whether gradients of a part were computed when it was read."""
        return self.ready is not None or any(part.has_gradients() for part in self.parts)

    def check_runs(self) -> None:
        """Raise if there is nothing to differentiate, or nothing is left of it or of a part."""
        done = [part.name for part in self.parts if part.is_finished()]
        if not self.ran_backward and (done or self._freed):
            raise RuntimeError(
                f"{self.name}: backward() ran already for {' and '.join(done) or 'a loss in it'}; "
                "use its detach() if it is a constant here, or its backward(retain_graph=True)"
            )
        super().check_runs()

    def gradients(self) -> tuple[Any, list[Any]]:
        """As `Loss.gradients`; what `learn` takes is (loss, results of the parts)."""
        self.check_runs()
        if self.ready is not None or not self.has_gradients():
            return super().gradients()
        results, grads = zip(*(part.gradients() for part in self.parts), strict=True)
        loss, totals = _joined(self.call, [result[0] for result in results], list(grads), self._numbers)
        return (loss, list(results)), totals

    def follow(self) -> None:
        """Note for every part that backward follows."""
        for part in self.parts:
            part.follow()

    def learn(self, result: Any) -> None:
        """Keep the value, and those of the parts."""
        self.result = result[0], None
        for part, own in zip(self.parts, result[1], strict=True):
            part.learn(own)

    def settle(self, result: Any) -> None:
        """Backward has run: the parts keep their values too."""
        super().settle(result)
        for part, own in zip(self.parts, result[1], strict=True):
            part.settle(own)

    def retain(self, retain_graph: bool) -> None:
        """Say it of every part."""
        super().retain(retain_graph)
        for part in self.parts:
            part.retain(retain_graph)

    def read(self) -> None:
        """Read the parts, and compute the value from theirs."""
        values = [part.value for part in self.parts]
        self.result = evaluated(self._formula, [*values, *self._numbers]), None

    @property
    def aux(self) -> Any:
        """What the function of the only part returned beside its loss; of several parts a tuple of these."""
        found = tuple(part.aux for part in self.parts)
        return found[0] if len(found) == 1 else found


def combined(operation: str, left: Any, right: Any, swap: bool) -> Any:
    """Return the Loss of `left operation right`, or NotImplemented if one of them is no number."""
    if swap:
        if operation == "add" and isinstance(right, int | float) and right == 0:
            return left  # as `sum` begins
        left, right = right, left
    operands = _operand(left), _operand(right)
    if None in operands:
        return NotImplemented
    (first, first_freed), (second, second_freed) = operands  # type: ignore[misc]
    if any(isinstance(x, Loss) for x in (*first, *second)):
        return Expression((*first, *second, operation), first_freed or second_freed)
    return Constant(evaluated((0, 1, operation), [*first, *second]), first_freed or second_freed)


def _operand(x: Any) -> tuple[tuple[Any, ...], bool] | None:
    """Return (postfix, whether its backward ran) of an operand; None if it is no number.

    A loss that is finished, or constant, is the number that it was.
    """
    if isinstance(x, Loss):
        if isinstance(x, Constant) or x.is_finished():
            return (x.value,), x.ran_backward
        if not isinstance(x, Expression) and x.call is None:  # a Constant was told apart above
            raise TypeError(
                f"found the loss of a {x.name}, whose sections are programs of their own, in a sum"
            )
        if not x.parameters:  # it has no gradient: so it is its value, and what it holds can go
            return (x.value,), False
        return x.postfix if isinstance(x, Expression) else (x,), False
    if isinstance(x, Parameter):
        raise TypeError(
            f"found Parameter {x.name} beside a Loss, where it would be a constant without a gradient; "
            "expected it among the arguments of a loss function"
        )
    if isinstance(x, np.generic) and np.isrealobj(x):
        x = x.item()
    if isinstance(x, int | float):
        return (float(x),), False
    if isinstance(x, np.ndarray | jax.Array) and x.size == 1 and not jnp.iscomplexobj(x):
        return (jnp.reshape(x, ()),), False
    return None
