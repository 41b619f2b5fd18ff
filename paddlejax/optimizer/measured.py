"""Steps that also measure themselves: `set_info` and `get_info` of the Paddle-style object."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..info import Info, InfoState, apart, has_trust_ratio, measure, trust_ratios
from ..lifting import RuleState
from ..paths import per_leaf
from .plan import Plan


class Measured:
    """The part of an optimizer that says what its last step did."""

    _measures = False
    _info: Info | None = None
    _plans: dict[Any, Plan]
    _ready: dict[Any, Plan | None]

    def set_info(self, enabled: bool = True) -> None:
        """Measure every step from now on, for `get_info`, or no longer; the numbers of a step stay the same.

        The next step is compiled anew. Paddle has no such method.
        """
        if not isinstance(enabled, bool):
            raise TypeError(f"set_info's enabled: found {enabled!r}, expected True or False")
        if enabled != self._measures:
            self._plans, self._ready = {}, {}
        self._measures, self._info = enabled, None

    def get_info(self) -> Info:
        """What the last step did, an `Info`: norms over the parameters that it reached, and the rate.

        `clip_factor` is None without grad_clip, `trust_ratios` {name: ()} for Lamb and LARS, else None.
        Steps that a GradScaler leaves out do not get here: `skipped` is None.

        >>> opt = optimizer.SGD(0.5, parameters={"w": jnp.array([3.0, 4.0])})
        >>> opt.set_info()
        >>> _ = opt.minimize(lambda p: (p["w"] ** 2).sum())
        >>> print(opt.get_info().gradient_norm, opt.get_info().update_norm, opt.get_info().learning_rate)
        10.0 5.0 0.5
        """
        if self._info is None:
            raise RuntimeError("get_info: found no measured step; call set_info() before the step")
        return self._info

    def _new_plan(self, *arguments: Any) -> Plan:
        return MeasuredPlan(*arguments, tell=self._tell) if self._measures else Plan(*arguments)

    def _tell(self, info: Info) -> None:
        self._info = info


class MeasuredPlan(Plan):
    """The programs of a step that also return its Info, in an InfoState around the state of the cohorts."""

    def __init__(self, *arguments: Any, tell: Callable[[Info], None]):
        super().__init__(*arguments)
        self._tell = tell
        self._clip = per_leaf(lambda path: self.prepared[int(path)]._replace(weight_decay=None))
        self._decay = per_leaf(lambda path: self.prepared[int(path)]._replace(grad_clip=None))

    def _update(self, grads: Any, states: list[Any], values: list[Any], *, rate: Any) -> tuple[Any, Any]:
        clipped, _ = self._clip.update(grads, self._clip.init(values), values)
        decayed, _ = self._decay.update(clipped, self._decay.init(values), values)
        updates, new_states = self._update_prepared(decayed, states, values, rate)
        again = None
        if any(o.grad_clip is not None for o in self.prepared):
            again, _ = self._clip.update(apart(grads), self._clip.init(values), values)
        info = measure(grads, again, updates, values)
        ratios = self._trust_ratios(decayed, states, new_states, values, rate)
        info = info._replace(trust_ratios=ratios, learning_rate=jnp.asarray(rate, self.rate))
        return updates, InfoState(info, new_states)  # type: ignore[arg-type]

    def _trust_ratios(
        self, grads: Any, states: list[Any], new_states: list[Any], values: list[Any], rate: Any
    ) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        for rule, old, new, span, dtype in zip(
            self.rules, states, new_states, self.spans, self.rates, strict=True
        ):
            if has_trust_ratio(rule):
                before, after = (
                    RuleState(jnp.zeros((), jnp.int32), jnp.asarray(rate, dtype), *s) for s in (old, new)
                )
                paths = [str(i) for i in range(span.stop - span.start)]
                ratios = trust_ratios(rule, paths, grads[span], values[span], before, after)
                found |= {p.name: r for p, r in zip(self.parameters[span], ratios, strict=True)}
        return found or None

    def _store_state(self, state: Any, masters: Any) -> None:
        measured = state if masters is None else state.inner
        self._tell(measured.info)
        super()._store_state(
            measured.inner if masters is None else state._replace(inner=measured.inner), masters
        )
