"""Figures of a trained VAE."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, plots
from pyro_vae.data import Dataset
from pyro_vae.program import point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["figures"]


def figures(program: Any, dataset: Dataset, seed: int = 0) -> dict[str, Figure]:
    """Draw what can be drawn of a program; torch's own state is left as it was.

    Returns:
        By name: ``latent_space``, of training images; and, of a VAE of images, ``reconstructions``, ``samples``,
        ``interpolation`` and ``traversal``, of test images, and ``manifold`` where latent = 2.
    """
    point = point_of(program)
    with at_test(program, point.device, seed), torch.no_grad():
        train = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2000)))
        labels = None if dataset.train.labels is None else dataset.train.labels[: len(train)]
        title = f"Means of q(z | x), {len(train):,} training images"
        codes = evaluate.guide_means(train)
        drawn = {"latent_space": plots.latent_space(codes, labels, title)} if codes.shape[1] else {}
        if len(dataset.event_shape) in (2, 3) and hasattr(program, "traverse") and len(train.data) == 1:
            (x,) = evaluate.rows_of(program, dataset.test, slice(0, 1000))
            counted = dataset.support is constraints.nonnegative_integer
            drawn |= _pictures(program, x, white=max(x.max().item(), 1.0) if counted else 1.0)
    return drawn


def _pictures(vae: Any, x: Tensor, white: float) -> dict[str, Figure]:
    pictures = {
        "reconstructions": plots.reconstructions(x[:16] / white, vae.reconstruct(x[:16]) / white),
        "samples": plots.samples(vae.generate(100) / white),
        "interpolation": plots.interpolation(vae.interpolate(x[:8], x.roll(-8, 0)[:8]) / white),
    }
    try:
        nats = evaluate.kl_per_dim(vae, x).mean(0)
    except ValueError:
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]) / white)
    else:
        order = nats.argsort(descending=True)[:20].tolist()
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]) / white, order=order, nats=nats.tolist())
    if vae.prior().event_shape == (2,):
        pictures["manifold"] = plots.manifold(vae.manifold() / white)
    return pictures
