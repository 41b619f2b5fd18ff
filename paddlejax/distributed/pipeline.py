"""Paddle's PipelineOptimizer: stages of a network on different devices, each at its own micro-batch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..array_types import ArrayTree
from ..attributes import Attributes
from ..hyper import checked, require
from ..optimizer.arguments import check_program
from ..optimizer.loss import Loss
from ..optimizer.optimizer import Optimizer, Pairs
from ..optimizer.parameter import Parameter
from ..optimizer.wrappers import WAYS
from ..recent import Recent
from ..tracing import check_outside
from .pipeline_arguments import (
    SETTINGS,
    check_stage_params,
    check_stages,
    checked_micro_batches,
    checked_places,
    split_batch,
)
from .pipeline_run import Pass, PipelinePass, Span
from .pipeline_schedule import pipeline_schedule
from .pipeline_update import ObjectUpdate, TreeUpdate
from .sections import Sections
from .transfer import elsewhere, everywhere, is_here, put, put_tree


class PipelineOptimizer(Attributes):
    """Train a network that is cut into stages, each on its own device, on several micro-batches at once.

    For porting: stages may differ, as in Paddle's programs, and each device has its thread. Where layers are
    equal, `pipelined` makes one program of them, which is faster.

    `cut_list` holds k stage functions: `f(params, x)` returns any tree of arrays, the next one's x; the last
    is `f(params, x, y)` and returns the mean loss of the micro-batch. They make 2k-1 sections: forwards 0 to
    k-2, forward and backward of the last stage, backwards k-2 to 0. `place_list` has a device for each
    section (default: `jax.devices()` in turn); entry i must equal entry 2k-2-i, which shares its parameters.
    A tuple of c devices, with `concurrency_list[i]` = c, replicates a section: micro-batch j runs on device
    j mod c. Without a tuple the numbers of `concurrency_list` have no effect.

    With mode='sync' (not Paddle 1.x's) a step takes the mean gradient of `num_microbatches` micro-batches and
    equals the step of the uncut network on all of them together; the optimizer sees the whole list of stages'
    trees, so a global norm is one norm and paths are `0/w`, `1/w`. With mode='async' (Paddle 1.x) a stage is
    updated as soon as its backward has run, and micro-batches in flight see older weights; with queue_size=1
    none are, and it is one plain step for each micro-batch.

    The stages may be in several processes (`processes.initialize`): all call the same methods with the same
    arguments, an array of another process is stood for by a ShapeDtypeStruct, and `gather` shows it all.

    `queue_size` bounds the micro-batches in flight. schedule='1F1B' never has more than there are devices,
    'GPipe' as many as it may. Either leaves devices idle for (k-1)/(M+k-1) of the time with M micro-batches,
    more where queue_size < k. recompute=True keeps only the input of a section and runs its forward again in
    the backward. `sync_steps` and `start_cpu_core_id` are Paddle's and have no effect: the first averages the
    parameters of several pipelines, and here is one; the second pins threads.

    Functional: `optimizer` is a transformation, `params, state = init(params)` and `params, state, loss =
    step(params, state, micro_batches)`. Paddle style: it is an optimizer object whose `parameters` are a list
    of k trees, and `minimize(loss(x, y))` steps it; `set_lr`, `state_dict`, `clear_grad` and so on are its
    own. Only a transformation can be asynchronous, or have stages in several processes. What branches over
    the whole tree, such as `skip_nonfinite`, is computed on the first place.

    A section that fails raises its error with the section's number in a note; parameters and state are then
    as before (of several processes the others are stopped). JAX's thread-local contexts, such as
    `with jax.enable_x64()`, do not reach the sections, which run in threads; `jax.config.update` does.

    >>> from paddlejax.distributed.pipeline import PipelineOptimizer
    >>> def hidden(params, x):
    ...     return jnp.tanh(x @ params["w"])
    >>> def loss(params, x, y):
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> pipeline = PipelineOptimizer(adam(0.1), [hidden, loss], num_microbatches=2)
    >>> params, state = pipeline.init([{"w": jnp.ones((3, 4))}, {"w": jnp.ones((4, 1))}])
    >>> batch = pipeline.split(jnp.ones((8, 3)), jnp.zeros((8, 1)))
    >>> params, state, mean_loss = pipeline.step(params, state, batch)
    >>> print(f"{mean_loss:.4f}", params[1]["w"][0])
    15.8421 [0.9]

    Paddle 1.x's PipelineOptimizer; torch has torch.distributed.pipelining, optax nothing like it.
    """

    inner_optimizer: Any
    num_microbatches: int
    mode: str
    schedule: Any
    timeline: list[Span]  # of the last pass: which section worked when
    _places: Any
    _devices: list[Any]
    _processes: bool
    _stages: int
    _sections: Sections
    _seen: Recent[Any, list[Any]]
    _update: Any
    _ways = WAYS
    _once = dict.fromkeys(("inner_optimizer", "num_microbatches", "mode"), "it is fixed; make a new pipeline")

    @checked(**SETTINGS)
    def __init__(
        self,
        optimizer: Any,
        cut_list: Any = None,
        place_list: Any = None,
        concurrency_list: Any = None,
        queue_size: int = 30,
        sync_steps: int = 1,
        start_cpu_core_id: int = 0,
        *,
        num_microbatches: int = 1,
        schedule: str = "1F1B",
        recompute: bool = False,
        mode: str = "sync",
    ):
        functions = list(cut_list)
        self._places = checked_places(len(functions), place_list, concurrency_list)
        alone = mode != "async" or all(len(place) == 1 for place in self._places)
        require(alone, "place_list", place_list, "one device for each section with mode='async'")
        self._devices = [d for place in self._places for d in place]
        self._processes = not all(map(is_here, self._devices))
        able = mode == "sync" and not isinstance(optimizer, Optimizer)
        expected = "devices of one process beside mode='async' or an optimizer object"
        require(able or not self._processes, "place_list", place_list, expected)
        self.inner_optimizer, self.num_microbatches, self.mode = optimizer, num_microbatches, mode
        self._stages = len(functions)
        lanes = [len(place) for place in self._places]
        self.schedule = pipeline_schedule(self._stages, num_microbatches, schedule, queue_size, lanes)
        self._sections, self._seen = Sections(functions, recompute), Recent()
        self.timeline = []
        first = self._places[0][0]
        if isinstance(optimizer, Optimizer):
            self._update = ObjectUpdate(optimizer, first)
            self._place_parameters()
        else:
            self._update = TreeUpdate(optimizer, first, num_microbatches)

    def __repr__(self) -> str:
        return (
            f"PipelineOptimizer({self.inner_optimizer!r}, {self._stages} stages, "
            f"num_microbatches={self.num_microbatches})"
        )

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        if name.startswith("_") or not isinstance(inner, Optimizer):
            raise AttributeError(f"PipelineOptimizer has no attribute {name!r}")
        if name in ("backward", "apply_gradients", "apply_optimize"):  # they would bypass the stages
            raise AttributeError(f"{name}: PipelineOptimizer has none, expected minimize(loss(x, y))")
        return getattr(inner, name)

    def split(self, x: Any, y: Any) -> list[tuple[Any, Any]]:
        """A batch as num_microbatches micro-batches: every array cut along its leading axis, in order."""
        return split_batch(x, y, self.num_microbatches)

    def gather(self, tree: Any) -> Any:
        """The tree, parameters or state, as numpy arrays that do not depend on the places.

        With stages in several processes all must call it, and all get the whole tree.
        """
        return jax.tree.map(lambda x: np.asarray(everywhere(x, self._devices)), tree)

    # ------------------------------------------------------------------ functional

    def init(self, params: Sequence[ArrayTree]) -> tuple[list[Any], Any]:
        """The stages' parameters on their places, and the optimizer's state beside them.

        `params` is a list of k trees. The state is that of the transformation for this list, as without a
        pipeline (with mode='async' one for each stage).
        """
        self._check_functional("init")
        placed = self._placed(check_stage_params("params", params, self._stages))
        if self.mode == "async":
            return placed, self._update.init_stages(placed)
        if self._processes:  # from the values that are here, before each goes to its place
            return placed, self._update.init_apart(list(params), [d for d, *_ in self._places])
        return placed, self._update.init(placed)

    def step(
        self, params: ArrayTree | None = None, state: Any = None, micro_batches: Any = None
    ) -> tuple[list[Any], Any, jax.Array]:
        """One step on num_microbatches pairs (x, y) of equal shapes; (params, state, mean loss).

        All three are needed; the defaults only let a call in Paddle's style say what it should have been.

        What it is given stays valid: nothing is donated.
        """
        self._check_functional("step")
        placed = self._placed(check_stage_params("params", params, self._stages))
        micro_batches = checked_micro_batches(micro_batches, self.num_microbatches)
        if self.mode == "sync":
            done = self._pass(placed, micro_batches)
            placed, state = self._update.step(placed, state, done.grads)
        else:
            fits = isinstance(state, list) and len(state) == self._stages
            require(fits, "state", state, "the list of states that init made", TypeError)
            done = self._pass(placed, micro_batches, partial(self._update.step_stage, placed), state)
            placed, state = done.params, done.carries
        return placed, state, self._mean(done.losses)

    # ------------------------------------------------------------------ Paddle style

    def loss(self, x: Any, y: Any) -> "PipelineLoss":
        """The mean loss of a batch; nothing runs before `minimize` or its own `backward()`."""
        self._check_object("loss")
        return PipelineLoss(self, self.split(x, y))

    def minimize(
        self,
        loss: "PipelineLoss",
        startup_program: None = None,
        parameter_list: None = None,
        no_grad_set: None = None,
    ) -> tuple[list[Any], Pairs]:
        """Backward, unless it has run, and step; `([], [(parameter, gradient), ...])`.

        All arguments but the loss must be None: to leave a Parameter alone, set its `stop_gradient`.
        """
        self._check_object("minimize")
        check_program(startup_program)
        for name, given in (("parameter_list", parameter_list), ("no_grad_set", no_grad_set)):
            require(given is None, name, given, "None; use stop_gradient of a Parameter", TypeError)
        own = isinstance(loss, PipelineLoss) and loss.pipeline is self
        require(own, "loss", loss, "what this pipeline's loss(x, y) returned", TypeError)
        check_outside("minimize")
        wanted = {p for p in self.inner_optimizer.parameter_list if p.trainable}
        totals, taken = self.inner_optimizer.drawn(loss, wanted)
        self._update.step(totals, taken)
        return [], [(p, p.peek_grad()) for p in totals]

    def gradients(self, micro_batches: list[Any]) -> tuple[jax.Array, dict[Parameter, Any]]:
        """Run all stages; the mean loss, and the mean gradient of every Parameter that is trained."""
        trees = self.inner_optimizer.parameters
        done = self._pass([jax.tree.map(lambda p: p.peek(), tree) for tree in trees], micro_batches)
        found = {
            p: (total / self.num_microbatches).astype(p.dtype)
            for tree, sums in zip(trees, done.grads, strict=True)
            for p, total in zip(jax.tree.leaves(tree), sums, strict=True)
            if p.trainable
        }
        return self._mean(done.losses), found

    def _place_parameters(self) -> None:
        """Move every Parameter to the place of its stage."""
        given = self.inner_optimizer.parameters
        check_stages("optimizer's parameters", given, self._stages)
        check_stage_params("optimizer", [jax.tree.map(lambda p: p.peek(), t) for t in given], self._stages)
        for tree, (device, *_) in zip(given, self._places, strict=True):
            for p in jax.tree.leaves(tree):
                p.store.put(put(p.store.take(), device))

    # ------------------------------------------------------------------ both

    def _pass(
        self, params: list[Any], micro_batches: list[Any], update: Any = None, carries: Any = None
    ) -> Pass:
        """Run forward and backward of all micro-batches and return what came of it."""
        handed = self._shapes(params, *micro_batches[0])
        run = PipelinePass(self._sections, self.schedule, self._places, handed, update)
        done = run(params, [None] * self._stages if carries is None else carries, micro_batches)
        self.timeline = done.timeline
        return done

    def _shapes(self, params: list[Any], x: Any, y: Any) -> list[Any]:
        """What every stage hands on; new shapes are traced through all stages before anything runs."""
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, x, y))
        leaves, tree = jax.tree.flatten(like)
        key = tree, tuple(leaves)
        return self._seen.get(key) or self._seen.put(key, self._sections.shapes(like[0], x, y))

    def _placed(self, params: list[Any]) -> list[Any]:
        """Return every stage's parameters on the first device of its stage."""
        return [put_tree(p, d) for p, (d, *_) in zip(params, self._places, strict=True)]

    def _mean(self, losses: list[Any]) -> jax.Array:
        """The mean loss, which every process gets."""
        device = self._places[-1][0]
        on_one = [put(loss, device) for loss in losses]
        mean = jnp.mean(jnp.stack(on_one)) if is_here(device) else elsewhere(losses[0], device)
        return everywhere(mean, self._devices)

    def _check_functional(self, method: str) -> None:
        """Raise if the pipeline steps an optimizer object."""
        if isinstance(self.inner_optimizer, Optimizer):
            raise TypeError(
                f"{method}: the pipeline was given an optimizer object, expected minimize(loss(x, y))"
            )

    def _check_object(self, method: str) -> None:
        """Raise if the pipeline steps a transformation."""
        if not isinstance(self.inner_optimizer, Optimizer):
            raise TypeError(
                f"{method}: the pipeline was given a transformation, expected init(...) and step(...)"
            )


class PipelineLoss(Loss):
    """What `PipelineOptimizer.loss` returns: a scalar, known once `backward()` or `minimize` has run."""

    def __init__(self, pipeline: PipelineOptimizer, micro_batches: list[Any]):
        super().__init__(None, [], [])
        self.pipeline, self.micro_batches = pipeline, micro_batches

    def gradients(self) -> tuple[Any, list[Any]]:
        """Run all sections, see `Loss.gradients`."""
        if self.is_finished():
            raise RuntimeError("backward() ran already for this loss; call loss(x, y) again for another")
        loss, found = self.pipeline.gradients(self.micro_batches)
        self.parameters = list(found)
        return (loss, None), list(found.values())

    def follow(self) -> None:
        """It cannot be read before backward, so there is nothing to note."""

    def settle(self, result: Any) -> None:
        """Backward has run: keep the value and let go of the batch."""
        super().settle(result)
        self.micro_batches = self.micro_batches if self.retained else []

    def read(self) -> None:
        """Raise: the sections run forward and backward in turns."""
        raise RuntimeError("the loss of a pipeline is known once backward() or minimize has run")

    def is_current(self) -> bool:
        """Never part of another optimizer's program: the sections are programs of their own."""
        return False

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return "pipeline"
