"""A step through a pipeline of equal stages against the uncut one: forward, backward and Adam's update.

    python tests/benchmarks/stacked.py                        a table of sizes
    python tests/benchmarks/stacked.py --layers 16 --width 256 --batch 512 --micro-batches 4,8,16

Both run in turns in one process, on simulated devices that share this machine's cores: the ratio says what
the pipeline costs beside the work itself. On devices of their own the work is shared; `pipelined` says how
long they are idle. Times are medians; the ratio is the median of those of neighbours.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

SIZES = [(8, 128, 256), (8, 256, 256), (8, 256, 512), (16, 256, 512), (8, 512, 512)]


def measured(layers: int, width: int, batch: int, counts: list[int], stages: int, rounds: int) -> list[Any]:
    """A record for each number of micro-batches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import paddlejax as pj
    from paddlejax.distributed import pipelined, state_shardings

    def layer(p, x):
        return x + jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"]

    def in_a_row(p, x):
        return jax.lax.scan(lambda x, p: (layer(p, x), None), x, p)[0]

    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(layers, width, width)).astype("f") / 99 for name in ("w1", "w2")}
    params["b"] = np.zeros((layers, width), "f")
    x = rng.normal(size=(batch, width)).astype("f")
    tx = pj.adam(0.001)
    mesh = jax.make_mesh((stages,), ("stage",), devices=jax.devices()[:stages])

    def started(f, sharding, inputs):
        here = jax.device_put(params, sharding)
        state = jax.jit(tx.init, out_shardings=state_shardings(tx, here))(here)
        at = jax.device_put(x, inputs)

        def step(params, state, x):
            loss, grads = jax.value_and_grad(lambda p: jnp.mean(f(p, x) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            return pj.apply_updates(params, updates), state, loss

        return [jax.jit(step, donate_argnums=(0, 1)), here, state, at]

    one = jax.NamedSharding(jax.make_mesh((1,), ("stage",), devices=jax.devices()[:1]), jax.P())
    cut, whole = jax.NamedSharding(mesh, jax.P("stage")), jax.NamedSharding(mesh, jax.P())
    programs = {"uncut": started(in_a_row, one, one)}
    for count in counts:
        programs[str(count)] = started(pipelined(layer, mesh, "stage", count), cut, whole)
    times: dict[str, list[float]] = {name: [] for name in programs}
    losses = {}
    for turn in range(rounds + 3):  # the first compile
        for name, program in programs.items():
            step, *given = program
            start = time.perf_counter()
            *program[1:3], losses[name] = jax.block_until_ready(step(*given))
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - start))
    for name, loss in losses.items():  # after so many steps
        np.testing.assert_allclose(loss, losses["uncut"], rtol=1e-4, err_msg=name)
    return [
        {
            "layers": layers,
            "width": width,
            "batch": batch,
            "stages": stages,
            "micro_batches": count,
            "uncut_ms": statistics.median(times["uncut"]),
            "cut_ms": statistics.median(times[str(count)]),
            "ratio": statistics.median(a / b for a, b in zip(times[str(count)], times["uncut"], strict=True)),
        }
        for count in counts
    ]


def main() -> None:
    """Print the table, and write the records where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro-batches", default="4,8")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", help="a file for the records")
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.stages}"
    sizes = SIZES if given.layers is None else [(given.layers, given.width, given.batch)]
    counts = [int(n) for n in given.micro_batches.split(",")]
    records = []
    print("| layers, width, batch | micro-batches | uncut ms | cut ms | ratio |\n|---|---|---|---|---|")
    for size in sizes:
        found = measured(*size, counts, given.stages, given.rounds)
        records += found
        for r in found:
            told = f"| {r['layers']}, {r['width']}, {r['batch']} | {r['micro_batches']} "
            print(f"{told}| {r['uncut_ms']:.1f} | {r['cut_ms']:.1f} | {r['ratio']:.2f} |", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps({"records": records}, indent=1))


if __name__ == "__main__":
    main()
