"""How many evaluations the functional minimizers need, beside SciPy's and JAX's BFGS, on twelve functions.

    python tests/benchmarks/minimizers.py

One evaluation is one value with its gradient. A cross marks a run that did not converge to max|g| < 1e-7
(JAX: norm of g) within 50 iterations (SciPy and JAX: 200 n).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.scipy.optimize import minimize as jax_minimize

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_minimizers import CASES, objective

from paddlejax.incubate.optimizer.functional import minimize_bfgs, minimize_lbfgs

HEAD = [
    "function",
    "bfgs",
    "lbfgs",
    "Paddle bfgs",
    "Paddle lbfgs",
    "SciPy BFGS",
    "SciPy L-BFGS-B",
    "JAX BFGS",
]


def counted(f):
    """The function, and a list to which every evaluation adds."""
    calls: list[int] = []

    def run(x):
        jax.debug.callback(lambda: calls.append(1))
        return f(x)

    return run, calls


def ours(minimize, case):
    """(evaluations, converged) of a minimizer of paddlejax."""
    f, calls = counted(objective(case))
    converged = minimize(f, jnp.asarray(case["x0"]), tolerance_grad=1e-7, dtype="float64")[0]
    jax.effects_barrier()
    return len(calls), bool(converged[0])


def scipys(method, case):
    """(evaluations, converged) of SciPy."""
    f = jax.jit(jax.value_and_grad(objective(case)))
    options = {"gtol": 1e-7} if method == "BFGS" else {"gtol": 1e-7, "ftol": 0.0}
    run = lambda x: tuple(np.asarray(y) for y in f(x))  # noqa: E731
    found = scipy.optimize.minimize(run, case["x0"], jac=True, method=method, options=options)
    return found.nfev, bool(np.max(np.abs(found.jac)) < 1e-7)


def jaxs(case):
    """(evaluations, converged) of JAX."""
    found = jax_minimize(objective(case), jnp.asarray(case["x0"]), method="BFGS", options={"gtol": 1e-7})
    return int(found.nfev), bool(np.max(np.abs(found.jac)) < 1e-7)


def main():
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    cases = [c for c in CASES if c["dtype"] == "float64" and not c["kwargs"] and not c["notes"]]
    recorded: dict[str, dict[str, tuple[int, bool]]] = {}
    by_name: dict[str, dict] = {}
    for c in cases:
        if c["function"] not in by_name or by_name[c["function"]]["x0"] == c["x0"]:
            by_name[c["function"]] = c
            recorded.setdefault(c["function"], {})[c["method"]] = c["evaluations"], c["is_converge"]
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for name, case in by_name.items():
        row = [ours(minimize_bfgs, case), ours(minimize_lbfgs, case)]
        row += [recorded[name][method] for method in ("bfgs", "lbfgs")]
        row += [scipys("BFGS", case), scipys("L-BFGS-B", case), jaxs(case)]
        print(f"| {name} | " + " | ".join(f"{n}{'' if ok else ' ×'}" for n, ok in row) + " |", flush=True)


if __name__ == "__main__":
    main()
