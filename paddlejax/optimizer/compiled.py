"""The compiled programs of one optimizer step."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..info import Info, InfoState, with_info
from ..master import MasterState, with_master_weights
from ..paths import LeafOptions, PathState, per_leaf
from ..lifting import GradientTransformation, RuleState, lift
from ..transform import apply_updates
from ..trees import as_array, compute_dtype
from .group import Blocks, StepGroup
from .loss import Call, value_and_grad
from .parameter import Parameter
from .store import gathered, spread

OWN: Any = object()  # "the optimizer's own", where None already means something


class CompiledStep:
    """The programs of a step that reaches certain groups: `step`, and `minimize` with forward and backward.

    What they step is one functional transformation, made of the same parts as a user's: `per_leaf` of clip,
    decay and rule; with `measures` inside `with_info`, with `masters` inside `with_master_weights`. Their
    values are lists: one array per Store, or per buffer if there is a `packing`.
    """

    def __init__(
        self,
        groups: Sequence[StepGroup],
        options: Sequence[LeafOptions],
        parameters: Sequence[Parameter],
        grad_clip: Any,
        masters: bool = False,
        measures: bool = False,
        packing: Any = None,
    ):
        self.groups = groups
        if grad_clip is not OWN:
            clip = grad_clip.transformation()
            asked = [clip if grad_clip.selects(p) else None for p in parameters]
            options = [o._replace(grad_clip=c) for o, c in zip(options, asked, strict=True)]
        self._blocks: list[Blocks | None] = [
            packing and packing.blocks(g, options, parameters) for g in groups
        ]
        by_group: list[Blocks] = [
            blocks or tuple((i,) for i in g.members) for g, blocks in zip(groups, self._blocks, strict=True)
        ]
        every = [block for blocks in by_group for block in blocks]
        self.order = [i for block in every for i in block]  # positions of the Parameters, as gradients come
        self._straight = self.order == list(range(len(parameters)))
        self._first = [block[0] for block in every]
        self._place = {parameters[i]: at for at, i in enumerate(self.order)}
        self._names = [parameters[i].name for i in self._first]
        self.stores = [
            parameters[block[0]].store if len(block) == 1 else packing.buffer([parameters[i] for i in block])
            for block in every
        ]
        self._layouts = [getattr(s, "layout", None) for s in self.stores]
        ends = np.cumsum([0, *map(len, by_group)]).tolist()
        self._spans = [slice(*ends[i : i + 2]) for i in range(len(groups))]
        # Groups may share a rule, but not its state: each gets a rule object of its own.
        rules = [lift(g.rule.source.rule, 0.0) for g in groups]
        of_group = [r for r, blocks in zip(rules, by_group, strict=True) for _ in blocks]
        self._options = [options[i]._replace(rule=r) for i, r in zip(self._first, of_group, strict=True)]
        self._rates = [g.start[1].dtype for g in groups]
        wide = {compute_dtype((), parameters[i].peek()) for i in self.order}
        self.rate_dtype = np.float64 if np.float64 in wide else np.float32
        tx = (
            self._measured()
            if measures
            else self._stepping(per_leaf(self._of_leaf), per_leaf(self._without_rule))
        )
        self._tx = with_master_weights(tx) if masters else tx
        self._measures = measures
        slots = sum(len(blocks) * (1 + len(g.stored[1])) for g, blocks in zip(groups, by_group, strict=True))
        elements = sum(p.size for p in self._place)
        many = len(self.order) + slots > MANY and elements < SMALL * len(self.order)
        self.step = jax.jit(
            self.update, donate_argnums=(0, 1), compiler_options=fast_compile() if many else None
        )
        self.minimize = jax.jit(self._minimize, static_argnums=(0, 1), donate_argnums=(2, 3))
        self.elsewhere: dict[Any, Any] = {}  # other ways to run `update`, by who made them
        self._constant: tuple[float | None, Any] = None, None
        self._asked: tuple[list[Parameter], tuple[int | None, ...]] = [], ()

    # ------------------------------------------------------------------ arguments and results, on the host

    def arrange(self, groups: Sequence[StepGroup]) -> None:
        """Step these groups, of the same members; bring their state into the form that the programs take."""
        self.groups = groups
        for g, blocks, span in zip(groups, self._blocks, self._spans, strict=True):
            if g.blocks is not blocks:
                g.arrange(blocks, self._layouts[span])

    def values(self) -> list[Any]:
        """Return the arrays to donate."""
        return [s.array if s.owned else s.take() for s in self.stores]

    def state(self, masters: dict[int, jax.Array] | None) -> Any:
        """Return the state to donate."""
        states = [g.stored for g in self.groups]
        return states if masters is None else MasterState([masters.get(i) for i in self._first], states)

    def gradients(self, grads: list[Any]) -> list[Any]:
        """Return those of the gradients, one per Parameter of the optimizer, that the programs take."""
        return grads if self._straight else [grads[i] for i in self.order]

    def rate(self, rate: float, stays: bool) -> Any:
        """Return the rate as the programs take it. One that stays is made an array only once."""
        if not stays:
            return self.rate_dtype(rate)
        if rate != self._constant[0]:
            self._constant = rate, as_array(self.rate_dtype(rate))
        return self._constant[1]

    def places(self, parameters: list[Parameter]) -> tuple[int | None, ...]:
        """Return where each of them stands among the gradients, None if it does not take part."""
        if parameters != self._asked[0]:
            self._asked = list(parameters), tuple(map(self._place.get, parameters))
        return self._asked[1]

    def keep(self, values: list[jax.Array], state: Any, masters: dict[int, jax.Array] | None) -> Info | None:
        """Store what the programs returned, and return the Info if they measure; twice is as good as once."""
        for s, value in zip(self.stores, values, strict=True):
            s.keep(value)
        if masters is not None:
            masters.update({i: m for i, m in zip(self._first, state.master, strict=True) if m is not None})
            state = state.inner
        info, states = state if self._measures else (None, state)
        for g, new in zip(self.groups, states, strict=True):
            g.stored = new
        if info is not None:
            pairs = zip(self._names, info.trust_ratios, strict=True)
            ratios = {name: ratio for name, ratio in pairs if ratio is not None}
            info = info._replace(trust_ratios=ratios or None)
        return info

    # ------------------------------------------------------------------ inside the programs

    def update(self, values: list[Any], state: Any, grads: list[Any], rate: Any) -> tuple[list[Any], Any]:
        """Return the new values and the new state."""
        updates, state = self._tx.update(gathered(self._layouts, grads), state, values, rate=rate)
        new = apply_updates(values, updates)
        if isinstance(state, MasterState):  # p + (M - p) would be NaN where p had been beyond float16's range
            masters = zip(new, state.master, values, strict=True)
            new = [p if m is None else m.astype(old.dtype) for p, m, old in masters]
        return new, state

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
        """Run forward, backward and update; `others` are values that the loss reads and no step moves."""
        rest = iter(others)
        own = [x for pieces in spread(self._layouts, values) for x in pieces]
        trained = [next(rest) if place is None else own[place] for place in places]
        result, grads = value_and_grad(call, trained, fixed)
        ordered: list[Any] = [None] * len(own)
        for place, g in zip(places, grads, strict=True):
            if place is not None:
                ordered[place] = g
        return *self.update(values, state, ordered, rate), result, grads

    def _of_leaf(self, path: str) -> LeafOptions:
        return self._options[int(path)]

    def _without_rule(self, path: str) -> LeafOptions:
        return self._options[int(path)]._replace(rule=None)

    def _stepping(self, tx: GradientTransformation, stages: GradientTransformation) -> GradientTransformation:
        """Return `tx` with the state as it is stored: a pair (shared, slots) per group.

        `tx` is a `per_leaf`, and `stages` the same without rules, which makes the state of clip and decay.
        """

        def update(grads: Any, stored: list[Any], values: list[Any], *, rate: Any) -> tuple[Any, list[Any]]:
            state = stages.init(values)._replace(rule=self._rule_states(stored, rate))
            updates, state = tx.update(grads, state, values)
            return updates, self._stored(state)

        return GradientTransformation(lambda values: [g.stored for g in self.groups], update)

    def _measured(self) -> GradientTransformation:
        """Return the step that also measures itself; its state is (Info, what is stored)."""
        clips = any(o.grad_clip is not None for o in self._options)
        clip = per_leaf(lambda path: self._without_rule(path)._replace(weight_decay=None))
        tx = per_leaf(lambda path: self._of_leaf(path)._replace(grad_clip=None))
        stages = per_leaf(lambda path: self._without_rule(path)._replace(grad_clip=None))
        both = with_info(tx, grad_clip=clip if clips else None)

        def update(grads: Any, stored: list[Any], values: list[Any], *, rate: Any) -> Any:
            inner = stages.init(values)._replace(rule=self._rule_states(stored, rate))
            before = Info(0, 0, 0, trust_ratios=[None] * len(values))
            state = InfoState(before, (*([clip.init(values)] if clips else []), inner))
            updates, state = both.update(grads, state, values)
            info = state.info._replace(learning_rate=jnp.asarray(rate, self.rate_dtype))
            return updates, (info, self._stored(state.inner[-1]))

        return GradientTransformation(lambda values: [g.stored for g in self.groups], update)

    def _rule_states(self, stored: list[Any], rate: Any) -> tuple[RuleState, ...]:
        """Return the state of each group's rule: slots in a list over all leaves, None at those of others."""
        states = []
        for (shared, slots), span, dtype in zip(stored, self._spans, self._rates, strict=True):
            before, after = [None] * span.start, [None] * (len(self.stores) - span.stop)
            slots = {name: [*before, *slot, *after] for name, slot in slots.items()}
            states.append(RuleState(jnp.zeros((), jnp.int32), jnp.asarray(rate, dtype), shared, slots))
        return tuple(states)

    def _stored(self, state: PathState) -> list[Any]:
        return [
            (s.shared, {name: slot[span] for name, slot in s.slots.items()})
            for s, span in zip(state.rule, self._spans, strict=True)
        ]


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
