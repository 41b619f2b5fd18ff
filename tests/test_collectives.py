"""A data-parallel step sends one message per dtype, whatever the optimizer, and computes what `jit` does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_dgc import collectives

import paddlejax as paddle
from paddlejax import collectives as messages
from paddlejax.distributed import dgc_momentum, make_step
from paddlejax.lifting import Rule, lift, rule
from paddlejax.norms import norms

AXES = {"data": ((8,), ("data",)), "machine": ((2, 4), ("machine", "local"))}
WIDE = 64


def mesh_of(name, kind=AxisType.Auto):
    shape, axes = AXES[name]
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def problem():
    rng = np.random.default_rng(0)
    params = {k: (rng.normal(size=(WIDE, WIDE)) / 8).astype("f") for k in ("w", "v")}
    params |= {f"b{i}": np.zeros(WIDE, "f") for i in range(6)}
    return params, *rng.normal(size=(2, 64, WIDE)).astype("f")


def loss_of(params, x, y):
    x = x.astype(params["w"].dtype)
    for i in range(6):
        x = jnp.tanh(x + params[f"b{i}"][None].astype(x.dtype))
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y.astype(x.dtype)).astype(jnp.float32) ** 2)


def dgc(axis, n, **options):
    options = {"rampup_begin_step": 0, "sparsity": [0.9], "min_numel": 1000, **options}
    return dgc_momentum(0.1, 0.9, num_trainers=n, axis_name=axis, **options)


def step_on(name, tx, kind=AxisType.Auto, params=None, **options):
    """A step on 8 devices, with the inner axis if there is one; its parameters, its state, the batch."""
    start, x, y = problem()
    inner = {"inner_axis": "local"} if name == "machine" else {}
    axis = AXES[name][1][0]
    return *make_step(loss_of, tx, mesh_of(name, kind), params or start, axis, **inner, **options), x, y


def trained(step, params, state, x, y, steps=4):
    for _ in range(steps):
        params, state, loss = step(params, state, x, y)
    return {k: np.asarray(p) for k, p in params.items()}, float(loss)


def compiled(step, *args):
    return jax.jit(step).lower(*args).compile()


@functools.cache
def by_jit(make):
    """The same training without workers."""
    params, x, y = problem()
    tx = make(0.01)
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    return trained(step, params, state, x, y)


def same(found, expected, tolerance):
    for k, p in expected[0].items():
        np.testing.assert_allclose(found[0][k], p, rtol=0, atol=tolerance, err_msg=k)
    assert found[1] == pytest.approx(expected[1], rel=tolerance)


@pytest.mark.parametrize(
    "make, name, kind",
    [
        (paddle.lamb, "data", AxisType.Auto),
        (paddle.momentum, "data", AxisType.Explicit),
        (paddle.momentum, "machine", AxisType.Auto),
        (paddle.lamb, "machine", AxisType.Explicit),
    ],
)
def test_any_optimizer_takes_the_mean_gradient(make, name, kind):
    same(trained(*step_on(name, make(0.01), kind)), by_jit(make), 2e-6)


@pytest.mark.parametrize(
    "name, tx, expected",
    [
        ("data", paddle.momentum(0.1), ["all-reduce"]),
        ("data", dgc("data", 8), ["all-gather"]),
        ("data", dgc("data", 8, rampup_begin_step=9), ["all-gather", "all-reduce"]),  # before it and after
        ("data", dgc("data", 8, exchange="dense"), ["all-reduce"]),
        # inside a machine, then each device its part of what goes to others, then the parts inside again
        ("machine", paddle.momentum(0.1), ["all-gather", "all-reduce", "all-reduce"]),
        ("machine", dgc("machine", 2), ["all-gather", "all-gather", "all-reduce"]),
    ],
)
def test_messages_of_a_step(name, tx, expected):
    found = collectives(compiled(*step_on(name, tx)))
    assert sorted(kind for kind, _ in found) == expected


def test_one_message_per_dtype():
    params = problem()[0]
    params = {k: p.astype(jnp.bfloat16) if k in "wv" else p for k, p in params.items()}
    step = step_on("data", paddle.momentum(0.1), params=params)
    found = jax.jit(step[0]).lower(*step[1:]).as_text()
    assert found.count("stablehlo.all_reduce") == 2


def test_without_joining_it_computes_the_same():
    tx = paddle.momentum(0.01)
    apart, together = (step_on("data", tx, join=join) for join in (False, True))
    same(trained(*apart), trained(*together), 2e-7)


def test_parameters_that_are_sharded_over_another_axis_are_not_gathered():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    params, x, y = problem()
    across = NamedSharding(mesh, P(None, "model"))
    params |= {"w": jax.device_put(params["w"], across)}

    def loss(params, x, y):
        hidden = jax.sharding.reshard(x @ params["w"], P())
        return jnp.mean((jnp.tanh(hidden) @ params["v"] - y) ** 2)

    step, placed, state = make_step(loss, paddle.adam(0.01), mesh, {k: params[k] for k in "wv"})
    assert state.slots["moment1"]["w"].sharding == across
    placed, state, _ = step(placed, state, x, y)
    assert placed["w"].sharding == across


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_compression_between_machines_and_sums_inside(kind):
    """Two machines of four devices are two workers, and each device works on an eighth of the batch."""
    two = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    params, x, y = problem()
    tx = dgc("data", 2)
    expected = trained(*make_step(loss_of, tx, two, params), x, y)
    step = step_on("machine", dgc("machine", 2), kind)
    flops = compiled(*step).cost_analysis()["flops"]
    flat = compiled(*step_on("data", dgc("data", 8))).cost_analysis()["flops"]
    same(trained(*step), expected, 2e-6)
    assert flops < 1.5 * flat  # 4 times as many if each device took the batch of its machine


def test_a_loss_in_a_branch_comes_out_too():
    """skip_nonfinite runs the update in a branch, which the loss could not leave again."""
    tx = paddle.skip_nonfinite(dgc("data", 8), axis_name="data")
    same(trained(*step_on("data", tx)), trained(*step_on("data", dgc("data", 8))), 1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"inner_axis": "local"}, "inner_axis: found 'local', expected one of the mesh's, .*'data'"),
        ({"inner_axis": "data"}, "inner_axis: found 'data', expected another axis than axis_name"),
        ({"join": 1}, "join: found 1, expected True, False or None"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_step(loss_of, paddle.sgd(0.1), mesh_of("data"), problem()[0], **options)


def test_what_does_not_fit_both_axes_is_refused():
    step, params, state, x, y = step_on("machine", paddle.sgd(0.1))
    with pytest.raises(ValueError, match=r"batch at 0: found shape \(12, 64\), expected .* the 8 workers"):
        step(params, state, x[:12], y[:12])
    sharded = jax.device_put(x, NamedSharding(mesh_of("machine"), P("local")))
    with pytest.raises(ValueError, match="at w: found a parameter sharded over 'local'"):
        step_on("machine", paddle.sgd(0.1), params={"w": sharded})


CLIP = paddle.clip_by_global_norm(0.1, axis_name="data")
LAMB = paddle.lamb(0.1, axis_name="data")


@pytest.mark.parametrize(
    "tx, messages",
    [
        (CLIP, 2),  # once more in the branch for what overflows
        (paddle.clip_by_norm(0.1, axis_name="data"), 1),
        (LAMB, 1),
        (paddle.lars_momentum(0.1, 0.9, axis_name="data"), 1),
        (paddle.dpsgd(0.1, axis_name="data", key=jax.random.key(0)), 1),
        (paddle.skip_nonfinite(paddle.chain(CLIP, LAMB), axis_name="data"), 4),
        (paddle.with_info(LAMB, axis_name="data"), 3),  # the rule, what was measured, the trust ratios
    ],
    ids=["global", "each", "lamb", "lars", "dpsgd", "all", "info"],
)
def test_norms_of_all_tensors_are_one_message(tx, messages):
    params = {f"w{i}": jnp.ones((8, 2 + i % 3)) for i in range(20)}
    text = sharded_step(tx, params).as_text()
    assert text.count("stablehlo.all_reduce") == messages


def sharded_step(tx, params, cut=lambda x: P("data") if jnp.ndim(x) else P()):
    state = tx.init(params)
    specs = jax.tree.map(cut, (params, state, params))
    step = jax.shard_map(tx.update, mesh=mesh_of("data"), in_specs=specs, out_specs=(specs[0], specs[1]))
    return jax.jit(step).lower(params, state, params)


def test_a_rule_of_ones_own_may_ask_twice_and_each_time_is_one_message():
    """The second norm is of what the first has scaled; a tensor that is whole on every device takes part."""

    @rule
    class Twice(Rule):
        elementwise = False
        axis_name: str | None = None

        def step(self, g, p, k, slots):
            g = g / norms([g], self.axis_name)[0]
            return -k * g * norms([p + g], self.axis_name)[0], slots

    rng = np.random.default_rng(0)
    params = {f"w{i}": rng.normal(size=(8, 2 + i % 3)).astype("f") for i in range(9)} | {"b": np.ones(3, "f")}
    tx, plain = (lift(Twice(axis_name=axis), 0.1) for axis in ("data", None))
    step = sharded_step(tx, params, lambda x: P("data") if jnp.ndim(x) == 2 else P())
    assert step.as_text().count("stablehlo.all_reduce") == 2
    found = step.compile()(params, tx.init(params), params)[0]
    want = plain.update(params, plain.init(params), params)[0]
    for name in params:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6)  # other orders of the sums


def test_each_device_of_a_machine_sends_its_part_of_a_matrix_that_travels_alone():
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("f")

    def mean(x):
        with messages.inner_axis.set("local"):
            return messages.mean([x[0]], "machine")[0]

    step = jax.jit(jax.shard_map(mean, mesh=mesh_of("machine"), in_specs=P("machine"), out_specs=P()))
    np.testing.assert_allclose(step(x), x.mean(0), rtol=1e-6)  # one rounding of a sum of two
    text = step.lower(x).as_text()
    assert "(tensor<4xf32>) -> tensor<4xf32>" in text  # 15 elements on 4 devices
    assert "(tensor<3x5xf32>) -> tensor<3x5xf32>" not in text
