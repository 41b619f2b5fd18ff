"""The main ratios of the package to its peers, measured in one process, in turns.

    python tests/benchmarks/ratios.py [--quick] [--only "TEXT;TEXT"] [--rounds N] [--json records.json]
    python tests/benchmarks/ratios.py --table FILE [FILE ...]     one table of records that were kept

Each row is one thing done here and by a peer: optax with `jax.jit`, or the functions of this package where
the row is about the object. Both are warm (but for `first` and `trace`, which start from nothing) and run in
turns, of at least `--seconds` each. A ratio is the median over rounds of the ratio of a pair of turns that
follow each other, which noise of the machine moves less than the times. `--quick` takes three minutes, with
smaller tensors. Peers.py has the long comparison, with torch and PaddlePaddle, in a process for each.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers import machine
from tqdm import tqdm
from workloads import WORKLOADS, Shape

import paddlejax as pj

RATE = 1e-3
TWO_HUNDRED: list[Shape] = [(64, 64), (64,)] * 100


class Turn(NamedTuple):
    """What one side does in a turn, once or more often: `run`, and `wait` until all is there."""

    run: Callable[[], Any]
    wait: Callable[[], Any] = lambda: None


Row = Callable[[], tuple[Turn, Turn]]  # ours, and the peer's


def filled(shapes: Sequence[Shape], value: float, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Return a tree of arrays of these shapes."""
    return {f"p{i:05d}": jnp.full(shape, value, dtype) for i, shape in enumerate(shapes)}


def distance(params: Any) -> Any:
    """Return Σ (w - 1)², a loss whose forward and backward cost as little as any."""
    return sum(jnp.sum(jnp.square(w.astype(jnp.float32) - 1)) for w in params.values())


def network(params: Any) -> Any:
    """Return a loss of 64 rows that go through layers of 64, whose gradients need a backward."""
    rows, arrays = jnp.ones((64, 64)), list(params.values())
    for w, b in zip(arrays[::2], arrays[1::2], strict=True):
        rows = jnp.tanh(rows @ w + b[None])
    return jnp.sum(rows * rows)


# ------------------------------------------------------------------ what is run


def updating(tx: Any, apply: Any, shapes: Sequence[Shape], dtype: Any = jnp.float32) -> Turn:
    """The update of a transformation, compiled, with donated parameters and state."""
    grads, params = filled(shapes, 0.01, dtype), filled(shapes, 0.5, dtype)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    program, kept = jax.jit(update, donate_argnums=(0, 1)), [params, tx.init(params)]

    def run() -> None:
        kept[:] = program(*kept, grads)

    return Turn(run, lambda: jax.block_until_ready(kept))


def training(tx: Any, apply: Any, shapes: Sequence[Shape], loss: Any, hands_out: bool = False) -> Turn:
    """A train step of functions; with `hands_out` it returns the gradients too."""

    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (apply(params, updates), state), (value, *([grads] if hands_out else []))

    params = filled(shapes, 0.5)
    program, kept = jax.jit(step, donate_argnums=(0, 1)), [params, tx.init(params)]

    def run() -> None:
        kept[:], _ = program(*kept)

    return Turn(run, lambda: jax.block_until_ready(kept))


def object_of(shapes: Sequence[Shape], **options: Any) -> tuple[Any, Callable[[], Any]]:
    """Return an Adam of objects, and what waits for one of the results of its program."""
    opt = pj.optimizer.Adam(RATE, parameters=pj.parameters(filled(shapes, 0.5)), **options)
    return opt, lambda: jax.block_until_ready(opt.parameter_list[0].store.holder.array)


def minimizing(shapes: Sequence[Shape], function: Any) -> Turn:
    """`minimize` of the object."""
    opt, wait = object_of(shapes)
    loss = pj.loss(function)
    return Turn(lambda: opt.minimize(loss(opt.parameters)), wait)


def stepping(
    shapes: Sequence[Shape], reached: Callable[[], Sequence[bool]] | None = None, **options: Any
) -> Turn:
    """The object's `step`; with `reached` each time with gradients for these only."""
    opt, wait = object_of(shapes, **options)
    grads = list(filled(shapes, 0.01).values())
    for p, g in zip(opt.parameter_list, grads, strict=True):
        p.grad = g

    def run() -> None:
        if reached is not None:
            for p, g, here in zip(opt.parameter_list, grads, reached(), strict=True):
                p.grad = g if here else None
        opt.step()

    return Turn(run, wait)


