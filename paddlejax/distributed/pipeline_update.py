"""The update of parameters that live on the places of a pipeline's stages: by a transformation, or by a
Paddle-style optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..hyper import ArgumentError
from ..optimizer.compiled import CompiledStep
from ..optimizer.optimizer import Optimizer
from ..optimizer.parameter import Parameter
from ..transform import apply_updates, chain
from .placed import Placed
from .transfer import home, put


def mean(params: Sequence[Any], sums: Sequence[list[Any]], count: int) -> list[Any]:
    """Per stage the tree of mean gradients, in the parameters' dtypes."""
    grads = []
    for tree, leaves in zip(params, sums, strict=True):
        pairs = zip(jax.tree.leaves(tree), leaves, strict=True)
        means = [(s / count).astype(p.dtype) for p, s in pairs]
        grads.append(jax.tree.unflatten(jax.tree.structure(tree), means))
    return grads


def put_like(new: Any, old: Any) -> Any:
    """Arrays where those before them were: a 0-d parameter may have been updated elsewhere."""

    def back(x: Any, before: Any) -> Any:
        device = home(before)
        return x if device is None else put(x, device)

    return jax.tree.map(back, new, old)


class TreeUpdate:
    """One update by a transformation that sees the list of all stages' trees, wherever they are."""

    def __init__(self, tx: Any, first: Any, count: int):
        self.tx, self.count = chain(tx), count
        self._whole, self._stage = Placed(self._mean_step, first), jax.jit(self._step)

    def init(self, params: list[Any]) -> Any:
        """Return the state of a stage's parameters."""
        return self.tx.init(params)[0]

    def init_apart(self, params: list[Any], places: Sequence[Any]) -> Any:
        """The state for stages in several processes; here are the values of all."""
        owners = _homes_of_state(self.init, params, _only)
        return jax.tree.map(lambda x, s: put(x, places[s]), self.init(params), owners)

    def init_stages(self, params: list[Any]) -> list[Any]:
        """A state for each stage, which sees the others' leaves as None."""
        self._check_apart(params)
        return [self.init(_only(params, s)) for s in range(len(params))]

    def step(self, params: list[Any], state: Any, sums: list[Any]) -> tuple[list[Any], Any]:
        """Return a stage's new parameters and state, given its sums of gradients."""
        return put_like(self._whole(params, state, sums), (params, state))

    def step_stage(self, trees: list[Any], stage: int, params: Any, state: Any, grads: list[Any]) -> Any:
        """The update of one stage; `trees` are the parameters of all, for their structure."""
        tree = jax.tree.unflatten(jax.tree.structure(params), grads)
        params, state = self._stage(_at(trees, stage, params), state, _at(trees, stage, tree))
        return params[stage], state

    def _mean_step(self, params: list[Any], state: Any, sums: list[Any]) -> tuple[list[Any], Any]:
        return self._step(params, state, mean(params, sums, self.count))

    def _step(self, params: list[Any], state: Any, grads: list[Any]) -> tuple[list[Any], Any]:
        updates, (state,) = self.tx.update(grads, (state,), params)
        return apply_updates(params, updates), state

    def _check_apart(self, params: list[Any]) -> None:
        state, grads = self.init(params), jax.tree.map(jnp.zeros_like, params)
        check_apart(lambda grads, params, state: self._step(params, state, grads)[0], grads, params, state)


def check_apart(function: Any, grads: list[Any], *others: Any) -> None:
    """Refuse an update (grads, ...) -> list of trees in which a stage depends on other stages' gradients."""
    tags = [frozenset([s]) for s, tree in enumerate(grads) for _ in jax.tree.leaves(tree)]
    tags += [frozenset()] * len(jax.tree.leaves(others))
    for s, tree in enumerate(Placed(function, None).sources(tags, grads, *others)):
        foreign = frozenset().union(*jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, frozenset))) - {s}
        if foreign:
            raise ArgumentError(
                f"optimizer: found one whose update of stage {s} depends on gradients of stage "
                f"{min(foreign)}, through a global norm for example, expected one that treats stages apart, "
                "since with mode='async' each is updated by itself; mode='sync' takes any"
            )


def _only(trees: list[Any], stage: int) -> list[Any]:
    return _at(trees, stage, trees[stage])


def _at(trees: list[Any], stage: int, value: Any) -> list[Any]:
    """The value as one stage's tree, None at the leaves of the others, so that paths stay what they are."""
    return [value if s == stage else jax.tree.map(lambda _: None, t) for s, t in enumerate(trees)]


class ObjectUpdate:
    """The step of a Paddle-style optimizer whose Parameters are on different devices.

    It runs the optimizer's own compiled step, equation by equation where the arrays are, and leaves values,
    accumulators and the schedule as `optimizer.step()` would.
    """

    def __init__(self, optimizer: Optimizer, first: Any):
        self.optimizer, self.first = optimizer, first

    def step(self, grads: Mapping[Parameter, Any], taken: Callable[[], None]) -> None:
        """Update every Parameter that has a gradient here; `taken` as in `Optimizer.apply`."""
        optimizer = self.optimizer
        optimizer.apply(
            [grads.get(p) for p in optimizer.parameter_list], taken=taken, program_of=self._program
        )

    def _program(self, compiled: CompiledStep) -> Callable[..., Any]:
        """Return the function of the compiled step, run where its arrays are."""
        placed = compiled.elsewhere.setdefault(self, Placed(compiled.update, self.first))

        def run(values: Any, state: Any, grads: Any, rate: Any) -> Any:
            return put_like(placed(values, state, grads, rate), (values, state))

        return run


def _homes_of_state(init: Any, params: Sequence[Any], only: Any) -> Any:
    """For every leaf of init(params) the stage that it belongs to; stage 0 for what all have in common."""
    stages = range(len(params))
    tree = jax.eval_shape(init, params)
    owned = [_paths(jax.eval_shape(init, only(params, s))) for s in stages]
    owners = {path: [s for s in stages if path in owned[s]] for path in _paths(tree)}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: owners[path][0] if len(owners[path]) == 1 else 0, tree
    )


def _paths(tree: Any) -> list[Any]:
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
