r"""Guide families q(z | x): families over ``(latent,)``.

See :class:`pyro_vae.conditional.Family` for how to write one.
"""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.conditional import Family

__all__ = ["DiagonalNormal"]


class DiagonalNormal(Family):
    r"""Independent Gaussians, the mean-field guide.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu(x), \mathrm{diag}\, \sigma^2(x)), \qquad z = \mu + \sigma \epsilon

    The network gives :math:`\mu` and :math:`\log \sigma`. Its divergence from the standard normal is
    :math:`\frac{1}{2} \sum_i (\sigma_i^2 + \mu_i^2 - 1 - \ln \sigma_i^2)` nats.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Arguments:
        event: Number of latent dimensions.

    Example:
        >>> import torch
        >>> DiagonalNormal(20)(torch.zeros(32, 2, 20)).event_shape
        torch.Size([20])
    """

    params = 2

    def law(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian with the given means and log standard deviations, each ``(*, latent)``."""
        return dist.Normal(loc, log_scale.exp())
