r"""Conversion of a program at data to ArviZ's container, for ArviZ's tables and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._pytree import tree_map

from pyro_vae.annealing import log_density
from pyro_vae.evaluate.adapted import AdaptedProposals
from pyro_vae.evaluate.summaries import covariate_names
from pyro_vae.evaluate.weighing import Proposal, at_data, batches, chunk_sizes
from pyro_vae.evaluate.weights import FEWEST, pareto_k
from pyro_vae.objectives.base import check_choice
from pyro_vae.posterior.layout import SAMPLE, Layout, Variables, container, names_of
from pyro_vae.program import Draws, Posterior, argument_names

POOL = 2**27  # numbers in a pool: half a gibibyte of float32


def to_arviz(
    program: Any,
    data: Any,
    draws: int = 1000,
    resample: bool = False,
    num_particles: int = 10,
    predictive_draws: int = 100,
    index: Sequence[Any] | Tensor | None = None,
    latent_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    proposal: Proposal = "guide",
) -> Any:
    r"""Convert a program at data to ``arviz.InferenceData``, or with ArviZ 1.x to ``xarray.DataTree``.

    Each site is a variable with the site's name; *site* stands for the dimensions of one draw for one datum.

    ===================== ============== ======================================================================
    group                 variables      dimensions
    ===================== ============== ======================================================================
    posterior             latent sites   chain, draw, datum, site: draws of the guide
    posterior_predictive  observed sites chain, draw, datum, site: of the first draws, complete where x is NaN
    prior                 latent sites   chain, draw, site; with datum before site where there are covariates
    prior_predictive      observed sites as prior: of the prior's first draws
    observed_data         observed sites datum, site: NaN where x is missing
    log_likelihood        observed sites chain, draw, datum: log p(x | z) of the observed elements
    sample_stats          log_p, log_q,  chain, draw, datum: log p(x, z), log q(z | x), and their difference
                          log_weight
    sample_stats          pareto_k       chain, draw, datum: the same for all draws of a datum
    constant_data         pareto_k       datum: :func:`pyro_vae.evaluate.pareto_k` of the proposal's draws
    constant_data         covariates     datum, site: arguments that no observed site shows
    ===================== ============== ======================================================================

    A site's dimensions are ``{site}_dim_0`` and so on. A single latent site has the dimension ``latent``. A single
    observed site without covariates has ``(channel, row, column)``, ``(row, column)`` or ``(feature,)``, or for other
    ranks ``feature_0`` and so on. Discrete sites that the guide draws are integers. Classes in the model alone are
    summed out of all densities; a predictive draw uses classes from the exact posterior of the classes.

    The number of draws of latent sites is ``draws``, for each datum and for the prior. The first ``predictive_draws``
    draws also give draws of observed sites, in float32. All draws stay in memory. ``index`` names the data.
    ``latent_names`` names the elements of the only latent site, or of sites by a dictionary; None means numbers from 0.

    With ``resample``, a pool of ``draws * num_particles`` draws of the guide is resampled for each datum, with
    replacement and in proportion to the weights. The resampled draws converge to p(z | x) as ``num_particles`` grows,
    unless ``pareto_k`` is above 0.7. With ``proposal="adapted"``, the pool comes from the adapted proposal of
    :func:`pyro_vae.evaluate.log_weights`.

    Note:
        The draws are one chain of independent draws, so ArviZ's effective sample size does not measure the guide. Use
        ``pareto_k``: above 0.7 the guide misses a part of the posterior. ``az.loo`` is here a harmonic mean over draws
        that depend on x and may have infinite variance: use :func:`pyro_vae.evaluate.nll`.

    References:
        - Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988).
        - ArviZ: A Unified Library for Exploratory Analysis of Bayesian Models in Python (Kumar et al., 2019),
          https://doi.org/10.21105/joss.01143.

    Raises:
        ValueError: If data do not fit the program, there are no particles or fewer than 25 draws, log-weights are not
            finite, the number of names is wrong, names repeat, or a site with names is not a vector.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((1, 8, 8), latent=2).eval()
        >>> groups = to_arviz(vae, torch.rand(3, 1, 8, 8), draws=50, index=["a", "b", "c"])
        >>> groups["posterior"]["z"].sel(datum="b", latent=0).shape, groups["posterior_predictive"]["x"].dims
        ((1, 50), ('chain', 'draw', 'datum', 'channel', 'row', 'column'))
    """
    if draws < FEWEST or num_particles < 1 or predictive_draws < 1:
        raise ValueError(
            f"Expected draws of at least {FEWEST}, for Pareto k, and num_particles and predictive_draws of at least 1; "
            f"got draws = {draws}, num_particles = {num_particles}, predictive_draws = {predictive_draws}."
        )
    check_choice("proposal", proposal, get_args(Proposal))
    if proposal == "adapted" and not resample:
        raise ValueError(
            "Expected resample=True with proposal='adapted', whose draws need their weights; got resample=False."
        )
    with at_data(program, data, seed) as posterior:
        covariates, bounds = _covariates(posterior), chunk_sizes(posterior)
        layout = Layout(posterior, bool(covariates))
        coords = {"datum": names_of("index", index, len(posterior)), **layout.coords(latent_names)}
        one_prior = not covariates and not posterior.structure.all_rows  # or one for each datum
        of_prior, first = posterior[:1] if one_prior else posterior, min(draws, predictive_draws)
        prior = _in_parts(of_prior, bounds, draws, lambda part, num, _: part.simulate(num, observed=False), {})
        sites, densities = _posterior(posterior, bounds, draws, num_particles if resample else 0, proposal)
        predictive = _in_parts(posterior, bounds, first, _predictive, sites)
        prior_predictive = _in_parts(of_prior, bounds, first, _predictive, prior)
        likelihood = _in_parts(posterior, bounds, draws, _log_likelihood, sites)
        observed = _in_parts(posterior, bounds, 1, _observed, {})
    per_datum = (*SAMPLE, "datum")
    per_prior = SAMPLE if one_prior else per_datum
    return container(
        {
            "posterior": layout(sites, per_datum),
            "posterior_predictive": layout(predictive, per_datum),
            "prior": layout(prior, per_prior),
            "prior_predictive": layout(prior_predictive, per_prior),
            "observed_data": layout(observed, ("datum",)),
            "log_likelihood": {name: (per_datum, value[None]) for name, value in likelihood.items()},
            "sample_stats": {name: (per_datum, value[None]) for name, value in densities.items()},
            "constant_data": {"pareto_k": (("datum",), densities["pareto_k"][0]), **covariates},
        },
        coords,
    )


def _covariates(posterior: Posterior) -> Variables:
    """Return the covariates; return all arguments if the arguments of the observed sites cannot be found."""
    columns = dict(zip(argument_names(posterior.program), posterior.data, strict=False))
    try:
        names = covariate_names(posterior)
    except (RuntimeError, IndexError, ValueError):
        names = [*columns]
    dims = {name: [f"{name}_dim_{i}" for i in range(columns[name].dim() - 1)] for name in names}
    return {name: (("datum", *dims[name]), columns[name]) for name in names}


def _in_parts(
    posterior: Posterior, bounds: tuple[int, int], num: int, run: Callable[[Posterior, int, Draws], Any], draws: Draws
) -> Any:
    """Call ``run`` for ``num`` draws of all data, in parts up to ``bounds``, with matching parts of ``draws``."""
    columns, start = [], 0
    for rows in batches(posterior, bounds[0]):
        size, parts = max(1, bounds[1] // len(rows)), []
        for first in range(0, num, size):
            last = min(first + size, num)
            z = {name: value[first:last, start : start + len(rows)] for name, value in draws.items()}
            parts.append(run(rows, last - first, z))
        columns.append(_cat(parts, 0))
        start += len(rows)
    return _cat(columns, 1)


def _cat(parts: list[Any], dim: int) -> Any:
    return tree_map(lambda *values: torch.cat(values, dim), *parts)


def _posterior(
    posterior: Posterior, bounds: tuple[int, int], draws: int, num_particles: int, proposal: Proposal
) -> tuple[Draws, Draws]:
    """Return draws for each datum and the log-densities; resample draws from a pool if ``num_particles`` is not 0."""
    pool, parts = draws * (num_particles or 1), []
    numbers = sum(shape.numel() for shape in posterior.structure.shapes.values()) + 4  # of one draw
    for rows in batches(posterior, max(1, min(bounds[0], POOL // (pool * numbers)))):
        weigh = _adapted_weigher(rows, bounds[1]) if proposal == "adapted" and rows.structure.continuous else _weigh
        sites, densities = _in_parts(rows, bounds, pool, weigh, {})
        k = pareto_k(densities["log_weight"])
        if num_particles:  # with replacement, in proportion to their weights
            at = Categorical(logits=densities["log_weight"].T).sample((draws,)), torch.arange(len(rows)).to(k.device)
            sites, densities = tree_map(lambda values, at=at: values[at], (sites, densities))
        # ArviZ 1.x expects draws in every variable of sample_stats.
        parts.append((sites, densities | {"pareto_k": k.expand(draws, -1)}))
    return _cat(parts, 1)


def _weigh(posterior: Posterior, num: int, _: Draws) -> tuple[Draws, Draws]:
    sites, log_q = posterior.propose(num)
    log_p = posterior.log_joint(sites).expand_as(log_q)
    return sites, {"log_p": log_p, "log_q": log_q, "log_weight": log_p - log_q}


def _adapted_weigher(rows: Posterior, most: int) -> Callable[[Posterior, int, Draws], Any]:
    """Return a function like :func:`_weigh` that draws from adapted proposals."""
    at_once = max(1, most // len(rows))

    proposals = AdaptedProposals(
        rows, lambda data, u: log_density(replace(rows, data=data), u), at_once, lambda num: None
    )

    def weigh(posterior: Posterior, num: int, _: Draws) -> tuple[Draws, Draws]:
        continuous, log_w = proposals.propose(num)
        sites, log_p = posterior.complete(num, continuous), posterior.log_joint(continuous, proper=True)
        sites = {name: value for name, value in sites.items() if name not in posterior.structure.model_only}
        return sites, {"log_p": log_p, "log_q": log_p - log_w, "log_weight": log_w}

    return weigh


def _log_likelihood(posterior: Posterior, num: int, draws: Draws) -> Draws:
    return {name: value.expand(num, -1) for name, value in posterior.log_likelihood(draws).items()}


def _predictive(posterior: Posterior, num: int, draws: Draws) -> Draws:
    """Draw the observed sites given draws of the latent sites, in float32 on the CPU."""
    sites = posterior.simulate(num, posterior.complete(num, draws))
    x = {name: sites[name].cpu() for name in posterior.structure.observed}
    return {name: value.float() if value.is_floating_point() else value for name, value in x.items()}


def _observed(posterior: Posterior, *_: Any) -> Draws:
    """Return the values of the observed sites, NaN where missing, in the layout of one draw."""
    with pyro.validation_enabled(False):
        trace = poutine.trace(posterior.program.model).get_trace(*posterior.data)
    x = {}
    for name in posterior.structure.observed:
        value, event_dim = trace.nodes[name]["value"], trace.nodes[name]["fn"].event_dim
        ones = (1,) * (1 + posterior.structure.depth - (value.dim() - event_dim))
        x[name] = posterior.runner.to_rows(value.reshape(ones + value.shape))
    return x
