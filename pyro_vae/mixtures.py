r"""A mixture of any laws, as fast and as small as it can be."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent

__all__ = ["Mixture"]


class Mixture(dist.MixtureSameFamily):
    r"""Pyro's ``MixtureSameFamily``, for hundreds of components over a latent space.

    .. math:: \log p(z) = \log \sum_k \pi_k \, p_k(z)

    In a plate it stays as it is, where Pyro would have a copy of the components for each datum. Of diagonal Gaussians
    the squares are expanded,

    .. math:: \sum_d \frac{(z_d - \mu_{kd})^2}{\sigma_{kd}^2} = z^2 \cdot \sigma_k^{-2}
        - 2 z \cdot \mu_k \sigma_k^{-2} + \mu_k^2 \cdot \sigma_k^{-2}

    so that all k are two matrix products, in float64 since the terms cancel.

    Arguments:
        weights: A ``Categorical`` over K components.
        components: A distribution with batch shape ``(K,)`` and event shape ``(latent,)``.

    Example:
        >>> halves = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> Mixture(dist.Categorical(torch.ones(2)), halves).log_prob(torch.zeros(1))  # log N(1; 0, 1)
        tensor(-1.4189)
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return it in nats, from ``(*, latent)`` to ``(*)``."""
        if self._validate_args:
            self._validate_sample(z)
        law = self.component_distribution
        diagonal = isinstance(law, Independent) and isinstance(law.base_dist, torch.distributions.Normal)
        each = _diagonal(law.base_dist, z) if diagonal else law.log_prob(z.unsqueeze(-2))
        return (each + self.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> TorchDistribution:
        """Return the same, with a batch shape."""
        return ExpandedDistribution(self, batch_shape)


def _diagonal(law: torch.distributions.Normal, z: Tensor) -> Tensor:
    """Return log-densities of K Gaussians of shape ``(K, latent)`` at each z, ``(*, K)``."""
    loc, scale, wide = law.loc.double(), law.scale.double(), z.double()
    weight = scale**-2
    squares = wide.square() @ weight.T - 2 * wide @ (loc * weight).T + (loc.square() * weight).sum(-1)
    return (-0.5 * squares - (scale * math.sqrt(2 * math.pi)).log().sum(-1)).to(z.dtype)
