"""What the step of an optimizer object is made of: a base, and parts around it.

The base moves the Parameters: `Rules`, by their update rules, or `Given`, as it is told. A part is one
functional wrapper, with its state kept Parameter by Parameter: `Masters` is `with_master_weights`, and a
wrapper object such as LookAhead brings its own. `compiled.CompiledStep` nests their transformations, as the
functional wrappers would, and makes one program of all.

Both answer to the same three:

    around / tx     the transformation; a part's is made around the transformation inside
    state           its state for the arrays that the step moves; a part puts the inner state into its own
    keep            store the state that the program returned; a part returns the inner state

`state` changes nothing that can be seen: a step that does not happen leaves no trace. `keep` only assigns,
and twice is as good as once.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..info import Info, InfoState, Measures, with_info
from ..leaves import LeafOptions, PathState, per_leaf
from ..lifting import GradientTransformation, Lifted
from ..master import MasterState, with_master_weights
from ..rates import RuleState
from ..trees import compute_dtype, is_narrow
from .copies import own
from .group import Blocks, StepGroup
from .parameter import Parameter
from .plan import Plan, Rates, put_together


class Part:
    """A functional wrapper in the step of an optimizer object; see the module."""

    # Whether every list in its state has an entry per Parameter, for which a step may keep the old one.
    by_position = False
    gathers = False  # whether what is inside is stepped with other gradients than those of the call

    @property
    def waits(self) -> bool:
        """Whether the next step ends here and does not reach what is inside."""
        return False

    def joins(self, i: int) -> bool:
        """Return whether this Parameter takes part in the next step though it may have no gradient."""
        return False

    def takes_rows(self) -> bool:
        """Return whether it makes a SelectedRows gradient dense, so that the rule inside need not take it."""
        return False

    def begin(self) -> None:
        """Note where the Parameters stand before a step that moves them by itself, as L-BFGS's does."""

    def idle(self) -> None:
        """Note a step in which no Parameter takes part."""

    def copied(self) -> "Part":
        """Return it with arrays of its own."""
        other = copy.copy(self)
        state = {k: x for k, x in vars(self).items() if isinstance(x, dict | tuple | jax.Array)}
        vars(other).update(own(state))
        return other

    def around(self, tx: GradientTransformation) -> GradientTransformation:
        """Return this wrapper's transformation, made around the one inside."""
        raise NotImplementedError(f"{type(self).__name__} has no transformation")

    def land(self, values: list[Any], state: Any, grads: list[Any]) -> list[Any]:
        """Inside the program, if nothing is around this part: return the new values without the rounding of
        p + (what it should become - p)."""
        return values

    def state(self, positions: Sequence[int], inner: Any) -> Any:
        """Return the state for the arrays at these positions, with the inner state in it."""
        raise NotImplementedError(f"{type(self).__name__} has no state")

    def keep(self, positions: Sequence[int], state: Any) -> Any:
        """Store the state that the program returned, and return the inner state out of it."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing")


class Masters(Part):
    """`with_master_weights` in an object: float32 masters of narrow Parameters, by position."""

    by_position = True

    def __init__(self, masters: Callable[[], dict[int, jax.Array]], parameters: Sequence[Parameter]):
        self.masters = masters  # returns the dict that is in force
        self._parameters = parameters
        self._narrow = {i for i, p in enumerate(parameters) if is_narrow(p.dtype)}

    def around(self, tx: GradientTransformation) -> GradientTransformation:
        """Return the transformation, which then moves the masters."""
        return with_master_weights(tx)

    def land(self, values: list[Any], state: MasterState, grads: list[Any]) -> list[Any]:
        """Return the rounded masters. p + (M - p) would be NaN where p had been beyond float16's range."""
        pairs = zip(values, state.master, strict=True)
        return [p if m is None else m.astype(p.dtype) for p, m in pairs]

    def state(self, positions: Sequence[int], inner: Any) -> MasterState:
        """Return the masters of these Parameters; None for one that is not narrow."""
        masters = self.masters()
        return MasterState([masters[i] if i in masters else self._passing(i) for i in positions], inner)

    def _passing(self, i: int) -> jax.Array | None:
        """Return a master for this step alone, for a narrow Parameter that has none yet."""
        return jnp.array(self._parameters[i].peek(), jnp.float32) if i in self._narrow else None

    def keep(self, positions: Sequence[int], state: MasterState) -> Any:
        """Store the masters that moved; return the inner state."""
        masters = self.masters()
        masters.update({i: m for i, m in zip(positions, state.master, strict=True) if i in masters})
        return state.inner


