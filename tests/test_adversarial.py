"""Any rule on any tree with any gradients, as hypothesis finds them, against the numpy references.

PADDLEJAX_EXAMPLES=1000 tries that many of each instead of a few.
"""

import itertools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import reference
from bits import bits
from cases import CASES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import paddlejax as paddle
from paddlejax.master import MasterState

FEW = int(os.environ.get("PADDLEJAX_EXAMPLES", "0"))


def examples(usual):
    return settings(
        max_examples=FEW or usual,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# ------------------------------------------------------------------------------------------ what is drawn

SHAPES = [(), (3,), (2, 3), (0,), (1, 1)]
NARROW = ["float32", "bfloat16", "float16"]
HUGE = {"float16": 1e4, "float32": 1e15, "bfloat16": 1e15, "float64": 1e15}
TINY = {"float16": 1e-7, "float32": 1e-9, "bfloat16": 1e-9, "float64": 1e-9}
KINDS = ["normal", "huge", "tiny", "zero", "mixed", "missing"]
CHOICES = {  # within their ranges, their ends included
    "beta1": [0.0, 0.3, 0.9],
    "beta2": [0.5, 0.9, 0.999],
    "epsilon": [1e-8, 1e-6, 1e-2],
    "momentum": [0.0, 0.5, 0.99],
    "rescale_grad": [0.25, 2.0],
    "lars_coeff": [0.001, 0.5],
    "lars_weight_decay": [0.0, 0.1],
    "weight_decay": [0.0, 0.5],
    "lamb_weight_decay": [0.0, 0.1],
    "initial_accumulator_value": [0.0, 0.5],
    "decay": [0.1, 0.95],
    "rho": [0.5, 0.95],
    "momentum_decay": [0.0, 0.004, 1.0],
    "clip": [0.1, 10.0],
    "batch_size": [1.0, 64.0],
    "etas": [(0.3, 1.9), (0.9, 1.1)],
    "l1": [0.01, 0.5],
    "l2": [0.0, 1.0],
    "lr_power": [-0.5, -0.7],
    "batch_num": [1, 2, 5],
}
CLIPS = [None, ("value", 0.5), ("norm", 0.5), ("global_norm", 0.5), ("global_norm", 1e6)]
DECAY = {"L1Decay": paddle.l1_decay, "L2Decay": paddle.l2_decay}
DECAYS = [None, ("L2Decay", 0.1), ("L1Decay", 0.1)]


@st.composite
def rules(draw):
    """A case with some of its numbers replaced."""
    case = draw(st.sampled_from(CASES))
    names = [name for name in CHOICES if name in reference.HYPER[case.name]]
    some = draw(st.sets(st.sampled_from(names), max_size=3)) if names else ()
    changed = {name: draw(st.sampled_from(CHOICES[name])) for name in sorted(some)}
    return case._replace(kwargs={**case.kwargs, **changed})


def trees(leaves):
    """Dicts, lists and tuples within each other, with leaves that are None."""
    nested = st.recursive(
        leaves | st.none(),
        lambda inner: (
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            | st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=4,
    )
    return nested.map(lambda tree: {"root": tree})


def flat(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None or isinstance(x, Leaf))


class Leaf:
    """A parameter to be: a shape and a dtype, and numbers from a seed."""

    def __init__(self, shape, dtype, scale, seed):
        self.shape, self.dtype, self.scale = shape, dtype, scale
        self.numbers = np.random.default_rng(seed)

    def __repr__(self):
        return f"{self.dtype}{list(self.shape)} * {self.scale}"

    def value(self):
        return np.asarray(jnp.asarray(self.scale * self.numbers.normal(size=self.shape), self.dtype))

    def gradient(self, kind):
        if kind == "missing":
            return None
        factor = {"normal": 1.0, "huge": HUGE[self.dtype], "tiny": TINY[self.dtype], "zero": 0.0}
        g = self.numbers.normal(size=self.shape)
        picked = self.numbers.choice(list(factor.values()), self.shape) if kind == "mixed" else factor[kind]
        return np.asarray(jnp.asarray(g * picked, self.dtype))


def leaves(dtypes):
    scales = st.sampled_from([1.0, 1.0, 0.0, 100.0])
    return st.builds(Leaf, st.sampled_from(SHAPES), st.sampled_from(dtypes), scales, st.integers(0, 99))


# ------------------------------------------------------------------------------------------ numpy's side


class Expected:
    """Parameters and accumulators of a tree in numpy; what all leaves share moves once a step."""

    def __init__(self, case, shared, values, wide, clip=None, decay=None):
        self.clip, self.decay, self.rate = clip, decay, case.rate
        start, self.rule = reference.REFERENCES[case.name]
        known = reference.HYPER[case.name]
        self.hyper = {k: v for k, v in {**case.kwargs, **case.reference}.items() if k in known}
        if "learning_rate" in known:  # where the step sizes of rprop start
            self.hyper["learning_rate"] = case.rate
        self.values = [None if p is None else p.astype(wide) for p in values]
        self.states = [None if p is None else start(p, **self.hyper) for p in self.values]
        self.clock = np.zeros(1, wide), start(np.zeros(1, wide), **self.hyper)
        self.shared = shared & self.clock[1].keys()
        self.largest = [self.scales(i) for i in range(len(values))]

    def scales(self, i):
        """What errors are measured by: the largest magnitudes."""
        if self.values[i] is None:
            return {}
        both = {"p": self.values[i], **self.states[i]}
        return {k: float(np.max(np.abs(v), initial=0)) for k, v in both.items()}

    def step(self, grads):
        if all(g is None for g in grads):
            return
        here = [i for i, g in enumerate(grads) if g is not None]
        gs = self.clipped([grads[i].astype(self.values[i].dtype) for i in here])
        for i, g in zip(here, gs, strict=True):
            p, state = self.values[i], self.states[i]
            if self.decay is not None:
                g = g + reference.decay(p, self.decay)
            now = {k: np.full_like(state[k], self.clock[1][k].flat[0]) for k in self.shared}
            self.values[i], self.states[i] = self.one(p, g, {**state, **now})
        self.clock = self.one(self.clock[0], np.zeros_like(self.clock[0]), self.clock[1])
        for i in here:
            new = self.scales(i)
            self.largest[i] = {k: max(v, self.largest[i][k]) for k, v in new.items()}

    def clipped(self, gs):
        if self.clip is None:
            return gs
        kind, limit = self.clip
        if kind == "global_norm":
            return reference.clip_by_global_norm(gs, limit)
        return [getattr(reference, f"clip_by_{kind}")(g, limit) for g in gs]

    def one(self, p, g, state):
        with np.errstate(all="ignore"):
            return self.rule(p, g, self.rate, state, **self.hyper)

    def check(self, values, slots, tolerance, equal_nan=False):
        """`slots`: {accumulator: leaves}."""
        for i, want in enumerate(self.values):
            if want is None:
                assert values[i] is None
                continue
            pairs = {"p": (values[i], want)}
            pairs |= {k: (column[i], self.states[i][k]) for k, column in slots.items()}
            for name, (found, wanted) in pairs.items():
                scale = max(self.largest[i][name], 1e-30)
                np.testing.assert_allclose(
                    found, wanted, rtol=0, atol=tolerance * scale, err_msg=name, equal_nan=equal_nan
                )


def chained(case, clip, decay):
    stages = [] if clip is None else [getattr(paddle, f"clip_by_{clip[0]}")(clip[1])]
    stages += [] if decay is None else [DECAY[decay[0]](decay[1])]
    return paddle.chain(*stages, case.make())


def rule_state(state):
    """The RuleState of the last stage, and whatever masters are around it."""
    if isinstance(state, MasterState):
        return rule_state(state.inner)
    return state[-1] if isinstance(state, tuple) and not hasattr(state, "slots") else state


def run(case, tree, kinds, wide, masters, clip=None, decay=None, tolerance=5e-6):
    there = flat(tree)
    values = [None if leaf is None else leaf.value() for leaf in there]
    at = jax.tree.structure(tree, is_leaf=lambda x: x is None or isinstance(x, Leaf))
    tx = chained(case, clip, decay)
    tx = paddle.with_master_weights(tx) if masters else tx
    params = at.unflatten([None if p is None else jnp.asarray(p) for p in values])
    state = tx.init(params)
    want = Expected(case, set(rule_state(state).shared), values, wide, clip, decay)
    for row in kinds:
        asked = zip(there, itertools.cycle(row), strict=False)
        grads = [leaf and leaf.gradient(kind) for leaf, kind in asked]
        arrays = at.unflatten([None if g is None else jnp.asarray(g) for g in grads])
        updates, state = tx.update(arrays, state, params)
        params = paddle.apply_updates(params, updates)
        want.step(grads)
        found = at.flatten_up_to(params)
        for i, (p, leaf) in enumerate(zip(found, there, strict=True)):
            if leaf is not None:
                assert p.dtype == leaf.dtype and p.shape == leaf.shape
                if masters and leaf.dtype != wide:
                    master = at.flatten_up_to(state.master)[i]
                    np.testing.assert_array_equal(p, master.astype(p.dtype))
                    found[i] = master
        slots = {k: at.flatten_up_to(slot) for k, slot in rule_state(state).slots.items()}
        want.check(found, slots, tolerance)


steps = st.lists(st.lists(st.sampled_from(KINDS), min_size=4, max_size=4), min_size=1, max_size=4)


@examples(100)
@given(rules(), trees(leaves(NARROW)), steps, st.sampled_from(CLIPS), st.sampled_from(DECAYS))
def test_any_tree_in_up_to_32_bits_with_masters(case, tree, kinds, clip, decay):
    with jax.disable_jit():
        run(case, tree, kinds, "float32", True, clip, decay)


@examples(40)
@given(rules(), trees(leaves(["float32"])), steps, st.sampled_from(CLIPS), st.sampled_from(DECAYS))
def test_any_tree_in_float32(case, tree, kinds, clip, decay):
    with jax.disable_jit():
        run(case, tree, kinds, "float32", False, clip, decay)


@examples(40)
@given(rules(), trees(leaves(["float64"])), steps, st.sampled_from(CLIPS), st.sampled_from(DECAYS))
def test_any_tree_in_float64(case, tree, kinds, clip, decay):
    with jax.enable_x64(True), jax.disable_jit():
        run(case, tree, kinds, "float64", False, clip, decay, 1e-13)


# ------------------------------------------------------------------------------------------ not finite

BAD = [np.nan, np.inf, -np.inf]


def equal(a, b):
    """By bit, NaN and the sign of zero included."""
    chex.assert_trees_all_equal(bits(a), bits(b))


def two_leaves(case, bad, clip=None):
    """A step with finite gradients, then one with `bad` in one element of `hit`; the reference beside it."""
    hit, other = Leaf((2, 3), "float32", 1.0, 0), Leaf((3,), "float32", 1.0, 1)
    params = {"hit": hit.value(), "other": other.value()}
    want = Expected(case, set(), params.values(), "float32", clip)
    tx = chained(case, clip, None)
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    want.shared = set(rule_state(state).shared) & want.clock[1].keys()
    for spoilt in (False, True):
        grads = {"hit": hit.gradient("normal").copy(), "other": other.gradient("normal")}
        if spoilt:
            grads["hit"][1, 1] = bad
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = paddle.apply_updates(params, updates)
        want.step(list(grads.values()))
    return params, rule_state(state), want


@examples(40)
@given(rules(), st.sampled_from(BAD), st.sampled_from(CLIPS))
def test_what_is_not_finite_stays_in_its_tensor_and_goes_where_the_reference_says(case, bad, clip):
    with jax.disable_jit():
        params, state, want = two_leaves(case, bad, clip)
        clean, clean_state, _ = two_leaves(case, 0.5, clip)
    slots = {k: list(v.values()) for k, v in state.slots.items()}
    want.largest = [{k: 1.0 for k in scales} for scales in want.largest]
    want.check(list(params.values()), slots, 1e-5, equal_nan=True)
    if clip is None or clip[0] != "global_norm":
        equal(params["other"], clean["other"])
        equal([s["other"] for s in state.slots.values()], [s["other"] for s in clean_state.slots.values()])
        equal(state.shared, clean_state.shared)


@examples(40)
@given(
    rules(),
    st.sampled_from(BAD),
    st.sampled_from(CLIPS),
    st.sampled_from(DECAYS),
    trees(leaves(["float32", "bfloat16"])),
    st.booleans(),
)
def test_a_skipped_step_changes_no_bit(case, bad, clip, decay, tree, masters):
    there = [leaf for leaf in flat(tree) if leaf is not None]
    at = jax.tree.structure(tree, is_leaf=lambda x: isinstance(x, Leaf))
    tx = chained(case, clip, decay)
    tx = paddle.skip_nonfinite(paddle.with_master_weights(tx) if masters else tx)
    params = at.unflatten([jnp.asarray(leaf.value()) for leaf in there])
    good = at.unflatten([jnp.asarray(leaf.gradient("mixed")) for leaf in there])
    sizes = [g.size for g in jax.tree.leaves(good)]
    with jax.disable_jit():
        updates, state = tx.update(good, tx.init(params), params)
        params = paddle.apply_updates(params, updates)
        if not any(sizes):
            return  # nowhere to put it
        spoilt = jax.tree.leaves(good)
        i = next(i for i, size in enumerate(sizes) if size)
        spoilt[i] = spoilt[i].at[(0,) * spoilt[i].ndim].set(bad)
        updates, after = tx.update(at.unflatten(spoilt), state, params)
        equal(paddle.apply_updates(params, updates), params)
    equal(keyless(after.inner), keyless(state.inner))
    assert after.total_skips == state.total_skips + 1 == 1


def keyless(state):
    return [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
