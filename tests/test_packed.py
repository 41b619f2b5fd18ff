"""Small tensors in common buffers: nothing but the number of arrays may differ."""

import copy
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paddlejax as paddle
from paddlejax import packing
from paddlejax.optimizer.packing import LARGEST, Buffer

SHAPES = [(3, 2), (2,), (), (5,), (2, 2, 2), (2,), (3, 2)]
X = np.random.default_rng(0).normal(size=(6, len(SHAPES), 24)).astype(np.float32)


def made(shapes=SHAPES, **options):
    rng = np.random.default_rng(1)
    return [
        paddle.Parameter(jnp.asarray(rng.normal(size=s), jnp.float32), f"p{i}", **options.get(f"p{i}", {}))
        for i, s in enumerate(shapes)
    ]


def gradient(step, i, shape=None):
    shape = SHAPES[i] if shape is None else shape
    return jnp.asarray(X[step % 6, i % len(SHAPES)][: int(np.prod(shape))].reshape(shape))


def give(params, step, missing=()):
    for i, p in enumerate(params):
        p.grad = None if i in missing else gradient(step, i, p.shape)


def same(a, b, **tolerance):
    a, b = jax.tree.map(np.asarray, (a, b))
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_close(a, b, **{"rtol": 3e-7, "atol": 1e-7, **tolerance})


def same_all(a, b, **tolerance):
    values = ({p.name: p.numpy() for p in opt.parameter_list} for opt in (a, b))
    same(*values, **tolerance)
    same(flat(a.state_dict()), flat(b.state_dict()), **tolerance)


def flat(entries):
    masters = entries.pop("master_weights", {})
    entries.pop("LR_Scheduler", None)
    return {**entries, **{f"master of {k}": v for k, v in masters.items()}}


def buffers(opt):
    return [b for plan in opt.compiled_steps for b in plan.stores if isinstance(b, Buffer)]


ARGUMENTS = {"Momentum": {"momentum": 0.9}, "LarsMomentum": {"momentum": 0.9}, "ASGD": {"batch_num": 3}}
ARGUMENTS["Dpsgd"] = {"key": jax.random.key(0)}
TWO = [n for n, c in vars(paddle.optimizer).items() if inspect.isclass(c) and n not in ("LBFGS", "Optimizer")]
ONE = [n for n in vars(paddle.fluid.optimizer) if n.endswith("Optimizer")]
ONE = [n for n in ONE if hasattr(getattr(paddle.fluid.optimizer, n), "_rule")]
CLASSES = {n: (getattr(paddle.optimizer, n), "parameters", "weight_decay") for n in sorted(TWO)}
CLASSES |= {
    f"fluid.{n}": (getattr(paddle.fluid.optimizer, n), "parameter_list", "regularization")
    for n in sorted(set(ONE))
}
BY_TENSOR = ("Lamb", "LarsMomentum", "Dpsgd")
# Of the 1.x classes only those whose rule or dialect is not that of a 2.x class.
AS_IN_2X = [f"fluid.{n}Optimizer" for n in ("SGD", "Momentum", "Adagrad", "Adamax", "RMSProp", "Lamb")]
every_class = pytest.mark.parametrize("name", [n for n in CLASSES if n not in AS_IN_2X])


def pair(name, rate=0.05, options=None, **more):
    """The same optimizer twice, packed and not."""
    cls, argument, decay = CLASSES[name]
    known = inspect.signature(cls).parameters
    kwargs = ARGUMENTS.get(name.removeprefix("fluid.").removesuffix("Optimizer"), {})
    if decay in known and name not in ("AdamW", "Muon") and "decay" in more:
        kwargs = kwargs | {decay: paddle.regularizer.L2Decay(more["decay"])}
    more = {k: v for k, v in more.items() if k in known}
    make = lambda packed: cls(  # noqa: E731
        learning_rate=rate() if callable(rate) else rate,
        **{argument: made(**(options or {}))},
        **kwargs,
        **more,
        packed=packed,
    )
    return make(True), make(False)


def test_the_table_has_every_class():
    assert len(CLASSES) == 26 and {*AS_IN_2X, "AdamW", "NAdam", "fluid.FtrlOptimizer"} <= CLASSES.keys()


@pytest.mark.parametrize("name", AS_IN_2X)
def test_every_class_takes_the_keyword(name):
    a, b = pair(name)
    assert a._packing is not None and b._packing is None


