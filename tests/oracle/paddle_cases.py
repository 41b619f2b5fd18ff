# ruff: noqa: B905, E731
"""The list of cases that record_paddle3.py records: plain data, no Paddle import.

The numbers (hyperparameters, shapes, ...) live in paddle3-public.json beside this file.
"""

import json
import os

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paddle3-public.json")

STEPS = [1, 2, 3, 5, 10, 20]
LONG = [1, 2, 3, 5, 10, 20, 50, 100, 150, 200, 250, 300]


def param(
    name,
    shape,
    dtype="float32",
    init="normal",
    learning_rate=1.0,
    regularizer=None,
    need_clip=True,
    stop_gradient=False,
):
    return dict(
        name=name,
        shape=shape,
        dtype=dtype,
        init=init,
        learning_rate=learning_rate,
        regularizer=regularizer,
        need_clip=need_clip,
        stop_gradient=stop_gradient,
    )


def make(id, cls, kwargs, params, **over):
    case = dict(
        id=id,
        kwargs=kwargs,
        params=params,
        steps=20,
        record_steps=STEPS,
        profile="normal",
        grad_scale=1.0,
        grad_clip=None,
        weight_decay=None,
        param_groups=None,
        scheduler=None,
        name_rules={},
        missing={},
        events=[],
        inner=None,
        objective=None,
        allow_nonfinite=False,
        notes="",
    )
    case["class"] = cls
    case.update(over)
    return case


def l1(c):
    return {"type": "L1Decay", "coeff": c}


def l2(c):
    return {"type": "L2Decay", "coeff": c}


def clip(kind, v):
    return {
        "value": {"type": "ClipGradByValue", "args": v["value"]},
        "value2": {"type": "ClipGradByValue", "args": v["value2"]},
        "norm": {"type": "ClipGradByNorm", "args": {"clip_norm": v["norm"]}},
        "global": {"type": "ClipGradByGlobalNorm", "args": {"clip_norm": v["global"]}},
    }[kind]


