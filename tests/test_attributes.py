"""What can be assigned to the objects: names that act, and no others; and methods that nobody would call."""

import copy
import pickle
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refuse, row, rows
from refused_calls import calls, unharmed

import paddlejax as paddle
from paddlejax import Parameter
from paddlejax.nn import ClipGradBase, ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from paddlejax.regularizer import L1Decay, L2Decay, WeightDecayRegularizer

O, fluid, incubate = paddle.optimizer, paddle.fluid, paddle.incubate  # noqa: E741


def p():
    return Parameter(jnp.ones(2), "p")


def adam(**kwargs):
    return O.Adam(0.1, parameters=[p()], **kwargs)


def groups():
    return O.Adam(0.1, parameters=[{"params": [p()], "beta1": 0.5}])


def put(make, name, value=1):
    return lambda: setattr(make(), name, value)


REFUSED = [
    row("lr", put(adam, "lr"), AttributeError, "Adam.lr", "set_lr"),
    row("learning_rate", put(adam, "learning_rate"), AttributeError, "set_lr"),
    row("slip", put(adam, "regularisation"), AttributeError, "nearest is regularization"),
    row("unknown", put(adam, "split_axis"), AttributeError, "Adam.split_axis", "subclass"),
    row("clip", put(adam, "grad_clip"), AttributeError, "_grad_clip"),
    row("decay", put(adam, "weight_decay"), AttributeError, "regularization"),
    row("decay-private", put(adam, "_weight_decay"), AttributeError, "regularization"),
    row("parameters", put(adam, "parameters", []), AttributeError, "new optimizer", "state_dict"),
    row("parameter_list", put(adam, "parameter_list", []), AttributeError, "new optimizer"),
    row("_parameter_list", put(adam, "_parameter_list", []), AttributeError, "new optimizer"),
    row("_param_groups", put(adam, "_param_groups", []), AttributeError, "new optimizer"),
    row("_accumulators", put(adam, "_accumulators", {}), AttributeError, "set_state_dict"),
    row("other-rules", put(adam, "_momentum", 0.5), AttributeError, "Adam._momentum"),
    row("range", put(adam, "_beta1", 1.5), ValueError, "beta1", "1.5", r"\[0, 1\)"),
    row("clip-type", put(adam, "_grad_clip", 1.0), TypeError, "_grad_clip", "1.0", "ClipGradBy"),
    row("decay-type", put(adam, "regularization", "x"), TypeError, "regularization", "'x'"),
    row("masters-type", put(adam, "_multi_precision", 1), TypeError, "_multi_precision", "1", "True or"),
    row("rate-type", put(adam, "_learning_rate", "x"), TypeError, "learning_rate", "'x'"),
    row("group-clip", put(groups, "_grad_clip", None), AttributeError, "_grad_clip", "groups"),
    row("group-beta", put(groups, "_beta1", 0.5), AttributeError, "_beta1", "groups"),
    row("lbfgs-masters", put(lambda: O.LBFGS(parameters=[p()]), "_multi_precision", True), AttributeError,
        "L-BFGS"),
    row("lbfgs-decay", put(lambda: O.LBFGS(parameters=[p()]), "regularization", 0.1), NotImplementedError,
        "weight decay"),
    row("fluid", put(lambda: fluid.optimizer.SGD(0.1, parameter_list=[p()]), "lr"), AttributeError, "set_lr"),
    row("parameter", put(p, "stop_gradiant"), AttributeError, "nearest is stop_gradient", "allow_tags"),
    row("parameter-lr", put(p, "lr"), AttributeError, "learning_rate"),
    row("parameter-decay", put(p, "weight_decay"), AttributeError, "regularizer"),
    row("parameter-grad", put(p, "requires_grad"), AttributeError, "stop_gradient"),
    row("parameter-shape", put(p, "shape", (1,)), AttributeError, "another Parameter"),
    row("clip-slip", put(lambda: ClipGradByNorm(1.0), "clip_nrom"), AttributeError, "nearest is clip_norm"),
    row("clip-text", put(lambda: ClipGradByNorm(1.0), "clip_norm", "x"), TypeError, "clip_norm", "'x'"),
    row("clip-zero", put(lambda: ClipGradByNorm(1.0), "clip_norm", 0.0), ValueError, "clip_norm", "above 0"),
    row("clip-max", put(lambda: ClipGradByValue(1.0, -1.0), "max", -2.0), ValueError, "min", "at most max"),
    row("clip-flag", put(lambda: ClipGradByGlobalNorm(1.0), "auto_skip_clip", 1), ValueError, "auto_skip"),
    row("fluid-clip", put(lambda: fluid.GradientClipByNorm(1.0), "clip_nrom"), AttributeError, "clip_norm"),
    row("decay-coeff", put(lambda: L2Decay(0.1), "coeff", "x"), TypeError, "coeff", "'x'"),
    row("decay-slip", put(lambda: L1Decay(0.1), "coef"), AttributeError, "nearest is coeff"),
    row("lookahead", put(lambda: incubate.LookAhead(adam()), "alpha", 0.1), AttributeError, "alpha"),
    row("lookahead-clip", put(lambda: incubate.LookAhead(adam()), "_grad_clip"), AttributeError,
        "inner_optimizer"),
    row("lookahead-inner", put(lambda: incubate.LookAhead(adam()), "inner_optimizer"), AttributeError, "new"),
    row("lookahead-lr", put(lambda: incubate.LookAhead(adam()), "lr"), AttributeError, "set_lr"),
    row("merge", put(lambda: fluid.optimizer.GradientMergeOptimizer(adam()), "k_steps", 3), AttributeError,
        "k_steps"),
    row("recompute", put(lambda: fluid.optimizer.RecomputeOptimizer(adam()), "foo"), AttributeError, "foo"),
    row("average", put(lambda: incubate.ModelAverage(0.1, [p()]), "max_average_window", 3), AttributeError,
        "new average"),
    row("ema", put(lambda: paddle.static.ExponentialMovingAverage(0.1, parameters=[p()]), "decay"),
        AttributeError, "decay"),
    *(row(f"parameter-{name}", put(p, name, value), AttributeError, name, word)
      for name, value, word in (("own_rate", -1.0, "learning_rate"), ("store", None, "another Parameter"),
                                ("traits", None, "another"), ("edits", (0, 0), "another"))),
    row("parameter-name", put(p, "name", 3), TypeError, "Parameter p's name: found 3, expected a str"),
    row("scheduler", put(lambda: O.lr.StepDecay(0.1, 3), "gama"), AttributeError, "nearest is gamma"),
    row("scheduler-rate", put(lambda: O.lr.StepDecay(0.1, 3), "learning_rate"), AttributeError, "StepDecay"),
    row("plateau", put(lambda: O.lr.ReduceOnPlateau(0.1), "patiense"), AttributeError, "nearest is patience"),
    row("fluid-schedule", put(lambda: fluid.dygraph.NoamDecay(3, 4), "warmup"), AttributeError, "NoamDecay"),
    row("fluid-epochs", put(lambda: fluid.dygraph.StepDecay(0.1, 3), "decay_rates"), AttributeError,
        "nearest is decay_rate"),
    row("scaler", put(paddle.amp.GradScaler, "_incr_ratio", 3.0), AttributeError, "set_incr_ratio"),
]  # fmt: skip


