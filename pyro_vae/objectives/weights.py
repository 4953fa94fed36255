r"""Importance weights of any Pyro program: one for each particle and datum, whatever its plates and scales."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.objectives.sites import PARTICLES, Site, plates, same, samples

__all__ = ["Weights", "chosen_by_weight", "log_weights", "power_mean"]


class Weights(NamedTuple):
    """Log-densities of K particles, each ``(K, *data)``, in nats, masked and unscaled; and the scale of the data."""

    log_p: Tensor
    log_q: Tensor
    scale: float | Tensor

    @property
    def log_w(self) -> Tensor:
        """The log-weights, log p(x, z) - log q(z)."""
        return self.log_p - self.log_q

    def total(self, per_datum: Tensor) -> Tensor:
        """Sum over the data, with their scale."""
        return (self.scale * per_datum).sum()


def log_weights(traces: list[tuple[Trace, Trace]]) -> Weights:
    """Return the importance weights of each particle and datum.

    A datum is one element of the plates that all sites are in; what is in further plates, inside it, is summed. The
    scale that all sites share, of a subsampled plate or ``poutine.scale``, is kept apart.

    Arguments:
        traces: Model and guide with log-probabilities, all particles in a plate, or a pair for each.

    Raises:
        ValueError: If the sites share no plate, or have different scales.
    """
    pairs = [[list(samples(trace).values()) for trace in pair] for pair in traces]
    sites = [site for pair in pairs for part in pair for site in part]
    keep = {frame.dim for frame in _shared_plates(sites)}
    vectorized = any(frame.name == PARTICLES for frame in sites[0]["cond_indep_stack"])

    def gather(parts: list[list[Site]]) -> Tensor:
        sums = [sum((_per_datum(site, keep) for site in part), torch.zeros(())) for part in parts]
        return sums[0] if vectorized else torch.stack(sums)

    log_p, log_q = (gather([pair[i] for pair in pairs]) for i in (0, 1))
    return Weights(log_p, log_q, _shared_scale(pairs[0]))


def power_mean(log_w: Tensor, alpha: float) -> Tensor:
    r"""Return the logarithm of the power mean of weights over the first dimension, in nats.

    .. math:: \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}

    and its limit, :math:`\frac{1}{K} \sum_k \log w_k`, at :math:`\alpha = 1`.

    Example:
        >>> log_w = torch.tensor([1.0, 3.0]).log()
        >>> [round(power_mean(log_w, alpha).exp().item(), 3) for alpha in (0.0, 0.5, 1.0)]
        [2.0, 1.866, 1.732]
    """
    if alpha == 1:
        return log_w.mean(0)
    power = 1 - alpha
    if abs(power) < 0.1:
        # Here the logarithm of the mean is of order 1 - alpha, and must not be a difference of larger numbers.
        middle = log_w.detach().mean(0)
        return middle + (power * (log_w - middle)).expm1().mean(0).log1p() / power
    return ((power * log_w).logsumexp(0) - math.log(len(log_w))) / power


def chosen_by_weight(log_w: Tensor, number: int) -> Tensor:
    r"""Draw particles of each datum by their weights: particle k on average :math:`m \hat{w}_k` times.

    Systematically: one uniform number a datum decides all m of its draws, so that particle k is drawn
    :math:`m \hat{w}_k` times, rounded up or down.

    References:
        Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models (Kitagawa, 1996).

    Arguments:
        log_w: Shape ``(K, *data)``.
        number: m.

    Returns:
        Indices from 0 to K - 1, of shape ``(m, *data)``.

    Example:
        >>> chosen_by_weight(torch.tensor([0.5, 0.0, 0.25, 0.25]).log(), 4)
        tensor([0, 0, 2, 3])
    """
    shares = log_w.softmax(0).cumsum(0)
    first = torch.arange(number, dtype=log_w.dtype, device=log_w.device).reshape(-1, *(1,) * (log_w.dim() - 1))
    # With a last dimension, as a latent has, so that several processes draw it as they draw a latent's noise.
    points = (first + torch.rand_like(log_w[:1].unsqueeze(-1)).squeeze(-1)) / number
    return (shares <= points.unsqueeze(1)).sum(1).clamp(max=len(log_w) - 1)


def _per_datum(site: Site, keep: set[int]) -> Tensor:
    log_prob = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
    keep = keep | {frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES}
    inside = [dim for dim in range(-log_prob.dim(), 0) if dim not in keep]
    return log_prob.sum(inside, keepdim=True) if inside else log_prob


def _shared_plates(sites: list[Site]) -> frozenset:
    shared = frozenset.intersection(*(frozenset(f for f in plates(site) if f.vectorized) for site in sites))
    names = [frame.name for site in sites for frame in plates(site)]
    if names and not shared:
        data = max(names, key=names.count)
        outside = next((site for site in sites if data not in {frame.name for frame in plates(site)}), None)
        if outside is None:
            raise ValueError(
                f"Expected a vectorized plate for the data, for a weight per datum; {data!r} is a loop. Write it as "
                f"`with pyro.plate({data!r}, size):`, or use objectives.ELBO."
            )
        raise ValueError(
            f"Expected every site in one plate, the data's, for a weight per datum; {outside['name']!r} is outside "
            f"{data!r}. Use objectives.ELBO, or .to_event in place of a plate that is inside one datum."
        )
    return shared


def _shared_scale(pair: list[list[Site]]) -> float | Tensor:
    named = [
        (f"{s['name']!r} of the {part}", s) for part, found in zip(("model", "guide"), pair, strict=True) for s in found
    ]
    first, scale = named[0][0], named[0][1]["scale"]
    for name, site in named:
        other = site["scale"]
        if not (same(scale, other) or (isinstance(scale, Tensor) and isinstance(other, Tensor) and scale.equal(other))):
            raise ValueError(
                "Expected one scale for every site, to stay outside the log-sum-exp of the weights; "
                f"{name} has {_show(other)} and {first} {_show(scale)}. Scale model and guide as wholes, or use "
                "objectives.ELBO, which has a beta."
            )
    return scale


def _show(scale: float | Tensor) -> str:
    return f"a tensor of shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else f"{scale:g}"
