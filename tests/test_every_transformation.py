"""What holds for every transformation and every average: one test per property, over the whole table."""

import copy
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bits import bits
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr, tree_leaves_with_path
from transformations import RULES, TABLE, TRANSFORMATIONS, WRAPPERS, step

import paddlejax as pj

PARAMS = {"w": jnp.arange(32.0).reshape(8, 4) / 10, "b": jnp.ones(8)}
every = pytest.mark.parametrize("name", TABLE)
every_transformation = pytest.mark.parametrize("name", TRANSFORMATIONS)


def fresh():
    return jax.tree.map(jnp.copy, PARAMS)


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def test_every_public_function_is_in_the_table():
    made = {
        name
        for name in pj.__all__
        if callable(function := getattr(pj, name))
        and "Transformation" in str(getattr(function, "__annotations__", {}).get("return", ""))
        or name in pj.rules.__dict__
        and getattr(getattr(pj, name), "__module__", "").startswith("paddlejax.rules.")
    }
    assert {n for n in made if n.islower()} - {"lift", "as_optax"} <= set(TABLE)


# ------------------------------------------------------------------------------- beside the parameters


def on_mesh(devices=4, kind=AxisType.Auto):
    mesh = jax.make_mesh((devices,), ("x",), (kind,), devices=jax.devices()[:devices])
    return jax.device_put(PARAMS, {"w": NamedSharding(mesh, P("x")), "b": NamedSharding(mesh, P())})


@every
def test_state_lies_where_the_parameters_lie(name):
    """On 4 of 8 devices; one program for all steps, and what is committed to init's shardings is taken."""
    if name == "zero1":
        pytest.skip("zero1 is told its mesh; test_sharding.py has it")
    tx, p = TABLE[name](), on_mesh()
    state = tx.init(p)
    away = [keystr(k) for k, x in tree_leaves_with_path(state) if x.devices() != p["w"].devices()]
    assert not away
    for path, x in tree_leaves_with_path(state):
        if x.shape == p["w"].shape:
            assert x.sharding == p["w"].sharding, keystr(path)
    run = jax.jit(lambda p, s: step(tx, p, s))
    restored = jax.tree.map(lambda x: jax.device_put(x, x.sharding), state)
    where = jax.tree.map(lambda x: x.sharding, p)
    new, s = p, restored
    for _ in range(3):
        new, s = run(jax.device_put(new, where), s)
    assert run._cache_size() == 1 or name.startswith("lbfgs")


@every
def test_state_lies_on_the_one_device_of_the_parameters(name):
    """No array of a fresh state is there twice or is a parameter's, so that both can be donated."""
    if name == "zero1":
        pytest.skip("zero1 is told its mesh")
    there = jax.devices()[3]
    tx, p = TABLE[name](), jax.device_put(PARAMS, there)
    state = tx.init(p)
    assert all(x.devices() == {there} and x.committed for x in jax.tree.leaves(state))
    again = jax.jit(lambda s: jax.tree.map(jnp.copy, s), donate_argnums=0)(state)
    chex.assert_trees_all_equal_structs(again, state)
    assert not any(x.is_deleted() for x in jax.tree.leaves(p))
    run = jax.jit(lambda p, s: step(tx, p, s), donate_argnums=(0, 1))
    state = tx.init(p)
    for _ in range(3):
        p, state = run(p, state)
    assert run._cache_size() == 1


def test_the_state_of_a_plateau_lies_where_the_parameters_lie():
    plateau, p = pj.schedules.reduce_on_plateau(0.1), on_mesh()
    update, state = jax.jit(plateau.update), plateau.init(p)
    for _ in range(3):
        state = update(jnp.sum(p["w"]), state)
    assert update._cache_size() == 1 and state.best.devices() == p["w"].devices()
    assert isinstance(plateau.init(jax.eval_shape(lambda: PARAMS)).best, jax.ShapeDtypeStruct)


def test_states_of_parameters_on_many_devices_are_left_to_jax():
    p = {
        "w": jax.device_put(PARAMS["w"], jax.devices()[1]),
        "b": jax.device_put(PARAMS["b"], jax.devices()[2]),
    }
    state = pj.accumulate_gradients(pj.adam(0.1), 2).init(p)
    assert not state.count.committed and not state.inner.count.committed
    assert state.gradients["w"].devices() == p["w"].devices()


# ------------------------------------------------------------------------------- abstract and empty trees


@every
def test_init_of_shapes_gives_shapes(name):
    tx = TABLE[name]()
    abstract = jax.eval_shape(lambda: PARAMS)
    found, want = tx.init(abstract), tx.init(PARAMS)
    if name != "zero1":  # which moves its arguments onto its mesh
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(found))
    chex.assert_trees_all_equal_structs(found, want)
    assert shapes(found) == shapes(want) == shapes(jax.eval_shape(tx.init, abstract))


