"""What a Parameter and its optimizer may be told between steps; a new number compiles nothing."""

import copy
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import paddlejax as paddle
from paddlejax.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from paddlejax.regularizer import L1Decay, L2Decay

O, fluid = paddle.optimizer, paddle.fluid.optimizer  # noqa: E741


def ones(name="p", n=2):
    return paddle.Parameter(jnp.ones(n), name)


def moved(opt, p, g=1.0):
    """By how much a step with this gradient moves the first element."""
    before = p.numpy()
    p.grad = jnp.full(p.shape, g, p.dtype)
    opt.step()
    p.grad = None
    return float(before.ravel()[0] - p.numpy().ravel()[0])


def caches(opt):
    """How many programs there are, and how often each was compiled."""
    return [plan.step._cache_size() for plan in opt.compiled_steps]


def near(*numbers):
    return pytest.approx(numbers, rel=1e-5, abs=1e-7)


# ------------------------------------------------------------------ the numbers of Paddle 3.3.1
# Each list was read off the real Paddle, which ran the same lines.


def test_the_rate_of_a_parameter_may_change():
    p = ones()
    opt = O.SGD(1.0, [p])
    found = [moved(opt, p)]
    p.optimize_attr["learning_rate"] = 0.1
    found.append(moved(opt, p))
    p.optimize_attr["learning_rate"] /= 2
    found.append(moved(opt, p))
    p.optimize_attr = {"learning_rate": 0.5}
    found.append(moved(opt, p))
    p.optimize_attr = {}
    found.append(moved(opt, p))
    assert found == near(1.0, 0.1, 0.05, 0.5, 1.0)
    assert p.optimize_attr == {"learning_rate": 1.0} and caches(opt) == [1]


def test_clips_may_change():
    p, clip = ones(), ClipGradByNorm(0.1)
    opt = O.SGD(1.0, [p])
    opt._grad_clip = clip
    found = [moved(opt, p)]
    p.need_clip = False
    found.append(moved(opt, p))
    p.need_clip = True
    clip.clip_norm = 0.01
    found.append(moved(opt, p))
    opt._grad_clip = None
    found.append(moved(opt, p))
    assert found == near(0.070711, 1.0, 0.0070711, 1.0)


def test_the_rate_of_a_group_shows_on_its_parameters_and_may_change_there():
    p = ones()
    opt = O.SGD(1.0, [{"params": [p], "learning_rate": 0.5}])
    assert p.optimize_attr == {"learning_rate": 0.5}
    found = [moved(opt, p)]
    p.optimize_attr["learning_rate"] *= 0.1
    found.append(moved(opt, p))
    assert found == near(0.5, 0.05)


def test_the_rate_of_a_group_is_not_that_of_later_optimizers():
    p = ones()  # in Paddle it is
    O.SGD(1.0, [{"params": [p], "learning_rate": 0.5}])
    opt = O.SGD(1.0, [p])
    assert p.learning_rate == 1.0 and moved(opt, p) == 1.0


def test_decays_may_change():
    p = ones()
    opt = O.SGD(1.0, [{"params": [p], "weight_decay": 0.5}], weight_decay=0.25)
    found = [moved(opt, p, 0.0)]
    p.regularizer = L2Decay(0.1)
    found.append(moved(opt, p, 0.0))
    p.regularizer = None
    found.append(moved(opt, p, 0.0))
    assert found == near(0.5, 0.05, 0.1125)
    q, decay = ones(), L2Decay(0.1)
    opt = O.SGD(1.0, [q], weight_decay=decay)
    found = [moved(opt, q, 0.0)]
    decay._coeff = 0.5
    found.append(moved(opt, q, 0.0))
    assert found == near(0.1, 0.45)
    opt.regularization = L1Decay(0.1)
    assert moved(opt, q, 0.0) == pytest.approx(0.1)
    opt.regularization = None
    assert moved(opt, q, 0.0) == 0


