#!/usr/bin/env python3.7
# runs under Python 3.7, hence the older syntax
# ruff: noqa: B023, B905, E731, UP004, UP031
"""Record golden optimizer trajectories from PaddlePaddle 1.8.5 (paddle.fluid).

    python record_fluid18.py --out DIR [--seed 1] [--only SUBSTRING]

Every case injects fixed gradients: the loss is sum(param * g), so d loss / d param is
exactly g.  DIR receives manifest.json and one compressed .npz per case.  Array names:

  p0/<param>                     initial value
  g/<step>/<param>               dense gradient of that step (steps count from 1)
  g_rows/<step>/<param>          sparse gradient: row ids, unmerged, in order
  g_values/<step>/<param>        sparse gradient: one value row per id
  p/<step>/<param>               parameter after that step (record_steps only)
  lr/<step>                      current_step_lr() after that step; lr/0 is before step 1
  state/<step>/<accum>/<param>   accumulators at the last step
  ema|ema_applied|avg|slow|acc/<step>/...   wrapper state, see each case's notes
"""

import argparse
import json
import logging
import os
import warnings
import zlib

import numpy as np
import paddle.fluid as fluid

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
fo = fluid.optimizer
ORACLE = "fluid-1.8.5"
SHORT = [1, 2, 3, 5, 10, 15, 20]
LONG = [1, 2, 5, 10, 20, 50, 100, 200, 300]


# ------------------------------------------------------------------ case table
def param(
    name,
    shape,
    dtype="float32",
    lr=1.0,
    reg=None,
    init="normal",
    grad="normal",
    scale=1.0,
    trainable=True,
    sparse=False,
):
    """sparse: False, True (ids in any order), "sorted", or "last" (the last row is among them)"""
    return dict(
        name=name,
        shape=list(shape),
        dtype=dtype,
        learning_rate=lr,
        regularizer=reg,
        stop_gradient=not trainable,
        init=init,
        grad=grad,
        grad_scale=scale,
        sparse=sparse,
    )


def reg(kind, coeff):
    return {"type": kind + "DecayRegularizer", "coeff": coeff}


def clip(kind, **args):
    return {"type": "GradientClipBy" + kind, "args": args}


class Table(object):
    """Builds the list of cases."""

    def __init__(self):
        self.cases = []

    def params(self, dtype="float32", n=3, **kw):
        shapes = [[4, 3], [7], [1], [2, 3, 2]]
        return [param(name, s, dtype, **kw) for name, s in zip("wbst", shapes[:n])]

    def add(self, id, cls, kwargs=None, params=None, steps=20, **kw):
        case = dict(
            id=id,
            oracle=ORACLE,
            **{"class": cls},
            kwargs=kwargs or {},
            grad_clip=None,
            regularization=None,
            params=params or self.params(),
            steps=steps,
            record_steps=LONG if steps == 300 else [s for s in SHORT if s <= steps],
            file=id + ".npz",
            mode="dygraph",
            lr_schedule=None,
            restore_at=None,
            exclude_from_weight_decay=None,
            wrapper=None,
            quirk=None,
            notes="",
        )
        case.update(kw)
        self.cases.append(case)

    # ---- the same battery for every plain optimizer
    def battery(self, tag, cls, base, hyper, lr_max=None, f64=True, cliparg=True):
        P = self.params
        self.add(tag + "-base", cls, base, P(n=4), notes="documented defaults")
        self.add(tag + "-hyper", cls, hyper, P(n=4), notes="non-default hyper-parameters")
        self.add(tag + "-long", cls, hyper, [param("w", [3])], steps=300)
        if f64:
            self.add(tag + "-f64", cls, hyper, P("float64", n=2))
        self.add(
            tag + "-zeros",
            cls,
            hyper,
            [
                param("zp", [3], init="zeros"),
                param("zg", [2, 2], grad="zeros"),
                param("zz", [2], init="zeros", grad="zeros"),
                param("mix", [3], grad="sparse_steps"),
                param("huge", [2], scale=1e4),
                param("tiny", [2], scale=1e-6),
            ],
            notes="zero parameters, zero gradients, gradients zero on some steps, extreme scales",
        )
        if not cliparg:
            return
        self.add(
            tag + "-clipreg",
            cls,
            hyper,
            [
                param("w", [4, 3], lr=0.5),
                param("b", [7], reg=reg("L1", 0.02)),
                param("s", [1], lr=2.0, reg=reg("L2", 0.3)),
                param("f", [2], trainable=False),
            ],
            grad_clip=clip("GlobalNorm", clip_norm=1.5),
            regularization=reg("L2", 0.1),
            notes="clip, then decay (a param-level regularizer replaces the optimizer's), "
            "then update; per-param lr multiplier; f is frozen",
        )
        sched = {"type": "PiecewiseDecay", "args": [[4, 9, 13], [0.1, 0.05, 0.02, 0.01], 0]}
        kw = dict(hyper)
        kw.pop("learning_rate", None)
        self.add(
            tag + "-restore",
            cls,
            kw,
            self.params(n=2),
            lr_schedule=sched,
            restore_at=10,
            notes="after step 10 a new optimizer over equal parameters gets set_dict()",
        )


