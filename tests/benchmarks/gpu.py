"""What a step costs on one GPU: paddlejax, optax under jit, torch fused; as shares of a copy's bandwidth.

    pip install -U "jax[cuda12]" optax torch    (torch may be elsewhere: --torch-python or $TORCH_PYTHON)
    python tests/benchmarks/gpu.py [--json gpu.json]
    python tests/benchmarks/gpu.py --quick --device cpu      checks the script where there is no GPU

Adam, AdamW, LAMB and LARS, in float32 and with bfloat16 parameters beside float32 masters, on BERT, on 10^9
parameters in 1 and in 300 tensors (60 GB of device memory, three contestants at once) and on 2000 small
tensors. Processes take turns as in peers.py. A share is (bytes that must be moved / step) / (bytes that the
copy moved / its time); LAMB and LARS read once more for their norms, which is counted. torch has neither.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from contestants import BASELINE, GPU
from peers import available, duel, machine
from report import duration, row
from tqdm import tqdm
from workloads import BYTES, QUICK, WORKLOADS, Shape, named, size

BILLION = 1_000_000_000
TREES: dict[str, list[Shape]] = {
    "BERT 199 x 110M": WORKLOADS["BERT 199 x 110M"],
    "1 x 1B": [(BILLION,)],
    "300 x 1B": [(BILLION // 300 // 2048, 2048)] * 300,
    "2000 small": WORKLOADS["2000 small"],
}
OPTIMIZERS = ["adam", "adamw", "lamb", "lars"]
COPIED = {"gpu": 2**28, "cpu": 2**20}  # elements


def measure(args: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    known = QUICK if args.quick else TREES
    chosen = named(args.workloads, known) if args.workloads else known
    environment = {
        "JAX_PLATFORMS": {"gpu": "cuda", "cpu": "cpu"}[args.device],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "BENCHMARK_DEVICE": args.device,
    }
    limits = args.rounds, args.seconds, environment
    copy = {"copy": pythons.pop("copy")}
    records = []
    matrix = [(workload, optimizer) for workload in chosen for optimizer in args.optimizers]
    for workload, optimizer in tqdm(matrix, leave=False):
        for narrow in (False, True):
            names = {name: python for name, python in pythons.items() if name.endswith("bf16") is narrow}
            found = duel(names, optimizer, chosen[workload], *limits)
            found += duel(copy, optimizer, [(COPIED[args.device],)], *limits)
            about = {"workload": workload, "optimizer": optimizer, "dtype": "bf16" if narrow else "fp32"}
            records += [{**about, "parameters": size(chosen[workload]), **record} for record in found]
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "records": records}, indent=1))
    return records


def table(records: list[dict[str, Any]], copied: int) -> str:
    """Step, ratio to optax's, share of the copy's bandwidth; a row per workload, optimizer and dtype."""
    names = [BASELINE, "paddlejax", "torch fused"]
    lines = [row("step (times optax's; share of the copy's bandwidth)", *names), row(*["---"] * 4)]
    cells: dict[Any, dict[str, Any]] = {}
    for r in records:
        name = r["contestant"].removesuffix(" bf16")
        cells.setdefault((r["workload"], r["optimizer"], r["dtype"]), {})[name] = r
    for key, cell in cells.items():
        copy = 8 * copied / statistics.median(cell["copy"]["steps"])
        texts = []
        for r in (cell.get(name, {}) for name in names):
            if not r.get("steps"):
                texts.append("failed" if "error" in r else "")
                continue
            step = statistics.median(r["steps"])
            base = statistics.median(cell[BASELINE]["steps"] or [step])
            share = BYTES[key[1]] * r["parameters"] / step / copy
            texts.append(f"{duration(step)} ({step / base:.2f}; {share:.0%})")
        lines.append(row(", ".join(key), *texts))
    failed = [f"{r['contestant']}, {r['workload']}: {r['error']}" for r in records if "error" in r]
    return "\n".join([*lines, *failed])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two tiny workloads, few rounds")
    parser.add_argument("--device", choices=list(COPIED), default="gpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workloads", help="beginnings of names, separated by commas")
    parser.add_argument("--optimizers", type=lambda text: text.split(","), default=OPTIMIZERS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of a turn")
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (2 if args.quick else 9)
    args.seconds = args.seconds or (0.02 if args.quick else 0.5)
    pythons = available(GPU, {"torch": args.torch_python})
    print(f"{machine()}, on {args.device}")
    print(table(measure(args, pythons), COPIED[args.device]))


if __name__ == "__main__":
    main()
