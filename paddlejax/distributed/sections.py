"""The sections of a pipeline as compiled programs: forward, backward, and both in one for the last stage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ..accumulate import add
from ..optimizer.call import scalar
from ..trees import compute_dtype
from .pipeline_schedule import stage_of


class Sections:
    """2k-1 programs made of k stage functions; gradients of stages are lists of leaves.

    What goes forward is whatever tree the stage returned. What comes back is the list of cotangents of its
    floating leaves: others, such as token ids that travel along, have none.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], recompute: bool):
        self.functions, self.stages = list(functions), len(functions)
        *inner, last = functions
        self._forward = [jax.jit(f if recompute else _forward(f, i == 0)) for i, f in enumerate(inner)]
        self._backward = [jax.jit(_again(f, i == 0) if recompute else _pull) for i, f in enumerate(inner)]
        self._last = jax.jit(_loss_and_gradients(last, self.stages == 1))
        self.recompute = recompute

    def forward(self, section: int, params: Any, x: Any) -> tuple[Any, Any]:
        """What the stage returns, and what its backward will need."""
        result = self._forward[section](params, x)
        return (result, (params, x)) if self.recompute else result

    def last(self, params: Any, x: Any, y: Any) -> tuple[jax.Array, list[Any], list[Any]]:
        """The loss, the gradients of the last stage, and the cotangents of what came into it."""
        return self._last(params, x, y)

    def backward(self, section: int, residuals: Any, cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
        """The gradients of the stage, and the cotangents of what came into it."""
        return self._backward[stage_of(section, self.stages)](residuals, cotangents)

    def shapes(self, params: Sequence[Any], x: Any, y: Any) -> list[Any]:
        """What every stage hands on, and the loss; nothing is computed.

        A stage that does not fit the one before it, and a loss that is no scalar, are errors here.
        """
        *inner, last = self.functions
        handed = []
        for i, f in enumerate(inner):
            with section_note(i):
                handed.append(x := jax.eval_shape(f, params[i], x))
        with section_note(len(inner)):
            return [*handed, jax.eval_shape(_checked(last), params[-1], x, y)]


@contextmanager
def section_note(section: int, micro_batch: int | None = None) -> Iterator[None]:
    """Whatever fails inside says in which section of the pipeline it did."""
    try:
        yield
    except Exception as e:
        on = "" if micro_batch is None else f" on micro-batch {micro_batch}"
        e.add_note(f"in section {section} of the pipeline{on}")
        raise


@jax.jit
def start_sum(grads: list[Any]) -> list[jax.Array]:
    """Copies in the dtype in which gradients are summed, float32 or wider."""
    return [jnp.array(g, compute_dtype((), g)) for g in grads]


# Only such copies are donated: a gradient itself may be the very array that another section is given, as in
# x + bias, and what is in flight must not be overwritten.
add_to = jax.jit(add, donate_argnums=0)


def floats(tree: Any) -> list[Any]:
    """Return the floating leaves of a tree: those that have gradients."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]


def _with_floats(tree: Any, new: list[Any]) -> Any:
    """The tree with other floating leaves."""
    replaced = iter(new)
    inexact = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(tree)]
    leaves = [next(replaced) if here else x for x, here in zip(jax.tree.leaves(tree), inexact, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _vjp(f: Callable[..., Any], first: bool, params: Any, x: Any) -> tuple[Any, Any]:
    """f(params, x) and its vjp, from cotangents of floats(result) to (gradients, cotangents of floats(x))."""
    tree = jax.tree.structure(params)

    def run(leaves: list[Any], entered: list[Any]) -> tuple[list[Any], Any]:
        result = f(tree.unflatten(leaves), _with_floats(x, entered))
        return floats(result), result

    if first:  # nobody wants the gradient of the data
        entered = floats(x)
        _, pull, result = jax.vjp(lambda leaves: run(leaves, entered), jax.tree.leaves(params), has_aux=True)
    else:
        _, pull, result = jax.vjp(run, jax.tree.leaves(params), floats(x), has_aux=True)
    return result, pull


def _forward(f: Callable[..., Any], first: bool) -> Callable[..., Any]:
    """Return the forward pass of a stage, which also returns what backward needs."""
    return lambda params, x: _vjp(f, first, params, x)


def _pull(pull: Any, cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
    # The vjp is a pytree of residuals: it leaves one compiled program and enters another.
    grads, *entered = pull(cotangents)
    return grads, entered[0] if entered else []


def _again(f: Callable[..., Any], first: bool) -> Callable[..., Any]:
    """Return the backward pass of a stage that computes its forward pass again."""
    return lambda residuals, cotangents: _pull(_vjp(f, first, *residuals)[1], cotangents)


def _checked(f: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Return the last stage, which must return a scalar."""
    name = getattr(f, "__name__", "the last stage")
    return lambda params, x, y: scalar(name, f(params, x, y))


def _loss_and_gradients(f: Callable[..., Any], first: bool) -> Callable[..., Any]:
    """Return the last stage's forward and backward passes in one."""

    def run(params: Any, x: Any, y: Any) -> tuple[jax.Array, list[Any], list[Any]]:
        loss, pull = _vjp(lambda params, x: _checked(f)(params, x, y), first, params, x)
        return loss, *_pull(pull, [jnp.ones_like(loss)])

    return run
