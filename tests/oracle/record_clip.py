# ruff: noqa: B905
"""Record gradient clipping and weight-decay results of the real Paddle 3.x (CPU).

Usage:  PADDLE3_PYTHON record_clip.py [--cases FILE.json] [--out PREFIX]

Writes PREFIX.json (list of cases) and PREFIX.npz (arrays).

kind "clip":  cls(**args)([(param, grad), ...]); arrays <id>/in/<i>, <id>/out/<i>.
              need_clip[i] is the parameter's flag, none lists indices whose
              gradient is None (dropped from the output), mutated[i] tells
              whether the input tensor itself was overwritten.
kind "util":  paddle.nn.utils.<cls>(params, **args); arrays <id>/in/<i>,
              <id>/out/<i> (the parameter's grad afterwards) and <id>/norm.
kind "sgd":   one SGD step, learning rate lr; arrays <id>/param/<i>, <id>/in/<i>,
              <id>/new/<i>.  regularizer[i] is the per-parameter one or null.
error: exception class name where the call raised (no out arrays then).
"""

import argparse
import json
import os
import warnings

import numpy as np


def draws(seed, shapes, scale):
    rng = np.random.RandomState(seed)
    return [np.asarray(rng.randn(*s) * scale, "float64") for s in shapes]


SPECIALS = {
    "zero": [[0.0, 0.0, 0.0], [0.0]],
    "one_zero": [[0.0, 0.0], [3.0, 4.0]],
    "inf": [[np.inf, 1.0, 0.0], [2.0]],
    "neg_inf": [[-np.inf, np.inf, 1.0], [2.0]],
    "nan": [[np.nan, 1.0, 0.0], [2.0]],
    "huge": [[1e20, 1e20], [1e10]],
    "tiny": [[1e-30, 1e-30], [1e-20]],
    "denormal": [[1e-40, 0.0], [1e-42]],
    "equal": [[0.6, 0.8], [0.0]],
}


