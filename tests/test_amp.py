"""Loss scaling and skipped steps: the recorded GradScaler, and the same as functions."""

import json
import math

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bits import bits
from cases import drawn, each_rule_once
from golden_cases import GOLDEN
from jax.sharding import PartitionSpec

import paddlejax as paddle
from paddlejax import amp
from paddlejax.optimizer import loss as loss_module

CASES = json.loads((GOLDEN / "scaler.json").read_text())
ERRORS = {"AssertionError": AssertionError, "RuntimeError": RuntimeError}
# By case and operation, what follows the record and what does not.
AFTER_A_SKIP = ("sticky-found-inf", 4)  # a plain step() after a skipped one: Paddle skips it as well
# How many operations are replayed: then Paddle's scale becomes inf or 0, and never anything else.
UNTIL = {"overflow": 2, "underflow": 2}


def numbers(values):
    return np.array([float(v) for v in values], np.float32)


def nothing(updates):
    """Whether an update is -0.0 throughout."""
    return all(np.all((np.asarray(u) == 0) & np.signbit(np.asarray(u, np.float32))) for u in updates)


# ------------------------------------------------------------------ the record


class Replay:
    """Two optimizers and a scaler, as the recorder had them."""

    def __init__(self, case):
        self.params = {who: paddle.Parameter(jnp.array([1.0, 2.0])) for who in "ab"}
        make = paddle.optimizer.Adam if case.get("optimizer") == "adam" else paddle.optimizer.SGD
        rate = 0.1 if case.get("optimizer") == "adam" else 0.125
        self.opts = {who: make(rate, parameters=[p]) for who, p in self.params.items()}
        self.scaler = amp.GradScaler(**case["kwargs"])
        self.saved = None

    def run(self, kind, *args):
        match kind:
            case "backward":
                self.params[args[0]].grad = numbers(args[1])
            case "scale":
                return float(self.scaler.scale(jnp.float32(args[0])))
            case "unscale":
                self.scaler.unscale_(self.opts[args[0]])
            case "step":
                self.scaler.step(self.opts[args[0]])
            case "minimize":
                if self.scaler.is_enable():
                    self.scaler.minimize(self.opts[args[0]], jnp.sum(self.params[args[0]].value))
            case "plain_step":
                self.opts[args[0]].step()
            case "update":
                self.scaler.update()
            case "save":
                self.saved = self.scaler.state_dict()
            case "load":
                self.scaler = amp.GradScaler()
                self.scaler.load_state_dict(self.saved)
            case "set":
                getattr(self.scaler, f"set_{args[0]}")(args[1])


@pytest.mark.parametrize("case", [c for c in CASES if "error" not in c], ids=lambda c: c["id"])
def test_recorded(case):
    """Scale and counters exactly, parameters and gradients within 1e-6, errors where there were any."""
    replay, last = Replay(case), UNTIL.get(case["id"])
    extra = {who: np.zeros(2, np.float32) for who in "ab"}  # by which steps Paddle skipped we are ahead
    for i, (op, want) in enumerate(zip(case["ops"][:last], case["results"][:last], strict=True)):
        if (case["id"], i) == AFTER_A_SKIP:
            extra["a"] = -0.125 * numbers(replay.params["a"].grad)
        if "error" in want:
            with pytest.raises(ERRORS[want["error"]]):
                replay.run(*op)
        else:
            assert replay.run(*op) == want.get("value")
        state = replay.scaler.state_dict()
        if "scale" in want:
            assert state["scale"].shape == (1,) and state["scale"].dtype == np.float32
            assert float(state["scale"][0]) == float(want["scale"]), (i, op)
            assert [state[k] for k in ("incr_count", "decr_count")] == [
                want["incr_count"],
                want["decr_count"],
            ]
        for who, p in replay.params.items():
            np.testing.assert_allclose(p.value, numbers(want[who]) + extra[who], rtol=1e-6, atol=0)
            g = want["g" + who]
            # After an overflow the record has 0 or NaN there, whichever tensor came first.
            if g is None:
                assert p.grad is None
            elif np.all(np.isfinite(numbers(g))) and np.all(np.isfinite(p.grad)):
                np.testing.assert_allclose(p.grad, numbers(g), rtol=1e-6, atol=0)
    if last:
        return
    want = case["state_dict"]
    found = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state.items()}
    assert found == {k: [float(v[0])] if k == "scale" else v for k, v in want.items()}


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c], ids=lambda c: c["id"])
def test_recorded_errors(case):
    with pytest.raises(ERRORS[case["error"]]):
        amp.GradScaler(**case["kwargs"])


