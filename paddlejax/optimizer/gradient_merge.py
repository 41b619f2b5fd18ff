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
from .ledger import ArrayField, CountField, Entries, written
from .parameter import Parameter
from .wrappers import OPTIMIZER, Wrapper, innermost


class _Merge:
    """The sums of gradients between two steps of an object, by position, and how many each is of.

    The number is known on the host. So a step that only gathers is a program of its own, which touches no
    parameter and no accumulator.
    """

    def __init__(self, optimizer: Any, k: int, avg: bool):
        self._optimizer, self._k, self._avg = optimizer, k, avg
        self.count = self._after = 0  # _after: the count after the step that is being made
        self.sums: dict[int, jax.Array] = {}
        self._zeros: dict[int, jax.Array] = {}  # the memory of earlier sums, which the next ones take

    @property
    def waits(self) -> bool:
        """Whether the next call only gathers."""
        return self.count + 1 < self._k

    def joins(self, i: int) -> bool:
        """Whoever had a gradient in one of the calls takes part in the step."""
        return not self.waits and i in self.sums

    def takes_rows(self) -> bool:
        """The sums are dense."""
        return True

    def idle(self) -> None:
        """Count a call without any gradient."""
        self.count = (self.count + 1) % self._k

    def around(self, tx: Any) -> Any:
        """Return what adds the gradients to the sums, and at every k-th call steps with the sums."""
        waits = self.waits

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            sums, inner = state
            sums = [_plus(s, g, p) for s, g, p in zip(sums, grads, params, strict=True)]
            given = sums if waits else merge(sums, self._k, self._avg)
            updates, inner = tx.update(given, inner, params, **extra)
            return updates, (sums if waits else [jnp.zeros_like(s) for s in sums], inner)

        return GradientTransformation(tx.init, update)

    def state(self, positions: Sequence[int], inner: Any) -> Any:
        """Return the sums of these Parameters. The count after the call is noted here, so that `keep` only
        assigns."""
        sums = self._zeros | self.sums
        self._after = (self.count + 1) % self._k
        return [sums.get(i) for i in positions], inner

    def keep(self, positions: Sequence[int], state: Any) -> Any:
        """Store the sums; after a step they are zeros, of which only the memory is used again."""
        new, inner = state
        arrays = dict(zip(positions, new, strict=True))
        self.count = self._after
        self._zeros = {i: x for i, x in self._zeros.items() if i not in arrays} | (
            arrays if not self.count else {}
        )
        self.sums = self.sums | arrays if self.count else {}
        return inner


def _plus(total: Any, g: Any, p: Any) -> Any:
    """The sum with another gradient, in float32 or wider; either may be missing."""
    if g is None:
        return total
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
        self.k_steps, self.avg = k_steps, avg
        self._part = _Merge(innermost(self), k_steps, avg)

    def _within(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """With k_steps=1 there is nothing to gather: call the inner optimizer alone."""
        return method(*args, **kwargs) if self.k_steps == 1 else super()._within(method, *args, **kwargs)

    def step(self, *closure: Any) -> Any:
        """Gather every parameter's `.grad`; at every k-th call the inner optimizer steps."""
        if self.k_steps > 1 and closure:
            raise TypeError("GradientMergeOptimizer's step: found a closure, expected none")
        return super().step(*closure)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and between steps the sums and the counter."""
        count = self._part.count
        if not count:
            return super().state_dict()
        sums = ((self._field(self.parameter_list[i]), s) for i, s in self._part.sums.items())
        return super().state_dict() | written([*sums, (self._count_field(), count)])

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """Read sums and counter, then the inner optimizer's entries; see the ledger."""
        count = entries.read(self._count_field()) or 0
        found = entries.read_all({i: self._field(p) for i, p in enumerate(self.parameter_list)})
        sums = {i: s for i, s in found.items() if s is not None}
        if sums and not count:  # without sums a count stands where no parameter had a gradient
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
