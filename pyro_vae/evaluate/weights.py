r"""Per-datum log-weights, and what is read off them: bounds on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.compiled import how_many_fit
from pyro_vae.evaluate.seeds import at_test
from pyro_vae.missing import log_prob
from pyro_vae.vae import VAE

__all__ = ["elbo", "ess", "iwae", "iwae_curve", "log_weights", "nll", "room"]

TOGETHER = 32  # draws of an image at least, where so many fit
MOST = 4_000  # images decoded at once: more do not fit in a CPU's caches, and are slower


def log_weights(
    vae: VAE,
    x: Tensor,
    num_particles: int,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
) -> Tensor:
    r"""Return the log importance weights of draws from the guide.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    Memory is bounded whatever the parts are, but for the answer: how many images are decoded at once is measured
    (:func:`room`). Where that alone is too large, as of 5,000 draws for each of a million images, :func:`nll` adds up
    as it goes.

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        num_particles: K, draws per datum.
        at_once: Images decoded at once, if not as many as fit. The draws depend on it, what they estimate does not.
        progress: Whether to show a progress bar.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Returns:
        Shape ``(K, B)``, in nats, unscaled.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    Example:
        >>> from pyro_vae import VAE
        >>> log_weights(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([100, 5])
    """
    images, draws = _sizes(vae, x, num_particles, at_once)
    found = torch.empty(num_particles, len(x)).to(x)
    with at_test(vae, x.device, seed), _bar(len(x) * num_particles, progress) as bar:
        for i in range(0, len(x), images):
            rows, k = x[i : i + images], 0
            for some in _chunks(num_particles, max(1, draws // len(rows))):
                found[k : k + some, i : i + len(rows)] = _log_weights(vae, rows, some)
                k += some
                bar.update(some * len(rows))
    return found


@torch.no_grad()
def _log_weights(vae: VAE, x: Tensor, num_particles: int) -> Tensor:
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


def iwae_curve(log_w: Tensor, particles: Sequence[int]) -> Tensor:
    r"""Return the importance weighted bound per datum as it would be with fewer particles, in nats.

    .. math:: \mathcal{L}_k = \frac{1}{\lfloor K / k \rfloor} \sum_g \log \frac{1}{k} \sum_{i \in g} w_i

    over disjoint groups g of k of the K weights: unbiased for the bound with k particles.

    Arguments:
        log_w: Log-weights, of shape ``(K, B)``.
        particles: How many, P numbers from 1 to K.

    Returns:
        Shape ``(P, B)``.

    Raises:
        ValueError: If a number is not from 1 to K.

    Example:
        >>> iwae_curve(torch.tensor([[1.0], [3.0]]).log(), [1, 2])
        tensor([[0.5493],
                [0.6931]])
    """
    if not all(1 <= k <= len(log_w) for k in particles):
        raise ValueError(f"Expected numbers of particles from 1 to {len(log_w)}; got {[*particles]}.")
    groups = (log_w[: len(log_w) // k * k].unflatten(0, (-1, k)) for k in particles)
    return torch.stack([(group.logsumexp(1) - math.log(group.shape[1])).mean(0) for group in groups])


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


def nll(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
) -> Tensor:
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
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Returns:
        Shape ``(B,)``, in nats.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    Example:
        >>> from pyro_vae import VAE
        >>> nll(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([5])
    """
    images, draws = _sizes(vae, x, num_particles, at_once)
    parts = []
    with at_test(vae, x.device, seed), _bar(len(x) * num_particles, progress) as bar:
        for rows in x.split(images):
            total = torch.full((len(rows),), -math.inf).to(x)
            for some in _chunks(num_particles, max(1, draws // len(rows))):
                total = torch.logaddexp(total, _log_weights(vae, rows, some).logsumexp(0))
                bar.update(some * len(rows))
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
        (4000, 4000)
    """
    if len(x) == 0:
        raise ValueError("Expected at least 1 image; got none.")
    pair = x[:2]  # one image alone may be a case of its own, as for batch normalisation
    with at_test(vae, x.device):
        images = 2 * how_many_fit(lambda n: _log_weights(vae, x[: 2 * n], 1), most // 2, x.device)
        draws = how_many_fit(lambda n: _log_weights(vae, pair, n), most // len(pair), x.device)
    return images, draws * len(pair)


def _sizes(vae: VAE, x: Tensor, num_particles: int, at_once: int | None) -> tuple[int, int]:
    for name, number in {"num_particles": num_particles, "at_once": at_once}.items():
        if number is not None and number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}.")
    images, draws = room(vae, x) if at_once is None else (at_once, at_once)
    # Few images and many draws of each, since an image is encoded anew for every chunk of its draws.
    return min(images, max(1, draws // min(num_particles, TOGETHER))), draws


def _bar(total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc="-log p(x)", unit=" draws", unit_scale=True, leave=False, disable=not progress)


def _chunks(total: int, size: int) -> Iterator[int]:
    """Yield sizes of chunks that add up to ``total``, whether or not ``size`` divides it."""
    yield from [size] * (total // size)
    if total % size:
        yield total % size