def plain(case):
    """Whether it is one optimizer's steps, each with its update, and nothing else."""
    ops = [op[0] for op in case["ops"] if op[0] != "scale"]
    rounds = ops in (
        ["backward", "step", "update"] * (len(ops) // 3),
        ["backward", "minimize"] * (len(ops) // 2),
    )
    return rounds and ops and set(case["kwargs"]).isdisjoint({"enable", "use_dynamic_loss_scaling"})


def test_as_many_are_recorded_as_are_replayed():
    assert len(CASES) == 23 and sum(map(bool, map(plain, CASES))) == 11
    assert sum(len(c["ops"]) for c in CASES) == 337


@pytest.mark.parametrize("case", [c for c in CASES if plain(c)], ids=lambda c: c["id"])
def test_the_function_follows_the_same_record(case):
    """One compiled program whatever the scale."""
    last = UNTIL.get(case["id"])
    inner = paddle.adam(0.1) if case.get("optimizer") == "adam" else paddle.sgd(0.125)
    tx = paddle.dynamic_loss_scale(inner, **case["kwargs"])
    p = jnp.array([1.0, 2.0])
    state, update = tx.init(p), jax.jit(chex.assert_max_traces(tx.update, n=1))
    for op, want in zip(case["ops"][:last], case["results"][:last], strict=True):
        if op[0] == "backward":
            grad = jnp.asarray(numbers(op[2]))
        elif op[0] in ("step", "minimize"):
            updates, state = update(grad, state, p)
            p = paddle.apply_updates(p, updates)
            np.testing.assert_allclose(p, numbers(want["a"]), rtol=1e-6)
        if op[0] in ("update", "minimize"):
            assert float(paddle.loss_scale(state)) == float(want["scale"])
            assert (state.incr_count, state.decr_count) == (want["incr_count"], want["decr_count"])
    assert update._cache_size() == 1


# ------------------------------------------------------------------ a skipped step changes nothing

BAD = [math.inf, -math.inf, math.nan]
FEW = {case.name: case for case in cases.CASES if case.name in ("adam", "lamb", "asgd")}


@each_rule_once
def test_a_skip_leaves_every_bit(case):
    for _ in skipping(paddle.skip_nonfinite(case.make())):
        pass


def skipping(tx):
    """Step, skip, step, skip ... in one compiled program; yields what each step had and made."""
    p, grads = drawn(3, 2, steps=4)
    p[0, 0] = -0.0
    params = {"w": jnp.asarray(p, jnp.float32), "none": None}
    state = tx.init(params)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=1)
    for i, g in enumerate(grads):
        good = {"w": jnp.asarray(g, jnp.float32), "none": None}
        factor = getattr(state, "scale", jnp.float32(1.0))
        updates, state = update(jax.tree.map(lambda x, s=factor: x * s, good), state, params)
        assert (state.consecutive_skips, state.total_skips) == (0, i)
        yield params, good, updates, state
        before = bits(state.inner)
        updates, state = update({**good, "w": good["w"].at[2, 1].set(BAD[i % 3])}, state, params)
        chex.assert_trees_all_equal(bits(state.inner), before)
        assert nothing([updates["w"]])
        assert updates["none"] is None
        chex.assert_trees_all_equal(bits(paddle.apply_updates(params, updates)), bits(params))
        assert (state.consecutive_skips, state.total_skips) == (1, i + 1)
    assert update._cache_size() == 1


@pytest.mark.parametrize("make", [paddle.skip_nonfinite, paddle.dynamic_loss_scale])
@pytest.mark.parametrize("case", FEW.values(), ids=FEW)
def test_steps_between_skips_are_those_of_the_rule_alone(case, make):
    bare = case.make()
    bare_update, bare_state = jax.jit(bare.update), None
    for params, g, *found in skipping(make(case.make())):
        bare_state = bare_state or bare.init(params)
        want, bare_state = bare_update(g, bare_state, params)
        updates, state = found
        # Powers of 2 unscale without a trace; but XLA may fuse a multiply and an add here and not there.
        chex.assert_trees_all_close((updates, state.inner), (want, bare_state), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [paddle.skip_nonfinite, paddle.dynamic_loss_scale])
@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "replicated"])
@pytest.mark.parametrize("inner", [paddle.adam(0.1), paddle.lamb(0.1, axis_name="x")], ids=["adam", "lamb"])
def test_one_bad_shard_stops_all_devices(make, inner, sharded):
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    tx, p = make(inner, axis_name="x"), {"w": jnp.ones((8, 2)), "none": None}
    state, shard = tx.init(p), PartitionSpec("x") if sharded else PartitionSpec()
    specs = jax.tree.map(lambda x: shard if x.ndim else PartitionSpec(), state)
    update = jax.jit(
        jax.shard_map(tx.update, mesh=mesh, in_specs=(shard, specs, shard), out_specs=(shard, specs))
    )
    good = {"w": jnp.full((8, 2), 3.0), "none": None}
    _, state = update(good, state, p)
    before = bits(state.inner)
    updates, state = update({"w": good["w"].at[3, 1].set(jnp.nan), "none": None}, state, p)
    chex.assert_trees_all_equal(bits(state.inner), before)
    assert nothing([updates["w"]])
    assert state.total_skips == 1
    updates, state = update(good, state, p)
    assert np.all(np.asarray(updates["w"]) < 0) and state.inner.count == 2


