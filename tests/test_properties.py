"""What a user may do with any optimizer, whatever its formula: every property with every rule.

Compiled against uncompiled, populations, None and lone gradients, and the numbers
themselves are in test_rules.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import drawn, each_rule_once, every_rule
from compiled_steps import DISTINCT
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import paddlejax as paddle


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def stepping(tx):
    """(gradients, parameters and state) -> the next parameters and state."""

    def step(grads, carry):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state

    return step


def rosenbrock(p):
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


@each_rule_once
def test_minimizes_rosenbrocks_function(case):
    """From the usual start, across the bend of the valley, at the best of 29 rates."""

    @jax.jit
    @jax.vmap
    def reached(rate):
        tx = case.make(rate)

        def step(carry, _):
            return stepping(tx)(jax.grad(rosenbrock)(carry[0]), carry), None

        start = jnp.array([-1.2, 1.0])
        (p, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=3000)
        return rosenbrock(p)

    assert np.nanmin(reached(10.0 ** jnp.arange(-5.0, 2.0, 0.25))) < 0.15  # from 24.2


@each_rule_once
def test_one_program_with_everything_donated(case):
    """Parameters and state are given away at every call; a new rate of any kind compiles nothing."""
    p, grads = drawn(2, 3, steps=5)
    params = {"w": jnp.asarray(p, jnp.float32), "b": jnp.asarray(p[0], jnp.float32)}
    trees = [{"w": jnp.asarray(g, jnp.float32), "b": jnp.asarray(g[0], jnp.float32)} for g in grads]
    tx = case.make()
    rates = [None, 0.125, np.float64(0.25), jnp.array(0.5), 1]

    def train(step):
        carry = jax.tree.map(jnp.copy, params), tx.init(params)
        for g, rate in zip(trees, rates, strict=True):
            if rate is not None:
                carry = carry[0], paddle.set_learning_rate(carry[1], rate)
            before, carry = carry, step(g, carry)
        return before, carry

    step = jax.jit(stepping(tx), donate_argnums=1)
    before, found = train(step)
    assert step._cache_size() == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(before))
    _, want = train(stepping(tx))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


NARROW = ["float32", "bfloat16", "float16"]
WIDE = [  # of a parameter and its gradient
    ("float64", "float64"),
    ("float64", "float32"),
    ("float32", "float64"),
    ("bfloat16", "bfloat16"),
]


def check_types(case, pairs, x64):
    with jax.enable_x64(x64):
        params, grads = ([jax.ShapeDtypeStruct((2, 3), pair[i]) for pair in pairs] for i in (0, 1))
        tx = case.make()
        step = stepping(tx)

        def all_of_them(grads, params):
            carry = start = params, tx.init(params)
            carry, _ = jax.lax.scan(lambda c, _: (step(grads, c), None), carry, length=2)
            carry = jax.lax.while_loop(lambda c: c[1].count < 4, lambda c: step(grads, c), carry)
            carry = jax.lax.fori_loop(0, 2, lambda _, c: step(grads, c), carry)
            carry = jax.lax.cond(carry[1].count < 7, step, lambda _, c: c, grads, carry)
            updates, _ = tx.update(grads, carry[1], carry[0])
            return start, (carry[0], paddle.set_learning_rate(carry[1], 0.5)), updates

        start, end, updates = jax.eval_shape(all_of_them, grads, params)
        assert types(start) == types(end)
        assert types(updates) == types(params)
        assert not any(x.weak_type for x in jax.tree.leaves(end))
        wide = {f"{max(jnp.dtype(p).itemsize, 4) * 8}" for p, _ in pairs}
        assert {x.dtype.name[-2:] for x in jax.tree.leaves(end[1].slots)} <= wide


@every_rule
def test_types_are_stable_through_control_flow(case):
    """scan, while_loop, fori_loop and a cond, abstractly: shapes, dtypes and weak types stay."""
    check_types(case, [(p, g) for p in NARROW for g in NARROW], x64=False)


@each_rule_once
def test_types_are_stable_beside_float64(case):
    check_types(case, WIDE, x64=True)


@each_rule_once
def test_leaves_without_dimensions_or_elements_and_beyond_32_bits(case):
    tx = case.make()
    one, p = jnp.array([1.5]), {"": jnp.array(1.5), "empty": jnp.zeros((0, 3))}
    found = stepping(tx)(p, (p, tx.init(p)))
    want, _ = stepping(tx)({"": one}, ({"": one}, tx.init({"": one})))
    np.testing.assert_allclose(found[0][""], want[""][0], rtol=1e-6)
    assert found[0]["empty"].shape == (0, 3)

    huge = {
        "w": jax.ShapeDtypeStruct((2**31 + 1,), jnp.bfloat16),
        "v": jax.ShapeDtypeStruct((2**17, 2**17), "float32"),
    }
    state = jax.eval_shape(tx.init, huge)
    after = jax.eval_shape(stepping(tx), huge, (huge, state))
    assert types(after) == types((huge, state))


@each_rule_once
def test_complex_numbers_are_refused(case):
    tx, p, z = case.make(), {"w": jnp.ones(2)}, {"w": jnp.ones(2, jnp.complex64)}
    expected = "at w: found a {} of dtype complex64, expected a real floating dtype"
    with pytest.raises(TypeError, match=expected.format("parameter")):
        tx.init(z)
    with pytest.raises(TypeError, match=expected.format("gradient")):
        tx.update(z, tx.init(p), p)
    with pytest.raises(TypeError, match=expected.format("parameter")):
        tx.update(p, tx.init(p), z)


@each_rule_once
def test_shardings_are_those_of_the_parameters(case):
    """With the mesh in the types: of a fresh state, of updates, and of everything two steps later."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    specs = {"w": P("x", "y"), "b": P("y"), "s": P()}
    shapes = {"w": (8, 4), "b": (4,), "s": ()}
    tx = case.make()
    with jax.set_mesh(mesh):
        params = {
            name: jax.ShapeDtypeStruct(shapes[name], jnp.float32, sharding=NamedSharding(mesh, spec))
            for name, spec in specs.items()
        }

        def two_steps(params):
            state = tx.init(params)
            updates, _ = tx.update(params, state, params)
            return state, updates, *stepping(tx)(params, stepping(tx)(params, (params, state)))

        state, updates, after, later = jax.eval_shape(two_steps, params)
    for tree in (updates, after, *state.slots.values(), *later.slots.values()):
        for name, x in tree.items():  # a slot may have dimensions of its own before the parameter's
            assert tuple(x.sharding.spec)[x.ndim - len(shapes[name]) :] == tuple(specs[name])


