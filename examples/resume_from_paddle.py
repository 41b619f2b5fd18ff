"""Continue a training of PaddlePaddle in JAX, optimizer state and all, and hand it back.

    python examples/resume_from_paddle.py                       in optax's style
    python examples/resume_from_paddle.py --style paddle        the same through Paddle's objects
    python examples/resume_from_paddle.py --checkpoint back     leave the new files in the folder back

`examples/data/paddle_adam` holds what Paddle 3.3.1 saved after ten steps of Adam under a StepDecay: a network
of two linear layers that learns eight random points by heart. The picture compares its own next ten steps
with ours, and with a start from the parameters alone. Start reading at `run_functional` and `run_paddle`.
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
from paddlejax.checkpoint import load, load_optimizer, load_parameters, save_optimizer, save_parameters

FOLDER = Path(__file__).parent / "data" / "paddle_adam"
MODEL, STATE = FOLDER / "model_10.pdparams", FOLDER / "opt_10.pdopt"
DONE = 10  # steps that Paddle has taken
DECAY = {"learning_rate": 0.05, "step_size": 4, "gamma": 0.5}

# Paddle's name of each tensor, and where it is in our tree
NAMES = {
    "linear_0.w_0": "hidden/kernel",
    "linear_0.b_0": "hidden/bias",
    "linear_1.w_0": "output/kernel",
    "linear_1.b_0": "output/bias",
}


def empty():
    """The network as a tree, still to be filled."""
    return {
        name: {"kernel": jnp.zeros((n, m)), "bias": jnp.zeros(m)}
        for name, n, m in [("hidden", 6, 5), ("output", 5, 3)]
    }


def mean_square(params, x, y):
    hidden, output = params["hidden"], params["output"]
    x = x @ hidden["kernel"] + hidden["bias"][None, :]
    return jnp.mean((x @ output["kernel"] + output["bias"][None, :] - y) ** 2)


def points(seed):
    """The eight points that Paddle saw: numpy's generator gives them again."""
    rng = np.random.RandomState(seed)
    return tuple(jnp.asarray(rng.randn(8, size), jnp.float32) for size in (6, 3))


def run_functional(data, steps, folder, resume=True):
    """Pure functions: the state is loaded into what `init` makes, and the loop goes on."""
    schedule = paddle.schedules.step_decay(**DECAY)
    tx = paddle.adam(schedule)
    params = load_parameters(empty(), MODEL, NAMES)
    state = tx.init(params)
    if resume:
        state = load_optimizer(state, STATE, NAMES)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(mean_square)(params, *data)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    if folder is not None:
        save_parameters(params, folder / f"model_{DONE + steps}.pdparams", NAMES)
        save_optimizer(state, folder / f"opt_{DONE + steps}.pdopt", NAMES, schedule=schedule)
    return losses


def run_paddle(data, steps, folder, resume=True):
    """Paddle's objects: parameters, scheduler and optimizer are filled in place."""
    params = paddle.parameters(empty())
    scheduler = paddle.optimizer.lr.StepDecay(**DECAY)
    opt = paddle.optimizer.Adam(scheduler, parameters=params)
    load_parameters(params, MODEL, NAMES)
    if resume:
        load_optimizer(opt, STATE, NAMES)
    loss_of = paddle.loss(mean_square)

    losses = []
    for _ in range(steps):
        loss = loss_of(params, *data)
        opt.minimize(loss)
        opt.clear_grad()
        scheduler.step()
        losses.append(float(loss))
    if folder is not None:
        save_parameters(params, folder / f"model_{DONE + steps}.pdparams", NAMES)
        save_optimizer(opt, folder / f"opt_{DONE + steps}.pdopt", NAMES)
    return losses


STYLES = {"functional": run_functional, "paddle": run_paddle}


def proposed():
    """What loading says when names differ: a map to check and to paste."""
    try:
        load_optimizer(paddle.adam(0.1).init(empty()), STATE)
    except ValueError as e:
        return str(e)[str(e).index("names={") :]
    raise AssertionError("the names agree")


def plot(theirs, ours, bare, out):
    """Paddle's own losses, ours from step 11 on, and those without the optimizer's state."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    after = np.arange(DONE + 1, DONE + 1 + len(ours))
    axes.plot(
        np.arange(1, len(theirs) + 1), theirs, "o", color="#000000", fillstyle="none", label="Paddle 3.3.1"
    )
    axes.plot(after, ours, color="#0072B2", marker=".", markersize=4, label="paddlejax, resumed")
    axes.plot(
        after,
        bare,
        color="#D55E00",
        linestyle="--",
        label="paddlejax, parameters only: Adam and its schedule begin again",
    )
    axes.axvline(DONE + 0.5, color="#999999", linewidth=0.8)
    axes.set(yscale="log", xlabel="step", title="training loss across a checkpoint after step 10")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments=None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--style", choices=STYLES, default="functional", help="of the loop; the numbers are the same")
    add("--steps", type=int, default=20, help="to take after Paddle's ten; default: 20")
    add("--checkpoint", type=Path, help="a folder for the new files; default: a temporary one")
    add("--out", type=Path, default=Path("resume_from_paddle.png"), help="default: resume_from_paddle.png")
    options = parser.parse_args(arguments)
    expected = {
        "--steps: expected at least 1": options.steps >= 1,
        "--out: expected a .png file": options.out.suffix == ".png",
        f"--out: there is no folder {options.out.parent}": options.out.parent.is_dir(),
    }
    for problem, fine in expected.items():
        if not fine:
            parser.error(problem)

    record = json.loads((FOLDER / "training.json").read_text())
    data, run = points(record["seed"]), STYLES[options.style]
    print(
        f"{STATE.name} of Paddle {record['paddle']} has names of its own; loading it without a map proposes\n"
        f"{proposed()}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.checkpoint or Path(temporary)
        ours = run(data, options.steps, folder)
        last = DONE + options.steps
        print(f"\nsteps {DONE + 1} to {last}: the loss went from {ours[0]:.4f} to {ours[-1]:.4f}")
        files = [folder / f"model_{last}.pdparams", folder / f"opt_{last}.pdopt"]
        names = sorted(key for key in load(files[1]) if "linear_0.w_0" in key)
        print(f"written for Paddle: {' and '.join(map(str, files))}, with {', '.join(names)} and so on")
        if options.checkpoint is None:
            print("(in a temporary folder; --checkpoint keeps them)")
    both = min(options.steps, len(record["losses"]) - DONE)
    apart = np.abs(np.array(ours[:both]) / record["losses"][DONE : DONE + both] - 1).max()
    print(
        f"Paddle's own losses of these steps differ by at most {apart:.0e} of their size, over {both} steps"
    )
    plot(record["losses"], ours, run(data, options.steps, None, resume=False), options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
