"""Train a network on handwritten digits with parameters and Adam's state in parts on each device (FSDP).

    python examples/train_fsdp.py                          8 simulated CPU devices, resumed on 4
    python examples/train_fsdp.py --optimizer lamb --hidden 2048 --out lamb.png

Half-way the training is saved with orbax and goes on, from the file, on half as many devices. Start reading
at `begin` and `step_of`: two lines differ from training on a single device.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

DEVICES = 8
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # before JAX starts
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    )

import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from tqdm import tqdm  # noqa: E402
from train_digits import OPTIMIZERS, cross_entropy, digits, shuffled  # noqa: E402

import paddlejax as paddle  # noqa: E402
from paddlejax.distributed import fsdp_shardings, state_shardings  # noqa: E402

BATCH = 64


def initial(seed, hidden):
    """64 pixels -> so many hidden units -> 10 digits; a tree of plain arrays."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            "w": (rng.normal(size=(n, m)) * np.sqrt(2 / n)).astype(np.float32),
            "b": np.zeros(m, np.float32),
        }
        for name, n, m in [("hidden", 64, hidden), ("output", hidden, 10)]
    }


def begin(tx, params, mesh):
    """Parameters and state, of which each device holds its part."""
    params = jax.device_put(params, fsdp_shardings(params, mesh, "data"))
    return params, jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)


def step_of(tx, params, state):
    """The step of any training, whose results lie where the parameters and the state lie."""
    there = jax.tree.map(lambda x: x.sharding, (params, state))

    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(cross_entropy)(params, x, y)  # jit averages over the devices
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(*there, None))


def run(tx, params, state, batches, on_step):
    """The loss of every step, and what comes out."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    step, losses = step_of(tx, params, state), []
    for batch in batches:
        x, y = jax.device_put(batch, NamedSharding(mesh, P("data")))
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        on_step()
    return params, state, losses


def moved(folder, tx, params, state, start, mesh):
    """Save parameters and state, and load them onto another mesh: every device reads its part."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, (params, state))
        checkpointer.wait_until_finished()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, begin(tx, start, mesh))
        return checkpointer.restore(folder, target)


def held(tree):
    """How many bytes of a tree the first device holds."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def mesh_of(n):
    return jax.make_mesh((n,), ("data",), (AxisType.Auto,), devices=jax.devices()[:n])


def train(tx, options, on_step):
    """The losses by name, and the bytes on each device."""
    batches = list(shuffled(*digits(options.seed)[0], options.epochs, BATCH, options.seed))
    start, half = initial(options.seed, options.hidden), len(batches) // 2
    results = {}
    params = jax.device_put(start, NamedSharding(mesh_of(DEVICES), P()))  # a copy on every device
    params, state, losses = run(tx, params, tx.init(params), batches, on_step)
    results["a copy on every device"] = losses, held((params, state))
    params, state = begin(tx, start, mesh_of(DEVICES))
    params, state, first = run(tx, params, state, batches[:half], on_step)
    before = held((params, state))
    with tempfile.TemporaryDirectory() as folder:
        params, state = moved(Path(folder) / "half-way", tx, params, state, start, mesh_of(DEVICES // 2))
    params, state, second = run(tx, params, state, batches[half:], on_step)
    results[f"FSDP on {DEVICES}"] = first, before
    results[f"FSDP, resumed on {DEVICES // 2}"] = second, held((params, state))
    return results


def plot(results, out):
    """All loss curves, and the bytes of parameters and state that each device holds."""
    colours = ["#0072B2", "#D55E00", "#009E73"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=[2, 1], layout="constrained")
    at = [0, 0, len(results[f"FSDP on {DEVICES}"][0])]
    for (name, (losses, _)), begun, colour, style in zip(results.items(), at, colours, "-::", strict=True):
        left.plot(begun + np.arange(1, len(losses) + 1), losses, style, color=colour, label=name, linewidth=2)
    left.set(yscale="log", title="training loss: one curve covers the others", xlabel="step")
    left.legend(frameon=False)
    sizes = [size for _, size in results.values()]
    bars = right.bar(["copy", f"{DEVICES} parts", f"{DEVICES // 2} parts"], sizes, color=colours)
    right.bar_label(bars, [f"{size:,}" for size in sizes])
    right.set(title="bytes on each device")
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6, axis="y")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--optimizer", choices=list(OPTIMIZERS), default="adam", metavar="NAME", help="as train_digits.py")
    add("--epochs", type=int, default=10, help="default: 10")
    add("--hidden", type=int, default=1024, help=f"units, a multiple of {DEVICES}; default: 1024")
    add("--seed", type=int, default=0, help="of split, network and batches; default: 0")
    add("--out", type=Path, default=Path("train_fsdp.png"), help="default: train_fsdp.png")
    options = parser.parse_args(arguments)
    expected = {
        "--epochs: expected at least 1": options.epochs >= 1,
        f"--hidden: expected a multiple of {DEVICES}": options.hidden > 0 and options.hidden % DEVICES == 0,
        "--seed: expected 0 or more, below 2**32": 0 <= options.seed < 2**32,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)
    recipe = OPTIMIZERS[options.optimizer]
    tx = recipe.functional(recipe.lr, **recipe.options)
    with tqdm(total=2 * (len(digits(options.seed)[0][0]) // BATCH * options.epochs), unit="step") as bar:
        results = train(tx, options, bar.update)
    print(f"\n{options.optimizer}, {options.hidden} hidden units")
    for name, (losses, size) in results.items():
        print(f"{name:<22}  {size:>9,} bytes on each device, last loss {losses[-1]:.6f}")
    (whole, all_bytes), (first, part), (second, _) = results.values()
    print(f"largest difference of the losses: {np.max(abs(np.array(first + second) - whole)):.1e}")
    print(f"parameters and state per device: 1/{all_bytes / part:.2f} of the copy")
    plot(results, options.out)
    print(f"wrote {options.out}: the loss curves and the bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
