r"""Models with exact answers, to test guides and estimators against.

The linear-Gaussian VAE is probabilistic PCA: all of its quantities are known in closed form.
"""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.priors import StandardNormal
from pyro_vae.vae import VAE

__all__ = ["LinearGaussian"]


class LinearGaussian(nn.Module):
    r"""The linear-Gaussian latent variable model.

    .. math:: z \sim \mathcal{N}(0, I_k), \qquad x \mid z \sim \mathcal{N}(W z + b, s^2 I_d)

    With :math:`M = W^\top W + s^2 I` the posterior is :math:`\mathcal{N}(M^{-1} W^\top (x - b), s^2 M^{-1})`, and
    x is Gaussian with mean b and covariance :math:`C = W W^\top + s^2 I`.

    References:
        Probabilistic Principal Component Analysis (Tipping and Bishop, 1999).

        Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019).

    Arguments:
        weight: W, of shape ``(d, k)``.
        bias: b, of shape ``(d,)``.
        scale: s, the standard deviation of x given z.

    Raises:
        ValueError: If the shapes do not fit, or the scale is not positive.

    Example:
        >>> model = LinearGaussian(torch.randn(5, 2), torch.zeros(5), scale=0.5)
        >>> x = torch.randn(3, 5)
        >>> torch.allclose(model.elbo(x, guide="exact"), model.log_evidence(x), atol=1e-4)
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
        if not scale > 0:
            raise ValueError(f"Expected a positive scale; got {scale}.")
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.scale = float(scale)

    def forward(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z), for z of shape ``(*, k)``."""
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, of shape ``(B,)``, for x of shape ``(B, d)``."""
        noise = torch.full_like(self.bias, self.scale**2)
        return dist.LowRankMultivariateNormal(self.bias, self.weight, noise).log_prob(x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return p(z | x), with batch shape ``(B,)`` and event shape ``(k,)``."""
        loc, precision = self._posterior(x)
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def mean_field(self, x: Tensor) -> TorchDistribution:
        r"""Return the best diagonal guide: the posterior's mean, variances :math:`s^2 / M_{ii}`."""
        loc, precision = self._posterior(x)
        return dist.Normal(loc, precision.diagonal().rsqrt()).to_event(1)

    def elbo(self, x: Tensor, guide: Literal["exact", "mean-field"] = "mean-field") -> Tensor:
        r"""Return the ELBO of a guide in nats, of shape ``(B,)``.

        The exact guide's is log p(x). The best diagonal one's is less by
        :math:`\frac{1}{2} [\sum_i \log M_{ii} - \log |M|]` (in units of :math:`s^2`), for every x.
        """
        if guide == "exact":
            return self.log_evidence(x)
        precision = self._posterior(x)[1]
        return self.log_evidence(x) - 0.5 * (precision.diagonal().log().sum() - precision.logdet())

    def vae(self, guide: Literal["exact", "mean-field"] = "exact") -> VAE:
        """Return the model as a VAE, with the exact posterior or the best diagonal guide as its encoder.

        Raises:
            ValueError: If the guide is neither.
        """
        if guide not in ("exact", "mean-field"):
            raise ValueError(f"Expected guide to be exact or mean-field; got {guide!r}.")
        prior = StandardNormal(self.weight.shape[1]).to(self.weight)
        return VAE(prior, decoder=self, encoder=_Guide(self, guide))

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.weight.shape[1]).to(self.weight)
        precision = self.weight.T @ self.weight / self.scale**2 + eye
        loc = torch.linalg.solve(precision, self.weight.T @ (x - self.bias).mT / self.scale**2).mT
        return loc, precision


class _Guide(nn.Module):
    def __init__(self, model: LinearGaussian, guide: str) -> None:
        super().__init__()
        self.model = model
        self.guide = guide

    def forward(self, x: Tensor) -> TorchDistribution:
        return self.model.posterior(x) if self.guide == "exact" else self.model.mean_field(x)
