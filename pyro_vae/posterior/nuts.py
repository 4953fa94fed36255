r"""Draws from the true posterior under a trained decoder, by Pyro's NUTS."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import Start, unconstrained_draws
from pyro_vae.compiled import GraphedFunction, Outputs
from pyro_vae.compiled.traced import RECORD_AFTER
from pyro_vae.evaluate.weighing import at_data
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior

AGREE = 1.05  # R-hat above which chains disagree


@dataclass(frozen=True, eq=False)
class Chains:
    """Markov chain draws of p(z | x): ``draws`` maps each site to ``(chains, draws, B, *rest)``.

    ``z`` concatenates all continuous sites and has shape ``(chains, draws, B, latent)``.
    """

    z: Tensor
    draws: Draws = field(default_factory=dict)

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

    Each chain adapts the step size and the mass matrix for ``warmup`` steps and then takes ``draws`` steps. A warning
    reports disagreement between chains. Chains start at draws of the ``prior``, so that chains in separate modes
    disagree, or at draws of the ``guide``. Chains move in unconstrained coordinates of the continuous sites; classes
    are summed out. Each chain moves all data together: one digit takes seconds, a hundred digits take minutes.

    References:
        The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://arxiv.org/abs/1111.4246.

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
    total, samples = chains * (warmup + draws), []
    with (
        at_data(program, data, seed) as posterior,
        tqdm(total=total, desc="NUTS", leave=False, disable=not progress) as bar,
    ):
        if not posterior.structure.continuous:
            advice = "Use evaluate.nll for log p(x)"
            if summed := posterior.structure.summed:
                advice = f"Compute the posterior of a site by evaluate.posterior(program, data, site={summed[0]!r})"
            raise ValueError(f"Expected a continuous site for NUTS; all are discrete. {advice}.")
        potential = _potential(posterior)
        for _ in range(chains):
            chain = MCMC(
                NUTS(potential_fn=potential),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"u": unconstrained_draws(posterior, start, 1)[0]},
                disable_progbar=True,
                hook_fn=lambda *_: bar.update(),
            )
            with torch.enable_grad():
                chain.run()
            samples.append(posterior.constrain(chain.get_samples()["u"])[0])
    by_site = {name: torch.stack([sites[name] for sites in samples]) for name in samples[0]}
    result = Chains(torch.stack([flat(posterior, sites) for sites in samples]), by_site)
    if (worst := result.r_hat.max().item()) > AGREE:
        warnings.warn(
            f"NUTS: the chains disagree, R-hat up to {worst:.2f}. Use more warmup, or start='guide' if the guide is "
            "near the posterior.",
            stacklevel=2,
        )
    return result


def _potential(posterior: Posterior) -> Callable[[Draws], Tensor]:
    """Return a function that sums -log p(x, u) over the data, for u ``(B, D)``; value and gradient run as a graph."""

    def outputs(u: Tensor) -> Outputs:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            values, volume = posterior.constrain(u.unsqueeze(0))
            energy = -(posterior.log_joint(values, proper=True) + volume).sum()
            (gradient,) = torch.autograd.grad(energy, u)
        return Outputs([energy.detach(), gradient], None)

    graph = GraphedFunction(outputs, quiet=True, recorded=RECORD_AFTER, frozen=True)

    def potential(parameters: Draws) -> Tensor:
        u = parameters["u"]
        energy, gradient = graph((u.detach(),), {}).tensors
        return energy + ((u - u.detach()) * gradient).sum()

    return potential
