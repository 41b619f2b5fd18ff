"""Which attributes the objects of this package have: one that nobody would read cannot be assigned.

A class declares its attributes by annotations. An instance of a class of this package takes only these; an
instance of a user's subclass takes any other too, unless it is one letter from a declared one, or a name that
Paddle obeys and that does nothing here.
"""

import difflib
import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from .hyper import is_traced, refuse_bad, scalar
from .tracing import check_outside

PACKAGE = __name__.split(".")[0]


class Changes:
    """How often a setting of any object was changed. Whoever keeps what follows from settings looks here."""

    count = 0


changes = Changes()


def is_ours(cls: type) -> bool:
    """Return whether this package defines the class, not a user."""
    return cls.__module__.split(".")[0] == PACKAGE


def _joined(cls: type, table: str) -> dict[str, str]:
    """Return a table of this class with those of its bases; what a class takes back has an empty text."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= vars(base).get(table, {})
    return {name: text for name, text in found.items() if text}


def check_hooks(cls: type) -> None:
    """Raise where a user's class has a method that Paddle would call and this package does not.

    It is asked when the class is made, and when an instance is: a method may be assigned in between.
    """
    for name, way in cls._hooks.items():  # type: ignore[attr-defined]
        if is_users(cls, name):
            raise TypeError(f"{cls.__name__} defines {name}, which is never called here: {way}")


def is_users(cls: type, name: str) -> bool:
    """Return whether the definition of this name that is in force is a user's."""
    owner = next((base for base in cls.__mro__ if name in vars(base)), object)
    return not is_ours(owner) and owner is not object


def _is_read_only(attribute: Any) -> bool:
    return isinstance(attribute, property) and attribute.fset is None


@functools.cache
def _assignable(cls: Any) -> list[str]:
    """Return the names to propose: public data that may be assigned, and what Paddle calls its own."""
    data = (name for name in cls._settable if not callable(getattr(cls, name, None)))
    return sorted({*(name for name in data if not name.startswith("_")), *cls._ways, *cls._once})


def _is_slip(name: str, meant: str) -> bool:
    """Return whether two names of four letters or more differ in one letter, or in the order of two."""
    if min(len(name), len(meant)) < 4 or name == meant or abs(len(name) - len(meant)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(name, meant, strict=False)) if a != b), len(meant))
    rest, other = name[start:], meant[start:]
    swapped = other[1:2] + other[:1] + other[2:]
    return rest in (other[1:], swapped) or rest[1:] in (other, other[1:])


class Attributes:
    """Base of the objects that refuse an attribute which they do not know.

    `_ways` says of names that Paddle knows, or that somebody may try, what to do instead; `_once` the same of
    attributes that only the constructor sets. `_hooks` says of methods that Paddle calls, and this package
    does not, what to write instead: a subclass that defines one is refused when it is made. Each adds to that
    of its bases.
    """

    _ways: ClassVar[Mapping[str, str]] = {}
    _once: ClassVar[Mapping[str, str]] = {}
    _hooks: ClassVar[Mapping[str, str]] = {}
    _settable: ClassVar[frozenset[str]] = frozenset()  # what may be assigned
    _hint: ClassVar[str] = ""  # what else the error says

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for table in ("_ways", "_once", "_hooks"):
            setattr(cls, table, _joined(cls, table))
        declared = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        names = {name for name in dir(cls) if not _is_read_only(inspect.getattr_static(cls, name))}
        cls._settable = frozenset((names | declared) - cls._ways.keys() - cls._once.keys())
        check_hooks(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._settable:
            object.__setattr__(self, name, value)
        else:
            self._assign(name, value)

    def _assign(self, name: str, value: Any) -> None:
        """Take an attribute that is not declared, or refuse it."""
        cls = type(self)
        if name in self._once and name not in vars(self):
            return object.__setattr__(self, name, value)
        reason = self._once.get(name) or self._ways.get(name) or self._hooks.get(name)
        if reason is None and not is_ours(cls):
            if not hasattr(cls, name):
                reason = next((f"did you mean {x}?" for x in _assignable(cls) if _is_slip(name, x)), None)
            if reason is None:
                return object.__setattr__(self, name, value)
        elif reason is None:
            near = difflib.get_close_matches(name, _assignable(cls), 1)
            words = ["it can only be read" if hasattr(cls, name) else "no such attribute"]
            reason = "; ".join([*words, *(f"the nearest is {x}" for x in near), *filter(None, [self._hint])])
        raise AttributeError(f"{cls.__name__}.{name} cannot be assigned: {reason.format(name=name)}")

    def _obeyed(self) -> list[str]:
        """Return the names that can be assigned and are no attributes of the class."""
        return []


class Schedule(Attributes):
    """Base of the schedulers: a class names its attributes, and an instance of a user's class takes any."""

    _attributes: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls._settable |= {name for base in cls.__mro__ for name in vars(base).get("_attributes", ())}

    def _assign(self, name: str, value: Any) -> None:
        if is_ours(type(self)):
            super()._assign(name, value)
        else:
            object.__setattr__(self, name, value)


class Adjustable(Attributes):
    """Base of what optimizers are given and ask again: a change of it takes effect at their next step."""

    numbers: ClassVar[tuple[str, ...]] = ()  # the attributes that may be data of a program
    edits: int = 0  # how often an attribute was assigned

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self):  # it is being made: nobody has asked it yet
            return super().__setattr__(name, value)
        if is_traced(value):  # which is of no use after the trace
            check_outside(f"an assignment to {type(self).__name__}.{name}")
        value = self._read(name, scalar(value) if name in self.numbers else value)
        try:
            super().__setattr__(name, value)
        finally:  # also where an interrupt comes after it
            for derived in self._derived:
                vars(self).pop(derived, None)
            vars(self)["edits"] = self.edits + 1
            changes.count += 1

    _derived: ClassVar[tuple[str, ...]] = ()  # cached properties that follow from the others

    def _read(self, name: str, value: Any) -> Any:
        """Return a new value of an attribute as the constructor would store it, or raise as it would."""
        for base in type(self).__mro__:
            declared = getattr(vars(base).get("__init__"), "declared", {})
            if name in declared:
                refuse_bad(type(self).__name__, declared, {**vars(self), name: value})
        return value

    def adjustable(self) -> tuple[str, ...]:
        """Return the attributes that are data: none of a user's class, which may ask what they are."""
        known = is_ours(type(self)) and all(isinstance(getattr(self, x), int | float) for x in self.numbers)
        return self.numbers if known else ()

    def fixed(self) -> Any:
        """Return a key: what of this object is no data. Objects with equal keys do the same."""
        if not self.adjustable():
            return id(self), self.edits
        rest = {k: v for k, v in vars(self).items() if k not in (*self.numbers, *self._derived, "edits")}
        return type(self), *(rest.get(k) for k in sorted(rest) if not k.startswith("_"))

    def having(self, numbers: Mapping[str, Any]) -> Any:
        """Return the transformation of an object like this one with these numbers."""
        other = object.__new__(type(self))
        vars(other).update({k: v for k, v in vars(self).items() if k not in self._derived}, **numbers)
        return other.transformation()

    def transformation(self) -> Any:
        """Return what it does as functions of any pytree; a subclass says what."""
        raise NotImplementedError(f"{type(self).__name__} has no transformation")


def number_text(value: Any) -> str:
    """A hyperparameter as Paddle prints it; one that is not known yet by its type."""
    return str(value) if is_traced(value) else f"{float(value):f}"
