"""Train a network that is cut into stages, each on its own device, and watch them work at the same time.

    python examples/train_pipeline.py                          four stages on simulated devices, 1F1B
    python examples/train_pipeline.py --stages 3 --schedule GPipe --queue-size 4
    python examples/train_pipeline.py --epochs 2 --wait 10 --out pipeline.png     as if a section took long
    python examples/train_pipeline.py --processes 2            the stages in two processes

The pipeline learns what the uncut network learns, to the last digits printed here. The picture shows which
section worked on which micro-batch, and when, in the last step. Start reading at `train`.
"""

import argparse
import functools
import os
import sys
import time
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):  # before JAX starts: eight devices made of one processor
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.multihost_utils import process_allgather  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from tqdm import tqdm  # noqa: E402

import paddlejax as paddle  # noqa: E402
from paddlejax.distributed.pipeline import PipelineOptimizer  # noqa: E402
from paddlejax.distributed.processes import initialize, launch  # noqa: E402

WIDTH = 256

# ------------------------------------------------------------------------------------ network and data


def layer(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"][None, :])


def logits(params, x):
    return x @ params["w"] + params["b"][None, :]


def cross_entropy(params, x, y):
    log_p = jax.nn.log_softmax(logits(params, x))
    return -jnp.mean(log_p[jnp.arange(len(y)), y])


def network(stages, seed):
    """64 pixels -> layers of 256 units -> 10 digits: the stage functions, and a tree for each."""
    widths = [64, *[WIDTH] * (stages - 1), 10]
    keys = jax.random.split(jax.random.key(seed), stages)
    params = [
        {"w": jax.random.normal(key, (n, m)) * np.float32((2 / n) ** 0.5), "b": jnp.zeros(m)}
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    return [layer] * (stages - 1) + [cross_entropy], params


def uncut(params, x, y):
    """The same network in one piece."""
    for p in params[:-1]:
        x = layer(p, x)
    return cross_entropy(params[-1], x, y)


def waiting(f, ms):
    """The stage, which also waits so long in its forward pass, and twice as long in its backward pass."""

    def nap(x, ms):
        def sleep(x):
            time.sleep(ms / 1000)
            return x

        return jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    slow = jax.custom_vjp(lambda x: nap(x, ms))
    slow.defvjp(lambda x: (nap(x, ms), None), lambda _, g: (nap(g, 2 * ms),))
    return lambda *arguments: slow(f(*arguments))


def accuracy(params, x, y):
    for p in params[:-1]:
        x = layer(p, x)
    return float(np.mean(np.argmax(logits(params[-1], x), axis=1) == y))


@functools.cache
def digits(seed):
    """1437 images to train on and 360 to test on."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return (x, y), (x_test, y_test)


def shuffled(x, y, epochs, size, seed):
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            batch = order[start : start + size]
            yield x[batch], y[batch]


# ----------------------------------------------------------------------------------- the training loops


def optimizer():
    """The clip takes the norm of all stages together."""
    return paddle.chain(paddle.clip_by_global_norm(1.0), paddle.lamb(0.004))


def train(pipeline, params, batches):
    """With a pipeline: the list of stages' trees is one tree to the optimizer."""
    params, state = pipeline.init(params)
    for x, y in batches:
        params, state, loss = pipeline.step(params, state, pipeline.split(x, y))
        yield params, loss


def places(stages):
    """A device for each section: the stages of one process follow one another."""
    processes = jax.process_count()
    owned = [[d for d in jax.devices() if d.process_index == i] for i in range(processes)]
    of_stage = [owned[s * processes // stages].pop(0) for s in range(stages)]
    return of_stage + of_stage[-2::-1]


def train_uncut(params, batches):
    tx = optimizer()
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(uncut)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    for x, y in batches:
        params, state, loss = step(params, state, x, y)
        yield params, loss


def run(training, steps, bar):
    """(parameters, losses, seconds of the median step)."""
    losses, seconds, params = [], [], None
    for _ in range(steps):
        start = time.perf_counter()
        params, loss = next(training)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
        bar.update()
    return params, np.array(losses), float(np.median(seconds))


# ------------------------------------------------------------------------------------------- the results


def timeline(pipeline, stages, micro_batches):
    """Start and end in milliseconds of every task of the last step, of all processes: (2k-1, M, 2)."""
    mine = np.zeros((2 * stages - 1, micro_batches, 2), np.float32)
    for span in pipeline.timeline:
        mine[span.section, span.micro_batch] = 1000 * span.start, 1000 * span.end
    return mine if jax.process_count() == 1 else process_allgather(mine).sum(axis=0)


def plot(tasks, losses, out):
    """The last step: a row for each stage, a bar for each task; and the two losses."""
    stages = (len(tasks) + 1) // 2
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 7.5), layout="constrained", height_ratios=[3, 2])
    colours = {"forward": "#56B4E9", "backward": "#D55E00", "forward and backward": "#CC79A7"}
    for section, rows in enumerate(tasks):
        stage = min(section, 2 * stages - 2 - section)
        kind = ["forward and backward", "forward", "backward"][
            (section < stages - 1) - (section > stages - 1)
        ]
        for micro_batch, (start, end) in enumerate(rows):
            label = None if micro_batch or section not in (0, stages - 1, 2 * stages - 2) else kind
            bar = {"color": colours[kind], "edgecolor": "white", "linewidth": 0.8, "label": label}
            top.barh(stage, end - start, left=start, height=0.8, **bar)
            middle = {"ha": "center", "va": "center", "fontsize": 8, "clip_on": True}
            top.text((start + end) / 2, stage, micro_batch, **middle)
    top.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    top.invert_yaxis()
    top.set_xlim(left=0)
    top.set(xlabel="milliseconds", title="the last step: which stage worked on which micro-batch")
    top.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=3, frameon=False)
    for (name, values), style in zip(losses.items(), ["-", "--"], strict=True):
        bottom.plot(np.arange(1, len(values) + 1), values, style, label=name)
    bottom.set(yscale="log", xlabel="step", title="training loss")
    bottom.grid(color="#dddddd", linewidth=0.6)
    bottom.legend(frameon=False)
    for panel in (top, bottom):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--stages", type=int, default=4, help="1 to 8; default: 4")
    add("--micro-batches", type=int, default=8, help="of each batch; default: 8")
    add("--schedule", choices=["1F1B", "GPipe"], default="1F1B", help="default: 1F1B")
    add("--queue-size", type=int, default=30, help="micro-batches in flight, at most; default: 30")
    add("--wait", type=float, default=0, help="milliseconds that a section waits besides; default: 0")
    add("--processes", type=int, default=1, help="that share the stages; default: 1")
    add("--epochs", type=int, default=10, help="default: 10")
    add("--batch-size", type=int, default=128, help="default: 128")
    add("--seed", type=int, default=0, help="of split, network and batches; default: 0")
    add("--out", type=Path, default=Path("train_pipeline.png"), help="default: train_pipeline.png")
    options = parser.parse_args(arguments)
    images = len(digits(0)[0][0])
    expected = {
        "--stages: expected 1 to 8": 1 <= options.stages <= 8,
        "--processes: expected 1 to --stages": 1 <= options.processes <= options.stages,
        "--wait: expected a number of 0 or more": 0 <= options.wait < float("inf"),
        "--epochs: expected at least 1": options.epochs >= 1,
        "--queue-size: expected at least 1": options.queue_size >= 1,
        f"--batch-size: expected 1 to {images}, the images to train on": 1 <= options.batch_size <= images,
        "--micro-batches: expected at least 1, and --batch-size a multiple of them": options.micro_batches
        >= 1
        and options.batch_size % options.micro_batches == 0,
        "--seed: expected 0 or more, below 2**32": 0 <= options.seed < 2**32,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)

    if options.processes > 1 and not initialize(shutdown_timeout=60):
        again = sys.argv[1:] if arguments is None else arguments
        sys.exit(launch(__file__, options.processes, again, 8))

    functions, params = network(options.stages, options.seed)
    if options.wait:
        functions = [waiting(f, options.wait) for f in functions]
    pipeline = PipelineOptimizer(
        optimizer(),
        functions,
        places(options.stages),
        num_microbatches=options.micro_batches,
        schedule=options.schedule,
        queue_size=options.queue_size,
    )
    training, testing = digits(options.seed)
    steps = options.epochs * (len(training[0]) // options.batch_size)
    settings = (*training, options.epochs, options.batch_size, options.seed)
    results, first = {}, jax.process_index() == 0
    with tqdm(total=2 * steps, unit="step", disable=not first) as bar:
        for name, loop in {
            "pipeline": train(pipeline, params, shuffled(*settings)),
            "uncut": train_uncut(params, shuffled(*settings)),
        }.items():
            bar.set_description(f"{name:<8}")
            results[name] = run(loop, steps, bar)
    trained = {name: pipeline.gather(params) for name, (params, _, _) in results.items()}
    tasks = timeline(pipeline, options.stages, options.micro_batches)
    if not first:
        return

    print(f"\n{'network':<10} {'loss':>10} {'test accuracy':>14} {'ms per step':>12}")
    for name, (_, losses, seconds) in results.items():
        reached = accuracy(trained[name], *testing)
        print(f"{name:<10} {losses[-1]:>10.6f} {reached:>14.4f} {1000 * seconds:>12.2f}")
    pairs = zip(*map(jax.tree.leaves, trained.values()), strict=True)
    print(f"\nlargest difference between their parameters: {max(np.abs(a - b).max() for a, b in pairs):.1e}")
    print(f"modelled share of time in which a device waits: {pipeline.schedule.bubble:.2f}")
    plot(tasks, {name: losses for name, (_, losses, _) in results.items()}, options.out)
    print(f"wrote {options.out}: what each stage did in the last step, and the losses")


if __name__ == "__main__":
    main()
