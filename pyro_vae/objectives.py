r"""Objectives: ELBO estimators for any Pyro model and guide.

Each is a ``pyro.infer.ELBO``: the ``loss`` of a stock ``pyro.infer.SVI``, in nats, summed over the data as
Pyro does, with all constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

__all__ = ["ELBO", "SiteKL", "closed_form_kl"]


class SiteKL(NamedTuple):
    """How the divergence of one latent site was had, and what it came to."""

    kind: Literal["analytic", "sampled"]
    nats: float
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


class ELBO(Trace_ELBO):
    r"""The evidence lower bound, with the divergence in closed form wherever there is one.

    .. math::
        \mathrm{ELBO}(x) = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
        \le \log p(x) \quad (\beta = 1)

    The loss is minus that, in nats, summed over the data. Pyro's own ``Trace_ELBO`` always samples the
    divergence, and its ``TraceMeanField_ELBO`` samples it in silence where no closed form is known;
    :meth:`report` says which it was. A site's closed form is used where it is exact: the model and the guide
    scale and mask the site alike, and the guide draws before it all that the model's site may depend on.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).

    Arguments:
        num_particles: Draws of z per datum. Where there are several they are one batch, in a plate to the left of
            the model's.
        kl: ``auto``, in closed form where there is one; ``analytic``, the same or an error; ``sampled``, as
            ``Trace_ELBO``.
        beta: Weight of the divergence. The scale of every latent site is multiplied by it, in the model and in
            the guide.

    Raises:
        ValueError: If an argument is out of range, or ``kl`` is ``analytic`` and a site has no closed form.

    Example:
        >>> from pyro.infer import SVI
        >>> from pyro.optim import Adam
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((1, 8, 8), latent=2)
        >>> svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=ELBO())
        >>> isinstance(svi.step(torch.rand(32, 1, 8, 8)), float)
        True
        >>> ELBO().report(vae.model, vae.guide, torch.rand(32, 1, 8, 8))["z"].kind
        'analytic'
    """

    def __init__(
        self,
        num_particles: int = 1,
        kl: Literal["auto", "analytic", "sampled"] = "auto",
        beta: float = 1.0,
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"Expected num_particles of at least 1; got {num_particles}.")
        if kl not in ("auto", "analytic", "sampled"):
            raise ValueError(f"Expected kl to be auto, analytic or sampled; got {kl!r}.")
        if not 0 <= beta < float("inf"):
            raise ValueError(f"Expected a finite beta of at least 0; got {beta}.")
        super().__init__(num_particles=num_particles, vectorize_particles=num_particles > 1)
        self.kl = kl
        self.beta = beta

    def report(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, SiteKL]:
        """Say for each latent site whether its divergence is analytic or sampled, and its nats at beta = 1.

        Returns:
            For each latent site of the guide a :class:`SiteKL`: kind, nats summed over the data (with the scale of
            a subsampled plate), and the reason where it is sampled.
        """
        return self.split(model, guide, *args, **kwargs)[1]

    @torch.no_grad()
    def split(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, SiteKL]]:
        """Return the two terms of the ELBO at beta = 1: reconstruction, and divergence for each latent site.

        Reconstruction is E[log p(x | z)], the sum over observed sites, in nats, summed over the data; the ELBO is
        it minus the divergences.
        """
        plain = ELBO(self.num_particles, self.kl)
        reconstruction = 0.0
        nats: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for model_trace, guide_trace in plain._get_traces(model, guide, args, kwargs):
            for site in model_trace.nodes.values():
                if site["type"] == "sample" and site["is_observed"]:
                    reconstruction += float(site["log_prob_sum"])
            for name, q in guide_trace.nodes.items():
                if q["type"] == "sample":
                    log_prior = model_trace.nodes[name]["log_prob_sum"] if name in model_trace else 0.0
                    nats[name] = nats.get(name, 0.0) + float(q["log_prob_sum"] - log_prior)
                    reasons[name] = q.get("sampled", "")
        sites = {
            name: SiteKL("sampled" if reasons[name] else "analytic", total / self.num_particles, reasons[name])
            for name, total in nats.items()
        }
        return reconstruction / self.num_particles, sites

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        """Trace guide and model, then put closed forms in place of sampled divergences.

        With log p(z) replaced by -KL in the model's trace and log q(z | x) by 0 in the guide's, every estimator
        built on the two (value, surrogate, score-function terms) is the one with the closed form.
        """
        if self.beta != 1:
            model, guide = _Tempered(self.beta)(model), _Tempered(self.beta)(guide)
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        drawn = [name for name, site in guide_trace.nodes.items() if site["type"] == "sample"]
        order = [name for name in model_trace.nodes if name in drawn]
        for i, name in enumerate(order):
            first = drawn[: drawn.index(name)]
            q, p = guide_trace.nodes[name], model_trace.nodes[name]
            found = "kl='sampled' was asked for" if self.kl == "sampled" else _site_kl(q, p, set(order[:i]) - {*first})
            if isinstance(found, Tensor):
                _put_closed_form(q, p, found)
                continue
            if self.kl == "analytic":
                raise ValueError(
                    f"Expected a closed form of the divergence at site {name!r}; {found}. Use kl='auto' to sample it."
                )
            q["sampled"] = found
        for name in set(drawn) - {*order}:
            guide_trace.nodes[name]["sampled"] = "it is auxiliary, in the guide alone"
        return model_trace, guide_trace


class _Tempered(Messenger):
    """Multiplies the scale of latent sites by beta; ``poutine.scale`` would reach observed ones too, and refuses 0."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


def _site_kl(q: dict[str, Any], p: dict[str, Any], late: set[str]) -> Tensor | str:
    """Return a site's divergence in closed form, or why it must be sampled."""
    if late:
        return f"the guide draws it before {', '.join(sorted(late))}, which the model draws first"
    if not (_same(p["scale"], q["scale"]) and _same(p["mask"], q["mask"])):
        return "the model and the guide scale or mask it differently"
    kl = closed_form_kl(q["fn"], p["fn"])
    return f"none is known from {_name(q['fn'])} to {_name(p['fn'])}" if kl is None else kl


def _put_closed_form(q: dict[str, Any], p: dict[str, Any], kl: Tensor) -> None:
    scaled = scale_and_mask(kl, q["scale"], q["mask"])
    p["unscaled_log_prob"], p["log_prob"], p["log_prob_sum"] = -kl, -scaled, -scaled.sum()
    zero = torch.zeros_like(scaled)
    q["unscaled_log_prob"], q["log_prob"], q["log_prob_sum"] = zero, zero, zero.sum()
    q["score_parts"] = ScoreParts(zero, q["score_parts"].score_function, zero)


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)


def _name(fn: Any) -> str:
    return type(getattr(fn, "base_dist", fn)).__name__
