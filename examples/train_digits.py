"""Train a small network on scikit-learn's handwritten digits with paddlejax's optimizers, side by side.

    python examples/train_digits.py                                       six optimizers in optax's style
    python examples/train_digits.py --style paddle                        the same through Paddle's objects
    python examples/train_digits.py --optimizer sgd ftrl --epochs 10
    python examples/train_digits.py --optimizer adam --lr 0.003 --batch-size 32 --seed 7 --out adam.png

Start reading at `run_functional` and `run_paddle`: the two ways to write a training loop.
"""

import argparse
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import paddlejax as paddle
from paddlejax import optimizer
from paddlejax.fluid.optimizer import DecayedAdagrad, Dpsgd, Ftrl
from paddlejax.incubate.optimizer import LarsMomentumOptimizer


class Recipe(NamedTuple):
    """One optimizer in both styles, with a learning rate that suits this network."""

    lr: float
    functional: Any  # (learning_rate, **options) -> a transformation: init and update
    paddle: Any  # (learning_rate, parameters=..., **options) -> an object: minimize and clear_grad
    options: dict[str, Any] = {}


def older(make):
    """Paddle 1.x's classes take their parameters as parameter_list."""
    return lambda lr, parameters, **options: make(lr, parameter_list=parameters, **options)


LARS = {"momentum": 0.9, "lars_coeff": 0.01}  # Paddle's coefficient, 0.001, suits far longer trainings

OPTIMIZERS = {
    "sgd": Recipe(0.3, paddle.sgd, optimizer.SGD),
    "momentum": Recipe(0.05, paddle.momentum, optimizer.Momentum, {"momentum": 0.9}),
    "lars_momentum": Recipe(0.1, paddle.lars_momentum, older(LarsMomentumOptimizer), LARS),
    "adagrad": Recipe(0.05, paddle.adagrad, optimizer.Adagrad),
    "decayed_adagrad": Recipe(0.003, paddle.decayed_adagrad, older(DecayedAdagrad)),
    "adadelta": Recipe(1.0, paddle.adadelta, optimizer.Adadelta),
    "adam": Recipe(0.003, paddle.adam, optimizer.Adam),
    "adamw": Recipe(0.003, paddle.adamw, optimizer.AdamW),
    "nadam": Recipe(0.003, paddle.nadam, optimizer.NAdam),
    "radam": Recipe(0.003, paddle.radam, optimizer.RAdam),
    "adamax": Recipe(0.01, paddle.adamax, optimizer.Adamax),
    "rmsprop": Recipe(0.003, paddle.rmsprop, optimizer.RMSProp),
    # Paddle 3 adds a guard of 1e-10 to FTRL's penalties; the class is Paddle 1.x's, which does not.
    "ftrl": Recipe(0.1, functools.partial(paddle.ftrl, guard=0.0), older(Ftrl)),
    "lamb": Recipe(0.004, paddle.lamb, optimizer.Lamb),
    "asgd": Recipe(0.3, paddle.asgd, optimizer.ASGD, {"batch_num": 4}),
    "rprop": Recipe(0.0001, paddle.rprop, optimizer.Rprop, {"learning_rate_range": (1e-6, 0.003)}),
    "dpsgd": Recipe(0.3, paddle.dpsgd, older(Dpsgd), {"sigma": 0.01, "key": jax.random.key(0)}),
}
DEFAULTS = ["momentum", "lars_momentum", "adam", "lamb", "rmsprop", "adagrad"]


# ------------------------------------------------------------------------------------ network and data


def initial(seed):
    """64 pixels -> 64 hidden units -> 10 digits; a tree of plain arrays."""
    keys = jax.random.split(jax.random.key(seed))
    return {
        name: {"w": jax.random.normal(key, (n, m)) * math.sqrt(2 / n), "b": jnp.zeros(m)}
        for name, key, n, m in [("hidden", keys[0], 64, 64), ("output", keys[1], 64, 10)]
    }


def logits(params, x):
    hidden, output = params["hidden"], params["output"]
    return jax.nn.relu(x @ hidden["w"] + hidden["b"][None, :]) @ output["w"] + output["b"][None, :]


def cross_entropy(params, x, y):
    log_p = jax.nn.log_softmax(logits(params, x))
    return -jnp.mean(log_p[jnp.arange(len(y)), y])


@jax.jit
def accuracy(params, x, y):
    return jnp.mean((jnp.argmax(logits(params, x), axis=1) == y).astype(jnp.float32))


@functools.cache
def digits(seed):
    """1437 images to train on and 360 to test on: pixels in [0, 1], every digit in the same proportion."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return (x, y), (x_test, y_test)


def shuffled(x, y, epochs, size, seed):
    """The batches of all epochs; images that do not fill a batch wait for another epoch."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            batch = order[start : start + size]
            yield x[batch], y[batch]


# ----------------------------------------------------------------------------------- the training loops


def run_functional(recipe, lr, params, batches):
    """optax's style: pure functions; the loop holds the parameters and the optimizer's state."""
    tx = recipe.functional(lr, **recipe.options)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))  # a step reuses the memory of what it replaces
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(cross_entropy)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    for x, y in batches:
        params, state, loss = step(params, state, x, y)
        yield float(loss), params