def test_every_member_of_a_vmap_skips_by_itself():
    tx = paddle.skip_nonfinite(paddle.adam(0.1))
    p = jnp.zeros((3, 2))
    states = jax.vmap(tx.init)(p)
    grads = jnp.array([[1.0, 1.0], [jnp.nan, 1.0], [1.0, 1.0]])
    updates, states = jax.jit(jax.vmap(tx.update))(grads, states, p)
    np.testing.assert_array_equal(states.total_skips, [0, 1, 0])
    np.testing.assert_array_equal(states.inner.count, [1, 0, 1])
    np.testing.assert_allclose(updates[:, 0], [-0.1, 0.0, -0.1], rtol=1e-6)


def test_schedules_rates_and_chains_inside_and_around():
    tx = paddle.skip_nonfinite(
        paddle.chain(paddle.clip_by_value(1.0), paddle.sgd(lambda count: 1.0 / (1 + count)))
    )
    p, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    for g in (1.0, jnp.inf, jnp.inf, 1.0):
        updates, state = tx.update(jnp.array([g]), state, p)
        p = paddle.apply_updates(p, updates)
    np.testing.assert_allclose(p, [-1.5])  # the schedule waited
    assert paddle.get_learning_rate(state) == 0.5
    assert (state.consecutive_skips, state.total_skips) == (0, 2)
    around = paddle.chain(paddle.identity(), paddle.dynamic_loss_scale(paddle.sgd(1.0), 4.0))
    state = paddle.set_learning_rate(around.init(p), 0.25)
    updates, state = around.update(jnp.array([4.0]), state, p)
    assert updates == -0.25 and paddle.loss_scale(state) == 4.0


@jax.numpy_dtype_promotion("standard")  # optax mixes counts with floats
def test_optax_inside_and_outside():
    def value_seen(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda u: u * value, updates), state

    extra = optax.GradientTransformationExtraArgs(lambda p: (), value_seen)
    # optax's own chain hands extra arguments only to what is registered with it.
    assert optax.chain(paddle.skip_nonfinite(optax.adam(0.1)), optax.scale(1.0)).init(jnp.ones(1))
    tx = paddle.chain(paddle.skip_nonfinite(optax.chain(extra, optax.adam(0.1))), optax.scale(1.0))
    p = {"w": jnp.ones(2)}
    state = tx.init(p)
    update = jax.jit(tx.update)
    before = bits(state[0].inner)
    updates, state = update({"w": jnp.array([jnp.nan, 1.0])}, state, p, value=2.0)
    assert nothing([updates["w"]])
    chex.assert_trees_all_equal(bits(state[0].inner), before)
    updates, state = update({"w": jnp.ones(2)}, state, p, value=2.0)
    np.testing.assert_allclose(updates["w"], [-0.1, -0.1], rtol=1e-5)
    for tx in (optax.adam(0.1), paddle.sgd(0.1)):  # which differ in what extra arguments they take
        guarded = paddle.dynamic_loss_scale(tx)
        guarded.update({"w": jnp.ones(2)}, guarded.init(p), p, value=2.0)


