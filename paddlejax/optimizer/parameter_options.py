"""What a Parameter says of itself to the optimizers that step it, and what else may be assigned to it."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import numpy as np

from ..attributes import Attributes, changes
from ..hyper import FACTOR, verify
from ..regularizer import as_regularizer


class ParamAttr(Attributes):
    """What a parameter may say of itself: Paddle's bundle of `Parameter`'s arguments.

    >>> Parameter(jnp.zeros(2), attr=ParamAttr(name="w", learning_rate=0.5)).learning_rate
    0.5
    """

    name: str | None
    learning_rate: float
    regularizer: Any
    trainable: bool
    do_model_average: bool
    need_clip: bool

    def __init__(
        self,
        name: str | None = None,
        initializer: Any = None,
        learning_rate: float = 1.0,
        regularizer: Any = None,
        trainable: bool = True,
        do_model_average: bool = True,
        need_clip: bool = True,
    ):
        if initializer is not None:
            raise TypeError("ParamAttr's initializer: a Parameter is given its value, so expected None")
        self.name, self.learning_rate, self.regularizer = name, learning_rate, regularizer
        self.trainable, self.do_model_average, self.need_clip = trainable, do_model_average, need_clip


class OptimizeAttr(MutableMapping[str, float]):
    """Paddle's `optimize_attr` of a Parameter: its factor on the rate as the entry `learning_rate`."""

    def __init__(self, parameter: "ParameterOptions"):
        self._parameter = parameter

    def __getitem__(self, key: str) -> float:
        if key != "learning_rate":
            raise KeyError(key)
        return self._parameter.learning_rate

    def __setitem__(self, key: str, value: Any) -> None:
        if key != "learning_rate":
            where = f"Parameter {self._parameter.name}'s optimize_attr"
            raise KeyError(f"{where}: found the entry {key!r}, expected 'learning_rate'; see allow_tags")
        self._parameter.learning_rate = value

    def __delitem__(self, key: str) -> None:
        self[key] = 1.0  # what is not said is 1

    def __iter__(self) -> Iterator[str]:
        return iter(("learning_rate",))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return repr(dict(self))


