"""The programs of compare_versions.py: {name: function without arguments -> {leaf: array}}.

They use public names of the package only: the same programs run with another version of it.
"""

import json
from collections.abc import Callable
from typing import Any

import cases
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import replay
import test_golden_wrappers as golden

import paddlejax as paddle

Leaves = dict[str, Any]
Program = Callable[[], Leaves]


def leaves_of(what: str, tree: Any) -> Leaves:
    """Every leaf of a tree as a numpy array, or as it is where it is no array, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[what + jax.tree_util.keystr(path)] = np.asarray(leaf) if hasattr(leaf, "dtype") else leaf
    return found


def recorded() -> dict[str, Program]:
    """The recorded cases that have no wrapper, as functions and as objects."""
    # The replays hand on what these return: here the state itself, without translation.
    replay.slots = lambda case, state, params: state  # type: ignore[assignment]
    replay.accumulators = lambda case, entries: entries  # type: ignore[assignment]

    def program(case: Any, run: Any) -> Program:
        def program() -> Leaves:
            with replay.precision(case):
                *_, (_, params, state) = run(case)
                return leaves_of("parameters", params) | leaves_of("state", state)

        return program

    found = {}
    for case in replay.COVERED:
        found[f"{case}-functional"] = program(case, replay.run_functional)
        if case.cls not in replay.KERNELS and case.id not in replay.NOISY:
            found[f"{case}-class"] = program(case, replay.run_class)
    return found


def wrapped() -> dict[str, Program]:
    """The recorded averages and lookaheads, as functions and as objects, for their first steps."""

    def as_functions(case: Any) -> Leaves:
        params = {n: jnp.asarray(p) for n, p in case.p0.items()}
        tx, average = golden.transformation(case), None
        if "Average" in case.wrapper:
            name = "model_average" if case.wrapper == "ModelAverage" else "exponential_moving_average"
            average = getattr(paddle, name)(**golden.arguments(case))
        else:
            start = {} if case.oracle == golden.PLAIN else {"slow_start": "initial"}
            tx = paddle.lookahead(tx, **golden.arguments(case), **start)
        state, averages = tx.init(params), average and average.init(params)

        @jax.jit
        def step(params: Any, state: Any, averages: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            params = paddle.apply_updates(params, updates)
            return params, state, average and average.update(params, averages)

        for i in range(1, min(case.steps, golden.SHORT) + 1):
            params, state, averages = step(params, state, averages, golden.grads(case, i))
        value = average.value(averages) if average else None
        return leaves_of("parameters", params) | leaves_of("state", (state, averages, value))

    def as_objects(case: Any) -> Leaves:
        params, plain = golden.parameters(case), case.oracle == golden.PLAIN
        opt, average = golden.optimizer(case, params), None
        if "Average" in case.wrapper:
            home = {"ModelAverage": paddle.incubate, "ExponentialMovingAverage": paddle.static}[case.wrapper]
            make = getattr(home if plain else golden.fluid, case.wrapper)
            average = make(**golden.arguments(case), **{"parameters" if plain else "parameter_list": params})
        else:
            make = paddle.incubate.LookAhead if plain else golden.fluid.LookaheadOptimizer
            opt = make(opt, **golden.arguments(case))
        for i in range(1, min(case.steps, golden.SHORT) + 1):
            for p in params:
                p.grad = case.grads(i)[p.name]
            opt.step()
            if average:
                average.update()
        found = objects(opt, params)
        if average:
            found |= leaves_of("average", average.state_dict())
            with average.apply():
                found |= leaves_of("averaged", paddle.values({p.name: p for p in params}))
        return found

    forms = {"functional": as_functions, "class": as_objects}
    return {
        f"{case}-{form}": lambda case=case, run=run: run(case)
        for case in golden.WRAPPED
        for form, run in forms.items()
    }


def objects(opt: Any, params: Any) -> Leaves:
    """What an optimizer and its parameters hold."""
    found = leaves_of("parameters", {p.name: p.numpy() for p in params})
    return found | leaves_of("state_dict", opt.state_dict())


def lbfgs() -> dict[str, Program]:
    """The recorded runs of L-BFGS on a quadratic and on others, as functions and as objects."""

    def objective(case: Any) -> Callable[[Any], Any]:
        A, b = jnp.asarray(case.arrays["aux/A"]), jnp.asarray(case.arrays["aux/b"])

        def of(params: Any) -> Any:
            x = jnp.concatenate([params["w"].ravel(), params["b"].ravel()])
            if case.raw["objective"] == "rosenbrock":
                return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
            return 0.5 * x @ A @ x - b @ x + jax.nn.logsumexp(x)

        return of

    def as_functions(case: Any) -> Leaves:
        f, tx = jax.value_and_grad(objective(case)), paddle.lbfgs(**case.kwargs)
        params = {name: jnp.asarray(p) for name, p in case.p0.items()}
        state = tx.init(params)

        @jax.jit
        def call(params: Any, state: Any) -> Any:
            value, grads = f(params)
            updates, state = tx.update(grads, state, params, value=value, value_and_grad=f)
            return paddle.apply_updates(params, updates), state

        for _ in range(case.steps):
            params, state = call(params, state)
        return leaves_of("parameters", params) | leaves_of("state", state)

    def as_objects(case: Any) -> Leaves:
        params = paddle.parameters({name: jnp.asarray(p) for name, p in case.p0.items()})
        opt = paddle.optimizer.LBFGS(**case.kwargs, parameters=list(params.values()))
        loss = paddle.loss(objective(case))

        def closure() -> Any:
            opt.clear_grad()
            value = loss(params)
            value.backward()
            return value

        for _ in range(case.steps):
            opt.step(closure)
        return objects(opt, params.values())

    def program(case: Any, run: Any) -> Program:
        def program() -> Leaves:
            with jax.enable_x64(True):
                return run(case)

        return program

    forms = {"functional": as_functions, "class": as_objects}
    cases = [case for case in golden_cases.load("paddle-3.3.1") if case.cls == "LBFGS"]
    return {f"{case}-{form}": program(case, run) for case in cases for form, run in forms.items()}


def scalers() -> dict[str, Program]:
    """The recorded scalers: what the operations of each leave behind, errors included."""

    def run(case: Any) -> Leaves:
        params = {who: paddle.Parameter(jnp.array([1.0, 2.0]), who) for who in "ab"}
        make, rate = {"adam": (paddle.optimizer.Adam, 0.1)}.get(
            case.get("optimizer"), (paddle.optimizer.SGD, 0.125)
        )
        opts = {who: make(rate, parameters=[p]) for who, p in params.items()}
        scaler, saved = paddle.amp.GradScaler(**case["kwargs"]), None
        found: Leaves = {}
        for i, (kind, *args) in enumerate(case["ops"]):
            try:
                match kind:
                    case "backward":
                        params[args[0]].grad = np.array([float(v) for v in args[1]], np.float32)
                    case "scale":
                        found[f"scaled {i}"] = float(scaler.scale(jnp.float32(args[0])))
                    case "unscale":
                        scaler.unscale_(opts[args[0]])
                    case "step":
                        scaler.step(opts[args[0]])
                    case "minimize":
                        scaler.minimize(opts[args[0]], jnp.sum(params[args[0]].value))
                    case "plain_step":
                        opts[args[0]].step()
                    case "update":
                        scaler.update()
                    case "save":
                        saved = scaler.state_dict()
                    case "load":
                        scaler = paddle.amp.GradScaler()
                        scaler.load_state_dict(saved)
                    case "set":
                        getattr(scaler, f"set_{args[0]}")(args[1])
            except (AssertionError, RuntimeError, TypeError) as e:
                found[f"error {i}"] = next(
                    t.__name__ for t in (AssertionError, RuntimeError, TypeError) if isinstance(e, t)
                )
            found |= leaves_of(f"scaler {i}", scaler.state_dict())
        for who, opt in opts.items():
            found |= {f"{who}: {key}": leaf for key, leaf in objects(opt, [params[who]]).items()}
        return found

    cases = json.loads((golden_cases.GOLDEN / "scaler.json").read_text())
    return {f"scaler/{case['id']}": lambda case=case: run(case) for case in cases if "error" not in case}


def compiled() -> dict[str, Program]:
    """Steps compiled whole: of every rule, of each wrapper around Adam, of rows, and of the object."""
    # Nine tensors alike, so that eight share a call and one does not; others of another dtype and shape.
    shapes = {**{f"w{i}": (5, 3) for i in range(9)}, "b": (7,), "bf16": (4, 3)}

    def tree(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return {
            n: jnp.asarray(rng.normal(size=s), jnp.bfloat16 if n == "bf16" else jnp.float32)
            for n, s in shapes.items()
        }

    def rows(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        g = jnp.asarray(rng.normal(size=(4, 3)))
        listed = jnp.asarray(rng.integers(0, 5, 4))
        return {
            "table": paddle.SelectedRows(listed, g, 5),
            "bf16": paddle.SelectedRows(listed, g.astype(jnp.bfloat16), 5),
        }

    def train(tx: Any, grads: Callable[[int], Any] = tree) -> Leaves:
        params = tree(0)
        if grads is rows:
            params = {"table": jnp.ones((5, 3)), "bf16": jnp.ones((5, 3), jnp.bfloat16)}
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any, g: Any) -> Any:
            updates, state = tx.update(g, state, params)
            return paddle.apply_updates(params, updates), state

        for seed in range(1, 6):
            params, state = step(params, state, grads(seed))
        return leaves_of("parameters", params) | leaves_of("state", state)

    def steps_of(make: Callable[[Any], Any]) -> Leaves:
        params = [paddle.Parameter(p, n) for n, p in tree(0).items()]
        opt = make(params)
        for seed in range(1, 6):
            for p in params:
                p.grad = tree(seed)[p.name]
            opt.step()
        return objects(opt, params)

    def minimized(make: Callable[[Any], Any], scaler: bool = False) -> Leaves:
        params = [paddle.Parameter(p, n) for n, p in tree(0).items()]
        opt = make(params)
        scaler = paddle.amp.GradScaler(incr_every_n_steps=2) if scaler else None

        @paddle.loss
        def loss(params: Any) -> Any:
            return sum(jnp.sum(jnp.square(p.astype(jnp.float32)) * (1 + i)) for i, p in enumerate(params))

        for _ in range(5):
            value = loss(params)
            if scaler:
                scaler.minimize(opt, scaler.scale(value))
            else:
                opt.minimize(value)
            opt.clear_grad()
        return objects(opt, params) | leaves_of("scaler", scaler and scaler.state_dict())

    adam, rules = paddle.adam(0.05), paddle.rules
    tables = [("w[0-3]", {"learning_rate": 0.5, "weight_decay": 0.1}), ("b", {"frozen": True})]
    transformations = {
        **{f"{i}-{case.name}": case.make() for i, case in enumerate(cases.CASES)},
        "schedule": paddle.adam(lambda count: 0.1 / (1 + count)),
        "chain": paddle.chain(paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1), adam),
        "by_path": paddle.by_path(tables, adam, grad_clip=paddle.clip_by_norm(1.0)),
        "masters": paddle.with_master_weights(adam),
        "accumulated": paddle.accumulate_gradients(adam, 2),
        "lookahead": paddle.lookahead(adam, k=2),
        "skipping": paddle.skip_nonfinite(adam),
        "scaled": paddle.dynamic_loss_scale(adam, incr_every_n_steps=2),
        "info": paddle.with_info(paddle.lamb(0.05), grad_clip=paddle.clip_by_global_norm(1.0)),
    }
    listed = {
        "lazy-adam": paddle.adam(0.05, lazy_mode=True),
        "lazy-amsgrad": paddle.adam(0.05, amsgrad=True, lazy_mode=True),
        "momentum": paddle.momentum(0.05),
        "sgd": paddle.sgd(0.05),
        "adagrad": paddle.adagrad(0.05),
    }
    optimizer, fleet = paddle.optimizer, paddle.incubate.optimizer
    own = {"adam": rules.Adam(), "momentum": rules.Momentum(), "lamb": rules.Lamb(), "radam": rules.RAdam()}
    made: dict[str, Callable[[Any], Any]] = {
        f"{name}{'-masters' * masters}{'-packed' * packed}": lambda ps, rule=rule, m=masters, p=packed: (
            optimizer.Optimizer(
                0.05, ps, 0.1, paddle.nn.ClipGradByGlobalNorm(1.0), rule=rule, masters=m, packed=p
            )
        )
        for name, rule in own.items()
        for masters in (False, True)
        for packed in (False, True)
    }
    made["merged"] = lambda ps: fleet.GradientMergeOptimizer(optimizer.Adam(0.05, parameters=ps), 2)
    made["lookahead"] = lambda ps: paddle.incubate.LookAhead(optimizer.Adam(0.05, parameters=ps), k=2)
    return {
        **{f"jit/{name}": lambda tx=tx: train(tx) for name, tx in transformations.items()},
        **{f"rows/{name}": lambda tx=tx: train(tx, rows) for name, tx in listed.items()},
        **{f"step/{name}": lambda make=make: steps_of(make) for name, make in made.items()},
        **{f"minimize/{name}": lambda make=make: minimized(make) for name, make in made.items()},
        "minimize/scaled": lambda: minimized(made["adam"], scaler=True),
    }


def all_programs() -> dict[str, Program]:
    """Every program by its name."""
    return {**recorded(), **wrapped(), **lbfgs(), **scalers(), **compiled()}
