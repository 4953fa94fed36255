r"""Per-datum log-weights, and what is read off them: bounds on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.weighing import Weighing
from pyro_vae.program import Draws, point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["elbo", "ess", "iwae", "iwae_curve", "log_weights", "nll"]


def log_weights(
    program: Any,
    data: Any,
    num_particles: int,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
    given: Draws | None = None,
) -> Tensor:
    r"""Return the log importance weights of draws from the guide.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    z are all latent sites together. Discrete ones that are marked ``infer={"enumerate": "parallel"}``, or that the
    model alone has, are summed out exactly. Given a label or another covariate, all is given that.

    Memory is bounded whatever the parts are, but for the answer: how many images are decoded at once is measured
    (:func:`pyro_vae.evaluate.weighing.room`). Where that alone is too large, as of 5,000 draws for each of a million
    images, :func:`nll` adds up as it goes. Where there are many draws they are weighed by a graph, as ``fit`` trains.

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(B, *event)``; or a tuple of the program's arguments, or a dictionary of them by name.
        num_particles: K, draws per datum.
        at_once: Rows run at once, if not as many as fit. The draws depend on it, what they estimate does not.
        progress: Whether to show a progress bar.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        given: Values, or draws, of latent sites outside the data's plate: then all is given these, or predictive.

    Returns:
        Shape ``(K, B)``, in nats, unscaled.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    Example:
        >>> from pyro_vae import VAE
        >>> log_weights(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([100, 5])
    """
    with _weighing(program, data, num_particles, at_once, progress, seed, given) as weighing:
        return torch.cat([torch.cat([*weighing(rows)]) for rows in weighing.batches()], dim=1)


@contextmanager
def _weighing(
    program: Any, data: Any, num_particles: int, at_once: int | None, progress: bool, seed: int | None, given: Any
) -> Iterator[Weighing]:
    with at_test(program, point_of(program).device, seed):
        posterior = posterior_of(program, data, given)
        with Weighing(posterior, num_particles, at_once, progress) as weighing:
            yield weighing


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
    program: Any,
    data: Any,
    num_particles: int = 5000,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
    given: Draws | None = None,
) -> Tensor:
    r"""Estimate :math:`-\log p(x)` per datum by importance sampling; :math:`-\log p(x \mid y)`, given covariates y.

    It is minus the importance weighted bound with ``num_particles`` draws from the guide, so it is too large on
    average, and falls to the truth as their number grows. Memory is bounded whatever the parts are: how many images
    are decoded at once is measured (:func:`pyro_vae.evaluate.weighing.room`).

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(B, *event)``; or a tuple of the program's arguments, or a dictionary of them by name.
        num_particles: K, draws per datum.
        at_once: Rows run at once, if not as many as fit. The draws depend on it, what they estimate does not.
        progress: Whether to show a progress bar.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        given: Values, or draws, of latent sites outside the data's plate: then all is given these, or predictive.

    Returns:
        Shape ``(B,)``, in nats.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    Example:
        >>> from pyro_vae import VAE
        >>> nll(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([5])
    """
    parts = []
    with _weighing(program, data, num_particles, at_once, progress, seed, given) as weighing:
        for rows in weighing.batches():
            total = torch.tensor(-math.inf)
            for log_w in weighing(rows):
                total = torch.logaddexp(total.to(log_w), log_w.logsumexp(0))
            parts.append(math.log(num_particles) - total)
    return torch.cat(parts)