@rows(REFUSED)
def test_refused(call, classes, words):
    refuse(call, classes, words)


STEPPED = [
    row("amsgrad", lambda o: setattr(o, "_amsgrad", True), AttributeError, "_amsgrad", "first step"),
    row("masters", lambda o: setattr(o, "_multi_precision", True), AttributeError, "first step"),
    row("beta", lambda o: setattr(o, "_beta1", 1.0), ValueError, "beta1"),
    row("clip", lambda o: setattr(o, "_grad_clip", "x"), TypeError, "_grad_clip"),
    row("lr", lambda o: setattr(o, "lr", 1.0), AttributeError, "set_lr"),
]


@calls(adam=STEPPED)
def test_refused_between_steps(name, call, classes, words):
    unharmed(name, call, classes, words)


# ------------------------------------------------------------------ users' subclasses


class Mine(O.SGD):
    def __init__(self, *args, **kwargs):
        self.history = []
        super().__init__(*args, **kwargs)
        self._beta1, self.steps, self.k = 0.5, 0, 3  # SGD has no beta1: a name of its own

    def step(self):
        self.steps += 1
        self.note = "later"
        super().step()


def test_a_subclass_has_names_of_its_own():
    opt = Mine(1.0, [p()])
    opt.parameter_list[0].grad = jnp.ones(2)
    opt.step()
    opt.anything = 1
    assert (opt.steps, opt.note, opt.anything, opt._beta1, opt.history) == (1, "later", 1, 0.5, [])


