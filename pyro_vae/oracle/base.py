"""The base class of programs with exact answers, and Gaussians in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import module
from pyro_vae.seeds import param_store_scope

EXACT, MEAN_FIELD = "exact", "mean-field"


class Oracle(nn.Module, ABC):
    """The base class of a program with known evidence and ELBO; a subclass defines the model, guide and two methods.

    The guide is the exact posterior or the best ``mean-field`` guide. A mean-field guide has independent Gaussians over
    all dimensions of all sites. The guide depends on the model's parameters, and stays exact or optimal in training.
    """

    guides: Sequence[str] = (EXACT, MEAN_FIELD)
    model: Any
    bias: Tensor  # its last dimension is that of x

    def __init__(self, guide: str, scale: float = 1.0, **tensors: Tensor) -> None:
        super().__init__()
        if guide not in self.guides:
            raise ValueError(f"Expected guide to be one of {', '.join(self.guides)}; got {guide!r}.")
        self.kind, self.scale = guide, register(self, scale, **tensors)

    @abstractmethod
    def log_evidence(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return log p of the observed data, of shape ``(B,)``, in nats."""

    @abstractmethod
    def gap(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the evidence minus the ELBO of the mean-field guide, in nats."""

    def elbo(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the exact ELBO of the guide, of shape ``(B,)``, in nats."""
        return self.log_evidence(x, *given) - (self.gap(x, *given) if self.kind == MEAN_FIELD else 0.0)

    @torch.no_grad()
    def sample(self, num: int, *given: Tensor) -> Tensor:
        """Draw x, of shape ``(num, d)``, given ``num`` rows of the model's other arguments."""
        with param_store_scope():
            return poutine.uncondition(self.model)(self.bias.new_zeros(num, self.bias.shape[-1]), *given)

    def rows(self, x: Tensor) -> Any:
        """Register the parameters with Pyro, and return the plate of the data."""
        module(type(self).__name__, self)
        return pyro.plate("data", x.shape[0], dim=-1)

    def unit(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return arguments of :func:`bayes` for a standard normal z: covariance, weight, covariance of the noise."""
        d, k = weight.shape[-2:]
        return torch.eye(k).to(weight), weight, self.scale**2 * torch.eye(d).to(weight)

    def marginal(self, mean: Tensor, weight: Tensor) -> MultivariateNormal:
        """Return the distribution of x for a standard normal z, with ``mean`` at z = 0."""
        return MultivariateNormal(mean, weight @ weight.mT + self.unit(weight)[2])

    def around(self, distribution: MultivariateNormal) -> TorchDistribution:
        """Return the posterior, or for ``mean-field`` the best approximation by independent Gaussians."""
        if self.kind != MEAN_FIELD:
            return distribution
        return independent(distribution.mean, distribution.precision_matrix)


def register(owner: nn.Module, scale: float, **tensors: Tensor) -> float:
    """Register each ``nn.Parameter`` as a parameter, all other tensors as buffers; return the positive scale."""
    if not scale > 0:
        raise ValueError(f"Expected a positive scale; got {scale}.")
    for name, value in tensors.items():
        add: Any = owner.register_parameter if isinstance(value, nn.Parameter) else owner.register_buffer
        add(name, value)
    return float(scale)


def times(weight: Tensor, vector: Tensor) -> Tensor:
    """Return W v for batches of matrices and vectors."""
    return (weight @ vector.unsqueeze(-1)).squeeze(-1)


def normals(seed: int, *shapes: Sequence[int]) -> list[Tensor]:
    """Return standard normal tensors; a seed gives the same tensors in every run and dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(torch.get_default_dtype()) for s in shapes]


def bayes(mean: Tensor, covariance: Tensor, weight: Tensor, noise: Tensor, x: Tensor) -> MultivariateNormal:
    """Return p(z | x) for z ~ N(mean, covariance) and x ~ N(W z, noise)."""
    gain = torch.linalg.solve(weight @ covariance @ weight.mT + noise, weight @ covariance).mT
    return MultivariateNormal(mean + times(gain, x - times(weight, mean)), covariance - gain @ weight @ covariance)


def independent(mean: Tensor, precision: Tensor) -> TorchDistribution:
    """Return the independent Gaussians q that minimise KL(q || p) for a Gaussian p."""
    return dist.Normal(mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt()).to_event(1)


def loss_of_independence(precision: Tensor) -> Tensor:
    """Return KL(q || p) in nats, where p is a Gaussian and q is the result of :func:`independent` for p."""
    return 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
