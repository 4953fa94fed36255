r"""Gradient estimators: change the pathwise and the score part of the gradient in traces of any guide.

The gradient of :math:`\log q_\phi(z)` at a reparameterised draw :math:`z_\phi(\epsilon)` has two parts: the path
gradient through z, and the score :math:`\partial_\phi \log q_\phi(z)` at fixed z. The score has mean zero.
"""

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.objectives.base import Program
from pyro_vae.traces.sites import Site, enumerated, family, is_delta, latent


def check_reparameterized(guide_trace: Trace, feature: str) -> None:
    """Raise a ValueError if a latent site has no ``rsample`` and is not enumerated; the message names ``feature``.

    Without gradients, nothing is checked.
    """
    for name, site in latent(guide_trace).items():
        if torch.is_grad_enabled() and not site["fn"].has_rsample and not enumerated({name: site}):
            raise ValueError(
                f"Expected reparameterised draws of the guide, for {feature}; {name!r} is drawn from a "
                f"{family(site)}, without rsample. Use objectives.ReweightedWakeSleep, or "
                "objectives.ELBO(gradient='pathwise'), which has a score function gradient."
            )


def drop_scores(guide: Program, guide_trace: Trace, args: tuple, kwargs: dict) -> None:
    r"""Remove the score from each log q(z) of a guide's trace; the value of log q(z) stays the same.

    .. math:: \log q_\phi(z) - \log q_\phi(\bar{z}) + \overline{\log q_\phi(\bar{z})}

    where a bar stops the gradient. If a site depends on another site, the guide runs again at the stopped draws.
    """
    if not torch.is_grad_enabled():
        return
    sites = latent(guide_trace)
    scores = _scores(sites)
    if _are_dependent(sites, scores):
        stopped = Trace()
        for name, site in sites.items():
            stopped.add_node(name, **{**site, "value": site["value"].detach()})
        rerun = poutine.trace(poutine.replay(guide, trace=stopped)).get_trace(*args, **kwargs)
        scores = _scores({name: site for name, site in latent(rerun).items() if name in sites})
        for name, score in scores.items() if is_validation_enabled() else ():
            if not torch.allclose(score.detach(), sites[name]["unscaled_log_prob"].detach(), rtol=1e-3, atol=1e-3):
                raise ValueError(
                    f"Expected the same log q of {name!r} when the guide runs again at the same draws; got another "
                    "one. Use gradient='pathwise' for a guide that draws noise, as dropout does."
                )
    for name, score in scores.items():
        site = sites[name]
        site["unscaled_log_prob"] = site["unscaled_log_prob"] - score + score.detach()
        site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"])


class SeparateDraws(Messenger):
    """Passes the model a view of each draw of the guide. The view's gradient comes from the model alone."""

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and msg["value"].requires_grad:
            msg["value"] = msg["value"].view_as(msg["value"])


def weigh_paths(model_trace: Trace, guide_trace: Trace, factor: Tensor, replay: bool = False) -> bool:
    r"""Multiply the gradient through each draw of a guide by the factor of its particle.

    If a site of the guide depends on another site, the new gradient is

    .. math:: \sum_k f_k \hat{w}_k \sum_l \frac{d \log w_k}{d z_{kl}} \frac{\partial z_{kl}}{\partial \phi}

    The first derivative is total: it passes through a site's children. The second derivative is partial, at fixed
    parents. Each gradient is multiplied once, even if it passes through several draws. This function multiplies the
    gradient of the model; the model must run in :class:`SeparateDraws` or in a ``replay`` of the guide's draws. The
    caller multiplies the gradient of log q. The factor broadcasts with the batch shape of each site, from the right.
    Return whether any site depends on another site.

    References:
        `Generalized Doubly Reparameterized Gradients <https://arxiv.org/abs/2101.11046>`_ (Bauer and Mnih, 2021).
    """
    sites = {name: site for name, site in latent(guide_trace).items() if not is_delta(site)}
    layered = _are_dependent(sites, _scores(sites))
    for name, site in sites.items():
        value = site["value"]
        if not value.requires_grad:
            continue
        if layered:
            value = site["value"] = value.view_as(value) if replay else model_trace.nodes[name]["value"]
        event_dim = site["fn"].event_dim
        rank = value.dim() - event_dim  # the factor's further dimensions, of plates without z, are of size 1
        own = factor.reshape(factor.shape[max(0, factor.dim() - rank) :] + (1,) * event_dim)
        value.register_hook(own.mul)
    return layered


def _scores(sites: dict[str, Site]) -> dict[str, Tensor]:
    """Return log q of each site at its stopped draw; a Delta's log density has only the path gradient."""
    scores = {}
    for name, site in sites.items():
        if is_delta(site):
            continue
        try:
            scores[name] = site["fn"].log_prob(site["value"].detach())
        except NotImplementedError as error:
            raise ValueError(
                f"Expected a guide whose log q is computable at any z, to drop its score; log q of {name!r} is "
                "computable only at draws of the guide. Use gradient='pathwise'."
            ) from error
    return scores


def _are_dependent(sites: dict[str, Site], scores: dict[str, Tensor]) -> bool:
    """Return whether a stochastic site depends on another one."""
    earlier: list[Tensor] = []
    for name, site in sites.items():
        sums = [t.sum() for t in (site["value"], scores[name]) if t.requires_grad] if name in scores else []
        if sums and earlier:
            gradients = torch.autograd.grad(sums, earlier, retain_graph=True, allow_unused=True)
            if any(gradient is not None for gradient in gradients):
                return True
        if site["value"].requires_grad:
            earlier.append(site["value"])
    return False
