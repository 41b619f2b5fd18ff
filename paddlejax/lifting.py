"""An update rule speaks of one tensor; `lift` makes it an optimizer of any pytree.

Whatever all rules share is written here once: hyperparameters as data, arithmetic in float32 or wider,
the scalars common to all tensors, leaves without a gradient, and errors that name the leaf.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    ParamSpec,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import jax.numpy as jnp

from .array_types import ArrayTree, Gradients, Init, LearningRate, Update
from .collectives import Sums, attempt, lockstep
from .hyper import (
    RATE,
    Declaration,
    Interval,
    check_rounded,
    of_annotation,
    refuse,
    refuse_bad,
    verify,
)
from .pages import by_hand, readable
from .rates import RuleState, rate_at, rate_in_force, state_type
from .selected_rows import SelectedRows, dense
from .step import advance, check_sparse, in_wide, stepped
from .trees import (
    align,
    at_params,
    compute_dtype,
    flatten,
    gradients,
    is_placeholder,
    names_of,
    next_count,
    node,
    path_name,
)
from .wrap import check_params, check_state

P = ParamSpec("P")
R = TypeVar("R", bound=type)
Slots = dict[str, jax.Array]


class GradientTransformation(NamedTuple):
    """A pair of pure functions, optax's protocol: `update` returns what is to be added to the parameters.

    >>> tx = sgd(0.5)
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)), jnp.zeros(2))
    >>> print(updates)
    [-0.5 -0.5]
    """

    init: Init  # params -> state
    update: Update  # (grads, state, params=None, **extra) -> (updates, state)


@dataclass_transform(frozen_default=True)
def rule(cls: R) -> R:
    """Make a frozen dataclass of a rule and register it as a pytree: floats are data, the rest is static."""
    cls = dataclass(frozen=True)(cls)  # type: ignore[assignment]
    hints = get_type_hints(cls, include_extras=True)
    for f in fields(cls):  # type: ignore[arg-type]
        f.type = hints[f.name]  # also where annotations are strings
    named = getattr(cls, "data", ())
    data = [f.name for f in fields(cls) if f.name in named or _is_float(f.type)]  # type: ignore[arg-type]
    static = [f.name for f in fields(cls) if f.name not in data]  # type: ignore[arg-type]
    return node(cls, data, static)


def _is_float(annotation: Any) -> bool:
    """Whether a field is declared as a float, alone or with bounds."""
    return annotation is float or get_origin(annotation) is Annotated and get_args(annotation)[0] is float


@rule
class Rule:
    """The mathematics of one optimizer on one tensor: no trees, casts, masks or schedules.

    A subclass is declared with `@rule`: its float fields are data (they may be traced), all others static.
    It names its `slots`, declares which of them are running means (`means`) and says what a `step` adds to p.
    One whose step mixes elements, as by a norm, says `elementwise = False`: others' tensors may be packed.
    `norms(xs, self.axis_name)` of `paddlejax.norms` are of whole tensors, over devices one message for all.
    Use it with `lift(MyRule(), rate)` or, as an object, `optimizer.Optimizer(rate, params, rule=MyRule())`.

    >>> @rule
    ... class SignDescent(Rule):
    ...     def step(self, g, p, k, slots):
    ...         return -k * jnp.sign(g), slots
    >>> tx = lift(SignDescent(), 0.5)
    >>> print(tx.update(jnp.array([3.0, -2.0]), tx.init(jnp.zeros(2)), jnp.zeros(2))[0])
    [-0.5  0.5]
    """

    slots: ClassVar[tuple[str, ...]] = ()
    reads_params: ClassVar[bool] = True  # False if `step` never looks at p: update then works without it
    data: ClassVar[tuple[str, ...]] = ()  # fields that are data beside the floats
    full_shape: ClassVar[tuple[str, ...]] = ()  # shared scalars that Paddle stores once per element
    # What a SelectedRows gradient does: "dense", as if the other rows' gradient were zero; "rows", only the
    # listed rows are stepped (each slot must have p's shape); None, it is refused.
    sparse: ClassVar[str | None] = None
    has_matrices: ClassVar[bool] = False  # whether `step` calls `newton_schulz` for matrices of the tensor
    elementwise: ClassVar[bool] = True  # False if an element's step depends on other elements, as by a norm

    def at(self, leaf: Any) -> "Rule":
        """Return this rule for the leaf with this path, or for this Parameter.

        Only numbers that `step` reads may differ from leaf to leaf.
        """
        return self

    def decays(self, leaf: Any) -> bool | None:
        """Return whether the rule's own exclusions let this leaf decay; None where it excludes none."""
        return None

    def init(self, p: jax.Array) -> Slots:
        """Return the slots of a parameter at their start: zeros, unless a subclass says otherwise."""
        return {name: jnp.zeros_like(p) for name in self.slots}

    def slot_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a slot of a parameter of this shape."""
        return shape

    def stack_height(self, p: jax.Array) -> int:
        """Return how many tensors like p a compiled step takes as one stack; 1 where that does not pay."""
        return 1

    def shared(self) -> dict[str, Any]:
        """Return the scalars that all tensors have in common, {name: number}, at their start."""
        return {}

    def advance(self, learning_rate: jax.Array, shared: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what `step` gets as k, and the shared scalars of the next step; called once per step."""
        return learning_rate, shared

    def means(self, g: jax.Array) -> dict[str, tuple[Any, Any]]:
        """Declare the slots that are running means: return {name: (a, b)} for s ← a s + b.

        a is a scalar, b has g's shape. They move before `step` is called, so that `step` sees them moved and
        returns them as they are. Rows of a table move in place, which is faster than to read and write them.
        """
        return {}

    def step(self, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> tuple[jax.Array, Slots]:
        """Return what is to be added to p, and the new slots, {name: array} with all names.

        The slots that `means` declares have moved already; a subclass that moves them in its own `step` must
        not declare them. k is what `advance` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def trust_ratio(self, g: jax.Array, p: jax.Array, k: Any, slots: Slots) -> Any:
        """Return the factor () on the step beyond the rate, given the new slots, or None if there is none."""
        return None


Accumulators = tuple[frozenset[str], frozenset[str]]  # names of slots, names of shared scalars
# A RuleState does not tell its rule. What a file must know of the rule is kept here, for every rule that was
# lifted: {accumulators: {name of the class: full_shape}}.
LIFTED: dict[Accumulators, dict[str, tuple[str, ...]]] = {}


def accumulators(source: Any) -> Accumulators:
    """What a rule, or a RuleState, has: the names of its slots and those of its shared scalars."""
    shared = source.shared() if isinstance(source, Rule) else source.shared
    return frozenset(source.slots), frozenset(shared)


def check(rule: Rule) -> None:
    """Refuse a missing, mistyped or out-of-range hyperparameter before anything is built from it."""
    declared = _declared(type(rule))
    refuse_bad(type(rule).__name__, declared, {name: getattr(rule, name) for name in declared})


def check_rounded_of(rule: Rule, where: str, dtype: Any) -> None:
    """Refuse a hyperparameter that is in range, and no more in the dtype in which a leaf is updated."""
    for name, declaration in _declared(type(rule)).items():
        for bound in declaration if isinstance(declaration, tuple) else ():
            value = getattr(rule, name)
            if isinstance(bound, Interval) and not isinstance(value, int):
                check_rounded(f"at {where}: {type(rule).__name__}'s {name}", value, bound, dtype)


@functools.cache
def _declared(cls: Any) -> dict[str, Declaration]:
    return {f.name: of_annotation(f.type, f.default) for f in fields(cls)}


def by_its_path(path: str) -> tuple[str, float]:
    """What `lift` asks a rule about by default, and the factor on the rate; a lambda could not be pickled."""
    return path, 1.0


def lift(
    rule: Rule,
    learning_rate: LearningRate,
    leaf: Callable[[str], tuple[Any, float]] = by_its_path,
) -> "Lifted":
    """Make an optimizer of any pytree out of a rule for one tensor.

    `learning_rate` is a number, a 0-d array or a schedule `count -> rate`. A Python or numpy number lives in
    the state, where `set_learning_rate` replaces it without a new trace: `update` heeds the state's, whatever
    number this rule was given. A schedule, evaluated at `state.count`, and a jax array, traced or not, act at
    every update. So optax.inject_hyperparams may hand the rate in, or the caller of a compiled step.
    `leaf(path)` says what `rule.at` is asked about, by default the path, and gives the leaf's factor on the
    rate.

    >>> tx = lift(rules.SGD(), lambda count: 0.5 / (1 + count))
    >>> state = tx.init({"w": jnp.zeros(2)})
    >>> float(state.learning_rate)
    0.5
    """
    if not isinstance(rule, Rule) or "__dataclass_fields__" not in vars(type(rule)):
        found = f"an undecorated {type(rule).__name__}" if isinstance(rule, Rule) else repr(rule)
        raise TypeError(f"lift: found {found}, expected a Rule declared with @rule, such as rules.Adam()")
    if isinstance(rule.slots, str):
        raise TypeError(f"{type(rule).__name__}'s slots: found {rule.slots!r}, expected a tuple of names")
    check(rule)
    name = f"{type(rule).__module__}.{type(rule).__qualname__}"
    LIFTED.setdefault(accumulators(rule), {})[name] = rule.full_shape
    if hasattr(learning_rate, "last_lr"):  # a scheduler object, which counts by itself
        expected = "a number, or a schedule count -> rate such as schedules.step_decay(0.1, 30)"
        refuse(f"{type(rule).__name__}'s learning_rate", learning_rate, expected, TypeError)
    verify(RATE, f"{type(rule).__name__}'s learning_rate", learning_rate)
    return Lifted(*_Lift(rule, learning_rate, leaf).pair())


class Lifted(GradientTransformation):
    """The pair that `lift` returns; it knows the rule it was made from."""

    @property
    def source(self) -> "_Lift":
        """The rule, rate and leaf function that the pair was made of."""
        return self.init.__self__  # type: ignore[attr-defined]

    def having(self, rule: Rule) -> "Lifted":
        """Return another pair like this one, made of this rule, which was checked before."""
        return Lifted(*replace(self.source, rule=rule).pair())

    def each(self) -> "Lifted":
        """Return the pair for a state that has a list, an entry per leaf, of each shared scalar."""
        return Lifted(*replace(self.source, each=True).pair())

    def __repr__(self) -> str:
        return f"lift({self.source.rule}, {self.source.learning_rate})"

    def adapts(self, path: str) -> bool:
        """Return whether the leaf at this path has a trust ratio."""
        return type(self.source.rule).trust_ratio is not Rule.trust_ratio

    def trust_ratios(
        self, paths: list[str], grads: list[Any], params: list[Any], before: RuleState, after: RuleState
    ) -> list[Any]:
        """Return the factor on the rate that a step chose for each leaf, None where it has no gradient."""
        source = self.source
        columns = {k: jax.tree.leaves(slot, is_leaf=lambda x: x is None) for k, slot in after.slots.items()}
        attempts = {}
        for i, (path, g, p) in enumerate(zip(paths, grads, params, strict=True)):
            if g is not None:
                leaf, factor = source.leaf(path)
                k, _ = advance(source.rule, after.learning_rate, before.shared, factor)
                slots = {name: column[i] for name, column in columns.items()}
                attempts[i] = functools.partial(_trust_ratio, source.rule.at(leaf), (dense(g), p, k, slots))
        ratios = lockstep(attempts)
        return [ratios.get(i) for i in range(len(params))]


@jax.jit
def _trust_ratio(rule: Rule, about: Any, sums: list[Sums]) -> tuple[Any, Sums | None]:
    wide = compute_dtype((), about[1])
    return attempt(lambda: in_wide(rule, wide).trust_ratio(*in_wide(about, wide)), sums)


@dataclass(frozen=True, eq=False)
class _Lift:
    """A rule, its rate and what it is asked about each leaf, from which `init` and `update` are made."""

    rule: Rule
    learning_rate: Any
    leaf: Callable[[str], tuple[Any, float]]
    each: bool = False  # whether every leaf has shared scalars of its own: in the state a list of each

    def pair(self):
        """Return (init, update)."""
        return self.init, self.update

    @at_params
    def init(self, params: ArrayTree) -> RuleState:
        """Return the state of these parameters before the first step; it shares no buffer with them."""
        paths, leaves, tree = flatten(params)
        dtypes = [
            None if p is None else compute_dtype(path, p) for path, p in zip(paths, leaves, strict=True)
        ]
        for path, dtype in zip(paths, dtypes, strict=True):
            if dtype is not None:
                check_rounded_of(self.rule, path_name(path), dtype)
        rules = {dtype: in_wide(self.rule, dtype) for dtype in dict.fromkeys(dtypes) if dtype is not None}
        fresh = [
            p if d is None else rules[d].init(jnp.asarray(p, d)) for p, d in zip(leaves, dtypes, strict=True)
        ]
        # Copies throughout: a state that shared a buffer with its caller could not be donated.
        columns = {
            name: [
                f and (jnp.copy(f[name]) if f[name] is p else f[name])
                for f, p in zip(fresh, leaves, strict=True)
            ]
            for name in self.rule.slots
        }
        wide = jnp.float64 if jnp.float64 in dtypes else jnp.float32
        count = jnp.zeros((), jnp.int32)
        scalars = {k: jnp.array(v, jnp.result_type(v)) for k, v in in_wide(self.rule, wide).shared().items()}
        like = self.rule.slot_shape
        slots = {
            # Where optax asks what is shaped like the parameters, a slot that is not stands for no parameter.
            name: jnp.zeros(()) if is_placeholder(params) and like(name, (2,)) != (2,) else tree.unflatten(c)
            for name, c in columns.items()
        }
        rate = jnp.array(rate_at(type(self.rule).__name__, self.learning_rate, count), wide)
        return state_type(self.learning_rate)(count, rate, scalars, slots)

    def update(
        self, grads: Gradients, state: RuleState, params: Gradients = None, **extra: Any
    ) -> tuple[Any, RuleState]:
        """Return what is to be added to the parameters, and the new state; a leaf without gradient stays."""
        if params is None:
            if self.rule.reads_params:
                check_params(type(self.rule).__name__, params)
            params = grads
        paths, leaves, tree = flatten(params)
        self._check_state(state)
        columns = {name: align(tree, paths, slot, f"slot {name}") for name, slot in state.slots.items()}
        gs = gradients(tree, paths, leaves, grads, rows=True)
        gs = [
            self._rows(path, g, p) if isinstance(g, SelectedRows) else g
            for path, g, p in zip(paths, gs, leaves, strict=True)
        ]
        if all(g is None for g in gs):
            return grads, state
        rate = rate_in_force(type(self.rule).__name__, self.learning_rate, state)
        about = [self.leaf(name) for name in names_of(paths)]
        ks, shared = self._advanced(rate, state.shared, gs, [factor for _, factor in about])
        updates, given = list(gs), {}
        for i, (g, p) in enumerate(zip(gs, leaves, strict=True)):
            if g is None:
                continue
            leaf, _ = about[i]
            compute_dtype(paths[i], p)  # says what is wrong, and where
            slots = {name: column[i] for name, column in columns.items()}
            for name, slot in slots.items():
                expected = self.rule.slot_shape(name, jnp.shape(p))
                if jnp.shape(slot) != expected:
                    shapes = f"{name} has shape {jnp.shape(slot)}, expected {expected}"
                    raise ValueError(f"at {path_name(paths[i])}: {shapes}")
            given[i] = self.rule.at(leaf), g, p, ks[i], slots
        for i, (update, slots) in stepped(given).items():
            updates[i] = update
            for name, slot in slots.items():
                columns[name][i] = slot
        slots = {name: tree.unflatten(column) for name, column in columns.items()}
        return tree.unflatten(updates), state._replace(
            count=next_count(state.count), learning_rate=rate, shared=shared, slots=slots
        )

    def _advanced(
        self, rate: jax.Array, shared: dict[str, Any], gs: list[Any], factors: list[Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return what `step` gets as k for every leaf, and the shared scalars of the next step."""
        if self.each and shared:
            columns, ks = {name: list(column) for name, column in shared.items()}, []
            for i, (g, factor) in enumerate(zip(gs, factors, strict=True)):
                own = {name: column[i] for name, column in columns.items()}
                k, new = (None, own) if g is None else advance(self.rule, rate, own, factor)
                ks.append(k)
                for name, column in columns.items():
                    column[i] = new[name]
            return ks, columns
        known = {_key(factor): factor for factor in factors}
        done = {key: advance(self.rule, rate, shared, factor) for key, factor in known.items()}
        return [done[_key(factor)][0] for factor in factors], next(iter(done.values()))[1]

    def _rows(self, path: Any, g: SelectedRows, p: Any) -> Any:
        """Return the gradient as the rule takes it: rows, an array, or None where no row is listed."""
        if isinstance(p, SelectedRows):
            raise ValueError(
                f"{type(self.rule).__name__} needs the parameters beside a SelectedRows gradient"
            )
        check_sparse(self.rule, f"at {path_name(path)}")
        g = g.astype(compute_dtype(path, p))
        if self.rule.sparse == "dense":
            # Behind a barrier, so that XLA computes with it what it would with an array, to the last bit.
            return jax.lax.optimization_barrier(g.to_dense())
        return g if len(g.rows) else None

    def _check_state(self, state: Any) -> None:
        """Refuse a state that `init` of this rule cannot have made."""
        name = type(self.rule).__name__
        check_state(name, state, RuleState)
        if set(state.slots) != set(self.rule.slots) or set(state.shared) != set(self.rule.shared()):
            found, expected = sorted([*state.slots, *state.shared]), [*self.rule.slots, *self.rule.shared()]
            raise ValueError(f"the state is not one of {name}: found {found}, expected {sorted(expected)}")
        scalars = {} if self.each else state.shared
        for scalar, value in {"learning_rate": state.learning_rate, **scalars}.items():
            if jnp.shape(value) != ():
                raise ValueError(f"the state's {scalar} has shape {jnp.shape(value)}, expected ()")


def _key(factor: Any) -> Any:
    """Return what tells factors on the rate apart: an array, which may be traced, by its identity."""
    return factor if isinstance(factor, int | float) else id(factor)


class Factory(Generic[P]):
    """The type of `adam` and its like: the rate, then the rule's own arguments."""

    def __call__(self, learning_rate: LearningRate = 0.001, *args: P.args, **kwargs: P.kwargs) -> Lifted: ...


def lifted(cls: Callable[P, Rule], learning_rate: Any = inspect.Parameter.empty) -> Factory[P]:
    """Make the public function of a rule: `rmsprop = lifted(RMSProp)`.

    Its arguments are the rate and then the rule's own; its docstring is the rule's.
    """

    name = cls.__module__.rsplit(".", 1)[-1]  # a rule's file bears the name of its function

    def make(*args: Any, **kwargs: Any) -> Lifted:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"{name}(): {e}; its arguments are {', '.join(signature.parameters)}") from None
        bound.apply_defaults()
        rate = bound.arguments.pop("learning_rate")
        return lift(cls(**bound.arguments), rate)  # type: ignore[call-arg]

    rate = inspect.Parameter("learning_rate", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=learning_rate)
    arguments = [rate, *inspect.signature(cls).parameters.values()]
    signature = readable(inspect.Signature(arguments, return_annotation=Lifted))
    make.__signature__ = signature  # type: ignore[attr-defined]
    make.__doc__, make.__name__ = by_hand(cls), name
    make.described_by = cls  # type: ignore[attr-defined]
    make.__module__, make.__qualname__ = cls.__module__, name  # where pickle finds it
    return make  # type: ignore[return-value]
