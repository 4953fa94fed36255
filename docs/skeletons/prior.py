"""A prior of your own: a module whose ``forward`` returns a distribution over z. Copy the file and change it."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn


class LaplacePrior(nn.Module):
    r"""Independent Laplace distributions, with a learned location and scale for each dimension of z.

    .. math:: \log p(z) = -\sum_i \Big[ \frac{|z_i - m_i|}{b_i} + \log 2 b_i \Big]

    References:
        `The Bayesian Lasso <https://doi.org/10.1198/016214508000000337>`_ (Park and Casella, 2008).

    Arguments:
        latent: Number of dimensions of z.
        scale: Initial b of every dimension, in the units of z.

    Raises:
        ValueError: If the scale is not positive.

    Example:
        >>> p = LaplacePrior(20)()
        >>> p.event_shape, p.log_prob(torch.zeros(5, 20)).shape  # log p(z) in nats, one for each of 5 codes
        (torch.Size([20]), torch.Size([5]))
    """

    def __init__(self, latent: int, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"Expected a positive scale; got {scale}.")
        self.loc = nn.Parameter(torch.zeros(latent))
        self.log_scale = nn.Parameter(torch.full((latent,), scale).log())

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(latent,)``."""
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)
