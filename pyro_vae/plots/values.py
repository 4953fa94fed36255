"""Plots of numbers: training curves, comparisons of runs, and diagnostics of a guide."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.style import BLUE, GREEN, GREY, LINES, ORANGE, RED, finite, numbers, styled

GOOD, POOR, BIN, MOST = 0.5, 0.7, 0.05, 10  # k-hat
BAND = 0.99  # the probability of a count within the grey band if ranks are uniform
LEAST = 0.0001  # smaller p-values are not distinguished
CURVES = {
    "Loss": [
        ("train", "train, the objective", BLUE),
        ("train_at_beta_1", "train, -ELBO", GREEN),
        ("valid", "valid, -ELBO", ORANGE),
    ],
    "Reconstruction: E[-log p(x | z)], valid": [("valid_reconstruction", "", ORANGE)],
    "Divergence: KL(q || p), valid": [("valid_kl", "", GREEN)],
    "Accuracy of q(y | x), valid": [("valid_accuracy", "", BLUE)],
}


@styled
def curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the loss, the reconstruction term and the KL term by epoch, from the history that ``fit`` returns.

    If the objective is not the ELBO at beta = 1, the figure also shows the negative ELBO at beta = 1. Without
    validation data it shows only the loss.
    """
    epochs, panels = np.arange(1, len(history["train"]) + 1), lines_of(history)
    figure = Figure(figsize=(10 * len(panels) / 3, 3.2), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for key, label, colour in lines:
            axes.plot(epochs, finite(history[key]), color=colour, label=label, linewidth=1.5)
        if len(lines) > 1:
            axes.legend()
        _fit_to(axes, [history[key][len(epochs) // 20 :] for key, _, _ in lines])
        axes.set(title=title, xlabel="epoch")
    figure.axes[0].set_ylabel("nats per datum")
    return figure


def lines_of(history: Mapping[str, Sequence[float]]) -> dict[str, list[tuple[str, str, str]]]:
    """Return the lines of each panel of :func:`curves`: the key in the history, the label and the colour."""
    same = np.array_equal(history.get("train_at_beta_1", []), history["train"])
    columns = {*history} - ({"train_at_beta_1"} if same else set())
    panels = {title: [line for line in lines if line[0] in columns] for title, lines in CURVES.items()}
    return {title: lines for title, lines in panels.items() if lines}


@styled
def comparison(groups: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Figure:
    """Plot runs for comparison, with a row of panels for each group of comparable runs.

    Left: -log p(x), the best run at the top. Middle: the two terms of the ELBO, with lines of equal ELBO. Right: the
    negative ELBO of the validation data by seconds of training. A group is a title and runs by name. A run has ``nll``
    (a mean and a standard error), the numbers ``reconstruction`` and ``kl``, and for each epoch ``seconds`` since the
    start and ``valid``, the negative ELBO. ``seconds`` and ``valid`` may be empty.
    """
    heights = [1.6 + max(1.4, 0.28 * len(runs)) for _, runs in groups]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    pages = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for page, (title, runs) in zip(pages[:, 0], groups, strict=True):
        page.suptitle(title, fontsize=10)
        left, middle, right = page.subplots(1, 3)
        for i, run in enumerate(runs.values()):
            colour, valid, (nll, error) = LINES[i % len(LINES)], finite(run["valid"]), finite(run["nll"])
            left.errorbar(nll, i, xerr=error, fmt="o", color=colour, capsize=3)
            middle.plot(*finite([run["kl"], -run["reconstruction"]]), "o", color=colour)
            right.plot(run["seconds"][: len(valid)], valid, "-o", color=colour, linewidth=1.5, markevery=[-1])
        left.set_yticks(range(len(runs)), [*runs])
        left.set(ylim=(len(runs) - 0.5, -0.5), xlabel="-log p(x), nats per datum")
        middle.margins(0.2)
        (start, end), (low, high) = middle.get_xlim(), middle.get_ylim()
        for elbo in np.linspace(start + low, end + high, 9)[1:-1]:
            middle.plot([start, end], [elbo - start, elbo - end], color="0.85", linewidth=0.8, zorder=0)
        middle.set(xlim=(start, end), ylim=(low, high))
        middle.set(xlabel="KL(q || p), nats; one ELBO on each line", ylabel="E[-log p(x | z)], nats")
        right.set(xlabel="seconds of training", xlim=(0, None), ylabel="-ELBO, valid, nats")
        _fit_to(right, [run["valid"][len(run["valid"]) // 4 :] for run in runs.values()])
    return figure


def _fit_to(axes: Axes, tails: Sequence[Sequence[float]]) -> None:
    """Set the limits of the vertical axis to the range of the last epochs."""
    if (ylim := limits(tails)) is not None:
        axes.set(ylim=ylim)


def limits(tails: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Return the range of ``tails``, the last epochs, which look flat beside the first epochs; None without numbers."""
    values = np.concatenate(tails)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    margin = 0.05 * (values.max() - values.min()) or max(1.0, abs(values.max()) / 1000)
    return values.min() - margin, values.max() + margin


@styled
def bounds(
    particles: Sequence[int],
    means: Sequence[float],
    errors: Sequence[float],
    others: Mapping[str, tuple[float, float]] | None = None,
    title: str = "-log p(x) by importance sampling",
) -> Figure:
    """Plot estimates of -log p(x) in nats by number of particles, with means and standard errors over data.

    ``others`` maps names of further estimates to their mean and to the standard error of their paired difference
    from the last element of ``means``.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(particles, finite(means), finite(errors), fmt="-o", color=BLUE, ms=4, capsize=3, linewidth=1.2)
    axes.annotate("-ELBO", (particles[0], finite(means)[0]), xytext=(8, 0), textcoords="offset points", fontsize=9)
    for (name, (difference, error)), colour in zip((others or {}).items(), (ORANGE, GREEN, RED), strict=False):
        at = float(finite(means[-1] + difference))
        if math.isfinite(at + error):
            axes.axhspan(at - error, at + error, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(at, color=colour, linewidth=1.2, label=name)
    axes.set(xscale="log", xlabel="particles", ylabel="nats per datum", title=title)
    if others:
        axes.legend(fontsize=9)
    return figure


@styled
def weights(k: Tensor, ess: Tensor, num_particles: int, images: str = "images") -> Figure:
    """Plot histograms of k-hat and of the effective sample size, both of shape ``(B,)``."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = numbers(k)
    usual = np.append(shown[np.abs(shown) < MOST], [GOOD, POOR])
    # the last bin is for values of MOST or more
    low, high = math.floor(usual.min() / BIN), math.floor(usual.max() / BIN) + 2
    edges = BIN * np.arange(low, high + 1)
    _, _, bars = left.hist(np.where(np.abs(shown) < MOST, shown, edges[-2] + BIN / 2), bins=edges.tolist())
    for middle, bar in zip(edges + BIN / 2, bars, strict=False):
        bar.set_facecolor(RED if middle > POOR else ORANGE if middle > GOOD else BLUE)
    for line, colour in ((GOOD, ORANGE), (POOR, RED)):
        left.axvline(line, color=colour, linewidth=1, linestyle="--")
    share = 1 - (k <= POOR).double().mean().item()
    left.set(title=f"Pareto k-hat: {share:.1%} of {len(k):,} {images} above {POOR}")
    left.set(xlabel="k-hat of a datum's weights", ylabel=images)
    size = numbers(ess).clip(1, num_particles)  # off by rounding
    right.hist(size, bins=np.geomspace(1, num_particles, 40).tolist(), color=BLUE)
    right.set(title=f"Effective sample size of {num_particles:,} draws: median {np.median(size):,.0f}")
    right.set(xscale="log", xlabel="ESS of a datum's weights")
    return figure


@styled
def dimensions(
    activity: Tensor, kl: Tensor | None = None, threshold: float = 0.01, names: Sequence[str] | None = None
) -> Figure:
    """Plot the KL in nats and the activity of each latent dimension, largest first.

    ``activity`` is Var_x(E_q[z_i | x]), of shape ``(latent,)``; a dimension is active above ``threshold``. ``kl`` is
    the mean over x of KL(q(z_i | x) || p(z_i)), of the same shape, or None. The default ``names`` are z0, z1, ....
    """
    names = names or [f"z{i}" for i in range(len(activity))]
    order = (activity if kl is None else kl).argsort(descending=True).tolist()
    figure = Figure(figsize=(max(5.0, 1.5 + 0.22 * len(order)), 2.2 if kl is None else 3.6), layout="constrained")
    panels = figure.subplots(1 if kl is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    colours = [BLUE if activity[i] > threshold else GREY for i in order]
    if kl is not None:
        panels[0].bar(range(len(order)), finite(numbers(kl[order])), color=colours)
        panels[0].set(ylabel="KL, nats")
    last = panels[-1]
    last.bar(range(len(order)), finite(numbers(activity[order]).clip(1e-6)), color=colours)
    last.axhline(threshold, color=RED, linewidth=1, linestyle="--")
    last.set(yscale="log", ylabel="activity")
    last.set_xticks(range(len(order)), [names[i] for i in order], fontsize=6 if len(order) > 20 else 8, rotation=90)
    active = int((activity > threshold).sum())
    panels[0].set(title=f"{active} of {len(order)} dimensions are active (above the dashed line)")
    return figure


@styled
def gaps(approximation: Tensor, amortisation: Tensor, images: str = "images") -> Figure:
    """Plot the gap log p(x) - ELBO in nats as a bar for each datum: the approximation plus the amortisation gap."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    order = (approximation + amortisation).argsort(descending=True)
    below = np.zeros(len(order))
    for part, name, colour in ((approximation, "approximation", ORANGE), (amortisation, "amortisation", BLUE)):
        height = finite(numbers(part[order]))
        label = f"{name}, {height.mean():.2f} nats on average"
        axes.bar(range(len(order)), height, bottom=below, width=1, color=colour, label=label)
        below = below + np.nan_to_num(height).clip(min=0)
    axes.set(xlabel=f"{images}, in order", ylabel="log p(x) - ELBO, nats", xticks=[])
    axes.set(title="Approximation gap of the guide's family, amortisation gap of the encoder")
    axes.legend(fontsize=9)
    return figure


@styled
def calibration(
    counts: Tensor, names: Sequence[str], levels: Tensor, coverage: Tensor, num: int, p_values: Tensor, most: int = 7
) -> Figure:
    """Plot histograms of ranks on one scale, and the share of true values within central intervals.

    The figure shows at most ``most`` histograms, for the least uniform ranks, in the order of ``names``.

    Args:
        counts: The number of data with a rank in each bin, of shape ``(bins, quantities)``.
        names: The name of each quantity.
        levels: The levels of the intervals, of shape ``(levels,)``.
        coverage: The share of the data within the intervals, of shape ``(levels, latent)``.
        num: The number of data.
        p_values: The p-values of tests for uniform ranks, of shape ``(quantities,)``.
        most: The largest number of histograms.
    """
    from scipy.stats import binom  # takes a second to import

    chosen = sorted(p_values.argsort(stable=True)[:most].tolist())
    columns = min(4, len(chosen) + 1)
    rows = math.ceil((len(chosen) + 1) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    bins, top = len(counts), counts[:, chosen].max().item()
    low, high = binom.interval(BAND, num, 1 / bins)
    for axes, i in zip(panels, chosen, strict=False):
        axes.axhspan(low, high, color="0.9", zorder=0)
        axes.axhline(binom.median(num, 1 / bins), color="0.6", linewidth=0.8, zorder=1)
        axes.bar(range(bins), counts[:, i].tolist(), width=0.9, color=BLUE, zorder=2)
        p = p_values[i].item()
        axes.set_title(f"{names[i]}, p < {LEAST}" if p < LEAST else f"{names[i]}, p = {p:.2g}", fontsize=9)
        axes.set(xticks=[], xlabel="rank of the true z" if i < len(names) - 1 else "rank", ylim=(0, 1.05 * top))
    panels[0].set_ylabel("data")
    axes, *blank = panels[len(chosen) :]
    at = numbers(levels)
    axes.fill_between(at, *(count / num for count in binom.interval(BAND, num, at)), color="0.9")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    axes.plot(at, coverage.cpu().numpy(), color=RED, linewidth=0.9, alpha=0.7)
    axes.set_title("true z within the interval", fontsize=9)
    axes.set(xlabel="level of the guide's interval", xlim=(0, 1), ylim=(0, 1), ylabel="share, a line a dimension")
    axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axes in blank:
        axes.set_axis_off()
    some = f"The {len(chosen)} least uniform of {len(names):,} quantities. " if len(chosen) < len(names) else ""
    figure.supxlabel(f"{some}Grey: {BAND:.0%} of the bars and of the lines of a calibrated guide", fontsize=9)
    return figure
