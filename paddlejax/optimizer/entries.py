"""Reading a state_dict entry by entry: what is missing, misshapen or unexpected is collected, then raised."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cohorts import base, misfit, nearest, raise_if


class Entries:
    """The entries of a state_dict that are still to be taken, and the problems met on the way.

    The trailing counter of a key (`_0`, `_1`) is not part of the match.
    """

    def __init__(self, state_dict: Any):
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: found {type(state_dict).__name__}, expected a dict")
        self.rest = dict(state_dict)
        self.problems: list[str] = []
        self._keys: dict[str, list[Any]] = {}
        for key in self.rest:
            self._keys.setdefault(base(key) if isinstance(key, str) else key, []).append(key)

    def has(self, key: str) -> bool:
        return bool(self._keys.get(base(key)))

    def peek(self, key: str) -> Any:
        """The entry as it is, still to be taken."""
        return self.rest[self._keys[base(key)][0]]

    def take(self, key: str, shape: tuple[int, ...], dtype: Any, required: bool = True) -> Any:
        """A copy of the entry, or None if it is not there or does not fit."""
        keys = self._keys.pop(base(key), [])
        values = [self.rest.pop(k) for k in keys]
        if not keys:
            names = [k for k in self.rest if isinstance(k, str)]
            self.problems += [f"missing: {key}{nearest(key, names)}"] if required else []
        elif len(keys) > 1:
            self.problems.append(f"ambiguous: {' and '.join(keys)}")
        elif problems := misfit(keys[0], values[0], shape, _accepted(values[0], np.dtype(dtype))):
            self.problems += problems
        else:
            return jnp.array(np.asarray(values[0]).reshape(shape) if shape == (1,) else values[0])
        return None

    def scalar(self, key: str, required: bool = True) -> int | None:
        """A counter of shape (1,), as a Python int."""
        value = self.take(key, (1,), np.int64, required)
        return None if value is None else int(value[0])

    def close(self) -> None:
        """Raise one error if anything was wrong, or is left over."""
        problems = [*self.problems, *(f"unexpected: {key}" for key in self.rest)]
        raise_if(problems)


def counter(value: Any) -> np.ndarray:
    """A count as Paddle stores it: int64 of shape (1,)."""
    return np.asarray(value, np.int64).reshape(1)


def _accepted(value: Any, dtype: np.dtype) -> np.dtype:
    """The dtype to expect of an entry: a count may have any of integers."""
    counts = np.issubdtype(dtype, np.integer) and isinstance(value, jax.Array | np.ndarray)
    return value.dtype if counts and jnp.issubdtype(value.dtype, jnp.integer) else dtype
