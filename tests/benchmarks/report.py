"""What the records of peers.py say: tables for the README and a picture."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from contestants import BASELINE, CONTESTANTS, ROOF
from workloads import BYTES

Records = list[dict[str, Any]]
Key = tuple[str, str]  # workload, optimizer


def by_cell(records: Records) -> dict[Key, dict[str, dict[str, Any]]]:
    """{(workload, optimizer): {contestant: record}}, with the ratio to the baseline of the same round."""
    cells: dict[Key, dict[str, dict[str, Any]]] = {}
    baselines = {
        (r["workload"], r["optimizer"], r["group"]): r["steps"]
        for r in records
        if r["contestant"] == BASELINE and r["steps"]
    }
    for record in records:
        if "missing" in record:
            continue
        r = dict(record)
        if r["steps"] and "error" not in r:
            r["step"], r["dispatch"] = statistics.median(r["steps"]), statistics.median(r["dispatches"])
            if r["contestant"] == ROOF:
                r["step"] *= BYTES[r["optimizer"]] / 12
            base = baselines.get((r["workload"], r["optimizer"], r["group"]))
            if base and r["contestant"] != ROOF:
                r["ratio"] = statistics.median(a / b for a, b in zip(r["steps"], base, strict=False))
        cells.setdefault((r["workload"], r["optimizer"]), {}).setdefault(r["contestant"], r)
    return cells


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(n: int | None) -> str:
    if n is None:
        return ""
    return f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def step(r: dict[str, Any]) -> str:
    if "error" in r:
        return "failed"
    ratio = f" ({r['ratio']:.2f})" if "ratio" in r and r["contestant"] != BASELINE else ""
    return duration(r["step"]) + ratio


def phases(r: dict[str, Any]) -> str:
    times = r.get("phases", {})
    parts = [duration(times[name]) for name in ("trace", "lower", "compile") if name in times]
    return " + ".join(parts)


def change(r: dict[str, Any]) -> str:
    if "change" not in r:
        return ""
    compiles = f", {r['compiles']} compiles" if r["compiles"] else ""
    return f"{duration(r['change'])} ({r['slower']:.2f}){compiles}"


QUANTITIES: dict[str, Callable[[dict[str, Any]], str]] = {
    f"Step (times that of {BASELINE}; roof: what memory allows)": step,
    "Dispatch: until the call returns": lambda r: duration(r.get("dispatch")),
    "Trace + lower + compile": phases,
    "First step, compilation included": lambda r: duration(r.get("phases", {}).get("first")),
    "Allocated by XLA beside the donated arrays": lambda r: size(r.get("phases", {}).get("temp")),
    "Peak memory": lambda r: size(r.get("peak")),
    "A new rate and the step after it (times a step without)": change,
}


def tables(records: Records) -> str:
    """Markdown: a table per quantity, a row per workload and optimizer, a column per contestant."""
    cells = by_cell(records)
    present = [name for name in CONTESTANTS if any(name in cell for cell in cells.values())]
    text = []
    for title, value in QUANTITIES.items():
        columns = [name for name in present if name != ROOF or value is step]
        rows = {key: [value(cell[c]) if c in cell else "" for c in columns] for key, cell in cells.items()}
        text += [f"\n**{title}**\n", row("", *columns), row(*["---"] * (len(columns) + 1))]
        text += [row(", ".join(key), *values) for key, values in rows.items() if any(values)]
    failed = [
        f"{r['contestant']}, {r['workload']}, {r['optimizer']}: {r['error']}" for r in records if "error" in r
    ]
    return "\n".join([*text, *(["\nFailed:", *failed] if failed else [])])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(records: Records, out: Path) -> None:
    """Steps relative to the baseline, a panel per workload, on a logarithmic axis."""
    cells = by_cell(records)
    workloads = list(dict.fromkeys(workload for workload, _ in cells))
    names = [n for n in CONTESTANTS if any("ratio" in cell.get(n, {}) for cell in cells.values())]
    height = max(3.0, 0.3 * len(names) * max(map(len, optimizers_of(cells, workloads))))
    figure, axes = plt.subplots(1, len(workloads), figsize=(4 * len(workloads), height), squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        optimizers = [optimizer for w, optimizer in cells if w == workload]
        for i, name in enumerate(names):
            at = [
                (j, cells[workload, o][name]["ratio"])
                for j, o in enumerate(optimizers)
                if "ratio" in cells[workload, o].get(name, {})
            ]
            places = [j - 0.4 + 0.8 * (i + 0.5) / len(names) for j, _ in at]
            faster_or_slower = [ratio - 1 for _, ratio in at]
            axis.barh(places, faster_or_slower, 0.8 / len(names), left=1, label=name, color=f"C{i}")
        axis.axvline(1, color="black", lw=0.8)
        axis.set(title=workload, xlabel=f"step, times that of {BASELINE}", xscale="log", xlim=(0.05, 20))
        axis.set_xticks([0.1, 0.5, 1, 2, 10], ["0.1", "0.5", "1", "2", "10"])
        axis.minorticks_off()
        axis.set_yticks(range(len(optimizers)), optimizers)
        axis.invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(5, len(names)), fontsize="small")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(out, dpi=120)
    plt.close(figure)


def optimizers_of(cells: dict[Key, Any], workloads: Iterable[str]) -> list[list[str]]:
    return [[optimizer for w, optimizer in cells if w == workload] for workload in workloads]
