r"""Is the guide right on average? Under the model's own data it can be told, since there the true z is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import plots
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.posterior.nuts import columns
from pyro_vae.program import Posterior, coordinates

TIED = 1e-5  # relative difference of log-densities that are the same but for rounding


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the true z among so many ``draws`` of the guide for each datum.

    ``ranks`` are from 0 to ``draws``, of shape ``(num, latent + 1)``, the last column of log p(x, z); ``names`` are
    what columns are of, as ``z[3]``.
    """

    ranks: Tensor
    draws: int
    names: Sequence[str] = ()

    @property
    def bins(self) -> int:
        """How many bins there are: 2 to 20, with 10 data or more expected in each, of equally many ranks, if may be."""
        size = self.draws + 1
        most = max((n for n in range(2, min(20, size) + 1) if len(self.ranks) * (size // n) >= 10 * size), default=2)
        return max((n for n in range(most // 2 + 1, most + 1) if size % n == 0), default=most)

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
        """Return the share of true z in the guide's central intervals, ``(levels, latent)``: it should be the level."""
        return torch.stack([self.covers(level).double().mean(0) for level in levels])

    def covers(self, level: float) -> Tensor:
        """Return where the guide's central interval of a level holds the true z, of shape ``(num, latent)``."""
        return ((self.ranks[:, :-1] + 0.5) / (self.draws + 1) - 0.5).abs() < level / 2

    def figure(self) -> Figure:
        """Draw histograms of ranks, and coverage against the level."""
        levels = torch.linspace(0, 1, 51)
        covered = self.coverage(levels.tolist())
        return plots.calibration(self.counts, self.names, levels, covered, len(self.ranks), self.p_values)


def sbc(
    program: Any, data: Any = None, draws: int = 99, seed: int = 0, progress: bool = False, num: int | None = None
) -> Calibration:
    r"""Calibrate the guide by simulation, under the model's own data.

    .. math:: z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_1, \dots, z_S \sim q(z \mid x), \qquad
        r = \#\{s : z_s < z^*\}

    Were q the posterior, r would be uniform on 0 to S, in each dimension. Ranks that crowd at both ends are of a guide
    too narrow, in the middle too wide, at one end biased. A guide that ignores x and returns the prior passes in each
    dimension; the ranks of log p(x, z), in the last column, find it out.

    Ranks are of each real coordinate of the continuous sites and of each element of the discrete ones; equal draws are
    in random order, and so are all of an element that a mask hides. S is ``draws``; ``num`` data are drawn, 1000 if not
    given, with the covariates and shapes of ``data``, whose rows are taken in turn. A program with a method ``blank``,
    as a VAE, needs none, and a number in their place is ``num``.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts, Betancourt, Simpson, Vehtari
        and Gelman, 2018).
        Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes
        Sensitivity (Modrak et al., 2023), for log p(x, z).

    Raises:
        ValueError: If there are fewer than 20 data, or no draws.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), scale=0.5)
        >>> found = sbc(model.vae("exact"), num=200)
        >>> found.ranks.shape, bool((found.p_values > 1e-4).all())
        (torch.Size([200, 3]), True)
    """
    if isinstance(data, int):
        data, num = None, data
    num = 1000 if num is None else num
    if num < 20 or draws < 1:
        raise ValueError(f"Expected at least 20 data and 1 draw; got num = {num} and draws = {draws}.")
    parts = []
    with (
        at_data(program, data, seed, num=num) as posterior,
        tqdm(total=num, desc="SBC", leave=False, disable=not progress) as bar,
    ):
        for rows in batches_that_fit(posterior, lambda rows: _ranks(rows, draws)):
            ranks, names = _ranks(rows, draws)
            parts.append(ranks)
            bar.update(len(ranks))
    return Calibration(torch.cat(parts), draws, names)


def _ranks(rows: Posterior, num: int) -> tuple[Tensor, list[str]]:
    """Draw data in place of some rows; return ranks, of shape ``(B, columns)``, and what the columns are of."""
    truth = rows.simulate(1)
    posterior = rows.at(truth)
    draws = {name: torch.cat([truth[name], value]) for name, value in posterior.propose(num)[0].items()}
    structure, seen = posterior.structure, posterior.seen()
    log_p = posterior.log_joint(draws).expand(1 + num, -1)
    continuous = [posterior.unconstrain(draws)] if structure.continuous else []
    discrete = {name: structure.shapes[name] for name in draws if name not in structure.continuous}
    names = posterior.names + [one for name, shape in discrete.items() for one in coordinates(name, shape)]
    shown = []
    for name, shape in {**structure.continuous, **discrete}.items():
        each = seen[name].reshape(len(rows), -1, 1)
        shown.append(each.expand(-1, -1, shape.numel() // each.shape[1]).flatten(1))
    parts = [*continuous, *(columns(draws[name]) for name in discrete), log_p.unsqueeze(-1)]
    values = torch.cat([part.to(log_p.dtype) for part in parts], -1)
    values[..., :-1] = torch.where(torch.cat(shown, -1), values[..., :-1], 0) if shown else values[..., :-1]
    tolerance = torch.zeros_like(values[0])
    if not structure.continuous:
        tolerance[:, -1] = TIED * log_p.abs().amax(0).nan_to_num(posinf=0.0)
    return _placed(values, tolerance), [*names, "log p(x, z)"]


def _placed(values: Tensor, tolerance: Tensor) -> Tensor:
    """Return the rank of the first value among the others; what is equal to it falls on either side."""
    ordered, order = values.sort(0)
    steps = (ordered.diff(dim=0) > tolerance).long().cumsum(0)
    places = torch.zeros_like(order).scatter(0, order, torch.cat([torch.zeros_like(steps[:1]), steps]))
    less, equal = ((places[1:] < places[0]).sum(0), (places[1:] == places[0]).sum(0))
    return less + (torch.rand(equal.shape, device=equal.device, dtype=torch.float64) * (equal + 1)).long()
