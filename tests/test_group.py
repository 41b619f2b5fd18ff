"""Parameters that have made equally many steps are stepped together, each by its own count."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from regression import X, Y, mse, tree

import paddlejax as paddle
from paddlejax import nn, regularizer
from paddlejax.optimizer import flagged, stepping


def adam_by_hand(grads, rate=0.1):
    case = next(c for c in CASES if c.name == "adam" and not c.kwargs)
    return case.expected(np.ones(1, np.float32), [np.full(1, g, np.float32) for g in grads], rate)[0]


def test_every_parameter_counts_its_own_steps():
    a, b, c = (paddle.Parameter(jnp.ones(1), name) for name in "abc")
    opt = paddle.optimizer.Adam(0.1, parameters=[a, b, c])
    plan = {"a": [1.0, 2.0, 3.0, 4.0], "b": [None, 2.0, None, 4.0], "c": [None, None, 3.0, 4.0]}
    for step in range(4):
        for p in (a, b, c):
            g = plan[p.name][step]
            p.grad = None if g is None else jnp.full(1, g)
        opt.step()
    for p in (a, b, c):
        want = adam_by_hand([g for g in plan[p.name] if g is not None])
        np.testing.assert_allclose(p.numpy(), want, rtol=1e-5)
    powers = {k: float(v[0]) for k, v in opt.state_dict().items() if "beta1" in k}
    want = {"a_beta1_pow_acc_0": 0.9**5, "b_beta1_pow_acc_0": 0.9**3, "c_beta1_pow_acc_0": 0.9**3}
    assert powers == pytest.approx(want, rel=1e-5)
    fresh = paddle.optimizer.Adam(0.1, parameters=[a, b, c])
    fresh.set_state_dict(opt.state_dict())
    chex.assert_trees_all_equal(fresh.state_dict(), opt.state_dict())
    assert len(fresh._steps.groups) == 2  # b and c agree again


def test_alternating_halves_compile_twice():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    for i in range(6):
        name = "wb"[i % 2]
        params[name].grad, params["bw"[i % 2]].grad = jnp.ones(params[name].shape), None
        opt.step()
    assert [plan.step._cache_size() for plan in opt.compiled_steps] == [1, 1]


def test_frozen_parameters_rest_and_may_wake():
    params = paddle.parameters(tree())
    params["b"].stop_gradient = True
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    opt.minimize(mse(params, X, Y))
    opt.clear_grad()
    np.testing.assert_array_equal(params["b"].numpy(), [0, 0])
    assert params["b"].grad is None and not any(k.startswith("b_") for k in opt.state_dict())
    params["b"].stop_gradient = False
    opt.minimize(mse(params, X, Y))
    np.testing.assert_allclose(np.abs(params["b"].numpy()), [0.1, 0.1], rtol=1e-4)  # its first step


SHAPES = [(4,), (3, 2), ()]


@paddle.loss
def along(params, grads):
    return sum(jnp.sum(p * g) for p, g in zip(params, grads, strict=True))


def in_groups(params):
    clip = nn.ClipGradByGlobalNorm(0.5)
    first = {"params": params[:2], "learning_rate": 0.5, "beta1": 0.8}
    return paddle.optimizer.Adam(0.1, parameters=[first, {"params": params[2:]}], grad_clip=clip)


def decayed(params):
    decay, clip = regularizer.L1Decay(0.01), nn.ClipGradByGlobalNorm(0.5)
    return paddle.optimizer.Adam(
        0.1, parameters=params, weight_decay=decay, grad_clip=clip, multi_precision=True
    )


SUBSETS = {
    "step": (in_groups, jnp.float32, False),
    "minimize": (decayed, jnp.bfloat16, True),
    "lookahead": (
        lambda params: paddle.incubate.LookAhead(paddle.optimizer.NAdam(0.1, parameters=params), 0.5, 3),
        jnp.float32,
        False,
    ),
}


def trained(make, dtype, minimizes):
    """Parameters and optimizer after steps that reach each Parameter or not, and what each step left."""
    rng, seen = np.random.default_rng(7), []
    params = [paddle.Parameter(rng.normal(size=s).astype(dtype), f"p{i}") for i, s in enumerate(SHAPES)]
    opt = make(params)
    for _ in range(6):
        grads = [jnp.asarray(rng.normal(size=p.shape), p.dtype) for p in params]
        here = [*(rng.random(2) < 0.5), True]
        if minimizes:
            opt.minimize(along(params, grads), parameters=[p for p, h in zip(params, here, strict=True) if h])
        else:
            for p, g, h in zip(params, grads, here, strict=True):
                p.grad = g if h else None
            opt.step()
        seen.append((here, [p.numpy() for p in params], opt.state_dict()))
    return opt, seen


@pytest.mark.parametrize("make, dtype, minimizes", SUBSETS.values(), ids=SUBSETS)
def test_many_subsets_share_a_program(make, dtype, minimizes, monkeypatch):
    """It computes what those of the subsets do, and leaves the others as they are, to the bit."""
    monkeypatch.setattr(flagged, "FEW", 1)
    opt, seen = trained(make, dtype, minimizes)
    programs = getattr(opt, "inner_optimizer", opt).compiled_steps
    assert [isinstance(program, flagged.FlaggedStep) for program in programs] == [False, True]
    monkeypatch.setattr(flagged, "FEW", 1000)
    _, each = trained(make, dtype, minimizes)
    for (_, values, state), (_, expected, want) in zip(seen, each, strict=True):
        chex.assert_trees_all_close(values, expected, rtol=2e-6, atol=1e-7)
        assert list(state) == list(want)
        chex.assert_trees_all_close(state, want, rtol=2e-6, atol=1e-7)
        chex.assert_trees_all_equal_dtypes(state, want)
    for (_, before, old), (here, after, new) in zip(seen, seen[1:], strict=False):
        for i in (i for i, h in enumerate(here) if not h):
            np.testing.assert_array_equal(before[i], after[i])
            kept = [k for k in old if k.startswith(f"p{i}_") and "slow" not in k]
            assert all(np.array_equal(old[k], new[k]) for k in kept)
    fresh = make([paddle.Parameter(v, f"p{i}") for i, v in enumerate(seen[-1][1])])
    fresh.set_state_dict(seen[-1][2])
    chex.assert_trees_all_equal(fresh.state_dict(), seen[-1][2])


def many_subsets(names="abcd"):
    """Parameters of which every one was stepped by itself, their optimizer, and a loss."""
    params = {name: paddle.Parameter(jnp.ones(2), name) for name in names}
    opt = paddle.optimizer.SGD(0.1, parameters=params)
    square = paddle.loss(lambda p: sum(jnp.sum(w * w) for w in p.values()))

    def loss(names):
        return square({name: params[name] for name in names})

    for name in names:
        opt.minimize(loss(name))
    return params, opt, loss


def numbers_of(params):
    return [round(float(p.numpy()[0]), 3) for p in params.values()]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(flagged, "FEW", 2)


def test_a_loss_may_read_a_frozen_parameter_that_the_shared_program_has(few):
    params, opt, loss = many_subsets()
    params["a"].stop_gradient = True
    for _ in range(2):
        opt.minimize(loss("abcd"))
    assert numbers_of(params) == [0.8, 0.512, 0.512, 0.512]
    params["a"].stop_gradient = False
    opt.minimize(loss("ab"))
    assert numbers_of(params) == [0.64, 0.41, 0.512, 0.512]


@pytest.mark.parametrize("frozen", ["", "a"])
def test_a_loss_over_parameters_that_no_step_has_reached_stays_good(few, frozen):
    params, opt, loss = many_subsets()
    params["a"].stop_gradient = bool(frozen)
    losses = [loss(frozen + name) for name in "bcd"]
    for each in losses:
        opt.minimize(each)
    assert numbers_of(params) == [0.8, 0.64, 0.64, 0.64]


def test_what_no_loss_reads_keeps_its_memory(few):
    params, opt, loss = many_subsets()
    for name in "abcd":
        opt.minimize(loss(name))
    before = [p.peek().unsafe_buffer_pointer() for p in params.values()]
    for name in "abcd":
        opt.minimize(loss(name))
    assert before == [p.peek().unsafe_buffer_pointer() for p in params.values()]


def test_a_sum_of_losses_from_before_a_step_that_did_not_reach_them(monkeypatch):
    monkeypatch.setattr(flagged, "FEW", 1)
    ps = [paddle.Parameter(jnp.ones(3), f"p{i}") for i in range(4)]
    opt = paddle.optimizer.Adam(0.1, parameters=ps)
    squares = paddle.loss(lambda *params: sum(jnp.sum(p * p) for p in params))

    def step(*reached):
        for i, p in enumerate(ps):
            p.grad = jnp.ones(3) if i in reached else None
        opt.step()

    for reached in ([0], [1, 2], [0, 3]):
        step(*reached)
    early = squares(ps[0], ps[1])
    step(2, 3)
    late = squares(ps[1], ps[2])
    assert isinstance(opt.compiled_steps[-1], flagged.FlaggedStep) and early.is_current()
    expected = sum(float(np.sum(p.numpy() ** 2)) for p in (ps[0], ps[1], ps[1], ps[2]))
    total = early + late
    opt.minimize(total)
    assert float(total) == pytest.approx(expected)
    early = squares(ps[0])
    step(0)
    with pytest.raises(RuntimeError, match="before and after a step"):
        opt.minimize(early + squares(ps[1]))


def test_one_subset_for_long_has_a_program_of_its_own_again(monkeypatch):
    monkeypatch.setattr(flagged, "FEW", 1)
    monkeypatch.setattr(flagged, "LONG", 4)
    params = [paddle.Parameter(jnp.ones(2), name) for name in "ab"]
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    for step in range(7):
        params[0].grad, params[1].grad = jnp.ones(2), jnp.ones(2) if step != 1 else None
        opt.step()
        assert len(opt.compiled_steps) == [1, 2, 2, 2, 2, 3, 3][step]  # the second is that of all subsets
    assert [g.members for g in opt._steps.groups] == [[0], [1]]  # one step apart
    for p, steps in zip(params, (7, 6), strict=True):
        np.testing.assert_allclose(p.numpy()[0], adam_by_hand([1.0] * steps), rtol=1e-5)


def test_equal_clips_share_a_program():
    """Where only their numbers differ too: from the second number on these are data."""
    params = [paddle.Parameter(jnp.zeros(2), name) for name in "ab"]
    opt = paddle.fluid.optimizer.SGD(1.0, parameter_list=params)
    loss, moved = paddle.loss(lambda a, b: 3 * jnp.sum(a) + 4 * jnp.sum(b)), []
    for norm in (1.0, 1.0, 2.0, 3.0, 3.0):
        before = params[0].numpy()
        opt.minimize(loss(*params), grad_clip=paddle.fluid.clip.GradientClipByGlobalNorm(norm))
        moved.append(float((before - params[0].numpy())[0]))
    np.testing.assert_allclose(moved, np.array([1.0, 1, 2, 3, 3]) * 3 / 50**0.5, rtol=1e-5)
    assert len(opt.compiled_steps) == 2
    params[1].need_clip = False
    before = params[1].numpy()
    opt.minimize(loss(*params), grad_clip=paddle.fluid.clip.GradientClipByGlobalNorm(1.0))
    np.testing.assert_allclose(before - params[1].numpy(), 4.0)


def test_a_state_that_is_set_keeps_the_programs():
    params = paddle.parameters(tree())
    opt = paddle.optimizer.Adam(0.1, parameters=params)
    for _ in range(3):
        opt.minimize(mse(params, X, Y))
        opt.set_state_dict(opt.state_dict())
    opt.minimize(mse(params, X, Y))
    assert [program._cache_size() for program in opt._steps.fused.values()] == [1]


class OwnClip(paddle.nn.ClipGradByGlobalNorm):
    """A user's: it may look at how many gradients there are."""


def test_many_subsets_keep_their_programs_where_zeros_would_be_seen(monkeypatch):
    """No step brings the state into the form of a program that there cannot be, and back again."""
    monkeypatch.setattr(flagged, "FEW", 1)
    monkeypatch.setattr(stepping, "together", lambda *_: pytest.fail("the state was put together"))
    params = [paddle.Parameter(jnp.ones(2), name) for name in "ab"]
    opt = paddle.optimizer.Adam(0.1, parameters=params, grad_clip=OwnClip(1.0))
    for here in ((True, True), (True, False), (False, True), (True, True)):
        opt.apply_gradients([(p, jnp.ones(2)) for p, h in zip(params, here, strict=True) if h])
    assert not any(isinstance(program, flagged.FlaggedStep) for program in opt.compiled_steps)