def first(shapes: Sequence[Shape]) -> tuple[Turn, Turn]:
    """From the construction to the values after one step, each time with nothing compiled."""

    def ours() -> None:
        turn = minimizing(shapes, distance)
        turn.run()
        turn.wait()

    def theirs() -> None:
        turn = training(optax.adam(RATE), optax.apply_updates, shapes, distance)
        turn.run()
        turn.wait()

    return Turn(anew(ours)), Turn(anew(theirs))


def anew(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return what does this with no program in JAX's tables."""

    def cleared() -> None:
        jax.clear_caches()
        run()

    return cleared


def built(shapes: Sequence[Shape], last: str, chained: bool = False) -> tuple[Turn, Turn]:
    """Trace an update, or trace, lower and compile it."""
    ours, theirs = pj.adam(RATE), optax.adam(RATE)
    if chained:
        ours = pj.chain(pj.clip_by_global_norm(1.0), pj.l2_decay(0.1), ours)
        theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), theirs)

    def turn(tx: Any, apply: Any) -> Turn:
        grads = params = jax.eval_shape(lambda: filled(shapes, 0.5))
        state = jax.eval_shape(tx.init, params)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return apply(params, updates), state

        def run() -> None:
            traced = jax.jit(lambda *args: update(*args), donate_argnums=(0, 1)).trace(params, state, grads)
            if last == "compile":
                traced.lower().compile()

        return Turn(anew(run))

    return turn(ours, pj.apply_updates), turn(theirs, optax.apply_updates)


# ------------------------------------------------------------------ the rows


