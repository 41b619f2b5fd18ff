"""The shape of the package: which way imports point, and that signatures are Paddle's."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import paddlejax as paddle

PACKAGE = Path(paddle.__file__).parent

# A module may import modules of its own layer's left, never to the right. Packages count as one.
LAYERS = [
    {"alike", "line_search", "hyper", "tracing", "elsewhere", "glossary", "guide", "recent"},
    {"attributes", "pages"},
    {"selected_rows", "schedule", "spreading", "wrap"},
    {"trees", "array_types"},
    {"collectives"},
    {"norms", "step", "rates"},
    {"schedules", "lifting", "sparse", "packing", "orthogonal"},
    {"rules", "transform", "splits"},
    {"average", "clip", "leaves", "quasi_newton", "loss_scaling", "regularizer"},
    {"accumulate", "info", "paths", "master", "minimizers"},
    {"matrices"},
    {"optimizer"},
    {"casting", "checkpoint", "distributed", "cpu_fusion"},
    {"amp", "nn", "fluid", "incubate", "interop", "optim", "static"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEVEL["__version__"] = LEVEL["__init__"]  # which defines it


def imports(path: Path) -> set[str]:
    """The top-level modules of the package that a file imports."""
    parts = ("paddlejax", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else ()
            target = [*base, *(node.module or "").split(".")] if node.module else list(base)
            if target[:1] == ["paddlejax"]:
                found |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_imports_point_one_way():
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imports(path) - {own}:
            assert LEVEL[other] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {other}"


def test_every_module_has_its_place():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} == set().union(*LAYERS)


LONG = {
    "schedules.py": "two dozen schedules, each with its formula, its page and its checks",
    "lifting.py": "what a rule is, and the lift that gives all of them the same behaviour",
    "lr.py": "18 classes",
    "learning_rate_scheduler.py": "12 classes, each with its page",
    "amp.py": "a scaler with a getter and a setter for each of its settings",
}


def test_files_are_short():
    long = {p.name for p in FILES if len(p.read_text().splitlines()) > 400}
    assert long <= set(LONG)


# Paddle 3.3.1's signatures; LarsMomentumOptimizer's is that of paddle.incubate.optimizer, Muon's of 3.4.
SIGNATURES = """
SGD(learning_rate=0.001, parameters=None, weight_decay=None, grad_clip=None, multi_precision=False, name=None)
Momentum(learning_rate=0.001, momentum=0.9, parameters=None, use_nesterov=False, weight_decay=None, grad_clip=None, multi_precision=False, rescale_grad=1.0, use_multi_tensor=False, name=None)
Adagrad(learning_rate, epsilon=1e-06, parameters=None, weight_decay=None, grad_clip=None, name=None, initial_accumulator_value=0.0)
Adadelta(learning_rate=0.001, epsilon=1e-06, rho=0.95, parameters=None, weight_decay=None, grad_clip=None, name=None)
Adam(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameters=None, weight_decay=None, grad_clip=None, lazy_mode=False, multi_precision=False, use_multi_tensor=False, amsgrad=False, name=None)
AdamW(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameters=None, weight_decay=0.01, use_lowprecision_moment=False, lr_ratio=None, apply_decay_param_fun=None, grad_clip=None, lazy_mode=False, multi_precision=False, amsgrad=False, name=None)
NAdam(learning_rate=0.002, beta1=0.9, beta2=0.999, epsilon=1e-08, momentum_decay=0.004, parameters=None, weight_decay=None, grad_clip=None, name=None)
RAdam(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameters=None, weight_decay=None, grad_clip=None, name=None)
Rprop(learning_rate=0.001, learning_rate_range=(1e-05, 50), parameters=None, etas=(0.5, 1.2), grad_clip=None, multi_precision=False, name=None)
Adamax(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameters=None, weight_decay=None, grad_clip=None, name=None)
RMSProp(learning_rate, rho=0.95, epsilon=1e-06, momentum=0.0, centered=False, parameters=None, weight_decay=None, grad_clip=None, name=None)
Lamb(learning_rate=0.001, lamb_weight_decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-06, parameters=None, grad_clip=None, exclude_from_weight_decay_fn=None, multi_precision=False, always_adapt=False, name=None)
ASGD(learning_rate=0.001, batch_num=1, parameters=None, weight_decay=None, grad_clip=None, multi_precision=False, name=None)
LBFGS(learning_rate=1.0, max_iter=20, max_eval=None, tolerance_grad=1e-07, tolerance_change=1e-09, history_size=100, line_search_fn=None, parameters=None, weight_decay=None, grad_clip=None, name=None)
Muon(learning_rate=0.02, parameters=None, momentum=0.95, adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.01, ns_steps=5, ns_coeff_type='simple', ns_coeffs=None, nesterov=True, adam_epsilon=1e-09, grad_clip=None, lr_ratio=None, apply_decay_param_fun=None, muon_version=1, muon_exclude_patterns=None, muon_extra_scale_factor=0.2, muon_param_info_map=None, ns_matmul_dtype=None, multi_precision=False, name=None)
LarsMomentumOptimizer(learning_rate, momentum, lars_coeff=0.001, lars_weight_decay=0.0005, parameter_list=None, regularization=None, grad_clip=None, name=None, exclude_from_weight_decay=None, epsilon=0, multi_precision=False, rescale_grad=1.0)
"""  # noqa: E501

# Paddle 1.8.5's, from `inspect.signature`.
FLUID_SIGNATURES = """
SGDOptimizer(learning_rate, parameter_list=None, regularization=None, grad_clip=None, name=None)
MomentumOptimizer(learning_rate, momentum, parameter_list=None, use_nesterov=False, regularization=None, grad_clip=None, name=None)
LarsMomentumOptimizer(learning_rate, momentum, lars_coeff=0.001, lars_weight_decay=0.0005, parameter_list=None, regularization=None, grad_clip=None, name=None)
AdagradOptimizer(learning_rate, epsilon=1e-06, parameter_list=None, regularization=None, grad_clip=None, name=None, initial_accumulator_value=0.0)
DecayedAdagradOptimizer(learning_rate, decay=0.95, epsilon=1e-06, parameter_list=None, regularization=None, grad_clip=None, name=None)
AdadeltaOptimizer(learning_rate, epsilon=1e-06, rho=0.95, parameter_list=None, regularization=None, grad_clip=None, name=None)
AdamOptimizer(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameter_list=None, regularization=None, grad_clip=None, name=None, lazy_mode=False)
AdamaxOptimizer(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, parameter_list=None, regularization=None, grad_clip=None, name=None)
RMSPropOptimizer(learning_rate, rho=0.95, epsilon=1e-06, momentum=0.0, centered=False, parameter_list=None, regularization=None, grad_clip=None, name=None)
FtrlOptimizer(learning_rate, l1=0.0, l2=0.0, lr_power=-0.5, parameter_list=None, regularization=None, grad_clip=None, name=None)
DpsgdOptimizer(learning_rate=0.001, clip=0.9, batch_size=0.999, sigma=1e-08, parameter_list=None)
LambOptimizer(learning_rate=0.001, lamb_weight_decay=0.01, beta1=0.9, beta2=0.999, epsilon=1e-06, parameter_list=None, regularization=None, grad_clip=None, exclude_from_weight_decay_fn=None, name=None)
DGCMomentumOptimizer(learning_rate, momentum, rampup_begin_step, rampup_step=1, sparsity=(0.999,), parameter_list=None, use_nesterov=False, num_trainers=None, regularization=None, grad_clip=None, name=None)
"""  # noqa: E501


OURS = ("self", "packed", "muon_epsilon", "use_hyperball")


def bare(signature: inspect.Signature) -> str:
    """Without annotations, self and what Paddle does not have."""
    items = signature.parameters.items()
    ours = set(OURS)
    ours |= {n for n, p in items if n == "multi_precision" and p.kind is p.KEYWORD_ONLY}
    kept = [p.replace(annotation=inspect.Parameter.empty) for n, p in items if n not in ours]
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("line", SIGNATURES.split("\n")[1:-1])
def test_signatures_are_paddles(line):
    name, arguments = line.split("(", 1)
    cls = getattr(paddle.optimizer, name, None) or paddle.incubate.optimizer.LarsMomentumOptimizer
    assert bare(inspect.signature(cls)) == "(" + arguments


@pytest.mark.parametrize("line", FLUID_SIGNATURES.split("\n")[1:-1])
def test_signatures_are_those_of_1x(line):
    name, arguments = line.rstrip(")").split("(", 1)
    found = bare(inspect.signature(getattr(paddle.fluid.optimizer, name)))
    assert found.split(", *, ")[0].rstrip(")") == f"({arguments}"  # keywords after that are ours


FUNCTIONS = [
    "sgd",
    "momentum",
    "lars_momentum",
    "adagrad",
    "adadelta",
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "lamb",
    "asgd",
    "lbfgs",
    "muon",
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_defaults_of_their_classes(name):
    by_name = {n.lower(): cls for n, cls in vars(paddle.optimizer).items() if inspect.isclass(cls)}
    cls = by_name.get(name.replace("_", "")) or paddle.incubate.optimizer.LarsMomentumOptimizer
    theirs = inspect.signature(cls).parameters
    for argument, p in inspect.signature(getattr(paddle, name)).parameters.items():
        if argument in theirs and argument != "exclude_from_weight_decay":
            assert p.default == theirs[argument].default, argument


def test_each_formula_stands_once():
    """A rule's step is in its own file and nowhere else: no moments outside rules/."""
    for path in FILES:
        if path.parent.name != "rules":
            assert not re.search(r"1 - self\.(beta|rho|decay)", path.read_text()), path


