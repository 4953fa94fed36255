r"""Transforms of normalising flows and a mixture distribution, with four differences from Pyro's classes.

The autoregressive transform inverts in any dtype, not only float32. The spline has no masked assignment, so a graph
can record a training step. A conditional transform broadcasts z over the batch of x. The mixture does not copy the
components for each datum.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.transforms import Transform
from torch import Tensor, nn
from torch.distributions import Independent, constraints
from torch.nn.functional import pad, softplus

from pyro_vae.operations import log_sum_exp

__all__ = ["Autoregressive", "Broadcast", "Cached", "Mixture", "SplineCoupling", "check", "gentle"]

LIMIT = 5.0  # the largest absolute log scale
LEAST = 1e-3  # the least width and height of a spline's bin, as a share, and the least slope between two bins


def check(latent: int, transform: str, known: Iterable[str], **numbers: int) -> None:
    """Refuse an unknown transform, a number below 1, and a latent space of one dimension."""
    if transform not in known:
        raise ValueError(f"Expected transform to be one of {', '.join(known)}; got {transform!r}.")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}.")
    if latent < 2:
        raise ValueError(f"Expected at least 2 latent dimensions for a flow; got {latent}. Use a Gaussian family.")


@torch.no_grad()
def gentle(net: Any) -> nn.Module:
    """Shrink the weights of a Pyro network's last layer, so the transform starts near the identity."""
    net.layers[-1].weight.mul_(0.01)
    net.layers[-1].bias.zero_()
    return net


class Cached(Transform):
    """A transform of vectors that caches the log determinant of its last call."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._log_det = torch.zeros(())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log absolute determinant of the Jacobian in nats, of the batch shape."""
        if x is not self._cached_x_y[0] or y is not self._cached_x_y[1]:
            self._call(x)
        return self._log_det


