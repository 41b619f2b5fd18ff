"""Train on handwritten digits with eight workers that exchange a thousandth of their gradients.

    python examples/train_dgc.py                          8 workers: simulated devices, or 8 real ones
    python examples/train_dgc.py --processes 2            the same as 2 processes with 4 workers each
    python examples/train_dgc.py --epochs 10 --sparsity 0.99 --out ninety_nine.png

Paddle's DGCMomentumOptimizer (deep gradient compression) against the same momentum without compression:
accuracy, the bytes that each device receives in a step, and the time of an epoch. On one machine, whose
memory is its network, compression only costs time. Start reading at `train`.
"""

import argparse
import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

WORKERS = 8
DEVICE_COUNT = "--xla_force_host_platform_device_count"
if DEVICE_COUNT not in os.environ.get("XLA_FLAGS", ""):  # JAX reads it when it starts; only CPUs obey
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_COUNT}={WORKERS}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from tqdm import tqdm  # noqa: E402

import paddlejax as paddle  # noqa: E402
from paddlejax.distributed import DGCMomentumOptimizer  # noqa: E402
from paddlejax.distributed.processes import initialize, launch  # noqa: E402

BATCH = 128  # 16 images for each of 8 workers
STEPS = 11  # in an epoch of 1437 images
NEVER = 2**31 - 1


# ------------------------------------------------------------------------------------ network and data


