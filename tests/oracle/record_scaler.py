"""Record GradScaler state sequences of the real Paddle 3.x into scaler.json.

Usage:  PADDLE3_PYTHON record_scaler.py [--cases FILE.json] [--out FILE.json]

On CPU Paddle disables the scaler, so this script makes it believe the place is
a GPU and that the AMP dtype is float16; all arithmetic is Paddle's own.  It
also restores float(tensor) for one-element tensors, which NumPy >= 2.4 refuses.

A case: {"id", "kwargs", "optimizer", "ops"}; the two optimizers "a" and "b" own
one float32 parameter of two elements each, starting at [1, 2] ("sgd": SGD with
lr 0.125, "adam": Adam with lr 0.1).
ops  ["backward", who, [g0, g1]]   set that parameter's grad ("nan"/"inf" allowed)
     ["scale", x]                  result: the scaled value
     ["unscale", who] ["step", who] ["update"] ["minimize", who]
     ["plain_step", who]           optimizer.step() without the scaler
     ["save"] ["load"]             state_dict / load_state_dict into a new scaler
     ["set", name, value]          set_<name>(value)
results[i] after ops[i]: {"scale", "incr_count", "decr_count", "a", "b", "ga",
"gb"} plus "value" (scale) or "error" (exception class name).
"""

import argparse
import json
import math
import os
import warnings

import numpy as np

INF, NAN = "inf", "nan"


def builtin_cases():
    good, bad, nan = [1.0, -2.0], [INF, 1.0], [NAN, 1.0]

    def rounds(pattern, who="a", via="step"):
        ops = []
        for c in pattern:
            ops.append(["backward", who, {"g": good, "i": bad, "n": nan}[c]])
            ops += [["minimize", who]] if via == "minimize" else [["step", who], ["update"]]
        return ops

    return [
        {"id": "defaults", "kwargs": {}, "ops": [["scale", 3.0]] + rounds("ggigg")},
        {
            "id": "grow",
            "kwargs": {"init_loss_scaling": 8.0, "incr_every_n_steps": 3},
            "ops": rounds("ggggggg"),
        },
        {
            "id": "shrink",
            "kwargs": {"init_loss_scaling": 1024.0, "decr_every_n_nan_or_inf": 2},
            "ops": rounds("iigiginini"),
        },
        {
            "id": "mixed",
            "kwargs": {
                "init_loss_scaling": 64.0,
                "incr_ratio": 1.5,
                "decr_ratio": 0.25,
                "incr_every_n_steps": 2,
                "decr_every_n_nan_or_inf": 1,
            },
            "ops": rounds("gggiggnggig"),
        },
        {
            "id": "reset-counts",
            "kwargs": {"init_loss_scaling": 64.0, "incr_every_n_steps": 3, "decr_every_n_nan_or_inf": 3},
            "ops": rounds("ggiiggiiigggg"),
        },
        {
            "id": "minimize",
            "kwargs": {"init_loss_scaling": 64.0, "incr_every_n_steps": 2},
            "ops": rounds("ggiggi", via="minimize"),
        },
        {
            "id": "static",
            "kwargs": {"init_loss_scaling": 16.0, "use_dynamic_loss_scaling": False},
            "ops": [["scale", 2.0]]
            + rounds("gigi")
            + [["backward", "a", good], ["step", "a"], ["step", "a"]],
        },
        {
            "id": "manual-unscale",
            "kwargs": {"init_loss_scaling": 16.0},
            "ops": [
                ["backward", "a", good],
                ["unscale", "a"],
                ["unscale", "a"],
                ["step", "a"],
                ["step", "a"],
                ["unscale", "a"],
                ["update"],
                ["unscale", "a"],
                ["update"],
            ],
        },
        {
            "id": "update-first",
            "kwargs": {"init_loss_scaling": 16.0, "incr_every_n_steps": 2},
            "ops": [["update"], ["update"], ["update"]],
        },
        {
            "id": "stale-update",
            "kwargs": {"init_loss_scaling": 16.0},
            "ops": rounds("i") + [["update"], ["update"]],
        },
        {
            "id": "two-optimizers",
            "kwargs": {"init_loss_scaling": 16.0},
            "ops": [
                ["backward", "a", bad],
                ["backward", "b", good],
                ["step", "a"],
                ["step", "b"],
                ["update"],
                ["backward", "a", good],
                ["backward", "b", bad],
                ["step", "a"],
                ["step", "b"],
                ["update"],
            ],
        },
        {"id": "no-grads", "kwargs": {"init_loss_scaling": 16.0}, "ops": [["step", "b"], ["update"]]},
        {"id": "adam-skip", "optimizer": "adam", "kwargs": {"init_loss_scaling": 4.0}, "ops": rounds("igig")},
        {
            "id": "sticky-found-inf",
            "kwargs": {"init_loss_scaling": 4.0},
            "ops": rounds("i")
            + [
                ["backward", "a", good],
                ["plain_step", "a"],
                ["backward", "a", good],
                ["step", "a"],
                ["update"],
                ["plain_step", "a"],
            ],
        },
        {
            "id": "save-load",
            "kwargs": {"init_loss_scaling": 32.0, "incr_every_n_steps": 4, "decr_every_n_nan_or_inf": 2},
            "ops": rounds("ggi") + [["save"], ["load"]] + rounds("igggggg"),
        },
        {
            "id": "setters",
            "kwargs": {"init_loss_scaling": 32.0},
            "ops": [
                ["set", "init_loss_scaling", 10.0],
                ["scale", 1.5],
                ["set", "incr_ratio", 3.0],
                ["set", "incr_every_n_steps", 1],
            ]
            + rounds("gg")
            + [["set", "decr_ratio", 0.1], ["set", "decr_every_n_nan_or_inf", 2]]
            + rounds("iii")
            + [["set", "incr_ratio", 1.0], ["set", "decr_ratio", 1.0]],
        },
        {
            "id": "overflow",
            "kwargs": {"init_loss_scaling": 3e38, "incr_every_n_steps": 1},
            "ops": rounds("gggi"),
        },
        {
            "id": "underflow",
            "optional": "float32 subnormals appear; XLA on CPU may flush them to zero",
            "kwargs": {"init_loss_scaling": 1e-37, "decr_ratio": 0.001},
            "ops": rounds("iiiig"),
        },
        {
            "id": "odd-scale",
            "kwargs": {
                "init_loss_scaling": 3.0,
                "decr_ratio": 0.7,
                "incr_ratio": 1.1,
                "incr_every_n_steps": 2,
            },
            "ops": rounds("ggigggi"),
        },
        {
            "id": "zero-interval",
            "kwargs": {"init_loss_scaling": 8.0, "incr_every_n_steps": 0},
            "ops": rounds("ggg"),
        },
        {
            "id": "disabled",
            "kwargs": {"enable": False, "init_loss_scaling": 8.0},
            "ops": [["scale", 2.0]] + rounds("gi") + [["update"]],
        },
        {"id": "bad-incr", "kwargs": {"incr_ratio": 1.0}, "ops": []},
        {"id": "bad-decr", "kwargs": {"decr_ratio": 1.0}, "ops": []},
    ]


