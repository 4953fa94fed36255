"""The linear-Gaussian hierarchical VAE, with exact answers."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from pyro_vae.oracle.base import MEAN_FIELD, Oracle, bayes, normals, times


class Layers(Oracle):
    r"""A linear :class:`pyro_vae.programs.HierarchicalVAE`: each layer is Gaussian, and linear in the layer above.

    .. math::
        z_L \sim \mathcal{N}(0, I), \quad z_l \mid z_{l+1} \sim \mathcal{N}(A_l z_{l+1} + a_l, t_l^2 I), \quad
        x \mid z_1 \sim \mathcal{N}(W z_1 + b, s^2 I)

    ``weights`` are W, of shape ``(d, k1)``, A1, ``(k1, k2)``, and so on; ``biases`` are b, a1, ...; ``scales`` are s,
    t1, .... The guide is ``mean-field`` or the exact posterior. The exact posterior samples the layers ``bottom-up``
    (z1 given x, z2 given z1, ...) or ``top-down``.

    Example:
        >>> from pyro_vae import evaluate
        >>> oracle = Layers.random(5, (3, 2), guide="top-down")
        >>> x = oracle.sample(4)
        >>> torch.allclose(evaluate.nll(oracle, x, 3), -oracle.log_evidence(x), atol=1e-4)
        True
    """

    guides = ("bottom-up", "top-down", MEAN_FIELD)

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        scales: Sequence[float],
        guide: Literal["bottom-up", "top-down", "mean-field"] = "bottom-up",
    ) -> None:
        shapes = [tuple(weight.shape) for weight in weights]
        fit = all(below[1] == above[0] for below, above in zip(shapes, shapes[1:], strict=False))
        if not fit or [shape[0] for shape in shapes] != [*map(len, biases)] or len(scales) != len(shapes):
            raise ValueError(
                f"Expected weights (d, k1), (k1, k2), ..., a bias and a scale for each; got weights {shapes}, biases "
                f"{[tuple(bias.shape) for bias in biases]}, scales {scales}."
            )
        if not min(scales) > 0:
            raise ValueError(f"Expected positive scales; got {scales}.")
        tensors: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            tensors |= {f"weight{i or ''}": weight, f"bias{i or ''}": bias}
        super().__init__(guide, 1.0, **tensors)
        self.scales, self.number = [*map(float, scales)], len(shapes)

    @classmethod
    def random(
        cls, d: int, latents: Sequence[int], scale: float = 0.7, seed: int = 0, guide: Any = "bottom-up"
    ) -> Self:
        """Return a program with normal weights and biases, and the same scale in all layers."""
        shapes = [*zip((d, *latents), latents, strict=False)]
        weights, biases = normals(seed, *shapes), normals(seed + 1, *((rows,) for rows, _ in shapes))
        weights = [nn.Parameter(weight / weight.shape[1] ** 0.5) for weight in weights]
        return cls(weights, [*map(nn.Parameter, biases)], [scale] * len(shapes), guide)

    def model(self, x: Tensor) -> Tensor:
        """Sample zL, and each layer given the layer above; observe x, of shape ``(B, d)``."""
        with self.rows(x):
            z = pyro.sample(f"z{self.number}", dist.Normal(x.new_zeros(self.moments()[0][-1].shape), 1.0).to_event(1))
            for i in range(self.number - 1, 0, -1):
                z = pyro.sample(f"z{i}", dist.Normal(self.below(i, z), self.scales[i]).to_event(1))
            return pyro.sample("x", dist.Normal(self.below(0, z), self.scales[0]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample each layer from the posterior given x and the layer before, or independently for ``mean-field``."""
        with self.rows(x):
            if self.kind == MEAN_FIELD:
                for i in range(1, self.number + 1):
                    pyro.sample(f"z{i}", self.alone(i, x))
            elif self.kind == "bottom-up":
                z = pyro.sample("z1", self.posterior(x, 1))
                for i in range(2, self.number + 1):
                    z = pyro.sample(f"z{i}", self.given_below(i, z))
            else:
                z = pyro.sample(f"z{self.number}", self.posterior(x, self.number))
                for i in range(self.number - 1, 0, -1):
                    z = pyro.sample(f"z{i}", self.given_above(i, x, z))

    def below(self, i: int, z: Tensor) -> Tensor:
        """Return the mean of layer i given the latent z of the layer above; layer 0 is x."""
        return times(self.matrix(i), z) + self.shift(i)

    def matrix(self, i: int) -> Tensor:
        """Return the matrix from layer i + 1 to layer i; layer 0 is x."""
        return getattr(self, f"weight{i or ''}")

    def shift(self, i: int) -> Tensor:
        """Return the bias of layer i."""
        return getattr(self, f"bias{i or ''}")

    def moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return means and covariances of x, z1, z2, and so on, under the model."""
        above = self.bias.new_zeros(self.matrix(self.number - 1).shape[1])
        means, covariances = [above], [torch.eye(len(above)).to(above)]
        for i in range(self.number - 1, -1, -1):
            means.insert(0, self.below(i, means[0]))
            weight = self.matrix(i)
            noise = self.scales[i] ** 2 * torch.eye(len(weight)).to(weight)
            covariances.insert(0, weight @ covariances[0] @ weight.T + noise)
        return means, covariances

    def of_x(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the matrix from layer i to the mean of x, and the covariance of x given layer i."""
        weight = self.matrix(0)
        noise = self.scales[0] ** 2 * torch.eye(len(weight)).to(weight)
        for j in range(1, i):
            noise = noise + self.scales[j] ** 2 * weight @ weight.T
            weight = weight @ self.matrix(j)
        return weight, noise

    def log_evidence(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return log p(x) in nats, of shape ``(B,)``, for x of shape ``(B, d)``."""
        means, covariances = self.moments()
        return MultivariateNormal(means[0], covariances[0]).log_prob(x)

    def posterior(self, x: Tensor, i: int) -> MultivariateNormal:
        """Return p(zi | x)."""
        means, covariances = self.moments()
        return bayes(means[i], covariances[i], *self.of_x(i), x - means[0] + times(self.of_x(i)[0], means[i]))

    def given_below(self, i: int, z: Tensor) -> MultivariateNormal:
        """Return p(zi | z(i - 1)), which equals p(zi | z(i - 1), x)."""
        means, covariances = self.moments()
        weight = self.matrix(i - 1)
        noise = self.scales[i - 1] ** 2 * torch.eye(len(weight)).to(weight)
        return bayes(means[i], covariances[i], weight, noise, z - self.shift(i - 1))

    def given_above(self, i: int, x: Tensor, z: Tensor) -> MultivariateNormal:
        """Return p(zi | x, z(i + 1))."""
        mean, (weight, noise), means = self.below(i, z), self.of_x(i), self.moments()[0]
        covariance = self.scales[i] ** 2 * torch.eye(mean.shape[-1]).to(mean)
        return bayes(mean, covariance, weight, noise, x - means[0] + times(weight, means[i]))

    def alone(self, i: int, x: Tensor) -> Any:
        """Return the mean-field guide of zi: the posterior's mean, and the precision of zi given all other elements."""
        prior = self.scales[i] ** -2 if i < self.number else 1.0
        precision = prior + self.matrix(i - 1).square().sum(0) / self.scales[i - 1] ** 2
        return dist.Normal(self.posterior(x, i).mean, precision.rsqrt()).to_event(1)

    def gap(self, x: Tensor, *given: Tensor) -> Tensor:
        r"""Return :math:`\frac{1}{2} [\sum_i \log \Lambda_{ii} - \log |\Lambda|]`; Lambda: precision of all layers."""
        zeros = [x.new_zeros(len(mean)) for mean in self.moments()[0]]
        exact = [self.posterior(zeros[0], 1), *(self.given_below(i, zeros[i - 1]) for i in range(2, self.number + 1))]
        alone = [self.alone(i, zeros[0]).base_dist.scale for i in range(1, self.number + 1)]
        determinant = sum(distribution.covariance_matrix.logdet() for distribution in exact)
        return (0.5 * determinant - sum(scale.log().sum() for scale in alone)).expand(len(x))
