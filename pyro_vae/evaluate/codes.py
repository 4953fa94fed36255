r"""What codes know of the data: dimension by dimension, all together, and the classes among them."""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.compiled import how_many_fit
from pyro_vae.conditional import mean
from pyro_vae.data.supports import of_element
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_least
from pyro_vae.program import Posterior, coordinates
from pyro_vae.traces.enumeration import is_flat, per_datum
from pyro_vae.traces.sites import density_sites, enumerated, samples
from pyro_vae.words import above

AVERAGED = 100  # draws, for a mean that has no closed form


def activity(program: Any, data: Any, seed: int | None = None) -> Tensor:
    r"""Return how much each latent dimension knows of x, of shape ``(D,)``: 0 where it knows nothing.

    .. math:: \mathrm{Var}_x \big( \mathbb{E}_{q(z \mid x)}[z_i] \big)

    The variance is over the data, some hundred or more, and the dimensions of several sites follow each other. Where
    the guide has no mean in closed form, as a flow or a site that is drawn given another, it is the covariance of two
    averages of independent draws, whose noise cancels: a dimension that knows nothing may come out a little below 0.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Raises:
        ValueError: If there are fewer than 2 data.
    """
    with at_data(program, data, seed) as whole:
        if len(whole) < 2:
            raise ValueError(
                f"Expected at least 2 images, to see what changes from one to the other; got {len(whole)}."
            )
        num = draws_of_means(whole)

        def means(rows: Posterior) -> Tensor:
            return torch.stack([guide_means(rows, num), guide_means(rows, num)])

        one, other = torch.cat([means(rows) for rows in batches_that_fit(whole, means, unit=2)], dim=1)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(one) - 1)


def active_units(program: Any, data: Any, threshold: float = 0.01, seed: int | None = None) -> int:
    r"""Return how many latent dimensions are used: those whose :func:`activity` is above a threshold.

    That, in the units of z squared, is the paper's, for a prior of unit scale; activities tend to be near 0 or near 1.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2), scale=0.5)
        >>> active_units(model.vae(), torch.randn(100, 2))
        1
    """
    return int((activity(program, data, seed) > threshold).sum())


def usage(activity: Tensor, num: int, threshold: float = 0.01) -> tuple[int, int, int]:
    """Return how many dimensions are used, by their activity over so many data; how many surely are not; and the rest.

    The error bar, that of normal codes, is below the threshold where they surely are not, and reaches it for the rest.
    """
    errors = (activity.abs() * math.sqrt(2 / max(1, num - 1))).tolist()
    told = [above(a, error, num, threshold) for a, error in zip(activity.tolist(), errors, strict=True)]
    return int((activity > threshold).sum()), told.count(False), told.count(None)


def dimensions(whole: Posterior) -> list[str]:
    """Return the names of the dimensions that :func:`activity` is of, as ``z[3]``: of sites whose draws have a mean."""
    return [name for site in _with_mean(whole) for name in coordinates(site, whole.structure.shapes[site])]


def guide_means(rows: Posterior, num: int = 1) -> Tensor:
    """Return the mean of each dimension under the guide, of shape ``(rows, D)``, over ``num`` draws of its sites."""
    nodes: Any = rows.runner.run(rows.program.guide, num).nodes
    means = [rows.runner.to_rows(mean(nodes[name]["fn"])) for name in _with_mean(rows)]
    return torch.cat([m.mean(0).reshape(len(rows), -1) for m in means], dim=1) if means else torch.zeros(len(rows), 0)


def draws_of_means(whole: Posterior) -> int:
    """Return how many draws a mean takes: those of a site that is drawn given another vary."""
    return 1 if len(whole.structure.supports) == 1 else AVERAGED


def _with_mean(rows: Posterior) -> list[str]:
    """Return the latent sites that the guide draws, but for labels."""
    supports, alone = rows.structure.supports, rows.structure.alone
    labels = type(constraints.integer_interval(0, 1))
    return [name for name in supports if name not in alone and not isinstance(of_element(supports[name]), labels)]


class Aggregate(NamedTuple):
    """The two parts of the mean divergence, in nats: ``mutual_information``, at most ``log N``, and ``kl``."""

    mutual_information: float
    kl: float


