"""Training in real processes: this file is also the script that they run."""

import functools
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as paddle
from paddlejax.distributed import DGCMomentumOptimizer
from paddlejax.distributed.processes import VARIABLES, _free_port, initialize, launch
from paddlejax.distributed.sharding import zero1
from paddlejax.hyper import ArgumentError

# ------------------------------------------------------------------------------------ what the processes do


def loss_of(params, x, y):
    hidden = jnp.tanh(x @ params["w1"] + params["b"][None, :])
    return jnp.mean((hidden @ params["w2"] - y) ** 2)


def train(tx, mesh, steps, before_step=lambda i: None):
    """The losses and the parameters of data-parallel training on the mesh of all processes."""
    rng = np.random.default_rng(0)
    shapes = {"b": (24,), "w1": (16, 24), "w2": (24, 4)}

    def place(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda a: jax.make_array_from_callback(a.shape, sharding, lambda i: a[i]),
            jax.tree.map(lambda a: a.astype(np.float32), tree),
        )

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return paddle.apply_updates(params, updates), state, loss

    params = place({name: rng.normal(size=shape) / 4 for name, shape in shapes.items()}, P())
    state, losses = tx.init(params), []
    for i in range(steps):
        before_step(i)
        x, y = place((rng.normal(size=(32, 16)), rng.normal(size=(32, 4))), P("data"))
        if i == steps // 2:
            state = paddle.set_learning_rate(state, 0.01)
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return {"losses": losses, **{name: p.addressable_data(0) for name, p in params.items()}}


OPTIMIZERS = {
    "adam": lambda mesh: paddle.adam(0.05),
    "lamb": lambda mesh: zero1(
        paddle.chain(paddle.clip_by_global_norm(0.1), paddle.lamb(0.05)), mesh, "data"
    ),
}


@paddle.loss
def squares(params, x):
    return jnp.mean((x @ params["w"] - 1) ** 2)


def save_and_load(mesh, path):
    """What no process has whole: the state of DGC, by its state_dict, and that of ZeRO-1, gathered."""
    path = f"{path}.{jax.process_index()}.pdopt"
    x, w = np.random.default_rng(1).normal(size=(2, 128, 128)).astype(np.float32)
    make = functools.partial(DGCMomentumOptimizer, 0.1, 0.9, 0, 1, [0.9], mesh=mesh)
    opt = make(parameter_list={"w": w})
    opt.minimize(squares(opt.parameters, x))
    entries = opt.state_dict()
    assert entries["w__dgc_v__0"].shape == (4, 128, 128) and np.any(entries["w__dgc_v__0"])
    paddle.save(entries, path)
    again = make(parameter_list={"w": np.asarray(opt.parameters["w"].value)})
    again.set_state_dict(paddle.load(path))
    for o in (opt, again):
        o.minimize(squares(o.parameters, x))
    ours, theirs = opt.state_dict(), again.state_dict()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)

    params = {"w": jax.device_put(w, NamedSharding(mesh, P()))}
    tx = zero1(paddle.adam(0.1), mesh, "data")
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert not state.slots["moment1"]["w"].is_fully_addressable or jax.process_count() == 1
    whole = process_allgather(state, tiled=True)
    paddle.checkpoint.save_optimizer(whole, path, params={"w": w})
    found = paddle.checkpoint.load_optimizer(whole, path, params={"w": w})
    np.testing.assert_array_equal(found.slots["moment1"]["w"], whole.slots["moment1"]["w"])


def worker(task, *args):
    assert initialize() and initialize()  # the second does nothing
    me = jax.process_index()
    if task == "fail":
        raise ArithmeticError(f"process {me} cannot go on") if me == 1 else time.sleep(100)
    if task == "wait":
        time.sleep(100)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    if task == "train":
        results = {name: train(make(mesh), mesh, 8) for name, make in OPTIMIZERS.items()}
        if me == 0:
            named = {f"{name}_{k}": v for name, r in results.items() for k, v in r.items()}
            np.savez(args[0], devices=len(jax.devices()), local=len(jax.local_devices()), **named)
            print("trained")
        save_and_load(mesh, args[0])
    if task == "die":

        def die(i):
            if me == 1 and i == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        train(OPTIMIZERS["adam"](mesh), mesh, 10**6, die)


if __name__ == "__main__":
    worker(*sys.argv[1:])


# ---------------------------------------------------------------------------------------------- the tests


