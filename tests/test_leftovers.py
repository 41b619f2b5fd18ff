"""Where Paddle 3.3.1 differs from itself: what one optimizer leaves behind for the next."""

import jax.numpy as jnp
import pytest

import paddlejax as paddle


def two():
    return paddle.Parameter(jnp.ones((2, 2)), "p"), paddle.Parameter(jnp.ones(2), "q")


def stepped(opt, *members, by=0.0, times=1):
    for _ in range(times):
        opt.apply_gradients([(p, jnp.full(p.shape, by)) for p in members])
    return [round(float(p.value.reshape(-1)[0]), 6) for p in members]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("cls", [paddle.optimizer.Momentum, paddle.optimizer.SGD])
def test_an_optimizer_built_again_over_the_same_group_dicts_decays_as_the_first(cls, times):
    """Paddle's second Momentum has lost the decay: 1.0 after two steps in place of 0.72."""
    p, q = two()
    decay = paddle.regularizer.L2Decay(0.1)
    groups = [{"params": [p], "weight_decay": decay}, {"params": [q], "weight_decay": 0.0}]
    before = [dict(g) for g in groups]
    for _ in range(times):
        opt = cls(1.0, parameters=groups, weight_decay=decay)
    want = 0.72 if cls is paddle.optimizer.Momentum else 0.81
    assert stepped(opt, p, q, times=2) == [want, 1.0]
    assert groups == before


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam"])
@pytest.mark.parametrize("decay", [paddle.regularizer.L1Decay(0.01), paddle.regularizer.L2Decay(0.01), 0.01])
def test_a_group_without_decay_has_none_whatever_the_optimizers_is(name, decay):
    """Paddle's Momentum with an L1Decay decays it all the same: 1.99."""
    p = paddle.Parameter(jnp.full(2, 2.0), "p")
    q = paddle.Parameter(jnp.full(2, 2.0), "q")
    groups = [{"params": [p], "weight_decay": 0.0}, {"params": [q]}]
    opt = getattr(paddle.optimizer, name)(1.0, parameters=groups, weight_decay=decay)
    kept, decayed = stepped(opt, p, q)
    assert kept == 2.0 and decayed < 2.0


def test_the_options_of_a_group_do_not_stay_for_a_later_optimizer():
    """In Paddle the factor 0.5 does: the plain SGD moves p by 0.5."""
    p, q = two()
    paddle.optimizer.Momentum(
        1.0, parameters=[{"params": [p], "learning_rate": 0.5, "weight_decay": 0.3}, {"params": [q]}]
    )
    plain = paddle.optimizer.SGD(1.0, parameters=[p, q])
    assert stepped(plain, p, q, by=1.0) == [0.0, 0.0] and p.regularizer is None
