"""Plots of samples: latent codes; a guide and the true posterior; columns of data and of a model."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.plots.style import BLUE, CLASSES, GREY, ORANGE, numbers, styled

MOST, PANELS, BINS = 2000, 16, 30  # the most points, columns, and bins of a column's histogram
SHARES = (0.5, 0.9, 0.99)  # of the mass, within the contours


@styled
def latent_space(
    z: Tensor,
    labels: Tensor | None = None,
    title: str = "Latent space: means of q(z | x)",
    levels: Sequence[str] = (),
    name: str = "label",
) -> Figure:
    """Plot codes z, ``(N, latent)``, in the colours of labels, ``(N,)``; above 2 dimensions, plot the first two PCs.

    ``levels`` are the names of the labels 0, 1, and so on; ``name`` is the title of the legend.
    """
    finite = z.isfinite().all(1)
    points, names = z[finite].detach().cpu().double(), ["z0", "z1"]
    if points.shape[1] > 2:
        points = points - points.mean(0)
        _, _, components = torch.linalg.svd(points.T @ points)  # as many as dimensions, however few the points
        points, names = points @ components[:2].T, [f"{nth} principal component of z" for nth in ("first", "second")]
    across, up = pad(points, (0, 2 - points.shape[1])).T.numpy()
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(across, up, s=6, alpha=0.6, color=BLUE, linewidths=0)
    else:
        classes, codes = np.unique(labels[finite.to(labels.device)].cpu().numpy(), return_inverse=True)
        few, top = len(classes) <= 10, max(9.5, len(classes) - 0.5)
        colours = ListedColormap(CLASSES) if few else "turbo"
        dots = axes.scatter(across, up, c=codes, s=7, alpha=0.7, cmap=colours, linewidths=0, vmin=-0.5, vmax=top)
        if few:
            handles, _ = dots.legend_elements(num=list(range(len(classes))), alpha=1)
            words = [levels[label] if levels else str(label) for label in classes]
            axes.legend(handles, words, title=name, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    axes.set_title(title, fontsize=12)
    return figure


@styled
def posteriors(
    guide: Tensor, posterior: Tensor, dims: Sequence[int], exact: tuple[Tensor, Tensor, Tensor] | None = None
) -> Figure:
    """Plot the guide and the posterior of one datum: a density of each dimension in ``dims``, and pairs of dimensions.

    Samples have shape ``(K, latent)``. For 2 dimensions of z, ``exact`` has the axes of z0 and z1, ``(steps,)``, and
    the density, ``(steps, steps)``, z0 by z1. Contours of the density enclose 50%, 90% and 99% of the mass.
    """
    from_guide, from_posterior = numbers(guide), numbers(posterior)
    both = np.concatenate([from_guide, from_posterior])
    if exact is not None:
        *grid, density = map(numbers, exact)
        largest = np.sort(density.ravel())[::-1]
        mass = np.cumsum(largest) / largest.sum()
        levels = sorted({float(largest[np.searchsorted(mass, share)]) for share in SHARES})
    size = len(dims)
    figure = Figure(figsize=(1.2 + 2.1 * size, 0.8 + 2.1 * size), layout="constrained")
    panels = figure.subplots(size, size, squeeze=False)
    for (i, j), axes in np.ndenumerate(panels):
        row, column = dims[i], dims[j]
        axes.tick_params(labelsize=7)
        if j > i:
            axes.set_axis_off()
        elif i == j:
            low, high = np.quantile(both[:, row], [0.001, 0.999])
            bins = np.linspace(low, high, 50)
            axes.hist(from_posterior[:, row], bins, density=True, color=ORANGE, alpha=0.55, label="posterior, by NUTS")
            axes.hist(from_guide[:, row], bins, density=True, color=BLUE, histtype="step", linewidth=1.5, label="guide")
            axes.set_yticks([])
        else:
            axes.plot(*from_posterior[:MOST, [column, row]].T, ".", color=ORANGE, markersize=2, alpha=0.4)
            axes.plot(*from_guide[:MOST, [column, row]].T, ".", color=BLUE, markersize=2, alpha=0.25)
            limits = np.quantile(both[:, [column, row]], [0.0005, 0.9995], axis=0)
            axes.set(xlim=limits[:, 0], ylim=limits[:, 1])
            if exact is not None:
                across, up, heights = grid[column], grid[row], density.T if column == 0 else density
                axes.contour(across, up, heights, levels=levels, colors="black", linewidths=0.9)
        if i == size - 1:
            axes.set_xlabel(f"z{column}")
        if j == 0 and i > 0:
            axes.set_ylabel(f"z{row}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper right", fontsize=9)
    return figure


@styled
def columns(x: Tensor, other: Tensor, names: Sequence[str], title: str, pairs: bool = False) -> Figure:
    """Plot histograms of the columns of data and of a model's samples, both of shape ``(N, columns)``, without NaN.

    With ``pairs``, row i of both belongs to one datum, and scatter plots replace the histograms. The column with the
    largest mean distance of rows, or else of sorted values, over the data's mean absolute deviation comes first.
    """
    a, b = (table.detach().double() if pairs else table.detach().double().sort(0).values for table in (x, other))
    distance = (a - b).abs().nanmean(0) / (a - a.nanmean(0)).abs().nanmean(0)
    chosen = distance.nan_to_num(0.0).argsort(descending=True)[:PANELS].tolist()
    wide = min(4, len(chosen))
    rows = -(-len(chosen) // wide)
    figure = Figure(figsize=(max(5.0, 2.6 * wide), 1 + 2.1 * rows), layout="constrained")
    figure.suptitle(title if len(chosen) == len(names) else f"{title}: {PANELS} of {len(names):,} columns", fontsize=11)
    for axes, i in zip_longest(figure.subplots(rows, wide, squeeze=False).ravel(), chosen):
        data, model = (numbers(table[:, i or 0]) for table in (x, other))
        finite = np.isfinite(data) & np.isfinite(model)
        if i is None or not finite.any():
            axes.set_axis_off()
            continue
        axes.set_title(names[i], fontsize=9)
        axes.tick_params(labelsize=7)
        both = np.concatenate([data[finite], model[finite]])
        low, high = np.quantile(both, 0.002, method="lower"), np.quantile(both, 0.998, method="higher")
        if pairs:
            axes.plot([low, high], [low, high], color=GREY, linewidth=0.8)
            axes.plot(data[finite], model[finite], ".", color=BLUE, markersize=3, alpha=0.4)
            continue
        integers = low == high or ((both == both.round()).all() and high - low < BINS)
        margin, bins = (0.5 + 1e-9 * abs(low), round(high - low) + 1) if integers else (0.0, BINS)
        edges = np.linspace(low - margin, high + margin, bins + 1).tolist()
        axes.hist(data[finite], edges, density=True, color=ORANGE, alpha=0.55, label="data")
        axes.hist(model[finite], edges, density=True, color=BLUE, histtype="step", linewidth=1.5, label="model")
        axes.set_yticks([])
        if integers:
            axes.locator_params(axis="x", integer=True)
    if not pairs:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure
