r"""A proposal for importance sampling, adapted to the posterior of each datum by rounds of weighted draws.

References:
    - Population Monte Carlo (Cappé, Guillin, Marin and Robert, 2004), https://doi.org/10.1198/106186004X12803.
    - Adaptive Multiple Importance Sampling (Cornuet, Marin, Mira and Robert, 2012), https://arxiv.org/abs/0907.1254.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.annealing import SOME, draw_range, unconstrained_draws
from pyro_vae.evaluate.weights import ess, iwae
from pyro_vae.program import Draws, Posterior

ROUNDS = (25, 25, 25, 25, 25, 50)  # draws of each round of fitting, for each dimension
MORE = 10  # further rounds at most, of the last size, for data with a small effective sample size
KEPT = 4  # rounds whose draws a fit uses
AT_ONCE = 16_000_000  # numbers in the draws that fits use
FEW = 0.1  # effective share of the draws below which a fit gets further rounds
DF = 10.0  # degrees of freedom: fewer waste draws, more miss tails
SPREAD = 3.0  # effective draws for each dimension that a covariance needs
SHRINK = 0.1  # of the correlations, which few draws overstate
SMALL = 1e-6  # of the variance of all draws, for a draw that has all of the weight
NONE = -1e30  # in place of minus infinity, which has no mean
HALVINGS = 30
ALL = slice(None)


class Student(NamedTuple):
    r"""A multivariate Student t for each datum, :math:`u = \mu_b + L_b \, \epsilon`.

    ``loc`` has shape ``(B, D)``; ``scale``, the lower triangular L, has shape ``(B, D, D)``. Pyro's
    ``MultivariateStudentT`` copies L for each draw and takes seven times as long in 20 dimensions.
    """

    loc: Tensor
    scale: Tensor

    def draw(self, num: int) -> Tensor:
        """Return draws ``(num, B, D)``."""
        chi2 = torch.distributions.Chi2(self.loc.new_tensor(DF)).sample((num, len(self.loc)))
        noise = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        noise = noise * (DF / chi2).sqrt().unsqueeze(-1)
        return self.loc + torch.einsum("bij,kbj->kbi", self.scale, noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log-densities ``(K, B)`` at u, ``(K, B, D)``."""
        dims, off = u.shape[-1], (u - self.loc).permute(1, 2, 0)
        noise = torch.linalg.solve_triangular(self.scale, off, upper=False)
        constant = math.lgamma((DF + dims) / 2) - math.lgamma(DF / 2) - dims / 2 * math.log(math.pi * DF)
        volume = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant - volume - (DF + dims) / 2 * (noise.square().sum(1).T / DF).log1p()

    def select(self, rows: Tensor) -> "Student":
        """Return the distributions of the data with indices ``rows``."""
        return Student(self.loc[rows], self.scale[rows])


class Round(NamedTuple):
    """Draws u from a distribution, of shape ``(K, B, D)``, and log p(x, u), of shape ``(K, B)``."""

    distribution: Student
    u: Tensor
    log_p: Tensor

    def log_weights(self) -> Tensor:
        """Return the log-weights of the draws, ``(K, B)``."""
        return self.log_p - self.distribution.log_prob(self.u)


def fit_mixture(rounds: Sequence[Round]) -> Student:
    """Fit a Student t to the draws of several rounds; weights use the mixture of the rounds' distributions."""
    u = torch.cat([draws.u for draws in rounds])
    parts = [draws.distribution.log_prob(u) + math.log(len(draws.u) / len(u)) for draws in rounds]
    return fit_student(u, torch.cat([draws.log_p for draws in rounds]) - torch.stack(parts).logsumexp(0))


