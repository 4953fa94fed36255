r"""Likelihoods of counts, and gamma functions that are accurate in float32.

The rate is the exponential of the decoder's output. If an untrained encoder saw counts of a hundred, z would spread
so far that the rates overflow. The encoder therefore sees approximately the logarithm of a count over the mean count.

The difference of two :math:`\log \Gamma` of size n has an error of n roundings. The code subtracts Stirling's formula
from each :math:`\log \Gamma`. The remainders are small, so value and gradient are accurate to float32's rounding.

References:
    Fast and Accurate Computation of Binomial Probabilities (Loader, 2000).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from pyro_vae.conditional import Family

RARE = 1e-3  # the smallest mean that training starts at
LARGE = 10.0  # above, Stirling's series is accurate in float32
NEAR = 0.1  # below this relative distance the terms of a deviance cancel


def remainder(z: Tensor) -> Tensor:
    r"""Return :math:`\log \Gamma(z + 1) - z \log z + z - \frac{1}{2} \log 2 \pi z`, for z above 0."""
    low, inverse = z.clamp(max=LARGE), z.clamp(min=LARGE).reciprocal()
    square = inverse**2
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    direct = (low + 1).lgamma() - (low + 0.5) * low.log() + low - math.log(2 * math.pi) / 2
    return torch.where(z < LARGE, direct, series)


def deviance(x: Tensor, mean: Tensor, relative: Tensor) -> Tensor:
    r"""Return :math:`x \log \frac{x}{m} - x + m`, for x of at least 0 and ``relative`` :math:`\frac{x - m}{m}`."""
    near = relative.clamp(-NEAR, NEAR)
    series = 1 / 2 - near * (1 / 6 - near * (1 / 12 - near * (1 / 20 - near * (1 / 30 - near * (1 / 42 - near / 56)))))
    below = torch.where(x > 0, x, mean).log() - mean.log()
    far = x * torch.where(relative > -0.5, relative.clamp(min=-0.5).log1p(), below) - mean * relative
    return torch.where(relative.abs() < NEAR, mean * near**2 * series, far)


class Counted(Family):
    """A family of counts with one parameter, the log of the mean."""

    params = 1

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the log of ``mean``, after a clamp to at least 0.001."""
        return mean.clamp(min=RARE).log()

    @staticmethod
    def features(x: Tensor, mean: Tensor) -> Tensor:
        """Return asinh(x) - asinh(mean), near log(x / mean) for large counts and finite for pseudo-inputs below 0."""
        return x.asinh() - mean.asinh()


class Poisson(Counted):
    r"""Independent Poisson counts: a mass of the integers from 0, with a variance equal to the mean.

    .. math:: \log p(x \mid z) = \sum_i [x_i \log r_i(z) - r_i(z) - \log x_i!]

    The network gives :math:`\log r`.

    References:
        Generalized Linear Models (McCullagh and Nelder, 1989), for the log rate.

    Example:
        >>> Poisson((64,))(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # at rate 1
        -1.0
    """

    def distribution(self, log_rate: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Poisson distribution of the log rates, of shape ``(*, *event)``."""
        return StablePoisson(log_rate.exp())


class NegativeBinomial(Counted):
    r"""Independent negative binomial counts: a mass of the integers from 0, with a variance above the mean.

    .. math:: \log p(x \mid z) = \sum_i \Big[\log \frac{\Gamma(x_i + r_i)}{\Gamma(r_i) \, x_i!}
        + r_i \log \frac{r_i}{r_i + m_i(z)} + x_i \log \frac{m_i(z)}{r_i + m_i(z)}\Big]

    The network gives the log mean :math:`\log m`. The variance is :math:`m + m^2 / r`. Each element of x has a
    dispersion r, a parameter that starts at 1. As r grows, the mass tends to a Poisson mass.

    References:
        Deep Generative Modeling for Single-cell Transcriptomics (Lopez et al., 2018).

    Example:
        >>> distribution = NegativeBinomial((64,))(torch.zeros(32, 1, 64))
        >>> distribution.log_prob(torch.zeros(64))[0].item() / 64  # of mean 1 and r = 1: log 1/2
        -0.6931...
    """

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__(event)
        self.log_dispersion = nn.Parameter(torch.zeros(self.event))

    def distribution(self, log_mean: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the negative binomial distribution of the log means, of shape ``(*, *event)``."""
        return LogNegativeBinomial(log_mean, self.log_dispersion)


class Checked:
    """A distribution that validates values before :meth:`_log_p` returns the log density or log mass in nats."""

    _validate_args: bool
    _validate_sample: Any

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or log mass of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_p(value)

    @abstractmethod
    def _log_p(self, value: Tensor) -> Tensor: ...


class TensorDistribution(Checked, TorchDistribution):
    """A distribution whose parameters are the tensors named in ``arg_constraints``; ``expand`` expands each tensor."""

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Any:
        """Return the distribution with another batch shape."""
        distribution = copy(self)
        distribution._batch_shape = Size(batch_shape)
        for name, constraint in self.arg_constraints.items():
            value = getattr(self, name)
            setattr(distribution, name, value.expand(*batch_shape, *value.shape[value.dim() - constraint.event_dim :]))
        return distribution


class StablePoisson(Checked, dist.Poisson):
    """The Poisson distribution, accurate in float32 for counts of any size."""

    def _log_p(self, value: Tensor) -> Tensor:
        rate = self.rate.clamp(min=torch.finfo(self.rate.dtype).tiny)
        return -deviance(value, rate, (value - rate) / rate) - factorial(value)


def factorial(x: Tensor) -> Tensor:
    r"""Return :math:`\log x! - x \log x + x`, which is 0 at 0."""
    some = x.clamp(min=1)
    return torch.where(x > 0, remainder(some) + (2 * math.pi * some).log() / 2, 0.0)


class LogNegativeBinomial(TensorDistribution):
    r"""The negative binomial distribution with log mean and log dispersion, of variance :math:`m + m^2 / r`."""

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_dispersion = torch.broadcast_tensors(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def _log_p(self, value: Tensor) -> Tensor:
        r"""Return the log mass, by :math:`s = x / r` and :math:`w = m / r`; a Poisson's where r is large."""
        mean, r = self.mean, self.log_dispersion.exp()
        s, w = value * (-self.log_dispersion).exp(), (self.log_mean - self.log_dispersion).exp()
        share = (1 + s) / (1 + w)
        successes = deviance(value, mean * share, (value - mean) / (mean * (1 + s)))
        failures = deviance(r, r * share, (w - s) / (1 + s))
        return remainder(r + value) - remainder(r) - s.log1p() / 2 - factorial(value) - successes - failures

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts from a Poisson distribution whose rate is Gamma distributed."""
        with torch.no_grad():
            r = self.log_dispersion.exp()
            return dist.Poisson(dist.Gamma(r, r / self.mean).sample(Size(sample_shape))).sample()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self.mean * (1 + (self.log_mean - self.log_dispersion).exp())
