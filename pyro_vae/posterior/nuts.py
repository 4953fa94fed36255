r"""The true posterior of chosen data under a trained decoder, by Pyro's NUTS."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import biject_to, constraints
from tqdm.auto import tqdm

from pyro_vae.data.supports import of_element
from pyro_vae.missing import log_prob
from pyro_vae.posterior.plane import check
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["Chains", "nuts"]

AGREE = 1.05  # R-hat above which chains are said to disagree


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of p(z | x) by Markov chains.

    ``arviz.convert_to_dataset({"z": chains.z.numpy()})`` has ArviZ look at them.

    Attributes:
        z: Shape ``(chains, draws, B, latent)``.
    """

    z: Tensor

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


def nuts(
    vae: VAE,
    x: Tensor,
    draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    start: Literal["prior", "guide"] = "prior",
    seed: int = 0,
    progress: bool = False,
) -> Chains:
    r"""Draw from the true posterior of some data under the decoder, by the No-U-Turn Sampler.

    .. math:: p(z \mid x) \propto p(z) \, p(x \mid z)

    Nothing is asked of the guide, unless chains start there. All data are one Markov chain together, each chain with a
    step size and a mass matrix of its own; what one datum's draws are has nothing to do with another's.

    References:
        The No-U-Turn Sampler (Hoffman and Gelman, 2014).

    Arguments:
        vae: Any VAE; of a prior on constrained z too.
        x: Shape ``(B, *event)``, NaN where it is missing. A few: a digit takes seconds, a hundred some minutes.
        draws: Of each chain, after the warm-up.
        warmup: Steps in which step size and mass matrix are adapted.
        chains: How many.
        start: Where they start, at draws of the ``prior``, so that chains which do not find each other show; or of the
            ``guide``.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Returns:
        Draws, with R-hat and effective sample sizes. A warning says where chains disagree.

    Raises:
        ValueError: If a number is too small (4 draws are the fewest that R-hat is told of), or x is of another shape.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5), torch.ones(1, 4)
        >>> found = nuts(model.vae(), x, draws=200, warmup=100, chains=2)
        >>> abs(found.mean - model.posterior(x).mean).item() < 0.1
        True
    """
    for name, number, least in (("draws", draws, 4), ("warmup", warmup, 1), ("chains", chains, 1)):
        if number < least:
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")
    if start not in ("prior", "guide"):
        raise ValueError(f"Expected start to be prior or guide; got {start!r}.")
    with at_test(vae, x.device), torch.no_grad():
        prior: Any = vae.prior()
        check(x, vae.decoder(prior.sample((1,))).event_shape)
    real = of_element(prior.support) is constraints.real
    to_support = biject_to(constraints.real_vector if real else prior.support)

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        z = to_support(parameters["u"])
        volume = to_support.log_abs_det_jacobian(parameters["u"], z)
        return -(prior.log_prob(z) + log_prob(vae.decoder(z), x)).sum() - volume.sum()

    found = []
    with (
        at_test(vae, x.device, seed),
        torch.enable_grad(),
        tqdm(total=chains * (warmup + draws), desc="NUTS", leave=False, disable=not progress) as bar,
    ):
        for _ in range(chains):
            with torch.no_grad():
                first = prior.sample((len(x),)) if start == "prior" else vae.encoder(x).sample()
            chain = MCMC(
                NUTS(potential_fn=potential),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"u": to_support.inv(first)},
                disable_progbar=True,
                hook_fn=lambda *_: bar.update(),
            )
            chain.run()
            found.append(to_support(chain.get_samples()["u"]).detach())
    made = Chains(torch.stack(found))
    if (worst := made.r_hat.max().item()) > AGREE:
        warnings.warn(
            f"NUTS: the chains disagree, R-hat up to {worst:.2f}. Use more warmup, or start='guide' if that is where "
            "the posterior is.",
            stacklevel=2,
        )
    return made
