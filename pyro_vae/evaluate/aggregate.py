r"""All codes together: how much they tell of which image they are of, and how far they are from the prior."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled import how_many_fit
from pyro_vae.program import point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["Aggregate", "aggregate", "mutual_information"]


class Aggregate(NamedTuple):
    """The two parts of the mean divergence, in nats: ``mutual_information``, at most ``log N``, and ``kl``."""

    mutual_information: float
    kl: float


@torch.no_grad()
def aggregate(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> Aggregate:
    r"""Split the mean divergence over N images in two, with :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    The first is how much z tells of which image it is the code of. It is at most :math:`\log N`: where it comes near,
    there are too few images to measure it. The second, of the aggregate posterior from the prior, is what a prior that
    follows the codes could save. Both are means over draws of every image's code.

    References:
        ELBO Surgery: Yet Another Way to Carve up the Variational Evidence Lower Bound (Hoffman and Johnson, 2016).

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(N, *event)``, or the program's arguments; the work grows with the square of N. A thousand are
            seldom too few.
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
    with at_test(program, point_of(program).device, seed):
        whole = posterior_of(program, data)
        if len(whole) < 2 or num_particles < 1:
            raise ValueError(f"Expected at least 2 images and 1 particle; got {len(whole)} and {num_particles}.")
        draws, _ = whole.propose(num_particles)
        own, of_prior = whole.log_q(draws).mean(), whole.log_prior(draws).mean()
        points = {name: value.flatten(0, 1).unsqueeze(1) for name, value in draws.items()}

        def of_all(start: int, end: int) -> Tensor:
            rows = {name: value[start:end].expand(-1, len(whole), *value.shape[2:]) for name, value in points.items()}
            return whole.log_q(rows).logsumexp(1)

        number = num_particles * len(whole)
        size = how_many_fit(lambda n: of_all(0, n), number, whole.data[0].device)
        of_mixture = torch.cat([of_all(i, i + size) for i in range(0, number, size)]).mean() - math.log(len(whole))
        return Aggregate((own - of_mixture).item(), (of_mixture - of_prior).item())


def mutual_information(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> float:
    r"""Return how much a code tells of which image it is of, :math:`I_q(n; z)` in nats: see :func:`aggregate`.

    0 where the posterior has collapsed to the prior; at most :math:`\log N`.

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(N, *event)``, or the program's arguments.
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
    return aggregate(program, data, num_particles, seed).mutual_information
