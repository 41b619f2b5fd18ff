"""Train small models with the real Paddle 3.x on CPU and save checkpoints.

Usage:  PADDLE3_PYTHON record_checkpoints_paddle3.py [--cases FILE.json] [--out DIR]

Per case, DIR/<name>/ receives
  model_10.pdparams opt_10.pdopt    paddle.save of both state dicts after step 10
  model_20.pdparams opt_20.pdopt    the same after step 20
  replay.npz                        plain arrays, readable without any pickle:
      init/<key>                    parameters before step 1
      grad/<step>/<key>             raw gradient fed to step 1..20 (before clipping)
      param/10|20/<key>             parameters after that step
      acc/10|20/<name>              every optimizer tensor after that step
      master/10|20/<param name>     fp32 master weights, if there are any
      lr                            learning rate (float64) used by steps 1..20
  manifest.json                     configuration, names, and the result of
                                    replaying steps 11..20 in real Paddle from
                                    the saved files (replay_max_abs_diff)
bfloat16 arrays are stored as their uint16 bit patterns (listed in manifest).
"""

import argparse
import json
import os
import warnings

import numpy as np

HALF, END = 10, 20

CASES = {
    "adam": {
        "optimizer": "Adam",
        "kwargs": {},
        "seed": 1,
        "scheduler": ["StepDecay", {"learning_rate": 0.05, "step_size": 4, "gamma": 0.5}],
    },
    "adam_l2_globalclip": {
        "optimizer": "Adam",
        "seed": 2,
        "kwargs": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": ["L2Decay", 0.05]},
        "clip": ["ClipGradByGlobalNorm", {"clip_norm": 0.5}],
        "scheduler": ["NoamDecay", {"d_model": 16, "warmup_steps": 6, "learning_rate": 0.2}],
    },
    "adam_amsgrad_float64": {
        "optimizer": "Adam",
        "seed": 3,
        "dtype": "float64",
        "kwargs": {"amsgrad": True},
        "scheduler": 0.02,
    },
    "momentum": {
        "optimizer": "Momentum",
        "seed": 4,
        "kwargs": {"momentum": 0.9, "weight_decay": 0.01},
        "scheduler": [
            "LinearWarmup",
            {
                "learning_rate": ["CosineAnnealingDecay", {"learning_rate": 0.1, "T_max": 12}],
                "warmup_steps": 5,
                "start_lr": 0.0,
                "end_lr": 0.1,
            },
        ],
    },
    "momentum_nesterov_l1": {
        "optimizer": "Momentum",
        "seed": 5,
        "kwargs": {"momentum": 0.8, "use_nesterov": True, "weight_decay": ["L1Decay", 0.003]},
        "clip": ["ClipGradByNorm", {"clip_norm": 0.3}],
        "scheduler": ["PiecewiseDecay", {"boundaries": [3, 12], "values": [0.1, 0.05, 0.01]}],
    },
    "lamb": {
        "optimizer": "Lamb",
        "seed": 6,
        "kwargs": {"lamb_weight_decay": 0.02},
        "lamb_exclude_suffix": ".b_0",
        "scheduler": [
            "PolynomialDecay",
            {"learning_rate": 0.05, "decay_steps": 15, "end_lr": 0.001, "power": 2.0},
        ],
    },
    "adamw": {
        "optimizer": "AdamW",
        "seed": 7,
        "kwargs": {"weight_decay": 0.1, "multi_precision": True},
        "decay_suffix": ".w_0",
        "scheduler": ["CosineAnnealingDecay", {"learning_rate": 0.05, "T_max": 8, "eta_min": 0.001}],
    },
    "adagrad": {
        "optimizer": "Adagrad",
        "seed": 8,
        "kwargs": {"initial_accumulator_value": 0.1},
        "clip": ["ClipGradByValue", {"max": 0.2}],
        "scheduler": ["ExponentialDecay", {"learning_rate": 0.3, "gamma": 0.9}],
    },
    "rmsprop": {
        "optimizer": "RMSProp",
        "seed": 9,
        "kwargs": {"rho": 0.9, "epsilon": 1e-5, "momentum": 0.5, "centered": True, "weight_decay": 0.02},
        "scheduler": [
            "ReduceOnPlateau",
            {"learning_rate": 0.05, "factor": 0.5, "patience": 1, "threshold": 0.2},
        ],
    },
    "sgd_bf16_master": {
        "optimizer": "SGD",
        "seed": 10,
        "dtype": "bfloat16",
        "kwargs": {"multi_precision": True},
        "scheduler": ["InverseTimeDecay", {"learning_rate": 0.1, "gamma": 0.1}],
    },
}


def make_scheduler(paddle, spec):
    if not isinstance(spec, list):
        return spec
    cls, kwargs = spec
    kwargs = {
        k: make_scheduler(paddle, v) if isinstance(v, list) and v and isinstance(v[0], str) else v
        for k, v in kwargs.items()
    }
    return getattr(paddle.optimizer.lr, cls)(**kwargs)


def make_optimizer(paddle, case, params, sched):
    kwargs = dict(case["kwargs"])
    wd = kwargs.get("weight_decay")
    if isinstance(wd, list):
        kwargs["weight_decay"] = getattr(paddle.regularizer, wd[0])(wd[1])
    if "clip" in case:
        kwargs["grad_clip"] = getattr(paddle.nn, case["clip"][0])(**case["clip"][1])
    if "decay_suffix" in case:
        kwargs["apply_decay_param_fun"] = lambda name: name.endswith(case["decay_suffix"])
    if "lamb_exclude_suffix" in case:
        kwargs["exclude_from_weight_decay_fn"] = lambda p: p.name.endswith(case["lamb_exclude_suffix"])
    return getattr(paddle.optimizer, case["optimizer"])(learning_rate=sched, parameters=params, **kwargs)


