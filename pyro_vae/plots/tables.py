"""Tables of numbers, a panel for each column: where the data are, and where a model takes them to be."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.style import BLUE, GREY, ORANGE, numbers, styled

MOST, BINS = 16, 30  # columns that are drawn, and bins of a histogram


@styled
def marginals(x: Tensor, drawn: Tensor, names: Sequence[str], title: str = "Data, and draws of the model") -> Figure:
    """Draw histograms of the columns of data, and of rows that a model draws, both of shape ``(N, columns)``.

    First come the columns where values of one rank are most apart, in units of the data's mean deviation.
    """
    ranked, others = (values.detach().double().sort(0).values for values in (x, drawn))
    apart = (ranked - others).abs().nanmean(0) / (ranked - ranked.nanmean(0)).abs().nanmean(0)
    figure = Figure(layout="constrained")
    for axes, data, model in _panels(figure, x, drawn, apart, names, title):
        both = np.concatenate([data, model])
        low, high = np.quantile(both, 0.002, method="lower"), np.quantile(both, 0.998, method="higher")
        whole = low == high or ((both == both.round()).all() and high - low < BINS)
        edges = (np.arange(low, high + 2) - 0.5 if whole else np.linspace(low, high, BINS + 1)).tolist()
        axes.hist(data, edges, density=True, color=ORANGE, alpha=0.55, label="data")
        axes.hist(model, edges, density=True, color=BLUE, histtype="step", linewidth=1.5, label="model")
        axes.set_yticks([])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


@styled
def recovered(
    x: Tensor, x_hat: Tensor, names: Sequence[str], title: str = "Reconstructions (up) of data (across)"
) -> Figure:
    """Draw reconstructions against data, both of shape ``(N, columns)``: first the columns with most variance lost."""
    lost = (x - x_hat).square().nanmean(0) / (x - x.nanmean(0)).square().nanmean(0)
    figure = Figure(layout="constrained")
    for axes, data, model in _panels(figure, x, x_hat, lost, names, title):
        ends = data.min(), data.max()
        axes.plot(ends, ends, color=GREY, linewidth=0.8)
        axes.plot(data, model, ".", color=BLUE, markersize=3, alpha=0.4)
    return figure


def _panels(
    figure: Figure, x: Tensor, other: Tensor, order: Tensor, names: Sequence[str], title: str
) -> Iterator[tuple[Axes, np.ndarray, np.ndarray]]:
    """Yield a panel for each column, largest ``order`` first, with what is finite of it in both tables."""
    chosen = order.nan_to_num(0.0, posinf=math.inf).argsort(descending=True)[:MOST].tolist()
    wide = min(4, len(chosen))
    high = math.ceil(len(chosen) / wide)
    figure.set_size_inches(max(5.0, 2.6 * wide), 1.0 + 2.1 * high)
    figure.suptitle(title if len(chosen) == len(names) else f"{title}: {MOST} of {len(names):,} columns", fontsize=11)
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    for axes, i in zip(panels, chosen, strict=False):
        axes.set_title(names[i], fontsize=9)
        axes.tick_params(labelsize=7)
        data, model = numbers(x[:, i]), numbers(other[:, i])
        if (seen := np.isfinite(data) & np.isfinite(model)).any():
            yield axes, data[seen], model[seen]
