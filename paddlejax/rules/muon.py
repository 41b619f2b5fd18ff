"""Muon's rule for one matrix, or for a stack of them; `paddlejax.muon` divides a tree by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from ..hyper import FACTOR, Beta, Interval, NonNegative, Predicate, number, require, verify
from ..lifting import Rule, rule
from ..norms import root
from ..orthogonal import COEFFICIENTS, SplitFunction, Triple, newton_schulz, on_whole_matrices
from ..trees import matches
from .adamw import Adam, AdamW, RatioError


@dataclass(frozen=True)
class MuonParamInfo:
    """What Muon does with one parameter: a value of muon_param_info_map.

    `use_muon` says whether it is stepped as matrices or by AdamW; `split_concat_func` cuts it into matrices,
    see `paddlejax.splits`; `use_hyperball` keeps its norm, see `muon`.

    >>> MuonParamInfo(split_concat_func=splits.gate_up())
    MuonParamInfo(use_muon=True, split_concat_func=gate_up(), use_hyperball=False)
    """

    use_muon: bool = True
    split_concat_func: SplitFunction | None = None
    use_hyperball: bool = False

    def __post_init__(self):
        for name in ("use_muon", "use_hyperball"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"MuonParamInfo's {name}", value, "True or False", TypeError)
        split = self.split_concat_func
        _check_split("MuonParamInfo", split)
        useless = split is not None and not self.use_muon
        require(not useless, "MuonParamInfo's split_concat_func", split, "None without use_muon")


Infos = tuple[tuple[str, MuonParamInfo], ...]
Patterns = tuple[str | Callable[[str, tuple[int, ...]], Any], ...]


@rule
class Muon(Rule):
    """Momentum whose matrices are made orthogonal, nearly: every direction moves by about the same amount.

        m ← μ m + (1-μ) g                    moment1, float32, from 0; no correction of its bias
        u = g + μ (m - g), or m              with or without nesterov; μ = momentum
        O = s f NS(u)                        NS: the iteration below; f = muon_extra_scale_factor
        W ← W - η λ W - η O                  λ = weight_decay; no decay if it is not above 0

    s = √max(1, cols/rows), √(cols/rows) or √max(rows, cols) for muon_version 1, 2, 3, where W is
    [rows, cols] = [in, out]. NS divides by max(‖u‖, ε), then repeats X ← a X + (b A + c A²) X, A = X Xᵀ,
    ns_steps times, with the triples of ns_coeff_type in turn ("custom": those of ns_coeffs), in
    ns_matmul_dtype (None: bfloat16 on accelerators, float32 on a CPU). ε = muon_epsilon, by default
    adam_epsilon. Version 3 with f = 0.2 moves as much as AdamW, so that AdamW's rate and decay carry over.

    A leaf of 2 or 3 dimensions (a stack of matrices along axis 0) is stepped so, unless its path contains a
    string of muon_exclude_patterns, whatever the case. An entry of that list may also be a function
    (path, shape) -> bool. muon_param_info_map, {path or glob: MuonParamInfo}, decides before that; in it
    stand the cuts of fused weights and the axes of weights that lie otherwise. All other leaves are stepped
    by `adamw` with adam_beta1, adam_beta2, adam_epsilon, the same rate and decay. lr_ratio(path) is a factor
    on their rate only; apply_decay_param_fun(path) says for all leaves whether they decay.

    With use_hyperball, for all leaves or in the map, a leaf keeps its norm R, per matrix of its last two
    axes: W ← R N(W - η r R N(O)), N(x) = x/‖x‖, r = lr_ratio, without decay. O is AdamW's direction on the
    other leaves.

    optax.contrib.muon corrects the bias of m, which differs under Nesterov only (by 10% at the second step),
    its other leaves get NAdamW, and its step is 5 times as large (f = 1). torch.optim.Muon's scale takes
    rows/cols for cols/rows, as its weights are [out, in], and it steps nothing but matrices.

    >>> tx = muon(0.1, weight_decay=0.0)
    >>> p = {"b": jnp.ones(2), "w": jnp.eye(2)}
    >>> updates, state = tx.update(p, tx.init(p), p)
    >>> print(updates["b"], jnp.diagonal(updates["w"]).round(3))
    [-0.1 -0.1] [-0.022 -0.022]

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982 (version 3);
    the Muon of Paddle's development branch.
    """

    slots: ClassVar = ("moment1",)
    elementwise: ClassVar = False
    has_matrices: ClassVar = True
    data: ClassVar = ("muon_epsilon",)

    momentum: Beta = 0.95
    adam_beta1: Beta = 0.9
    adam_beta2: Beta = 0.95
    weight_decay: float = 0.01
    ns_steps: Annotated[int, Interval(0)] = 5
    ns_coeff_type: str = "simple"
    ns_coeffs: tuple[Triple, ...] | None = None
    nesterov: bool = True
    adam_epsilon: NonNegative = 1e-9
    lr_ratio: Callable[[Any], Any] | None = None
    apply_decay_param_fun: Predicate = None
    muon_version: int = 1
    muon_exclude_patterns: Patterns | None = None
    muon_extra_scale_factor: float = 0.2
    muon_param_info_map: Infos | None = None
    ns_matmul_dtype: Any = None
    muon_epsilon: float | None = field(default=None, kw_only=True)
    use_hyperball: bool = field(default=False, kw_only=True)
    split_concat_func: SplitFunction | None = field(default=None, kw_only=True)  # of leaves not in the map
    ratio: float = field(default=1.0, kw_only=True)

    def __post_init__(self):
        if self.lr_ratio is not None and not callable(self.lr_ratio):
            raise RatioError(f"Muon's lr_ratio: found {self.lr_ratio!r}, expected a function of the leaf")
        held = {
            "ns_coeffs": _triples(self.ns_coeff_type, self.ns_coeffs),
            "muon_exclude_patterns": _patterns(self.muon_exclude_patterns),
            "muon_param_info_map": _infos(self.muon_param_info_map),
            "ns_matmul_dtype": _dtype(self.ns_matmul_dtype),
        }
        for name, value in held.items():  # in a form that can be compared and hashed
            object.__setattr__(self, name, value)
        version = self.muon_version
        known = isinstance(version, int) and not isinstance(version, bool) and version in SCALES
        require(known, "Muon's muon_version", self.muon_version, "1, 2 or 3")
        for name in ("nesterov", "use_hyperball"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"Muon's {name}", value, "True or False", TypeError)
        _check_split("Muon", self.split_concat_func)

    def named(self, name: str) -> MuonParamInfo | None:
        """Return what the map says of the leaf of this path or name, None if it does not name it."""
        infos = self.muon_param_info_map or ()
        exact = [info for key, info in infos if key == name]
        return next((info for info in (*exact, *(i for key, i in infos if matches(key, name)))), None)

    def info(self, name: str, shape: tuple[int, ...]) -> MuonParamInfo:
        """Return what the leaf of this path or name gets."""
        named = self.named(name)
        if named is not None:
            return named
        use_muon = len(shape) in (2, 3) and not any(
            x.lower() in name.lower() if isinstance(x, str) else x(name, shape)
            for x in self.muon_exclude_patterns or ()
        )
        return MuonParamInfo(use_muon, self.split_concat_func if use_muon else None, self.use_hyperball)

    def of(self, info: MuonParamInfo) -> Rule:
        """Return the rule that steps a leaf with this info."""
        if info.use_muon:
            return (
                MuonH(**{f.name: getattr(self, f.name) for f in fields(self)}) if info.use_hyperball else self
            )
        adam = AdamH if info.use_hyperball else AdamW
        about = {"lr_ratio": self.lr_ratio, "apply_decay_param_fun": self.apply_decay_param_fun}
        numbers = self.adam_beta1, self.adam_beta2, self.adam_epsilon
        return adam(*numbers, weight_decay=self.weight_decay, **about)

    def at(self, leaf):
        """Ask `apply_decay_param_fun` whether this leaf decays, and the map how it is cut."""
        name = getattr(leaf, "name", leaf)
        decays = self.apply_decay_param_fun is None or self.apply_decay_param_fun(name)
        info = self.named(name)
        return replace(
            self,
            weight_decay=self.weight_decay if decays else 0.0,
            split_concat_func=self.split_concat_func if info is None else info.split_concat_func,
            lr_ratio=None,
            apply_decay_param_fun=None,
            muon_exclude_patterns=None,
            muon_param_info_map=None,
        )

    def init(self, p):
        """The momentum is float32 beside a float64 parameter too, as in Paddle."""
        return {"moment1": jnp.zeros_like(p, jnp.float32)}

    def stack_height(self, p):
        """On accelerators equal shapes are iterated together, as many as Paddle: launches dominate there."""
        return 1 if jax.default_backend() == "cpu" else max(1, STACK_BYTES // max(4 * p.size, 1))

    def means(self, g):
        """Declare the momentum; it has moved before `step` sees it."""
        return {"moment1": (self.momentum, (1 - self.momentum) * g)}

    def step(self, g, p, k, slots):
        """The decay sees the parameter before the step, and the plain rate."""
        decay = jnp.maximum(self.weight_decay, 0)
        return -k * (decay * p + self.direction(g, slots["moment1"])), slots

    def direction(self, g, m):
        """Return O, of g's shape, from the momentum that has moved."""
        u = g + self.momentum * (m - g) if self.nesterov else m
        split = self.split_concat_func
        run = self.orthogonal if split is None else lambda u: split(u, self.orthogonal)
        return on_whole_matrices(run, u).astype(u.dtype)

    def orthogonal(self, x: jax.Array) -> jax.Array:
        """Return s f NS(x) for each matrix of x (..., rows, columns); float32."""
        epsilon = self.adam_epsilon if self.muon_epsilon is None else self.muon_epsilon
        coefficients = self.ns_coeffs or COEFFICIENTS[self.ns_coeff_type]
        done = newton_schulz(x, coefficients, self.ns_steps, epsilon, self.ns_matmul_dtype)
        scale = self.muon_extra_scale_factor * SCALES[self.muon_version](*x.shape[-2:])
        return done * jnp.asarray(scale, done.dtype)


