"""Paddle's names: each is there and does what it says, or says the way in JAX when it is used."""

import builtins
import copy
import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as paddle
from paddlejax import elsewhere, fluid

GOLDEN = Path(__file__).parent / "golden"


def params():
    return [paddle.Parameter(jnp.array([3.0, 4.0]), "w"), paddle.Parameter(jnp.ones(3), "b")]


# ------------------------------------------------------------------- what is not here

USES = {
    "call": lambda x: x(3, y=4),
    "subclass": lambda x: exec("class Net(x): pass", {"x": x}),
    "isinstance": lambda x: isinstance(3, x),
    "issubclass": lambda x: issubclass(int, x),
    "with": lambda x: exec("with x: pass", {"x": x}),
    "index": lambda x: x[0],
    "iterate": lambda x: list(x),
    "assign": lambda x: setattr(x, "training", True),
    "arithmetic": lambda x: x + 1,
    "decorate": lambda x: x(lambda: None),
}
# A name, as it would be imported, and words of the way.
ELSEWHERE = {
    "Model": "opt.minimize(loss)",
    "DataParallel": "jax.sharding.Mesh",
    "to_tensor": "jax.numpy.asarray",
    "seed": "jax.random.key",
    "randn": "jax.random",
    "mean": "jax.numpy.mean",
    "zeros": "jax.numpy.zeros",
    "float32": "jax.numpy.float32",
    "CPUPlace": "jax.default_device",
    "set_device": "leave it out",
    "disable_static": "leave it out",
    "enable_static": "opt.minimize",
    "grad": "jax.grad",
    "create_parameter": "paddlejax.Parameter",
    "nn.Linear": "flax",
    "nn.Layer": "paddlejax.parameters",
    "nn.CrossEntropyLoss": "@paddlejax.loss",
    "nn.functional.relu": "jax.nn",
    "nn.initializer.XavierNormal": "jax.nn.initializers",
    "io.DataLoader": "arrays of numpy or JAX",
    "vision.transforms.Compose": "arrays of numpy or JAX",
    "vision.models.resnet50": "flax",
    "metric.Accuracy": "opt.minimize",
    "jit.to_static": "jax.jit",
    "autograd.PyLayer": "jax.custom_vjp",
    "static.Executor": "opt.minimize",
    "static.data": "arrays of numpy or JAX",
    "static.nn.fc": "flax",
    "distributed.fleet": "jax.sharding.Mesh",
    "distributed.fleet.init": "jax.sharding.Mesh",
    "distributed.init_parallel_env": "launch",
    "incubate.distributed.fleet": "jax.sharding.Mesh",
    "device.set_device": "leave it out",
    "fluid.Executor": "opt.minimize",
    "fluid.Program": "opt.minimize",
    "fluid.CPUPlace": "leave it out",
    "fluid.layers.data": "arrays of numpy or JAX",
    "fluid.layers.fc": "flax",
    "fluid.dygraph.Linear": "flax",
    "fluid.dygraph.DataParallel": "jax.sharding.Mesh",
    "fluid.initializer.Xavier": "jax.nn.initializers",
    "fluid.io.save_persistables": "arrays of numpy or JAX",
    "fluid.clip.set_gradient_clip": "grad_clip=",
}


def by_attribute(path):
    found = paddle
    for name in path.split("."):
        assert hasattr(found, name)
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_name_that_is_not_here_imports_and_says_the_way_when_it_is_used(path):
    home, _, name = f"paddlejax.{path}".rpartition(".")
    there: dict[str, object] = {}
    exec(f"from {home} import {name}", there)
    thing = there[name]
    assert thing is by_attribute(path) is copy.deepcopy(thing) is pickle.loads(pickle.dumps(thing))
    assert not isinstance(thing, type) and not hasattr(thing, "__wrapped__")
    for use in USES.values():
        with pytest.raises(elsewhere.ElsewhereError) as e:
            use(thing)
        text = str(e.value)
        assert text.startswith(f"paddlejax.{path} is not here: ") and ELSEWHERE[path] in text
        assert "\n" not in text and ". " not in text.replace("tf.data", "")
    assert f"paddlejax.{path}, not here" in repr(thing)


