"""How good a model and a guide are: bounds, weights, dimensions, and the images where the guide is worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.colours import BLUE, GREEN, GREY, ORANGE, RED
from pyro_vae.plots.images import MISSING

__all__ = ["bounds", "dimensions", "gaps", "weights", "worst"]

GOOD, POOR, BIN = 0.5, 0.7, 0.05  # k-hat


def bounds(
    particles: Sequence[int],
    means: Sequence[float],
    errors: Sequence[float],
    others: Mapping[str, tuple[float, float]] | None = None,
    title: str = "-log p(x) by importance sampling",
) -> Figure:
    """Draw an estimate of -log p(x) against the number of particles, in nats per datum.

    Arguments:
        particles: How many.
        means: Over the images.
        errors: Standard errors over the images.
        others: By name, other estimates on the same images and how far theirs lies from the last of the means, paired:
            mean of the difference and its standard error.
        title: Above the figure.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(particles, means, yerr=errors, color=BLUE, marker="o", markersize=4, capsize=3, linewidth=1.2)
    axes.annotate("-ELBO", (particles[0], means[0]), xytext=(8, 0), textcoords="offset points", fontsize=9)
    for (name, (difference, error)), colour in zip((others or {}).items(), (ORANGE, GREEN, RED), strict=False):
        at = means[-1] + difference
        if math.isfinite(error):
            axes.axhspan(at - error, at + error, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(at, color=colour, linewidth=1.2, label=name)
    axes.set(xscale="log", xlabel="particles", ylabel="nats per datum")
    axes.set_title(title, fontsize=10)
    if others:
        axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def weights(k: Tensor, ess: Tensor, num_particles: int) -> Figure:
    """Draw histograms of k-hat and of the effective sample size, both of shape ``(B,)``."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = k.detach().cpu().double().numpy()
    finite = np.append(shown[np.isfinite(shown)], [GOOD, POOR])
    low, high = math.floor(finite.min() / BIN), math.floor(finite.max() / BIN) + 2  # the last is for infinite ones
    edges = BIN * np.arange(low, high + 1)
    _, _, bars = left.hist(np.where(np.isfinite(shown), shown, edges[-2] + BIN / 2), bins=edges.tolist())
    for middle, bar in zip(edges + BIN / 2, bars, strict=False):
        bar.set_facecolor(RED if middle > POOR else ORANGE if middle > GOOD else BLUE)
    for line, colour in ((GOOD, ORANGE), (POOR, RED)):
        left.axvline(line, color=colour, linewidth=1, linestyle="--")
    share = (k > POOR).double().mean().item()
    left.set_title(f"Pareto k-hat: {share:.1%} of {len(k):,} images above {POOR}", fontsize=10)
    left.set(xlabel="k-hat of an image's weights", ylabel="images")
    size = ess.detach().cpu().double().clamp(1, num_particles).numpy()  # but for rounding
    right.hist(size, bins=np.geomspace(1, num_particles, 40).tolist(), color=BLUE)
    right.set_xscale("log")
    right.set_title(f"Effective sample size of {num_particles:,} draws: median {np.median(size):,.0f}", fontsize=10)
    right.set(xlabel="ESS of an image's weights")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def dimensions(
    activity: Tensor, kl: Tensor | None = None, threshold: float = 0.01, names: Sequence[str] | None = None
) -> Figure:
    """Draw what each latent dimension is used for, most used first: KL in nats, and activity with its threshold.

    Arguments:
        activity: Var_x(E_q[z_i | x]), of shape ``(latent,)``.
        kl: KL(q(z_i | x) || p(z_i)), mean over x, of the same shape; or None, where it is not known by dimension.
        threshold: Of the activity, above which a dimension is used.
        names: Of the dimensions; z0, z1 and so on, if not given.
    """
    names = names or [f"z{i}" for i in range(len(activity))]
    order = (activity if kl is None else kl).argsort(descending=True).tolist()
    figure = Figure(figsize=(max(5.0, 1.5 + 0.22 * len(order)), 3.6 if kl is not None else 2.2), layout="constrained")
    panels = figure.subplots(2 if kl is not None else 1, 1, sharex=True, squeeze=False)[:, 0]
    colours = [BLUE if activity[i] > threshold else GREY for i in order]
    if kl is not None:
        panels[0].bar(range(len(order)), [kl[i].item() for i in order], color=colours)
        panels[0].set_ylabel("KL, nats")
    panels[-1].bar(range(len(order)), [max(activity[i].item(), 1e-6) for i in order], color=colours)
    panels[-1].axhline(threshold, color=RED, linewidth=1, linestyle="--")
    panels[-1].set(yscale="log", ylabel="activity")
    panels[-1].set_xticks(
        range(len(order)), [names[i] for i in order], fontsize=6 if len(order) > 20 else 8, rotation=90
    )
    active = int((activity > threshold).sum())
    panels[0].set_title(f"{active} of {len(order)} dimensions are active (above the dashed line)", fontsize=10)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def gaps(approximation: Tensor, amortisation: Tensor) -> Figure:
    """Draw what the ELBO falls short of log p(x), an image a bar, in two parts, both of shape ``(B,)``, in nats."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    order = (approximation + amortisation).argsort(descending=True)
    below = np.zeros(len(order))
    for part, name, colour in ((approximation, "approximation", ORANGE), (amortisation, "amortisation", BLUE)):
        height = part[order].detach().cpu().double().numpy()
        mean = f"{height.mean():.2f} nats on average"
        axes.bar(range(len(order)), height, bottom=below, width=1, color=colour, label=f"{name}, {mean}")
        below = below + height.clip(min=0)
    axes.set(xlabel="images, in order", ylabel="log p(x) - ELBO, nats", xticks=[])
    axes.set_title("What the guide's family cannot do, and what the encoder does not", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def worst(x: Tensor, x_hat: Tensor, k: Tensor, num: int = 12) -> Figure:
    """Draw the images where the guide is worst, and for comparison those where it is best, over their reconstructions.

    Arguments:
        x: Images, of shape ``(B, *event)``.
        x_hat: Their reconstructions.
        k: k-hat of each, of shape ``(B,)``.
        num: How many of each kind.
    """
    num = min(num, len(x))
    order = k.argsort(descending=True)
    figure = Figure(figsize=(max(5.0, 0.75 * num), 4.6), layout="constrained")
    for page, chosen, title in zip(
        figure.subfigures(2, 1, squeeze=False)[:, 0],
        (order[:num], order.flip(0)[:num]),
        ("Largest k-hat: the guide is worst", "Smallest: the guide is best"),
        strict=True,
    ):
        page.suptitle(f"{title}. Reconstructions below", fontsize=10)
        for axes, i in zip(page.subplots(2, num, squeeze=False).T, chosen.tolist(), strict=True):
            for one, image in zip(axes, (x[i], x_hat[i]), strict=True):
                one.imshow(_shown(image), interpolation="nearest")
                one.set_axis_off()
            axes[0].set_title(f"{k[i].item():.2f}", fontsize=8)
    return figure


def _shown(image: Tensor) -> np.ndarray:
    """From ``([channels,] height, width)`` to colours."""
    image = image.detach().cpu().float().clamp(0, 1)
    image = image.unsqueeze(0) if image.dim() == 2 else image
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    missing = torch.tensor(MISSING).reshape(3, 1, 1)
    return torch.where(image.isnan().any(0), missing, image).movedim(0, -1).numpy()