class ParameterOptions(Attributes):
    """The part of a Parameter that optimizers ask: its factor on the rate, decay, clip, and whether it moves.

    All of it may be assigned at any time. It takes effect at the next step.
    """

    name: str
    stop_gradient: bool
    edits: tuple[int, int]  # how often learning_rate and regularizer were assigned
    own_rate: float
    mapped: bool = False  # whether its name comes from a map, `parameters(names=...)`
    _group_rate: float | None  # what the dict of the group that it was put into last says
    _regularizer: Any
    _need_clip: bool
    _sparse: bool
    _ways = {
        "lr": "assign learning_rate, a factor on the optimizer's",
        "weight_decay": "assign regularizer, such as regularizer.L2Decay(0.1)",
        "requires_grad": "assign stop_gradient, its opposite",
        "_grad": "assign grad",
        **dict.fromkeys(("shape", "dtype", "sparse"), "it is fixed; make another Parameter"),
    }
    _once = {
        "own_rate": "assign learning_rate",
        **dict.fromkeys(("store", "is_real", "traits", "edits"), "it is fixed; make another Parameter"),
    }
    _hint = "for a mark of your own say paddlejax.Parameter.allow_tags({name!r}) first"

    @classmethod
    def allow_tags(cls, *names: str) -> None:
        """Let every Parameter have attributes of these names, marks that only your own code reads.

        >>> Parameter.allow_tags("no_weight_decay")
        >>> w = Parameter(jnp.ones(3))
        >>> w.no_weight_decay = True
        """
        for name in names:
            if not isinstance(name, str) or not name.isidentifier():
                raise TypeError(f"allow_tags: found {name!r}, expected the name of an attribute")
            if name in cls._ways or hasattr(cls, name) or name in cls._settable - cls.tags:
                raise ValueError(f"allow_tags: found {name}, which means something else, expected another")
        cls.tags = cls.tags | {*names}
        cls._settable = cls._settable | {*names}

    tags: ClassVar[frozenset[str]] = frozenset()  # the names that `allow_tags` was given

    @property
    def learning_rate(self) -> float:
        """The factor on the optimizer's rate; in a group that has one, the group's until it is assigned."""
        return self.own_rate if self._group_rate is None else self._group_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        """Replace the factor, also in place of a group's, from the next step on."""
        verify(FACTOR, f"Parameter {self.name}'s learning_rate", learning_rate)
        self._change(
            own_rate=float(learning_rate), _group_rate=None, edits=(self.edits[0] + 1, self.edits[1])
        )

    def show_rate(self, factor: float | None) -> None:
        """Show as `learning_rate` the factor of the group that it was put into; None for its own."""
        self._group_rate = factor

    @property
    def optimize_attr(self) -> OptimizeAttr:
        """Paddle's mapping with the entry `learning_rate`, the factor on the optimizer's rate."""
        return OptimizeAttr(self)

    @optimize_attr.setter
    def optimize_attr(self, attr: Any) -> None:
        """Take the entry `learning_rate`, 1 where there is none."""
        if not isinstance(attr, Mapping) or attr.keys() - {"learning_rate"}:
            expected = "expected a dict with the entry 'learning_rate'"
            raise TypeError(f"Parameter {self.name}'s optimize_attr: found {attr!r}, {expected}")
        self.learning_rate = attr.get("learning_rate", 1.0)

    @property
    def regularizer(self) -> Any:
        """The decay in place of the optimizer's, or None."""
        return self._regularizer

    @regularizer.setter
    def regularizer(self, regularizer: Any) -> None:
        """Replace it, also in place of a group's, from the next step on."""
        new = as_regularizer(f"Parameter {self.name}'s regularizer", regularizer)
        self._change(_regularizer=new, edits=(self.edits[0], self.edits[1] + 1))

    @property
    def need_clip(self) -> bool:
        """Whether the gradient is clipped."""
        return self._need_clip

    @need_clip.setter
    def need_clip(self, need_clip: Any) -> None:
        """Say whether it is, from the next step on."""
        self._check_flag("need_clip", need_clip)
        self._change(_need_clip=need_clip)

    def _change(self, **assigned: Any) -> None:
        """Assign options, and let the optimizers know."""
        changes.count += 1  # first, since an interrupt may come after the assignment
        vars(self).update(assigned)
        changes.count += 1

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stop_gradient":
            value = bool(value) if isinstance(value, np.bool_) else value
            self._check_flag(name, value)
        elif name == "name" and not isinstance(value, str):
            raise TypeError(f"Parameter {vars(self).get('name')}'s name: found {value!r}, expected a str")
        super().__setattr__(name, value)

    def _check_flag(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"Parameter {self.name}'s {name}: found {value!r}, expected True or False")

    @property
    def sparse(self) -> bool:
        """Whether a loss may read it only by rows, and its gradient is a SelectedRows."""
        return self._sparse

    @property
    def trainable(self) -> bool:
        """Whether it has gradients and is stepped: the opposite of `stop_gradient`."""
        return not self.stop_gradient

    @trainable.setter
    def trainable(self, trainable: Any) -> None:
        """Set `stop_gradient` to the opposite."""
        self._check_flag("trainable", trainable)
        self.stop_gradient = not trainable


def path_map(names: Any) -> dict[str, str]:
    """Return the map of names the other way round, {path: Paddle's name}; raise if it is none."""
    if names is None:
        return {}
    known = isinstance(names, Mapping) and all(
        isinstance(name, str) for pair in names.items() for name in pair
    )
    if not known:
        raise TypeError(f"parameters' names: found {names!r}, expected a dict {{Paddle's name: path}}")
    by_path = {path: theirs for theirs, path in names.items()}
    if len(by_path) < len(names):
        raise ValueError("parameters' names: found two names for one path, expected one each")
    return by_path
