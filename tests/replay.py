"""Recorded runs replayed by the library: which cases, against what tolerance, as functions and as objects."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import paddlejax as paddle

ALL = [case for oracle in golden_cases.FOLDERS for case in golden_cases.load(oracle)]
TOLERANCE = {"float32": 5e-6, "float64": 2e-6}
PLAIN = "paddle-3.3.1"

# Cases that wait for a scheduler of theirs, by id; a class that is missing would fail the others.
WAITING: set[str] = set()


def why_not(case: golden_cases.Case) -> str | None:
    """The reason for which a case is not replayed here, or None."""
    if case.wrapper:
        return f"wrapper {case.wrapper}"
    if (case.oracle, case.cls) not in reference.CLASSES:
        return f"class {case.cls} has no reference"
    if case.quirk:
        return f"record of a bug: {case.quirk}"
    if any(p.dtype == "bfloat16" for p in case.params):
        # Paddle's CPU kernels round every operation, and move no master at all
        return (
            "record of a bug: a master that stays"
            if case.kwargs.get("multi_precision")
            else "bfloat16 arithmetic"
        )
    return None


COVERED = [case for case in ALL if why_not(case) is None]


def rounded(value: Any) -> Any:
    """A float as a float32 attribute of a kernel holds it."""
    return float(np.float32(value)) if isinstance(value, float) else value


def as_recorded(case: golden_cases.Case) -> dict[str, Any]:
    """What the recorded kernel really used instead of the arguments of the case."""
    if case.oracle == PLAIN and case.cls == "Momentum" and "rescale_grad" in case.kwargs:
        return {"rescale_grad": 1.0}  # the CPU kernel of 3.3.1 ignores it
    if str(case) in ("paddle3/lamb_float64", "paddle3/nadam_float64", "paddle3/radam_float64"):
        # float32 holds 1 - 0.999 with an error of 1.3e-5, which is also that of the recorded moment2
        return {"beta2": rounded(case.kwargs.get("beta2", 0.999))}
    return {}


def precision(case: golden_cases.Case) -> Any:
    return jax.enable_x64(True) if case.params[0].dtype == "float64" else nullcontext()


def warned(case: golden_cases.Case) -> Any:
    """The one warning that a run gives, if it is one that does."""
    if case.weight_decay is not None and any(p.sparse for p in case.params):
        return pytest.warns(UserWarning, match="L2Decay.* decays every row.* becomes dense")
    return nullcontext()


def recorded_state(case: golden_cases.Case) -> dict[tuple[str, str], np.ndarray]:
    """The accumulators of the record, but for powers that were driven so that a bug of 1.8.5 did not show."""
    state = case.state()
    if case.raw.get("pow_one"):
        tables = [p.name for p in case.params if p.sparse]
        for name in tables:
            del state["beta1_pow_acc", name], state["beta2_pow_acc", name]
    return state


def gradient(p: golden_cases.ParamSpec, g: Any) -> Any:
    """A recorded gradient as the library takes it."""
    if g is None:
        return None
    return paddle.SelectedRows(*g, p.shape[0]) if p.sparse else jnp.asarray(g)


def error(got: Any, want: np.ndarray, scale: float | None = None) -> float:
    """max|got - want| over the tensor's largest magnitude; shape and dtype must agree exactly."""
    got = np.asarray(got)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    largest = np.max(np.abs(want), initial=0) if scale is None else scale
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nan_to_num(np.max(np.abs(got - want), initial=0) / largest, nan=0.0, posinf=np.inf))


# One element that comes to rest near zero, where one rounding of the velocity (XLA fuses multiply and add,
# Paddle # does not) is 3e-5 of what is left of it.
NEAR_ZERO = {("momentum_rescale", "s")}


