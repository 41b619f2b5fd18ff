"""Whatever is done to an optimizer object, in whatever order, numbers come out as in a small numpy model.

The model keeps for every Parameter its value, its accumulators and so its own count of steps.
PADDLEJAX_EXAMPLES=50 plays that many games of each instead of a few.
"""

import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import paddlejax as paddle
from paddlejax.optimizer import lr

GAMES = int(os.environ.get("PADDLEJAX_EXAMPLES", "0"))
SHAPES = {"table": (5, 2), "w": (2, 3), "b": (3,), "s": ()}
NAMES = list(SHAPES)
KINDS = {  # class, its arguments, the reference's
    "Adam": (paddle.optimizer.Adam, {"lazy_mode": True}, {}),
    "Momentum": (paddle.optimizer.Momentum, {"momentum": 0.9, "use_nesterov": True}, {"use_nesterov": True}),
    "Lamb": (paddle.optimizer.Lamb, {"lamb_weight_decay": 0.1}, {"lamb_weight_decay": 0.1}),
}
RULES = {"Adam": "adam", "Momentum": "momentum", "Lamb": "lamb"}
EMA = np.float32(0.5)
seeds = st.integers(0, 9)
some = st.sets(st.sampled_from(NAMES))


def numbers(name, seed):
    return np.random.default_rng([seed, NAMES.index(name)]).normal(size=SHAPES[name]).astype(np.float32)


@paddle.loss
def along(params, directions, rows):
    """A loss with these gradients; the table is read by `rows`."""
    total = sum(jnp.sum(p * d) for p, d in zip(params[1:], directions, strict=True))
    return total + jnp.sum(paddle.sparse.embedding(params[0], rows) * 0.5)


