"""The transformation behind `zero1`: another one, whose state is spread over the devices of one axis."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import tree_flatten_with_path

from .. import spreading
from ..array_types import ArrayTree, Gradients
from ..collectives import in_parts
from ..hyper import ArgumentError
from ..lifting import GradientTransformation
from ..recent import Recent
from ..selected_rows import dense, is_rows
from ..transform import chain
from ..trees import align, flatten, path_name
from ..wrap import check_params
from .elementwise import is_elementwise
from .held import Cut, Held, constrained, cuts_of, lengthened, padded, with_axis
from .iterations import Assignment, dealt_out
from .own import own_shardings
from .partial_sums import PartialSums

SMALL = 2**16  # updates of so many elements are gathered with others: a message has its own price


class Zero1(GradientTransformation):
    """What `zero1` returns: the pair, and three functions.

    `describe(params)` is a table of what each device holds. `whole(state, params)` is the state as the
    wrapped transformation has it, `load(state, params)` one of any such form as it is held here.
    """

    describe: Callable[[Any], str]
    whole: Callable[[Any, Any], Any]
    load: Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class _Layout:
    """The parameters of one tree, and how they and their state lie."""

    tree: Any
    paths: list[Any]
    leaves: list[Any]  # shapes and dtypes
    own: list[NamedSharding]
    cuts: list[Cut]
    parts: list[PartitionSpec]
    held: Held
    longer: bool  # whether the transformation may be given tensors with zeros behind them

    def shape(self, i: int) -> tuple[int, ...]:
        """Return the shape in which the transformation sees a parameter."""
        shape, dim = list(self.leaves[i].shape), self.cuts[i].dim
        if self.longer and dim is not None:
            shape[dim] = padded(shape[dim], self.held.n)
        return tuple(shape)

    def placed(self, values: Any) -> Any:
        """Return a tree like the parameters on the mesh."""
        pairs = zip(self.tree.flatten_up_to(values), self.own, strict=True)
        return self.tree.unflatten([_put(x, sharding) for x, sharding in pairs])

    def shardings(self, even: bool = False) -> Any:
        """Return the shardings of the state as it is held, or of arrays in their own shapes."""
        if not even:
            return jax.tree.map(lambda x: x.sharding, self.held.structs())
        mesh, axis, n = self.held.mesh, self.held.axis, self.held.n
        specs = []
        for leaf in self.held.leaves.values():
            uneven = leaf.dim is not None and leaf.shape[leaf.dim] % n
            entries = [None if uneven and entry == axis else entry for entry in leaf.spec]
            specs.append(NamedSharding(mesh, with_axis(entries, None, axis)))
        return self.held.tree.unflatten(specs)


class Spread:
    """A transformation, and the axis of a mesh over which its state is spread."""

    def __init__(self, tx: Any, mesh: Mesh, axis: str, param_shardings: Any, memory_kind: str | None = None):
        self.inner = chain(tx)  # which hands extra arguments on to those that take them
        self.mesh, self.axis = mesh, axis
        self.param_shardings, self.memory_kind = param_shardings, memory_kind
        self.explicit = AxisType.Explicit in mesh.axis_types
        # Inside a program all axes are Auto, where parts need not be equal.
        self.auto = mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names)) if self.explicit else mesh
        self._layouts: Recent[Any, _Layout] = Recent()
        # For calls outside of jit: eager operations cannot take parts that are not equal.
        self._compiled = {f: jax.jit(f) for f in (self._init, self._update, self._whole, self._load)}

    def pair(self) -> Zero1:
        """Return what `zero1` returns."""
        pair = Zero1(self.init, self.update)
        pair.describe, pair.whole, pair.load = self.describe, self.whole, self.load
        return pair

    def init(self, params: ArrayTree) -> Any:
        """Return the state of these parameters, as it is held."""
        at = self._layout(params)
        if any(isinstance(p, jax.ShapeDtypeStruct) for p in at.tree.flatten_up_to(params)):
            return self._resting(at)
        if _is_traced(params):
            return self._init(params)
        return self._compiled[self._init](at.placed(params))

    def update(
        self, grads: Gradients, state: Any, params: ArrayTree | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        """Return the whole updates, and the state as it is held."""
        check_params("zero1", params)
        at = self._layout(params)
        align(at.tree, at.paths, grads, "gradients")  # says what is missing
        if _is_traced((grads, state, params, extra)):
            return self._update(grads, state, params, **extra)
        arguments = at.placed(grads), self._placed(at, state), at.placed(params)
        if all(isinstance(x, jax.Array | float) for x in jax.tree.leaves(extra)):
            return self._compiled[self._update](*arguments, **extra)
        return jax.jit(functools.partial(self._update, **extra))(*arguments)

    def whole(self, state: Any, params: ArrayTree) -> Any:
        """Return the state as the wrapped transformation has it, cut where the devices divide a dimension."""
        at = self._layout(params)
        if _is_traced((state, params)):
            return self._whole(state, params)
        return self._compiled[self._whole](self._placed(at, state), at.placed(params))

    def load(self, state: Any, params: ArrayTree) -> Any:
        """Return the state as it is held here, of `whole` or as any other number of devices held it."""
        at = self._layout(params)
        if _is_traced((state, params)):
            return self._load(state, params)
        return self._compiled[self._load](self._placed(at, state), at.placed(params))

    def describe(self, params: ArrayTree) -> str:
        """Return a table of what each device holds of every tensor, and who iterates which matrices."""
        at = self._layout(params)
        n, rows = self.mesh.shape[self.axis], [("path", "shape", "on each device")]
        leaves = at.tree.flatten_up_to(params)
        for path, p, cut, own in zip(at.paths, leaves, at.cuts, at.own, strict=True):
            if p is None:
                continue
            shape = list(jnp.shape(p))
            text = "all of it"
            if cut.joined:
                text = f"1/{n} of a buffer with others"
            elif cut.dim is not None:
                shape[cut.dim] = padded(shape[cut.dim], n)
                part = NamedSharding(self.mesh, with_axis(own.spec, cut.dim, self.axis)).shard_shape(
                    tuple(shape)
                )
                more = "" if tuple(shape) == jnp.shape(p) else f" of {tuple(shape)}"
                text = f"{part}{more}"
            rows.append((path_name(path), str(jnp.shape(p)), text))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._totals(at), *self._owners(at)])

    def _totals(self, at: _Layout) -> list[str]:
        held = jax.tree.leaves(at.held.structs())
        each = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in held)
        own = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in at.held.leaves.values()]
        share = f"1/{sum(own) / each:.2f}" if each else "nothing"
        return [f"state: {each:,} of {sum(own):,} bytes on each device, {share}"]

    def _owners(self, at: _Layout) -> list[str]:
        """Say which matrices are iterated where, if there are any."""
        found: list[tuple[Assignment, list[int]]] = []

        def step(state: Any, params: Any) -> Any:
            us, new = self._step(at, at.tree.flatten_up_to(params), state, params, {}, found)
            return at.tree.unflatten(us), new

        jax.eval_shape(step, at.held.shapes(at.longer), at.tree.unflatten(at.leaves))
        lines = []
        for owners, load in found:
            for kind, shares in owners.items():
                numbers = ", ".join(str(len(share)) for share in shares)
                lines.append(f"matrices of {kind[0][0]} x {kind[0][1]} by device: {numbers}")
            if any(load):  # matrices without elements cost nothing
                lines.append(f"largest share of their cost: 1/{sum(load) / max(load):.2f}")
        return lines

    # ---------------------------------------------------------------------------- inside of a program

    def _init(self, params: ArrayTree) -> Any:
        at = self._layout(params)

        def begin(leaves: list[Any]) -> Any:
            (state,) = self.inner.init(at.tree.unflatten(self._in_parts(at, leaves)))
            return at.held.closed(state, self.auto)

        return self._away(at, self._in_auto(begin, at.shardings(), at.tree.flatten_up_to(params)))

    def _whole(self, state: Any, params: ArrayTree) -> Any:
        at = self._layout(params)
        there = at.shardings(even=True)

        def open_up(state: Any) -> Any:
            opened = at.held.opened(state, self.auto)
            return jax.tree.map(lambda x, s: constrained(x, self.auto, s.spec), opened, there)

        return self._in_auto(open_up, there, self._here(state))

    def _load(self, state: Any, params: ArrayTree) -> Any:
        at = self._layout(params)
        run = lambda state: at.held.closed(at.held.opened(state, self.auto), self.auto)  # noqa: E731
        return self._away(at, self._in_auto(run, at.shardings(), self._here(state)))

    def _update(self, grads: Gradients, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        at = self._layout(params)
        gs, leaves = align(at.tree, at.paths, grads, "gradients"), at.tree.flatten_up_to(params)
        plain = {i: g for i, g in enumerate(gs) if getattr(g, "dtype", None) == jax.dtypes.float0}
        numbers, tree = jax.tree.flatten(extra)
        traced = [isinstance(x, jax.Array) for x in numbers]
        made: dict[int, Any] = {}

        def run(gs: list[Any], state: Any, leaves: list[Any], arrays: list[Any]) -> tuple[list[Any], Any]:
            some = iter(arrays)
            mixed = tree.unflatten([next(some) if t else x for x, t in zip(numbers, traced, strict=True)])
            gs = [plain.get(i, g) for i, g in enumerate(gs)]
            opened = at.held.opened(state, self.auto, at.longer)
            us, new = self._step(at, gs, opened, at.tree.unflatten(leaves), mixed, [])
            new = at.held.closed(new, self.auto)
            if not self.explicit:
                return us, new
            us = [dense(u) for u in us]
            made.update({i: u for i, u in enumerate(us) if not isinstance(u, jax.Array)})
            # The shardings of results are said beforehand: what is no array comes back beside them.
            return [jnp.zeros(jnp.shape(p)) if i in made else us[i] for i, p in enumerate(leaves)], new

        arrays = [x for x, t in zip(numbers, traced, strict=True) if t]
        given = [None if i in plain else g for i, g in enumerate(gs)]
        us, new = self._in_auto(run, (at.own, at.shardings()), given, self._here(state), leaves, arrays)
        return at.tree.unflatten([made.get(i, u) for i, u in enumerate(us)]), self._away(at, new)

    def _step(
        self, at: _Layout, gs: list[Any], state: Any, params: Any, extra: Any, owners: list[Any]
    ) -> tuple[list[Any], Any]:
        """Step in parts; return the whole updates, and the state with every array in its own shape."""
        grads = at.tree.unflatten(self._in_parts(at, gs))
        there = at.tree.unflatten(self._in_parts(at, at.tree.flatten_up_to(params)))
        sent = []

        def send(updates: Any) -> Any:
            sent.append(True)
            return at.tree.unflatten(self._gathered(at, align(at.tree, at.paths, updates, "updates")))

        deal = dealt_out(self.auto, self.axis, lambda *about: owners.append(about))
        dims = {
            at.shape(i): c.dim for i, c in enumerate(at.cuts) if c.dim is not None and not any(at.own[i].spec)
        }
        parts = PartialSums(self.auto, self.axis, dims)
        with spreading.whole_updates.set(send), spreading.all_at_once.set(deal), in_parts.set(parts):
            updates, (new,) = self.inner.update(grads, (state,), there, **extra)
        us = align(at.tree, at.paths, updates if sent else send(updates), "updates")
        us = [constrained(u, self.auto, own.spec) for u, own in zip(us, at.own, strict=True)]
        for i, (u, p) in enumerate(zip(us, at.leaves, strict=True)):
            if at.longer and isinstance(u, jax.Array) and u.shape != p.shape:
                us[i] = jax.lax.slice(u, [0] * u.ndim, p.shape)
        return us, new

    def _in_parts(self, at: _Layout, xs: list[Any]) -> list[Any]:
        """Return each tensor cut; the rows of a sparse gradient stay whole on every device."""
        xs = list(xs)
        for i, (x, part) in enumerate(zip(xs, at.parts, strict=True)):
            if is_rows(x):
                xs[i] = constrained(dense(x) if at.longer else x, self.auto)
            elif _is_data(x):
                xs[i] = constrained(lengthened(x, at.shape(i)), self.auto, part)
        return xs

    def _gathered(self, at: _Layout, us: list[Any]) -> list[Any]:
        """Return each tensor whole along the axis; small ones travel together."""
        us, small = self._in_parts(at, us), {}
        n = self.mesh.shape[self.axis]
        for i, (u, cut, own) in enumerate(zip(us, at.cuts, at.own, strict=True)):
            if cut.dim is None or not _is_data(u):
                continue
            if is_rows(u) or any(own.spec) or u.size > SMALL:
                us[i] = constrained(u, self.auto, own.spec)
            else:
                small.setdefault(u.dtype, []).append(i)
        for members in small.values():
            rows = []
            for i in members:
                x = jnp.moveaxis(us[i], at.cuts[i].dim or 0, 0)
                x = jnp.pad(x, [(0, padded(x.shape[0], n) - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])
                rows.append(constrained(x.reshape(n, -1), self.auto, (self.axis,)))
            joined = constrained(jnp.concatenate(rows, 1), self.auto, (self.axis,))
            whole, start = constrained(joined, self.auto), 0
            for i, row in zip(members, rows, strict=True):
                shape, dim = us[i].shape, at.cuts[i].dim or 0
                x = whole[:, start : start + row.shape[1]].reshape(-1, *shape[:dim], *shape[dim + 1 :])
                us[i], start = jnp.moveaxis(x[: shape[dim]], 0, dim), start + row.shape[1]
        return us

    def _in_auto(self, f: Callable[..., Any], out: Any, *arguments: Any) -> Any:
        """Call a function of which a program on an Explicit mesh sees only what enters and leaves it."""
        if not self.explicit:
            return f(*arguments)
        return jax.sharding.auto_axes(f, axes=self.mesh.axis_names, out_sharding=out)(*arguments)

    def _resting(self, at: _Layout) -> Any:
        """Return the state as it is held between two steps, of abstract arrays with their shardings."""
        kind, structs = self.memory_kind, at.held.structs()
        moved = lambda x: x.update(sharding=x.sharding.with_memory_kind(kind))  # noqa: E731
        return structs if kind is None else jax.tree.map(moved, structs)

    def _away(self, at: _Layout, state: Any) -> Any:
        """Return the state in the memory where it rests."""
        if self.memory_kind is None:
            return state
        return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, self._resting(at))

    def _here(self, state: Any) -> Any:
        """Return the state in the memory of the devices."""
        return state if self.memory_kind is None else jax.device_put(state, jax.memory.Space.Device)

    def _placed(self, at: _Layout, state: Any) -> Any:
        """Return a state on the mesh: where it is held, or whole where it is not held so yet."""
        known = dict(tree_flatten_with_path(self._resting(at))[0])
        whole = NamedSharding(self.mesh, PartitionSpec())

        def put(path: Any, x: Any) -> Any:
            held = known.get(path)
            return jax.device_put(
                x, held.sharding if held is not None and held.shape == jnp.shape(x) else whole
            )

        return jax.tree_util.tree_map_with_path(put, state)

    def _layout(self, params: Any) -> _Layout:
        """Return how parameters of this tree and shapes lie."""
        paths, leaves, tree = flatten(params)
        own = own_shardings("zero1", self.mesh, tree, paths, leaves, self.param_shardings, self.axis)
        structs = [
            None if p is None else jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in leaves
        ]
        about = tuple(None if p is None else (p.shape, p.dtype) for p in structs)
        key = tree, about, tuple(s.spec for s in own)
        known = self._layouts.get(key)
        if known is not None:
            return known
        if all(p is None for p in leaves):
            raise ArgumentError("zero1: found no parameter, expected at least one")
        shapes, specs = [None if p is None else p.shape for p in structs], [s.spec for s in own]
        n = self.mesh.shape[self.axis]
        cuts = cuts_of(n, self.axis, shapes, specs)
        parts = [with_axis(spec, cut.dim, self.axis) for spec, cut in zip(specs, cuts, strict=True)]
        state = jax.eval_shape(lambda p: self.inner.init(p)[0], tree.unflatten(structs))
        held = Held.of(self.mesh, self.axis, state, paths, shapes, specs, cuts)
        at = _Layout(tree, paths, structs, own, cuts, parts, held, True)
        return self._layouts.put(key, replace(at, longer=self._takes_longer(at)))

    def _takes_longer(self, at: _Layout) -> bool:
        """Whether zeros behind the tensors change nothing: then XLA need not take them off and on."""
        if all(p is None or at.shape(i) == p.shape for i, p in enumerate(at.leaves)):
            return False
        params = at.tree.unflatten(
            [
                None if p is None else jax.ShapeDtypeStruct(at.shape(i), p.dtype)
                for i, p in enumerate(at.leaves)
            ]
        )
        state = at.held.shapes(True)
        try:
            (found,) = jax.eval_shape(self.inner.init, params)
        except Exception:  # noqa: BLE001  # as in is_elementwise
            return False
        if jax.tree.leaves(found) != jax.tree.leaves(state):
            return False
        return is_elementwise(lambda g, s, p: self.inner.update(g, (s,), p), params, state, params)


def _put(x: Any, sharding: NamedSharding) -> Any:
    """Return an array on the mesh; the rows of a sparse gradient are whole on every device."""
    if not _is_data(x):
        return x
    return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()) if is_rows(x) else sharding)


def _is_traced(tree: Any) -> bool:
    """Return whether a function is being traced that all this is part of."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def _is_data(x: Any) -> bool:
    """Whether this is an array or a sparse gradient, and neither None nor JAX's float0."""
    return x is not None and getattr(x, "dtype", None) != jax.dtypes.float0
