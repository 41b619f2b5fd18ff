# pyright: strict
"""A user's file, which pyright's strict mode must accept: see test_typing.py. It runs, too."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import paddlejax as pj
from paddlejax import optimizer, schedules
from paddlejax.interop import as_optax


class Net(NamedTuple):
    w: jax.Array
    b: jax.Array


def mse(params: Net, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((x @ params.w + params.b[None] - y) ** 2)


def functional(params: Net, grads: Net) -> Net:
    """Chains, tables, wrappers, schedules, and what can be asked of their states."""
    schedule = schedules.cosine_annealing_decay(0.1, 10)
    rules = [
        pj.sgd(0.1),
        pj.momentum(0.1, momentum=0.5, use_nesterov=True),
        pj.adam(schedule, beta1=0.8, amsgrad=True),
        pj.adamw(1e-3, weight_decay=0.1, apply_decay_param_fun=lambda path: path != "b"),
        pj.lamb(1e-3, exclude_from_weight_decay_fn=lambda path: path == "b"),
        pj.lars_momentum(0.1, 0.9, exclude_from_weight_decay=("b",)),
        pj.rmsprop(1e-3, centered=True),
        pj.ftrl(0.1, l1=0.01),
    ]
    chain = pj.chain(pj.clip_by_global_norm(1.0), pj.l2_decay(1e-4), rules[-1])
    table = pj.by_path([("b", {"weight_decay": None, "frozen": False})], chain, weight_decay=0.1)
    text: str = table.describe(params)
    tx = pj.with_master_weights(pj.accumulate_gradients(pj.skip_nonfinite(pj.lookahead(table)), 1))
    as_optax(tx)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    new: Net = pj.apply_updates(params, updates)
    adam = rules[2].init(params)
    adam = pj.set_learning_rate(adam, 0.5)
    rate: jax.Array = pj.get_learning_rate(adam)
    average = pj.exponential_moving_average(0.9)
    averaged: Net = average.value(average.update(new, average.init(params)))
    partial = {"w": params.w, "rows": pj.SelectedRows([0], params.w[:1], 3), "fixed": None}
    pj.apply_updates({"w": params.w, "rows": params.w, "fixed": params.b}, partial)
    pj.dpsgd(np.float32(0.1), key=jax.random.key(0))
    assert text and rate.shape == () and averaged.w.shape == new.w.shape
    return new


def objects(start: Net, x: jax.Array, y: jax.Array) -> float:
    """Paddle's style: Parameters, a loss, an optimizer with a scheduler."""
    params = pj.parameters(start)
    loss_of = pj.loss(mse)
    scheduler = optimizer.lr.StepDecay(0.1, step_size=5, gamma=0.6)
    opt = optimizer.Momentum(scheduler, parameters=params, grad_clip=pj.nn.ClipGradByGlobalNorm(1.0))
    for _ in range(2):
        loss = loss_of(params, x, y)
        loss.backward()
        opt.step()
        opt.clear_grad()
        scheduler.step()
    opt.minimize(loss_of(params, x, y))
    opt.set_state_dict(opt.state_dict())
    one = pj.Parameter(start.w, "w")
    optimizer.Adam(parameters=[{"params": [one], "learning_rate": 0.5}]).clear_grad()
    rate: float = opt.get_lr()
    final: float = float(loss_of(params, x, y))
    return final + rate


class SignDescent(pj.Rule):
    """A rule of one's own."""

    def step(
        self, g: jax.Array, p: jax.Array, k: jax.Array, slots: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return -k * jnp.sign(g), slots


def own_rule(params: Net) -> Net:
    tx = pj.lift(pj.rule(SignDescent)(), 0.5)
    updates, _ = tx.update(params, tx.init(params), params)
    return pj.apply_updates(params, updates)
