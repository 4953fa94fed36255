"""Densities of real x around a location."""

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.conditional import Family
from pyro_vae.likelihoods.scales import WAYS, add_scale

__all__ = ["Gaussian", "Laplace", "StudentT"]

Scale = float | Literal["learned"]
GaussianScale = float | Literal["learned", "per-pixel", "optimal"]


class Gaussian(Family):
    r"""Independent Gaussians: squared error, as a density of real x.

    .. math:: \log p(x \mid z) = -\sum_i \frac{(x_i - \mu_i(z))^2}{2 \sigma^2} + \frac{1}{2} \log 2 \pi \sigma^2

    The second term is not left out: the loss is in nats. The number of a scale that is not fixed compares only with
    other densities of the same data, and grows without bound where pixels are constant.

    Warning:
        With ``optimal``, training takes the best :math:`\sigma` for the batch of a process: ``history["train"]``
        is of a profile likelihood: lower than minus an ELBO may be. Elsewhere (``vae.eval()``, or without gradients)
        :math:`\sigma^2` is a running mean, and the law a density like any other.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021).

    Arguments:
        event: Shape of x.
        scale: The standard deviation in the units of x; or ``learned``: one for all elements, which starts at 0.1;
            ``per-pixel``: the network gives :math:`\log \sigma_i(z)` too, clipped softly at -6; ``optimal``:
            :math:`\sigma^2` is the mean of :math:`(x - \mu)^2` over elements, batch and particles.

    Raises:
        ValueError: If the scale is none of these.

    Example:
        >>> Gaussian((64,), scale=0.5)(torch.zeros(32, 1, 64)).log_prob(torch.zeros(64))[0].item() / 64  # -log(s √2π)
        -0.2257...
    """

    params = 1
    log_scale: Tensor

    def __init__(self, event: int | Sequence[int], scale: GaussianScale = "learned") -> None:
        super().__init__(event)
        self.way = WAYS[scale]() if scale in WAYS else None
        if self.way is None:
            add_scale(self, scale, "'per-pixel', 'optimal', ")
        else:
            self.params = self.way.params

    def law(self, loc: Tensor, *log_scale: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian around ``loc``, of shape ``(*, *event)``."""
        return dist.Normal(loc, self.log_scale.exp()) if self.way is None else self.way(loc, *log_scale)

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean


class Laplace(Family):
    r"""Independent Laplace laws: absolute error, as a density of real x.

    .. math:: \log p(x \mid z) = -\sum_i \frac{|x_i - \mu_i(z)|}{b} + \log 2 b

    References:
        Théorie analytique des probabilités (Laplace, 1812).

    Arguments:
        event: Shape of x.
        scale: b, the mean absolute error, in the units of x; or ``learned``: one for all elements, which starts at 0.1.

    Raises:
        ValueError: If the scale is not positive.

    Example:
        >>> Laplace((64,), scale=0.5)(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # -1/b - log 2b
        -2.0...
    """

    params = 1
    log_scale: Tensor

    def __init__(self, event: int | Sequence[int], scale: Scale = "learned") -> None:
        super().__init__(event)
        add_scale(self, scale)

    def law(self, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Laplace law around ``loc``, of shape ``(*, *event)``."""
        return dist.Laplace(loc, self.log_scale.exp())

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean


class StudentT(Family):
    r"""Independent Student's t laws: as the Gaussian, with tails that forgive an outlier; a density of real x.

    .. math:: \log p(x \mid z) = \sum_i -\frac{\nu + 1}{2} \log\Big(1 + \frac{(x_i - \mu_i(z))^2}{\nu s^2}\Big) - \log s
        + \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\nu \pi}}

    References:
        Robust Statistical Modeling Using the t Distribution (Lange, Little and Taylor, 1989).

    Arguments:
        event: Shape of x.
        df: :math:`\nu`, the degrees of freedom: the fewer, the heavier the tails.
        scale: s, in the units of x; or ``learned``: one for all elements, which starts at 0.1. The standard deviation
            is :math:`s \sqrt{\nu / (\nu - 2)}`, where :math:`\nu > 2`.

    Raises:
        ValueError: If the scale is not positive, or ``df`` is not above 1, where there is no mean.

    Example:
        >>> StudentT((64,), scale=1.0)(torch.zeros(32, 1, 64)).log_prob(torch.zeros(64))[0].item() / 64
        -0.9686...
    """

    params = 1
    log_scale: Tensor

    def __init__(self, event: int | Sequence[int], df: float = 5.0, scale: Scale = "learned") -> None:
        super().__init__(event)
        if not 1 < df < float("inf"):
            raise ValueError(f"Expected df above 1, so that there is a mean; got {df}. Use Gaussian for infinity.")
        self.df = df
        add_scale(self, scale)

    def law(self, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return Student's t around ``loc``, of shape ``(*, *event)``."""
        return dist.StudentT(self.df, loc, self.log_scale.exp())

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean
