# ruff: noqa: B905, E402, E731, I001
"""Record golden optimizer trajectories from the real PaddlePaddle 3.3.1 (CPU).

    python record_paddle3.py --out DIR --seed 1

Every case fixes the parameters and injects exact gradients, so only the
optimizer itself is exercised.  The cases are listed in paddle_cases.py; the
output (manifest.json plus one .npz per case) is described in README-paddle3.md.
"""

import argparse
import json
import os
import warnings
import zlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import numpy as np
import paddle

from paddle_cases import all_cases

ORACLE = "paddle-3.3.1"
LOW = ("bfloat16", "float16")


# ---------------------------------------------------------------- small helpers
def rng_for(case, seed):
    return np.random.default_rng([seed, zlib.crc32(case["id"].encode())])


def to_numpy(t):
    """Tensor -> numpy; 16-bit floats are widened to float32 (exact)."""
    if str(t.dtype).split(".")[-1] in LOW:
        t = t.astype("float32")
    return np.array(t.numpy())


def to_tensor(a, dtype):
    if dtype in LOW:
        return paddle.to_tensor(a.astype("float32")).astype(dtype)
    return paddle.to_tensor(a.astype(dtype))


def regularizer(spec):
    if spec is None or isinstance(spec, (int, float)):
        return spec
    return getattr(paddle.regularizer, spec["type"])(spec["coeff"])


def clipper(spec):
    return None if spec is None else getattr(paddle.nn, spec["type"])(**spec["args"])


def scheduler(spec):
    return getattr(paddle.optimizer.lr, spec["type"])(**spec["args"])


def gradient(rng, profile, step, shape):
    g = rng.standard_normal(shape)
    if profile == "normal":
        return g
    if profile == "zeros":
        return np.zeros(shape)
    if profile == "zero_steps":  # first element always 0, steps 6..9 all 0
        g.reshape(-1)[:1] = 0.0
        return np.zeros(shape) if 6 <= step <= 9 else g
    if profile == "mixed":  # magnitudes spread over ten decades
        return np.sign(g) * 10.0 ** rng.uniform(-6.0, 4.0, shape)
    if profile == "tiny":
        return g * 1e-9
    if profile == "huge":
        return g * 1e6
    if profile == "flip":  # slowly varying signs, some exact zeros
        s = np.sign(np.sin(0.9 * step + np.arange(g.size).reshape(shape)))
        return np.where(rng.uniform(size=shape) < 0.15, 0.0, s * np.abs(g))
    raise ValueError(profile)


def make_param(spec, value):
    p = paddle.create_parameter(
        spec["shape"],
        spec["dtype"],
        attr=paddle.ParamAttr(
            name=spec["name"],
            learning_rate=spec["learning_rate"],
            regularizer=regularizer(spec["regularizer"]),
            need_clip=spec["need_clip"],
            trainable=not spec["stop_gradient"],
        ),
        default_initializer=paddle.nn.initializer.Constant(0.0),
    )
    p.set_value(to_tensor(value, spec["dtype"]))
    return p


def init_value(rng, spec):
    x = rng.standard_normal(spec["shape"])
    return {"normal": x, "zeros": 0 * x, "tiny": 1e-6 * x}[spec["init"]]


# ------------------------------------------------------------ building optimizers
def name_rules(rules):
    """JSON name lists -> the callables that the constructors want."""
    out = {}
    if "decay_names" in rules:
        out["apply_decay_param_fun"] = lambda n: n in rules["decay_names"]
    if "exclude_names" in rules:
        out["exclude_from_weight_decay_fn"] = lambda p: p.name in rules["exclude_names"]
    return out


