r"""A trained VAE in ArviZ's own container, for its tables and its figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae.compiled import how_many_fit
from pyro_vae.evaluate import pareto_k
from pyro_vae.evaluate.pareto import FEWEST
from pyro_vae.evaluate.weighing import room
from pyro_vae.missing import log_prob
from pyro_vae.posterior.plane import check
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["to_arviz"]

MOST = 20_000  # z decoded at once; more are no faster
POOL = 2**27  # numbers in a pool: half a gibibyte of float32
SAMPLE = ("chain", "draw")
EVENTS = {1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}

Variables = Mapping[str, tuple[Sequence[str], Tensor]]  # name -> dimensions, values


class Draws(NamedTuple):
    """Draws of z, of shape ``(K, B, latent)``, and of each its log-densities in nats, of shape ``(K, B)``."""

    z: Tensor
    log_likelihood: Tensor
    log_p: Tensor
    log_q: Tensor

    @property
    def log_weight(self) -> Tensor:
        """The log importance weights, ``log p(x, z) - log q(z | x)``."""
        return self.log_p - self.log_q


@torch.no_grad()
def to_arviz(
    vae: VAE,
    x: Tensor,
    draws: int = 1000,
    resample: bool = False,
    num_particles: int = 10,
    predictive_draws: int = 100,
    index: Sequence[Any] | Tensor | None = None,
    latent_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Any:
    r"""Return what a VAE says of some data, in ArviZ's own container.

    .. math:: z \sim q(z \mid x), \qquad \log w = \log p(x, z) - \log q(z \mid x)

    ===================== ============== ======================================================================
    group                 variables      dimensions
    ===================== ============== ======================================================================
    posterior             z              chain, draw, datum, latent
    posterior_predictive  x              chain, draw, datum, event: of the first draws of z, whole where x is NaN
    prior                 z              chain, draw, latent
    prior_predictive      x              chain, draw, event: of the prior's first draws
    observed_data         x              datum, event; NaN where it is missing
    log_likelihood        x              chain, draw, datum: log p(x | z), of what is observed
    sample_stats          log_p, log_q,  chain, draw, datum: log p(x, z), log q(z | x), and their difference
                          log_weight
    sample_stats          pareto_k       chain, draw, datum: the same for all draws of a datum
    constant_data         pareto_k       datum: :func:`pyro_vae.evaluate.pareto_k` of the draws of the guide
    ===================== ============== ======================================================================

    An event is ``(channel, row, column)``, ``(row, column)`` or ``(feature,)``; of another rank, ``feature_0`` and so
    on. There is one chain, since draws are independent of each other: that ArviZ finds their effective number high
    says nothing of the guide. ``pareto_k`` does: above 0.7 the guide leaves out a part of the posterior.

    With ``resample`` the posterior is by sampling importance resampling: of ``draws * num_particles`` draws of the
    guide for each datum, ``draws`` are taken with replacement, in proportion to w. As that number grows they become
    draws of p(z | x); where ``pareto_k`` is above 0.7, it grows in vain. A draw may be there more than once.

    ``az.loo`` runs, but each datum has a z of its own, so that it is a harmonic mean over draws that have seen x: an
    estimate of log p(x) whose variance may be infinite, and its k is of 1 / p(x | z), another one than ``pareto_k``.
    :func:`pyro_vae.evaluate.nll` estimates the same, well.

    References:
        Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988).

        ArviZ: A Unified Library for Exploratory Analysis of Bayesian Models in Python (Kumar, Carroll, Hartikainen
        and Martin, 2019).

        Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018).

    Arguments:
        vae: Any VAE, of any device.
        x: Shape ``(B, *event)``, NaN where it is missing. All draws are held at once: a few hundred data are many.
        draws: Draws of z, for each datum and of the prior.
        resample: Whether the posterior's are resampled in proportion to their importance weights.
        num_particles: Where they are, draws of the guide for each one that is kept.
        predictive_draws: Draws of x, in float32, for each datum and of the prior; at most ``draws``.
        index: Names of the data, all different; 0 to B - 1, if not given.
        latent_names: Names of the latent dimensions, all different; 0 to latent - 1, if not given.
        seed: Seed of the draws; torch's own state is left as it was.

    Returns:
        An ``arviz.InferenceData`` where ArviZ is 0.x, an ``xarray.DataTree`` where it is 1.x.

    Raises:
        ValueError: If x is not of the decoder's event, there are no data, no particles or fewer than 25 draws, log
            weights are not finite, or names are too few, too many or not different.

    Example:
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
    point = vae.reference
    with at_test(vae, point.device, seed):
        prior = vae.prior().sample((draws,))
        check(x, vae.decoder(prior[:2]).event_shape)
        x = x.to(point)
        coords = {
            "datum": _names("index", index, len(x)),
            "latent": _names("latent_names", latent_names, prior.shape[-1]),
        }
        posterior, k = _posterior(vae, x, draws, num_particles if resample else None)
        predicted, imagined = (_predictive(vae, z[:predictive_draws]) for z in (posterior.z, prior))
    event = EVENTS.get(x.dim() - 1) or tuple(f"feature_{i}" for i in range(x.dim() - 1))
    return _container(
        {
            "posterior": _sampled({"z": (("datum", "latent"), posterior.z)}),
            "posterior_predictive": _sampled({"x": (("datum", *event), predicted)}),
            "prior": _sampled({"z": (("latent",), prior)}),
            "prior_predictive": _sampled({"x": (event, imagined)}),
            "observed_data": {"x": (("datum", *event), x)},
            "log_likelihood": _sampled({"x": (("datum",), posterior.log_likelihood)}),
            "sample_stats": _sampled(
                {name: (("datum",), getattr(posterior, name)) for name in ("log_p", "log_q", "log_weight")}
                # ArviZ 1.x takes every variable here to have draws.
                | {"pareto_k": (("datum",), k.expand(draws, -1))}
            ),
            "constant_data": {"pareto_k": (("datum",), k)},
        },
        coords,
    )


