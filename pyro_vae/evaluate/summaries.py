"""All of it together, on a split."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.evaluate.terms import split
from pyro_vae.evaluate.weights import nll
from pyro_vae.program import Posterior, argument_names, arguments, point_of, posterior_of
from pyro_vae.program.checks import sources
from pyro_vae.seeds import at_test

__all__ = ["Summary", "Values", "covariates", "mean_and_error", "per_image", "rows_of", "summary"]

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
    program: Any, data: Split, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = False
) -> Values:
    """Evaluate a program on each image of a split: what :func:`summary` is the mean of.

    Two programs are compared image by image, with the same seed: the difference varies less than each of the two does.

    Arguments:
        program: A VAE, or any program, on the device of the split.
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
    point = point_of(program)
    with at_test(program, point.device, seed):
        whole = posterior_of(program, rows_of(program, data, slice(0, images)))
        reconstruction, kl = split(program, whole, DRAWS)
        return Values(reconstruction - kl, reconstruction, kl, nll(program, whole, num_particles, progress=progress))


def rows_of(program: Any, data: Split, rows: slice | Tensor) -> tuple[Tensor, ...]:
    """Return some rows of a split as the arguments of a program."""
    names = [name for name in [*argument_names(program)][1:] if name in data.columns]
    return arguments(program, data.with_columns(names).batch(rows))


def covariates(whole: Posterior) -> str:
    """Return what log p(x) is given, as `` | y``: the arguments that no observed site shows; empty without any."""
    names = [*argument_names(whole.program)][: len(whole.data)]
    if len(names) == 1:
        return ""
    shown = {argument for argument, _ in sources(whole).values()}
    given = [name for i, name in enumerate(names) if i not in shown]
    return f" | {', '.join(given)}" if given else ""


def summary(
    program: Any, data: Split, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = False
) -> Summary:
    """Summarise a program on a split: the ELBO, its two terms, and -log p(x) by importance sampling.

    Arguments:
        program: A VAE, or any program, on the device of the split.
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
    found = per_image(program, data, num_particles, images, seed, progress)
    return Summary(len(found.nll), *map(mean_and_error, found))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error, which of one value is nan."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
