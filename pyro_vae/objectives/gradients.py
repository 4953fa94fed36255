r"""Gradient estimators: which part of a draw's path and of its density's score they keep.

The gradient of :math:`\log q_\phi(z)` at a reparameterised draw :math:`z_\phi(\epsilon)` is the path's, through z,
plus the score, :math:`\partial_\phi \log q_\phi(z)` at fixed z, whose mean is zero. All works on traces, of any guide.
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


def check_reparameterized(guide_trace: Trace, who: str) -> None:
    """Refuse a latent site without ``rsample`` where gradients are on."""
    for name, site in latent(guide_trace).items():
        if torch.is_grad_enabled() and not site["fn"].has_rsample and not enumerated({name: site}):
            raise ValueError(
                f"Expected a guide whose draws have a gradient, for {who}; {name!r} is drawn from a {family(site)}, "
                "without rsample. Use objectives.ReweightedWakeSleep, or objectives.ELBO(gradient='pathwise') with its "
                "score function."
            )


def drop_scores(guide: Program, guide_trace: Trace, args: tuple, kwargs: dict) -> None:
    r"""Take the score out of every log q(z) of a guide's trace; the values stay.

    .. math:: \log q_\phi(z) - \log q_\phi(\bar{z}) + \overline{\log q_\phi(\bar{z})}

    where a bar stops the gradient. Where a site is drawn given another, the guide is run again at the stopped draws.
    """
    if not torch.is_grad_enabled():
        return
    sites = latent(guide_trace)
    scores = _scores(sites)
    if _dependent(sites, scores):
        stopped = Trace()
        for name, site in sites.items():
            stopped.add_node(name, **{**site, "value": site["value"].detach()})
        again = poutine.trace(poutine.replay(guide, trace=stopped)).get_trace(*args, **kwargs)
        scores = _scores({name: site for name, site in latent(again).items() if name in sites})
        for name, score in scores.items() if is_validation_enabled() else ():
            if not torch.allclose(score.detach(), sites[name]["unscaled_log_prob"].detach(), rtol=1e-3, atol=1e-3):
                raise ValueError(
                    f"Expected a guide with the same log q at {name!r} when it is run again at the same draws; it "
                    "differs. Use gradient='pathwise' where the guide draws noise of its own, as dropout does."
                )
    for name, score in scores.items():
        site = sites[name]
        site["unscaled_log_prob"] = site["unscaled_log_prob"] - score + score.detach()
        site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"])


class SeparateDraws(Messenger):
    """Hands a model a view of each draw of the guide, so that the view's gradient comes from the model alone."""

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and msg["value"].requires_grad:
            msg["value"] = msg["value"].view_as(msg["value"])


def weigh_paths(model_trace: Trace, guide_trace: Trace, factor: Tensor, replay: bool = False) -> bool:
    r"""Multiply the gradient that comes back through each draw of a guide by the factor of its particle.

    Return whether one site is drawn given another. Then a gradient goes through several draws and is multiplied once:
    here where it comes from the model, run in :class:`SeparateDraws`, or in a ``replay`` of the guide trace's draws;
    the caller multiplies what comes from log q. So

    .. math:: \sum_k f_k \hat{w}_k \sum_l \frac{d \log w_k}{d z_{kl}} \frac{\partial z_{kl}}{\partial \phi}

    with the whole derivative by each site, through those drawn given it, and the partial one at fixed sites before it.
    The factor broadcasts with the batch shape of each site, from the right.

    References:
        Generalized Doubly Reparameterized Gradient Estimators (Bauer and Mnih, 2021).
    """
    sites = {name: site for name, site in latent(guide_trace).items() if not is_delta(site)}
    layered = _dependent(sites, _scores(sites))
    for name, site in sites.items():
        value = site["value"]
        if not value.requires_grad:
            continue
        if layered:
            value = site["value"] = value.view_as(value) if replay else model_trace.nodes[name]["value"]
        event_dim = site["fn"].event_dim
        rank = value.dim() - event_dim  # the factor's others, to the left, are of size 1: plates without z
        own = factor.reshape(factor.shape[max(0, factor.dim() - rank) :] + (1,) * event_dim)
        value.register_hook(own.mul)
    return layered


def _scores(sites: dict[str, Site]) -> dict[str, Tensor]:
    """Return log q of each site at its stopped draw; a Delta has no score, its log-density goes with the path."""
    scores = {}
    for name, site in sites.items():
        if is_delta(site):
            continue
        try:
            scores[name] = site["fn"].log_prob(site["value"].detach())
        except NotImplementedError as error:
            raise ValueError(
                f"Expected a guide whose log q can be had at any z, to drop its score; that of {name!r} can be had at "
                "its own draws only. Use gradient='pathwise'."
            ) from error
    return scores


def _dependent(sites: dict[str, Site], scores: dict[str, Tensor]) -> bool:
    """Return whether a stochastic site is drawn given another."""
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
