"""Paddle's update rules in plain numpy, one tensor at a time: what the library is measured against.

A rule is `init(p, **hyper) -> state` and `step(p, g, lr, state, **hyper) -> (p, state)`; the accumulators
have Paddle's names.  The arithmetic runs in the dtype of `p`, to which every number is rounded first, and
`dialect` picks between the 2.x and the 1.x reading where the two differ.  `replay` runs a recorded case.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from golden_cases import Case

State = dict[str, np.ndarray]
REFERENCES: dict[str, tuple[Callable[..., State], Callable[..., tuple[np.ndarray, State]]]] = {}
HYPER: dict[str, dict[str, Any]] = {}  # the names a rule takes, with Paddle's defaults


def norm(x):
    """‖x‖₂ of the whole tensor, in its own dtype."""
    return np.sqrt(np.sum(x * x))


def zeros(p, h):
    return np.zeros_like(p)


def ones(p, h):
    return np.ones_like(p)


def filled(name):
    """A tensor like the parameter that starts at the hyper-parameter `name`."""
    return lambda p, h: np.full_like(p, getattr(h, name))


def power(name):
    """A running power that starts at the hyper-parameter `name`, so that it holds βᵗ at the t-th step."""
    return lambda p, h: np.full((1,), getattr(h, name), p.dtype)


MOMENTS = {"moment1": zeros, "moment2": zeros}
POWERS = {"beta1_pow_acc": power("beta1"), "beta2_pow_acc": power("beta2")}


def rule(state: dict[str, Callable] | Callable, **defaults: Any):
    """Enter f(p, g, lr, s, h) -> p into REFERENCES; f changes the copied state s by item."""

    def numbers(p, hyper):
        unknown = hyper.keys() - defaults.keys()
        if unknown:
            raise TypeError(f"unknown hyper-parameters {sorted(unknown)}")
        typed = {k: p.dtype.type(v) if isinstance(v, float) else v for k, v in {**defaults, **hyper}.items()}
        return SimpleNamespace(**typed)

    def enter(f):
        def init(p, **hyper):
            h = numbers(p, hyper)
            slots = state(h) if callable(state) else state
            return {name: make(p, h) for name, make in slots.items()}

        def step(p, g, lr, state, **hyper):
            new = dict(state)
            p = np.asarray(f(p, g, p.dtype.type(lr), new, numbers(p, hyper)), p.dtype)
            return p, {k: np.asarray(v) for k, v in new.items()}

        REFERENCES[f.__name__], HYPER[f.__name__] = (init, step), defaults
        return f

    return enter


@rule({})
def sgd(p, g, lr, s, h):
    """p ← p − η·g."""
    return p - lr * g


@rule({"velocity": zeros}, momentum=0.9, use_nesterov=False, rescale_grad=1.0)
def momentum(p, g, lr, s, h):
    """v ← μ·v + g, then p ← p − η·v, or p ← p − η·(g + μ·v) with Nesterov."""
    g = h.rescale_grad * g
    v = s["velocity"] = h.momentum * s["velocity"] + g
    return p - lr * (g + h.momentum * v if h.use_nesterov else v)


@rule(
    {"velocity": zeros},
    momentum=0.9,
    lars_coeff=0.001,
    lars_weight_decay=0.0005,
    epsilon=0.0,
    rescale_grad=1.0,
    dialect="2.x",
)
def lars_momentum(p, g, lr, s, h):
    """v ← μ·v + L·(g + λ·p), p ← p − v, where L = η·c·‖p‖/(‖g‖ + λ·‖p‖ + ε)."""
    g = h.rescale_grad * g
    a, b, decay = norm(p), norm(g), h.lars_weight_decay
    # in 2.x λ = 0 switches the local rate off as a zero norm does
    scaled = a > 0 and b > 0 and (decay > 0 or h.dialect == "1.x")
    local = lr * h.lars_coeff * a / (b + decay * a + h.epsilon) if scaled else lr
    s["velocity"] = h.momentum * s["velocity"] + local * (g + decay * p)
    return p - s["velocity"]


@rule({"moment": filled("initial_accumulator_value")}, epsilon=1e-6, initial_accumulator_value=0.0)
def adagrad(p, g, lr, s, h):
    """m ← m + g², p ← p − η·g/(√m + ε)."""
    s["moment"] = s["moment"] + g * g
    return p - lr * g / (np.sqrt(s["moment"]) + h.epsilon)


@rule({"moment": zeros}, decay=0.95, epsilon=1e-6)
def decayed_adagrad(p, g, lr, s, h):
    """m ← ρ·m + (1−ρ)·g², p ← p − η·g/(√m + ε)."""
    s["moment"] = h.decay * s["moment"] + (1 - h.decay) * g * g
    return p - lr * g / (np.sqrt(s["moment"]) + h.epsilon)


@rule({"_avg_squared_grad": zeros, "_avg_squared_update": zeros}, epsilon=1e-6, rho=0.95, dialect="2.x")
def adadelta(p, g, lr, s, h):
    """a ← ρ·a + (1−ρ)·g², u = −√(b + ε)/√(a + ε)·g, b ← ρ·b + (1−ρ)·u², p ← p + η·u (1.x: p + u)."""
    a = s["_avg_squared_grad"] = h.rho * s["_avg_squared_grad"] + (1 - h.rho) * g * g
    u = -np.sqrt(s["_avg_squared_update"] + h.epsilon) / np.sqrt(a + h.epsilon) * g
    s["_avg_squared_update"] = h.rho * s["_avg_squared_update"] + (1 - h.rho) * u * u
    return p + (lr * u if h.dialect == "2.x" else u)


def moments(g, s, h):
    """m ← β₁·m + (1−β₁)·g, v ← β₂·v + (1−β₂)·g²."""
    s["moment1"] = h.beta1 * s["moment1"] + (1 - h.beta1) * g
    s["moment2"] = h.beta2 * s["moment2"] + (1 - h.beta2) * g * g
    return s["moment1"], s["moment2"]


def advance(s, h, *names):
    """The powers at this step, after storing those of the next."""
    now = [s[f"{n}_pow_acc"][0] for n in names]
    s.update({f"{n}_pow_acc": s[f"{n}_pow_acc"] * getattr(h, n) for n in names})
    return now


@rule(
    lambda h: {**MOMENTS, **({"moment2_max": zeros} if h.amsgrad else {}), **POWERS},
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    amsgrad=False,
    dialect="2.x",
)
def adam(p, g, lr, s, h):
    """p ← p − η·√(1−β₂ᵗ)/(1−β₁ᵗ)·m/(√v + ε·√(1−β₂ᵗ)); 1.x adds ε unscaled; amsgrad: max v for v."""
    m, v = moments(g, s, h)
    c1, c2 = advance(s, h, "beta1", "beta2")
    if h.amsgrad:
        v = s["moment2_max"] = np.maximum(v, s["moment2_max"])
    root = np.sqrt(1 - c2)
    epsilon = h.epsilon * root if h.dialect == "2.x" else h.epsilon
    return p - lr * root / (1 - c1) * m / (np.sqrt(v) + epsilon)


@rule(
    lambda h: {**MOMENTS, **({"moment2_max": zeros} if h.amsgrad else {}), **POWERS},
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    amsgrad=False,
    weight_decay=0.01,
)
def adamw(p, g, lr, s, h):
    """p ← p − η·λ·p, then Adam's step from the plain gradient."""
    p = p - lr * h.weight_decay * p
    m, v = moments(g, s, h)
    c1, c2 = advance(s, h, "beta1", "beta2")
    if h.amsgrad:
        v = s["moment2_max"] = np.maximum(v, s["moment2_max"])
    root = np.sqrt(1 - c2)
    return p - lr * root / (1 - c1) * m / (np.sqrt(v) + h.epsilon * root)


