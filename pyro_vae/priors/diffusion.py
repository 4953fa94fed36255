r"""A diffusion prior p(z): an ordinary differential equation between data and noise, with an exact density."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.functional import linear, silu

from pyro_vae.flows import Cached
from pyro_vae.priors.vectors import StandardNormal

FREQUENCIES = 8  # of the features of the noise level
POWER = 1.5  # of the angles between steps
WIDTH = 64  # units of the network of the noise level


class Diffusion(nn.Module):
    r"""A diffusion prior: a standard normal, carried to p(z) by a learned velocity.

    .. math:: z_\phi = \cos(\phi) \, z + \sin(\phi) \, \epsilon, \qquad \frac{dz_\phi}{d\phi} = v(z_\phi, \phi)

    The velocity is a network of two hidden layers. The equation runs from z at ``least_noise`` :math:`= \sin \phi_0` to
    noise at :math:`\phi = \pi / 2`. The density is exact up to the error of the solver, as every density of a flow:

    .. math:: \log p(z) = \log \mathcal{N}(z_{\pi/2}; 0, I) + \int_{\phi_0}^{\pi/2} \mathrm{tr} \,
        \frac{\partial v}{\partial z} \, d\phi

    The trace has a closed form for this network. The solver is Runge-Kutta of order 4 with ``steps`` steps: a density
    or a sample takes ``4 * steps`` calls of the network. An untrained prior is the standard normal.

    :func:`pyro_vae.fit_prior` trains the velocity without the solver, by a bound on :math:`-\log p(z)`
    (:meth:`DiffusionDistribution.bound`); ``fit`` runs the solver at each step. Evaluate with few draws, as
    ``pyro-vae evaluate RUN --num_particles 100 --chosen 0``.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), for the equation
        of a diffusion's probability flow.
        Flow Matching for Generative Modeling (Lipman et al., 2023).
        Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022), for the velocity.

    Raises:
        ValueError: If ``hidden`` is not two positive numbers, ``steps`` is below 1, or ``least_noise`` is not between 0
            and 1.

    Example:
        >>> Diffusion(20)().event_shape
        torch.Size([20])
    """

    def __init__(
        self, latent: int, hidden: Sequence[int] = (128, 128), steps: int = 16, least_noise: float = 0.01
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1 or steps < 1:
            raise ValueError(
                f"Expected hidden of two layers with units, and steps of at least 1; got {[*hidden]} and {steps}."
            )
        if not 0 < least_noise < 1:
            raise ValueError(f"Expected least_noise between 0 and 1; got {least_noise}.")
        self.noise = StandardNormal(latent)
        self.velocity = Velocity(latent, hidden[0], hidden[1], least_noise)
        self.steps = steps

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(latent,)``."""
        return DiffusionDistribution(self.noise(), [ProbabilityFlow(self.velocity, self.steps)])


class DiffusionDistribution(dist.TransformedDistribution):
    """The distribution of a :class:`Diffusion` prior: noise under a :class:`ProbabilityFlow`."""

    def bound(self, z: Tensor, q: Distribution | None = None) -> Tensor:
        r"""Return an unbiased estimate of a bound on :math:`-\log p(z)`, in nats, of the batch shape.

        .. math:: \frac{D}{2} \log(2 \pi e \tan^2 \phi_0) + \log \frac{1}{\sin \phi_0} \,
            \mathbb{E}_{\phi, \epsilon} \| u - v(z_\phi, \phi) \|^2, \qquad
            u = \cos(\phi) \, \epsilon - \sin(\phi) \, z = \frac{\cos(\phi) \, z_\phi - z}{\sin \phi}

        :math:`\log \sin \phi` is uniform from :math:`\log \sin \phi_0` to 0, and spread evenly over a batch. With this
        density of :math:`\phi` the squared error is the variational bound of a diffusion with an infinite number of
        steps. The bound is for the stochastic process with this velocity. Its density and the density of
        :meth:`log_prob` are equal for the best velocity. One call of the network takes the place of the solver.

        ``q`` is the distribution of the elements of z. If ``q`` is a Normal, the mean and the variance of u given
        :math:`z_\phi` replace u: the mean over z is the same, with far less noise at low levels of the diffusion.

        References:
            Variational Diffusion Models (Kingma, Salimans, Poole and Ho, 2021).
        """
        velocity = self.transforms[0].velocity
        size, start, rows = z.shape[-1], velocity.log_start, z.shape[:-1].numel()
        level = (torch.arange(rows, dtype=z.dtype, device=z.device) / rows + torch.rand(1, device=z.device)) % 1
        sine = (start * level).exp().reshape(*z.shape[:-1], 1)
        cosine = (1 - sine.square()).clamp(min=0).sqrt()
        noisy, mean, variance = cosine * z + sine * torch.randn_like(z), z, torch.zeros_like(z)
        if isinstance(q, Normal):
            share = q.variance / (cosine.square() * q.variance + sine.square())
            mean, variance = q.mean + share * cosine * (noisy - cosine * q.mean), share
        error = (cosine * noisy - mean) / sine - velocity(noisy, sine)
        tangent = math.exp(start) / math.sqrt(1 - math.exp(2 * start))
        squares = (error.square() + variance).sum(-1)
        return size / 2 * math.log(2 * math.pi * math.e * tangent**2) - start * squares


