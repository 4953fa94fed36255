r"""The true posterior on a grid, where z is of 2 dimensions: as near to exact as one likes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.annealing import SOME, drawn
from pyro_vae.compiled import how_many_fit
from pyro_vae.data.supports import of_element
from pyro_vae.program import Posterior, point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["Grid", "grid", "on_plane"]

WIDE = 7.0  # standard deviations of the prior where the grid begins
LOW = 18.0  # nats below the peak, where the grid may end
FINER = 2  # times that it is narrowed
MOST = 12  # grids in all


class Grid(NamedTuple):
    """Axes ``(B, steps)``, the posterior's density ``(B, steps, steps)``, z0 by z1, and log p(x), ``(B,)``, in nats."""

    z0: Tensor
    z1: Tensor
    density: Tensor
    log_evidence: Tensor


@torch.no_grad()
def grid(program: Any, data: Any, steps: int = 200, seed: int = 0) -> Grid:
    r"""Compute the true posterior of 2-D codes on a grid, and log p(x), which is then known to many digits.

    .. math:: p(z \mid x) = \frac{p(z) \, p(x \mid z)}{p(x)}, \qquad p(x) = \int p(z) \, p(x \mid z) \, dz

    A grid over 7 standard deviations of the prior, widened until the density at its edges is 18 nats below the peak,
    finds where it is not; finer ones cover that.

    Arguments:
        program: A program of 2 latent dimensions; classes beside them are summed out.
        data: x, a tuple of the program's arguments, or a dictionary of them; NaN where it is missing.
        steps: Points of each axis.
        seed: Of draws of the prior, that say where to begin; torch's own state is left as it was.

    Raises:
        ValueError: If z is not of all real numbers in 2 dimensions, there are fewer than 20 steps, or no edges are
            found.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bool(((grid(model.vae(), x).log_evidence - model.log_evidence(x)).abs() < 1e-3).all())
        True
    """
    with at_test(program, point_of(program).device, seed):
        posterior = posterior_of(program, data)
        if not on_plane(posterior) or steps < 20:
            supports = ", ".join(str(support) for support in posterior.structure.supports.values())
            raise ValueError(
                f"Expected a prior over all real z of 2 dimensions, and at least 20 steps; got {supports} of "
                f"{len(posterior.names)}, and {steps}. Use nuts."
            )

        def density(u: Tensor) -> Tensor:
            return posterior.log_joint(posterior.constrain(u)[0], proper=True)

        def log_joint(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            """Between corners ``(B, 2)``: axes ``(2, B, steps)``, log p(x, z) ``(B, steps, steps)``."""
            axes = low.T.unsqueeze(-1) + (high - low).T.unsqueeze(-1) * torch.linspace(0, 1, steps).to(low)
            z = torch.stack(torch.broadcast_tensors(axes[0].unsqueeze(-1), axes[1].unsqueeze(-2)), -1)
            rows = z.flatten(1, 2).movedim(1, 0)  # points, B, 2
            fit = how_many_fit(lambda n: density(rows[:n]), len(rows), rows.device)
            return axes, torch.cat([density(part) for part in rows.split(fit)]).movedim(0, 1).unflatten(
                1, (steps, steps)
            )

        first = drawn(posterior, "prior", SOME)
        centre, reach = first.mean(0), WIDE * first.std(0)
        low, high = centre - reach, centre + reach
        finer = 0
        for _ in range(MOST):
            axes, log_p = log_joint(low, high)
            if finer == FINER:
                break
            inside = log_p > log_p.amax((1, 2), keepdim=True) - LOW
            seen = torch.stack([inside.any(2), inside.any(1)])  # 2, B, steps
            cut = (seen[..., 0].T, seen[..., -1].T) if finer == 0 else (torch.tensor(False).to(seen),) * 2
            size, cell = high - low, (axes[..., 1] - axes[..., 0]).T
            if any(side.any() for side in cut):
                low, high = torch.where(cut[0], low - size, low), torch.where(cut[1], high + size, high)
            else:
                low = torch.where(seen, axes, math.inf).amin(-1).T - 1.5 * cell
                high = torch.where(seen, axes, -math.inf).amax(-1).T + 1.5 * cell
                finer += 1
        else:
            raise ValueError("Expected a posterior with edges; found none however wide the grid. Use nuts.")
    log_evidence = log_p.flatten(1).logsumexp(1) + (axes[..., 1] - axes[..., 0]).log().sum(0)
    return Grid(axes[0], axes[1], (log_p - log_evidence[:, None, None]).exp(), log_evidence)


def on_plane(posterior: Posterior) -> bool:
    """Say whether what is continuous is of all real numbers, and of 2 dimensions."""
    supports = (posterior.structure.supports[name] for name in posterior.structure.continuous)
    return len(posterior.names) == 2 and all(of_element(support) is constraints.real for support in supports)
