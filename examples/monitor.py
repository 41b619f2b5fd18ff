"""Watch a training from inside: norms, clip factor, trust ratios, rate and skipped steps, of every step.

    python examples/monitor.py
    python examples/monitor.py --epochs 30 --rate 0.02 --clip 0.5 --out mine.png

LAMB trains a small network on scikit-learn's digits, with a clip by global norm, and warms up and decays its
rate. Twice something goes wrong: for a while the pixels are not divided by 16; later one batch holds a NaN.

What to see: bright images make long gradients, of which the clip lets a small part through; LAMB's step is as
long as before, for it has the length of the rate times the norm of each tensor. The step with the NaN is left
out, dotted, and nothing moves.
"""

import argparse
import math
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm
from train_digits import cross_entropy, digits, initial, shuffled

import paddlejax as pj

BATCH = 32


def without_decay(path):
    return path.endswith("/b")


def spoiled(batches, steps):
    """The batches; a few from a third of the way on 16 times as bright, and one further on with a NaN."""
    large, bad = range(steps // 3, steps // 3 + max(1, steps // 50)), 2 * steps // 3
    for i, (x, y) in enumerate(batches):
        x = x * np.float32(16) if i in large else x
        yield np.where(i == bad, np.float32(math.nan), x), y


def train(epochs, rate, clip):
    """The loss and the Info of every step."""
    training, _ = digits(0)
    steps = epochs * (len(training[0]) // BATCH)
    schedule = pj.schedules.linear_warmup(
        pj.schedules.polynomial_decay(rate, decay_steps=steps, end_lr=rate / 10), steps // 10, 0.0, rate
    )
    rule = pj.lamb(schedule, always_adapt=True, exclude_from_weight_decay_fn=without_decay)
    tx = pj.skip_nonfinite(pj.with_info(rule, grad_clip=pj.clip_by_global_norm(clip)))
    params = initial(0)
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(cross_entropy)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return pj.apply_updates(params, updates), state, (loss, pj.get_info(state))

    history = []
    for x, y in tqdm(spoiled(shuffled(*training, epochs, BATCH, 0), steps), total=steps, unit="step"):
        params, state, seen = step(params, state, x, y)
        history.append(seen)
    return jax.tree.map(lambda *values: np.stack(values), *history)


def plot(losses, info, clip, out):
    steps = np.arange(1, len(losses) + 1)
    skipped = np.flatnonzero(np.diff(info.skipped, prepend=0)) + 1
    ratios = {jax.tree_util.keystr(k, simple=True, separator="/"): r for k, r in leaves(info.trust_ratios)}
    figure, panels = plt.subplots(2, 3, figsize=(12, 6), sharex=True, layout="constrained")
    lines = [
        ("loss", {"loss": losses}),
        ("gradient norm", {"before the clip": info.gradient_norm}),
        ("clip factor", {"‖clipped‖ / ‖gradient‖": info.clip_factor}),
        ("trust ratios", ratios),
        ("‖update‖ / ‖parameters‖", {"update": info.update_norm / info.parameter_norm}),
        ("learning rate", {"rate": info.learning_rate}),
    ]
    colours = ["#0072B2", "#D55E00", "#009E73", "#E69F00"]
    for panel, (title, curves) in zip(panels.flat, lines, strict=True):
        for colour, (label, values) in zip(colours, curves.items(), strict=False):
            panel.plot(steps, values, color=colour, label=label, linewidth=0.9)
        for at in skipped:
            panel.axvline(at, color="#999999", linestyle=":", label="skipped" if at == skipped[0] else None)
        panel.set(title=title, yscale="linear" if title == "learning rate" else "log")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 1].axhline(clip, color="black", linewidth=0.8, linestyle="--", label=f"clip_norm {clip:g}")
    for panel in panels.flat[:2]:
        panel.set_ylim(bottom=1e-4)
    for panel in panels.flat[1:3]:
        panel.legend(frameon=False, fontsize="small", loc="lower left")
    panels[1, 0].legend(frameon=False, fontsize="small", loc="center", ncols=2, bbox_to_anchor=(0.6, 0.48))
    for panel in panels[1]:
        panel.set_xlabel("step")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def leaves(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--rate", type=float, default=0.01, help="the highest; default: 0.01")
    parser.add_argument("--clip", type=float, default=1.0, help="the clip's norm; default: 1")
    parser.add_argument("--out", type=Path, default=Path("monitor.png"), help="default: monitor.png")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs: expected at least 1")
    for name in ("rate", "clip"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name}: expected a number above 0")
    losses, info = train(options.epochs, options.rate, options.clip)
    print(f"\n{'':<16} {'smallest':>10} {'median':>10} {'largest':>10}")
    for name in ("gradient_norm", "clip_factor", "update_norm", "parameter_norm", "learning_rate"):
        values = getattr(info, name)
        print(f"{name:<16} {values.min():>10.3g} {np.median(values):>10.3g} {values.max():>10.3g}")
    print(
        f"\n{info.skipped[-1]} of {len(losses)} steps skipped; clipped: {np.mean(info.clip_factor < 1):.0%}"
    )
    plot(losses, info, options.clip, options.out)
    print(f"wrote {options.out}: what every step did")


if __name__ == "__main__":
    main()
