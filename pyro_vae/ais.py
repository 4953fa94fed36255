r"""Annealed importance sampling: log p(x) per datum, where importance sampling from the guide falls short of it.

.. math:: f_t(z) = p_0(z)^{1 - \beta_t} \, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1

A chain starts at a draw of :math:`p_0`, the guide or the prior, and is moved by Hamiltonian Monte Carlo under each
:math:`f_t` in turn; its weight is :math:`w = \prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1})`. Whether or not the moves mix,
E[w] = p(x): the logarithm of a mean over chains is below log p(x) on average, and seldom above it by much. For that
the moves must not look at the run that counts, so a pilot run finds the step sizes, one for each datum and temperature.

References:
    Annealed Importance Sampling (Neal, 2001).

    MCMC Using Hamiltonian Dynamics (Neal, 2011).

    On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import PILOT, SETTLE, Ladder, Start, densities, drawn
from pyro_vae.compiled import how_many_fit
from pyro_vae.evaluate import ess, iwae
from pyro_vae.program import Draws, Posterior, drawn_posterior, point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["Bounds", "ais", "bdmc", "log_weights"]

ROUNDS = 2  # of pilot runs
FEW = 0.2  # of the moves accepted, or of the chains that count, below which a bound is said to be loose


class Bounds(NamedTuple):
    """A lower and an upper bound on log p(x) per datum, each of shape ``(B,)``, in nats."""

    lower: Tensor
    upper: Tensor


def ais(
    program: Any,
    data: Any,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 3,
    start: Start = "guide",
    seed: int | None = None,
    progress: bool = False,
) -> Tensor:
    r"""Return a lower bound on log p(x) per datum by annealed importance sampling, of shape ``(B,)``, in nats.

    .. math:: \log \frac{1}{C} \sum_c w_c \le \log p(x) \text{ on average,} \qquad \mathbb{E}[w_c] = p(x)

    It rises to log p(x) with the temperatures, where importance sampling needs exponentially many draws. From the guide
    it takes fewer of them; from the prior it owes the guide nothing.

    References:
        Annealed Importance Sampling (Neal, 2001).

        On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Arguments:
        program: A program; chains move in real coordinates of its continuous sites, classes are summed out. One with
            no continuous site has an exact answer.
        data: x, a tuple of the program's arguments, or a dictionary of them; NaN where it is missing.
        chains: C, for each datum.
        temperatures: T, how many steps from the start to the posterior.
        leapfrog: Steps of each move.
        start: Where chains start, ``guide`` or ``prior``.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a number is not positive, there are no data, or chains start at a guide whose density is not
            known.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bound = ais(model.vae("mean-field"), x, temperatures=100, start="prior", seed=0)
        >>> bool(((bound - model.log_evidence(x)).abs() < 0.2).all())
        True
    """
    return iwae(log_weights(program, data, chains, temperatures, leapfrog, start, seed, progress))


def log_weights(
    program: Any,
    data: Any,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 3,
    start: Start = "guide",
    seed: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the log-weights of the chains, of shape ``(C, B)``, in nats: :func:`ais` is the bound they give.

    ``evaluate.ess`` of them says how far the chains agree. Arguments are those of :func:`ais`.
    """
    run = _Run(chains, temperatures, leapfrog, start)
    return run(program, lambda: (posterior_of(program, data), None), seed, progress)[0]


