r"""The true posterior of chosen data under a trained decoder, by Pyro's NUTS."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import Start, drawn
from pyro_vae.compiled import Outputs, Traced
from pyro_vae.compiled.traced import SELDOM
from pyro_vae.evaluate.weighing import at_data
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior

AGREE = 1.05  # R-hat above which chains are said to disagree


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of p(z | x) by Markov chains: by site in ``draws``, each of shape ``(chains, draws, B, *rest)``.

    In ``z`` all continuous sites follow each other, ``(chains, draws, B, latent)``.
    """

    z: Tensor
    draws: Draws = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """The posterior's mean, of shape ``(B, latent)``."""
        return self.z.flatten(0, 1).mean(0)

    @property
    def covariance(self) -> Tensor:
        """The posterior's covariance, of shape ``(B, latent, latent)``."""
        off = self.z.flatten(0, 1) - self.mean
        return torch.einsum("sbi,sbj->bij", off, off) / (len(off) - 1)

    @property
    def r_hat(self) -> Tensor:
        """Spread of all chains over that of each of their halves, of shape ``(B, latent)``: 1 where they agree.

        References:
            Inference from Iterative Simulation Using Multiple Sequences (Gelman and Rubin, 1992).
        """
        return split_gelman_rubin(self.z, chain_dim=0, sample_dim=1)

    @property
    def ess(self) -> Tensor:
        """How many independent draws would give means as exact, of shape ``(B, latent)``."""
        return effective_sample_size(self.z, chain_dim=0, sample_dim=1)


def flat(posterior: Posterior, draws: Draws) -> Tensor:
    """Return values of the continuous sites one after another, of shape ``(K, B, latent)``."""
    return torch.cat([columns(draws[name]) for name in posterior.structure.continuous], -1)


def columns(values: Tensor) -> Tensor:
    """Return values ``(K, B, *rest)`` of a site as columns, of shape ``(K, B, elements)``."""
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
    r"""Draw from the true posterior of some data under the decoder, by the No-U-Turn Sampler.

    .. math:: p(z \mid x) \propto p(z) \, p(x \mid z)

    Each chain takes ``warmup`` steps, in which its step size and mass matrix are adapted, then ``draws``; a warning
    says where chains disagree. They start at draws of the ``prior``, so that those which do not find each other show,
    or of the ``guide``. All data are one Markov chain together: a digit takes seconds, a hundred some minutes. Chains
    move in real coordinates of the continuous sites; classes are summed out.

    References:
        The No-U-Turn Sampler (Hoffman and Gelman, 2014).

    Raises:
        ValueError: If a number is too small (4 draws are the fewest that R-hat is told of), or no site is continuous.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5), torch.ones(1, 4)
        >>> found = nuts(model.vae(), x, draws=50, warmup=50, chains=2)
        >>> abs(found.mean - model.posterior(x).mean).item() < 0.15
        True
    """
    check_least(4, draws=draws)
    check_least(warmup=warmup, chains=chains)
    check_choice("start", start, ("prior", "guide"))
    total, values = chains * (warmup + draws), []
    with (
        at_data(program, data, seed) as posterior,
        tqdm(total=total, desc="NUTS", leave=False, disable=not progress) as bar,
    ):
        if not posterior.structure.continuous:
            raise ValueError(
                "Expected a continuous site, for chains to move; all are discrete, so that their posterior is a table: "
                f"evaluate.posterior(program, data, site={next(iter(posterior.structure.supports))!r})."
            )
        potential = _potential(posterior)
        for _ in range(chains):
            chain = MCMC(
                NUTS(potential_fn=potential),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"u": drawn(posterior, start, 1)[0]},
                disable_progbar=True,
                hook_fn=lambda *_: bar.update(),
            )
            with torch.enable_grad():
                chain.run()
            values.append(posterior.constrain(chain.get_samples()["u"])[0])
    by_site = {name: torch.stack([each[name] for each in values]) for name in values[0]}
    found = Chains(torch.stack([flat(posterior, each) for each in values]), by_site)
    if (worst := found.r_hat.max().item()) > AGREE:
        warnings.warn(
            f"NUTS: the chains disagree, R-hat up to {worst:.2f}. Use more warmup, or start='guide' if that is where "
            "the posterior is.",
            stacklevel=2,
        )
    return found


def _potential(posterior: Posterior) -> Callable[[Draws], Tensor]:
    """Return -log p(x, z) of all data at real coordinates u, ``(B, D)``, whose value and gradient are from a graph."""

    def outputs(u: Tensor) -> Outputs:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            values, volume = posterior.constrain(u.unsqueeze(0))
            energy = -(posterior.log_joint(values, proper=True) + volume).sum()
            (gradient,) = torch.autograd.grad(energy, u)
        return Outputs([energy.detach(), gradient], None)

    graph = Traced(outputs, quiet=True, recorded=SELDOM, frozen=True)

    def potential(parameters: Draws) -> Tensor:
        u = parameters["u"]
        energy, gradient = graph((u.detach(),), {}).tensors
        return energy + ((u - u.detach()) * gradient).sum()

    return potential
