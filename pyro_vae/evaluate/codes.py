r"""Information in the codes about the data, per dimension and in total, and the posterior of classes."""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.compiled import max_batch_size
from pyro_vae.conditional import mean
from pyro_vae.data.supports import of_element
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_least
from pyro_vae.program import Posterior, coordinates
from pyro_vae.traces.enumeration import is_flat, per_datum
from pyro_vae.traces.sites import density_sites, enumerated, samples
from pyro_vae.words import above

AVERAGED = 100  # draws for a mean without a closed form


def latent_activity(program: Any, data: Any, seed: int | None = None) -> Tensor:
    r"""Return the activity of each latent dimension, of shape ``(D,)``: 0 where z does not depend on x.

    .. math:: \mathrm{Var}_x \big( \mathbb{E}_{q(z \mid x)}[z_i] \big)

    The variance is over the data; use a hundred data or more. The dimensions of several sites are concatenated. If the
    guide's mean has no closed form, as for a flow or a site given another site, two independent averages of draws
    estimate the mean. The activity is then the covariance of the two averages. Sampling noise does not bias the
    covariance, but the covariance may be slightly below 0.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519.

    Raises:
        ValueError: If there are fewer than 2 data.

    See Also:
        :func:`active_units` counts dimensions above a threshold; :func:`kl_per_dim` returns the KL of each dimension.
    """
    with at_data(program, data, seed) as posterior:
        if len(posterior) < 2:
            raise ValueError(f"Expected at least 2 images, for a variance over images; got {len(posterior)}.")
        num = draws_for_means(posterior)

        def means(rows: Posterior) -> Tensor:
            return torch.stack([guide_means(rows, num), guide_means(rows, num)])

        first, second = torch.cat([means(rows) for rows in batches_that_fit(posterior, means, unit=2)], dim=1)
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)


def active_units(program: Any, data: Any, threshold: float = 0.01, seed: int | None = None) -> int:
    r"""Return the number of latent dimensions whose :func:`latent_activity` is above a threshold.

    Burda et al. (2016) use the default threshold, for a prior of unit scale. The threshold has the units of z
    squared.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2), scale=0.5)
        >>> active_units(model.vae(), torch.randn(100, 2))
        1
    """
    return int((latent_activity(program, data, seed) > threshold).sum())


def usage(activity: Tensor, num: int, threshold: float = 0.01) -> tuple[int, int, int]:
    """Return the numbers of active, surely inactive and undecided dimensions, given activities over ``num`` data.

    Error bars (of normal codes) lie below the threshold for the second number and contain the threshold for the third.
    """
    errors = (activity.abs() * math.sqrt(2 / max(1, num - 1))).tolist()
    verdicts = [above(a, error, num, threshold) for a, error in zip(activity.tolist(), errors, strict=True)]
    return int((activity > threshold).sum()), verdicts.count(False), verdicts.count(None)


def dimensions(posterior: Posterior) -> list[str]:
    """Return the names of the dimensions of :func:`latent_activity`, such as ``z[3]``."""
    shapes = posterior.structure.shapes
    return [name for site in _sites_with_mean(posterior) for name in coordinates(site, shapes[site])]


def guide_means(rows: Posterior, num: int = 1) -> Tensor:
    """Return the guide's mean of each dimension, of shape ``(rows, D)``, averaged over ``num`` draws of other sites."""
    nodes: Any = rows.runner.run(rows.program.guide, num).nodes
    means = [rows.runner.to_rows(mean(nodes[name]["fn"])) for name in _sites_with_mean(rows)]
    return torch.cat([m.mean(0).reshape(len(rows), -1) for m in means], dim=1) if means else torch.zeros(len(rows), 0)


def draws_for_means(posterior: Posterior) -> int:
    """Return the number of draws for the guide's means: 1 if the program has a single latent site."""
    return 1 if len(posterior.structure.supports) == 1 else AVERAGED


def _sites_with_mean(rows: Posterior) -> list[str]:
    """Return the names of the latent sites that the guide draws, except labels."""
    supports, absent = rows.structure.supports, rows.structure.model_only
    labels = type(constraints.integer_interval(0, 1))
    return [name for name in supports if name not in absent and not isinstance(of_element(supports[name]), labels)]


class Aggregate(NamedTuple):
    """The mean KL in two parts, in nats: ``mutual_information``, at most ``log N``, and ``kl`` to the prior."""

    mutual_information: float
    kl: float