@each_rule_once
def test_vmap_over_parameters_and_states(case):
    """Three models side by side, each with its norms and its scalars, are three models alone."""
    tx = case.make()
    models = {"w": jnp.asarray(drawn(3, 2, 2)[0], jnp.float32), "b": jnp.arange(6.0).reshape(3, 2)}
    grads = jax.tree.map(lambda p: p * p + 0.5, models)
    step = jax.jit(jax.vmap(stepping(tx)))
    together = step(grads, step(grads, (models, jax.vmap(tx.init)(models))))
    for i in range(3):
        g, p = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (grads, models))
        alone = stepping(tx)(g, stepping(tx)(g, (p, tx.init(p))))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", DISTINCT.values(), ids=DISTINCT)
def test_derivatives_of_an_update(case):
    """By gradient and parameter, against differences."""
    with jax.enable_x64(True):
        p, grads = drawn(3, steps=2)
        tx, p, g = case.make(), jnp.asarray(p), jnp.asarray(grads[0])
        _, state = tx.update(jnp.asarray(grads[1]), tx.init(p), p)
        check_grads(
            lambda g, p: tx.update(g, state, p)[0], (g, p), order=1, modes=["rev"], rtol=1e-3, eps=1e-6
        )


@every_rule
def test_derivatives_where_a_gradient_is_zero(case):
    """As behind a dead ReLU: NaN here would spread to everything that is learnt through the update."""
    p, tx = jnp.array([1.0, -2.0, 3.0]), case.make()
    derivatives = jax.grad(lambda g, p: jnp.sum(tx.update(g, tx.init(p), p)[0] * p), (0, 1))
    for g in (jnp.array([0.5, 0.0, -1.0]), jnp.zeros(3)):  # one element, all of them
        assert np.all(np.isfinite(derivatives(g, p)))
