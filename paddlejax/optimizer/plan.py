"""What every Parameter of an optimizer gets, as its programs take it: what is fixed in them, what is data.

The factors on the rate are data: Parameters with equal factors share a slot, and a program is given one rate
per slot. So a new factor needs no new program while Parameters of one slot agree. All other numbers (of the
rule, decays and clips) are constants of the first programs. Once one of them has changed they are data too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..attributes import changes
from ..leaves import LeafOptions
from ..lifting import Lifted

OFTEN = 2  # how often Parameters may part company before each gets a slot of its own


class Plan(NamedTuple):
    """The options of all Parameters at one time."""

    seen: int  # the count of changes that it has seen
    number: object  # no two plans have the same, also after one was pickled
    options: list[LeafOptions]
    slots: tuple[int, ...]  # per Parameter; those of one slot have the same factor on the rate
    structure: Any  # all that is fixed: two plans may share programs only if it is equal
    numbers: list[float]  # all others
    live: bool = False  # whether the numbers are data
    partings: int = 0  # how often the slots had to be made anew
    mark: object = None  # of the constants of packed Parameters

    @property
    def key(self) -> Any:
        """What programs are kept by: equal keys, equal programs."""
        return self.slots, self.structure, None if self.live else tuple(self.numbers), self.mark


def planned(options: list[LeafOptions]) -> Plan:
    """Return the first plan of an optimizer."""
    structure, numbers = taken_apart(options)
    slots = _slots([o.learning_rate for o in options])
    return Plan(changes.count, object(), options, slots, structure, numbers)


def renewed(plan: Plan, seen: int, options: list[LeafOptions], packs: bool, made: bool) -> Plan:
    """Return the plan that follows when these are the options now; the same one if nothing has changed.

    `packs` says whether Parameters lie in buffers, `made` whether there are programs already.
    """
    structure, numbers = taken_apart(options)
    factors = [o.learning_rate for o in options]
    same = structure == plan.structure and numbers == plan.numbers
    if same and factors == [o.learning_rate for o in plan.options]:
        return plan._replace(seen=seen)
    # Parameters in one buffer share their numbers: these stay constants.
    mark = object() if packs and not same else plan.mark
    slots, partings, first = plan.slots, plan.partings, dict(zip(plan.slots, factors, strict=True))
    if [first[slot] for slot in slots] != factors:
        partings += 1
        slots = tuple(range(len(factors))) if partings > OFTEN and not packs else _slots(factors)
    live = plan.live or (made and not same and not packs)
    return Plan(seen, object(), options, slots, structure, numbers, live, partings, mark)


def _slots(factors: Sequence[float]) -> tuple[int, ...]:
    """Return one slot for every different factor."""
    known: dict[float, int] = {}
    return tuple(known.setdefault(factor, len(known)) for factor in factors)


def taken_apart(options: Sequence[LeafOptions]) -> tuple[Any, list[float]]:
    """Return what of these options is fixed in a program, and their numbers."""
    parts = _parts(options)
    places = {at: i for i, at in enumerate(parts)}
    kinds, numbers = [], []
    for part in parts.values():
        kind, own = _kind(part)
        kinds.append((kind, len(own)))
        numbers += own
    members = [
        (o.maximize, *(places.get(id(x)) for x in (o.rule, o.weight_decay, o.grad_clip))) for o in options
    ]
    return (tuple(kinds), tuple(members)), numbers


def put_together(options: Sequence[LeafOptions], numbers: Sequence[Any]) -> list[LeafOptions]:
    """Inside a program: return the options with these numbers in place of their own."""
    rest, new = iter(numbers), {}
    for at, part in _parts(options).items():
        own = [next(rest) for _ in _kind(part)[1]]
        new[at] = _with(part, own) if own else part
    changed = ("rule", "weight_decay", "grad_clip")
    return [o._replace(**{k: new.get(id(getattr(o, k))) for k in changed}) for o in options]


def _parts(options: Sequence[LeafOptions]) -> dict[int, Any]:
    """Return the different rules, decays and clips, in the order of the first Parameter that has them."""
    parts = (x for o in options for x in (o.rule, o.weight_decay, o.grad_clip) if x is not None)
    return {id(x): x for x in parts}


def _kind(part: Any) -> tuple[Any, list[float]]:
    """Return what of a part is fixed, and its numbers; a part that is not known to take data has none."""
    if isinstance(part, Lifted):
        numbers, structure = jax.tree.flatten(part.source.rule)
        known = all(isinstance(x, int | float) for x in numbers)
        return (structure, numbers) if known else (id(part), [])
    source = part.source
    return source.fixed(), [getattr(source, name) for name in source.adjustable()]


def _with(part: Any, numbers: list[Any]) -> Any:
    """Return a rule, decay or clip with these numbers."""
    if isinstance(part, Lifted):
        return part.having(jax.tree.unflatten(jax.tree.structure(part.source.rule), numbers))
    return part.source.having(dict(zip(part.source.adjustable(), numbers, strict=True)))


class Rates:
    """The rates that a program is given: one per slot, and the numbers that are data, if any.

    `slots` has the slot of every array of the program. `with_plain` puts the optimizer's own rate in front.
    """

    def __init__(self, slots: Sequence[int], live: bool, dtype: Any, with_plain: bool):
        known: dict[int, int] = {}
        self._slots = [known.setdefault(slot, len(known)) for slot in slots]
        self._first = [self._slots.index(i) for i in range(len(known))]
        self._dtype, self._plain, self._live = dtype, [1.0] if with_plain else [], live
        self._factors: Any = None  # None where the optimizer's rate is all there is
        self._numbers: Any = None  # None where they are constants

    def adopt(self, options: Sequence[LeafOptions]) -> None:
        """Take the factors and numbers of these options, one per array of the program."""
        factors = [*self._plain, *(options[i].learning_rate for i in self._first)]
        if len(factors) == 1:
            self._factors = None if factors == [1.0] else self._dtype(factors[0])
        else:
            self._factors = np.array(factors, self._dtype)
        if self._live:
            self._numbers = np.array(taken_apart(options)[1])

    def __call__(self, rate: float) -> Any:
        """Return what the program is given where this is the optimizer's rate."""
        rates = self._dtype(rate) if self._factors is None else self._dtype(rate) * self._factors
        return (rates, self._numbers) if self._live else rates

    def read(self, rates: Any) -> tuple[Any, list[Any], list[Any]]:
        """Inside the program: return the optimizer's rate, that of every array, and the numbers."""
        rates, numbers = rates if self._live else (rates, [])
        each = list(rates) if rates.ndim else [rates]
        own = each[len(self._plain) :]
        return each[0], [own[slot] for slot in self._slots], list(numbers)
