"""`paddle.optim`: torch's arguments and torch's numbers; DistributedFusedLamb out of its parts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from running import closure_of

import paddlejax as paddle
from paddlejax import interop, optim
from paddlejax.incubate import DistributedFusedLamb

TORCH = np.load(Path(__file__).parent / "golden" / "torch.npz")
ABOUT = json.loads(str(TORCH["cases"]))
NAMES = ["fc.weight", "fc.bias"]
KINDS = {"RMSprop": "RMSProp"}


def begun(case, step=0, **more):
    """The optimizer of a recorded case, with the parameters that torch had after so many steps."""
    kind, arguments = ABOUT["cases"][case]
    if kind == "RMSprop":
        arguments = arguments | {"eps": 1e-16}  # torch has it outside the root
    params = [paddle.Parameter(jnp.asarray(TORCH[f"{case}/{step}/{n}"]), n) for n in NAMES]
    return getattr(optim, KINDS.get(kind, kind))(params, **arguments, **more)


def follows(opt, case, steps):
    """Step with the recorded gradients; the largest difference from torch at the end."""
    for i in steps:
        grads = [jnp.asarray(TORCH[f"grads/{i}/{n}"]) for n in NAMES]
        opt.apply_gradients(zip(opt.parameter_list, grads, strict=True))
    ends = [TORCH[f"{case}/{steps[-1] + 1}/{n}"] for n in NAMES]
    return max(float(abs(p.value - end).max()) for p, end in zip(opt.parameter_list, ends, strict=True))


@pytest.mark.parametrize("case", ABOUT["cases"])
def test_torchs_arguments_give_torchs_numbers(case):
    opt = begun(case)
    assert isinstance(opt, getattr(paddle.optimizer, type(opt).__name__))
    assert follows(opt, case, range(20)) < 2e-6
    assert opt.maximize is ("maximize" in case)


@pytest.mark.parametrize("case", ["dampening", "adagrad_lr_decay", "sgd_maximize"])
def test_the_new_options_in_every_form_of_a_step(case):
    """Packed, measured, resumed from our own state and from torch's: the same numbers."""
    packed = begun(case, packed=True)
    packed.set_info()
    assert follows(packed, case, range(10)) < 2e-6
    resumed = begun(case, step=10)
    resumed.set_state_dict(packed.state_dict())
    assert follows(resumed, case, range(10, 20)) < 2e-6
    start = f"{case}/state."
    moved = begun(case, step=10)
    interop.from_torch({k.removeprefix(start): TORCH[k] for k in TORCH.files if k.startswith(start)}, moved)
    assert follows(moved, case, range(10, 20)) < 2e-6


@pytest.mark.parametrize(
    "case, make",
    [
        ("dampening", lambda: paddle.chain(paddle.l2_decay(0.1), paddle.momentum(0.01, dampening=0.3))),
        (
            "adagrad_lr_decay",
            lambda: paddle.chain(paddle.l2_decay(0.1), paddle.adagrad(0.1, 1e-10, lr_decay=0.1)),
        ),
    ],
)
def test_the_new_options_as_functions(case, make):
    tx, p = make(), {n: jnp.asarray(TORCH[f"{case}/0/{n}"]) for n in NAMES}
    state, update = tx.init(p), jax.jit(tx.update)
    for i in range(20):
        updates, state = update({n: jnp.asarray(TORCH[f"grads/{i}/{n}"]) for n in NAMES}, state, p)
        p = paddle.apply_updates(p, updates)
    assert max(float(abs(p[n] - TORCH[f"{case}/20/{n}"]).max()) for n in NAMES) < 2e-6
    assert update._cache_size() == 1


def test_maximize_takes_rows_and_can_be_switched():
    p = paddle.Parameter(jnp.ones((3, 1)), "p")
    opt = optim.SGD([p], lr=0.5, maximize=True)
    opt.apply_gradients([(p, paddle.SelectedRows(jnp.array([1]), jnp.ones((1, 1)), 3))])
    assert p.numpy().ravel().tolist() == [1.0, 1.5, 1.0]
    opt.maximize = False
    opt.apply_gradients([(p, jnp.ones((3, 1)))])
    assert p.numpy().ravel().tolist() == [0.5, 1.0, 0.5]


LAMBDAS = {"LambdaLR": lambda epoch: 0.9**epoch, "MultiplicativeLR": lambda epoch: 0.8}


