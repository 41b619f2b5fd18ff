"""A rule that a user writes: what it gets, and what it is told when it is wrong."""

from __future__ import annotations  # annotations are strings here, as in many users' files

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as pj
from paddlejax.hyper import Beta


@pj.rule
class Anchored(pj.Rule):
    """Momentum, pulled towards where it started."""

    slots = ("velocity", "anchor")

    mu: Beta = 0.9
    pull: float = 0.1

    def init(self, p):
        return {"velocity": jnp.zeros_like(p), "anchor": p}

    def step(self, g, p, k, slots):
        v = self.mu * slots["velocity"] + g + self.pull * (p - slots["anchor"])
        return -k * v, {"velocity": v, "anchor": slots["anchor"]}


def test_it_works_as_functions_and_as_an_object():
    params = pj.parameters({"w": jnp.ones(2)})
    opt = pj.optimizer.Optimizer(0.1, params, rule=Anchored())
    p, tx = {"w": jnp.ones(2)}, pj.lift(Anchored(), 0.1)
    state = tx.init(p)
    for _ in range(3):
        params["w"].grad = jnp.ones(2)
        opt.step()
        updates, state = tx.update({"w": jnp.ones(2)}, state, p)
        p = pj.apply_updates(p, updates)
    np.testing.assert_allclose(params["w"].numpy(), p["w"], rtol=1e-6)
    assert set(opt.state_dict()) == {"w_velocity_0", "w_anchor_0"}


def test_its_floats_are_data_and_checked():
    def first(mu):
        tx = pj.lift(Anchored(mu), 0.1)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0]

    np.testing.assert_allclose(jax.vmap(first)(jnp.array([0.1, 0.2])), jnp.stack([first(0.1), first(0.2)]))
    with pytest.raises(ValueError, match=r"Anchored's mu: found 5.0, expected a number in \[0, 1\)"):
        pj.lift(Anchored(5.0), 0.1)
    with pytest.raises(ValueError, match="needs the parameters"):  # it may look at p
        tx = pj.lift(Anchored(), 0.1)
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


class Undecorated(pj.Rule):
    pass


def made(step, slots=("v",)):
    cls = type("Wrong", (pj.Rule,), {"slots": slots, "step": lambda self, g, p, k, s: step(g, s)})
    return pj.rule(cls)()


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Undecorated(), TypeError, "undecorated Undecorated, expected a Rule declared with @rule"),
        (lambda: made(lambda g, s: (g, s), "velocity"), TypeError, "expected a tuple of names"),
        (lambda: made(lambda g, s: g), TypeError, "Wrong.step: found .* expected"),
        (
            lambda: made(lambda g, s: (g, {})),
            ValueError,
            r"slots {}, expected the parameter's \(2,\) and {'v'",
        ),
        (lambda: made(lambda g, s: (jnp.sum(g), s)), ValueError, r"a step of shape \(\)"),
        (lambda: made(lambda g, s: (g, {"v": jnp.sum(g)})), ValueError, r"{'v': \(\)}"),
        (lambda: made(lambda g, s: (g, {**s, "u": g})), ValueError, "'u'"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(make, error, words):
    with pytest.raises(error, match=words):
        tx = pj.lift(make(), 0.1)
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


# ------------------------------------------------------------------ running means


@pj.rule
class Averaged(pj.Rule):
    """The running mean of the gradients, declared."""

    slots = ("mean",)
    sparse = "rows"
    decay: Beta = 0.9

    def means(self, g):
        return {"mean": (self.decay, (1 - self.decay) * g)}

    def step(self, g, p, k, slots):
        return -k * slots["mean"], slots


@pj.rule
class AveragedByHand(Averaged):
    """The same, moved by its own step."""

    def means(self, g):
        return {}

    def step(self, g, p, k, slots):
        m = self.decay * slots["mean"] + (1 - self.decay) * g
        return -k * m, {"mean": m}


@pj.rule
class Halved(pj.rules.Adam):
    """Adam, half as fast."""

    def step(self, g, p, k, slots):
        delta, slots = super().step(g, p, k, slots)
        return 0.5 * delta, slots


@pj.rule
class Bounded(pj.rules.Adam):
    """Adam that also changes a running mean, after it has moved."""

    def step(self, g, p, k, slots):
        delta, slots = super().step(g, p, k, slots)
        return delta, slots | {"moment1": jnp.clip(slots["moment1"], -0.15, 0.15)}


TABLE = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
LISTED = jnp.array([2, 0, 4])  # the last is padding


def trained(rule, rows, dtype=jnp.float32, compiled=False, steps=3):
    """The table and the slots after some steps, with the listed rows' gradients as rows or as an array."""
    tx, p = pj.lift(rule, 0.1), TABLE
    state = tx.init(p)
    state = state._replace(slots=jax.tree.map(lambda s: s.astype(dtype), state.slots))
    update = jax.jit(tx.update) if compiled else tx.update
    for i in range(1, steps + 1):
        g = pj.SelectedRows(LISTED, i * jnp.arange(1.0, 10.0).reshape(3, 3), 4)
        updates, state = update(g if rows else g.to_dense(), state, p)
        p = pj.apply_updates(p, updates)
    return {"p": p, **state.slots}


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_a_declared_mean_is_the_mean_that_a_step_moves_itself(rows, compiled):
    same(trained(Averaged(), rows, compiled=compiled), trained(AveragedByHand(), rows, compiled=compiled))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "make", [Averaged, AveragedByHand, *(lambda r=r: r(lazy_mode=True) for r in (Halved, Bounded))]
)
def test_listed_rows_step_as_in_a_table_and_no_other_row_changes(make, dtype):
    """Whatever a step does with its slots: rows hold what a table of nothing else would hold."""
    found, whole = (trained(make(), rows, dtype) for rows in (True, False))
    start = trained(make(), True, dtype, steps=0)
    for name in found:
        f, w, s = (np.asarray(x[name], np.float32) for x in (found, whole, start))
        tolerance = {"rtol": 2e-6, "atol": 1e-7} if dtype == jnp.float32 else {"rtol": 1e-2, "atol": 1e-2}
        np.testing.assert_allclose(f[[0, 2]], w[[0, 2]], **tolerance, err_msg=name)
        np.testing.assert_array_equal(f[[1, 3]], s[[1, 3]], err_msg=name)


