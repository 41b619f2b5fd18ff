"""The public names are typed well enough for a user who turns everything on."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import typed_user

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
