"""The ELBO's two terms and -log p(x): of each datum, of each site and dimension, and in the mean over a split."""

import math
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_vae.data import Split
from pyro_vae.evaluate.codes import draws_of_means
from pyro_vae.evaluate.weighing import Proposal, at_data, batches, nll, room
from pyro_vae.objectives.base import check_least
from pyro_vae.objectives.divergence import Divergence, divergences, reconstruction_terms
from pyro_vae.objectives.divergence import kl_per_dim as site_kl_per_dim
from pyro_vae.program import Posterior, argument_names, arguments, point_of, posterior_of
from pyro_vae.program.checks import sources
from pyro_vae.seeds import at_test
from pyro_vae.traces.enumeration import Expectation

DRAWS = 10  # for the ELBO of a summary


def split(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of the ELBO per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathrm{ELBO} = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The first is a mean over ``num_particles`` draws; the second in closed form where there is one, else a mean, too.

    Raises:
        ValueError: If there are no particles or no data, or classes are in a Markov chain or a plate inside a datum.
    """
    reconstruction, sites = _terms(program, data, num_particles, seed)
    return reconstruction, torch.stack([*sites.values()]).sum(0) if sites else torch.zeros_like(reconstruction)


def kl_by_site(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> dict[str, Tensor]:
    r"""Return the divergence of each latent site per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathbb{E}_q[\mathrm{KL}(q(z_s \mid x, \cdot) \,\|\, p(z_s \mid \cdot))]

    given what the guide, or the model, draws before the site. They add up to the second term of :func:`split`, whose
    arguments these are.
    """
    return _terms(program, data, num_particles, seed)[1]


def _terms(program: Any, data: Any, num: int, seed: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    check_least(num_particles=num)
    with at_data(program, data, seed) as whole:
        parts = [_terms_of(rows, num) for rows in _parts(whole, num)]
    return tree_map(lambda *terms: torch.cat(terms), *parts)


def _parts(whole: Posterior, num: int) -> list[Posterior]:
    """Return the data in parts, of each of which so many draws fit in memory."""
    images, draws = room(whole)
    return batches(whole, max(1, min(images, draws // num)))


def _terms_of(rows: Posterior, num: int) -> tuple[Tensor, dict[str, Tensor]]:
    model_trace, _, expect, sites = _divergences(rows, num)

    def total(terms: Any) -> Tensor:
        return sum((rows.runner.rows(term, num).mean(0) for term in terms), torch.zeros(()))

    reconstruction = total(reconstruction_terms(model_trace, expect))
    return reconstruction.expand(len(rows)), {name: total(site.means) for name, site in sites.items()}


def _divergences(rows: Posterior, num: int) -> tuple[Trace, Trace, Expectation, dict[str, Divergence]]:
    model_trace, guide_trace = rows.traces(num)
    expect = Expectation(model_trace, guide_trace, 1 + rows.structure.depth)
    return model_trace, guide_trace, expect, divergences(model_trace, guide_trace, expect)


@torch.no_grad()
def is_exact(whole: Posterior) -> bool:
    """Say whether the divergence of every latent site is in closed form, at some data."""
    return not any(site.reason for site in _divergences(whole, 1)[-1].values())


def kl_per_dim(program: Any, data: Any) -> Tensor:
    r"""Return the divergence of each latent dimension per datum, in nats, of shape ``(B, D)``.

    .. math:: \mathrm{KL}(q(z_i \mid x_b) \,\|\, p(z_i))

    Their sum over dimensions is the divergence, since guide and prior are independent over them. The dimensions of
    several sites follow each other; where a site is drawn given another, it is a mean over 100 draws of that.

    Raises:
        ValueError: If the guide or the prior of a site is not independent over dimensions, or no closed form is known.
    """
    with at_data(program, data) as whole:
        num = draws_of_means(whole)
        return torch.cat([_kl_per_dim(rows, num) for rows in _parts(whole, num)])


def _kl_per_dim(rows: Posterior, num: int) -> Tensor:
    model_trace, guide_trace, expect, sites = _divergences(rows, num)
    columns = []
    for name, site in sites.items():
        q, p = guide_trace.nodes[name], model_trace.nodes.get(name)
        kl = None if site.reason or p is None or expect.log_q is not None else site_kl_per_dim(q, p)
        if kl is None:
            raise ValueError(
                "Expected a guide and a prior that are independent over latent dimensions, with a divergence in closed "
                f"form; site {name!r} has none. Use split, or kl_by_site, for the whole divergence."
            )
        columns.append(rows.runner.to_rows(kl).mean(0).reshape(len(rows), -1))
    return torch.cat(columns, dim=1)


class Values(NamedTuple):
    """One number for each image, in nats, each of shape ``(B,)``; ``elbo`` is ``reconstruction`` minus ``kl``."""

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    nll: Tensor


class Summary(NamedTuple):
    """Means over the data, in nats per datum, with the standard error of each over the data."""

    images: int
    elbo: tuple[float, float]
    reconstruction: tuple[float, float]
    kl: tuple[float, float]
    nll: tuple[float, float]


def per_image(
    program: Any,
    data: Split,
    num_particles: int = 1000,
    images: int = 1000,
    seed: int = 0,
    progress: bool = False,
    proposal: Proposal = "guide",
) -> Values:
    """Evaluate a program on each of the first ``images`` of a split: :func:`summary` is the mean of it.

    -log p(x) takes ``num_particles`` draws per datum from the ``proposal``, the ELBO's reconstruction 10. Two programs
    are compared image by image, with the same seed.

    Raises:
        ValueError: If there are no particles or no images.
    """
    if images < 1:
        raise ValueError(f"Expected at least 1 image to evaluate on; got {images}.")
    with at_test(program, point_of(program).device, seed):  # which draws the noise of the rows, too
        whole = posterior_of(program, rows_of(program, data, slice(0, images)))
        reconstruction, kl = split(program, whole, DRAWS)
        minus_log_p = nll(program, whole, num_particles, progress=progress, proposal=proposal)
        return Values(reconstruction - kl, reconstruction, kl, minus_log_p)


def rows_of(program: Any, data: Split, rows: slice | Tensor) -> tuple[Tensor, ...]:
    """Return some rows of a split as the arguments of a program that it is judged by: by its ``unlabelled``, if any."""
    found = _arguments(program, data, rows)
    return program.unlabelled(*found) if hasattr(program, "unlabelled") else found


def measures(program: Any, data: Split, images: int = 1000) -> dict[str, tuple[float, float]]:
    """Return means and standard errors, by name, of what a program's method ``measures``, if any, says of a split."""
    if not hasattr(program, "measures"):
        return {}
    with torch.no_grad(), at_test(program, point_of(program).device):
        found = program.measures(*_arguments(program, data, slice(0, images)))
    return {name: mean_and_error(values[~values.isnan()]) for name, values in found.items()}


def _arguments(program: Any, data: Split, rows: slice | Tensor) -> tuple[Tensor, ...]:
    names = [name for name in [*argument_names(program)][1:] if name in data.columns]
    return arguments(program, data.with_columns(names).batch(rows))


def covariates(whole: Posterior) -> str:
    """Return what log p(x) is given, as `` | y``: the arguments that no observed site shows; empty without any."""
    return f" | {', '.join(given)}" if len(whole.data) > 1 and (given := covariate_names(whole)) else ""


def covariate_names(whole: Posterior) -> list[str]:
    """Return the arguments that no observed site shows."""
    shown = {argument for argument, _ in sources(whole).values()}
    names = [*argument_names(whole.program)][: len(whole.data)]
    return [name for i, name in enumerate(names) if i not in shown]


def summary(
    program: Any,
    data: Split,
    num_particles: int = 1000,
    images: int = 1000,
    seed: int = 0,
    progress: bool = False,
    proposal: Proposal = "guide",
) -> Summary:
    """Summarise a program on a split: the ELBO, its two terms, and -log p(x): the means of :func:`per_image`."""
    found = per_image(program, data, num_particles, images, seed, progress, proposal)
    return Summary(len(found.nll), *map(mean_and_error, found))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error, which of one value is nan."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