@rule(
    {**MOMENTS, "momentum_decay_pow": ones, "beta2_pow": ones, "mu_product": ones},
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    momentum_decay=0.004,
)
def nadam(p, g, lr, s, h):
    """m̂ = μ'·m/(1−P·μ') + (1−μ)·g/(1−P), p ← p − η·m̂/(√v̂ + ε), where μ = β₁·(1 − ½·0.96^(t·ψ)), P = Πμ."""
    f = p.dtype.type
    q = s["momentum_decay_pow"] = f(0.96) * s["momentum_decay_pow"]
    w = s["beta2_pow"] = h.beta2 * s["beta2_pow"]
    grown = q**h.momentum_decay
    mu = h.beta1 * (1 - f(0.5) * grown)
    ahead = h.beta1 * (1 - f(0.5) * grown * f(0.96) ** h.momentum_decay)
    product = s["mu_product"] = s["mu_product"] * mu
    m, v = moments(g, s, h)
    estimate = ahead * m / (1 - product * ahead) + (1 - mu) * g / (1 - product)
    return p - lr * estimate / (np.sqrt(v / (1 - w)) + h.epsilon)


@rule({**MOMENTS, "beta1_pow": ones, "beta2_pow": ones, "rho": ones}, beta1=0.9, beta2=0.999, epsilon=1e-8)
def radam(p, g, lr, s, h):
    """p ← p − η·m/(1−β₁ᵗ), from ρ > 5 on times r·√(1−β₂ᵗ)/(√v + ε), ρ = ρ∞ − 2·t·β₂ᵗ/(1−β₂ᵗ)."""
    c1 = s["beta1_pow"] = h.beta1 * s["beta1_pow"]
    c2 = s["beta2_pow"] = h.beta2 * s["beta2_pow"]
    s["rho"] = (s["rho"] * (h.beta2 - c2) + c2) / (1 - c2)
    m, v = moments(g, s, h)
    limit = 2 / (1 - h.beta2) - 1
    rho = limit - 2 * (s["rho"].flat[0] if p.size else 1)
    move = lr * m / (1 - c1)
    if not rho > 5:
        return p - move
    r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    return p - move * r * np.sqrt(1 - c2) / (np.sqrt(v) + h.epsilon)


