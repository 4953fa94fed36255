r"""Missing data: an element of x that is NaN is left out of the likelihood by a handler, and imputed afterwards.

With :math:`x = (x_o, x_m)`, observed and missing, and a likelihood whose elements are independent given z,
:math:`p(x_o \mid z) = \prod_{i \in o} p(x_i \mid z)`. The ELBO is then one of :math:`\log p(x_o)`, which is right where
values are missing at random: that they are missing depends on nothing but what is observed.

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


def observed(law: Any, x: Tensor) -> tuple[TorchDistribution, Tensor]:
    r"""Leave out what is missing: return the law of what is observed, and x with no NaN in it.

    In place of a missing element stands the least observed one of the whole tensor, which is in the support of a law
    that treats all elements alike, or 0 for a mass and 0.5 for a density if none is observed. Nothing here looks at a
    number, so that a step of SVI can be recorded as a graph. The law masks itself; x is of shape ``(*, *event)``.

    Raises:
        ValueError: If the elements of the law are not independent, so that leaving some out is no marginal of it.

    Example:
        >>> import pyro.distributions as dist
        >>> law, x = observed(dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.tensor([2.0, float("nan"), 1.0]))
        >>> x, law.log_prob(x)  # of two elements: -log(2 pi) - 5 / 2
        (tensor([2., 1., 1.]), tensor(-4.3379))
    """
    if not x.is_floating_point() or not x.numel():
        return law, x
    base, event_dim = law, 0
    while isinstance(base, Independent):
        base, event_dim = base.base_dist, event_dim + base.reinterpreted_batch_ndims
    if base.event_dim:
        raise ValueError(
            f"Expected a law whose elements are independent, to leave missing ones out; got {type(base).__name__}. "
            "Use a likelihood of one law for each element, as Gaussian or Bernoulli."
        )
    seen = ~x.isnan()
    least = torch.where(seen, x, torch.inf).amin()
    inside = torch.where(least.isinf(), 0.0 if base.support.is_discrete else 0.5, least)
    return base.mask(seen).to_event(event_dim), torch.where(seen, x, inside)


def log_prob(law: Any, x: Tensor, missing: bool | None = None) -> Tensor:
    r"""Return the log-density of what is observed of x, in nats, of shape ``(*,)``; that of x if nothing is missing.

    .. math:: \log p(x_o) = \sum_{i \in o} \log p(x_i)

    x is of shape ``(*, *event)``, NaN where it is missing. ``missing`` is whether any is; None: look.

    Raises:
        ValueError: As :func:`observed`, if any are missing.

    Example:
        >>> import pyro.distributions as dist
        >>> log_prob(dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), torch.tensor([1.0, 0.0, float("nan")])).exp()
        tensor(0.2500)
    """
    if x.isnan().any() if missing is None else missing:
        law, x = observed(law, x)
    return law.log_prob(x)


class Missing(Messenger):
    """A handler that leaves the NaN of every observed site out of its likelihood, as :func:`observed` does.

    For any Pyro model: ``Missing()(model)`` is the model of what is observed. ``fit`` puts it around a model where data
    are missing. The guide sees the NaN: the encoder of ``VAE.build`` puts the mean of the data in their place. A site
    where nothing is missing keeps its log-density, to the bit; one with missing elements returns x without NaN.

    Raises:
        ValueError: At a site of floats, if the elements of its law are not independent.

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
    """Draw what is missing of x, given the prior, encoder and decoder: see :meth:`pyro_vae.VAE.impute`."""
    if num < 1 or num_particles < 1:
        raise ValueError(f"Expected at least 1 draw and 1 particle; got num = {num}, num_particles = {num_particles}.")
    parts = []
    for rows in x.split(max(1, AT_ONCE // num_particles)):
        q, size, draws = encoder(rows), max(1, AT_ONCE // (num_particles * len(rows))), []
        for i in range(0, num, size):
            z = q.sample((num_particles, min(size, num - i)))
            log_w = p.log_prob(z) - q.log_prob(z) + log_prob(decoder(z), rows)
            chosen = Categorical(logits=log_w.movedim(0, -1)).sample()
            z = z.gather(0, chosen[None, ..., None].expand(1, *z.shape[1:])).squeeze(0)
            draws.append(torch.where(rows.isnan(), decoder(z).sample(), rows))
        parts.append(torch.cat(draws))
    return torch.cat(parts, dim=1)
