"""What Paddle's Parameters can be asked as tensors; the answers are arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..selected_rows import SelectedRows
from .gate import whole


class TensorMethods:
    """The methods of a tensor that programs ask Parameters for; each reads the value as it is now.

    >>> w = Parameter(jnp.array([3.0, 4.0]), "w")
    >>> print(w.sum(), w.mean(), w.norm(), w.astype("int32"), w.numel())
    7.0 3.5 5.0 [3 4] 2
    """

    @property
    def is_distributed(self) -> bool:
        """False: a Parameter is one array, though it may be sharded."""
        return False

    @property
    def persistable(self) -> bool:
        """True, as for every parameter of Paddle."""
        return True

    @property
    def is_leaf(self) -> bool:
        """True: nothing computes a Parameter."""
        return True

    def astype(self: Any, dtype: Any) -> jax.Array:
        """Return the value in another dtype."""
        return self.value.astype(dtype)

    cast = astype

    def clone(self: Any) -> Any:
        """Return a Parameter of its own with this value, which nothing trains."""
        from .parameter import Parameter

        return Parameter(self.value, self.name, trainable=False)

    def detach(self: Any) -> Any:
        """The same as `clone`: in Paddle it shares the memory, and here no memory is shared."""
        return self.clone()

    def gradient(self: Any) -> Any:
        """Return the gradient as NumPy: an array, (values, rows) of a SelectedRows, or None."""
        grad = self.grad
        if isinstance(grad, SelectedRows):
            return np.array(grad.values), np.array(grad.rows)
        return None if grad is None else np.array(grad)

    def __getitem__(self: Any, index: Any) -> jax.Array:
        return self.value[index]

    def __iter__(self: Any) -> Any:
        return iter(self.value)

    def __len__(self: Any) -> int:
        if not self.shape:
            raise TypeError(f"Parameter {self.name}: found len() of a scalar")
        return self.shape[0]

    def numel(self: Any) -> np.int64:
        """Return the number of elements."""
        return np.int64(np.prod(self.shape, dtype=np.int64))

    def dim(self: Any) -> int:
        """Return the number of axes."""
        return len(self.shape)

    ndimension = dim

    @property
    def T(self: Any) -> jax.Array:
        """The value with its axes in reverse."""
        return self.value.T

    def tolist(self: Any) -> Any:
        """Return the value as nested lists."""
        return self.value.tolist()

    def sum(self: Any, axis: Any = None, dtype: Any = None, keepdim: bool = False) -> jax.Array:
        """Return the sum of the value, over all axes or these."""
        return jnp.sum(self.value, _axis(axis), dtype, keepdims=keepdim)

    def mean(self: Any, axis: Any = None, keepdim: bool = False) -> jax.Array:
        """Return the mean of the value, over all axes or these."""
        return jnp.mean(self.value, _axis(axis), keepdims=keepdim)

    def max(self: Any, axis: Any = None, keepdim: bool = False) -> jax.Array:
        """Return the largest of the value, over all axes or these."""
        return jnp.max(self.value, _axis(axis), keepdims=keepdim)

    def min(self: Any, axis: Any = None, keepdim: bool = False) -> jax.Array:
        """Return the smallest of the value, over all axes or these."""
        return jnp.min(self.value, _axis(axis), keepdims=keepdim)

    def norm(self: Any, p: Any = 2, axis: Any = None, keepdim: bool = False) -> jax.Array:
        """Return the p-norm of the value, of all elements or along one axis; "fro" is p = 2.

        ‖w‖ = (Σ |wᵢ|ᵖ)^(1/p)
        """
        value, axis = self.value, _axis(axis)
        flat = value.reshape(-1) if axis is None else value
        norm = jnp.linalg.norm(flat, 2 if p == "fro" else p, -1 if axis is None else axis)
        return norm.reshape((1,) * value.ndim) if axis is None and keepdim else _kept(norm, axis, keepdim)

    @whole
    def abs(self: Any) -> jax.Array:
        """Return the magnitudes of the value."""
        return jnp.abs(self._read())

    @whole
    def square(self: Any) -> jax.Array:
        """Return the squares of the value."""
        return jnp.square(self._read())

    @whole
    def sqrt(self: Any) -> jax.Array:
        """Return the square roots of the value."""
        return jnp.sqrt(self._read())

    def reshape(self: Any, shape: Any) -> jax.Array:
        """Return the value in another shape."""
        return self.value.reshape(shape)

    def flatten(self: Any) -> jax.Array:
        """Return the value with one axis."""
        return self.value.reshape(-1)

    def transpose(self: Any, perm: Any) -> jax.Array:
        """Return the value with its axes in this order."""
        return self.value.transpose(perm)


def _axis(axis: Any) -> Any:
    """An axis or a tuple of axes; Paddle takes a list too, and an empty one for all."""
    return (tuple(axis) or None) if isinstance(axis, list | tuple) else axis


def _kept(norm: jax.Array, axis: Any, keepdim: bool) -> jax.Array:
    return jnp.expand_dims(norm, axis) if keepdim and axis is not None else norm
