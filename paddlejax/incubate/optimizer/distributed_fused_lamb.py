"""Paddle's DistributedFusedLamb, out of what is there: Lamb, masters, skips, sums of gradients, zero1."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...clip import ClipGradByGlobalNorm
from ...distributed import zero1, zero1_shardings
from ...hyper import COUNT, FLAG, Must, checked, instance, optional, whole
from ...lifting import GradientTransformation
from ...loss_scaling import SkipState, skip_nonfinite
from ...optimizer.classes import Lamb
from ...optimizer.gradient_merge import GradientMergeOptimizer
from ...optimizer.lr import Rate
from ...optimizer.parameter import Parameter
from ...optimizer.parts import Part, stay
from ...optimizer.wrappers import Wrapper
from ...recent import Recent

TRUE = FLAG, Must(lambda x: x, "True", NotImplementedError)
CLIP = instance(ClipGradByGlobalNorm | None, "an instance of nn.ClipGradByGlobalNorm, or None")
MESH = optional(instance(Mesh, "a jax.sharding.Mesh"))
AXIS = Must(lambda axis, mesh: mesh is None or axis in mesh.axis_names, "an axis of {mesh}", ValueError)


class _Guard(Part):
    """`skip_nonfinite` in an object, inside `zero1` if there is a mesh."""

    def __init__(self, parameters: Sequence[Parameter], mesh: Mesh | None, axis: str):
        self._parameters, self._mesh, self._axis = parameters, mesh, axis
        self._parts: Recent[tuple[int, ...], Any] = Recent()  # by positions: where the state lies
        self.skips: tuple[jax.Array, jax.Array] = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def around(self, tx: GradientTransformation) -> GradientTransformation:
        """Return the transformation, which leaves out a step whose gradients are not finite."""
        guarded = skip_nonfinite(tx)
        return guarded if self._mesh is None else zero1(guarded, self._mesh, self._axis)

    def state(self, positions: Sequence[int], inner: Any) -> SkipState:
        """Return the counts with the inner state, which lies in parts if there is a mesh."""
        if self._mesh is not None:
            inner = jax.device_put(inner, self._shardings(positions, inner))
        return SkipState(inner, *self.skips)

    def _shardings(self, positions: Sequence[int], inner: Any) -> Any:
        """Where `zero1` leaves this state: the first step would else donate in vain."""
        key = tuple(positions)
        known = self._parts.get(key)
        if known is not None:
            return known
        params = [self._parameters[i].peek() for i in positions]
        tx = GradientTransformation(lambda params: inner, stay)
        return self._parts.put(key, zero1_shardings(tx, params, self._mesh, self._axis))  # type: ignore[arg-type]

    def keep(self, positions: Sequence[int], state: SkipState) -> Any:
        """Store the counts."""
        self.skips = state.consecutive_skips, state.total_skips
        return state.inner


class _Guarded(Wrapper):
    def __init__(self, inner_optimizer: Lamb, mesh: Mesh | None, axis: str):
        super().__init__(inner_optimizer)
        self._part = _Guard(inner_optimizer.parameter_list, mesh, axis)

    @property
    def skipped(self) -> int:
        """How many steps were left out."""
        return int(self._part.skips[1])

    def set_info(self, enabled: bool = True) -> None:
        """Refuse to measure: a step that is left out has nothing to tell."""
        if enabled:
            raise NotImplementedError("set_info: DistributedFusedLamb does not measure; see `skipped`")


class DistributedFusedLamb(GradientMergeOptimizer):
    """Paddle's DistributedFusedLamb: Lamb that always adapts, on float32 masters, data-parallel.

        p ← p - η ‖p‖/‖r‖ r         as `lamb` with always_adapt: also where a name has no decay

    `parameters` of 16 bits have masters. grad_clip is None or a ClipGradByGlobalNorm. A step whose gradients
    are not all finite is left out, and counted in `skipped`: parameters, moments and powers stay. With
    gradient_accumulation_steps=k every k-th gradient makes a step, with the sum of k of them (not the mean),
    in float32. `mesh` is ours: then each device along its `axis` keeps its part of the moments, see
    `distributed.zero1`. Parameters that are not on the mesh are laid whole onto it; masters are whole too.

    JAX sums gradients over devices where the loss is differentiated, over all of the batch. So these have no
    effect: is_grad_scaled_by_nranks, alignment, use_master_acc_grad (sums are float32), nproc_per_node,
    use_hierarchical_allreduce. clip_after_allreduce=False and use_master_param_norm=False would be other
    numbers, and are refused. Paddle's needs a static program and a GPU, and clips by c / (norm + 1e-6), this
    one as ClipGradByGlobalNorm does. A state_dict is Lamb's: Paddle's keeps all moments in two buffers.

    >>> p = Parameter(jnp.array([3.0, 4.0]), "p")
    >>> opt = incubate.DistributedFusedLamb(0.1, parameters=[p])
    >>> _ = opt.apply_gradients([(p, jnp.array([jnp.inf, 1.0]))])
    >>> print(p.numpy(), opt.skipped)
    [3. 4.] 1
    >>> _ = opt.apply_gradients([(p, jnp.ones(2))])
    >>> print(p.numpy())
    [2.6482 3.6447]

    You et al. 2020, arXiv:1904.00962; Paddle's kernel `distributed_fused_lamb`.
    """

    @checked(
        grad_clip=CLIP,
        clip_after_allreduce=TRUE,
        is_grad_scaled_by_nranks=FLAG,
        alignment=COUNT,
        use_master_param_norm=TRUE,
        gradient_accumulation_steps=COUNT,
        use_master_acc_grad=FLAG,
        nproc_per_node=optional(*whole(1)),
        use_hierarchical_allreduce=FLAG,
        mesh=MESH,
        axis=AXIS,
    )
    def __init__(
        self,
        learning_rate: Rate = 0.001,
        lamb_weight_decay: Any = 0.01,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-6,
        parameters: Any = None,
        grad_clip: Any = None,
        exclude_from_weight_decay_fn: Any = None,
        clip_after_allreduce: bool = True,
        is_grad_scaled_by_nranks: bool = True,
        alignment: int = 128,
        use_master_param_norm: bool = True,
        gradient_accumulation_steps: int = 1,
        use_master_acc_grad: bool = True,
        nproc_per_node: int | None = None,
        use_hierarchical_allreduce: bool = False,
        name: str | None = None,
        *,
        mesh: Mesh | None = None,
        axis: str = "data",
    ):
        numbers = learning_rate, lamb_weight_decay, beta1, beta2, epsilon
        others = grad_clip, exclude_from_weight_decay_fn
        lamb = Lamb(*numbers, parameters, *others, multi_precision=True, always_adapt=True, name=name)
        if mesh is not None:
            _spread_over(mesh, lamb.parameter_list)
        super().__init__(_Guarded(lamb, mesh, axis), gradient_accumulation_steps, avg=False)


def _spread_over(mesh: Mesh, parameters: Sequence[Parameter]) -> None:
    """Lay Parameters that are not on these devices whole onto each of them: the moments are there too."""
    whole_on_each, devices = NamedSharding(mesh, PartitionSpec()), set(mesh.devices.flat)
    for p in parameters:
        value = p.peek()
        if value.sharding.device_set != devices:
            p.store.put(jax.device_put(value, whole_on_each))