def rows(quick: bool) -> dict[str, tuple[str, Row]]:
    """Return {what is measured: (the peer, what makes both sides)}."""
    large: list[Shape] = [(5_000_000 if quick else 50_000_000,)]
    square: list[Shape] = [(512, 512)] * 8 if quick else [(1024, 1024)] * 24
    leaves: list[Shape] = [(64,)] * (300 if quick else 1000)
    bert = [(*s[:-1], s[-1] // 8) if quick else s for s in WORKLOADS["BERT 199 x 110M"]]
    tiny = WORKLOADS["6 tiny"]
    ours, theirs = pj.apply_updates, optax.apply_updates
    everyone, rng = [True] * 50, random.Random(0)
    bfloat16 = jnp.bfloat16

    def function(name: str, tx: Any, peer: Any, shapes: Sequence[Shape], dtype: Any = jnp.float32) -> Any:
        sides = lambda: (updating(tx, ours, shapes, dtype), updating(peer, theirs, shapes, dtype))  # noqa: E731
        return {f"update, {name}": ("optax", sides)}

    def minimize(name: str, shapes: Sequence[Shape], loss: Any = distance) -> Any:
        pair = pj.adam(RATE), ours, shapes, loss
        return {
            f"minimize, {name}": ("functions", lambda: (minimizing(shapes, loss), training(*pair))),
            f"minimize, {name}, gradients": (
                "functions that return gradients",
                lambda: (minimizing(shapes, loss), training(*pair, hands_out=True)),
            ),
        }

    def step(name: str, shapes: Sequence[Shape], **options: Any) -> Any:
        peer = lambda: updating(optax.adam(RATE), theirs, shapes)  # noqa: E731
        return {f"step, {name}": ("optax", lambda: (stepping(shapes, **options), peer()))}

    masters = pj.with_master_weights(pj.adam(RATE))
    return {
        **function("Adam, one tensor", pj.adam(RATE), optax.adam(RATE), large),
        **function("AdamW, one tensor", pj.adamw(RATE), optax.adamw(RATE), large),
        **function("Adam, 200 tensors", pj.adam(RATE), optax.adam(RATE), TWO_HUNDRED),
        **function("Momentum, matrices", pj.momentum(RATE), optax.sgd(RATE, 0.9), square),
        **function("LAMB, matrices", pj.lamb(RATE), optax.lamb(RATE, weight_decay=0.01), square),
        **function("LARS, matrices", pj.lars_momentum(RATE, 0.9), optax.lars(RATE, 5e-4), square),
        **function("Adam with masters, bfloat16", masters, with_masters(optax.adam(RATE)), large, bfloat16),
        **step("6 tiny tensors", tiny),
        **step("6 tiny tensors, packed", tiny, packed=True),
        **minimize("one tensor", large),
        **minimize("200 tensors", TWO_HUNDRED),
        **minimize("200 tensors of a network", TWO_HUNDRED, network),
        **minimize("BERT's 199 tensors", bert),
        **minimize("6 tiny tensors", tiny),
        "step, a random half of 50": (
            "all of them",
            lambda: (
                stepping([(64,)] * 50, lambda: [rng.random() < 0.5 for _ in everyone]),
                stepping([(64,)] * 50, lambda: everyone),
            ),
        ),
        "first minimize, 200 tensors": ("optax and jit", lambda: first(TWO_HUNDRED)),
        f"trace, {len(leaves)} leaves": ("optax", lambda: built(leaves, "trace")),
        f"trace, chain of 3, {len(leaves)} leaves": ("optax", lambda: built(leaves, "trace", chained=True)),
        f"trace to program, {len(leaves)} leaves": ("optax", lambda: built(leaves, "compile")),
    }


def with_masters(tx: Any) -> Any:
    """Return optax's nearest to `with_master_weights`: float32 copies in its state."""

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Any:
        return wide(params), tx.init(wide(params))

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, inner = tx.update(wide(grads), state[1], state[0])
        masters = optax.apply_updates(state[0], updates)
        return jax.tree.map(lambda m, p: m.astype(p.dtype) - p, masters, params), (masters, inner)

    return optax.GradientTransformation(init, update)


# ------------------------------------------------------------------ measuring and showing


def measured(sides: tuple[Turn, Turn], rounds: int, seconds: float, warm: int) -> dict[str, Any]:
    """Return the median seconds of both sides, and the median, least and largest ratio of a pair of turns."""
    times: list[float] = []
    for turn in sides:
        for _ in range(warm):  # the first compiles, and subsets are few for a while
            started = time.perf_counter()
            turn.run()
            turn.wait()
        times.append(time.perf_counter() - started)
    repeats = [max(1, round(seconds / t)) for t in times]
    taken: list[list[float]] = [[], []]
    for i in range(rounds):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.perf_counter()
            for _ in range(repeats[side]):
                sides[side].run()
                sides[side].wait()
            taken[side].append((time.perf_counter() - started) / repeats[side])
    ratios = [a / b for a, b in zip(*taken, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
    ours, peer = map(statistics.median, taken)
    return {"ours": ours, "peer": peer, "ratio": middle, "quartiles": [low, high], "rounds": rounds}


def duration(seconds: float) -> str:
    """Return a time as people read it."""
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def table(records: list[dict[str, Any]]) -> str:
    """Return one table of Markdown, with the ratios of each record in a column of its own."""
    heads = [f"{r['versions']['jax']}, ratio (quartiles)" for r in records]
    lines = [f"| | peer | ours, {records[0]['versions']['jax']} | {' | '.join(heads)} |"]
    lines.append("|---" * (3 + len(records)) + "|")
    for name, row in records[0]["rows"].items():
        found = [r["rows"].get(name) for r in records]
        cells = [
            "" if x is None else f"{x['ratio']:.2f} ({x['quartiles'][0]:.2f} to {x['quartiles'][1]:.2f})"
            for x in found
        ]
        lines.append(f"| {name} | {row['against']} | {duration(row['ours'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure the rows that were asked for, or print the table of kept records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller tensors, fewer rounds")
    parser.add_argument("--only", help="rows whose names contain one of these, separated by ;")
    parser.add_argument("--rounds", type=int, help="pairs of turns (default 15, quick 7)")
    parser.add_argument("--seconds", type=float, help="least length of a turn (default 0.2, quick 0.05)")
    parser.add_argument("--json", type=Path, help="where the records are kept")
    parser.add_argument("--table", type=Path, nargs="+", help="print these records and measure nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(table([json.loads(path.read_text()) for path in args.table]))
        return
    asked = (args.only or "").split(";")
    chosen = {name: row for name, row in rows(args.quick).items() if any(text in name for text in asked)}
    if not chosen:
        parser.error(f"--only: found {args.only!r}, expected parts of {'; '.join(rows(args.quick))}")
    rounds, seconds = args.rounds or (7 if args.quick else 15), args.seconds or (0.05 if args.quick else 0.2)
    versions = {"jax": jax.__version__, "optax": optax.__version__}
    record: dict[str, Any] = {"machine": machine(), "versions": versions, "rows": {}}
    progress = tqdm(chosen.items(), leave=False)
    for name, (peer, sides) in progress:
        progress.set_description(name)
        slow = name.startswith(("first", "trace"))
        found = measured(sides(), max(3, rounds // 3) if slow else rounds, seconds, 1 if slow else 12)
        record["rows"][name] = {"against": peer, **found}
        if args.json:
            args.json.write_text(json.dumps(record, indent=1))
    print(f"{record['machine']}; {', '.join(f'{k} {v}' for k, v in versions.items())}")
    print(table([record]))


if __name__ == "__main__":
    main()
