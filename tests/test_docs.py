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
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if not {"_build", "_generated"} & {*page.parts})
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


def name_of(page):
    return str(page.relative_to(ROOT))


def test_there_are_pages():
    assert len(PAGES) > 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:NUTS", "ignore:AIS")  # of so few draws
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text(), "python")], ids=name_of)
def test_python_for_readers_runs(page, few_digits, tmp_path, monkeypatch):
    """In order, each block with the names that the blocks before it define; every line, with smaller numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS / "skeletons")  # files that a reader has copied
    namespace = {"__name__": "__main__"}
    with pyro.get_param_store().scope(), torch.random.fork_rng():  # a page may set the seed
        for block in blocks(page.read_text(), "python"):
            exec(compile(shorter(block), name_of(page), "exec"), namespace)


LINES = [
    pytest.param(line, id=f"{name_of(page)}: {line}")
    for page in PAGES
    for block in blocks(page.read_text(), "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("line", LINES)
def test_commands_for_readers_exist(line, monkeypatch):
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable of the environment
        words = words[1:]
    program, *arguments = words
    if "pyro_vae" in arguments and "-m" in arguments:  # torchrun -m pyro_vae, python -m pyro_vae
        program, arguments = "pyro-vae", arguments[arguments.index("pyro_vae") + 1 :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in arguments if "=" not in word][0] in targets
    elif program == "pyro-vae" and arguments not in (["--version"], ["--help"]):
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(DOCS / "skeletons")
        name, *words = arguments
        assert name in COMMANDS
        shows_help = any("help" in word for word in arguments)
        with pytest.raises(SystemExit, match="0") if shows_help else nullcontext():
            command = "stage" if "--stage" in words else name  # as commands.run
            options.parser(command, getattr(commands, f"_{command}")).parse_args(options.expand_names(words))
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program in ("pyro-vae", "git", "cd", "pip", "python3", "source")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    """Sphinx checks the links of the site, whose pages are read in a clone, too; it copies notebooks there."""
    for target in re.findall(r"\]\((?!http|mailto)([^)#\s]+)", page.read_text()):
        path = page.parent / target
        assert path.exists() or (ROOT / "notebooks" / path.name).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page):
    assert not [line for line in page.read_text().splitlines() if len(line) > 120]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_figures_have_alternative_texts(page):
    for text in re.findall(r"!\[([^\]]*)\]\(", page.read_text()):
        assert len(text) > 20, text


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1500


def test_every_part_is_in_the_table_of_parts():
    bases, table = {"Network", "Objective", "Penalty", "Schedule"}, (DOCS / "guide" / "parts.md").read_text()
    for room in ("priors", "likelihoods", "guides", "networks", "objectives"):
        for name in getattr(pyro_vae, room).__all__:
            if isinstance(getattr(getattr(pyro_vae, room), name), type) and name not in bases | {"Report", "SiteKL"}:
                assert f"`{name}`" in table or f".{name}`" in table, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebooks:
    def test_is_committed_with_the_outputs_of_one_run(self, path):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert any("image/png" in output.get("data", {}) for output in outputs)

    def test_figures_have_alternative_texts(self, path):
        for cell in json.loads(path.read_text())["cells"]:
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                assert 20 < len(cell["metadata"]["mystnb"]["image"]["alt"]) <= 250, cell["id"]

    def test_says_nothing_of_the_machine(self, path):
        outputs = [cell.get("outputs", []) for cell in json.loads(path.read_text())["cells"]]
        assert not re.search(r"/home/|/root/|/tmp/|site-packages|Warning", json.dumps(outputs))