# (class, name, value, how far steps 3 and 4 of rate 0.1 and gradients 1, 2, 3, 4 go once it is assigned)
HYPERPARAMETERS = [
    (O.Adam, "_beta1", 0.5, 0.280909, 0.162108),
    (O.Adam, "_epsilon", 1.0, 0.065492, 0.070360),
    (O.AdamW, "_weight_decay", 0.5, 0.135879, 0.129326),
    (O.AdamW, "_apply_decay_param_fun", lambda name: False, 0.095799, 0.096041),
    (O.RMSProp, "_rho", 0.1, 0.105249, 0.102556),
    (O.RMSProp, "_momentum", 0.9, 0.724253, 0.983910),
    (O.RMSProp, "_centered", True, 0.368542, 0.346380),
    (O.Momentum, "_use_nesterov", True, 0.804900, 1.214410),
    (O.Adadelta, "_rho", 0.5, 0.000263, 0.000299),
    (O.Adagrad, "_epsilon", 1.0, 0.063269, 0.061755),
    (O.NAdam, "_momentum_decay", 0.5, 0.093632, 0.095535),
    (O.RAdam, "_beta1", 0.5, 0.276471, 0.353918),
    (O.Lamb, "_exclude_from_weight_decay_fn", lambda p: True, 0.095799, 0.096041),
]


@pytest.mark.parametrize(
    "cls, name, value, third, fourth", HYPERPARAMETERS, ids=lambda x: getattr(x, "__name__", x)
)
def test_hyperparameters_may_change_by_paddles_names(cls, name, value, third, fourth):
    p = ones()
    opt = cls(learning_rate=0.1, parameters=[p])
    moved(opt, p, 1.0), moved(opt, p, 2.0)
    setattr(opt, name, value)
    assert getattr(opt, name) == value
    assert [moved(opt, p, 3.0), moved(opt, p, 4.0)] == pytest.approx([third, fourth], rel=2e-3, abs=1e-6)


# ------------------------------------------------------------------ compiled once


def test_new_factors_compile_nothing_once_parameters_have_parted():
    ps = [ones(f"p{i}") for i in range(6)]
    opt, rng = O.Adam(0.1, parameters=ps), np.random.default_rng(0)
    for i in range(12):
        for p in ps:
            p.grad = jnp.ones(2)
        opt.step()
        if i == 5:
            known = len(opt.compiled_steps)
        ps[i % 6].optimize_attr["learning_rate"] = rng.uniform()
    assert len(opt.compiled_steps) == known <= 4 and set(caches(opt)) == {1}


def test_factors_give_what_their_own_optimizers_give():
    ps, others = [ones(f"p{i}") for i in range(3)], [ones(f"p{i}") for i in range(3)]
    opt = O.Adam(0.1, parameters=ps)
    alone = [O.Adam(0.1, parameters=[p]) for p in others]
    for k in range(4):
        for i, p in enumerate(ps):
            p.learning_rate = 0.5 ** (i * k)
            p.grad = jnp.full(2, 1.0 + k)
            others[i].grad = p.grad
            alone[i].set_lr(float(np.float32(0.1) * np.float32(0.5 ** (i * k))))
            alone[i].step()
        opt.step()
    for p, q in zip(ps, others, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=2e-7)


@pytest.mark.parametrize("packed", [False, True])
def test_factors_under_a_scheduler_and_packed(packed):
    ps = [ones(f"p{i}") for i in range(4)]
    schedule = O.lr.StepDecay(1.0, step_size=1, gamma=0.5)
    opt = O.SGD(schedule, parameters=ps, packed=packed)
    for p in ps[2:]:
        p.learning_rate = 0.5
    for _ in range(2):
        for p in ps:
            p.grad = jnp.ones(2)
        opt.step()
        schedule.step()
    assert [float(p.numpy()[0]) for p in ps] == [-0.5, -0.5, 0.25, 0.25] and caches(opt) == [1]
    ps[3].learning_rate = 1.0
    for p in ps:
        p.grad = jnp.ones(2)
    opt.step()
    assert [float(p.numpy()[0]) for p in ps] == [-0.75, -0.75, 0.125, 0.0]


