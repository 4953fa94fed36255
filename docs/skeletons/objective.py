"""An objective of your own: an ``Objective`` with one method, ``terms``. Copy the file and change it."""

import math
from typing import Any

from pyro_vae.objectives import Objective
from pyro_vae.objectives.base import Terms
from pyro_vae.objectives.gradients import check_reparameterized
from pyro_vae.traces.weights import log_weights


class CombinedBound(Objective):
    r"""A combination of the ELBO and the importance weighted bound, from the same K draws of each datum.

    .. math:: \mathbb{E}\Big[ \frac{s}{K} \sum_k \log w_k + (1 - s) \log \frac{1}{K} \sum_k w_k \Big] \le \log p(x)

    The loss is minus that, in nats, summed over the data. s is ``share``, from 0 to 1, and K ``num_particles``.

    References:
        `Tighter Variational Bounds are Not Necessarily Better <https://arxiv.org/abs/1802.04537>`_ (Rainforth et al.,
        2018), where the bound is called CIWAE.

    Raises:
        ValueError: If there are no particles, or a latent site has no ``rsample``.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((64,), latent=2)
        >>> isinstance(CombinedBound().loss(vae.model, vae.guide, torch.rand(32, 64)), float)
        True
    """

    def __init__(self, share: float = 0.5, num_particles: int = 5) -> None:
        super().__init__(num_particles, vectorize_particles=True, sampled="importance weights need draws")
        self.share = share

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Terms:
        """Return the loss, and minus the ELBO without a gradient: two scalar tensors."""
        traces = self.traces(model, guide, *args, **kwargs)
        for _, guide_trace in traces:
            check_reparameterized(guide_trace, "CombinedBound")
        weights = log_weights(traces)  # weights.log_w is of shape (K, *data); weights.total sums over the data
        elbo, iwae = weights.log_w.mean(0), weights.log_w.logsumexp(0) - math.log(self.num_particles)
        bound = self.share * elbo + (1 - self.share) * iwae
        return Terms(self.extra(traces) - weights.total(bound), -weights.total(elbo.detach()))
