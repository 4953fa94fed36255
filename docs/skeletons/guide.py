"""A guide of your own: a ``Family`` over z. Copy the file and change it."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.conditional import Family


class StudentTGuide(Family):
    r"""Independent Student's t distributions: a mean-field guide with heavier tails than a Gaussian one.

    .. math:: q(z \mid x) = \prod_i t_\nu(z_i; \mu_i(x), \sigma_i(x))

    The network returns two numbers for each dimension of z, :math:`\mu` and :math:`\log \sigma`. ``df`` is :math:`\nu`.
    No closed form of the divergence from a normal prior is known: objectives estimate it from draws.

    References:
        `Pareto Smoothed Importance Sampling <https://arxiv.org/abs/1507.02646>`_ (Vehtari et al., 2024), for why the
        tails of a proposal matter.

    Raises:
        ValueError: If ``df`` is not positive.

    Example:
        >>> import torch
        >>> q = StudentTGuide(20)(torch.zeros(32, 2, 20))  # parameters (*, params, latent), here of 32 data
        >>> q.rsample().shape, q.log_prob(torch.zeros(20)).shape  # log q(z | x) in nats
        (torch.Size([32, 20]), torch.Size([32]))
    """

    params = 2  # how many numbers the network returns for each dimension of z

    def __init__(self, event: int, df: float = 5.0) -> None:
        super().__init__(event)
        self.df = df

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return the distribution of these locations and log scales, each of shape ``(*, latent)``."""
        return dist.StudentT(self.df, loc, log_scale.exp())