def test_outside_jit_without_gradients_and_without_compiling():
    tx = paddle.skip_nonfinite(paddle.adam(0.1))
    state = tx.init({"w": jnp.ones(2)})
    updates, after = tx.update({"w": None}, state, {"w": jnp.ones(2)})
    assert updates == {"w": None} and after.total_skips == 0
    chex.assert_trees_all_equal(bits(after.inner), bits(state.inner))
    updates, after = tx.update({"w": jnp.array([jnp.inf, 0.0])}, state, {"w": jnp.ones(2)})
    assert nothing([updates["w"]]) and after.total_skips == 1
    chex.assert_trees_all_equal(bits(after.inner), bits(state.inner))


def test_an_inner_transformation_sees_float32_and_nothing_vanishes():
    """1e-9 is 0 in float16; scaled by 65536 it is not."""
    p = jnp.ones(2, jnp.float16)
    tx = paddle.dynamic_loss_scale(paddle.adam(0.1, epsilon=1e-12))
    g = (jnp.float32(1e-9) * jnp.full(2, 65536, jnp.float32)).astype(jnp.float16)
    updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-2)


# ------------------------------------------------------------------ training in float16

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4))
Y = X @ np.array([[1.0], [-2.0], [0.5], [3.0]])
X16, Y16 = jnp.asarray(X, jnp.float16), jnp.asarray(Y, jnp.float16)


def half_loss(w):
    return jnp.mean((X16 @ w.astype(jnp.float16) - Y16).astype(jnp.float32) ** 2)


def test_float16_training_converges_while_the_scale_adapts():
    tx = paddle.dynamic_loss_scale(paddle.momentum(0.05), init_loss_scaling=2.0**40, incr_every_n_steps=20)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(w, state):
        scale = paddle.loss_scale(state)
        scaled, g = jax.value_and_grad(lambda w: half_loss(w) * scale)(w)
        updates, state = tx.update(g, state, w)
        return paddle.apply_updates(w, updates), state, scaled / scale

    w = jnp.zeros((4, 1))
    state, scales = tx.init(w), []
    for _ in range(150):
        w, state, value = step(w, state)
        scales.append(float(paddle.loss_scale(state)))
    assert value < 1e-4 and step._cache_size() == 1
    assert state.total_skips > 10 and min(scales) < 2.0**30 and np.max(np.diff(scales)) > 0


@paddle.loss
def half(w):
    return half_loss(w)


def test_float16_training_of_objects_without_compiling_again():
    w = paddle.Parameter(jnp.zeros((4, 1)))
    opt = paddle.optimizer.Momentum(0.05, parameters=[w])
    scaler = amp.GradScaler(init_loss_scaling=2.0**40, incr_every_n_steps=20)
    for i in range(150):
        loss = half(w)
        scaled = scaler.scale(loss)
        if i % 2:
            scaled.backward()
            scaler.step(opt)
            scaler.update()
        else:
            scaler.minimize(opt, scaled)
        opt.clear_grad()
        if i == 0:
            backward = loss_module._known_of(scaled.call).backward
            programs = [f._cache_size() for f in (backward, amp._unscale, amp._next_scale)]
    assert float(loss) < 1e-4 and loss.ran_backward  # its value came with the scaled one's
    assert scaler.total_skips > 10 and scaler.consecutive_skips == 0
    assert scaler.state_dict()["scale"] < 2.0**30
    after = [f._cache_size() for f in (backward, amp._unscale, amp._next_scale)]
    assert after == programs
    assert all(plan.step._cache_size() == 1 for plan in opt.compiled_steps)


# ------------------------------------------------------------------ the object


@paddle.loss(has_aux=True)
def square(w):
    return jnp.sum(w * w), w + 1


def test_a_scaled_loss_that_an_optimizer_minimizes_shares_what_it_computed():
    w = paddle.Parameter(jnp.array([3.0, 4.0]))
    loss = square(w)
    scaled = amp.GradScaler(init_loss_scaling=8.0).scale(loss)
    paddle.optimizer.SGD(0.0625, parameters=[w]).minimize(scaled)
    np.testing.assert_array_equal(w.value, [0.0, 0.0])
    assert (float(loss), float(scaled)) == (25.0, 200.0)
    with pytest.raises(RuntimeError, match="ran already"):
        loss.backward()


