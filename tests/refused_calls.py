"""Optimizers that have stepped, on which a refused call must leave no trace, and losses that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import params, refuse

import paddlejax as paddle

O, fluid, lr = paddle.optimizer, paddle.fluid.optimizer, paddle.optimizer.lr  # noqa: E741


@paddle.loss
def good(w, b):
    return jnp.sum(w * w) + b * b


@paddle.loss
def empty(w, b):
    return (w * b)[:0]


@paddle.loss
def raising(w, b):
    raise LookupError("of its own")


@paddle.loss(has_aux=True)
def no_aux(w, b):
    return jnp.sum(w)


class World:
    """An optimizer that has taken two steps, what it holds, and what its next step does."""

    def __init__(self, make, schedule=None):
        self.schedule = schedule and schedule()
        self.opt = make(self.schedule or 0.1, params())
        self.step()
        self.step()

    def step(self):
        for p in self.opt.parameters:
            p.grad = jnp.full(p.shape, 0.25)
        self.opt.step()
        for p in self.opt.parameters:
            p.grad = jnp.full(p.shape, 0.5)

    def everything(self):
        cells = {
            p.name: (p.numpy(), None if p.grad is None else np.array(p.grad)) for p in self.opt.parameters
        }
        return jax.tree.map(bits, (cells, self.opt.state_dict(), self.opt.get_lr()))


def bits(x):
    return (np.asarray(x).dtype.name, np.asarray(x).shape, np.asarray(x).tobytes())


WORLDS = {
    "adam": (lambda rate, ps: O.Adam(rate, parameters=ps, name="opt"),),
    "momentum-scheduled": (lambda rate, ps: O.Momentum(rate, parameters=ps), lambda: lr.StepDecay(0.1, 3)),
    "fluid-scheduled": (
        lambda rate, ps: fluid.Adam(rate, parameter_list=ps),
        lambda: paddle.fluid.dygraph.PolynomialDecay(0.1, 10),
    ),
}
PAIRS = {}  # per world two optimizers in the same state, so that each is compiled once and not once per row


def unharmed(name, call, classes, words):
    """The call is refused, and neither what the optimizer holds nor its next step is any different."""
    here, twin = PAIRS.pop(name, None) or [World(*WORLDS[name]) for _ in range(2)]
    assert here.everything() == twin.everything()
    refuse(lambda: call(here.opt), classes, words)
    assert here.everything() == twin.everything()
    here.step()
    twin.step()
    assert here.everything() == twin.everything()
    PAIRS[name] = here, twin


def calls(**tables):
    """A test for each row of the tables, which are named after the optimizer that is called."""
    named = [
        pytest.param(name, *r.values, id=f"{name}-{r.id}") for name, table in tables.items() for r in table
    ]
    return pytest.mark.parametrize("name, call, classes, words", named)
