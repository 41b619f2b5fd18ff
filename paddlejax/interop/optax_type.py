"""Transformations in other libraries' types."""

from typing import TYPE_CHECKING, Any

from ..hyper import checked
from ..wrap import PAIR

if TYPE_CHECKING:
    from optax import GradientTransformationExtraArgs
else:
    GradientTransformationExtraArgs = Any


@checked(tx=PAIR)
def as_optax(tx: Any) -> GradientTransformationExtraArgs:
    """The same transformation in optax's own type, so that optax's wrappers hand on extra arguments.

    Without it every pair of paddlejax works inside optax.chain, masked, multi_transform, MultiSteps,
    apply_if_finite, flax's nnx.Optimizer and TrainState as it is; but optax drops keyword arguments of
    `update` before a transformation that is not of its type. So `lbfgs`, and a chain that holds it or one of
    optax's own transformations with extra arguments, needs this. State and numbers are the same. `chain` and
    the wrappers of paddlejax hand on extra arguments without it. ImportError without optax.

    >>> import optax
    >>> f = jax.value_and_grad(lambda p: jnp.sum((p - 1) ** 2))
    >>> tx, p = optax.chain(as_optax(lbfgs())), jnp.zeros(2)
    >>> value, grads = f(p)
    >>> updates, state = tx.update(grads, tx.init(p), p, value=value, value_and_grad=f)
    >>> print(p + updates)
    [1. 1.]
    """
    try:
        import optax
    except ImportError as e:
        raise ImportError("as_optax needs optax: pip install optax") from e
    if isinstance(tx, optax.GradientTransformation):
        return optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(tx.init, tx.update)