def test_a_scaled_loss_is_lazy_and_shares_what_it_computed():
    w = paddle.Parameter(jnp.array([3.0, 4.0]))
    scaler, opt = amp.GradScaler(init_loss_scaling=8.0), paddle.optimizer.SGD(0.5, parameters=[w])
    loss = square(w)
    scaled = scaler.scale(loss)
    assert isinstance(scaled, paddle.Loss) and "not computed yet" in repr(scaled)
    assert (float(scaled), f"{scaled:.1f}", float(loss)) == (200.0, "200.0", 25.0)
    scaled.backward()
    np.testing.assert_array_equal(w.grad, [48.0, 64.0])
    with pytest.raises(RuntimeError, match="ran already"):
        loss.backward()
    scaler.step(opt)
    np.testing.assert_array_equal(w.grad, [6.0, 8.0])
    np.testing.assert_array_equal(w.value, [0.0, 0.0])
    assert (float(scaled), float(loss)) == (200.0, 25.0)
    np.testing.assert_array_equal(scaled.aux, [4.0, 5.0])
    np.testing.assert_array_equal(loss.aux, [4.0, 5.0])
    with pytest.raises(RuntimeError, match="scale it before"):
        scaler.scale(loss)
    with pytest.raises(TypeError, match="scaled already"):
        scaler.scale(scaled)


def test_minimize_does_what_has_not_been_done():
    for prepare in (lambda s, x: x, lambda s, x: s.scale(x)):
        w = paddle.Parameter(jnp.array([3.0, 4.0]))
        scaler, opt = amp.GradScaler(init_loss_scaling=8.0), paddle.optimizer.SGD(0.5, parameters=[w])
        ops, pairs = scaler.minimize(opt, prepare(scaler, square(w)))
        assert ops == [] and [p for p, _ in pairs] == [w]
        np.testing.assert_array_equal(pairs[0][1], [6.0, 8.0])
        np.testing.assert_array_equal(w.value, [0.0, 0.0])
        assert scaler.state_dict()["incr_count"] == 1
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="after unscale_"):
        scaler.minimize(opt, square(w))


def test_minimize_hands_on_what_the_optimizers_own_takes():
    w, v = paddle.Parameter(jnp.ones(2), "w"), paddle.Parameter(jnp.ones(2), "v")
    scaler, opt = amp.GradScaler(), paddle.optimizer.SGD(0.5, parameters=[w, v])
    _, pairs = scaler.minimize(opt, add(w, v), no_grad_set=["v"])
    assert [p for p, _ in pairs] == [w]
    np.testing.assert_array_equal([w.value, v.value], [[0.5, 0.5], [1.0, 1.0]])
    off = amp.GradScaler(enable=False)
    w.clear_grad()
    assert off.minimize(opt, add(w, v), parameters=["w"])[1][0][0] is w


@paddle.loss
def add(w, v):
    return jnp.sum(w) + jnp.sum(v)


@pytest.mark.parametrize(
    "x, want", [(3.0, 24.0), (2, 16.0), (np.float32(0.5), 4.0), (jnp.float16(3e4), 24e4)]
)
def test_scaling_numbers_and_arrays(x, want):
    found = amp.GradScaler(init_loss_scaling=8.0).scale(x)
    assert found.dtype == jnp.float32 and found.shape == () and found == want
    assert amp.GradScaler(enable=False).scale(x) is x


def test_scaling_a_parameter_and_wider_numbers():
    scaler = amp.GradScaler(init_loss_scaling=8.0)
    np.testing.assert_array_equal(scaler.scale(paddle.Parameter(jnp.ones((2, 1)))), [[8.0], [8.0]])
    with jax.enable_x64(True):
        assert scaler.scale(jnp.float64(1.0)).dtype == jnp.float64