def build(cls, kwargs, params, case, lr=None):
    kw = {k: tuple(v) if isinstance(v, list) and cls == "Rprop" else v for k, v in kwargs.items()}
    if lr is not None:
        kw["learning_rate"] = lr
    kw.update(name_rules(case["name_rules"]))
    if case["grad_clip"]:
        kw["grad_clip"] = clipper(case["grad_clip"])
    wd = regularizer(case["weight_decay"])
    if cls == "LarsMomentumOptimizer":
        if wd is not None:
            kw["regularization"] = wd
        return paddle.incubate.optimizer.LarsMomentumOptimizer(parameter_list=params, **kw)
    if wd is not None:
        kw["weight_decay"] = wd
    if case["param_groups"]:
        by_name = {p.name: p for p in params}
        params = []
        for g in case["param_groups"]:
            g = dict(g, params=[by_name[n] for n in g["params"]])
            if "weight_decay" in g:
                g["weight_decay"] = regularizer(g["weight_decay"])
            if "grad_clip" in g:
                g["grad_clip"] = clipper(g["grad_clip"])
            params.append(g)
    return getattr(paddle.optimizer, cls)(parameters=params, **kw)


def snapshot_state(opt, arrays, step):
    """state/<step>/<accumulator>/<param> plus a description of each entry."""
    rows, masters = [], {v.name: k for k, v in opt._master_weights.items()}
    for acc, per_param in opt._accumulators.items():
        for target, t in per_param.items():
            param = masters.get(target, target)
            arrays[f"state/{step}/{acc}/{param}"] = to_numpy(t)
            rows.append(
                {
                    "accumulator": acc,
                    "param": param,
                    "state_key": t.name,
                    "shape": list(t.shape),
                    "dtype": str(t.dtype).split(".")[-1],
                }
            )
    for param, t in opt._master_weights.items():
        arrays[f"state/{step}/master_weight/{param}"] = to_numpy(t)
        rows.append(
            {
                "accumulator": "master_weight",
                "param": param,
                "state_key": t.name,
                "shape": list(t.shape),
                "dtype": "float32",
            }
        )
    return rows


def start(case, rng, arrays):
    specs = case["params"]
    params = []
    for s in specs:
        p = make_param(s, init_value(rng, s))
        arrays[f"p0/{s['name']}"] = to_numpy(p)
        params.append(p)
    return params


def inject(case, params, rng, step, arrays):
    for s, p in zip(case["params"], params):
        g = gradient(rng, case["profile"], step, s["shape"]) * case["grad_scale"]
        if s["stop_gradient"] or step in case["missing"].get(s["name"], []):
            p.clear_gradient(False)
            continue
        t = to_tensor(g, s["dtype"])
        arrays[f"g/{step}/{s['name']}"] = to_numpy(t)
        p.clear_gradient(False)
        p.grad = t


def record(case, params, step, arrays):
    if step in case["record_steps"]:
        for p in params:
            arrays[f"p/{step}/{p.name}"] = to_numpy(p)


# ------------------------------------------------------------------- case drivers
def run_optimizer(case, rng, arrays):
    params = start(case, rng, arrays)
    sched = scheduler(case["scheduler"]) if case["scheduler"] else None
    opt = build(case["class"], case["kwargs"], params, case, sched)
    lrs = []
    for step in range(1, case["steps"] + 1):
        inject(case, params, rng, step, arrays)
        lrs.append(opt.get_lr())
        opt.step()
        if sched is not None:
            sched.step()
        record(case, params, step, arrays)
        for ev in case["events"]:
            if ev["after_step"] != step:
                continue
            if ev["op"] == "set_lr":
                opt.set_lr(ev["value"])
            elif ev["op"] == "set_lr_scheduler":
                sched = scheduler(ev["scheduler"])
                opt.set_lr_scheduler(sched)
            elif ev["op"] == "save_restore":
                saved = {
                    k: v.clone() if isinstance(v, paddle.Tensor) else v for k, v in opt.state_dict().items()
                }
                sched = scheduler(case["scheduler"]) if case["scheduler"] else None
                with paddle.utils.unique_name.guard():
                    opt = build(case["class"], case["kwargs"], params, case, sched)
                    opt.set_state_dict(saved)
                    opt._create_accumulators(
                        paddle.base.framework.default_main_program().global_block(),
                        [p for p in params if not p.stop_gradient],
                    )
    arrays["lr"] = np.array(lrs)
    return snapshot_state(opt, arrays, case["steps"])


