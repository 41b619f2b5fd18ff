"""pyproject.toml, the README and the workflow name the same versions."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text()
WORKFLOW = (ROOT / ".github" / "workflows" / "test.yml").read_text()
LOWEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")
PYTHONS = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
BOUNDS = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", w).groups() for w in PROJECT["dependencies"])


def test_the_readme_names_the_lowest_versions():
    assert re.findall(r"Python ([\d.]+) or later", README) == [LOWEST_PYTHON]
    python, jax = re.search(r"Python ([\d.]+)\s+with\s+the\s+lowest\s+JAX,\s+([\d.]*\d)", README).groups()
    assert (python, jax) == (LOWEST_PYTHON, BOUNDS["jax"])


def test_jax_and_jaxlib_have_one_bound():
    """A whole version, since .ci/run installs exactly that."""
    assert BOUNDS["jax"] == BOUNDS["jaxlib"] and BOUNDS["jax"].count(".") == 2


def test_the_tools_check_for_the_lowest_python():
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + LOWEST_PYTHON.replace(".", "")
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == LOWEST_PYTHON


def test_every_python_that_is_named_is_tested():
    assert PYTHONS[0] == LOWEST_PYTHON
    assert re.findall(r'python: "([\d.]+)"', WORKFLOW) == PYTHONS


@pytest.mark.parametrize("extra", ["examples", "test", "formats", "docs"])
def test_every_requirement_has_a_lower_bound(extra):
    for wanted in PROJECT["optional-dependencies"][extra]:
        assert wanted.startswith("paddlejax[") or re.match(r"[\w-]+>=\d", wanted), wanted


def test_addresses_are_those_of_the_project():
    """README, pages, citation and pyproject.toml name one repository and one place of the reference."""
    urls = PROJECT["urls"]
    github = ROOT / ".github"
    build = (github / "reference" / "build.py").read_text()
    citation = (github / "CITATION.cff").read_text()
    assert f'REPOSITORY = "{urls["Source"]}"' in build and f'PAGES = "{urls["Documentation"]}"' in build
    assert f"repository-code: {urls['Source']}\nurl: {urls['Documentation']}\n" in citation
    raw = urls["Source"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for address in re.findall(r"https://[^\s)\"`]+", README):
        if "paddlejax" in address:
            assert address.startswith((urls["Source"], urls["Documentation"], raw)), address
    for file in re.findall(rf"{raw}([^)\s]+)|{urls['Source']}/blob/main/([^)\s]+)", README):
        assert (ROOT / "".join(file)).is_file(), file


def test_the_citation_names_this_version():
    source = (ROOT / "paddlejax" / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.*)"', source)[1]
    assert f"version: {version}\n" in (ROOT / ".github" / "CITATION.cff").read_text()


def test_pages_that_the_readme_links_to_are_built():
    pages = re.findall(re.escape(PROJECT["urls"]["Documentation"]) + r"([\w/]+)\.html", README)
    for page in pages:
        assert (ROOT / f"{page}.py").is_file() or (ROOT / page / "__init__.py").is_file(), page
    assert len(pages) > 8
