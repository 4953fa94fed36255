"""The tables and the figure of published numbers: lines are added, and what readers see is drawn anew from them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from papers import ROWS, Row

from pyro_vae import evaluate

__all__ = ["FEW", "append", "draw", "read"]

FEW = 200  # draws per image for a point of a row's curve


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to a table, which is begun where there is none."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]] if lines else [])
        if new:
            writer.writeheader()
        writer.writerows(lines)


def draw(stem: Path) -> None:
    """Write published.md and published.png anew, of the last line of each row."""
    found = {line["row"]: line for line in read(stem.with_suffix(".csv"))}
    more = {line["row"]: line for line in read(stem.with_name("published_more.csv"))}
    lines = [
        "| row | published | ours, nats | minutes (cores, CPU) | -ELBO | active units (paper's) | AIS (bound there) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        if name in found:
            lines.append(written(name, row, found[name], more[name]))
    images, draws = (
        " to ".join(f"{number:,}" for number in sorted({int(line[key]) for line in found.values()}))
        for key in ("images", "particles")
    )
    caption = (
        f"MNIST, binarised dynamically, 60,000 training images; -log p(x) of {images} test images (drawn once, seed of "
        f"`data.load`) by the importance weighted bound with {draws} draws, ± its standard error over the images; the "
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws; minutes of training, how many cores, the instructions they "
        "have, and the precision of products if not float32; AIS on 100 of the images, beside the bound on the same. "
        "Published is the lowest number known for a row, which may be of a reimplementation; `--list` has the papers' "
        "own. Sources: [published.csv](published.csv); commits: [published_more.csv](published_more.csv). "
        "`python experiments/reproduce.py ROW` makes a line."
    )
    stem.with_suffix(".md").write_text("\n".join([caption, "", *lines, ""]))
    picture(found, read(stem.with_name("published_curves.csv"))).savefig(stem.with_suffix(".png"), dpi=150)


def written(name: str, row: Row, found: dict[str, str], more: dict[str, str]) -> str:
    """Return a line of published.md."""
    paper = f" ({row.active})" if row.active else ""
    ours = f"{float(found['ours']):.2f} ± {float(found['stderr']):.2f}"
    annealed = f"{float(more['AIS']):.2f} ({float(more['bound on the same']):.2f})" if more["AIS"] else ""
    machine = f"{more['threads'].replace(' ', ' or ')}, {more['instructions']}"
    machine += ", bfloat16" if "bfloat16" in found["command"] else ""
    minutes = f"{float(found['minutes']):.0f} ({machine})"
    cells = [f"{row.title} (`{name}`)", f"{row.published:.2f}", ours, minutes]
    cells += [f"{float(more['-ELBO']):.2f}", f"{more['active']} of {more['latent']}{paper}", annealed]
    return "| " + " | ".join(cells) + " |"


def picture(found: dict[str, dict[str, str]], points: Sequence[dict[str, str]]) -> Figure:
    """Draw -log p(x) of test images against minutes of training, the published numbers as lines."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    made = [name for name in ROWS if name in found]
    panels = [("vae", "iwae"), ("gated",), ("two",)]
    shown = [group for panel in panels if (group := [name for name in made if name.startswith(panel)])]
    for axes, names in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        last = []
        for i, name in enumerate(names):
            seed, colour = found[name]["seed"], f"C{i}"
            curve = [point for point in points if (point["row"], point["seed"]) == (name, seed)]
            curve = [*{point["epoch"]: point for point in curve}.values()]
            minutes = [float(point["minutes"]) for point in curve]
            nll = [float(point[f"-log p(x), {FEW} draws"]) for point in curve]
            axes.plot(minutes, nll, color=colour, linewidth=1.5, label=ROWS[name].title)
            axes.plot(float(found[name]["minutes"]), float(found[name]["ours"]), "o", color=colour)
            axes.axhline(ROWS[name].published, color=colour, linestyle="--", linewidth=1)
            last += [float(found[name]["ours"]), ROWS[name].published]
        axes.set(xlabel="minutes of training", ylabel=f"-log p(x), test, nats ({FEW} draws; dots 5,000)")
        low, high = min(last, default=0.0), max(last, default=1.0)
        axes.set_ylim(low - 0.4, high + 6)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
