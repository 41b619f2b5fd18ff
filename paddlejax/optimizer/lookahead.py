"""Lookahead around an optimizer object."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import pages
from ..array_types import Numeric
from ..average import LookaheadState, lookahead
from ..hyper import COUNT, FRACTION, NAME, checked
from ..trees import is_narrow, next_count
from .gate import whole
from .ledger import ArrayField, CountField, Entries, written
from .optimizer import SCHEDULE
from .parameter import Parameter
from .parts import Part
from .wrappers import OPTIMIZER, Wrapper, innermost


class _Lookahead(Part):
    """`lookahead` in the step of an object: the number of steps, and slow weights by position."""

    by_position = True

    def __init__(self, optimizer: Any, alpha: float, k: int, slow_start: str):
        self._optimizer, self.alpha, self.k, self._slow_start = optimizer, alpha, k, slow_start
        self.count: Any = np.zeros((), np.int32)
        self.slow: dict[int, jax.Array] = {}
        self._begun: dict[int, jax.Array] = {}  # with those that begin in the step that is being made

    def idle(self) -> None:
        """Count a step in which no Parameter has a gradient."""
        self.count, self.slow = next_count(self.count, self.k), self._started()

    def around(self, tx: Any) -> Any:
        """Return `lookahead` around the transformation inside."""
        return lookahead(tx, self.alpha, self.k, slow_start=self._slow_start)

    def land(self, values: list[Any], state: LookaheadState, grads: list[Any]) -> list[Any]:
        """At a synchronization return the slow weights themselves."""
        syncs, rows = state.count % self.k == 0, zip(values, state.slow, grads, strict=True)
        return [p if g is None else jnp.where(syncs, slow, p) for p, slow, g in rows]

    def state(self, positions: Sequence[int], inner: Any) -> LookaheadState:
        """Return the count, and the slow weights of these Parameters; a frozen one has none and moves not."""
        self._begun = slow = self._started()
        parameters = self._optimizer.parameter_list
        return LookaheadState(
            self.count,
            [slow[i] if i in slow else jnp.zeros_like(parameters[i].peek()) for i in positions],
            inner,
        )

    def keep(self, positions: Sequence[int], state: LookaheadState) -> Any:
        """Store count and slow weights; return the inner state."""
        new = {i: s for i, s in zip(positions, state.slow, strict=True) if i in self._begun}
        self.count, self.slow = state.count, {**self._begun, **new}
        self._begun = self.slow
        return state.inner

    def begin(self) -> None:
        """Start the slow weights where the Parameters stand now, if that is where they start."""
        if self._slow_start == "initial":
            self.slow = self._started()

    def copied(self) -> "Part":
        """Return it with arrays of its own, each once."""
        other = super().copied()
        vars(other)["_begun"] = vars(other)["slow"]
        return other

    def dtype(self, p: Parameter) -> Any:
        """Return the dtype of a slow weight: float32 where the optimizer moves a master."""
        return jnp.float32 if self._optimizer.masters is not None and is_narrow(p.peek()) else p.dtype

    def _started(self) -> dict[int, jax.Array]:
        """Return the slow weights of all trainable Parameters; new ones stand where the Parameter does.

        Where they start as what the first step leads to, `lookahead` replaces them in that step.
        """
        new = [
            (i, p) for i, p in enumerate(self._optimizer.parameter_list) if p.trainable and i not in self.slow
        ]
        if not new:
            return self.slow
        masters = self._optimizer.masters or {}
        return self.slow | {i: jnp.array(masters.get(p, p.peek()), self.dtype(p)) for i, p in new}


@pages.of(lookahead)
class LookAhead(Wrapper):
    """Paddle's LookAhead around an optimizer, see `lookahead`.

    Its state_dict holds everything: the inner state, the slow weights (`w_slow_0`) and the counter
    (`lookahead_step_0`). `get_lr` and `set_lr` are the inner optimizer's.

    >>> w = Parameter(jnp.zeros(1), "w")
    >>> opt = LookAhead(paddle.optimizer.SGD(1.0, [w]), alpha=0.5, k=2)
    >>> for _ in range(2):
    ...     _ = opt.apply_gradients([(w, -jnp.ones(1))])
    >>> print(w.value)
    [1.5]
    """

    _name: str | None
    _slow_from_the_start = False  # Paddle 1.x: the initial parameters, else what the first step led to
    _counter = "lookahead_step_0"

    @checked(inner_optimizer=OPTIMIZER, alpha=FRACTION, k=COUNT, name=NAME)
    def __init__(self, inner_optimizer: Any, alpha: Numeric = 0.5, k: int = 5, name: str | None = None):
        super().__init__(inner_optimizer)
        self._name = name
        slow_start = "initial" if self._slow_from_the_start else "first_step"
        self._part: Any = _Lookahead(innermost(self), float(alpha), k, slow_start)

    @property
    def alpha(self) -> float:
        """How far the slow weights go towards the fast ones; fixed at construction."""
        return self._part.alpha

    @property
    def k(self) -> int:
        """How many steps lie between two synchronizations; fixed at construction."""
        return self._part.k

    @whole
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, the slow weights and the counter."""
        count = int(self._part.count)
        if not count:
            return super().state_dict()
        slow = ((self._field(self.parameter_list[i]), s) for i, s in self._part.slow.items())
        return super().state_dict() | written([*slow, (CountField(self._counter, np.int32), count)])

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read slow weights and counter, then the inner optimizer's entries; see the ledger."""
        stepped = any(key not in (SCHEDULE, "global_step") for key in entries.rest)
        count = entries.read(CountField(self._counter, required=strict and stepped)) or 0
        needed = strict and count > 0
        fields = {i: self._field(p, needed and p.trainable) for i, p in enumerate(self.parameter_list)}
        slow = entries.read_all(fields)
        yield from super()._loading(entries, strict)
        self._part.count = jnp.array(count, jnp.int32)
        self._part.slow = {i: s for i, s in slow.items() if s is not None}

    def _field(self, p: Parameter, required: bool = True) -> ArrayField:
        """Return the ledger's field of a slow weight."""
        return ArrayField(self._key(p), p.shape, self._part.dtype(p), required=required)

    def _key(self, p: Parameter) -> str:
        return "_".join([p.name, *([self._name] if self._name else []), "slow", "0"])
