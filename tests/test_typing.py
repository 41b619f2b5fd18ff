"""The public names are typed well enough for a user who turns everything on, and for who asks at run time."""

import importlib
import importlib.util
import inspect
import json
import pkgutil
import subprocess
import sys
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import typed_user

import paddlejax
from paddlejax import array_types

FILE = Path(__file__).parent / "typed_user.py"


needs_pyright = pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")


def checked(file: Path) -> dict[str, Any]:
    """Pyright's report on a file."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(file)]
    ran = subprocess.run(command, cwd=FILE.parent.parent, capture_output=True, text=True, timeout=300)
    return json.loads(ran.stdout)


@needs_pyright
def test_a_users_file_passes_pyright_strict():
    report = checked(FILE)
    found = [
        f"{FILE.name}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report["generalDiagnostics"]
        if d["severity"] in ("error", "warning")
    ]
    assert not found, "\n".join(found)
    assert report["summary"]["filesAnalyzed"] == 1


@needs_pyright
def test_a_wrong_name_is_an_error_to_pyright(tmp_path):
    """Though names load through a function, which could as well give any."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import paddlejax as pj\n\npj.adamm(0.1)\npj.loss(lambda: pj.fluid.optimizer.Adamm)\n")
    report = checked(wrong)
    assert [d["range"]["start"]["line"] for d in report["generalDiagnostics"]] == [2, 3]


def test_the_users_file_runs():
    x, y = jnp.ones((4, 3)), jnp.ones((4, 1))
    start = typed_user.Net(jnp.full((3, 1), 0.1), jnp.zeros(1))
    assert typed_user.functional(start, start).b.shape == (1,)
    assert typed_user.objects(start, x, y) < 1.1
    new = typed_user.own_rule(start)
    assert float(new.w[0, 0]) < 0 and new.b.shape == (1,)


def modules():
    """The package and every module in it, except the two that run a command when imported."""
    found = pkgutil.walk_packages(paddlejax.__path__, "paddlejax.")
    return ["paddlejax", *(m.name for m in found if not m.name.endswith("__main__"))]


def annotated(module):
    """(name, function or class) for all that a module offers or holds, and for the methods of its classes."""
    for name in sorted({*vars(module), *getattr(module, "__all__", ())}):
        thing = getattr(module, name)
        if not getattr(thing, "__module__", "").startswith("paddlejax"):
            continue
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            yield name, thing
            for member, value in vars(thing).items():
                value = getattr(value, "fget", getattr(value, "func", getattr(value, "__func__", value)))
                if inspect.isfunction(value):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize("module", modules())
def test_type_hints_can_be_asked_for_at_run_time(module):
    unknown = []
    for name, thing in annotated(importlib.import_module(module)):
        try:
            typing.get_type_hints(thing, include_extras=True)
        except NameError as e:
            unknown.append(f"{module}.{name}: {e}")
    assert not unknown, "\n".join(unknown)


def test_the_hints_are_asked_of_what_users_call():
    names = {name for name, _ in annotated(paddlejax)}
    assert {"apply_updates", "as_optax", "GradientTransformation", "Parameter.set_value"} <= names
    assert {"SGD.__init__"} <= {name for name, _ in annotated(paddlejax.optimizer)}
    assert {*paddlejax.__all__} <= {*dir(paddlejax)}


def test_hints_say_what_is_taken():
    assert typing.get_type_hints(paddlejax.apply_updates)["params"] is array_types.ArrayTree is typing.Any
    assert typing.get_type_hints(paddlejax.clip_by_norm)["clip_norm"] is array_types.Numeric is typing.Any
    assert typing.get_type_hints(paddlejax.rules.Dpsgd)["key"] is array_types.PRNGKey is jax.Array
    pair = typing.get_type_hints(paddlejax.GradientTransformation)
    assert pair == {"init": array_types.Init, "update": array_types.Update}


def test_importing_any_module_leaves_chex_alone():
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "found = [m for m in sys.modules if m.split('.')[0] == 'chex']\nassert not found, found"
    command = [sys.executable, "-c", code, *modules()]
    ran = subprocess.run(command, cwd=FILE.parent.parent, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