@rule(
    {"prevs": zeros, "learning_rates": filled("learning_rate")},
    learning_rate=0.001,
    learning_rate_range=(1e-5, 50),
    etas=(0.5, 1.2),
)
def rprop(p, g, lr, s, h):
    """s = g·h, g ← 0 where s < 0, L ← clip(L·(η₊, η₋ or 1 by the sign of s)), p ← p − sign(g)·L, h ← g."""
    low, high, shrink, grow = (p.dtype.type(x) for x in (*h.learning_rate_range, *h.etas))
    turned = g * s["prevs"]
    s["prevs"] = g = np.where(turned < 0, p.dtype.type(0), g)
    factor = np.where(turned > 0, grow, np.where(turned < 0, shrink, p.dtype.type(1)))
    size = s["learning_rates"] = np.clip(s["learning_rates"] * factor, low, high)
    return p - np.sign(g) * size


def kernel_normal(seed):
    """The normal number of Paddle 3's dpsgd kernel, the same at every step, by Marsaglia's polar method."""
    x = seed
    while True:
        pair = []
        for _ in range(2):
            x = 48271 * x % (2**31 - 1)
            pair.append(2 * (np.float32(x - 1) / np.float32(2147483646)) - 1)
        size = pair[0] * pair[0] + pair[1] * pair[1]
        if 0 < size < 1:
            return pair[0] * np.sqrt(-2 * np.log(size) / size)


@rule({}, clip=0.9, batch_size=0.999, sigma=1e-8, seed=0)
def dpsgd(p, g, lr, s, h):
    """p ← p − η·(g/max(1, ‖g‖/clip) + σ·X/batch_size), X normal, one for the whole tensor."""
    noise = h.sigma * p.dtype.type(kernel_normal(h.seed)) if h.sigma else p.dtype.type(0)
    return p - lr * (g / max(p.dtype.type(1), norm(g) / h.clip) + noise / h.batch_size)


@rule(
    {"moment": zeros, "inf_norm": zeros, "beta1_pow_acc": power("beta1")},
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
)
def adamax(p, g, lr, s, h):
    """m ← β₁·m + (1−β₁)·g, u ← max(|g|, β₂·u + ε), p ← p − η/(1−β₁ᵗ)·m/u."""
    m = s["moment"] = h.beta1 * s["moment"] + (1 - h.beta1) * g
    u = s["inf_norm"] = np.maximum(np.abs(g), h.beta2 * s["inf_norm"] + h.epsilon)
    (c1,) = advance(s, h, "beta1")
    return p - lr / (1 - c1) * m / u


@rule(
    {"momentum": zeros, "mean_square": zeros, "mean_grad": zeros},
    rho=0.95,
    epsilon=1e-6,
    momentum=0.0,
    centered=False,
)
def rmsprop(p, g, lr, s, h):
    """s ← ρ·s + (1−ρ)·g², v ← μ·v + η·g/√(s + ε), p ← p − v; centered takes q² off s, q ← ρ·q + (1−ρ)·g."""
    d = s["mean_square"] = h.rho * s["mean_square"] + (1 - h.rho) * g * g
    if h.centered:
        s["mean_grad"] = h.rho * s["mean_grad"] + (1 - h.rho) * g
        d = d - s["mean_grad"] ** 2
    s["momentum"] = h.momentum * s["momentum"] + lr * g / np.sqrt(d + h.epsilon)
    return p - s["momentum"]


@rule(
    {"squared": filled("initial_squared"), "linear": zeros},
    l1=0.0,
    l2=0.0,
    lr_power=-0.5,
    guard=1e-10,
    initial_squared=0.0,
)
def ftrl(p, g, lr, s, h):
    """z ← z + g − (φ(n+g²) − φ(n))/η·p, p ← (l₁·sign z − z)/(φ(n+g²)/η + 2·l₂) where |z| > l₁, else 0.

    φ(x) = x^(−lr_power); 2.x adds `guard` to l₁ and l₂, 1.x nothing.
    """
    l1, l2 = h.l1 + h.guard, h.l2 + h.guard
    new = s["squared"] + g * g
    phi = np.sqrt if h.lr_power == -0.5 else lambda x: x**-h.lr_power
    z = s["linear"] + g - (phi(new) - phi(s["squared"])) / lr * p
    s["squared"], s["linear"] = new, z
    # an element without any gradient so far is 0/0 in the branch that is not taken
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(z) > l1, (l1 * np.sign(z) - z) / (phi(new) / lr + 2 * l2), p.dtype.type(0))


@rule(
    {**MOMENTS, **POWERS},
    lamb_weight_decay=0.01,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-6,
    always_adapt=False,
    dialect="2.x",
)
def lamb(p, g, lr, s, h):
    """r = m̂/(√v̂ + ε) + λ·p, p ← p − η·‖p‖/‖r‖·r; 1.x corrects no bias and leaves the powers alone."""
    m, v = moments(g, s, h)
    if h.dialect == "2.x":
        c1, c2 = advance(s, h, "beta1", "beta2")
        m, v = m / (1 - c1), v / (1 - c2)
    decay = h.lamb_weight_decay
    r = m / (np.sqrt(v) + h.epsilon) + decay * p
    a, b = norm(p), norm(r)
    # in 2.x a parameter without decay keeps the plain rate unless always_adapt
    adapts = decay > 0 or h.always_adapt or h.dialect == "1.x"
    return p - lr * (a / b if adapts and a > 0 and b > 0 else p.dtype.type(1)) * r


@rule(
    {
        "d": zeros,
        "y": lambda p, h: np.zeros((h.batch_num, *p.shape), p.dtype),
        "m": lambda p, h: np.zeros((1,), np.int64),
    },
    batch_num=1,
)
def asgd(p, g, lr, s, h):
    """d ← d − y[i] + g, y[i] ← g, p ← p − η/min(k+1, n)·d, where i = k mod n and k counts the updates."""
    k, n, y = int(s["m"][0]), h.batch_num, s["y"].copy()
    s["d"] = s["d"] - y[k % n] + g
    y[k % n] = g
    s["y"], s["m"] = y, s["m"] + 1
    return p - lr / min(k + 1, n) * s["d"]


def clip_by_value(g, max, min=None):
    """min(max(g, lo), hi) elementwise, lo = −max unless given."""
    bound = g.dtype.type
    return np.clip(g, bound(-max if min is None else min), bound(max))


def clip_by_norm(g, clip_norm):
    """g where ‖g‖ ≤ c, else g·(c/‖g‖)."""
    with np.errstate(over="ignore", invalid="ignore"):
        n = norm(g)
        return g if n <= clip_norm else g * (g.dtype.type(clip_norm) / n)


def clip_by_global_norm(grads, clip_norm, auto_skip_clip=False):
    """Every tensor times c/max(n, c), n = √(Σ‖g‖²); auto_skip_clip touches nothing while n ≤ c."""
    if not grads:
        return grads
    widest = np.result_type(*grads).type
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sums = {t: sum(np.sum(g * g) for g in grads if g.dtype == t) for t in {g.dtype for g in grads}}
        n, c = np.sqrt(widest(sum(widest(v) for v in sums.values()))), widest(clip_norm)
        if auto_skip_clip and not n > c:
            return grads
        return [g * g.dtype.type(c / np.maximum(n, c)) for g in grads]


