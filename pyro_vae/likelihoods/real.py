"""Likelihoods of real x: densities around a location, with a fixed, learned or profiled scale."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae.conditional import Family
from pyro_vae.likelihoods.counts import Checked, remainder

Scale = float | Literal["learned"]
GaussianScale = float | Literal["learned", "per-pixel", "optimal"]
START = 0.1  # the initial scale for x in [0, 1]
LOWEST = -6.0  # the smallest log scale, as in Rybkin et al. (2021)
RECENT = 0.1  # the weight of the latest batch in a running value


class Located(Family):
    """A family with the mean as first parameter. All elements share one scale, or the network gives each scale.

    An untrained scale starts at the scale of the data around the mean, and at least at START.
    """

    params = 1

    @abstractmethod
    def spread(self, off: Tensor) -> Tensor:
        """Return the maximum likelihood scale of ``off``, x minus the mean of x, over dimension 0 without NaN."""

    def start_scale(self, off: Tensor, bias: Tensor | None) -> None:
        """Set an untrained scale to the scale of the data around the mean."""
        learned = getattr(self, "log_scale", None)
        scale = self.spread(off.flatten() if self.params == 1 else off).nan_to_num(START).clamp(min=START)
        if isinstance(learned, nn.Parameter) and math.isclose(learned.item(), math.log(START), rel_tol=1e-6):
            learned.fill_(scale.log().item())
        elif bias is not None and self.params == 2:
            bias[1] = scale.log()

    def add_scale(self, scale: float | str, names: str = "") -> None:
        """Add ``log_scale``, as a parameter if the scale is ``learned``, else as a buffer; refuse a scale <= 0."""
        start = START if scale == "learned" else math.nan if isinstance(scale, str) else float(scale)
        if not 0 < start < math.inf:
            raise ValueError(f"Expected {names}a positive scale, or 'learned'; got {scale}.")
        log_scale = torch.tensor(start).log()
        self.log_scale = nn.Parameter(log_scale) if scale == "learned" else nn.Buffer(log_scale)

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the mean unchanged."""
        return mean