def initial(seed):
    """64 pixels -> 256 -> 256 hidden units -> 10 digits; the first two matrices are compressed."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (64, 256), "w2": (256, 256), "w3": (256, 10)}
    weights = {k: (rng.normal(size=s) * math.sqrt(2 / s[0])).astype(np.float32) for k, s in sizes.items()}
    return weights | {k.replace("w", "b"): np.zeros(s[1], np.float32) for k, s in sizes.items()}


def logits(params, x):
    for i in (1, 2):
        x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"][None, :])
    return x @ params["w3"] + params["b3"][None, :]


@paddle.loss
def cross_entropy(params, x, y):
    """The mean over the images that it is given: a worker sees an eighth of the batch."""
    log_p = jax.nn.log_softmax(logits(params, x))
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))


@functools.cache
def digits(seed):
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return (x, y), (x_test, y_test)


def accuracy(params, x, y):
    return float(np.mean(np.argmax(logits(params, x), axis=1) == y))


# ------------------------------------------------------------------------------------------- training


def warm_up(sparsity):
    """An epoch without compression, then 75 %, 93.75 % and so on within four epochs."""
    before = [s for s in (0.75, 0.9375, 0.984375, 0.996) if s < sparsity]
    return {"rampup_begin_step": STEPS, "rampup_step": 4 * STEPS, "sparsity": [*before, sparsity]}


class History(NamedTuple):
    """A loss per step, a test accuracy per epoch, bytes received by a device per step, seconds per epoch."""

    losses: np.ndarray
    test_accuracy: np.ndarray
    received: np.ndarray
    seconds: np.ndarray


def train(options, epochs, lr, seed, on_epoch=lambda: None):
    """All workers at once: `minimize` splits the batch, compresses, exchanges and updates."""
    (x, y), testing = digits(seed)
    params = paddle.parameters(initial(seed))
    opt = DGCMomentumOptimizer(lr, momentum=0.9, **options, parameter_list=params)
    rng, losses, reached, bytes_received, seconds = np.random.default_rng(seed), [], [], [], []
    for _ in range(epochs):
        order, start = rng.permutation(len(x)), time.perf_counter()
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            bytes_received.append(received(params, len(losses), **options))
            loss = cross_entropy(params, x[batch], y[batch])
            opt.minimize(loss)
            losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
        reached.append(accuracy({k: p.numpy() for k, p in params.items()}, *testing))
        on_epoch()
    return History(*map(np.array, (losses, reached, bytes_received, seconds)))


def received(params, step, rampup_begin_step, rampup_step, sparsity):
    """Bytes that a device receives on a ring: an all-reduce, or 8 bytes for every entry that others send.

    Where all large tensors go as such pairs the small ones, and the loss, travel with them.
    """
    workers = jax.device_count()
    index = (step - rampup_begin_step) * len(sparsity) // rampup_step
    now = 0.0 if index < 0 else sparsity[min(index, len(sparsity) - 1)]
    large = [p.size for p in params.values() if p.size >= 16384]
    small = 1 + sum(p.size for p in params.values() if p.size < 16384)
    pairs = [8 * int(np.float32(size) * (np.float32(1) - np.float32(now))) * (workers - 1) for size in large]
    dense = [8 * size * (workers - 1) / workers for size in (*large, small)]
    together = all(p < d for p, d in zip(pairs, dense, strict=False))
    total = sum(map(min, zip(pairs, dense, strict=False)))
    return total + (4 * small * (workers - 1) if together else dense[-1])


# ------------------------------------------------------------------------------------------- the results


def print_table(histories):
    print(f"\n{'':<16} {'loss':>14} {'test accuracy':>14} {'kB received per step':>22} {'s per epoch':>12}")
    for name, h in histories.items():
        loss, bytes_now = h.losses[-STEPS:].mean(), h.received[-1] / 1000
        print(f"{name:<16} {loss:>14.9f} {h.test_accuracy[-1]:>14.4f} {bytes_now:>22.1f}", end=" ")
        print(f"{h.seconds[-1]:>12.2f}")
    dense, sparse = histories.values()
    print(f"\n{dense.received[-1] / sparse.received[-1]:.1f} times fewer bytes at the end,", end=" ")
    print(f"{dense.received.sum() / sparse.received.sum():.1f} times over the whole training;", end=" ")
    print(f"an epoch at the end in {sparse.seconds[-1] / dense.seconds[-1]:.2f} times the time")


def plot(histories, out):
    """Test accuracy per epoch, and bytes per step; Okabe and Ito's colours."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for (name, h), colour in zip(histories.items(), ["#0072B2", "#D55E00"], strict=True):
        epochs = np.arange(1, len(h.test_accuracy) + 1)
        left.plot(epochs, h.test_accuracy, color=colour, label=name, marker=".", markersize=4)
        right.step(np.arange(len(h.received)) / STEPS, h.received, color=colour, where="post")
    left.set(title="test accuracy", xlabel="epoch", ylim=(min(0.9, h.test_accuracy[0]), 1.0))
    right.set(title="bytes received by each device in a step", xlabel="epoch", yscale="log")
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--epochs", type=int, default=30, help="default: 30")
    add("--lr", type=float, default=0.05, help="default: 0.05")
    add("--sparsity", type=float, default=0.999, help="that is reached after five epochs; default: 0.999")
    add("--processes", type=int, default=1, help="that share the 8 workers: 1, 2, 4 or 8; default: 1")
    add("--seed", type=int, default=0, help="of split, network and batches; default: 0")
    add("--out", type=Path, default=Path("train_dgc.png"), help="default: train_dgc.png")
    options = parser.parse_args(arguments)
    expected = {
        "--epochs: expected at least 1": options.epochs >= 1,
        "--lr: expected a number above 0": 0 < options.lr < math.inf,
        "--sparsity: expected a number in [0, 1)": 0 <= options.sparsity < 1,
        "--processes: expected 1, 2, 4 or 8": options.processes in (1, 2, 4, 8),
        "--seed: expected 0 or more, below 2**32": 0 <= options.seed < 2**32,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)
    started = initialize(shutdown_timeout=60)  # True in the processes that launch started
    if options.processes > 1 and not started:
        given = sys.argv[1:] if arguments is None else arguments
        sys.exit(launch(__file__, options.processes, given, WORKERS // options.processes))

    first = jax.process_index() == 0  # all processes compute the same, one of them tells
    never = {"rampup_begin_step": NEVER, "rampup_step": 1, "sparsity": [0.0]}
    runs = {"momentum": never, f"DGC, {100 * options.sparsity:g} %": warm_up(options.sparsity)}
    histories = {}
    with tqdm(total=len(runs) * options.epochs, unit="epoch", disable=not first) as bar:
        for name, run in runs.items():
            bar.set_description(f"{name:<12}")
            histories[name] = train(run, options.epochs, options.lr, options.seed, bar.update)
    if first:
        print_table(histories)
        plot(histories, options.out)
        print(f"wrote {options.out}: test accuracy and bytes")


if __name__ == "__main__":
    main()
