"""Paddle's 18 learning-rate schedulers: objects that count, over the formulas of `paddlejax.schedules`.

All rates are Python floats. The constructor takes the first step, so a fresh scheduler stands at epoch 0.
"""

import inspect
import math
import warnings
from typing import Any, ClassVar

import jax
import numpy as np

from paddlejax import schedules
from paddlejax.schedules import Family, expect


class LRScheduler:
    """The base of all schedulers; a subclass defines `get_lr` and may save more by overriding `state_keys`.

    >>> class Halving(LRScheduler):
    ...     def get_lr(self):
    ...         return self.base_lr * 0.5**self.last_epoch
    >>> halving = Halving(0.8)
    >>> halving.step(); halving()
    0.4
    """

    def __init__(self, learning_rate=0.1, last_epoch=-1, verbose=False):
        expect(isinstance(learning_rate, (int, float)), TypeError, "learning_rate", learning_rate, "a float")
        expect(learning_rate >= 0, ValueError, "learning_rate", learning_rate, "a float >= 0")
        self.base_lr = self.last_lr = float(learning_rate)
        self.last_epoch = last_epoch
        self.verbose = verbose
        self.step()

    def __call__(self):
        """The rate in force; nothing is computed."""
        return self.last_lr

    def get_lr(self) -> Any:
        """The rate at `last_epoch`."""
        raise NotImplementedError(f"{type(self).__name__} must define get_lr()")

    def step(self, epoch=None):
        """Advance to the next epoch, or to the one given, and take its rate."""
        if epoch is None:
            self.last_epoch += 1
            self.last_lr = self.get_lr()
        else:
            self.last_epoch = epoch
            self.last_lr = getattr(self, "_get_closed_form_lr", self.get_lr)()
        self._report()

    def _report(self):
        if self.verbose:
            print(f"Epoch {self.last_epoch}: {type(self).__name__} set learning rate to {self.last_lr}.")

    def state_keys(self):
        """Set `keys`, the names of the attributes to save."""
        self.keys = ["last_epoch", "last_lr"]

    def state_dict(self):
        """The saved attributes; an array of one element becomes a float."""
        self.state_keys()
        state = {key: self.__dict__[key] for key in self.keys if key in self.__dict__}
        return {k: float(v.reshape(())) if isinstance(v, jax.Array) else v for k, v in state.items()}

    def set_state_dict(self, state_dict):
        """Restore what `state_dict` saved; nothing changes if a key is missing."""
        self.state_keys()
        self._restore(state_dict, self.keys)

    def _restore(self, state_dict, keys, optional=()):
        for key in keys:
            if key not in state_dict:
                raise RuntimeError(f"Can't find [ {key} ] in state_dict; found {sorted(state_dict)}")
        unused = sorted(set(state_dict) - set(keys) - set(optional))
        if unused:
            warnings.warn(f"{type(self).__name__} does not use {unused} of state_dict", stacklevel=3)
        self.__dict__.update({key: state_dict[key] for key in keys})

    def set_dict(self, state_dict):
        """The older name of `set_state_dict`."""
        self.set_state_dict(state_dict)


class _Formula(LRScheduler):
    """A scheduler whose attributes are the arguments of a pure schedule, read anew at every step."""

    _family: ClassVar[Family]
    _names: ClassVar[tuple[str, ...]]
    _base: ClassVar[str]

    def __init_subclass__(cls, family: Any = None, base="learning_rate"):
        """`base` is the argument of `family` that `base_lr` stands for."""
        if family is not None:
            # As a static method: a plain function on a class would be bound to the instance.
            cls._family = staticmethod(family)  # pyright: ignore[reportAttributeAccessIssue]
            cls._names = tuple(n for n in inspect.signature(family).parameters if n != base)
            cls._base = base if base in inspect.signature(family).parameters else ""

    def __init__(self, learning_rate, last_epoch, verbose):
        self._family(**self._arguments(learning_rate))  # raises if anything is wrong
        super().__init__(learning_rate, last_epoch, verbose)

    def _arguments(self, base_lr):
        arguments = {name: getattr(self, name) for name in self._names}
        return {self._base: base_lr, **arguments} if self._base else arguments

    def get_lr(self):
        return self._family.at(self.last_epoch, **self._arguments(self.base_lr))
