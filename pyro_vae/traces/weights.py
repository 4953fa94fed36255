r"""Importance weights of a Pyro program for each particle and datum, for all plates and scales."""

import math
from typing import NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.operations import log_sum_exp
from pyro_vae.traces.enumeration import MAX_DIMS, eliminate, is_flat, per_datum, sum_out
from pyro_vae.traces.sites import PARTICLES, Site, density_sites, differ, enumerated, plates, same, samples


class Weights(NamedTuple):
    """Log-densities of K particles, in nats, masked and unscaled, of shape ``(K, *data)``, and the data's scale.

    If the guide enumerates sites, ``log_p`` and ``log_q`` have ``classes`` further dimensions on the left, one for each
    enumerated site. ``log_r`` is the guide's log-density of the classes, which :attr:`log_w` does not subtract. Where a
    sum over classes does not split by datum, as in a Markov chain, ``log_p`` has the log-weights, and ``log_q`` is 0.
    """

    log_p: Tensor
    log_q: Tensor
    scale: float | Tensor
    log_r: Tensor
    classes: int = 0

    @property
    def log_w(self) -> Tensor:
        """The log-weights log p(x, z) - log q(z), of shape ``(K, *data)``, summed over classes."""
        log_w = self.log_p - self.log_q
        return log_sum_exp(log_w.flatten(0, self.classes - 1), 0) if self.classes else log_w

    def total(self, values: Tensor) -> Tensor:
        """Multiply the value of each datum by its scale, and return the sum over the data."""
        return (self.scale * values).sum()


def log_weights(traces: list[tuple[Trace, Trace]], scaled: bool = True) -> Weights:
    """Return the importance weight of each particle and datum, from one pair of traces or a pair for each particle.

    A datum is one element of the plates that all sites share; the weights sum over plates inside a datum. Refuse sites
    that share no plate and, if ``scaled``, sites with different scales.
    """
    pairs = [(samples(model), density_sites(model, guide)) for model, guide in traces]
    sites = [site for pair in pairs for part in pair for site in part.values()]
    shared = shared_plates(sites)
    keep = {frame.dim for frame in shared}
    vectorized = any(frame.name == PARTICLES for frame in sites[0]["cond_indep_stack"])

    def gather(parts: list[Tensor], dim: int = 0) -> Tensor:
        return parts[0] if vectorized else torch.stack(parts, dim)

    scale = _shared_scale(pairs[0]) if scaled else 1.0
    if not enumerated(pairs[0][0] | pairs[0][1]):
        log_p, log_q = (gather([per_datum(pair[i].values(), keep, MAX_DIMS) for pair in pairs]) for i in (0, 1))
        return Weights(log_p, log_q, scale, torch.zeros(()))
    nesting = max((-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized), default=0)
    kept = frozenset(f for f in sites[0]["cond_indep_stack"] if f.vectorized and (f in shared or f.name == PARTICLES))
    size = {frame.dim: frame.size for frame in kept}
    sizes = [size.get(dim, 1) for dim in range(-nesting, 0)]
    if not is_flat((pairs[0][1] | pairs[0][0]).values(), keep):
        log_w = gather([eliminate(*pair, kept).reshape(sizes) for pair in traces])
        return Weights(log_w, torch.zeros(()), scale, torch.zeros(()))
    parts = [_with_classes(model, guide, keep, sizes) for model, guide in pairs]
    classes = max(part.dim() for part in parts[0]) - nesting
    log_p, log_q, log_r = (gather([particle[i] for particle in parts], -1 - nesting) for i in range(3))
    return Weights(log_p, log_q, scale, log_r, classes)


