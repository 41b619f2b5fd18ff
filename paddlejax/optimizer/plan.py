"""The compiled programs of one optimizer step."""

import functools
from collections.abc import Callable, Collection, Sequence
from itertools import starmap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lifting import GradientTransformation, Lifted, RuleState, lift
from ..master import MasterState, with_master_weights
from ..paths import LeafOptions, per_leaf
from ..transform import apply_updates
from ..trees import as_array, compute_dtype
from .cohorts import Cohort
from .loss import Call, value_and_grad
from .packing import Blocks, Buffer, blocks_of, gathered, spread
from .parameter import Parameter

OWN: Any = object()  # "the optimizer's own", where None already means something


class Plan:
    """The compiled programs of a step that reaches certain cohorts.

    What a program takes for a Parameter may be a Buffer with several in it: `apart` says which must not be in
    one, None that none may.
    """

    def __init__(
        self,
        cohorts: tuple[Cohort, ...],
        options: Sequence[LeafOptions],
        parameters: Sequence[Parameter],
        grad_clip: Any,
        masters: bool,
        apart: Collection[int] | None = None,
    ):
        self.cohorts = cohorts
        chosen = list(options)
        if grad_clip is not OWN:
            clip = grad_clip.transformation()
            asked = [clip if grad_clip.selects(p) else None for p in parameters]
            chosen = [o._replace(grad_clip=c) for o, c in zip(options, asked, strict=True)]
        self.blocks = [
            None if apart is None else blocks_of(c.members, c.rule.source.rule, chosen, parameters, apart)
            for c in cohorts
        ]
        taken: list[Blocks] = [
            blocks or tuple((i,) for i in c.members) for c, blocks in zip(cohorts, self.blocks, strict=True)
        ]
        self.order = [i for blocks in taken for block in blocks for i in block]
        self.straight = self.order == list(range(len(parameters)))
        self.place = {parameters[i]: at for at, i in enumerate(self.order)}
        self.first = [block[0] for blocks in taken for block in blocks]
        self.parameters: list[Any] = [
            parameters[block[0]] if len(block) == 1 else Buffer([parameters[i] for i in block])
            for blocks in taken
            for block in blocks
        ]
        self.layouts = [p.layout if isinstance(p, Buffer) else None for p in self.parameters]
        self.buffers = [p for p in self.parameters if isinstance(p, Buffer)]
        ends = np.cumsum([0, *map(len, taken)]).tolist()
        self.spans = [slice(*ends[i : i + 2]) for i in range(len(cohorts))]
        layouts = [self.layouts[span] for span in self.spans]
        self._cohort_layouts = layouts
        self.prepared = [chosen[i]._replace(rule=None) for i in self.first]
        self.prepare = per_leaf(lambda path: self.prepared[int(path)])
        self.rules = [
            _about(c, [options[i] for i in self.first[span]])
            for c, span in zip(cohorts, self.spans, strict=True)
        ]
        self.rates = [c.start[1].dtype for c in cohorts]
        wide = {compute_dtype((), parameters[i]._value) for i in self.order}
        self.rate = np.float64 if np.float64 in wide else np.float32
        tx = GradientTransformation(
            lambda params: self.cohorts,
            lambda grads, state, params=None, **extra: self._update(grads, state, params, **extra),  # type: ignore[arg-type]
        )
        self.tx = with_master_weights(tx) if masters else tx
        arrays = len(self.order) + sum(
            len(blocks) * (1 + len(c.stored[1])) for c, blocks in zip(cohorts, taken, strict=True)
        )
        elements = sum(p.size for p in self.place)
        cheaper = fast_compile() if arrays > MANY and elements < SMALL * len(self.order) else None
        self.step = jax.jit(self._step, donate_argnums=(0, 1), compiler_options=cheaper)
        self.minimize = jax.jit(self._minimize, static_argnums=(0, 1), donate_argnums=(2, 3))
        self._constant: tuple[float | None, Any] = None, None
        self._asked: tuple[list[Parameter], tuple[int | None, ...]] = [], ()

    def arrange(self, cohorts: tuple[Cohort, ...]) -> None:
        """Take these cohorts, of the same members, and bring their state into the form the programs take."""
        self.cohorts = cohorts
        for c, blocks, layouts in zip(cohorts, self.blocks, self._cohort_layouts, strict=True):
            if c.blocks is not blocks:
                c.arrange(blocks, layouts)

    def taken(self, grads: list[Any], rate: Any, masters: dict[int, jax.Array] | None) -> tuple[Any, ...]:
        """What `step` takes for these gradients, one per Parameter of the optimizer."""
        if not self.straight:
            grads = [grads[i] for i in self.order]
        values = [p._array if p._donatable else p.take() for p in self.parameters]
        return values, self.state(masters), grads, rate

    def given(self, rate: float, stays: bool) -> Any:
        """The rate as the programs take it. One that stays is made an array once, not at every step."""
        if not stays:
            return self.rate(rate)
        if rate != self._constant[0]:
            self._constant = rate, as_array(self.rate(rate))
        return self._constant[1]

    def places(self, parameters: list[Parameter]) -> tuple[int | None, ...]:
        """Where each of them is in the order of the programs, if it takes part."""
        if parameters != self._asked[0]:
            self._asked = list(parameters), tuple(map(self.place.get, parameters))
        return self._asked[1]

    def state(self, masters: dict[int, jax.Array] | None) -> Any:
        states = [c.stored for c in self.cohorts]
        return states if masters is None else MasterState([masters.get(i) for i in self.first], states)

    def store(self, values: list[jax.Array], state: Any, masters: dict[int, jax.Array] | None) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.put(value)
        self._store_state(state, masters)

    def keep(self, values: list[jax.Array], state: Any, masters: dict[int, jax.Array] | None) -> None:
        """`store` what came of arrays that were taken; twice is as good as once."""
        for p, value in zip(self.parameters, values, strict=True):
            p._array = value  # `put`, where there was nobody else to hold the old one
        for buffer in self.buffers:
            buffer.forget()
        self._store_state(state, masters)

    def _store_state(self, state: Any, masters: dict[int, jax.Array] | None) -> None:
        if masters is not None:
            masters.update({i: m for i, m in zip(self.first, state.master, strict=True) if m is not None})
            state = state.inner
        for c, new in zip(self.cohorts, state, strict=True):
            c.stored = new

    def _step(self, values: list[Any], state: Any, grads: list[Any], rate: Any) -> tuple[list[Any], Any]:
        updates, state = self.tx.update(gathered(self.layouts, grads), state, values, rate=rate)
        new = apply_updates(values, updates)
        if isinstance(state, MasterState):  # p + (M - p) would be NaN where p had been beyond float16's range
            masters = zip(new, state.master, values, strict=True)
            new = [p if m is None else m.astype(old.dtype) for p, m, old in masters]
        return new, state

    def _update(self, grads: Any, states: list[Any], values: list[Any], *, rate: Any) -> tuple[Any, Any]:
        """Clip and decay everything together, then step each cohort by its rule."""
        grads, _ = self.prepare.update(grads, self.prepare.init(values), values)
        return self._update_prepared(grads, states, values, rate)

    def _update_prepared(
        self, grads: Any, states: list[Any], values: list[Any], rate: Any
    ) -> tuple[list[Any], list[Any]]:
        updates, new_states = [], []
        about = zip(self.rules, states, self.spans, self.rates, strict=True)
        for rule, (shared, slots), span, dtype in about:
            state = RuleState(jnp.zeros((), jnp.int32), jnp.asarray(rate, dtype), shared, slots)
            steps, state = rule.update(grads[span], state, values[span])
            updates += steps
            new_states.append((state.shared, state.slots))
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
        own = [x for pieces in spread(self.layouts, values) for x in pieces]
        trained = [next(rest) if place is None else own[place] for place in places]
        result, grads = value_and_grad(call, trained, fixed)
        ordered: list[Any] = [None] * len(own)
        for place, g in zip(places, grads, strict=True):
            if place is not None:
                ordered[place] = g
        return *self._step(values, state, ordered, rate), result, grads


