r"""A proposal fitted to the posterior of each datum, by draws of it that are weighted.

References:
    Population Monte Carlo (Cappé, Guillin, Marin and Robert, 2004).

    Adaptive Multiple Importance Sampling (Cornuet, Marin, Mira and Robert, 2012).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.annealing import SOME, drawn, walls
from pyro_vae.evaluate.weights import ess, iwae
from pyro_vae.program import Draws, Posterior

ROUNDS = (25, 25, 25, 25, 25, 50)  # of fitting: draws for each dimension
MORE = 10  # rounds like the last, at most, for data of which few draws count
KEPT = 4  # rounds whose draws a fit is of
AT_ONCE = 16_000_000  # numbers in the draws that fits are of
FEW = 0.1  # of the draws
DF = 10.0  # degrees of freedom: few would waste draws, many would leave tails out
SPREAD = 3.0  # draws that count, for each dimension, that a covariance is told of
SHRINK = 0.1  # of the correlations, which few draws overstate
SMALL = 1e-6  # of the variance of all draws, where one has all of the weight
NONE = -1e30  # in place of minus infinity, which has no mean
HALVINGS = 30
ALL = slice(None)


class Student(NamedTuple):
    r"""A multivariate Student t of each datum: :math:`u = \mu_b + L_b \, \epsilon`.

    Pyro's ``MultivariateStudentT`` copies L for each draw, and takes seven times as long in 20 dimensions.

    ``loc`` is of shape ``(B, D)``, ``scale``, lower triangular, ``(B, D, D)``.
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

    def of(self, rows: Tensor) -> "Student":
        """Return those of some data."""
        return Student(self.loc[rows], self.scale[rows])


class Round(NamedTuple):
    """Draws ``(K, B, D)`` of a law, and log p(x, u) there."""

    law: Student
    u: Tensor
    log_p: Tensor

    def log_weights(self) -> Tensor:
        """Return the log-weights of the draws, ``(K, B)``."""
        return self.log_p - self.law.log_prob(self.u)


def fit_together(rounds: Sequence[Round]) -> Student:
    """Return the Student t of the draws of several rounds, weighed as draws of the mixture of their laws."""
    u = torch.cat([one.u for one in rounds])
    log_q = torch.stack([one.law.log_prob(u) + math.log(len(one.u) / len(u)) for one in rounds]).logsumexp(0)
    return fit(u, torch.cat([one.log_p for one in rounds]) - log_q)


def fit(u: Tensor, log_w: Tensor) -> Student:
    """Return the Student t of weighted draws, u of shape ``(K, B, D)``, log-weights ``(K, B)``.

    Weights are tempered, to a power of at most 1 at which enough of the draws count for a covariance.
    """
    num, _, dims = u.shape
    weight = temper(log_w.nan_to_num(NONE, neginf=NONE), min(SPREAD * dims, num / 2))
    loc = torch.einsum("kb,kbi->bi", weight, u)
    off = u - loc
    covariance = torch.einsum("kb,kbi,kbj->bij", weight, off, off)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    covariance = (1 - SHRINK) * covariance + torch.diag_embed(SHRINK * variance + SMALL * u.var(0))
    return Student(loc, torch.linalg.cholesky(covariance * ((DF - 2) / DF)))


def temper(log_w: Tensor, count: float) -> Tensor:
    """Return normalised weights ``(K, B)`` to the largest power, at most 1, at which so many of the draws count."""
    low, high = torch.zeros_like(log_w[0]), torch.ones_like(log_w[0])
    for _ in range(HALVINGS):
        power = (low + high) / 2
        enough = ess(power * log_w) >= count
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
    return (torch.where(ess(log_w) >= count, 1.0, low) * log_w).softmax(0)