def decay(p, spec):
    """λ·p or λ·sign p; a bare number means L2."""
    kind, coeff = spec if isinstance(spec, tuple) else ("L2Decay", spec)
    return p.dtype.type(coeff) * (np.sign(p) if kind.startswith("L1") else p)


# (oracle, class) -> rule and what the class fixes in it
CLASSES = {
    ("paddle-3.3.1", "SGD"): ("sgd", {}),
    ("paddle-3.3.1", "Momentum"): ("momentum", {}),
    ("paddle-3.3.1", "LarsMomentumOptimizer"): ("lars_momentum", {}),
    ("paddle-3.3.1", "Adagrad"): ("adagrad", {}),
    ("paddle-3.3.1", "Adadelta"): ("adadelta", {}),
    ("paddle-3.3.1", "Adam"): ("adam", {}),
    ("paddle-3.3.1", "AdamW"): ("adamw", {}),
    ("paddle-3.3.1", "Adamax"): ("adamax", {}),
    ("paddle-3.3.1", "NAdam"): ("nadam", {}),
    ("paddle-3.3.1", "RAdam"): ("radam", {}),
    ("paddle-3.3.1", "Rprop"): ("rprop", {}),
    ("paddle-3.3.1", "dpsgd"): ("dpsgd", {}),
    ("paddle-3.3.1", "RMSProp"): ("rmsprop", {}),
    ("paddle-3.3.1", "Lamb"): ("lamb", {}),
    ("paddle-3.3.1", "ASGD"): ("asgd", {}),
    ("paddle-3.3.1", "ftrl"): ("ftrl", {}),
    ("paddle-3.3.1", "decayed_adagrad"): ("decayed_adagrad", {}),
    ("fluid-1.8.5", "DpsgdOptimizer"): ("dpsgd", {}),
    ("fluid-1.8.5", "SGDOptimizer"): ("sgd", {}),
    ("fluid-1.8.5", "MomentumOptimizer"): ("momentum", {}),
    ("fluid-1.8.5", "LarsMomentumOptimizer"): ("lars_momentum", {"dialect": "1.x"}),
    ("fluid-1.8.5", "AdagradOptimizer"): ("adagrad", {}),
    ("fluid-1.8.5", "DecayedAdagradOptimizer"): ("decayed_adagrad", {}),
    ("fluid-1.8.5", "AdadeltaOptimizer"): ("adadelta", {"dialect": "1.x"}),
    ("fluid-1.8.5", "AdamOptimizer"): ("adam", {"dialect": "1.x"}),
    ("fluid-1.8.5", "AdamaxOptimizer"): ("adamax", {}),
    ("fluid-1.8.5", "RMSPropOptimizer"): ("rmsprop", {}),
    ("fluid-1.8.5", "FtrlOptimizer"): ("ftrl", {"guard": 0.0}),
    ("fluid-1.8.5", "LambOptimizer"): ("lamb", {"dialect": "1.x"}),
}
# constructor arguments that change no number in one process; lazy_mode does for row-sparse gradients
WITHOUT_EFFECT = {"learning_rate", "name", "lazy_mode", "use_multi_tensor", "multi_precision"}
COMMON = {"params", "learning_rate", "weight_decay", "grad_clip"}


def clipped(pairs, clip):
    """[(spec, g)] -> {name: g} after the clip (type, arguments), which passes over need_clip=False."""
    out = {spec.name: g for spec, g in pairs}
    names = [spec.name for spec, _ in pairs if spec.need_clip]
    kind, args = clip or ("", {})
    if kind.endswith("GlobalNorm"):
        out.update(zip(names, clip_by_global_norm([out[n] for n in names], **args), strict=True))
    elif clip:
        one = clip_by_value if kind.endswith("Value") else clip_by_norm
        out.update({n: one(out[n], **args) for n in names})
    return out


def merged(rows, values):
    """Every row once, ascending, with the sum of its values."""
    unique, group = np.unique(rows, return_inverse=True)
    sums = np.zeros((len(unique), *values.shape[1:]), values.dtype)
    np.add.at(sums, group, values)
    return unique, sums


