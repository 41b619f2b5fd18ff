"""What a step costs where a batch reads a few rows of a large table: lazy Adam, dense Adam, optax.adam.

    python tests/benchmarks/lazy_adam.py [--out lazy_adam.png] [--json lazy_adam.json]

A step is the whole of it: look the rows up, differentiate, update, all in one donated program, each time with
other ids. The contestants take turns in one process, of a third of a second each; given are the medians over
turns of the median step of a turn. Times depend on the machine, so read the ratios.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import paddlejax as pj

WIDTH = 64
MILLION = 1_000_000
BATCHES = 199  # so many that their rows do not stay in a cache
TURN = 300  # milliseconds


def loss_fn(params: Any, ids: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((pj.sparse.embedding(params["table"], ids) @ params["w"] - y) ** 2)


def program(name: str) -> tuple[Any, Any]:
    """(init, a compiled step) of a contestant."""
    lazy = name == "lazy"
    tx: Any = optax.adam(0.01) if name == "optax" else pj.adam(0.01, lazy_mode=lazy)
    apply = optax.apply_updates if name == "optax" else pj.apply_updates
    value_and_grad = pj.sparse.value_and_grad(loss_fn, "table") if lazy else jax.value_and_grad(loss_fn)

    def step(params: Any, state: Any, ids: jax.Array, y: jax.Array) -> Any:
        _, grads = value_and_grad(params, ids, y)
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    return jax.jit(tx.init), jax.jit(step, donate_argnums=(0, 1))


def measure(names: list[str], rows: int, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds per step, the contestants in turn."""
    rng = np.random.default_rng(0)
    batches = [jnp.asarray(rng.integers(0, rows, batch), jnp.int32) for _ in range(BATCHES)]
    y = jnp.ones(batch)
    running = {}
    for name in names:
        init, step = program(name)
        params = {"table": jnp.zeros((rows, WIDTH)), "w": jnp.ones(WIDTH)}
        running[name] = [step, *step(params, init(params), batches[0], y)]
    times: dict[str, list[float]] = {name: [] for name in names}
    ids = itertools.cycle(batches)
    for _ in range(rounds):
        for name in names:
            step, params, state = running[name]
            turn: list[float] = []
            while sum(turn) < TURN:
                start = time.perf_counter()
                params, state = jax.block_until_ready(step(params, state, next(ids), y))
                turn.append(1e3 * (time.perf_counter() - start))
            times[name].append(statistics.median(turn))
            running[name][1:] = params, state
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("lazy_adam.png"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    everyone = ["lazy", "dense", "optax"]
    duels = {  # (rows, batch): who takes part
        (MILLION, 1024): everyone,
        (MILLION, 4096): everyone,
        **{(rows, 4096): ["lazy"] for rows in (MILLION // 10, 4 * MILLION)},
        **{(MILLION, batch): ["lazy"] for batch in (256, 2048, 8192, 16384)},
    }
    results = {}
    for (rows, batch), names in tqdm(duels.items(), leave=False):
        results[rows, batch] = measure(names, rows, batch, args.rounds)
    print(f"{'rows':>9} {'ids':>6} {'lazy ms':>9} {'dense ms':>9} {'optax ms':>9}   dense/lazy, optax/lazy")
    for (rows, batch), ms in sorted(results.items()):
        others = [f"{ms[name]:9.1f}" if name in ms else " " * 9 for name in everyone[1:]]
        ratios = "  ".join(f"{ms[name] / ms['lazy']:6.1f}" for name in everyone[1:] if name in ms)
        print(f"{rows:9,} {batch:6} {ms['lazy']:9.2f} {' '.join(others)}   {ratios}")

    _, (by_batch, by_rows) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, key, fixed, label in [(by_batch, 1, MILLION, "ids in a batch"), (by_rows, 0, 4096, "rows")]:
        points = sorted((size[key], ms["lazy"]) for size, ms in results.items() if size[1 - key] == fixed)
        axis.loglog(*zip(*points, strict=True), "o-", label="lazy Adam")
        for name in everyone[1:]:
            axis.axhline(results[MILLION, 4096][name], ls="--", color=f"C{everyone.index(name)}", label=name)
        axis.set(xlabel=label)
    by_batch.set(ylabel="milliseconds per step", title="a table of 1,000,000 x 64")
    by_rows.set(title="4,096 ids a batch (dense: at 1,000,000)")
    by_batch.legend()
    plt.tight_layout()
    plt.savefig(args.out, dpi=120)
    if args.json:
        rows = [{"rows": r, "ids": b, "milliseconds": ms} for (r, b), ms in results.items()]
        args.json.write_text(json.dumps(rows, indent=1))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
