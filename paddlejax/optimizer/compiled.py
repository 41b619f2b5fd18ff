"""The compiled programs of one optimizer step."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..info import Info
from ..transform import apply_updates
from ..trees import as_array
from .call import Call, value_and_grad
from .parameter import Parameter
from .parts import Part
from .programs import Watched
from .spent import Stowage
from .store import Store, gathered, spread
from .whole import in_one


class CompiledStep:
    """The programs of a step: `step`, and `minimize` with forward and backward.

    What they step is one functional transformation: the base's, inside that of each part in turn.
    """

    def __init__(self, base: Any, parameters: Sequence[Parameter], parts: Sequence[Part] = ()):
        self.base, self.parts, self.stores, self.order = base, parts, base.stores, base.order
        tx = base.tx
        for part in parts:
            tx = part.around(tx)
        self._tx = tx
        self._buffers = [s for s in self.stores if not isinstance(s, Store)]
        self._straight = self.order == list(range(len(parameters)))
        self._place = {parameters[i]: at for at, i in enumerate(self.order)}
        many = base.arrays > MANY and base.elements < SMALL * len(self.order)
        self.step = Watched(
            in_one(self.update), donate_argnums=(0, 1), compiler_options=fast_compile() if many else None
        )
        self.elsewhere: dict[Any, Any] = {}  # other ways to run `update`, by who made them
        self._constant: tuple[float | None, Any] = None, None
        self._asked: tuple[list[Parameter], tuple[int | None, ...]] = [], ()

    # ------------------------------------------------------------------ arguments and results, on the host

    def arguments(self, grads: list[Any], rate: Any) -> tuple[Any, ...]:
        """Return what `step` takes for these gradients, one or None per Parameter of the optimizer."""
        return self.values(), self.state(), grads if self._straight else [grads[i] for i in self.order], rate

    def values(self) -> list[Any]:
        """Return the arrays to donate."""
        return [s.array if s.owned else s.take() for s in self.stores]

    def state(self) -> Any:
        """Return the state to donate."""
        state = self.base.state()
        for part in self.parts:
            state = part.state(self.base.first, state)
        return state

    def rate(self, rate: float, stays: bool) -> Any:
        """Return the rates as the programs take them. One that stays is made an array only once."""
        if not stays:
            return self.base.rates(rate)
        if rate != self._constant[0]:
            self._constant = rate, as_array(self.base.rates(rate))
        return self._constant[1]

    def adopt(self, plan: Any) -> None:
        """Step from now on with the factors and numbers of this plan, which fit the programs."""
        self._constant = None, None
        self.base.adopt(plan)

    def minimize(self, call: Call, parameters: list[Parameter], stowage: Stowage | None) -> Watched:
        """Return the program of forward, backward and update of a loss over these Parameters."""
        return Watched(
            in_one(functools.partial(self._minimize, call, self.places(parameters), stowage)),
            splits=True,
            donate_argnums=(0, 1, 2),
            keep_unused=True,  # the last gradients, which only give their memory
        )

    def places(self, parameters: list[Parameter]) -> tuple[int | None, ...]:
        """Return where each of them stands among the gradients, None if it does not take part."""
        if parameters != self._asked[0]:
            self._asked = list(parameters), tuple(map(self._place.get, parameters))
        return self._asked[1]

    def keep(self, values: list[jax.Array], state: Any) -> Info | None:
        """Store what the programs returned, and return the Info if they measure; twice is as good as once."""
        for s, value in zip(self.stores, values, strict=True):
            s.array = value  # what `keep` does; a call for each Store would show in the step's time
        for buffer in self._buffers:
            buffer.keep(buffer.array)
        for part in reversed(self.parts):
            state = part.keep(self.base.first, state)
        return self.base.keep(state)

    # ------------------------------------------------------------------ inside the programs

    def update(self, values: list[Any], state: Any, grads: list[Any], rate: Any) -> tuple[list[Any], Any]:
        """Return the new values and the new state."""
        grads = gathered(self.base.layouts, grads)
        updates, state = self._tx.update(grads, state, values, rate=rate)
        new = apply_updates(values, updates)
        return self.parts[-1].land(new, state, grads) if self.parts else new, state

    def _minimize(
        self,
        call: Call,
        places: tuple[int | None, ...],
        stowage: Stowage | None,
        values: list[Any],
        state: Any,
        last: list[Any],
        others: list[Any],
        fixed: list[Any],
        rate: Any,
    ) -> Any:
        """Run forward, backward and update; `others` are values that the loss reads and no step moves.

        The gradients come out as the stowage says, in the memory of `last`.
        """
        rest = iter(others)
        own = [x for pieces in spread(self.base.layouts, values) for x in pieces]
        trained = [next(rest) if place is None else own[place] for place in places]
        result, grads = value_and_grad(call, trained, fixed)
        ordered: list[Any] = [None] * len(own)
        for place, g in zip(places, grads, strict=True):
            if place is not None:
                ordered[place] = g
        left = grads if stowage is None else stowage.stow(grads)
        return *self.update(values, state, ordered, rate), result, left


MANY = 100  # arrays from which on a step takes longer to compile than anyone would wait for
SMALL = 16384  # elements on average; the kernels of large tensors run 1.3 times as long, and with temporaries
PRESET: dict[str, bool | str] = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"}


@functools.cache
def fast_compile() -> dict[str, bool | str] | None:
    """Return the option for XLA on CPU to compile many small kernels faster; None where there is none."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=PRESET).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # another XLA, which does not know it
        return None
    return PRESET
