"""The distribution of the vectors of random codes."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class _Vectors(constraints.Constraint):
    """The support of a distribution of codes' vectors."""

    is_discrete, event_dim = True, 3

    def __init__(self, quantiser: Any) -> None:
        self.quantiser = quantiser

    def check(self, value: Tensor) -> Tensor:
        own = self.quantiser.embed(self.quantiser.nearest(value))
        return torch.isclose(value, own, rtol=1e-3, atol=1e-4).all(-1).all(-1).all(-1)


class CodeVectors(TorchDistribution):
    """The distribution of the vectors of random codes.

    Arguments:
        codes: A distribution of codes, with event shape ``(height, width)``.
        quantiser: The quantiser.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, codes: TorchDistribution, quantiser: Any) -> None:
        self.base_codes, self.quantiser = codes, quantiser
        super().__init__(codes.batch_shape, torch.Size(quantiser.event))

    @property
    def support(self) -> constraints.Constraint:
        """The vectors of the codes."""
        return _Vectors(self.quantiser)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CodeVectors":
        """Return the distribution with another batch shape."""
        return CodeVectors(self.base_codes.expand(batch_shape), self.quantiser)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes, and return their vectors."""
        return self.quantiser.embed(self.base_codes.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the codes of vectors, in nats."""
        return self.base_codes.log_prob(self.quantiser.nearest(value))