@every
def test_shapes_with_shardings_give_those_of_the_state(name):
    if name == "zero1":
        pytest.skip("zero1 is told its mesh")
    p = on_mesh()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), p)
    tx = TABLE[name]()
    for (path, x), y in zip(
        tree_leaves_with_path(tx.init(abstract)), jax.tree.leaves(tx.init(p)), strict=True
    ):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), keystr(path)


@every
@pytest.mark.parametrize("tree", [{}, {"b": None, "w": None}, ()], ids=["none", "all-None", "tuple"])
def test_trees_without_leaves(name, tree):
    if name == "zero1":
        pytest.skip("zero1 spreads parameters, and refuses to spread none")
    if name == "lbfgs_wolfe" or name == "lbfgs":
        assert shapes(TABLE[name]().init(tree).d) == ((0,), jnp.float32)
        return
    tx = TABLE[name]()
    p, state = step(tx, tree, tx.init(tree))
    assert p == tree
    step(tx, tree, state)


@every
def test_a_none_among_the_parameters_stays(name):
    if name == "zero1":
        pytest.skip("zero1's mesh has one device")
    tx, tree = TABLE[name](), {**fresh(), "still": None}
    p, state = jax.eval_shape(lambda p, s: step(tx, p, s), tree, tx.init(tree))
    assert p["still"] is None
    chex.assert_trees_all_equal_structs(state, tx.init(tree))


# --------------------------------------------------------------------------------------- optax's utilities


@every
def test_optax_knows_what_is_like_the_parameters(name):
    """`tree_map_params` reaches exactly what has the shapes of the parameters, tree by tree."""
    if name == "zero1":
        pytest.skip("zero1 refuses a tree without leaves")
    tx = TABLE[name]()
    state = tx.init(PARAMS)
    seen = []
    found = optax.tree_utils.tree_map_params(
        tx, lambda x: seen.append(x.shape) or "P", state, transform_non_params=lambda x: "N"
    )
    assert all(shape in ((8, 4), (8,)) for shape in seen)
    kinds = jax.tree.leaves(found)
    assert kinds.count("P") == len(seen)
    alike = [x for x in jax.tree.leaves(state) if jnp.shape(x) in ((8, 4), (8,))]
    others = {"asgd": 1, "lbfgs": 0, "lbfgs_wolfe": 0}  # asgd's y of the bias has the shape of no parameter
    assert len(seen) == len(alike) or name in others


def test_a_fresh_state_of_zero1_can_be_donated():
    """The others have it on one device above."""
    tx, p = TABLE["zero1"](), fresh()
    run = jax.jit(lambda p, s: step(tx, p, s), donate_argnums=(0, 1))
    run(*run(p, tx.init(p)))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_fresh_state_of_a_plateau_can_be_donated(mode):
    plateau = pj.schedules.reduce_on_plateau(0.1, mode)
    update, state = jax.jit(plateau.update, donate_argnums=1), plateau.init()
    for metric in (3.0, 2.0, 2.5):
        state = update(metric, state)
    assert int(state.last_epoch) == 3


# ----------------------------------------------------------------------------------------- pickle and copy


def through_pickle(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("how", [copy.deepcopy, through_pickle], ids=["copy", "pickle"])
@every
def test_a_copy_does_the_same(name, how):
    """Of the transformation and of its state, fresh and used; what was copied is none the wiser."""
    if name == "zero1" and how is through_pickle:
        pytest.skip("JAX pickles no mesh")
    tx = TABLE[name]()
    p, state = step(tx, fresh(), tx.init(PARAMS))
    before = bits((p, state))
    other = how(tx)
    assert type(other) is type(tx) and repr(other)
    chex.assert_trees_all_equal(bits(how(state)), bits(state))
    chex.assert_trees_all_equal(bits(step(other, p, how(state))), bits(step(tx, p, state)))
    chex.assert_trees_all_equal(bits((p, state)), before)


# ---------------------------------------------------------------------------------------------- errors

WITH_STATE = [n for n in TABLE if n not in ("identity", "l1_decay", "l2_decay") and not n.startswith("clip")]


@pytest.mark.parametrize("form", [list, dict, tuple], ids=["list", "dict", "tuple"])
@pytest.mark.parametrize("name", WITH_STATE)
def test_a_state_that_came_back_as_a_plain_container_is_refused(name, form):
    tx = TABLE[name]()
    state = tx.init(PARAMS)
    if form is tuple and not hasattr(state, "_fields"):
        pytest.skip("it is a tuple")
    bad = form(state) if form is not dict else dict(getattr(state, "_asdict", lambda: {"0": state})())
    with pytest.raises((TypeError, ValueError), match="state.*(found|expected)|expects a tuple"):
        step(tx, PARAMS, bad)


class Layer:
    dtype = None  # as flax's layers have


ODD = {
    "function": jax.nn.relu,
    "int": 3,
    "ints": jnp.arange(2),
    "bool": True,
    "text": "x",
    "texts": np.array(["x", "y"]),
    "key": jax.random.key(0),
    "object": object(),
    "layer": Layer(),
    "complex": jnp.ones(2, jnp.complex64),
}
ADVICE = {"ints": "eqx.partition.*nnx.Param", "complex": "split_real_and_imaginary", "layer": "nnx.Param"}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "name", [*RULES, *WRAPPERS, "lbfgs", "dgc_momentum", *sorted(TABLE.keys() - TRANSFORMATIONS)]
)
def test_what_is_no_parameter_is_refused_by_its_path(name, odd):
    if name == "zero1" and odd not in ("int", "ints", "bool", "complex"):
        pytest.skip("device_put says it first")
    with pytest.raises(TypeError, match=f"at m/odd: found a parameter of .*{ADVICE.get(odd, '')}"):
        TABLE[name]().init({"m": {"odd": ODD[odd]}, "b": jnp.ones(2)})


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["adam", "clip_by_global_norm", "l2_decay", "accumulate_gradients"])
def test_what_is_no_gradient_is_refused_by_its_path(name, odd):
    tx, p = TABLE[name](), {"m": {"odd": jnp.ones(2)}}
    with pytest.raises((TypeError, ValueError), match="at m/odd: found a gradient"):
        tx.update({"m": {"odd": ODD[odd]}}, tx.init(p), p)


