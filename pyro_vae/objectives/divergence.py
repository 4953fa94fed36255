r"""Divergences of latent sites: in closed form where that is exact, else sampled, and said to be."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_vae.objectives.sites import Site, family, is_delta, same, samples

__all__ = ["Divergence", "Report", "SiteKL", "closed_form_kl", "divergences", "kl_per_dim"]


class SiteKL(NamedTuple):
    """How the divergence of one latent site was had, and what it came to: nats summed over the data."""

    kind: Literal["analytic", "sampled"]
    nats: float
    scale: float
    reason: str


class Report(dict[str, SiteKL]):
    """A :class:`SiteKL` for each latent site; printed, it is a table."""

    def __str__(self) -> str:
        width = max([4, *map(len, self)])
        lines = [f"{'site':{width}}  {'KL':8}  {'nats':>12}  {'scale':>8}  why"]
        lines += [
            f"{name:{width}}  {site.kind:8}  {site.nats:12.4f}  {site.scale:8g}  {site.reason or 'in closed form'}"
            for name, site in self.items()
        ]
        return "\n".join(lines)


class Divergence(NamedTuple):
    """The divergence of one latent site: nats of each element of its batch, scaled and masked; and why not exact."""

    each: Tensor
    reason: str


def closed_form_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""Return :math:`\mathrm{KL}(q \,\|\, p)` in nats, of the batch shape, or None where no closed form is known.

    For a diagonal Gaussian q and a standard normal p it is
    :math:`\frac{1}{2} \sum_i (\sigma_i^2 + \mu_i^2 - 1 - \ln \sigma_i^2)`.

    Example:
        >>> import pyro.distributions as dist
        >>> closed_form_kl(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))
        tensor(0.5000)
        >>> closed_form_kl(dist.Normal(1.0, 1.0), dist.StudentT(3.0)) is None
        True
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def divergences(model_trace: Trace, guide_trace: Trace, sampled: str = "") -> dict[str, Divergence]:
    """Return the divergence of each latent site of the guide.

    A site's closed form is used where it is exact: the model and the guide scale and mask the site alike, and the
    guide draws before it all that the model's site may depend on.

    Arguments:
        model_trace: With log-probabilities, as ``pyro.infer.enum.get_importance_trace`` gives them.
        guide_trace: The same.
        sampled: Why every site is to be sampled; empty where none need be.
    """
    guide, model = samples(guide_trace), samples(model_trace)
    drawn, order = [*guide], [name for name in model if name in guide]
    found = {}
    for name, q in guide.items():
        p = model.get(name)
        log_q = q["log_prob"].detach() if is_identically_zero(q["score_parts"].entropy_term) else q["log_prob"]
        if p is None:
            found[name] = Divergence(log_q, "it is auxiliary, in the guide alone")
            continue
        late = set(order[: order.index(name)]) - {*drawn[: drawn.index(name)]}
        exact = sampled or _exact(q, p, late)
        if isinstance(exact, Tensor):
            found[name] = Divergence(scale_and_mask(exact, q["scale"], q["mask"]), "")
        else:
            found[name] = Divergence(log_q - p["log_prob"], exact)
    return found


def _exact(q: Site, p: Site, late: set[str]) -> Tensor | str:
    """Return a site's divergence in closed form, or why it must be sampled."""
    if late:
        return f"the guide draws it before {', '.join(sorted(late))}, which the model draws first"
    if not alike(q, p):
        return "the model and the guide scale or mask it differently"
    if is_delta(q):  # of which Pyro's closed form leaves out the density, as of an autoguide's change of variables
        return q["unscaled_log_prob"] - p["unscaled_log_prob"]
    kl = closed_form_kl(q["fn"], p["fn"])
    return f"none is known from {family(q)} to {family(p)}" if kl is None else kl


def kl_per_dim(guide: Site, model: Site, sampled: bool = False) -> Tensor | None:
    """Return the divergence of each dimension of a site's event, of shape ``(*batch, *event)``, in nats.

    In closed form, or at the draw where none is known or ``sampled`` is asked for; None where the guide or the prior is
    not independent over dimensions.
    """
    q, p, z = guide["fn"], model["fn"], guide["value"]
    while isinstance(q, Independent) and isinstance(p, Independent):
        if q.reinterpreted_batch_ndims != p.reinterpreted_batch_ndims:
            return None
        q, p = q.base_dist, p.base_dist
    if q.event_shape or p.event_shape:
        return None
    kl = None if sampled else closed_form_kl(q, p)
    return q.log_prob(z) - p.log_prob(z) if kl is None else kl


def alike(q: Site, p: Site) -> bool:
    """Whether the guide and the model scale and mask a site alike."""
    return same(p["scale"], q["scale"]) and same(p["mask"], q["mask"])