def scales(case: golden_cases.Case) -> dict[str, float | None]:
    """What errors are relative to: each step's own largest magnitude (None), or the whole trajectory's.

    The trajectory's for FTRL, which sets p anew from differences of large numbers, and for tensors in
    NEAR_ZERO.
    """
    ftrl = reference.CLASSES[case.oracle, case.cls][0] == "ftrl"
    steps = [case.p0, *map(case.expected, case.record_steps)]
    largest = {name: max(np.max(np.abs(p[name])) for p in steps) for name in case.p0}
    return {name: size if ftrl or (case.id, name) in NEAR_ZERO else None for name, size in largest.items()}


def worst(case: golden_cases.Case, run: Any) -> tuple[float, float]:
    """The largest error of the parameters over all recorded steps, and that of the accumulators."""
    scale, errors, final = scales(case), [0.0], {}
    for step, params, state in run:
        final = state
        if step in case.record_steps:
            assert params.keys() == case.p0.keys()
            errors += [error(params[n], want, scale[n]) for n, want in case.expected(step).items()]
    recorded = recorded_state(case)
    final = {key: final[key] for key in final if key in recorded or key not in case.state()}
    assert final.keys() == recorded.keys()
    return max(errors), max([0.0, *(error(final[key], recorded[key]) for key in recorded)])


# ------------------------------------------------------------------------------------------ as an object

FLUID = paddle.fluid.optimizer
KERNELS = {
    "ftrl": ("Ftrl", {"guard": 1e-10}),
    "decayed_adagrad": ("DecayedAdagrad", {}),
    "dpsgd": ("Dpsgd", {}),
}
# The kernel's own generator makes this noise, which only the numpy reference draws again.
NOISY = {case.id for case in COVERED if case.kwargs.get("sigma")}
OURS = ("draws",)  # accumulators that Paddle does not have: where in its noise dpsgd is
FULL_SHAPE = {*paddle.rules.NAdam.full_shape, *paddle.rules.RAdam.full_shape}


def regularizer(case: golden_cases.Case, spec: Any) -> Any:
    home = paddle.regularizer if case.oracle == PLAIN else paddle.fluid.regularizer
    return getattr(home, spec[0])(spec[1]) if isinstance(spec, tuple) else spec


def clip(case: golden_cases.Case, spec: Any) -> Any:
    if spec is None:
        return None
    home = paddle.nn if case.oracle == PLAIN else paddle.fluid.clip
    need = {"need_clip": lambda p: p.name in case.need_clip} if case.need_clip else {}
    return getattr(home, spec[0])(**spec[1], **need)


def scheduler(case: golden_cases.Case, spec: Any) -> Any:
    home = paddle.optimizer.lr if case.oracle == PLAIN else paddle.fluid.dygraph
    args = [scheduler(case, {"kwargs": {}, **a}) if isinstance(a, dict) else a for a in spec["args"]]
    if spec["type"] == "LambdaDecay":
        args[1] = eval(f"lambda e: {args[1]}")
    return getattr(home, spec["type"])(*args, **spec["kwargs"])


def build(case: golden_cases.Case, params: list[paddle.Parameter], schedule: Any) -> Any:
    """The optimizer of a case, made the way its user would make it."""
    kwargs = {**case.kwargs, **as_recorded(case)}
    kwargs.pop("initial_squared", None)
    if schedule is not None:
        kwargs["learning_rate"] = schedule
    if case.exclude_names:
        kwargs["exclude_from_weight_decay_fn"] = lambda p: p.name in case.exclude_names
    if case.decay_names is not None:
        kwargs["apply_decay_param_fun"] = lambda name: name in case.decay_names
    fluid = case.oracle != PLAIN or case.cls == "LarsMomentumOptimizer"
    decay = regularizer(case, case.weight_decay)
    if decay is not None:
        kwargs["regularization" if fluid else "weight_decay"] = decay
    if case.grad_clip:
        kwargs["grad_clip"] = clip(case, case.grad_clip)
    if case.cls == "LarsMomentumOptimizer" and case.oracle == PLAIN:
        return paddle.incubate.optimizer.LarsMomentumOptimizer(parameter_list=params, **kwargs)
    if fluid:
        return getattr(FLUID, case.cls)(parameter_list=params, **kwargs)
    if case.cls in KERNELS:
        raise NotImplementedError("a bare kernel has no class")
    given: Any = params
    if case.groups:
        by_name = {p.name: p for p in params}
        convert = {"params": lambda names: [by_name[n] for n in names]}
        convert |= {"weight_decay": lambda s: regularizer(case, s), "grad_clip": lambda s: clip(case, s)}
        given = [{k: convert.get(k, lambda v: v)(v) for k, v in group.items()} for group in case.groups]
    return getattr(paddle.optimizer, case.cls)(parameters=given, **kwargs)