def test_new_numbers_are_data_from_the_second_program_on():
    p, clip = ones(), ClipGradByGlobalNorm(1.0)
    opt = O.Momentum(0.1, 0.9, [p], weight_decay=0.1, grad_clip=clip)
    moved(opt, p)
    for k in range(5):
        opt._momentum = 0.5 + 0.1 * k
        clip.clip_norm = 1.0 + k
        p.regularizer = L2Decay(0.1 * k)
        moved(opt, p)
    assert caches(opt) == [1, 1]


def test_what_was_assigned_gives_what_was_constructed():
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=3).astype("f4") for _ in range(4)]

    def run(assign):
        p = ones(n=3)
        first = (
            dict(momentum=0.5)
            if assign
            else dict(momentum=0.9, weight_decay=0.1, grad_clip=ClipGradByValue(0.5))
        )
        opt = O.Momentum(0.1, parameters=[p], **first)
        if assign:
            opt._momentum, opt.regularization, opt._grad_clip = 0.9, 0.1, ClipGradByValue(0.5)
        for g in grads:
            p.grad = jnp.asarray(g)
            opt.step()
        return p.numpy(), opt.state_dict()

    chex.assert_trees_all_equal(run(False), run(True))


def test_a_change_keeps_the_state_and_what_joins_later():
    p, q = ones("p"), ones("q")
    opt = O.Adam(0.1, parameters=[p, q])
    moved(opt, p)
    before = opt.state_dict()
    opt._beta1 = 0.5
    chex.assert_trees_all_equal(opt.state_dict(), before)
    q.grad = p.grad = jnp.ones(2)
    opt.step()
    saved = {k: float(v.ravel()[0]) for k, v in opt.state_dict().items() if "beta1" in k}
    assert saved == pytest.approx({"p_beta1_pow_acc_0": 0.9**2 * 0.5, "q_beta1_pow_acc_0": 0.5**2})


def test_wrappers_and_masters_see_the_change():
    p = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "p")
    inner = O.Momentum(0.125, 0.0, [p])
    inner._multi_precision = True
    opt = paddle.incubate.LookAhead(inner, alpha=0.5, k=5)
    moved(opt, p)
    p.learning_rate = 0.5
    assert float(inner.masters[p][0]) == 0.875
    moved(opt, p)
    assert float(inner.masters[p][0]) == 0.8125
    with pytest.raises(AttributeError, match="first step"):
        inner._multi_precision = False


def test_measured_steps_know_the_plain_rate():
    ps = [ones("a"), ones("b")]
    ps[1].learning_rate = 0.5
    opt = O.SGD(0.5, ps)
    opt.set_info()
    for p in ps:
        p.grad = jnp.ones(2)
    opt.step()
    assert float(opt.get_info().learning_rate) == 0.5 and ps[1].numpy()[0] == 0.75


def test_dgc_sees_the_change():
    p = ones()
    with pytest.warns(UserWarning):
        opt = paddle.distributed.DGCMomentumOptimizer(
            0.5, 0.0, 100, parameter_list=[p], mesh=Mesh(np.array(jax.devices()[:1]), ("data",))
        )
    assert moved(opt, p) == 0.5
    p.learning_rate = 0.5
    assert moved(opt, p) == 0.25
    opt._momentum = 0.5
    assert [moved(opt, p), moved(opt, p)] == [0.375, 0.4375]


def test_a_clip_of_one_call_may_change():
    p, clip = ones(), ClipGradByValue(0.5)
    opt = fluid.SGD(1.0, parameter_list=[p])
    fit = paddle.loss(lambda p: jnp.sum(p))
    opt.minimize(fit(p), grad_clip=clip)
    p.grad = None
    clip.max = 0.25
    opt.minimize(fit(p), grad_clip=clip)
    np.testing.assert_allclose(p.numpy(), [0.25, 0.25])


# ------------------------------------------------------------------ clips outside the program


