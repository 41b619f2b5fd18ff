"""Gradient accumulation around an optimizer object."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..accumulate import add, merge
from ..hyper import COUNT, FLAG, checked
from ..lifting import GradientTransformation
from ..selected_rows import dense
from ..trees import compute_dtype
from .gate import whole
from .ledger import ArrayField, CountField, Entries, written
from .parameter import Parameter
from .parts import Part
from .wrappers import OPTIMIZER, Wrapper, innermost


class _Merge(Part):
    """The sums of gradients between two steps of an object, by position, and how many each is of.

    The number is known on the host. So a step that only gathers is a program of its own, which touches no
    parameter and no accumulator.
    """

    gathers = True

    def __init__(self, optimizer: Any, k: int, avg: bool):
        self._optimizer, self.k, self.avg = optimizer, k, avg
        self.count = self._after = 0  # _after: the count after the step that is being made
        self.sums: dict[int, jax.Array] = {}
        self._spare: dict[int, jax.Array] = {}  # zeros in the memory of earlier sums, for the next ones

    @property
    def waits(self) -> bool:
        """Whether the next call only gathers."""
        return self.count + 1 < self.k

    def joins(self, i: int) -> bool:
        """Whoever had a gradient in one of the calls takes part in the step, unless it was frozen since."""
        return not self.waits and i in self.sums and self._optimizer.parameter_list[i].trainable

    def takes_rows(self) -> bool:
        """The sums are dense."""
        return True

    def idle(self) -> None:
        """Count a call in which no Parameter takes part."""
        self.count = (self.count + 1) % self.k
        self.sums = self.sums if self.count else {}

    def around(self, tx: Any) -> Any:
        """Return what adds the gradients to the sums, and at every k-th call steps with the sums."""
        waits, k, avg = self.waits, self.k, self.avg

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            sums, spare, inner = state
            rows = zip(sums, spare, grads, params, strict=True)
            totals = [
                _plus(zeros if s is None else s, g, p) if g is not None else s for s, zeros, g, p in rows
            ]
            given = totals if waits else [t if t is None else merge([t], k, avg)[0] for t in totals]
            updates, inner = tx.update(given, inner, params, **extra)
            pairs = zip(totals, spare, strict=True)
            if waits:
                return updates, (totals, [zeros if t is None else None for t, zeros in pairs], inner)
            emptied = [zeros if t is None else jnp.zeros_like(t) for t, zeros in pairs]
            return updates, ([None] * len(totals), emptied, inner)

        return GradientTransformation(tx.init, update)

    def state(self, positions: Sequence[int], inner: Any) -> Any:
        """Return the sums of these Parameters, and zeros for new ones. The count after the call is noted here
        so that `keep` only assigns."""
        self._after = (self.count + 1) % self.k
        return [self.sums.get(i) for i in positions], [self._spare.get(i) for i in positions], inner

    def keep(self, positions: Sequence[int], state: Any) -> Any:
        """Store sums and zeros; after a step there are no sums, not even of who was frozen in between."""
        sums, spare, inner = state
        self._spare = {**self._spare, **dict(zip(positions, spare, strict=True))}
        self.sums = {**self.sums, **_there(positions, sums)} if self._after else {}
        self.count = self._after
        return inner


def _there(positions: Sequence[int], arrays: Sequence[Any]) -> dict[int, jax.Array]:
    """Return the arrays that there are, by position."""
    return {i: x for i, x in zip(positions, arrays, strict=True) if x is not None}


def _plus(total: Any, g: Any, p: Any) -> Any:
    """Return the sum with another gradient, in float32 or wider; there may be no sum yet."""
    if g.dtype.itemsize < 4:  # XLA would leave out that it is rounded, and the sum be one of other gradients
        g = jax.lax.optimization_barrier(g)
    return jnp.asarray(dense(g), compute_dtype((), p)) if total is None else add([total], [dense(g)])[0]


class GradientMergeOptimizer(Wrapper):
    """Paddle's GradientMergeOptimizer: one step for every k_steps gradients, see `accumulate_gradients`.

    Clear the gradients between calls, as ever. A parameter that had a gradient in any of the k_steps calls
    takes part in the step.

    >>> w = Parameter(jnp.zeros(1), "w")
    >>> opt = GradientMergeOptimizer(paddle.optimizer.SGD(1.0, [w]), k_steps=2)
    >>> for g in (1.0, 3.0):
    ...     _ = opt.apply_gradients([(w, jnp.array([g]))])
    >>> print(w.value)
    [-2.]
    """

    @checked(inner_optimizer=OPTIMIZER, k_steps=COUNT, avg=FLAG)
    def __init__(self, inner_optimizer: Any, k_steps: int = 1, avg: bool = True):
        super().__init__(inner_optimizer)
        self._part: Any = _Merge(innermost(self), k_steps, avg)

    @property
    def k_steps(self) -> int:
        """How many gradients make one step; fixed at construction."""
        return self._part.k

    @property
    def avg(self) -> bool:
        """Whether a step takes the mean of the gradients, not their sum; fixed at construction."""
        return self._part.avg

    def _within(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """With k_steps=1 there is nothing to gather: call the inner optimizer alone."""
        return method(*args, **kwargs) if self.k_steps == 1 else super()._within(method, *args, **kwargs)

    def step(self, *closure: Any) -> Any:
        """Gather every parameter's `.grad`; at every k-th call the inner optimizer steps."""
        if self.k_steps > 1 and closure:
            raise TypeError("GradientMergeOptimizer's step: found a closure, expected none")
        return super().step(*closure)

    @whole
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and between steps the sums and the counter."""
        count = self._part.count
        if not count:
            return super().state_dict()
        sums = ((self._field(self.parameter_list[i]), s) for i, s in self._part.sums.items())
        return super().state_dict() | written([*sums, (self._count_field(), count)])

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read sums and counter, then the inner optimizer's entries; see the ledger."""
        count = entries.read(self._count_field())
        wrong = count is None and bool(entries.problems)  # it was said already
        count = count or 0
        found = entries.read_all({i: self._field(p) for i, p in enumerate(self.parameter_list)})
        sums = {i: s for i, s in found.items() if s is not None}
        if sums and not count and not wrong:  # without sums a count stands where no parameter had a gradient
            entries.problems.append(
                f"gradient_merge_step is {count}, but there are {len(sums)} sums beside it"
            )
        yield from super()._loading(entries, strict)
        self._part.count, self._part.sums = count, sums

    def _count_field(self) -> CountField:
        return CountField("gradient_merge_step", np.int32, high=self.k_steps - 1, required=False)

    def _field(self, p: Parameter) -> ArrayField:
        """Return the ledger's field of a sum."""
        key = f"{p.name}@GRAD@GradientMerge"
        return ArrayField(key, p.shape, compute_dtype((), p.peek()), required=False)