def build_table():
    t = Table()
    add = t.add
    dense = [
        ("sgd", "SGDOptimizer", {"learning_rate": 0.1}, {"learning_rate": 0.01}),
        (
            "momentum",
            "MomentumOptimizer",
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.02, "momentum": 0.8},
        ),
        (
            "nesterov",
            "MomentumOptimizer",
            {"learning_rate": 0.1, "momentum": 0.9, "use_nesterov": True},
            {"learning_rate": 0.02, "momentum": 0.8, "use_nesterov": True},
        ),
        (
            "lars",
            "LarsMomentumOptimizer",
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.5, "momentum": 0.8, "lars_coeff": 0.02, "lars_weight_decay": 0.01},
        ),
        (
            "adagrad",
            "AdagradOptimizer",
            {"learning_rate": 0.1},
            {"learning_rate": 0.3, "epsilon": 1e-3, "initial_accumulator_value": 0.1},
        ),
        ("adam", "AdamOptimizer", {}, {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}),
        (
            "adamax",
            "AdamaxOptimizer",
            {},
            {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-2},
        ),
        (
            "decayed_adagrad",
            "DecayedAdagradOptimizer",
            {"learning_rate": 0.1},
            {"learning_rate": 0.05, "decay": 0.8, "epsilon": 1e-3},
        ),
        (
            "adadelta",
            "AdadeltaOptimizer",
            {"learning_rate": 0.1},
            {"learning_rate": 0.3, "epsilon": 1e-3, "rho": 0.9},
        ),
        (
            "rmsprop",
            "RMSPropOptimizer",
            {"learning_rate": 0.1},
            {"learning_rate": 0.05, "rho": 0.8, "epsilon": 1e-2},
        ),
        (
            "rmsprop_mom",
            "RMSPropOptimizer",
            {"learning_rate": 0.1, "momentum": 0.9},
            {"learning_rate": 0.05, "rho": 0.8, "momentum": 0.5},
        ),
        (
            "rmsprop_centered",
            "RMSPropOptimizer",
            {"learning_rate": 0.1, "centered": True, "epsilon": 1e-4},
            {"learning_rate": 0.05, "rho": 0.8, "momentum": 0.5, "centered": True, "epsilon": 1e-2},
        ),
        ("ftrl", "FtrlOptimizer", {"learning_rate": 0.1}, {"learning_rate": 0.2, "l1": 0.3, "l2": 0.3}),
        (
            "ftrl_power",
            "FtrlOptimizer",
            {"learning_rate": 0.1, "lr_power": -0.8},
            {"learning_rate": 0.2, "l1": 0.2, "l2": 0.2, "lr_power": -0.6},
        ),
        (
            "lamb",
            "LambOptimizer",
            {},
            {"learning_rate": 0.05, "lamb_weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3},
        ),
    ]
    for tag, cls, base, hyper in dense:
        first = len(t.cases)
        t.battery(tag, cls, base, hyper, f64=tag.split("_")[0] not in ("decayed", "rmsprop", "ftrl"))
        if tag == "adadelta":
            for case in t.cases[first:]:
                case["quirk"] = "step_uses_new_update_average"
    t.battery(
        "dpsgd",
        "DpsgdOptimizer",
        {"learning_rate": 0.1, "sigma": 0.0, "batch_size": 1.0},
        {"learning_rate": 0.2, "clip": 1.5, "sigma": 0.0, "batch_size": 16.0},
        cliparg=False,
    )

    for tag, lr_power in (("ftrl-l2", -0.5), ("ftrl-l2-power", -0.7)):
        add(
            tag,
            "FtrlOptimizer",
            {"learning_rate": 0.2, "l1": 0.1, "l2": 0.7, "lr_power": lr_power},
            mode="dygraph",
            ftrl_pass_l2=True,
            notes="kernel driven with the l2 the caller asked for (documented behaviour)",
        )
    add(
        "ftrl-stock-l2-ignored",
        "FtrlOptimizer",
        {"learning_rate": 0.2, "l1": 0.1, "l2": 0.7},
        quirk="l2_is_l1",
        notes="the stock 1.8.5 class hands l1 to the kernel as l2; do not copy",
    )
    for tag, kw in (("", {}), ("-hyper", {"epsilon": 1e-3, "rho": 0.9})):
        add(
            "adadelta-doc" + tag,
            "AdadeltaOptimizer",
            dict(kw, learning_rate=0.1),
            adadelta_out_of_place=True,
            notes="kernel driven out of place, which yields the documented formula",
        )
    add(
        "lamb-exclude",
        "LambOptimizer",
        {"learning_rate": 0.02, "lamb_weight_decay": 0.2},
        t.params(n=4),
        exclude_from_weight_decay=["b", "t"],
    )
    add(
        "named",
        "AdamOptimizer",
        {"learning_rate": 0.01, "name": "opt"},
        t.params(n=2),
        notes="accumulator names carry the optimizer name as a prefix",
    )

    # ---- clip kinds and regularizers alone, on SGD
    lr = {"learning_rate": 0.1}
    clips = [
        ("value", clip("Value", max=0.4), {}),
        ("value-asym", clip("Value", max=0.9, min=-0.2), {}),
        ("norm", clip("Norm", clip_norm=1.2), {}),
        ("norm-inactive", clip("Norm", clip_norm=1e3), {}),
        ("gnorm", clip("GlobalNorm", clip_norm=2.0), {}),
        ("gnorm-inactive", clip("GlobalNorm", clip_norm=1e3), {}),
        ("gnorm-zero", clip("GlobalNorm", clip_norm=1.0), {"grad": "zeros"}),
        ("norm-zero", clip("Norm", clip_norm=1.0), {"grad": "zeros"}),
    ]
    for tag, c, kw in clips:
        add(
            "clip-" + tag,
            "SGDOptimizer",
            lr,
            t.params(n=3, **kw),
            steps=5,
            grad_clip=c,
            quirk="nan_on_zero_norm" if tag == "norm-zero" else None,
        )
    add(
        "clip-need",
        "SGDOptimizer",
        lr,
        t.params(n=3),
        steps=5,
        grad_clip=clip("GlobalNorm", clip_norm=0.5),
        need_clip=["w", "s"],
        notes="need_clip(p) is true only for the listed names; others neither count nor shrink",
    )
    add("clip-value-f64", "SGDOptimizer", lr, t.params("float64"), steps=5, grad_clip=clips[0][1])
    for kind in ("L1", "L2"):
        add(
            "reg-" + kind,
            "MomentumOptimizer",
            dict(lr, momentum=0.9),
            [
                param("w", [4, 3]),
                param("z", [2], init="zeros"),
                param("own", [3], reg=reg("L2" if kind == "L1" else "L1", 0.2)),
            ],
            regularization=reg(kind, 0.05),
        )

    # ---- sparse (SelectedRows) gradients
    rows, dim = (6, 3)

    def sparse(tag, cls, kw, ids=True, dense=True, **extra):
        ps = [param("emb", [rows, dim], sparse=ids)] + ([param("w", [3])] if dense else [])
        extra.setdefault("notes", "emb gets row-sparse gradients with repeated ids")
        add("sparse-" + tag, cls, kw, ps, **extra)

    mom = {"learning_rate": 0.1, "momentum": 0.9}
    rms = {"learning_rate": 0.1, "momentum": 0.5, "epsilon": 1e-2}
    sparse("sgd", "SGDOptimizer", {"learning_rate": 0.1})
    sparse("adagrad", "AdagradOptimizer", {"learning_rate": 0.1, "initial_accumulator_value": 0.1})
    sparse("lamb", "LambOptimizer", {"learning_rate": 0.05})
    sparse("momentum", "MomentumOptimizer", mom, "sorted")
    sparse("nesterov", "MomentumOptimizer", dict(mom, use_nesterov=True), "sorted")
    sparse("rmsprop", "RMSPropOptimizer", rms, "sorted")
    sparse("rmsprop-centered", "RMSPropOptimizer", dict(rms, centered=True), "sorted")
    for tag, cls, kw in (("momentum", "MomentumOptimizer", mom), ("rmsprop", "RMSPropOptimizer", rms)):
        sparse(
            tag + "-unsorted",
            cls,
            kw,
            quirk="unsorted_rows_lost",
            notes="1.8.5 looks rows up by bisection, so unsorted distinct ids lose rows",
        )
    for tag, lazy, ids in (("", False, "last"), ("-lazy", True, True)):
        # (the non-lazy kernel reads past the row list unless the last row is present)
        kw = {"learning_rate": 0.05, "lazy_mode": lazy}
        sparse(
            "adam%s-stock" % tag,
            "AdamOptimizer",
            kw,
            ids,
            quirk="beta_pow_one_ahead",
            notes="the 1.8.5 CPU kernel advances the beta powers before a sparse update uses "
            "them; dense parameters are not affected",
        )
        sparse(
            "adam" + tag,
            "AdamOptimizer",
            kw,
            ids,
            pow_one=True,
            notes="emb's beta powers start at 1, which cancels the stock kernel's advance: the "
            "trajectory is the documented one (the beta powers of emb end one behind)",
        )
    kw = {"learning_rate": 0.05, "lazy_mode": True}
    sparse("adam-lazy-long", "AdamOptimizer", kw, dense=False, steps=300, pow_one=True)
    sparse(
        "adam-lazy-l2",
        "AdamOptimizer",
        kw,
        mode="static",
        regularization=reg("L2", 0.1),
        notes="decay turns the sparse gradient dense, so lazy_mode has no effect",
    )
    for tag, c in (
        ("gnorm", clip("GlobalNorm", clip_norm=1.0)),
        ("norm", clip("Norm", clip_norm=1.0)),
        ("value", clip("Value", max=0.5)),
    ):
        sparse(
            "adam-lazy-" + tag,
            "AdamOptimizer",
            kw,
            grad_clip=c,
            pow_one=True,
            notes="repeated rows are merged before they are clipped",
        )

    # ---- learning-rate schedules (SGD on one parameter)
    def schedule(tag, kind, args, steps=24, **kw):
        add(
            "lr-" + tag,
            "SGDOptimizer",
            {},
            [param("w", [2])],
            steps=steps,
            record_steps=list(range(1, steps + 1)),
            lr_schedule={"type": kind, "args": args},
            **kw,
        )

    schedule("noam", "NoamDecay", [16, 8])
    schedule("noam-lr", "NoamDecay", [16, 8, 1, 1, "float32", 2.0])
    schedule("piecewise", "PiecewiseDecay", [[2, 4, 6, 8], [0.2, 0.4, 0.6, 0.8, 1.0], 0])
    for tag, kind in (
        ("natural", "NaturalExpDecay"),
        ("exp", "ExponentialDecay"),
        ("inverse", "InverseTimeDecay"),
    ):
        for stair in (False, True):
            schedule(tag + ("-stair" if stair else ""), kind, [0.1, 5, 0.5, stair])
    schedule("poly", "PolynomialDecay", [0.1, 10, 0.01, 2.0])
    schedule("poly-cycle", "PolynomialDecay", [0.1, 5, 0.01, 1.5, True])
    schedule("cosine", "CosineDecay", [0.1, 3, 8])
    schedule(
        "warmup",
        "LinearLrWarmup",
        [0.1, 6, 0.02, 0.1],
        quirk="start_lr_ignored",
        notes="1.8.5 leaves start_lr out of the ramp; the documented ramp adds it",
    )
    schedule("warmup-zero", "LinearLrWarmup", [0.1, 6, 0.0, 0.1])
    schedule(
        "warmup-noam",
        "LinearLrWarmup",
        [{"type": "NoamDecay", "args": [16, 8]}, 6, 0.0, 0.1],
        notes="the wrapped schedule advances on every evaluation, also during warm-up",
    )
    schedule("step", "StepDecay", [0.5, 2], epoch_every=3)
    schedule("multistep", "MultiStepDecay", [0.5, [2, 5], 0.1], epoch_every=3)
    schedule("lambda", "LambdaDecay", [0.5, "0.95 ** e"], epoch_every=3)
    schedule(
        "plateau", "ReduceLROnPlateau", [1.0], sched_kwargs=dict(decay_rate=0.5, patience=2), plateau=True
    )
    schedule(
        "plateau-max",
        "ReduceLROnPlateau",
        [1.0],
        sched_kwargs=dict(
            mode="max",
            decay_rate=0.5,
            patience=1,
            threshold=0.05,
            threshold_mode="abs",
            cooldown=2,
            min_lr=0.2,
        ),
        plateau=True,
    )

    # ---- gradients that stay unset, or are not cleared
    add(
        "grad-missing",
        "AdamOptimizer",
        {"learning_rate": 0.1},
        t.params(n=3),
        steps=6,
        record_steps=[1, 2, 3, 4, 5, 6],
        absent={"b": [1, 2, 3, 4, 5, 6], "s": [1, 2, 5]},
        notes="b is never in the loss: untouched, no state.  s is absent on steps 1, 2 and 5: "
        "untouched before its first gradient, later stepped with a zero gradient",
    )
    add(
        "grad-not-cleared",
        "SGDOptimizer",
        lr,
        t.params(n=2),
        steps=4,
        record_steps=[1, 2, 3, 4],
        clear=False,
        notes="without clear_gradients() a new backward() replaces the old gradient",
    )

    # ---- wrappers (static graph)
    sgd = {"learning_rate": 0.1}
    mom = {"learning_rate": 0.05, "momentum": 0.9}
    every = list(range(1, 21))

    def wrapped(id, cls, kwargs, wrapper, steps=20, **kw):
        add(
            id,
            cls,
            kwargs,
            kw.pop("params", t.params(n=2)),
            steps=steps,
            mode="static",
            wrapper=wrapper,
            **dict(dict(record_steps=every[:steps]), **kw),
        )

    E = "ExponentialMovingAverage"
    wrapped("ema-base", "SGDOptimizer", sgd, {"type": E, "args": {"decay": 0.9}})
    wrapped("ema-default", "MomentumOptimizer", mom, {"type": E, "args": {}})
    wrapped(
        "ema-thres",
        "SGDOptimizer",
        sgd,
        {"type": E, "args": {"decay": 0.6}, "thres_steps": True},
        notes="thres_steps is a counter that reads t-1 during step t",
    )
    wrapped(
        "ema-apply-twice",
        "SGDOptimizer",
        sgd,
        {"type": E, "args": {"decay": 0.9}},
        apply_at=[5, 12],
        quirk="apply_overwrites_ema",
        notes="each apply() divides the stored average in place; do not copy",
    )
    wrapped(
        "ema-long",
        "SGDOptimizer",
        sgd,
        {"type": E, "args": {"decay": 0.99}},
        steps=300,
        params=[param("w", [3])],
        record_steps=LONG,
    )
    M = "ModelAverage"
    for tag, args in (
        ("small", [0.5, 2, 6]),
        ("rate", [0.3, 1, 100]),
        ("fixed", [1.0, 4, 4]),
        ("default", [0.15]),
    ):
        wrapped(
            "modelavg-" + tag,
            "SGDOptimizer",
            sgd,
            {
                "type": M,
                "args": dict(zip(("average_window_rate", "min_average_window", "max_average_window"), args)),
            },
        )
    wrapped(
        "modelavg-16384",
        "SGDOptimizer",
        {"learning_rate": 1e-4},
        {
            "type": M,
            "args": dict(average_window_rate=1.0, min_average_window=20000, max_average_window=20000),
        },
        steps=16390,
        params=[param("w", [2])],
        grad_constant=True,
        record_steps=[1, 16383, 16384, 16385, 16390],
        notes="g/1/w is the gradient of every step; the partial sum moves at 16384 updates",
    )
    L = "LookaheadOptimizer"
    wrapped("lookahead-base", "SGDOptimizer", sgd, {"type": L, "args": {}})
    wrapped("lookahead-mom", "MomentumOptimizer", mom, {"type": L, "args": {"alpha": 0.8, "k": 3}})
    wrapped(
        "lookahead-adam-k1",
        "AdamOptimizer",
        {"learning_rate": 0.05},
        {"type": L, "args": {"alpha": 0.25, "k": 1}},
    )
    wrapped(
        "lookahead-long",
        "AdamOptimizer",
        {"learning_rate": 0.01},
        {"type": L, "args": {}},
        steps=300,
        params=[param("w", [3])],
        record_steps=LONG,
    )
    return t.cases


