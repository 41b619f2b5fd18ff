#!/usr/bin/env python3
# Python 3.7 runs this too, hence the older syntax.
# ruff: noqa: UP008
"""Record the programs of tests/ported_programs.py with the real Paddle.

    PADDLE3_PYTHON record_ported.py     # the programs of 2.x: ../golden/paddle3/ported.npz
    PADDLE18_PYTHON record_ported.py    # the programs of 1.x: ../golden/fluid18/ported.npz

Arrays: <program>/<parameter>, stacked over the steps, under the parameter's path in the net;
<program>/#loss and <program>/#rate, one number a step.
"""

import os
import sys
import warnings

import numpy as np
import paddle

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), HERE]
from ported_programs import PROGRAMS, batches_of, first_values  # noqa: E402

IS_FLUID = not hasattr(paddle, "optimizer")
if IS_FLUID:
    import paddle.fluid as fluid

    Layer, Linear = fluid.dygraph.Layer, fluid.dygraph.Linear
else:
    from record_scaler import patch

    patch(paddle)
    Layer, Linear = paddle.nn.Layer, paddle.nn.Linear


def mean_square(x):
    return fluid.layers.reduce_mean(x * x) if IS_FLUID else (x * x).mean()


class Mlp(Layer):
    def __init__(self):
        super(Mlp, self).__init__()
        self.fc0, self.fc1 = Linear(5, 6), Linear(6, 3)

    def forward(self, x):
        x = self.fc0(x)
        return self.fc1(fluid.layers.tanh(x) if IS_FLUID else paddle.tanh(x))

    def loss(self, x, y):
        if not IS_FLUID:
            x, y = paddle.to_tensor(x), paddle.to_tensor(y)
        return mean_square(self(x) - y)

    def loss_against(self, target, x, y):
        x, y = paddle.to_tensor(x), paddle.to_tensor(y)
        with paddle.no_grad():
            wanted = y + 0.5 * target(x)
        return mean_square(self(x) - wanted)


if not IS_FLUID:

    class Block(Layer):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = paddle.nn.LayerNorm(6), Linear(6, 6)

        def forward(self, x):
            return x + paddle.tanh(self.linear(self.norm(x)))

    class Encoder(Layer):
        def __init__(self):
            super().__init__()
            self.embed = paddle.nn.Embedding(12, 6)
            self.blocks = paddle.nn.LayerList([Block(), Block()])
            self.head = Linear(6, 3)

        def loss(self, ids, labels):
            x = self.embed(paddle.to_tensor(ids)).mean(1)
            for block in self.blocks:
                x = block(x)
            return paddle.nn.functional.cross_entropy(self.head(x), paddle.to_tensor(labels))


def record_program(name):
    kind, function = PROGRAMS[name]
    unique_name = fluid.unique_name if IS_FLUID else paddle.utils.unique_name
    found = {}

    def new_net():
        unique_name.switch()  # counters begin anew, as in a new process: a net that goes on needs its names
        net = Mlp() if kind == "mlp" else Encoder()
        first = first_values(kind)
        assert list(first) == [path for path, _ in net.named_parameters()]
        for path, p in net.named_parameters():
            p.set_value(first[path])
        return net

    def record(net, loss, rate):
        loss = loss if isinstance(loss, float) else loss.numpy()
        rows = dict({path: p.numpy() for path, p in net.named_parameters()}, **{"#loss": loss, "#rate": rate})
        for key, x in rows.items():
            found.setdefault(name + "/" + key, []).append(np.array(x).copy())

    function(fluid if IS_FLUID else paddle, new_net, batches_of(kind), record)
    return {
        k: np.array(v).reshape(-1).astype("float64") if "#" in k else np.array(v) for k, v in found.items()
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arrays = {}
    for name in PROGRAMS:
        if name.startswith("fluid_") == IS_FLUID and (len(sys.argv) < 2 or sys.argv[1] in name):
            arrays.update(record_program(name))
            print(name, arrays[name + "/#loss"].round(3))
    if len(sys.argv) < 2:
        folder = "fluid18" if IS_FLUID else "paddle3"
        np.savez_compressed(os.path.join(HERE, "..", "golden", folder, "ported.npz"), **arrays)
