"""LARS and LAMB against Momentum and Adam: from small batches to the whole data set, epochs fixed.

    python examples/large_batch.py
    python examples/large_batch.py --epochs 40 --optimizer AdamW LAMB --out adam.png

A deep narrow network learns scikit-learn's digits. The larger the batch, the fewer the steps: 640 at batch
32, 20 at batch 1024. Every optimizer warms up over a tenth of its steps, then decays linearly to zero; all
decay their weights. Nine rates, a factor 2 apart, train from every start in one vmap.

Left, the rate that does best on the validation images is chosen anew for each batch size. Right, it is
chosen at batch 32 only, and at k times that size scaled by k or √k, whichever the validation images prefer.
Accuracy is that on test images, which choose nothing; the mean over the starts.

What to see: Momentum falls off at batch 256, LARS a factor of two to four later. Tuned anew at each size
AdamW keeps up with LAMB almost to the end; with the rate only scaled it falls off at 512, LAMB does not. In
20 steps nobody learns the digits.
"""

import argparse
import functools
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

import paddlejax as pj


class Contestant(NamedTuple):
    make: Any  # learning_rate -> a transformation
    lowest: float  # of nine rates, each twice the one before
    colour: str
    line: str = "-"


def momentum(learning_rate):
    return pj.chain(pj.l2_decay(5e-4), pj.momentum(learning_rate))


# A coefficient of 1 leaves the scale to the rate: ‖step‖ is about rate · ‖weights‖.
LARS = {"momentum": 0.9, "lars_coeff": 1.0, "exclude_from_weight_decay": ["/b"]}
LAMB = {"exclude_from_weight_decay_fn": lambda path: path.endswith("/b")}
CONTESTANTS = {
    "Momentum": Contestant(momentum, 0.004, "#56B4E9", "--"),
    "LARS": Contestant(functools.partial(pj.lars_momentum, **LARS), 0.0005, "#0072B2"),
    "AdamW": Contestant(pj.adamw, 0.0005, "#E69F00", "--"),
    "LAMB": Contestant(functools.partial(pj.lamb, **LAMB), 0.001, "#D55E00"),
}
TRAINING, VALIDATION = 1024, 386  # the other 387 images test
SMALLEST, STARTS = 32, 2


def data():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    ends = [TRAINING, TRAINING + VALIDATION]
    return [
        (jnp.asarray(a), jnp.asarray(b)) for a, b in zip(np.split(x, ends), np.split(y, ends), strict=True)
    ]


def initial(key, depth):
    """Layers of 32 units; weights of variance 1/n, the usual start of flax's layers."""
    sizes = [64, *[32] * depth, 10]
    keys = jax.random.split(key, depth + 1)
    return [
        {"w": jax.random.normal(k, (n, m)) / math.sqrt(n), "b": jnp.zeros(m)}
        for k, (n, m) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def logits(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
    return x @ layers[-1]["w"] + layers[-1]["b"][None]


def cross_entropy(layers, x, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(layers, x)), y[:, None], axis=1))


def accuracy(layers, x, y):
    return jnp.mean((jnp.argmax(logits(layers, x), axis=1) == y).astype(jnp.float32))


def program(make, epochs, depth):
    """(rates, keys, k) -> validation and test accuracy, each (starts, rates), at batches of k small ones.

    One program for all rates, starts and batch sizes: gradients of k small batches add up to a large one's.
    """
    (x, y), validation, test = data()
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(TRAINING) for _ in range(epochs)])
    small = jnp.asarray(order.reshape(-1, SMALLEST))

    def run(rate, key, k):
        steps = len(small) // k
        warm_up = jnp.maximum(1, steps // 10)

        def schedule(count):
            return rate * jnp.minimum((count + 1) / warm_up, (steps - count) / (steps - warm_up + 1))

        tx, start = make(schedule), initial(key, depth)

        def step(i, carry):
            params, state = carry

            def add(j, total):
                images = small[i * k + j]
                return jax.tree.map(jnp.add, total, jax.grad(cross_entropy)(params, x[images], y[images]))

            total = jax.lax.fori_loop(0, k, add, jax.tree.map(jnp.zeros_like, params))
            grads = jax.tree.map(lambda g: g / k.astype(g.dtype), total)
            updates, state = tx.update(grads, state, params)
            return pj.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
        return accuracy(params, *validation), accuracy(params, *test)

    return jax.jit(jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, None)))


def compete(name, sizes, epochs, depth, on_size=lambda: None):
    """Test accuracy at each batch size, the rate tuned there and scaled from the first; and both rates."""
    contestant, keys = CONTESTANTS[name], jax.random.split(jax.random.key(0), STARTS)
    grid, run = contestant.lowest * 2.0 ** np.arange(9), program(contestant.make, epochs, depth)
    rows, base = [], 0.0
    for size in sizes:
        factors = size / sizes[0] * np.array([1, math.sqrt(sizes[0] / size)])
        rates = np.concatenate([grid, base * factors])
        found = run(jnp.asarray(rates, jnp.float32), keys, jnp.int32(size // SMALLEST))
        validation, test = (np.mean(a, axis=0) for a in found)
        best = int(np.argmax(validation[:9]))
        if base == 0:
            base, scaled = grid[best], best
        else:
            scaled = 9 + int(np.argmax(validation[9:]))
        rows.append([test[best], test[scaled], rates[best], rates[scaled]])
        on_size()
    return np.array(rows).T


def plot(results, sizes, options):
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for name, (tuned, scaled, *_) in results.items():
        c = CONTESTANTS[name]
        for panel, accuracies in zip(panels, (tuned, scaled), strict=True):
            panel.plot(sizes, accuracies, c.line, color=c.colour, marker="o", markersize=4, label=name)
    panels[0].set(title="rate tuned at every batch size", ylabel="test accuracy", ylim=(0, 1))
    panels[1].set(title=f"rate tuned at batch {sizes[0]}, then scaled")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set(xlabel=f"batch size ({options.epochs} epochs)", xticks=sizes, xticklabels=sizes)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(options.out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    sizes = [SMALLEST * 2**i for i in range(6)]
    some = {"nargs": "+", "metavar": "NAME", "help": f"some of {', '.join(CONTESTANTS)}"}
    parser.add_argument("--optimizer", choices=CONTESTANTS, default=list(CONTESTANTS), **some)
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--depth", type=int, default=6, help="hidden layers; default: 6")
    parser.add_argument("--batch-size", type=int, nargs="+", choices=sizes, default=sizes, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("large_batch.png"), help="default: large_batch.png")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.depth < 1:
        parser.error("--epochs and --depth: expected at least 1")
    sizes, names, results = sorted(set(options.batch_size)), list(dict.fromkeys(options.optimizer)), {}
    with tqdm(total=len(names) * len(sizes), unit="size") as bar:
        for name in names:
            bar.set_description(f"{name:<8}")
            results[name] = compete(name, sizes, options.epochs, options.depth, bar.update)
    print(f"\n{'batch size':<22}" + "".join(f"{size:>8}" for size in sizes))
    for name, rows in results.items():
        for title, row in zip(("tuned", "scaled", "tuned rate", "scaled rate"), rows, strict=True):
            form = ".4g" if "rate" in title else ".3f"
            print(f"{name:<9}{title:<13}" + "".join(f"{x:>8{form}}" for x in row))
    plot(results, sizes, options)
    print(f"wrote {options.out}: test accuracy over batch size")


if __name__ == "__main__":
    main()
