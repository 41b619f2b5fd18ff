"""Deep gradient compression in float64 numpy: N workers, one after another, in plain loops."""

import math
from typing import Any, NamedTuple

import numpy as np


class Workers(NamedTuple):
    """What all workers have for one tensor: u and v of shape (N, *shape), or u of one velocity and no v."""

    u: np.ndarray
    v: np.ndarray | None


def is_compressed(p, min_numel=16384):
    return p.size >= min_numel and p.dtype == np.float32


def sparsity_at(step, begin, ramp, sparsity):
    """None before the warm-up; steps count from 0."""
    if step < begin:
        return None
    return sparsity[min(math.floor((step - begin) * len(sparsity) / ramp), len(sparsity) - 1)]


def sent_of(numel, s):
    return max(1, int(np.float32(numel) * (np.float32(1) - np.float32(s))))


def start(params, workers, min_numel):
    return {
        k: Workers(np.zeros((workers, *p.shape)), np.zeros((workers, *p.shape)))
        if is_compressed(p, min_numel)
        else Workers(np.zeros(p.shape), None)
        for k, p in params.items()
    }


def decayed(g, p, decay):
    kind, coeff = decay or ("l2", 0.0)
    return g + coeff * (p if kind == "l2" else np.sign(p))


def step(
    params: dict[str, np.ndarray],
    grads: list[dict[str, np.ndarray]],
    state: dict[str, Workers],
    count: int,
    *,
    rate: float,
    momentum: float,
    begin: int,
    ramp: int,
    sparsity: list[float],
    nesterov: bool = False,
    clip: float | None = None,
    decay: Any = None,
) -> tuple[dict[str, np.ndarray], dict[str, Workers]]:
    """One step of all workers from each one's gradients; parameters are float64 here."""
    n, m = len(grads), momentum
    now = sparsity_at(count, begin, ramp, sparsity)
    new_params, new_state = {}, {}
    for k, p in params.items():
        u, v = state[k]
        g = [worker[k].astype(np.float64) for worker in grads]
        if v is None or now is None:
            mean = decayed(sum(g) / n, p, decay)
            u = m * u + mean
            old = u if v is None else u[0]
            direction = mean + m * old if nesterov else old
        else:
            u, v, direction = u.copy(), v.copy(), np.zeros(p.size)
            for r in range(n):
                h = g[r] / n  # Paddle divides the loss by the number of workers, and clips that
                if clip is not None:
                    h = h * min(1.0, clip * n**-0.5 / np.linalg.norm(h))
                h = decayed(n * h, p, decay)
                if nesterov:
                    u[r] = m * (u[r] + h)
                    v[r] = v[r] + u[r] + h
                else:
                    u[r] = m * u[r] + h
                    v[r] = v[r] + u[r]
                chosen = np.argsort(-np.abs(v[r]).ravel(), kind="stable")[: sent_of(p.size, now)]
                direction[chosen] += v[r].ravel()[chosen]
                u[r].ravel()[chosen] = 0
                v[r].ravel()[chosen] = 0
            direction = direction.reshape(p.shape) / n
        new_params[k] = p - rate * direction
        new_state[k] = Workers(u, v)
    return new_params, new_state
