"""What oracles share: Gaussians in closed form, and a program whose evidence is known."""

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
from pyro_vae.seeds import own_store

EXACT, MEAN_FIELD = "exact", "mean-field"


class Oracle(nn.Module, ABC):
    """A program whose evidence, posterior and ELBO are known; to write one, give its methods and its two programs.

    The guide is made of the model's own parameters, so that it stays what it is while these are trained: the exact
    posterior, or the best ``mean-field`` guide: independent Gaussians over all dimensions of all sites.
    """

    guides: Sequence[str] = (EXACT, MEAN_FIELD)
    model: Any
    bias: Tensor  # whose last dimension is that of x

    def __init__(self, guide: str, scale: float = 1.0, **tensors: Tensor) -> None:
        super().__init__()
        if guide not in self.guides:
            raise ValueError(f"Expected guide to be one of {', '.join(self.guides)}; got {guide!r}.")
        self.kind, self.scale = guide, hold(self, scale, **tensors)

    @abstractmethod
    def log_evidence(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return log p of what is observed, of shape ``(B,)``, in nats."""

    @abstractmethod
    def gap(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return by how many nats the mean-field guide's ELBO is below the evidence."""

    def elbo(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the exact ELBO of the guide, of shape ``(B,)``, in nats."""
        return self.log_evidence(x, *given) - (self.gap(x, *given) if self.kind == MEAN_FIELD else 0.0)

    @torch.no_grad()
    def sample(self, num: int, *given: Tensor) -> Tensor:
        """Draw x, of shape ``(num, d)``, given as many rows of what the model takes beside it."""
        with own_store():
            return poutine.uncondition(self.model)(self.bias.new_zeros(num, self.bias.shape[-1]), *given)

    def rows(self, x: Tensor) -> Any:
        """Show Pyro the parameters; return the plate of the data."""
        module(type(self).__name__, self)
        return pyro.plate("data", x.shape[0], dim=-1)

    def unit(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :func:`bayes` takes of a standard normal z: its covariance, the weight, that of the noise."""
        d, k = weight.shape[-2:]
        return torch.eye(k).to(weight), weight, self.scale**2 * torch.eye(d).to(weight)

    def marginal(self, mean: Tensor, weight: Tensor) -> MultivariateNormal:
        """Return the law of x, of z's normal around a mean."""
        return MultivariateNormal(mean, weight @ weight.mT + self.unit(weight)[2])

    def around(self, law: MultivariateNormal) -> TorchDistribution:
        """Return a posterior, or the best Gaussian of independent dimensions for it."""
        return law if self.kind != MEAN_FIELD else independent(law.mean, law.precision_matrix)


def hold(owner: nn.Module, scale: float, **tensors: Tensor) -> float:
    """Make tensors parameters of a module where they are so already, else buffers; return the scale, if positive."""
    if not scale > 0:
        raise ValueError(f"Expected a positive scale; got {scale}.")
    for name, value in tensors.items():
        register: Any = owner.register_parameter if isinstance(value, nn.Parameter) else owner.register_buffer
        register(name, value)
    return float(scale)


def times(weight: Tensor, vector: Tensor) -> Tensor:
    """Return W v, of any batches."""
    return (weight @ vector.unsqueeze(-1)).squeeze(-1)


def normals(seed: int, *shapes: Sequence[int]) -> list[Tensor]:
    """Return standard normal numbers, the same in every run and dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(torch.get_default_dtype()) for s in shapes]


def bayes(mean: Tensor, covariance: Tensor, weight: Tensor, noise: Tensor, seen: Tensor) -> MultivariateNormal:
    """Return p(z | seen) of z ~ N(mean, covariance) and seen ~ N(W z, noise)."""
    gain = torch.linalg.solve(weight @ covariance @ weight.mT + noise, weight @ covariance).mT
    return MultivariateNormal(mean + times(gain, seen - times(weight, mean)), covariance - gain @ weight @ covariance)


def independent(mean: Tensor, precision: Tensor) -> TorchDistribution:
    """Return the best Gaussian of independent dimensions for a Gaussian."""
    return dist.Normal(mean, precision.diagonal(dim1=-2, dim2=-1).rsqrt()).to_event(1)


def loss_of_independence(precision: Tensor) -> Tensor:
    """Return the divergence of :func:`independent` from its Gaussian, in nats."""
    return 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())
