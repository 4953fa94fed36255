"""Likelihoods of grey levels: masses, with bits/dim. All elements are independent, channels included."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from pyro_vae.conditional import Family
from pyro_vae.data.supports import levels as grid
from pyro_vae.likelihoods.counts import TensorDistribution
from pyro_vae.likelihoods.real import START, at_least, solve

LOWEST = -7.0  # the smallest log scale, as in PixelCNN++


class Categorical(Family):
    r"""A probability for each grey level: a mass of :math:`\{0, \frac{1}{L - 1}, \dots, 1\}`.

    .. math:: \log p(x \mid z) = \sum_i \Big[a_{i, k_i}(z) - \log \sum_k e^{a_{ik}(z)}\Big], \qquad k_i = (L - 1) \, x_i

    The network gives L logits for each element, and takes L times the memory of one parameter.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner and Kavukcuoglu, 2016).

    Arguments:
        levels: L, the number of grey levels.

    Raises:
        ValueError: If there are fewer than 2 levels.

    Example:
        >>> distribution = Categorical((64,), levels=17)(torch.zeros(32, 17, 64))
        >>> distribution.log_prob(torch.ones(64))[0].item() / 64  # log 1/17
        -2.8332...
    """

    def __init__(self, event: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(event)
        self.params = self.levels = grid(levels).number

    def distribution(self, *logits: Tensor) -> TorchDistribution:
        """Return the categorical distribution of the logits. Each level has a tensor of shape ``(*, *event)``."""
        return GridCategorical(torch.stack(logits, -1))


class DiscretizedLogistic(Family):
    r"""Independent logistics rounded to the nearest grey level: a mass of :math:`\{0, \frac{1}{L - 1}, \dots, 1\}`.

    .. math:: p(x \mid z) = \prod_i \Big[\sigma\Big(\frac{x_i + w - \mu_i(z)}{s_i(z)}\Big)
        - \sigma\Big(\frac{x_i - w - \mu_i(z)}{s_i(z)}\Big)\Big], \qquad w = \frac{1}{2 (L - 1)}

    The bins of 0 and 1 extend to infinity. The network gives :math:`\mu` and :math:`\log(10 s)`, so s starts at 0.1. A
    soft clip keeps :math:`\log s` above -7.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).

    Arguments:
        levels: L, the number of grey levels.

    Raises:
        ValueError: If there are fewer than 2 levels.

    Example:
        >>> distribution = DiscretizedLogistic((1,), levels=3)(torch.zeros(2, 1))
        >>> distribution.log_prob(torch.tensor([[0.0], [0.5], [1.0]])).exp().sum()
        tensor(1.)
    """

    params = 2

    def __init__(self, event: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(event)
        self.levels = grid(levels).number

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the rounded logistic of locations and of the network's log scales, both of shape ``(*, *event)``."""
        return GridLogistic(loc, _scale(log_scale), self.levels)

    def link(self, mean: Tensor) -> Tensor:
        """Return the location at which the mean is ``mean``, clamped to [0.001, 0.999], at the initial scale."""
        return solve(
            lambda loc: self.distribution(loc, torch.zeros_like(loc)).mean, mean.clamp(0.001, 0.999), -1.0, 2.0
        )


class DiscretizedLogisticMixture(Family):
    r"""Mixtures of logistics rounded to the nearest grey level: a mass with several modes.

    .. math:: p(x \mid z) = \prod_i \sum_{k=1}^{K} \pi_{ik}(z) \Big[\sigma\Big(\frac{x_i + w - \mu_{ik}(z)}{s_{ik}(z)}
        \Big) - \sigma\Big(\frac{x_i - w - \mu_{ik}(z)}{s_{ik}(z)}\Big)\Big], \qquad w = \frac{1}{2 (L - 1)}

    The network gives the logits of :math:`\pi`, :math:`\mu_k - \frac{2k - 1}{2K}` and :math:`\log 10 s`, in this order.
    The locations start evenly spaced over [0, 1]. A soft clip keeps :math:`\log s` above -7.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications
            (Salimans, Karpathy, Chen and Kingma, 2017).

    Arguments:
        levels: L, the number of grey levels.
        components: K, the number of logistics of each element.

    Raises:
        ValueError: If there are fewer than 2 levels, or no components.

    Example:
        >>> DiscretizedLogisticMixture((64,))(torch.zeros(32, 15, 64)).mean[0, 0]
        tensor(0.5000)
    """

    def __init__(self, event: int | Sequence[int], levels: int = 256, components: int = 5) -> None:
        super().__init__(event)
        if components < 1:
            raise ValueError(f"Expected at least 1 component; got {components}.")
        self.levels, self.components, self.params = grid(levels).number, components, 3 * components
        self.start = nn.Buffer((torch.arange(components) + 0.5) / components, persistent=False)

    def distribution(self, *parameters: Tensor) -> TorchDistribution:
        """Return the mixture of 3 K parameters, each of shape ``(*, *event)``."""
        logits, loc, log_scale = torch.stack(parameters, -1).chunk(3, -1)
        parts = GridLogistic(loc + self.start, _scale(log_scale), self.levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def _scale(log_scale: Tensor) -> Tensor:
    """Return the scale s from the network's output."""
    return at_least(LOWEST, log_scale + math.log(START)).exp()


class _GridDistribution(TensorDistribution):
    """A distribution of grey levels, as x in [0, 1]; ``last`` is the index of the level 1."""

    last: int

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return grid(self.last + 1)


class GridCategorical(_GridDistribution):
    """A categorical distribution of levels with logits ``(*, L)``."""

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits, self.last = logits, logits.shape[-1] - 1
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def _log_p(self, value: Tensor) -> Tensor:
        index = (value * self.last).round().long().unsqueeze(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], self.batch_shape)
        log_mass = self.logits.expand(*shape, -1).gather(-1, index.expand(*shape, 1)).squeeze(-1)
        return log_mass - self.logits.logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels."""
        return dist.Categorical(logits=self.logits).sample(Size(sample_shape)).to(self.logits) / self.last

    @property
    def mean(self) -> Tensor:
        """The mean of x."""
        return self.logits.softmax(-1) @ torch.linspace(0, 1, self.last + 1).to(self.logits)


class GridLogistic(_GridDistribution):
    """A logistic distribution rounded to the nearest level."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale, self.last = loc, scale, levels - 1
        super().__init__(loc.shape, validate_args=validate_args)

    def _log_p(self, value: Tensor) -> Tensor:
        r"""Return the log mass, by :math:`\sigma(a) - \sigma(b) = \sigma(a) \, \sigma(-b) \, (1 - e^{b - a})`."""
        index = (value * self.last).round()
        first, last = index < 0.5, index > self.last - 0.5
        below = functional.logsigmoid(((index + 0.5) / self.last - self.loc) / self.scale)
        above = functional.logsigmoid((self.loc - (index - 0.5) / self.last) / self.scale)
        width = (-torch.expm1(-1 / (self.last * self.scale))).log()
        inside = torch.where(first | last, 0.0, width)
        return torch.where(last, 0.0, below) + torch.where(first, 0.0, above) + inside

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw logistics by the inverse of the distribution function, and round them."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * u.logit()
            return (x * self.last).round().clamp(0, self.last) / self.last

    @property
    def mean(self) -> Tensor:
        """The mean of x, from a sum of tail probabilities. The sum adds one level at a time to save memory."""
        total = torch.zeros_like(self.loc)
        for level in range(self.last):
            total = total + ((self.loc - (level + 0.5) / self.last) / self.scale).sigmoid()
        return total / self.last
