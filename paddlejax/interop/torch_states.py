"""States of torch's optimizers in ours."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..checkpoint.errors import CheckpointError, PathLike, located
from ..checkpoint.names import spelling
from ..hyper import optional, require, verify
from ..optimizer.optimizer import Optimizer
from ..rates import get_learning_rate
from .states import UPDATES, Moved, filled, parameters_of, refuse_all

SLOTS = {
    "exp_avg": "moment1",
    "exp_avg_sq": "moment2",
    "max_exp_avg_sq": "moment2_max",
    "momentum_buffer": "velocity",  # or RMSProp's momentum, which has the rate in it
    "square_avg": "mean_square",
    "grad_avg": "mean_grad",
    "sum": "moment",
}
Key = int | str


def from_torch(
    arrays: PathLike | Mapping[Any, Any],
    state: Any,
    names: Sequence[str] | Mapping[Key, str] | None = None,
    transpose: Iterable[str] | Mapping[str, Sequence[int]] = (),
    *,
    count: int | None = None,
    strict: bool = True,
) -> Any:
    """The state of one of our optimizers that goes on where an optimizer of torch is.

    `arrays` is `optimizer.state_dict()` with numpy arrays (or tensors) in it, the dict in its "state", or the
    same flat, {"0.weight.exp_avg": array}; or a file of torch.save, which needs torch: it is read with
    weights_only=True, so that nothing in it is run, and may be a dict that has the state_dict in it. `state`
    is what `tx.init(params)` made, and the new state is returned; or an object, such as `optim.Adam(...)`,
    which takes it over (None is returned).

        Adam, AdamW, amsgrad  moment1 = exp_avg, moment2 = exp_avg_sq, moment2_max = max_exp_avg_sq,
                              beta1_pow_acc = β₁^(step+1), beta2_pow_acc = β₂^(step+1), β₁ and β₂ of `state`
        SGD                   velocity = momentum_buffer
        RMSprop               mean_square = square_avg, mean_grad = grad_avg, momentum = lr · momentum_buffer
        Adagrad               moment = sum

    torch numbers its parameters. `names` are those of the model in the order of `model.parameters()`, as
    `[name for name, _ in model.named_parameters()]`; torch 2.6 and later saves them if it was given
    `named_parameters()`, and sharded states have them. Or {torch's name or number: ours}. A name such as
    `0.weight` also means the path `0/weight`. torch's Linear holds [out, in]: list in `transpose` the
    parameters, by either name, whose tensors are to be transposed, or {name: order of axes}, as (2, 3, 1, 0)
    for a convolution; of square ones nobody can see that it was forgotten. The parameters' own values are
    not read.

    The count, the place in a schedule, becomes torch's step; SGD has none: say in `count` how many updates
    were made, or a schedule starts again. The scheduler of an object stays where it is. A momentum of RMSprop
    is multiplied by the lr in `param_groups`, else by the rate of `state`, and holds if that was constant;
    torch has RMSprop's epsilon outside the root, so it is near only. The numbers of the optimizer, such as
    betas, are those that the new one was given.

    Whatever is missing, unexpected or misshapen is in one StateDictError, and nothing is changed; with
    strict=False a parameter of which torch has nothing keeps what it has. ImportError for a file without
    torch, CheckpointError for one that cannot be read. For optax see `from_optax`.

    >>> there = {"state": {0: {"step": 3, "exp_avg": np.ones((1, 2)), "exp_avg_sq": np.ones((1, 2))}}}
    >>> params = {"fc": {"kernel": jnp.zeros((2, 1))}}
    >>> names, kernels = {0: "fc/kernel"}, ["fc/kernel"]
    >>> state = interop.from_torch(there, adam(0.1).init(params), names, transpose=kernels)
    >>> print(state.count, state.slots["moment1"]["fc"]["kernel"].shape)
    3 (2, 1)
    """
    verify(optional(*UPDATES), "count", count)
    found = _tensors(_contents(arrays) if isinstance(arrays, str | os.PathLike) else arrays)
    ours = parameters_of(state)
    if listed := _listed(names):
        found.labels.update({key: name for key, name in enumerate(listed) if key in found.slots})
    called = _called(found, names, ours)
    axes = _axes(transpose, called, found.labels)
    slots: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    problems: list[str] = []
    for key, tensors in found.slots.items():
        name = called[key]
        for slot, x in tensors.items():
            if x is None:
                continue
            value = _array(x)
            if slot == "step":
                counts[name] = int(value)
                continue
            if (
                not isinstance(value, np.ndarray)
                or value.dtype.kind in "OUSV"
                and value.dtype.name != "bfloat16"
            ):
                problems.append(f"not an array: {slot} of {name} is {type(x).__name__}")
                continue
            accumulator = SLOTS.get(slot, slot)
            if slot == "momentum_buffer" and tensors.get("square_avg") is not None:
                accumulator = "momentum"
                value = value * np.asarray(found.rates.get(key, _rate(state)), value.dtype)
            if name in axes:
                if value.ndim != len(axes[name] or (0, 1)):
                    problems.append(
                        f"misshapen: {slot} of {name} has shape {value.shape}, which transpose names"
                    )
                    continue
                value = value.transpose(axes[name])
            slots.setdefault(accumulator, {})[name] = value
    refuse_all(problems)
    place = max(counts.values(), default=None) if count is None else count
    return filled(state, Moved(slots, counts, place), strict)


class _Found(NamedTuple):
    slots: dict[Key, dict[str, Any]]
    rates: dict[Key, float]
    labels: dict[Key, str]  # what the optimizer itself calls its numbers


def _contents(file: PathLike) -> Any:
    """What a file of torch.save holds; nothing in it is run."""
    path = located(file)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError(
            f"from_torch needs torch to read {path}: pip install torch, or give its numpy arrays"
        ) from e
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise CheckpointError(f"{path}: torch.load(weights_only=True) says: {e}") from e
    if not isinstance(found, Mapping) or "state" in found:
        return found
    inside = [k for k, x in found.items() if isinstance(x, Mapping) and {"state", "param_groups"} <= x.keys()]
    if len(inside) != 1:
        listed = f"{len(inside)} of them ({', '.join(map(repr, inside))})" if inside else "none"
        raise CheckpointError(f"{path}: found {listed}, expected one state_dict of an optimizer")
    return found[inside[0]]


def _tensors(given: Any) -> _Found:
    """The tensors of every parameter, from a state_dict, its "state", or either of them flat."""
    require(
        isinstance(given, Mapping), "arrays", given, "a state_dict of torch, or the name of a file", TypeError
    )
    groups = given.get("param_groups", ())
    state = given.get("state", None)
    if not isinstance(state, Mapping):
        state = {k: x for k, x in given.items() if not str(k).startswith("param_groups")}
    rates: dict[Key, float] = {}
    labels: dict[Key, str] = {}
    for group in groups if isinstance(groups, list | tuple) else ():
        require(
            isinstance(group, Mapping) and "params" in group,
            "a group",
            group,
            "a dict with 'params'",
            TypeError,
        )
        for key, label in zip(group["params"], group.get("param_names", group["params"]), strict=True):
            rates |= {key: float(group["lr"])} if "lr" in group else {}
            labels |= {key: label} if isinstance(label, str) else {}
    slots: dict[Key, dict[str, Any]] = {}
    for key, x in state.items():
        if isinstance(x, Mapping):
            slots[key] = dict(x)
            continue
        owner, dot, slot = str(key).removeprefix("state.").rpartition(".")
        require(
            dot, "arrays", key, "{parameter: {slot: array}} or keys such as '0.weight.exp_avg'", TypeError
        )
        slots.setdefault(int(owner) if owner.isdigit() else owner, {})[slot] = x
    return _Found(slots, rates, labels)


def _listed(names: Any) -> list[str]:
    """The names of torch's model, if they were given as a list."""
    listed = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else []
    expected = "names in the order of model.parameters(), or {torch's name or number: ours}"
    taken = names is None or isinstance(names, Mapping | Sequence) and not isinstance(names, str)
    require(taken and all(isinstance(n, str) for n in listed), "names", names, expected, TypeError)
    return listed


def _called(found: _Found, names: Any, ours: Sequence[str]) -> dict[Key, str]:
    """What every parameter of torch is called here."""
    given = names if isinstance(names, Mapping) else {}
    called: dict[Key, str] = {}
    nameless, spell = [], spelling(ours)
    for key in found.slots:
        label = found.labels.get(key, key)
        name = given.get(key, given.get(label, label))
        if not isinstance(name, str):
            nameless.append(str(key))
            continue
        called[key] = spell(name) if spell(name) in ours else name
    if nameless:
        more = f", found {len(names)}" if names and not given else ""
        raise ValueError(
            f"names: torch's parameters {', '.join(nameless)} have no name{more}; expected one for each"
        )
    unknown = [str(k) for k in given if k not in found.slots and k not in found.labels.values()]
    require(
        not unknown, "names", ", ".join(unknown), f"some of {', '.join(map(str, found.slots))}", ValueError
    )
    twice = sorted({name for name in called.values() if list(called.values()).count(name) > 1})
    require(not twice, "names", ", ".join(twice), "every parameter once", ValueError)
    return called


def _axes(transpose: Any, called: Mapping[Key, str], labels: Mapping[Key, str]) -> dict[str, Any]:
    """The order of axes of each of our parameters whose tensors are turned; None for both of a matrix."""
    expected = "names of parameters, or {name: order of axes}"
    require(
        isinstance(transpose, Iterable) and not isinstance(transpose, str),
        "transpose",
        transpose,
        expected,
        TypeError,
    )
    orders = dict(transpose) if isinstance(transpose, Mapping) else dict.fromkeys(transpose)
    known = {str(labels.get(key, key)): name for key, name in called.items()}
    known |= {name: name for name in called.values()}
    unknown = [str(name) for name in orders if name not in known]
    require(not unknown, "transpose", ", ".join(unknown), f"some of {', '.join(known)}", ValueError)
    for name, order in orders.items():
        listed = isinstance(order, tuple | list)
        whole = order is None or listed and sorted(order) == list(range(len(order)))
        require(whole, f"transpose[{name!r}]", order, "every axis once", ValueError)
    return {known[name]: order if order is None else tuple(order) for name, order in orders.items()}


def _array(x: Any) -> Any:
    """A tensor or array as one of numpy."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x) if isinstance(x, jax.Array | np.ndarray | np.generic | int | float) else x


def _rate(state: Any) -> float:
    return state.get_lr() if isinstance(state, Optimizer) else float(get_learning_rate(state))
