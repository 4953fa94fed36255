"""Importance weighted bounds, per datum: IWAE, Rényi and reweighted wake-sleep."""

import math
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.objectives.base import Objective, Program, Terms, check_choice
from pyro_vae.objectives.gradients import SeparateDraws, check_reparameterized, drop_scores, weigh_paths
from pyro_vae.traces.sites import Site, enumerated, latent, samples
from pyro_vae.traces.weights import log_weights, power_mean, systematic_resample

Gradient = Literal["pathwise", "stl", "dreg"]


class Renyi(Objective):
    r"""The variational Rényi bound, per datum.

    .. math:: \mathcal{L}_\alpha(x) = \mathbb{E}\Big[\frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}\Big]

    The loss is minus the bound, in nats, summed over the data. The bound falls as alpha grows. Alpha = 0 gives
    :class:`IWAE`, and alpha = 1 gives the ELBO; for alpha < 0 the bound may exceed log p(x). The model's gradient is
    :math:`\sum_k \hat{w}_k \nabla \log w_k`, where :math:`\hat{w}_k \propto w_k^{1 - \alpha}`. ``dreg`` weights the
    path gradients by :math:`\alpha \hat{w}_k + (1 - \alpha) \hat{w}_k^2`.

    References:
        `Rényi Divergence Variational Inference <https://arxiv.org/abs/1602.02311>`_ (Li and Turner, 2016).
        `Alpha-divergence Variational Inference <https://arxiv.org/abs/2210.06226>`_ (Daudel, Benton, Shi and Doucet,
        2023), for ``dreg``.

    Arguments:
        alpha: Order of the bound.
        num_particles, gradient, vectorize_particles, resample: As in :class:`IWAE`, with the same errors.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        num_particles: int = 50,
        gradient: Gradient = "pathwise",
        vectorize_particles: bool = True,
        resample: int | None = None,
    ) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"Expected a finite alpha; got {alpha}.")
        check_choice("gradient", gradient, get_args(Gradient))
        super().__init__(num_particles, vectorize_particles, "importance weights need draws")
        if resample is not None and not (1 <= resample < num_particles and vectorize_particles):
            raise ValueError(
                f"Expected resample from 1 to num_particles - 1, with vectorize_particles = True; got {resample}, with "
                f"num_particles = {num_particles}, vectorize_particles = {vectorize_particles}. Use None for all draws."
            )
        self.alpha, self.gradient, self.resample = alpha, gradient, resample

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Return minus the bound, and minus the ELBO from the same weights."""
        resample = self.resample if torch.is_grad_enabled() else None
        with SeparateDraws() if self.gradient == "dreg" else nullcontext():
            traces = self._traces(model, guide, args, kwargs, gradients=resample is None)
        for model_trace, guide_trace in traces:
            check_reparameterized(guide_trace, type(self).__name__)
            if enumerated(samples(model_trace)) and (self.gradient != "pathwise" or resample is not None):
                raise ValueError("Expected gradient='pathwise' and resample=None where classes are summed out.")
            if self.gradient != "pathwise":
                drop_scores(self._rerun(guide), guide_trace, args, kwargs)
        weights = log_weights(traces)
        log_w = weights.log_w
        tempered = (1 - self.alpha) * log_w.detach()
        if self.gradient == "dreg":
            factor = self.alpha + (1 - self.alpha) * tempered.softmax(0)
            factors = [factor] if len(traces) < self.num_particles else factor
            layered = [weigh_paths(*pair, f, resample is not None) for pair, f in zip(traces, factors, strict=True)]
            if any(layered) and weights.log_q.requires_grad:
                weights.log_q.register_hook(factor.mul)
        bound = power_mean(log_w, self.alpha)
        if resample is not None:
            indices, guide_trace = systematic_resample(tempered, resample), traces[0][1]
            resampled = self._trace_at(indices, model, guide_trace, args, kwargs)
            mean = (log_weights([(resampled, guide_trace)]).log_p - weights.log_q.gather(0, indices)).mean(0)
            bound = bound.detach() + mean - mean.detach()
        return Terms(self.extra(traces) - weights.total(bound), -weights.total(log_w.detach().mean(0)))

    def _trace_at(self, indices: Tensor, model: Program, guide_trace: Trace, args: tuple, kwargs: dict) -> Trace:
        """Trace the model at the guide's draws of indices ``(m, *data)``, with their path gradients."""
        draws = Trace()
        for name, site in latent(guide_trace).items():
            value = site["value"]
            rows = indices.reshape(indices.shape + (1,) * site["fn"].event_dim).expand(-1, *value.shape[1:])
            draws.add_node(name, **{**site, "value": value.gather(0, rows)})
        replayed = poutine.replay(self._rerun(model, len(indices)), trace=draws)
        trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        trace.compute_log_prob()
        return trace


