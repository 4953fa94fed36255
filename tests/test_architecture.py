"""The rooms: who may import whom, how long they are, and what fits on one screen."""

import ast
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent
# Each line may import from the lines above it, never from its own line or below.
ROOMS = [
    {"deprecated"},
    {"networks", "data", "operations", "seeds", "words"},
    {"conditional", "flows", "missing"},
    {"priors", "likelihoods", "guides"},
    {"traces"},
    {"program"},
    {"programs"},
    {"objectives"},
    {"compiled", "checkpoint"},
    {"train"},
    {"annealing", "oracle"},
    {"evaluate"},
    {"ais", "plots"},
    {"posterior"},
    {"report", "compare"},
    {"page"},
    {"options"},
    {"sweep"},
    {"commands"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "pyro_vae" and parts[1] in FLOOR:
                yield parts[1]


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file != ROOT / "__init__.py"],  # the front door names every room
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_imports_only_go_down(file):
    room = room_of(file)
    assert room in FLOOR, f"{room} has no floor: add it to ROOMS"
    for other in imported_rooms(file):
        assert other == room or FLOOR[other] < FLOOR[room], f"{room} imports {other}, which is not below it"


def test_plots_see_arrays_only_but_for_the_sliders():
    for file in (ROOT / "plots").glob("*.py"):
        assert set(imported_rooms(file)) <= {"plots"} or file.name == "exploring.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rooms_are_short(file):
    lines = len(file.read_text().splitlines())
    assert lines <= 250, f"{file.name} has {lines} lines: a room that outgrows 250 becomes a folder"


STATEMENTS = {"vae": 3, "conditional": 3, "hierarchical": 4, "semi_supervised": 6}  # in the model, and in the guide


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_sample_statements_are_on_one_screen(name):
    tree = ast.parse((ROOT / "programs" / f"{name}.py").read_text())
    samples = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pyro.sample"
    ]
    assert len(samples) == STATEMENTS[name]
    assert max(samples) - min(samples) < 24


PARTS = {"prior", "encoder", "decoder"}
HIGHEST = FLOOR["posterior"]
ANY_PROGRAM = [
    file
    for file in FILES
    if FLOOR["traces"] <= FLOOR.get(room_of(file), -1) <= HIGHEST
    and room_of(file) not in ("programs", "oracle")
    and file.relative_to(ROOT).as_posix() != "posterior/local.py"
]


@pytest.mark.parametrize("file", ANY_PROGRAM, ids=lambda file: str(file.relative_to(ROOT)))
def test_from_traces_to_posterior_a_program_has_no_parts(file):
    """The parts of a VAE are for its own two programs, its hooks, the oracle and refined guides."""
    tree = ast.parse(file.read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & PARTS
    assert not read, f"{file.name} reads {read}: ask a Posterior"
    imported = {name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in [node.module]}
    assert "pyro_vae.programs" not in imported or room_of(file) == "checkpoint"  # which builds one of its parts
