"""Paddle's DGCMomentumOptimizer: deep gradient compression behind `minimize`."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..collectives import with_riders
from ..hyper import ArgumentError, checked
from ..optimizer.arguments import check_program
from ..optimizer.compiled import CompiledStep
from ..optimizer.gate import alone, whole
from ..optimizer.ledger import ArrayField, Entries, written
from ..optimizer.loss import Loss
from ..optimizer.lr import Rate
from ..optimizer.optimizer import Optimizer, Pairs
from ..optimizer.parameter import Parameter
from ..optimizer.programs import Watched, arrived
from ..optimizer.transaction import run_atomically
from ..optimizer.whole import in_one
from ..rates import RuleState, set_learning_rate
from ..regularizer import as_regularizer
from ..tracing import check_outside
from ..transform import apply_updates
from ..trees import path_name
from .compression import DGCMomentum, U, V
from .data_parallel import (
    for_workers,
    init_on_mesh,
    is_on_mesh,
    local_grads,
    mesh_of_workers,
    on_mesh,
    placed,
    split_batch,
    state_on_mesh,
    state_specs,
)
from .dgc import MIN_NUMEL, ByPosition, compressed_momentum
from .dgc_arguments import OBJECT, check_for_workers, check_is_loss
from .dgc_parts import COUNTER, Arrays, Compressed, Program, Residual


class DGCMomentumOptimizer(Optimizer):
    """Paddle's DGCMomentumOptimizer, see `dgc_momentum`: `minimize` trains on all workers at once.

    The workers are the devices of `axis_name` of `mesh`, by default all devices there are. The arrays among
    the arguments of the loss are the batch: each is split along its leading dimension, which the number of
    workers must divide, and each worker sees its part. Numbers, 0-d arrays (a random key too) and Parameters
    are the same on all. The loss is the mean of the workers' losses, and each leaf of `.aux` has a leading
    axis of workers. Gradients stay on their workers, so `.grad` is left alone and, with several workers,
    `backward`, `step` and `apply_gradients` raise an error. On one worker it is Momentum, and warns.

    `local_grad_clip_norm` (1.6) clips compressed tensors only; `grad_clip` (1.8), a ClipGradByNorm, the
    others too, and needs num_trainers. `regularization` is a number (L2) or a regularizer; a Parameter's own
    takes its place.

    `state_dict()` has u and v of all workers, with a leading axis; of several processes all must call it.
    Loaded for another number of workers, each gets the mean of all: what was not sent yet will be. On one
    worker it has no place: take the `_dgc_v_` entries out to drop it. For a state of `dgc_momentum` itself
    see `redistribute`. A GradScaler cannot scale the loss of several workers.

    >>> params = paddle.parameters({"w": jnp.zeros((128, 128))})
    >>> opt = DGCMomentumOptimizer(0.1, 0.9, rampup_begin_step=0, sparsity=[0.999], parameter_list=params)
    >>> @paddle.loss
    ... def mse(params, x):
    ...     return jnp.mean((x @ params["w"] - 1) ** 2)
    >>> loss = mse(params, jnp.eye(128))
    >>> _ = opt.minimize(loss)
    >>> print(float(loss), int((params["w"].value != 0).sum()))  # 16 of 16384 from each of 8 workers
    1.0 128
    """

    _argument = "parameter_list"
    mesh: Mesh | None
    axis_name: str
    state: RuleState | None
    _workers: int
    _levels: Any
    _local_clip: float | None
    _tx: Any
    _compiled_step: Any
    _applied: object  # the number of the plan that the programs were made for
    _ways = dict.fromkeys(("_grad_clip", "_multi_precision"), "say it in the constructor")
    _once = dict.fromkeys(("mesh", "axis_name"), "it is fixed; make a new optimizer and give it state_dict()")

    @checked(**OBJECT)
    def __init__(
        self,
        learning_rate: Rate,
        momentum: float,
        rampup_begin_step: int,
        rampup_step: int = 1,
        sparsity: Any = (0.999,),
        use_nesterov: bool = False,
        local_grad_clip_norm: float | None = None,
        num_trainers: int | None = None,
        regularization: Any = None,
        name: str | None = None,
        *,
        parameter_list: Any = None,
        grad_clip: Any = None,
        mesh: Mesh | None = None,
        axis_name: str = "data",
    ):
        rule = DGCMomentum(momentum, use_nesterov)
        decay = as_regularizer("regularization", regularization)
        # By name: a subclass may have another base between, with arguments of its own.
        Optimizer.__init__(self, learning_rate, parameter_list, decay, grad_clip, name, rule=rule)
        self._local_clip, self._levels = local_grad_clip_norm, (rampup_begin_step, rampup_step, sparsity)
        self.mesh = mesh_of_workers(mesh, axis_name, num_trainers)
        self.axis_name = axis_name
        self._workers = 1 if self.mesh is None else self.mesh.shape[axis_name]
        self._make_programs(warns=True)
        self.state = None

    def _make_programs(self, warns: bool) -> None:
        """Make what compresses and steps, as the options are now."""
        plan, clip = self._settled(), self._grad_clip
        limit, rule = getattr(clip, "clip_norm", None), self._base.source.rule
        clipped = [p.need_clip if clip is None else clip.selects(p) for p in self.parameter_list]
        self._tx = compressed_momentum(
            0.0,  # the rate in force is put into the state at every step
            rule,  # type: ignore[arg-type]
            levels=self._levels,
            local_grad_clip_norm=self._local_clip if limit is None else limit,
            num_trainers=self._workers,
            axis_name=self.axis_name,
            exchange="auto",
            min_numel=MIN_NUMEL,
            options=ByPosition(plan.options),
            clips=ByPosition(clipped),
            warns=warns,
        )
        self._compiled_step = Watched(in_one(self._step), static_argnums=0, donate_argnums=(1, 2))
        self._steps = self._steps.afresh()
        self._applied = self._plan.number

    def _renew(self) -> None:
        """Make the programs anew if an option has changed."""
        if self._settled().number != self._applied:
            self._make_programs(warns=False)

    # ------------------------------------------------------------------ one step

    def minimize(  # type: ignore[override]
        self,
        loss: Any,
        startup_program: None = None,
        parameter_list: Any = None,
        no_grad_set: Any = None,
        grad_clip: Any = None,
    ) -> tuple[list[Any], Pairs]:
        """Every worker's gradient of its part of the batch, exchange and step, in one compiled program.

        Returns `([], [(parameter, gradient), ...])`; with several workers no gradient leaves its worker, and
        each is None. `grad_clip` must be None: the clip is the constructor's.
        """
        if grad_clip is not None:
            raise TypeError(f"minimize's grad_clip: found {grad_clip!r}, expected it in the constructor")
        if self.mesh is None:
            return [], self._minimize(loss, startup_program, parameter_list, no_grad_set)
        check_program(startup_program)
        check_is_loss(loss)
        self._check_loss(loss)
        check_outside("minimize")
        check_for_workers(loss, self._workers, self.parameter_list, bool(self.layers))
        wanted = self._wanted(parameter_list, no_grad_set)
        mine = {p for p in loss.parameters if p in wanted}
        self._run_workers(self.mesh, loss, mine)
        return [], [(p, None) for p in self.parameter_list if p in mine]

    def backward(  # type: ignore[override]
        self,
        loss: Any,
        startup_program: None = None,
        parameter_list: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> Pairs:
        """As `Optimizer.backward`, on one worker."""
        self._check_alone("backward")
        return super().backward(loss, startup_program, parameter_list, no_grad_set, callbacks)

    def step(self, closure: Any = None) -> Any:
        """As `Optimizer.step`, on one worker."""
        self._check_alone("step")
        return super().step(closure)

    def apply_gradients(self, params_grads: Iterable[tuple[Parameter, Any]]) -> list[Any]:
        """As `Optimizer.apply_gradients`, on one worker."""
        self._check_alone("apply_gradients")
        return super().apply_gradients(params_grads)

    def _check_alone(self, method: str) -> None:
        """Raise if there are several workers: this method would need the sum of their gradients."""
        if self._workers > 1:
            raise RuntimeError(
                f"{method}: found {self._workers} workers, expected one; use minimize(loss), where every "
                "worker compresses its own gradient and none is ever the sum of all"
            )

    def _fuses(self, loss: Loss, wanted: Collection[Parameter]) -> bool:
        """Never: backward runs first, and then the step."""
        return False  # one worker: backward, then apply

    def _compiled(
        self, present: tuple[bool, ...], grad_clip: Any, flags: bool = False
    ) -> CompiledStep | None:
        self._renew()
        layers = self.layers
        reached = any(present) or any(part.joins(i) for part in layers for i in range(len(present)))
        if not reached or any(part.waits for part in layers):
            return super()._compiled(present, grad_clip)
        programs = self._steps.compiled
        key = layers, self._applied  # `undo` brings older programs back
        known = programs.get(key)
        return known or programs.put(key, CompiledStep(Compressed(self), self.parameter_list, layers))

    def update(
        self, values: list[Any], state: RuleState, grads: list[Any], rate: Any
    ) -> tuple[Any, RuleState]:
        """Inside a program: return what to add to the values, and the new state."""
        return self._tx.update(grads, set_learning_rate(state, rate), values)

    @alone
    def _run_workers(self, mesh: Mesh, loss: Loss, mine: set[Parameter]) -> None:
        """Forward, backward, exchange and update of all workers as one program."""
        self._renew()
        rate = self._rate_for_step()
        arrived(loss.fixed, all_of_them=True)
        fixed, split = self._split(mesh, loss)
        for p in self.parameter_list:
            if not is_on_mesh(p.peek(), mesh):
                p.store.put(on_mesh(p.store.take(), mesh, (self.axis_name,)))
        everyone = list(dict.fromkeys([*self.parameter_list, *loss.parameters]))
        trained = {i: p.store.take() for i, p in enumerate(everyone) if p in mine}
        # Frozen ones are not donated: `fixed` has the same arrays.
        kept = {i: p.peek() for i, p in enumerate(everyone) if p not in mine}
        kept = jax.tree.map(lambda x: placed(x, NamedSharding(mesh, PartitionSpec())), kept)
        state = self.state_for([p.peek() for p in self.parameter_list])
        static = Program(mesh, loss.call, tuple(everyone.index(p) for p in loss.parameters), split)

        def store(done: tuple[Arrays, RuleState, Any]) -> None:
            trained, self.state, result = done
            for i, value in trained.items():
                everyone[i].store.put(value)
            loss.settle(result)
            self._spend({}, loss, {})
            self._stepped()

        program = self._compiled_step.beside if self._safe else self._compiled_step
        run_atomically(lambda: (program, (static, trained, state, kept, fixed, rate)), store)

    def _step(
        self, static: "Program", trained: Arrays, state: RuleState, kept: Arrays, fixed: list[Any], rate: Any
    ) -> tuple[Arrays, RuleState, Any]:
        axis, everywhere = self.axis_name, PartitionSpec()
        own = PartitionSpec(axis)

        def worker(trained: Arrays, state: RuleState, kept: Arrays, fixed: list[Any], rate: Any) -> Any:
            def of(trained: Arrays) -> Any:
                given = {**kept, **trained}
                return static.call([given[i] for i in static.places], fixed)

            (loss, aux), grads = local_grads(of, axis, has_aux=True)(trained)
            count = len(self.parameter_list)
            values = [{**kept, **trained}[i] for i in range(count)]
            gs = [grads.get(i) for i in range(count)]
            (updates, state), (loss,) = with_riders(
                [loss], axis, lambda: self.update(values, state, gs, rate)
            )
            values = apply_updates(values, updates)
            aux = jax.tree.map(lambda x: jnp.asarray(x)[None], aux)
            return {i: values[i] for i in trained}, state, (loss, aux)

        specs = state_specs(state, axis)
        parts = [own if s else everywhere for s in static.split]
        return jax.shard_map(
            worker,
            mesh=static.mesh,
            in_specs=(everywhere, specs, everywhere, parts, everywhere),
            out_specs=(everywhere, specs, (everywhere, own)),
            axis_names={axis},
        )(trained, state, kept, fixed, rate)

    def _split(self, mesh: Mesh, loss: Loss) -> tuple[list[Any], tuple[bool, ...]]:
        """What the loss is given beside Parameters: the batch split over the workers, all else whole."""
        frozen = {id(p.peek()) for p in self.parameter_list}
        arguments = loss.call.tree.unflatten(range(len(loss.call.places)))
        paths, _ = jax.tree_util.tree_flatten_with_path(arguments)
        names = [path_name(path[1:]) for path, i in paths if loss.call.places[i][0] == "fixed"]
        split = tuple(jnp.ndim(x) > 0 and id(x) not in frozen for x in loss.fixed)
        batch = {f"argument {n}": x for n, x, s in zip(names, loss.fixed, split, strict=True) if s}
        if not batch:
            function = getattr(loss.call.function, "__name__", "the loss function")
            raise ArgumentError(
                f"{function}: found no arrays among its arguments, expected the batch, which is split over "
                "the workers"
            )
        parts = split_batch(batch, mesh, (self.axis_name,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        about = zip(names, loss.fixed, split, strict=True)
        return [parts[f"argument {n}"] if s else placed(x, everywhere) for n, x, s in about], split

    def state_for(self, values: list[Any]) -> RuleState:
        """Return the state, a new one for these values before the first step."""
        if self.state is None:
            return (
                self._tx.init(values)
                if self.mesh is None
                else init_on_mesh(self._tx, values, self.mesh, self.axis_name)
            )
        return self.state

    # ------------------------------------------------------------------ state

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Copies of u and v under Paddle's names, the number of steps, and `LR_Scheduler`; empty before any
        step.

        With workers in several processes all must call it, and each gets the entries of all workers.
        """
        if self.state is None:
            return super().state_dict()
        slots = [
            (Residual(f"{owner}_{name}_0", x.shape, x.dtype), x)
            for name in (U, V)
            for owner, x in zip(self.owners(), self.state.slots[name], strict=True)
            if x is not None
        ]
        return written([*slots, (COUNTER, self.state.count)]) | super().state_dict()

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        """The state may be of another number of workers. What several workers have not sent yet has no place
        on one: take the `_dgc_v_` entries out to drop it.
        """
        schedule, state = self._read_schedule(entries), None
        values = [p.peek() for p in self.parameter_list]
        if entries.rest or self.state is not None:
            state = self._tx.init(values)
            columns = zip(self.owners(), values, state.slots[U], state.slots[V], strict=True)
            us, vs = zip(*(self._read_slots(entries, strict, *column) for column in columns), strict=True)
            count = entries.read(COUNTER)
            state = state._replace(count=jnp.asarray(count or 0, jnp.int32), slots={U: [*us], V: [*vs]})
        yield
        if state is not None and self.mesh is not None:
            state = state_on_mesh(state, values, self.mesh, self.axis_name)
        self._put_schedule(schedule)
        self.state = state

    def _read_slots(
        self, entries: Entries, strict: bool, owner: str, p: Any, u: Any, v: Any
    ) -> tuple[Any, Any]:
        """u and v of one parameter; `u` and `v`, where they start, if it has none and may have none."""
        keys = [f"{owner}_{name}_0" for name in (U, V)]
        if not strict and not any(map(entries.has, keys)):
            return u, v
        shape = getattr(entries.peek(keys[0]), "shape", p.shape)
        # else of one worker, which keeps no v
        by_worker = len(shape) > p.ndim and shape[0] > 0 and shape[1:] == p.shape
        shape = shape if by_worker else p.shape
        found = entries.read(ArrayField(keys[0], shape, u.dtype))
        if v is None:
            if entries.has(keys[1]):
                entries.drop(keys[1])
                entries.problems.append(
                    f"unexpected: {keys[1]}, what was not sent yet, but here {owner} is not compressed; "
                    f"to drop it take the {V} entries out"
                )
            return (jnp.mean(found, axis=0) if by_worker and found is not None else found), None
        pair = found, entries.read(ArrayField(keys[1], shape, v.dtype, required=by_worker))
        pair = [x if x is None or by_worker else x[None] for x in pair]
        u, v = (
            zero if x is None else for_workers(x, self._workers) for x, zero in zip(pair, (u, v), strict=True)
        )
        return u, v