@every_class
def test_steps_are_the_same_and_take_fewer_arrays(name):
    """With a gradient that is missing, a frozen parameter that wakes, decay, a clip and options of single
    parameters."""
    own = {
        "p1": {"learning_rate": 0.5},
        "p3": {"need_clip": False},
        "p4": {"regularizer": paddle.regularizer.L1Decay(0.1)},
        "p5": {"learning_rate": 0.5},
    }
    a, b = pair(name, options=own, decay=0.1, grad_clip=paddle.nn.ClipGradByValue(0.5))
    exact = {} if name in ("NAdam", "RAdam") else {"rtol": 0, "atol": 0}  # XLA rounds their scalars once less
    for step, missing in enumerate([(6,), (6,), (2,)]):
        for opt in (a, b):
            opt.parameter_list[6].stop_gradient = step < 2
            give(opt.parameter_list, step, missing)
            opt.step()
        same_all(a, b, **exact)
    assert bool(buffers(a)) is not any(word in name for word in BY_TENSOR) and not buffers(b)
    packed, plain = list(a.compiled_steps)[-1], list(b.compiled_steps)[-1]
    count, alone = (sum(p is not None for p in plan.stores) for plan in (packed, plain))
    assert alone == 6 and (count < 6 or any(word in name for word in BY_TENSOR))
    for plan, n in ((packed, count), (plain, alone)):
        if name == "Muon":  # which steps by two rules, of one slot and of two
            continue
        slots = len(plan.base.groups[0].stored[1])
        assert len(jax.tree.leaves([stored for _, stored in plan.state()])) == n * slots


def test_a_step_of_many_takes_few_arrays():
    a, b = pair("Adam")
    for opt in (a, b):
        give(opt.parameter_list, 0)
        opt.step()
    taken = []
    for opt in (a, b):
        (plan,) = opt.compiled_steps
        values = plan.values()
        grads = [p.grad for p in opt.parameter_list]
        lowered = plan.step.lower(values, plan.state(), grads, plan.base.rates(0.1))
        taken.append(len(jax.tree.leaves(lowered.args_info)))
        donated = sum(info.donated for info in jax.tree.leaves(lowered.args_info))
        assert donated == taken[-1] - len(SHAPES) - 1
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 4096
    assert taken == [3 + 2 + len(SHAPES) + 1, 3 * len(SHAPES) + 2 + len(SHAPES) + 1]


def test_one_norm_of_all():
    clip = paddle.nn.ClipGradByGlobalNorm(0.5)
    a, b = pair("SGD", grad_clip=clip, options={"p3": {"need_clip": False}})
    for step in range(3):
        for opt in (a, b):
            give(opt.parameter_list, step)
            opt.step()
    same_all(a, b)  # the sum of squares is taken in another order
    assert [len(x.stores) for x in buffers(a)] == [6]


@pytest.mark.parametrize("name", ["Adam", "ASGD"])
def test_saved_and_loaded_midway_across(name):
    for save, load in ((0, 1), (1, 0)):
        whole, half, rest = pair(name), pair(name), pair(name)
        run = lambda opt, steps: [(give(opt.parameter_list, s), opt.step()) for s in steps]  # noqa: E731
        run(whole[1], range(4))
        run(half[save], range(2))
        for p, q in zip(rest[load].parameter_list, half[save].parameter_list, strict=True):
            p.set_value(q)
        rest[load].set_state_dict(half[save].state_dict())
        run(rest[load], range(2, 4))
        same_all(whole[1], rest[load])


@paddle.loss
def loss_of(params, x):
    return sum(jnp.sum(jnp.sin(p * x)) for p in params)


@pytest.mark.parametrize("how", ["minimize", "backward", "plain function"])
def test_losses(how):
    rate = lambda: paddle.optimizer.lr.ExponentialDecay(0.1, 0.5)  # noqa: E731
    a, b = pair("Adam", rate)
    for step in range(4):
        values = []
        for opt in (a, b):
            params, x = opt.parameter_list, jnp.float32(step + 1)
            if how == "plain function":
                opt.minimize(lambda ps, x=x: loss_of.function(ps, x))
            else:
                loss = loss_of(params, x)
                if how == "backward":
                    loss.backward()
                    opt.step()
                else:
                    _, pairs = opt.minimize(loss)
                    assert len(pairs) == len(params)
                values.append(float(loss))
            opt.clear_grad()
            opt._learning_rate.step()
        assert how == "plain function" or values[0] == pytest.approx(values[1], rel=1e-5)
    same_all(a, b)
    (plan,) = a.compiled_steps
    assert sum(program._cache_size() for program in (plan.step, *a._steps.fused.values())) == 1
    loss = loss_of(a.parameter_list, jnp.float32(1))
    program = paddle.optimizer.loss._known_of(loss.call).backward
    before = program._cache_size()
    loss.backward()
    a.step()
    loss_of(a.parameter_list, jnp.float32(1)).backward()
    assert program._cache_size() <= before + 1


