r"""Annealed importance sampling: log p(x) per datum, where importance sampling from the guide falls short of it.

.. math:: f_t(z) = p_0(z)^{1 - \beta_t} \, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1

A chain starts at a draw of :math:`p_0`, the guide or the prior, and is moved by Hamiltonian Monte Carlo under each
:math:`f_t` in turn; its weight is :math:`w = \prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1})`. Whether or not the moves mix,
E[w] = p(x): the logarithm of a mean over chains is below log p(x) on average, and seldom above it by much. For that
the moves must not look at the run that counts, so a pilot run finds the step sizes, one for each datum and temperature.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import PILOT, SETTLE, Ladder, Start, densities, drawn
from pyro_vae.evaluate import ess, iwae
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior

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

    C is ``chains`` for each datum, with so many ``temperatures``, each a move of so many ``leapfrog`` steps. The bound
    rises to log p(x) with the temperatures, of which it takes fewer from the guide; from the prior it owes the guide
    nothing. Chains move in real coordinates of the continuous sites, classes are summed out; without a continuous site
    the answer is exact. Other arguments are as in :mod:`pyro_vae.evaluate`.

    References:
        Annealed Importance Sampling (Neal, 2001).
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

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
    """Return the log-weights of the chains of :func:`ais`, ``(C, B)``, in nats: ``evaluate.ess`` says if they agree."""
    with at_data(program, data, seed) as posterior:
        return _run(posterior, {}, chains, temperatures, leapfrog, start, progress)[0]


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

    on average. How far apart the two are is how far :func:`ais` may be off with these settings on data like these. More
    temperatures bring the upper bound down; more chains do not, since all chains back start at the one z.

    Arguments and ``Raises`` are those of :func:`ais`, and of :func:`pyro_vae.posterior.sbc` where data are drawn: B is
    ``num``, 100 if not given. ``joint`` are exact draws of the model in place of new ones: of all sites, as
    ``Posterior.simulate(1)`` gives them for ``data``; or z and x, each with B rows, of a program of one latent site.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015).

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5)
        >>> lower, upper = bdmc(model.vae("mean-field"), num=3, temperatures=100, seed=0)
        >>> bool(((upper - lower).abs() < 0.3).all())
        True
    """
    if isinstance(data, int):
        data, num = None, data
    pair = joint if isinstance(joint, tuple | list) else None
    num = None if joint else 100 if num is None else num
    with at_data(program, pair[1] if pair else data, seed, num=num) as posterior:
        if pair:
            draws = {name: pair[0].unsqueeze(0) for name in posterior.structure.supports}
        else:
            draws = joint or posterior.simulate(1)
            posterior = posterior.at(draws)
        forward, backward = _run(posterior, draws, chains, temperatures, leapfrog, start, progress)
    return Bounds(iwae(forward), -iwae(-backward))


def _run(
    whole: Posterior, exact: Draws, chains: int, temperatures: int, leapfrog: int, start: Start, progress: bool
) -> list[Tensor]:
    """Return log-weights ``(C, B)`` of chains to the posterior and, from exact draws where there are any, back."""
    check_least(chains=chains, temperatures=temperatures, leapfrog=leapfrog)
    check_choice("start", start, ("guide", "prior"))
    ways = 2 if exact else 1
    if not whole.structure.continuous:
        parts = batches_that_fit(whole, lambda rows: rows.log_joint({}))
        log_p = torch.cat([rows.log_joint({}) for rows in parts], dim=1)
        return [log_p.expand(chains, -1)] * ways
    parts = batches_that_fit(whole, lambda rows: densities(rows, start, drawn(rows, start, chains)))
    ends: list[Tensor | None] = [None] * len(parts)
    if exact:
        ends = [*whole.unconstrain(exact).expand(chains, -1, -1).split([len(rows) for rows in parts], dim=1)]
    done, accepted = [], []
    total = len(parts) * (ROUNDS * PILOT + ways * temperatures)
    with tqdm(total=total, desc="AIS", unit=" temperatures", leave=False, disable=not progress) as bar:
        for rows, end in zip(parts, ends, strict=True):
            ladder = Ladder(rows, start, leapfrog, moves=ROUNDS * (SETTLE + PILOT) + temperatures)
            plan = ladder.plan(chains, temperatures, ROUNDS, bar.update)
            log_w, rate = ladder.climb(drawn(rows, start, chains), plan, bar.update)
            accepted.append(rate)
            done.append([log_w] if end is None else [log_w, ladder.climb(end, plan, bar.update, back=True)[0]])
    found = [torch.cat(columns, dim=1) for columns in zip(*done, strict=True)]
    if min(accepted) < FEW:
        warnings.warn(f"AIS accepted {min(accepted):.0%} of its moves: the bound may be loose.", stacklevel=3)
    elif (agree := ess(found[0]).median().item()) < FEW * chains:
        warnings.warn(
            f"AIS: of {chains} chains {agree:.1f} count, the median over data: the bound may be loose by nats. Use "
            "more temperatures.",
            stacklevel=3,
        )
    return found