@pytest.mark.parametrize("name", ABOUT["rates"])
def test_schedulers_attach_themselves_and_follow_torch(name):
    opt = optim.SGD([paddle.Parameter(jnp.ones(1))], lr=0.4)
    more = {"lr_lambda": LAMBDAS[name]} if name in LAMBDAS else {}
    scheduler = getattr(optim.lr_scheduler, name)(opt, **ABOUT["rates"][name], **more)
    found = [opt.get_lr()]
    for metric in ABOUT["metrics"]:
        scheduler.step(*([metric] if name == "ReduceLROnPlateau" else []))
        found.append(opt.get_lr())
    np.testing.assert_allclose(found, TORCH[f"rates/{name}"], rtol=1e-12, atol=1e-12)


def test_without_an_optimizer_a_scheduler_is_paddles():
    assert (
        optim.lr_scheduler.StepLR(0.4, step_size=3)()
        == optim.lr_scheduler.StepLR(optimizer=0.4, step_size=3)()
    )
    assert optim.lr_scheduler.ConstantLR([3, 6], [0.1, 0.2, 0.3])() == 0.1
    opt = optim.Adam([paddle.Parameter(jnp.ones(1))], lr=optim.lr_scheduler.StepLR(0.4, 3))
    assert opt.get_lr() == 0.4


def test_groups_and_paddles_own_arguments():
    p, q = (paddle.Parameter(jnp.ones(2), n) for n in "pq")
    groups = [
        {"params": [p]},
        {"params": [q], "lr": 0.2, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.3},
    ]
    row = optim.Adam(groups, lr=0.1).describe().splitlines()[2]
    assert (
        row.split()
        == "q (2,) float32 x 2 L2Decay, coeff=0.300000 Adam(beta1=0.5, beta2=0.6, epsilon=0.1)".split()
    )
    assert optim.Adam(learning_rate=0.2, parameters=[p], beta1=0.5)._beta1 == 0.5


def test_a_step_calls_its_closure_with_gradients():
    p = paddle.Parameter(jnp.ones(2), "p")
    square, opt = paddle.loss(lambda w: jnp.sum(w * w)), optim.SGD([p], lr=0.25)
    with paddle.no_grad():
        assert float(opt.step(closure_of(opt, square, p))) == 2.0
    assert p.numpy().tolist() == [0.5, 0.5]

    def broken():
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        opt.step(broken)
    assert p.numpy().tolist() == [0.5, 0.5]


def one():
    return [paddle.Parameter(jnp.ones(2), "p")]


WRONG = [
    (
        lambda: optim.Adam(one(), learning_rate=0.1),
        TypeError,
        r"unexpected keyword argument 'learning_rate'; .* are params, lr",
    ),
    (lambda: optim.Adam(one(), betas=0.9), TypeError, "betas: found 0.9, expected two numbers"),
    (lambda: optim.Adam(one(), betas=(0.9, 0.9, 0.9)), ValueError, "betas: found .*, expected two numbers"),
    (lambda: optim.Adam(one(), betas=(0.9, 1.0)), ValueError, "Adam's beta2: found 1.0"),
    (lambda: optim.SGD(one(), nesterov=True), ValueError, "nesterov: found True with momentum 0"),
    (
        lambda: optim.SGD(one(), momentum=0.9, dampening=0.1, nesterov=True),
        ValueError,
        "expected a momentum and no dampening",
    ),
    (lambda: optim.SGD(one(), momentum=0.9, dampening="a"), TypeError, "Momentum's dampening: found 'a'"),
    (lambda: optim.SGD(one(), maximize=1), TypeError, "maximize: found 1, expected True or False"),
    (lambda: optim.LBFGS(one(), maximize=True), NotImplementedError, "return -loss"),
    (lambda: optim.Adagrad(one(), lr_decay=-1), ValueError, "Adagrad's lr_decay: found -1"),
    (lambda: optim.Adam(one()).step(3), TypeError, "step's closure: found 3"),
    (lambda: optim.Adam([{"params": one(), "lr": -0.1}], 0.1), ValueError, "params: group 0: lr: found -0.1"),
    (
        lambda: optim.Adam([{"params": one(), "lr": 0.1}], 0.0),
        ValueError,
        "lr: found 0.0, expected a rate above 0",
    ),
    (
        lambda: optim.lr_scheduler.StepLR(optim.SGD(one())),
        TypeError,
        "missing a required argument: 'step_size'",
    ),
    (lambda: optim.lr_scheduler.OneCycleLR(optim.SGD(one()), 0.1), ValueError, "total_steps: found None"),
    (
        lambda: optim.lr_scheduler.StepLR(optim.SGD(one(), optim.lr_scheduler.StepLR(0.1, 2)), 2),
        RuntimeError,
        "set by a scheduler",
    ),
    (
        lambda: DistributedFusedLamb(parameters=one(), grad_clip=paddle.nn.ClipGradByNorm(1.0)),
        TypeError,
        "expected an instance of nn.ClipGradByGlobalNorm",
    ),
    (
        lambda: DistributedFusedLamb(parameters=one(), clip_after_allreduce=False),
        NotImplementedError,
        "clip_after_allreduce: found False, expected True",
    ),
    (
        lambda: DistributedFusedLamb(parameters=one(), mesh=jax.make_mesh((1,), ("data",)), axis="x"),
        ValueError,
        "axis: found 'x', expected an axis of",
    ),
    (lambda: DistributedFusedLamb(parameters=one()).set_info(), NotImplementedError, "does not measure"),
]