@rule
class MuonH(Muon):
    """Muon on a hyperball: the step turns a matrix and keeps its norm, see `muon`'s use_hyperball."""

    def at(self, leaf):
        """Beside Muon's, ask `lr_ratio` for the leaf's factor on the rate."""
        ratio = 1.0 if self.lr_ratio is None else self.lr_ratio(leaf)
        verify(FACTOR, f"what Muon's lr_ratio returned for {getattr(leaf, 'name', leaf)}", ratio)
        return replace(super().at(leaf), ratio=self.ratio * ratio)

    def step(self, g, p, k, slots):
        """The rate is an angle, about: the direction is first made as long as the parameter."""
        return _turned(p, self.direction(g, slots["moment1"]), self.ratio * k), slots


@rule
class AdamH(AdamW):
    """Adam on a hyperball: the step along AdamW's direction keeps the norm, see `muon`'s use_hyperball."""

    elementwise: ClassVar = False

    def step(self, g, p, k, slots):
        """There is no decay: the norm stays."""
        delta, slots = Adam.step(self, g, p, k, slots)
        return _turned(p, -delta, self.ratio * k["plain"]), slots


def _turned(p: jax.Array, direction: jax.Array, rate: Any) -> jax.Array:
    """Return what takes p to R N(p - rate R N(direction)), R = ‖p‖, N(x) = x/‖x‖; 0 for a zero direction.

    Norms are those of the matrices in the last two axes, or of all of a vector.
    """

    def norm(x: jax.Array) -> jax.Array:
        return root(jnp.sum(x * x, (-2, -1) if x.ndim > 1 else None, keepdims=True))

    def over(x: jax.Array, size: jax.Array) -> jax.Array:
        return x / jnp.where(size > 0, size, 1)

    radius, length = norm(p), norm(direction)
    moved = p - rate * radius * over(direction, length)
    return jnp.where(length > 0, radius * over(moved, norm(moved)) - p, 0)