def test_a_loss_that_came_too_late_says_so():
    a, _ = pair("SGD")
    give(a.parameter_list, 0)
    a.step()
    loss = loss_of(a.parameter_list, jnp.float32(1))
    late = loss_of(a.parameter_list, jnp.float32(1))
    a.parameter_list[0].set_value(a.parameter_list[0] * 2)  # the others' values are not gone
    assert not late.is_current() and np.isfinite(float(loss))
    a.step()
    assert float(late) == float(loss)  # the old buffer is there as long as the loss is
    late = loss_of(a.parameter_list, jnp.float32(1))
    a.step()
    with pytest.raises(RuntimeError, match="built before a step moved its parameters"):
        late.backward()


def test_values_may_be_read_kept_and_set():
    a, b = pair("Adam")
    for opt in (a, b):
        give(opt.parameter_list, 0)
        opt.step()
    p, q = a.parameter_list[0], b.parameter_list[0]
    kept, shown = p.value, paddle.values(a.parameter_list)
    before = np.array(kept)
    for opt in (a, b):
        opt.parameter_list[3].set_value(np.arange(5))
        opt.parameter_list[2].value = 0.5
        opt.step()
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(shown[0], before)
    assert not np.array_equal(p.numpy(), before) and p.shape == (3, 2) and p.value is p.value
    same_all(a, b)
    assert np.array_equal(p + 0, q + 0) and p.grad.shape == p.shape


def test_a_parameter_of_two_optimizers():
    ps, qs = made(), made()
    firsts = [paddle.optimizer.Adam(0.1, parameters=x, packed=k) for x, k in ((ps, True), (qs, False))]
    others = [paddle.optimizer.SGD(0.1, x[:4], packed=k) for x, k in ((ps, True), (qs, False))]
    for step in range(4):
        for first, other in zip(firsts, others, strict=True):
            give(first.parameter_list, step)
            first.step()
            other.step()
    same_all(*firsts)


def test_wrappers_work_over_it():
    def run(packed):
        params = made()
        inner = paddle.optimizer.Momentum(0.1, 0.9, params, packed=packed)
        opt = paddle.incubate.optimizer.GradientMergeOptimizer(paddle.incubate.LookAhead(inner, 0.5, 2), 2)
        ema = paddle.static.ExponentialMovingAverage(0.9, parameters=params)
        mean = paddle.incubate.ModelAverage(0.5, params, 2, 4)
        seen = []
        for step in range(5):
            give(params, step)
            opt.step()
            ema.update()
            mean.step()
            with ema.apply():
                seen += [p.numpy() for p in params]
            with mean.apply():
                seen += [p.numpy() for p in params]
        seen += [p.numpy() for p in params]
        return dict(enumerate(seen)), flat(opt.state_dict())

    (seen, state), (plain_seen, plain_state) = run(True), run(False)
    same(seen, plain_seen, rtol=1e-6)
    same(state, plain_state, rtol=1e-6)


def test_a_scaler_steps_and_skips_it():
    a, b = pair("Adam")
    for opt in (a, b):
        scaler = paddle.amp.GradScaler(init_loss_scaling=8.0, decr_every_n_nan_or_inf=1)
        for step in range(4):
            scaled = scaler.scale(loss_of(opt.parameter_list, jnp.float32(jnp.inf if step == 1 else step)))
            scaler.minimize(opt, scaled)
            opt.clear_grad()
        assert scaler.total_skips == 1
    same_all(a, b)


def test_copies_lie_by_themselves():
    a, b = pair("Adam")
    for opt in (a, b):
        give(opt.parameter_list, 0)
        opt.step()
    twin = copy.deepcopy(a)
    for p in pickle.loads(pickle.dumps(a.parameter_list)):
        same = next(q for q in a.parameter_list if q.name == p.name)
        np.testing.assert_array_equal(p.numpy(), same.numpy())
    for opt in (a, b, twin):
        give(opt.parameter_list, 1)
        opt.step()
    same_all(a, b)
    same_all(twin, b)
    assert twin.parameter_list[0] is not a.parameter_list[0]


def test_who_stays_alone():
    """Large, 16-bit with a master, of another dtype, with a clip by its own norm, sparse or given rows."""
    rows = paddle.SelectedRows([1], jnp.ones((1, 2)), 3)
    shapes = [(3, 2), (2,), (LARGEST + 1,), (4,), (3, 2), (3, 2), (0,)]
    both = []
    for packed in (True, False):
        ps = [
            paddle.Parameter(jnp.ones(s, jnp.bfloat16 if i == 3 else jnp.float32), f"p{i}", sparse=i == 4)
            for i, s in enumerate(shapes)
        ]
        opt = paddle.optimizer.Adam(0.1, parameters=ps, lazy_mode=True, multi_precision=True, packed=packed)
        for step in range(3):
            for i, p in enumerate(ps):
                p.grad = rows if i == 4 or i == 5 and step > 0 else jnp.ones(p.shape, p.dtype)
            opt.step()
        both.append(opt)
        blocks = [
            [next(p.name for p in opt.parameter_list if p.store is s) for s in b.stores] for b in buffers(opt)
        ]
        assert blocks == ([["p0", "p1"]] if packed else [])
    same_all(*both)


