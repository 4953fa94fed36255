r"""Is the guide right on average? Under the model's own data it can be told, since there the true z is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import plots
from pyro_vae.evaluate.weighing import room
from pyro_vae.missing import log_prob
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["Calibration", "sbc"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the true z among draws of the guide.

    Attributes:
        ranks: From 0 to ``draws``, of shape ``(num, latent + 1)``; the last column is of log p(x, z).
        draws: Of the guide, for each datum.
    """

    ranks: Tensor
    draws: int

    @property
    def names(self) -> list[str]:
        """What the columns are of."""
        return [*(f"z{i}" for i in range(self.ranks.shape[1] - 1)), "log p(x, z)"]

    @property
    def bins(self) -> int:
        """How many bins there are: up to 20, 10 data or more expected in each; of equally many ranks, if may be."""
        size = self.draws + 1
        most = max(n for n in range(1, min(20, size) + 1) if len(self.ranks) * (size // n) >= 10 * size)
        return max((n for n in range(most // 2 + 1, most + 1) if size % n == 0), default=max(2, most))

    @property
    def counts(self) -> Tensor:
        """How many data fall in each bin, of shape ``(bins, latent + 1)``."""
        bins = self.ranks * self.bins // (self.draws + 1)
        return torch.stack([(bins == i).sum(0) for i in range(self.bins)])

    @property
    def p_values(self) -> Tensor:
        """Of the hypothesis that ranks are uniform, by the chi-squared test of :attr:`counts`: ``(latent + 1,)``."""
        ranks = torch.arange(self.draws + 1).to(self.ranks)
        shares = torch.bincount(ranks * self.bins // (self.draws + 1)).double() / (self.draws + 1)
        expected = len(self.ranks) * shares.unsqueeze(1)
        statistic = ((self.counts - expected).square() / expected).sum(0)
        return torch.special.gammaincc(torch.full_like(statistic, (self.bins - 1) / 2), statistic / 2)

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Tensor:
        """Return the share of true z within the guide's central intervals, of shape ``(levels, latent)``.

        An interval of 0.9 should hold 0.9 of them. Less is a guide that is too narrow, or off.
        """
        u = (self.ranks[:, :-1] + 0.5) / (self.draws + 1)
        return torch.stack([((u - 0.5).abs() < level / 2).double().mean(0) for level in levels])

    def figure(self) -> Figure:
        """Draw histograms of ranks, and coverage against the level."""
        levels = torch.linspace(0, 1, 51)
        covered = self.coverage(levels.tolist())
        return plots.calibration(self.counts, self.names, levels, covered, len(self.ranks), self.p_values)


@torch.no_grad()
def sbc(vae: VAE, num: int = 1000, draws: int = 99, seed: int = 0, progress: bool = False) -> Calibration:
    r"""Calibrate the guide by simulation, under the model's own data.

    .. math:: z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_1, \dots, z_S \sim q(z \mid x), \qquad
        r = \#\{s : z_s < z^*\}

    Were q the posterior, :math:`z^*` would be one more draw of it, and r uniform on 0 to S, in each dimension. Ranks
    that crowd at both ends are of a guide too narrow, in the middle too wide, at one end biased. A guide that ignores
    x and returns the prior passes in each dimension; the ranks of log p(x, z), in the last column, find it out.

    It is of data that the model draws. On real ones, which it may not look like, see ``evaluate.pareto_k``.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts, Betancourt, Simpson, Vehtari
        and Gelman, 2018).

        Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes
        Sensitivity (Modrak et al., 2023), for log p(x, z).

    Arguments:
        vae: Any VAE.
        num: Data that are drawn.
        draws: S, of the guide for each.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If there are fewer than 20 data, or no draws.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), scale=0.5)
        >>> found = sbc(model.vae("exact"), num=200)
        >>> found.ranks.shape, bool((found.p_values > 1e-4).all())
        (torch.Size([200, 3]), True)
    """
    if num < 20 or draws < 1:
        raise ValueError(f"Expected at least 20 data and 1 draw; got num = {num} and draws = {draws}.")
    point, found = vae.reference, []
    with at_test(vae, point.device, seed), tqdm(total=num, desc="SBC", leave=False, disable=not progress) as bar:
        prior = vae.prior()
        images, at_once = room(vae, vae.decoder(prior.sample((2,))).sample())
        for z in prior.sample((num,)).split(max(1, min(images, at_once // draws))):
            x = vae.decoder(z).sample()
            drawn = torch.cat([z.unsqueeze(0), vae.encoder(x).sample((draws,))])
            joint = prior.log_prob(drawn) + log_prob(vae.decoder(drawn), x)
            values = torch.cat([drawn, joint.unsqueeze(-1)], -1)
            found.append((values[1:] < values[0]).sum(0))
            bar.update(len(z))
    return Calibration(torch.cat(found), draws)
