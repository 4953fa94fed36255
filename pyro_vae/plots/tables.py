"""Tables of numbers, a panel for each column."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.style import BLUE, GREY, ORANGE, numbers, styled

MOST, BINS = 16, 30  # columns that are drawn, and bins of a histogram


@styled
def columns(x: Tensor, other: Tensor, names: Sequence[str], title: str, pairs: bool = False) -> Figure:
    """Draw columns of data and of a model's rows, both of shape ``(N, columns)``, NaN left out: histograms of both.

    With ``pairs`` a row of the one is of the same datum as that of the other, and they are drawn against each other.
    First come the columns that are most apart, row by row or rank by rank, in units of the data's mean deviation.
    """
    one, two = (table.detach().double() if pairs else table.detach().double().sort(0).values for table in (x, other))
    apart = (one - two).abs().nanmean(0) / (one - one.nanmean(0)).abs().nanmean(0)
    chosen = apart.nan_to_num(0.0).argsort(descending=True)[:MOST].tolist()
    wide = min(4, len(chosen))
    rows = -(-len(chosen) // wide)
    figure = Figure(figsize=(max(5.0, 2.6 * wide), 1 + 2.1 * rows), layout="constrained")
    figure.suptitle(title if len(chosen) == len(names) else f"{title}: {MOST} of {len(names):,} columns", fontsize=11)
    for axes, i in zip_longest(figure.subplots(rows, wide, squeeze=False).ravel(), chosen):
        data, model = (numbers(table[:, i or 0]) for table in (x, other))
        seen = np.isfinite(data) & np.isfinite(model)
        if i is None or not seen.any():
            axes.set_axis_off()
            continue
        axes.set_title(names[i], fontsize=9)
        axes.tick_params(labelsize=7)
        both = np.concatenate([data[seen], model[seen]])
        low, high = np.quantile(both, 0.002, method="lower"), np.quantile(both, 0.998, method="higher")
        if pairs:
            axes.plot([low, high], [low, high], color=GREY, linewidth=0.8)
            axes.plot(data[seen], model[seen], ".", color=BLUE, markersize=3, alpha=0.4)
            continue
        whole = low == high or ((both == both.round()).all() and high - low < BINS)
        margin, bins = (0.5 + 1e-9 * abs(low), round(high - low) + 1) if whole else (0.0, BINS)
        edges = np.linspace(low - margin, high + margin, bins + 1).tolist()
        axes.hist(data[seen], edges, density=True, color=ORANGE, alpha=0.55, label="data")
        axes.hist(model[seen], edges, density=True, color=BLUE, histtype="step", linewidth=1.5, label="model")
        axes.set_yticks([])
        if whole:
            axes.locator_params(axis="x", integer=True)
    if not pairs:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure
