"""What programs read of an optimizer by the names of Paddle's implementation: copies, not to write into."""

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from . import saved
from .gate import whole
from .parameter import Parameter

# Of the rules whose name in Paddle is not the class's in small letters.
NAMES = {
    "DGCMomentum": "dgc_momentum",
    "DecayedAdagrad": "decayed_adagrad",
    "LarsMomentum": "lars_momentum",
}


class Group(dict[str, Any]):
    """A group of `_param_groups`: a dict that can only be read."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "_param_groups: found an assignment, expected none: it is a copy; assign to the Parameters, such "
            "as p.learning_rate = 0.1"
        )

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class Views:
    """The part of an optimizer that programs written for Paddle read: its parameters, groups and state.

    What has the names of Paddle's implementation is a copy, and cannot be written into.
    """

    _given: list[tuple[list[Parameter], dict[str, Any]]]  # as they were given

    @property
    def type(self: Any) -> str:
        """Paddle's name of the rule, such as "adam"."""
        name = type(self._base.source.rule).__name__
        return NAMES.get(name, name.lower())

    @property
    def _parameter_list(self) -> tuple[Any, ...]:
        """The Parameters; where groups were given, the groups, as in Paddle."""
        return self._param_groups

    @property
    def _param_groups(self) -> tuple[Any, ...]:
        """The groups with their "params" and options; where none were given, the Parameters."""
        if len(self._given) == 1 and not self._given[0][1]:
            return tuple(self._given[0][0])
        return tuple(Group({"params": tuple(members), **own}) for members, own in self._given)

    @property
    @whole
    def _accumulators(self: Any) -> MappingProxyType[str, dict[str, jax.Array]]:
        """Copies of the accumulators: {"moment1": {"w": array}}."""
        rows = saved.rows_of(self._steps.groups, self.parameter_list, self.owners())
        names = [p.name for p in self.parameter_list]
        return MappingProxyType(
            {k: {names[i]: field.write(x) for i, (field, x) in row.items()} for k, row in rows.items()}
        )

    def _get_accumulator(self, name: str, param: Parameter) -> jax.Array:
        """Return a copy of one accumulator of a Parameter."""
        accumulators = self._accumulators
        if param.name not in accumulators.get(name, {}):
            there = ", ".join(accumulators) or "none before the first step"
            raise ValueError(f"_get_accumulator: found {name} of {param.name}, expected one of: {there}")
        return accumulators[name][param.name]

    @property
    @whole
    def _master_weights(self: Any) -> MappingProxyType[str, jax.Array]:
        """Copies of the float32 masters, by the names of their Parameters."""
        return MappingProxyType({p.name: jnp.array(m) for p, m in (self.masters or {}).items()})

    def get_opti_var_name_list(self: Any) -> list[str]:
        """Return the names of all accumulators, which are keys of `state_dict`."""
        rows = saved.rows_of(self._steps.groups, self.parameter_list, self.owners())
        return [rows[k][i][0].key for i in range(len(self.parameter_list)) for k in rows if i in rows[k]]

    def _global_learning_rate(self: Any, program: None = None) -> Parameter:
        """Return the rate of the next step, () float32: a frozen Parameter, for its `numpy()`."""
        return Parameter(jnp.asarray(self.get_lr(), jnp.float32), "learning_rate_0", trainable=False)

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        """`clear_grad`, which by this name drops the gradients unless set_to_none is False."""
        self.clear_grad(not set_to_none)