# ------------------------------------------------------------------ inputs
def initial(p, rng):
    if p["init"] == "zeros":
        return np.zeros(p["shape"], p["dtype"])
    return rng.standard_normal(p["shape"]).astype(p["dtype"])


def gradients(case, rng):
    """{step: {param: array, or (rows, values), or None when absent}}"""
    out = {}
    for step in range(1, case["steps"] + 1):
        if case.get("grad_constant") and step > 1:
            out[step] = out[1]
            continue
        now = out[step] = {}
        for p in case["params"]:
            if p["sparse"]:
                ids = rng.integers(0, p["shape"][0], size=rng.integers(1, 5)).astype("int64")
                if p["sparse"] == "sorted":
                    ids.sort()
                elif p["sparse"] == "last":
                    ids[rng.integers(len(ids))] = p["shape"][0] - 1
                now[p["name"]] = (ids, rng.standard_normal((len(ids), p["shape"][1])).astype(p["dtype"]))
                continue
            g = (rng.standard_normal(p["shape"]) * p["grad_scale"]).astype(p["dtype"])
            if p["grad"] == "zeros" or (p["grad"] == "sparse_steps" and step % 3 != 1):
                g = np.zeros_like(g)
            if step in (case.get("absent") or {}).get(p["name"], ()):
                g = None
            now[p["name"]] = g
    return out


