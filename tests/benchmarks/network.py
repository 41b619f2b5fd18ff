"""A data-parallel step between two machines on a slow network: time and bytes, compressed and not.

    python tests/benchmarks/network.py                             100 Mbit/s, 10 ms each way
    python tests/benchmarks/network.py --mbit 1000 --ms 0.1 --small 0 --devices 4
    python tests/benchmarks/network.py --script examples/train_dgc.py --devices 4 -- --epochs 12

The machines are two network namespaces, joined by wan.c, which delays and limits. That needs Linux, root,
iproute2, /dev/net/tun and a C compiler. The network is 4 square matrices in float32 and --small vectors, as
biases and norms are. Times are medians over --steps steps (of diloco means over 20, of which one exchanges),
bytes are those the first machine receives in a step, headers included. `--script` runs a script that calls
`initialize()` on both instead.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ADDRESSES = "10.78.0.1", "10.78.0.2"
DEVICE = "wan"
KINDS = ["compute", "dense", "joined", "dgc", "diloco"]
LOCAL = 20  # steps of diloco between two exchanges


# ------------------------------------------------------------------------------------------ the machines


def what_is_missing() -> str | None:
    """Why no network can be built on this machine, or None."""
    if sys.platform != "linux":
        return "network namespaces: they are Linux's"
    if os.geteuid() != 0:
        return "root, which may make network namespaces"
    for program in ("ip", "unshare", "cc"):
        if shutil.which(program) is None:
            return f"the program {program}"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun"
    probe = f"paddlejax-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "the right to make network namespaces"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


@contextmanager
def two_machines(ms: float, mbit: float) -> Iterator[list[str]]:
    """The names of two network namespaces that see each other over a link with this delay and rate."""
    names = [f"paddlejax-{os.getpid()}-{side}" for side in "ab"]
    with ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory())
        forwarder = f"{folder}/wan"
        subprocess.run(["cc", "-O2", "-o", forwarder, HERE / "wan.c"], check=True)
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name])
            hosts = Path("/etc/netns", name)  # what `ip netns exec` shows as /etc
            hosts.mkdir(parents=True)
            undo.callback(shutil.rmtree, hosts)
            lines = ["127.0.0.1 localhost", *map(" ".join, zip(ADDRESSES, names, strict=True))]
            (hosts / "hosts").write_text("\n".join(lines) + "\n")
        link = subprocess.Popen([forwarder, str(ms), str(mbit), *names], stdout=subprocess.PIPE)
        undo.callback(link.wait)
        undo.callback(link.kill)
        assert link.stdout is not None and link.stdout.readline() == b"up\n"
        for name, address in zip(names, ADDRESSES, strict=True):
            ip = ["ip", "-n", name]
            subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
            subprocess.run([*ip, "addr", "add", f"{address}/24", "dev", DEVICE], check=True)
            queue = ["mtu", "1500", "txqueuelen", "5000"]
            subprocess.run([*ip, "link", "set", DEVICE, *queue, "up"], check=True)
        yield names


def run_on(names: list[str], command: list[str], devices: int, timeout: float) -> str:
    """Run a command on both machines, one process each; what the first writes, or its error."""
    processes = []
    try:
        for i, name in enumerate(names):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "PADDLEJAX_COORDINATOR": f"{ADDRESSES[0]}:4321",
                "PADDLEJAX_PROCESSES": str(len(names)),
                "PADDLEJAX_PROCESS_ID": str(i),
                "no_grpc_proxy": ",".join(ADDRESSES),
            }
            named = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh", *command]
            out = subprocess.PIPE if i == 0 else subprocess.DEVNULL
            inside = ["ip", "netns", "exec", name, *named]
            processes.append(subprocess.Popen(inside, env=environment, stdout=out, text=True))
        written, _ = processes[0].communicate(timeout=timeout)
        statuses = [p.wait(timeout=timeout) for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.wait()
    if any(statuses):
        raise SystemExit(f"{' '.join(command)} ended with {statuses}")
    return written


# -------------------------------------------------------------------------------------- what is measured


def received() -> int:
    """Bytes that came over the link until now."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == DEVICE:
            return int(counts.split()[0])
    return 0