@pytest.mark.parametrize("name", ["lr", "grad_clip", "regularisation", "regularizations", "_param_groups"])
def test_a_subclass_may_not_slip(name):
    with pytest.raises(AttributeError, match=name):
        setattr(Mine(1.0, [p()]), name, 1)


def test_a_subclass_may_call_its_own_what_is_close():
    class Close(O.SGD):
        regularisation = None

    opt = Close(1.0, [p()])
    opt.regularisation = 3
    assert opt.regularisation == 3


def test_subclasses_of_clips_decays_and_parameters():
    class Clip(ClipGradBase):
        def __init__(self):
            self.times = 2.0

        def clip(self, grads):
            return [g * self.times for g in grads]

    class Decay(WeightDecayRegularizer):
        def term(self, p):
            return self.coeff * p * self.times

    class Tagged(Parameter):
        split_axis = 0

    clip, decay, q = Clip(), Decay(0.5), Tagged(jnp.ones(2), "q")
    decay.times, q.split_axis, q.own = 1.0, 1, 2
    opt = O.SGD(1.0, [q], weight_decay=decay, grad_clip=clip)
    q.grad = jnp.ones(2)
    opt.step()
    assert q.numpy()[0] == 1 - 2.5
    clip.times, decay.times = 0.0, 2.0
    opt.step()
    assert q.numpy()[0] == -1.5 + 1.5


def test_schedulers_of_users_are_free():
    class Own(O.lr.LRScheduler):
        def get_lr(self):
            return getattr(self, "factor", 1.0)

    schedule = Own(0.1)
    schedule.factor = 0.5
    schedule.step()
    assert schedule() == 0.5


def test_attributes_of_our_schedulers_act():
    schedule, cyclic = O.lr.StepDecay(0.1, 1), O.lr.CyclicLR(0.1, 0.5, 2)
    schedule.gamma, schedule.base_lr, cyclic.max_lr = 0.5, 1.0, 0.9
    schedule.step(), cyclic.step()
    assert (schedule(), cyclic()) == (0.5, 0.5)
    noam, steps = fluid.dygraph.NaturalExpDecay(0.5, 1, 0.1), fluid.dygraph.StepDecay(0.5, 1)
    noam.step_num, noam.decay_rate, steps.decay_rate = 1, 0.0, 0.5
    steps.epoch()
    assert (noam(), steps()) == (0.5, 0.25)


def test_tags():
    Parameter.allow_tags("no_weight_decay", "split_axis")
    q = p()
    assert not hasattr(q, "no_weight_decay") and getattr(q, "split_axis", None) is None
    q.no_weight_decay, q.split_axis = True, 1
    for other in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert other.no_weight_decay and other.split_axis == 1
    with pytest.raises(ValueError, match="learning_rate"):
        Parameter.allow_tags("learning_rate")
    with pytest.raises(ValueError, match="weight_decay"):
        Parameter.allow_tags("weight_decay")
    with pytest.raises(TypeError, match="'a b'"):
        Parameter.allow_tags("a b")
    Parameter.allow_tags("split_axis")  # twice is as good as once


def test_data_is_the_value():
    q = p()
    q.data = jnp.zeros(2)
    assert q.data is q and not q.numpy().any()


# ------------------------------------------------------------------ copies, pickles, mocks


COPIED = [p, lambda: ClipGradByNorm(1.0), lambda: ClipGradByValue(1.0), lambda: L2Decay(0.1),
          lambda: fluid.GradientClipByGlobalNorm(1.0), lambda: fluid.regularizer.L1Decay(0.1),
          paddle.amp.GradScaler, lambda: O.lr.StepDecay(0.1, 3), paddle.ParamAttr]  # fmt: skip