def run_lookahead(case, rng, arrays):
    params = start(case, rng, arrays)
    inner = build(case["inner"]["class"], case["inner"]["kwargs"], params, case)
    opt = paddle.incubate.LookAhead(inner, **case["kwargs"])
    for step in range(1, case["steps"] + 1):
        inject(case, params, rng, step, arrays)
        opt.step()
        record(case, params, step, arrays)
    return snapshot_state(opt, arrays, case["steps"]) + snapshot_state(inner, arrays, case["steps"])


def run_model_average(case, rng, arrays):
    params = start(case, rng, arrays)
    inner = build(case["inner"]["class"], case["inner"]["kwargs"], params, case)
    opt = paddle.incubate.ModelAverage(parameters=params, **case["kwargs"])
    for step in range(1, case["steps"] + 1):
        inject(case, params, rng, step, arrays)
        inner.step()
        opt.step()
        record(case, params, step, arrays)
        if step in case["record_steps"]:
            with opt.apply():
                for p in params:
                    arrays[f"avg/{step}/{p.name}"] = to_numpy(p)
    return snapshot_state(opt, arrays, case["steps"])


def objective(case, x, aux):
    kind = case["objective"]
    if kind == "quadratic":  # 0.5 x'Ax - b'x
        return 0.5 * (x * paddle.matmul(aux["A"], x)).sum() - (aux["b"] * x).sum()
    if kind == "rosenbrock":  # sum 100 (x[i+1]-x[i]^2)^2 + (1-x[i])^2
        return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()
    if kind == "logsumexp":  # log sum exp(Ax + b) + 0.5 x'x
        return paddle.logsumexp(paddle.matmul(aux["A"], x) + aux["b"]) + 0.5 * (x * x).sum()
    raise ValueError(kind)


def run_lbfgs(case, rng, arrays):
    params = start(case, rng, arrays)
    dtype, n = case["params"][0]["dtype"], sum(int(np.prod(s["shape"])) for s in case["params"])
    m = rng.standard_normal((n, n))
    aux = {
        "A": m @ m.T / n + np.eye(n) if case["objective"] == "quadratic" else m,
        "b": rng.standard_normal(n),
    }
    for k, v in aux.items():
        arrays[f"aux/{k}"] = v.astype(dtype)
        aux[k] = paddle.to_tensor(v.astype(dtype))
    opt = build("LBFGS", case["kwargs"], params, case)

    def closure():
        opt.clear_grad()
        loss = objective(case, paddle.concat([p.reshape([-1]) for p in params]), aux)
        loss.backward()
        return loss

    losses, counters = [], []
    for step in range(1, case["steps"] + 1):
        losses.append(float(opt.step(closure)))
        counters.append([opt.state["func_evals"], opt.state["n_iter"]])
        record(case, params, step, arrays)
    arrays["returned_loss"] = np.array(losses)
    arrays["func_evals_n_iter"] = np.array(counters)
    return []