class Autoregressive(Cached):
    r"""An affine autoregressive transform: shifts and scales each dimension given all previous dimensions.

    .. math:: y_d = e^{s_d(x_{<d})} x_d + m_d(x_{<d}), \qquad \log |\det \partial y / \partial x| = \sum_d s_d

    The map from x to y takes one pass of the network; the inverse takes a pass for each dimension. ``net`` is a
    ``pyro.nn.AutoRegressiveNN`` with the identity as permutation. ``net`` maps x, ``(*, latent)``, to m and s of the
    same shape. A tanh bounds s to (-5, 5).

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
    """

    def __init__(self, net: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.net(x)
        log_scale = LIMIT * (log_scale / LIMIT).tanh()
        self._log_det = log_scale.sum(-1)
        return shift, log_scale

    def _call(self, x: Tensor) -> Tensor:
        shift, log_scale = self._parameters(x)
        return log_scale.exp() * x + shift

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # after pass d the first d dimensions are exact
            shift, log_scale = self._parameters(x)
            x = (y - shift) * (-log_scale).exp()
        return x


class SplineCoupling(Cached):
    r"""A spline coupling: transforms the second half of the dimensions by monotone splines given the first half.

    A spline is rational quadratic with ``bins`` bins on [-bound, bound], has a slope of 1 at both ends, and is the
    identity outside. ``net`` maps the first half, ``(*, latent // 2)``, to ``3 * bins - 1`` numbers for each dimension
    of the second half: widths and heights of bins, and slopes between bins. Zeros give the identity.

    References:
        Neural Spline Flows (Durkan et al., 2019).
    """

    def __init__(self, net: Callable[[Tensor], Tensor], bins: int = 8, bound: float = 5.0) -> None:
        super().__init__()
        self.net, self.bins, self.bound = net, bins, bound

    def _transform(self, a: Tensor, inverse: bool) -> Tensor:
        first, second = a.split([a.shape[-1] // 2, a.shape[-1] - a.shape[-1] // 2], -1)
        parameters = self.net(first).unflatten(-1, (second.shape[-1], 3 * self.bins - 1))
        inside = second.clamp(-self.bound, self.bound)
        value, log_slope = _spline(inside, _knots(parameters, self.bins, self.bound), inverse)
        self._log_det = log_slope.sum(-1)
        return torch.cat([first, value + (second - inside)], -1)

    def _call(self, x: Tensor) -> Tensor:
        return self._transform(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._transform(y, inverse=True)


def _knots(parameters: Tensor, bins: int, bound: float) -> Tensor:
    """Return x, y and the slope at the knots, stacked as ``(*, 3, bins + 1)``."""
    sizes, slopes = parameters.split([2 * bins, bins - 1], -1)
    shares = LEAST + (1 - LEAST * bins) * sizes.unflatten(-1, (2, bins)).softmax(-1)
    inner = 2 * bound * shares[..., :-1].cumsum(-1) - bound
    ends = pad(pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    rises = pad(LEAST + softplus(slopes + math.log(math.expm1(1 - LEAST))), (1, 1), value=1.0)
    return torch.cat([ends, rises.unsqueeze(-2)], -2)


def _spline(a: Tensor, knots: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return the spline at a, or its inverse, and the log slope of the spline there."""
    bin_of_a = (a.unsqueeze(-1) >= knots[..., int(inverse), 1:-1]).sum(-1)
    index = bin_of_a.unsqueeze(-1).unsqueeze(-1).expand(*knots.shape[:-1], 1)
    x0, y0, s0 = knots.gather(-1, index).squeeze(-1).unbind(-1)
    x1, y1, s1 = knots.gather(-1, index + 1).squeeze(-1).unbind(-1)
    dx, dy = x1 - x0, y1 - y0
    s = dy / dx
    bow = s0 + s1 - 2 * s
    if inverse:  # the root in [0, 1] of equation 26 of Durkan et al. (2019)
        r = a - y0
        b = dy * s0 - r * bow
        t = 2 * s * r / (b + (b.square() + 4 * s * r * (dy * (s - s0) + r * bow)).clamp(min=0).sqrt())
        value = x0 + t * dx
    else:
        t = (a - x0) / dx
        value = y0 + dy * (s * t.square() + s0 * t * (1 - t)) / (s + bow * t * (1 - t))
    rise = s1 * t.square() + 2 * s * t * (1 - t) + s0 * (1 - t).square()
    return value, 2 * s.log() + rise.log() - 2 * (s + bow * t * (1 - t)).log()


class Broadcast(Cached):
    """The identity, whose inverse expands z to the batch shape of x."""

    def __init__(self, batch_shape: torch.Size) -> None:
        super().__init__()
        self.batch_shape = batch_shape

    def _call(self, z: Tensor) -> Tensor:
        self._log_det = z.new_zeros(z.shape[:-1])
        return z

    def _inverse(self, z: Tensor) -> Tensor:
        return self._call(z.expand(torch.broadcast_shapes(z.shape[:-1], self.batch_shape) + z.shape[-1:]))


class Mixture(dist.MixtureSameFamily):
    r"""A mixture distribution like Pyro's ``MixtureSameFamily``, for hundreds of components over a latent space.

    .. math:: \log p(z) = \log \sum_k \pi_k \, p_k(z)

    All data of a plate share one copy of the components. For diagonal Gaussians the code expands the squares,

    .. math:: \sum_d \frac{(z_d - \mu_{kd})^2}{\sigma_{kd}^2} = z^2 \cdot \sigma_k^{-2}
        - 2 z \cdot \mu_k \sigma_k^{-2} + \mu_k^2 \cdot \sigma_k^{-2}

    and two matrix products give all K components. The products use float64, since the terms cancel.

    Example:
        >>> halves = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> Mixture(dist.Categorical(torch.ones(2)), halves).log_prob(torch.zeros(1))  # log N(1; 0, 1)
        tensor(-1.4189)
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of z in nats. For z of shape ``(*, latent)``, the result has shape ``(*)``."""
        if self._validate_args:
            self._validate_sample(z)
        components = self.component_distribution
        base = getattr(components, "base_dist", None)
        diagonal = isinstance(components, Independent) and isinstance(base, torch.distributions.Normal)
        log_p = _diagonal(base, z) if diagonal else components.log_prob(z.unsqueeze(-2))
        return log_sum_exp(log_p + self.mixture_distribution.logits.log_softmax(-1), -1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> TorchDistribution:
        """Return the mixture with another batch shape."""
        return ExpandedDistribution(self, batch_shape)


def _diagonal(normal: Any, z: Tensor) -> Tensor:
    """Return the log densities of K Gaussians of shape ``(K, latent)`` at z, of shape ``(*, K)``."""
    loc, scale, a = normal.loc.double(), normal.scale.double(), z.double()
    weight = scale**-2
    squares = a.square() @ weight.T - 2 * a @ (loc * weight).T + (loc.square() * weight).sum(-1)
    return (-0.5 * squares - (scale * math.sqrt(2 * math.pi)).log().sum(-1)).to(z.dtype)