@pytest.mark.parametrize("cls", ["Adam", "Momentum", "Lamb", "SGD"])
def test_a_skip_leaves_the_optimizer_alone(cls):
    w, v = paddle.Parameter(jnp.array([-0.0, 2.0]), "w"), paddle.Parameter(jnp.ones(3), "v")
    opt = getattr(paddle.optimizer, cls)(0.1, parameters=[w, v])
    scaler = amp.GradScaler(init_loss_scaling=4.0)

    def bad():
        w.grad, v.grad = jnp.ones(2), jnp.array([1.0, jnp.nan, 1.0])
        scaler.step(opt)
        scaler.update()

    bad()
    assert opt.state_dict() == {}  # Paddle would have made zeros
    w.grad, v.grad = jnp.ones(2), jnp.ones(3)
    scaler.step(opt)
    before = bits((opt.state_dict(), w.numpy(), v.numpy()))
    old = v.numpy()
    scaler.update()
    bad()
    chex.assert_trees_all_equal(bits((opt.state_dict(), w.numpy(), v.numpy())), before)
    assert (scaler.consecutive_skips, scaler.total_skips) == (1, 2)
    w.grad, v.grad = jnp.ones(2), jnp.ones(3)
    opt.step()  # without the scaler: not skipped, as it would be in Paddle
    assert np.all(v.numpy() != old)


@pytest.mark.parametrize("first", "ab")
@pytest.mark.parametrize("bad", "ab")
def test_of_two_optimizers_the_last_unscaled_moves_the_scale_and_no_infinity_is_applied(bad, first):
    params = {who: paddle.Parameter(jnp.ones(1), who) for who in "ab"}
    opts = {who: paddle.optimizer.SGD(0.5, parameters=[p]) for who, p in params.items()}
    scaler = amp.GradScaler(init_loss_scaling=4.0)
    for who, p in params.items():
        p.grad = jnp.array([jnp.inf if who == bad else 4.0])
        scaler.unscale_(opts[who])
    for who in sorted(opts, reverse=first == "b"):
        scaler.step(opts[who])
    scaler.update()
    # Paddle has -inf for "a" if a alone is bad.
    want = {"a": (1.0, 0.5, 4.0, 1), "b": (1.0, 1.0, 2.0, 2)}[bad]
    state = scaler.state_dict()
    assert (float(params["a"]), float(params["b"]), state["scale"][0], scaler.total_skips) == want


class Around:
    """The least that a wrapper around an optimizer is."""

    def __init__(self, inner):
        self.inner, self.parameter_list, self.steps = inner, inner.parameter_list, 0

    def step(self):
        self.steps += 1
        self.inner.step()


def test_wrappers_and_half_gradients():
    w = paddle.Parameter(jnp.ones(2, jnp.float16))
    opt = Around(paddle.optimizer.SGD(1024.0, parameters=[w]))
    scaler = amp.GradScaler()
    w.grad = (jnp.float32(2.0**-26) * jnp.full(2, 65536, jnp.float32)).astype(jnp.float16)
    scaler.unscale_(opt)
    assert w.grad.dtype == jnp.float32  # in float16 this would be 0
    np.testing.assert_array_equal(w.grad, [2.0**-26] * 2)
    scaler.step(opt)
    w.grad = jnp.full(2, jnp.inf, jnp.float16)
    scaler.update()
    scaler.step(opt)
    assert (opt.steps, scaler.total_skips) == (1, 1)


def test_state_goes_through_a_file(tmp_path):
    scaler = amp.GradScaler(init_loss_scaling=32.0, incr_every_n_steps=3)
    scaler.update()
    saved = scaler.state_dict()
    scaler.update()
    assert saved["incr_count"] == 1  # a copy
    np.savez(tmp_path / "state.npz", **saved)
    with np.load(tmp_path / "state.npz") as loaded:
        other = amp.GradScaler()
        other.load_state_dict(dict(loaded))
    assert other.state_dict() == saved and other.get_init_loss_scaling() == 32.0
    for s in (other, scaler):
        s.update()
    other.update()
    assert other.state_dict() == scaler.state_dict() and other.state_dict()["scale"] == 64.0
    off = amp.GradScaler(enable=False)
    off.load_state_dict(saved)
    assert off.state_dict() == {} and not off.is_enable() and repr(off) == "GradScaler(enable=False)"


def test_getters_give_what_was_set():
    scaler = amp.GradScaler(use_dynamic_loss_scaling=False)
    assert (scaler.is_use_dynamic_loss_scaling(), scaler.get_incr_ratio(), scaler.get_decr_ratio()) == (
        False,
        2.0,
        0.5,
    )
    scaler.set_incr_every_n_steps(5)
    scaler.set_decr_every_n_nan_or_inf(3)
    assert (scaler.get_incr_every_n_steps(), scaler.get_decr_every_n_nan_or_inf()) == (5, 3)
    scaler.set_init_loss_scaling(np.float32(4.0))
    assert repr(scaler) == "GradScaler(scale=4)"