def run_kernel(case, rng, arrays):
    """Optimizer kernels that have no Python class: called through paddle._C_ops."""
    ops, kw, spec = paddle._C_ops, case["kwargs"], case["params"][0]
    p = to_tensor(init_value(rng, spec), spec["dtype"])
    arrays["p0/w"] = to_numpy(p)
    lr = to_tensor(np.array([kw["learning_rate"]]), spec["dtype"])
    like = lambda v: paddle.full_like(p, v)
    state = {
        "ftrl": {"squared": like(kw.get("initial_squared", 0.0)), "linear": like(0.0)},
        "decayed_adagrad": {"moment": like(0.0)},
        "dpsgd": {},
    }[case["class"]]
    for step in range(1, case["steps"] + 1):
        g = to_tensor(gradient(rng, case["profile"], step, spec["shape"]) * case["grad_scale"], spec["dtype"])
        arrays[f"g/{step}/w"] = to_numpy(g)
        if case["class"] == "ftrl":
            p, state["squared"], state["linear"] = ops.ftrl(
                p, state["squared"], state["linear"], g, lr, kw["l1"], kw["l2"], kw["lr_power"]
            )
        elif case["class"] == "decayed_adagrad":
            p, state["moment"] = ops.decayed_adagrad(p, g, state["moment"], lr, kw["decay"], kw["epsilon"])
        else:
            p = ops.dpsgd(p, g, lr, kw["clip"], kw["batch_size"], kw["sigma"], kw["seed"])
        if step in case["record_steps"]:
            arrays[f"p/{step}/w"] = to_numpy(p)
    for k, v in state.items():
        arrays[f"state/{case['steps']}/{k}/w"] = to_numpy(v)
    return []


def run_dgc_momentum(case, rng, arrays):
    """Only the old static-graph IR can run this kernel on CPU."""
    import paddle.base as base

    kw, spec = case["kwargs"], case["params"][0]
    p0 = init_value(rng, spec).astype("float32")
    arrays["p0/w"] = p0
    paddle.enable_static()
    try:
        with paddle.pir_utils.OldIrGuard():
            main, scope = base.framework.Program(), base.Scope()
            with base.program_guard(main, base.framework.Program()), base.scope_guard(scope):
                values = {
                    "P": p0,
                    "G": p0,
                    "V": 0 * p0,
                    "O": 0 * p0,
                    "M": p0.copy(),
                    "L": np.array([kw["learning_rate"]]),
                    "C": np.zeros(1),
                    "N": np.array([kw["nranks"]]),
                }
                block, v = main.global_block(), {}
                for k, a in values.items():
                    v[k] = block.create_var(name=k, shape=list(a.shape), dtype="float32", persistable=True)
                    scope.var(k).get_tensor().set(a.astype("float32"), base.CPUPlace())
                block.append_op(
                    type="dgc_momentum",
                    inputs={
                        "Param": v["P"],
                        "Grad": v["G"],
                        "Velocity": v["V"],
                        "LearningRate": v["L"],
                        "current_step": v["C"],
                        "nranks": v["N"],
                        "MasterParam": v["M"],
                    },
                    outputs={
                        "ParamOut": v["P"],
                        "VelocityOut": v["V"],
                        "Grad_out": v["O"],
                        "MasterParamOut": v["M"],
                    },
                    attrs={
                        "mu": kw["momentum"],
                        "use_nesterov": kw["use_nesterov"],
                        "regularization_method": "l2_decay" if kw["l2"] else "",
                        "regularization_coeff": kw["l2"],
                        "multi_precision": False,
                        "rescale_grad": 1.0,
                        "rampup_begin_step": float(kw["rampup_begin_step"]),
                    },
                )
                exe, get = base.Executor(base.CPUPlace()), lambda k: np.array(scope.find_var(k).get_tensor())
                for step in range(1, case["steps"] + 1):
                    g = gradient(rng, case["profile"], step, spec["shape"]).astype("float32")
                    arrays[f"g/{step}/w"] = g
                    scope.find_var("G").get_tensor().set(g, base.CPUPlace())
                    scope.find_var("C").get_tensor().set(np.array([step - 1], "float32"), base.CPUPlace())
                    exe.run(main)
                    if step in case["record_steps"]:
                        arrays[f"p/{step}/w"] = get("P")
                        arrays[f"grad_out/{step}/w"] = get("O")
                arrays[f"state/{case['steps']}/velocity/w"] = get("V")
    finally:
        paddle.disable_static()
    return []