# What an object makes of a case by itself; numbers that only reach the rule are replayed as functions.
OF_A_CLASS = ("exclude_names", "decay_names", "restore_at")
OF_A_RECORD = ("missing", "absent", "pow_one", "epoch_every", "plateau", "mode")


def modes(case: golden_cases.Case) -> set[tuple[Any, ...]]:
    """The ways in which a case uses its class, and those in which it uses what all classes share.

    A class has its own arguments, accumulators and sparse step. Decay, clips, schedulers, groups and the
    options of a Parameter are one code for all classes, so that one class of an oracle shows each of them.
    """
    found = {(case.oracle, case.cls, name, getattr(case, name) is not None) for name in OF_A_CLASS}
    found |= {(case.oracle, "dtype", case.params[0].dtype)}
    found |= {(case.oracle, case.cls, "argument", name) for name in case.kwargs}
    found |= {(case.oracle, case.cls, "sparse", p.sparse) for p in case.params}
    found |= {(case.oracle, "need_clip", case.need_clip is not None)}
    found |= {(case.oracle, name, case.raw.get(name) not in (None, False)) for name in OF_A_RECORD}
    found |= {(case.oracle, "event", event["op"]) for event in case.events}
    found |= {(case.oracle, "group", name) for group in case.groups or [] for name in group}
    for p in case.params:
        options = (p.sparse, p.stop_gradient, p.learning_rate != 1, p.regularizer is not None, p.need_clip)
        found |= {(case.oracle, "parameter", *options), (case.oracle, "dimensions", len(p.shape))}
    kind = lambda spec: spec[0] if isinstance(spec, tuple) else type(spec).__name__  # noqa: E731
    found |= {
        (case.oracle, "decay", kind(spec))
        for spec in (case.weight_decay, *(p.regularizer for p in case.params))
    }
    found |= {(case.oracle, "clip", case.grad_clip and (case.grad_clip[0], *case.grad_clip[1]))}
    found |= {
        (case.oracle, "scheduler", case.scheduler and (case.scheduler["type"], *case.scheduler["kwargs"]))
    }
    return found | {(case.oracle, "long", case.steps > 100)}


def one_per_mode(cases: list[golden_cases.Case]) -> list[golden_cases.Case]:
    """The cases that use their class in a way in which no shorter or earlier one does."""
    chosen, seen = [], set()
    for case in sorted(cases, key=lambda case: case.steps):
        if case.cls not in KERNELS and not modes(case) <= seen:
            chosen.append(case)
            seen |= modes(case)
    return chosen


