r"""Draws from the true posterior under a trained decoder, by NUTS."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import (
    SOME,
    Densities,
    Start,
    draw_range,
    first_draws,
    robust_scale,
    unconstrained_draws,
    with_gradient,
)
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.posterior.no_u_turn import Target, sample
from pyro_vae.program import Draws, Posterior

AGREE = 1.05  # R-hat above which chains disagree
MANY = 0.02  # share of trajectories that diverge, above which a warning says so
STEPS = 7  # leapfrog steps that a transition takes at least, usually


@dataclass(frozen=True, eq=False)
class Chains:
    """Markov chain draws of p(z | x): ``draws`` maps each site to ``(chains, draws, B, *rest)``.

    ``z`` concatenates all continuous sites and has shape ``(chains, draws, B, latent)``; ``diverged`` tells which
    trajectories ended at a point of almost no density, ``(chains, draws, B)``.
    """

    z: Tensor
    draws: Draws = field(default_factory=dict)
    diverged: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The posterior mean, of shape ``(B, latent)``."""
        return self.z.flatten(0, 1).mean(0)

    @property
    def covariance(self) -> Tensor:
        """The posterior covariance, of shape ``(B, latent, latent)``."""
        off = self.z.flatten(0, 1) - self.mean
        return torch.einsum("sbi,sbj->bij", off, off) / (len(off) - 1)

    @property
    def r_hat(self) -> Tensor:
        """Split R-hat ``(B, latent)``, the spread over all chains divided by the spread within half chains; 1 is ideal.

        References:
            Inference from Iterative Simulation Using Multiple Sequences (Gelman and Rubin, 1992),
            https://doi.org/10.1214/ss/1177011136.
        """
        return split_gelman_rubin(self.z, chain_dim=0, sample_dim=1)

    @property
    def ess(self) -> Tensor:
        """The effective sample size for the posterior mean, of shape ``(B, latent)``."""
        return effective_sample_size(self.z, chain_dim=0, sample_dim=1)


def flat(posterior: Posterior, draws: Draws) -> Tensor:
    """Concatenate the draws of the continuous sites to shape ``(K, B, latent)``."""
    return torch.cat([columns(draws[name]) for name in posterior.structure.continuous], -1)


def columns(values: Tensor) -> Tensor:
    """Flatten a site's values from ``(K, B, *rest)`` to ``(K, B, elements)``."""
    return values.flatten(2) if values.dim() > 2 else values.unsqueeze(-1)


def nuts(
    program: Any,
    data: Any,
    draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    start: Start = "prior",
    seed: int = 0,
    progress: bool = False,
) -> Chains:
    r"""Draw from the true posterior under the decoder for given data, by the No-U-Turn Sampler.

    .. math:: p(z \mid x) \propto p(z) \, p(x \mid z)

    Each datum has ``chains`` chains, and the chains of all data that fit in memory move at once. The chains of a datum
    adapt a step size and a diagonal mass matrix for ``warmup`` transitions and then take ``draws`` transitions.
    Warnings report disagreement between chains, and trajectories that diverge. Chains start at draws of the ``prior``,
    so that chains in separate modes disagree, or at draws of the ``guide``. Chains move in unconstrained coordinates of
    the continuous sites; classes are summed out.

    References:
        - The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://arxiv.org/abs/1111.4246.
        - Composable Effects for Flexible and Accelerated Probabilistic Programming in NumPyro (Phan, Pradhan and
          Jankowiak, 2019), https://arxiv.org/abs/1912.11554.

    Raises:
        ValueError: If a number is too small (R-hat needs at least 4 draws), or no site is continuous.

    See Also:
        :func:`compare` compares these draws with the guide; :func:`grid` computes 2-D posteriors on a grid.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5), torch.ones(1, 4)
        >>> draws = nuts(model.vae(), x, draws=50, warmup=50, chains=2)
        >>> abs(draws.mean - model.posterior(x).mean).item() < 0.15
        True
    """
    check_least(4, draws=draws)
    check_least(warmup=warmup, chains=chains)
    check_choice("start", start, ("prior", "guide"))
    with (
        at_data(program, data, seed) as posterior,
        tqdm(desc="NUTS", unit=" transitions", leave=False, disable=not progress) as bar,
    ):
        if not posterior.structure.continuous:
            advice = "Use evaluate.nll for log p(x)"
            if summed := posterior.structure.summed:
                advice = f"Compute the posterior of a site by evaluate.posterior(program, data, site={summed[0]!r})"
            raise ValueError(f"Expected a continuous site for NUTS; all are discrete. {advice}.")
        parts = batches_that_fit(posterior, lambda rows: with_gradient(rows, first_draws(rows, start, chains)))
        bar.reset(len(parts) * (warmup + draws))
        pairs = [_draws(rows, draws, warmup, chains, start, bar.update) for rows in parts]
        u, diverged = (torch.cat(columns, dim=2) for columns in zip(*pairs, strict=True))
        by_chain = [posterior.constrain(of_chain)[0] for of_chain in u]
        z = torch.stack([flat(posterior, sites) for sites in by_chain])
    result = Chains(z, {name: torch.stack([sites[name] for sites in by_chain]) for name in by_chain[0]}, diverged)
    if (worst := result.r_hat.nan_to_num(math.inf).max().item()) > AGREE:
        warnings.warn(
            f"NUTS: the chains disagree, R-hat up to {worst:.2f}. Use more warmup, or start='guide' if the guide is "
            "near the posterior.",
            stacklevel=2,
        )
    if (share := diverged.float().mean().item()) > MANY:
        warnings.warn(
            f"NUTS: {share:.0%} of the trajectories diverged, so draws may miss a part of the posterior. Use more "
            "warmup, or double precision.",
            stacklevel=2,
        )
    return result


def _draws(
    rows: Posterior, draws: int, warmup: int, chains: int, start: Start, update: Callable[[], object]
) -> tuple[Tensor, Tensor]:
    """Return u ``(chains, draws, B, D)`` and whether a trajectory diverged; the density runs as a graph."""
    density = Densities(partial(with_gradient, rows), STEPS * (warmup + draws))
    of_guide, of_prior = (unconstrained_draws(rows, origin, SOME) for origin in get_args(Start))
    target = Target(density, *draw_range(of_guide, of_prior))
    scale = robust_scale(of_prior if start == "prior" else of_guide)
    us, diverged = list[Tensor](), list[Tensor]()
    for u, lost in sample(target, unconstrained_draws(rows, start, chains), scale, warmup, draws):
        us.append(u)
        diverged.append(lost)
        update()
    return torch.stack(us[warmup:], dim=1), torch.stack(diverged[warmup:], dim=1)
