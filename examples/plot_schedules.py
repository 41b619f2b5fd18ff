"""Draw every learning-rate schedule of paddlejax in one picture.

    python examples/plot_schedules.py --out plot_schedules.png

Each panel evaluates a pure schedule at all counts at once; the plateau is fed a made-up loss.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from paddlejax import schedules as S


def table(steps):
    """Title and schedule of every panel, each stretched to the number of steps."""
    fifth, tenth = steps // 5, steps // 10
    cosine = S.cosine_annealing_decay(1.0, steps - fifth)
    return {
        "noam_decay": S.noam_decay(d_model=fifth, warmup_steps=fifth, learning_rate=float(fifth)),
        "piecewise_decay": S.piecewise_decay([fifth, 3 * fifth], [1.0, 0.4, 0.1]),
        "natural_exp_decay": S.natural_exp_decay(1.0, gamma=5 / steps),
        "exponential_decay": S.exponential_decay(1.0, gamma=0.03 ** (1 / steps)),
        "inverse_time_decay": S.inverse_time_decay(1.0, gamma=10 / steps),
        "polynomial_decay": S.polynomial_decay(1.0, 4 * fifth, end_lr=0.05, power=2.0),
        "polynomial_decay, cycle": S.polynomial_decay(1.0, fifth, end_lr=0.05, cycle=True),
        "linear_lr": S.linear_lr(1.0, 3 * fifth, start_factor=0.25),
        "step_decay": S.step_decay(1.0, fifth, gamma=0.5),
        "multi_step_decay": S.multi_step_decay(1.0, [tenth, 2 * fifth, 4 * fifth], gamma=0.4),
        "lambda_decay": S.lambda_decay(1.0, lambda e: 0.6 + 0.4 * jnp.sin(e * 20 / steps)),
        "multiplicative_decay": S.multiplicative_decay(1.0, lambda e: 1 - 0.5 / (e + 1)),
        "cosine_annealing_decay": S.cosine_annealing_decay(1.0, 2 * fifth, eta_min=0.05),
        "cosine_annealing_warm_restarts": S.cosine_annealing_warm_restarts(1.0, steps // 7, T_mult=2),
        "cosine_decay (1.x)": S.cosine_decay(1.0, step_each_epoch=tenth, epochs=10),
        "one_cycle_lr": S.one_cycle_lr(1.0, steps),
        "one_cycle_lr, three phases, linear": S.one_cycle_lr(
            1.0, steps, 5.0, phase_pct=0.4, anneal_strategy="linear", three_phase=True
        ),
        "cyclic_lr": S.cyclic_lr(0.1, 1.0, tenth, fifth),
        "cyclic_lr, triangular2": S.cyclic_lr(0.1, 1.0, tenth, mode="triangular2"),
        "cyclic_lr, exp_range": S.cyclic_lr(0.1, 1.0, tenth, mode="exp_range", exp_gamma=0.1 ** (1 / steps)),
        "linear_warmup": S.linear_warmup(1.0, fifth, start_lr=0.1, end_lr=1.0),
        "warmup of a cosine": S.warmup(cosine, fifth),
        "join of three": S.join(
            [S.warmup(1.0, fifth), 0.6, S.exponential_decay(0.6, 0.9)], [2 * fifth, 3 * fifth]
        ),
    }


def plateau(steps):
    """The rates of `reduce_on_plateau` under a loss that stops falling, all in one compiled loop."""
    rule = S.reduce_on_plateau(1.0, factor=0.5, patience=max(steps // 20, 1), threshold=0.01)
    losses = jnp.maximum(jnp.exp(-8 * jnp.arange(steps) / steps), 0.1)

    def step(state, loss):
        state = rule.update(loss, state)
        return state, state.learning_rate

    return jax.lax.scan(step, rule.init(), losses)[1]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="plot_schedules.png", help="default: plot_schedules.png")
    parser.add_argument("--steps", type=int, default=200, help="counts per panel, at least 20")
    options = parser.parse_args()
    if options.steps < 20:
        parser.error("--steps must be at least 20")

    counts = jnp.arange(options.steps)
    rates = {name: jax.jit(schedule)(counts) for name, schedule in table(options.steps).items()}
    rates["reduce_on_plateau"] = plateau(options.steps)

    figure, panels = plt.subplots(6, 4, figsize=(13, 14), sharex=True, sharey=True, layout="constrained")
    for panel, (name, rate) in zip(panels.flat, rates.items(), strict=True):
        panel.step(counts, rate, where="post", linewidth=1.6, color="#1f5fa8")
        panel.set_title(name, fontsize=11, loc="left")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[0].set(ylim=(0, 1.08), xlim=(0, options.steps))
    figure.supxlabel("count")
    figure.supylabel("learning rate")
    figure.savefig(options.out, dpi=110)
    plt.close(figure)
    print(f"wrote {options.out}: {len(rates)} schedules over {options.steps} steps")


if __name__ == "__main__":
    main()
