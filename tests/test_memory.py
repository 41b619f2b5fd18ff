"""A donated step allocates nothing but what is documented, and traces and compiles no more than it must."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jaxlib.version
import pytest
from compiled_steps import DISTINCT, functional, of_object, temp_bytes

import paddlejax as paddle
from paddlejax.step import step as _step

SHAPES = {"w": (128, 256), "v": (256, 128), "b": (256,)}
TREE = sum(4 * int(jnp.prod(jnp.array(shape))) for shape in SHAPES.values())  # bytes in float32
SMALL = 8192  # scalars and tables of pointers

# Trees of float32 that XLA allocates on CPU beside the donated ones. LAMB keeps its direction until its norm
# is known, LARS a gradient that it had to rescale, Dpsgd its noise. The others' results need each other's old
# values, so XLA copies those before it overwrites them; in one pass it need not (see test_cpu_fusion.py).
TREES = {"lamb": 1, "adadelta": 2, "ftrl": 2, "rprop": 2, "asgd": 1}
# Before jaxlib 0.10.2 XLA also stores the squares that a norm sums, a tree for each norm of a rule.
SQUARES = {"lamb": 1, "lars_momentum": 2, "dpsgd": 1} if jaxlib.version.__version_info__ < (0, 10, 2) else {}


def documented(case: Any) -> int:
    trees = TREES.get(case.name, 0) + SQUARES.get(case.name, 0)
    trees += case.name == "lars_momentum" and "rescale_grad" in case.kwargs
    trees += 3 * case.kwargs.get("per_element", False) + case.kwargs.get("batch_num", 1) - 1
    return trees * TREE + SMALL


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("case", DISTINCT.values(), ids=DISTINCT)
def test_a_functional_step_allocates_only_what_is_documented(case, params):
    assert temp_bytes(functional(case.make(), params)) <= documented(case)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop", "ftrl", "lamb", "lars_momentum"])
def test_so_does_the_step_of_the_object(name, params):
    case = DISTINCT[name]
    opt = paddle.optimizer.Optimizer(0.1, params, rule=case.make().source.rule)
    for p in opt.parameters.values():
        p.grad = jnp.ones(p.shape)
    opt.step()
    assert temp_bytes(of_object(opt)) <= documented(case)


@pytest.mark.parametrize(
    "before, norms",
    [
        ([paddle.clip_by_value(1.0), paddle.l2_decay(0.1)], 0),
        ([paddle.clip_by_global_norm(1.0), paddle.l2_decay(0.1)], 1),
        ([paddle.clip_by_norm(1.0)], 1),
    ],
    ids=["value", "global_norm", "norm"],
)
def test_clips_and_decay_in_front_allocate_nothing(before, norms, params):
    allowed = SMALL + (norms * TREE if SQUARES else 0)
    assert temp_bytes(functional(paddle.chain(*before, paddle.adam(0.1)), params)) <= allowed


def test_masters_allocate_nothing(params):
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    tx = paddle.with_master_weights(paddle.adam(0.1))
    assert temp_bytes(functional(tx, narrow)) <= SMALL


@pytest.mark.parametrize("tx", [paddle.lamb(0.1), paddle.lars_momentum(0.1, 0.9)], ids=["lamb", "lars"])
def test_norms_are_plain_sums_of_squares(tx, params):
    """Nothing is selected before it is summed, which costs 15 times as much; two sums per leaf, not more."""
    jaxpr = jax.make_jaxpr(lambda p: tx.update(p, tx.init(p), p))(params).jaxpr
    reduced = [
        made_by(equation.invars[0], equations)
        for equations in walk(jaxpr)
        for equation in equations
        if equation.primitive.name == "reduce_sum"
    ]
    assert reduced == ["mul", "mul"] * len(params)
    text = functional(tx, params).as_text()
    assert not re.findall(r"\(.*f32\[128,256\].*\) reduce\(", text)  # no reduction of two arrays at once


def walk(jaxpr: Any) -> Any:
    """The equations of a jaxpr and of all those inside it."""
    yield jaxpr.eqns
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


def made_by(variable: Any, equations: Any) -> str:
    return next(e.primitive.name for e in equations if variable in e.outvars)


def counting() -> tuple[Any, list[tuple[Any, ...]]]:
    """A rule, and the shapes and dtypes that its step was traced with."""
    traced = []

    @paddle.rule
    class Counting(paddle.Rule):
        slots = ("v",)
        mu: float = 0.5

        def step(self, g, p, k, slots):
            traced.append((p.shape, p.dtype.name, g.dtype.name))
            v = self.mu * slots["v"] + g
            return -k * v, {"v": v}

    return Counting(), traced


def test_a_rule_is_traced_once_per_shape_and_dtype():
    rule, traced = counting()
    params = {f"w{i}": jnp.ones((3, i % 2 + 1)) for i in range(20)}
    params |= {f"h{i}": jnp.ones((3, 1), jnp.bfloat16) for i in range(5)}
    tx = paddle.lift(rule, 0.1)
    functional(tx, params)
    shapes = [((3, 1), "float32", "float32"), ((3, 2), "float32", "float32")]
    assert sorted(traced) == sorted([*shapes, ((3, 1), "float32", "float32")])  # bfloat16 comes widened
    functional(paddle.lift(type(rule)(0.9), 0.2), params)  # other numbers, another program
    functional(paddle.chain(paddle.l2_decay(0.1), tx), params)
    assert len(traced) == 3


def test_a_new_rate_traces_and_compiles_nothing(params):
    rule, traced = counting()
    tx = paddle.lift(rule, 0.1)
    step = jax.jit(chex.assert_max_traces(lambda p, s, g: tx.update(g, s, p), n=1), donate_argnums=1)
    state = tx.init(params)
    opt = paddle.optimizer.Optimizer(0.1, params, rule=rule)
    for p in opt.parameters.values():
        p.grad = jnp.ones(p.shape)
    seen = []
    for i in range(3):
        _, state = step(params, paddle.set_learning_rate(state, 0.1 / (i + 1)), params)
        opt.set_lr(0.1 / (i + 1))
        opt.step()
        (plan,) = opt.compiled_steps
        seen.append((len(traced), step._cache_size(), plan.step._cache_size(), _step._cache_size()))
    assert seen[0] == seen[1] == seen[2] and seen[0][:3] == (len(SHAPES), 1, 1)