def put_gradients(arrays, grads, case):
    for step, now in grads.items():
        if case.get("grad_constant") and step > 1:
            break
        for name, g in now.items():
            if isinstance(g, tuple):
                arrays["g_rows/%d/%s" % (step, name)], arrays["g_values/%d/%s" % (step, name)] = g
            elif g is not None:
                arrays["g/%d/%s" % (step, name)] = g


# ------------------------------------------------------------------ building
def make_reg(spec):
    return spec and getattr(fluid.regularizer, spec["type"])(spec["coeff"])


def make_attr(p, value):
    value = value.astype("float32")  # the initializer takes no float64; dygraph sets it afterwards
    return fluid.ParamAttr(
        name=p["name"],
        learning_rate=p["learning_rate"],
        regularizer=make_reg(p["regularizer"]),
        trainable=not p["stop_gradient"],
        initializer=fluid.initializer.NumpyArrayInitializer(value),
    )


def make_schedule(spec, **kw):
    args = [make_schedule(a) if isinstance(a, dict) else a for a in spec["args"]]
    if spec["type"] == "LambdaDecay":
        text = args[1]
        args[1] = lambda e: eval(text, {"e": e})
    return getattr(fluid.dygraph, spec["type"])(*args, **kw)


class FtrlWithL2(fo.FtrlOptimizer):
    """Hands the kernel the requested l2 instead of l1."""

    def _append_optimize_op(self, block, pg):
        p = pg[0]
        sq, lin = (self._get_accumulator(n, p) for n in ("squared", "linear"))
        return block.append_op(
            type="ftrl",
            inputs={
                "Param": p,
                "Grad": pg[1],
                "SquaredAccumulator": sq,
                "LinearAccumulator": lin,
                "LearningRate": self._create_param_lr(pg),
            },
            outputs={"ParamOut": p, "SquaredAccumOut": sq, "LinearAccumOut": lin},
            attrs={"l1": self._l1, "l2": self._l2, "lr_power": self._lr_power},
            stop_gradient=True,
        )


