"""Train a network on handwritten digits with each device keeping only its part of Adam's state (ZeRO-1).

    python examples/train_zero1.py                         8 simulated CPU devices in this process
    python examples/train_zero1.py --processes 2           the same 8 devices, in two processes
    python examples/train_zero1.py --optimizer lamb --epochs 5 --out lamb.png

Start reading at `run`: one line differs from training on a single device.
"""

import argparse
import os
import sys
from pathlib import Path

DEVICES = 8
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # before JAX starts
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    )

from paddlejax.distributed.processes import initialize, launch  # noqa: E402

JOINED = initialize(
    shutdown_timeout=60
)  # the other processes, if this is one of several; before anything else of JAX

import jax  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from tqdm import tqdm  # noqa: E402
from train_digits import OPTIMIZERS, cross_entropy, digits, initial, shuffled  # noqa: E402

import paddlejax as paddle  # noqa: E402
from paddlejax.distributed.sharding import zero1  # noqa: E402

BATCH = 64


def placed(tree, mesh, spec):
    """Arrays over the whole mesh, of all processes, from numbers that each of them has."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
        jax.tree.map(np.asarray, tree),
    )


def run(tx, mesh, epochs, seed, on_step):
    """The loss of every step, and how many bytes of state each device holds at the end."""
    params = placed(initial(seed), mesh, P())  # a copy on every device
    state = tx.init(params)  # lies where the parameters lie, or cut in eight

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(cross_entropy)(params, x, y)  # jit averages over the devices
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    losses = []
    for x, y in shuffled(*digits(seed)[0], epochs, BATCH, seed):
        x, y = placed((x, y), mesh, P("data"))  # an eighth of the batch on each device
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        on_step()
    return np.array(losses), sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


def plot(results, out):
    """Both loss curves, and the bytes of state that each device holds."""
    colours = {"replicated": "#0072B2", "ZeRO-1": "#D55E00"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=[2, 1], layout="constrained")
    for (name, (losses, _)), style in zip(results.items(), ("-", "--"), strict=True):
        left.plot(np.arange(1, len(losses) + 1), losses, style, color=colours[name], label=name)
    left.set(yscale="log", title="training loss: one curve covers the other", xlabel="step")
    left.legend(frameon=False)
    sizes = [held for _, held in results.values()]
    bars = right.bar(list(results), sizes, color=[colours[name] for name in results])
    right.bar_label(bars, [f"{size:,}" for size in sizes])
    right.set(title="optimizer state on each device, bytes")
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6, axis="y")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def train(options):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    recipe = OPTIMIZERS[options.optimizer]
    tx = recipe.functional(recipe.lr, **recipe.options)
    steps = len(digits(options.seed)[0][0]) // BATCH * options.epochs
    results = {}
    with tqdm(total=2 * steps, unit="step", disable=jax.process_index() > 0) as bar:
        for name, optimizer in (("replicated", tx), ("ZeRO-1", zero1(tx, mesh, "data"))):
            bar.set_description(f"{name:<10}")
            results[name] = run(optimizer, mesh, options.epochs, options.seed, bar.update)
    if jax.process_index() > 0:  # the first process reports
        return
    print(f"\n{jax.device_count()} devices in {jax.process_count()} process(es), {options.optimizer}")
    for name, (losses, held) in results.items():
        print(f"{name:<10}  {held:>9,} bytes of state on each device, last loss {losses[-1]:.6f}")
    (whole, all_bytes), (parts, part_bytes) = results.values()
    print(f"largest difference of the losses: {np.max(abs(parts - whole)):.1e}")
    print(f"state per device: 1/{all_bytes / part_bytes:.2f} of the replicated")
    plot(results, options.out)
    print(f"wrote {options.out}: both loss curves and the bytes of state")


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    names = [name for name in OPTIMIZERS if name != "sgd"]  # which has no state
    add("--optimizer", choices=names, default="adam", metavar="NAME", help=f"one of {', '.join(names)}")
    add("--epochs", type=int, default=10, help="default: 10")
    add("--processes", type=int, default=1, help=f"that share the {DEVICES} devices; default: 1")
    add("--seed", type=int, default=0, help="of split, network and batches; default: 0")
    add("--out", type=Path, default=Path("train_zero1.png"), help="default: train_zero1.png")
    options = parser.parse_args(arguments)
    expected = {
        "--epochs: expected at least 1": options.epochs >= 1,
        f"--processes: expected a divisor of {DEVICES}": options.processes in (1, 2, 4, 8),
        "--seed: expected 0 or more, below 2**32": 0 <= options.seed < 2**32,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)
    if not JOINED and options.processes > 1:
        arguments = sys.argv[1:] if arguments is None else arguments
        return launch(__file__, options.processes, arguments, DEVICES // options.processes)
    train(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