def fit_student(u: Tensor, log_w: Tensor) -> Student:
    """Fit a Student t to weighted draws: u of shape ``(K, B, D)``, log-weights of shape ``(K, B)``.

    The weights are raised to a power of at most 1, so that the effective sample size suffices for a covariance.
    """
    num, _, dims = u.shape
    weight = temper(log_w.nan_to_num(NONE, neginf=NONE), min(SPREAD * dims, num / 2))
    loc = torch.einsum("kb,kbi->bi", weight, u)
    off = u - loc
    covariance = torch.einsum("kb,kbi,kbj->bij", weight, off, off)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    covariance = (1 - SHRINK) * covariance + torch.diag_embed(SHRINK * variance + SMALL * u.var(0))
    return Student(loc, torch.linalg.cholesky(covariance * ((DF - 2) / DF)))


def temper(log_w: Tensor, size: float) -> Tensor:
    """Raise weights to the largest power up to 1 with effective sample size ``size``; return normalised ``(K, B)``."""
    low, high = torch.zeros_like(log_w[0]), torch.ones_like(log_w[0])
    for _ in range(HALVINGS):
        power = (low + high) / 2
        enough = ess(power * log_w) >= size
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
    return (torch.where(ess(log_w) >= size, 1.0, low) * log_w).softmax(0)