class Game(RuleBasedStateMachine):
    kind = "Adam"

    def __init__(self):
        super().__init__()
        self.cls, self.options, self.hyper = KINDS[self.kind]
        self.init, self.move = reference.REFERENCES[RULES[self.kind]]
        self.values = {name: numbers(name, 0) for name in NAMES}
        self.states, self.grads = {}, dict.fromkeys(NAMES)
        self.frozen, self.rate = set(), 0.1
        self.parameters = {n: paddle.Parameter(p, n, sparse=n == "table") for n, p in self.values.items()}
        self.opt = self.made(0.1)
        self.scheduler = None
        self.ema = paddle.static.ExponentialMovingAverage(
            float(EMA), parameters=list(self.parameters.values())
        )
        self.averages, self.updates = {n: np.zeros_like(p) for n, p in self.values.items()}, 0
        self.saved = None

    def made(self, rate):
        return self.cls(rate, parameters=list(self.parameters.values()), **self.options)

    # -------------------------------------------------------------------------------- gradients

    @rule(seed=seeds, names=some)
    def give_gradients(self, seed, names):
        for name in sorted(names):
            if name == "table":
                continue
            g = self.grads[name] = numbers(name, seed)
            self.parameters[name].grad = g

    @rule(rows=st.lists(st.sampled_from([0, 1, 1, 3, 4, 5, -1]), min_size=4, max_size=4), seed=seeds)
    def give_rows(self, rows, seed):
        values = np.resize(numbers("table", seed), (4, 2))
        self.grads["table"] = np.array(rows), values
        self.parameters["table"].grad = paddle.SelectedRows(np.array(rows, np.int32), jnp.asarray(values), 5)

    @rule(names=some)
    def take_gradients_away(self, names):
        for name in sorted(names):
            self.grads[name] = self.parameters[name].grad = None

    @rule(to_zero=st.booleans())
    def clear_grad(self, to_zero):
        self.opt.clear_grad(to_zero)
        self.model_clears(to_zero)

    def model_clears(self, to_zero):
        for name, g in self.grads.items():
            if g is not None and name not in self.frozen:
                dense = not isinstance(g, tuple)
                self.grads[name] = np.zeros_like(g) if to_zero and dense else None

    # -------------------------------------------------------------------------------- steps

    @precondition(lambda self: self.saved is None)
    @rule()
    def step(self):
        self.opt.step()
        self.model_steps()

    @precondition(lambda self: self.saved is None)
    @rule(seed=seeds, rows=st.sampled_from([[0, 1, 1, 4], [2, 2, 2, 2], [-1, 5, 3, 0]]), clear=st.booleans())
    def minimize(self, seed, rows, clear):
        """Fused if gradients were cleared and nothing is frozen, in two parts otherwise."""
        if clear:
            self.clear_grad(False)
        directions = [numbers(name, seed) for name in NAMES[1:]]
        loss = along(list(self.parameters.values()), directions, jnp.asarray(np.array(rows, np.int32)))
        real = [row for row in rows if 0 <= row < 5]
        values = np.full((4, 2), 0.5, np.float32)
        added = dict(zip(NAMES[1:], directions, strict=True)) | {"table": (np.array(rows), values)}
        total = sum(np.sum(self.values[n] * d) for n, d in zip(NAMES[1:], directions, strict=True))
        total += 0.5 * np.sum(self.values["table"][real])
        self.opt.minimize(loss)
        np.testing.assert_allclose(float(loss), total, rtol=1e-4, atol=1e-5)
        for name, g in added.items():
            if name not in self.frozen:
                self.grads[name] = self.summed(self.grads[name], g)
        held = {name: self.grads[name] for name in self.frozen}
        self.grads |= dict.fromkeys(self.frozen)
        self.model_steps()
        self.grads |= held

    def summed(self, old, new):
        if old is None:
            return new
        if isinstance(new, tuple):
            return tuple(np.concatenate(pair) for pair in zip(old, new, strict=True))
        return old + new

    def model_steps(self):
        for name, g in self.grads.items():
            if g is None or name in self.frozen:
                continue
            p = self.values[name]
            state = self.states.get(name) or self.init(p, **self.hyper)
            if not isinstance(g, tuple):
                self.values[name], self.states[name] = self.move(p, g, self.rate, state, **self.hyper)
                continue
            rows, values = g
            real = (rows >= 0) & (rows < 5)
            rows, values = reference.merged(rows[real], values[real])
            if self.kind == "Adam":
                moved = reference.only_rows(self.move, rows, p, values, self.rate, state, self.hyper)
            else:
                moved = self.move(p, reference.spread(p.shape, rows, values), self.rate, state, **self.hyper)
            self.values[name], self.states[name] = moved

    # -------------------------------------------------------------------------------- rates

    @precondition(lambda self: self.scheduler is None)
    @rule(rate=st.sampled_from([0.0, 0.01, 0.3]))
    def set_lr(self, rate):
        self.opt.set_lr(rate)
        self.rate = rate

    @rule(gamma=st.sampled_from([0.5, 0.9]))
    def another_scheduler(self, gamma):
        self.scheduler = lr.ExponentialDecay(0.1, gamma)
        self.opt.set_lr_scheduler(self.scheduler)
        self.rate = 0.1

    @precondition(lambda self: self.scheduler is not None)
    @rule()
    def step_the_scheduler(self):
        self.scheduler.step()
        self.rate = 0.1 * self.scheduler.gamma**self.scheduler.last_epoch

    # -------------------------------------------------------------------------------- the rest

    @rule(name=st.sampled_from(NAMES))
    def freeze_or_thaw(self, name):
        self.frozen ^= {name}
        self.parameters[name].stop_gradient = name in self.frozen

    @precondition(lambda self: self.saved is None)
    @rule(name=st.sampled_from(NAMES), seed=seeds)
    def set_value(self, name, seed):
        self.values[name] = numbers(name, seed)
        self.parameters[name].set_value(self.values[name])

    @rule(name=st.sampled_from(NAMES))
    def hold_a_value(self, name):
        """What was handed out survives whatever comes."""
        held = self.parameters[name].value
        before = np.array(held)
        if self.saved is None:
            self.step()
        np.testing.assert_array_equal(held, before)

    @precondition(lambda self: self.saved is None)
    @rule(through_a_file=st.booleans())
    def go_on_with_another_object(self, through_a_file):
        state = self.opt.state_dict()
        values = {name: p.value for name, p in self.parameters.items()}
        if through_a_file:
            with tempfile.TemporaryDirectory() as folder:
                paths = str(Path(folder) / "model.pdparams"), str(Path(folder) / "model.pdopt")
                paddle.save(values, paths[0])
                paddle.save(state, paths[1])
                values, state = map(paddle.load, paths)
        for name, value in values.items():
            self.parameters[name].set_value(value)
        self.opt = self.made(self.opt.get_lr())
        if self.scheduler is not None:
            self.scheduler = lr.ExponentialDecay(0.1, self.scheduler.gamma)
            self.opt.set_lr_scheduler(self.scheduler)
        self.opt.set_state_dict(state, strict=False)

    @precondition(lambda self: self.saved is None)
    @rule()
    def update_the_average(self):
        self.ema.update()
        self.updates += 1
        self.averages = {n: EMA * a + (1 - EMA) * self.values[n] for n, a in self.averages.items()}

    @precondition(lambda self: self.saved is None and self.updates > 0)
    @rule()
    def apply_the_average(self):
        with self.ema.apply(need_restore=False):
            pass
        self.saved = self.values
        self.values = {n: a / (1 - EMA**self.updates) for n, a in self.averages.items()}

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self):
        self.ema.restore()
        self.values, self.saved = self.saved, None

    # -------------------------------------------------------------------------------- the check

    @invariant()
    def the_numbers_are_those_of_the_model(self):
        for name, want in self.values.items():
            close(self.parameters[name].numpy(), want, name)
            g, found = self.grads[name], self.parameters[name].grad
            assert (g is None) == (found is None)
            if isinstance(g, tuple):
                close(found.to_dense(), dense(*g), name)
            elif g is not None:
                close(found, g, name)
        assert self.opt.get_lr() == pytest.approx(self.rate)
        entries = self.opt.state_dict()
        entries.pop("LR_Scheduler", None)
        want = {f"{n}_{k}_0": a for n, state in self.states.items() for k, a in state.items()}
        assert entries.keys() == want.keys()
        for key, found in entries.items():
            close(found, want[key], key)


def dense(rows, values):
    real = (rows >= 0) & (rows < 5)
    rows, values = reference.merged(rows[real], values[real])
    return reference.spread((5, 2), rows, values)


def close(found, want, what):
    """Of float32 after some dozen steps."""
    scale = max(1.0, float(np.max(np.abs(want))))
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-5 * scale, err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_actions(kind):
    run_state_machine_as_test(
        type(kind, (Game,), {"kind": kind}),
        settings=settings(
            max_examples=GAMES or 4,
            stateful_step_count=25,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if GAMES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
