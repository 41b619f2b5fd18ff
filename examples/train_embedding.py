"""Tell from a few lines of Python which library they come from, with a large table of word embeddings.

    python examples/train_embedding.py                      lazy Adam against dense Adam
    python examples/train_embedding.py --steps 1000 --batch-size 256 --out big.png

The text is the source code of the packages that are installed anyway. A snippet is the mean of the embeddings
of its words, pairs and triples of words, as in fastText (Joulin et al. 2017, arXiv:1607.01759), and a linear
layer over it names the library. A batch looks up a few thousand rows of the table. Dense Adam rewrites all of
it at every step; lazy Adam touches the rows of the batch. Start reading at `train`.
"""

import argparse
import importlib.util
import random
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import paddlejax as paddle
from paddlejax import sparse

LIBRARIES = ["jax", "numpy", "scipy", "sklearn", "matplotlib", "asyncio"]
LINES, LENGTH = 12, 96  # lines of a snippet, n-grams kept of it
WORD = re.compile(r"[A-Za-z_]{2,}")


class Data(NamedTuple):
    ids: np.ndarray  # (snippets, LENGTH) int32, -1 where a snippet is shorter
    labels: np.ndarray  # (snippets,) int32, the library
    rows: int  # how many different words, pairs and triples there are


# ------------------------------------------------------------------------------------ the text


def snippets(library: str, limit: int, seed: int) -> list[str]:
    """Some consecutive lines from all over a library's source code, without its name."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{library} is not installed: pip install 'paddlejax[examples]'")
    files = sorted(Path(spec.origin).parent.rglob("*.py"))
    random.Random(seed).shuffle(files)
    found: list[str] = []
    for file in files:
        lines = file.read_text(errors="ignore").splitlines()
        parts = ["\n".join(lines[i : i + LINES]) for i in range(0, len(lines) - LINES, LINES)]
        found += [re.sub(library, "", part, flags=re.I) for part in parts]
        if len(found) >= limit:
            break
    return found[:limit]


def grams(text: str) -> list[str]:
    """Words, pairs and triples of words."""
    words = WORD.findall(text)
    return [" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]


def read(per_library: int, seed: int) -> Data:
    """Every snippet as the row numbers of its n-grams, numbered as they are met."""
    vocabulary: dict[str, int] = {}
    ids, labels = [], []
    chooser = random.Random(seed)
    for label, library in enumerate(tqdm(LIBRARIES, desc="reading source code", leave=False)):
        for text in snippets(library, per_library, seed):
            found = [vocabulary.setdefault(gram, len(vocabulary)) for gram in grams(text)]
            chooser.shuffle(found)
            if len(found) >= 10:
                ids.append(found[:LENGTH] + [-1] * (LENGTH - len(found)))
                labels.append(label)
    order = np.random.default_rng(seed).permutation(len(ids))
    return Data(np.array(ids, np.int32)[order], np.array(labels, np.int32)[order], len(vocabulary))


# ------------------------------------------------------------------------------------ the model


def initial(rows: int, width: int, seed: int) -> Any:
    table = jax.random.normal(jax.random.key(seed), (rows, width)) * 0.1
    return {"table": table, "out": {"w": jnp.zeros((width, len(LIBRARIES))), "b": jnp.zeros(len(LIBRARIES))}}


def logits(params: Any, ids: jax.Array) -> jax.Array:
    words = sparse.embedding(params["table"], ids)  # zeros where ids are -1
    mean = jnp.sum(words, 1) / jnp.sum(ids >= 0, 1).astype(jnp.float32)[:, None]
    return mean @ params["out"]["w"] + params["out"]["b"][None]


def loss_fn(params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(params, ids)), labels[:, None], axis=1)
    return -jnp.mean(chosen)


class Run(NamedTuple):
    losses: list[float]
    milliseconds: float  # per step, median
    accuracy: float


def train(data: Data, lazy: bool, args: argparse.Namespace) -> Run:
    """One run; the two differ in where the gradient comes from and in `lazy_mode`."""
    held_out = len(data.ids) // 10
    test, rest = (data.ids[:held_out], data.labels[:held_out]), slice(held_out, None)
    ids, labels = data.ids[rest], data.labels[rest]

    tx = paddle.adam(args.lr, lazy_mode=lazy)
    value_and_grad = sparse.value_and_grad(loss_fn, "table") if lazy else jax.value_and_grad(loss_fn)

    def step(params, state, ids, labels):
        loss, grads = value_and_grad(params, ids, labels)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = initial(data.rows, args.width, args.seed)
    state = tx.init(params)
    order = np.random.default_rng(args.seed).integers(0, len(ids), (args.steps, args.batch_size))
    losses, seconds = [], []
    for chosen in tqdm(order, desc="lazy Adam" if lazy else "dense Adam", leave=False):
        start = time.perf_counter()
        params, state, loss = compiled(params, state, ids[chosen], labels[chosen])
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
    right = np.argmax(jax.jit(logits)(params, test[0]), 1) == test[1]
    return Run(losses, 1e3 * statistics.median(seconds[1:]), float(np.mean(right)))


# ------------------------------------------------------------------------------------ the picture


def plot(runs: dict[str, Run], rows: int, out: Path) -> None:
    _, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(2, 1))
    for name, run in runs.items():
        window = max(len(run.losses) // 40, 1)
        smooth = np.convolve(run.losses, np.ones(window) / window, "valid")
        curves.plot(np.arange(len(smooth)) + window, smooth, label=f"{name}, accuracy {run.accuracy:.3f}")
    curves.set(xlabel="step", ylabel="loss (running mean)", title="Which library is this code from?")
    curves.legend()
    shown = bars.bar(list(runs), [run.milliseconds for run in runs.values()], color=["C0", "C1"])
    bars.bar_label(shown, fmt="%.1f ms")
    bars.set(ylabel="milliseconds per step (median)", title=f"a table of {rows:,} rows")
    plt.tight_layout()
    plt.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250, help="default: 250")
    parser.add_argument("--batch-size", type=int, default=64, help="default: 64")
    parser.add_argument("--width", type=int, default=32, help="length of an embedding; default: 32")
    parser.add_argument(
        "--snippets", type=int, default=2500, help="at most so many per library; default: 2500"
    )
    parser.add_argument("--lr", type=float, default=0.01, help="default: 0.01")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--out", type=Path, default=Path("train_embedding.png"), help="default: train_embedding.png"
    )
    args = parser.parse_args()

    data = read(args.snippets, args.seed)
    per_batch = args.batch_size * LENGTH
    print(
        f"{len(data.ids):,} snippets of {len(LIBRARIES)} libraries; a table of {data.rows:,} x {args.width},"
    )
    print(f"of which a batch of {args.batch_size} looks up at most {per_batch:,} rows")
    runs = {name: train(data, name == "lazy Adam", args) for name in ("dense Adam", "lazy Adam")}
    for name, run in runs.items():
        print(f"{name:10}  {run.milliseconds:7.2f} ms per step   held-out accuracy {run.accuracy:.3f}")
    print(f"lazy is {runs['dense Adam'].milliseconds / runs['lazy Adam'].milliseconds:.1f} times as fast")
    plot(runs, data.rows, args.out)
    print(f"wrote {args.out}: loss and milliseconds per step")


if __name__ == "__main__":
    main()
