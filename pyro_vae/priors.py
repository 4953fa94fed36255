r"""Priors p(z): modules whose ``forward()`` returns a distribution over ``(latent,)``.

A prior of your own is one class with one method, anywhere, even in a notebook:

    >>> import pyro.distributions as dist
    >>> import torch
    >>> from torch import nn
    >>> class Laplace(nn.Module):
    ...     def __init__(self, latent):
    ...         super().__init__()
    ...         self.loc = nn.Parameter(torch.zeros(latent))
    ...         self.log_scale = nn.Parameter(torch.zeros(latent))
    ...     def forward(self):
    ...         return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)
"""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Arguments:
        latent: Number of latent dimensions.

    Example:
        >>> StandardNormal(20)().event_shape
        torch.Size([20])
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one", torch.ones(latent), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(latent,)``."""
        return dist.Normal(self.zero, self.one).to_event(1)