def test_modules_that_are_not_here_can_be_imported():
    code = """
import paddlejax as paddle
import paddlejax.io as io
import paddlejax.vision.transforms as T
import paddlejax.nn.functional as F
import paddlejax.distributed.fleet as fleet
import paddlejax.fluid.layers.nn
from paddlejax.io import DataLoader, Dataset
from paddlejax.vision.models.resnet import resnet18
from paddlejax.distributed import fleet as again
assert io is paddle.io and DataLoader is io.DataLoader and F is paddle.nn.functional and fleet is again
assert T.Compose is paddle.vision.transforms.Compose
try:
    import paddlejax.nonsense
except ModuleNotFoundError as e:
    print(e)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "No module named 'paddlejax.nonsense'\n"


@pytest.mark.parametrize(
    "home", ["", "nn", "fluid", "distributed", "static", "amp", "optimizer", "fluid.layers"]
)
def test_a_slip_is_an_attribute_error_as_before(home):
    module = by_attribute(home) if home else paddle
    if home != "fluid.layers":
        with pytest.raises(AttributeError, match="has no attribute 'xyzzy'$"):
            module.xyzzy  # noqa: B018
    assert not hasattr(module, "_private")
    with pytest.raises(ImportError):
        exec(f"from {module.__name__} import _private")


def test_no_name_of_the_table_is_here():
    """A name that comes to exist must leave the table, and each name stands there once."""
    names = [name for words in elsewhere.WAYS.values() for name in words.split()]
    assert len(names) == len(set(names))
    for name in names:
        home, _, last = f"paddlejax.{name.rstrip('.')}".rpartition(".")
        module = sys.modules.get(home) or importlib.import_module(home)
        if isinstance(vars(module).get(last), type(sys)) and name in ("fluid.layers.",):
            continue  # of which the schedules are here
        assert not hasattr(module, "__all__") or last not in module.__all__, name


# ------------------------------------------------------------------------------ where Paddle's modules lie


@pytest.mark.parametrize(
    "module, names",
    [
        ("optimizer.adamw", "AdamW"),
        ("optimizer.momentum", "Momentum"),
        ("optimizer.optimizer", "Optimizer"),
        ("optimizer.lbfgs", "LBFGS"),
        ("optimizer.lr", "LRScheduler NoamDecay"),
        ("nn.clip", "ClipGradByNorm ClipGradByGlobalNorm"),
        ("nn.utils", "parameters_to_vector vector_to_parameters clip_grad_norm_"),
        ("nn.utils.transform_parameters", "parameters_to_vector"),
        ("amp.grad_scaler", "GradScaler"),
        ("regularizer", "L2Decay WeightDecayRegularizer"),
        ("incubate.optimizer.lookahead", "LookAhead"),
        ("incubate.optimizer.lars_momentum", "LarsMomentumOptimizer"),
        ("incubate.optimizer.modelaverage", "ModelAverage"),
        ("fluid.param_attr", "ParamAttr"),
        ("fluid.clip", "GradientClipBase GradientClipByNorm"),
        ("fluid.regularizer", "L2DecayRegularizer WeightDecayRegularizer"),
        ("fluid.dygraph.base", "guard to_variable enabled"),
        ("fluid.dygraph.checkpoint", "save_dygraph load_dygraph"),
        ("fluid.dygraph.learning_rate_scheduler", "LearningRateDecay PolynomialDecay"),
        ("fluid.layers.learning_rate_scheduler", "polynomial_decay linear_lr_warmup"),
        ("fluid.optimizer", "DGCMomentum DGCMomentumOptimizer ModelAverageOptimizer Optimizer"),
    ],
)
def test_paddles_paths_lead_to_the_same_things(module, names):
    found = importlib.import_module(f"paddlejax.{module}")
    assert by_attribute(module) is found
    for name in names.split():
        thing = getattr(found, name)
        assert not isinstance(thing, elsewhere.Elsewhere)
        home = importlib.import_module(f"paddlejax.{elsewhere.ALIASES.get(module, module)}")
        assert getattr(home, name) is thing


def test_every_name_of_1x_that_the_guide_gives_exists_with_optimizer_behind_it():
    page = paddle.guide.optimizers.__doc__
    first = page[page.index("| function | object | 1.x") :].split("\n\nEvery class of 1.x")[0]
    names = [
        n for row in first.split("\n") for cell in row.split("|")[3:4] for n in re.findall(r"`(\w+)`", cell)
    ]
    assert len(names) > 15
    for name in names:
        cls = getattr(fluid.optimizer, name)
        assert getattr(fluid.optimizer, name.removesuffix("Optimizer") + "Optimizer") is cls


# ------------------------------------------------------------------------------------------- fluid

DECAYS = json.loads((GOLDEN / "fluid18" / "decays.json").read_text())


def built(value):
    if isinstance(value, dict):
        return getattr(fluid.layers, value["name"])(*map(built, value["args"]))
    return value


@pytest.mark.parametrize("case", DECAYS, ids=lambda c: f"{c['name']}-{DECAYS.index(c)}")
def test_the_schedule_functions_return_what_185_returns_in_dygraph(case):
    if "raises" in case:
        with pytest.raises(getattr(builtins, case["raises"]), match="expected"):
            built(case)
        return
    schedule = built(case)
    assert type(schedule).__name__ == case["class"]
    rates = [float(schedule()) for _ in case["rates"]]
    start = case["args"][2] if case["name"] == "linear_lr_warmup" else 0
    if start:  # 1.8.5 rises from 0 whatever start_lr says
        assert rates[:3] == pytest.approx([start + (0.5 - start) * t / 4 for t in (1, 2, 3)])
        rates[:3] = case["rates"][:3]
    np.testing.assert_allclose(rates, case["rates"], rtol=0, atol=1.2e-7 * max(rates))


def test_dygraph_is_always_on():
    with fluid.dygraph.guard():
        assert fluid.dygraph.enabled()
        x = fluid.dygraph.to_variable(np.ones((2, 3), "float32"))
    assert isinstance(x, jax.Array) and x.shape == (2, 3)
    p = params()[0]
    assert fluid.dygraph.to_variable(p) is p
    device = jax.devices()[3]
    with fluid.dygraph.guard(device):
        assert jnp.zeros(1).devices() == {device}
    fluid.enable_dygraph()
    for wrong in ([1.0], 3.0):
        with pytest.raises(TypeError, match="to_variable's value: found .* expected a numpy array"):
            fluid.dygraph.to_variable(wrong)
    with pytest.raises(TypeError, match="guard's place: found 'gpu', expected a device"):
        fluid.dygraph.guard("gpu").__enter__()
    with pytest.raises(TypeError, match="enable_dygraph's place"):
        fluid.enable_dygraph(device)


def test_a_schedule_of_ones_own_may_make_its_rate_with_create_lr_var():
    class Mine(fluid.dygraph.learning_rate_scheduler.LearningRateDecay):
        def step(self):
            return self.create_lr_var(np.array([0.5 / (1 + self.step_num)]))

    p = params()
    opt = fluid.optimizer.SGD(Mine(), p)
    for want in (0.5, 0.25):
        opt.minimize(lambda params: jnp.sum(params[0]))
        assert opt.current_step_lr() == want
    rate = opt._global_learning_rate()
    assert rate.numpy().tolist() == [0.25] and rate.shape == (1,)
    assert paddle.optimizer.SGD(0.5, p)._global_learning_rate().numpy() == np.float32(0.5)


# --------------------------------------------------------------------------------- the optimizer's


def test_the_views_of_an_optimizer_are_copies_of_its_state():
    w, b = params()
    opt = paddle.optimizer.Adam(0.1, parameters=[w, b])
    assert dict(opt._accumulators) == {} and opt.get_opti_var_name_list() == []
    opt.apply_gradients([(w, jnp.ones(2)), (b, jnp.ones(3))])
    # The order is that of the real 3.3.1.
    names = ["moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0"]
    assert opt.get_opti_var_name_list() == [f"{p}_{n}" for p in "wb" for n in names]
    assert set(opt.get_opti_var_name_list()) == set(opt.state_dict())
    assert {k: {n: x.shape for n, x in v.items()} for k, v in opt._accumulators.items()} == {
        "moment1": {"w": (2,), "b": (3,)},
        "moment2": {"w": (2,), "b": (3,)},
        "beta1_pow_acc": {"w": (1,), "b": (1,)},
        "beta2_pow_acc": {"w": (1,), "b": (1,)},
    }
    np.testing.assert_allclose(opt._get_accumulator("moment1", b), 0.1, rtol=1e-6)
    before = opt._accumulators["moment1"]["w"]
    opt.step()
    opt.apply_gradients([(w, jnp.ones(2))])
    np.testing.assert_allclose(before, 0.1, rtol=1e-6)  # still there
    with pytest.raises(ValueError, match="found velocity of w, expected one of: moment1, moment2"):
        opt._get_accumulator("velocity", w)
    for change in (lambda: opt._accumulators.clear(), lambda: opt._accumulators.update(moment1={})):
        with pytest.raises(AttributeError):
            change()


def test_the_parameters_of_an_optimizer_as_paddle_shows_them():
    w, b = params()
    opt = paddle.optimizer.Momentum(0.1, parameters=[w, b])
    assert list(opt._parameter_list) == list(opt._param_groups) == [w, b] and not opt._master_weights
    grouped = paddle.optimizer.Momentum(
        0.1, parameters=[{"params": [w], "learning_rate": 0.5}, {"params": [b]}]
    )
    first, second = grouped._parameter_list
    assert isinstance(first, dict) and list(first["params"]) == [w] and first["learning_rate"] == 0.5
    assert list(second["params"]) == [b]
    for change in (
        lambda: first.update(learning_rate=1.0),
        lambda: first.__setitem__("learning_rate", 1.0),
        lambda: first.pop("params"),
    ):
        with pytest.raises(TypeError, match="_param_groups: found an assignment, expected none"):
            change()
    with pytest.raises(AttributeError):
        opt._parameter_list.append(w)  # type: ignore[attr-defined]
    assert copy.deepcopy(first)["learning_rate"] == 0.5
    ahead = paddle.incubate.LookAhead(opt)
    assert list(ahead._parameter_list) == [w, b]


def test_the_masters_of_an_optimizer_by_name():
    p = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "p")
    opt = paddle.optimizer.Adam(0.1, parameters=[p], multi_precision=True)
    opt.apply_gradients([(p, jnp.ones(2, jnp.bfloat16))])
    assert {k: (v.dtype, v.shape) for k, v in opt._master_weights.items()} == {"p": (jnp.float32, (2,))}


TYPES = {
    **{n: n.lower() for n in "SGD Momentum AdamW Adam Adamax Adagrad Adadelta RMSProp Lamb ASGD".split()},
    **{n: n.lower() for n in "NAdam RAdam Rprop".split()},
}
FLUID_TYPES = {
    "SGD": "sgd",
    "Momentum": "momentum",
    "LarsMomentum": "lars_momentum",
    "Adagrad": "adagrad",
    "DecayedAdagrad": "decayed_adagrad",
    "Adadelta": "adadelta",
    "Adam": "adam",
    "Adamax": "adamax",
    "RMSProp": "rmsprop",
    "Ftrl": "ftrl",
    "Lamb": "lamb",
    "Dpsgd": "dpsgd",
}


def test_the_type_of_an_optimizer_is_paddles():
    for name, want in TYPES.items():
        assert getattr(paddle.optimizer, name)(0.1, parameters=params()).type == want
    for name, want in FLUID_TYPES.items():
        args = (0.1, 0.9) if "omentum" in name else (0.1,)
        assert getattr(fluid.optimizer, name)(*args, parameter_list=params()).type == want
    assert fluid.optimizer.DGCMomentum(0.1, 0.9, 1, parameter_list=params()).type == "dgc_momentum"


def test_zero_grad_drops_gradients_and_clear_grad_zeroes_them():
    w, b = params()
    opt = paddle.optimizer.SGD(0.1, parameters=[w, b])
    for clear, want in ((opt.zero_grad, None), (lambda: opt.zero_grad(set_to_none=False), 0.0)):
        w.grad = jnp.ones(2)
        clear()
        assert w.grad is None if want is None else float(jnp.sum(w.grad)) == want


def test_a_model_average_has_the_methods_of_an_optimizer():
    w, b = params()
    fit = paddle.loss(lambda w, b: jnp.sum(w) + jnp.sum(b))
    average = paddle.incubate.ModelAverage(1.0, [w, b])
    pairs = average.backward(fit(w, b))
    assert [p for p, g in pairs] == [w, b] and pairs[0][1].tolist() == [1.0, 1.0]
    assert average.apply_gradients(pairs[:1]) == []
    w.set_value(jnp.zeros(2))
    assert average.apply_optimize(None, None, pairs[:1]) == []
    average.clear_grad()
    assert w.grad.tolist() == [0.0, 0.0]
    with average.apply():
        assert w.numpy().tolist() == [1.5, 2.0] and b.numpy().tolist() == [1.0, 1.0, 1.0]
    fluid.optimizer.ModelAverage(1.0, parameter_list=[w]).minimize(None)
    with pytest.raises(TypeError, match="loss: found 1.0, expected a loss"):
        average.backward(1.0)


# --------------------------------------------------------------------------------- the Parameter's


def test_a_parameter_answers_as_a_tensor():
    w = paddle.Parameter(jnp.array([[3.0, 4.0], [1.0, 2.0]]), "w")
    assert w.astype("bfloat16").dtype == w.cast(jnp.bfloat16).dtype == jnp.bfloat16
    assert w.numel() == 4 and w.numel().item() == 4 and w.dim() == w.ndimension() == 2
    assert w.T.tolist() == w.transpose([1, 0]).tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert w.tolist() == [[3.0, 4.0], [1.0, 2.0]] and w.flatten().tolist() == w.reshape([-1]).tolist()
    assert (float(w.sum()), float(w.mean()), float(w.max()), float(w.min())) == (10.0, 2.5, 4.0, 1.0)
    assert w.sum(axis=[0, 1]).shape == () and w.sum(0, keepdim=True).shape == (1, 2)
    assert w.sum(dtype="bfloat16").dtype == jnp.bfloat16
    assert (w.is_distributed, w.persistable, w.is_leaf) == (False, True, True)
    assert w.square().tolist()[0] == [9.0, 16.0] and w.sqrt().shape == (2, 2) and w.abs().shape == (2, 2)


@pytest.mark.parametrize(
    "arguments, want",
    [
        ({}, 5.47722578),
        ({"p": 1}, 10.0),
        ({"p": float("inf")}, 4.0),
        ({"p": "fro"}, 5.47722578),
        ({"p": 2, "axis": 1}, [5.0, 2.23606801]),
        ({"keepdim": True}, [[5.47722578]]),
        ({"p": 2, "axis": 0, "keepdim": True}, [[3.1622777, 4.472136]]),
    ],
)
def test_the_norm_of_a_parameter_is_paddles(arguments, want):
    """Recorded from 3.3.1, but the last."""
    w = paddle.Parameter(jnp.array([[3.0, 4.0], [1.0, 2.0]]), "w")
    np.testing.assert_allclose(w.norm(**arguments), want, rtol=1e-6)


def test_what_is_cloned_lies_by_itself():
    w, b = params()
    kept = w.detach().clone()
    w.set_value(jnp.zeros(2))
    assert kept.numpy().tolist() == [3.0, 4.0] and kept.stop_gradient and not w.stop_gradient
    kept.set_value(0.5 * kept + 0.5 * w)
    assert kept.numpy().tolist() == [1.5, 2.0]


def test_gradient_is_numpy():
    w, _ = params()
    assert w.gradient() is None
    w.grad = jnp.ones(2)
    assert isinstance(w.gradient(), np.ndarray) and w.gradient().tolist() == [1.0, 1.0]
    w.clear_grad()
    assert w.gradient().tolist() == [0.0, 0.0]
    table = paddle.Parameter(jnp.ones((4, 2)), "t", sparse=True)
    table.grad = paddle.SelectedRows(jnp.array([1]), jnp.ones((1, 2)), 4)
    values, rows = table.gradient()
    assert values.tolist() == [[1.0, 1.0]] and rows.tolist() == [1]


def test_parameters_lie_end_to_end_in_a_vector_and_come_back():
    w, b = params()
    vector = paddle.nn.utils.parameters_to_vector([w, b])
    assert vector.tolist() == [3.0, 4.0, 1.0, 1.0, 1.0]
    paddle.nn.utils.vector_to_parameters(2 * vector, iter([w, b]))
    assert w.numpy().tolist() == [6.0, 8.0] and b.numpy().tolist() == [2.0, 2.0, 2.0]
    paddle.nn.utils.vector_to_parameters(jnp.arange(7.0), [w, b])  # as in Paddle it may be longer
    assert b.numpy().tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(
        ValueError, match=r"vector_to_parameters's vec: found 4 elements, expected at least 5"
    ):
        paddle.nn.utils.vector_to_parameters(jnp.ones(4), [w, b])
    assert b.numpy().tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(TypeError, match="expected Parameters"):
        paddle.nn.utils.parameters_to_vector([jnp.ones(2)])
    half = paddle.Parameter(jnp.ones(2, jnp.bfloat16), "h")
    with pytest.raises(TypeError, match="parameters_to_vector: found Parameters of bfloat16 and float32"):
        paddle.nn.utils.parameters_to_vector([w, half])
