r"""Per-datum log-weights, and what is read off them: bounds on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.compiled import how_many_fit
from pyro_vae.missing import log_prob
from pyro_vae.vae import VAE

__all__ = ["elbo", "ess", "iwae", "log_weights", "nll", "room"]

MOST = 20_000  # images decoded at once; more are no faster


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
    return vae.prior().log_prob(z) + log_prob(vae.decoder(z), x) - q.log_prob(z)


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


def nll(vae: VAE, x: Tensor, num_particles: int = 5000, at_once: int | None = None, progress: bool = False) -> Tensor:
    r"""Estimate :math:`-\log p(x)` per datum by importance sampling.

    It is minus the importance weighted bound with ``num_particles`` draws from the guide, so it is too large on
    average, and falls to the truth as their number grows. Memory is bounded whatever the parts are: how many images
    are decoded at once is measured (:func:`room`).

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        num_particles: K, draws per datum.
        at_once: Images decoded at once, if not as many as fit. The draws depend on it, what they estimate does not.
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
    most = MOST if at_once is None else at_once
    if num_particles < 1 or most < 1:
        raise ValueError(f"Expected at least 1 particle, and 1 at once; got {num_particles} and {most}.")
    if len(x) == 0:
        raise ValueError("Expected at least 1 image; got none.")
    images, draws_in_all = room(vae, x) if at_once is None else (at_once, at_once)
    parts = []
    show = {"desc": "-log p(x)", "unit": " draws", "unit_scale": True, "leave": False, "disable": not progress}
    with tqdm(total=len(x) * num_particles, **show) as bar:
        for rows in x.split(images):
            total = torch.full((len(rows),), -math.inf).to(x)
            for draws in _chunks(num_particles, max(1, draws_in_all // len(rows))):
                total = torch.logaddexp(total, log_weights(vae, rows, draws).logsumexp(0))
                bar.update(draws * len(rows))
            parts.append(math.log(num_particles) - total)
    return torch.cat(parts)


def room(vae: VAE, x: Tensor, most: int = MOST) -> tuple[int, int]:
    """Return how many images :func:`log_weights` can take at once in a gibibyte, and how many draws of all of them.

    Measured on the first few, for a likelihood, a prior and a guide of any kind.

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        most: The largest answers; more at once would be no faster.

    Example:
        >>> from pyro_vae import VAE
        >>> room(VAE.build((64,), latent=2), torch.rand(5, 64))
        (20000, 20000)
    """
    pair = x[:2]  # one image alone may be a case of its own, as for batch normalisation
    images = 2 * how_many_fit(lambda n: log_weights(vae, x[: 2 * n], 1), most // 2, x.device)
    draws = how_many_fit(lambda n: log_weights(vae, pair, n), most // len(pair), x.device)
    return images, draws * len(pair)


def _chunks(total: int, size: int) -> Iterator[int]:
    """Yield sizes of chunks that add up to ``total``, whether or not ``size`` divides it."""
    yield from [size] * (total // size)
    if total % size:
        yield total % size