class AdadeltaOutOfPlace(fo.AdadeltaOptimizer):
    """Keeps the kernel's outputs apart from its inputs until it is done."""

    def _append_optimize_op(self, block, pg):
        accs = [self._get_accumulator("_avg_squared_" + n, pg[0]) for n in ("grad", "update")]
        old = [pg[0]] + accs
        new = [fluid.dygraph.to_variable(v.numpy()) for v in old]
        names = ("Param", "AvgSquaredGrad", "AvgSquaredUpdate")
        block.append_op(
            type="adadelta",
            inputs=dict(zip(names, old), Grad=pg[1]),
            outputs=dict(zip([n + "Out" for n in names], new)),
            attrs={"epsilon": self._epsilon, "rho": self._rho},
            stop_gradient=True,
        )
        for o, n in zip(old, new):
            o.set_value(n.numpy())


def make_optimizer(case, plist, lr=None):
    kw = dict(case["kwargs"])
    if lr is not None:
        kw["learning_rate"] = lr
    if case["grad_clip"]:
        cargs = dict(case["grad_clip"]["args"])
        if case.get("need_clip"):
            cargs["need_clip"] = lambda p: p.name in case["need_clip"]
        kw["grad_clip"] = getattr(fluid.clip, case["grad_clip"]["type"])(**cargs)
    if case["regularization"]:
        kw["regularization"] = make_reg(case["regularization"])
    if case["exclude_from_weight_decay"]:
        kw["exclude_from_weight_decay_fn"] = lambda p: p.name in case["exclude_from_weight_decay"]
    if plist is not None:
        kw["parameter_list"] = plist
    cls = getattr(fo, case["class"])
    if case.get("ftrl_pass_l2"):
        cls = FtrlWithL2
    if case.get("adadelta_out_of_place"):
        cls = AdadeltaOutOfPlace
    return cls(**kw)


def start_powers_at_one(case, opt):
    """Adam only: preload zero moments, and beta powers of 1 for the sparse parameters."""
    holder = {}
    for p in case["params"]:
        for n in ("moment1", "moment2"):
            holder["%s_%s_0" % (p["name"], n)] = np.zeros(p["shape"], p["dtype"])
        for n, beta in (("beta1", opt._beta1), ("beta2", opt._beta2)):
            value = np.array([1.0 if p["sparse"] else beta], p["dtype"])
            holder["%s_%s_pow_acc_0" % (p["name"], n)] = value
    opt.set_dict(holder)


# ------------------------------------------------------------------ dygraph
def dygraph_params(case, values):
    out, embs = {}, {}
    for p in case["params"]:
        attr = make_attr(p, values[p["name"]])
        if p["dtype"] == "float64":
            attr.initializer = None
        if p["sparse"]:
            embs[p["name"]] = fluid.dygraph.Embedding(
                p["shape"], is_sparse=True, param_attr=attr, dtype=p["dtype"]
            )
            out[p["name"]] = embs[p["name"]].weight
        else:
            out[p["name"]] = fluid.layers.create_parameter(p["shape"], p["dtype"], attr=attr)
        out[p["name"]].set_value(values[p["name"]])
    return out, embs


def portable(sd):
    return {k: (v.numpy() if hasattr(v, "numpy") else v) for k, v in sd.items()}


def run_dygraph(case, values, grads, arrays):
    with fluid.dygraph.guard(fluid.CPUPlace()):

        def build(vals):
            params, embs = dygraph_params(case, vals)
            sched = None
            if case["lr_schedule"]:
                sched = make_schedule(case["lr_schedule"], **case.get("sched_kwargs", {}))
            return params, embs, sched, make_optimizer(case, list(params.values()), sched)

        params, embs, sched, opt = build(values)
        if case.get("pow_one"):
            start_powers_at_one(case, opt)
        if sched is not None and not case.get("plateau") and case["id"] != "lr-warmup-noam":
            arrays["lr/0"] = np.float32(opt.current_step_lr())  # (would advance a wrapped schedule)
        for step in range(1, case["steps"] + 1):
            loss = fluid.dygraph.to_variable(np.zeros([1], case["params"][0]["dtype"]))
            for name, g in grads[step].items():
                if isinstance(g, tuple):
                    out = embs[name](fluid.dygraph.to_variable(g[0]))
                    term = out * fluid.dygraph.to_variable(g[1])
                elif g is not None:
                    term = params[name] * fluid.dygraph.to_variable(g)
                else:
                    continue
                loss = loss + fluid.layers.reduce_sum(term)
            loss.backward()
            opt.minimize(loss)
            if case.get("clear", True):
                opt.clear_gradients()
            if sched is not None:
                arrays["lr/%d" % step] = np.float32(opt.current_step_lr())
            if case.get("epoch_every") and step % case["epoch_every"] == 0:
                sched.epoch()
            if case.get("plateau"):
                value = np.float32(arrays["loss/%d" % step])
                sched.step(fluid.dygraph.to_variable(np.array([value])))
            if step in case["record_steps"]:
                for name, p in params.items():
                    arrays["p/%d/%s" % (step, name)] = p.numpy()
            if step == case["restore_at"]:
                saved = portable(opt.state_dict())
                case["state_dict_keys"] = sorted(saved)
                now = {n: p.numpy() for n, p in params.items()}
                fluid.unique_name.switch()  # accumulators must come out with the saved names
                params, embs, sched, opt = build(now)
                opt.set_dict(saved)
        sd = opt.state_dict()
        case["final_state_dict"] = {
            k: {"dtype": str(v.numpy().dtype), "shape": list(v.numpy().shape)}
            if hasattr(v, "numpy")
            else {kk: (float(vv) if vv is not None else None) for kk, vv in portable(v).items()}
            for k, v in sd.items()
        }
        for acc, per in opt._accumulators.items():
            for name, var in per.items():
                arrays["state/%d/%s/%s" % (case["steps"], acc, name)] = var.numpy()


