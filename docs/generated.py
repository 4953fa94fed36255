"""Copies for the site, so that nothing stands in two places: notebooks, help texts, the README's table of results.

``python docs/generated.py`` writes the README's table of results, between ``<!-- results -->`` and
``<!-- /results -->``, from the tables of the experiments.
"""

import re
import subprocess
import sys
from pathlib import Path

from table_numbers import numbers

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
COMMANDS = ("train", "evaluate", "generate", "sweep", "compare", "report")
# A notebook links to the experiment beside it, the site to the page of its results.
LINK = re.compile(r"\]\(\.\./experiments/(?:results/)?(\w+)\.(?:py|md|png)\)")
# A figure of an experiment stays where it is.
IMAGE = re.compile(r"(!\[[^\]]*\]\()\.\./experiments/")


def readme_table() -> str:
    """Return the README's table of results in Markdown: an experiment, its result and its script a row."""
    n = numbers()
    lines = [
        ("−log p(x), MNIST, one layer", "{ours_vae} nats, published {published_vae}", "reproduce.py vae"),
        ("the same, two layers", "{ours_two_layers} nats, published {published_two_layers}", "reproduce.py two-layers"),
        ("Time of a training step", "{speed_stock} of stock Pyro's", "speed.py"),
        ("Killed and resumed runs", "{identical} of {runs} equal to the last bit", "reliability.py"),
        ("Learned priors", "−log p(x) from {prior_normal} down to {prior_vamp} nats", "priors.py"),
        ("90% intervals, missing pixels", "hold {held_pixel}", "imputation.py"),
    ]
    heads = ["| experiment | result | `python experiments/` |", "|---|---|---|"]
    return "\n".join([*heads, *(f"| {what} | {result.format(**n)} | `{script}` |" for what, result, script in lines)])


def write_readme(path: Path = README) -> None:
    """Write the table of results between the README's markers, where it has them."""
    text = path.read_text()
    _write_if_other(path, BLOCK.sub(lambda markers: f"{markers[1]}{readme_table()}\n{markers[2]}", text))


def write(site: Path, root: Path) -> None:
    """Write the copies of notebooks and the help texts of the command into the site's folder."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text = IMAGE.sub(r"\1../../experiments/", path.read_text())
        _write_if_other(site / "learn" / path.name, LINK.sub(r"](../results/\1.md)", text))
    for name in COMMANDS:
        words = [sys.executable, "-m", "pyro_vae", name, "--help"]
        text = subprocess.run(words, capture_output=True, text=True, check=True, env={"COLUMNS": "100"}).stdout
        _write_if_other(site / "reference" / "_generated" / f"{name}.txt", text)


def _write_if_other(path: Path, text: str) -> None:
    """Write a file unless it has this text, so that Sphinx reads no page twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    write_readme()
