"""Tables and figures of the published numbers, made from the lines that runs of ``reproduce.py`` append."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common import label_ends
from matplotlib.figure import Figure
from papers import ROWS, Row

from pyro_vae import evaluate
from pyro_vae.plots.style import BLUE, GREY, LINES

__all__ = ["FEW", "append", "draw", "read"]

PANELS = (("vae", "iwae"), ("gated",), ("two",))  # rows whose curves share axes, by the start of their names
FEW = 200  # draws per image for a point of a row's curve


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append lines to a table, or begin it."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]] if lines else [])
        if new:
            writer.writeheader()
        writer.writerows(lines)


def draw(stem: Path) -> None:
    """Write published.md, published.png and published_curves.png from the last line of each row."""
    found = {line["row"]: line for line in read(stem.with_suffix(".csv"))}
    more = {line["row"]: line for line in read(stem.with_name("published_more.csv"))}
    adapted = {line["row"]: line for line in read(stem.with_name("published_adapted.csv"))}
    heads = ["row", "published", "ours, nats", "minutes (cores, CPU)", "-ELBO", "active units (paper's)"]
    heads += ["AIS (bound there)", "adapted (bound there)", "k-hat > 0.7: adapted, guide"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in ROWS.items():
        if name in found:
            lines.append(written(name, row, found[name], more[name], adapted.get(name)))
    images, draws = (
        " to ".join(f"{number:,}" for number in sorted({int(line[key]) for line in found.values()}))
        for key in ("images", "particles")
    )
    caption = (
        f"MNIST, binarised dynamically, 60,000 training images; -log p(x) of {images} test images (drawn once, seed of "
        f"`data.load`) by the importance weighted bound with {draws} draws, ± its standard error over the images; the "
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws; minutes of training, number of cores, their instruction "
        "set, and the precision of products if not float32; AIS on 100 of the images, and the bound on these; on the "
        "first images, 1,000 draws from a proposal fitted to each image, the guide's bound on these, and the shares of "
        "images with k-hat above 0.7 (numbers of images: `published_adapted.csv`). "
        "Published: the lowest known number of a row, perhaps by a reimplementation; `--list` shows the papers' "
        "numbers. Sources: `published.csv`; commits: `published_more.csv`. "
        "`python experiments/reproduce.py ROW` appends a line."
    )
    stem.with_suffix(".md").write_text("\n".join([caption, "", *lines, ""]))
    common.draw(figure, stem.with_suffix(".png"), found)
    common.draw(curves, stem.with_name("published_curves.png"), found, read(stem.with_name("published_curves.csv")))


def written(
    name: str, row: Row, found: dict[str, str], more: dict[str, str], adapted: dict[str, str] | None = None
) -> str:
    """Return a row of published.md."""
    paper = f" ({row.active})" if row.active else ""
    ours = f"{float(found['ours']):.2f} ± {float(found['stderr']):.2f}"
    annealed = f"{float(more['AIS']):.2f} ({float(more['bound on the same']):.2f})" if more["AIS"] else ""
    machine = f"{more['threads'].replace(' ', ' or ')}, {more['instructions']}"
    machine += ", bfloat16" if "bfloat16" in found["command"] else ""
    minutes = f"{float(found['minutes']):.0f} ({machine})"
    cells = [f"{row.title} (`{name}`)", f"{row.published:.2f}", ours, minutes]
    cells += [f"{float(more['-ELBO']):.2f}", f"{more['active']} of {more['latent']}{paper}", annealed]
    if adapted:
        shares = (f"{float(adapted[f'{origin}, k-hat > 0.7']):.0%}" for origin in ("adapted", "guide"))
        cells += [f"{float(adapted['adapted']):.2f} ({float(adapted['guide']):.2f})", ", ".join(shares)]
    else:
        cells += ["", ""]
    return "| " + " | ".join(cells) + " |"


def figure(found: dict[str, dict[str, str]]) -> Figure:
    """Draw each number beside the published one."""
    names = [name for name in ROWS if name in found]
    drawn = Figure(figsize=(8, 1.1 + 0.36 * len(names)), layout="constrained")
    axes = drawn.subplots()
    for place, name in enumerate(names):
        ours, error = float(found[name]["ours"]), float(found[name]["stderr"])
        published = ROWS[name].published
        axes.plot([ours, published], [place, place], color="0.8", linewidth=1.2, zorder=1)
        axes.plot(published, place, "D", color="white", markeredgecolor=GREY, markersize=6)
        axes.errorbar(ours, place, xerr=error, fmt="o", color=BLUE, capsize=3)
        minutes = f"{name}, {float(found[name]['minutes']):.0f} min"
        axes.text(1.02, place, minutes, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if place == 0:
            for x, text, colour in ((ours, "ours ± standard error", BLUE), (published, "published", GREY)):
                side = "right" if (x == ours) == (ours < published) else "left"
                axes.annotate(text, (x, 0), (0, 9), textcoords="offset points", ha=side, color=colour, fontsize=8)
    axes.set_yticks(range(len(names)), [ROWS[name].title for name in names])
    axes.set(xlabel="-log p(x), nats per test image of MNIST", ylim=(len(names) - 0.5, -1))
    axes.grid(axis="x", color="0.9")
    return drawn


def curves(found: dict[str, dict[str, str]], points: Sequence[dict[str, str]]) -> Figure:
    """Draw -log p(x) of test images against minutes of training."""
    panels = [("vae", "iwae"), ("gated",), ("two",)]
    shown = [
        group for panel in panels if (group := [name for name in ROWS if name in found and name.startswith(panel)])
    ]
    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    widths = [2 + len(names) for names in shown]
    panels = drawn.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0]
    for axes, names in zip(panels, shown, strict=True):
        ends: list[tuple[float, float, str, str]] = []
        for name, colour in zip(names, LINES, strict=False):
            seed = found[name]["seed"]
            curve = [point for point in points if (point["row"], point["seed"]) == (name, seed)]
            curve = [*{point["epoch"]: point for point in curve}.values()]
            minutes = [float(point["minutes"]) for point in curve]
            nll = [float(point[f"-log p(x), {FEW} draws"]) for point in curve]
            axes.plot(minutes, nll, color=colour, linewidth=1.5)
            end = float(found[name]["minutes"]), float(found[name]["ours"])
            axes.plot(*end, "o", color=colour, markersize=5)
            ends.append((*end, name, colour))
        axes.set(xlabel="minutes of training", xlim=(0, None))
        axes.set_ylim(axes.get_ylim())
        label_ends(axes, ends)
    drawn.axes[0].set_ylabel(f"-log p(x), nats ({FEW} draws; dots 5,000)")
    return drawn
