r"""Likelihoods p(x | z): families over the data's event shape.

See :class:`pyro_vae.conditional.Family` for how to write one.
"""

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family

__all__ = ["Bernoulli", "Gaussian"]


class Gaussian(Family):
    r"""Independent Gaussians with one scale: squared error, as a density.

    .. math:: \log p(x \mid z) = -\frac{\|x - \mu(z)\|^2}{2 \sigma^2} - \frac{d}{2} \log 2 \pi \sigma^2

    The second term is not left out: the loss is minus the ELBO, in nats. The number of a learned scale is a
    density's: it compares only with other densities of the same data, and grows without bound where pixels are
    constant.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021), for the learned scale.

    Arguments:
        event: Shape of x.
        scale: The standard deviation in the units of x, or ``learned``: one for all elements, which starts at 0.1.

    Raises:
        ValueError: If the scale is not positive.

    Example:
        >>> law = Gaussian((64,), scale=0.5)(torch.zeros(32, 1, 64))
        >>> law.log_prob(torch.zeros(64))[0].item() / 64  # -log(sqrt(2 pi) 0.5)
        -0.2257...
    """

    params = 1
    log_scale: Tensor

    def __init__(self, event: int | Sequence[int], scale: float | Literal["learned"] = "learned") -> None:
        super().__init__(event)
        start = 0.1 if scale == "learned" else float(scale)
        if not 0 < start < float("inf"):
            raise ValueError(f"Expected a positive scale, or 'learned'; got {scale}.")
        log_scale = torch.tensor(start).log()
        if scale == "learned":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def law(self, loc: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Gaussian around ``loc``, of shape ``(*, *event)``."""
        return dist.Normal(loc, self.log_scale.exp())

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean


class Bernoulli(Family):
    r"""Independent coin flips, for binary data.

    .. math:: \log p(x \mid z) = \sum_i x_i \log \pi_i(z) + (1 - x_i) \log (1 - \pi_i(z))

    Warning:
        Grey pixels are not in its support: binarise them, and say how, since the number depends on it.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Arguments:
        event: Shape of x.

    Example:
        >>> Bernoulli((64,))(torch.zeros(32, 1, 64)).log_prob(torch.ones(64))[0].item() / 64  # log 1/2
        -0.6931...
    """

    params = 1

    def law(self, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the Bernoulli with the given ``logits``, of shape ``(*, *event)``."""
        return dist.Bernoulli(logits=logits)

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        """Return the logit of the mean, kept within [0.001, 0.999] as Burda et al. (2016) do."""
        return mean.clamp(0.001, 0.999).logit()