@pytest.mark.parametrize("make", COPIED)
def test_copied_and_pickled(make):
    one = make()
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is type(one) and vars(other).keys() == vars(one).keys()


def test_a_copied_clip_is_another():
    clip = ClipGradByNorm(1.0)
    clip.transformation(), clip.for_group()
    other = copy.deepcopy(clip)
    other.clip_norm = 0.5
    assert clip.clip_norm == 1.0 and "0.5" in str(other.transformation())


@pytest.mark.parametrize("make", [adam, groups, lambda: incubate.LookAhead(adam()), lambda: Mine(0.1, [p()])])
def test_copied_optimizers_step(make):
    opt = make()
    for other in (copy.copy(opt), copy.deepcopy(opt)):
        other.parameter_list[0].grad = jnp.ones(2)
        other.step()
    assert opt.parameter_list[0].numpy()[0] == pytest.approx(0.9, abs=1e-6)


def test_mocks():
    opt, q = adam(), p()
    with mock.patch.object(opt, "step") as step:
        opt.step()
    step.assert_called_once()
    with mock.patch.object(opt, "get_lr", return_value=0.5):
        assert opt.get_lr() == 0.5
    with mock.patch.object(O.Adam, "step", autospec=True) as step:
        opt.step()
    step.assert_called_once_with(opt)
    with mock.patch.object(q, "stop_gradient", True):
        assert not q.trainable
    assert q.trainable and "step" not in vars(opt)
    assert mock.create_autospec(O.Adam, instance=True).get_lr is not None
    assert mock.Mock(spec=q).name is not None


# ------------------------------------------------------------------ methods that nobody calls


HOOKS = ["_append_optimize_op", "_create_accumulators", "_apply_optimize", "_finish_update",
         "_add_accumulator", "_create_param_lr", "_append_optimize_multi_tensor_op", "_update_param_group",
         "_create_regularization_of_grad"]  # fmt: skip
BASES = [O.Optimizer, O.AdamW, O.LBFGS, fluid.optimizer.Adam, incubate.LookAhead, incubate.ModelAverage]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_paddle_are_refused(base, hook):
    with pytest.raises(TypeError, match=rf"Own defines {hook}, which is never called"):
        type("Own", (base,), {hook: lambda self, *args: None})


def test_what_to_use_in_place_of_hooks():
    def refused(hook):
        with pytest.raises(TypeError) as caught:
            type("Own", (O.AdamW,), {hook: lambda self, *args: None})
        return str(caught.value)

    assert all(word in refused("_append_optimize_op") for word in ("lr_ratio=", "Rule", "rule="))
    assert "Rule" in refused("_create_accumulators") and "by_path" in refused("_update_param_group")


def test_hooks_of_a_mixin_are_refused():
    class Mixin:
        def _append_optimize_op(self, block, param_and_grad):
            pass

    with pytest.raises(TypeError, match="_append_optimize_op"):
        type("Own", (Mixin, O.SGD), {})


def test_hooks_assigned_to_an_object_are_refused():
    with pytest.raises(AttributeError, match=r"_append_optimize_op.*lr_ratio="):
        adam()._append_optimize_op = print
    with pytest.raises(AttributeError, match=r"_append_optimize_op.*lr_ratio="):
        Mine(0.1, [p()])._append_optimize_op = print


@pytest.mark.parametrize(
    "base, make",
    [
        (O.Adam, lambda cls: cls(0.1, parameters=[p()])),
        (incubate.LookAhead, lambda cls: cls(adam())),
        (incubate.ModelAverage, lambda cls: cls(0.1, [p()])),
    ],
)
def test_hooks_assigned_to_a_class_are_refused(base, make):
    """At the next instance; on the class of the package itself nobody looks."""
    cls = type("Late", (base,), {})
    make(cls)
    cls._append_optimize_op = lambda self, block, pair: None
    with pytest.raises(TypeError, match="Late defines _append_optimize_op, which is never called here"):
        make(cls)


