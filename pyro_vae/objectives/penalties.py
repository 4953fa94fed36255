"""Penalties on the aggregate posterior: the mixture of q(z | x) over a minibatch."""

import math
from abc import ABC, abstractmethod

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.operations import log_sum_exp
from pyro_vae.traces.sites import Site, latent, plates


class Penalty(ABC):
    """Base class of a penalty: weight times number of data times a minibatch's value, summed over latent sites.

    To write a penalty, subclass this and define :meth:`value`. Each latent site must be in the data's plate alone.

    Arguments:
        weight: Weight of the value.

    Raises:
        ValueError: If the weight is negative or infinite.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"Expected a finite weight of at least 0; got {weight}.")
        self.weight = weight

    @abstractmethod
    def value(self, q: Site, p: Site) -> Tensor:
        """Return the value, of shape ``(*K,)``, of a site of guide and model with draws ``(*K, B, *event)``."""

    def __call__(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return the term, summed over data and particles; refuse masks, a scale for each datum and other plates."""
        total = torch.zeros(())
        for name, q in latent(guide_trace).items():
            data = plates(q)
            if name not in model_trace or len(data) != 1 or data[0].dim != -1 or q["mask"] is not None:
                raise ValueError(
                    f"Expected every latent site in one plate, the data's, at dim=-1 and without a mask, for "
                    f"{type(self).__name__}; {name!r} is not. Use objectives.ELBO without a penalty."
                )
            if isinstance(q["scale"], Tensor) and q["scale"].numel() > 1:
                raise ValueError(f"Expected one scale of {name!r} for {type(self).__name__}; got one for each datum.")
            total = total + self.weight * q["scale"] * data[0].size * self.value(q, model_trace.nodes[name]).sum()
        return total


class TotalCorrelation(Penalty):
    r"""The total correlation of latent dimensions in the aggregate posterior, as in the beta-TCVAE.

    .. math:: \mathrm{TC} = \mathrm{KL}\Big(\bar{q}(z) \,\Big\|\, \prod_d \bar{q}(z_d)\Big),
        \qquad \bar{q}(z) = \frac{1}{B} \sum_b q(z \mid x_b)

    The estimate is in nats, and unbiased for the minibatch. A weight of :math:`\beta - 1` is the paper's :math:`\beta`.

    References:
        `Isolating Sources of Disentanglement <https://arxiv.org/abs/1802.04942>`_ (Chen et al., 2018).

    Arguments:
        weight: Weight of the total correlation.

    Raises:
        ValueError: If the weight is negative, or the guide's dimensions are dependent (use :class:`MMD`).

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.objectives import ELBO
        >>> vae = VAE.build((64,), latent=4)
        >>> isinstance(ELBO(penalty=TotalCorrelation(5.0)).loss(vae.model, vae.guide, torch.rand(32, 64)), float)
        True
    """

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__(weight)

    def value(self, q: Site, p: Site) -> Tensor:
        """Return the total correlation in nats, of the shape of the particles."""
        fn = q["fn"]
        if not isinstance(fn, Independent) or len(fn.event_shape) != 1 or fn.base_dist.event_shape:
            raise ValueError(
                "Expected a guide that is independent over latent dimensions, for TotalCorrelation; "
                f"got {type(fn).__name__}. Use DiagonalNormal."
            )
        z = q["value"]  # (*K, B, D)
        log_q = fn.base_dist.log_prob(z.movedim(-2, 0).unsqueeze(-2))  # (B of draws, *K, B of components, D)
        batch, dims = z.shape[-2:]
        joint = log_sum_exp(log_q.sum(-1), -1)
        marginals = log_sum_exp(log_q, -2).sum(-1)
        return (joint - marginals).mean(0) + (dims - 1) * math.log(batch)


class MMD(Penalty):
    r"""The maximum mean discrepancy (MMD) between the aggregate posterior and the prior, as in the InfoVAE.

    .. math:: \mathrm{MMD}^2 = \mathbb{E}[k(z, z')] + \mathbb{E}[k(y, y')] - 2 \, \mathbb{E}[k(z, y)], \qquad
        k(a, b) = e^{-\|a - b\|^2 / (2 h^2)}

    Here z and z' come from the posteriors of two data; y and y' come from the prior. The unbiased estimate may be
    negative. ``ELBO(beta=1 - alpha, penalty=MMD(alpha + lambda - 1))`` has the paper's :math:`(\alpha, \lambda)`.

    References:
        `InfoVAE <https://arxiv.org/abs/1706.02262>`_ (Zhao, Song and Ermon, 2019).
        `A Kernel Two-Sample Test <https://jmlr.org/papers/v13/gretton12a.html>`_ (Gretton et al., 2012).

    Arguments:
        weight: Weight of the squared discrepancy.
        bandwidth: h of the kernel; None for the square root of the number of latent dimensions.

    Raises:
        ValueError: If an argument is out of range, or the minibatch has one datum.
    """

    def __init__(self, weight: float = 10.0, bandwidth: float | None = None) -> None:
        super().__init__(weight)
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise ValueError(f"Expected a positive bandwidth; got {bandwidth}.")
        self.bandwidth = bandwidth

    def value(self, q: Site, p: Site) -> Tensor:
        """Return the squared discrepancy, of the shape of the particles."""
        prior = p["fn"]
        event = prior.event_dim
        y = prior.rsample() if prior.has_rsample else prior.sample()
        z, y = (t.flatten(t.dim() - event) if event else t.unsqueeze(-1) for t in (q["value"], y))
        batch = z.shape[-2]
        if batch < 2:
            raise ValueError("Expected a minibatch of at least 2 data for MMD; got 1. Use a larger batch_size.")
        h2 = self.bandwidth**2 if self.bandwidth else z.shape[-1]

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (-(a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1) / (2 * h2)).exp().sum((-2, -1))

        within = (kernel(z, z) + kernel(y, y) - 2 * batch) / (batch * (batch - 1))
        return within - 2 * kernel(z, y) / batch**2
