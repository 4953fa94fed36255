"""A guide beside the true posterior, and whether it is calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.colours import BLUE, GREY, ORANGE, RED

__all__ = ["calibration", "posteriors"]

MOST = 2000  # points drawn
SHARES = (0.5, 0.9, 0.99)  # of the mass, within contours
BAND = 0.99  # of the counts, within the grey band, if ranks are uniform


def posteriors(
    guide: Tensor, posterior: Tensor, dims: Sequence[int], exact: tuple[Tensor, Tensor, Tensor] | None = None
) -> Figure:
    """Draw both of one datum: on the diagonal densities of each dimension, below it pairs of dimensions.

    Arguments:
        guide: Draws, of shape ``(K, latent)``.
        posterior: Draws, of shape ``(K, latent)``.
        dims: Which dimensions.
        exact: Where z is of 2 dimensions, axes ``(steps,)`` of both and the density ``(steps, steps)``, z0 by z1: its
            contours are drawn, around 50%, 90% and 99% of the mass.
    """
    ours, theirs = (z.detach().cpu().double().numpy() for z in (guide, posterior))
    size = len(dims)
    figure = Figure(figsize=(1.2 + 2.1 * size, 0.8 + 2.1 * size), layout="constrained")
    panels = figure.subplots(size, size, squeeze=False)
    for i, row in enumerate(dims):
        for j, column in enumerate(dims):
            axes = panels[i, j]
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            if j > i:
                axes.set_axis_off()
            elif i == j:
                both = np.concatenate([ours[:, row], theirs[:, row]])
                bins = np.linspace(np.quantile(both, 0.001), np.quantile(both, 0.999), 50)
                axes.hist(theirs[:, row], bins, density=True, color=ORANGE, alpha=0.55, label="posterior, by NUTS")
                axes.hist(ours[:, row], bins, density=True, color=BLUE, histtype="step", linewidth=1.5, label="guide")
                axes.set_yticks([])
            else:
                axes.plot(*theirs[:MOST, [column, row]].T, ".", color=ORANGE, markersize=2, alpha=0.4)
                axes.plot(*ours[:MOST, [column, row]].T, ".", color=BLUE, markersize=2, alpha=0.25)
                limits = np.quantile(np.concatenate([ours, theirs])[:, [column, row]], [0.0005, 0.9995], axis=0)
                axes.set(xlim=limits[:, 0], ylim=limits[:, 1])
                if exact is not None:
                    z0, z1, density = (values.detach().cpu().double().numpy() for values in exact)
                    _contours(axes, z0, z1, density.T) if column == 0 else _contours(axes, z1, z0, density)
            if i == size - 1:
                axes.set_xlabel(f"z{column}")
            if j == 0 and i > 0:
                axes.set_ylabel(f"z{row}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", frameon=False, fontsize=9)
    return figure


def _contours(axes: Axes, across: np.ndarray, up: np.ndarray, density: np.ndarray) -> None:
    heights = np.sort(density.ravel())[::-1]
    held = np.cumsum(heights) / heights.sum()
    levels = sorted({float(heights[np.searchsorted(held, share)]) for share in SHARES})
    axes.contour(across, up, density, levels=levels, colors="black", linewidths=0.9)


def calibration(
    counts: Tensor, names: Sequence[str], levels: Tensor, coverage: Tensor, num: int, p_values: Tensor, most: int = 7
) -> Figure:
    """Draw histograms of ranks, those that are least uniform first, and how much central intervals hold.

    Arguments:
        counts: Of each bin of ranks, of shape ``(bins, quantities)``.
        names: Of the quantities.
        levels: Of the intervals, of shape ``(levels,)``.
        coverage: What they hold, of shape ``(levels, latent)``.
        num: How many data.
        p_values: Of each quantity, that its ranks are uniform.
        most: How many histograms.
    """
    from scipy.stats import binom  # takes a second to import

    chosen = p_values.argsort()[:most].tolist()
    columns = min(4, len(chosen) + 1)
    rows = math.ceil((len(chosen) + 1) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    bins = len(counts)
    low, middle, high = (float(binom.ppf(q, num, 1 / bins)) for q in ((1 - BAND) / 2, 0.5, (1 + BAND) / 2))
    for axes, i in zip(panels, chosen, strict=False):
        axes.axhspan(low, high, color="0.9", zorder=0)
        axes.axhline(middle, color="0.6", linewidth=0.8, zorder=1)
        axes.bar(range(bins), counts[:, i].tolist(), width=0.9, color=BLUE, zorder=2)
        axes.set_title(f"{names[i]}, p = {p_values[i]:.2g}", fontsize=9)
        axes.set(xticks=[], xlabel="rank of the true z" if i < len(names) - 1 else "rank")
        axes.spines[["top", "right"]].set_visible(False)
    axes = panels[len(chosen)]
    at = levels.cpu().numpy()
    axes.fill_between(at, *(binom.ppf(q, num, at) / num for q in ((1 - BAND) / 2, (1 + BAND) / 2)), color="0.9")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    axes.plot(at, coverage.cpu().numpy(), color=RED, linewidth=0.9, alpha=0.7)
    axes.set_title("coverage, a line a dimension", fontsize=9)
    axes.set(xlabel="level of the guide's interval", xlim=(0, 1), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(chosen) + 1 :]:
        axes.set_axis_off()
    return figure
