"""Figures of many runs."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.plots.style import BLUE, ORANGE, finite, styled

COLUMNS, MOST, LONGEST = 4, 11, 16  # panels in a row, options, and characters of a tick


@styled
def slices(
    options: Mapping[str, Sequence[str]],
    nll: Sequence[float],
    seconds: Sequence[float],
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """Plot -log p(x) of runs against each option, and against the seconds of training.

    A point is a run, a line joins the means of an option's values. Values that are numbers have an axis of numbers, in
    the logarithm if they span more than a factor of 20. The last panel names the run with the lowest -log p(x).

    Args:
        options: Values of each option by run; the first 11 options are drawn.
        nll: -log p(x) of each run, in nats per datum.
        seconds: Seconds of training of each run.
        names: Names of the runs.
        title: Title of the figure.
    """
    levels_of = {name: [*values] for name, values in [*options.items()][:MOST]}
    total = len(levels_of) + 1
    columns = min(COLUMNS, total)
    rows = math.ceil(total / columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    heights = finite(nll)
    for axes, (name, values) in zip(panels, levels_of.items(), strict=False):
        levels = [*dict.fromkeys(values)]
        places, is_number = [float(i) for i in range(len(levels))], False
        with suppress(ValueError):
            places, is_number = [float(level) for level in levels], True
        if is_number and min(places) > 0 and max(places) > 20 * min(places):
            axes.set_xscale("log")
        x = np.array([places[levels.index(value)] for value in values])
        axes.plot(x, heights, "o", color=BLUE, alpha=0.5, markersize=4, markeredgewidth=0)
        order = sorted(set(x.tolist())) if is_number else places
        axes.plot(order, [_mean(heights[x == place]) for place in order], "-", color=ORANGE, linewidth=2)
        if not is_number:
            ticks = [level if len(level) <= LONGEST else f"{level[: LONGEST - 1]}…" for level in levels]
            axes.set_xticks(places, ticks, rotation=30 if max(map(len, ticks)) > 6 else 0, ha="right")
            axes.margins(x=0.15)
        axes.set_xlabel(name)
    last = panels[len(levels_of)]
    last.plot(seconds, heights, "o", color=BLUE, alpha=0.5, markersize=4, markeredgewidth=0)
    if np.isfinite(heights).any():
        best = int(np.nanargmin(heights))
        last.annotate(
            names[best], (seconds[best], heights[best]), xytext=(5, -3), textcoords="offset points", fontsize=8
        )
    last.set_xlabel("seconds of training")
    for axes in panels[total:]:
        axes.set_axis_off()
    for row in range(rows):
        panels[row * columns].set_ylabel("-log p(x), nats per datum")
    return figure


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
