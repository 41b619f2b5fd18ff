"""A character model on the source text of installed packages: Muon, optax's Muon and AdamW, at equal steps.

    python examples/train_characters.py
    python examples/train_characters.py --sweep --out rates.png

A small transformer learns to continue Python text, the same batches for all. Muon's step is scaled to AdamW's
(muon_version=3, factor 0.2), so one rate and one decay serve both. With --sweep every optimizer trains at
eight rates at once, by `vmap`, and the plot shows the loss over the rate in place of that over the steps.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import optax.contrib
from tqdm import tqdm

import paddlejax as pj

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 2, 48, 16
RATES = np.logspace(-3.5, -1, 8)
DECAY = 0.01


def text():
    """The source of a few packages that are installed in any case, as numbers 0 to 95."""
    files = [f for package in (np, jax, optax) for f in sorted(Path(package.__file__).parent.glob("*.py"))]
    source = "\n".join(f.read_text(errors="ignore") for f in files)[:1_000_000]
    codes = np.frombuffer(source.encode("ascii", "replace"), np.uint8).astype(np.int32)
    return np.where(codes == ord("\n"), 95, np.clip(codes - 32, 0, 94))


def initial(seed=0):
    """The parameters; `qkv` holds the three projections of all heads side by side."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    def layer():
        return {
            "qkv": normal(WIDTH, 3 * WIDTH),
            "out": normal(WIDTH, WIDTH),
            "up": normal(WIDTH, 4 * WIDTH),
            "down": normal(4 * WIDTH, WIDTH),
            "scale": jnp.ones((2, WIDTH)),
        }

    shared = {
        "embed": normal(96, WIDTH),
        "place_embed": 0.1 * normal(CONTEXT, WIDTH),
        "head": normal(WIDTH, 96),
    }
    return shared | {"layers": [layer() for _ in range(LAYERS)]}


def normalized(x, scale):
    """Root mean square 1, times scale."""
    size = jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x / size * scale[None, None]


def attended(x, layer):
    """Causal attention of HEADS heads; columns are [q, k, v] per head."""
    split = (x @ layer["qkv"]).reshape(*x.shape[:2], HEADS, 3, -1)
    q, k, v = (split[:, :, :, i] for i in range(3))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.float32(np.sqrt(q.shape[-1]))
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape) @ layer["out"]


def loss_of(params, batch):
    """Mean cross-entropy of every next character of (batch, CONTEXT + 1)."""
    x = params["embed"][batch[:, :-1]] + params["place_embed"][None]
    for layer in params["layers"]:
        x = x + attended(normalized(x, layer["scale"][0]), layer)
        x = x + jax.nn.gelu(normalized(x, layer["scale"][1]) @ layer["up"]) @ layer["down"]
    logits = jax.nn.log_softmax(x @ params["head"])
    return -jnp.mean(jnp.take_along_axis(logits, batch[:, 1:, None], -1))


def pj_muon(rate):
    """Heads of the fused projection one by one; embeddings, head and scales by AdamW."""
    heads = pj.MuonParamInfo(split_concat_func=pj.splits.qkv_head(HEADS, 1, WIDTH // HEADS))
    excluded = ["embed", "head", "scale"]
    infos = {"layers/*/qkv": heads}
    return pj.muon(
        rate, weight_decay=DECAY, muon_version=3, muon_exclude_patterns=excluded, muon_param_info_map=infos
    )


def optax_muon(rate):
    """The same leaves by optax's Muon, which knows no heads, with the same rate, decay and scale."""
    matrix = optax.contrib.MuonDimensionNumbers(0, 1)

    def of_matrices(params):
        layer = dict.fromkeys(("qkv", "out", "up", "down"), matrix) | {"scale": None}
        return dict.fromkeys(("embed", "place_embed", "head")) | {"layers": [layer] * len(params["layers"])}

    return optax.contrib.muon(
        rate, weight_decay=DECAY, consistent_rms=0.2, muon_weight_dimension_numbers=of_matrices
    )


OPTIMIZERS = {
    "Muon": pj_muon,
    "optax Muon": optax_muon,
    "AdamW": lambda rate: pj.adamw(rate, beta2=0.95, weight_decay=DECAY),
}


def train(make, batches, rates):
    """The loss of every step at each rate (steps, rates), all rates in one program."""

    def run(rate):
        tx = make(rate)

        def step(carry, batch):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (pj.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (start, tx.init(start)), batches)[1]

    rates, start = jnp.asarray(rates, jnp.float32), initial()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes dtypes
        many = jax.jit(jax.vmap(run) if len(rates) > 1 else lambda r: run(r[0])[None])
        return np.asarray(many(rates)).T


def plot(results, rates, out):
    """Loss over steps at one rate, or the last loss over the rates."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, losses in results.items():
        if len(rates) > 1:
            axes.semilogx(rates, final(losses), marker="o", label=name)
        else:
            width = max(1, len(losses) // 20)
            smooth = np.convolve(losses[:, 0], np.ones(width) / width, "valid")
            axes.plot(np.arange(len(smooth)) + width, smooth, label=name)
    axes.set_xlabel("learning rate" if len(rates) > 1 else "step")
    axes.set_ylabel("loss, nats per character")
    axes.set_ylim(top=float(np.log(96)))  # that of a guess
    axes.legend()
    figure.savefig(out, dpi=150)


def final(losses):
    """The mean loss of the last tenth of the steps, at each rate."""
    return losses[-max(1, len(losses) // 10) :].mean(0)


def main():
    """Train, print a table, draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="default: 200")
    parser.add_argument("--rate", type=float, default=0.01, help="default: 0.01")
    parser.add_argument("--sweep", action="store_true", help="eight rates from 3e-4 to 0.1")
    parser.add_argument(
        "--out", type=Path, default=Path("train_characters.png"), help="default: train_characters.png"
    )
    options = parser.parse_args()
    source, rng = text(), np.random.default_rng(0)
    starts = rng.integers(len(source) - CONTEXT - 1, size=(options.steps, BATCH))
    batches = jnp.asarray(source[starts[..., None] + np.arange(CONTEXT + 1)])
    rates = RATES if options.sweep else [options.rate]
    results = {}
    for name, make in (bar := tqdm(OPTIMIZERS.items(), unit="optimizer", leave=False)):
        bar.set_description(name)
        start = time.perf_counter()
        results[name] = train(make, batches, rates)
        best = np.nanargmin(final(results[name]))
        reached = f"loss {final(results[name])[best]:.3f} at rate {rates[best]:.2g}"
        tqdm.write(f"{name:12} {reached}, {time.perf_counter() - start:.0f} s")
    plot(results, rates, options.out)
    print(f"wrote {options.out}: the loss of each optimizer")


if __name__ == "__main__":
    main()
