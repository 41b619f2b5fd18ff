"""What rules call their accumulators, and which Paddle stores once per element: as the rules say it."""

from dataclasses import MISSING, fields
from functools import cache

from .. import rules
from ..hyper import ArgumentError
from ..lifting import LIFTED, Rule, accumulators
from ..rates import RuleState


def names() -> list[str]:
    """The accumulators of Paddle's rules, and of every rule that was lifted."""
    known = {*map(accumulators, _paddles()), *LIFTED}
    return sorted({name for slots, shared in known for name in (*slots, *shared)})


def full_shape(state: RuleState) -> tuple[str, ...]:
    """The shared scalars that Paddle stores once per element, by the rule that made this state.

    The state does not tell its rule. So this is what all rules of the same accumulators say, among those that
    were lifted, or Paddle's own; an error if two of them disagree.
    """
    if not state.shared:
        return ()
    key = accumulators(state)
    said = LIFTED.get(key) or {type(r).__name__: r.full_shape for r in _paddles() if accumulators(r) == key}
    if len(set(map(frozenset, said.values()))) == 1:
        return next(iter(said.values()))
    have = ", ".join(sorted(frozenset.union(*key)))
    listed = "; ".join(f"{rule}: {', '.join(full) or 'none'}" for rule, full in said.items()) or "no rule"
    raise ArgumentError(
        f"the state: found the accumulators {have}, expected that the rules lifted here that have just these "
        f"agree which of them Paddle stores once per element; found {listed}"
    )


@cache
def _paddles() -> list[Rule]:
    """Paddle's rules that need no argument, without and with their flags, with which they have more slots."""
    found = []
    for cls in (getattr(rules, name) for name in rules.__all__):
        if isinstance(cls, type) and all(f.default is not MISSING for f in fields(cls)):
            flags = [f.name for f in fields(cls) if f.type is bool]
            found += [cls(**dict.fromkeys(flags, on)) for on in (False, True)]
    return found
