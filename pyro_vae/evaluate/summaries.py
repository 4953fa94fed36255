"""The ELBO's two terms and -log p(x): per datum, per site, per dimension, and averaged over a split."""

import math
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_vae.data import Split
from pyro_vae.evaluate.codes import draws_for_means
from pyro_vae.evaluate.weighing import Proposal, at_data, batches, chunk_sizes, nll
from pyro_vae.objectives.base import check_least
from pyro_vae.objectives.divergence import Divergence, divergences, reconstruction_terms
from pyro_vae.objectives.divergence import kl_per_dim as site_kl_per_dim
from pyro_vae.program import Posterior, argument_names, arguments, posterior_of, reference_tensor
from pyro_vae.program.checks import sources
from pyro_vae.seeds import eval_mode
from pyro_vae.traces.enumeration import Expectation

DRAWS = 10  # for the ELBO of a summary


def elbo_terms(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of the ELBO per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathrm{ELBO} = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The first term is a mean over ``num_particles`` draws. The KL is in closed form if known, else a mean over draws.

    Raises:
        ValueError: If there are no particles or no data, or classes are in a Markov chain or a plate inside a datum.

    See Also:
        :func:`kl_by_site` and :func:`kl_per_dim` split the KL; :func:`is_exact` tells whether the KL has a closed form.
    """
    reconstruction, sites = _terms(program, data, num_particles, seed)
    return reconstruction, torch.stack([*sites.values()]).sum(0) if sites else torch.zeros_like(reconstruction)


def kl_by_site(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> dict[str, Tensor]:
    r"""Return the KL of each latent site per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathbb{E}_q[\mathrm{KL}(q(z_s \mid x, \cdot) \,\|\, p(z_s \mid \cdot))]

    The dot stands for the earlier draws of guide and model. The sites add up to the second term of :func:`elbo_terms`,
    which has the same arguments.
    """
    return _terms(program, data, num_particles, seed)[1]


def _terms(program: Any, data: Any, num: int, seed: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    check_least(num_particles=num)
    with at_data(program, data, seed) as posterior:
        parts = [_terms_of(rows, num) for rows in _parts(posterior, num)]
    return tree_map(lambda *terms: torch.cat(terms), *parts)


def _parts(posterior: Posterior, num: int) -> list[Posterior]:
    """Split the data into parts for which ``num`` draws fit in memory."""
    images, draws = chunk_sizes(posterior)
    return batches(posterior, max(1, min(images, draws // num)))


def _terms_of(rows: Posterior, num: int) -> tuple[Tensor, dict[str, Tensor]]:
    model_trace, _, expect, sites = _divergences(rows, num)

    def total(terms: Any) -> Tensor:
        return sum((rows.runner.per_datum(term, num).mean(0) for term in terms), torch.zeros(()))

    reconstruction = total(reconstruction_terms(model_trace, expect))
    return reconstruction.expand(len(rows)), {name: total(site.means) for name, site in sites.items()}


def _divergences(rows: Posterior, num: int) -> tuple[Trace, Trace, Expectation, dict[str, Divergence]]:
    model_trace, guide_trace = rows.traces(num)
    expect = Expectation(model_trace, guide_trace, 1 + rows.structure.depth)
    return model_trace, guide_trace, expect, divergences(model_trace, guide_trace, expect)


@torch.no_grad()
def is_exact(posterior: Posterior) -> bool:
    """Return whether the KL of every latent site is in closed form."""
    return not any(site.reason for site in _divergences(posterior, 1)[-1].values())


def kl_per_dim(program: Any, data: Any) -> Tensor:
    r"""Return the KL of each latent dimension per datum, in nats, of shape ``(B, D)``.

    .. math:: \mathrm{KL}(q(z_i \mid x_b) \,\|\, p(z_i))

    The dimensions add up to the KL, since guide and prior are independent over dimensions. Dimensions of several sites
    are concatenated. For a site that depends on another site, the KL is a mean over 100 draws of the other site.

    Raises:
        ValueError: If the guide or the prior of a site is not independent over dimensions, or no closed form is known.
    """
    with at_data(program, data) as posterior:
        num = draws_for_means(posterior)
        return torch.cat([_kl_per_dim(rows, num) for rows in _parts(posterior, num)])


def _kl_per_dim(rows: Posterior, num: int) -> Tensor:
    model_trace, guide_trace, expect, sites = _divergences(rows, num)
    columns = []
    for name, site in sites.items():
        q, p = guide_trace.nodes[name], model_trace.nodes.get(name)
        kl = None if site.reason or p is None or expect.log_q is not None else site_kl_per_dim(q, p)
        if kl is None:
            raise ValueError(
                "Expected a guide and a prior with independent latent dimensions and a KL in closed form; site "
                f"{name!r} has none. Use elbo_terms or kl_by_site for the KL in all."
            )
        columns.append(rows.runner.to_rows(kl).mean(0).reshape(len(rows), -1))
    return torch.cat(columns, dim=1)


def mean_kl(program: Any, data: Any) -> Tensor | None:
    """Return the mean of :func:`kl_per_dim` over the data, of shape ``(D,)``; None where that raises an error."""
    with suppress(ValueError):
        return kl_per_dim(program, data).mean(0)
    return None


class Values(NamedTuple):
    """The values of each image, in nats, each of shape ``(B,)``; ``elbo`` is ``reconstruction`` minus ``kl``."""

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    nll: Tensor


class Summary(NamedTuple):
    """Pairs of mean and standard error over the data, in nats per datum; ``images`` is the number of data."""

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
    """Return the ELBO, its two terms and -log p(x) of each of the first ``images`` images of a split.

    -log p(x) uses ``num_particles`` draws per datum from a ``proposal``, as in :func:`log_weights`; the reconstruction
    term uses 10 draws. To compare two programs image by image, use the same seed.

    Raises:
        ValueError: If there are no particles or no images.
    """
    if images < 1:
        raise ValueError(f"Expected at least 1 image to evaluate on; got {images}.")
    with eval_mode(program, reference_tensor(program).device, seed):  # since reading rows draws their noise
        posterior = posterior_of(program, rows_of(program, data, slice(0, images)))
        reconstruction, kl = elbo_terms(program, posterior, DRAWS)
        minus_log_p = nll(program, posterior, num_particles, progress=progress, proposal=proposal)
        return Values(reconstruction - kl, reconstruction, kl, minus_log_p)


def rows_of(program: Any, data: Split, rows: slice | Tensor) -> tuple[Tensor, ...]:
    """Return rows of a split as a program's arguments, without labels if the program has a method ``unlabelled``."""
    columns = _arguments(program, data, rows)
    return program.unlabelled(*columns) if hasattr(program, "unlabelled") else columns


def measures(program: Any, data: Split, images: int = 1000) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard error of each measure of a program, over the first ``images`` rows of a split.

    NaN values do not count. A program without a method ``measures`` has none.
    """
    if not hasattr(program, "measures"):
        return {}
    with torch.no_grad(), eval_mode(program, reference_tensor(program).device):
        measured = program.measures(*_arguments(program, data, slice(0, images)))
    return {name: mean_and_error(values[~values.isnan()]) for name, values in measured.items()}


def _arguments(program: Any, data: Split, rows: slice | Tensor) -> tuple[Tensor, ...]:
    names = [name for name in [*argument_names(program)][1:] if name in data.columns]
    return arguments(program, data.with_columns(names).batch(rows))


def covariates(posterior: Posterior) -> str:
    """Return the covariates in log p(x | y) as text, such as ``" | y"``, or an empty string without covariates."""
    return f" | {', '.join(names)}" if len(posterior.data) > 1 and (names := covariate_names(posterior)) else ""


def covariate_names(posterior: Posterior) -> list[str]:
    """Return the names of the covariates: the arguments that are not the value of an observed site."""
    shown = {argument for argument, _ in sources(posterior).values()}
    names = [*argument_names(posterior.program)][: len(posterior.data)]
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
    """Return means over a split of the ELBO, its two terms and -log p(x); arguments are as in :func:`per_image`."""
    values = per_image(program, data, num_particles, images, seed, progress, proposal)
    return Summary(len(values.nll), *map(mean_and_error, values))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error; the error of one value is NaN."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
