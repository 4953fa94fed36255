"""Each public name stands on one page of the reference. Sphinx is not needed: its directives are read as text."""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import pyro_vae

PAGES = sorted((Path(__file__).parent.parent / "docs" / "reference").glob("*.md"))
INDEX = (PAGES[0].parent / "index.md").read_text()
DIRECTIVE = re.compile(r"^\.\. (auto(?:module|class|function|data)|py:data):: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)
HIDDEN = {
    "annealing",
    "commands",
    "deprecated",
    "operations",
    "options",
    "seeds",
    "traces",
    "words",
}  # rooms of no user
# The rooms of the front door, and four more that have names of it.
ROOMS = sorted({name for name in pyro_vae.__all__ if isinstance(getattr(pyro_vae, name), ModuleType)})
ROOMS += ["flows", "program", "sweep", "train"]


def names_on(page):
    """The full names of what a page documents."""
    for kind, target, options in DIRECTIVE.findall(page.read_text()):
        if kind != "automodule":
            yield target
            continue
        excluded = re.search(r":exclude-members: \+?(.*)", options)
        left_out = re.split(r"[,\s]+", excluded[1].strip()) if excluded else []
        for name in importlib.import_module(target).__all__:
            if name not in left_out:
                yield f"{target}.{name}"


@pytest.fixture(scope="module")
def documented():
    """How often each object is documented, by its name and its identity."""
    names = [name for page in PAGES for name in names_on(page)]
    objects = Counter(id(object_of(name)) for name in names if not is_plain(object_of(name)))
    return Counter(names), objects


def object_of(name):
    room, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(room), attribute)


def is_plain(value):
    """Whether a value is a number, a dictionary or a type hint, which may be one object under two names."""
    return not getattr(value, "__module__", "").startswith("pyro_vae")


@pytest.mark.parametrize("room", ROOMS)
def test_each_name_of_a_room_is_on_one_page(room, documented):
    names, objects = documented
    for name in importlib.import_module(f"pyro_vae.{room}").__all__:
        full = f"pyro_vae.{room}.{name}"
        value = object_of(full)
        count = names[full] if is_plain(value) else objects[id(value)]
        assert count == 1, f"{full} is on {count} pages"


@pytest.mark.parametrize("name", pyro_vae.__all__)
def test_each_name_of_the_front_door_is_on_one_page(name, documented):
    value = getattr(pyro_vae, name)
    if isinstance(value, ModuleType):
        assert sum(f".. automodule:: pyro_vae.{name}\n" in page.read_text() for page in PAGES) == 1
    else:
        assert documented[1][id(value)] == 1
    assert f"[{name}]({name}.md)" in INDEX or f"`~pyro_vae.{name}`" in INDEX


def test_each_room_is_documented_or_hidden():
    files = Path(pyro_vae.__file__).parent.iterdir()
    rooms = {file.stem for file in files if file.suffix == ".py" or (file / "__init__.py").is_file()}
    assert rooms - {"__init__", "__main__"} == {*ROOMS, *HIDDEN, "checkpoint"}


def test_each_page_is_in_the_table_of_contents():
    for page in PAGES:
        assert page.stem == "index" or re.search(rf"^{page.stem}$", INDEX, flags=re.MULTILINE), page.name


@pytest.mark.parametrize("file", sorted(Path(pyro_vae.__file__).parent.rglob("*.py")), ids=lambda file: file.stem)
def test_no_property_has_a_colon_in_its_first_line(file):
    """Sphinx would show the words before it as a type."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(item) for item in node.decorator_list):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            assert ":" not in re.sub(r"(:\w+:)?`+[^`]*`+", "", first), f"{node.name}: {first}"
