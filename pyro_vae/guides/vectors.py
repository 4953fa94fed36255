"""Guide families q(z | x) with event shape ``(latent,)``; :class:`pyro_vae.conditional.Family` is the base class."""

import math
from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, transforms
from pyro.nn import ConditionalAutoRegressiveNN, ConditionalDenseNN
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae.conditional import Family
from pyro_vae.flows import Autoregressive, Broadcast, check, gentle

__all__ = ["DiagonalNormal", "Flow", "FullNormal", "LowRankNormal"]


class DiagonalNormal(Family):
    r"""Independent Gaussians, the mean-field guide.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu(x), \mathrm{diag}\, \sigma^2(x)), \qquad z = \mu + \sigma \epsilon

    The network gives :math:`\mu` and :math:`\log \sigma`. The KL divergence from the standard normal is
    :math:`\frac{1}{2} \sum_i (\sigma_i^2 + \mu_i^2 - 1 - \ln \sigma_i^2)` nats.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Example:
        >>> import torch
        >>> DiagonalNormal(20)(torch.zeros(32, 2, 20)).event_shape
        torch.Size([20])
    """

    params = 2

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian of means and log standard deviations, both ``(*, latent)``."""
        return dist.Normal(loc, _exp(log_scale))


class FullNormal(Family):
    r"""Gaussians with a full covariance for each x, for correlated posteriors.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu(x), L(x) L(x)^\top), \qquad z = \mu + L \epsilon

    For each of D dimensions the network gives ``1 + D`` numbers: :math:`\mu` and a row of the Cholesky factor L. The
    network gives the logarithm of the diagonal of L.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).
        An Introduction to Variational Autoencoders (Kingma and Welling, 2019), section 2.5.1.

    Example:
        >>> FullNormal(20)(torch.zeros(32, 21, 20)).event_shape
        torch.Size([20])
    """

    def __init__(self, event: int) -> None:
        super().__init__(event)
        self.params = 1 + event

    def distribution(self, loc: Tensor, *rows: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian of means and rows of a Cholesky factor with a log diagonal, each ``(*, latent)``."""
        factor = torch.stack(rows, -2)
        diagonal = _exp(factor.diagonal(dim1=-2, dim2=-1)).diag_embed()
        return dist.MultivariateNormal(loc, scale_tril=factor.tril(-1) + diagonal)


class LowRankNormal(Family):
    r"""Gaussians with a covariance of low rank plus a diagonal.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu(x), F(x) F(x)^\top + \mathrm{diag}\, \sigma^2(x)), \qquad
        F \in \mathbb{R}^{D \times r}

    For each dimension the network gives ``2 + r`` numbers, where r is the ``rank``. The family lies between
    :class:`DiagonalNormal` and :class:`FullNormal`, and its size grows with r only.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed and Wierstra,
            2014), section 4.3, for rank 1 (there of the precision).

    Raises:
        ValueError: If the rank is not positive.

    Example:
        >>> LowRankNormal(20, rank=3)(torch.zeros(32, 5, 20)).event_shape
        torch.Size([20])
    """

    def __init__(self, event: int, rank: int = 2) -> None:
        super().__init__(event)
        if rank < 1:
            raise ValueError(f"Expected a rank of at least 1; got {rank}. Use DiagonalNormal for none.")
        self.params = 2 + rank

    def distribution(self, loc: Tensor, log_scale: Tensor, *columns: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian of means, log standard deviations and columns of F, each ``(*, latent)``."""
        return dist.LowRankMultivariateNormal(loc, torch.stack(columns, -1), _exp(2 * log_scale))


class Flow(Family):
    r"""A conditional normalising flow: a diagonal Gaussian under invertible transforms that depend on x.

    .. math:: z = T_x(\mu + \sigma \epsilon), \quad \log q(z) = \log \mathcal{N}(\epsilon; 0, I) - \log |dz / d\epsilon|

    The network gives :math:`\mu`, :math:`\log \sigma` and ``context`` numbers for each dimension. All transforms see
    this context. T has ``layers`` steps, each with a network of one layer of ``hidden`` units, and reverses the
    dimensions between steps. ``coupling`` shifts and scales one half of the dimensions given the other half.
    ``autoregressive`` (IAF) shifts and scales each dimension given all previous dimensions.

    Note:
        The density of ``autoregressive`` is fast only at the flow's samples: do not use a VampPrior.

    References:
        Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015).
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).

    Raises:
        ValueError: If the transform is unknown, ``layers`` or ``context`` is below 1, or the event has one dimension.
    """

    def __init__(
        self,
        event: int,
        transform: Literal["coupling", "autoregressive"] = "coupling",
        layers: int = 2,
        hidden: int = 64,
        context: int = 1,
    ) -> None:
        super().__init__(event)
        check(event, transform, ("coupling", "autoregressive"), layers=layers, context=context)
        self.params = 2 + context
        self.transform = transform
        self.nets = nn.ModuleList([gentle(_net(transform, event, context * event, hidden)) for _ in range(layers)])
        self.reverse = nn.Buffer(torch.arange(event).flip(0), persistent=False)

    def distribution(self, loc: Tensor, log_scale: Tensor, *context: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the flow over a Gaussian with ``loc`` and ``log_scale``, given the context, each ``(*, latent)``."""
        steps: list[Any] = []
        for module in self.nets:
            net: Any = partial(module, context=torch.cat(context, -1))
            half = self.event[0] // 2
            step = transforms.AffineCoupling(half, net) if self.transform == "coupling" else Autoregressive(net)
            steps += [transforms.Permute(self.reverse), step]
        base = dist.Normal(loc, _exp(log_scale)).to_event(1)
        return dist.TransformedDistribution(base, [*steps[1:], Broadcast(base.batch_shape)])


def _exp(x: Tensor) -> Tensor:
    """Return a finite exp(x): infinity times 0 would be the gradient of a mixture component far from all z."""
    limit = 0.98 * math.log(torch.finfo(x.dtype).max)
    return functional.hardtanh(x, -limit, limit).exp()  # a clamp, with one operation for its gradient


def _net(transform: str, latent: int, context: int, hidden: int) -> nn.Module:
    """Return a network from z, or the first half of its dimensions, and a context to shifts and scales."""
    if transform == "autoregressive":
        order: Any = torch.arange(latent)
        return ConditionalAutoRegressiveNN(latent, context, [max(hidden, latent)], permutation=order)
    rest = latent - latent // 2
    return ConditionalDenseNN(latent // 2, context, [hidden], [rest, rest])
