"""Figures. They see arrays only, and return a ``matplotlib.figure.Figure`` that a notebook shows and ``savefig`` saves.

A notebook shows them once ``%matplotlib inline`` has been run in it, or pyplot imported.

Images are float tensors ``(..., channels, height, width)`` or ``(..., height, width)``; 0 is drawn black, 1 white, and
NaN, which is missing, a flat greyish blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    "comparison",
    "curves",
    "interpolation",
    "latent_space",
    "manifold",
    "reconstructions",
    "samples",
    "traversal",
]

MISSING = (0.36, 0.48, 0.66)
BLUE, ORANGE, GREEN = "#2b6cb0", "#dd6b20", "#2f855a"


def samples(x: Tensor, title: str = "Samples from the prior") -> Figure:
    """Draw images in a square, for x of shape ``(N, *event)``."""
    side = int(np.ceil(np.sqrt(len(x))))
    blank = torch.ones(side * side - len(x), *x.shape[1:]).to(x)
    return _mosaic(torch.cat([x, blank]).reshape(side, side, *x.shape[1:]), title)


def reconstructions(x: Tensor, x_hat: Tensor, title: str = "Originals above, reconstructions below") -> Figure:
    """Draw images beside their reconstructions, both of shape ``(N, *event)``: two rows."""
    return _mosaic(torch.stack([x, x_hat]), title, gap=2)


def interpolation(x: Tensor, title: str = "Straight lines in latent space, from image to image") -> Figure:
    """Draw one row for each pair of images, for x of shape ``(B, steps, *event)``."""
    return _mosaic(x, title, gap=1)


def traversal(
    x: Tensor, span: float = 3.0, order: Sequence[int] | None = None, nats: Sequence[float] | None = None
) -> Figure:
    """Draw one row for each latent dimension, for x of shape ``(latent, steps, *event)``.

    Arguments:
        x: The images.
        span: The dimension goes from ``-span`` to ``span``, left to right.
        order: Which dimensions to draw, first to last; all if not given.
        nats: Divergence of each dimension, in nats, written beside its row.
    """
    order = range(len(x)) if order is None else order
    figure = _mosaic(x[list(order)], f"One latent dimension a row, from -{span:g} to {span:g}", gap=1)
    axes = figure.axes[0]
    height = x.shape[-2] + 1
    axes.set_axis_on()
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks(
        [i * height + x.shape[-2] / 2 - 0.5 for i in range(len(order))],
        [f"z{d}" if nats is None else f"z{d}  {nats[d]:.2f} nats" for d in order],
        fontsize=7,
    )
    axes.spines[:].set_visible(False)
    return figure


def manifold(x: Tensor, title: str = "The 2-D latent space, decoded") -> Figure:
    """Draw a grid of images, for x of shape ``(rows, columns, *event)``."""
    return _mosaic(x, title)


def latent_space(z: Tensor, labels: Tensor | None = None, title: str = "Latent space: means of q(z | x)") -> Figure:
    """Draw points of latent space, coloured by label; their first two principal components if there are more than 2.

    Arguments:
        z: Shape ``(N, latent)``.
        labels: Shape ``(N,)``, or None.
        title: Above the figure.
    """
    points, names = _two_dimensions(z)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.6, color=BLUE, linewidths=0)
    else:
        classes, codes = np.unique(labels.cpu().numpy(), return_inverse=True)
        colours = ListedColormap([f"C{i}" for i in range(10)]) if len(classes) <= 10 else "turbo"
        drawn = axes.scatter(
            points[:, 0],
            points[:, 1],
            c=codes,
            s=7,
            alpha=0.7,
            cmap=colours,
            linewidths=0,
            vmin=-0.5,
            vmax=max(9.5, len(classes) - 0.5),
        )
        if len(classes) <= 10:
            handles, _ = drawn.legend_elements(num=list(range(len(classes))), alpha=1)
            axes.legend(
                handles,
                [str(c) for c in classes],
                title="label",
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                frameon=False,
            )
    axes.set(xlabel=names[0], ylabel=names[1], title=title, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw training curves, with reconstruction and divergence apart, from what ``fit`` returns.

    Where the objective is not the ELBO at beta = 1, that is drawn beside it.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    epochs = np.arange(1, len(history["train"]) + 1)
    lines: list[tuple[str, list[tuple[str, str, str]]]] = [
        ("Loss", [("train", "train, the objective", BLUE), ("valid", "valid, -ELBO", ORANGE)]),
        ("Reconstruction: E[-log p(x | z)], valid", [("valid_reconstruction", "", ORANGE)]),
        ("Divergence: KL(q || p), valid", [("valid_kl", "", GREEN)]),
    ]
    if not np.array_equal(history.get("train_at_beta_1", history["train"]), history["train"]):
        lines[0][1].insert(1, ("train_at_beta_1", "train, -ELBO", GREEN))
    for axes, (title, series) in zip(figure.subplots(1, 3), lines, strict=True):
        for key, label, colour in series:
            axes.plot(epochs, history[key], color=colour, label=label, linewidth=1.5)
        if len(series) > 1:
            axes.legend(frameon=False)
        tails = [np.asarray(history[key])[len(epochs) // 20 :] for key, _, _ in series]
        _leave_the_first_epochs_out(axes, np.concatenate(tails))
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="epoch")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("nats per datum")
    return figure


def comparison(groups: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Figure:
    """Draw runs side by side, a row of panels for each group of those that may be ranked together.

    Left -log p(x), best above; in the middle the ELBO's two terms, with lines of one ELBO; right -ELBO of the
    validation images against seconds of training.

    Arguments:
        groups: A title and runs by name, each with ``nll``, a mean and its standard error; ``reconstruction`` and
            ``kl``, numbers; ``seconds`` since the start and ``valid``, one number an epoch, or none.
    """
    heights = [1.6 + max(1.4, 0.28 * len(runs)) for _, runs in groups]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    pages = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for page, (title, runs) in zip(pages[:, 0], groups, strict=True):
        page.suptitle(title, fontsize=10)
        left, middle, right = page.subplots(1, 3)
        for i, run in enumerate(runs.values()):
            colour = f"C{i % 10}"
            left.errorbar(run["nll"][0], i, xerr=run["nll"][1], fmt="o", color=colour, capsize=3)
            middle.plot(run["kl"], -run["reconstruction"], "o", color=colour)
            right.plot(run["seconds"], run["valid"], color=colour, linewidth=1.5, marker="o", markevery=[-1])
        left.set_yticks(range(len(runs)), [*runs])
        left.set(ylim=(len(runs) - 0.5, -0.5), xlabel="-log p(x), nats per datum")
        _lines_of_one_elbo(middle)
        middle.set(xlabel="KL(q || p), nats; one ELBO on each line", ylabel="E[-log p(x | z)], nats")
        right.set(xlabel="seconds of training", xlim=(0, None), ylabel="-ELBO, valid, nats")
        tails = [run["valid"][len(run["valid"]) // 4 :] for run in runs.values()]
        _leave_the_first_epochs_out(right, np.concatenate([*tails, []]))
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def _leave_the_first_epochs_out(axes: Any, tail: np.ndarray) -> None:
    """They fall so far that the rest would look flat: fit the axis to the rest."""
    if len(tail):
        margin = 0.05 * (tail.max() - tail.min()) or 1.0
        axes.set(ylim=(tail.min() - margin, tail.max() + margin))


def _lines_of_one_elbo(axes: Any) -> None:
    """Draw, over the same limits, the lines on which the sum of the two coordinates is one."""
    axes.margins(0.2)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for total in np.linspace(left + low, right + high, 9)[1:-1]:
        axes.plot([left, right], [total - left, total - right], color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlim=(left, right), ylim=(low, high))


def _two_dimensions(z: Tensor) -> tuple[np.ndarray, tuple[str, str]]:
    points = z.detach().cpu().double()
    if points.shape[1] == 1:
        points = torch.cat([points, torch.zeros_like(points)], dim=1)
    if points.shape[1] == 2:
        return points.numpy(), ("z0", "z1")
    points = points - points.mean(0)
    _, _, axes = torch.linalg.svd(points.T @ points)  # as many axes as dimensions, however few the points
    return (points @ axes[:2].T).numpy(), (
        "first principal component of z",
        "second principal component of z",
    )


def _mosaic(x: Tensor, title: str, gap: int = 1) -> Figure:
    """One figure of rows and columns of images, for x of shape ``(rows, columns, *event)``, ``gap`` pixels apart."""
    if x.dim() not in (4, 5):
        raise ValueError(
            f"Expected images (rows, columns, [channels,] height, width); got shape {tuple(x.shape)}. "
            "Reshape vectors to images first."
        )
    x = x.detach().float().cpu().clamp(0, 1)
    x = x.unsqueeze(2) if x.dim() == 4 else x
    x = x.expand(-1, -1, 3, -1, -1) if x.shape[2] == 1 else x[:, :, :3]
    x = torch.where(x.isnan().any(2, keepdim=True), torch.tensor(MISSING).reshape(3, 1, 1), x)
    rows, columns, channels, height, width = x.shape
    page = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            page[:, top : top + height, left : left + width] = x[i, j]
    # Small images are drawn small: an eye reads few large blocks worse than few small ones.
    wide = min(10.0, max(4.0, (0.2 + 0.0125 * width) * columns))
    figure = Figure(figsize=(wide, wide * page.shape[1] / page.shape[2] + 0.4), layout="constrained")
    axes = figure.add_subplot()
    drawn: Any = page.permute(1, 2, 0).numpy()
    axes.imshow(drawn, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return figure
