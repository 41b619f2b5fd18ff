"""A flax model trained by nnx.Optimizer with an optimizer of paddlejax.

    python examples/flax_nnx.py --epochs 30 --out flax_nnx.png

Two thirds through, the rate is divided by ten in the optimizer's state: nothing is compiled again.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from tqdm import tqdm
from train_digits import digits, shuffled, whole_epochs

import paddlejax as pj


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(jax.nn.relu(self.hidden(x)))


def cross_entropy(model, x, y):
    log_p = jax.nn.log_softmax(model(x))
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))


traces = []


@nnx.jit
def train_step(model, optimizer, x, y):
    traces.append(1)  # runs only while JAX traces
    loss, grads = nnx.value_and_grad(cross_entropy)(model, x, y)
    optimizer.update(model, grads)
    return loss


def train(epochs):
    """Loss of every step, test accuracy and rate of every epoch."""
    training, (x_test, y_test) = digits(0)
    model = Network(nnx.Rngs(0))
    tx = pj.by_path(
        [
            ("*/bias*", {"weight_decay": None})
        ],  # hidden/bias/value at first, since flax hands its Variables to init
        pj.momentum(0.05),
        weight_decay=1e-4,
        grad_clip=pj.clip_by_global_norm(1.0),
    )
    print(tx.describe(nnx.as_pure(nnx.state(model, nnx.Param))))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    (rule_state,) = optimizer.opt_state.rule  # one entry per distinct rule in the table
    losses, accuracies, rates = [], [], []
    for epoch in tqdm(range(epochs), unit="epoch", leave=False):
        if epoch == 2 * epochs // 3:
            rule_state.learning_rate[...] /= 10  # arrays of the state are flax Variables here
        losses += [train_step(model, optimizer, x, y) for x, y in shuffled(*training, 1, 32, seed=epoch)]
        accuracies.append(np.mean(np.argmax(model(x_test), axis=1) == y_test))
        rates.append(float(rule_state.learning_rate[...]))
    return np.array(losses), accuracies, rates


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30, help="default: 30")
    parser.add_argument("--out", type=Path, default=Path("flax_nnx.png"), help="default: flax_nnx.png")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs: expected at least 1")

    losses, accuracies, rates = train(options.epochs)
    print(
        f"test accuracy {accuracies[-1]:.4f}, rate {rates[0]:g} then {rates[-1]:g}, traced {len(traces)} time"
    )

    epochs = np.arange(1, options.epochs + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    left.plot(epochs, losses.reshape(options.epochs, -1).mean(axis=1), color="#0072B2", marker=".")
    left.set(yscale="log", title="training loss, mean of each epoch", xlabel="epoch")
    right.plot(epochs, accuracies, color="#0072B2", marker=".")
    right.set(title="test accuracy", xlabel="epoch")
    for panel in (left, right):
        panel.axvline(2 * options.epochs // 3 + 0.5, color="#D55E00", linestyle="--", label="rate / 10")
        whole_epochs(panel)
        panel.grid(color="#dddddd", linewidth=0.6)
    right.legend(frameon=False)
    figure.savefig(options.out, dpi=120)
    print(f"wrote {options.out}: loss and accuracy, the rate divided by ten on the way")


if __name__ == "__main__":
    main()
