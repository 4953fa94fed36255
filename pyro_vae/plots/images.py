"""Pages of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["interpolation", "manifold", "reconstructions", "samples", "traversal"]

MISSING = (0.36, 0.48, 0.66)


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
