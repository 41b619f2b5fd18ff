"""Pages of public names: a formula is written once and shown on each class of it, arguments are said once."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Annotated, Any, TypeVar, get_args, get_origin

from .glossary import meaning
from .hyper import ArgumentError, Interval, Must

C = TypeVar("C", bound=type)

EXAMPLE = """

>>> p = Parameter(jnp.array([1.0, -2.0]), "p")
>>> opt = {call}
>>> _ = opt.minimize(lambda params: jnp.sum(params[0] ** 2))
>>> print(p.numpy())
{prints}
"""
PAIR = """
Returns:
    A pair (init, update) of pure functions. `init(params)` returns the state. `update(grads, state, params)`
    returns what is to be added to the parameters, and the new state. Shapes and dtypes are the parameters'.

Raises:
    ArgumentError: an argument is outside its range. It is a ValueError and an AssertionError.
    TypeError: an argument is of another type.
    ValueError: in `update`, a gradient or a slot does not fit its parameter; the message names the leaf.
"""
REFUSED = """
Raises:
    {error}: an argument is outside its range{both}.
    TypeError: an argument is of another type.
"""


def page(own: str | None, source: Any) -> str:
    """A class's own words, and below them those of what it is made of, without examples and arguments."""
    theirs = [part for part in by_hand(source).split("\n\n") if ">>>" not in part]
    return "\n\n".join([inspect.cleandoc(own or ""), *theirs])


def by_hand(thing: Any) -> str:
    """The page of a thing without the sections that `describe` adds."""
    return re.sub(
        r"\n(Here [^\n]*\n\n)?Args:\n.*?\nExample:\n\n(?=>>>)", "\n", inspect.getdoc(thing) or "", flags=re.S
    )


def of(source: Any, call: str = "", prints: str = "") -> Callable[[C], C]:
    """Decorate a class that is made of `source`; for an optimizer also what a call of it gives."""

    def paged(cls: C) -> C:
        cls.__doc__ = page(cls.__doc__, source) + (EXAMPLE.format(call=call, prints=prints) if call else "")
        cls.described_by = source  # type: ignore[attr-defined]
        return cls

    return paged


@dataclass(frozen=True)
class Words:
    """An annotation that signatures show as it reads, without quotes."""

    text: str

    def __repr__(self) -> str:
        return self.text


def readable(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature for readers: `float in [0, 1)` in place of `Annotated[float, Interval(...)]`."""
    parameters = signature.parameters.values()
    bounded = [p for p in parameters if get_origin(p.annotation) is Annotated]
    words = {
        p.name: Words(" ".join([getattr(k, "__name__", str(k)), *map(str, b)]))
        for p in bounded
        for k, *b in [get_args(p.annotation)]
    }
    return signature.replace(
        parameters=[p.replace(annotation=words.get(p.name, p.annotation)) for p in parameters]
    )


def publish(namespace: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Give the public functions and classes of a module the sections that are made by machine.

    A module without `__all__` publishes what it defines itself.
    """
    home = namespace["__name__"]
    own = [n for n, x in namespace.items() if n[0] != "_" and getattr(x, "__module__", None) == home]
    for name in namespace.get("__all__", own) if names is None else names:
        thing = namespace.get(name)
        if callable(thing) and str(getattr(thing, "__module__", "")).startswith("paddlejax"):
            describe(thing)


def describe(thing: Any) -> None:
    """Add Args, and Returns and Raises where they follow from what it is, before the example."""
    doc = inspect.cleandoc(thing.__doc__ or "") if "__doc__" in dir(thing) else ""
    if not doc or "\nArgs:\n" in doc:
        return
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return
    sections = _symbols(doc) + _arguments(thing, signature) + _outcome(thing, signature)
    if not sections:
        return
    words, mark, example = doc.partition("\n>>> ")
    text = f"{words.rstrip()}\n\n{sections.strip()}\n"
    thing.__doc__ = text + (f"\nExample:\n\n{mark.strip()} {example}" if mark else "")


def _symbols(doc: str) -> str:
    """What the letters of a formula are that no argument stands for."""
    formula = "\n".join(line for line in doc.splitlines() if line.startswith("    "))
    if re.search(r"\bp ←", formula):
        return "\nHere p is a parameter and g its gradient; ← says what a step puts in the place of what.\n"
    return "\nHere t is the count, or the epoch of a scheduler.\n" if "η(t)" in formula else ""


def _arguments(thing: Any, signature: inspect.Signature) -> str:
    owner, declared = thing.__name__, _declared(thing)
    rates = thing.__module__.rsplit(".", 1)[-1] in ("lr", "schedules", "learning_rate_scheduler", "layers")
    known = getattr(getattr(thing, "described_by", thing), "__dataclass_fields__", {})
    lines = []
    for name, p in signature.parameters.items():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or name == "self":
            continue
        said = meaning("schedule" if rates and name == "learning_rate" else owner, name) or ""
        annotation = known[name].type if name in known else p.annotation
        facts = [f for f in (_range(declared.get(name), annotation), _default(p)) if f]
        text = ". ".join(sentence(part) for part in (said, "; ".join(facts)) if part)
        lines.append(fill(f"    {name}: {text}.", 106, subsequent_indent=" " * 8, break_on_hyphens=False))
    return "\nArgs:\n" + "\n".join(lines) + "\n" if lines else ""


def sentence(text: str) -> str:
    """A text that begins with a capital letter, unless it begins with a symbol of a formula."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _outcome(thing: Any, signature: inspect.Signature) -> str:
    returned = getattr(signature.return_annotation, "__name__", signature.return_annotation)
    if returned in ("GradientTransformation", "Lifted", "Divided"):
        return PAIR
    declared = _declared(thing)
    if declared:
        errors = {c.error for d in declared.values() for c in _checks(d) if isinstance(c, Interval)}
        error = next(iter(errors)) if len(errors) == 1 else ArgumentError
        both = ". It is a ValueError and an AssertionError" if error is ArgumentError else ""
        return REFUSED.format(error=error.__name__, both=both)
    return ""


def _declared(thing: Any) -> Mapping[str, Any]:
    """What `checked` declares of the arguments of a function, or of a class's constructor."""
    made = thing.__init__ if isinstance(thing, type) else thing
    return getattr(made, "declared", {})


def _checks(declaration: Any) -> tuple[Any, ...]:
    return declaration if isinstance(declaration, tuple) else (declaration,)


def _range(declaration: Any, annotation: Any) -> str:
    """What an argument may be, in words; empty where only its own sentence says so."""
    if get_origin(annotation) is Annotated:
        kind, *bounds = get_args(annotation)
        return " ".join(["an int" if kind is int else "a number", *map(str, bounds)])
    if annotation is bool or annotation == "bool":
        return "True or False"
    checks = _checks(declaration)
    intervals = [c for c in checks if isinstance(c, Interval) and str(c)]
    if intervals:
        return f"{intervals[-1].kind} {intervals[-1]}"
    musts = [c.expected for c in checks if isinstance(c, Must) and "{" not in c.expected]
    return musts[-1] if musts else ""


def _default(p: inspect.Parameter) -> str:
    if p.default is p.empty:
        return ""
    text = getattr(p.default, "__name__", None) or repr(p.default)
    return f"default: {re.sub(r'0x[0-9a-f]+', '', text)}" if len(text) < 40 else ""