# ------------------------------------------------------------------ static graph
def run_static(case, values, grads, arrays):
    main, start = fluid.Program(), fluid.Program()
    w, scope = case["wrapper"], fluid.Scope()
    with fluid.program_guard(main, start), fluid.scope_guard(scope):
        params, loss = {}, None
        for p in case["params"]:
            attr, n = make_attr(p, values[p["name"]]), p["name"]
            if p["sparse"]:
                ids = fluid.data(name="r_" + n, shape=[None, 1], dtype="int64")
                var = fluid.layers.embedding(ids, p["shape"], is_sparse=True, param_attr=attr)
                g = fluid.data(name="g_" + n, shape=[None, p["shape"][1]], dtype=p["dtype"])
            else:
                var = fluid.layers.create_parameter(p["shape"], p["dtype"], attr=attr)
                g = fluid.data(name="g_" + n, shape=p["shape"], dtype=p["dtype"])
            term = fluid.layers.reduce_sum(var * g)
            loss = term if loss is None else loss + term
            params[n] = var
        opt, avg = make_optimizer(case, None), None
        if w is None:
            opt.minimize(loss)
        elif w["type"] == "LookaheadOptimizer":
            fo.LookaheadOptimizer(opt, **w["args"]).minimize(loss)
        else:
            opt.minimize(loss)
            kw = dict(w["args"])
            if w.get("thres_steps"):
                kw["thres_steps"] = fluid.layers.learning_rate_scheduler._decay_step_counter()
            avg = getattr(fo, w["type"])(**kw)
            if w["type"] == "ExponentialMovingAverage":
                avg.update()
        exe = fluid.Executor(fluid.CPUPlace())
        exe.run(start)

        def read(name):
            return np.array(scope.find_var(name).get_tensor())

        def applied(prefix, step):
            before = {n: read(n) for n in params}
            with avg.apply(exe, need_restore=False):
                for n in params:
                    arrays["%s/%d/%s" % (prefix, step, n)] = read(n)
            avg.restore(exe)
            assert all(np.array_equal(before[n], read(n)) for n in params)

        for step in range(1, case["steps"] + 1):
            feed = {}
            for n, g in grads[step].items():
                if isinstance(g, tuple):
                    feed["r_" + n], feed["g_" + n] = g[0].reshape(-1, 1), g[1]
                else:
                    feed["g_" + n] = g
            exe.run(main, feed=feed, fetch_list=[])
            if step in case["record_steps"]:
                for n in params:
                    arrays["p/%d/%s" % (step, n)] = read(n)
                    if w is None:
                        continue
                    if w["type"] == "LookaheadOptimizer":
                        arrays["slow/%d/%s" % (step, n)] = read(n + "@SLOW")
                    elif w["type"] == "ExponentialMovingAverage":
                        arrays["ema/%d/%s" % (step, n)] = read(avg._ema_vars[n].name)
                    else:
                        for acc, per in avg._accumulators.items():
                            arrays["acc/%d/%s/%s" % (step, acc, n)] = read(per[n].name)
                if w and w["type"] == "ModelAverage":
                    applied("avg", step)
            if (
                w
                and w["type"] == "ExponentialMovingAverage"
                and step in (case.get("apply_at") or [case["steps"]])
            ):
                applied("ema_applied", step)
        for acc, per in opt._accumulators.items():
            for n, var in per.items():
                arrays["state/%d/%s/%s" % (case["steps"], acc, n)] = read(var.name)


