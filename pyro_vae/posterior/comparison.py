r"""Comparison of the guide with the true posterior of each datum, by NUTS or on a grid for 2-D codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import plots
from pyro_vae.annealing import SOME, unconstrained_draws
from pyro_vae.compiled import max_batch_size
from pyro_vae.data.supports import of_element
from pyro_vae.evaluate.weighing import at_data
from pyro_vae.evaluate.weights import pareto_k
from pyro_vae.posterior.nuts import Chains, flat, nuts
from pyro_vae.program import Posterior
from pyro_vae.words import aligned, nats

WIDE = 7.0  # half width of the first grid, in standard deviations of the prior
LOW = 18.0  # nats below the peak at which the grid may end
FINER = 2  # refinements of the grid
MOST = 12  # grids in all


class Moments(NamedTuple):
    """Moments: ``mean`` and ``stddev`` of shape ``(B, latent)``, ``correlation`` of shape ``(B, latent, latent)``."""

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
    """Draws of NUTS and of the guide for the same data; ``print`` shows a table with a line for each datum.

    ``chains`` holds the draws of NUTS. ``z`` holds the draws of the guide, of shape ``(draws, B, latent)``.
    ``pareto_k`` has shape ``(B,)`` and describes the guide's weights. ``exact`` is the density on a grid for 2-D codes.
    """

    chains: Chains
    z: Tensor
    pareto_k: Tensor
    exact: Grid | None = None

    @property
    def guide(self) -> Moments:
        """The moments of the guide's draws."""
        return Moments.of(self.z)

    @property
    def nuts(self) -> Moments:
        """The moments of NUTS's draws."""
        return Moments.of(self.chains.z.flatten(0, 1))

    @property
    def shift(self) -> Tensor:
        """The error of the guide's mean, in posterior standard deviations, of shape ``(B, latent)``."""
        return (self.guide.mean - self.nuts.mean) / self.nuts.stddev

    @property
    def spread(self) -> Tensor:
        """The guide's standard deviation divided by the posterior's, ``(B, latent)``; below 1 means too narrow."""
        return self.guide.stddev / self.nuts.stddev

    def __str__(self) -> str:
        rows = [["datum", "shift", "spread", "correlation", "guide's", "k-hat", "R-hat", "ESS"]]
        correlations, r_hat, ess = (self.nuts.correlation, self.guide.correlation), self.chains.r_hat, self.chains.ess
        for b, (shift, spread) in enumerate(zip(self.shift, self.spread, strict=True)):
            pair = correlations[0][b].triu(1).abs().argmax()
            pairs = [f"{matrix[b].flatten()[pair]:+.2f}" for matrix in correlations] if len(shift) > 1 else ["-", "-"]
            numbers = f"{self.pareto_k[b]:.2f}", f"{r_hat[b].amax():.2f}", f"{ess[b].amin():.0f}"
            worst, ends = shift[shift.abs().argmax()], f"{nats(spread.min().item())} to {nats(spread.max().item())}"
            rows.append([str(b), nats(worst.item(), "+"), ends, *pairs, *numbers])
        notes = (
            "shift: guide's mean minus the posterior's, the largest, in standard deviations of the posterior.\n"
            "spread: guide's standard deviation over the posterior's, least and most. correlation: the posterior's\n"
            "strongest, and the guide's of the same two dimensions. Posterior by NUTS, "
            f"{self.chains.z.shape[0]} chains of {self.chains.z.shape[1]:,}\ndraws; guide by {len(self.z):,}."
        )
        return "\n".join([*aligned(rows, 0), notes])

    def figure(self, datum: int = 0, dims: tuple[int, ...] | None = None) -> plots.Figure:
        """Plot the guide and the posterior of one datum, for each dimension and each pair of dimensions.

        The plot includes the exact density if known. ``dims`` selects the dimensions; None selects up to four
        dimensions with the strongest correlations.
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
    r"""Compare means, spreads and correlations of the guide and of the true posterior, drawn by NUTS.

    The best diagonal guide of a correlated posterior is too narrow in each dimension. For a Gaussian posterior, the
    guide's variances are :math:`1 / (\Sigma^{-1})_{ii} \le \Sigma_{ii}`. The guide has as many draws as all chains
    of a datum. Arguments are as for :func:`nuts`; ``chains`` may also be a result of :func:`nuts` for the same data.

    References:
        Pattern Recognition and Machine Learning (Bishop, 2006), section 10.1.2, for the best diagonal guide.

    Raises:
        ValueError: As for :func:`nuts`, or if ``chains`` comes from different data.

    See Also:
        :func:`sbc` checks the guide without NUTS; :func:`gaps` measures the inference gap in nats.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(1, 4)
        >>> result = compare(model.vae("mean-field"), x, draws=250, warmup=150, chains=2)
        >>> bool((result.spread < 0.6).all()), result.nuts.correlation[0, 0, 1].item() < -0.6
        (True, True)
    """
    if not isinstance(chains, Chains):
        chains = nuts(program, data, draws, warmup, chains, seed=seed, progress=progress)
    with at_data(program, data, seed) as posterior:
        if chains.z.shape[2] != len(posterior):
            raise ValueError(
                f"Expected chains of the {len(posterior)} data in the call; got chains of {chains.z.shape[2]}."
            )
        num = chains.z.shape[0] * chains.z.shape[1]
        z = flat(posterior, posterior.propose(num)[0])
        total = max(1000, num)
        size = max_batch_size(posterior.log_weights, total, posterior.data[0].device)
        k = pareto_k(torch.cat([posterior.log_weights(min(size, total - i)) for i in range(0, total, size)]))
        return Comparison(chains, z, k, grid(program, posterior) if _is_real_2d(posterior) else None)


class Grid(NamedTuple):
    """Axes ``(B, steps)``, posterior density ``(B, steps, steps)`` by z0 and z1, and log p(x) ``(B,)`` in nats."""

    z0: Tensor
    z1: Tensor
    density: Tensor
    log_evidence: Tensor


def grid(program: Any, data: Any, steps: int = 200, seed: int = 0) -> Grid:
    r"""Compute the true posterior of 2-D codes and log p(x) on a grid, accurate to many digits.

    .. math:: p(z \mid x) = \frac{p(z) \, p(x \mid z)}{p(x)}, \qquad p(x) = \int p(z) \, p(x \mid z) \, dz

    The first grid covers 7 standard deviations of the prior. The grid grows until the density at the edges is 18 nats
    below the peak; finer grids then cover the dense region. Each axis has ``steps`` points. Classes are summed out.

    Raises:
        ValueError: If the support of z is not the real plane, ``steps`` is below 20, or no grid is wide enough.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bool(((grid(model.vae(), x).log_evidence - model.log_evidence(x)).abs() < 1e-3).all())
        True
    """
    with at_data(program, data, seed) as posterior:
        if not _is_real_2d(posterior) or steps < 20:
            supports = ", ".join(str(support) for support in posterior.structure.supports.values())
            raise ValueError(
                f"Expected a prior over all real z with 2 dimensions, and at least 20 steps; got {supports} with "
                f"{len(posterior.names)} dimensions, and {steps} steps. Use nuts."
            )

        def density(u: Tensor) -> Tensor:
            return posterior.log_joint(posterior.constrain(u)[0], proper=True)

        def log_joint(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            """Return axes ``(2, B, steps)`` between corners ``(2, B)``, and log p(x, z) ``(B, steps, steps)``."""
            axes = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * torch.linspace(0, 1, steps).to(low)
            z = torch.stack(torch.broadcast_tensors(axes[0].unsqueeze(-1), axes[1].unsqueeze(-2)), -1)
            points = z.flatten(1, 2).movedim(1, 0)  # points, B, 2
            size = max_batch_size(lambda n: density(points[:n]), len(points), points.device)
            log_p = torch.cat([density(part) for part in points.split(size)])
            return axes, log_p.T.unflatten(1, (steps, steps))

        draws = unconstrained_draws(posterior, "prior", SOME)
        centre, reach = draws.mean(0).T, WIDE * draws.std(0).T
        low, high = centre - reach, centre + reach
        finer = 0
        for _ in range(MOST):
            axes, log_p = log_joint(low, high)
            if finer == FINER:
                break
            inside = log_p > log_p.amax((1, 2), keepdim=True) - LOW
            high_density = torch.stack([inside.any(2), inside.any(1)])  # 2, B, steps
            at_low, at_high, size = high_density[..., 0], high_density[..., -1], high - low
            if finer == 0 and (at_low | at_high).any():
                low, high = torch.where(at_low, low - size, low), torch.where(at_high, high + size, high)
            else:
                cell = axes[..., 1] - axes[..., 0]
                low = torch.where(high_density, axes, math.inf).amin(-1) - 1.5 * cell
                high = torch.where(high_density, axes, -math.inf).amax(-1) + 1.5 * cell
                finer += 1
        else:
            raise ValueError("Expected posterior mass inside the widest grid; it reaches the edge. Use nuts.")
    log_evidence = log_p.flatten(1).logsumexp(1) + (axes[..., 1] - axes[..., 0]).log().sum(0)
    return Grid(axes[0], axes[1], (log_p - log_evidence[:, None, None]).exp(), log_evidence)


def _is_real_2d(posterior: Posterior) -> bool:
    """Return whether the continuous sites have 2 dimensions in all, with the real numbers as support."""
    supports = (posterior.structure.supports[name] for name in posterior.structure.continuous)
    return len(posterior.names) == 2 and all(of_element(support) is constraints.real for support in supports)
