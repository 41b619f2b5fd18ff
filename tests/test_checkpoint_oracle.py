"""Files of ours, loaded by the real Paddle, which continues from them.

PADDLEJAX_ORACLE3 and PADDLEJAX_ORACLE18 name Python interpreters with paddlepaddle 3.3.1 and 1.8.5.
"""

import os
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import CASES, FOLDER, HALF, TOLERANCE, error

import paddlejax as paddle
from paddlejax.checkpoint import parameter_names, save_optimizer, save_parameters

SCRIPTS = Path(__file__).parent / "oracle"


def oracle(fluid):
    """The interpreter with the real Paddle."""
    variable = "PADDLEJAX_ORACLE18" if fluid else "PADDLEJAX_ORACLE3"
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a Python with paddlepaddle {'1.8.5' if fluid else '3.3.1'}")
    return os.environ[variable]


def continued(case, folder):
    """What the real Paddle makes of model_10 and its state in a folder, after ten more steps."""
    out = folder / "out.npz"
    if case.fluid:
        files = [SCRIPTS / "continue_fluid18.py", FOLDER / case.name, folder / "ours"]
    else:
        files = [
            SCRIPTS / "continue_paddle3.py",
            FOLDER / case.name,
            folder / "ours.pdparams",
            folder / "ours.pdopt",
        ]
    # Paddle 3.x prints warnings of its own; the exit status tells
    ran = subprocess.run(
        [oracle(case.fluid), *files, out], capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    with np.load(out) as npz:
        return {k: x.view(jnp.bfloat16) if x.dtype == np.uint16 else x for k, x in npz.items()}


def bfloat16_steps(case, values):
    """The CPU kernel of 3.3.1 on bfloat16: every operation is rounded, and the master never moves."""
    new = dict(values)
    for step in range(HALF + 1, 21):
        rate = jnp.asarray(case.manifest["lr"][step - 1], jnp.bfloat16)
        new = {key: np.asarray(p - rate * case.of(f"grad/{step}")[key]) for key, p in new.items()}
    return new


def check(case, found, values):
    params, accumulators = case.expected(20)
    if case.of("master/10"):
        params = bfloat16_steps(case, values)
        accumulators = {}
    worst = [error(found[f"param/{key}"], want) for key, want in params.items()]
    worst += [error(found[f"acc/{key}"], want) for key, want in accumulators.items()]
    assert max(worst) <= TOLERANCE
    np.testing.assert_allclose(found["lr"], case.manifest["lr"][HALF:], rtol=1e-6)
    print(f"{case}: {max(worst):.1e}")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_real_paddle_continues_our_object(case, tmp_path):
    """Ten steps of ours from the start, then ten of theirs."""
    oracle(case.fluid)
    with case.precision():
        params, scheduler = case.parameters(), case.scheduler()
        opt = case.optimizer(params, scheduler)
        case.run(opt, scheduler, params, 1, HALF)
        tree = {k: paddle.Parameter(p.value, p.name) for k, p in zip(case.names, params, strict=True)}
        protocol = 2 if case.fluid else 4
        save_parameters(tree, tmp_path / "ours.pdparams", protocol=protocol)
        save_optimizer(opt, tmp_path / "ours.pdopt", protocol=protocol)
        values = {key: p.numpy() for key, p in tree.items()}
    check(case, continued(case, tmp_path), values)


def pure(case):
    """A float rate, or one that is a function of the count, and that Paddle's scheduler can go on with."""
    spec = case.config["scheduler"]
    if not isinstance(spec, list):
        return True
    # a warm-up around another scheduler wants that one's state too; 1.x schedules have states of their own
    return not case.fluid and spec[0] != "LinearWarmup" and case.schedule() is not None


PURE = [case for case in CASES if pure(case)]


@pytest.mark.slow
@pytest.mark.parametrize("case", PURE, ids=str)
def test_real_paddle_continues_our_functions(case, tmp_path):
    """The same from a functional state: with our additions in the file, and Paddle's names by a map."""
    oracle(case.fluid)
    with case.precision():
        params, tx, names = case.tree("init"), case.transformation(), parameter_names(case.model(HALF))
        state = tx.init(params)
        for step in range(1, HALF + 1):
            updates, state = tx.update(case.tree(f"grad/{step}"), state, params)
            params = paddle.apply_updates(params, updates)
        scheduled = isinstance(case.config["scheduler"], list)
        protocol = 2 if case.fluid else 4
        schedule = case.schedule() if scheduled else None
        save_optimizer(state, tmp_path / "ours.pdopt", names, schedule=schedule, protocol=protocol)
        save_parameters(params, tmp_path / "ours.pdparams", names, protocol=protocol)
        values = {f"{a}.{b}": np.asarray(x) for a, layer in params.items() for b, x in layer.items()}
    check(case, continued(case, tmp_path), values)
