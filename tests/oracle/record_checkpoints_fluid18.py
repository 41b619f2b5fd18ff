# runs under Python 3.7, hence the older syntax
# ruff: noqa: UP008, UP031
"""Train small dygraph models with the real Paddle 1.8.5 and save checkpoints.

Usage:  PADDLE18_PYTHON record_checkpoints_fluid18.py [--cases FILE.json] [--out DIR]

Same layout as record_checkpoints_paddle3.py, but the files come from
fluid.save_dygraph (prefix model_10 / model_20, suffixes .pdparams and .pdopt).
Learning-rate decays advance inside minimize() in 1.8, except the epoch-based
ones (StepDecay, MultiStepDecay, LambdaDecay), which are advanced by epoch()
after every "epoch_every" steps here.
"""

import argparse
import json
import os
import warnings

import numpy as np

HALF, END = 10, 20

CASES = {
    "fluid18_adam": {
        "optimizer": "Adam",
        "seed": 21,
        "kwargs": {},
        "scheduler": ["NoamDecay", {"d_model": 16, "warmup_steps": 6, "learning_rate": 0.3}],
    },
    "fluid18_adam_l2_globalclip": {
        "optimizer": "Adam",
        "seed": 22,
        "kwargs": {"beta1": 0.85, "epsilon": 1e-6},
        "regularization": ["L2Decay", 0.05],
        "clip": ["GradientClipByGlobalNorm", {"clip_norm": 0.5}],
        "scheduler": 0.02,
    },
    "fluid18_momentum": {
        "optimizer": "Momentum",
        "seed": 23,
        "kwargs": {"momentum": 0.9, "use_nesterov": True},
        "regularization": ["L1Decay", 0.004],
        "epoch_every": 3,
        "scheduler": ["StepDecay", {"learning_rate": 0.1, "step_size": 2, "decay_rate": 0.5}],
    },
    "fluid18_lars_momentum": {
        "optimizer": "LarsMomentum",
        "seed": 24,
        "kwargs": {"momentum": 0.9, "lars_coeff": 0.01, "lars_weight_decay": 0.002},
        "scheduler": [
            "ExponentialDecay",
            {"learning_rate": 0.5, "decay_steps": 5, "decay_rate": 0.7, "staircase": True},
        ],
    },
    "fluid18_lamb": {
        "optimizer": "Lamb",
        "seed": 25,
        "kwargs": {"lamb_weight_decay": 0.02},
        "scheduler": ["CosineDecay", {"learning_rate": 0.05, "step_each_epoch": 4, "epochs": 8}],
    },
}


def make_parts(fluid, case, params):
    spec = case["scheduler"]
    sched = getattr(fluid.dygraph, spec[0])(**spec[1]) if isinstance(spec, list) else spec
    kwargs = dict(case["kwargs"])
    if "regularization" in case:
        kind, coeff = case["regularization"]
        kwargs["regularization"] = getattr(fluid.regularizer, kind)(coeff)
    if "clip" in case:
        kwargs["grad_clip"] = getattr(fluid.clip, case["clip"][0])(**case["clip"][1])
    cls = getattr(fluid.optimizer, case["optimizer"] + "Optimizer")
    return sched, cls(learning_rate=sched, parameter_list=params, **kwargs)


def make_net(fluid, case):
    d_in, d_mid, d_out = case.get("sizes", [6, 5, 3])

    class Net(fluid.dygraph.Layer):
        def __init__(self):
            super(Net, self).__init__()
            self.first = fluid.dygraph.Linear(d_in, d_mid)
            self.second = fluid.dygraph.Linear(d_mid, d_out)

        def forward(self, v):
            return self.second(self.first(v))

    return Net()


def snapshot(out, net, opt, step):
    for key, p in net.state_dict().items():
        out["param/%d/%s" % (step, key)] = p.numpy().copy()
    for name, v in opt.state_dict().items():
        if name not in ("LR_Scheduler", "global_step"):
            out["acc/%d/%s" % (step, name)] = v.numpy().copy()


def finish_step(net, opt, sched, case, loss, step):
    opt.minimize(loss)
    net.clear_gradients()
    if case.get("epoch_every") and step % case["epoch_every"] == 0:
        sched.epoch()
    return float(opt._global_learning_rate().numpy()[0])