def _names(argument: str, given: Sequence[Any] | Tensor | None, size: int) -> np.ndarray:
    """Return the coordinate of a dimension: the names that are given, or else numbers from 0."""
    names = np.arange(size) if given is None else np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    different = len(set(names.ravel().tolist()))
    if names.shape != (size,) or different < size:
        raise ValueError(
            f"Expected {argument} to be {size} names, all different; got {different} different, of shape {names.shape}."
        )
    return names


def _posterior(vae: VAE, x: Tensor, draws: int, num_particles: int | None) -> tuple[Draws, Tensor]:
    """Return draws for each datum, and k; of a pool from which they are resampled, unless there are no particles."""
    pool = draws * (num_particles or 1)
    images, at_once = room(vae, x)
    latent = vae.prior().event_shape[0]
    kept, k = [], []
    for rows in x.split(max(1, min(images, POOL // (pool * (latent + 4))))):
        drawn = _draw(vae, rows, pool, max(1, at_once // len(rows)))
        k.append(pareto_k(drawn.log_weight))
        kept.append(_resampled(drawn, draws) if num_particles else drawn)
    return Draws(*(torch.cat(values, dim=1) for values in zip(*kept, strict=True))), torch.cat(k)


def _draw(vae: VAE, x: Tensor, num: int, at_once: int) -> Draws:
    """Draw from the guide, ``at_once`` for each datum at a time."""
    q, p = vae.encoder(x), vae.prior()
    parts = []
    for start in range(0, num, at_once):
        z = q.sample((min(at_once, num - start),))
        log_likelihood = log_prob(vae.decoder(z), x)
        parts.append(Draws(z, log_likelihood, p.log_prob(z) + log_likelihood, q.log_prob(z)))
    return Draws(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _resampled(drawn: Draws, num: int) -> Draws:
    """Take ``num`` draws for each datum with replacement, in proportion to their weights."""
    chosen = Categorical(logits=drawn.log_weight.T).sample((num,))
    datum = torch.arange(chosen.shape[1], device=chosen.device)
    return Draws(*(values[chosen, datum] for values in drawn))


def _predictive(vae: VAE, z: Tensor) -> Tensor:
    """Draw x given z, from ``(*, latent)`` to ``(*, *event)``, in float32 and off the device."""
    flat = z.flatten(0, -2)
    fit = how_many_fit(lambda n: vae.decoder(flat[:n]).sample(), MOST, z.device)
    return torch.cat([vae.decoder(part).sample().float().cpu() for part in flat.split(fit)]).unflatten(0, z.shape[:-1])


def _sampled(variables: Variables) -> Variables:
    """Give variables of ``(draws, *)`` the dimensions of the samples."""
    return {name: ((*SAMPLE, *dims), values.unsqueeze(0)) for name, (dims, values) in variables.items()}


def _container(groups: Mapping[str, Variables], coords: Mapping[str, np.ndarray]) -> Any:
    """Make an ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` of 1.x: ``from_dict`` gives a name one shape in all."""
    with warnings.catch_warnings():
        # ArviZ 0.23 announces 1.x once a day.
        warnings.filterwarnings("ignore", "\nArviZ is undergoing a major refactor", FutureWarning)
        import arviz as az
    import xarray as xr

    def dataset(variables: Variables) -> xr.Dataset:
        sizes = {dim: size for dims, values in variables.values() for dim, size in zip(dims, values.shape, strict=True)}
        return xr.Dataset(
            {name: (dims, values.cpu().numpy()) for name, (dims, values) in variables.items()},
            {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()},
            {"inference_library": "pyro_vae"},
        )

    made: dict[str, Any] = {group: dataset(variables) for group, variables in groups.items()}
    # Asked of vars: an attribute of this name is there in 1.x too, and warns.
    return az.InferenceData(**made) if "InferenceData" in vars(az) else xr.DataTree.from_dict(made)