def bdmc(
    program: Any,
    data: Any = None,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 3,
    start: Start = "guide",
    joint: Any = None,
    seed: int | None = None,
    progress: bool = False,
    num: int | None = None,
) -> Bounds:
    r"""Return a lower and an upper bound on log p(x) of data drawn from the model itself: bidirectional Monte Carlo.

    Of drawn data one draw of the posterior is known exactly: the z they were drawn from. A chain that goes from it back
    to the start has :math:`\mathbb{E}[1 / w] = 1 / p(x)`, so that

    .. math:: \log \frac{1}{C} \sum_c w_c \;\le\; \log p(x) \;\le\; -\log \frac{1}{C} \sum_c \frac{1}{w'_c}

    on average. How far apart the two are is how far :func:`ais` may be off with these settings on data like these. All
    chains back of a datum start at its one z, so that more temperatures bring the upper bound down, and more chains
    do not.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015).

    Arguments:
        program: As :func:`ais`.
        data: Whose covariates drawn data have, and whose shapes; a program that has a method ``blank``, as a VAE,
            needs none. A number is ``num``.
        chains: C, for each datum and each direction.
        temperatures: T, how many steps from the start to the posterior.
        leapfrog: Steps of each move.
        start: Where chains start, ``guide`` or ``prior``.
        joint: Exact draws of the model, if they are not to be drawn: of all sites, as ``Posterior.simulate(1)`` gives
            them for ``data``; or z and x, each with B rows, of a program of one latent site.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        progress: Whether to show a progress bar.
        num: B, how many data to draw, 100 if it is not said.

    Raises:
        ValueError: As :func:`ais`.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5)
        >>> lower, upper = bdmc(model.vae("mean-field"), num=3, temperatures=100, seed=0)
        >>> bool(((upper - lower).abs() < 0.3).all())
        True
    """
    run = _Run(chains, temperatures, leapfrog, start)
    if isinstance(data, int):
        data, num = None, data

    def drawn_joint() -> tuple[Posterior, Draws]:
        if isinstance(joint, tuple | list):
            posterior = posterior_of(program, joint[1])
            return posterior, {name: joint[0].unsqueeze(0) for name in posterior.structure.supports}
        rows = 100 if num is None else num
        posterior = drawn_posterior(program, data, rows) if joint is None else posterior_of(program, data)
        draws = posterior.simulate(1) if joint is None else joint
        return posterior.at(draws), draws

    forward, backward = run(program, drawn_joint, seed, progress)
    return Bounds(iwae(forward), -iwae(-backward))


class _Run:
    """Settings of a run, and the run itself, over as many data at once as fit in memory."""

    def __init__(self, chains: int, temperatures: int, leapfrog: int, start: Start) -> None:
        for name, number in {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog}.items():
            if number < 1:
                raise ValueError(f"Expected {name} of at least 1; got {number}.")
        if start not in ("guide", "prior"):
            raise ValueError(f"Expected start to be guide or prior; got {start!r}.")
        self.chains, self.temperatures, self.leapfrog, self.start = chains, temperatures, leapfrog, start

    @torch.no_grad()
    def __call__(
        self, program: Any, prepare: Callable[[], tuple[Posterior, Draws | None]], seed: int | None, progress: bool
    ) -> list[Tensor]:
        """Return log-weights ``(C, B)`` of chains to the posterior and, where exact draws are known, of chains back."""
        with at_test(program, point_of(program).device, seed):
            posterior, exact = prepare()
            ways = 1 if exact is None else 2
            if not posterior.structure.continuous:
                rows = self._rows(posterior, lambda part: part.log_joint({}))
                log_p = torch.cat([posterior[some].log_joint({}) for some in rows], dim=1)
                return [log_p.expand(self.chains, -1)] * ways
            back = None if exact is None else posterior.unconstrain(exact).expand(self.chains, -1, -1)
            rows = self._rows(posterior, lambda part: densities(part, self.start, drawn(part, self.start, self.chains)))
            done, accepted = [], []
            total = len(rows) * (ROUNDS * PILOT + ways * self.temperatures)
            with tqdm(total=total, desc="AIS", unit=" temperatures", leave=False, disable=not progress) as bar:
                for some in rows:
                    moves = ROUNDS * (SETTLE + PILOT) + self.temperatures
                    ladder = Ladder(posterior[some], self.start, self.leapfrog, moves)
                    plan = ladder.plan(self.chains, self.temperatures, ROUNDS, bar.update)
                    log_w, rate = ladder.climb(self.chains, plan, bar.update)
                    accepted.append(rate)
                    done.append([log_w])
                    if back is not None:
                        done[-1].append(ladder.descend(back[:, some], plan, bar.update))
        found = [torch.cat(parts, dim=1) for parts in zip(*done, strict=True)]
        if min(accepted) < FEW:
            warnings.warn(f"AIS accepted {min(accepted):.0%} of its moves: the bound may be loose.", stacklevel=4)
        elif (agree := ess(found[0]).median().item()) < FEW * self.chains:
            warnings.warn(
                f"AIS: of {self.chains} chains {agree:.1f} count, the median over data: the bound may be loose by "
                "nats. Use more temperatures.",
                stacklevel=4,
            )
        return found

    @staticmethod
    def _rows(posterior: Posterior, run: Callable[[Posterior], Any]) -> list[slice]:
        """Return parts of the data that fit in memory."""
        most = len(posterior)
        if posterior.structure.whole:
            return [slice(0, most)]
        size = how_many_fit(lambda n: run(posterior[:n]), most, posterior.data[0].device)
        return [slice(i, i + size) for i in range(0, most, size)]
