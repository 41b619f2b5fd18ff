"""Wrappers around every kind of optimizer, with parameters that come, go and rest between two calls.

The expected numbers come from steps of the inner optimizer, each followed by the arithmetic of the wrapper.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import closure_of

import paddlejax as paddle
from paddlejax.incubate import LookAhead
from paddlejax.incubate.optimizer import DGCMomentumOptimizer, GradientMergeOptimizer
from paddlejax.optimizer import LBFGS, SGD, AdamW, Momentum

G = jnp.ones(2)


def pair():
    return paddle.Parameter(jnp.array([1.0, 2.0]), "a"), paddle.Parameter(jnp.array([3.0, 4.0]), "b")


def test_lookahead_lets_lbfgs_land_where_it_goes():
    """A million steps away from where it began: the difference of both would not give it back."""
    w = paddle.Parameter(jnp.array([1e6]), "w")
    opt = LookAhead(LBFGS(1.0, parameters=[w], line_search_fn="strong_wolfe"), 0.5, 9)
    loss = paddle.loss(lambda w: jnp.sum((w - 0.013) ** 2 / 2))
    for _ in range(2):
        opt.step(closure_of(opt, loss, w))
        np.testing.assert_allclose(w.numpy(), [0.013], rtol=2e-6)


def test_lookahead_around_lbfgs_leaves_who_has_no_gradient():
    a, b = pair()
    opt = paddle.fluid.optimizer.LookaheadOptimizer(LBFGS(1.0, parameters=[a, b]), 0.5, 1)

    def closure():
        opt.clear_grad(False)
        y = paddle.loss(lambda a: jnp.sum(a * a))(a)
        y.backward()
        return y

    opt.step(closure)
    b.set_value(jnp.array([9.0, 9.0]))
    opt.step(closure)
    np.testing.assert_array_equal(b.numpy(), [9, 9])
    np.testing.assert_allclose(a.numpy(), [0.25, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "inside", [lambda opt: opt, lambda opt: LookAhead(opt, k=1)], ids=["alone", "lookahead"]
)
def test_who_is_frozen_between_two_calls_rests(inside):
    a, b = pair()
    opt = GradientMergeOptimizer(inside(Momentum(0.1, 0.9, [a, b])), k_steps=2)
    opt.apply_gradients([(a, G), (b, G)])
    b.stop_gradient = True
    opt.apply_gradients([(a, G)])
    np.testing.assert_allclose(a.numpy(), [0.9, 1.9], rtol=1e-6)
    np.testing.assert_array_equal(b.numpy(), [3, 4])
    assert "b_velocity_0" not in opt.state_dict()


@pytest.mark.filterwarnings("ignore:.*found one worker")
@pytest.mark.parametrize("late", [False, True], ids=["never", "at-first"])
def test_gradient_merge_around_dgc(late):
    """A parameter without a gradient between two steps has none, not one of zeros."""
    a, b = pair()
    opt = GradientMergeOptimizer(one_worker(a, b), 2)
    for _ in range(2):
        opt.apply_gradients([(a, G), *([(b, G)] if late else [])])
    for _ in range(2):
        opt.apply_gradients([(a, G)])
    np.testing.assert_allclose(a.numpy(), [0.71, 1.71], rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), [2.9, 3.9] if late else [3, 4], rtol=1e-6)


def one_worker(*parameters):

    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,))
    return DGCMomentumOptimizer(0.1, 0.9, 0, parameter_list=list(parameters), mesh=mesh)


@pytest.mark.filterwarnings("ignore:.*found one worker")
def test_lookahead_around_dgc_with_a_frozen_parameter():
    a, b = pair()
    b.stop_gradient = True
    opt = LookAhead(one_worker(a, b), k=2)
    for _ in range(4):
        opt.apply_gradients([(a, G)])
    np.testing.assert_allclose(a.numpy(), [0.49755, 1.49755], rtol=1e-5)
    np.testing.assert_array_equal(b.numpy(), [3, 4])


def test_what_is_saved_between_two_steps_loads_again():
    w = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "w")
    inner = AdamW(0.1, parameters=[w], multi_precision=True)
    opt = LookAhead(GradientMergeOptimizer(inner, 2), k=2)
    opt.apply_gradients([(w, jnp.ones(2, jnp.bfloat16))])
    saved = opt.state_dict()
    assert set(saved) == {"w@GRAD@GradientMerge", "gradient_merge_step", "w_slow_0", "lookahead_step_0"}
    opt.set_state_dict(saved)
    opt.apply_gradients([(w, jnp.ones(2, jnp.bfloat16))])
    np.testing.assert_array_equal(w.numpy().astype(np.float32), [0.94921875] * 2)


def test_sums_inside_sums_load_apart():
    def make():
        return GradientMergeOptimizer(GradientMergeOptimizer(SGD(0.1, [a, b]), 2), 2)

    a, b = pair()
    opt = make()
    for _ in range(2):
        opt.apply_gradients([(a, G), (b, G)])
    resumed = make()
    resumed.inner_optimizer.set_state_dict(opt.inner_optimizer.state_dict())
    for _ in range(2):
        resumed.apply_gradients([(a, G)])
    np.testing.assert_allclose(a.numpy(), [0.9, 1.9], rtol=1e-6)
    np.testing.assert_allclose(b.numpy(), [2.95, 3.95], rtol=1e-6)


def test_gradients_of_16_bits_are_summed_as_they_are_shown():
    w, g = jnp.array([1.3, -0.7], jnp.bfloat16), jnp.array([0.11, 0.37], jnp.bfloat16)
    w = paddle.Parameter(w, "w")
    opt = GradientMergeOptimizer(SGD(0.1, [w]), 2)
    wide = lambda x: x.astype(jnp.float32)  # noqa: E731
    opt.minimize(paddle.loss(lambda w, g: jnp.sum(wide(w) * wide(g) + wide(w) ** 2))(w, g))
    np.testing.assert_array_equal(opt.state_dict()["w@GRAD@GradientMerge"], wide(w.grad))


class Elsewhere(SGD):
    """Moves its parameters by itself."""

    def step(self):
        for p in self.parameter_list:
            p.set_value(p.value - 0.5)


def test_a_step_that_a_wrapper_cannot_see_is_refused():
    a, _ = pair()
    opt = LookAhead(Elsewhere(0.1, [a]), k=2)
    with pytest.raises(RuntimeError, match="LookAhead: found that Elsewhere.step makes no step"):
        opt.step()


@pytest.mark.parametrize("name", ["alpha", "k", "k_steps", "avg"])
def test_what_is_fixed_at_construction_cannot_be_assigned(name):
    a, _ = pair()
    inner = SGD(0.1, [a])
    opt = LookAhead(inner, 0.5, 3) if name in ("alpha", "k") else GradientMergeOptimizer(inner, 3, False)
    assert getattr(opt, name) == {"alpha": 0.5, "k": 3, "k_steps": 3, "avg": False}[name]
    with pytest.raises(AttributeError, match=name):
        setattr(opt, name, 1)


def test_a_bad_counter_is_said_once():
    a, _ = pair()
    opt = GradientMergeOptimizer(SGD(0.1, [a]), 2)
    opt.apply_gradients([(a, G)])
    saved = {**opt.state_dict(), "gradient_merge_step": np.array([3], np.int32)}
    with pytest.raises(ValueError, match="gradient_merge_step is 3, expected an int from 0 to 1$"):
        opt.set_state_dict(saved)
