r"""The ELBO's two terms, and what each latent dimension has to do with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.compiled import how_many_fit
from pyro_vae.conditional import mean
from pyro_vae.data.supports import of_element
from pyro_vae.evaluate.weighing import batches, room
from pyro_vae.objectives.divergence import divergences, reconstruction_terms
from pyro_vae.objectives.divergence import kl_per_dim as site_kl_per_dim
from pyro_vae.program import Posterior, coordinates, point_of, posterior_of
from pyro_vae.seeds import at_test
from pyro_vae.traces.enumeration import Expectation

__all__ = ["active_units", "activity", "dimensions", "guide_means", "is_exact", "kl_by_site", "kl_per_dim", "split"]

AVERAGED = 100  # draws, for a mean that has no closed form


def split(program: Any, data: Any, num_particles: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of the ELBO per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathrm{ELBO} = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The first is a mean over ``num_particles`` draws; the second is in closed form where there is one, else a mean
    over the same draws. Memory is bounded, as in :func:`pyro_vae.evaluate.log_weights`.

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(B, *event)``; or a tuple of the program's arguments, or a dictionary of them by name.
        num_particles: Draws per datum.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

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


@torch.no_grad()
def _terms(program: Any, data: Any, num: int, seed: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    if num < 1:
        raise ValueError(f"Expected num_particles of at least 1; got {num}.")
    with at_test(program, point_of(program).device, seed):
        whole = posterior_of(program, data)
        images, draws = room(whole)
        parts = [_terms_of(rows, num) for rows in batches(whole, max(1, min(images, draws // num)))]
    names = parts[0][1]
    return torch.cat([part[0] for part in parts]), {
        name: torch.cat([part[1][name] for part in parts]) for name in names
    }


def _terms_of(rows: Posterior, num: int) -> tuple[Tensor, dict[str, Tensor]]:
    model_trace, guide_trace = rows.traces(num)
    expect = Expectation(model_trace, guide_trace, 1 + rows.structure.depth)

    def total(terms: Any) -> Tensor:
        return sum((rows.runner.rows(term, num).mean(0) for term in terms), torch.zeros(()))

    sites = divergences(model_trace, guide_trace, expect)
    reconstruction = total(reconstruction_terms(model_trace, expect))
    return reconstruction.expand(len(rows)), {name: total(site.means) for name, site in sites.items()}


@torch.no_grad()
def is_exact(whole: Posterior) -> bool:
    """Say whether the divergence of every latent site is in closed form, at some data."""
    model_trace, guide_trace = whole.traces(1)
    expect = Expectation(model_trace, guide_trace, 1 + whole.structure.depth)
    return not any(site.reason for site in divergences(model_trace, guide_trace, expect).values())


@torch.no_grad()
def kl_per_dim(program: Any, data: Any) -> Tensor:
    r"""Return the divergence of each latent dimension per datum, in nats, of shape ``(B, D)``.

    .. math:: \mathrm{KL}(q(z_i \mid x_b) \,\|\, p(z_i))

    Their sum over dimensions is the divergence, since guide and prior are independent over them. The dimensions of
    several sites follow each other; where a site is drawn given another, it is a mean over 100 draws of that.

    Raises:
        ValueError: If the guide or the prior of a site is not independent over dimensions, or no closed form is known.

    Example:
        >>> from pyro_vae import VAE
        >>> kl_per_dim(VAE.build((64,), latent=2), torch.rand(5, 64)).shape
        torch.Size([5, 2])
    """
    with at_test(program, point_of(program).device):
        whole = posterior_of(program, data)
        num = 1 if len(whole.structure.supports) == 1 else AVERAGED
        images, draws = room(whole)
        return torch.cat([_kl_per_dim(rows, num) for rows in batches(whole, max(1, min(images, draws // num)))])


def _kl_per_dim(rows: Posterior, num: int) -> Tensor:
    model_trace, guide_trace = rows.traces(num)
    expect, columns = Expectation(model_trace, guide_trace, 1 + rows.structure.depth), []
    for name, site in divergences(model_trace, guide_trace, expect).items():
        q, p = guide_trace.nodes[name], model_trace.nodes.get(name)
        kl = None if site.reason or p is None or expect.log_q is not None else site_kl_per_dim(q, p)
        if kl is None:
            raise ValueError(
                "Expected a guide and a prior that are independent over latent dimensions, with a divergence in closed "
                f"form; site {name!r} has none. Use split, or kl_by_site, for the whole divergence."
            )
        columns.append(rows.runner.to_rows(kl).mean(0).reshape(len(rows), -1))
    return torch.cat(columns, dim=1)


@torch.no_grad()
def activity(program: Any, data: Any, seed: int | None = None) -> Tensor:
    r"""Return how much each latent dimension knows of x, of shape ``(D,)``: 0 where it knows nothing.

    .. math:: \mathrm{Var}_x \big( \mathbb{E}_{q(z \mid x)}[z_i] \big)

    The variance is over the data, and the dimensions of several sites follow each other. Where the guide has no mean in
    closed form, as a flow or a site that is drawn given another, it is the covariance of two averages of independent
    draws, whose noise cancels: the variance of one of them would be too large. So a dimension that knows nothing may
    come out a little below 0.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(B, *event)``, of some hundred images or more; or the program's arguments.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are fewer than 2 data.

    Example:
        >>> from pyro_vae import VAE
        >>> activity(VAE.build((64,), latent=2), torch.rand(50, 64)).shape
        torch.Size([2])
    """
    with at_test(program, point_of(program).device, seed):
        whole = posterior_of(program, data)
        if len(whole) < 2:
            raise ValueError(
                f"Expected at least 2 images, to see what changes from one to the other; got {len(whole)}."
            )
        num = 1 if len(whole.structure.supports) == 1 else AVERAGED

        def means(rows: Posterior) -> Tensor:
            return torch.stack([guide_means(rows, num), guide_means(rows, num)])

        size = len(whole)
        if not whole.structure.whole:
            size = 2 * how_many_fit(lambda n: means(whole[: 2 * n]), size, whole.data[0].device)
        one, other = torch.cat([means(rows) for rows in batches(whole, size)], dim=1)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(one) - 1)


def dimensions(whole: Posterior) -> list[str]:
    """Return the names of the dimensions that :func:`activity` is of, as ``z[3]``: of sites whose draws have a mean."""
    structure = whole.structure
    return [name for site in _with_mean(whole) for name in coordinates(site, structure.shapes[site])]


def _with_mean(rows: Posterior) -> list[str]:
    """Return the latent sites that the guide draws, but for labels."""
    supports, alone = rows.structure.supports, rows.structure.alone
    labels = type(constraints.integer_interval(0, 1))
    return [name for name in supports if name not in alone and not isinstance(of_element(supports[name]), labels)]


def guide_means(rows: Posterior, num: int = 1) -> Tensor:
    """Return the mean of each dimension under the guide, of shape ``(rows, D)``, over ``num`` draws of its sites."""
    nodes: Any = rows.runner.run(rows.program.guide, num).nodes
    means = [rows.runner.to_rows(mean(nodes[name]["fn"])) for name in _with_mean(rows)]
    return torch.cat([m.mean(0).reshape(len(rows), -1) for m in means], dim=1) if means else torch.zeros(len(rows), 0)


def active_units(program: Any, data: Any, threshold: float = 0.01, seed: int | None = None) -> int:
    r"""Return how many latent dimensions are used: those whose :func:`activity` is above a threshold.

    None is used where the posterior has collapsed to the prior. The threshold is that of the paper, for a prior of
    unit scale; activities tend to be near 0 or near 1, so that it seldom matters.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        program: A VAE, or any program.
        data: Shape ``(B, *event)``, of some hundred images or more; or the program's arguments.
        threshold: In the units of z, squared.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are fewer than 2 data.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2), scale=0.5)
        >>> active_units(model.vae(), torch.randn(100, 2))
        1
    """
    return int((activity(program, data, seed) > threshold).sum())