def sgd():
    return paddle.optimizer.SGD(0.1, parameters=[paddle.Parameter(jnp.ones(1))])


def load(**changes):
    good = amp.GradScaler().state_dict()
    amp.GradScaler().load_state_dict({k: v for k, v in {**good, **changes}.items() if v is not None})


MESSAGES = {
    "enable": (lambda: amp.GradScaler(1), TypeError, "enable: found 1, expected True or False"),
    "incr": (
        lambda: amp.GradScaler(incr_ratio=1.0),
        AssertionError,
        "incr_ratio: found 1.0, expected a number above",
    ),
    "decr": (
        lambda: amp.GradScaler(decr_ratio=2),
        ValueError,
        "decr_ratio: found 2, expected a number below 1",
    ),
    "interval": (
        lambda: amp.GradScaler(incr_every_n_steps=2.5),
        TypeError,
        "incr_every_n_steps: found 2.5, expected",
    ),
    "scale": (lambda: amp.GradScaler(init_loss_scaling="1"), TypeError, "init_loss_scaling: found '1'"),
    "scaled": (
        lambda: amp.GradScaler().scale("x"),
        TypeError,
        "scale's loss: found 'x' of type str, expected a Loss",
    ),
    "optimizer": (lambda: amp.GradScaler().step(3), TypeError, "found 3, expected an optimizer"),
    "callable": (
        lambda: amp.GradScaler().minimize(sgd(), lambda p: 0.0),
        TypeError,
        "minimize's loss: found a function, expected what a @paddle.loss function returned",
    ),
    "empty": (lambda: amp.GradScaler().load_state_dict({}), RuntimeError, "is empty"),
    "not-a-dict": (lambda: amp.GradScaler().load_state_dict(3), TypeError, "found int, expected a dict"),
    "several": (
        lambda: load(scale=None, incr_count=1.5, more=1),
        ValueError,
        "(?s)missing: scale.*not an int: incr_count is 1.5.*unexpected: more",
    ),
    "misshapen": (lambda: load(scale=np.ones(2, np.float32)), KeyError, r"misshapen: scale has shape \(2,\)"),
    "pair": (
        lambda: paddle.skip_nonfinite(3),
        TypeError,
        "skip_nonfinite's tx: found 3, expected an .init, update. pair",
    ),
    "pair-scaled": (
        lambda: paddle.dynamic_loss_scale(None),
        TypeError,
        "dynamic_loss_scale's tx: found None",
    ),
    "ratio": (
        lambda: paddle.dynamic_loss_scale(paddle.sgd(0.1), incr_ratio=0.5),
        AssertionError,
        "dynamic_loss_scale's incr_ratio: found 0.5, expected a number above 1",
    ),
    "state": (
        lambda: paddle.skip_nonfinite(paddle.sgd(0.1)).update(jnp.ones(1), ()),
        TypeError,
        "skip_nonfinite's state: found tuple, expected the SkipState that its init made",
    ),
    "loss_scale": (lambda: paddle.loss_scale(()), TypeError, "found 0 LossScaleStates in tuple"),
    "tree": (
        lambda: paddle.skip_nonfinite(paddle.sgd(0.1)).update({"v": jnp.ones(1)}, STATE, {"w": jnp.ones(1)}),
        ValueError,
        "missing at w; unexpected at v",
    ),
}
STATE = paddle.skip_nonfinite(paddle.sgd(0.1)).init({"w": jnp.ones(1)})


@pytest.mark.parametrize("call, error, message", MESSAGES.values(), ids=MESSAGES)
def test_errors_say_what_was_found(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_minimize_that_fails_leaves_the_gradients_as_they_were():
    w = paddle.Parameter(jnp.ones(1), "w")
    opt, scaler = paddle.optimizer.SGD(0.1, [w]), amp.GradScaler(init_loss_scaling=1024.0)
    loss = scaler.scale(paddle.loss(lambda w: jnp.sum(w))(w))
    loss.backward()
    with pytest.raises(ValueError, match="nope"):
        scaler.minimize(opt, loss, no_grad_set=["nope"])
    np.testing.assert_array_equal(w.grad, [1024.0])
    scaler.minimize(opt, loss)
    np.testing.assert_allclose(w.numpy(), [0.9], rtol=1e-6)


def test_a_wrapper_and_what_is_in_it_share_their_gradients():
    w = paddle.Parameter(jnp.ones(1), "w")
    inner, scaler = paddle.optimizer.SGD(0.1, [w]), amp.GradScaler(init_loss_scaling=4.0)
    w.grad = jnp.array([4.0])
    scaler.unscale_(inner)
    scaler.step(paddle.incubate.LookAhead(inner))
    np.testing.assert_allclose(w.numpy(), [0.9], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-50])
