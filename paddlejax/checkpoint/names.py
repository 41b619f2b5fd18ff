"""Which parameter of a file is which of ours: the map, and a proposal where the names differ."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..optimizer.ledger import StateDictError, base
from .errors import shown

OURS = "paddlejax"  # an entry of our own, which Paddle reads and ignores
MASTER = "_fp32_master_0"
KINDS = {"w": "weight", "weight": "weight", "kernel": "weight", "b": "bias", "bias": "bias"}


def checked_names(names: Any) -> dict[str, str]:
    """The map that was given, {Paddle's name: ours}."""
    if names is None:
        return {}
    if not isinstance(names, Mapping):
        raise TypeError(f"names: found {type(names).__name__}, expected a dict {{Paddle's name: ours}}")
    for theirs, ours in names.items():
        if not isinstance(theirs, str) or not isinstance(ours, str):
            raise TypeError(f"names: found {shown(theirs)}: {shown(ours)}, expected two names")
    twice = sorted(ours for ours, times in Counter(names.values()).items() if times > 1)
    if twice:
        raise ValueError(f"names: found {', '.join(twice)} more than once, expected every parameter once")
    return dict(names)


def spelling(ours: Iterable[str]) -> Callable[[str], str]:
    """How our names are found: dots may stand for the levels of a tree; what is none of ours gets slashes."""
    own = {name.replace("/", "."): name for name in ours}
    own |= {name: name for name in own.values()}
    return lambda said: own.get(said) or own.get(said.replace("/", ".")) or said.replace(".", "/")


def chosen(names: Any, extra: Mapping[str, Any], ours: Iterable[str]) -> dict[str, str]:
    """The map in force: what was given, else what the file says of itself.

    A structured name such as `0.weight` also means the path `0/weight`.
    """
    here = set(ours)
    given = checked_names(names) if names is not None else _stored_names(extra)
    spell = spelling(here)
    spelt = {p: spell(o) for p, o in given.items()}
    return spelt if names is not None else {p: o for p, o in spelt.items() if o in here}


def _stored_names(extra: Mapping[str, Any]) -> dict[str, str]:
    """The map in a file of ours."""
    try:
        return checked_names(extra.get("names"))
    except (TypeError, ValueError) as e:
        raise StateDictError(f"the file's {OURS}: {e}") from None


def check_needed(names: Mapping[str, str], theirs: Iterable[str]) -> None:
    """Refuse a map that speaks of what the file does not have, for one that the file has by its own name.

    What the file does not have by either name may be a parameter without state.
    """
    there = set(theirs)
    for name, ours in names.items():
        if name not in there and ours in there and ours not in names:
            raise ValueError(f"names: found {name!r}: {ours!r}, but the file has {ours} and no {name}")


def owners(entries: Mapping[Any, Any], accumulators: Sequence[str]) -> dict[str, Any]:
    """The parameters that a file's keys speak of, in its order, with their shapes."""
    found: dict[str, Any] = {}
    ends = sorted(((f"_{name}", i) for i, name in enumerate(accumulators)), key=lambda e: -len(e[0]))
    first: dict[str, int] = {}
    for key, value in entries.items():
        stem = base(key) if isinstance(key, str) else ""
        end, rank = next(((e, i) for e, i in ends if stem.endswith(e)), ("", 0))
        if end and hasattr(value, "shape"):
            owner = stem.removesuffix(end).removesuffix(MASTER)
            if rank <= first.get(owner, rank):
                found[owner], first[owner] = tuple(value.shape), rank
    masters = entries.get("master_weights")
    for name, value in masters.items() if isinstance(masters, Mapping) else ():
        found.setdefault(name, tuple(getattr(value, "shape", ())))
    return found


def renamed(entries: Mapping[Any, Any], names: Mapping[str, str], known: Iterable[str]) -> dict[Any, Any]:
    """The same entries with every parameter called by its other name."""
    everyone = {*names, *known}
    lengths = sorted({len(name) for name in everyone}, reverse=True)

    def rename(key: Any) -> Any:
        if not isinstance(key, str):
            return key
        ends = (i for i in lengths if i == len(key) or i < len(key) and key[i] in "_@")
        owner = next((key[:i] for i in ends if key[:i] in everyone), None)  # the longest
        return key if owner is None else names.get(owner, owner) + key[len(owner) :]

    new: dict[Any, Any] = {}
    for key, value in entries.items():
        to = rename(key)
        if to in new:
            raise ValueError(f"names: found two parameters of the file for {to}, expected one")
        new[to] = value
    if isinstance(entries.get("master_weights"), Mapping):
        new["master_weights"] = {names.get(k, k): v for k, v in entries["master_weights"].items()}
    return new


def proposal(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """A map to check and paste for the names that fit nothing, or "" where there is none to propose.

    Shapes must agree; then a common end counts, then the kind (weight or bias), then the order.
    """
    left = {name: shape for name, shape in theirs.items() if name not in ours}
    free = {n: ours[n] for n in sorted((n for n in ours if n not in theirs), key=_natural)}
    lines = []
    for name, shape in left.items():
        fitting = [n for n, s in free.items() if tuple(s) == tuple(shape)]
        if not fitting:
            continue
        likeness = {n: _likeness(name, n) for n in fitting}
        best = max(likeness.values())
        equal = [n for n in fitting if likeness[n] == best]
        free.pop(equal[0])
        doubt = "" if len(equal) == 1 else "  # by their order: check it"
        lines.append(f'    "{name}": "{equal[0]}",{doubt}')
    if not lines:
        return ""
    listed = "\n".join(lines)
    return f"\nthe names differ; if this is what they mean, give it:\nnames={{\n{listed}\n}}"


def _likeness(theirs: str, ours: str) -> tuple[int, bool]:
    """How many parts two names have in common at their ends, and whether they are of one kind."""
    a, b = _parts(theirs), _parts(ours)
    common = 0
    while common < min(len(a), len(b)) and a[-1 - common] == b[-1 - common]:
        common += 1
    kinds = KINDS.get(a[-1]), KINDS.get(b[-1])
    return common, kinds[0] is not None and kinds[0] == kinds[1]


@functools.lru_cache(maxsize=10_000)
def _parts(name: str) -> list[str]:
    """`block/linear_0.w_0` -> [block, linear, 0, w]: the last counter is Paddle's."""
    return re.split(r"[/._]+", base(name)) if base(name) else [name]


def _natural(name: str) -> list[Any]:
    """Numbers by their size: layer 10 comes after layer 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
