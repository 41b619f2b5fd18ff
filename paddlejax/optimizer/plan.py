"""The compiled programs of one optimizer step."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..master import MasterState, with_master_weights
from ..paths import LeafOptions, per_leaf
from ..rule import GradientTransformation, Lifted, lift
from ..transform import apply_updates, set_learning_rate
from ..trees import compute_dtype
from .cohorts import Cohort
from .loss import Call, value_and_grad
from .parameter import Parameter

OWN: Any = object()  # "the optimizer's own", where None already means something


class Plan:
    """The compiled programs of a step that reaches certain cohorts."""

    def __init__(
        self,
        cohorts: tuple[Cohort, ...],
        options: Sequence[LeafOptions],
        parameters: Sequence[Parameter],
        grad_clip: Any,
        masters: bool,
    ):
        self.cohorts = cohorts
        self.order = [i for c in cohorts for i in c.members]
        self.parameters = [parameters[i] for i in self.order]
        self.place = {p: at for at, p in enumerate(self.parameters)}
        chosen = [options[i]._replace(rule=None) for i in self.order]
        if grad_clip is not OWN:
            clip = grad_clip.transformation()
            asked = [clip if grad_clip.selects(p) else None for p in self.parameters]
            chosen = [o._replace(grad_clip=c) for o, c in zip(chosen, asked, strict=True)]
        self.prepare = per_leaf(lambda path: chosen[int(path)])
        self.rules = [_about(c, options) for c in cohorts]
        wide = {compute_dtype((), p._value) for p in self.parameters}
        self.rate = np.float64 if np.float64 in wide else np.float32
        tx = GradientTransformation(lambda values: self.cohorts, self._update)
        self.tx = with_master_weights(tx) if masters else tx
        self.step = jax.jit(self._step, donate_argnums=(0, 1))
        self.minimize = jax.jit(self._minimize, static_argnums=(0, 1), donate_argnums=(2, 3))

    def state(self, masters: dict[int, jax.Array] | None) -> Any:
        states = [c.state for c in self.cohorts]
        return states if masters is None else MasterState([masters.get(i) for i in self.order], states)

    def store(self, values: list[jax.Array], state: Any, masters: dict[int, jax.Array] | None) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.put(value)
        if masters is not None:
            masters.update({i: m for i, m in zip(self.order, state.master, strict=True) if m is not None})
            state = state.inner
        for c, new in zip(self.cohorts, state, strict=True):
            c.state = new

    def _step(self, values: list[Any], state: Any, grads: list[Any], rate: Any) -> tuple[list[Any], Any]:
        updates, state = self.tx.update(grads, state, values, rate=rate)
        new = apply_updates(values, updates)
        if isinstance(state, MasterState):  # p + (M - p) would be NaN where p had been beyond float16's range
            masters = zip(new, state.master, values, strict=True)
            new = [p if m is None else m.astype(old.dtype) for p, m, old in masters]
        return new, state

    def _update(self, grads: Any, states: list[Any], values: list[Any], *, rate: Any) -> tuple[Any, Any]:
        """Clip and decay everything together, then step each cohort by its rule."""
        grads, _ = self.prepare.update(grads, self.prepare.init(values), values)
        updates, new_states, start = [], [], 0
        for c, rule, state in zip(self.cohorts, self.rules, states, strict=True):
            part = slice(start, start := start + len(c.members))
            steps, state = rule.update(grads[part], set_learning_rate(state, rate), values[part])
            updates += steps
            new_states.append(state)
        return updates, new_states

    def _minimize(
        self,
        call: Call,
        places: tuple[int | None, ...],
        values: list[Any],
        state: Any,
        others: list[Any],
        fixed: list[Any],
        rate: Any,
    ) -> Any:
        rest = iter(others)
        trained = [next(rest) if place is None else values[place] for place in places]
        result, grads = value_and_grad(call, trained, fixed)
        ordered: list[Any] = [None] * len(values)
        for place, g in zip(places, grads, strict=True):
            if place is not None:
                ordered[place] = g
        return *self._step(values, state, ordered, rate), result, grads


def _about(cohort: Cohort, options: Sequence[LeafOptions]) -> Lifted:
    """The cohort's rule, told each member's Parameter and factor on the rate."""
    mine = [options[i] for i in cohort.members]

    def leaf(path: str) -> tuple[Any, float]:
        return mine[int(path)].leaf, mine[int(path)].learning_rate

    return lift(cohort.rule.source.rule, 0.0, leaf)
