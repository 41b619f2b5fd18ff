"""What fails while a program runs is raised by the call that ran it, and leaves everything as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from running import closure_of

import paddlejax as paddle
from paddlejax.optimizer import programs
from paddlejax.optimizer.loss import Loss

SHAPE = (3,)
broken = [False]


def fails(*_):
    """The host's part of a program: it raises while `broken` says so."""
    if broken[0] is not False:
        raise broken[0]("callback")
    return np.zeros(SHAPE, np.float32)


def pure(x):
    return jnp.sum(
        jax.pure_callback(fails, jax.ShapeDtypeStruct(SHAPE, jnp.float32), jax.lax.stop_gradient(x))
    )


def quiet(callback):
    """A callback of whose result nothing depends on."""

    def call(x):
        callback(jax.lax.stop_gradient(x))
        return 0.0

    return call


def backward_only(x):
    """A callback that only the backward pass meets."""

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g + 0 * pure(g),))
    return jnp.sum(same(x))


def looped(x):
    return jax.lax.scan(lambda c, y: (jax.lax.cond(y > -1e9, pure, lambda y: 0.0, y) + c, None), 0.0, x)[0]


CALLBACKS = {
    "pure_callback": pure,
    "io_callback, ordered": quiet(lambda x: io_callback(lambda x: (fails(), None)[1], None, x, ordered=True)),
    "io_callback": quiet(lambda x: io_callback(lambda x: (fails(), None)[1], None, x)),
    "debug.callback": quiet(lambda x: jax.debug.callback(lambda x: (fails(), None)[1], x)),
    "in the backward pass": backward_only,
    "in a branch of a loop": looped,
    "in a function under jit": jax.jit(pure),
    "in a checkpoint": jax.checkpoint(pure),
}


def parameters():
    return [paddle.Parameter(jnp.arange(1.0, 4.0), "a"), paddle.Parameter(jnp.ones(SHAPE), "b")]


def loss_with(callback):
    return paddle.loss(lambda a, b: jnp.sum(a * a) + jnp.sum(b) + callback(a))


class Minimized:
    """An optimizer, in whose `minimize` a callback is called."""

    def __init__(self, make, callback=pure):
        self.params = parameters()
        self.opt, self.loss = make(self.params), loss_with(callback)

    def act(self):
        self.opt.minimize(self.loss(*self.params))

    def seen(self):
        return {p.name: p.numpy() for p in self.params} | self.opt.state_dict()


class Backward(Minimized):
    def act(self):
        for p in self.params:
            p.clear_grad(set_to_zero=False)
        self.loss(*self.params).backward()
        self.opt.step()


class OfAFunction(Minimized):
    def act(self):
        self.opt.minimize(lambda params: self.loss.function(*params))


class Scaled(Minimized):
    def __init__(self, make):
        super().__init__(make)
        self.scaler = paddle.amp.GradScaler(init_loss_scaling=8.0)

    def act(self):
        self.scaler.minimize(self.opt, self.loss(*self.params))

    def seen(self):
        return super().seen() | {k: np.asarray(v) for k, v in self.scaler.state_dict().items()}


class Searched(Minimized):
    def act(self):
        self.opt.step(closure_of(self.opt, self.loss, *self.params))

    def seen(self):
        state = self.opt.state_dict()["state"]
        return {p.name: p.numpy() for p in self.params} | {
            k: np.asarray(state[k]) for k in ("n_iter",) if k in state
        }


@paddle.rule
class Calling(paddle.Rule):
    """SGD with a callback in the rule itself."""

    slots = ("moved",)

    def step(self, g, p, lr, s):
        return -lr * (g + 0 * pure(g)), {"moved": s["moved"] + g}


class CallingClip(paddle.nn.ClipGradBase):
    """A clip with a callback."""

    def clip(self, grads):
        return [None if g is None else g + 0 * pure(g) for g in grads]


def adam(params, **options):
    return paddle.optimizer.Adam(0.1, parameters=params, **options)


O, inc = paddle.optimizer, paddle.incubate.optimizer
OBJECTS = {
    "Adam": lambda: Minimized(adam),
    "Adam, backward": lambda: Backward(adam),
    "Adam, of a function": lambda: OfAFunction(adam),
    "packed": lambda: Minimized(functools.partial(adam, packed=True)),
    "LookAhead": lambda: Minimized(lambda ps: paddle.incubate.LookAhead(adam(ps), 0.5, 2)),
    "GradientMerge": lambda: Minimized(lambda ps: inc.GradientMergeOptimizer(adam(ps), 2)),
    "Recompute": lambda: Minimized(lambda ps: inc.RecomputeOptimizer(adam(ps))),
    "GradScaler": lambda: Scaled(adam),
    "LBFGS": lambda: Searched(lambda ps: O.LBFGS(0.1, max_iter=2, parameters=ps)),
    "DGC": lambda: Minimized(
        lambda ps: inc.DGCMomentumOptimizer(0.1, 0.9, 0, parameter_list=ps, num_trainers=1)
    ),
    "a rule of one's own": lambda: Minimized(
        lambda ps: O.Optimizer(0.1, ps, rule=Calling()), quiet(lambda x: x)
    ),
    "a rule, backward": lambda: Backward(lambda ps: O.Optimizer(0.1, ps, rule=Calling()), quiet(lambda x: x)),
    "a clip of one's own": lambda: Backward(lambda ps: adam(ps, grad_clip=CallingClip()), quiet(lambda x: x)),
}


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for k, x in wanted.items():
        np.testing.assert_array_equal(found[k], x, err_msg=k)