class Velocity(nn.Module):
    r"""The velocity v(z, phi) of a diffusion: two hidden layers that depend on the noise level.

    .. math:: h_1 = s(\gamma_1 \odot W_1 z + \beta_1), \quad h_2 = s(\gamma_2 \odot W_2 h_1 + \beta_2), \quad
        v = W_3 h_2 + c \odot z

    s is the SiLU; :math:`\gamma, \beta` and c are functions of the noise level. :math:`W_3` and c start at zero.
    """

    def __init__(self, latent: int, first: int, second: int, least_noise: float) -> None:
        super().__init__()
        self.log_start = math.log(least_noise)
        self.sizes = [first, first, second, second, latent]
        self.inward, self.inner = nn.Linear(latent, first, bias=False), nn.Linear(first, second, bias=False)
        self.outward = nn.Linear(second, latent, bias=False)
        of_noise = nn.Linear(WIDTH, sum(self.sizes))
        self.noise_level = nn.Sequential(nn.Linear(2 * FREQUENCIES + 3, WIDTH), nn.SiLU(), of_noise)
        self.frequencies = nn.Buffer(math.pi * torch.arange(1, FREQUENCIES + 1), persistent=False)
        with torch.no_grad():
            self.outward.weight.zero_()
            of_noise.weight.mul_(0.1)
            of_noise.weight[-latent:].zero_()
            of_noise.bias.zero_()
            of_noise.bias[:first] = of_noise.bias[2 * first : 2 * first + second] = 1.0

    def forward(self, z: Tensor, sine: Tensor) -> Tensor:
        """Return v, ``(*, latent)``, at z, ``(*, latent)``, and the sine of phi, ``(*, 1)``."""
        scale_1, shift_1, scale_2, shift_2, direct = self._at(sine)
        h = silu(scale_1 * self.inward(z) + shift_1)
        return self.outward(silu(scale_2 * self.inner(h) + shift_2)) + direct * z

    def with_trace(self, z: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return v and the trace of its Jacobian, ``(*,)``, at one noise level: ``sine`` has shape ``(1,)``.

        .. math:: \mathrm{tr} \, \frac{\partial v}{\partial z} = \sum_{ij} s'_{2i} \gamma_{2i} \, W_{2,ij} \, s'_{1j}
            \gamma_{1j} \, (W_1 W_3)_{ji} + \sum_d c_d
        """
        scale_1, shift_1, scale_2, shift_2, direct = self._at(sine)
        w_1, w_2, w_3 = (
            scale_1.unsqueeze(-1) * self.inward.weight,
            scale_2.unsqueeze(-1) * self.inner.weight,
            self.outward.weight,
        )
        first, slope_1 = _silu(linear(z, w_1, shift_1))
        second, slope_2 = _silu(linear(first, w_2, shift_2))
        trace = (linear(slope_1, w_2 * (w_1 @ w_3).T) * slope_2).sum(-1)
        return torch.addcmul(linear(second, w_3), direct, z), trace + direct.sum()

    def _at(self, sine: Tensor) -> tuple[Tensor, ...]:
        """Return scales and shifts of the layers, and the factor of z, at noise levels ``(*, 1)``."""
        level = sine.log() / self.log_start
        angles = level * self.frequencies
        cosine = (1 - sine.square()).clamp(min=0).sqrt()
        return self.noise_level(torch.cat([level, sine, cosine, angles.cos(), angles.sin()], -1)).split(self.sizes, -1)


class ProbabilityFlow(Cached):
    """The transform from noise to z: the solution of a diffusion's ordinary differential equation."""

    def __init__(self, velocity: Velocity, steps: int) -> None:
        super().__init__()
        self.velocity, self.steps = velocity, steps

    def _angles(self) -> list[float]:
        """Return the angles between steps, which are closer where there is less noise."""
        start = math.asin(math.exp(self.velocity.log_start))
        return [start + (math.pi / 2 - start) * (i / self.steps) ** POWER for i in range(self.steps + 1)]

    def _solve(self, z: Tensor, angles: Sequence[float]) -> Tensor:
        volume = z.new_zeros(z.shape[:-1])

        def slope(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
            return self.velocity.with_trace(z, z.new_full((1,), math.sin(angle)))

        for before, after in pairwise(angles):
            step, middle = after - before, (before + after) / 2
            v1, t1 = slope(z, before)
            v2, t2 = slope(z + step / 2 * v1, middle)
            v3, t3 = slope(z + step / 2 * v2, middle)
            v4, t4 = slope(z + step * v3, after)
            z = z + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            volume = volume + step / 6 * (t1 + 2 * t2 + 2 * t3 + t4)
        self._log_det = volume
        return z

    def _call(self, x: Tensor) -> Tensor:
        return self._solve(x, self._angles()[::-1])

    def _inverse(self, y: Tensor) -> Tensor:
        x = self._solve(y, self._angles())
        self._log_det = -self._log_det
        return x


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the SiLU and its derivative."""
    sigmoid = a.sigmoid()
    value = a * sigmoid
    return value, torch.addcmul(sigmoid, value, 1 - sigmoid)