def standard(cls, v):
    """The cases that every ordinary optimizer gets."""
    tag, sh, kw = cls.lower().replace("optimizer", ""), v["shapes"], v["base"][cls][0]
    P = lambda *names, **kws: [param(n, sh[n], **kws) for n in names]
    has_wd = cls not in ("AdamW", "Lamb", "Rprop")
    profile = "flip" if cls == "Rprop" else "normal"
    out = []

    def add(suffix, params, kwargs=None, **over):
        over.setdefault("profile", profile)
        over.setdefault("grad_scale", v["scale"])
        out.append(make(f"{tag}_{suffix}", cls, dict(kw if kwargs is None else kwargs), params, **over))

    add("basic", P("w", "b", "s", "k"))
    add("long", [param("w", v["long_shape"])], steps=300, record_steps=LONG)
    add("float64", P("w", "b", dtype="float64"))
    add(
        "zero_steps",
        P("w", "b") + [param("z", [3], init="zeros")],
        profile="zero_steps",
        notes="w[0] and b[0] never get a gradient, steps 6..9 are all zero; z starts at zero",
    )
    add("all_zero", P("b") + [param("z", [3], init="zeros")], profile="zeros")
    add("mixed", P("w"), profile="mixed")
    add("tiny", P("w"), profile="tiny")
    add("huge", P("w"), profile="huge")
    add(
        "missing",
        P("w", "b", "s") + [param("f", [2], stop_gradient=True)],
        missing=v["missing"],
        notes="grad is None on the listed steps (parameter and its state skipped); f never trains",
    )
    if cls == "LarsMomentumOptimizer" or has_wd or cls == "AdamW":
        add(
            "attrs",
            [
                param("w", sh["w"], regularizer=l1(v["param_l1"])),
                param("b", sh["b"], regularizer=l2(v["param_l2"])),
                param("s", sh["s"], learning_rate=v["param_lr"]),
                param("k", sh["k"], need_clip=False),
            ],
            grad_clip=clip("global", v["clip"]),
            weight_decay=v["decay"] if has_wd else None,
            notes="per-parameter regularizer beats weight_decay; k is left out of the clip and of its norm",
        )
    else:
        add(
            "attrs",
            [
                param("w", sh["w"]),
                param("s", sh["s"], learning_rate=v["param_lr"]),
                param("k", sh["k"], need_clip=False),
            ],
            grad_clip=clip("global", v["clip"]),
        )
    for kind in ("value", "value2", "norm", "global"):
        add(
            "clip_" + kind,
            P("w", "b"),
            grad_clip=clip(kind, v["clip"]),
            weight_decay=v["decay"] if has_wd and kind in ("value2", "global") else None,
        )
    if has_wd:
        add("wd_float", P("w", "b"), weight_decay=l2(v["decay"]) if cls.startswith("Lars") else v["decay"])
        add("wd_l2", P("w", "b"), weight_decay=l2(v["l1"]))
        add("wd_l1", P("w", "b") + [param("z", [3], init="zeros")], weight_decay=l1(v["l1"]))
    add("set_lr", P("w", "b"), events=[{"after_step": v["cut"], "op": "set_lr", "value": v["set_lr"]}])
    add(
        "set_scheduler",
        P("w", "b"),
        events=[{"after_step": v["cut"], "op": "set_lr_scheduler", "scheduler": v["sched2"]}],
        notes="scheduler.step() is called after every optimizer step once the scheduler is in place",
    )
    if cls != "Rprop":
        no_lr = {k: x for k, x in kw.items() if k != "learning_rate"}
        add(
            "scheduler",
            P("w", "b"),
            kwargs=no_lr,
            scheduler=v["sched"],
            notes="scheduler.step() after every optimizer step",
        )
        if not cls.startswith("Lars"):
            add(
                "restore_scheduler",
                P("w"),
                kwargs=no_lr,
                scheduler=v["sched"],
                events=[{"after_step": v["cut"], "op": "save_restore"}],
            )
    add(
        "restore",
        P("w", "b"),
        events=[{"after_step": v["cut"], "op": "save_restore"}],
        notes="state_dict -> fresh optimizer -> set_state_dict; must not change the trajectory",
    )
    if not cls.startswith("Lars"):
        groups = [{"params": ["w"]}, {"params": ["b", "s"], "learning_rate": v["group_lr"]}]
        if has_wd:
            groups[1]["weight_decay"] = v["group_decay"]
            groups.append({"params": ["k"], "weight_decay": l1(v["l1"])})
        elif cls == "AdamW":
            groups[1]["weight_decay"] = v["group_decay"]
            groups.append(dict(v["adamw_group"], params=["k"]))
        else:
            groups.append({"params": ["k"]})
        add(
            "groups",
            P("w", "b", "s", "k"),
            param_groups=groups,
            grad_clip=clip("global", v["clip"]),
            weight_decay=v["decay"] if has_wd else None,
            notes="global-norm clip works inside each group; group learning_rate multiplies the base one",
        )
    for suffix, kwargs in v["extra"].get(cls, []):
        add(suffix, P("w", "b", "s") + [param("z", [3], init="zeros")], kwargs=kwargs)
    if cls in ("SGD", "Rprop"):
        for mp in (False, True):
            add(
                "bf16" + ("_master" if mp else ""),
                P("w", "b", dtype="bfloat16"),
                kwargs=dict(kw, multi_precision=mp),
                notes="arrays stored as float32; values are exact bfloat16",
            )
    return out


