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


def test_a_lazy_rule_made_of_another_keeps_what_it_adds_to_the_step():
    @pj.rule
    class Halved(pj.rules.Adam):
        def step(self, g, p, k, slots):
            delta, slots = super().step(g, p, k, slots)
            return 0.5 * delta, slots

    rows = pj.SelectedRows(jnp.array([2, 0]), jnp.ones((2, 3)), 4)
    table = jnp.ones((4, 3))
    found, expected = (
        tx.update(rows, tx.init(table), table)[0].to_dense()
        for tx in (pj.lift(Halved(lazy_mode=True), 0.1), pj.adam(0.1, lazy_mode=True))
    )
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-6)