def _about(cohort: Cohort, options: Sequence[LeafOptions]) -> Lifted:
    """The cohort's rule, told the Parameter and the factor on the rate of each thing it steps."""

    def leaf(path: str) -> tuple[Any, float]:
        return options[int(path)].leaf, options[int(path)].learning_rate

    return lift(cohort.rule.source.rule, 0.0, leaf)


def whole(
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    store: Callable[[Any], None],
    undo: Callable[[], None] = lambda: None,
) -> None:
    """Run a program that takes its arguments' memory, and store its result; or neither, if interrupted.

    Once it has run, the arguments are gone. One call into C runs it and keeps the result, so an interrupt
    finds either the arguments or the result. `store` may be called twice.
    """
    results: list[Any] = []
    try:
        results.extend(starmap(program, [arguments]))
        store(results[0])
    except BaseException:
        store(results[0]) if results else undo()
        raise


MANY = 100  # arrays from which on a step takes longer to compile than anyone would wait for
SMALL = 16384  # elements on average; the kernels of large tensors run 1.3 times as long, and with temporaries
PRESET: dict[str, bool | str] = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"}


@functools.cache
def fast_compile() -> dict[str, bool | str] | None:
    """The option for XLA on CPU to compile very many small kernels faster; None where there is none."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=PRESET).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # another XLA, which does not know it
        return None
    return PRESET
