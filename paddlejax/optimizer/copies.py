"""Copies of objects with a state, by copy, deepcopy or pickle, while another thread may step."""

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..recent import Recent
from .gate import whole


class Copied:
    """Base of these objects. A copy is of one moment, all that the object holds included.

    A pickle takes one object after another, between which another thread may step. An optimizer's has the
    values of its Parameters too, of the moment of its state.
    """

    _donated: ClassVar[tuple[str, ...]] = ()  # attributes with arrays that the next step takes

    @whole
    def __getstate__(self) -> dict[str, Any]:
        """Nothing in it is taken by a later step."""
        return {**vars(self), **{name: own(getattr(self, name)) for name in self._donated}}

    @whole
    def __copy__(self) -> Any:
        return _rebuilt(self, lambda state: state, {})

    @whole
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _rebuilt(self, functools.partial(copy.deepcopy, memo=memo), memo)


class CopiedSteps(Copied):
    """The part of an optimizer that says what a copy of it has."""

    parameter_list: list[Any]
    _plan: Any
    _steps: Any

    @whole
    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what comes back from a pickle, makes programs of its own."""
        plan = self._plan._replace(seen=-1)  # changes are counted by each process for itself
        steps = self._steps.afresh(groups=own(self._steps.groups), masters=own(self._steps.masters))
        fresh = {"_steps": steps, "_plan": plan, "_stowed": None, "_clipped": Recent()}
        fresh |= {"layers": (), "_note": None}  # of a step that another thread is about to make
        return {**vars(self), **fresh, "_moment": {p: p.store.share() for p in self.parameter_list}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state. Parameters that were copied at another moment get the values beside it."""
        moment = state.pop("_moment", {})
        vars(self).update(state)
        for p, x in moment.items():
            p.store.array = x


def _rebuilt(x: Any, through: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    """Return what `copy` makes of an object that says nothing about copies."""
    make, args, *rest = x.__reduce_ex__(2)
    new = memo[id(x)] = make(*args)
    state = through(rest[0] if rest else {})
    if hasattr(new, "__setstate__"):
        new.__setstate__(state)
    else:
        for part in state if isinstance(state, tuple) else [state]:  # the second has the __slots__
            for name, value in (part or {}).items():
                object.__setattr__(new, name, value)
    return new


def own(tree: Any) -> Any:
    """Return a state with arrays that nobody else has."""
    return jax.tree.map(_own, tree)


def _own(x: Any) -> Any:
    return x.copied() if hasattr(x, "copied") else jnp.copy(x) if isinstance(x, jax.Array) else x