@pytest.mark.parametrize("call, error, words", WRONG)
def test_what_is_wrong_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ------------------------------------------------------------------------- DistributedFusedLamb

RNG = np.random.default_rng(3)
START = {"w": RNG.normal(size=(16, 8)), "b": RNG.normal(size=8)}
GRADS = [{n: jnp.asarray(RNG.normal(size=x.shape), jnp.float32) for n, x in START.items()} for _ in range(4)]


def trained(opt, grads=GRADS):
    for g in grads:
        opt.apply_gradients(zip(opt.parameter_list, jax.tree.leaves(g), strict=True))
    return [np.asarray(p.value, np.float32) for p in opt.parameter_list]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_distributed_fused_lamb_is_lamb_that_always_adapts(dtype):
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
    common = {
        "grad_clip": paddle.nn.ClipGradByGlobalNorm(1.0),
        "exclude_from_weight_decay_fn": lambda p: p.name == "b",
    }
    want = trained(
        paddle.optimizer.Lamb(0.1, parameters=start, always_adapt=True, multi_precision=True, **common)
    )
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.device_put(start, NamedSharding(mesh, PartitionSpec()))
    for opt in (
        DistributedFusedLamb(0.1, parameters=start, **common),
        DistributedFusedLamb(0.1, parameters=start, mesh=mesh, **common),  # which lays them onto the mesh
        DistributedFusedLamb(0.1, parameters=spread, mesh=mesh, **common),
    ):
        for found, expected in zip(trained(opt), want, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    moments = [x for key, x in opt.state_dict().items() if "moment1" in key]
    assert {x.addressable_shards[0].data.size * 8 == x.size for x in moments} == {True}


def test_distributed_fused_lamb_sums_and_skips():
    """The sum of two gradients makes a step; one of them that is not finite leaves all as it was."""
    sums = [jax.tree.map(jnp.add, *GRADS[i : i + 2]) for i in (0, 2)]
    start = jax.tree.map(jnp.asarray, jax.tree.map(np.float32, START))
    want = trained(paddle.optimizer.Lamb(0.1, parameters=start, always_adapt=True), sums)
    opt = DistributedFusedLamb(0.1, parameters=start, gradient_accumulation_steps=2)
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADS[0])
    found = trained(opt, [*GRADS[:2], GRADS[3], bad, *GRADS[2:]])
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    assert opt.skipped == 1
    other = DistributedFusedLamb(0.1, parameters=start, gradient_accumulation_steps=2)
    other.set_state_dict(opt.state_dict())


@pytest.mark.parametrize("name", ["lr", "learning_rate", "param_groups"])
def test_what_torch_reads_of_an_optimizer_says_the_way(name):
    opt = paddle.optim.SGD([paddle.Parameter(jnp.ones(2), "w")], lr=0.1)
    assert not hasattr(opt, name)
    with pytest.raises(AttributeError, match=r"get_lr\(\) returns the rate, set_lr\(value\) changes it"):
        getattr(opt, name)


SCHEDULERS = optim.lr_scheduler


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda opt: SCHEDULERS.OneCycleLR(opt, "x", 5), "max_lr: found 'x' of type str"),
        (lambda opt: SCHEDULERS.OneCycleLR(opt, 0.1, 5, div_factor=0), "div_factor: found 0, expected"),
        (lambda opt: SCHEDULERS.OneCycleLR(opt, 0.1, epochs="3", steps_per_epoch=2), "epochs: found '3'"),
        (lambda opt: SCHEDULERS.ConstantLR(opt, "x"), "factor: found 'x' of type str"),
        (lambda opt: optim.SGD(opt._parameter_list, lr=-1), "^lr: found -1, expected a number of at least 0"),
    ],
)
def test_errors_say_torchs_names(call, words):
    opt = optim.SGD([paddle.Parameter(jnp.ones(2), "w")], lr=0.1)
    with pytest.raises((TypeError, ValueError), match=words):
        call(opt)
    opt.set_lr(0.2)  # no scheduler was attached
