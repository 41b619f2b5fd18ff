from dataclasses import field, replace
from typing import ClassVar
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from ..array_types import PRNGKey
from ..hyper import NonNegative, Positive, Sharded
from ..lifting import Rule, lifted, rule
from ..norms import asked, cut_over, norms


@rule
class Dpsgd(Rule):
    """Descend along clipped gradients with noise, as for differential privacy.

        g ← g / max(1, ‖g‖/clip)            the norm of each tensor
        p ← p - η (g + σ ξ / batch_size)    ξ ~ N(0, 1), σ = sigma

    ξ is one number per tensor and step, as in Paddle's kernel; per_element draws one for every element, as
    the paper does. It depends on `key`, on the tensor's path or name, and on the steps so far, counted in
    `draws`; the key is not in the state, so give the same one to resume. Paddle seeds from the clock. The
    gradient is clipped as it comes: for a guarantee clip that of every example, as optax.contrib.dpsgd. Under
    `shard_map` name the mesh axes over which a tensor is sharded in `axis_name`; for `sharded` see
    `clip_by_norm`.

    >>> tx = dpsgd(0.1, clip=1.0, sigma=0.0, key=jax.random.key(0))
    >>> p = jnp.array([3.0, 4.0])
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates)
    [-0.06 -0.08]

    Abadi et al. 2016, arXiv:1607.00133; Paddle's kernel `dpsgd`.
    """

    data: ClassVar = ("key",)
    reads_params: ClassVar = False
    elementwise: ClassVar = False

    clip: Positive = 0.9
    batch_size: Positive = 0.999
    sigma: NonNegative = 1e-8
    per_element: bool = False
    axis_name: str | tuple[str, ...] | None = None
    sharded: Sharded = None
    key: PRNGKey = field(kw_only=True, repr=False)

    def __post_init__(self):
        key = self.key
        if isinstance(key, jax.Array | np.ndarray):
            typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            wrong = key.shape != () if typed else key.dtype != np.uint32 or key.ndim != 1
        else:
            wrong = key is None or isinstance(key, int | float | str)
        if wrong:
            raise TypeError(f"Dpsgd's key: found {key!r}, expected one key such as jax.random.key(0)")

    def at(self, leaf):
        """Fold the leaf's name into the key, so that every tensor draws noise of its own."""
        tensor = np.uint32(crc32(getattr(leaf, "name", leaf).encode()))
        key = jax.random.fold_in(self.key, tensor)
        return replace(self, key=key, sharded=asked(self.sharded, leaf))

    def shared(self):
        """The count of draws starts at 0."""
        return {"draws": 0}

    def advance(self, learning_rate, shared):
        """Give `step` the count of draws, so that every step draws other noise: it may wrap, not stay."""
        draws = shared["draws"]
        return {"rate": learning_rate, "draws": draws}, {"draws": draws + 1}

    def step(self, g, p, k, slots):
        """The noise is one number per tensor, or with `per_element` one per element."""
        key = jax.random.fold_in(self.key, k["draws"])
        if self.per_element and self.axis_name is not None:
            axes = cut_over(g, self.axis_name, self.sharded)
            if axes:  # each device has other elements
                key = jax.random.fold_in(key, jax.lax.axis_index(axes))
        noise = self.sigma * jax.random.normal(key, g.shape if self.per_element else (), g.dtype)
        excess = norms([g], self.axis_name, [self.sharded])[0] / self.clip
        clipped = g / jnp.where(excess > 1, excess, 1)  # so that NaN stays in its element, as in the kernel
        return -k["rate"] * (clipped + noise / self.batch_size), slots


dpsgd = lifted(Dpsgd, 0.001)
