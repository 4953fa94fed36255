r"""All codes together: how much they tell of which image they are of, and how far they are from the prior."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled import how_many_fit
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["Aggregate", "aggregate", "mutual_information"]


class Aggregate(NamedTuple):
    """The two parts of the mean divergence, in nats: ``mutual_information``, at most ``log N``, and ``kl``."""

    mutual_information: float
    kl: float


@torch.no_grad()
def aggregate(vae: VAE, x: Tensor, num_particles: int = 1, seed: int | None = None) -> Aggregate:
    r"""Split the mean divergence over N images in two, with :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    The first is how much z tells of which image it is the code of. It is at most :math:`\log N`: where it comes near,
    there are too few images to measure it. The second, of the aggregate posterior from the prior, is what a prior that
    follows the codes could save. Both are means over draws of every image's code.

    References:
        ELBO Surgery: Yet Another Way to Carve up the Variational Evidence Lower Bound (Hoffman and Johnson, 2016).

    Arguments:
        vae: Any VAE.
        x: Shape ``(N, *event)``; the work grows with its square. A thousand are seldom too few.
        num_particles: Draws per image.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Returns:
        Mutual information and divergence of the aggregate posterior from the prior, in nats.

    Raises:
        ValueError: If there are fewer than 2 images, or no particles.

    Example:
        >>> from pyro_vae import VAE
        >>> found = aggregate(VAE.build((64,), latent=2), torch.rand(50, 64))
        >>> found.mutual_information <= math.log(50)
        True
    """
    if len(x) < 2 or num_particles < 1:
        raise ValueError(f"Expected at least 2 images and 1 particle; got {len(x)} and {num_particles}.")
    with at_test(vae, x.device, seed):
        p, q = vae.prior(), vae.encoder(x)
        z = q.sample((num_particles,))
        own, of_prior = q.log_prob(z).mean(), p.log_prob(z).mean()
        points = z.flatten(0, 1).unsqueeze(1)
        fit = how_many_fit(lambda n: vae.encoder(x).log_prob(points[:n]), len(points), x.device)
        of_all = torch.cat([q.log_prob(part).logsumexp(1) for part in points.split(fit)]).mean() - math.log(len(x))
        return Aggregate((own - of_all).item(), (of_all - of_prior).item())


def mutual_information(vae: VAE, x: Tensor, num_particles: int = 1, seed: int | None = None) -> float:
    r"""Return how much a code tells of which image it is of, :math:`I_q(n; z)` in nats: see :func:`aggregate`.

    0 where the posterior has collapsed to the prior; at most :math:`\log N`.

    Arguments:
        vae: Any VAE.
        x: Shape ``(N, *event)``.
        num_particles: Draws per image.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are fewer than 2 images, or no particles.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2), torch.zeros(3), scale=1.0)  # a decoder that ignores z
        >>> abs(mutual_information(model.vae(), torch.randn(50, 3))) < 1e-5
        True
    """
    return aggregate(vae, x, num_particles, seed).mutual_information
