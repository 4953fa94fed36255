r"""Evaluation: per-datum log-weights, and what is read off them.

All is per datum, in nats. :func:`log_weights` is the one that asks the VAE; the others are functions of what it
returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent
from tqdm.auto import tqdm

from pyro_vae.data import Split
from pyro_vae.objectives import closed_form_kl
from pyro_vae.vae import VAE

__all__ = ["Summary", "elbo", "ess", "iwae", "kl_per_dim", "log_weights", "nll", "split", "summary"]

AT_ONCE = 20_000
DRAWS = 10  # for the ELBO of a summary


@torch.no_grad()
def log_weights(vae: VAE, x: Tensor, num_particles: int) -> Tensor:
    r"""Return the log importance weights of draws from the guide.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        num_particles: K, draws per datum.

    Returns:
        Shape ``(K, B)``, in nats, unscaled.

    Raises:
        ValueError: If there are no particles.

    Example:
        >>> from pyro_vae import VAE
        >>> log_weights(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([100, 5])
    """
    if num_particles < 1:
        raise ValueError(f"Expected num_particles of at least 1; got {num_particles}.")
    q = vae.encoder(x)
    z = q.sample((num_particles,))
    return vae.prior().log_prob(z) + vae.decoder(z).log_prob(x) - q.log_prob(z)


def elbo(log_w: Tensor) -> Tensor:
    r"""Return the ELBO per datum, :math:`\frac{1}{K} \sum_k \log w_k`, from ``(K, B)`` to ``(B,)``, in nats.

    Example:
        >>> elbo(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    r"""Return the importance weighted bound per datum, from ``(K, B)`` to ``(B,)``, in nats.

    .. math:: \log \frac{1}{K} \sum_k w_k

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Example:
        >>> iwae(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


def ess(log_w: Tensor) -> Tensor:
    r"""Return the effective sample size per datum, from ``(K, B)`` to ``(B,)``, between 1 and K.

    .. math:: \Big(\sum_k w_k\Big)^2 \Big/ \sum_k w_k^2

    References:
        A Note on Importance Sampling using Standardized Weights (Kong, 1992).

    Example:
        >>> ess(torch.zeros(8, 1)).round()
        tensor([8.])
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def nll(vae: VAE, x: Tensor, num_particles: int = 5000, at_once: int = AT_ONCE, progress: bool = False) -> Tensor:
    r"""Estimate :math:`-\log p(x)` per datum by importance sampling.

    It is minus the importance weighted bound with ``num_particles`` draws from the guide, so it is too large on
    average, and falls to the truth as their number grows.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        num_particles: K, draws per datum.
        at_once: Images decoded at once, which bounds the memory.
        progress: Whether to show a progress bar.

    Returns:
        Shape ``(B,)``, in nats.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    Example:
        >>> from pyro_vae import VAE
        >>> nll(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([5])
    """
    if num_particles < 1 or at_once < 1:
        raise ValueError(f"Expected at least 1 particle, and 1 at once; got {num_particles} and {at_once}.")
    if len(x) == 0:
        raise ValueError("Expected at least 1 image; got none.")
    parts = []
    show = {"desc": "-log p(x)", "unit": " draws", "unit_scale": True, "leave": False, "disable": not progress}
    with tqdm(total=len(x) * num_particles, **show) as bar:
        for rows in x.split(at_once):
            total = torch.full((len(rows),), -math.inf).to(x)
            for draws in _chunks(num_particles, max(1, at_once // len(rows))):
                total = torch.logaddexp(total, log_weights(vae, rows, draws).logsumexp(0))
                bar.update(draws * len(rows))
            parts.append(math.log(num_particles) - total)
    return torch.cat(parts)


def _chunks(total: int, size: int) -> Iterator[int]:
    """Yield sizes of chunks that add up to ``total``, whether or not ``size`` divides it."""
    yield from [size] * (total // size)
    if total % size:
        yield total % size


@torch.no_grad()
def split(vae: VAE, x: Tensor, num_particles: int = 1) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of the ELBO per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathrm{ELBO} = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The first is a mean over ``num_particles`` draws; the second is in closed form where there is one, else a mean
    over the same draws.

    Raises:
        ValueError: If there are no particles.
    """
    if num_particles < 1:
        raise ValueError(f"Expected num_particles of at least 1; got {num_particles}.")
    q, p = vae.encoder(x), vae.prior()
    z = q.sample((num_particles,))
    kl = closed_form_kl(q, p)
    if kl is None:
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
    return vae.decoder(z).log_prob(x).mean(0), kl


@torch.no_grad()
def kl_per_dim(vae: VAE, x: Tensor) -> Tensor:
    r"""Return the divergence of each latent dimension per datum, in nats, of shape ``(B, latent)``.

    .. math:: \mathrm{KL}(q(z_i \mid x_b) \,\|\, p(z_i))

    Their sum over dimensions is the divergence, since guide and prior are independent over them.

    Raises:
        ValueError: If the guide or the prior is not independent over dimensions, or no closed form is known.

    Example:
        >>> from pyro_vae import VAE
        >>> kl_per_dim(VAE.build((64,), latent=2), torch.rand(5, 64)).shape
        torch.Size([5, 2])
    """
    q, p = vae.encoder(x), vae.prior()
    kl = None
    if isinstance(q, Independent) and isinstance(p, Independent):
        kl = closed_form_kl(q.base_dist, p.base_dist)
    if kl is None or kl.shape != (*q.batch_shape, *q.event_shape):
        raise ValueError(
            "Expected a guide and a prior that are independent over latent dimensions, with a divergence in closed "
            f"form; got {type(q).__name__} and {type(p).__name__}. Use split for the whole divergence."
        )
    return kl


class Summary(NamedTuple):
    """Means over the data, in nats per datum, with the standard error of each over the data."""

    images: int
    elbo: tuple[float, float]
    reconstruction: tuple[float, float]
    kl: tuple[float, float]
    nll: tuple[float, float]


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
    if images < 1:
        raise ValueError(f"Expected at least 1 image to evaluate on; got {images}.")
    point = vae.reference
    with torch.random.fork_rng(devices=[point.device] if point.is_cuda else []):
        torch.manual_seed(seed)
        x = data[slice(0, images)].to(point)
        terms = [split(vae, rows, DRAWS) for rows in x.split(AT_ONCE // DRAWS)]
        log_likelihood, kl = (torch.cat(column) for column in zip(*terms, strict=True))
        values = (log_likelihood - kl, log_likelihood, kl, nll(vae, x, num_particles, progress=progress))
    return Summary(len(x), *(_mean_and_error(value) for value in values))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
