"""The evidence lower bound."""

from typing import Any, Literal

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.objectives.base import Objective, Program, Terms, check_choice
from pyro_vae.objectives.divergence import Divergence, divergences, kl_per_dim, reconstruction_terms, same_scale, total
from pyro_vae.objectives.gradients import check_reparameterized, drop_scores
from pyro_vae.objectives.penalties import Penalty
from pyro_vae.objectives.schedules import Schedule
from pyro_vae.traces.sites import density_sites, enumerated, samples


class ELBO(Objective):
    r"""The evidence lower bound (ELBO), with the KL divergence in closed form where one exists.

    .. math::
        \mathrm{ELBO}(x) = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
        \le \log p(x) \quad (\beta = 1)

    The loss is minus the ELBO, in nats, summed over the data. The KL of a site has a closed form if a formula for the
    two distributions exists, model and guide give the site the same scale and the same mask, and the guide draws the
    site after all sites on which it may depend in the model. See :meth:`Objective.report`.

    References:
        `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_ (Kingma and Welling, 2014).
        `beta-VAE <https://openreview.net/forum?id=Sy2fzU9gl>`_ (Higgins et al., 2017).
        `Inverse Autoregressive Flow <https://arxiv.org/abs/1606.04934>`_ (Kingma et al., 2016), for free bits.
        `Sticking the Landing <https://arxiv.org/abs/1703.09194>`_ (Roeder, Wu and Duvenaud, 2017).

    Arguments:
        num_particles: Draws of z per datum.
        kl: Form of the divergence: ``auto``, the closed form where a closed form exists; ``analytic``, the closed form
            or an error; ``sampled``, an estimate from draws, as in ``pyro.infer.Trace_ELBO``.
        beta: Weight of the divergence, or a schedule of it: :class:`Linear`, :class:`Cosine` or :class:`Cyclical`.
        free_bits: Free nats of each latent dimension. A dimension's mean divergence, over the minibatch, all plates and
            the particles of one run, counts as at least ``free_bits``.
        gradient: ``pathwise``, the reparameterised gradient, with the score function for sites without ``rsample``;
            ``stl``, sticking the landing: it samples the divergence and drops the score of q, and has variance zero
            where q is the posterior.
        vectorize_particles: As in :class:`Objective`.
        penalty: A term on the aggregate posterior: :class:`TotalCorrelation` or :class:`MMD`.

    Raises:
        ValueError: If an argument is out of range; ``kl`` is ``analytic`` and a site has no closed form; ``stl`` comes
            with ``analytic`` or with free bits; ``stl`` or free bits come with a site without ``rsample``; free bits
            come with a site of dependent dimensions; or ``stl``, free bits or a penalty come with enumerated sites.

    See Also:
        :class:`IWAE`, a tighter bound from several draws per datum.

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
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        gradient: Literal["pathwise", "stl"] = "pathwise",
        vectorize_particles: bool = True,
        penalty: Penalty | None = None,
    ) -> None:
        check_choice("kl", kl, ("auto", "analytic", "sampled"))
        check_choice("gradient", gradient, ("pathwise", "stl"))
        if gradient == "stl" and kl == "analytic":
            raise ValueError("Expected kl='sampled' or 'auto' with gradient='stl', a sampled KL; got kl='analytic'.")
        if not 0 <= free_bits < float("inf"):
            raise ValueError(f"Expected finite free_bits of at least 0; got {free_bits}.")
        if free_bits and gradient == "stl":
            raise ValueError("Expected gradient='pathwise' with free bits, in closed form; got 'stl'.")
        sampled = "gradient='stl' samples it" if gradient == "stl" else ""
        sampled = "kl='sampled'" if kl == "sampled" else sampled
        super().__init__(num_particles, vectorize_particles, sampled, beta)
        self.kl, self.free_bits, self.gradient, self.penalty = kl, free_bits, gradient, penalty

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Return the loss, with beta, free bits and penalty, and minus the ELBO without them."""
        loss = neg_elbo = torch.zeros(())
        beta = self._beta.clone()  # the next step writes it in place, maybe before this step's backward
        traces = self._traces(model, guide, args, kwargs)
        for model_trace, guide_trace in traces:
            expect = self.expectation(model_trace, guide_trace)
            summed = expect.alone or expect.log_q is not None
            if summed and (self.gradient == "stl" or self.free_bits or self.penalty is not None):
                raise ValueError(
                    "Expected gradient='pathwise', free_bits=0 and penalty=None where classes are summed out; got "
                    f"{self.gradient!r}, {self.free_bits} and {self.penalty}."
                )
            if self.gradient == "stl":
                check_reparameterized(guide_trace, "gradient='stl'")
                drop_scores(self._rerun(guide), guide_trace, args, kwargs)
            rates = divergences(model_trace, guide_trace, expect, self.sampled)
            for name, divergence in rates.items():
                if divergence.reason and self.kl == "analytic":
                    raise ValueError(
                        f"Expected a closed form of the KL divergence of site {name!r}; {divergence.reason}. "
                        "Use kl='auto' to sample it."
                    )
            distortion = -total(reconstruction_terms(model_trace, expect))
            rate = total(divergence.nats for divergence in rates.values())
            neg_elbo = neg_elbo + (distortion + rate).detach()
            if self.free_bits:
                check_reparameterized(guide_trace, "free bits")
                rate = total(self._rate_with_free_bits(name, model_trace, guide_trace) for name in rates)
            loss = loss + distortion + beta * rate + self._score_function(rates, model_trace, guide_trace)
            if self.penalty is not None:
                loss = loss + self.penalty(model_trace, guide_trace)
        return Terms(loss / self.num_particles + self.extra(traces), neg_elbo / self.num_particles)

    def _rate_with_free_bits(self, name: str, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return a site's divergence with each dimension's mean clamped at the free bits."""
        q, p = samples(guide_trace)[name], samples(model_trace).get(name)
        kl = kl_per_dim(q, p, bool(self.sampled)) if p is not None and same_scale(q, p) is not False else None
        if kl is None:
            raise ValueError(
                f"Expected independent dimensions of guide and prior at site {name!r}, for free bits; they are "
                "dependent. Use a schedule of beta, as beta=objectives.Linear()."
            )
        batch = kl.shape[: kl.dim() - q["fn"].event_dim]
        weight = scale_and_mask(kl.new_ones(batch), q["scale"], q["mask"]).reshape(-1, 1)
        mean = (weight * kl.reshape(len(weight), -1)).sum(0) / weight.sum()
        return mean.clamp(min=self.free_bits).sum() * weight.sum()

    def _score_function(self, rates: dict[str, Divergence], model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return a term of value zero with the score function gradient of sites without ``rsample``."""
        drawn = density_sites(model_trace, guide_trace)
        scores = {n: site["score_parts"].score_function for n, site in drawn.items() if n not in enumerated(drawn)}
        scores = {name: score for name, score in scores.items() if not is_identically_zero(score)}
        surrogate = torch.zeros(())
        if scores:
            gain, stacks = MultiFrameTensor(), get_plate_stacks(model_trace)
            for name, site in samples(model_trace).items():
                term = site["log_prob"] if site["is_observed"] else -self._beta * rates[name].elements
                gain.add((stacks[name], term.detach()))
            for name, score in scores.items():
                surrogate = surrogate - (gain.sum_to(drawn[name]["cond_indep_stack"]) * score).sum()
        return surrogate - surrogate.detach()
