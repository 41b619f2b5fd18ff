"""The examples in the docstrings and in the README run, and what they name exists."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax
from paddlejax import glossary

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MODULES = [
    m.name for m in pkgutil.walk_packages(paddlejax.__path__, "paddlejax.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    public = {name: getattr(paddlejax, name) for name in paddlejax.__all__}
    names = {**public, "jax": jax, "jnp": jnp, "np": np, "paddle": paddlejax, "pj": paddlejax}
    reader = (
        ("allow", "standard") if "guide" in name else ("raise", "strict")
    )  # these show a reader's programs
    with (
        np.printoptions(precision=4, suppress=True),  # the examples show four digits
        jax.numpy_rank_promotion(reader[0]),
        jax.numpy_dtype_promotion(reader[1]),
    ):
        failed, _ = doctest.testmod(module, extraglobs={**names, **vars(module)})
    assert failed == 0


BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code, prints", BLOCKS, ids=["functions", "objects", "flax"])
def test_each_program_of_the_readme_runs_alone(code, prints, tmp_path, monkeypatch, capsys):
    """As copied: with nothing but what it imports, and it prints what stands below it."""
    monkeypatch.chdir(tmp_path)  # it saves files
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has it
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == prints


def test_the_readme_is_short_and_has_no_other_code():
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    assert text.count("```python") == len(BLOCKS) == 3


def guides():
    """Every text that names commands: README, and the pages of packages and guides."""
    yield "README.md", README.read_text()
    for name in MODULES:
        yield name, importlib.import_module(name).__doc__ or ""


def test_every_command_that_is_named_exists():
    """Scripts and tests are there, and take the options that are named with them."""
    found = 0
    for where, text in guides():
        for script, rest in re.findall(r"(?:python|pytest)\s+([\w/]+\.py)([^`\n]*)", text):
            if "/" in script:  # else it stands for the reader's own
                source = (ROOT / script).read_text()
                for option in re.findall(r"--[\w-]+", rest):
                    assert f'"{option}"' in source, f"{where}: {script} has no {option}"
                found += 1
    assert found > 15


def test_every_name_that_the_tables_give_exists():
    """Of the optimizers in README and in the guides: functions, and classes as dotted names."""
    for where, text in guides():
        if where == "README.md" or "guide" in where:
            for name in re.findall(r"`pj\.([\w.]+)", text):
                assert getattr(paddlejax, name.split(".")[0]) is not None, f"{where}: {name}"
            for name in re.findall(r"\| `((?:optimizer|incubate|nn|static|amp)\.[\w.]+)`", text):
                thing = paddlejax
                for part in name.split("."):
                    thing = getattr(thing, part)
                assert "not here" not in repr(thing), f"{where}: {name}"


PUBLIC = """
    paddlejax paddlejax.optimizer paddlejax.incubate paddlejax.incubate.optimizer paddlejax.static
    paddlejax.amp paddlejax.nn paddlejax.nn.utils paddlejax.regularizer paddlejax.sparse
    paddlejax.splits paddlejax.optimizer.muon paddlejax.incubate.optimizer.functional
    paddlejax.checkpoint paddlejax.rules paddlejax.distributed paddlejax.fluid
    paddlejax.fluid.wrappers paddlejax.fluid.layers paddlejax.fluid.dygraph paddlejax.interop
    paddlejax.optim paddlejax.optim.lr_scheduler
