"""What an optimizer's step costs here and in other libraries: paddlejax, optax, torch, PaddlePaddle on CPU.

    python tests/benchmarks/peers.py [--quick] [--out picture.png] [--json records.json]
        [--workloads bert,6] [--optimizers adam,lamb] [--contestants paddlejax,optax]
        [--torch-python PATH] [--paddle-python PATH]     (or $TORCH_PYTHON, $PADDLE_PYTHON)

Every contestant has a process of its own (contestants/ says what they do, worker.py how it is asked). Those
of one workload and optimizer are alive together, as many as fit into memory, and take turns: rounds of a turn
each, one working at a time. Given are the medians over rounds, and of the ratio to optax in the same round,
which noise of the machine moves less than the times. `roof` is what memory allows, measured in the same
rounds. Peak memory is what the process took beyond its imports, gradients included. torch and PaddlePaddle
may live in other environments; who is missing is said and left out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import report
from contestants import BASELINE, CONTESTANTS, ROOF
from tqdm import tqdm
from workloads import BYTES, QUICK, WORKLOADS, Shape, named, size

HERE = Path(__file__).parent
RATES = 1e-4, 0.5e-4
SMALL_OPTIMIZERS = ["adam", "sgd", "momentum"]  # where the count of arrays decides, the formula does not


class Peer:
    """A worker process and what it has answered so far."""

    def __init__(self, python: str, name: str, environment: dict[str, str]):
        self.name = name
        flags = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        self.process = subprocess.Popen(
            [python, "-W", "ignore", HERE / "worker.py", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**flags, **environment},
        )
        self.record: dict[str, Any] = {"contestant": name, "steps": [], "dispatches": []}

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "its process ended"}
        self.record |= {key: answer[key] for key in ("missing", "error") if key in answer}
        return answer

    @property
    def well(self) -> bool:
        return not {"missing", "error"} & self.record.keys()

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def duel(
    pythons: dict[str, str],
    optimizer: str,
    shapes: list[Shape],
    rounds: int,
    seconds: float,
    environment: dict[str, str],
) -> list[dict[str, Any]]:
    """Records of these contestants, alive together and taking turns."""
    peers = [Peer(python, name, environment) for name, python in pythons.items()]
    try:
        for peer in peers:
            peer.record |= peer.ask(build=[optimizer, shapes, RATES[0]])
        for _ in range(rounds):
            for peer in filter(lambda peer: peer.well, peers):
                answer = peer.ask(turn=seconds)
                if peer.well:
                    peer.record["steps"].append(answer["step"])
                    peer.record["dispatches"].append(answer["dispatch"])
        for peer in filter(lambda peer: peer.well, peers):
            peer.record |= peer.ask(end=True)  # before a new rate, which may compile again
            peer.record |= peer.ask(rate=RATES[::-1])
    finally:
        for peer in peers:
            peer.stop()
    return [peer.record for peer in peers]


def groups(names: list[str], shapes: list[Shape]) -> list[list[str]]:
    """As many together as fit into 3/5 of the free memory; the baseline and the roof are in each group."""
    need = 0.5e9 + 5 * 4 * size(shapes)
    try:
        free = next(1024 * int(line.split()[1]) for line in open("/proc/meminfo") if "MemAvailable" in line)
    except OSError:
        free = 8e9
    anchors = [name for name in (BASELINE, ROOF) if name in names]
    others = [name for name in names if name not in anchors]
    room = max(1, int(0.6 * free / need) - len(anchors))
    return [anchors + others[i : i + room] for i in range(0, max(1, len(others)), room)]


def available(known: dict[str, Any], pythons: dict[str, str]) -> dict[str, str]:
    """The Python of each contestant whose library it can import; who cannot take part is said."""
    there: dict[str, bool] = {}
    found = {}
    for name, (library, *_) in known.items():
        python = pythons.get(library, sys.executable)
        if library not in there:
            code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
            there[library] = bool(python) and not subprocess.run([python, "-c", code]).returncode
            if not there[library]:
                option = f"; say where with --{library}-python" if library in pythons else ""
                print(f"missing: {library}, not in {python or 'any Python given'}{option}", flush=True)
        if there[library]:
            found[name] = python
    return found


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two tiny workloads, Adam, few rounds")
    parser.add_argument("--out", type=Path, default=Path("peers.png"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workloads", help="beginnings of names, separated by commas")
    parser.add_argument("--optimizers", type=lambda text: text.split(","))
    parser.add_argument("--contestants", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, help="turns of each (default 9, quick 3)")
    parser.add_argument("--seconds", type=float, help="length of a turn (default 0.5, quick 0.02)")
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    parser.add_argument("--paddle-python", default=os.environ.get("PADDLE_PYTHON"))
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 9)
    args.seconds = args.seconds or (0.02 if args.quick else 0.5)
    for option, known in (("optimizers", BYTES), ("contestants", CONTESTANTS)):
        for name in getattr(args, option) or []:
            if name not in known:
                parser.error(f"--{option}: found {name!r}, expected some of {', '.join(known)}")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.parent}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    known = QUICK if args.quick else WORKLOADS
    chosen = named(args.workloads, known) if args.workloads else known
    wanted = {BASELINE, ROOF, *(args.contestants or CONTESTANTS)}
    asked = {name: about for name, about in CONTESTANTS.items() if name in wanted}
    pythons = available(asked, {"torch": args.torch_python, "paddle": args.paddle_python})
    limits = args.rounds, args.seconds, {"JAX_PLATFORMS": "cpu"}
    matrix = [
        (workload, optimizer, group)
        for workload, shapes in chosen.items()
        for optimizer in args.optimizers
        or (["adam"] if args.quick else list(BYTES) if size(shapes) > 5e6 else SMALL_OPTIMIZERS)
        for group in enumerate(groups(list(pythons), shapes))
    ]
    records: list[dict[str, Any]] = []
    progress = tqdm(matrix, leave=False)
    for workload, optimizer, (number, names) in progress:
        progress.set_description(f"{workload}, {optimizer}")
        chosen_pythons = {name: pythons[name] for name in names}
        about = {"workload": workload, "optimizer": optimizer, "group": number, "load": os.getloadavg()[0]}
        for record in duel(chosen_pythons, optimizer, chosen[workload], *limits):
            records.append({**about, "parameters": size(chosen[workload]), **record})
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "records": records}, indent=1))
    print(f"{machine()}; load {min(r['load'] for r in records):.1f} to {max(r['load'] for r in records):.1f}")
    print(report.tables(records))
    report.draw(records, args.out)
    print(f"wrote {args.out}" + (f" and {args.json}" if args.json else ""))


def machine() -> str:
    kind = platform.processor() or platform.machine()
    return f"{kind}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