def test_hooks_of_clips_and_decays_are_refused():
    with pytest.raises(TypeError, match="_static_clip.*clip"):
        type("Own", (ClipGradBase,), {"_static_clip": lambda self, pairs: pairs})
    with pytest.raises(TypeError, match="__call__.*term"):
        type("Own", (L2Decay,), {"__call__": lambda self, p, g, block: p})
    both = {"_static_clip": None, "_dygraph_clip": lambda self, pairs: pairs}
    assert type("Own", (ClipGradBase,), both)().outside()


# ------------------------------------------------------------------ what is no optimizer of anything


def test_one_group_dict_is_no_tree():
    for given in ([p()], (p(),), p(), iter([p()])):
        with pytest.raises(TypeError, match=r"one dict with 'params'.*\[\{'params'"):
            O.SGD(0.1, parameters={"params": given, "learning_rate": 0.5})
    assert len(O.SGD(0.1, parameters={"params": {"w": jnp.ones(2)}}).parameter_list) == 1  # a tree of flax


@pytest.mark.parametrize("given", [[], (), {}, [{"params": []}], {"a": None}])
def test_nothing_is_refused(given):
    for make in (
        lambda x: O.SGD(0.1, x),
        lambda x: incubate.ModelAverage(0.1, x),
        lambda x: O.LBFGS(parameters=x),
    ):
        with pytest.raises(IndexError, match=r"parameters: found none, expected at least one"):
            make(given)


# ------------------------------------------------------------------ names


TREE = {"blocks": [{"norm": {"scale": np.ones(2, "f4")}, "w": np.ones(2, "f4")}], "out": np.ones(2, "f4")}
NAMES = {"layer_norm_0.w_0": "blocks/0/norm/scale", "linear_0.w_0": "blocks/0/w"}


def named(**kwargs):
    tree = paddle.parameters(TREE, **kwargs)
    return [tree["blocks"][0]["norm"]["scale"].name, tree["blocks"][0]["w"].name, tree["out"].name]


def test_names_of_a_tree():
    assert named() == ["blocks/0/norm/scale", "blocks/0/w", "out"]
    assert named(separator=".") == ["blocks.0.norm.scale", "blocks.0.w", "out"]
    assert named(names=NAMES) == ["layer_norm_0.w_0", "linear_0.w_0", "out"]
    dotted = {theirs: ours.replace("/", ".") for theirs, ours in NAMES.items()}
    assert named(separator=".", names=dotted) == ["layer_norm_0.w_0", "linear_0.w_0", "out"]
    for bad, error, word in (
        ({"separator": 1}, TypeError, "separator"),
        ({"names": ["x"]}, TypeError, "names"),
        ({"names": {"x": "nowhere"}}, ValueError, "nowhere"),
        ({"names": {"x": "out", "y": "out"}}, ValueError, "two names"),
    ):
        with pytest.raises(error, match=word):
            paddle.parameters(TREE, **bad)


def excluded(p):
    return "layer_norm" in p.name


PREDICATES = [
    lambda ps: O.AdamW(0.1, parameters=ps, apply_decay_param_fun=lambda name: "layer_norm" not in name),
    lambda ps: O.Lamb(0.1, parameters=ps, exclude_from_weight_decay_fn=excluded),
    lambda ps: incubate.optimizer.LarsMomentumOptimizer(
        0.1, 0.9, parameter_list=ps, exclude_from_weight_decay=["layer_norm"]
    ),
    lambda ps: fluid.optimizer.Lamb(0.1, parameter_list=ps, exclude_from_weight_decay_fn=excluded),
]


@pytest.mark.parametrize("make", PREDICATES)
def test_a_predicate_that_tells_nothing_apart_warns(make):
    with pytest.warns(UserWarning, match=r"excludes none of 3.*blocks/0/norm/scale.*names=") as caught:
        make(paddle.parameters(TREE))
    assert len(caught) == 1
    make(paddle.parameters(TREE, names={**NAMES, "linear_1.w_0": "out"}))  # quiet: these are the names
    make(paddle.parameters(TREE, names=NAMES))
    make(paddle.parameters({"layer_norm": np.ones(2, "f4"), "a": np.ones(2, "f4"), "b": np.ones(2, "f4")}))
    make(paddle.parameters({"a": np.ones(2, "f4"), "b": np.ones(2, "f4")}))