def test_what_a_rule_adds_to_the_step_of_another_is_kept():
    adam, halved = (trained(r(lazy_mode=True), True) for r in (pj.rules.Adam, Halved))
    same(halved["p"] - TABLE, 0.5 * (adam["p"] - TABLE))
    bounded = trained(Bounded(lazy_mode=True), True)
    assert float(jnp.max(adam["moment1"])) > 0.15 and float(jnp.max(bounded["moment1"])) == np.float32(0.15)


@pytest.mark.parametrize(
    "returned", [{"men": (0.9, jnp.ones(3))}, {"mean": jnp.ones(3)}, {"mean": (0.9,)}, None]
)
@pytest.mark.parametrize("rows", [False, True])
def test_means_that_are_none_are_refused(returned, rows):
    wrong = pj.rule(type("Wrong", (Averaged,), {"means": lambda self, g: returned}))()
    with pytest.raises(TypeError, match=r"Wrong.means: found .*expected {name: \(a, b\)} .* \['mean'\]"):
        trained(wrong, rows, steps=1)


# ------------------------------------------------------------------ one rule is not another


def test_two_rules_are_two_structures_to_jax():
    """What is compiled for one rule is looked up by its structure: equal structures are one program."""
    given = {
        "Dpsgd": {"key": jax.random.key(0)},
        "LarsMomentum": {"momentum": 0.9},
        "Momentum": {"momentum": 0.9},
    }
    classes = [c for c in vars(pj.rules).values() if isinstance(c, type) and issubclass(c, pj.Rule)]
    rules = [c(**given.get(c.__name__, {})) for c in classes]
    rules += [Averaged(), AveragedByHand(), Halved(), Bounded()]
    structures = [jax.tree.structure(r) for r in rules]
    assert len(rules) > 20
    assert [structures.count(s) for s in structures] == [1] * len(rules)
    for r in rules:
        leaves, structure = jax.tree.flatten(r)
        assert structure.unflatten(leaves) == r
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(r)]
        assert len(paths) == len(leaves) and {path[0].name for path in paths} <= vars(r).keys()


def test_many_rules_of_one_shape_each_take_their_own_step():
    def scaled(by):
        return pj.rule(type("Scaled", (pj.Rule,), {"step": lambda self, g, p, k, slots: (-by * g, slots)}))()

    for by in range(1, 60):
        tx = pj.lift(scaled(by), 0.1)
        assert tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0][0] == -by
