"""Likelihoods of x in [0, 1]: a mass of 0 and 1, and densities of the interval."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_vae.conditional import Family
from pyro_vae.data.supports import open_unit_interval
from pyro_vae.likelihoods.counts import Checked, TensorDistribution, deviance, remainder
from pyro_vae.likelihoods.real import at_least, solve

MOST = math.log(1e4)  # the largest log concentration


def logit(mean: Tensor) -> Tensor:
    """Return the logit of the mean, after a clamp of the mean to [0.001, 0.999] as in Burda et al. (2016)."""
    return mean.clamp(0.001, 0.999).logit()


class Bernoulli(Family):
    r"""Independent Bernoulli variables: a mass of binary x.

    .. math:: \log p(x \mid z) = \sum_i [x_i \log \pi_i(z) + (1 - x_i) \log (1 - \pi_i(z))]

    The support excludes grey pixels. Binarise grey pixels, and report the method, since log p depends on the method.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Example:
        >>> Bernoulli((64,))(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # log 1/2
        -0.6931...
    """

    params = 1
    link = staticmethod(logit)

    def distribution(self, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Bernoulli distribution of the ``logits``, of shape ``(*, *event)``."""
        return FastBernoulli(logits=logits)


class ContinuousBernoulli(Family):
    r"""Independent continuous Bernoulli variables: a density of x in [0, 1], such as grey pixels.

    .. math:: \log p(x \mid z) = \sum_i \Big[\eta_i(z) \, x_i - \log \int_0^1 e^{\eta_i(z) \, t} \, \mathrm{d}t\Big]

    The network gives the logit :math:`\eta`. The mean is not the sigmoid of :math:`\eta`, but
    :math:`\frac{1}{2} + \frac{1}{2} (\coth \frac{\eta}{2} - \frac{2}{\eta})`. The density grows without bound where
    pixels are always 0 or always 1: dequantise the pixels.

    References:
        The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders (Loaiza-Ganem and Cunningham,
            2019).

    Example:
        >>> distribution = ContinuousBernoulli((64,))(torch.full((1, 64), 2.0))
        >>> distribution.mean[0], distribution.log_prob(torch.zeros(64)) / 64  # log(2 / (e^2 - 1))
        (tensor(0.6565), tensor(-1.1614))
    """

    params = 1

    def distribution(self, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the continuous Bernoulli distribution of the ``logits``, of shape ``(*, *event)``."""
        return StableContinuousBernoulli(logits)

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the logit whose distribution has mean ``mean``, clamped to [0.01, 0.99], by bisection."""
        return solve(lambda logits: StableContinuousBernoulli(logits).mean, mean.clamp(0.01, 0.99), -128.0, 128.0)


class Beta(Family):
    r"""Independent Beta variables: a density of x in the open interval (0, 1), by mean and concentration.

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}(x_i; m_i(z) \, c_i(z), (1 - m_i(z)) \, c_i(z)), \qquad
        \mathrm{Var}[x_i \mid z] = \frac{m_i (1 - m_i)}{1 + c_i}

    The network gives the logit of the mean :math:`m` and :math:`\log c`, clipped softly from above at
    :math:`\log 10^4`. The support excludes 0 and 1, since the density there is 0 or infinite: dequantise x.

    References:
        Beta Regression for Modelling Rates and Proportions (Ferrari and Cribari-Neto, 2004).

    Example:
        >>> uniform = Beta((64,))(torch.stack([torch.zeros(64), torch.full((64,), 2.0).log()]))  # mean 1/2, c = 2
        >>> abs(uniform.log_prob(torch.rand(64))) < 0.05
        tensor(True)
    """

    params = 2
    link = staticmethod(logit)

    def distribution(self, logits: Tensor, log_concentration: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Beta distribution of means ``sigmoid(logits)``, of shape ``(*, *event)``."""
        log_c = -at_least(-MOST, -log_concentration)
        ones, zeros = functional.logsigmoid(logits) + log_c, functional.logsigmoid(-logits) + log_c
        return StableBeta(ones.exp(), zeros.exp())


class StableBeta(Checked, dist.Beta):
    """The Beta distribution of the open interval, accurate in float32 for any concentration."""

    support = open_unit_interval  # type: ignore[assignment]

    def _log_p(self, value: Tensor) -> Tensor:
        ones, zeros = self.concentration1, self.concentration0
        total = ones + zeros
        log_p = remainder(total) - (ones * zeros / (2 * math.pi * total)).log() / -2
        for part, x in ((ones, value), (zeros, 1 - value)):
            log_p = log_p - deviance(part, total * x, (part / total - x) / x) - remainder(part) - x.log()
        return log_p


class FastBernoulli(Checked, dist.Bernoulli):
    """The Bernoulli distribution without ``log1p``, since ``log1p`` takes ten times as long as ``log`` on a CPU."""

    def _log_p(self, value: Tensor) -> Tensor:
        return BernoulliMass.apply(*torch.broadcast_tensors(self.logits, value))


class BernoulliMass(torch.autograd.Function):
    r"""The log mass of binary x, :math:`(x - \frac{1}{2}) \, l - \frac{1}{2} |l| - \log(1 + e^{-|l|})`, l the logit.

    Its gradient is :math:`x - \sigma(l)`, in three operations where autograd takes twelve.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        """Return the log mass of each element."""
        minus = -logits.abs()
        return torch.add((value - 0.5) * logits, minus, alpha=0.5) - (1 + minus.exp()).log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the arguments."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of logits and x."""
        logits, value = ctx.saved_tensors
        return gradient * (value - logits.sigmoid()), gradient * logits if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, of_logits: Tensor | None, of_value: Tensor | None) -> Tensor:
        """Return the derivative in the direction of both arguments, for forward mode."""
        logits, value = ctx.saved_tensors
        first = 0.0 if of_logits is None else of_logits * (value - logits.sigmoid())
        return torch.zeros_like(logits) + first + (0.0 if of_value is None else of_value * logits)


class StableContinuousBernoulli(TensorDistribution):
    r"""The continuous Bernoulli distribution of a logit :math:`\eta`: :math:`p(x) \propto e^{\eta x}` on [0, 1].

    Torch's distribution clips the sigmoid. At a logit of 20 torch's float32 density is 0.2 nats off, with no gradient.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def _log_p(self, value: Tensor) -> Tensor:
        r"""Return the log density, with :math:`\log \frac{\sinh h}{h}`, h half the logit, by its series near 0."""
        half = self.logits / 2
        small = half.abs() < 0.1
        h = torch.where(small, 1.0, half.abs())
        square = torch.where(small, half, 0.0) ** 2
        near = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square * (1 / 37800 - square / 467775))))
        far = h + torch.log1p(-torch.exp(-2 * h)) - torch.log(2 * h)
        return self.logits * (value - 0.5) - torch.where(small, near, far)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw x by the inverse of the distribution function, measured from the likelier end of [0, 1]."""
        eta = self.logits.expand(self._extended_shape(Size(sample_shape)))
        u = torch.rand_like(eta)
        slope = eta.abs().clamp(min=1e-6)  # below that it is uniform to float32's rounding
        x = -torch.log1p(u * torch.expm1(-slope)) / slope
        return torch.where(eta > 0, 1 - x, x).clamp(0, 1)

    @property
    def mean(self) -> Tensor:
        """The mean, which is not ``logits.sigmoid()``."""
        half = self.logits / 2
        small = half.abs() < 0.1
        h = torch.where(small, 1.0, half)
        near = half * (1 / 3 - half**2 * (1 / 45 - half**2 * (2 / 945 - half**2 / 4725)))
        return 0.5 + 0.5 * torch.where(small, near, 1 / h.tanh() - 1 / h)
