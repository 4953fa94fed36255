"""A likelihood of your own: a ``Family`` over the shape of one x. Copy the file and change it."""

from collections.abc import Sequence

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.conditional import Family


class Binomial(Family):
    r"""Independent binomial counts: a mass of the whole numbers from 0 to n.

    .. math:: \log p(x \mid z) = \sum_i \log \binom{n}{x_i} + x_i \log \pi_i(z) + (n - x_i) \log (1 - \pi_i(z))

    The network returns one number for each element of x, the logit of :math:`\pi`. ``total`` is n.

    References:
        `Generalized Linear Models <https://doi.org/10.1201/9780203753736>`_ (McCullagh and Nelder, 1989).

    Raises:
        ValueError: If x is not a whole number from 0 to n.

    Example:
        >>> import torch
        >>> p = Binomial((4,), total=1)(torch.zeros(7, 1, 4))  # parameters (*, params, *event), here of 7 data
        >>> p.log_prob(torch.ones(4))[0]  # 4 times log 1/2, in nats
        tensor(-2.7726)
    """

    params = 1  # how many numbers the network returns for each element of x

    def __init__(self, event: int | Sequence[int], total: int = 16) -> None:
        super().__init__(event)
        self.total = total

    def distribution(self, logits: Tensor) -> TorchDistribution:
        """Return the binomial distribution of the logits, of shape ``(*, *event)``."""
        return dist.Binomial(self.total, logits=logits)
