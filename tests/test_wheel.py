"""The wheel holds the package and nothing else, and works away from the repository; so does the sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import paddlejax

ROOT = Path(__file__).parent.parent
SMOKE = """
import pathlib, sys
import jax, jax.numpy as jnp
import paddlejax as pj

assert pathlib.Path(pj.__file__).is_relative_to(sys.argv[1]), pj.__file__
assert pathlib.Path(pj.__file__).with_name("py.typed").is_file()
params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
tx = pj.chain(pj.clip_by_global_norm(1.0), pj.lamb(0.1))
updates, state = jax.jit(tx.update)(params, tx.init(params), params)
assert float(pj.apply_updates(params, updates)["w"][0, 0]) < 1
opt = pj.fluid.optimizer.LarsMomentum(0.1, 0.9, parameter_list=pj.parameters(params))
opt.minimize(pj.loss(lambda p: jnp.sum(p["w"] ** 2))(opt.parameters))
print(sorted(opt.state_dict()))
"""


def run(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"JAX_PLATFORMS": "cpu", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Built from a copy, so that nothing is left behind in the repository."""
    tmp = tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns(".git", "*.egg-info", "build", "dist", "__pycache__", ".*_cache", "golden")
    shutil.copytree(ROOT, tmp / "source", ignore=skip)
    start = "from hatchling.build import build_sdist; build_sdist('..')"
    run(sys.executable, "-c", start, cwd=tmp / "source")
    (built,) = tmp.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from what the source distribution holds."""
    tmp = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp)]
    run(*pip, "--no-build-isolation", str(sdist), cwd=tmp)
    (built,) = tmp.glob("*.whl")
    return built


def test_the_source_distribution_holds_package_and_examples_and_no_test(sdist):
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    python = {name for name in names if name.endswith(".py")}
    folders = (ROOT / "paddlejax", ROOT / "examples")
    assert python == {str(p.relative_to(ROOT)) for folder in folders for p in folder.rglob("*.py")}
    data = {str(p.relative_to(ROOT)) for p in (ROOT / "examples" / "data").rglob("*.*")}
    assert names >= data | {"LICENSE", "README.md", "pyproject.toml", "paddlejax/py.typed"}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "paddlejax").rglob("*.py")}
    info = f"paddlejax-{paddlejax.__version__}.dist-info"
    extra = {f"{info}/{n}" for n in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert names == modules | {"paddlejax/py.typed"} | extra


def test_the_wheel_works_elsewhere(wheel, tmp_path):
    """Installed by itself: whatever it finds of paddlejax is its own."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--quiet",
        "--no-index",
        "--target",
        str(target),
    ]
    run(*pip, str(wheel), cwd=elsewhere)
    start = f"import sys; sys.path.insert(0, {str(target)!r}); sys.argv = ['', {str(target)!r}]\n"
    printed = run(sys.executable, "-W", "error", "-c", start + SMOKE, cwd=elsewhere)
    assert "w_velocity_0" in printed
