r"""What a program says of some data, in ArviZ's own container, for its tables and its figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._pytree import tree_map

from pyro_vae.evaluate.adapted import Adapted, density
from pyro_vae.evaluate.summaries import covariate_names
from pyro_vae.evaluate.weighing import Proposal, at_data, batches, room
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
    r"""Return what a program says of some data as ``arviz.InferenceData``, of ArviZ 1.x as ``xarray.DataTree``.

    Each site is a variable under its own name.

    ===================== ============== ======================================================================
    group                 variables      dimensions
    ===================== ============== ======================================================================
    posterior             latent sites   chain, draw, datum, its own: of the guide
    posterior_predictive  observed sites chain, draw, datum, its own: of the first draws, whole where x is NaN
    prior                 latent sites   chain, draw, its own; with datum before these where there are covariates
    prior_predictive      observed sites the same: of the prior's first draws
    observed_data         observed sites datum, its own; NaN where it is missing
    log_likelihood        observed sites chain, draw, datum: log p(x | z), of what is observed
    sample_stats          log_p, log_q,  chain, draw, datum: log p(x, z), log q(z | x), and their difference
                          log_weight
    sample_stats          pareto_k       chain, draw, datum: the same for all draws of a datum
    constant_data         pareto_k       datum: :func:`pyro_vae.evaluate.pareto_k` of the draws of the guide
    constant_data         covariates     datum, its own: arguments that no observed site shows
    ===================== ============== ======================================================================

    The own dimensions of a site are ``{site}_dim_0`` and so on. Where there is one latent site it is of ``latent``, and
    one observed site without covariates is of ``(channel, row, column)``, ``(row, column)`` or ``(feature,)``; of
    another rank, ``feature_0`` and so on. Discrete sites that the guide draws are integers. Classes that the model
    alone has are summed out of all densities; a predictive draw has classes from their exact posterior.

    There is one chain of independent draws, so that ArviZ's effective number says nothing of the guide. ``pareto_k``
    does: above 0.7 the guide leaves out a part of the posterior. With ``resample``, of ``draws * num_particles`` draws
    of the guide for each datum, ``draws`` are taken with replacement, in proportion to their weights: as
    ``num_particles`` grows, and unless ``pareto_k`` is above 0.7, they become draws of p(z | x). With
    ``proposal="adapted"`` (:func:`pyro_vae.evaluate.log_weights`) the pool comes from that proposal.

    There are ``draws`` of what is latent and ``predictive_draws`` of what is observed, in float32 and at most as many,
    for each datum and of the prior; all are held at once. ``index`` are names of the data, ``latent_names`` of the
    elements of the only latent site, or by site, all different; None: numbers from 0. ``az.loo`` is here a harmonic
    mean over draws that have seen x, whose variance may be infinite: use :func:`pyro_vae.evaluate.nll`.

    References:
        Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988).
        ArviZ: A Unified Library for Exploratory Analysis of Bayesian Models in Python (Kumar et al., 2019).
        Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018).

    Raises:
        ValueError: If data are not the program's, there are no particles or fewer than 25 draws, log-weights are not
            finite, or names are too few, too many, not different, or of no vector.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((1, 8, 8), latent=2).eval()
        >>> found = to_arviz(vae, torch.rand(3, 1, 8, 8), draws=50, index=["a", "b", "c"])
        >>> found["posterior"]["z"].sel(datum="b", latent=0).shape, found["posterior_predictive"]["x"].dims
        ((1, 50), ('chain', 'draw', 'datum', 'channel', 'row', 'column'))
    """
    if draws < FEWEST or num_particles < 1 or predictive_draws < 1:
        raise ValueError(
            f"Expected at least {FEWEST} draws, fewer being none to tell k of, 1 particle and 1 predictive draw; got "
            f"draws = {draws}, num_particles = {num_particles}, predictive_draws = {predictive_draws}."
        )
    check_choice("proposal", proposal, get_args(Proposal))
    if proposal == "adapted" and not resample:
        raise ValueError(
            "Expected resample=True with proposal='adapted', whose draws count by their weights; got resample=False."
        )
    with at_data(program, data, seed) as posterior:
        covariates, bounds = _covariates(posterior), room(posterior)
        layout = Layout(posterior, bool(covariates))
        coords = {"datum": names_of("index", index, len(posterior)), **layout.coords(latent_names)}
        one_prior = not covariates and not posterior.structure.whole  # or one for each datum
        some, first = posterior[:1] if one_prior else posterior, min(draws, predictive_draws)
        prior = _in_parts(some, bounds, draws, lambda part, num, _: part.simulate(num, observed=False), {})
        sites, densities = _posterior(posterior, bounds, draws, num_particles if resample else 0, proposal)
        predicted = _in_parts(posterior, bounds, first, _predictive, sites)
        imagined = _in_parts(some, bounds, first, _predictive, prior)
        likelihood = _in_parts(posterior, bounds, draws, _log_likelihood, sites)
        seen = _in_parts(posterior, bounds, 1, _observed, {})
    per_datum = (*SAMPLE, "datum")
    of_prior = SAMPLE if one_prior else per_datum
    return container(
        {
            "posterior": layout(sites, per_datum),
            "posterior_predictive": layout(predicted, per_datum),
            "prior": layout(prior, of_prior),
            "prior_predictive": layout(imagined, of_prior),
            "observed_data": layout(seen, ("datum",)),
            "log_likelihood": {name: (per_datum, value[None]) for name, value in likelihood.items()},
            "sample_stats": {name: (per_datum, value[None]) for name, value in densities.items()},
            "constant_data": {"pareto_k": (("datum",), densities["pareto_k"][0]), **covariates},
        },
        coords,
    )


def _covariates(posterior: Posterior) -> Variables:
    """Return the arguments that no observed site shows; all of them, where it cannot be told."""
    columns = dict(zip(argument_names(posterior.program), posterior.data, strict=False))
    try:
        names = covariate_names(posterior)
    except (RuntimeError, IndexError, ValueError):
        names = [*columns]
    own = {name: [f"{name}_dim_{i}" for i in range(columns[name].dim() - 1)] for name in names}
    return {name: (("datum", *own[name]), columns[name]) for name in names}


def _in_parts(
    posterior: Posterior, bounds: tuple[int, int], num: int, run: Callable[[Posterior, int, Draws], Any], draws: Draws
) -> Any:
    """Run for ``num`` draws of all data, given draws of other sites, as many at once as are within bounds."""
    columns, start = [], 0
    for some in batches(posterior, bounds[0]):
        size, parts = max(1, bounds[1] // len(some)), []
        for first in range(0, num, size):
            last = min(first + size, num)
            z = {name: value[first:last, start : start + len(some)] for name, value in draws.items()}
            parts.append(run(some, last - first, z))
        columns.append(_cat(parts, 0))
        start += len(some)
    return _cat(columns, 1)


def _cat(parts: list[Any], dim: int) -> Any:
    return tree_map(lambda *values: torch.cat(values, dim), *parts)


def _posterior(
    posterior: Posterior, bounds: tuple[int, int], draws: int, num_particles: int, proposal: Proposal
) -> tuple[Draws, Draws]:
    """Return draws for each datum and their densities; resampled from a pool, unless there are no particles."""
    pool, kept = draws * (num_particles or 1), []
    held = sum(shape.numel() for shape in posterior.structure.shapes.values()) + 4
    for some in batches(posterior, max(1, min(bounds[0], POOL // (pool * held)))):
        weigh = _by_adapted(some, bounds[1]) if proposal == "adapted" and some.structure.continuous else _weigh
        sites, densities = _in_parts(some, bounds, pool, weigh, {})
        k = pareto_k(densities["log_weight"])
        if num_particles:  # with replacement, in proportion to their weights
            at = Categorical(logits=densities["log_weight"].T).sample((draws,)), torch.arange(len(some)).to(k.device)
            sites, densities = tree_map(lambda values, at=at: values[at], (sites, densities))
        # ArviZ 1.x takes every variable of sample_stats to have draws.
        kept.append((sites, densities | {"pareto_k": k.expand(draws, -1)}))
    return _cat(kept, 1)


def _weigh(posterior: Posterior, num: int, _: Draws) -> tuple[Draws, Draws]:
    sites, log_q = posterior.propose(num)
    log_p = posterior.log_joint(sites).expand_as(log_q)
    return sites, {"log_p": log_p, "log_q": log_q, "log_weight": log_p - log_q}


def _by_adapted(some: Posterior, most: int) -> Callable[[Posterior, int, Draws], Any]:
    """Return what draws from proposals fitted to some data, and weighs."""
    at_once = max(1, most // len(some))
    proposals = Adapted(some, lambda data, u: density(replace(some, data=data), u), at_once, lambda num: None)

    def weigh(posterior: Posterior, num: int, _: Draws) -> tuple[Draws, Draws]:
        continuous, log_w = proposals.propose(num)
        sites, log_p = posterior.complete(num, continuous), posterior.log_joint(continuous, proper=True)
        drawn = {name: value for name, value in sites.items() if name not in posterior.structure.alone}
        return drawn, {"log_p": log_p, "log_q": log_p - log_w, "log_weight": log_w}

    return weigh


def _log_likelihood(posterior: Posterior, num: int, draws: Draws) -> Draws:
    return {name: value.expand(num, -1) for name, value in posterior.log_likelihood(draws).items()}


def _predictive(posterior: Posterior, num: int, draws: Draws) -> Draws:
    """Draw what is observed given draws, in float32 and off the device."""
    drawn = posterior.simulate(num, posterior.complete(num, draws))
    x = {name: drawn[name].cpu() for name in posterior.structure.observed}
    return {name: value.float() if value.is_floating_point() else value for name, value in x.items()}


def _observed(posterior: Posterior, *_: Any) -> Draws:
    """Return what is observed as it is, NaN where it is missing, as values of one draw."""
    with pyro.validation_enabled(False):
        trace = poutine.trace(posterior.program.model).get_trace(*posterior.data)
    x = {}
    for name in posterior.structure.observed:
        value, event_dim = trace.nodes[name]["value"], trace.nodes[name]["fn"].event_dim
        ones = (1,) * (1 + posterior.structure.depth - (value.dim() - event_dim))
        x[name] = posterior.runner.to_rows(value.reshape(ones + value.shape))
    return x