class Gaussian(Located):
    r"""Independent Gaussians: squared error as a density of real x.

    .. math:: \log p(x \mid z) = -\sum_i \Big[\frac{(x_i - \mu_i(z))^2}{2 \sigma^2} + \tfrac12 \log 2 \pi \sigma^2\Big]

    Compare log p only with log densities of the same data. Unless the scale is fixed, log p grows without bound where
    pixels are constant.

    With ``optimal``, training uses the best :math:`\sigma` for each minibatch. ``history["train"]`` is then a profile
    likelihood, and may lie below the negative ELBO. In ``vae.eval()``, and without gradients, :math:`\sigma^2` is a
    running mean.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021).

    Arguments:
        scale: The standard deviation in the units of x; or ``learned``: all elements share one scale, which starts at
            the data's scale, or at 0.1 for x in [0, 1]; ``per-pixel``: the network also gives
            :math:`\log \sigma_i(z)`, clipped softly at -6; ``optimal``: :math:`\sigma^2` is the mean of
            :math:`(x - \mu)^2` over elements, batch and particles.

    Raises:
        ValueError: If the scale is not positive, or the name of the scale is unknown.

    Example:
        >>> Gaussian((64,), scale=0.5)(torch.zeros(32, 1, 64)).log_prob(torch.zeros(64))[0].item() / 64  # -log(s √2π)
        -0.2257...
    """

    def __init__(self, event: int | Sequence[int], scale: GaussianScale = "learned") -> None:
        super().__init__(event)
        self.params = 2 if scale == "per-pixel" else self.params
        self.way = Optimal() if scale == "optimal" else None
        if scale not in ("per-pixel", "optimal"):
            self.add_scale(scale, "'per-pixel', 'optimal', ")

    def distribution(self, loc: Tensor, *log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian around ``loc``, of shape ``(*, *event)``."""
        if self.way is not None:
            return Profiled(loc, self.way)
        return dist.Normal(loc, (at_least(LOWEST, *log_scale) if log_scale else self.log_scale).exp())

    def spread(self, off: Tensor) -> Tensor:
        """Return the root mean square error."""
        return off.square().nanmean(0).sqrt()


class Laplace(Located):
    r"""Independent Laplace distributions: absolute error as a density of real x.

    .. math:: \log p(x \mid z) = -\sum_i \Big[\frac{|x_i - \mu_i(z)|}{b} + \log 2 b\Big]

    References:
        Théorie analytique des probabilités (Laplace, 1812).

    Arguments:
        scale: b, the mean absolute error, in the units of x; or ``learned``, as in :class:`Gaussian`.

    Raises:
        ValueError: If the scale is not positive.

    Example:
        >>> Laplace((64,), scale=0.5)(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # -1/b - log 2b
        -2.0...
    """

    def __init__(self, event: int | Sequence[int], scale: Scale = "learned") -> None:
        super().__init__(event)
        self.add_scale(scale)

    def distribution(self, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Laplace distribution around ``loc``, of shape ``(*, *event)``."""
        return dist.Laplace(loc, self.log_scale.exp())

    def spread(self, off: Tensor) -> Tensor:
        """Return the mean absolute error."""
        return off.abs().nanmean(0)


class StudentT(Located):
    r"""Independent Student's t distributions: a density of real x with heavy tails, robust to outliers.

    .. math:: \log p(x \mid z) = \sum_i \Big[\log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\nu \pi}}
        - \log s - \frac{\nu + 1}{2} \log\Big(1 + \frac{(x_i - \mu_i(z))^2}{\nu s^2}\Big)\Big]

    References:
        Robust Statistical Modeling Using the t Distribution (Lange, Little and Taylor, 1989).

    Arguments:
        df: :math:`\nu`, the degrees of freedom. The smaller :math:`\nu`, the heavier the tails.
        scale: s, in the units of x; or ``learned``, as in :class:`Gaussian`. For :math:`\nu > 2`, the standard
            deviation is :math:`s \sqrt{\nu / (\nu - 2)}`.

    Raises:
        ValueError: If the scale is not positive, or ``df`` is at most 1 (the mean does not exist).

    Example:
        >>> StudentT((64,), scale=1.0)(torch.zeros(32, 1, 64)).log_prob(torch.zeros(64))[0].item() / 64
        -0.9686...
    """

    def __init__(self, event: int | Sequence[int], df: float = 5.0, scale: Scale = "learned") -> None:
        super().__init__(event)
        if not 1 < df < float("inf"):
            raise ValueError(f"Expected df above 1, so that there is a mean; got {df}. Use Gaussian for infinity.")
        self.df = df
        self.add_scale(scale)

    def distribution(self, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return Student's t around ``loc``, of shape ``(*, *event)``."""
        return StableStudentT(self.df, loc, self.log_scale.exp())

    def spread(self, off: Tensor) -> Tensor:
        """Return s by expectation-maximisation; an outlier gets little weight."""
        square = off.square()
        variance = square.nanmean(0)
        for _ in range(50):
            variance = ((self.df + 1) * square / (self.df + square / variance)).nanmean(0)
        return variance.sqrt()


class StableStudentT(Checked, dist.StudentT):
    """Student's t distribution, accurate in float32 for any degrees of freedom."""

    def _log_p(self, value: Tensor) -> Tensor:
        half, y = self.df / 2, (value - self.loc) / self.scale
        ratio = half * (1 / self.df).log1p() - 1 / 2 + remainder(half + 0.5) - remainder(half)
        return ratio - math.log(2 * math.pi) / 2 - self.scale.log() - (half + 0.5) * (y**2 / self.df).log1p()


class Optimal(nn.Module):
    """A running mean of the squared error. Outside training, the scale is the root of the running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean_square = nn.Buffer(torch.tensor(START**2))
        self.seen = nn.Buffer(torch.tensor(0.0))

    @torch.no_grad()
    def update(self, mean_square: Tensor) -> None:
        """Update the running mean in place, as batch normalisation does."""
        weight = torch.where(self.seen > 0, RECENT, 1.0)
        self.mean_square.add_(weight * (mean_square - self.mean_square))
        self.seen.fill_(1.0)


class Profiled(dist.Normal):
    """Gaussians with the running scale; in training, with the best scale for the ``observed`` elements of x."""

    def __init__(self, loc: Tensor, running: Optimal, observed: Tensor | None = None) -> None:
        self.running, self.observed = running, observed
        super().__init__(loc, running.mean_square.sqrt())

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "Profiled":
        """Return the distribution with a larger batch shape."""
        return Profiled(self.loc.expand(batch_shape), self.running, self.observed)

    def mask(self, mask: Any) -> TorchDistribution:
        """Return the distribution without the masked elements in the density and in the scale."""
        observed = mask if isinstance(mask, Tensor) else None
        return dist.MaskedDistribution(Profiled(self.loc, self.running, observed), mask)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element; in training, update the running scale."""
        if self._validate_args:
            self._validate_sample(value)
        if not (self.running.training and torch.is_grad_enabled()):
            return super().log_prob(value)
        square = (value - self.loc).detach().square()
        weight = torch.ones_like(square) if self.observed is None else self.observed.expand_as(square).to(square)
        mean_square = ((weight * square).sum() / weight.sum().clamp(min=1)).clamp(min=math.exp(2 * LOWEST))
        self.running.update(mean_square)
        return dist.Normal(self.loc, mean_square.sqrt()).log_prob(value)


def at_least(floor: float, value: Tensor) -> Tensor:
    r"""Return v, a value clipped softly at a floor f, with a gradient everywhere: :math:`f + \log(1 + e^{v - f})`."""
    return floor + functional.softplus(value - floor)


def solve(increasing: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float) -> Tensor:
    """Return the argument at which an increasing elementwise function is ``target``, by bisection in float64."""
    goal = target.double()
    left, right = torch.full_like(goal, low), torch.full_like(goal, high)
    for _ in range(64):
        middle = (left + right) / 2
        below = increasing(middle) < goal
        left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    return ((left + right) / 2).to(target)