def measure(kind: str, numbers: float, small: int, sparsity: float, steps: int) -> None:
    """One of the two processes: train, and let the first print what a step took."""
    from paddlejax.distributed import dgc_momentum, diloco, initialize, local_grads, make_step

    initialize()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import paddlejax as paddle

    local = jax.local_device_count()
    mesh = jax.make_mesh((2, local), ("machine", "local"), axis_types=(AxisType.Auto,) * 2)
    both, size = ("machine", "local"), int((numbers / 4) ** 0.5) // 8 * 8
    rng = np.random.default_rng(0)
    params = {f"w{i}": (rng.normal(size=(size, size)) / size**0.5).astype("f") for i in range(4)}
    params |= {f"b{i:03d}": np.zeros(size, "f") for i in range(small)}

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        for i in range(small):
            x = jnp.tanh(x + params[f"b{i:03d}"])
        for i in range(4):
            x = jnp.tanh(x @ params[f"w{i}"])
        return jnp.mean((x - y) ** 2)

    def place(tree: Any, *spec: Any) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda i: a[i]), tree)

    batch = place(list(rng.normal(size=(2, 8, size)).astype("f")), both)
    tx = paddle.momentum(0.01, 0.9)
    if kind in ("compute", "dense"):
        params = place(params)
        state = tx.init(params)

        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return paddle.apply_updates(params, updates), state

        def dense(params: Any, state: Any, x: Any, y: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_of)(params, x, y)
            return *update(grads, state, params), loss

        def alone(params: Any, state: Any, x: Any, y: Any) -> Any:
            loss, grads = local_grads(loss_of, both)(params, x, y)
            return jax.tree.map(lambda a: a[None], (*update(grads, state, params), loss))

        if kind == "dense":
            step = jax.jit(dense)
        else:
            everywhere, own = PartitionSpec(), PartitionSpec(both)
            specs = (everywhere, everywhere, own, own)
            run = jax.jit(jax.shard_map(alone, mesh=mesh, in_specs=specs, out_specs=own))

            def step(params: Any, state: Any, *batch: Any) -> Any:
                return params, state, run(params, state, *batch)[2]
    else:
        tx = {
            "joined": lambda: tx,
            "dgc": lambda: dgc_momentum(0.01, 0.9, 0, 1, [sparsity], num_trainers=2, axis_name="machine"),
            "diloco": lambda: diloco(tx, LOCAL, 2, axis_name="machine"),
        }[kind]()
        step, params, state = make_step(loss_of, tx, mesh, params, "machine", inner_axis="local")

    for _ in range(2):
        params, state, loss = jax.block_until_ready(step(params, state, *batch))
    if kind == "diloco":  # whole rounds, and their mean: one step in LOCAL takes nearly all the time
        steps = LOCAL * math.ceil(steps / LOCAL)
    before, times = received(), []
    for _ in range(steps):
        start = time.perf_counter()
        params, state, loss = jax.block_until_ready(step(params, state, *batch))
        times.append(time.perf_counter() - start)
    if jax.process_index() == 0:
        result = {
            "ms": 1e3 * float((np.mean if kind == "diloco" else np.median)(times)),
            "bytes": (received() - before) / steps,
            "loss": float(np.ravel(loss.addressable_data(0))[0]),
        }
        print(json.dumps(result), flush=True)


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures, and how many times faster than the plain dense step each is."""
    lines = [f"{'':<10} {'ms':>10} {'times as fast':>14} {'kB received':>12} {'loss':>12}"]
    for kind, f in found.items():
        gain = f"{found['dense']['ms'] / f['ms']:.1f}" if "dense" in found else ""
        lines.append(f"{kind:<10} {f['ms']:>10.1f} {gain:>14} {f['bytes'] / 1000:>12.1f} {f['loss']:>12.8f}")
    return "\n".join(lines)


def main() -> None:
    """Build the network, run every kind on it, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mbit", type=float, default=100, help="rate of the link; default: 100")
    add("--ms", type=float, default=10, help="delay each way; default: 10")
    add("--devices", type=int, default=1, help="simulated devices of each machine; default: 1")
    add("--numbers", type=float, default=1e6, help="how many are in the matrices; default: 1e6")
    add("--small", type=int, default=64, help="vectors beside the matrices; default: 64")
    add("--sparsity", type=float, default=0.999, help="of dgc; default: 0.999")
    add("--steps", type=int, default=10, help="that are timed; default: 10")
    add("--kinds", default=",".join(KINDS), help=f"some of {','.join(KINDS)}; default: all")
    add("--script", help="run this on both machines instead, with what follows --")
    add("--worker", help=argparse.SUPPRESS)
    add("args", nargs="*", help="arguments of the script")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        parser.error(f"--kinds: found {unknown[0]!r}, expected some of {', '.join(KINDS)}")
    if given.worker:
        return measure(given.worker, given.numbers, given.small, given.sparsity, given.steps)
    missing = what_is_missing()
    if missing:
        print(f"skipped: this machine lacks {missing}")
        return
    with two_machines(given.ms, given.mbit) as names:
        if given.script:
            start = time.perf_counter()
            print(run_on(names, [sys.executable, given.script, *given.args], given.devices, 3600))
            print(f"{time.perf_counter() - start:.1f} s in all")
            return
        found = {}
        for kind in kinds:
            worker = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", kind]
            found[kind] = json.loads(run_on(names, worker, given.devices, 300).splitlines()[-1])
            print(f"{kind}: {found[kind]['ms']:.1f} ms", file=sys.stderr)
    print(f"{given.mbit:g} Mbit/s, {given.ms:g} ms each way, 2 machines with {given.devices} devices")
    print(table(found))


if __name__ == "__main__":
    main()