""".split()
WITHOUT_EXAMPLE = {
    "CheckpointError": "an exception",
    "Checkpoint": "what read returns",
    "Tensor": "a part of a Checkpoint",
    "Info": "what get_info returns",
    "Packed": "what pack holds parameters in",
    "RuleState": "what init returns",
    "Optimizer": "the base; every class below it has one",
    "WeightDecayRegularizer": "a base",
    "FluidOptimizer": "a base",
    "enabled": "in the example of guard",
    "LearningRateEpochDecay": "a base",
    "rule": "in the example of Rule",
    "launch": "starts processes",
    "load_npz": "in the example of save_npz",
    "load_safetensors": "in the example of save_safetensors",
    "load_dygraph": "in the example of save_dygraph",
}


def public():
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                yield name, thing
    schedules = "fluid.dygraph.learning_rate_scheduler"
    for module in ("optimizer.lr", schedules, "fluid.optimizer", "fluid.clip", "fluid.regularizer"):
        for name, thing in vars(importlib.import_module(f"paddlejax.{module}")).items():
            if isinstance(thing, type) and thing.__module__ == f"paddlejax.{module}" and name[0] != "_":
                yield name, thing
    for name, thing in vars(paddlejax.schedules).items():
        if isinstance(thing, paddlejax.schedules.Schedule):
            yield name, thing


def test_every_public_name_has_a_page_with_an_example():
    named = dict(public())
    assert len(named) > 120
    bare = {n for n, thing in named.items() if ">>>" not in (thing.__doc__ or "")}
    assert bare == set(WITHOUT_EXAMPLE)


def functions():
    """Each public function and class once, but exceptions and what is made for the user."""
    for name, thing in {id(thing): (name, thing) for name, thing in public()}.values():
        if name not in ("CheckpointError", "FluidOptimizer"):
            yield name, thing


@pytest.fixture(scope="module")
def pages():
    return [(name, thing, inspect.getdoc(thing)) for name, thing in functions()]


def arguments_of(doc):
    """The entries of the section Args, {name: words}."""
    section = re.search(r"^Args:\n((?:    .*\n?)+)", doc, re.M)
    return dict(re.findall(r"^    (\w+): ((?:.|\n {8})*)", section[1], re.M)) if section else {}


def test_every_page_begins_with_a_sentence(pages):
    for name, _, doc in pages:
        assert doc.split("\n\n")[0].rstrip()[-1] in ".:", name


def test_every_argument_is_said(pages):
    """In the table of the glossary, or in the words of the page; with its range and default."""
    missing = []
    for name, thing, doc in pages:
        said = arguments_of(doc)
        for p in inspect.signature(thing).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            elsewhere = re.sub(r"^Args:\n(?:    .*\n?)+", "", doc, flags=re.M)
            in_prose = re.search(rf"\b{p.name}\b", elsewhere)
            wordless = not re.sub(r"[Dd]efault: [^\n]*", "", said.get(p.name, "")).strip(" .\n")
            if wordless or glossary.meaning(name, p.name) is None and not in_prose:
                missing.append(f"{name}({p.name})")
            elif isinstance(p.default, int | float | str):
                assert re.search(r"[Dd]efault:\s", said[p.name]), (name, p.name)
    assert not missing


RULES = [n for n in paddlejax.__all__ if hasattr(getattr(paddlejax, n), "described_by")] + ["rprop", "muon"]


@pytest.mark.parametrize("name", RULES)
def test_the_page_of_a_rule_is_whole(name):
    """Formula with every symbol said, arguments, returns, raises, example, namesakes, source."""
    function = getattr(paddlejax, name)
    doc = function.__doc__
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in doc, section
    assert re.search("optax|torch|no paper", doc), "namesakes"
    assert re.search(r"kernel|arXiv|doi", doc.partition(">>> ")[2]), "source"
    assert "Annotated" not in str(inspect.signature(function))
    formula = re.search(r"(?:^    [^ ].*\n|^     .*\n|^\n(?=    ))+", doc, re.M)[0]
    said = " ".join(arguments_of(doc).values())
    left = set(re.findall(r"([^\W\d_][₀-₉∞̂']?)(?:\[i\])? (?:←|=)", doc)) | set("pg")
    for symbol in set(re.findall(r"(?<![\w.])[α-ωΑ-Ω][₀-₉∞]?", formula)) - set("Σ"):
        assert symbol in left or symbol in said or re.search(rf"{symbol}(?:\(| [=~])|= {symbol}", doc), symbol
