"""Weight decay added to the gradient (coupled): Paddle's objects, and the same as transformations."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from .alike import in_groups
from .array_types import Numeric
from .attributes import Adjustable, number_text
from .hyper import DECAY, checked, scalar, verify
from .lifting import GradientTransformation
from .pages import publish
from .selected_rows import SelectedRows
from .transform import named, stateless

__all__ = ["L1Decay", "L2Decay", "WeightDecayRegularizer"]


class WeightDecayRegularizer(Adjustable):
    """What `weight_decay=` of an optimizer may be: a term of the parameter that is added to its gradient.

    A new `coeff` takes effect at the next step of every optimizer that has it.
    """

    coeff: Any
    _derived = ("_pair",)
    _hooks = {
        name: "define term(self, p), which returns what is added to the gradient of the array p"
        for name in ("__call__", "_append_regularization_op", "append_regularization_op")
    }

    @checked(coeff=DECAY)
    def __init__(self, coeff: Numeric = 0.0):
        self.coeff = coeff

    @property
    def _coeff(self) -> Any:
        """Paddle's own name for `coeff`."""
        return self.coeff

    @_coeff.setter
    def _coeff(self, coeff: Any) -> None:
        self.coeff = coeff

    def term(self, p: jax.Array) -> jax.Array:
        """Return what is added to the gradient of p; a subclass says what."""
        raise NotImplementedError(f"{type(self).__name__} has no term")

    @functools.cached_property
    def _pair(self) -> GradientTransformation:
        pair = stateless(self._decayed, self._dense, reads_params=type(self).__name__)
        return named(pair, self, self.packs)

    def _decayed(self, grads: list[Any], params: list[Any], paths: list[str]) -> list[Any]:
        def decayed(pairs: list[tuple[Any, Any]]) -> list[Any]:
            return [g + self.term(p) for g, p in pairs]

        return in_groups(decayed, list(zip(grads, params, strict=True)))

    def _dense(self, path: str, g: SelectedRows) -> jax.Array:
        if not self._warned:
            vars(self)["_warned"] = True  # no setting
            warnings.warn(
                f"{type(self).__name__} decays every row: a SelectedRows gradient becomes dense, lazy_mode "
                "has no effect; to step only its rows keep the decay away from the table",
                stacklevel=2,
            )
        return g.to_dense()

    _warned = False
    packs = False  # whether to tensors laid end to end it does what it does to each

    def transformation(self) -> GradientTransformation:
        """The same as functions: always one object, so that its leaves are done together."""
        return self._pair

    def __str__(self):
        return f"{type(self).__name__}, coeff={number_text(self.coeff)}"


class L1Decay(WeightDecayRegularizer):
    """g + coeff sign(p), where sign(0) = 0.

    >>> print(str(L1Decay(0.1)))
    L1Decay, coeff=0.100000
    """

    packs = True
    numbers = ("coeff",)

    def term(self, p):
        """Return coeff times the sign of p."""
        return jnp.asarray(self.coeff, p.dtype) * jnp.sign(p)


class L2Decay(WeightDecayRegularizer):
    """g + coeff p, without a factor 2 or ½.

    >>> print(str(L2Decay(0.1)))
    L2Decay, coeff=0.100000
    """

    packs = True
    numbers = ("coeff",)

    def term(self, p):
        """Return coeff times p."""
        return jnp.asarray(self.coeff, p.dtype) * p


def as_regularizer(name: str, value: Any) -> WeightDecayRegularizer | None:
    """What was given as weight decay: a number means L2Decay."""
    if value is None or isinstance(value, WeightDecayRegularizer):
        return value
    value = scalar(value)
    verify(DECAY, name, value)
    return L2Decay(value)


def l1_decay(coeff: Numeric) -> GradientTransformation:
    """Add coeff sign(p) to each gradient: the gradient of coeff ‖p‖₁.

    Put it between the clip and the rule, as Paddle does. It enters the moments; optax has no namesake.

    >>> p = jnp.array([2.0, 0.0])
    >>> updates, _ = l1_decay(0.1).update(jnp.ones(2), (), p)
    >>> print(updates)
    [1.1 1. ]
    """
    return L1Decay(coeff).transformation()


def l2_decay(coeff: Numeric) -> GradientTransformation:
    """Add coeff p to each gradient: the gradient of ½ coeff ‖p‖².

    Put it between the clip and the rule, as Paddle does; the same as optax.add_decayed_weights in that place
    and as torch's weight_decay. It enters the moments: AdamW's decay does not.

    >>> p = jnp.array([2.0, 0.0])
    >>> updates, _ = l2_decay(0.1).update(jnp.ones(2), (), p)
    >>> print(updates)
    [1.2 1. ]
    """
    return L2Decay(coeff).transformation()


publish(globals())
