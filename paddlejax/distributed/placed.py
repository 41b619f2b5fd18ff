"""One function over arrays that live on several devices: every equation runs where its arrays are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]  # jax 0.12 does not export all of them

from ..norms import plain_norms
from ..recent import Recent
from .transfer import elsewhere, home, is_here, put


@dataclass(eq=False)
class _Value:
    """An array between two equations."""

    aval: Any  # its shape and dtype
    home: Any  # its device; None: wherever it is wanted
    phase: int = -1  # of the program that makes it; -1 for what is given
    sources: frozenset[Any] = frozenset()  # tags of the inputs it depends on

    @property
    def is_array(self) -> bool:
        """Whether it is more than a scalar, which may travel."""
        return bool(jnp.shape(self.aval))


class _Equation(NamedTuple):
    apply: Callable[..., list[Any]]
    inputs: list[_Value]
    outputs: list[_Value]


class _Program(NamedTuple):
    """Equations of one device that run without a break, compiled."""

    device: Any
    inputs: list[_Value]
    outputs: list[_Value]
    run: Callable[..., list[Any]]


class _Plan(NamedTuple):
    inputs: list[_Value]
    consts: dict[_Value, Any]
    programs: list[_Program]
    outputs: list[_Value]
    tree: Any


class Placed:
    """A pure function of trees whose arrays are on different devices.

    It is traced as a whole and its equations are dealt out to the devices of their arrays: what concerns one
    array is computed beside it, and only scalars, such as the parts of a norm, go from device to device.
    What has no device of its own is computed on `first`, and so is an equation that takes whole arrays of
    several devices, such as a branch over the whole tree. Compiled once per shapes and devices, the last few
    of them. So an optimizer sees the whole tree, a global norm is one norm, and nothing is gathered.
    """

    def __init__(self, function: Callable[..., Any], first: Any):
        self.function, self.first = function, first
        self._plans: Recent[Any, _Plan] = Recent()

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        homes = [home(x) or (None if jnp.shape(x) else self.first) for x in leaves]
        avals = [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves]
        key = (tree, tuple(avals), tuple(homes))
        plan = self._plans.get(key) or self._plans.put(key, self._plan(args, homes))
        known = {**plan.consts, **dict(zip(plan.inputs, leaves, strict=True))}
        for program in plan.programs:
            values = [put(known[v], program.device) for v in program.inputs]
            here = is_here(program.device)
            made = (
                program.run(*values) if here else [elsewhere(v.aval, program.device) for v in program.outputs]
            )
            known.update(zip(program.outputs, made, strict=True))
        return plan.tree.unflatten([known[v] for v in plan.outputs])

    def sources(self, tags: Sequence[frozenset[Any]], *args: Any) -> Any:
        """For every output the tags of the inputs that it depends on; nothing is computed."""
        with plain_norms.set(True):
            closed, shape = jax.make_jaxpr(self.function, return_shape=True)(*args)
        inputs = [_Value(v.aval, None, sources=tag) for v, tag in zip(closed.jaxpr.invars, tags, strict=True)]
        outputs = _Walk(self.first, inline=True).through(closed.jaxpr, inputs, closed.consts)
        return jax.tree.unflatten(jax.tree.structure(shape), [v.sources for v in outputs])

    def _plan(self, args: tuple[Any, ...], homes: list[Any]) -> _Plan:
        """Trace the function and return its equations, divided into programs of one device each."""
        with plain_norms.set(True):
            closed, shape = jax.make_jaxpr(self.function, return_shape=True)(*args)
        inputs = [_Value(v.aval, at) for v, at in zip(closed.jaxpr.invars, homes, strict=True)]
        walk = _Walk(self.first)
        outputs = walk.through(closed.jaxpr, inputs, closed.consts)
        return _Plan(inputs, walk.consts, walk.programs(outputs), outputs, jax.tree.structure(shape))


class _Walk:
    """Deals out the equations of a traced function to (phase, device).

    What is made on another device is there one phase later, so that programs run phase by phase.
    """

    def __init__(self, first: Any, inline: bool = False):
        self.first, self.inline = first, inline
        self.consts: dict[_Value, Any] = {}
        self.parts: dict[tuple[int, Any], list[_Equation]] = {}

    def through(self, jaxpr: Jaxpr, inputs: Sequence[_Value], consts: Sequence[Any]) -> list[_Value]:
        """Walk through the equations of a jaxpr in order; return where each of its outputs is."""
        held = map(self._held, consts)
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*held, *inputs], strict=True))

        def read(v: Any) -> _Value:
            return self._held(v.val) if isinstance(v, Literal) else known[v]

        for eqn in jaxpr.eqns:
            values = [known[v] for v in eqn.invars if not isinstance(v, Literal)]
            inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
            arrays = {v.home for v in values if v.is_array and v.home is not None}
            if isinstance(inner, ClosedJaxpr) and (self.inline or len(arrays) > 1):
                made = self.through(inner.jaxpr, list(map(read, eqn.invars)), inner.consts)
            else:
                homes = arrays or {v.home for v in values if v.home is not None}
                at = homes.pop() if len(homes) == 1 else self.first
                phase = max([0, *(v.phase + (v.home != at) for v in values)])
                tags = frozenset().union(*(v.sources for v in values))
                made = [_Value(v.aval, at, phase, tags) for v in eqn.outvars]
                self.parts.setdefault((phase, at), []).append(_equation(jaxpr, eqn, values, made))
            known.update(zip(eqn.outvars, made, strict=True))
        return list(map(read, jaxpr.outvars))

    def _held(self, constant: Any) -> _Value:
        """Return the value that stands for a constant."""
        value = _Value(jax.typeof(constant), None if jnp.ndim(constant) else self.first)
        self.consts[value] = constant
        return value

    def programs(self, results: list[_Value]) -> list[_Program]:
        """The parts as compiled programs that hand on only what others or the caller want."""
        wanted = set(results)
        programs = []
        for (_, device), equations in sorted(self.parts.items(), key=lambda part: -part[0][0]):
            made = [v for e in equations for v in e.outputs]
            own = set(made)
            entered = [v for e in equations for v in e.inputs if v not in own]
            inputs, outputs = list(dict.fromkeys(entered)), [v for v in made if v in wanted]
            if outputs:
                wanted.update(inputs)
                programs.append(
                    _Program(device, inputs, outputs, jax.jit(_runner(equations, inputs, outputs)))
                )
        return programs[::-1]


def _equation(jaxpr: Jaxpr, eqn: Any, inputs: list[_Value], outputs: list[_Value]) -> _Equation:
    """Return one equation of a jaxpr as a function by itself."""
    variables = dict(zip((v for v in eqn.invars if not isinstance(v, Literal)), inputs, strict=True))
    alone = jaxpr.replace(
        constvars=[], invars=list(variables), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects
    )
    return _Equation(jaxpr_as_fun(ClosedJaxpr(alone, [])), list(variables.values()), outputs)


def _runner(equations: list[_Equation], inputs: list[_Value], outputs: list[_Value]) -> Callable[..., Any]:
    """Return a function that runs these equations in order."""

    def run(*values: Any) -> list[Any]:
        known = dict(zip(inputs, values, strict=True))
        for apply, entered, made in equations:
            known.update(zip(made, apply(*(known[v] for v in entered)), strict=True))
        return [known[v] for v in outputs]

    return run
