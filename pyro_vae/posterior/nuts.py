r"""The true posterior of chosen data under a trained decoder: by Pyro's NUTS; and on a grid, for z of 2 dimensions."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import biject_to
from tqdm.auto import tqdm

from pyro_vae.compiled import how_many_fit
from pyro_vae.conditional import mean, stddev
from pyro_vae.evaluate.seeds import forked
from pyro_vae.missing import log_prob
from pyro_vae.vae import VAE

__all__ = ["Chains", "Grid", "grid", "nuts"]

AGREE = 1.05  # R-hat above which chains are said to disagree
WIDE = 7.0  # standard deviations of the prior where the grid begins
LOW = 18.0  # nats below the peak, where the grid may end


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


class Grid(NamedTuple):
    """Axes ``(B, steps)``, the posterior's density ``(B, steps, steps)``, z0 by z1, and log p(x), ``(B,)``, in nats."""

    z0: Tensor
    z1: Tensor
    density: Tensor
    log_evidence: Tensor


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
        ValueError: If a number is not positive, or there are no images.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5), torch.ones(1, 4)
        >>> found = nuts(model.vae(), x, draws=200, warmup=100, chains=2)
        >>> abs(found.mean - model.posterior(x).mean).item() < 0.1
        True
    """
    for name, number in {"draws": draws, "warmup": warmup, "chains": chains, "len(x)": len(x)}.items():
        if number < 1:
            raise ValueError(f"Expected {name} of at least 1; got {number}.")
    if start not in ("prior", "guide"):
        raise ValueError(f"Expected start to be prior or guide; got {start!r}.")
    with torch.no_grad():
        prior: Any = vae.prior()
    to_support = biject_to(prior.support)

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        z = to_support(parameters["u"])
        volume = to_support.log_abs_det_jacobian(parameters["u"], z)
        return -(prior.log_prob(z) + log_prob(vae.decoder(z), x)).sum() - volume.sum()

    found = []
    with (
        forked(x.device, seed),
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
            found.append(to_support(chain.get_samples()["u"]))
    made = Chains(torch.stack(found))
    if (worst := made.r_hat.max().item()) > AGREE:
        warnings.warn(
            f"NUTS: the chains disagree, R-hat up to {worst:.2f}. Use more warmup, or start='guide' if that is where "
            "the posterior is.",
            stacklevel=2,
        )
    return made


@torch.no_grad()
def grid(vae: VAE, x: Tensor, steps: int = 200) -> Grid:
    r"""Compute the true posterior of 2-D codes on a grid, and log p(x), which is then known to many digits.

    .. math:: p(z \mid x) = \frac{p(z) \, p(x \mid z)}{p(x)}, \qquad p(x) = \int p(z) \, p(x \mid z) \, dz

    A coarse grid over the prior finds where the density is within 18 nats of its peak, and a fine one covers that.

    Arguments:
        vae: A VAE of 2 latent dimensions.
        x: Shape ``(B, *event)``, NaN where it is missing.
        steps: Points of each axis.

    Raises:
        ValueError: If z has not 2 dimensions, or there are fewer than 2 steps.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bool(((grid(model.vae(), x).log_evidence - model.log_evidence(x)).abs() < 1e-3).all())
        True
    """
    prior: Any = vae.prior()
    if prior.event_shape != (2,) or steps < 2:
        raise ValueError(
            f"Expected 2 latent dimensions and at least 2 steps; got {prior.event_shape[0]} and {steps}. Use nuts."
        )

    def log_joint(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """On a grid between corners ``(B, 2)``: axes ``(2, B, steps)``, log p(x, z) ``(B, steps, steps)``."""
        axes = torch.stack([low + (high - low) * u for u in torch.linspace(0, 1, steps).to(low)], -1).movedim(1, 0)
        z = torch.stack(torch.broadcast_tensors(axes[0].unsqueeze(-1), axes[1].unsqueeze(-2)), -1)
        rows = z.flatten(1, 2).movedim(1, 0)  # points, B, 2
        fit = how_many_fit(lambda n: log_prob(vae.decoder(rows[:n]), x), len(rows), x.device)
        parts = [prior.log_prob(part) + log_prob(vae.decoder(part), x) for part in rows.split(fit)]
        return axes, torch.cat(parts).movedim(0, 1).unflatten(1, (steps, steps))

    centre, reach = mean(prior).expand(len(x), 2), WIDE * stddev(prior)
    low, high = centre - reach, centre + reach
    for _ in range(2):
        axes, density = log_joint(low, high)
        inside = density > density.amax((1, 2), keepdim=True) - LOW
        seen = torch.stack([inside.any(2), inside.any(1)])  # 2, B, steps
        edge = (axes[..., 1:2] - axes[..., :1]) * 1.5
        low, high = (
            (end(torch.where(seen, axes, fill), -1) + side * edge.squeeze(-1)).T
            for end, fill, side in ((torch.amin, math.inf, -1), (torch.amax, -math.inf, 1))
        )
    axes, density = log_joint(low, high)
    cell = ((axes[..., 1] - axes[..., 0]).log()).sum(0)
    log_evidence = density.flatten(1).logsumexp(1) + cell
    return Grid(axes[0], axes[1], (density - log_evidence[:, None, None]).exp(), log_evidence)