def test_a_scale_that_cannot_be_divided_by_is_refused(scale):
    for make in (
        amp.GradScaler,
        lambda init_loss_scaling: paddle.dynamic_loss_scale(paddle.sgd(0.1), init_loss_scaling),
    ):
        with pytest.raises(ValueError, match="init_loss_scaling"):
            make(init_loss_scaling=scale)


@pytest.mark.parametrize("start, lowest", [(65536.0, 1.0), (0.25, 0.25), (1e-37, 1e-37)])
def test_a_scale_does_not_vanish(start, lowest):
    """After any number of bad steps in a row a good one is taken, object and function alike."""
    tx, p = paddle.dynamic_loss_scale(paddle.sgd(0.1), start), jnp.ones(1)
    state, update = tx.init(p), jax.jit(tx.update)
    w = paddle.Parameter(p, "w")
    scaler, opt = amp.GradScaler(init_loss_scaling=start), paddle.optimizer.SGD(0.1, [w])
    for _ in range(200):
        _, state = update(jnp.full(1, jnp.nan), state, p)
        w.grad = jnp.full(1, jnp.nan)
        scaler.step(opt), scaler.update()
    scale = paddle.loss_scale(state)
    assert scale == scaler.scale(1.0) == np.float32(lowest)
    updates, state = update(scale * jnp.ones(1), state, p)
    w.grad = scale * jnp.ones(1)
    scaler.step(opt)
    np.testing.assert_allclose(updates, [-0.1], rtol=1e-6)
    np.testing.assert_allclose(w.numpy(), [0.9], rtol=1e-6)


@pytest.mark.parametrize("start", [65536.0, 3e38])
def test_a_scale_does_not_become_infinite(start):
    """Nor so large that its inverse is no normal number, with which gradients would be multiplied by 0."""
    tx, p = paddle.dynamic_loss_scale(paddle.sgd(0.1), start, incr_every_n_steps=1), jnp.ones(1)
    state, update = tx.init(p), jax.jit(tx.update)
    w = paddle.Parameter(p, "w")
    scaler = amp.GradScaler(init_loss_scaling=start, incr_every_n_steps=1)
    opt = paddle.optimizer.SGD(0.0, [w])
    for _ in range(130):
        _, state = update(jnp.zeros(1), state, p)
        w.grad = jnp.zeros(1)
        scaler.step(opt), scaler.update()
    assert paddle.loss_scale(state) == scaler.scale(1.0) == 2.0**126
    updates, state = update(2.0**126 * jnp.ones(1), state, p)
    np.testing.assert_allclose(updates, [-0.1], rtol=1e-6)
    updates, state = update(jnp.full(1, jnp.inf), state, p)
    assert nothing(updates) and paddle.loss_scale(state) == 2.0**125


@pytest.mark.parametrize("lost", [0.0, math.inf, math.nan])
def test_a_lost_scale_that_was_saved_comes_back(lost):
    scaler = amp.GradScaler()
    scaler.load_state_dict({**scaler.state_dict(), "scale": np.float32([lost])})
    w = paddle.Parameter(jnp.ones(1), "w")
    opt = paddle.optimizer.SGD(0.1, [w])
    for _ in range(3):
        w.grad = scaler.scale(jnp.ones(1))
        scaler.step(opt), scaler.update()
    assert w.numpy() < 1


def test_recomputation_under_a_scaler():
    w = paddle.Parameter(jnp.ones(3), "w")
    opt = paddle.incubate.optimizer.RecomputeOptimizer(paddle.optimizer.SGD(0.1, [w]))
    scaler, f = amp.GradScaler(init_loss_scaling=8.0), paddle.loss(lambda w: jnp.sum(jnp.sin(w)))
    loss = f(w)
    scaler.minimize(opt, loss)
    np.testing.assert_allclose(w.numpy(), np.full(3, 1 - 0.1 * math.cos(1)), rtol=1e-6)
    opt.clear_grad()
    opt.minimize(scaler.scale(f(w)))
