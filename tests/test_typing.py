"""The public names are typed well enough for a user who turns everything on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
import typed_user

FILE = Path(__file__).parent / "typed_user.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_a_users_file_passes_pyright_strict():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(FILE)]
    ran = subprocess.run(command, cwd=FILE.parent.parent, capture_output=True, text=True, timeout=300)
    report = json.loads(ran.stdout)
    found = [
        f"{FILE.name}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report["generalDiagnostics"]
        if d["severity"] in ("error", "warning")
    ]
    assert not found, "\n".join(found)
    assert report["summary"]["filesAnalyzed"] == 1


def test_the_users_file_runs():
    x, y = jnp.ones((4, 3)), jnp.ones((4, 1))
    start = typed_user.Net(jnp.full((3, 1), 0.1), jnp.zeros(1))
    assert typed_user.functional(start, start).b.shape == (1,)
    assert typed_user.objects(start, x, y) < 1.1
    new = typed_user.own_rule(start)
    assert float(new.w[0, 0]) < 0 and new.b.shape == (1,)