STACK_BYTES = 2**31  # of float32, at most, in one stack
SCALES: dict[int, Callable[[int, int], float]] = {
    1: lambda rows, columns: max(1.0, columns / max(rows, 1)) ** 0.5,
    2: lambda rows, columns: (columns / max(rows, 1)) ** 0.5,
    3: lambda rows, columns: max(rows, columns) ** 0.5,
}


def _check_split(owner: str, split: Any) -> None:
    """Refuse what cannot cut a weight into matrices."""
    expected = "None or a function (weight, ortho) -> weight, as those of paddlejax.splits"
    require(split is None or callable(split), f"{owner}'s split_concat_func", split, expected, TypeError)


def _triples(kind: Any, given: Any) -> tuple[Triple, ...] | None:
    """Return the coefficients of "custom" as tuples, None for a set with a name."""
    names = (*COEFFICIENTS, "custom")
    require(
        isinstance(kind, str) and kind in names, "Muon's ns_coeff_type", kind, f"one of {', '.join(names)}"
    )
    if kind != "custom":
        require(given is None, "Muon's ns_coeffs", given, "None unless ns_coeff_type is 'custom'")
        return None
    rows = list(given) if isinstance(given, list | tuple) else []
    fits = rows and all(isinstance(row, list | tuple) and len(row) == 3 for row in rows)
    require(fits, "Muon's ns_coeffs", given, "a list of triples (a, b, c)")
    for i, row in enumerate(rows):
        for x in row:
            number(f"Muon's ns_coeffs: triple {i}", x)
            require(abs(x) < float("inf"), f"Muon's ns_coeffs: triple {i}", x, "a finite number")
    return tuple((float(a), float(b), float(c)) for a, b, c in rows)


