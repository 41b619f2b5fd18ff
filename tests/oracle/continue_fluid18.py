# runs under Python 3.7, hence the older syntax
# ruff: noqa: UP004, UP008, UP031
"""Continue a recorded training in the real Paddle 1.8.5 from checkpoint files that somebody else wrote.

    PADDLE18_PYTHON continue_fluid18.py CASE_DIR PREFIX OUT.npz

CASE_DIR holds manifest.json and replay.npz of a recorded case. PREFIX.pdparams and PREFIX.pdopt are loaded
with fluid.load_dygraph, the recorded gradients of steps 11 to 20 are fed, and OUT.npz receives param/<key>,
acc/<name> and lr.
"""

import json
import logging
import os
import sys
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
import paddle.fluid as fluid  # noqa: E402


class Net(fluid.dygraph.Layer):
    def __init__(self, sizes):
        super(Net, self).__init__()
        self.first = fluid.dygraph.Linear(*sizes[:2])
        self.second = fluid.dygraph.Linear(*sizes[1:])


def optimizer(config, params, rate):
    kwargs = dict(config["kwargs"])
    if "regularization" in config:
        kind, coeff = config["regularization"]
        kwargs["regularization"] = getattr(fluid.regularizer, kind)(coeff)
    if "clip" in config:
        kind, arguments = config["clip"]
        kwargs["grad_clip"] = getattr(fluid.clip, kind)(**arguments)
    cls = getattr(fluid.optimizer, config["optimizer"] + "Optimizer")
    return cls(learning_rate=rate, parameter_list=params, **kwargs)


def main(case, prefix, out):
    with open(os.path.join(case, "manifest.json")) as f:
        manifest = json.load(f)
    config, replay = manifest["config"], np.load(os.path.join(case, "replay.npz"))
    spec = config["scheduler"]
    with fluid.dygraph.guard(fluid.CPUPlace()), fluid.unique_name.guard():
        net = Net(config.get("sizes", [6, 5, 3]))
        rate = getattr(fluid.dygraph, spec[0])(**spec[1]) if isinstance(spec, list) else spec
        opt = optimizer(config, net.parameters(), rate)
        weights, state = fluid.load_dygraph(prefix)
        net.set_dict(weights)
        opt.set_dict(state)
        rates = []
        for step in range(11, 21):
            total = None  # its gradient is exactly the recorded one
            for key, p in net.state_dict().items():
                g = fluid.dygraph.to_variable(replay["grad/%d/%s" % (step, key)])
                term = fluid.layers.reduce_sum(p * g)
                total = term if total is None else total + term
            total.backward()
            opt.minimize(total)
            net.clear_gradients()
            rates.append(float(opt._global_learning_rate().numpy()[0]))
            if config.get("epoch_every") and step % config["epoch_every"] == 0:
                rate.epoch()
        found = {"param/" + key: p.numpy() for key, p in net.state_dict().items()}
        found.update(
            {
                "acc/" + k: x.numpy()
                for k, x in opt.state_dict().items()
                if k not in ("LR_Scheduler", "global_step")
            }
        )
    np.savez(out, lr=np.array(rates), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