def build(paddle, case):
    d_in, d_mid, d_out = case.get("sizes", [6, 5, 3])
    net = paddle.nn.Sequential(paddle.nn.Linear(d_in, d_mid), paddle.nn.Linear(d_mid, d_out))
    dtype = case.get("dtype", "float32")
    if dtype != "float32":
        net.to(dtype=dtype)
    sched = make_scheduler(paddle, case["scheduler"])
    return net, sched, make_optimizer(paddle, case, net.parameters(), sched)


def forward(net, x):
    """Linear+Linear; bf16 weights are cast up, as CPU has no bf16 matmul."""
    for layer in net:
        w, b = layer.weight, layer.bias
        if w.dtype != x.dtype:
            w, b = w.astype(x.dtype), b.astype(x.dtype)
        x = x.matmul(w) + b
    return x


def arr(t):
    return np.array(t.numpy(), copy=True)


def snapshot(out, net, opt, step):
    for key, p in net.state_dict().items():
        out[f"param/{step}/{key}"] = arr(p)
    for name, v in opt.state_dict().items():
        if name == "master_weights":
            for pname, w in v.items():
                out[f"master/{step}/{pname}"] = arr(w)
        elif name != "LR_Scheduler":
            out[f"acc/{step}/{name}"] = arr(v)


def advance(paddle, opt, sched, loss):
    opt.step()
    opt.clear_grad()
    if isinstance(sched, paddle.optimizer.lr.ReduceOnPlateau):
        sched.step(loss)
    elif not isinstance(sched, float):
        sched.step()


def record(paddle, name, case, root):
    folder = os.path.join(root, name)
    os.makedirs(folder, exist_ok=True)
    rng = np.random.RandomState(case["seed"])
    d_in, _, d_out = case.get("sizes", [6, 5, 3])
    dtype = case.get("dtype", "float32")
    x = rng.randn(8, d_in).astype("float32")
    y = rng.randn(8, d_out).astype("float32")
    arrays, lrs, losses = {}, [], []
    with paddle.utils.unique_name.guard():
        net, sched, opt = build(paddle, case)
        for p in net.parameters():
            p.set_value(paddle.to_tensor(rng.uniform(-0.6, 0.6, p.shape).astype("float32")).astype(dtype))
        keys = [(k, p) for k, p in net.state_dict().items()]
        for k, p in keys:
            arrays[f"init/{k}"] = arr(p)
        compute = "float32" if dtype == "bfloat16" else dtype
        xt, yt = paddle.to_tensor(x).astype(compute), paddle.to_tensor(y).astype(compute)
        for step in range(1, END + 1):
            loss = ((forward(net, xt) - yt) ** 2).mean()
            loss.backward()
            for k, p in keys:
                arrays[f"grad/{step}/{k}"] = arr(p.grad)
            lrs.append(float(opt.get_lr()))
            losses.append(float(loss.astype("float64").item()))
            advance(paddle, opt, sched, losses[-1])
            if step in (HALF, END):
                snapshot(arrays, net, opt, step)
                paddle.save(net.state_dict(), os.path.join(folder, f"model_{step}.pdparams"))
                paddle.save(opt.state_dict(), os.path.join(folder, f"opt_{step}.pdopt"))
        final_state = opt.state_dict().get("LR_Scheduler")
        params = [{"key": k, "name": p.name, "shape": list(p.shape), "dtype": dtype} for k, p in keys]
        acc_names = [n for n in opt.state_dict() if n not in ("LR_Scheduler", "master_weights")]
    arrays["lr"] = np.array(lrs)

    # Replay 11..20 in real Paddle from the files only.
    diff = 0.0
    with paddle.utils.unique_name.guard():
        net, sched, opt = build(paddle, case)
        net.set_state_dict(paddle.load(os.path.join(folder, f"model_{HALF}.pdparams")))
        opt.set_state_dict(paddle.load(os.path.join(folder, f"opt_{HALF}.pdopt")))
        for step in range(HALF + 1, END + 1):
            for k, p in net.state_dict().items():
                p.grad = paddle.to_tensor(arrays[f"grad/{step}/{k}"])
            advance(paddle, opt, sched, losses[step - 1])
        again = {}
        snapshot(again, net, opt, END)
        for k, v in again.items():
            if v.dtype == np.uint16:
                diff = max(diff, float(np.count_nonzero(v != arrays[k])))
            elif v.size:
                diff = max(diff, float(np.max(np.abs(v.astype("float64") - arrays[k].astype("float64")))))
    np.savez(os.path.join(folder, "replay.npz"), **arrays)
    manifest = {
        "name": name,
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "config": case,
        "params": params,
        "accumulators": acc_names,
        "bf16_as_uint16": sorted(k for k, v in arrays.items() if v.dtype == np.uint16),
        "lr": lrs,
        "losses": losses,
        "lr_state_20": final_state,
        "saved_at": [HALF, END],
        "replay_max_abs_diff": diff,
    }
    with open(os.path.join(folder, "manifest.json"), "w") as f:
        json.dump(manifest, f, indent=1)
    print(f"{name:28s} tensors={len(acc_names):3d} replay diff={diff}")


def run(cases, root):
    import paddle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in cases.items():
            record(paddle, name, case, root)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser()
    ap.add_argument("--cases")
    ap.add_argument("--out", default=os.path.join(here, "..", "golden", "checkpoints"))
    args = ap.parse_args()
    run(json.load(open(args.cases)) if args.cases else CASES, args.out)