def _with_classes(model: dict[str, Site], guide: dict[str, Site], keep: set[int], sizes: list[int]) -> list[Tensor]:
    """Return log p, summed over classes in the model alone; log q of draws; and log q of the guide's classes."""
    of_guide, nesting = enumerated(guide), len(sizes)
    alone = [dim for name, dim in enumerated(model).items() if name not in of_guide]
    log_p = sum_out(per_datum(model.values(), keep, nesting), alone)
    log_q = per_datum((site for name, site in guide.items() if name not in of_guide), keep, nesting)
    parts = log_p, log_q, per_datum((guide[name] for name in of_guide), keep, nesting)
    shape = torch.broadcast_shapes(sizes, *(part.shape for part in parts))
    while len(shape) > nesting and shape[0] == 1:  # left by classes that are summed out
        shape = shape[1:]
    return [part.reshape(part.shape[max(0, part.dim() - len(shape)) :]).expand(shape) for part in parts]


def power_mean(log_w: Tensor, alpha: float) -> Tensor:
    r"""Return :math:`\frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}` in nats; at 1 the mean of log w."""
    if alpha == 1:
        return log_w.mean(0)
    power = 1 - alpha
    if abs(power) < 0.1:
        # Here the logarithm of the mean is of order 1 - alpha, so it must not be a difference of larger numbers.
        middle = log_w.detach().mean(0)
        return middle + (power * (log_w - middle)).expm1().mean(0).log1p() / power
    return (log_sum_exp(power * log_w, 0) - math.log(len(log_w))) / power


def systematic_resample(log_w: Tensor, number: int) -> Tensor:
    r"""Draw m particles of each datum in proportion to their weights by systematic resampling.

    Log-weights ``(K, *data)`` give indices ``(m, *data)``. One uniform number for each datum decides all draws of the
    datum: particle k occurs :math:`m \hat{w}_k` times, rounded up or down (Kitagawa, 1996).
    """
    shares = log_w.softmax(0).cumsum(0)
    first = torch.arange(number, dtype=log_w.dtype, device=log_w.device).reshape(-1, *(1,) * (log_w.dim() - 1))
    # The last dimension, as of a latent, lets several processes draw this noise as they draw a latent's.
    points = (first + torch.rand_like(log_w[:1].unsqueeze(-1)).squeeze(-1)) / number
    return (shares <= points.unsqueeze(1)).sum(1).clamp(max=len(log_w) - 1)


def shared_plates(sites: list[Site]) -> frozenset:
    """Return the vectorized plates around all sites, except the particles' plate; refuse plates around only some."""
    shared = frozenset.intersection(*(frozenset(f for f in plates(site) if f.vectorized) for site in sites))
    names = [frame.name for site in sites for frame in plates(site)]
    if names and not shared:
        data = max(names, key=names.count)
        outside = [site["name"] for site in sites if data not in {frame.name for frame in plates(site)}]
        if not outside:
            raise ValueError(
                f"Expected a vectorized plate for the data, for a weight per datum; {data!r} is a loop. Write it as "
                f"`with pyro.plate({data!r}, size):`, or use objectives.ELBO."
            )
        raise ValueError(
            f"Expected every site in the data's plate, for a weight per datum; {outside[0]!r} is outside {data!r}. Use "
            "objectives.ELBO, or .to_event in place of a plate that is inside one datum."
        )
    return shared


def _shared_scale(pair: tuple[dict[str, Site], dict[str, Site]]) -> float | Tensor:
    programs = zip(("model", "guide"), pair, strict=True)
    named = [(f"{name!r} of the {part}", site["scale"]) for part, sites in programs for name, site in sites.items()]
    first, scale = named[0]
    for name, other in named:
        if differ(same(scale, other)):
            one, two = (
                f"a tensor of shape {tuple(s.shape)}" if isinstance(s, Tensor) else f"{s:g}" for s in (other, scale)
            )
            raise ValueError(
                f"Expected one scale for all sites, to stay outside the log-sum-exp of the weights; {name} has {one} "
                f"and {first} {two}. Scale model and guide as wholes, or use objectives.ELBO, which has a beta."
            )
    return scale