# ------------------------------------------------------------------ errors
def record_errors():
    """What the real API raises on bad input: [{id, call, raises}]."""
    out, D = [], fluid.dygraph

    def attempt(id, call, fn, static=False):
        """Each probe gets its own tracer or program: a failed minimize() leaves its mark."""
        guard = fluid.program_guard(fluid.Program(), fluid.Program()) if static else D.guard(fluid.CPUPlace())
        raised = None
        with guard, fluid.unique_name.guard():
            try:
                fn()
            except BaseException as e:  # the type is the datum
                raised = type(e).__name__
        out.append({"id": id, "call": call, "mode": "static" if static else "dygraph", "raises": raised})

    def new_param():
        return fluid.layers.create_parameter([2], "float32", attr=fluid.ParamAttr(name="w"))

    def step(opt, p):
        loss = fluid.layers.reduce_sum(p)
        loss.backward()
        opt.minimize(loss)

    def construct(cls, *args, **kw):
        return lambda: getattr(fo, cls)(*args, parameter_list=[new_param()], **kw)

    def edited(change, lr=lambda: 0.1):
        """set_dict() with a state dict changed in place, on an optimizer that has stepped"""

        def run():
            p = new_param()
            opt = fo.AdamOptimizer(lr(), parameter_list=[p])
            step(opt, p)
            sd = portable(opt.state_dict())
            change(sd)
            opt.set_dict(sd)

        return run

    def fresh(holder):
        """set_dict() before the first step, then a step"""

        def run():
            p = new_param()
            opt = fo.AdamOptimizer(0.1, parameter_list=[p])
            opt.set_dict(holder)
            step(opt, p)

        return run

    def sparse_step(cls):
        def run():
            emb = D.Embedding([4, 2], is_sparse=True)
            args = (0.1, 0.9) if cls == "LarsMomentum" else (0.1,)
            opt = getattr(fo, cls)(*args, parameter_list=emb.parameters())
            step(opt, emb(D.to_variable(np.array([[1], [3]], "int64"))))

        return run

    plain = [
        "SGD",
        "Adam",
        "Adagrad",
        "Adamax",
        "DecayedAdagrad",
        "Adadelta",
        "RMSProp",
        "Ftrl",
        "Lamb",
        "Dpsgd",
    ]
    for cls in plain:
        attempt("lr-none-" + cls, cls + "(learning_rate=None)", construct(cls, None))
    for cls in ("Momentum", "LarsMomentum"):
        attempt("lr-none-" + cls, cls + "(None, 0.9)", construct(cls, None, 0.9))
        attempt("momentum-none-" + cls, cls + "(0.1, None)", construct(cls, 0.1, None))
    attempt("lr-int", "SGD(1)", construct("SGD", 1))
    attempt("lr-str", "SGD('0.1')", construct("SGD", "0.1"))
    attempt("lr-float32", "SGD(np.float32(0.1))", construct("SGD", np.float32(0.1)))
    attempt("lr-float64", "SGD(np.float64(0.1))", construct("SGD", np.float64(0.1)))
    attempt(
        "lr-tensor",
        "SGD(a dygraph variable)",
        lambda: construct("SGD", D.to_variable(np.array([0.1], "float32")))(),
    )
    attempt("no-params", "SGD(0.1) without parameter_list", lambda: fo.SGD(0.1))
    attempt("clip-type", "SGD(0.1, grad_clip=1.0)", construct("SGD", 0.1, grad_clip=1.0))
    for cls, key in (
        ("Adadelta", "rho"),
        ("Adadelta", "epsilon"),
        ("RMSProp", "rho"),
        ("RMSProp", "epsilon"),
        ("RMSProp", "momentum"),
        ("Adam", "beta1"),
        ("Adam", "beta2"),
        ("Adam", "epsilon"),
        ("Adagrad", "epsilon"),
        ("DecayedAdagrad", "decay"),
        ("Lamb", "lamb_weight_decay"),
        ("Dpsgd", "clip"),
    ):
        attempt(
            "none-%s-%s" % (cls, key), "%s(0.1, %s=None)" % (cls, key), construct(cls, 0.1, **{key: None})
        )
    attempt("loss-type", "minimize(1.0)", lambda: construct("SGD", 0.1)().minimize(1.0))
    attempt(
        "minimize-clip",
        "minimize(loss, grad_clip=...)",
        lambda: construct("SGD", 0.1)().minimize(
            D.to_variable(np.ones(1, "float32")), grad_clip=fluid.clip.GradientClipByNorm(1.0)
        ),
    )
    attempt("clip-negative", "GradientClipByValue(max=-1)", lambda: fluid.clip.GradientClipByValue(-1.0))
    attempt(
        "clip-need-type",
        "GradientClipByNorm(1.0, need_clip=3)",
        lambda: fluid.clip.GradientClipByNorm(1.0, need_clip=3),
    )

    key = "w_moment1_0"
    noam = lambda: D.NoamDecay(16, 8)
    attempt("sd-same", "set_dict(state_dict())", edited(lambda sd: None))
    attempt("sd-extra", "set_dict with an unused key", edited(lambda sd: sd.update(z=np.zeros(1))))
    attempt("sd-missing", "set_dict without one accumulator", edited(lambda sd: sd.pop(key)))
    attempt(
        "sd-shape", "set_dict with a wrong shape", edited(lambda sd: sd.update({key: np.zeros(1, "float32")}))
    )
    attempt(
        "sd-dtype", "set_dict with a wrong dtype", edited(lambda sd: sd.update({key: np.zeros(2, "float64")}))
    )
    attempt("sd-list", "set_dict with a list value", edited(lambda sd: sd.update({key: [0.0, 0.0]})))
    attempt(
        "sd-fresh-missing",
        "set_dict before step 1 without the needed keys, then minimize",
        fresh({"unrelated": np.zeros(1, "float32")}),
    )
    attempt("sd-fresh-empty", "set_dict({}) before step 1, then minimize", fresh({}))
    attempt(
        "sd-fresh-shape",
        "set_dict before step 1 with a wrong shape, then minimize",
        fresh({key: np.zeros(3, "float32")}),
    )
    attempt(
        "sd-no-sched",
        "schedule: set_dict without LR_Scheduler",
        edited(lambda sd: sd.pop("LR_Scheduler"), noam),
    )
    attempt(
        "sd-no-step", "schedule: set_dict without global_step", edited(lambda sd: sd.pop("global_step"), noam)
    )
    attempt(
        "sd-step-shape",
        "schedule: set_dict with global_step of shape [2]",
        edited(lambda sd: sd.update(global_step=np.zeros(2, "int32")), noam),
    )
    attempt(
        "sd-step-int",
        "schedule: set_dict with a python int as global_step",
        edited(lambda sd: sd.update(global_step=3), noam),
    )
    attempt(
        "sd-sched-key",
        "schedule: LR_Scheduler without step_num",
        edited(lambda sd: sd.update(LR_Scheduler={}), noam),
    )

    for name, arg in (
        ("ModelAverage", 0.15),
        ("ExponentialMovingAverage", 0.9),
        ("LookaheadOptimizer", None),
        ("RecomputeOptimizer", None),
        ("PipelineOptimizer", None),
    ):
        attempt("dygraph-" + name, name + "(...)", lambda: getattr(fo, name)(arg))
    attempt("dygraph-dgc", "DGCMomentumOptimizer(...)", lambda: fo.DGCMomentumOptimizer(0.1, 0.9, 0))
    for id, call, fn in (
        ("warmup-order", "LinearLrWarmup(0.1, 5, 0.2, 0.1)", lambda: D.LinearLrWarmup(0.1, 5, 0.2, 0.1)),
        ("warmup-type", "LinearLrWarmup('x', 5, 0.0, 0.1)", lambda: D.LinearLrWarmup("x", 5, 0.0, 0.1)),
        ("step-type", "StepDecay(0.1, 1.5)", lambda: D.StepDecay(0.1, 1.5)),
        ("step-rate", "StepDecay(0.1, 1, 1.0)", lambda: D.StepDecay(0.1, 1, 1.0)),
        ("step-lr-type", "StepDecay('x', 2)", lambda: D.StepDecay("x", 2)),
        ("step-lr-negative", "StepDecay(-0.1, 2)", lambda: D.StepDecay(-0.1, 2)),
        ("multi-order", "MultiStepDecay(0.1, [5, 2])", lambda: D.MultiStepDecay(0.1, [5, 2])),
        ("multi-type", "MultiStepDecay(0.1, 5)", lambda: D.MultiStepDecay(0.1, 5)),
        ("lambda-type", "LambdaDecay(0.1, 3)", lambda: D.LambdaDecay(0.1, 3)),
        ("plateau-mode", "ReduceLROnPlateau(0.1, mode='x')", lambda: D.ReduceLROnPlateau(0.1, mode="x")),
        (
            "plateau-rate",
            "ReduceLROnPlateau(0.1, decay_rate=1.0)",
            lambda: D.ReduceLROnPlateau(0.1, decay_rate=1.0),
        ),
        (
            "plateau-threshold",
            "ReduceLROnPlateau(0.1, threshold_mode='x')",
            lambda: D.ReduceLROnPlateau(0.1, threshold_mode="x"),
        ),
        ("plateau-lr", "ReduceLROnPlateau('x')", lambda: D.ReduceLROnPlateau("x")),
        ("plateau-loss", "ReduceLROnPlateau(0.1).step(0.5)", lambda: D.ReduceLROnPlateau(0.1).step(0.5)),
        (
            "plateau-early-lr",
            "current_step_lr() under ReduceLROnPlateau before step 1",
            lambda: fo.SGD(D.ReduceLROnPlateau(0.1), parameter_list=[new_param()]).current_step_lr(),
        ),
    ):
        attempt(id, call, fn)
    for cls in ("Adamax", "Adadelta", "DecayedAdagrad", "LarsMomentum", "Dpsgd", "Ftrl"):
        attempt("sparse-" + cls, cls + " with a row-sparse gradient", sparse_step(cls))

    sgd = lambda: fo.SGD(0.1)
    vector = lambda: new_param() * 1.0
    total = lambda: fluid.layers.reduce_sum(new_param())
    for id, call, fn in (
        ("static-state-dict", "state_dict()", lambda: sgd().state_dict()),
        ("static-set-dict", "set_dict({})", lambda: sgd().set_dict({})),
        ("static-lr", "current_step_lr()", lambda: sgd().current_step_lr()),
        ("static-clear", "clear_gradients()", lambda: sgd().clear_gradients()),
        ("static-lr-int", "SGD(1)", lambda: fo.SGD(1)),
        ("lookahead-none", "Lookahead(None)", lambda: fo.LookaheadOptimizer(None)),
        ("lookahead-alpha", "Lookahead(sgd, alpha=1.5)", lambda: fo.LookaheadOptimizer(sgd(), alpha=1.5)),
        ("lookahead-k", "Lookahead(sgd, k=0)", lambda: fo.LookaheadOptimizer(sgd(), k=0)),
        ("lookahead-k-float", "Lookahead(sgd, k=2.0)", lambda: fo.LookaheadOptimizer(sgd(), k=2.0)),
        ("recompute-load", "RecomputeOptimizer(sgd).load({})", lambda: fo.RecomputeOptimizer(sgd()).load({})),
        (
            "recompute-unset",
            "RecomputeOptimizer.minimize without checkpoints",
            lambda: fo.RecomputeOptimizer(sgd()).minimize(total()),
        ),
        ("loss-shape", "minimize(loss of shape [2])", lambda: sgd().minimize(vector())),
        (
            "minimize-twice",
            "the same Momentum minimizes the same loss twice",
            lambda: [o.minimize(l) for o, l in [(fo.Momentum(0.1, 0.9), total())] * 2],
        ),
        ("dgc-cpu", "DGCMomentumOptimizer(...) on a CPU build", lambda: fo.DGCMomentumOptimizer(0.1, 0.9, 0)),
    ):
        attempt(id, call, fn, static=True)
    return out