class Recorded(paddle.nn.ClipGradBase):
    def __init__(self):
        self.calls = []

    def _dygraph_clip(self, params_grads):
        self.calls.append([p.name for p, _ in params_grads])
        return [(p, g / 2) for p, g in params_grads if p.name != "b"]

    def _static_clip(self, params_grads):
        raise AssertionError


def test_a_clip_with_paddles_hook_runs_outside():
    a, b, c = (ones(name) for name in "abc")
    clip = Recorded()
    opt = O.SGD(1.0, [a, b, c], grad_clip=clip, weight_decay=0.5)
    a.grad = b.grad = jnp.ones(2)
    opt.step()
    assert clip.calls == [["a", "b"]]
    assert [float(p.numpy()[0]) for p in (a, b, c)] == [0.0, 1.0, 1.0]
    for p in (a, b):
        p.grad = None
    fit = paddle.loss(lambda a: jnp.sum(a))
    opt.minimize(fit(a))
    assert clip.calls[1:] == [["a"]] and a.numpy()[0] == -0.5
    assert float(a.grad[0]) == 1.0  # what the loss gave


class Called(ClipGradByNorm):
    def __call__(self, params_grads):
        return [(p, g * 0) for p, g in super().__call__(params_grads)]


def test_a_clip_that_is_called_runs_outside():
    p = ones()
    assert moved(O.SGD(1.0, [{"params": [p], "grad_clip": Called(1.0)}]), p) == 0


def test_what_a_clip_may_return_is_checked():
    class Wrong(paddle.nn.ClipGradBase):
        def _dygraph_clip(self, params_grads):
            return [(p, g[:1]) for p, g in params_grads]

    p = ones()
    with pytest.raises(ValueError, match=r"Parameter p.*\(1,\).*\(2,\)"):
        moved(O.SGD(1.0, [p], grad_clip=Wrong()), p)
    merge = paddle.fluid.optimizer.GradientMergeOptimizer(O.SGD(1.0, [p], grad_clip=Called(1.0)), k_steps=2)
    with pytest.raises(RuntimeError, match="_dygraph_clip.*expected"):
        moved(merge, p)


def test_a_copied_optimizer_has_settings_of_its_own():
    p = ones()
    opt = O.Momentum(0.1, 0.5, [p])
    moved(opt, p)
    twin = copy.deepcopy(opt)
    opt._momentum = 0.0
    opt.parameter_list[0].learning_rate = 0.0
    assert twin._momentum == 0.5 and moved(twin, twin.parameter_list[0]) == pytest.approx(0.15)
    assert moved(opt, p) == 0


def test_an_option_that_is_changed_after_a_pickle_in_another_process_acts():
    w = paddle.Parameter(jnp.zeros(2), "w")
    opt = paddle.optimizer.SGD(1.0, parameters=[w])
    code = (
        "import pickle, sys, jax.numpy as jnp\n"
        "opt = pickle.load(sys.stdin.buffer)\n"
        "(w,) = opt.parameter_list\n"
        "for rate in (0.0, 0.5):\n"
        "    w.grad = jnp.ones(2)\n"
        "    opt.step()\n"
        "    w.learning_rate = rate\n"
        "w.grad = jnp.ones(2)\n"
        "opt.step()\n"
        "print(w.numpy()[0])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(opt), capture_output=True)
    assert found.stdout.decode().strip() == "-1.5", found.stderr.decode()[-500:]


def test_packed_parameters_compile_once_for_every_changed_number():
    ps = [paddle.Parameter(jnp.zeros(2), f"p{i}") for i in range(3)]
    opt = paddle.optimizer.SGD(1.0, parameters=ps, packed=True)

    def step():
        for p in ps:
            p.grad = jnp.ones(2)
        opt.step()

    step()
    opt.regularization = 0.1
    for _ in range(4):
        paddle.nn.ClipGradByNorm(1.0)  # somebody else's
        step()
    assert len(opt.compiled_steps) == 2
