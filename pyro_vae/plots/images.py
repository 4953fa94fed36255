"""Plots of images."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

MISSING = (0.36, 0.48, 0.66)


def samples(x: Tensor, title: str = "Samples from the prior") -> Figure:
    """Plot images in a square grid, for x of shape ``(N, *event)``."""
    side = int(np.ceil(np.sqrt(len(x))))
    blank = torch.ones(side * side - len(x), *x.shape[1:]).to(x)
    return mosaic(torch.cat([x, blank]).reshape(side, side, *x.shape[1:]), title)


def reconstructions(x: Tensor, x_hat: Tensor, title: str = "Originals above, reconstructions below") -> Figure:
    """Plot a row of images above a row of reconstructions, both of shape ``(N, *event)``."""
    return mosaic(torch.stack([x, x_hat]), title, gap=2)


def interpolation(x: Tensor, title: str = "Straight lines in latent space, from image to image") -> Figure:
    """Plot an interpolation in a row for each pair of images, for x of shape ``(B, steps, *event)``."""
    return mosaic(x, title)


def manifold(x: Tensor, title: str = "The 2-D latent space, decoded") -> Figure:
    """Plot images x, of shape ``(rows, columns, *event)``, as one grid."""
    return mosaic(x, title)


def traversal(
    x: Tensor, span: float = 3.0, order: Sequence[int] | None = None, nats: Sequence[float] | None = None
) -> Figure:
    """Plot a row of images for each latent dimension, for x of shape ``(latent, steps, *event)``.

    Along a row the dimension increases from ``-span`` to ``span``. ``order`` lists the dimensions to plot; None plots
    all. ``nats``, the KL divergence of each dimension, labels the rows.
    """
    order = range(len(x)) if order is None else order
    figure = mosaic(x[list(order)], f"One latent dimension a row, from -{span:g} to {span:g}")
    axes = figure.axes[0]
    height = x.shape[-2]
    middles = [i * (height + 1) + height / 2 - 0.5 for i in range(len(order))]
    axes.set_axis_on()
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks(middles, [f"z{d}" if nats is None else f"z{d}  {nats[d]:.2f} nats" for d in order], fontsize=7)
    axes.spines[:].set_visible(False)
    return figure


def worst(x: Tensor, x_hat: Tensor, k: Tensor, num: int = 12) -> Figure:
    """Plot the ``num`` images with the largest and the ``num`` with the smallest k-hat, above their reconstructions.

    Images and reconstructions have shape ``(B, *event)``; k-hat has shape ``(B,)``.
    """
    num = min(num, len(x))
    order, (height, width) = k.argsort(descending=True), x.shape[-2:]
    kinds = {"Largest k-hat: the guide is worst": order[:num], "Smallest: the guide is best": order.flip(0)[:num]}
    figure = Figure(figsize=(max(5.0, 0.75 * num), 1 + 3 * height / width), layout="constrained")
    for axes, (title, chosen) in zip(figure.subplots(2, 1), kinds.items(), strict=True):
        axes.imshow(grid(torch.stack([x[chosen], x_hat[chosen]]), gap=1).numpy(), interpolation="nearest")
        axes.set_title(f"{title}. Reconstructions below", fontsize=10)
        middles = [i * (width + 1) + width / 2 - 0.5 for i in range(num)]
        axes.set_xticks(middles, [f"{value:.2f}" for value in k[chosen].tolist()], fontsize=8)
        axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


def mosaic(x: Tensor, title: str, gap: int = 1) -> Figure:
    """Plot a grid of images, ``gap`` pixels apart, for x of shape ``(rows, columns, *event)``."""
    if x.dim() not in (4, 5):
        got = f"shape {tuple(x.shape)}. Reshape vectors to images first."
        raise ValueError(f"Expected images (rows, columns, [channels,] height, width); got {got}")
    page = grid(x, gap)
    # Small images are drawn small, since large blocks are harder to read.
    wide = min(10.0, max(4.0, (0.2 + 0.0125 * x.shape[-1]) * x.shape[1]))
    figure = Figure(figsize=(wide, wide * page.shape[0] / page.shape[1] + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(page.numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return figure


def grid(x: Tensor, gap: int) -> Tensor:
    """Return rows and columns of images as one image of shape ``(height, width, 3)``."""
    tiles = pad(colours(x, x.dim() == 5), (0, 0, 0, gap, 0, gap), value=1.0)
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-gap, :-gap]


def colours(x: Tensor, channels: bool) -> Tensor:
    """Return images ``(..., [channels,] height, width)`` as colours ``(..., height, width, 3)``."""
    x = x.detach().float().cpu().clamp(0, 1)
    x = x if channels else x.unsqueeze(-3)
    x = x[..., [0, 1, 2] if x.shape[-3] >= 3 else [0, 0, 0], :, :]
    x = torch.where(x.isnan().any(-3, keepdim=True), torch.tensor(MISSING).reshape(3, 1, 1), x)
    return x.movedim(-3, -1)