def check_failing(make, error=ValueError, raised=Exception):
    """A call that fails changes nothing, whether it is the first one or a later one, and can be repeated."""
    straight, thing = make(), make()
    for _ in range(3):
        broken[0] = error
        try:
            for _ in range(2):
                before = thing.seen()
                with pytest.raises(raised):
                    thing.act()
                check_same(thing.seen(), before)
        finally:
            broken[0] = False
        thing.act()
        straight.act()
        check_same(thing.seen(), straight.seen())


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_raises(name):
    check_failing(lambda: Minimized(adam, CALLBACKS[name]))


@pytest.mark.filterwarnings("ignore:dgc_momentum. found one worker")
@pytest.mark.parametrize("name", OBJECTS)
def test_whatever_object_it_is_that_steps(name):
    check_failing(OBJECTS[name])


def test_an_interrupt_in_a_callback():
    check_failing(lambda: Minimized(adam), KeyboardInterrupt, BaseException)


def test_a_compressed_step_of_several_workers():
    def make():
        m = Minimized(lambda ps: inc.DGCMomentumOptimizer(0.1, 0.9, 0, parameter_list=ps))
        m.loss = paddle.loss(
            lambda a, b, x: (
                jnp.mean(x @ (a + b)) + quiet(lambda x: io_callback(lambda x: (fails(), None)[1], None, x))(x)
            )
        )
        m.act = lambda: m.opt.minimize(m.loss(*m.params, jnp.ones((8, 3))))
        return m

    check_failing(make)


def huge(x):
    """More than any machine has. (XLA on CPU hangs or ends after some other programs that find no memory.)"""
    rows = jax.lax.scan(lambda c, _: (c * 0.5, jnp.full(2**20, 1.0) * c), x[0], None, length=2**18)[1]
    return jnp.sum(rows[::3])


@pytest.mark.parametrize("act", [Minimized.act, Backward.act], ids=["minimize", "backward"])
@pytest.mark.parametrize("safe", [False, True])
def test_what_does_not_find_the_memory(act, safe):
    m = Minimized(adam)
    m.act()
    m.opt.set_safe(safe)
    before = m.seen()
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            m.opt.minimize(paddle.loss(lambda a, b: huge(a))(*m.params))
        check_same(m.seen(), before)
    m.act()


def test_an_update_that_cannot_find_the_memory():
    @paddle.rule
    class Huge(paddle.Rule):
        slots = ()

        def step(self, g, p, lr, s):
            return -lr * (g + huge(g)), s

    params = parameters()
    opt = O.Optimizer(0.1, params, rule=Huge())
    before = [p.numpy() for p in params]
    for p in params:
        p.grad = jnp.ones(SHAPE)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        opt.step()
    np.testing.assert_array_equal([p.numpy() for p in params], before)


@pytest.mark.parametrize("how", ["gradient", "data"])
def test_what_is_given_to_a_step_and_could_not_be_computed(how):
    m = Minimized(adam, quiet(lambda x: x))
    m.act()
    bad = jax.jit(lambda x: x + huge(x))(jnp.ones(SHAPE))  # raises nothing yet
    for p in m.params:
        p.clear_grad(set_to_zero=False)
    before = {p.name: p.numpy() for p in m.params} | m.opt.state_dict()
    with pytest.raises(jax.errors.JaxRuntimeError):
        if how == "gradient":
            m.opt.apply_gradients([(p, bad) for p in m.params])
        else:
            m.opt.minimize(paddle.loss(lambda a, b, x: jnp.sum((a + b) * x))(*m.params, bad))
    check_same({p.name: p.numpy() for p in m.params} | m.opt.state_dict(), before)


@pytest.mark.parametrize("act", ["minimize", "step"])
def test_nan_that_jax_looks_for(act):
    """Also where the programs were compiled before it was to look for them."""
    m = Minimized(adam, quiet(lambda x: x))
    m.act()
    for p in m.params:
        p.grad = jnp.full(SHAPE, jnp.nan)
    before = {p.name: p.numpy() for p in m.params} | m.opt.state_dict()
    jax.config.update("jax_debug_nans", True)
    try:
        with pytest.raises(FloatingPointError):
            m.opt.step() if act == "step" else m.opt.minimize(
                paddle.loss(lambda a, b: jnp.sum(jnp.log(-a)) + jnp.sum(b))(*m.params)
            )
    finally:
        jax.config.update("jax_debug_nans", False)
    check_same({p.name: p.numpy() for p in m.params} | m.opt.state_dict(), before)
    m.act()


def test_one_program_where_nothing_can_fail(monkeypatch):
    """Nobody looks a second time, nothing is waited for, and nothing runs beside its arguments."""
    m = Minimized(adam, quiet(lambda x: x))
    m.act()
    for name in ("look", "beside"):
        monkeypatch.setattr(programs.Watched, name, None)
    monkeypatch.setattr(Loss, "gradients", None)
    old = [p.peek() for p in m.params]
    m.act()
    assert all(x.is_deleted() for x in old)
    (plan,) = m.opt.compiled_steps
    assert [x._cache_size() for x in m.opt._steps.fused.values()] == [1] and not plan.step._cache_size()


def test_a_safe_step_gives_what_any_step_gives():
    straight, safe = Minimized(adam, quiet(lambda x: x)), Minimized(adam, quiet(lambda x: x))
    safe.opt.set_safe()
    for _ in range(3):
        straight.act()
        safe.act()
    for k, x in straight.seen().items():
        np.testing.assert_allclose(safe.seen()[k], x, rtol=1e-6)
    (plan,) = safe.opt.compiled_steps
    assert not safe.opt._steps.fused.values() and plan.step._cache_size() == 1
    with pytest.raises(TypeError, match="set_safe's enabled: found 1, expected True or False"):
        safe.opt.set_safe(1)