def plain(d):
    return {k: (v if isinstance(v, (int, str)) or v is None else float(v)) for k, v in d.items()}


def record(fluid, version, name, case, root):
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
        os.makedirs(folder)
    rng = np.random.RandomState(case["seed"])
    d_in, _, d_out = case.get("sizes", [6, 5, 3])
    x, y = rng.randn(8, d_in).astype("float32"), rng.randn(8, d_out).astype("float32")
    arrays, lrs, losses, diff = {}, [], [], 0.0
    with fluid.dygraph.guard(fluid.CPUPlace()), fluid.unique_name.guard():
        net = make_net(fluid, case)
        sched, opt = make_parts(fluid, case, net.parameters())
        for p in net.parameters():
            p.set_value(rng.uniform(-0.6, 0.6, p.shape).astype("float32"))
        keys = list(net.state_dict().items())
        for k, p in keys:
            arrays["init/" + k] = p.numpy().copy()
        for step in range(1, END + 1):
            err = net(fluid.dygraph.to_variable(x)) - fluid.dygraph.to_variable(y)
            loss = fluid.layers.reduce_mean(err * err)
            loss.backward()
            for k, p in keys:
                arrays["grad/%d/%s" % (step, k)] = p.gradient().copy()
            losses.append(float(loss.numpy()[0]))
            lrs.append(finish_step(net, opt, sched, case, loss, step))
            if step in (HALF, END):
                snapshot(arrays, net, opt, step)
                fluid.save_dygraph(net.state_dict(), os.path.join(folder, "model_%d" % step))
                fluid.save_dygraph(opt.state_dict(), os.path.join(folder, "model_%d" % step))
        state = opt.state_dict()
        acc_names = [n for n in state if n not in ("LR_Scheduler", "global_step")]
        params = [{"key": k, "name": p.name, "shape": list(p.shape), "dtype": "float32"} for k, p in keys]
        lr_state = plain(state["LR_Scheduler"]) if "LR_Scheduler" in state else None
        global_step = int(state["global_step"].numpy()[0]) if "global_step" in state else None

    # Replay 11..20 from the files: d/dp sum(p*g) == g exactly.
    with fluid.dygraph.guard(fluid.CPUPlace()), fluid.unique_name.guard():
        net = make_net(fluid, case)
        sched, opt = make_parts(fluid, case, net.parameters())
        weights, state = fluid.load_dygraph(os.path.join(folder, "model_%d" % HALF))
        net.set_dict(weights)
        opt.set_dict(state)
        for step in range(HALF + 1, END + 1):
            total = None
            for k, p in net.state_dict().items():
                g = fluid.dygraph.to_variable(arrays["grad/%d/%s" % (step, k)])
                term = fluid.layers.reduce_sum(p * g)
                total = term if total is None else total + term
            total.backward()
            lr = finish_step(net, opt, sched, case, total, step)
            diff = max(diff, abs(lr - lrs[step - 1]))
        again = {}
        snapshot(again, net, opt, END)
        for k, v in again.items():
            diff = max(diff, float(np.max(np.abs(v.astype("float64") - arrays[k].astype("float64")))))
    arrays["lr"] = np.array(lrs)
    np.savez(os.path.join(folder, "replay.npz"), **arrays)
    with open(os.path.join(folder, "manifest.json"), "w") as f:
        json.dump(
            {
                "name": name,
                "paddle": version,
                "numpy": np.__version__,
                "config": case,
                "params": params,
                "accumulators": acc_names,
                "bf16_as_uint16": [],
                "lr": lrs,
                "losses": losses,
                "lr_state_20": lr_state,
                "global_step_20": global_step,
                "saved_at": [HALF, END],
                "replay_max_abs_diff": diff,
            },
            f,
            indent=1,
        )
    print("%-28s tensors=%3d replay diff=%g" % (name, len(acc_names), diff))


def run(cases, root):
    warnings.simplefilter("ignore")
    import paddle
    import paddle.fluid as fluid

    for name, case in cases.items():
        record(fluid, paddle.__version__, name, case, root)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser()
    ap.add_argument("--cases")
    ap.add_argument("--out", default=os.path.join(here, "..", "golden", "checkpoints"))
    args = ap.parse_args()
    run(json.load(open(args.cases)) if args.cases else CASES, args.out)
