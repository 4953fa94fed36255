r"""Annealed importance sampling of log p(x) per datum, for data where importance sampling is unreliable.

.. math:: f_t(z) = p_0(z)^{1 - \beta_t} \, p(x, z)^{\beta_t}, \qquad 0 = \beta_0 < \dots < \beta_T = 1

A chain starts at a draw from :math:`p_0`, the guide or the prior, and moves by Hamiltonian Monte Carlo under each
:math:`f_t` in turn. The chain's weight is :math:`w = \prod_t f_t(z_{t-1}) / f_{t-1}(z_{t-1})`. E[w] = p(x) even if the
chains do not mix: the log of the mean weight is below log p(x) on average, and rarely far above log p(x). E[w] = p(x)
requires moves independent of the weighted chains, so pilot runs tune the step size for each datum and temperature.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import PILOT, SETTLE, Ladder, Start, first_draws, log_densities, unconstrained_draws
from pyro_vae.evaluate import ess, iwae
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior

__all__ = ["Bounds", "ais", "bdmc", "log_weights"]

ROUNDS = 2  # of pilot runs
FEW = 0.2  # share of moves accepted, or of chains that count, below which a bound may be loose


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

    C is ``chains``, the number per datum; T is ``temperatures``; each move takes ``leapfrog`` steps. The bound
    rises to log p(x) with more temperatures. Chains that ``start`` at the guide need fewer temperatures; with a start
    at the prior, the bound does not depend on the guide. Chains move in unconstrained coordinates of the continuous
    sites; classes are summed out. If there is no continuous site, the result is exact.

    References:
        - Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008.
        - On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017),
          https://arxiv.org/abs/1611.04273.

    Raises:
        ValueError: If a number is not positive, there are no data, or the guide's density is not known at arbitrary z.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bound = ais(model.vae("mean-field"), x, temperatures=100, start="prior", seed=0)
        >>> bool(((bound - model.log_evidence(x)).abs() < 0.2).all())
        True

    See Also:
        :func:`bdmc` bounds the error of this bound; :func:`pyro_vae.evaluate.nll` is faster where
        :func:`pyro_vae.evaluate.pareto_k` is below 0.7.
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
    """Return the log-weights of the chains of :func:`ais`, of shape ``(C, B)``, in nats."""
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
    r"""Bound log p(x) of simulated data from below and above by bidirectional Monte Carlo.

    For data drawn from the model, one exact posterior draw is known: the z that generated the data. A chain from this z
    back to the start has :math:`\mathbb{E}[1 / w] = 1 / p(x)`. On average

    .. math:: \log \frac{1}{C} \sum_c w_c \;\le\; \log p(x) \;\le\; -\log \frac{1}{C} \sum_c \frac{1}{w'_c}

    On data from the model, the gap bounds the error of :func:`ais` with the same settings. More temperatures lower the
    upper bound; more chains do not, since all backward chains start at the same z.

    B is ``num``, 100 for None. Simulated data have the shapes and covariates of ``data``, as in
    :func:`pyro_vae.posterior.sbc`. ``joint`` holds exact draws instead of simulated data: draws of all sites from
    ``Posterior.simulate(1)`` for ``data``, or z and x, each with B rows, for a program with one latent site. The
    remaining arguments and errors are as for :func:`ais`.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015),
        https://arxiv.org/abs/1511.02543.

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
    posterior: Posterior, exact: Draws, chains: int, temperatures: int, leapfrog: int, start: Start, progress: bool
) -> list[Tensor]:
    """Return log-weights ``(C, B)`` of chains to the posterior and, if ``exact`` draws are given, of chains back."""
    check_least(chains=chains, temperatures=temperatures, leapfrog=leapfrog)
    check_choice("start", start, ("guide", "prior"))
    directions = 2 if exact else 1
    if not posterior.structure.continuous:
        parts = batches_that_fit(posterior, lambda rows: rows.log_joint({}))
        log_p = torch.cat([rows.log_joint({}) for rows in parts], dim=1)
        return [log_p.expand(chains, -1)] * directions
    parts = batches_that_fit(posterior, lambda rows: log_densities(rows, start, first_draws(rows, start, chains)))
    ends: list[Tensor | None] = [None] * len(parts)
    if exact:
        ends = [*posterior.unconstrain(exact).expand(chains, -1, -1).split([len(rows) for rows in parts], dim=1)]
    columns, rates = [], []
    total = len(parts) * (ROUNDS * PILOT + directions * temperatures)
    with tqdm(total=total, desc="AIS", unit=" temperatures", leave=False, disable=not progress) as bar:
        for rows, end in zip(parts, ends, strict=True):
            ladder = Ladder(rows, start, leapfrog, moves=ROUNDS * (SETTLE + PILOT) + temperatures)
            schedule = ladder.tune(chains, temperatures, ROUNDS, bar.update)
            log_w, rate = ladder.anneal(unconstrained_draws(rows, start, chains), schedule, bar.update)
            rates.append(rate)
            backward = [] if end is None else [ladder.anneal(end, schedule, bar.update, backward=True)[0]]
            columns.append([log_w, *backward])
    log_ws = [torch.cat(log_w, dim=1) for log_w in zip(*columns, strict=True)]
    if min(rates) < FEW:
        warnings.warn(f"AIS accepted {min(rates):.0%} of its moves: the bound may be loose.", stacklevel=3)
    elif (size := ess(log_ws[0]).median().item()) < FEW * chains:
        warnings.warn(
            f"AIS: effective sample size {size:.1f} of {chains} chains, the median over data: the bound may be loose "
            "by nats. Use more temperatures.",
            stacklevel=3,
        )
    return log_ws
