"""What Paddle 1.x's programs say about dygraph, the mode that here is always on."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...hyper import Must, checked, instance
from ...optimizer.loss import Loss
from ...optimizer.loss_function import no_grad as no_grad
from ...optimizer.parameter import Parameter

PLACE = instance(jax.Device | None, "a device such as jax.devices()[0], or None for the one JAX takes")
VALUE = instance(
    np.ndarray | np.generic | jax.Array | Parameter | Loss,
    "a numpy array, a JAX array, a Parameter or a Loss",
)


@contextmanager
@checked(place=PLACE)
def guard(place: Any = None) -> Iterator[None]:
    """Paddle's `with fluid.dygraph.guard():`; dygraph is on outside of it too.

    `place` is a device of JAX, on which arrays are made inside.

    >>> with fluid.dygraph.guard():
    ...     print(enabled())
    True
    """
    with nullcontext() if place is None else jax.default_device(place):
        yield


def enabled() -> bool:
    """Return True: dygraph is always on."""
    return True


@checked(place=Must(lambda place: place is None, "None; jax.default_device(device) says where"))
def enable_dygraph(place: None = None) -> None:
    """Do nothing: dygraph is on.

    >>> enable_dygraph()
    """


enable_imperative = enable_dygraph


@checked(value=VALUE)
def to_variable(value: Any, name: str | None = None, zero_copy: bool | None = None, dtype: Any = None) -> Any:
    """Return a numpy array as one of JAX; what is an array of JAX, a Parameter or a Loss already, as it is.

    `name` and `zero_copy` have no effect: arrays have no names and cannot be changed in place.

    >>> to_variable(np.ones(2, "float32"))
    Array([1., 1.], dtype=float32)
    """
    if isinstance(value, Parameter | Loss):
        return value
    return jnp.asarray(value, dtype)
