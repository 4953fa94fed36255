"""All of it together, on a split."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.evaluate.terms import split
from pyro_vae.evaluate.weights import nll
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["Summary", "Values", "mean_and_error", "per_image", "summary"]

DRAWS = 10  # for the ELBO of a summary


class Values(NamedTuple):
    """One number for each image, in nats, each of shape ``(B,)``; ``elbo`` is ``reconstruction`` minus ``kl``."""

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    nll: Tensor


class Summary(NamedTuple):
    """Means over the data, in nats per datum, with the standard error of each over the data."""

    images: int
    elbo: tuple[float, float]
    reconstruction: tuple[float, float]
    kl: tuple[float, float]
    nll: tuple[float, float]


def per_image(
    vae: VAE, data: Split, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = False
) -> Values:
    """Evaluate a VAE on each image of a split: what :func:`summary` is the mean of.

    Two VAEs are compared image by image, with the same seed: the difference varies less than each of the two does.

    Arguments:
        vae: Any VAE, on the device of the split.
        data: The split.
        num_particles: Draws per datum for -log p(x). The ELBO's reconstruction takes 10.
        images: How many images, the first ones of the split.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If there are no particles or no images.

    Example:
        >>> from pyro_vae import VAE, data
        >>> digits = data.load("digits")
        >>> found = per_image(VAE.build(digits.event_shape, latent=2), digits.test, num_particles=10, images=50)
        >>> found.elbo.shape, found.nll.shape
        (torch.Size([50]), torch.Size([50]))
    """
    if images < 1:
        raise ValueError(f"Expected at least 1 image to evaluate on; got {images}.")
    point = vae.reference
    with at_test(vae, point.device, seed):
        x = data[slice(0, images)].to(point)
        reconstruction, kl = split(vae, x, DRAWS)
        return Values(reconstruction - kl, reconstruction, kl, nll(vae, x, num_particles, progress=progress))


def summary(
    vae: VAE, data: Split, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = False
) -> Summary:
    """Summarise a VAE on a split: the ELBO, its two terms, and -log p(x) by importance sampling.

    Arguments:
        vae: Any VAE, on the device of the split.
        data: The split.
        num_particles: Draws per datum for -log p(x). The ELBO's reconstruction takes 10.
        images: How many images, the first ones of the split.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Returns:
        Pairs of mean and standard error over the data, in nats per datum.

    Raises:
        ValueError: If there are no particles or no images.
    """
    found = per_image(vae, data, num_particles, images, seed, progress)
    return Summary(len(found.nll), *map(mean_and_error, found))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error, which of one value is nan."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