def private_accesses(path):
    """(line, text) of every access to a private name of an object that this module does not define itself."""
    tree = ast.parse(path.read_text())
    own = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")
    }
    own |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    # Of every NamedTuple, and of the standard pickle machine, which unpickle.py extends.
    public = {"_replace", "_fields", "_asdict", "_unframer"}
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute) and n.attr.startswith("_") and not n.attr.startswith("__"):
            text = ast.unparse(n)
            if n.attr not in own | public and not text.startswith(("os.", "pickle.", "sys.")):
                yield n.lineno, text


def test_no_module_touches_what_another_keeps_private():
    found = {f"{p.relative_to(PACKAGE)}:{line}": text for p in FILES for line, text in private_accesses(p)}
    assert not found


def without_docstring(path: Path) -> list[str]:
    """The public functions, methods and properties of a file that have no docstring."""
    tree = ast.parse(path.read_text())
    given = {ast.unparse(t) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for n in ast.iter_child_nodes(node):
            if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if not n.name.startswith("_"):
                    name = f"{prefix}{n.name}"
                    if isinstance(n, ast.ClassDef):
                        walk(n, f"{name}.")
                    elif not ast.get_docstring(n) and f"{name}.__doc__" not in given:
                        found.append(name)
            elif not isinstance(n, ast.expr):  # such as `if`, around a definition
                walk(n, prefix)

    walk(tree, "")
    return found


def test_every_public_function_has_a_docstring():
    missing = {str(path.relative_to(PACKAGE)): without_docstring(path) for path in FILES}
    assert {file: names for file, names in missing.items() if names} == {}


def test_a_missing_docstring_is_found(tmp_path):
    source = """
        class A:
            @property
            def bare(self): return 1
            def said(self):
                "Words."
                def inner(): pass
            def _private(self): pass
        if True:
            def nested(): pass
        def later(): pass
        later.__doc__ = A.__doc__
    """
    path = tmp_path / "module.py"
    path.write_text(textwrap.dedent(source))
    assert without_docstring(path) == ["A.bare", "nested"]
