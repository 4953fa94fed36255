r"""Masses of whole numbers from 0 on.

The rates are an exponential: an encoder that sees counts of a hundred draws codes so wide at the start that the rates
overflow. So it sees about the logarithm of a count over its mean.
"""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family
from pyro_vae.likelihoods.gamma import Counts, Overdispersed

RARE = 1e-3  # the least mean that training starts at


def relative(x: Tensor, mean: Tensor) -> Tensor:
    """Return asinh(x) - asinh(mean), as large counts log(x / mean), and below 0, as a pseudo-input may be, no NaN."""
    return x.asinh() - mean.asinh()


def log_mean(mean: Tensor) -> Tensor:
    """Return the log of the mean, of one that is at least 0.001."""
    return mean.clamp(min=RARE).log()


class Poisson(Family):
    r"""Independent Poisson counts: a mass of whole numbers from 0 on, whose variance is their mean.

    .. math:: \log p(x \mid z) = \sum_i x_i \log r_i(z) - r_i(z) - \log x_i!

    The network gives :math:`\log r`.

    References:
        Generalized Linear Models (McCullagh and Nelder, 1989), for the log rate.

    Example:
        >>> Poisson((64,))(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # at rate 1
        -1.0
    """

    params = 1
    link = staticmethod(log_mean)
    features = staticmethod(relative)

    def law(self, log_rate: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Poisson law of the log rates, of shape ``(*, *event)``."""
        return Counts(log_rate.exp())


class NegativeBinomial(Family):
    r"""Independent negative binomial counts: a mass of whole numbers from 0 on, with more variance than their mean.

    .. math:: \log p(x \mid z) = \sum_i \log \frac{\Gamma(x_i + r_i)}{\Gamma(r_i) \, x_i!}
        + r_i \log \frac{r_i}{r_i + m_i(z)} + x_i \log \frac{m_i(z)}{r_i + m_i(z)}

    The network gives :math:`\log m`, the log mean. The variance is :math:`m + m^2 / r`, and :math:`r`, one for each
    element of x, is learned from 1 on; at infinity it would be a Poisson law.

    References:
        Deep Generative Modeling for Single-cell Transcriptomics (Lopez et al., 2018).

    Example:
        >>> law = NegativeBinomial((64,))(torch.zeros(32, 1, 64))
        >>> law.log_prob(torch.zeros(64))[0].item() / 64  # of mean 1 and r = 1: log 1/2
        -0.6931...
    """

    params = 1
    link = staticmethod(log_mean)
    features = staticmethod(relative)

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__(event)
        self.log_dispersion = nn.Parameter(torch.zeros(self.event))

    def law(self, log_mean: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the negative binomial law of the log means, of shape ``(*, *event)``."""
        return Overdispersed(log_mean, self.log_dispersion)