def run_ema(case, rng, arrays):
    """paddle.static.ExponentialMovingAverage around plain SGD on sum(w * g).

    In 3.3.1 the class cannot be built as shipped: under PIR create_global_var
    fails, under the old IR paddle.logical_not only takes PIR values.  We use the
    old IR and give it a logical_not that appends the ordinary operator.
    """
    kw, spec = case["kwargs"], case["params"][0]
    w0 = init_value(rng, spec).astype("float32")
    arrays["p0/w"] = w0

    def append(kind, x, dtype, shape, attrs=None):
        block = paddle.static.default_main_program().current_block()
        out = block.create_var(name=paddle.utils.unique_name.generate("golden_aux"), dtype=dtype, shape=shape)
        block.append_op(type=kind, inputs={"X": x}, outputs={"Out": out}, attrs=attrs or {})
        return out

    shipped, paddle.logical_not = paddle.logical_not, lambda x: append("logical_not", x, "bool", x.shape)
    paddle.enable_static()
    try:
        with paddle.pir_utils.OldIrGuard():
            main, startup = paddle.base.framework.Program(), paddle.base.framework.Program()
            scope = paddle.base.Scope()
            with paddle.static.program_guard(main, startup), paddle.static.scope_guard(scope):
                g = paddle.static.data("g", spec["shape"], "float32")
                w = paddle.static.create_parameter(
                    spec["shape"],
                    "float32",
                    attr=paddle.ParamAttr(name="w"),
                    default_initializer=paddle.nn.initializer.Assign(w0),
                )
                loss = append("reduce_sum", w * g, "float32", [], {"reduce_all": True, "dim": [0]})
                paddle.optimizer.SGD(case["inner"]["kwargs"]["learning_rate"]).minimize(loss)
                ema = paddle.static.ExponentialMovingAverage(**kw)
                ema.update()
                exe = paddle.static.Executor(paddle.CPUPlace())
                exe.run(startup)
                read = lambda: np.array(scope.find_var("w").get_tensor())
                for step in range(1, case["steps"] + 1):
                    gv = gradient(rng, case["profile"], step, spec["shape"]).astype("float32")
                    arrays[f"g/{step}/w"] = gv
                    exe.run(main, feed={"g": gv})
                    if step in case["record_steps"]:
                        arrays[f"p/{step}/w"] = read()
                        with ema.apply(exe):
                            arrays[f"avg/{step}/w"] = read()
    finally:
        paddle.disable_static()
        paddle.logical_not = shipped
    return []


DRIVERS = {
    "LookAhead": run_lookahead,
    "ModelAverage": run_model_average,
    "LBFGS": run_lbfgs,
    "ftrl": run_kernel,
    "decayed_adagrad": run_kernel,
    "dpsgd": run_kernel,
    "dgc_momentum": run_dgc_momentum,
    "ExponentialMovingAverage": run_ema,
}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, required=True)
    ap.add_argument("--only", help="record only cases whose id contains this text")
    args = ap.parse_args()
    assert paddle.__version__ == "3.3.1", paddle.__version__
    os.makedirs(args.out, exist_ok=True)
    manifest = []
    for case in all_cases():
        if args.only and args.only not in case["id"]:
            continue
        arrays = {}
        with paddle.utils.unique_name.guard():
            rows = DRIVERS.get(case["class"], run_optimizer)(case, rng_for(case, args.seed), arrays)
        bad = [k for k, v in arrays.items() if not np.isfinite(v).all()]
        assert not bad or case["allow_nonfinite"], (case["id"], bad[:3])
        np.savez_compressed(os.path.join(args.out, case["id"] + ".npz"), **arrays)
        manifest.append({**case, "oracle": ORACLE, "file": case["id"] + ".npz", "state": rows})
    with open(os.path.join(args.out, "manifest.json"), "w") as f:
        head = json.dumps({"oracle": ORACLE, "variant": "public", "seed": args.seed})
        f.write(head[:-1] + ', "cases": [\n' + ",\n".join(map(json.dumps, manifest)) + "\n]}\n")
    print(len(manifest), "cases ->", args.out)


if __name__ == "__main__":
    main()