class Adapted:
    """The proposals of some data: for each a Student t, or the guide where more of the guide's draws count.

    The draws that fit and choose a proposal are not weighed again, so the mean weight of new draws is p(x).

    Arguments:
        rows: A program at data.
        density: log p(x, u) of the data of rows at unconstrained u, ``(K, B, D)``, of so many draws at once.
        at_once: How many.
        update: Is told of so many draws.
    """

    def __init__(
        self, rows: Posterior, density: Callable[..., Tensor], at_once: int, update: Callable[[int], object]
    ) -> None:
        self.rows, self._density, self._at_once, self._update = rows, density, at_once, update
        self._walls = walls(drawn(rows, "guide", SOME), drawn(rows, "prior", SOME))
        dims = self._walls[0].shape[-1]
        first, *others = (math.ceil(number * dims / at_once) * at_once for number in ROUNDS)
        u, log_w = self._first_draws(first)
        share, bound = ess(log_w) / len(u), iwae(log_w)
        if rows.structure.hidden:
            share, bound = torch.zeros_like(share), torch.full_like(bound, -math.inf)
        law, rounds = fit(u, log_w), list[Round]()
        for num in others:
            rounds = [*rounds[1 - KEPT :], self._round_of(law, num)]
            law = fit_together(rounds)
        log_w = rounds[-1].log_weights()
        part = torch.arange(len(rows), device=u.device)
        for _ in range(MORE):
            poor = (ess(log_w[:, part]) < FEW * len(log_w)).nonzero().squeeze(-1)
            if not len(poor):
                break
            if not rows.structure.whole:
                part, rounds = part[poor], [Round(old.of(poor), u[:, poor], p[:, poor]) for old, u, p in rounds]
            rounds = [*rounds[1 - KEPT :], self._round_of(law.of(part), len(log_w), part)]
            log_w[:, part], new = rounds[-1].log_weights(), fit_together(rounds)
            law = Student(*(old.index_copy(0, part, some) for old, some in zip(law, new, strict=True)))
        # All draws of a guide that is far off may be equally unlikely, and so count; the bound says that they are.
        self.law, self.better = law, (ess(log_w) / len(log_w) > share) | (iwae(log_w) > bound + 1)

    def log_weights(self, num: int) -> Tensor:
        """Return log-weights of new draws, of shape ``(num, B)``."""
        if not self.better.any():
            return self.rows.log_weights(num)
        log_w = self._draws_of(self.law, num)[1]
        if self.better.all():
            return log_w
        if self.rows.structure.whole:
            return torch.where(self.better, log_w, self.rows.log_weights(num))
        others = (~self.better).nonzero().squeeze(-1)
        return log_w.index_copy(1, others, self.rows[others].log_weights(num))

    def propose(self, num: int) -> tuple[Draws, Tensor]:
        """Return new draws of the continuous sites, and their log-weights."""
        u, log_w = self._draws_of(self.law, num)
        if not self.better.all():
            of_guide, weights = (values[:num] for values in self._first_draws(num))
            u = torch.where(self.better.unsqueeze(-1), u, of_guide)
            log_w = torch.where(self.better, log_w, weights)
        return self.rows.constrain(u)[0], log_w

    def _first_draws(self, num: int) -> tuple[Tensor, Tensor]:
        """Return draws of the guide, and their log-weights; 0 where its density is not known."""
        us, log_ws = list[Tensor](), list[Tensor]()
        for _ in range(0, num, self._at_once):
            u = self.rows.unconstrain(self.rows.propose(self._at_once)[0])
            log_w = u.new_zeros(u.shape[:2])
            if not self.rows.structure.hidden:
                draws, volume = self.rows.constrain(u)  # of the continuous sites alone
                log_w = self._at(u) - self.rows.log_q(draws, proper=True) - volume
            us.append(u)
            log_ws.append(log_w)
        return torch.cat(us), torch.cat(log_ws)

    def _draws_of(self, law: Student, num: int) -> tuple[Tensor, Tensor]:
        """Return draws ``(num, B, D)``, and their log-weights."""
        draws = self._round_of(law, num)
        return draws.u, draws.log_weights()

    def _round_of(self, law: Student, num: int, part: Tensor | slice = ALL) -> Round:
        """Return draws of some rows, ``(num, rows, D)``."""
        u = law.draw(num)
        at_once = self._at_once * len(self.rows) // u.shape[1]
        return Round(law, u, torch.cat([self._at(some, part) for some in u.split(at_once)]))

    def _at(self, u: Tensor, part: Tensor | slice = ALL) -> Tensor:
        """Return log p(x, u) of some rows; minus infinity out of reach, where laws are not asked."""
        self._update(u.shape[0] * u.shape[1])
        low, high = (wall[part] for wall in self._walls)
        fine = ((u > low) & (u < high)).all(-1)
        data = tuple(column[part] for column in self.rows.data)
        log_p = self._density(data, torch.where(fine.unsqueeze(-1), u, (low + high) / 2))
        return torch.where(fine, log_p, -math.inf)


def fitting_draws(posterior: Posterior) -> tuple[int, int]:
    """Return how many draws fit the adapted proposal of each datum: as a rule, and at most."""
    dims = len(posterior.names) if posterior.structure.continuous else 0
    return sum(ROUNDS) * dims, (sum(ROUNDS) + MORE * ROUNDS[-1]) * dims


def data_at_once(posterior: Posterior) -> int:
    """Return to how many data proposals are fitted at once, so that their draws fit in memory."""
    return max(1, AT_ONCE // (KEPT * max(ROUNDS) * len(posterior.names) ** 2))


def density(rows: Posterior, u: Tensor) -> Tensor:
    """Return log p(x, u) of unconstrained u, ``(K, B, D)``, of shape ``(K, B)``, without masks of latent sites."""
    draws, volume = rows.constrain(u)
    return rows.log_joint(draws, proper=True) + volume
