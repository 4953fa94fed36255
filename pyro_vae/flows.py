r"""Invertible transforms for flows, where Pyro's do not do.

Pyro's autoregressive transform is inverted in float32 alone; its splines write to elements of their choice, which no
graph can be recorded of; and its conditional transforms ask for a z of each x, where other laws broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions.transforms import Transform
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import pad, softplus

__all__ = ["Autoregressive", "Broadcast", "SplineCoupling", "check", "gentle"]

LIMIT = 5.0  # of the logarithm of a scale
LEAST = 1e-3  # share of a bin of a spline, and slope between two


def check(latent: int, transform: str, known: Iterable[str], **numbers: int) -> None:
    """Check what a flow is made of.

    Raises:
        ValueError: If the transform is unknown, a number is below 1, or there is one dimension alone.
    """
    if transform not in known:
        raise ValueError(f"Expected transform to be {', '.join(known)}; got {transform!r}.")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}.")
    if latent < 2:
        raise ValueError(f"Expected at least 2 latent dimensions for a flow; got {latent}. Use a Gaussian.")


@torch.no_grad()
def gentle(net: Any) -> nn.Module:
    """Make the last layer of a network of Pyro's small, so that training starts where its transform does little."""
    net.layers[-1].weight.mul_(0.01)
    net.layers[-1].bias.zero_()
    return net


class Autoregressive(Transform):
    r"""Shifts and scales each dimension, given those before it.

    .. math:: y_d = e^{s_d(x_{<d})} x_d + m_d(x_{<d}), \qquad \log |\det \partial y / \partial x| = \sum_d s_d

    One pass from x to y; from y to x a pass for each dimension.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).

    Arguments:
        net: From x, ``(*, latent)``, to m and s, each the same shape, each element of what is before it: one of
            ``pyro.nn.AutoRegressiveNN``, its permutation the identity. The scale s is kept within [-5, 5].

    Example:
        >>> transform = Autoregressive(lambda x: (x.cumsum(-1) - x, 0 * x))
        >>> transform(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 3., 6.])
        >>> transform.inv(torch.tensor([1.0, 3.0, 6.0]))
        tensor([1., 2., 3.])
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: Callable[[Tensor], Any]) -> None:
        super().__init__(cache_size=1)
        self.net = net
        self._log_det = torch.zeros(())

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
        for _ in range(y.shape[-1]):  # after pass d the first d dimensions are right
            shift, log_scale = self._parameters(x)
            x = (y - shift) * (-log_scale).exp()
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return it in nats, of the batch shape."""
        if x is not self._cached_x_y[0] or y is not self._cached_x_y[1]:
            self._parameters(x)
        return self._log_det


class SplineCoupling(Transform):
    r"""Bends the second half of the dimensions by monotone splines, given the first half.

    Each is a rational quadratic spline on [-bound, bound], with a slope of 1 at both ends, and the identity outside.

    References:
        Neural Spline Flows (Durkan et al., 2019).

    Arguments:
        net: From the first half, ``(*, latent // 2)``, to ``3 * bins - 1`` numbers for each of the others: widths and
            heights of the bins, and slopes between them. Zeros give the identity.
        bins: Number of bins of a spline.
        bound: Where the identity begins.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: Callable[[Tensor], Tensor], bins: int = 8, bound: float = 5.0) -> None:
        super().__init__(cache_size=1)
        self.net, self.bins, self.bound = net, bins, bound
        self._log_det = torch.zeros(())

    def _bend(self, a: Tensor, inverse: bool) -> Tensor:
        kept, rest = a.split([a.shape[-1] // 2, a.shape[-1] - a.shape[-1] // 2], -1)
        numbers = self.net(kept).unflatten(-1, (rest.shape[-1], 3 * self.bins - 1))
        inside = rest.clamp(-self.bound, self.bound)
        bent, slope = _spline(inside, _knots(numbers, self.bins, self.bound), inverse)
        self._log_det = slope.sum(-1)
        return torch.cat([kept, bent + (rest - inside)], -1)

    def _call(self, x: Tensor) -> Tensor:
        return self._bend(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._bend(y, inverse=True)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return it in nats, of the batch shape."""
        if x is not self._cached_x_y[0] or y is not self._cached_x_y[1]:
            self._bend(x, inverse=False)
        return self._log_det


def _knots(numbers: Tensor, bins: int, bound: float) -> Tensor:
    """Return where the bins meet: x, y and the slope there, stacked as ``(*, 3, bins + 1)``."""
    sizes, slopes = numbers.split([2 * bins, bins - 1], -1)
    shares = LEAST + (1 - LEAST * bins) * sizes.unflatten(-1, (2, bins)).softmax(-1)
    inner = 2 * bound * shares[..., :-1].cumsum(-1) - bound
    ends = pad(pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    rises = pad(LEAST + softplus(slopes + math.log(math.expm1(1 - LEAST))), (1, 1), value=1.0)
    return torch.cat([ends, rises.unsqueeze(-2)], -2)


def _spline(a: Tensor, knots: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return the spline at a, or its inverse, and the logarithm of the spline's slope there."""
    bin_of_a = (a.unsqueeze(-1) >= knots[..., int(inverse), 1:-1]).sum(-1)
    index = bin_of_a.unsqueeze(-1).unsqueeze(-1).expand(*knots.shape[:-1], 1)
    x0, y0, s0 = knots.gather(-1, index).squeeze(-1).unbind(-1)
    x1, y1, s1 = knots.gather(-1, index + 1).squeeze(-1).unbind(-1)
    dx, dy = x1 - x0, y1 - y0
    s = dy / dx
    bow = s0 + s1 - 2 * s
    if inverse:  # the root in [0, 1] of equation 26 there
        r = a - y0
        b = dy * s0 - r * bow
        t = 2 * s * r / (b + (b.square() + 4 * s * r * (dy * (s - s0) + r * bow)).clamp(min=0).sqrt())
        found = x0 + t * dx
    else:
        t = (a - x0) / dx
        found = y0 + dy * (s * t.square() + s0 * t * (1 - t)) / (s + bow * t * (1 - t))
    rise = s1 * t.square() + 2 * s * t * (1 - t) + s0 * (1 - t).square()
    return found, 2 * s.log() + rise.log() - 2 * (s + bow * t * (1 - t)).log()


class Broadcast(Transform):
    """The identity, which gives a z without the batch of x that batch on its way back to the noise.

    Arguments:
        batch_shape: Of x.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, batch_shape: torch.Size) -> None:
        super().__init__(cache_size=1)
        self.batch_shape = batch_shape

    def _call(self, z: Tensor) -> Tensor:
        return z

    def _inverse(self, z: Tensor) -> Tensor:
        return z.expand(torch.broadcast_shapes(z.shape[:-1], self.batch_shape) + z.shape[-1:])

    def log_abs_det_jacobian(self, z: Tensor, _: Tensor) -> Tensor:
        """Return zero, of the batch shape."""
        return z.new_zeros(z.shape[:-1])
