"""An equinox model: only its floating arrays are trained; functions, flags and counts stay what they are.

    python examples/equinox_model.py --epochs 20 --out equinox_model.png

The layers are bfloat16, their masters float32: the same network in bfloat16 without masters falls behind.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm
from train_digits import digits, shuffled, whole_epochs

import paddlejax as pj


class Classifier(eqx.Module):
    layers: list[eqx.nn.Linear]
    classes: jax.Array  # integers: no gradient
    activation: Callable  # a leaf that is not an array
    name: str

    def __init__(self, key):
        keys = jax.random.split(key)
        self.layers = [eqx.nn.Linear(64, 64, key=keys[0]), eqx.nn.Linear(64, 10, key=keys[1])]
        self.classes, self.activation, self.name = jnp.arange(10), jax.nn.relu, "digits"

    def __call__(self, x):
        return self.layers[1](self.activation(self.layers[0](x)))


def cross_entropy(model, x, y):
    log_p = jax.nn.log_softmax(jax.vmap(model)(x.astype(model.layers[0].weight.dtype)).astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))


def train(tx, dtype, epochs, name=""):
    (x, y), (x_test, y_test) = digits(0)
    arrays, rest = eqx.partition(Classifier(jax.random.key(0)), eqx.is_inexact_array)
    model = eqx.combine(jax.tree.map(lambda a: a.astype(dtype), arrays), rest)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        loss, grads = eqx.filter_value_and_grad(cross_entropy)(model, x, y)  # None where nothing is trained
        trained, rest = eqx.partition(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, trained)
        # Not eqx.apply_updates: it would return float32 where the parameter is bfloat16.
        return eqx.combine(pj.apply_updates(trained, updates), rest), state, loss

    losses = []
    steps = epochs * (len(x) // 32)
    for batch in tqdm(shuffled(x, y, epochs, 32, seed=0), name, steps, leave=False, unit="step"):
        model, state, loss = step(model, state, *batch)
        losses.append(float(loss))
    scores = jax.vmap(model)(jnp.asarray(x_test, dtype))
    return np.array(losses), np.mean(np.asarray(model.classes[jnp.argmax(scores, axis=1)]) == y_test)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument(
        "--out", type=Path, default=Path("equinox_model.png"), help="default: equinox_model.png"
    )
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs: expected at least 1")

    rule = pj.adam(1e-3)
    runs = {
        "float32": (rule, jnp.float32, "#0072B2"),
        "bfloat16 with float32 masters": (pj.with_master_weights(rule), jnp.bfloat16, "#009E73"),
        "bfloat16": (rule, jnp.bfloat16, "#D55E00"),
    }
    figure, panel = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name, (tx, dtype, colour) in runs.items():
        losses, reached = train(tx, dtype, options.epochs, name)
        print(f"{name:<30} last loss {losses[-20:].mean():.4f}, test accuracy {reached:.4f}")
        means = losses.reshape(options.epochs, -1).mean(axis=1)
        panel.plot(np.arange(1, options.epochs + 1), means, color=colour, marker=".", label=name)
    panel.set(yscale="log", title="training loss, mean of each epoch", xlabel="epoch")
    whole_epochs(panel)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(frameon=False)
    figure.savefig(options.out, dpi=120)
    print(f"wrote {options.out}: training loss in each precision")


if __name__ == "__main__":
    main()
