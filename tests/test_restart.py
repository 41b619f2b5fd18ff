"""A run that goes on with another number of devices: through files, a folder and orbax, cut in every way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paddlejax as pj
from paddlejax.checkpoint import (
    load_optimizer,
    load_parameters,
    save_checkpoint,
    save_optimizer,
    save_parameters,
)
from paddlejax.distributed import fsdp_shardings, pipelined, state_shardings, zero1

TX = pj.adam(0.01)
LAYERS, WIDTH = 24, 5  # 8, 6 and 4 devices share the layers, and none of them the width


def layer(p, x):
    return x + jnp.tanh(x @ p["w"] + jnp.broadcast_to(p["b"], x.shape))


def in_a_row(p, x):
    return jax.lax.scan(lambda x, p: (layer(p, x), None), x, p)[0]


class Run:
    """A training, cut over n devices in one of the ways."""

    def __init__(self, kind, n):
        self.kind, self.tx, self.apply = kind, TX, in_a_row
        mesh = jax.make_mesh((n,), ("x",), (AxisType.Auto,), devices=jax.devices()[:n])
        rng = np.random.default_rng(0)
        shapes = {"w": (LAYERS, WIDTH, WIDTH), "b": (LAYERS, WIDTH)}
        params = {k: rng.normal(size=shape).astype("f") / 4 for k, shape in shapes.items()}
        self.x = rng.normal(size=(24, WIDTH)).astype("f")
        where = {"one": P(), "zero1": P(), "pipelined": P("x")}
        if kind == "zero1":
            self.tx = zero1(TX, mesh, "x")
        if kind == "pipelined":
            self.apply = pipelined(layer, mesh, "x", 3)
        if kind == "fsdp":
            self.there = fsdp_shardings(params, mesh, "x", min_size=1)
        else:
            self.there = jax.tree.map(lambda p: NamedSharding(mesh, where[kind]), params)
        self.params = jax.device_put(params, self.there)
        self.held = jax.jit(TX.init, out_shardings=state_shardings(TX, self.params))(self.params)
        self.state = self.tx.init(self.params) if kind == "zero1" else self.held
        self.run = jax.jit(self._step)

    def _step(self, params, state):
        grads = jax.grad(lambda p: jnp.mean(self.apply(p, self.x) ** 2))(params)
        updates, state = self.tx.update(grads, state, params)
        return pj.apply_updates(params, updates), state

    def step(self, times):
        for _ in range(times):
            self.params, self.state = self.run(self.params, self.state)

    @property
    def portable(self):
        """The state that does not depend on the number of devices."""
        return self.tx.whole(self.state, self.params) if self.kind == "zero1" else self.state

    def take(self, params, state):
        """Go on from what was loaded, which lies as it will."""
        self.params = params
        fresh = self.state
        self.state = self.tx.load(state, params) if self.kind == "zero1" else state
        for x, y in zip(*map(jax.tree.leaves, ((params, self.state), (self.there, fresh))), strict=True):
            assert x.sharding.is_equivalent_to(y if isinstance(y, NamedSharding) else y.sharding, x.ndim)


def through_files(old, new, folder):
    save_parameters(old.params, folder / "m.pdparams")
    save_optimizer(old.portable, folder / "m.pdopt")
    params = load_parameters(new.params, folder / "m.pdparams")
    new.take(params, load_optimizer(new.held, folder / "m.pdopt"))


def through_a_folder(old, new, folder):
    save_checkpoint(folder / "f", old.params, old.portable)
    new.take(load_parameters(new.params, folder / "f"), load_optimizer(new.held, folder / "f"))


def through_orbax(old, new, folder):
    ocp = pytest.importorskip("orbax.checkpoint", reason="needs orbax-checkpoint, in paddlejax[test]")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "o", (old.params, old.portable))
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, (new.params, new.held))
        new.take(*checkpointer.restore(folder / "o", target))


@functools.cache
def never_stopped():
    one = Run("one", 1)
    one.step(4)
    return jax.device_get((one.params, one.state))


WAYS = [(8, 4, through_orbax), (4, 6, through_orbax), (4, 6, through_files), (4, 6, through_a_folder)]


@pytest.mark.parametrize("kind", ["zero1", "pipelined", "fsdp"])
@pytest.mark.parametrize("before, after, way", WAYS)
def test_a_run_goes_on_with_another_number_of_devices(kind, before, after, way, tmp_path):
    old, new = Run(kind, before), Run(kind, after)
    old.step(2)
    way(old, new, tmp_path)
    new.step(2)
    found = new.params, new.portable
    for x, y in zip(*map(jax.tree.leaves, (found, never_stopped())), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6)
