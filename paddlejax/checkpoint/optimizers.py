"""Optimizer states from Paddle's checkpoints and back, by name."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..array_types import ArrayTree
from ..optimizer.averages import ParameterAverage
from ..optimizer.ledger import StateDictError
from ..optimizer.optimizer import Optimizer
from ..optimizer.wrappers import innermost, is_optimizer
from ..rules import Lamb
from .convert import read_any, save_any
from .errors import PathLike
from .files import handed_out
from .folders.kinds import found as found_folder
from .formats import unpacked
from .layout import NAMES
from .names import MASTER, OURS, check_needed, checked_names, chosen, owners, proposal, renamed
from .states import State
from .translate import free_powers, place_of, translate_schedule


def load_optimizer(
    target: Any,
    file: PathLike | Mapping[Any, Any],
    names: Mapping[str, str] | None = None,
    *,
    params: ArrayTree | None = None,
    name: str | None = None,
    strict: bool = True,
) -> Any:
    """Continue from an optimizer state that Paddle 3.x, Paddle 1.8.5 or `save_optimizer` wrote.

    `target` is an optimizer object, a wrapper of one or an average of parameters, which takes the state over
    (None is returned), or the state of a transformation, as `tx.init(params)` made it, which stays as it is:
    the new state is returned. `file` is a `.pdopt`, a `.npz` or `.safetensors` of the same, or the dict that
    `load` made of one, or a part of it; or the folder of a large training. What else has a state, such as a
    scheduler, takes `paddlejax.load(file)` itself.

    Names must agree, except for the trailing counter (`_0`, `_1`). `names` says what Paddle's parameters are
    called here, {"linear_0.w_0": "dense/w"}: paths in the tree, or names of Parameters. `parameter_names`
    reads such a map from a `.pdparams`; a file of `save_optimizer` knows its own. Nothing is guessed: where
    names differ the error proposes a map to check and paste; an entry for what the file has by our name, not
    by Paddle's, is refused. Whatever is missing, unexpected, misshapen or of
    another dtype is in one StateDictError, and nothing is changed. With strict=False a parameter that has no
    accumulators there keeps what the target has.

    For a functional state: `params` are needed only by rules without slots that count (dpsgd), `name` is the
    name= of the optimizer that wrote the file. Its `count` becomes the place in the schedule (`last_epoch`
    or `step_num`), without a scheduler the number of steps the powers of beta tell, else it stays; the rate
    stays as it is, and so does what Paddle's files do not have, such as the counters of `skip_nonfinite`.
    Beta powers that differ between parameters need the optimizer classes: a functional state has one for all.
    A file of `save_optimizer` restores everything, bit for bit.

    A scheduler's state of the other version is translated: 1.x's step or epoch number is the argument of the
    formula, as `last_epoch` is. Paddle 1.8.5's Lamb never advances its powers of beta; since it corrects no
    bias either, they become 0 for an optimizer that does correct, which then goes on as 1.8.5 would.

    >>> import os, tempfile
    >>> file, params = os.path.join(tempfile.mkdtemp(), "momentum.pdopt"), {"w": jnp.zeros(2)}
    >>> tx = momentum(0.1, 0.9)
    >>> _, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> save_optimizer(state, file)
    >>> print(load_optimizer(tx.init(params), file).slots)
    {'velocity': {'w': Array([1., 1.], dtype=float32)}}
    """
    if not isinstance(strict, bool):
        raise TypeError(f"strict: found {strict!r:.80}, expected True or False")
    method = "set_state_dict" if hasattr(target, "set_state_dict") else "load_state_dict"
    is_object = _is_object(target, "load_optimizer", f"{method} takes paddlejax.load(file)")
    if is_object:
        _no_functional_arguments(params=params, name=name)
    state = None if is_object else State(target, params, name, abstract=True)
    folder = found_folder(file)
    if folder is not None:
        loaded = folder.entries(names, _masters(target) if state is None else state.masters())
        entries, extra, names = loaded.entries, loaded.extra, loaded.names
        if state is None:  # an object has no arrays of our own
            entries = {k: v for k, v in entries.items() if not k.startswith(f"{OURS}@")}
        if loaded.lossy:
            warnings.warn(f"{folder.path}: {loaded.lossy}", stacklevel=2)
    else:
        entries, extra = _read(file, lambda: unpacked(_arrays(target) if state is None else state.arrays()))
    if state is not None:
        return state.load(entries, extra, names, strict)
    return _load_object(target, entries, extra, names, strict)


def save_optimizer(
    source: Any,
    file: PathLike,
    names: Mapping[str, str] | None = None,
    *,
    params: ArrayTree | None = None,
    name: str | None = None,
    schedule: Any = None,
    protocol: int = 4,
) -> None:
    """Write an optimizer state that Paddle and `load_optimizer` read: a `.pdopt`.

    `source` is an optimizer object, a wrapper of one or an average of parameters, or the state of a
    transformation. `names`, {Paddle's name: ours} as for `load_optimizer`, files the accumulators under
    Paddle's names; the map goes into the file, under a key that Paddle ignores, so that it loads back without
    one. Paddle 1.8.5 needs protocol=2. A `file` that ends in `.npz` or `.safetensors` is written as such.

    For a functional state: `params` and `name` as for `load_optimizer`; `schedule`, the `count -> rate` that
    the optimizer was made with, writes `LR_Scheduler`, which a Paddle optimizer with a scheduler asks for:
    `last_epoch` is the count and `last_lr` the rate of the next step.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "model.pdopt")
    >>> tx, params = momentum(0.1), {"w": jnp.ones(2)}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> save_optimizer(state, file, names={"fc_0.w_0": "w"})
    >>> sorted(paddle.load(file))
    ['fc_0.w_0_velocity_0', 'paddlejax']
    >>> print(load_optimizer(tx.init(params), file).slots["velocity"]["w"])
    [1. 1.]
    """
    given = checked_names(names)
    entries, extra, ours = entries_of("save_optimizer", source, params, name, schedule)
    back = {o: p for p, o in chosen(given, {}, ours).items()}
    unknown = [o for o in back if o not in ours]
    if unknown:
        raise ValueError(f"names: found {', '.join(unknown)}, expected some of {', '.join(ours)}")
    if back:
        extra["names"] = {p: o for o, p in back.items()}
    save_any({**renamed(entries, back, ours), **({OURS: extra} if extra else {})}, file, protocol)


def entries_of(
    what: str, source: Any, params: Any, name: str | None, schedule: Any
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The entries of a state for a file, what goes beside them, and what its parameters are called here."""
    if _is_object(source, what, "state_dict() is for paddlejax.save"):
        given = {"params": params, "name": name} if what == "save_optimizer" else {}
        _no_functional_arguments(**given, schedule=schedule)
        return dict(source.state_dict()), {}, [p.name for p in source.parameter_list]
    state = State(source, params, name)
    return *state.entries(schedule), state.parameters


