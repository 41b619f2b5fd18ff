"""One compiled step of Muon, in the time of optax.contrib.muon's, on layers (n x n, n x 4n, 4n x n).

    python tests/benchmarks/muon_step.py --layers 24 --size 512

Both are compiled with donation and run in turns, in float32; times are of the process (CPU) and of the clock.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import paddlejax as pj


def contestants():
    """Two optimizers that do the same work on matrices."""
    return {
        "paddlejax": pj.muon(0.02, muon_extra_scale_factor=1.0, ns_matmul_dtype="float32"),
        "optax": optax.contrib.muon(0.02, weight_decay=0.01),
    }


def measured(layers: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds to compile, CPU and clock seconds of the fastest step, MiB of temporaries, by contestant."""
    shapes = [(size, size), (size, 4 * size), (4 * size, size)] * layers
    rng = np.random.default_rng(0)
    grads = {str(i): jnp.asarray(rng.normal(size=s), jnp.float32) for i, s in enumerate(shapes)}
    found: dict[str, dict[str, float]] = {}
    programs = {}
    for name, tx in contestants().items():
        params = jax.tree.map(jnp.zeros_like, grads)

        def step(grads, state, params, tx=tx):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        start = time.process_time()
        state = tx.init(params)
        began = time.process_time()
        program = jax.jit(step, donate_argnums=(1, 2)).lower(grads, state, params).compile()
        temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
        found[name] = {"init": began - start, "compile": time.process_time() - began, "MiB": temporaries}
        programs[name] = [program, params, state]
    for _ in range(rounds):
        for name, (program, params, state) in programs.items():
            start = time.process_time(), time.perf_counter()
            programs[name][1:] = jax.block_until_ready(program(grads, state, params))
            taken = time.process_time() - start[0], time.perf_counter() - start[1]
            for kind, seconds in zip(("cpu", "clock"), taken, strict=True):
                found[name][kind] = min(found[name].get(kind, np.inf), seconds)
    return found


def main():
    """Print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("layers", 24), ("size", 512), ("rounds", 3)):
        parser.add_argument(f"--{option}", type=int, default=default)
    found = measured(**vars(parser.parse_args()))
    kinds = ["compile", "cpu", "clock", "MiB"]
    for name, row in found.items():
        print(f"{name:10}", *(f"{kind} {row[kind]:.3f}" for kind in kinds))
    print("ratio     ", *(f"{k} {found['paddlejax'][k] / found['optax'][k]:.2f}" for k in kinds))


if __name__ == "__main__":
    main()