class IWAE(Renyi):
    r"""The importance weighted bound on log p(x), per datum.

    .. math::
        \mathrm{IWAE}_K(x) = \mathbb{E}\Big[\log \frac{1}{K} \sum_{k=1}^K w_k\Big] \le \log p(x), \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    The loss is minus the bound, in nats, summed over the data. A datum is one element of the plates that all sites
    share. At K = 1 the bound is the ELBO, and the bound grows with K. The scale of a subsampled plate multiplies the
    logarithm, so the bound of a minibatch is unbiased.

    With ``resample`` = m the loss uses all K draws. The gradient uses m draws, resampled in proportion to
    :math:`w_k`. This gradient has the same mean and a slightly larger variance (section 3 of Burda et al., for m = 1).

    Note:
        With :math:`\hat{w}_k = w_k / \sum_j w_j`, the model's gradient is :math:`\sum_k \hat{w}_k \nabla \log w_k`.
        The guide's ``pathwise`` gradient has the same formula, and a signal-to-noise ratio that falls as
        :math:`K^{-1/2}`. ``stl`` drops the score of q, and is biased for K > 1. ``dreg`` is
        :math:`\sum_k \hat{w}_k^2 \, \partial_z \log w_k \, \partial_\phi z_k`. ``dreg`` is unbiased, and has a
        signal-to-noise ratio that grows as :math:`K^{1/2}`. A guide of several layers uses generalised ``dreg``.

    References:
        `Importance Weighted Autoencoders <https://arxiv.org/abs/1509.00519>`_ (Burda, Grosse and Salakhutdinov, 2016).
        `Sticking the Landing <https://arxiv.org/abs/1703.09194>`_ (Roeder, Wu and Duvenaud, 2017).
        `Doubly Reparameterized Gradient Estimators <https://arxiv.org/abs/1810.04152>`_ (Tucker et al., 2019), and
        `their generalised form <https://arxiv.org/abs/2101.11046>`_ (Bauer and Mnih, 2021).
        `Tighter Bounds are Not Necessarily Better <https://arxiv.org/abs/1802.04537>`_ (Rainforth et al., 2018).

    Arguments:
        num_particles: K, draws per datum.
        gradient: Estimator of the guide's gradient: ``pathwise``, ``stl`` or ``dreg``.
        vectorize_particles: As in :class:`Objective`.
        resample: m, the number of draws in the gradient; None for all.

    Raises:
        ValueError: If an argument is out of range; a site is outside the data's plate; the sites' scales differ; or a
            latent site has no ``rsample``.

    See Also:
        :class:`ReweightedWakeSleep`, for latent sites without ``rsample``; :class:`ELBO`, for a closed-form divergence.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((64,), latent=2)
        >>> isinstance(IWAE(5, gradient="dreg").loss(vae.model, vae.guide, torch.rand(32, 64)), float)
        True
    """

    def __init__(
        self,
        num_particles: int = 50,
        gradient: Gradient = "pathwise",
        vectorize_particles: bool = True,
        resample: int | None = None,
    ) -> None:
        super().__init__(0.0, num_particles, gradient, vectorize_particles, resample)


class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep, per datum: one objective for the model and a second objective for the guide.

    The model maximises the importance weighted bound. The guide minimises the inclusive divergence
    :math:`\mathrm{KL}(p(z \mid x) \,\|\, q(z \mid x))` (the wake-phase update of q). Both gradients use the
    same weights :math:`\hat{w}_k = w_k / \sum_j w_j`:

    .. math::
        \nabla_\theta = \sum_k \hat{w}_k \nabla_\theta \log p(x, z_k), \qquad
        \nabla_\phi = \sum_k \hat{w}_k \nabla_\phi \log q(z_k \mid x)

    No site needs ``rsample``, so latent sites may be discrete. The loss is minus the importance weighted bound, in
    nats, summed over the data; ``backward()`` gives minus the two gradients. The arguments and all other errors are
    the same as in :class:`IWAE`.

    References:
        `Reweighted Wake-Sleep <https://arxiv.org/abs/1406.2751>`_ (Bornschein and Bengio, 2015).
        `Revisiting Reweighted Wake-Sleep <https://arxiv.org/abs/1805.10469>`_ (Le et al., 2019).
    """

    def __init__(self, num_particles: int = 50, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles, "importance weights need draws")

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Return minus the importance weighted bound, with the two gradients, and minus the ELBO."""
        with _FixedDraws():
            traces = self._traces(model, guide, args, kwargs)
        weights = log_weights(traces)
        log_w = weights.log_w.detach()
        shares = (weights.log_p - weights.log_q).detach() - log_w.logsumexp(0)  # of each class and draw
        both = weights.total(shares.exp() * (weights.log_p + weights.log_q + weights.log_r))
        bound = weights.total(power_mean(log_w, 0.0))
        return Terms(both.detach() - both - bound + self.extra(traces), -weights.total(log_w.mean(0)))


class _FixedDraws(Messenger):
    """Stops the gradient at every draw, so that sites that depend on it have no path gradient."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()