def num(x):
    return float(x) if isinstance(x, str) else x


def safe(x):
    if isinstance(x, (list, tuple)):
        return [safe(v) for v in x]
    x = float(x)
    return x if math.isfinite(x) else str(x)


def record_case(paddle, case):
    out, results = dict(case), []
    params, opts = {}, {}
    for who in "ab":
        p = paddle.create_parameter([2], "float32")
        p.set_value(np.array([1.0, 2.0], "float32"))
        params[who] = p
        opts[who] = (
            paddle.optimizer.Adam(0.1, parameters=[p])
            if case.get("optimizer") == "adam"
            else paddle.optimizer.SGD(0.125, parameters=[p])
        )
    try:
        scaler = paddle.amp.GradScaler(**case["kwargs"])
    except Exception as exc:
        out["error"] = type(exc).__name__
        return out
    saved = None
    for op in case["ops"]:
        r = {}
        try:
            if op[0] == "backward":
                params[op[1]].grad = paddle.to_tensor(np.array([num(v) for v in op[2]], "float32"))
            elif op[0] == "scale":
                r["value"] = safe(scaler.scale(paddle.to_tensor(op[1])).numpy().item())
            elif op[0] == "unscale":
                scaler.unscale_(opts[op[1]])
            elif op[0] == "step":
                scaler.step(opts[op[1]])
            elif op[0] == "minimize":
                scaler.minimize(opts[op[1]], params[op[1]].sum())
            elif op[0] == "plain_step":
                opts[op[1]].step()
            elif op[0] == "update":
                scaler.update()
            elif op[0] == "save":
                saved = scaler.state_dict()
            elif op[0] == "load":
                scaler = paddle.amp.GradScaler()
                scaler.load_state_dict(saved)
            elif op[0] == "set":
                getattr(scaler, "set_" + op[1])(op[2])
            else:
                raise SystemExit(op[0])
        except Exception as exc:
            r["error"] = type(exc).__name__
        state = scaler.state_dict()
        if state:
            r.update(
                scale=safe(state["scale"][0]), incr_count=state["incr_count"], decr_count=state["decr_count"]
            )
        for who in "ab":
            r[who] = safe(params[who].numpy().tolist())
            g = params[who].grad
            r["g" + who] = None if g is None else safe(g.numpy().tolist())
        results.append(r)
    out["results"] = results
    final = scaler.state_dict()
    out["state_dict"] = {k: safe(v.tolist()) if isinstance(v, np.ndarray) else v for k, v in final.items()}
    return out


def patch(paddle):
    from paddle.amp import grad_scaler as g

    class Place:
        def is_gpu_place(self):
            return True

    class Tracer:
        _expected_place = Place()

    g._dygraph_tracer = lambda: Tracer()
    g.amp_global_state().amp_dtype = "float16"
    paddle.base.core.eager.Tensor.__float__ = lambda self: self.numpy().item()


def write(cases, path):
    import paddle

    patch(paddle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [record_case(paddle, c) for c in cases]
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, allow_nan=False) for r in results) + "\n]\n")
    print(f"{len(results)} scaler cases")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser()
    ap.add_argument("--cases")
    ap.add_argument("--out", default=os.path.join(here, "../golden/scaler.json"))
    a = ap.parse_args()
    write(json.load(open(a.cases)) if a.cases else builtin_cases(), a.out)
