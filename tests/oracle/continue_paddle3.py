"""Continue a recorded training in the real Paddle 3.x from checkpoint files that somebody else wrote.

    PADDLE3_PYTHON continue_paddle3.py CASE_DIR MODEL.pdparams OPT.pdopt OUT.npz

CASE_DIR holds manifest.json and replay.npz of a recorded case. The files are loaded with paddle.load, the
recorded gradients of steps 11 to 20 are fed, and OUT.npz receives param/<key>, acc/<name>, master/<name>, lr.
"""

import json
import os
import sys
import warnings

import numpy as np
import paddle


def scheduler(spec):
    if not isinstance(spec, list):
        return spec
    kind, kwargs = spec
    nested = {
        k: scheduler(v) if isinstance(v, list) and isinstance(v[0], str) else v for k, v in kwargs.items()
    }
    return getattr(paddle.optimizer.lr, kind)(**nested)


def optimizer(config, params, rate):
    kwargs = dict(config["kwargs"])
    if isinstance(kwargs.get("weight_decay"), list):
        kind, coeff = kwargs["weight_decay"]
        kwargs["weight_decay"] = getattr(paddle.regularizer, kind)(coeff)
    if "clip" in config:
        kind, arguments = config["clip"]
        kwargs["grad_clip"] = getattr(paddle.nn, kind)(**arguments)
    if "decay_suffix" in config:
        kwargs["apply_decay_param_fun"] = lambda name: name.endswith(config["decay_suffix"])
    if "lamb_exclude_suffix" in config:
        kwargs["exclude_from_weight_decay_fn"] = lambda p: p.name.endswith(config["lamb_exclude_suffix"])
    return getattr(paddle.optimizer, config["optimizer"])(learning_rate=rate, parameters=params, **kwargs)


def main(case, model_file, opt_file, out):
    with open(os.path.join(case, "manifest.json")) as f:
        manifest = json.load(f)
    config, replay = manifest["config"], np.load(os.path.join(case, "replay.npz"))
    sizes = config.get("sizes", [6, 5, 3])
    model = paddle.nn.Sequential(paddle.nn.Linear(*sizes[:2]), paddle.nn.Linear(*sizes[1:]))
    if config.get("dtype", "float32") != "float32":
        model.to(dtype=config["dtype"])
    rate = scheduler(config["scheduler"])
    opt = optimizer(config, model.parameters(), rate)
    missing, unexpected = model.set_state_dict(paddle.load(model_file))
    if missing or unexpected:
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")
    opt.set_state_dict(paddle.load(opt_file))
    rates = []
    for step in range(11, 21):
        for key, p in model.state_dict().items():
            p.grad = paddle.to_tensor(replay[f"grad/{step}/{key}"])
        rates.append(float(opt.get_lr()))
        opt.step()
        opt.clear_grad()
        if isinstance(rate, paddle.optimizer.lr.ReduceOnPlateau):
            rate.step(manifest["losses"][step - 1])
        elif not isinstance(rate, float):
            rate.step()
    found = {f"param/{key}": p.numpy() for key, p in model.state_dict().items()}
    state = opt.state_dict()
    found.update({f"master/{name}": x.numpy() for name, x in state.pop("master_weights", {}).items()})
    # SGD, which has none of its own, hands on whatever it was given
    found.update({f"acc/{name}": x.numpy() for name, x in state.items() if not isinstance(x, dict)})
    np.savez(out, lr=np.array(rates), **found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
