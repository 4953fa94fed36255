"""Figures of the two largest tables, by the names of their experiments."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from common import label_ends, mean_of, spread_of, ticks
from matplotlib.figure import Figure

from pyro_vae.plots.style import BLUE, GREEN, GREY, LINES, RED


def estimators(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the signal-to-noise ratio, the time per step, and -log p(x) after training, from the table."""
    drawn = Figure(figsize=(8, 7.6), layout="constrained")
    halves: Any = drawn.subfigures(2, 1, height_ratios=[1, 1.3])
    above, below = halves
    *panels, cost = above.subplots(1, 3, width_ratios=[1, 1, 0.6])
    particles = sorted({int(row["K"]) for row in rows})
    for axes, part in zip(panels, ("guide", "model"), strict=True):
        ends: list[tuple[float, float, str, str]] = []
        for names, curve in coincident(rows, f"SNR, {part}").items():
            colour = LINES[len(ends) % len(LINES)] if len(curve) > 1 else GREY
            axes.plot(*zip(*curve, strict=True), "o-", markersize=4, color=colour, linewidth=1.3)
            if len(curve) > 1:
                ends.append((*curve[-1], names, colour))
            else:
                axes.annotate(names, curve[0], (-3, -12), textcoords="offset points", fontsize=8)
        axes.margins(y=0.1)
        axes.set(xscale="log", yscale="log", xlabel="particles K", title=f"Signal-to-noise ratio, {part}")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        ticks(axes.xaxis, particles)
        ticks(axes.yaxis, [place for place in (0.5, 1, 2, 5, 10, 20, 50) if low <= place <= high])
        label_ends(axes, ends, gap=0.075)
    for k in particles:
        times = [row["ms per step"] for row in rows if int(row["K"]) == k]
        cost.plot([k] * len(times), times, "o", color=GREY, markersize=4, alpha=0.6)
        cost.annotate(f"{median(times):.0f} ms", (k, max(times)), (-6, 4), textcoords="offset points", ha="right")
    cost.set(xscale="log", yscale="log", xlabel="particles K", title="Time per step")
    cost.margins(x=0.35, y=0.1)
    ticks(cost.xaxis, particles)
    ticks(cost.yaxis, [])
    cost.spines["left"].set_visible(False)
    last = below.subplots()
    marks = {"same steps": (BLUE, "o"), "same seconds": (RED, "s")}
    for key, (colour, mark) in marks.items():
        cells = [row[f"-log p(x), {key}"] for row in rows]
        means, errors = [*map(mean_of, cells)], [*map(spread_of, cells)]
        last.errorbar(means, range(len(rows)), xerr=errors, fmt=mark, markersize=5, color=colour)
        last.annotate(key, (means[0], 0), (0, 9), textcoords="offset points", ha="center", color=colour)
    for place in range(1, len(rows)):
        if rows[place]["K"] != rows[place - 1]["K"]:
            last.axhline(place - 0.5, color="0.85", linewidth=0.8)
    last.set_yticks(range(len(rows)), [f"{row['estimator']}, K = {int(row['K'])}" for row in rows])
    last.set(xlabel="-log p(x) after training, nats per test image", ylim=(len(rows) - 0.5, -1.2))
    last.grid(axis="x", color="0.9")
    return drawn


def coincident(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve by the names of its estimators; estimators within 0.1% share a curve."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        curves.setdefault(row["estimator"], []).append((int(row["K"]), max(row[key], 1e-4)))
    shared: dict[str, list[tuple[int, float]]] = {}
    for name, curve in curves.items():
        values = dict(curve)
        for names, other in shared.items():
            common = [k for k, _ in other if k in values]
            if common and all(abs(dict(other)[k] / values[k] - 1) < 1e-3 for k in common):
                shared[f"{names}\n{name}"] = max(shared.pop(names), curve, key=len)
                break
        else:
            shared[name] = curve
    return shared


def speed(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the time of a step and of an epoch over that of each rival, from the table."""
    panels = {
        "One step of the ELBO, 784-400-20": ("steps", "step, inductor"),
        "One step of IWAE, K = 50, 784-200-200-50": ("iwae", "IWAE-50, inductor"),
        "One epoch of fit, MNIST": ("epochs", "epoch of fit"),
    }
    parts = {title: [row for row in rows if (row["part"], row["what"]) == key] for title, key in panels.items()}
    parts = {title: table for title, table in parts.items() if table}
    rivals = [[*dict.fromkeys(row["rival"] for row in table)] for table in parts.values()]
    heights = [0.9 + 0.28 * len(names) for names in rivals] or [1.0]
    drawn = Figure(figsize=(8, 0.6 + sum(heights)), layout="constrained")
    panes = drawn.subplots(max(len(parts), 1), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, table), names in zip(panes, parts.items(), rivals, strict=False):
        for row in table:
            threads = int(row["setting"].partition("threads ")[2].partition(",")[0])
            place = names.index(row["rival"])
            mark, colour = ("o", BLUE) if threads == 1 else ("s", GREEN)
            axes.plot(row["ratio"], place + (0.12 if threads > 1 else -0.12), mark, color=colour, markersize=5)
        for place, name in enumerate(names):
            ratios = [row["ratio"] for row in table if row["rival"] == name]
            text = f"{min(ratios):.2f} to {max(ratios):.2f}"
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.axvline(1, color=RED, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set(ylim=(len(names) - 0.4, -0.6), xscale="log")
        axes.set_title(title, loc="left")
        axes.grid(axis="x", color="0.9")
    panes[-1].set_xlim(0.15, 2.0)
    ticks(panes[-1].xaxis, (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5))
    panes[-1].set_xlabel("our time over theirs, less than 1: ours is faster. Circles: 1 thread, squares: 2 threads")
    return drawn
