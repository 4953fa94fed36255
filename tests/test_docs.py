"""What is written for readers runs: docstrings, the README, notebooks."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pyro
import pytest
import torch

import pyro_vae
from pyro_vae import commands, options
from pyro_vae.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    found.name for found in pkgutil.walk_packages(pyro_vae.__path__, "pyro_vae.") if found.name != "pyro_vae.__main__"
)
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for example in doctest.DocTestFinder().find(importlib.import_module(name), extraglobs={"torch": torch}):
        with pyro.get_param_store().scope():
            runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", vars(module)):
        value = getattr(module, public)
        if public[0] != "_" and getattr(value, "__module__", None) == name:
            assert value.__doc__, public


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def shorter(block):
    """The same code with 1 epoch, and a tenth of the temperatures, steps and draws."""
    return re.sub(r"\b(temperatures|steps|draws|warmup)=(\d+)0\b", r"\1=\2", re.sub(r"\bepochs=\d+", "epochs=1", block))


@pytest.mark.filterwarnings("ignore:NUTS", "ignore:AIS")  # of so few draws
@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_python_for_readers_runs(text, tmp_path, monkeypatch):
    """In order, each block with what those before it defined; every line, with smaller numbers."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    assert blocks(text, "python")
    with pyro.get_param_store().scope():
        for block in blocks(text, "python"):
            exec(compile(shorter(block), "a block for readers", "exec"), namespace)


@pytest.mark.parametrize("line", [line for block in blocks(README, "bash") for line in block.splitlines() if line])
def test_commands_in_the_readme_exist(line, monkeypatch):
    program, *arguments = shlex.split(line, comments=True)
    if program == "torchrun":
        program, arguments = "pyro-vae", arguments[arguments.index("pyro_vae") + 1 :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in arguments if "=" not in word][0] in targets
    elif program == "pyro-vae":
        monkeypatch.chdir(ROOT)
        name, *words = arguments
        assert name in COMMANDS
        shows_help = any("help" in word for word in arguments)
        with pytest.raises(SystemExit, match="0") if shows_help else nullcontext():
            options.parser(name, getattr(commands, f"_{name}")).parse_args(options.in_full(words))
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program in ("git", "cd", "pip")


def test_links_in_the_readme_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_part_is_in_the_readme():
    bases = {"Network", "Objective", "Penalty", "Schedule"}
    for room in ("priors", "likelihoods", "guides", "networks", "objectives"):
        for name in getattr(pyro_vae, room).__all__:
            found = getattr(pyro_vae, room)
            if isinstance(getattr(found, name), type) and name not in bases | {"Report", "SiteKL"}:
                assert f"`{name}`" in README, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebooks:
    def test_is_committed_with_the_outputs_of_one_run(self, path):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert any("image/png" in output.get("data", {}) for output in outputs)

    def test_says_nothing_of_the_machine(self, path):
        outputs = [cell.get("outputs", []) for cell in json.loads(path.read_text())["cells"]]
        assert not re.search(r"/home/|/root/|/tmp/|site-packages|Warning", json.dumps(outputs))