class AdaptedProposals:
    """A proposal for each datum: a Student t, or the guide where the guide's effective sample size is larger.

    The draws for fitting and choosing a proposal are not used again, so the mean weight of new draws is p(x).

    Arguments:
        rows: The program at the data.
        density: A function that computes log p(x, u) from data and unconstrained u, of shape ``(K, B, D)``.
        at_once: The number K of draws in one call of ``density``.
        update: A function to call with the number of draws at each evaluation of ``density``.
        fixed: The number of data in every call of ``density``, as a graph needs, or None for any number.
    """

    def __init__(
        self,
        rows: Posterior,
        density: Callable[..., Tensor],
        at_once: int,
        update: Callable[[int], object],
        fixed: int | None = None,
    ) -> None:
        self.rows, self._density, self._at_once, self._update = rows, density, at_once, update
        self._fixed = fixed
        of_guide, of_prior = unconstrained_draws(rows, "guide", SOME), unconstrained_draws(rows, "prior", SOME)
        self._range = draw_range(of_guide, of_prior)
        dims = of_guide.shape[-1]
        first, *later = (math.ceil(number * dims / at_once) * at_once for number in ROUNDS)
        u, log_w = self._guide_draws(first)
        share, bound = ess(log_w) / len(u), iwae(log_w)
        if rows.structure.auxiliary:
            share, bound = torch.zeros_like(share), torch.full_like(bound, -math.inf)
        distribution, rounds = fit_student(u, log_w), list[Round]()
        for num in later:
            rounds = [*rounds[1 - KEPT :], self._round(distribution, num)]
            distribution = fit_mixture(rounds)
        log_w = rounds[-1].log_weights()
        part = torch.arange(len(rows), device=u.device)
        for _ in range(MORE):
            poor = (ess(log_w[:, part]) < FEW * len(log_w)).nonzero().squeeze(-1)
            if not len(poor):
                break
            if not rows.structure.all_rows:
                part, rounds = part[poor], [Round(old.select(poor), u[:, poor], p[:, poor]) for old, u, p in rounds]
            rounds = [*rounds[1 - KEPT :], self._round(distribution.select(part), len(log_w), part)]
            log_w[:, part], fits = rounds[-1].log_weights(), fit_mixture(rounds)
            distribution = Student(*(old.index_copy(0, part, new) for old, new in zip(distribution, fits, strict=True)))
        # Draws of a poor guide may be equally unlikely, with a large effective sample size; the bound shows it.
        self.distribution, self.better = distribution, (ess(log_w) / len(log_w) > share) | (iwae(log_w) > bound + 1)

    def log_weights(self, num: int) -> Tensor:
        """Return log-weights of new draws, of shape ``(num, B)``."""
        if not self.better.any():
            return self.rows.log_weights(num)
        log_w = self._round(self.distribution, num).log_weights()
        if self.better.all():
            return log_w
        if self.rows.structure.all_rows:
            return torch.where(self.better, log_w, self.rows.log_weights(num))
        rest = (~self.better).nonzero().squeeze(-1)
        return log_w.index_copy(1, rest, self.rows[rest].log_weights(num))

    def propose(self, num: int) -> tuple[Draws, Tensor]:
        """Return new draws of the continuous sites and their log-weights, of shape ``(num, B)``."""
        draws = self._round(self.distribution, num)
        u, log_w = draws.u, draws.log_weights()
        if not self.better.all():
            of_guide, weights = (values[:num] for values in self._guide_draws(num))
            u = torch.where(self.better.unsqueeze(-1), u, of_guide)
            log_w = torch.where(self.better, log_w, weights)
        return self.rows.constrain(u)[0], log_w

    def _guide_draws(self, num: int) -> tuple[Tensor, Tensor]:
        """Return at least ``num`` draws from the guide and log-weights, 0 if the guide's density is not known."""
        us, log_ws = list[Tensor](), list[Tensor]()
        for _ in range(0, num, self._at_once):
            u = self.rows.unconstrain(self.rows.propose(self._at_once)[0])
            log_w = u.new_zeros(u.shape[:2])
            if not self.rows.structure.auxiliary:
                draws, volume = self.rows.constrain(u)  # of the continuous sites alone
                log_w = self._log_density(u) - self.rows.log_q(draws, proper=True) - volume
            us.append(u)
            log_ws.append(log_w)
        return torch.cat(us), torch.cat(log_ws)

    def _round(self, distribution: Student, num: int, part: Tensor | slice = ALL) -> Round:
        """Return ``num`` draws from ``distribution`` for each row in ``part``, with log p(x, u)."""
        u = distribution.draw(num)
        return Round(distribution, u, self._log_density(u, part))

    def _log_density(self, u: Tensor, part: Tensor | slice = ALL) -> Tensor:
        """Return log p(x, u) for the rows in ``part``, or minus infinity where u is out of range."""
        self._update(u.shape[0] * u.shape[1])
        low, high = (bound[part] for bound in self._range)
        inside = ((u > low) & (u < high)).all(-1)
        data = tuple(column[part] for column in self.rows.data)
        u = torch.where(inside.unsqueeze(-1), u, (low + high) / 2)
        if self._fixed is None:
            chunks = u.split(self._at_once * len(self.rows) // u.shape[1])
            log_p = torch.cat([self._density(data, chunk) for chunk in chunks])
        else:
            log_p = in_blocks(self._density, data, u, self._fixed, self._at_once)
        return torch.where(inside, log_p, -math.inf)


def in_blocks(density: Callable[..., Tensor], data: tuple[Tensor, ...], u: Tensor, rows: int, draws: int) -> Tensor:
    """Return a density at u ``(K, B, D)`` by calls for ``draws`` draws of ``rows`` data, so that all run one graph.

    Where there are fewer data, each has several columns of a call. Copies of other draws fill what is left.
    """
    size = u.shape[1]
    copies = rows // size
    columns, block = copies * size, copies * draws
    source = torch.arange(rows, device=u.device) % columns  # the column whose draws a column of a call has
    data = tuple(column[source % size] for column in data)
    values = []
    for chunk in u.split(block):
        whole = chunk[torch.arange(block, device=u.device) % len(chunk)] if len(chunk) < block else chunk
        value = density(data, whole.reshape(draws, columns, -1)[:, source])
        values.append(value[:, :columns].reshape(block, size)[: len(chunk)])
    return torch.cat(values)


def fitting_draws(posterior: Posterior) -> tuple[int, int]:
    """Return the usual and the largest number of draws for fitting the adapted proposal of one datum."""
    dims = len(posterior.names) if posterior.structure.continuous else 0
    return sum(ROUNDS) * dims, (sum(ROUNDS) + MORE * ROUNDS[-1]) * dims


def data_at_once(posterior: Posterior) -> int:
    """Return the number of data for which proposals are fitted together; the draws then fit in memory."""
    return max(1, AT_ONCE // (KEPT * max(ROUNDS) * len(posterior.names) ** 2))
