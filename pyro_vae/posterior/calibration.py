r"""Simulation-based calibration of a guide, on data from the model with known true z."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import plots
from pyro_vae.evaluate.weighing import at_data, batches_that_fit, sums_codes
from pyro_vae.posterior.nuts import columns
from pyro_vae.program import Posterior, coordinates

TIED = 1e-5  # relative difference of log-densities that are equal up to rounding


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the true z among ``draws`` of the guide for each datum.

    ``ranks``, from 0 to ``draws``, have shape ``(num, latent + 1)``; the last column has the ranks of log p(x, z).
    ``names`` are the names of the columns, such as ``z[3]``.
    """

    ranks: Tensor
    draws: int
    names: Sequence[str] = ()

    @property
    def bins(self) -> int:
        """The number of bins, from 2 to 20, with at least 10 expected data and, if possible, equal ranks per bin."""
        size = self.draws + 1
        most = max((n for n in range(2, min(20, size) + 1) if len(self.ranks) * (size // n) >= 10 * size), default=2)
        return max((n for n in range(most // 2 + 1, most + 1) if size % n == 0), default=most)

    @property
    def counts(self) -> Tensor:
        """The number of data in each bin, of shape ``(bins, latent + 1)``."""
        bins = self.ranks * self.bins // (self.draws + 1)
        return torch.stack([(bins == i).sum(0) for i in range(self.bins)])

    @property
    def p_values(self) -> Tensor:
        """The p-values of a chi-squared test for uniform ranks, from :attr:`counts`, of shape ``(latent + 1,)``."""
        ranks = torch.arange(self.draws + 1).to(self.ranks)
        shares = torch.bincount(ranks * self.bins // (self.draws + 1)).double() / (self.draws + 1)
        expected = len(self.ranks) * shares.unsqueeze(1)
        statistic = ((self.counts - expected).square() / expected).sum(0)
        return torch.special.gammaincc(torch.full_like(statistic, (self.bins - 1) / 2), statistic / 2)

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Tensor:
        """Return the share of true z in the guide's central intervals, ``(levels, latent)``; the level is ideal."""
        return torch.stack([self.covers(level).double().mean(0) for level in levels])

    def covers(self, level: float) -> Tensor:
        """Return whether the guide's central interval contains the true z, of shape ``(num, latent)``."""
        return ((self.ranks[:, :-1] + 0.5) / (self.draws + 1) - 0.5).abs() < level / 2

    def figure(self) -> "plots.Figure":
        """Plot histograms of the ranks, and coverage against the level."""
        levels = torch.linspace(0, 1, 51)
        covered = self.coverage(levels.tolist())
        return plots.calibration(self.counts, self.names, levels, covered, len(self.ranks), self.p_values)


def sbc(
    program: Any, data: Any = None, draws: int = 99, seed: int = 0, progress: bool = False, num: int | None = None
) -> Calibration:
    r"""Check the guide by simulation-based calibration on data drawn from the model.

    .. math:: z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_1, \dots, z_S \sim q(z \mid x), \qquad
        r = \#\{s : z_s < z^*\}

    If q were the posterior, r would be uniform on 0 to S in each dimension. Ranks crowd at both ends if the guide is
    too narrow, in the middle if the guide is too wide, and at one end if the guide is biased. A guide that ignores x
    and returns the prior passes in each dimension, but fails in the last column, the ranks of log p(x, z).

    Each unconstrained coordinate of the continuous sites and each element of the discrete sites has a rank. Ties, and
    draws of masked elements, are ranked at random. S is ``draws``. The model simulates ``num`` data, 1000 for None,
    with the shapes and covariates of ``data``; the rows of ``data`` are used in turn. A program with a method
    ``blank``, such as a VAE, needs no ``data``; a number as ``data`` sets ``num``.

    References:
        - Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
          https://arxiv.org/abs/1804.06788.
        - Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes
          Sensitivity (Modrak et al., 2023), for log p(x, z), https://arxiv.org/abs/2211.02383.

    Raises:
        ValueError: If there are fewer than 20 data, or no draws.

    See Also:
        :func:`compare` checks the guide on given data; :func:`sbc` averages over data from the model.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), scale=0.5)
        >>> result = sbc(model.vae("exact"), num=200)
        >>> result.ranks.shape, bool((result.p_values > 1e-4).all())
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
        if sums_codes(posterior.program):
            name = type(posterior.program).__name__
            raise ValueError(f"Expected a guide that is a distribution, for ranks; that of {name} is a point mass.")
        for rows in batches_that_fit(posterior, lambda rows: _ranks(rows, draws)):
            ranks, names = _ranks(rows, draws)
            parts.append(ranks)
            bar.update(len(ranks))
    return Calibration(torch.cat(parts), draws, names)


def _ranks(rows: Posterior, num: int) -> tuple[Tensor, list[str]]:
    """Return ranks for simulated data in place of ``rows``, of shape ``(B, columns)``, and the columns' names."""
    truth = rows.simulate(1)
    posterior = rows.at(truth)
    draws = {name: torch.cat([truth[name], value]) for name, value in posterior.propose(num)[0].items()}
    structure, masks = posterior.structure, posterior.masks()
    log_p = posterior.log_joint(draws).expand(1 + num, -1)
    continuous = [posterior.unconstrain(draws)] if structure.continuous else []
    discrete = {name: structure.shapes[name] for name in draws if name not in structure.continuous}
    names = posterior.names + [element for name, shape in discrete.items() for element in coordinates(name, shape)]
    shown = []
    for name, shape in {**structure.continuous, **discrete}.items():
        mask = masks[name].reshape(len(rows), -1, 1)
        shown.append(mask.expand(-1, -1, shape.numel() // mask.shape[1]).flatten(1))
    parts = [*continuous, *(columns(draws[name]) for name in discrete), log_p.unsqueeze(-1)]
    values = torch.cat([part.to(log_p.dtype) for part in parts], -1)
    values[..., :-1] = torch.where(torch.cat(shown, -1), values[..., :-1], 0) if shown else values[..., :-1]
    tolerance = torch.zeros_like(values[0])
    if not structure.continuous:
        tolerance[:, -1] = TIED * log_p.abs().amax(0).nan_to_num(posinf=0.0)
    return _rank_of_first(values, tolerance), [*names, "log p(x, z)"]


def _rank_of_first(values: Tensor, tolerance: Tensor) -> Tensor:
    """Return the rank of the first value among the remaining values; ties are broken at random."""
    ordered, order = values.sort(0)
    steps = (ordered.diff(dim=0) > tolerance).long().cumsum(0)
    places = torch.zeros_like(order).scatter(0, order, torch.cat([torch.zeros_like(steps[:1]), steps]))
    less, equal = ((places[1:] < places[0]).sum(0), (places[1:] == places[0]).sum(0))
    return less + (torch.rand(equal.shape, device=equal.device, dtype=torch.float64) * (equal + 1)).long()
