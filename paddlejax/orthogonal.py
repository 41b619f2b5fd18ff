"""The iteration that brings every singular value of a matrix near one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import spreading
from .norms import root

Ortho = Callable[[jax.Array], jax.Array]  # of matrices (..., rows, columns)
SplitFunction = Callable[[jax.Array, Ortho], jax.Array]  # cuts a weight into such matrices, see `splits`
Triple = tuple[float, float, float]
JORDAN: Triple = (3.4445, -4.7750, 2.0315)
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "simple": (JORDAN,),
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568),
        (1.8750, -1.2500, 0.3750),
    ),
    "aol": (
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
    "deepseekv4": (JORDAN,) * 8 + ((2.0, -1.5, 0.5),) * 2,
}


def newton_schulz(
    x: jax.Array, coefficients: tuple[Triple, ...], steps: int, epsilon: Any, dtype: Any = None
) -> jax.Array:
    """Return U S' Vᵀ for each matrix U S Vᵀ of x (..., rows, cols), S' near one; float32, of x's shape.

        X ← x / max(‖x‖, ε)                      so that no singular value is above one
        X ← a X + (b A + c A²) X,   A = X Xᵀ     `steps` times, with the triples (a, b, c) in turn

    A is the smaller of the two Gram matrices: for rows > cols it is XᵀX and stands on the right, so that
    nothing is transposed. The iteration runs in `dtype`; see `iteration_dtype` for None. On a CPU matrices
    go one after another through one loop, which is faster there than products of many at once.

    >>> x = newton_schulz(jnp.diag(jnp.array([1.0, 2.0])), COEFFICIENTS["polar_express"], 8, 1e-9)
    >>> print(x.round(3))
    [[1. 0.]
     [0. 1.]]

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; Amsel et al. 2025, arXiv:2505.16932.
    """
    x = x.astype(jnp.float32)
    if not x.size:
        return x
    if spreading.iterate.value is not None:
        return spreading.iterate.value(x, coefficients, steps, epsilon, dtype)
    if not steps:
        return _normalized(x, epsilon)
    dtype = iteration_dtype(dtype)
    triples = jnp.array([coefficients[i % len(coefficients)] for i in range(steps)], jnp.float32)

    def one(x: jax.Array) -> jax.Array:
        start = _normalized(x, epsilon).astype(dtype)
        return jax.lax.scan(_iterated, start, triples)[0].astype(jnp.float32)

    if x.ndim == 2 or jax.default_backend() != "cpu":
        return one(x)
    return jax.lax.map(one, x.reshape(-1, *x.shape[-2:])).reshape(x.shape)


def on_whole_matrices(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return what a function returns for x, in x's sharding, where products of cut matrices are refused.

    That is on axes of a mesh that are Explicit: JAX asks there how each product shall lie. The matrices are
    gathered. On Auto axes XLA decides by itself.
    """
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or not any(sharding.spec):
        return function(x)
    whole = jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, jax.P()))
    return jax.sharding.reshard(function(whole), sharding)


def iteration_dtype(dtype: Any) -> jnp.dtype[Any]:
    """Return the dtype of the iteration; None means bfloat16 where its products are fast, else float32."""
    if dtype is not None:
        return jnp.dtype(dtype)
    device = jax.devices()[0]
    # A GPU says "8.0" from Ampere on; a TPU has no such attribute.
    fast = device.platform != "cpu" and float(getattr(device, "compute_capability", 8)) >= 8
    return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


def _normalized(x: jax.Array, epsilon: Any) -> jax.Array:
    """Return every matrix divided by its norm, or by epsilon where that is larger."""
    norms = jnp.maximum(root(jnp.sum(x * x, (-2, -1), keepdims=True)), jnp.asarray(epsilon, x.dtype))
    return x / jnp.where(norms > 0, norms, 1)


def _iterated(x: jax.Array, triple: jax.Array) -> tuple[jax.Array, None]:
    """Make one iteration; it has the form of a `lax.scan`'s body."""
    a, b, c = triple
    tall = x.shape[-2] > x.shape[-1]

    def product(subscripts: str, y: jax.Array, z: jax.Array) -> jax.Array:
        # Who asks for float32 gets it: by default its products are narrower on accelerators.
        made = jnp.einsum(subscripts, y, z, precision=jax.lax.Precision.HIGHEST)
        return made.astype(jnp.float32)  # sums are rounded once, coefficients never

    gram = product("...ki,...kj->...ij" if tall else "...ik,...jk->...ij", x, x)
    square = product("...ik,...kj->...ij", gram.astype(x.dtype), gram.astype(x.dtype))
    q = (b * gram + c * square).astype(x.dtype)
    step = product("...ik,...kj->...ij", *((x, q) if tall else (q, x)))
    return (a * x.astype(jnp.float32) + step).astype(x.dtype), None