def _patterns(given: Any) -> Patterns | None:
    """Return the patterns as a tuple."""
    if given is None:
        return None
    expected = "None or a list of strings and functions (path, shape) -> bool"
    listed = isinstance(given, list | tuple) and all(isinstance(x, str) or callable(x) for x in given)
    require(listed, "Muon's muon_exclude_patterns", given, expected, TypeError)
    return tuple(given)


def _infos(given: Any) -> Infos | None:
    """Return the map as pairs."""
    if given is None:
        return None
    held = isinstance(given, tuple) and all(isinstance(x, tuple) and len(x) == 2 for x in given)
    given = dict(given) if held else given  # the form in which a rule holds it
    expected = "None or a dict {name or path: MuonParamInfo}"
    require(isinstance(given, Mapping), "Muon's muon_param_info_map", given, expected, TypeError)
    for key, info in given.items():
        require(isinstance(key, str), "a key of Muon's muon_param_info_map", key, "a str", TypeError)
        where = f"Muon's muon_param_info_map[{key!r}]"
        require(isinstance(info, MuonParamInfo), where, info, "a MuonParamInfo", TypeError)
    return tuple(given.items())


def _dtype(given: Any) -> str | None:
    """Return the name of the dtype."""
    if given is None:
        return None
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        dtype = jnp.dtype(bool)
    floating = jnp.issubdtype(dtype, jnp.floating)
    require(
        floating, "Muon's ns_matmul_dtype", given, "None or a floating dtype such as 'bfloat16'", TypeError
    )
    return dtype.name