def _is_object(x: Any, what: str, instead: str) -> bool:
    """Whether this is an object with parameters, not a functional state; what only has a state is refused."""
    if is_optimizer(x) or isinstance(x, ParameterAverage):
        return True
    if hasattr(x, "state_dict"):
        expected = "expected an optimizer, a wrapper of one, or tx.init(params)"
        raise TypeError(f"{what}: found {type(x).__name__}, {expected}; its own {instead}")
    return False


def _no_functional_arguments(**arguments: Any) -> None:
    """Raise if an argument was given that only the functions need."""
    for argument, value in arguments.items():
        if value is not None:
            raise TypeError(f"{argument}: found {value!r:.80}, expected None, as an object knows it itself")


def _masters(target: Any) -> dict[str, bool]:
    """Of each parameter of an object, whether the object keeps a master of it."""
    optimizer = innermost(target)
    owners = optimizer.owners() if isinstance(optimizer, Optimizer) else []
    named = [p.name for p in target.parameter_list]
    return dict.fromkeys(named, False) | {
        name: MASTER in owner for name, owner in zip(named, owners, strict=False)
    }


def _arrays(target: Any) -> list[Any]:
    """Return what an object has saved at most: its arrays, and the histories of L-BFGS, which grow."""
    history = getattr(getattr(innermost(target), "_method", None), "history_size", 0)
    now = [x for x in jax.tree.leaves(target.state_dict()) if hasattr(x, "dtype")]
    return [*now, *(p.value for p in target.parameter_list for _ in range(1 + 2 * history))]


def _read(
    file: PathLike | Mapping[Any, Any], most: Callable[[], int]
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The entries of a file, which unpacks to so many bytes, and what `save_optimizer` added to them."""
    entries = dict(file) if isinstance(file, Mapping) else handed_out(read_any(file, most), True, False)
    entries.pop(NAMES, None)
    extra = entries.pop(OURS, {})
    return entries, extra if isinstance(extra, dict) else {}


def _load_object(
    target: Any, entries: dict[Any, Any], extra: dict[str, Any], names: Any, strict: bool
) -> None:
    """Load these entries into an optimizer object, under the names of its parameters."""
    place_of(entries, whole=False)  # raises if it is none
    optimizer = innermost(target)
    rules = getattr(optimizer, "rules", ())
    accumulators = list(dict.fromkeys(k for rule in rules for k in (*rule.slots, *rule.shared())))
    own = getattr(optimizer, "_name", None)
    theirs = owners(entries, [*(f"{own}_{k}" for k in accumulators if own), *accumulators])
    parameters = {p.name: p.shape for p in target.parameter_list}
    given = chosen(names, extra, parameters)
    if names is not None:
        check_needed(given, theirs)
    entries = renamed(entries, given, theirs)
    translate_schedule(entries, getattr(optimizer, "_learning_rate", None))
    if isinstance(optimizer, Optimizer):
        _without_correction(optimizer, entries)
    try:
        target.set_state_dict(entries, *(() if strict else (False,)))
    except StateDictError as e:
        theirs = owners(entries, accumulators)
        raise StateDictError(f"{e}{proposal(theirs, parameters)}") from None


def _without_correction(optimizer: Optimizer, entries: dict[Any, Any]) -> None:
    """1.8.5's Lamb in a Lamb that corrects the bias."""
    pairs = zip(optimizer.owners(), optimizer.rules, strict=True)
    free_powers(entries, {o: r.shared() for o, r in pairs if isinstance(r, Lamb) and r.bias_correction})
