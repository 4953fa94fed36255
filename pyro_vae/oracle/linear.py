"""The linear-Gaussian VAE, or probabilistic PCA, with exact answers."""

import math
from typing import Literal, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal, kl_divergence

from pyro_vae.conditional import Conditional, Family
from pyro_vae.guides import DiagonalNormal, FullNormal
from pyro_vae.oracle.base import independent, register
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import VAE


class LinearGaussian(nn.Module):
    r"""The linear-Gaussian latent variable model; the evidence, posterior and ELBO have closed forms.

    .. math:: z \sim \mathcal{N}(0, I_k), \qquad x \mid z \sim \mathcal{N}(W z + b, s^2 I_d)

    With :math:`M = W^\top W + s^2 I` the posterior is :math:`\mathcal{N}(M^{-1} W^\top (x - b), s^2 M^{-1})`, and
    x is Gaussian with mean b and covariance :math:`C = W W^\top + s^2 I`. W is ``weight``, of shape ``(d, k)``, b is
    ``bias``, of shape ``(d,)``, and s is ``scale``. Training changes each ``nn.Parameter``.

    References:
        Probabilistic Principal Component Analysis (Tipping and Bishop, 1999).
        Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019).

    Example:
        >>> from pyro_vae.objectives import IWAE
        >>> model = LinearGaussian(torch.randn(5, 2), torch.zeros(5), scale=0.5)
        >>> x = torch.randn(3, 5)
        >>> vae = model.vae()
        >>> bound = -IWAE(num_particles=7).loss(vae.model, vae.guide, x)
        >>> abs(bound - model.log_evidence(x).sum().item()) < 1e-3
        True
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__()
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"Expected weight (d, k) and bias (d,); got {tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        self.scale = register(self, scale, weight=weight, bias=bias)

    def forward(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z), for z of shape ``(*, k)``."""
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent: int) -> Self:
        r"""Return the maximum likelihood model of x, of shape ``(N, d)``.

        The sample covariance has eigenvalues :math:`\lambda_1 \ge \dots` and eigenvectors U. Then b is the mean of x,
        :math:`s^2` is the mean of :math:`\lambda_j` for j > k, and :math:`W = U_k (\Lambda_k - s^2 I)^{1/2}`. The
        columns of W are orthogonal, so that the best diagonal guide is exact.
        """
        if not 1 <= latent < x.shape[1]:
            raise ValueError(
                f"Expected latent from 1 to {x.shape[1] - 1}, fewer than the dimensions of x; got latent = {latent}."
            )
        values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
        noise = values[:-latent].mean()
        weight = vectors[:, -latent:] * (values[-latent:] - noise).clamp(min=0).sqrt()
        return cls(weight.flip(1), x.mean(0), noise.sqrt().item())

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, of shape ``(B,)``, for x of shape ``(B, d)``."""
        noise = torch.full_like(self.bias, self.scale**2)
        return dist.LowRankMultivariateNormal(self.bias, self.weight, noise).log_prob(x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return p(z | x), with batch shape ``(B,)`` and event shape ``(k,)``."""
        gain, precision = self._posterior()
        return dist.MultivariateNormal((x - self.bias) @ gain.T, precision_matrix=precision)

    def mean_field(self, x: Tensor) -> TorchDistribution:
        r"""Return the best diagonal guide: the posterior's mean, and variances :math:`s^2 / M_{ii}`."""
        gain, precision = self._posterior()
        return independent((x - self.bias) @ gain.T, precision)

    def elbo(self, x: Tensor, guide: Literal["exact", "mean-field"] | Distribution = "mean-field") -> Tensor:
        r"""Return the exact ELBO of a guide, of shape ``(B,)``, in nats, at x of shape ``(B, d)``.

        .. math:: -\frac{d}{2} \log 2 \pi s^2 - \frac{\mathrm{tr}(W \Sigma W^\top) + \|W m + b - x\|^2}{2 s^2}
            - \mathrm{KL}(\mathcal{N}(m, \Sigma) \,\|\, \mathcal{N}(0, I))

        The ELBO of the exact guide is log p(x). The ELBO of the best diagonal guide is smaller by
        :math:`\frac{1}{2} [\sum_i \log M_{ii} - \log |M|]` for every x. ``guide`` may also be a Gaussian q(z | x) with
        batch shape ``(B,)`` and event shape ``(k,)``.
        """
        if guide == "exact":
            return self.log_evidence(x)
        q = self.mean_field(x) if guide == "mean-field" else guide
        if not isinstance(q, Distribution):
            raise ValueError(f"Expected guide to be exact, mean-field or a Gaussian; got {guide!r}.")
        covariance = getattr(q, "covariance_matrix", None)
        covariance = q.variance.diag_embed() if covariance is None else covariance
        d, k = self.weight.shape
        spread = torch.einsum("di,...ij,dj->...", self.weight, covariance, self.weight)
        error = (q.mean @ self.weight.T + self.bias - x).square().sum(-1)
        kl = kl_divergence(
            MultivariateNormal(q.mean, covariance), MultivariateNormal(torch.zeros(k).to(x), torch.eye(k).to(x))
        )
        return -0.5 * d * math.log(2 * math.pi * self.scale**2) - (spread + error) / (2 * self.scale**2) - kl

    def vae(self, guide: Literal["exact", "mean-field"] = "exact") -> VAE:
        """Return the model as a VAE, with the exact posterior or the best diagonal guide as its encoder.

        The encoder and the decoder have separate trainable parameters. The decoder is a :class:`LinearGaussian`:
        ``vae.decoder.log_evidence(x)`` is exact after training too.
        """
        if guide not in ("exact", "mean-field"):
            raise ValueError(f"Expected guide to be exact or mean-field; got {guide!r}.")
        gain, precision = self._posterior()
        prior = StandardNormal(self.weight.shape[1]).to(self.weight)
        weight = self.weight.clone(memory_format=torch.contiguous_format)
        decoder = LinearGaussian(nn.Parameter(weight), nn.Parameter(self.bias.clone()), self.scale)
        family: Family
        if guide == "mean-field":
            family, rest = DiagonalNormal(len(gain)), -0.5 * precision.diagonal().log().unsqueeze(0)
        else:
            family, rest = FullNormal(len(gain)), torch.linalg.cholesky(precision.inverse())
            rest = rest + (rest.diagonal().log() - rest.diagonal()).diag()
        return VAE(prior, decoder, Conditional(_Affine(gain, -gain @ self.bias, rest), family, fill=self.bias.clone()))

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """Return M^-1 W^T, of shape (k, d), and the posterior's precision M / s^2."""
        precision = self.weight.T @ self.weight / self.scale**2 + torch.eye(self.weight.shape[1]).to(self.weight)
        return torch.linalg.solve(precision, self.weight.T / self.scale**2), precision


class _Affine(nn.Module):
    """A map from x to the parameters of a Gaussian: a mean that is affine in x, and constants ``rest``."""

    def __init__(self, weight: Tensor, bias: Tensor, rest: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.rest = (
            nn.Parameter(value.clone(memory_format=torch.contiguous_format)) for value in (weight, bias, rest)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = (x @ self.weight.T + self.bias).unsqueeze(-2)
        return torch.cat([mean, self.rest.expand(*mean.shape[:-2], -1, -1)], dim=-2)