def accumulators(case: golden_cases.Case, entries: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """The entries of a state_dict by (accumulator, parameter)."""
    name = f"{case.kwargs['name']}_" if case.kwargs.get("name") else ""
    found = {}
    for key, value in entries.items():
        for p in case.params:
            if key.rsplit("_", 1)[0].endswith(OURS):
                continue
            if key.startswith(f"{p.name}_{name}"):
                found[key.removeprefix(f"{p.name}_{name}").rsplit("_", 1)[0], p.name] = value
    return found


def run_class(case: golden_cases.Case) -> Iterator[tuple[int, dict[str, Any], dict[Any, Any]]]:
    """(step, parameters, accumulators) of the Paddle-style object; its keys and rates are checked on the
    way."""
    params = [
        paddle.Parameter(
            jnp.asarray(case.p0[s.name]),
            s.name,
            trainable=not s.stop_gradient,
            learning_rate=s.learning_rate,
            regularizer=regularizer(case, s.regularizer),
            need_clip=s.need_clip if case.oracle == PLAIN else True,
        )
        for s in case.params
    ]
    schedule = scheduler(case, case.scheduler) if case.scheduler else None
    opt = build(case, params, schedule)
    fluid = case.oracle != PLAIN
    for step in range(1, case.steps + 1):
        grads = {s.name: gradient(s, case.grads(step)[s.name]) for s in case.params}
        for p in params:
            p.grad = grads[p.name]
        if case.lr is not None and not fluid:
            assert opt.get_lr() == case.lr[step - 1]
        opt.step()
        if fluid:
            _advance_by_epoch(case, schedule, step)
            if case.lr is not None:
                np.testing.assert_allclose(opt.current_step_lr(), case.lr[step - 1], rtol=5e-6)
        elif schedule is not None:
            schedule.step()
        entries = opt.state_dict()
        yield step, {p.name: p.numpy() for p in params}, accumulators(case, entries)
        for event in (e for e in case.events if e["after_step"] == step):
            if event["op"] == "set_lr":
                opt.set_lr(event["value"])
            elif event["op"] == "set_lr_scheduler":
                spec = event["scheduler"]
                schedule = scheduler(case, {"args": [], **spec, "kwargs": spec["args"]} | {"args": []})
                opt.set_lr_scheduler(schedule)
        if case.restore_at == step:
            schedule = scheduler(case, case.scheduler) if case.scheduler else None
            opt = build(case, params, schedule)
            opt.set_state_dict(entries)
    entries = opt.state_dict()
    entries.pop("LR_Scheduler", None)
    if case.oracle == PLAIN or case.raw["mode"] == "dygraph":
        found = {k: (tuple(v.shape), str(v.dtype)) for k, v in entries.items()}
        found = {k: v for k, v in found.items() if not k.rsplit("_", 1)[0].endswith(OURS)}
        assert found == case.state_keys()


def _advance_by_epoch(case: golden_cases.Case, schedule: Any, step: int) -> None:
    if case.raw.get("epoch_every") and step % case.raw["epoch_every"] == 0:
        schedule.epoch()
    if case.raw.get("plateau"):
        schedule.step(np.array([case.arrays[f"loss/{step}"]]).reshape(1))


# ------------------------------------------------------------------------------------------ as functions


def functional(case: golden_cases.Case) -> paddle.GradientTransformation:
    """The same optimizer out of functions: a chain, or `by_path` where parameters differ."""
    name, fixed = reference.CLASSES[case.oracle, case.cls]
    kwargs = {"learning_rate": 0.001, **case.kwargs, **as_recorded(case)}
    ignored = ("use_multi_tensor", "multi_precision", "name", "initial_squared", "seed")
    for other in ignored if name == "adam" else ("lazy_mode", *ignored):
        kwargs.pop(other, None)
    if "exclude_from_weight_decay" in kwargs:
        kwargs["exclude_from_weight_decay"] = tuple(kwargs["exclude_from_weight_decay"])
    if case.exclude_names:
        kwargs["exclude_from_weight_decay_fn"] = lambda path: path in case.exclude_names
    if case.decay_names is not None:
        kwargs["apply_decay_param_fun"] = lambda path: path in case.decay_names
    if name == "dpsgd":
        kwargs["key"] = jax.random.key(0)
    kwargs |= _dialect(name, case.oracle, fixed)
    make = lambda **changes: getattr(paddle, name)(**kwargs | changes)  # noqa: E731
    decay = lambda s: s if s is None else regularizer(case, s)  # noqa: E731
    general = {"weight_decay": decay(case.weight_decay), "grad_clip": clip(case, case.grad_clip)}
    rows = []
    for s in case.params:
        row: dict[str, Any] = {}
        group = next((g for g in case.groups or [] if s.name in g["params"]), {})
        row |= {k: v for k, v in group.items() if k not in ("params", "weight_decay", "grad_clip")}
        if s.learning_rate != 1:
            row["learning_rate"] = s.learning_rate
        if s.regularizer:
            row["weight_decay"] = decay(s.regularizer)
        if "weight_decay" in group and name == "adamw":  # the rule's own
            row["rule"] = make(weight_decay=group["weight_decay"])
        elif "weight_decay" in group:
            row["weight_decay"] = decay(group["weight_decay"])
        if not s.need_clip:
            row["grad_clip"] = None
        if s.stop_gradient:
            row["frozen"] = True
        if case.raw.get("missing") or case.raw.get("absent"):
            row["rule"] = make()  # counts for itself
        rows.append((s.name, row))
    for group in case.groups or []:  # one norm per group
        spec = group["grad_clip"] if "grad_clip" in group else case.grad_clip
        of_group = None if spec is None else clip(case, spec).transformation()
        for name_, row in rows:
            if name_ in group["params"]:
                row["grad_clip"] = of_group
    rows = [(name_, row) for name_, row in rows if row]
    if rows:
        return paddle.by_path(rows, make(), **general)
    parts = [general["grad_clip"], regularizer(case, general["weight_decay"])]
    parts = [paddle.regularizer.L2Decay(t) if isinstance(t, float) else t for t in parts]
    return paddle.chain(*(t.transformation() for t in parts if t is not None), make())


def _dialect(name: str, oracle: str, fixed: dict[str, Any]) -> dict[str, Any]:
    if oracle == PLAIN:
        return {}
    return {
        "adadelta": {"use_learning_rate": False},
        "adam": {"scaled_epsilon": False},
        "lamb": {"bias_correction": False, "always_adapt": True},
        "lars_momentum": {"always_adapt": True},
        "ftrl": {"guard": 0.0},
    }.get(name, {})


def run_functional(case: golden_cases.Case) -> Iterator[tuple[int, dict[str, Any], dict[Any, Any]]]:
    """(step, parameters, accumulators) of init and update, uncompiled but for the rule itself."""
    tx = functional(case)
    params = {name: jnp.asarray(p) for name, p in case.p0.items()}
    state = tx.init(params)
    if "initial_squared" in case.kwargs:
        state = jax.tree.map(
            lambda s: s._replace(
                slots={
                    **s.slots,
                    "squared": {"w": jnp.full_like(params["w"], case.kwargs["initial_squared"])},
                }
            ),
            state,
            is_leaf=lambda s: isinstance(s, paddle.RuleState),
        )
    for step in range(1, case.steps + 1):
        if case.lr is not None:
            state = paddle.set_learning_rate(state, case.lr[step - 1])
        grads = {s.name: gradient(s, case.grads(step)[s.name]) for s in case.params}
        updates, state = tx.update(grads, state, params)
        params = paddle.apply_updates(params, updates)
        yield step, {name: np.asarray(p) for name, p in params.items()}, slots(case, state, params)
        if case.restore_at == step:
            state = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, state))


def slots(case: golden_cases.Case, state: Any, params: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Slots and shared scalars by (accumulator, parameter), for parameters that took at least one step."""
    is_state = lambda s: isinstance(s, paddle.RuleState)  # noqa: E731
    found: dict[tuple[str, str], Any] = {}
    for s in filter(is_state, jax.tree.leaves(state, is_leaf=is_state)):
        if s.count == 0:
            continue
        for accumulator, tree in s.slots.items():
            found |= {(accumulator, n): v for n, v in tree.items() if v is not None}
        members = [n for n in case.p0 if any(t[n] is not None for t in s.slots.values())] if s.slots else []
        for accumulator, scalar in s.shared.items():
            as_int = np.int64 if jnp.issubdtype(scalar.dtype, jnp.integer) else None
            for n in members:
                shape = params[n].shape if accumulator in FULL_SHAPE else (1,)
                found[accumulator, n] = np.full(shape, scalar, as_int or params[n].dtype)
    return found
