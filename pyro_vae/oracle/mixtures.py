"""Linear Gaussians given covariates, and mixtures of linear Gaussians, with exact answers."""

from typing import Literal, Self

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from pyro_vae.oracle.base import Oracle, bayes, loss_of_independence, normals, times
from pyro_vae.programs.building import labels_of

Guide = Literal["exact", "mean-field"]


class Covariates(Oracle):
    r"""A linear Gaussian given a vector y: a linear :class:`pyro_vae.programs.ConditionalVAE`.

    .. math:: z \mid y \sim \mathcal{N}(U y + u, I), \qquad x \mid z, y \sim \mathcal{N}(W z + V y + b, s^2 I)

    Then :math:`x \mid y \sim \mathcal{N}(W (U y + u) + V y + b, W W^\top + s^2 I)`: the data determine the sum
    :math:`V + W U`, but neither U nor V.

    W is ``weight``, of shape ``(d, k)``, b is ``bias``, ``(d,)``, V is ``of_x``, ``(d, c)``, U is ``of_z``, ``(k, c)``,
    u is ``shift``, ``(k,)``, and s is ``scale``. The guide is ``exact`` or ``mean-field``.

    Example:
        >>> oracle = Covariates.random(5, 2, given=3)
        >>> y = torch.randn(4, 3)
        >>> oracle.log_evidence(oracle.sample(4, y), y).shape
        torch.Size([4])
    """

    weight: Tensor
    of_x: Tensor
    of_z: Tensor
    shift: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        of_x: Tensor,
        of_z: Tensor,
        shift: Tensor,
        scale: float,
        guide: Guide = "exact",
    ) -> None:
        super().__init__(guide, scale, weight=weight, bias=bias, of_x=of_x, of_z=of_z, shift=shift)
        (d, k), (_, c) = weight.shape, of_x.shape
        if bias.shape != (d,) or of_x.shape != (d, c) or of_z.shape != (k, c) or shift.shape != (k,):
            got = [tuple(tensor.shape) for tensor in (weight, bias, of_x, of_z, shift)]
            raise ValueError(f"Expected weight (d, k), bias (d,), of_x (d, c), of_z (k, c), shift (k,); got {got}.")

    @classmethod
    def random(cls, d: int, latent: int, given: int, scale: float = 0.7, seed: int = 0, guide: Guide = "exact") -> Self:
        """Return a program with normal parameters."""
        shapes = (d, latent), (d,), (d, given), (latent, given), (latent,)
        weight, bias, of_x, of_z, shift = map(nn.Parameter, normals(seed, *shapes))
        return cls(weight, bias, of_x, of_z, shift, scale, guide)

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample z given y, and observe x, of shape ``(B, d)``."""
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(self.prior_mean(y), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.mean(z, y), self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Sample z from the exact posterior, or for ``mean-field`` from the best mean-field Gaussian."""
        with self.rows(x):
            pyro.sample("z", self.around(self.posterior(x, y)))

    def prior_mean(self, y: Tensor) -> Tensor:
        """Return E[z | y]."""
        return times(self.of_z, y) + self.shift

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        """Return E[x | z, y]."""
        return times(self.weight, z) + times(self.of_x, y) + self.bias

    def log_evidence(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return log p(x | y) in nats, of shape ``(B,)``."""
        return self.marginal(self.mean(self.prior_mean(*given), *given), self.weight).log_prob(x)

    def posterior(self, x: Tensor, y: Tensor) -> MultivariateNormal:
        """Return p(z | x, y)."""
        mean = self.prior_mean(y)
        return bayes(mean, *self.unit(self.weight), x - self.mean(mean, y) + times(self.weight, mean))

    def gap(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the gap of the mean-field guide in nats; the gap is equal for all data."""
        return loss_of_independence(self.posterior(x, *given).precision_matrix)


class Classes(Oracle):
    r"""A mixture of linear Gaussians with some known classes: a linear :class:`pyro_vae.programs.SemiSupervisedVAE`.

    .. math:: y \sim \mathrm{Cat}(\pi), \qquad z \sim \mathcal{N}(0, I), \qquad
        x \mid y, z \sim \mathcal{N}(W_y z + b_y, s^2 I)

    W is ``weight``, of shape ``(classes, d, k)``, b is ``bias``, ``(classes, d)``, ``logits`` are log pi up to a
    constant, and s is ``scale``. The guide is ``exact`` or ``mean-field``. A mean-field guide has the exact p(y | x)
    and independent dimensions of z given y. Both guides sum over an unknown class: a label of -1, or no labels.

    References:
        Mixtures of Probabilistic Principal Component Analyzers (Tipping and Bishop, 1999).

    Example:
        >>> oracle = Classes.random(4, 2, classes=3)
        >>> oracle.posterior_of_y(oracle.sample(5)).shape
        torch.Size([5, 3])
    """

    weight: Tensor
    logits: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, logits: Tensor, scale: float, guide: Guide = "exact") -> None:
        super().__init__(guide, scale, weight=weight, bias=bias, logits=logits)
        if weight.dim() != 3 or bias.shape != weight.shape[:2] or logits.shape != weight.shape[:1]:
            got = [tuple(tensor.shape) for tensor in (weight, bias, logits)]
            raise ValueError(f"Expected weight (classes, d, k), bias (classes, d), logits (classes,); got {got}.")

    @classmethod
    def random(
        cls, d: int, latent: int, classes: int, scale: float = 0.7, seed: int = 0, guide: Guide = "exact"
    ) -> Self:
        """Return a program with normal parameters."""
        weight, bias, logits = normals(seed, (classes, d, latent), (classes, d), (classes,))
        return cls(nn.Parameter(weight), nn.Parameter(1.5 * bias), nn.Parameter(0.5 * logits), scale, guide)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Sample z and each unknown y; observe x, of shape ``(B, d)``, and each known y."""
        y, known = labels_of(x, y)
        with self.rows(x):
            label = pyro.sample("y", dist.Categorical(logits=self.logits), obs=y.clamp(min=0), obs_mask=known)
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.weight.shape[2]), 1.0).to_event(1))
            mean = times(self.weight[label], z) + self.bias[label]
            return pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sum over an unknown y, and sample z from the guide given y."""
        y, known = labels_of(x, y)
        with self.rows(x):
            with poutine.mask(mask=~known):
                distribution = dist.Categorical(logits=self.log_joint(x))
                label = pyro.sample("y_unobserved", distribution, infer={"enumerate": "parallel"})
            pyro.sample("z", self.around(self.posterior(x, torch.where(known, y, label))))

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, y) in nats, of shape ``(B, classes)``."""
        return self.logits.log_softmax(-1) + self.marginal(self.bias, self.weight).log_prob(x.unsqueeze(-2))

    def log_evidence(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return log p(x), or log p(x, y) for a known y, in nats, of shape ``(B,)``."""
        (y, known), log_p = labels_of(x, *given), self.log_joint(x)
        return torch.where(known, log_p.gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1), log_p.logsumexp(-1))

    def posterior_of_y(self, x: Tensor) -> Tensor:
        """Return p(y | x), of shape ``(B, classes)``."""
        return self.log_joint(x).softmax(-1)

    def posterior(self, x: Tensor, y: Tensor) -> MultivariateNormal:
        """Return p(z | x, y)."""
        weight, unit = self.weight[y], self.unit(self.weight)
        return bayes(x.new_zeros(weight.shape[-1]), unit[0], weight, unit[2], x - self.bias[y])

    def gap(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the gap of the mean-field guide in nats, averaged over p(y | x) for an unknown y."""
        noise = self.scale**2
        precision = torch.eye(self.weight.shape[2]).to(x) + self.weight.mT @ self.weight / noise
        (y, known), gaps = labels_of(x, *given), loss_of_independence(precision)
        return torch.where(known, gaps[y.clamp(min=0)], self.posterior_of_y(x) @ gaps)
