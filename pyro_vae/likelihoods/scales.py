"""The ways of having a scale, and what parameters go through to stay where a law has them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

__all__ = ["WAYS", "Profiled", "add_scale", "at_least", "solve"]

START = 0.1  # of x in [0, 1]
LOWEST = -6.0  # the least log scale, as Rybkin et al. (2021) have it
RECENT = 0.1  # the weight of the latest batch in a running value


def add_scale(family: nn.Module, scale: float | str, others: str = "") -> None:
    """Give a family one ``log_scale`` for all elements: a parameter if it is learned, else a buffer.

    Raises:
        ValueError: If the scale is not positive.
    """
    start = START if scale == "learned" else math.nan if isinstance(scale, str) else float(scale)
    if not 0 < start < math.inf:
        raise ValueError(f"Expected {others}a positive scale, or 'learned'; got {scale}.")
    log_scale = torch.tensor(start).log()
    if scale == "learned":
        family.register_parameter("log_scale", nn.Parameter(log_scale))
    else:
        family.register_buffer("log_scale", log_scale)


def at_least(floor: float, value: Tensor) -> Tensor:
    r"""Clip from below, softly: :math:`f + \log(1 + e^{v - f})`, so that a gradient is left."""
    return floor + functional.softplus(value - floor)


def solve(increasing: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float) -> Tensor:
    """Return where an elementwise increasing function is ``target``, by bisection in float64."""
    goal = target.double()
    left, right = torch.full_like(goal, low), torch.full_like(goal, high)
    for _ in range(64):
        middle = (left + right) / 2
        below = increasing(middle) < goal
        left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    return ((left + right) / 2).to(target)


class PerPixel(nn.Module):
    """From means and log scales, both the network's, to Gaussians."""

    params = 2

    def forward(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return the Gaussians, of a scale of at least ``exp(LOWEST)``."""
        return dist.Normal(loc, at_least(LOWEST, log_scale).exp())


class Optimal(nn.Module):
    """From means to Gaussians of the scale that is best for the x they see, with the running value of its square."""

    params = 1
    mean_square: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_square", torch.tensor(START**2))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, loc: Tensor) -> TorchDistribution:
        """Return the Gaussians."""
        return Profiled(loc, self)

    @torch.no_grad()
    def see(self, mean_square: Tensor) -> None:
        """Move the running value, as batch normalisation does: tensor operations in place, which a graph has too."""
        weight = torch.where(self.seen > 0, RECENT, 1.0)
        self.mean_square.add_(weight * (mean_square - self.mean_square))
        self.seen.fill_(1.0)


class Profiled(TorchDistribution):
    """Gaussians of one scale: in training the best for the x it is asked for, else the running value.

    Arguments:
        loc: Means, of any shape.
        scale: Holds the running value, and says whether this is training.
        seen: What the mean square error is of, 1 or True there; all, if not given.
    """

    arg_constraints: dict = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Optimal, seen: Tensor | None = None) -> None:
        self.seen = seen
        self.running = dist.Normal(loc, scale.mean_square.sqrt())
        self.scale = scale
        super().__init__(loc.shape)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "Profiled":
        """Return it in a larger batch."""
        return Profiled(self.running.loc.expand(batch_shape), self.scale, self.seen)

    def mask(self, mask: Any) -> TorchDistribution:
        """Leave elements out, of the scale too."""
        seen = mask if isinstance(mask, Tensor) else None
        return dist.MaskedDistribution(Profiled(self.running.loc, self.scale, seen), mask)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with the running scale."""
        return self.running.rsample(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element; in training, take note of the mean square error."""
        if self._validate_args:
            self._validate_sample(value)
        if not (self.scale.training and torch.is_grad_enabled()):
            return self.running.log_prob(value)
        loc = self.running.loc
        square = (value - loc).detach().square()
        weight = torch.ones_like(square) if self.seen is None else self.seen.expand_as(square).to(square)
        mean_square = ((weight * square).sum() / weight.sum().clamp(min=1)).clamp(min=math.exp(2 * LOWEST))
        self.scale.see(mean_square)
        return dist.Normal(loc, mean_square.sqrt()).log_prob(value)

    @property
    def mean(self) -> Tensor:
        """The means."""
        return self.running.mean

    @property
    def variance(self) -> Tensor:
        """The running value."""
        return self.running.variance


WAYS = cast(dict[float | str, type[PerPixel] | type[Optimal]], {"per-pixel": PerPixel, "optimal": Optimal})
