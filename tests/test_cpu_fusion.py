"""enable_cpu_fusion: the numbers stay, an update becomes one loop; and what happens where it cannot work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxlib.version
import numpy as np
import pytest
from cases import drawn
from compiled_steps import DISTINCT

from paddlejax.cpu_fusion import OPTION, SCATTERS

TESTS = Path(__file__).parent
SHAPE = (96, 128)
SMALL = 4096  # bytes of scalars and pointers
OTHERS = ["clip", "masters", "bfloat16", "vmap", "grad", "object"]  # beside the rules by themselves


def run(code: str, *arguments: str, **environment: str) -> str:
    """A process of its own, in which nothing of JAX has started; what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    environment = {**inherited, **strict, "JAX_PLATFORMS": "cpu", **environment, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def record(path: str) -> None:
    """Results, loops and temporaries of every rule in this process, as files beside `path`."""
    import jax
    import jax.numpy as jnp
    from compiled_steps import functional, loops, of_object, temp_bytes

    import paddlejax as paddle

    results: dict[str, np.ndarray] = {}
    programs: dict[str, Any] = {}
    p, grads = (jnp.asarray(x, jnp.float32) for x in drawn(*SHAPE, steps=4))

    def follow(name: str, tx: Any, p: Any, shape: Any = SHAPE) -> None:
        program, state = functional(tx, p), tx.init(p)
        programs[name] = {"loops": loops(program, shape), "temp": temp_bytes(program)}
        for g in grads:
            p, state = program(jnp.copy(p), state, g.astype(p.dtype))
        for i, x in enumerate(jax.tree.leaves((p, state))):
            results[f"{name}/{i}"] = np.asarray(x, np.float32)

    for name, case in DISTINCT.items():
        follow(name, case.make(), p)
    adam = paddle.adam(0.1)
    front = [paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1)]
    follow("clip", paddle.chain(*front, adam), p)
    follow("clip alone", paddle.chain(*front), p)
    follow("masters", paddle.with_master_weights(adam), p.astype(jnp.bfloat16))
    follow("bfloat16", adam, p.astype(jnp.bfloat16))

    def moved(rate: Any) -> Any:
        tx = paddle.momentum(rate)
        return tx.update(grads[0], tx.init(p), p)[0]

    results["vmap/0"] = jax.vmap(moved)(jnp.array([0.1, 0.2]))
    results["grad/0"] = jax.grad(lambda rate: jnp.sum(moved(rate) ** 2))(0.1)

    opt = paddle.optimizer.Adam(0.1, parameters={"w": p}, weight_decay=0.1)
    for g in grads:
        opt.parameters["w"].grad = g
        opt.step()
    results["object/0"] = opt.parameters["w"].numpy()
    opt = paddle.optimizer.AdamW(0.1, parameters={"w": p})
    opt.parameters["w"].grad = grads[0]
    opt.step()
    results["object/1"] = opt.parameters["w"].numpy()
    programs["object"] = {"loops": loops(of_object(opt), SHAPE), "temp": temp_bytes(of_object(opt))}

    np.savez(f"{path}.npz", **{name: np.asarray(x) for name, x in results.items()})
    Path(f"{path}.json").write_text(json.dumps(programs))


FUSED = """
import os, sys
import paddlejax.cpu_fusion as it
os.environ["XLA_FLAGS"] = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
assert it.enable_cpu_fusion() and it.enable_cpu_fusion()  # the second changes nothing
assert os.environ["XLA_FLAGS"].split() == [
    "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling",
    "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true",
]
from test_cpu_fusion import record
record(sys.argv[1])
"""

ROWS = """
import sys
import paddlejax.cpu_fusion as it
it.enable_cpu_fusion()
from test_cpu_fusion import stepped_rows
for name in sys.argv[1:]:
    try:
        print(stepped_rows(name))
    except RuntimeError as e:
        print(e)
"""


def stepped_rows(name: str) -> list[float]:
    """Tables and their slots after two steps on some of their rows, in one program.

    Two tables, or one where two scatters of shared values would abort whatever the rule.
    """
    import jax
    import jax.numpy as jnp

    import paddlejax as paddle

    names = "ab" if jaxlib.version.__version_info__ >= SCATTERS else "a"
    tx = getattr(paddle, name)(0.1, **({"lazy_mode": True} if name == "adam" else {}))
    tables = {name: jnp.asarray(drawn(6, 3, seed=i)[0], jnp.float32) for i, name in enumerate(names)}

    @jax.jit
    def step(tables: Any, state: Any, values: Any) -> Any:
        rows = paddle.SelectedRows(jnp.array([4, 0, 4]), values, 6)
        updates, state = tx.update({name: rows for name in tables}, state, tables)
        return paddle.apply_updates(tables, updates), state

    state = tx.init(tables)
    for values in jnp.asarray(drawn(3, 3, steps=2)[1], jnp.float32):
        tables, state = step(tables, state, values)
    return [float(x) for leaf in jax.tree.leaves((tables, state)) for x in jnp.ravel(leaf)]


PAIR = """
import jax, jax.numpy as jnp
one = jnp.ones((8, 16))
print(jax.jit(lambda x, y: (x + y, x * y)).lower(one, one).compile().as_text())
"""


def xla_obeys() -> bool:
    """Whether XLA has the option: without it two results that share their inputs stay two loops.

    It asks XLA and not the package, whose own probe could be wrong.
    """
    text = run(PAIR, XLA_FLAGS=f"--xla_backend_extra_options={OPTION}=true")
    return re.search(r"= \(.*\) fusion\(", text) is not None


