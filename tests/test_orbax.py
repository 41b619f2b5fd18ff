"""The functional state through orbax-checkpoint's own API: whole, without a target, in part, resharded."""

import chex
import jax
import jax.numpy as jnp
import pytest
from bits import bits
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
from transformations import AVERAGES, TABLE, WRAPPERS, step

import paddlejax as pj

ocp = pytest.importorskip("orbax.checkpoint", reason="needs orbax-checkpoint, in paddlejax[test]")
CHAINS = {
    "chain": lambda: pj.chain(pj.clip_by_global_norm(1.0), pj.adam(lambda count: 0.1 / (1 + count))),
    "masters": lambda: pj.with_master_weights(pj.lamb(0.1)),
    "by_path": lambda: pj.by_path([("b", {"learning_rate": 2.0})], pj.momentum(0.1, 0.9)),
}


def steps(tx, params, state, n):
    for _ in range(n):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = pj.apply_updates(params, updates)
    return params, state


@pytest.fixture(params=CHAINS)
def saved(request, tmp_path):
    """A transformation, what three steps made of the parameters and its state, and where they are saved."""
    tx, dtype = CHAINS[request.param](), "bfloat16" if request.param == "masters" else "float32"
    params = {"w": jnp.arange(16.0).reshape(8, 2).astype(dtype), "b": jnp.ones(8, dtype)}
    params, state = steps(tx, params, tx.init(params), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"params": params, "state": state})
    return tx, {"params": params, "state": state}, tmp_path / "c"


def same(a, b):
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(bits(a), bits(b))


def test_a_state_restored_into_a_fresh_one_goes_on_bit_for_bit(saved):
    tx, tree, folder = saved
    fresh = jax.tree.map(jnp.zeros_like, tree["params"])
    with ocp.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(folder, {"params": fresh, "state": tx.init(fresh)})
    same(back, tree)
    same(steps(tx, back["params"], back["state"], 2), steps(tx, tree["params"], tree["state"], 2))


def test_without_a_target_the_names_are_keys(saved):
    tx, tree, folder = saved
    with ocp.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(folder)
    plain = jax.tree_util.tree_flatten_with_path(back)[0]
    named = jax.tree_util.tree_flatten_with_path(tree)[0]

    def words(entries):
        return {
            tuple(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in p): x
            for p, x in entries
        }

    chex.assert_trees_all_equal(words(plain), words(named))


def test_a_state_moves_onto_another_sharding(saved):
    tx, tree, folder = saved
    mesh = jax.make_mesh((8,), ("devices",))

    def place(x):
        rows = PartitionSpec("devices") if x.shape[:1] == (8,) else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, rows))

    target = jax.tree.map(place, jax.eval_shape(lambda: tree))
    with ocp.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(folder, target)
    same(back, tree)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(target), strict=True):
        assert x.sharding == y.sharding
    assert any(
        len(x.addressable_shards) == 8 and x.addressable_shards[0].data.shape != x.shape
        for x in jax.tree.leaves(back)
    )


def test_one_slot_alone_is_restored(tmp_path):
    tx, params = CHAINS["chain"](), {"w": jnp.arange(16.0).reshape(8, 2), "b": jnp.ones(8)}
    _, state = steps(tx, params, tx.init(params), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"state": state})
    here = SingleDeviceSharding(jax.devices()[0])
    moment = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state[1].slots["moment1"]
    )
    item = {"state": [{}, {"slots": {"moment1": moment}}]}  # a chain is a list, a RuleState a dict
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restore = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        back = checkpointer.restore(tmp_path / "c", args=restore)
    same(back["state"][1], {"slots": {"moment1": state[1].slots["moment1"]}})


# ------------------------------------------------------ every wrapper, on as many devices as there are


def placed(devices, tree):
    """The tree over so many devices, cut where a first dimension is 8."""
    mesh = jax.make_mesh((devices,), ("x",), (AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.tree.map(
        lambda x: jax.device_put(
            x, NamedSharding(mesh, PartitionSpec("x") if x.shape[:1] == (8,) else PartitionSpec())
        ),
        tree,
    )


@pytest.mark.parametrize("name", [*sorted(WRAPPERS.keys() - {"zero1"}), "lbfgs", *AVERAGES, "with_info_lamb"])
def test_every_state_is_restored_on_fewer_and_on_more_devices(name, tmp_path):
    """Saved from 4 devices, restored into a fresh state on 8, 4 and 1, it goes on."""
    tx, params = TABLE[name](), {"w": jnp.arange(16.0).reshape(8, 2) / 10, "b": jnp.ones(8)}
    here = placed(4, params)
    run = jax.jit(lambda p, s: step(tx, p, s))
    p, state = run(here, tx.init(here))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", {"params": p, "state": state})
    want = run(p, state)
    for devices in (8, 4, 1):
        fresh = placed(devices, params)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
        for target in (tx.init(fresh), tx.init(abstract)):
            with ocp.StandardCheckpointer() as checkpointer:
                back = checkpointer.restore(tmp_path / "c", {"params": fresh, "state": target})
            same(back, {"params": p, "state": state})
            where = jax.tree.map(lambda x: x.sharding, target)
            assert jax.tree.map(lambda x: x.sharding, back["state"]) == where
            found = run(back["params"], back["state"])
            chex.assert_trees_all_close(jax.device_get(found), jax.device_get(want), rtol=1e-6, atol=1e-7)
