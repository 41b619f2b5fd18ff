#!/usr/bin/env python3.7
"""Record what `fluid.layers.*_decay` and `linear_lr_warmup` of PaddlePaddle 1.8.5 return in dygraph.

    python record_decays_fluid18.py FILE.json

FILE.json receives a list of {"name", "args", "class", "rates"}: the rates of the first calls of what the
function returned, or {"name", "args", "raises"}. An argument {"name", "args"} is such a schedule itself.
"""

import json
import sys

import paddle.fluid as fluid

CALLS = 12
CASES = [
    ("noam_decay", [512, 3]),
    ("noam_decay", [64, 5, 2.0]),
    ("exponential_decay", [0.5, 3, 0.5]),
    ("exponential_decay", [0.5, 3, 0.5, True]),
    ("natural_exp_decay", [0.5, 3, 0.5]),
    ("natural_exp_decay", [0.5, 3, 0.5, True]),
    ("inverse_time_decay", [0.5, 3, 0.5]),
    ("inverse_time_decay", [0.5, 3, 0.5, True]),
    ("polynomial_decay", [0.5, 7]),
    ("polynomial_decay", [0.5, 4, 0.1, 2.0, True]),
    ("piecewise_decay", [[2, 5], [0.5, 0.25, 0.125]]),
    ("piecewise_decay", [[2, 5], [0.5, 0.25]]),
    ("piecewise_decay", [[2, 5], [0.5, 0.25, 0.125, 0.1]]),
    ("cosine_decay", [0.5, 2, 5]),
    ("linear_lr_warmup", [0.5, 4, 0.0, 0.5]),
    ("linear_lr_warmup", [0.5, 4, 0.25, 0.5]),
    ("linear_lr_warmup", [0.5, 4, 0.5, 0.1]),
    ("linear_lr_warmup", [{"name": "polynomial_decay", "args": [0.5, 9]}, 4, 0.0, 0.5]),
]


def made(value):
    if isinstance(value, dict):
        return getattr(fluid.layers, value["name"])(*map(made, value["args"]))
    return value


def record(name, args):
    case = {"name": name, "args": args}
    try:
        schedule = made(case)
        rates = [float(schedule().numpy()[0]) for _ in range(CALLS)]
    except Exception as e:
        return dict(case, raises=type(e).__name__)
    return dict(case, **{"class": type(schedule).__name__, "rates": rates})


with fluid.dygraph.guard(), open(sys.argv[1], "w") as f:
    json.dump([record(*case) for case in CASES], f, indent=1)
    f.write("\n")
