"""What makes the object's step fast, as facts: programs, arrays, memory. Times are in tests/benchmarks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax.optimizer import compiled as compiled_module


def made(n, shape=(4,)):
    return [paddle.Parameter(jnp.full(shape, 1.0 + i), f"p{i}") for i in range(n)]


def stepped(n, rate=0.1, **options):
    opt = paddle.optimizer.Adam(rate, parameters=made(n), **options)
    for p in opt.parameter_list:
        p.grad = jnp.ones(p.shape)
    opt.step()
    return opt


def the_plan(opt):
    (plan,) = opt.compiled_steps
    return plan


@pytest.mark.parametrize("packed", [False, True])
def test_a_rate_never_compiles(packed):
    opt = stepped(3, packed=packed)
    lowered = []
    with jax.log_compiles(False), Counted(lowered):
        for rate in (0.1, 0.2, np.float32(0.3), 0.3):
            opt.set_lr(rate)
            opt.step()
    assert the_plan(opt).step._cache_size() == 1 and not lowered
    scheduled = stepped(3, paddle.optimizer.lr.ExponentialDecay(0.1, 0.5), packed=packed)
    with Counted(lowered):
        for _ in range(3):
            scheduled._learning_rate.step()
            scheduled.step()
    assert the_plan(scheduled).step._cache_size() == 1 and not lowered


class Counted:
    """The programs that are compiled inside."""

    def __init__(self, names):
        self.names = names

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self.note)

    def note(self, name, seconds, **_):
        if "backend_compile" in name:
            self.names.append(name)

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.note)


def test_the_step_takes_nothing_it_does_not_need():
    """p, g, two moments each, two beta powers and the rate; neither a count nor the rate of the state."""
    plan = the_plan(stepped(5))
    values = plan.values()
    lowered = plan.step.lower(values, plan.state(), values, plan.base.rates(0.1))
    infos = jax.tree.leaves(lowered.args_info)
    assert len(infos) == 4 * 5 + 2 + 1 and sum(i.donated for i in infos) == 3 * 5 + 2
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 128 and memory.alias_size_in_bytes >= 3 * 5 * 16


def test_equal_calls_share_one_recipe():
    traces = []

    @paddle.loss
    def loss(params, x, mode):
        traces.append(mode)
        return sum(jnp.sum(p * x) for p in params)

    params = made(3)
    first = loss(params, jnp.ones(4), "a")
    assert loss(params, jnp.zeros(4), "a").call is first.call is loss(made(3), 0 * jnp.ones(4), "a").call
    others = [loss(params, jnp.ones(4), "b"), loss(params, 1.0, "a"), loss(params[:2], jnp.ones(4), "a")]
    others.append(loss([params[0], params[0], params[1]], jnp.ones(4), "a"))
    params[1].stop_gradient = True
    others.append(loss(params, jnp.ones(4), "a"))
    assert len({first.call, *(x.call for x in others)}) == 5  # a number is traced like an array
    assert [len(x.parameters) for x in others] == [3, 3, 2, 2, 2]
    np.testing.assert_allclose([float(x) for x in others], [24, 24, 12, 16, 24])
    with pytest.raises(TypeError, match=r"found an argument \{1\} that is not hashable"):
        loss(params, 1.0, {1})


def test_many_arrays_compile_by_the_cheaper_pipeline(monkeypatch):
    """More than 100 arrays on a CPU: the option is passed, and nothing else changes."""
    given = []
    jit = jax.jit

    def spy(function, **options):
        given.append((getattr(function, "__name__", ""), options.get("compiler_options")))
        return jit(function, **options)

    monkeypatch.setattr(compiled_module.jax, "jit", spy)
    cheap = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"}
    assert compiled_module.fast_compile() == cheap
    many = stepped(30)
    assert ("update", cheap) in given
    given.clear()
    fused, squares = stepped(30), paddle.loss(lambda ps: sum(jnp.sum(p * p) for p in ps))
    fused.clear_grad(set_to_zero=False)
    fused.minimize(squares(fused.parameter_list))
    assert {options for name, options in given if name != "update"} == {None}
    given.clear()
    stepped(3)
    assert ("update", None) in given
    monkeypatch.setattr(compiled_module, "fast_compile", lambda: None)
    plain = stepped(30)
    for p, q in zip(many.parameter_list, plain.parameter_list, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_an_option_that_is_not_there_is_not_passed(monkeypatch):
    compiled_module.fast_compile.cache_clear()
    monkeypatch.setattr(compiled_module, "PRESET", {"xla_cpu_no_such_option": "x"})
    try:
        assert compiled_module.fast_compile() is None
    finally:
        compiled_module.fast_compile.cache_clear()
    monkeypatch.setattr(compiled_module.jax, "default_backend", lambda: "gpu")
    assert compiled_module.fast_compile() is None
    compiled_module.fast_compile.cache_clear()