def elbo_surgery(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> Aggregate:
    r"""Split the mean KL over N images into two parts, in nats, for :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    The first part is the mutual information between image and code, at most :math:`\log N`. A value near
    :math:`\log N` means that N is too small for an estimate. The second part is the KL from the aggregate posterior to
    the prior; a prior fitted to the codes reduces the KL by at most this amount. Both parts are means over
    ``num_particles`` draws of every image's code. The run time grows with the square of N.

    References:
        ELBO Surgery: Yet Another Way to Carve up the Variational Evidence Lower Bound (Hoffman and Johnson, 2016).

    Raises:
        ValueError: If there are fewer than 2 images, or no particles.
    """
    information, kl = (part.mean().item() for part in aggregate_of_codes(program, data, num_particles, seed))
    return Aggregate(information, kl)


def aggregate_of_codes(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> list[Tensor]:
    """Return the two parts of :func:`elbo_surgery` for each code, each of shape ``(num_particles * N,)``."""
    with at_data(program, data, seed) as posterior:
        if len(posterior) < 2 or num_particles < 1:
            raise ValueError(f"Expected at least 2 images and 1 particle; got {len(posterior)} and {num_particles}.")
        draws, _ = posterior.propose(num_particles)
        log_q, log_prior = (log_p.flatten() for log_p in (posterior.log_q(draws), posterior.log_prior(draws)))
        codes = {name: value.flatten(0, 1).unsqueeze(1) for name, value in draws.items()}

        def log_sum(start: int, end: int) -> Tensor:
            rows = {name: z[start:end].expand(-1, len(posterior), *z.shape[2:]) for name, z in codes.items()}
            return posterior.log_q(rows).logsumexp(1)

        number = num_particles * len(posterior)
        size = max_batch_size(lambda n: log_sum(0, n), number, posterior.data[0].device)
        log_sums = torch.cat([log_sum(i, i + size) for i in range(0, number, size)])
        log_aggregate = log_sums - math.log(len(posterior))
        return [log_q - log_aggregate, log_aggregate - log_prior]


def mutual_information(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> float:
    r"""Return the mutual information between image and code, :math:`I_q(n; z)` in nats, by :func:`elbo_surgery`.

    The mutual information is 0 if the posterior has collapsed to the prior, and at most :math:`\log N`.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2), torch.zeros(3), scale=1.0)  # a decoder that ignores z
        >>> abs(mutual_information(model.vae(), torch.randn(50, 3))) < 1e-5
        True
    """
    return elbo_surgery(program, data, num_particles, seed).mutual_information


def posterior(program: Any, data: Any, site: str, num_particles: int = 100, seed: int | None = None) -> Tensor:
    r"""Return the posterior of a discrete site, p(y | x), of shape ``(B, classes)``, by enumeration of its classes.

    .. math:: p(y \mid x) \propto \frac{1}{K} \sum_k \frac{p(x, y, z_{ky})}{q(z_{ky} \mid x, y)}

    The result is exact if there is no other latent site, or if the guide is the posterior given y. Otherwise the result
    is a self-normalised importance sampling estimate with K = ``num_particles`` draws of z for every class. An observed
    label has probability 1. The model or the guide must mark the site with ``infer={"enumerate": "parallel"}``. For a
    site ``y`` with ``obs_mask``, pass ``y``, not Pyro's ``y_unobserved``.

    Raises:
        ValueError: If the site does not exist, is not discrete, has no mark to enumerate it, or is in a Markov chain or
            in a plate inside a datum; or ``num_particles`` is below 1.
    """
    check_least(num_particles=num_particles)
    classes = partial(_classes, site=site, num=num_particles)
    with at_data(program, data, seed) as target:
        return torch.cat([classes(rows) for rows in batches_that_fit(target, classes)], dim=1).T


def _classes(rows: Posterior, site: str, num: int) -> Tensor:
    """Return p(y | x) of some rows, of shape ``(classes, B)``."""
    model_trace, guide_trace = rows.traces(num)
    model, guide, nesting = samples(model_trace), density_sites(model_trace, guide_trace), 1 + rows.structure.depth
    dims, keep = enumerated(model), {rows.structure.dim}
    name = site if site in dims else f"{site}_unobserved"
    if name not in dims or not is_flat((guide | model).values(), keep):
        raise ValueError(
            f"Expected a discrete site with summed classes, in no Markov chain and no plate inside a datum; got "
            f"{site!r}, and the program sums out {', '.join(map(repr, dims)) or 'none'}. Mark the site "
            "infer={'enumerate': 'parallel'}."
        )
    draws = (guide[name] for name in guide if name not in dims)
    total = per_datum(model.values(), keep, nesting) - per_datum(draws, keep, nesting)
    rest = [dim for dim in range(-total.dim(), -nesting) if dim != dims[name]]
    log_p = (total.logsumexp(rest, keepdim=True) if rest else total).movedim(dims[name], 0)
    log_p = log_p.reshape(len(log_p), *log_p.shape[-nesting:])
    share = torch.stack([rows.runner.per_datum(part, num) for part in log_p]).logsumexp(1).softmax(0)
    if name == site:
        return share
    # An observed label has the same value for all classes of the summed site.
    values: Any = model_trace.nodes[site]["value"]
    values = torch.stack([rows.runner.per_datum(part, num)[0] for part in values.movedim(dims[name], 0)])
    classes = torch.arange(len(share), device=share.device).reshape(-1, 1, 1)
    return torch.where(values == classes, share, 0.0).sum(1)