def test_a_clip_by_norm_keeps_tensors_apart():
    a, b = pair("SGD", grad_clip=paddle.nn.ClipGradByNorm(0.1))
    for opt in (a, b):
        give(opt.parameter_list, 0)
        opt.step()
    same_all(a, b)
    assert not buffers(a)
    clip, norm = paddle.fluid.clip.GradientClipByValue(0.1), paddle.fluid.clip.GradientClipByNorm(0.1)
    a, b = pair("fluid.AdamOptimizer")
    for opt in (a, b):
        for given in (clip, norm, clip):
            opt.minimize(loss_of(opt.parameter_list, jnp.float32(1)), grad_clip=given)
            opt.clear_gradients()
    same_all(a, b)


def test_gradients_of_several_dtypes_and_a_failing_step():
    a, b = pair("Adam")
    for opt in (a, b):
        give(opt.parameter_list, 0)
        opt.parameter_list[1].grad = opt.parameter_list[1].grad.astype(jnp.float16)
        opt.step()
    same_all(a, b)
    (plan,) = a._steps.ready.values()
    state, values = a.state_dict(), [p.numpy() for p in a.parameter_list]
    step, plan.step = plan.step, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        a.step()
    plan.step = step
    same(a.state_dict(), state, rtol=0, atol=0)
    for p, value in zip(a.parameter_list, values, strict=True):
        np.testing.assert_array_equal(p.numpy(), value)
    a.step(), b.step()
    same_all(a, b)


def test_on_two_devices():
    first, second = jax.devices()[:2]
    for devices in ((first, second), (second, second)):
        ps = [paddle.Parameter(jax.device_put(jnp.ones(3), d), f"p{i}") for i, d in enumerate(devices)]
        opt = paddle.optimizer.SGD(0.5, ps, packed=True)
        if devices[0] is devices[1]:
            for p in ps:
                p.grad = jax.device_put(jnp.ones(3), second)
            opt.step()
            assert {d for p in ps for d in p.value.devices()} == {second} and len(buffers(opt)) == 1
            np.testing.assert_array_equal(ps[1].numpy(), np.full(3, 0.5))


def test_the_functional_form():
    """A packed tree is trained as its leaves are, by our transformations and by optax's."""
    tree = {
        "a": [
            jnp.asarray(X[0, i][:n].reshape(s)) for i, (n, s) in enumerate([(6, (3, 2)), (1, ()), (5, (5,))])
        ]
    }
    tree |= {"b": jnp.asarray(X[0, 3][:4], jnp.bfloat16), "n": None, "z": jnp.zeros((0, 2))}
    packed = packing.pack(tree)
    assert {k: v.shape for k, v in packed.buffers.items()} == {"bfloat16": (4,), "float32": (12,)}
    chex.assert_trees_all_equal_structs(packed.unpack(), tree)

    def loss(tree, x):
        return sum(jnp.sum(jnp.sin(p.astype(jnp.float32) * x)) for p in jax.tree.leaves(tree))

    for tx in (
        paddle.chain(paddle.clip_by_value(0.5), paddle.l2_decay(0.1), paddle.adam(0.1)),
        optax.sgd(0.1, momentum=0.9),
    ):
        plain, state, long, states = tree, tx.init(tree), packed, tx.init(packed)
        for x in (1.0, 2.0):
            updates, state = tx.update(jax.grad(loss)(plain, x), state, plain)
            plain = paddle.apply_updates(plain, updates)
            grads = jax.jit(jax.grad(lambda packed, x: loss(packed.unpack(), x)))(long, x)
            updates, states = jax.jit(tx.update)(grads, states, long)
            long = paddle.apply_updates(long, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(plain, long.unpack())
        chex.assert_trees_all_close(plain, long.unpack(), rtol=1e-6, atol=1e-7)
    primal, tangent = jax.jvp(lambda packed: packed.unpack()["a"][0], (packed,), (packed,))
    np.testing.assert_array_equal(primal, tangent)
    with pytest.raises(TypeError, match="at n: found a parameter of dtype int32"):
        packing.pack({"n": jnp.arange(2)})


def test_packed_is_a_flag():
    with pytest.raises(TypeError, match="packed: found 1, expected True or False"):
        paddle.optimizer.SGD(0.1, made(), packed=1)
    with pytest.raises(TypeError, match="packed: found 'yes', expected True or False"):
        paddle.fluid.optimizer.SGD(0.1, parameter_list=made(), packed="yes")
    with pytest.raises(TypeError):
        paddle.optimizer.SGD(0.1, made(), None, None, False, None, True)