def special(v):
    """Cases that only some optimizers have, wrappers, and bare kernels."""
    sh, d = v["shapes"], {k: x[0] for k, x in v["base"].items()}
    P = lambda *names, **kws: [param(n, sh[n], **kws) for n in names]
    out = [
        make(
            "adamw_decay_fun",
            "AdamW",
            dict(d["AdamW"], weight_decay=v["adamw_decay"]),
            P("w", "b", "s"),
            name_rules={"decay_names": ["w", "s"]},
        ),
        make("lamb_exclude", "Lamb", d["Lamb"], P("w", "b", "s"), name_rules={"exclude_names": ["b"]}),
        make(
            "lamb_exclude_adapt",
            "Lamb",
            dict(d["Lamb"], always_adapt=True),
            P("w", "b", "s"),
            name_rules={"exclude_names": ["b"]},
        ),
        make(
            "lamb_zero_param_grad",
            "Lamb",
            d["Lamb"],
            [param("z", [3], init="zeros"), param("b", sh["b"])],
            profile="zero_steps",
            notes="zero parameter norm -> trust ratio 1",
        ),
        make(
            "momentum_nesterov_wd",
            "Momentum",
            dict(d["Momentum"], use_nesterov=True),
            P("w", "b"),
            weight_decay=v["decay"],
        ),
        make(
            "momentum_rescale_wd",
            "Momentum",
            dict(d["Momentum"], rescale_grad=v["momentum_rescale"]),
            P("w", "b"),
            weight_decay=v["decay"],
            notes="the CPU kernel ignores rescale_grad",
        ),
        make(
            "adam_groups_clip",
            "Adam",
            d["Adam"],
            P("w", "b", "s"),
            grad_clip=clip("global", v["clip"]),
            param_groups=[
                {"params": ["w"]},
                {"params": ["b"], "grad_clip": clip("value", v["clip"])},
                {"params": ["s"], "grad_clip": None},
            ],
        ),
        make("adam_scalar_0d", "Adam", d["Adam"], [param("s", [])], notes="0-D parameter"),
        make("sgd_tiny_param", "SGD", d["SGD"], [param("w", sh["w"], init="tiny")]),
    ]
    for cls, options in v["group_options"].items():
        groups = [dict(o, params=[n]) for n, o in zip(("w", "b", "s"), options)]
        out.append(
            make(
                f"{cls.lower()}_groups_opts",
                cls,
                d[cls],
                P(*[g["params"][0] for g in groups]),
                param_groups=groups,
            )
        )
    for alpha, k, inner in v["lookahead"]:
        out.append(
            make(
                f"lookahead_a{alpha}_k{k}_{inner.lower()}",
                "LookAhead",
                {"alpha": alpha, "k": k},
                P("w", "b"),
                inner={"class": inner, "kwargs": d[inner]},
            )
        )
    out.append(
        make(
            "lookahead_missing",
            "LookAhead",
            v["lookahead_missing"],
            P("w", "b", "s"),
            missing=v["missing"],
            inner={"class": "SGD", "kwargs": d["SGD"]},
            notes="b and s: slow weights start at 0, not at the parameter",
        )
    )
    for i, kw in enumerate(v["model_average"]):
        out.append(
            make(
                f"modelaverage_{i}",
                "ModelAverage",
                kw,
                P("w", "b"),
                record_steps=list(range(1, 21)),
                inner={"class": "Momentum", "kwargs": d["Momentum"]},
                notes="avg/<step>/<param>: inside apply()",
            )
        )
    for i, decay in enumerate(v["ema"]):
        out.append(
            make(
                f"ema_{i}",
                "ExponentialMovingAverage",
                {"decay": decay},
                P("w"),
                inner={"class": "SGD", "kwargs": d["SGD"]},
                notes="avg/<step>/<param>: inside apply()",
            )
        )
    for kernel in ("ftrl", "decayed_adagrad", "dpsgd", "dgc_momentum"):
        out += [make(f"{kernel}_{i}", kernel, kw, P("w")) for i, kw in enumerate(v[kernel])]
    for i, (obj, dtype, kw) in enumerate(v["lbfgs"]):
        out.append(
            make(
                f"lbfgs_{i}_{obj}",
                "LBFGS",
                kw,
                [param("w", v["lbfgs_shape"], dtype), param("b", [2], dtype)],
                objective=obj,
                steps=6,
                record_steps=[1, 2, 3, 4, 5, 6],
                notes="w and b are flattened and joined into x; aux/A and aux/b define the objective",
            )
        )
    return out


def all_cases():
    with open(TABLE) as f:
        v = json.load(f)
    cases = [c for cls in v["base"] for c in standard(cls, v)] + special(v)
    assert len({c["id"] for c in cases}) == len(cases)
    return cases
