"""Optimizer state on a mesh: beside the parameters or spread over devices; no number changes."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as paddle
from paddlejax.distributed.sharding import state_shardings, zero1, zero1_shardings
from paddlejax.hyper import ArgumentError

SHAPES = {"b": (24,), "odd": (3,), "w": (16, 24)}  # no two of one shape
SPECS = {"b": P("model"), "odd": P(), "w": P(None, "model")}
on_both_kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def mesh_of(kind, **axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def on(mesh, specs):
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


WHOLE = dict.fromkeys(SHAPES, P())


def train(tx, place, steps=10, dtype=np.float32):
    """Parameters and state after so many steps, from values that `place` puts on devices."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state

    params = place(tree(0, dtype))
    state = tx.init(params)
    for seed in range(1, steps + 1):
        params, state = step(params, state, place(tree(seed, dtype)))
    return params, state


def worst(found, expected):
    """The largest difference, of each leaf against its largest magnitude (1 if that is less)."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    wide = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    return max(np.max(abs(x - y), initial=0) / np.max(abs(y), initial=1) for x, y in wide)


# -------------------------------------------------------------------------------------- beside the parameters

TABLE = [("b", {"rule": paddle.momentum(0.1)}), ("odd", {"frozen": True})]
TRANSFORMATIONS = {
    "adam": lambda: paddle.adam(0.1),
    "asgd": lambda: paddle.asgd(0.1, batch_num=5),
    "chain": lambda: paddle.chain(paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1), paddle.lamb(0.1)),
    "by_path": lambda: paddle.by_path(TABLE, paddle.adam(0.1), weight_decay=0.1),
    "master": lambda: paddle.with_master_weights(paddle.adam(0.1)),
    "accumulate": lambda: paddle.accumulate_gradients(paddle.adam(0.1), 3),
    "lookahead": lambda: paddle.lookahead(paddle.momentum(0.1), k=3),
    "skip": lambda: paddle.skip_nonfinite(paddle.rmsprop(0.1)),
    "loss_scale": lambda: paddle.dynamic_loss_scale(paddle.adamax(0.1)),
    "optax": lambda: optax.chain(optax.scale_by_rms(), optax.trace(0.9), optax.scale(-0.1)),
    "optax_inside": lambda: paddle.chain(optax.trace(0.9), paddle.sgd(0.1)),
}
AVERAGES = {"ema": paddle.exponential_moving_average, "model_average": lambda: paddle.model_average(0.5)}
HALF = {"master": jnp.bfloat16}


@on_both_kinds
@pytest.mark.parametrize("name", [*TRANSFORMATIONS, *AVERAGES])
def test_state_lies_beside_the_parameters(name, kind):
    tx = {**TRANSFORMATIONS, **AVERAGES}[name]()
    dtype = HALF.get(name, np.float32)
    shardings = on(mesh_of(kind, data=2, model=4), SPECS)
    params = jax.device_put(tree(0, dtype), shardings)
    wanted = state_shardings(tx, params)
    chex.assert_trees_all_equal_structs(wanted, tx.init(params))
    shapes = jax.eval_shape(lambda: tree(0, dtype))
    assert state_shardings(tx, shapes, shardings) == wanted
    state = jax.jit(tx.init, out_shardings=wanted)(params)
    assert worst(state, tx.init(tree(0, dtype))) == 0
    for leaf in jax.tree.leaves(state):
        name = next((n for n, shape in SHAPES.items() if leaf.shape[-len(shape) :] == shape), None)
        spec = P(*[None] * (leaf.ndim - len(SHAPES[name])), *SPECS[name]) if name else P()
        expected = NamedSharding(leaf.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (leaf.shape, leaf.sharding)


# ----------------------------------------------------------------------------------------- norms of the whole

NORMS = {
    "lamb": lambda axis, **cut: paddle.lamb(0.1, axis_name=axis, **cut),
    "lars_momentum": lambda axis, **cut: paddle.lars_momentum(
        0.1, 0.9, lars_coeff=0.1, axis_name=axis, **cut
    ),
    "clip_by_norm": lambda axis, **cut: paddle.chain(
        paddle.clip_by_norm(0.5, axis_name=axis, **cut), paddle.sgd(0.1)
    ),
    "clip_by_global_norm": lambda axis, **cut: paddle.chain(
        paddle.clip_by_global_norm(0.5, axis_name=axis, **cut), paddle.sgd(0.1)
    ),
    "dpsgd": lambda axis, **cut: paddle.dpsgd(0.1, sigma=0.0, key=jax.random.key(0), axis_name=axis, **cut),
}


@on_both_kinds
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_those_of_the_whole_tensors(name, kind):
    """Under jit by themselves, under shard_map with axis_name, and without it they are not."""
    specs = {"b": P(), "w": P(None, "model")}  # one tensor is whole on every device
    shardings = on(mesh := mesh_of(kind, model=8), specs)
    place = lambda values: {k: jax.device_put(values[k], s) for k, s in shardings.items()}  # noqa: E731
    expected, _ = train(NORMS[name](None), lambda values: {k: values[k] for k in specs}, 3)

    def mapped(axis):
        tx = NORMS[name](axis)
        states = jax.tree.map(lambda s: s.spec, state_shardings(tx, place(tree(0))))
        one = jax.shard_map(tx.update, mesh=mesh, in_specs=(specs, states, specs), out_specs=(specs, states))
        return train(paddle.GradientTransformation(tx.init, one), place, 3)[0]

    assert worst(train(NORMS[name](None), place, 3)[0], expected) < 1e-6
    assert worst(mapped("model"), expected) < 1e-6
    if name == "clip_by_global_norm":  # one factor per device, and JAX sees that "b" would differ with it
        with pytest.raises(ValueError, match="require replication"):
            mapped(None)
    else:
        assert worst(mapped(None), expected) > 1e-3


def untracked(tx, names=("model",)):
    """`update` under shard_map with check_vma=False, where JAX does not know that "b" is whole everywhere."""
    specs = {"b": P(), "w": P(None, *names)}
    mesh = mesh_of(AxisType.Auto, model=8) if len(names) == 1 else mesh_of(AxisType.Auto, data=2, model=4)
    shardings = on(mesh, specs)
    place = lambda values: {k: jax.device_put(values[k], s) for k, s in shardings.items()}  # noqa: E731
    states = jax.tree.map(lambda s: s.spec, state_shardings(tx, place(tree(0))))
    one = jax.shard_map(
        tx.update, mesh=mesh, in_specs=(specs, states, specs), out_specs=(specs, states), check_vma=False
    )
    return train(paddle.GradientTransformation(tx.init, one), place, 3)


SAID = {
    "function": lambda path: path == "w",
    "names": lambda path: "model" if path == "w" else False,
    "tuple": lambda path: ("model",) if path == "w" else (),
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("name", NORMS)
def test_norms_without_an_account_of_what_is_cut(name, said):
    expected, _ = train(NORMS[name](None), lambda values: {k: values[k] for k in ("b", "w")}, 3)
    assert worst(untracked(NORMS[name]("model", sharded=SAID[said]))[0], expected) < 1e-6


@pytest.mark.parametrize("name", NORMS)
def test_norms_that_would_count_a_tensor_twice_are_refused(name):
    with pytest.raises(ValueError, match="axis_name 'model': found no account .*check_vma=False.* sharded="):
        untracked(NORMS[name]("model"))


def test_what_is_said_of_a_cut_may_be_wrong():
    with pytest.raises(ValueError, match="sharded: found the axis 'data', expected one of axis_name"):
        untracked(NORMS["lamb"]("model", sharded=lambda path: "data"))
    for make in (NORMS["lamb"], NORMS["clip_by_norm"], NORMS["clip_by_global_norm"]):
        with pytest.raises(TypeError, match="sharded: found 'w', expected True, False or a function"):
            make("model", sharded="w")


@pytest.mark.parametrize("tracked", [True, False])
def test_the_info_of_cut_tensors_is_that_of_the_whole(tracked):
    clip = {"axis_name": "model", "sharded": None if tracked else SAID["function"]}
    tx = paddle.with_info(paddle.sgd(0.1), grad_clip=paddle.clip_by_global_norm(0.5, **clip), **clip)
    values = {k: tree(0)[k] for k in ("b", "w")}
    plain = paddle.with_info(paddle.sgd(0.1), grad_clip=paddle.clip_by_global_norm(0.5))
    want = plain.update(values, plain.init(values), values)[1].info
    specs = {"b": P(), "w": P(None, "model")}
    run = jax.shard_map(
        lambda p: tx.update(p, tx.init(p), p)[1].info,
        mesh=mesh_of(AxisType.Auto, model=8),
        in_specs=(specs,),
        out_specs=P(),
        check_vma=tracked,
    )
    chex.assert_trees_all_close(run(values), want, rtol=1e-6)


def test_a_whole_tensor_draws_the_same_noise_on_every_device():
    """With one number per element, a tensor that is cut draws other numbers on every device."""
    tx = paddle.dpsgd(
        0.1, sigma=1.0, per_element=True, key=jax.random.key(0), axis_name="model", sharded=SAID["function"]
    )
    params, _ = untracked(tx)
    copies = [np.asarray(s.data) for s in params["b"].addressable_shards]
    assert all(np.array_equal(c, copies[0]) for c in copies)
    moved = np.asarray(params["w"])
    assert not np.allclose(moved[:, :3] - tree(0)["w"][:, :3], moved[:, 3:6] - tree(0)["w"][:, 3:6])


# ----------------------------------------------------------------------------------------------------- ZeRO-1


def two(values):
    """One tensor that 8 divides and one that it does not; each further one takes time to compile."""
    return {name: values[name] for name in ("odd", "w")}


@functools.cache
def alone(case):
    """The reference: on one device."""
    return train(cases.CASES[case].make(), two)


def spread(tx, kind, some=two, **arguments):
    """Parameters, the state as it is held, and as the transformation has it."""
    whole = NamedSharding(mesh := mesh_of(kind, data=8), P())
    tx = zero1(tx, mesh, "data")
    params, state = train(tx, lambda values: jax.device_put(some(values), whole), **arguments)
    return params, state, tx.whole(state, params)


def check_zero1(found, expected):
    params, state, whole = found
    assert worst((params, whole), expected) <= 1e-6
    assert all(p.sharding.is_fully_replicated for p in jax.tree.leaves(params))
    for held, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        cut = any(leaf.shape[-len(shape) :] == shape for shape in SHAPES.values())
        assert held.addressable_shards[0].data.size * (8 if cut else 1) == held.size


@cases.each_rule_once
def test_zero1_computes_what_one_device_does(case):
    check_zero1(spread(case.make(), AxisType.Auto), alone(cases.CASES.index(case)))


@pytest.mark.parametrize("name", ["adam", "asgd", "dpsgd", "lamb"])
def test_zero1_computes_the_same_with_explicit_sharding(name):
    """For moments, a slot with a dimension of its own, a key, and norms."""
    case = next(case for case in cases.CASES if case.name == name)
    check_zero1(spread(case.make(), AxisType.Explicit), alone(cases.CASES.index(case)))


WHOLE_OPTIMIZERS = [name for name in TRANSFORMATIONS if name not in ("adam", "asgd", "skip")]


@pytest.mark.parametrize(
    "name, kind",
    [(name, AxisType.Auto) for name in WHOLE_OPTIMIZERS]
    + [(name, AxisType.Explicit) for name in ("chain", "by_path", "master")],
)
def test_zero1_around_a_whole_optimizer(name, kind):
    tx, dtype = TRANSFORMATIONS[name](), HALF.get(name, np.float32)
    found = spread(tx, kind, dict, steps=4, dtype=dtype)
    check_zero1(found, train(tx, jax.device_put, 4, dtype=dtype))


@on_both_kinds
def test_zero1_keeps_an_eighth_of_the_state(kind):
    """All but the scalars and the tensors that 8 divides nowhere; `zero1_shardings` says the same."""
    mesh, tx = mesh_of(kind, data=8), paddle.adam(0.1)
    params = jax.device_put({"w": jnp.ones((64, 256)), "v": jnp.ones((3, 256))}, NamedSharding(mesh, P()))
    state = zero1(tx, mesh, "data").init(params)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    numbers = sum(x.nbytes for x in jax.tree.leaves(state) if not x.ndim)
    assert held - numbers == 2 * 4 * (64 * 256 + 3 * 256) // 8
    shardings = zero1_shardings(tx, params, mesh, "data")
    jitted = jax.jit(tx.init, out_shardings=shardings)(params)
    for x, y, s in zip(*map(jax.tree.leaves, (state, jitted, shardings)), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim) and y.sharding.is_equivalent_to(s, x.ndim)
    odd = jax.device_put({"odd": jnp.ones((3, 5))}, NamedSharding(mesh, P()))
    assert zero1(tx, mesh, "data").init(odd).slots["moment1"]["odd"].sharding.shard_shape((1, 1, 16)) == (
        1,
        1,
        2,
    )


@on_both_kinds
def test_zero1_compiles_once_and_reuses_memory(kind, caplog):
    mesh = mesh_of(kind, data=8)
    tx = zero1(paddle.adam(0.1), mesh, "data")

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @chex.assert_max_traces(n=1)
    def one_step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state

    params, grads = (jax.device_put(tree(seed), on(mesh, WHOLE)) for seed in (0, 1))
    state = tx.init(params)
    with jax.log_compiles():
        for _ in range(3):
            before = params["w"], state.slots["moment1"]["w"]
            params, state = one_step(params, state, grads)
            assert all(x.is_deleted() for x in before)
        at_rest = np.asarray(params["w"])
        state = paddle.set_learning_rate(state, 0.0)
        params, state = one_step(params, state, grads)
    assert sum("Compiling jit(one_step)" in r.getMessage() for r in caplog.records) == 1
    np.testing.assert_array_equal(params["w"], at_rest)


@on_both_kinds
def test_zero1_beside_another_axis(kind):
    """A parameter that is sharded over `model` stays so, and its state is cut along `data` as well."""
    shardings = on(mesh := mesh_of(kind, data=2, model=4), SPECS)
    tx = zero1(paddle.lamb(0.1), mesh, "data", shardings)
    params, state = train(tx, lambda values: jax.device_put(values, shardings))
    whole = tx.whole(state, params)
    assert worst((params, whole), train(paddle.lamb(0.1), jax.device_put)) <= 1e-6
    assert all(params[k].sharding.is_equivalent_to(s, params[k].ndim) for k, s in shardings.items())
    assert {k: x.sharding.shard_shape(x.shape) for k, x in state.slots["moment1"].items()} == {
        "w": (8, 6),  # of (16, 24) over 2 and 4
        "b": (6,),
        "odd": (2,),  # of (3,) and a zero
    }
    assert zero1_shardings(paddle.lamb(0.1), params, mesh, "data").slots["moment1"]["w"].spec == P(
        "data", "model"
    )


def test_zero1_leaves_alone_what_has_no_gradient():
    shardings = on(mesh := mesh_of(AxisType.Auto, data=8), WHOLE)
    tx = zero1(paddle.adam(0.1), mesh, "data")
    params = jax.device_put(tree(0), shardings)
    updates, state = jax.jit(tx.update)({**params, "w": None}, tx.init(params), params)
    assert updates["w"] is None and not np.asarray(state.slots["moment1"]["w"]).any()
    assert state.slots["moment1"]["w"].sharding.shard_shape(SHAPES["w"]) == (2, 24)


# ----------------------------------------------------------------------------------------------------- errors


def errors():
    mesh = mesh_of(AxisType.Auto, data=2, model=4)
    mixed = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Explicit))
    adam, plain = paddle.adam(0.1), tree(0)
    there = jax.device_put(plain, on(mesh, SPECS))
    other = jax.device_put(plain, on(mesh_of(AxisType.Auto, data=8), WHOLE))
    tx = zero1(adam, mesh, "data")
    return [
        (lambda: state_shardings(0.1, there), TypeError, "state_shardings's tx: found 0.1"),
        (
            lambda: state_shardings(adam, plain),
            ArgumentError,
            "at b: found no sharding, expected a NamedSharding",
        ),
        (lambda: state_shardings(adam, jax.device_put(plain)), ArgumentError, "at b: found SingleDevice"),
        (
            lambda: state_shardings(adam, there, {"w": P()}),
            ValueError,
            "param_shardings.*missing at b, odd",
        ),
        (lambda: state_shardings(adam, there, SPECS), ArgumentError, "at b: found P"),
        (lambda: state_shardings(adam, {}), ArgumentError, "found no parameter"),
        (
            lambda: zero1(adam, mesh, "rows"),
            ArgumentError,
            "axis: found 'rows', expected one of .'data', 'model'",
        ),
        (lambda: zero1(adam, ("data",), "data"), TypeError, "mesh: found .*expected a jax.sharding.Mesh"),
        (lambda: zero1(adam, mixed, "data"), ArgumentError, "all Auto or all Explicit"),
        (lambda: zero1(paddle.adam, mesh, "data"), TypeError, "zero1's tx"),
        (
            lambda: tx.init(there),
            ArgumentError,
            "at b: the parameter is sharded, .*name .*in param_shardings",
        ),
        (lambda: tx.init(other), ArgumentError, "at b: the parameter is on another mesh"),
        (
            lambda: zero1_shardings(adam, other, mesh, "data"),
            ArgumentError,
            "at b: the parameter is on another",
        ),
        (
            lambda: zero1(adam, mesh, "data", SPECS).init(plain),
            ArgumentError,
            "zero1's param_shardings: at b: found P.*expected a NamedSharding of the mesh",
        ),
        (
            lambda: zero1_shardings(adam, plain, mesh, "data", jax.tree.map(lambda x: x.sharding, other)),
            ArgumentError,
            "zero1_shardings's param_shardings: at b: found .*expected a NamedSharding of the mesh",
        ),
        (
            lambda: state_shardings(adam, {**there, "w": other["w"]}),
            ArgumentError,
            "found different meshes at b and w, expected one",
        ),
        (lambda: tx.update(plain, tx.init(plain)), ValueError, "zero1 needs the parameters"),
        (lambda: tx.update({}, tx.init(plain), plain), ValueError, "gradients.*missing at b, odd, w"),
    ]


@pytest.mark.parametrize("i", range(18))
def test_errors_say_what_is_wrong(i):
    table = errors()
    assert len(table) == 18
    call, kind, message = table[i]
    with pytest.raises(kind, match=message):
        call()
