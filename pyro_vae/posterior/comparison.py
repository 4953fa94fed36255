r"""The guide beside the true posterior, datum by datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import evaluate, plots
from pyro_vae.compiled import how_many_fit
from pyro_vae.posterior.nuts import Chains, flat, nuts
from pyro_vae.posterior.plane import Grid, grid, on_plane
from pyro_vae.program import Posterior, point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["Comparison", "Moments", "compare"]


class Moments(NamedTuple):
    """Of a posterior: ``mean`` and ``stddev``, of shape ``(B, latent)``; ``correlation``, ``(B, latent, latent)``."""

    mean: Tensor
    stddev: Tensor
    correlation: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Moments:
        """Return the moments of draws, of shape ``(draws, B, latent)``."""
        covariance = Chains(z.unsqueeze(0)).covariance
        stddev = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        return cls(z.mean(0), stddev, covariance / (stddev.unsqueeze(-1) * stddev.unsqueeze(-2)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Draws of the guide and of NUTS, for the same data. Printed, it is a table, a line for each datum.

    Attributes:
        chains: What NUTS drew.
        z: Draws of the guide, of shape ``(draws, B, latent)``.
        pareto_k: Of the guide's importance weights, of shape ``(B,)``.
        exact: The density on a grid, where z is of 2 dimensions; else None.
    """

    chains: Chains
    z: Tensor
    pareto_k: Tensor
    exact: Grid | None = None

    @property
    def guide(self) -> Moments:
        """Moments of the guide."""
        return Moments.of(self.z)

    @property
    def nuts(self) -> Moments:
        """Moments of the posterior."""
        return Moments.of(self.chains.z.flatten(0, 1))

    @property
    def shift(self) -> Tensor:
        """How far the guide's mean is off, in the posterior's standard deviations, of shape ``(B, latent)``."""
        return (self.guide.mean - self.nuts.mean) / self.nuts.stddev

    @property
    def spread(self) -> Tensor:
        """The guide's standard deviation over the posterior's, of shape ``(B, latent)``; below 1 it is too sure."""
        return self.guide.stddev / self.nuts.stddev

    def __str__(self) -> str:
        heads = ("datum", "shift", "spread", "correlation", "guide's", "k-hat", "R-hat", "ESS")
        widths = (5, 12, 14, 12, 9, 7, 7, 7)
        rows = [" ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
        ours, theirs = self.guide, self.nuts
        for b in range(self.z.shape[1]):
            pair = theirs.correlation[b].triu(1).abs().argmax()
            there, here = (moments.correlation[b].flatten()[pair].item() for moments in (theirs, ours))
            worst = self.shift[b].flatten()[self.shift[b].abs().argmax()].item()
            cells = [str(b), f"{worst:+.2f}", f"{self.spread[b].min():.2f} to {self.spread[b].max():.2f}"]
            cells += [f"{there:+.2f}", f"{here:+.2f}"] if self.z.shape[2] > 1 else ["-", "-"]
            cells += [f"{self.pareto_k[b]:.2f}", f"{self.chains.r_hat[b].max():.2f}", f"{self.chains.ess[b].min():.0f}"]
            rows.append(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
        notes = (
            "shift: guide's mean less the posterior's, where it is most off, in standard deviations of the posterior.\n"
            "spread: guide's standard deviation over the posterior's, least and most. correlation: the posterior's\n"
            "strongest, and the guide's of the same two dimensions. Posterior by NUTS, "
            f"{self.chains.z.shape[0]} chains of {self.chains.z.shape[1]:,}\ndraws; guide by {len(self.z):,}."
        )
        return "\n".join([*rows, notes])

    def figure(self, datum: int = 0, dims: tuple[int, ...] | None = None) -> Figure:
        """Draw both posteriors of a datum: densities of each dimension, and pairs of dimensions.

        Where z is of 2 dimensions, over contours of the exact density.

        Arguments:
            datum: Which.
            dims: Which dimensions; if not given, up to four where the posterior has the strongest correlation.
        """
        if dims is None:
            strength = (self.nuts.correlation[datum] - torch.eye(self.z.shape[2]).to(self.z)).abs().amax(0)
            dims = tuple(sorted(strength.topk(min(4, len(strength))).indices.tolist()))
        exact = self.exact and (self.exact.z0[datum], self.exact.z1[datum], self.exact.density[datum])
        return plots.posteriors(self.z[:, datum], self.chains.z.flatten(0, 1)[:, datum], dims, exact)


def compare(
    program: Any,
    data: Any,
    draws: int = 500,
    warmup: int = 300,
    chains: int | Chains = 4,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    r"""Compare the guide with the true posterior under the decoder, for some data: means, spreads, correlations.

    A diagonal guide has no correlations, and where the posterior has, it is narrower than the posterior in each
    dimension: of a Gaussian one the best such guide has variances :math:`1 / (\Sigma^{-1})_{ii} \le \Sigma_{ii}`.

    References:
        Pattern Recognition and Machine Learning (Bishop, 2006), section 10.1.2, for the best diagonal guide.

    Arguments:
        program: A program.
        data: x, a tuple of the program's arguments, or a dictionary of them; NaN where it is missing; a few.
        draws: Of each chain, and as many in all of the guide as of the chains together.
        warmup: Steps in which each chain adapts.
        chains: How many; or what :func:`nuts` returned for the same data.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: As :func:`nuts`; or if chains that are given are of other data.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(1, 4)
        >>> found = compare(model.vae("mean-field"), x, draws=500, warmup=200, chains=2)
        >>> bool((found.spread < 0.6).all()), found.nuts.correlation[0, 0, 1].item() < -0.6
        (True, True)
    """
    made = chains
    if not isinstance(made, Chains):
        made = nuts(program, data, draws, warmup, made, seed=seed, progress=progress)
    with at_test(program, point_of(program).device, seed), torch.no_grad():
        posterior = posterior_of(program, data)
        if made.z.shape[2] != len(posterior):
            raise ValueError(
                f"Expected chains of the {len(posterior)} data that are given; got chains of {made.z.shape[2]}."
            )
        num = made.z.shape[0] * made.z.shape[1]
        z = flat(posterior, posterior.propose(num)[0])
        k = evaluate.pareto_k(_weighed(posterior, max(1000, num)))
        exact = grid(program, posterior) if on_plane(posterior) else None
    return Comparison(made, z, k, exact)


def _weighed(posterior: Posterior, num: int) -> Tensor:
    """Return log-weights of so many draws, as many at once as fit in memory."""
    fit = how_many_fit(posterior.log_weights, num, posterior.data[0].device)
    return torch.cat([posterior.log_weights(min(fit, num - i)) for i in range(0, num, fit)])
