"""KL divergences of latent sites: the closed form where the closed form is exact, else a Monte Carlo estimate."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence
from torch.distributions.constraints import real

from pyro_vae.data.supports import of_element
from pyro_vae.traces.enumeration import Expectation
from pyro_vae.traces.sites import Site, density_sites, differ, enumerated, family, is_delta, observed, same, samples


class SiteKL(NamedTuple):
    """The KL divergence of one latent site: the kind, the nats summed over the data, the scale and the reason."""

    kind: Literal["analytic", "sampled"]
    nats: float
    scale: float  # the site's mean scale
    reason: str  # why it is sampled; empty if it is analytic


class Report(dict[str, SiteKL]):
    """A dictionary from names of latent sites to :class:`SiteKL`. Printing the dictionary shows a table."""

    def __str__(self) -> str:
        width = max([4, *map(len, self)])
        lines = [f"{'site':{width}}  {'KL':8}  {'nats':>12}  {'scale':>8}  why"]
        for name, (kind, nats, scale, reason) in self.items():
            lines.append(f"{name:{width}}  {kind:8}  {nats:12.4f}  {scale:8g}  {reason or 'in closed form'}")
        return "\n".join(lines)


class Divergence(NamedTuple):
    """The KL divergence of one latent site, as tensors for the loss."""

    elements: Tensor  # nats of each element of the site's batch, scaled and masked
    reason: str  # why it is sampled; empty if it is exact
    means: tuple[Tensor, ...]  # terms whose sum it is, for each element of the plates: means over classes

    @property
    def nats(self) -> Tensor:
        """The sum over the data."""
        return total(self.means)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of all elements of all terms."""
    return sum((term.sum() for term in terms), torch.zeros(()))


def closed_form_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""Return :math:`\mathrm{KL}(q \,\|\, p)` in nats, of the batch shape, or None if torch knows no closed form.

    For a diagonal Gaussian q and a standard normal p the divergence is
    :math:`\frac{1}{2} \sum_i (\sigma_i^2 + \mu_i^2 - 1 - \ln \sigma_i^2)`.

    Example:
        >>> import pyro.distributions as dist
        >>> closed_form_kl(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))
        tensor(0.5000)
        >>> closed_form_kl(dist.Normal(1.0, 1.0), dist.StudentT(3.0)) is None
        True
    """
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    try:
        # Some of torch's closed forms index one distribution by a condition on the other.
        q, p = (fn if fn.batch_shape == shape else fn.expand(shape) for fn in (q, p))
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def divergences(
    model_trace: Trace, guide_trace: Trace, expect: Expectation, sampled: str = ""
) -> dict[str, Divergence]:
    """Return each latent site's divergence, in closed form where exact; if ``sampled`` is a reason, sample all."""
    guide, model = density_sites(model_trace, guide_trace), samples(model_trace)
    drawn, order = [*guide], [name for name in model if name in guide]
    summed = [name for name, site in expect.members.items() if not site["is_observed"]]
    log_p, by_site = expect.summed(summed), {}
    for name, q in guide.items():
        p, scored = model.get(name), q.get("score_parts")
        log_q = q["log_prob"].detach() if scored and is_identically_zero(scored.entropy_term) else q["log_prob"]
        nats, reason, prior = log_q, "", []
        if p is None:
            reason = "it is an auxiliary site, in the guide alone"
        elif name in expect.members:  # the first member takes the joint prior of all members
            reason = f"its prior is a mixture over {', '.join(other for other in summed if other not in guide)}"
            prior, log_p = [-log_p], torch.zeros(())
        else:
            late = set(order[: order.index(name)]) - {*drawn[: drawn.index(name)]}
            exact = "" if enumerated({name: q}) else sampled or _exact(q, p, late)
            if isinstance(exact, Tensor):
                nats = scale_and_mask(exact, q["scale"], q["mask"])
                if isinstance(agree := same_scale(q, p), Tensor):
                    nats = torch.where(agree, nats, log_q - p["log_prob"])
            else:  # sampled; or enumerated, which is exact, since the sum is over all classes
                nats, reason = log_q - p["log_prob"], exact
        by_site[name] = Divergence(nats, reason, (expect.mean(nats, q), *prior))
    return by_site


def reconstruction_terms(model_trace: Trace, expect: Expectation) -> list[Tensor]:
    """Return the terms of the sum log p(x | z), for each element of the plates, as means over classes."""
    sites, members = observed(model_trace), expect.members
    terms = [expect.mean(site["log_prob"], site) for name, site in sites.items() if name not in members]
    if members:
        terms += [expect.summed(members), -expect.summed(name for name in members if name not in sites)]
    return terms


def _exact(q: Site, p: Site, late: set[str]) -> Tensor | str:
    """Return the closed form, or the reason to sample; the model draws sites ``late`` before, the guide after it."""
    if late:
        return f"the guide draws it before {', '.join(sorted(late))}, which the model draws first"
    if differ(same_scale(q, p)):
        return "the model and the guide scale or mask it differently"
    if is_delta(q):  # Pyro's closed form omits the log density of a Delta, such as an autoguide's change of variables
        return q["unscaled_log_prob"] - p["unscaled_log_prob"]
    kl = closed_form_kl(q["fn"], p["fn"])
    if kl is None:
        return f"none is known from {family(q)} to {family(p)}"
    if of_element(p["fn"].support) is real:
        return kl
    if is_validation_enabled() and kl.isinf().any():  # torch's, from a ContinuousBernoulli to a Uniform
        return "its closed form is infinite"
    return torch.where(kl.isinf(), q["unscaled_log_prob"] - p["unscaled_log_prob"], kl)


def kl_per_dim(guide: Site, model: Site, sampled: bool = False) -> Tensor | None:
    """Return the divergence of each dimension of a site's event, in nats, of shape ``(*batch, *event)``.

    If ``sampled`` or without a closed form, the draw gives an estimate. Dependent dimensions give None.
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


def same_scale(q: Site, p: Site) -> bool | Tensor:
    """Whether guide and model scale and mask a site equally; a tensor if the scale or the mask is a tensor."""
    scales, masks = same(p["scale"], q["scale"]), same(p["mask"], q["mask"])
    return False if scales is False or masks is False else (masks if scales is True else scales & masks)
