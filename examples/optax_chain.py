"""optax's parts and paddlejax's parts in each other's chains, on scikit-learn's digits.

    python examples/optax_chain.py --epochs 20 --out optax_chain.png

The first three recipes are one optimizer put together in three ways: clip, decay the weights but not the
biases, LAMB under a warmed-up cosine. Their losses agree. The fourth gives each layer a rule of its own.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm
from train_digits import accuracy, cross_entropy, digits, initial, shuffled, whole_epochs

import paddlejax as pj


def weights(params):
    """True for weights, False for biases: what optax calls a mask."""
    return {layer: {"w": True, "b": False} for layer in params}


def recipes(steps):
    cosine = optax.warmup_cosine_decay_schedule(0.0, 0.01, steps // 10, steps)
    no_decay_inside = {"lamb_weight_decay": 0.0, "always_adapt": True}  # the chain decays; LAMB adapts
    return {
        "optax.chain around a rule of paddlejax": optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(optax.add_decayed_weights(1e-4), weights),
            pj.lamb(cosine, **no_decay_inside),
        ),
        "paddlejax.chain around optax's parts": pj.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(pj.l2_decay(1e-4), weights),
            pj.lamb(cosine, **no_decay_inside),
        ),
        "paddlejax alone": pj.by_path(
            [("*/b", {"weight_decay": None})],
            pj.lamb(cosine, **no_decay_inside),
            weight_decay=1e-4,
            grad_clip=pj.clip_by_global_norm(1.0),
        ),
        "optax.multi_transform: LARS below, FTRL above": optax.multi_transform(
            {"hidden": pj.lars_momentum(0.1, 0.9, lars_coeff=0.01), "output": pj.ftrl(0.1)},
            {"hidden": "hidden", "output": "output"},
        ),
    }


def train(tx, epochs, name=""):
    training, testing = digits(0)
    params = initial(0)
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(cross_entropy)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    steps = epochs * (len(training[0]) // 32)
    for x, y in tqdm(shuffled(*training, epochs, 32, seed=0), name, steps, leave=False, unit="step"):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return np.array(losses), float(accuracy(params, *testing))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--out", type=Path, default=Path("optax_chain.png"), help="default: optax_chain.png")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs: expected at least 1")

    steps = options.epochs * (len(digits(0)[0][0]) // 32)
    figure, panel = plt.subplots(figsize=(8, 4.6), layout="constrained")
    lines = zip(["#0072B2", "#E69F00", "#000000", "#009E73"], [5, 3, 1, 1], ["-", "-", ":", "-"], strict=True)
    first = None
    for (name, tx), (colour, width, line) in zip(recipes(steps).items(), lines, strict=True):
        losses, reached = train(tx, options.epochs, name)
        first = losses if first is None else first
        print(
            f"{name:<46} test accuracy {reached:.4f}, largest difference {np.max(np.abs(losses - first)):.1e}"
        )
        means = losses.reshape(options.epochs, -1).mean(axis=1)
        panel.plot(np.arange(1, options.epochs + 1), means, line, color=colour, linewidth=width, label=name)
    panel.set(yscale="log", title="training loss, mean of each epoch", xlabel="epoch")
    whole_epochs(panel)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(frameon=False)
    figure.savefig(options.out, dpi=120)
    print(f"wrote {options.out}: training loss of every recipe")


if __name__ == "__main__":
    main()
