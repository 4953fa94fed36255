"""Codes in latent space."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.colours import BLUE

__all__ = ["latent_space"]


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