@pytest.fixture(scope="module")
def obeyed() -> None:
    if not xla_obeys():
        pytest.skip(f"jaxlib {jaxlib.version.__version__} has no option {OPTION}")


@pytest.fixture(scope="module")
def modes(obeyed, tmp_path_factory) -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """(results, programs) without and with it."""
    folder = tmp_path_factory.mktemp("modes")
    record(str(folder / "plain"))
    run(FUSED, str(folder / "fused"))
    loaded = {}
    for mode in ("plain", "fused"):
        with np.load(folder / f"{mode}.npz") as results:
            loaded[mode] = dict(results), json.loads((folder / f"{mode}.json").read_text())
    return loaded


# asgd copies the gradients it keeps, and the others need a norm first.
ONE_LOOP = [n for n, c in DISTINCT.items() if c.make().source.rule.elementwise and c.name != "asgd"]


@pytest.mark.parametrize("name", [*DISTINCT, *OTHERS])
def test_the_numbers_stay(modes, name):
    plain, fused = (
        {key: x for key, x in results.items() if key.startswith(f"{name}/")} for results, _ in modes.values()
    )
    assert plain and plain.keys() == fused.keys()
    for key, expected in plain.items():
        largest = np.max(np.abs(expected), initial=0)
        np.testing.assert_allclose(fused[key], expected, rtol=0, atol=1e-6 * largest, err_msg=key)


@pytest.mark.parametrize("name", [*ONE_LOOP, "object"])
def test_an_update_is_one_loop_without_temporaries(modes, name):
    program = modes["fused"][1][name]
    (written,) = program["loops"]
    slots = name not in DISTINCT or DISTINCT[name].make().source.rule.slots
    assert written.count("f32[96,128]") >= 2 or not slots  # one loop with several results
    assert program["temp"] <= SMALL
    plain = modes["plain"][1][name]
    assert len(plain["loops"]) > 1 or not slots  # or there would be nothing to gain


def test_what_a_clip_costs(modes):
    """The clipped gradient is written once: documented in enable_cpu_fusion."""
    clip, alone = (modes["fused"][1][name] for name in ("clip", "clip alone"))
    assert len(clip["loops"]) == len(alone["loops"]) + 1  # jaxlib 0.10.0 needs one more for the norm itself
    assert clip["temp"] <= 4 * np.prod(SHAPE) + SMALL


@pytest.mark.parametrize("name", ["masters", "bfloat16"])
def test_narrow_parameters_cost_nothing_more(modes, name):
    fused, plain = modes["fused"][1][name], modes["plain"][1][name]
    assert len(fused["loops"]) <= len(plain["loops"]) and fused["temp"] <= plain["temp"] + SMALL


def test_rows_move_alike_or_are_refused_where_xla_would_abort(obeyed):
    """One scatter a tensor, into the parameter, is always fine; one into a slot beside it came with 0.12."""
    names = ["sgd", "momentum", "adagrad", "adam"]
    for name, printed in zip(names, run(ROWS, *names).splitlines(), strict=True):
        if name in ("adagrad", "adam") and jaxlib.version.__version_info__ < SCATTERS:
            assert printed.startswith("at a: found a SelectedRows gradient under enable_cpu_fusion")
        else:
            np.testing.assert_allclose(json.loads(printed), stepped_rows(name), rtol=1e-6, err_msg=name)


LATE = """
import os, sys
import paddlejax.cpu_fusion as it
import jax
if sys.argv[1] == "late":
    jax.devices()
else:
    it.OPTION = "xla_cpu_no_such_option"  # which XLA does not mind
try:
    it.enable_cpu_fusion()
except RuntimeError as e:
    print(os.environ.get("XLA_FLAGS"), it.stepping.reform is not None, e)
"""


@pytest.mark.parametrize("flags", [None, "--xla_force_host_platform_device_count=2"])
@pytest.mark.parametrize("why", ["late", "no option"])
def test_where_xla_does_not_fuse_is_an_error_and_changes_nothing(why, flags):
    """Because JAX runs already, or because jaxlib has no such option."""
    printed = run(LATE, why, **({"XLA_FLAGS": flags} if flags else {}))
    assert printed.startswith(f"{flags} False enable_cpu_fusion: ")
    assert "found JAX started already" in printed and "before anything else of JAX" in printed
    assert f"or jaxlib {jaxlib.version.__version__} without this option" in printed


TRACED_BEFORE = """
import jax, jax.numpy as jnp
import paddlejax as pj
import paddlejax.cpu_fusion as it
from compiled_steps import functional, loops
p = jnp.ones((8, 16))
step = jax.jit(lambda g: pj.adam(0.1).update(g, pj.adam(0.1).init(p), p))
step(p)
before = functional(pj.adam(0.1), p)
it.enable_cpu_fusion()
print(len(loops(before, p.shape)), len(loops(functional(pj.adam(0.1), p), p.shape)), step._cache_size())
"""


def test_where_the_option_was_set_from_outside_what_was_traced_before_is_traced_anew(obeyed):
    printed = run(TRACED_BEFORE, XLA_FLAGS=f"--xla_backend_extra_options={OPTION}=true")
    assert printed.split() == ["2", "1", "0"]


def test_elsewhere_than_on_cpu_nothing_changes(monkeypatch):
    import jax

    from paddlejax import cpu_fusion

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    assert cpu_fusion.enable_cpu_fusion() is False and cpu_fusion.stepping.reform is None