def only_rows(step, rows, p, g, rate, state, h):
    """The step of some rows: the others keep parameter and accumulators."""
    part = {k: v[rows] if v.shape == p.shape else v for k, v in state.items()}
    new_p, new = step(p[rows], g, rate, part, **h)
    p, state = p.copy(), dict(state)
    p[rows] = new_p
    for k, v in new.items():
        if state[k].shape == p.shape:
            state[k] = state[k].copy()
            state[k][rows] = v
        else:
            state[k] = v
    return p, state


def spread(shape, rows, values):
    """The whole tensor, zero in the rows that are not listed."""
    g = np.zeros(shape, values.dtype)
    g[rows] = values
    return g


def replay(
    case: Case, dtype: Any = None, hyper: dict[str, Any] | None = None
) -> tuple[dict[int, dict[str, np.ndarray]], dict[tuple[str, str], np.ndarray]]:
    """Run a recorded case: the parameters after each recorded step, and the final accumulators.

    `dtype` overrides the parameters' own; `hyper` overrides what the case says.  Saving and restoring is
    no event here: it must not change a trajectory.
    """
    name, fixed = CLASSES[case.oracle, case.cls]
    init, step = REFERENCES[name]
    base = {**fixed, **case.kwargs, **(hyper or {})}
    never_decayed = base.pop("exclude_from_weight_decay", [])
    specs = {s.name: s for s in case.params}
    params = {n: np.asarray(a, dtype or a.dtype) for n, a in case.p0.items()}
    states: dict[str, State] = {}
    rates = case.lr
    grouped = case.groups is not None
    out = {}
    for t in range(1, case.steps + 1):
        lr = base.get("learning_rate", 0.001) if rates is None else rates[t - 1]
        grads = case.grads(t)
        for group in case.groups or [{"params": list(specs)}]:
            pairs = [(specs[n], grads[n]) for n in group["params"] if grads[n] is not None]
            rows = {}
            for s, g in pairs:
                if s.sparse:
                    rows[s.name], values = merged(*g)
                    pairs[pairs.index((s, g))] = (s, values)
            pairs = [(s, np.asarray(g, params[s.name].dtype)) for s, g in pairs if not s.stop_gradient]
            options = {k: v for k, v in group.items() if k not in COMMON}
            for n, g in clipped(pairs, group.get("grad_clip", case.grad_clip)).items():
                p, spec = params[n], specs[n]
                lazy = n in rows and base.get("lazy_mode") and case.weight_decay is None
                if n in rows and not lazy:
                    g = spread(p.shape, rows[n], g)
                # AdamW's groups know no regularizer; their weight_decay is the rule's
                coupled = group if name != "adamw" else {}
                own = coupled.get("weight_decay") if grouped else spec.regularizer
                regularizer = case.weight_decay if own is None else own
                if regularizer is not None:
                    g = g + decay(p, regularizer)
                # building groups overwrites the parameter's own factor, as it does its regularizer
                ratio = group.get("learning_rate", 1.0) if grouped else spec.learning_rate
                h = {k: v for k, v in {**base, **options}.items() if k not in WITHOUT_EFFECT}
                if name == "adamw" and "weight_decay" in group:
                    h["weight_decay"] = group["weight_decay"]
                if name == "adamw" and case.decay_names is not None and n not in case.decay_names:
                    h["weight_decay"] = 0.0
                if name == "rprop" and "learning_rate" in base:  # where the step sizes start
                    h["learning_rate"] = base["learning_rate"]
                if name == "lamb" and n in (case.exclude_names or []):
                    h["lamb_weight_decay"] = 0.0
                if name == "lars_momentum" and any(part in n for part in never_decayed):
                    h["lars_weight_decay"] = 0.0
                if n not in states:
                    states[n] = init(p, **h)
                rate = p.dtype.type(lr) * p.dtype.type(ratio)
                if lazy:
                    params[n], states[n] = only_rows(step, rows[n], p, g, rate, states[n], h)
                    continue
                params[n], states[n] = step(p, g, rate, states[n], **h)
        if t in case.record_steps:
            out[t] = dict(params)
    return out, {(slot, n): a for n, state in states.items() for slot, a in state.items()}