# ------------------------------------------------------------------ main
def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--only", default="")
    args = ap.parse_args()
    if not os.path.isdir(args.out):
        os.makedirs(args.out)
    cases = [c for c in build_table() if args.only in c["id"]]
    for case in cases:
        rng = np.random.default_rng([args.seed, zlib.crc32(case["id"].encode())])
        values = {p["name"]: initial(p, rng) for p in case["params"]}
        grads = gradients(case, rng)
        arrays = {"p0/" + n: v for n, v in values.items()}
        put_gradients(arrays, grads, case)
        if case.get("plateau"):
            for step in range(1, case["steps"] + 1):
                arrays["loss/%d" % step] = np.float32(2.0 / (1 + min(step // 4, 2)) + 0.01 * (step % 3))
        with fluid.unique_name.guard():
            (run_static if case["mode"] == "static" else run_dygraph)(case, values, grads, arrays)
        np.savez_compressed(os.path.join(args.out, case["file"]), **arrays)
    manifest = {
        "oracle": ORACLE,
        "seed": args.seed,
        "variant": "public",
        "cases": cases,
        "errors": record_errors() if not args.only else [],
    }
    with open(os.path.join(args.out, "manifest.json"), "w") as f:
        json.dump(manifest, f, indent=1, sort_keys=True)
    print("%d cases" % len(cases))


if __name__ == "__main__":
    main()
