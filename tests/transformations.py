"""Every public function that makes a transformation or an average, and how to make one step of each."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from cases import CASES

import paddlejax as pj
from paddlejax.average import Average


def _dgc(workers: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one worker compresses nothing
        return pj.dgc_momentum(0.1, 0.9, 0, num_trainers=workers, min_numel=1)


def halved(path: str) -> bool:
    """A function of a path that can be pickled."""
    return path.endswith("b")


RULES = {case.name: case.make for case in reversed(CASES)}
WRAPPERS = {
    "lookahead": lambda tx: pj.lookahead(tx, k=2),
    "lookahead_initial": lambda tx: pj.lookahead(tx, k=2, slow_start="initial"),
    "accumulate_gradients": lambda tx: pj.accumulate_gradients(tx, 2),
    "skip_nonfinite": pj.skip_nonfinite,
    "dynamic_loss_scale": pj.dynamic_loss_scale,
    "with_master_weights": pj.with_master_weights,
    "with_info": lambda tx: pj.with_info(tx, grad_clip=pj.clip_by_global_norm(1.0)),
    "chain": lambda tx: pj.chain(pj.clip_by_norm(1.0), tx),
    "by_path": lambda tx: pj.by_path([("*b", {"learning_rate": 2.0})], tx, weight_decay=0.1),
    "zero1": lambda tx: pj.distributed.zero1(tx, jax.make_mesh((1,), ("data",)), "data"),
}
OTHERS = {
    "lbfgs": pj.lbfgs,
    "lbfgs_wolfe": lambda: pj.lbfgs(line_search_fn="strong_wolfe"),
    "dgc_momentum": lambda: _dgc(1),
    "identity": pj.identity,
    "clip_by_value": lambda: pj.clip_by_value(1.0),
    "clip_by_norm": lambda: pj.clip_by_norm(1.0),
    "clip_by_global_norm": lambda: pj.clip_by_global_norm(1.0),
    "l1_decay": lambda: pj.l1_decay(0.1),
    "l2_decay": lambda: pj.l2_decay(0.1),
    "schedule": lambda: pj.adam(pj.schedules.step_decay(0.1, 2)),
    "with_info_lamb": lambda: pj.with_info(pj.lamb(0.1)),
    "two_rules": lambda: pj.by_path([("*b", {"rule": pj.momentum(0.1)})], pj.adam(0.1)),
    "masters_of_a_chain": lambda: pj.with_master_weights(pj.chain(pj.l2_decay(0.1), pj.adam(0.1))),
    "lamb_excluding": lambda: pj.lamb(0.1, exclude_from_weight_decay_fn=halved),
}
AVERAGES = {
    "exponential_moving_average": lambda: pj.exponential_moving_average(0.9),
    "model_average": lambda: pj.model_average(0.5, 2, 4),
}
TRANSFORMATIONS = {
    **RULES,
    **{name: lambda wrap=wrap: wrap(pj.adam(0.1)) for name, wrap in WRAPPERS.items()},
    **OTHERS,
}
TABLE = {**TRANSFORMATIONS, **AVERAGES}


def objective(params: Any) -> jax.Array:
    """½ Σ p²: its gradient is the parameters themselves."""
    squares = [jnp.sum(jnp.square(p.astype(jnp.float32))) for p in jax.tree.leaves(params)]
    return 0.5 * sum(squares[1:], squares[0])


def step(tx: Any, params: Any, state: Any) -> tuple[Any, Any]:
    """Parameters and state after one step, or after one more look of an average."""
    if isinstance(tx, Average):
        return params, tx.update(params, state)
    extra = {}
    if "value" in inspect.signature(tx.update).parameters:  # L-BFGS
        extra = {"value": objective(params), "value_and_grad": jax.value_and_grad(objective)}
    updates, state = tx.update(params, state, params, **extra)
    return pj.apply_updates(params, updates), state
