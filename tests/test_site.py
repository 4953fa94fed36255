"""The site: numbers from tables, copies of notebooks, and the README's table of results."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield importlib.import_module("table_numbers")
    sys.modules.pop("table_numbers", None)


@pytest.fixture
def generated(tables):
    yield importlib.import_module("generated")
    sys.modules.pop("generated", None)


def test_every_number_that_a_page_names_is_there_and_every_one_is_text(tables):
    numbers = tables.numbers()
    assert all(isinstance(value, str) and value for value in numbers.values())
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"\{\{\s*(\w+)\s*\}\}", page.read_text()):
            assert name in numbers, f"{page}: {name}"


def test_numbers_are_those_of_the_tables(tables):
    numbers = tables.numbers()
    (row,) = [row for row in tables.rows("priors") if row["prior"] == "VampPrior, 500"]
    assert float(numbers["prior_vamp"]) == pytest.approx(float(row["-log p(x)"]), abs=0.05)
    assert numbers["slope_iwae"].startswith("−0.4")
    assert int(numbers["rows_in_all"]) == len({row["row"] for row in tables.rows("published")})


def test_each_experiment_with_a_table_has_a_page_with_its_table_its_figure_and_its_script(tables):
    names = {path.stem for path in tables.RESULTS.glob("*.md")}
    assert names == {path.stem for path in RESULTS.glob("*.md")} - {"index"}
    for name in names:
        text = (RESULTS / f"{name}.md").read_text()
        assert f"{{include}} ../../experiments/results/{name}.md" in text
        assert re.search(r"\{download\}`\w+\.py <\.\./\.\./experiments/\w+\.py>`", text)
        assert re.search(r"^python experiments/\w+\.py", text, flags=re.MULTILINE)
        for alternative in re.findall(r"!\[(.*?)\]\(", text, flags=re.DOTALL):
            assert len(alternative) > 40
        if (tables.RESULTS / f"{name}.png").exists():
            assert f"](../../experiments/results/{name}.png)" in text


def test_links_of_notebooks_to_experiments_lead_to_pages_and_figures(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "COMMANDS", ())
    generated.write(tmp_path, ROOT)
    for path in (tmp_path / "learn").glob("*.ipynb"):
        text = path.read_text()
        assert "](../experiments" not in text
        for figure in re.findall(r"\]\(\.\./\.\./(experiments/[^)]*)\)", text):
            assert (ROOT / figure).is_file()
        for page in re.findall(r"\]\(\.\./results/(\w+\.md)\)", text):
            assert (RESULTS / page).is_file()


def test_the_table_of_the_readme_is_short_and_is_in_the_readme(generated):
    lines = generated.readme_table().splitlines()
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 100
    for script in re.findall(r"`(\w+\.py)", generated.readme_table()):
        assert (ROOT / "experiments" / script).is_file()
    block = generated.BLOCK.search((ROOT / "README.md").read_text())
    assert block, "`python docs/generated.py` writes it"
    assert block[0] == f"{block[1]}{generated.readme_table()}\n{block[2]}"


def test_the_readme_is_written_between_its_markers_alone(generated, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")
    generated.write_readme(path)
    generated.write_readme(path)
    assert path.read_text() == f"above\n<!-- results -->\n{generated.readme_table()}\n<!-- /results -->\nbelow\n"
    path.write_text("no markers\n")
    generated.write_readme(path)
    assert path.read_text() == "no markers\n"
