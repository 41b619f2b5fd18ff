"""Record trajectories and states of torch's optimizers (CPU).

Usage:  TORCH_PYTHON record_torch.py OUT.npz

Needs torch and numpy. For every case of CASES: <case>/<step>/<parameter> for steps 0, 10 and 20, and the
state after step 10, flat as <case>/state.<parameter>.<slot>. All cases have the gradients
grads/<step>/<parameter>.
"""

import json
import sys

import numpy as np
import torch

SHAPES = {"fc.weight": (2, 3), "fc.bias": (2,)}
CASES = {
    "adam": ("Adam", {"lr": 0.01}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "momentum": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "nesterov": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.95, "eps": 1e-8}),
    "rmsprop_momentum": (
        "RMSprop",
        {"lr": 0.01, "alpha": 0.95, "eps": 1e-8, "momentum": 0.9, "centered": True},
    ),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "sgd": ("SGD", {"lr": 0.01, "weight_decay": 0.1}),
    "dampening": ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "adagrad_lr_decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    "adagrad_initial": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "sgd_maximize": ("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.5, "maximize": True}),
    "adam_maximize": ("Adam", {"lr": 0.01, "weight_decay": 0.5, "maximize": True}),
    "adamw_maximize": ("AdamW", {"lr": 0.01, "weight_decay": 0.5, "maximize": True}),
    "adagrad_maximize": ("Adagrad", {"lr": 0.1, "weight_decay": 0.5, "maximize": True}),
    "adamax": ("Adamax", {"lr": 0.01, "weight_decay": 0.1}),
    "adadelta": ("Adadelta", {"weight_decay": 0.1}),
    "nadam": ("NAdam", {"betas": (0.8, 0.99)}),
    "radam": ("RAdam", {"lr": 0.01}),
    "rprop": ("Rprop", {"lr": 0.01}),
}

RATES = {
    "LambdaLR": {},
    "MultiplicativeLR": {},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
    "ConstantLR": {},
    "LinearLR": {"total_iters": 4},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 8, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "ReduceLROnPlateau": {"factor": 0.5, "patience": 1, "eps": 1e-6},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "mode": "exp_range", "gamma": 0.9},
    "OneCycleLR": {"max_lr": 0.5, "epochs": 3, "steps_per_epoch": 4},
}
LAMBDAS = {"LambdaLR": lambda epoch: 0.9**epoch, "MultiplicativeLR": lambda epoch: 0.8}
METRICS = [3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def rates(name, arguments):
    """The rate at the start and after each of ten epochs."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4, momentum=0.9)
    more = {"lr_lambda": LAMBDAS[name]} if name in LAMBDAS else {}
    if name in ("CyclicLR", "OneCycleLR"):
        more["cycle_momentum"] = False
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments, **more)
    yield optimizer.param_groups[0]["lr"]
    for metric in METRICS:
        optimizer.step()
        scheduler.step(*([metric] if name == "ReduceLROnPlateau" else []))
        yield optimizer.param_groups[0]["lr"]


def main(out):
    rng = np.random.default_rng(18)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    grads = [{n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()} for _ in range(20)]
    arrays = {f"grads/{i}/{n}": g for i, step in enumerate(grads) for n, g in step.items()}
    for case, (kind, arguments) in CASES.items():
        params = {n: torch.nn.Parameter(torch.tensor(p)) for n, p in start.items()}
        optimizer = getattr(torch.optim, kind)(params.values(), **arguments)
        for step in range(21):
            if step % 10 == 0:
                arrays |= {f"{case}/{step}/{n}": p.detach().numpy().copy() for n, p in params.items()}
            if step == 10:
                for i, slots in optimizer.state_dict()["state"].items():
                    for slot, x in slots.items():
                        if x is not None:
                            arrays[f"{case}/state.{list(params)[i]}.{slot}"] = x.numpy().copy()
            if step < 20:
                for n, p in params.items():
                    p.grad = torch.tensor(grads[step][n])
                optimizer.step()
    for name, more in RATES.items():
        arrays[f"rates/{name}"] = np.array(list(rates(name, more)))
    about = {"torch": torch.__version__, "cases": CASES, "rates": RATES, "metrics": METRICS}
    arrays["cases"] = np.array(json.dumps(about))
    np.savez_compressed(out, **arrays)


main(sys.argv[1])
