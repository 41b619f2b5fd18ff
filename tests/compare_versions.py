"""What another checkout of this project computes, compared bit for bit with what this one computes.

    python tests/compare_versions.py OLD_CHECKOUT [-k TEXT] [--ulp N]

Both packages run the same programs, each in a process of its own, on the same machine, Python and JAX:
the recorded cases as functions and as objects, their wrappers, L-BFGS and the scaler, and every rule in
compiled steps. No stored bits are used: the other checkout is the expectation. Parameters, every leaf of the
functional state and every entry of the state_dict at the end must have the same bits. Each case that differs
is printed with its worst leaf, and the exit status is 1 if one of them exceeds what is allowed.

The programs are those of compared_programs.py, of this checkout for both sides. They use public names of
the package only, so that they also run with a package whose modules are cut differently. Compiled programs
are kept in a directory for temporary files and used by both sides: where both packages give XLA the same
program, it is compiled once. `--no-cache` compiles everything anew.
"""

import argparse
import contextlib
import fnmatch
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

# The first argument of the process that runs the programs, instead of comparing them.
WORKER = "--worker"
# Cases that may differ by so many ulp of the largest element of a leaf, each with the reason. Patterns over
# the names of the cases, or over "case: leaf". XLA multiplies and adds in one rounding where it sees both in
# one program, so a step whose program is cut elsewhere may round elsewhere. CHANGED: it is another result.
CHANGED = math.inf
ALLOWED: dict[str, tuple[float, str]] = {
    "*/lookahead*-class": (4, "the way back to the slow weights is in the program of the step"),
    "*/lookahead_missing-*": (CHANGED, "who joins late has slow weights of its own, not 0"),
    "*/ftrl*": (4, "a rate of 0 is told apart, and what a small one divides is bounded"),
    "fluid18/lars-clipreg-class": (2, "the rate comes with its factor, which was multiplied in the program"),
    "fluid18/adagrad-clipreg-class": (16, "the same; 16 ulp of one number close to 0"),
    "minimize/*": (2, "a gradient meets the scale of the global norm, 1 where nothing overflows"),
    "*/lbfgs_*-functional: state.last.*": (CHANGED, "the state keeps the last value and gradient"),
    "scaler/*flow": (CHANGED, "the scale stays within what its dtype holds"),
}


def work(output: str, text: str, checkout: str) -> None:
    """Run the programs whose name contains the text and write {name: leaves, or what went wrong}."""
    import conftest  # noqa: F401  the settings of JAX that the tests have

    import paddlejax

    found = Path(paddlejax.__file__).parent.parent.resolve()
    if found != Path(checkout).resolve():
        raise RuntimeError(f"imported paddlejax of {found}, expected that of {checkout}")
    from compared_programs import all_programs

    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for name, program in all_programs().items():
        if text in name:
            try:
                results[name] = program()
            except Exception as e:
                results[name] = f"{type(e).__name__}: {e}"
    Path(output).write_bytes(pickle.dumps(results))


# ------------------------------------------------------------------ the comparison


def distance(old: Any, new: Any) -> float | str | None:
    """None for equal bits; else the difference in ulp of the largest element, or in words."""
    import numpy as np

    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        same = type(old) is type(new) and (old == new or old != old and new != new)
        return None if same else f"{old!r} became {new!r}"
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return f"{old.dtype}{old.shape} became {new.dtype}{new.shape}"
    if old.tobytes() == new.tobytes():
        return None
    if old.dtype.kind in "biu":
        return "integers differ"
    # numpy has no np.spacing for bfloat16, so the size of an ulp comes from the digits of the fraction
    digits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[str(old.dtype)]
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a)
    same = (np.isnan(a) == np.isnan(b)) & (np.isinf(a) == np.isinf(b)) & (finite | np.isnan(a) | (a == b))
    if not same.all():
        return "other elements are finite"
    largest = np.max(np.abs(a), where=finite, initial=0.0)
    ulp = 2.0 ** (np.floor(np.log2(largest)) - digits) if largest else np.finfo(np.float64).tiny
    return float(np.max(np.abs(a - b), where=finite, initial=0.0) / ulp)


def differences(old: Any, new: Any) -> dict[str, float | str]:
    """What differs between the results of one case, by leaf."""
    if isinstance(old, str) or isinstance(new, str):
        failed = {"old": old, "new": new}
        return {f"the {side} side": text for side, text in failed.items() if isinstance(text, str)}
    found: dict[str, float | str] = {key: "is new" for key in new.keys() - old.keys()}
    found |= {key: "is gone" for key in old.keys() - new.keys()}
    pairs = {key: distance(old[key], new[key]) for key in old.keys() & new.keys()}
    return found | {key: d for key, d in pairs.items() if d is not None}


def allowed(name: str, leaf: str) -> tuple[float, str]:
    """Return by how much the leaf of a case may differ, and why."""
    places = name, f"{name}: {leaf}"
    fits = [by for pattern, by in ALLOWED.items() if any(fnmatch.fnmatchcase(x, pattern) for x in places)]
    return max(fits, default=(0.0, ""))


def compare(old: dict[str, Any], new: dict[str, Any], ulp: float) -> bool:
    """Print every case that differs; return whether none exceeds what is allowed."""
    good = True
    for name in new:
        found = differences(old.get(name, "has no such case"), new[name])
        if not found:
            continue
        distances = {key: CHANGED if isinstance(d, str) else d for key, d in found.items()}
        # Zeros of another sign are a difference of 0 ulp, and not equal bits.
        refused = {
            key: d for key, d in distances.items() if (limit := allowed(name, key)[0]) < d or limit <= 0
        }
        shown = refused or distances
        passes = not refused or max(distances.values()) <= ulp > 0
        good &= passes
        key = max(shown, key=shown.__getitem__)
        worst, why = found[key], allowed(name, key)[1]
        distance = worst if isinstance(worst, str) else f"{worst:.3g} ulp"
        print(f"{'allowed' if passes else 'DIFFERS'}  {name}: {len(found)} leaves; {key}: {distance} {why}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout of the version that is right")
    parser.add_argument("-k", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--ulp", type=float, default=0, help="how much every case may differ (default 0)")
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")
    options = parser.parse_args()
    tests, started = Path(__file__).resolve().parent, time.monotonic()
    sides = {"old": options.old.resolve(), "new": tests.parent}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = {}
        for side, checkout in sides.items():
            environment = {
                **os.environ,
                "PYTHONPATH": f"{checkout}{os.pathsep}{tests}",
                "JAX_PLATFORMS": "cpu",
            }
            if not options.no_cache:
                environment |= {
                    "JAX_COMPILATION_CACHE_DIR": str(
                        Path(tempfile.gettempdir()) / "paddlejax-compare-versions"
                    ),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                }
            command = [sys.executable, __file__, WORKER, str(Path(folder) / side), options.k, str(checkout)]
            running[side] = stack.enter_context(subprocess.Popen(command, env=environment, cwd=folder))
        if any([process.wait() for process in running.values()]):
            return 1
        old, new = (pickle.loads((Path(folder) / side).read_bytes()) for side in sides)
    if not new:
        print(f"no case has {options.k!r} in its name")
        return 1
    good = compare(old, new, options.ulp)
    print(
        f"{len(new)} cases in {time.monotonic() - started:.0f} s: {'as before' if good else 'NOT as before'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(*sys.argv[2:])
    else:
        sys.exit(main())
