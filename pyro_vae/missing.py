r"""Missing data: a handler leaves the NaN elements of x out of the likelihood; a function imputes these elements.

x has observed and missing elements: :math:`x = (x_o, x_m)`. If the elements of x are independent given z, then
:math:`p(x_o \mid z) = \prod_{i \in o} p(x_i \mid z)`, and the ELBO is a bound on :math:`\log p(x_o)`. The bound is
valid for values that are missing at random: whether a value is missing depends only on the observed values.

References:
    Statistical Analysis with Missing Data (Little and Rubin, 2002), for missing at random.
    MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019).
    Handling Incomplete Heterogeneous Data using VAEs (Nazabal, Olmos, Ghahramani and Valera, 2020).
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Categorical, Independent

__all__ = ["Missing", "impute", "log_prob", "observed"]

Program = Callable[[Tensor], Any]
AT_ONCE = 20_000  # images decoded


def observed(distribution: Any, x: Tensor) -> tuple[TorchDistribution, Tensor]:
    r"""Return the distribution of the observed elements, and x without NaN.

    x has shape ``(*, *event)``. The distribution masks missing elements. The smallest observed element of x replaces
    missing elements; this value is in the support if all elements have the same support. Without observed elements the
    value is 0 for a mass, 0.5 for a density. The function reads no value of x: SVI can record a step as a graph.

    Raises:
        ValueError: If the elements of the distribution are not independent: a mask would not give a marginal.

    Example:
        >>> import pyro.distributions as dist
        >>> normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> marginal, x = observed(normal, torch.tensor([2.0, float("nan"), 1.0]))
        >>> x, marginal.log_prob(x)  # of two elements: -log(2 pi) - 5 / 2
        (tensor([2., 1., 1.]), tensor(-4.3379))
    """
    if not x.is_floating_point() or not x.numel():
        return distribution, x
    base, event_dim = distribution, 0
    while isinstance(base, Independent):
        base, event_dim = base.base_dist, event_dim + base.reinterpreted_batch_ndims
    if base.event_dim:
        raise ValueError(
            f"Expected a distribution of independent elements for x with missing values; got {type(base).__name__}. "
            "Use a likelihood of independent elements, such as Gaussian or Bernoulli."
        )
    mask = ~x.isnan()
    least = torch.where(mask, x, torch.inf).amin()
    value = torch.where(least.isinf(), 0.0 if base.support.is_discrete else 0.5, least)
    return base.mask(mask).to_event(event_dim), torch.where(mask, x, value)


def log_prob(distribution: Any, x: Tensor, missing: bool | None = None) -> Tensor:
    r"""Return the log density of the observed elements of x, in nats, of shape ``(*,)``.

    .. math:: \log p(x_o) = \sum_{i \in o} \log p(x_i)

    x has shape ``(*, *event)``, with NaN for missing elements. ``missing`` says whether x has NaN; None checks x.

    Raises:
        ValueError: As :func:`observed`, if an element is missing.

    Example:
        >>> import pyro.distributions as dist
        >>> log_prob(dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), torch.tensor([1.0, 0.0, float("nan")])).exp()
        tensor(0.2500)
    """
    if x.isnan().any() if missing is None else missing:
        distribution, x = observed(distribution, x)
    return distribution.log_prob(x)


class Missing(Messenger):
    """A handler that leaves the NaN elements of every observed site out of the likelihood, as :func:`observed` does.

    The handler suits any Pyro model: ``Missing()(model)`` is the model of the observed elements. ``fit`` applies the
    handler to data with missing values. The guide still reads NaN; the encoder of ``VAE.build`` replaces NaN by the
    data's mean. A site without NaN keeps the log density to the bit. A site with NaN returns x without NaN.

    Raises:
        ValueError: At a site of floats, if the elements of its distribution are not independent.

    See Also:
        :meth:`pyro_vae.VAE.impute` draws the missing elements.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((64,), latent=2)
        >>> x = torch.rand(32, 64).masked_fill(torch.rand(32, 64) < 0.3, float("nan"))
        >>> isinstance(Trace_ELBO().loss(Missing()(vae.model), vae.guide, x), float)
        True
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not (msg["infer"] or {}).get("_deterministic"):
            msg["fn"], msg["value"] = observed(msg["fn"], msg["value"])


@torch.no_grad()
def impute(p: Any, encoder: Program, decoder: Program, x: Tensor, num: int, num_particles: int) -> Tensor:
    """Draw the missing elements of x from the prior p, encoder and decoder, as :meth:`pyro_vae.VAE.impute` does."""
    if num < 1 or num_particles < 1:
        raise ValueError(f"Expected at least 1 draw and 1 particle; got num = {num}, num_particles = {num_particles}.")
    imputed = []
    for rows in x.split(max(1, AT_ONCE // num_particles)):
        q, size, draws = encoder(rows), max(1, AT_ONCE // (num_particles * len(rows))), []
        for i in range(0, num, size):
            z = q.sample((num_particles, min(size, num - i)))
            log_w = p.log_prob(z) - q.log_prob(z) + log_prob(decoder(z), rows)
            index = Categorical(logits=log_w.movedim(0, -1)).sample()
            z = z.gather(0, index[None, ..., None].expand(1, *z.shape[1:])).squeeze(0)
            draws.append(torch.where(rows.isnan(), decoder(z).sample(), rows))
        imputed.append(torch.cat(draws))
    return torch.cat(imputed, dim=1)