def test_ints_that_are_frozen_and_their_gradients_of_nothing():
    """`jax.grad(allow_int=True)` gives float0 for ints; by_path and all around it leave them as they are."""
    p = {"b": jnp.ones(2), "n": jnp.arange(3), "flag": jnp.array(True)}
    grads = jax.grad(lambda t: jnp.sum(t["b"] ** 2), allow_int=True)(p)
    table = pj.by_path([("n", {"frozen": True}), ("flag", {"frozen": True})], pj.sgd(0.5))
    around = [
        pj.skip_nonfinite,
        pj.with_master_weights,
        pj.with_info,
        pj.lookahead,
        lambda tx: pj.lookahead(tx, slow_start="initial"),
        lambda tx: pj.chain(pj.clip_by_global_norm(9.0), tx),
        lambda tx: pj.dynamic_loss_scale(tx, 1.0),
        lambda tx: pj.with_info(tx, grad_clip=pj.clip_by_global_norm(9.0)),
    ]
    for tx in (table, *(wrap(table) for wrap in around)):
        updates, state = (
            jax.jit(tx.update)(grads, tx.init(p), p) if tx is table else tx.update(grads, tx.init(p), p)
        )
        for apply in (pj.apply_updates, optax.apply_updates) if tx is table else (pj.apply_updates,):
            new = apply(p, updates)
            chex.assert_trees_all_equal_shapes_and_dtypes(new, p)
            chex.assert_trees_all_equal(new, {**p, "b": jnp.zeros(2)})
    tx = pj.accumulate_gradients(table, 2)
    _, state = tx.update(grads, tx.init(p), p)
    chex.assert_trees_all_equal(pj.apply_updates(p, tx.update(grads, state, p)[0]), {**p, "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="at n: found a gradient .* expected None, as the parameter"):
        there = {**p, "n": None, "flag": None}
        pj.sgd(0.1).update({**grads, "flag": None}, pj.sgd(0.1).init(there), there)
    with pytest.raises(TypeError, match="at flag: .*bool.*by_path"):
        pj.adam(0.1).init(p)


@pytest.mark.parametrize(
    "make", [lambda n: pj.asgd(0.1, batch_num=n), lambda n: pj.accumulate_gradients(pj.sgd(0.1), n),
             lambda n: pj.lookahead(pj.sgd(0.1), k=n), lambda n: pj.lbfgs(history_size=n)],
    ids=["asgd", "accumulate", "lookahead", "lbfgs"],
)  # fmt: skip
def test_an_int_that_inject_hyperparams_made_an_array(make):
    with pytest.raises((TypeError, ValueError), match="expected an? .*int.*static_args"):
        make(jnp.asarray(3))


def test_inject_hyperparams_is_told_what_is_static():
    with pytest.raises(TypeError, match="batch_num: found 3, expected an int; .*static_args"):
        optax.inject_hyperparams(pj.asgd)(0.1, batch_num=3).init(PARAMS)
    tx = optax.inject_hyperparams(pj.asgd, static_args="batch_num")(0.1, batch_num=3)
    assert tx.init(PARAMS).inner_state.slots["y"]["b"].shape == (3, 8)


@every
def test_it_is_lowered_for_gpus_and_tpus_without_a_call_of_cpus(name):
    """One export for all of them; an unknown call, such as of LAPACK, would be refused or is found here."""
    tx = TABLE[name]()
    state = jax.eval_shape(tx.init, PARAMS)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), PARAMS)
    made = export.export(jax.jit(lambda p, s: step(tx, p, s)), platforms=("cuda", "rocm", "tpu"))(
        params, state
    )
    calls = set(re.findall(r"custom_call @(\w+)", made.mlir_module()))
    assert made.platforms == ("cuda", "rocm", "tpu") and calls <= {"Sharding"}
