"""Every rule against its numpy reference, and what every rule must do whatever its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, drawn, each_rule_once, every_rule
from jax.sharding import NamedSharding, PartitionSpec

import paddlejax as paddle
from paddlejax.step import step as _step


def train(tx, p, grads, update=None):
    """Parameters and state after these gradients, the update compiled unless given."""
    update, state = update or jax.jit(tx.update), tx.init(p)
    for g in grads:
        updates, state = update(g, state, p)
        p = paddle.apply_updates(p, updates)
    return p, state


def accumulators(state, name="w"):
    shared = {k: np.asarray(v).reshape(1) for k, v in state.shared.items()}
    return {**{k: np.asarray(tree[name]) for k, tree in state.slots.items()}, **shared}


@every_rule
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_follows_the_reference_and_compiles_once(case, x64):
    dtype = np.float64 if x64 else np.float32
    p, grads = drawn(3, 2)
    p, grads = p.astype(dtype), grads.astype(dtype)
    with jax.enable_x64(x64):
        tx = case.make()
        update = jax.jit(tx.update)
        trees = [{"w": jnp.asarray(g), "nothing": None} for g in grads]
        q, state = train(tx, {"w": jnp.asarray(p), "nothing": None}, trees, update)
        want, slots = case.expected(p, grads)
        tolerance = 1e-12 if x64 else 2e-6
        np.testing.assert_allclose(q["w"], want, rtol=0, atol=tolerance * np.max(np.abs(want)))
        for name, found in accumulators(state).items():
            if name == "draws":  # dpsgd's place in its noise, which the kernel does not have
                continue
            scale = np.max(np.abs(slots[name]))
            if name in getattr(tx.source.rule, "full_shape", ()):  # the kernel has it once per element
                found = np.broadcast_to(found, slots[name].shape)
            np.testing.assert_allclose(found, slots[name], rtol=0, atol=tolerance * scale, err_msg=name)
        assert found.dtype == dtype if state.shared and case.name not in ("asgd", "dpsgd") else True
        assert state.count == len(grads)
        update(
            trees[0], paddle.set_learning_rate(state, 1.0), q
        )  # a new rate is a new value, not a new program
        assert update._cache_size() == 1


@every_rule
def test_zero_tiny_and_huge_gradients(case):
    p, drawn_ = drawn(4, steps=5)
    p, tx = p.astype(np.float32), case.make()
    update = jax.jit(tx.update)
    for scale in (0.0, 1e-9, 1e6):
        grads = (drawn_ * scale).astype(np.float32)
        q, _ = train(tx, {"w": jnp.asarray(p)}, [{"w": jnp.asarray(g)} for g in grads], update)
        want, _ = case.expected(p, grads)
        tolerance = 5e-6 * max(np.max(np.abs(want)), 1.0)
        np.testing.assert_allclose(q["w"], want, rtol=0, atol=tolerance, err_msg=str(scale))


@each_rule_once
def test_half_precision_follows_float32_rounded_at_every_step(case):
    p, grads = drawn(5, steps=3)
    narrow = lambda x: jnp.asarray(x, jnp.bfloat16)  # noqa: E731
    p, grads = narrow(p), [narrow(g) for g in grads]
    tx = case.make()
    state, q, wide_state = tx.init(p), p.astype(jnp.float32), tx.init(p.astype(jnp.float32))
    for g in grads:
        updates, state = tx.update(g, state, p)
        wide_updates, wide_state = tx.update(g.astype(jnp.float32), wide_state, p.astype(jnp.float32))
        np.testing.assert_array_equal(updates, narrow(wide_updates))
        p = paddle.apply_updates(p, updates)
        jax.tree.map(np.testing.assert_array_equal, state.slots, wide_state.slots)
    assert q.dtype == jnp.float32


@each_rule_once
def test_compiled_equals_uncompiled(case):
    p, grads = drawn(4, steps=4)
    p, grads = jnp.asarray(p, jnp.float32), [jnp.asarray(g, jnp.float32) for g in grads]
    tx = case.make()
    for a, b in zip(
        *(jax.tree.leaves(train(tx, p, grads, u)) for u in (tx.update, jax.jit(tx.update))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@each_rule_once
def test_abstract_init(case):
    tx, params = case.make(), {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    abstract, real = jax.eval_shape(tx.init, params), tx.init(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), real
    )


@each_rule_once
def test_slots_are_sharded_like_their_parameters(case):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    p = jax.device_put(jnp.ones((3, 16)), sharding)
    tx = case.make()
    state = tx.init(p)
    update = jax.jit(tx.update)
    updates, after = update(p, state, p)
    _, after = update(p, after, p)
    assert update._cache_size() == 1
    want, _ = tx.update(jnp.ones((3, 16)), tx.init(jnp.ones((3, 16))), jnp.ones((3, 16)))
    np.testing.assert_allclose(updates, want, rtol=1e-6)
    for slot in (*jax.tree.leaves(state.slots), *jax.tree.leaves(after.slots)):
        assert slot.sharding.is_equivalent_to(
            NamedSharding(mesh, PartitionSpec(*[None] * (slot.ndim - 1), "x")), slot.ndim
        )


@each_rule_once
def test_a_population_of_rates_is_one_program(case):
    p, grads = drawn(3, steps=3)
    p, grads = jnp.asarray(p, jnp.float32), [jnp.asarray(g, jnp.float32) for g in grads]
    rates = jnp.array([0.001, 0.01, 0.1])

    @jax.jit
    @jax.vmap
    def run(rate):
        tx = case.make(rate)
        return train(tx, p, grads, tx.update)[0]

    for rate, found in zip(rates, run(rates), strict=True):
        np.testing.assert_allclose(found, train(case.make(rate), p, grads)[0], rtol=1e-5, atol=1e-6)


def test_a_population_of_betas_is_one_program():
    p, grads = drawn(3, steps=3)
    p, grads = jnp.asarray(p, jnp.float32), [jnp.asarray(g, jnp.float32) for g in grads]

    def run(beta1):
        tx = paddle.adam(0.1, beta1=beta1)
        return train(tx, p, grads, tx.update)[0]

    found = jax.vmap(run)(jnp.array([0.5, 0.9]))
    np.testing.assert_allclose(found, jnp.stack([run(0.5), run(0.9)]), rtol=1e-6)


@each_rule_once
def test_fresh_state_shares_no_memory_and_can_be_donated(case):
    rate = jnp.asarray(case.rate, jnp.float32)
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    tx = case.make(rate)
    state = tx.init(params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state, params, rate)) if x.size]
    assert len(set(pointers)) == len(pointers)
    grads = jax.tree.map(jnp.copy, params)
    updates, state = jax.jit(tx.update, donate_argnums=1)(grads, state, params)
    jax.block_until_ready((updates, state, params, rate))


@each_rule_once
def test_a_leaf_without_gradient_stays_as_it_is(case):
    params = {"a": jnp.array([1.0, -0.0]), "b": jnp.array([2.0])}
    tx = case.make()
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    updates, after = tx.update({"a": None, "b": jnp.ones(1)}, state, params)
    new = paddle.apply_updates(params, updates)
    assert updates["a"] is None and new["a"] is params["a"]
    assert all(after.slots[k]["a"] is state.slots[k]["a"] for k in state.slots)
    updates, same = tx.update({"a": None, "b": None}, after, params)
    assert same is after and updates == {"a": None, "b": None}


@each_rule_once
def test_differentiable_through_an_update(case):
    p = jnp.array([1.0, -2.0, 3.0])

    def after_two_steps(rate):
        tx = case.make(rate)
        q, _ = train(tx, p, [p * 0.5 + 0.1, p], tx.update)
        return jnp.sum(q * q)

    found = jax.grad(after_two_steps)(0.05)
    step = 1e-2
    numeric = (after_two_steps(0.05 + step) - after_two_steps(0.05 - step)) / (2 * step)
    np.testing.assert_allclose(found, numeric, rtol=0.05, atol=0.02)


@each_rule_once
def test_inside_optax_and_optax_inside_ours(case):
    p = {"w": jnp.array([1.0, -2.0])}
    alone, _ = train(case.make(), p, [p, p])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        inside, _ = train(optax.chain(optax.identity(), case.make()), p, [p, p])
        around, _ = train(paddle.chain(optax.scale(1.0), case.make()), p, [p, p])
    for found in (inside, around):
        np.testing.assert_allclose(found["w"], alone["w"], rtol=1e-6)


@each_rule_once
def test_in_a_cond(case):
    tx, p = case.make(), jnp.ones(3)
    state = tx.init(p)

    @jax.jit
    def maybe(go):
        return jax.lax.cond(go, lambda: tx.update(p, state, p), lambda: (jnp.zeros(3), state))

    assert jax.tree.structure(maybe(True)) == jax.tree.structure(maybe(False))


def test_rules_that_differ_in_numbers_share_their_program():
    p = jnp.ones((7, 11))
    paddle.adam(0.1).update(p, paddle.adam(0.1).init(p), p)
    before = _step._cache_size()
    for beta in (0.5, 0.6, 0.7):
        tx = paddle.adam(0.1, beta1=beta)
        tx.update(p, tx.init(p), p)
    assert _step._cache_size() == before


def test_a_schedule_sets_the_rate_of_each_update():
    tx = paddle.sgd(lambda count: 1.0 / (1 + count))
    p, state = jnp.zeros(()), None
    state = tx.init(p)
    rates = []
    for _ in range(3):
        updates, state = jax.jit(tx.update)(jnp.ones(()), state, p)
        rates.append((float(-updates), float(paddle.get_learning_rate(state))))
    np.testing.assert_allclose(rates, [(1, 1), (1 / 2, 1 / 2), (1 / 3, 1 / 3)])


@pytest.mark.parametrize("name", ["lamb", "lars_momentum"])
def test_norms_over_the_axis_of_a_shard_map(name):
    case = next(c for c in CASES if c.name == name)
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    p, grads = (jnp.asarray(a, jnp.float32) for a in drawn(8, steps=1))
    tx = case.make(axis_name="x")
    shard = PartitionSpec("x")

    def update(g, p):
        return tx.update(g, tx.init(p), p)[0]

    found = jax.shard_map(update, mesh=mesh, in_specs=(shard, shard), out_specs=shard)(grads[0], p)
    want, _ = case.make().update(grads[0], case.make().init(p), p)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_exclusions_by_path():
    params = {"dense": {"w": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}}
    grads = jax.tree.map(jnp.ones_like, params)
    lamb = paddle.lamb(
        0.1, lamb_weight_decay=0.5, exclude_from_weight_decay_fn=lambda path: path.endswith("b")
    )
    plain = paddle.lamb(0.1, lamb_weight_decay=0.0)
    decayed = paddle.lamb(0.1, lamb_weight_decay=0.5)
    found, state = lamb.update(grads, lamb.init(params), params)
    np.testing.assert_array_equal(
        found["dense"]["b"], plain.update(grads, plain.init(params), params)[0]["dense"]["b"]
    )
    want = decayed.update(grads, decayed.init(params), params)[0]["dense"]["w"]
    np.testing.assert_array_equal(found["dense"]["w"], want)
    assert jax.tree.structure(state) == jax.tree.structure(
        plain.init(params)
    )  # a flag does not change the state
    lars = paddle.lars_momentum(0.1, 0.9, exclude_from_weight_decay=("/b",))
    found, _ = lars.update(grads, lars.init(params), params)
    np.testing.assert_allclose(found["dense"]["b"], -0.1)  # neither decay nor ratio: the plain rate


def test_decay_and_rate_by_path():
    params = {"w": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = paddle.adamw(
        0.1,
        weight_decay=0.5,
        apply_decay_param_fun=lambda path: path == "w",
        lr_ratio=lambda path: {"w": 0.25, "b": 1.0}[path],
    )
    found, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(found["w"], 0.25 * (-0.1 - 0.1 * 0.5 * 3.0), rtol=1e-6)
    np.testing.assert_array_equal(found["b"], train_once(paddle.adam(0.1), params)["b"])
    plain = paddle.adam(0.1)
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))


def train_once(tx, params):
    return tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0]


def test_adamw_without_decay_is_adam():
    params = {"w": jnp.array([3.0, -1.0])}
    for amsgrad in (False, True):
        without = paddle.adamw(0.1, weight_decay=0.0, amsgrad=amsgrad)
        np.testing.assert_array_equal(
            train(without, params, [params] * 3)[0]["w"],
            train(paddle.adam(0.1, amsgrad=amsgrad), params, [params] * 3)[0]["w"],
        )


def test_a_population_of_etas_is_one_program():
    p = jnp.array([1.0, -2.0, 3.0])

    def run(grow):
        tx = paddle.rprop(0.1, etas=(0.5, grow))
        return train(tx, p, [p] * 3, tx.update)[0]

    found = jax.vmap(run)(jnp.array([1.2, 1.5]))
    np.testing.assert_allclose(found, jnp.stack([run(1.2), run(1.5)]), rtol=1e-6)


def noise(key=0, steps=1, name="w", shape=(4,), **kwargs):
    """The noise of each step: the update of a zero gradient at rate 1."""
    tx = paddle.dpsgd(1.0, 1.0, 1.0, 1.0, key=jax.random.key(key), **kwargs)
    zeros = {name: jnp.zeros(shape)}
    state, drawn = tx.init(zeros), []
    for _ in range(steps):
        updates, state = tx.update(zeros, state, zeros)
        drawn.append(np.asarray(updates[name]))
    return np.stack(drawn)


def test_noise_is_one_number_per_tensor_and_step_or_one_per_element():
    alike = noise(steps=3)
    np.testing.assert_array_equal(alike, np.broadcast_to(alike[:, :1], alike.shape))
    assert len(np.unique(alike)) == 3
    assert len(np.unique(noise(steps=3, per_element=True))) == 12


def test_noise_is_of_the_key_the_path_and_the_step():
    np.testing.assert_array_equal(noise(steps=3), noise(steps=3))
    different = [noise(), noise(key=1), noise(name="v")]
    assert len({float(x[0, 0]) for x in different}) == 3


def test_noise_is_normal():
    drawn = noise(shape=(300, 300), per_element=True)
    assert abs(np.mean(drawn)) < 0.02 and abs(np.std(drawn) - 1) < 0.02
    half = noise(shape=(300, 300), per_element=True) / 2
    tx = paddle.dpsgd(1.0, 1.0, 2.0, 1.0, key=jax.random.key(0), per_element=True)
    zeros = {"w": jnp.zeros((300, 300))}
    np.testing.assert_allclose(tx.update(zeros, tx.init(zeros), zeros)[0]["w"], half[0], rtol=1e-6)


def test_noise_compiled_scanned_and_over_many_keys():
    p = {"w": jnp.zeros(3)}

    @jax.jit
    @jax.vmap
    def run(key):
        tx = paddle.dpsgd(1.0, 1.0, 1.0, 1.0, key=key)

        def step(state, _):
            updates, state = tx.update(p, state, p)
            return state, updates["w"]

        return jax.lax.scan(step, tx.init(p), length=2)[1]

    found = run(jax.random.split(jax.random.key(0), 3))
    for key, drawn_ in zip(jax.random.split(jax.random.key(0), 3), found, strict=True):
        tx = paddle.dpsgd(1.0, 1.0, 1.0, 1.0, key=key)
        state = tx.init(p)
        for want in drawn_:
            updates, state = tx.update(p, state, p)
            np.testing.assert_allclose(updates["w"], want, rtol=1e-6)
    raw, typed = jax.random.PRNGKey(3), jax.random.key(3)
    zeros = [paddle.dpsgd(1.0, key=key, sigma=1.0) for key in (raw, typed)]
    np.testing.assert_array_equal(*(train_once(tx, p)["w"] for tx in zeros))


def test_noise_over_the_axis_of_a_shard_map():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    shard, zeros = PartitionSpec("x"), jnp.zeros(8)

    def drawn_over_devices(per_element):
        tx = paddle.dpsgd(1.0, key=jax.random.key(0), sigma=1.0, per_element=per_element, axis_name="x")
        update = lambda g: tx.update(g, tx.init(g), g)[0]  # noqa: E731
        return np.unique(jax.shard_map(update, mesh=mesh, in_specs=shard, out_specs=shard)(zeros)).size

    assert (drawn_over_devices(False), drawn_over_devices(True)) == (1, 8)


def stepped(make, steps=3, shape=(2, 3), state=None):
    """A Parameter after so many steps along itself, and its optimizer."""
    p = paddle.Parameter(jnp.ones(shape) if state is None else state[0], "w")
    opt = make([p])
    if state is not None:
        opt.set_state_dict(state[1])
    for _ in range(steps):
        p.grad = p.value * 0.5
        opt.step()
    return p.numpy(), opt.state_dict()


OBJECTS = {
    "AdamW": lambda ps: paddle.optimizer.AdamW(0.1, parameters=ps),
    "NAdam": lambda ps: paddle.optimizer.NAdam(0.1, parameters=ps),
    "RAdam": lambda ps: paddle.optimizer.RAdam(0.1, parameters=ps),
    "Rprop": lambda ps: paddle.optimizer.Rprop(0.1, parameters=ps),
    "Dpsgd": lambda ps: paddle.fluid.optimizer.Dpsgd(
        0.1, sigma=1.0, key=jax.random.key(0), parameter_list=ps
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2)], ids=str)
def test_resumed_objects_go_on_bit_for_bit(name, shape):
    straight, entries = stepped(OBJECTS[name], 10, shape)
    resumed, again = stepped(OBJECTS[name], 4, shape, stepped(OBJECTS[name], 6, shape))
    np.testing.assert_array_equal(straight, resumed)
    jax.tree.map(np.testing.assert_array_equal, entries, again)


@pytest.mark.parametrize("name", ["NAdam", "RAdam"])
def test_products_are_written_once_per_element(name):
    p, entries = stepped(OBJECTS[name])
    assert {v.shape for v in entries.values()} == {(2, 3)}
    assert all(
        len(np.unique(v)) == 1 for k, v in entries.items() if "moment1" not in k and "moment2" not in k
    )
    entries["w_beta2_pow_0"] = entries["w_beta2_pow_0"][:1, :1].reshape(1)
    with pytest.raises(AssertionError, match=r"w_beta2_pow_0 has shape \(1,\), expected \(2, 3\)"):
        stepped(OBJECTS[name], state=(p, entries))


def test_a_groups_weight_decay_in_adamw_is_decoupled():
    a, b, c = (paddle.Parameter(jnp.full(2, 3.0), name) for name in "abc")
    c_decayed = paddle.Parameter(jnp.full(2, 3.0), "d", regularizer=paddle.regularizer.L2Decay(0.5))
    groups = [{"params": [a]}, {"params": [b], "weight_decay": 0.5}, {"params": [c], "weight_decay": 0}]
    asked = []
    with pytest.warns(UserWarning, match="excludes none of 4"):
        opt = paddle.optimizer.AdamW(
            0.1,
            parameters=[*groups, {"params": [c_decayed], "weight_decay": 0.0}],
            weight_decay=0.1,
            apply_decay_param_fun=lambda name: asked.append(name) or True,
            lr_ratio=lambda p: 0.5 if p is b else 1.0,
        )
    for p in (a, b, c, c_decayed):
        p.grad = jnp.ones(2)
    opt.step()
    np.testing.assert_allclose(a.numpy(), 3 - 0.1 * 0.1 * 3 - 0.1, rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), 3 - 0.05 * 0.5 * 3 - 0.05, rtol=1e-6)
    np.testing.assert_allclose(c.numpy(), 3 - 0.1, rtol=1e-6)
    assert set(asked) == set("abcd")
    # the regularizer of a Parameter is added to its gradient, here 1 + 0.5 * 3
    np.testing.assert_allclose(opt.state_dict()["d_moment1_0"], 0.1 * 2.5, rtol=1e-5)


def test_a_rate_set_later_does_not_reach_rprop():
    found = []
    for set_later in (False, True):
        p = paddle.Parameter(jnp.ones(2), "w", learning_rate=7.0)
        opt = paddle.optimizer.Rprop(0.1, parameters=[p])
        if set_later:
            opt.set_lr(5.0)
        p.grad = jnp.ones(2)
        opt.step()
        found.append(p.numpy())
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], 0.9, rtol=1e-6)


@each_rule_once
def test_every_rule_takes_a_schedule(case):
    """What a schedule says is what setting the rate by hand before every update gives."""
    if case.name == "rprop":  # its rate is where the step sizes start: a schedule has nothing to say
        with pytest.raises(TypeError, match="learning_rate"):
            case.make(paddle.schedules.step_decay(0.1, 2))
        return
    schedule = paddle.schedules.step_decay(case.rate, step_size=2, gamma=0.5)
    p, grads = drawn(3, steps=5)
    p, grads = jnp.asarray(p, jnp.float32), [jnp.asarray(g, jnp.float32) for g in grads]
    scheduled, _ = train(case.make(schedule), p, grads)
    tx = case.make()
    state, update = tx.init(p), jax.jit(tx.update)
    for count, g in enumerate(grads):
        updates, state = update(g, paddle.set_learning_rate(state, schedule(count)), p)
        p = paddle.apply_updates(p, updates)
    np.testing.assert_allclose(scheduled, p, rtol=1e-6, atol=1e-7)