def builtin_cases():
    cases = []

    def add(id, kind, cls, args, **kw):
        cases.append(dict(id=id, kind=kind, cls=cls, args=args, **kw))

    shapes = [[4, 3], [3], [2, 2, 2]]
    for dtype in ("float32", "float64"):
        for scale in (0.01, 1.0, 50.0):
            t = f"{dtype}-{scale}"
            add(
                f"value-{t}",
                "clip",
                "ClipGradByValue",
                dict(max=0.5),
                seed=1,
                shapes=shapes,
                scale=scale,
                dtype=dtype,
            )
            add(
                f"value2-{t}",
                "clip",
                "ClipGradByValue",
                dict(max=1.0, min=-0.1),
                seed=2,
                shapes=shapes,
                scale=scale,
                dtype=dtype,
            )
            if dtype == "float32":  # CPU Paddle has no float64 clip_by_norm kernel
                add(
                    f"norm-{t}",
                    "clip",
                    "ClipGradByNorm",
                    dict(clip_norm=1.5),
                    seed=3,
                    shapes=shapes,
                    scale=scale,
                    dtype=dtype,
                )
            add(
                f"global-{t}",
                "clip",
                "ClipGradByGlobalNorm",
                dict(clip_norm=2.0),
                seed=4,
                shapes=shapes,
                scale=scale,
                dtype=dtype,
            )
            add(
                f"globalskip-{t}",
                "clip",
                "ClipGradByGlobalNorm",
                dict(clip_norm=2.0, auto_skip_clip=True),
                seed=5,
                shapes=shapes,
                scale=scale,
                dtype=dtype,
            )
            for nt in (0, 1, 2.0, "inf"):
                add(
                    f"util-norm-{nt}-{t}",
                    "util",
                    "clip_grad_norm_",
                    dict(max_norm=2.0, norm_type=nt),
                    seed=6,
                    shapes=shapes,
                    scale=scale,
                    dtype=dtype,
                )
            add(
                f"util-value-{t}",
                "util",
                "clip_grad_value_",
                dict(clip_value=0.4),
                seed=7,
                shapes=shapes,
                scale=scale,
                dtype=dtype,
            )
    for name in SPECIALS:
        for cls, args in (
            ("ClipGradByValue", dict(max=0.5)),
            ("ClipGradByNorm", dict(clip_norm=1.0)),
            ("ClipGradByGlobalNorm", dict(clip_norm=1.0)),
            ("ClipGradByGlobalNorm", dict(clip_norm=1.0, auto_skip_clip=True)),
        ):
            add(
                f"{name}-{cls}{'-skip' if 'auto_skip_clip' in args else ''}",
                "clip",
                cls,
                args,
                special=name,
                dtype="float32",
            )
        for nt in (1, 2.0, "inf"):
            add(
                f"{name}-util-{nt}",
                "util",
                "clip_grad_norm_",
                dict(max_norm=1.0, norm_type=nt),
                special=name,
                dtype="float32",
            )
    for cls, args in (
        ("ClipGradByValue", dict(max=0.5)),
        ("ClipGradByNorm", dict(clip_norm=1.0)),
        ("ClipGradByGlobalNorm", dict(clip_norm=1.0)),
    ):
        add(
            f"needclip-{cls}",
            "clip",
            cls,
            args,
            seed=8,
            shapes=shapes,
            scale=3.0,
            dtype="float32",
            need_clip=[True, False, True],
        )
        add(f"none-{cls}", "clip", cls, args, seed=9, shapes=shapes, scale=3.0, dtype="float32", none=[1])
        add(
            f"noneneeded-{cls}",
            "clip",
            cls,
            args,
            seed=9,
            shapes=shapes,
            scale=3.0,
            dtype="float32",
            need_clip=[False, False, False],
        )
    add(
        "mixed-dtype",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=1.0),
        seed=10,
        shapes=shapes,
        scale=3.0,
        dtype=["float32", "float64", "float32"],
    )
    add(
        "scalar-param",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=1.0),
        seed=11,
        shapes=[[], [2]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "zero-threshold",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=0.0),
        seed=11,
        shapes=[[3], [2]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "zero-threshold-zero-grad",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=0.0),
        special="zero",
        dtype="float32",
    )
    add(
        "negative-threshold",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=-1.0),
        seed=11,
        shapes=[[3], [2]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-norm-zero",
        "clip",
        "ClipGradByNorm",
        dict(clip_norm=0.0),
        seed=11,
        shapes=[[3]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-value-neg",
        "clip",
        "ClipGradByValue",
        dict(max=-1.0),
        seed=11,
        shapes=[[3]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-value-order",
        "clip",
        "ClipGradByValue",
        dict(max=-1.0, min=1.0),
        seed=11,
        shapes=[[3]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-skip-type",
        "clip",
        "ClipGradByGlobalNorm",
        dict(clip_norm=1.0, auto_skip_clip=1),
        seed=11,
        shapes=[[3]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-util-norm-type",
        "util",
        "clip_grad_norm_",
        dict(max_norm=1.0, norm_type=3.0),
        seed=11,
        shapes=[[3]],
        scale=3.0,
        dtype="float32",
    )
    add(
        "bad-util-nonfinite",
        "util",
        "clip_grad_norm_",
        dict(max_norm=1.0, error_if_nonfinite=True),
        special="nan",
        dtype="float32",
    )
    base = dict(seed=12, shapes=shapes, scale=2.0, dtype="float32", lr=0.1)
    add("sgd-l2", "sgd", None, {}, weight_decay=["L2Decay", 0.3], **base)
    add("sgd-l1", "sgd", None, {}, weight_decay=["L1Decay", 0.3], **base)
    add("sgd-float-wd", "sgd", None, {}, weight_decay=0.3, **base)
    add("sgd-int-wd", "sgd", None, {}, weight_decay=2, **base)
    for cls, args in (
        ("ClipGradByValue", dict(max=0.5)),
        ("ClipGradByNorm", dict(clip_norm=1.0)),
        ("ClipGradByGlobalNorm", dict(clip_norm=1.0)),
    ):
        add(f"sgd-l2-{cls}", "sgd", cls, args, weight_decay=["L2Decay", 0.3], **base)
        add(
            f"sgd-l1-{cls}-needclip",
            "sgd",
            cls,
            args,
            weight_decay=["L1Decay", 0.3],
            need_clip=[True, False, True],
            **base,
        )
    add(
        "sgd-param-regularizer",
        "sgd",
        None,
        {},
        weight_decay=["L2Decay", 0.3],
        regularizer=[["L1Decay", 0.5], None, ["L2Decay", 0.0]],
        **base,
    )
    add(
        "sgd-param-regularizer-only",
        "sgd",
        "ClipGradByGlobalNorm",
        dict(clip_norm=1.0),
        regularizer=[["L1Decay", 0.5], None, ["L2Decay", 0.7]],
        **base,
    )
    return cases


def decay(paddle, spec):
    return getattr(paddle.regularizer, spec[0])(spec[1]) if isinstance(spec, list) else spec


def record_case(paddle, case, store):
    out = dict(case)
    if case.get("special") in ("tiny", "denormal"):
        out["optional"] = "float32 subnormals appear; XLA on CPU may flush them to zero"
    if "special" in case:
        values = [np.array(v) for v in SPECIALS[case["special"]]]
    else:
        values = draws(case["seed"], case["shapes"], case["scale"])
    n = len(values)
    dtypes = case["dtype"] if isinstance(case["dtype"], list) else [case["dtype"]] * n
    need = case.get("need_clip", [True] * n)
    regs = case.get("regularizer", [None] * n)
    grads = [np.asarray(v, d) for v, d in zip(values, dtypes)]
    weights = [np.asarray(np.cos(np.arange(g.size)).reshape(g.shape) * 1.3, g.dtype) for g in grads]
    if case["kind"] == "sgd":
        weights[0].reshape(-1)[0] = 0.0
    args = {k: float("inf") if v == "inf" else v for k, v in case["args"].items()}
    params, tensors = [], []
    for i, (w, g) in enumerate(zip(weights, grads)):
        attr = paddle.ParamAttr(need_clip=need[i], regularizer=decay(paddle, regs[i]))
        p = paddle.create_parameter(list(w.shape), str(w.dtype), attr=attr)
        p.set_value(w)
        params.append(p)
        tensors.append(None if i in case.get("none", []) else paddle.to_tensor(g))
        if tensors[i] is not None:
            store[f"{case['id']}/in/{i}"] = g
    result, before = {}, [None if t is None else t.numpy().copy() for t in tensors]
    try:
        if case["kind"] == "clip":
            done = {id(p): g for p, g in getattr(paddle.nn, case["cls"])(**args)(list(zip(params, tensors)))}
            for i, p in enumerate(params):
                if id(p) in done and done[id(p)] is not None:
                    result[f"{case['id']}/out/{i}"] = done[id(p)].numpy()
            out["mutated"] = [
                t is not None and not np.array_equal(b, t.numpy(), equal_nan=True)
                for b, t in zip(before, tensors)
            ]
        else:
            for p, t in zip(params, tensors):
                if t is not None:
                    p.grad = t
            if case["kind"] == "util":
                norm = getattr(paddle.nn.utils, case["cls"])(params, **args)
                if norm is not None:
                    result[f"{case['id']}/norm"] = norm.numpy()
                for i, p in enumerate(params):
                    if p.grad is not None:
                        result[f"{case['id']}/out/{i}"] = p.grad.numpy()
            else:
                clip = getattr(paddle.nn, case["cls"])(**args) if case["cls"] else None
                opt = paddle.optimizer.SGD(
                    case["lr"],
                    parameters=params,
                    grad_clip=clip,
                    weight_decay=decay(paddle, case.get("weight_decay")),
                )
                opt.step()
                for i, (w, p) in enumerate(zip(weights, params)):
                    result[f"{case['id']}/param/{i}"] = w
                    result[f"{case['id']}/new/{i}"] = p.numpy()
        store.update({k: np.array(v) for k, v in result.items()})
    except Exception as exc:
        out["error"] = type(exc).__name__
    return out


def write(cases, prefix):
    import paddle

    store = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [record_case(paddle, c, store) for c in cases]
    np.savez_compressed(prefix + ".npz", **store)
    with open(prefix + ".json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
    bad = [r["id"] + ":" + r["error"] for r in results if "error" in r]
    print(f"{len(results)} cases, {len(store)} arrays; raised: {bad}")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser()
    ap.add_argument("--cases")
    ap.add_argument("--out", default=os.path.join(here, "..", "golden", "clip"))
    a = ap.parse_args()
    write(json.load(open(a.cases)) if a.cases else builtin_cases(), a.out)
