"""What a scheduler adds to a step of the object: every class of `optimizer.lr`, against a constant rate.

    python tests/benchmarks/scheduler_cost.py

Rounds of steps with and without the scheduler alternate in one process; the median differences are printed
in microseconds. Exits with 1 if one is above 20.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

import paddlejax as paddle

lr = paddle.optimizer.lr
SCHEDULERS = {
    "NoamDecay": lambda: lr.NoamDecay(64, 100),
    "PiecewiseDecay": lambda: lr.PiecewiseDecay([100, 200], [0.1, 0.05, 0.01]),
    "NaturalExpDecay": lambda: lr.NaturalExpDecay(0.1, 0.01),
    "InverseTimeDecay": lambda: lr.InverseTimeDecay(0.1, 0.01),
    "PolynomialDecay": lambda: lr.PolynomialDecay(0.1, 1000),
    "LinearWarmup": lambda: lr.LinearWarmup(lr.ExponentialDecay(0.1, 0.99), 100, 0.0, 0.1),
    "ExponentialDecay": lambda: lr.ExponentialDecay(0.1, 0.999),
    "MultiStepDecay": lambda: lr.MultiStepDecay(0.1, [100, 200]),
    "StepDecay": lambda: lr.StepDecay(0.1, 100),
    "LambdaDecay": lambda: lr.LambdaDecay(0.1, lambda epoch: 0.999**epoch),
    "CosineAnnealingDecay": lambda: lr.CosineAnnealingDecay(0.1, 1000),
    "MultiplicativeDecay": lambda: lr.MultiplicativeDecay(0.1, lambda epoch: 0.999),
    "OneCycleLR": lambda: lr.OneCycleLR(0.1, 100_000),
    "CyclicLR": lambda: lr.CyclicLR(0.01, 0.1, 100),
    "LinearLR": lambda: lr.LinearLR(0.1, 1000),
    "CosineAnnealingWarmRestarts": lambda: lr.CosineAnnealingWarmRestarts(0.1, 100),
}
STEPS, ROUNDS = 200, 15


def optimizer(rate):
    params = paddle.parameters({f"p{i}": jnp.ones(64) for i in range(6)})
    for p in params.values():
        p.grad = jnp.full(64, 1e-3)
    return paddle.optimizer.Adam(rate, parameters=params)


def microseconds(opt, scheduler):
    start = time.perf_counter()
    for _ in range(STEPS):
        opt.step()
        if scheduler is not None:
            scheduler.step()
    jax.block_until_ready([p.value for p in opt.parameters.values()])
    return (time.perf_counter() - start) / STEPS * 1e6


def main():
    constant = optimizer(0.1)
    microseconds(constant, None)
    worst = 0.0
    print(f"{'scheduler':<30}{'constant':>10}{'scheduled':>11}{'added':>8}   µs a step, 6 tensors of 64")
    for name, make in SCHEDULERS.items():
        scheduler = make()
        scheduled = optimizer(scheduler)
        microseconds(scheduled, scheduler)
        pairs = [(microseconds(constant, None), microseconds(scheduled, scheduler)) for _ in range(ROUNDS)]
        alone, both = (statistics.median(side) for side in zip(*pairs, strict=True))
        added = statistics.median(b - a for a, b in pairs)
        worst = max(worst, added)
        print(f"{name:<30}{alone:>10.1f}{both:>11.1f}{added:>8.1f}")
    print(f"worst: {worst:.1f}, goal: at most 20")
    sys.exit(worst > 20)


if __name__ == "__main__":
    main()