def aggregate(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> Aggregate:
    r"""Split the mean divergence over N images in two, in nats, with :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

    .. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    The first is how much z tells of which image it is the code of, at most :math:`\log N`: near that there are too few
    images to measure it. The second, of the aggregate posterior from the prior, is what a prior that follows the codes
    could save. Both are means over ``num_particles`` draws of every image's code; the work grows with the square of N.

    References:
        ELBO Surgery: Yet Another Way to Carve up the Variational Evidence Lower Bound (Hoffman and Johnson, 2016).

    Raises:
        ValueError: If there are fewer than 2 images, or no particles.
    """
    information, kl = (part.mean().item() for part in aggregate_of_codes(program, data, num_particles, seed))
    return Aggregate(information, kl)


def aggregate_of_codes(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> list[Tensor]:
    """Return for each code, ``(num_particles * N,)``, what the two parts of :func:`aggregate` are the means of."""
    with at_data(program, data, seed) as whole:
        if len(whole) < 2 or num_particles < 1:
            raise ValueError(f"Expected at least 2 images and 1 particle; got {len(whole)} and {num_particles}.")
        draws, _ = whole.propose(num_particles)
        own, of_prior = (log_p.flatten() for log_p in (whole.log_q(draws), whole.log_prior(draws)))
        points = {name: value.flatten(0, 1).unsqueeze(1) for name, value in draws.items()}

        def of_all(start: int, end: int) -> Tensor:
            rows = {name: value[start:end].expand(-1, len(whole), *value.shape[2:]) for name, value in points.items()}
            return whole.log_q(rows).logsumexp(1)

        number = num_particles * len(whole)
        size = how_many_fit(lambda n: of_all(0, n), number, whole.data[0].device)
        of_mixture = torch.cat([of_all(i, i + size) for i in range(0, number, size)]) - math.log(len(whole))
        return [own - of_mixture, of_mixture - of_prior]


def mutual_information(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> float:
    r"""Return how much a code tells of which image it is of, :math:`I_q(n; z)` in nats: see :func:`aggregate`.

    0 where the posterior has collapsed to the prior; at most :math:`\log N`.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2), torch.zeros(3), scale=1.0)  # a decoder that ignores z
        >>> abs(mutual_information(model.vae(), torch.randn(50, 3))) < 1e-5
        True
    """
    return aggregate(program, data, num_particles, seed).mutual_information


def posterior(program: Any, data: Any, site: str, num_particles: int = 100, seed: int | None = None) -> Tensor:
    r"""Return the posterior of a discrete site, p(y | x), of shape ``(B, classes)``: its classes are summed, not drawn.

    .. math:: p(y \mid x) \propto \frac{1}{K} \sum_k \frac{p(x, y, z_{ky})}{q(z_{ky} \mid x, y)}

    Exact where nothing is latent beside it, or the guide is the posterior given y; else by self-normalised importance
    sampling of z, K ``num_particles`` for every class. A label that is seen has all of the probability. Model or guide
    marks the site ``infer={"enumerate": "parallel"}``; of one with ``obs_mask`` give the name that was written.

    Raises:
        ValueError: If there is no such site, or it is not discrete, or in a Markov chain or a plate inside a datum.
    """
    check_least(num_particles=num_particles)
    classes = partial(_classes, site=site, num=num_particles)
    with at_data(program, data, seed) as whole:
        return torch.cat([classes(rows) for rows in batches_that_fit(whole, classes)], dim=1).T


def _classes(rows: Posterior, site: str, num: int) -> Tensor:
    """Return p(y | x) of some rows, of shape ``(classes, B)``."""
    model_trace, guide_trace = rows.traces(num)
    model, guide, nesting = samples(model_trace), density_sites(model_trace, guide_trace), 1 + rows.structure.depth
    dims, keep = enumerated(model), {rows.structure.dim}
    name = site if site in dims else f"{site}_unobserved"
    if name not in dims or not is_flat((guide | model).values(), keep):
        raise ValueError(
            f"Expected a discrete site whose classes are summed out, in no Markov chain or plate inside a datum; got "
            f"{site!r}, and the program sums out {', '.join(map(repr, dims)) or 'none'}. Mark it "
            "infer={'enumerate': 'parallel'}."
        )
    drawn = (guide[name] for name in guide if name not in dims)
    total = per_datum(model.values(), keep, nesting) - per_datum(drawn, keep, nesting)
    others = [dim for dim in range(-total.dim(), -nesting) if dim != dims[name]]
    log_p = (total.logsumexp(others, keepdim=True) if others else total).movedim(dims[name], 0)
    log_p = log_p.reshape(len(log_p), *log_p.shape[-nesting:])
    share = torch.stack([rows.runner.rows(part, num) for part in log_p]).logsumexp(1).softmax(0)
    if name == site:
        return share
    # Where a label is seen, its value is the same whatever the class of the site that is summed out.
    values: Any = model_trace.nodes[site]["value"]
    values = torch.stack([rows.runner.rows(part, num)[0] for part in values.movedim(dims[name], 0)])
    classes = torch.arange(len(share), device=share.device).reshape(-1, 1, 1)
    return torch.where(values == classes, share, 0.0).sum(1)