def test_two_processes_compute_what_one_does(tmp_path, capfd):
    """Data parallel with Adam, and ZeRO-1 with a clip and LAMB: 1 process x 4 devices, and 2 x 2.

    They also save and load states.
    """
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.npz"
        assert launch(__file__, processes, ["train", out], 4 // processes, timeout=100) == 0
        assert "trained" in capfd.readouterr().out
        found[processes] = dict(np.load(out))
        assert found[processes].pop("devices") == 4
        assert found[processes].pop("local") == 4 // processes
    assert found[1]["adam_losses"][-1] < found[1]["adam_losses"][0]
    for name, expected in found[1].items():
        np.testing.assert_allclose(found[2][name], expected, rtol=0, atol=1e-6 * max(1, abs(expected).max()))


def test_launch_names_the_process_that_was_killed(capfd):
    assert launch(__file__, 2, ["die"], timeout=100) == 128 + signal.SIGKILL
    assert "launch: process 1 of 2 (pid " in (err := capfd.readouterr().err)
    assert "was killed by SIGKILL; the others were stopped" in err


def test_launch_shows_why_a_process_failed(capfd):
    """At once, although the other one waits for it."""
    start = time.monotonic()
    assert launch(__file__, 2, ["fail"], timeout=90) == 1
    assert time.monotonic() - start < 60
    err = capfd.readouterr().err
    assert "process 1 of 2" in err and "ended with status 1" in err
    assert "ArithmeticError: process 1 cannot go on" in err


def test_launch_ends_in_time(capfd):
    assert launch(__file__, 1, ["wait"], timeout=0.5) == 124
    assert "after 0.5 s these had not ended and were stopped: process 0 of 1" in capfd.readouterr().err


def test_a_survivor_does_not_wait_for_the_dead():
    """Without `launch` to stop it, as on a cluster: within 30 s of the death of the other."""
    with _free_port() as port:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        workers = []
        try:
            for i in range(2):
                run = dict(zip(VARIABLES, (f"127.0.0.1:{port}", "2", str(i)), strict=True))
                command = [sys.executable, __file__, "die"]
                workers.append(
                    subprocess.Popen(command, env={**environment, **run}, stderr=subprocess.DEVNULL)
                )
            survivor, dead = workers
            assert dead.wait(timeout=100) == -signal.SIGKILL
            assert survivor.wait(timeout=30) != 0
        finally:
            for process in workers:
                if process.poll() is None:
                    process.kill()
                process.wait()


@pytest.mark.parametrize(
    "values, message",
    [
        (("h:1", "2", None), "PADDLEJAX_PROCESS_ID: not set, expected beside PADDLEJAX_COORDINATOR"),
        (("h", "2", "0"), "PADDLEJAX_COORDINATOR: found 'h', expected host:port"),
        (("h:x", "2", "0"), "PADDLEJAX_COORDINATOR: found 'h:x', expected host:port"),
        (("h:1", "two", "0"), "PADDLEJAX_PROCESSES: found 'two', expected a number"),
        (
            ("h:1", "2", "2"),
            "PADDLEJAX_PROCESS_ID: found 2, expected less than PADDLEJAX_PROCESSES, which is 2",
        ),
    ],
)
def test_wrong_variables_say_what_is_wrong(monkeypatch, values, message):
    for name, value in zip(VARIABLES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match=message):
        initialize()


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: launch(__file__, 0), ArgumentError, "processes: found 0, expected a positive int"),
        (lambda: launch(__file__, 2.0), ArgumentError, "processes: found 2.0"),
        (lambda: launch(__file__, 2, (), 0), ArgumentError, "devices_per_process: found 0"),
        (lambda: launch(__file__, 2, timeout="1"), TypeError, "timeout: found '1'.*a number of seconds"),
        (
            lambda: launch(__file__, 2, timeout=0),
            ArgumentError,
            "timeout: found 0, expected a number above 0",
        ),
        (lambda: launch(__file__, 2, timeout=float("inf")), ArgumentError, "timeout: found inf"),
        (lambda: launch(__file__, 2, "train"), TypeError, "args: found 'train', expected a list or tuple"),
        (lambda: launch(__file__, 2, [None]), TypeError, "args: entry 0: found None, expected"),
        (lambda: launch(0, 2), TypeError, "script: found 0, expected the path of a Python script"),
        (
            lambda: launch("no/script.py", 2),
            FileNotFoundError,
            "script: found 'no/script.py', expected the path of a file",
        ),
    ],
)
def test_wrong_arguments_say_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_launch_from_a_shell(tmp_path):
    """The script's arguments, also those that look like the launcher's; the status is the script's."""
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    command = [sys.executable, "-m", "paddlejax.distributed", "--processes", "1", script, "--devices", "3"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 7 and ran.stdout == "['--devices', '3']\n"
    ran = subprocess.run([*command[:4], "0", script], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 2 and "processes: found 0, expected a positive int" in ran.stderr


def test_processes_do_not_launch_processes(monkeypatch):
    monkeypatch.setenv("PADDLEJAX_PROCESS_ID", "0")
    with pytest.raises(RuntimeError, match="called by a process that launch started"):
        launch(__file__, 2)


def test_alone_there_is_nothing_to_join(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert initialize() is False
