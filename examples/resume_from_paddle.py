"""Continue a training of PaddlePaddle in JAX, optimizer state and all, and hand it back.

    python examples/resume_from_paddle.py                       in optax's style
    python examples/resume_from_paddle.py --style paddle        the same through Paddle's objects
    python examples/resume_from_paddle.py --checkpoint back     leave the new folder in back

`examples/data/paddlenlp/checkpoint-60` is a folder that PaddleNLP 3.0.0b4 wrote after 60 steps of AdamW under
a cosine schedule: a Unified Checkpoint of a network of two layers that learns 256 noisy points, eight at a
time. The picture compares Paddle's own next steps with ours, and with a start from the parameters alone:
there Adam's moments are gone, and the schedule begins again at its highest rate. Start reading at
`run_functional` and `run_paddle`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import paddlejax as paddle
from paddlejax.checkpoint import inspect, load_optimizer, load_parameters, save_checkpoint

DATA = Path(__file__).parent / "data" / "paddlenlp"
DONE = 60  # steps that Paddle has taken
SAVED = DATA / f"checkpoint-{DONE}"
DECAY = {"learning_rate": 0.1, "T_max": 100, "eta_min": 0.001}


def empty():
    """The network as a tree, still to be filled; the folder calls `hidden/weight` hidden.weight."""
    return {
        name: {"weight": jnp.zeros((n, m)), "bias": jnp.zeros(m)}
        for name, n, m in [("hidden", 6, 16), ("output", 16, 3)]
    }


def mean_square(params, x, y):
    hidden, output = params["hidden"], params["output"]
    x = jnp.tanh(x @ hidden["weight"] + hidden["bias"][None, :])
    return jnp.mean((x @ output["weight"] + output["bias"][None, :] - y) ** 2)


def points(seed, steps):
    """The points that Paddle saw, and those of each step after its own: numpy gives them again."""
    rng = np.random.RandomState(seed)
    x = rng.randn(256, 6)
    y = np.tanh(x @ rng.randn(6, 3)) + 0.3 * rng.randn(256, 3)
    order = rng.randint(0, len(x), (DONE + steps, 8))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), order[DONE:]


def run_functional(x, y, order, folder, resume=True):
    """Pure functions: the state is loaded into what `init` makes, and the loop goes on."""
    schedule = paddle.schedules.cosine_annealing_decay(**DECAY)
    tx = paddle.adamw(schedule, weight_decay=0.01)
    params = load_parameters(empty(), SAVED)
    state = tx.init(params)
    if resume:
        state = load_optimizer(state, SAVED)

    @jax.jit
    def step(params, state, x_of_step, y_of_step):
        grads = jax.grad(mean_square)(params, x_of_step, y_of_step)
        updates, state = tx.update(grads, state, params)
        params = paddle.apply_updates(params, updates)
        return params, state, mean_square(params, x, y)

    losses = []
    for batch in order:
        params, state, loss = step(params, state, x[batch], y[batch])
        losses.append(float(loss))
    if folder is not None:
        save_checkpoint(folder, params, state, schedule=schedule)
    return losses


def run_paddle(x, y, order, folder, resume=True):
    """Paddle's objects: parameters, scheduler and optimizer are filled in place."""
    params = paddle.parameters(empty())
    scheduler = paddle.optimizer.lr.CosineAnnealingDecay(**DECAY)
    opt = paddle.optimizer.AdamW(scheduler, parameters=params, weight_decay=0.01)
    load_parameters(params, SAVED)
    if resume:
        load_optimizer(opt, SAVED)
    loss_of = paddle.loss(mean_square)

    losses = []
    for batch in order:
        opt.minimize(loss_of(params, x[batch], y[batch]))
        opt.clear_grad()
        scheduler.step()
        losses.append(float(loss_of(params, x, y)))
    if folder is not None:
        save_checkpoint(folder, params, opt)
    return losses


STYLES = {"functional": run_functional, "paddle": run_paddle}


def plot(theirs, ours, bare, out):
    """Paddle's own losses, ours after its checkpoint, and those without the optimizer's state."""
    figure, axes = plt.subplots(figsize=(8, 5.4), layout="constrained")
    after = np.arange(DONE + 1, DONE + 1 + len(ours))
    axes.plot(
        after,
        bare,
        color="#D55E00",
        linestyle="--",
        label="paddlejax, parameters only: moments and schedule begin again",
    )
    axes.plot(after, ours, color="#0072B2", linewidth=2.5, label="paddlejax, resumed from the folder")
    steps = np.arange(1, len(theirs) + 1)
    axes.plot(steps, theirs, "o", color="#000000", markersize=4, fillstyle="none", label="PaddlePaddle 3.3.1")
    axes.axvline(DONE + 0.5, color="#999999", linewidth=0.8)
    axes.text(DONE + 0.2, max(theirs), "checkpoint ", ha="right", color="#666666")
    axes.set(yscale="log", xlabel="step", ylabel="loss of all points")
    axes.set_title("Only with the optimizer's state a training goes on where it was")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--style", choices=STYLES, default="functional", help="of the loop; the numbers are the same")
    add("--steps", type=int, default=40, help="to take after Paddle's 60; default: 40")
    add("--checkpoint", type=Path, help="the new folder; default: a temporary one")
    add("--out", type=Path, default=Path("resume_from_paddle.png"), help="default: resume_from_paddle.png")
    options = parser.parse_args(arguments)
    taken = options.checkpoint is not None and options.checkpoint.exists()
    expected = {
        "--steps: expected at least 1": options.steps >= 1,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
        f"--checkpoint: there is a {options.checkpoint} already, expected a new name": not taken,
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)

    record = json.loads((DATA / "training.json").read_text())
    data, run = points(record["seed"], options.steps), STYLES[options.style]
    report = inspect(SAVED)
    print(f"{SAVED.name} of PaddleNLP {record['paddlenlp']}, a {report.layout}, holds of hidden.weight:")
    for row in report.rows:
        if row.name == "hidden.weight":
            print(f"  {row.slot or 'the parameter':14} {row.shape!s:8} {row.dtype}, norm {row.norm:.4g}")
    with tempfile.TemporaryDirectory() as temporary:
        last = DONE + options.steps
        folder = options.checkpoint or Path(temporary) / f"checkpoint-{last}"
        ours = run(*data, folder)
        print(f"\nsteps {DONE + 1} to {last}: the loss went from {ours[0]:.4f} to {ours[-1]:.4f}")
        files = sorted(file.name for file in folder.iterdir())
        print(f"written for Paddle: {folder}, with {', '.join(files)}")
        if options.checkpoint is None:
            print("(in a temporary folder; --checkpoint keeps it)")
    both = min(options.steps, len(record["losses"]) - DONE)
    theirs = np.array(record["losses"][DONE : DONE + both])
    apart = np.abs(np.array(ours[:both]) / theirs - 1).max()
    print(
        f"Paddle's own losses of these steps differ by at most {apart:.0e} of their size, over {both} steps"
    )
    bare = run(*data, None, resume=False)
    print(f"from the parameters alone the loss rose to {max(bare):.4f}, and ended at {bare[-1]:.4f}")
    plot(record["losses"], ours, bare, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
