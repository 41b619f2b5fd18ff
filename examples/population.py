"""64 learning rates at once: every rate trains a network of its own, all in one program.

    python examples/population.py
    python examples/population.py --optimizer adam lamb --epochs 40 --out two.png

The rate is data in the optimizer's state, so `vmap` over rates is all it takes. One panel per optimizer:
the accuracy on scikit-learn's test digits after every epoch, for rates from 1e-5 to 10.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm
from train_digits import OPTIMIZERS, accuracy, cross_entropy, digits, initial

import paddlejax as pj

RATES = np.logspace(-5, 1, 64, dtype=np.float32)
BATCH = 128
DEFAULTS = ["momentum", "lars_momentum", "adam", "lamb", "rmsprop", "adagrad"]


def train_all(name, epochs):
    """Test accuracy (epochs, 64): all rates from the same start over the same batches."""
    recipe, ((x, y), test) = OPTIMIZERS[name], jax.tree.map(jnp.asarray, digits(0))
    start, rng = initial(0), np.random.default_rng(0)

    def begin(rate):
        return start, recipe.functional(rate, **recipe.options).init(start)

    tx = recipe.functional(recipe.lr, **recipe.options)  # the rate in force is the one in the state

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(cross_entropy)(params, x[batch], y[batch])
        updates, state = tx.update(grads, state, params)
        return (pj.apply_updates(params, updates), state), None

    def epoch(carry, batches):
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, accuracy(carry[0], *test)

    population = jax.vmap(begin)(jnp.asarray(RATES))
    together = jax.jit(jax.vmap(epoch, (0, None)), donate_argnums=0)
    reached = []
    for _ in range(epochs):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        population, accuracies = together(population, jnp.asarray(order.reshape(-1, BATCH)))
        reached.append(accuracies)
    return np.array(reached)


def plot(results, out):
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    size = (max(3.4 * columns, 6), max(2.9 * rows, 3.4))
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(results) :]:
        panel.set_visible(False)
    for panel, (name, reached) in zip(panels.flat, results.items(), strict=False):
        epochs = np.arange(1, len(reached) + 1)
        image = panel.pcolormesh(RATES, epochs, reached, vmin=0, vmax=1, cmap="viridis", shading="nearest")
        panel.set(xscale="log", title=name, xlabel="learning rate", ylabel="epoch")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=panels, label="test accuracy")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    known = [name for name in OPTIMIZERS if name != "rprop"]  # whose rate is where its step sizes start
    some = {"nargs": "+", "metavar": "NAME", "help": f"some of {', '.join(known)}"}
    parser.add_argument("--optimizer", choices=known, default=DEFAULTS, **some)
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--out", type=Path, default=Path("population.png"), help="default: population.png")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs: expected at least 1")
    results = {name: train_all(name, options.epochs) for name in tqdm(dict.fromkeys(options.optimizer))}
    print(f"\n{'optimizer':<16} {'best rate':>10} {'accuracy':>9} {'rates above 0.95':>17}")
    for name, reached in results.items():
        best = int(np.argmax(reached[-1]))
        good = RATES[reached[-1] > 0.95]
        span = f"{good[0]:.2g} to {good[-1]:.2g}" if len(good) else "none"
        print(f"{name:<16} {RATES[best]:>10.2g} {reached[-1, best]:>9.4f} {span:>17}")
    plot(results, options.out)
    print(f"wrote {options.out}: test accuracy over learning rate and epoch")


if __name__ == "__main__":
    main()
