r"""Masses of whole numbers from 0 on, and what all densities with gamma functions need so that float32 carries them.

The rates are an exponential: an encoder that sees counts of a hundred draws codes so wide at the start that the rates
overflow. So it sees about the logarithm of a count over its mean.

A difference of two :math:`\log \Gamma` of size n is off by n rounding errors. Here Stirling's formula is taken out of
each beforehand, and what is left is small, so that value and gradient are right to float32's rounding.

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

RARE = 1e-3  # the least mean that training starts at
LARGE = 10.0  # from here on Stirling's series has float32's precision
NEAR = 0.1  # of a relative distance, below which the terms of a deviance cancel


def remainder(z: Tensor) -> Tensor:
    r"""Return :math:`\log \Gamma(z + 1) - z \log z + z - \frac{1}{2} \log 2 \pi z`, for z above 0."""
    low, inverse = z.clamp(max=LARGE), z.clamp(min=LARGE).reciprocal()
    square = inverse**2
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    direct = (low + 1).lgamma() - (low + 0.5) * low.log() + low - math.log(2 * math.pi) / 2
    return torch.where(z < LARGE, direct, series)


def deviance(x: Tensor, mean: Tensor, relative: Tensor) -> Tensor:
    r"""Return :math:`x \log \frac{x}{m} - x + m`, where :math:`\frac{x - m}{m}` is given, for x of at least 0."""
    near = relative.clamp(-NEAR, NEAR)  # where the two terms below would cancel
    series = 1 / 2 - near * (1 / 6 - near * (1 / 12 - near * (1 / 20 - near * (1 / 30 - near * (1 / 42 - near / 56)))))
    below = torch.where(x > 0, x, mean).log() - mean.log()
    far = x * torch.where(relative > -0.5, relative.clamp(min=-0.5).log1p(), below) - mean * relative
    return torch.where(relative.abs() < NEAR, mean * near**2 * series, far)


class Counted(Family):
    """A family of counts, whose one parameter is the log of its mean."""

    params = 1

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the log of the mean, of one that is at least 0.001."""
        return mean.clamp(min=RARE).log()

    @staticmethod
    def features(x: Tensor, mean: Tensor) -> Tensor:
        """Return asinh(x) - asinh(mean), of large counts log(x / mean); no NaN below 0, as a pseudo-input may be."""
        return x.asinh() - mean.asinh()


class Poisson(Counted):
    r"""Independent Poisson counts: a mass of whole numbers from 0 on, whose variance is their mean.

    .. math:: \log p(x \mid z) = \sum_i x_i \log r_i(z) - r_i(z) - \log x_i!

    The network gives :math:`\log r`.

    References:
        Generalized Linear Models (McCullagh and Nelder, 1989), for the log rate.

    Example:
        >>> Poisson((64,))(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # at rate 1
        -1.0
    """

    def law(self, log_rate: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Poisson law of the log rates, of shape ``(*, *event)``."""
        return Counts(log_rate.exp())


class NegativeBinomial(Counted):
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

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__(event)
        self.log_dispersion = nn.Parameter(torch.zeros(self.event))

    def law(self, log_mean: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the negative binomial law of the log means, of shape ``(*, *event)``."""
        return Overdispersed(log_mean, self.log_dispersion)


class Checked:
    """A law of elements whose values are checked before :meth:`_log_p`; the log of a density or a mass, in nats."""

    _validate_args: bool
    _validate_sample: Any

    def log_prob(self, value: Tensor) -> Tensor:
        """Return it of each element."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_p(value)

    @abstractmethod
    def _log_p(self, value: Tensor) -> Tensor: ...


class Law(Checked, TorchDistribution):
    """A law that is none of Pyro's, by the tensors of its ``arg_constraints``."""

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Any:
        """Return it in a larger batch."""
        law = copy(self)
        law._batch_shape = Size(batch_shape)
        for name, constraint in self.arg_constraints.items():
            value = getattr(self, name)
            setattr(law, name, value.expand(*batch_shape, *value.shape[value.dim() - constraint.event_dim :]))
        return law


class Counts(Checked, dist.Poisson):
    """Pyro's Poisson law, for counts of any size."""

    def _log_p(self, value: Tensor) -> Tensor:
        rate = self.rate.clamp(min=torch.finfo(self.rate.dtype).tiny)
        return -deviance(value, rate, (value - rate) / rate) - factorial(value)


def factorial(x: Tensor) -> Tensor:
    r"""Return :math:`\log x! - x \log x + x`, which is 0 at 0."""
    some = x.clamp(min=1)
    return torch.where(x > 0, remainder(some) + (2 * math.pi * some).log() / 2, 0.0)


class Overdispersed(Law):
    r"""The negative binomial law by the logarithms of its mean m and of r, whose variance is :math:`m + m^2 / r`."""

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_dispersion = torch.broadcast_tensors(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def _log_p(self, value: Tensor) -> Tensor:
        r"""Return the log mass, by :math:`s = x / r` and :math:`w = m / r`, as a Poisson law's where r is large."""
        mean, r = self.mean, self.log_dispersion.exp()
        s, w = value * (-self.log_dispersion).exp(), (self.log_mean - self.log_dispersion).exp()
        share = (1 + s) / (1 + w)
        successes = deviance(value, mean * share, (value - mean) / (mean * (1 + s)))
        failures = deviance(r, r * share, (w - s) / (1 + s))
        return remainder(r + value) - remainder(r) - s.log1p() / 2 - factorial(value) - successes - failures

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts of a Poisson law whose rate is Gamma distributed."""
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