class Given:
    """A base whose transformation is given, such as `stay`; it has no state of its own."""

    def __init__(self, positions: Sequence[int], parameters: Sequence[Parameter], update: Any):
        self.order = self.first = list(positions)
        self.stores: list[Any] = [parameters[i].store for i in positions]
        self.layouts: list[Any] = [None] * len(self.stores)
        self.elements, self.arrays = sum(parameters[i].size for i in positions), 2 * len(self.stores)
        self.rates: Any = _rate_dtype(positions, parameters)
        self.tx = GradientTransformation(lambda params: (), update)

    def arrange(self, groups: Sequence[StepGroup]) -> None:
        """There is nothing to arrange."""

    def adopt(self, plan: Any) -> None:
        """No options change what is given."""

    def state(self) -> Any:
        """There is no state."""
        return ()

    def keep(self, state: Any) -> None:
        """There is nothing to keep, and no Info."""
        return None


def stay(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    """Move nothing, by adding -0.0: it is the one number that leaves every other as it is, -0.0 included."""
    return [jnp.full_like(p, -0.0) for p in params], state


def leave(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    """Move nothing and touch nothing."""
    return [None for _ in params], state


class Rules:
    """A base that clips, decays and steps every Parameter as its options and its group's rule say.

    Its transformation is `per_leaf`, inside `with_info` if it `measures`. The values are lists: one array per
    Store, or per buffer if there is a `packing`. The stored state is a pair (shared, slots) per group.
    """

    def __init__(
        self,
        groups: Sequence[StepGroup],
        plan: Plan,
        parameters: Sequence[Parameter],
        measures: bool = False,
        packing: Any = None,
    ):
        self.groups = groups
        # Which Parameters have one factor on the rate counts for packing, not what it is.
        alike = [o._replace(learning_rate=slot) for o, slot in zip(plan.options, plan.slots, strict=True)]
        self._blocks: list[Blocks | None] = [packing and packing.blocks(g, alike, parameters) for g in groups]
        by_group: list[Blocks] = [
            blocks or tuple((i,) for i in g.members) for g, blocks in zip(groups, self._blocks, strict=True)
        ]
        every = [block for blocks in by_group for block in blocks]
        self.order = [i for block in every for i in block]  # positions of the Parameters, as gradients come
        self.first = [block[0] for block in every]  # of each array the position of its first Parameter
        self.names = [parameters[i].name for i in self.first]
        self.stores: list[Any] = [
            parameters[block[0]].store if len(block) == 1 else packing.buffer([parameters[i] for i in block])
            for block in every
        ]
        self.layouts: list[Any] = [getattr(s, "layout", None) for s in self.stores]
        self.elements = sum(parameters[i].size for i in self.order)
        slots = (len(blocks) * (1 + len(g.stored[1])) for g, blocks in zip(groups, by_group, strict=True))
        self.arrays = len(self.order) + sum(slots)
        dtype = _rate_dtype(self.order, parameters)
        self.rates = Rates([plan.slots[i] for i in self.first], plan.live, dtype, measures)
        ends = np.cumsum([0, *map(len, by_group)]).tolist()
        self.spans = [slice(*ends[i : i + 2]) for i in range(len(groups))]
        self._rate_dtypes = [g.start[1].dtype for g in groups]
        self._group = [k for k, blocks in enumerate(by_group) for _ in blocks]  # of every array
        self.adopt(plan)
        self._measures = measures
        update = self._measured() if measures else self._plain()
        self.tx = GradientTransformation(lambda params: self.state(), update)

    def adopt(self, plan: Plan) -> None:
        """Step with the factors and numbers of this plan, which fit the program."""
        self._options = [plan.options[i] for i in self.first]
        self.rates.adopt(self._options)
        self.plan = plan.number

    def arrange(self, groups: Sequence[StepGroup]) -> None:
        """Step these groups, of the same members; bring their state into the form that the program takes."""
        self.groups = groups
        for g, blocks, span in zip(groups, self._blocks, self.spans, strict=True):
            if g.blocks is not blocks:
                g.arrange(blocks, self.layouts[span])

    def state(self) -> list[Any]:
        """Return the state of every group to donate."""
        return [g.stored for g in self.groups]

    def keep(self, state: Any) -> Info | None:
        """Store the state; return the Info if the base measures."""
        info, states = state if self._measures else (None, state)
        for g, new in zip(self.groups, states, strict=True):
            g.stored = new
        if info is not None:
            pairs = zip(self.names, info.trust_ratios, strict=True)
            ratios = {name: ratio for name, ratio in pairs if ratio is not None}
            info = info._replace(trust_ratios=ratios or None)
        return info

    # ------------------------------------------------------------------ inside the program

    def _plain(self) -> Any:
        """Return the update function of the step."""

        def update(grads: Any, state: Any, params: Any = None, *, rate: Any) -> tuple[Any, list[Any]]:
            _, rates, options = self._given(rate)
            state = _per_leaf(options, rule=None).init(params)._replace(rule=self._rule_states(state, rates))
            updates, state = _per_leaf(options).update(grads, state, params)
            return updates, self._stored(state)

        return update

    def _measured(self) -> Any:
        """The same with an Info beside the state."""

        def update(grads: Any, state: Any, params: Any = None, *, rate: Any) -> tuple[Any, Any]:
            plain, rates, options = self._given(rate)
            clip = _per_leaf(options, rule=None, weight_decay=None, maximize=False)
            clips = any(o.grad_clip is not None for o in options)
            both = with_info(_per_leaf(options, grad_clip=None), grad_clip=clip if clips else None)
            inner = _per_leaf(options, rule=None, grad_clip=None).init(params)
            inner = inner._replace(rule=self._rule_states(state, rates))
            before = Measures(0, 0, 0, trust_ratios=[None] * len(self.stores))
            state = InfoState(before, (*([clip.init(params)] if clips else []), inner))
            updates, state = both.update(grads, state, params)
            return updates, (Info(*state.info, learning_rate=plain), self._stored(state.inner[-1]))

        return update

    def _given(self, rates: Any) -> tuple[Any, list[Any], list[LeafOptions]]:
        """Return the optimizer's rate, that of each array, and the options with what else is data."""
        plain, own, numbers = self.rates.read(rates)
        options = put_together(self._options, numbers) if numbers else self._options
        # Groups may share a rule, but not its state: each gets a rule object of its own.
        first = {k: o.rule for k, o in reversed([*zip(self._group, options, strict=True)])}
        rules = {k: self._own(rule) for k, rule in first.items()}
        alike = all(rate is own[0] for rate in own)
        rows = zip(options, self._group, own, strict=True)
        return (
            plain,
            own,
            [o._replace(rule=rules[k], learning_rate=1.0 if alike else rate) for o, k, rate in rows],
        )

    def _own(self, rule: Lifted) -> Lifted:
        """Return this rule once more."""
        return rule.having(rule.source.rule)

    def _rule_states(self, stored: list[Any], rates: list[Any]) -> tuple[RuleState, ...]:
        """Return the state of each group's rule: slots in a list over all leaves, None at those of others.

        Where rates differ, each is a factor on 1.
        """
        rate = rates[0] if all(rate is rates[0] for rate in rates) else 1.0
        states = []
        for (shared, slots), span, dtype in zip(stored, self.spans, self._rate_dtypes, strict=True):
            slots = {name: self._over_all(slot, span) for name, slot in slots.items()}
            states.append(RuleState(jnp.zeros((), jnp.int32), jnp.asarray(rate, dtype), shared, slots))
        return tuple(states)

    def _over_all(self, column: list[Any], span: slice) -> list[Any]:
        """Return a column of these arrays as one of all arrays, None at the others."""
        return [*[None] * span.start, *column, *[None] * (len(self.stores) - span.stop)]

    def _stored(self, state: PathState) -> list[Any]:
        """Return (shared, slots) per group out of the state of `per_leaf`: the opposite of `_rule_states`."""
        return [
            (s.shared, {name: slot[span] for name, slot in s.slots.items()})
            for s, span in zip(state.rule, self.spans, strict=True)
        ]


def _per_leaf(options: Sequence[LeafOptions], **changes: Any) -> GradientTransformation:
    """Return `per_leaf` of the options, of all leaves with these changes."""
    changed = [o._replace(**changes) for o in options]
    return per_leaf(lambda path: changed[int(path)])


def _rate_dtype(positions: Sequence[int], parameters: Sequence[Parameter]) -> Any:
    """Return the dtype of the rate: float64 beside a float64 Parameter, else float32."""
    wide = {compute_dtype((), parameters[i].peek()) for i in positions}
    return np.float64 if np.float64 in wide else np.float32