def run_paddle(recipe, lr, params, batches):
    """Paddle's style: objects that change; the optimizer holds the state."""
    params = paddle.parameters(params)
    opt = recipe.paddle(lr, parameters=params, **recipe.options)
    loss_of = paddle.loss(cross_entropy)  # or @paddle.loss above the function

    for x, y in batches:
        loss = loss_of(params, x, y)
        opt.minimize(loss)  # forward, backward and update are one compiled program
        opt.clear_grad()
        yield float(loss), params


STYLES = {"functional": run_functional, "paddle": run_paddle}


class History(NamedTuple):
    """What happened in one training: a loss per step, accuracies per epoch, milliseconds per step."""

    losses: np.ndarray
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    ms: float


def train(name, style="functional", epochs=30, lr=None, batch_size=32, seed=0, on_epoch=lambda: None):
    """Train with one optimizer; both styles see the same initial parameters and the same batches."""
    recipe, (training, testing) = OPTIMIZERS[name], digits(seed)
    batches = shuffled(*training, epochs, batch_size, seed)
    run = STYLES[style](recipe, recipe.lr if lr is None else lr, initial(seed), batches)
    losses, seconds, reached = [], [], []
    for _ in range(epochs):
        for _ in range(len(training[0]) // batch_size):
            start = time.perf_counter()
            loss, params = next(run)
            seconds.append(time.perf_counter() - start)
            losses.append(loss)
        values = jax.tree.map(np.asarray, params)  # arrays or Parameters
        reached.append([accuracy(values, *training), accuracy(values, *testing)])
        on_epoch()
    # The first step compiles; of the others the median, since other programs want the processor too.
    ms = 1000 * statistics.median(seconds[1:]) if len(seconds) > 1 else math.nan
    return History(np.array(losses), *np.array(reached).T, ms)


# ------------------------------------------------------------------------------------------- the results


def whole_epochs(panel):
    """Ticks at whole numbers: there is no epoch 2.5."""
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def print_table(histories):
    print(f"\n{'optimizer':<16} {'rate':>7} {'train accuracy':>15} {'test accuracy':>14} {'ms per step':>12}")
    for name, (lr, h) in histories.items():
        reached = f"{h.train_accuracy[-1]:>15.4f} {h.test_accuracy[-1]:>14.4f}"
        print(f"{name:<16} {lr:>7g} {reached} {h.ms:>12.2f}")
    final = {name: h.test_accuracy[-1] for name, (_, h) in histories.items()}
    best = max(final, key=lambda name: final[name])
    print(f"\nbest on the test images: {best}, accuracy {final[best]:.4f}")
    print(f"above 0.96: {', '.join(name for name in final if final[name] > 0.96) or 'none'}")


def plot(histories, out):
    """Loss and test accuracy per epoch; Okabe and Ito's colours, dashed from the eighth optimizer on."""
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for i, (name, (_, h)) in enumerate(histories.items()):
        line = {"color": colours[i % 7], "label": name, "marker": ".", "markersize": 4}
        line["linestyle"] = "-" if i < 7 else "--"
        epochs = np.arange(1, len(h.test_accuracy) + 1)
        left.plot(epochs, h.losses.reshape(len(epochs), -1).mean(axis=1), **line)
        right.plot(epochs, h.test_accuracy, **line)
    left.set(yscale="log", title="training loss, mean of each epoch", xlabel="epoch")
    lowest = min(h.test_accuracy[-1] for _, h in histories.values())
    right.set(ylim=(min(0.9, lowest - 0.05), 1.0), title="test accuracy", xlabel="epoch")
    for panel in (left, right):
        whole_epochs(panel)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    some = {"nargs": "+", "metavar": "NAME", "help": f"some of {', '.join(OPTIMIZERS)}"}
    add("--optimizer", choices=OPTIMIZERS, default=DEFAULTS, **some)
    add("--style", choices=STYLES, default="functional", help="of the loop; the numbers are the same")
    add("--epochs", type=int, default=30, help="default: 30")
    add("--lr", type=float, help="one learning rate for all; default: a suitable one for each")
    add("--batch-size", type=int, default=32, help="default: 32")
    add("--seed", type=int, default=0, help="of split, network and batches; default: 0")
    add("--out", type=Path, default=Path("train_digits.png"), help="default: train_digits.png")
    options = parser.parse_args(arguments)
    images = len(digits(0)[0][0])
    expected = {
        "--epochs: expected at least 1": options.epochs >= 1,
        "--lr: expected a number above 0": options.lr is None or 0 < options.lr < math.inf,
        f"--batch-size: expected 1 to {images}, the images to train on": 1 <= options.batch_size <= images,
        "--seed: expected 0 or more, below 2**32": 0 <= options.seed < 2**32,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)

    names, histories = list(dict.fromkeys(options.optimizer)), {}
    with tqdm(total=len(names) * options.epochs, unit="epoch") as bar:
        for name in names:
            bar.set_description(f"{name:<15}")
            lr = options.lr or OPTIMIZERS[name].lr
            settings = (options.style, options.epochs, lr, options.batch_size, options.seed)
            histories[name] = lr, train(name, *settings, on_epoch=bar.update)
    print_table(histories)
    plot(histories, options.out)
    print(f"wrote {options.out}: loss and test accuracy per epoch")


if __name__ == "__main__":
    main()
