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

import math
import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import PILOT, SETTLE, Ladder
from pyro_vae.compiled import how_many_fit
from pyro_vae.evaluate import ess, iwae
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["Bounds", "ais", "bdmc", "log_weights"]

Start = Literal["guide", "prior"]
ROUNDS = 2  # of pilot runs
FEW = 0.2  # of the moves accepted, or of the chains that count, below which a bound is said to be loose


class Bounds(NamedTuple):
    """A lower and an upper bound on log p(x) per datum, each of shape ``(B,)``, in nats."""

    lower: Tensor
    upper: Tensor


def ais(
    vae: VAE,
    x: Tensor,
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
        vae: Any VAE whose prior is over all real z.
        x: Shape ``(B, *event)``, NaN where it is missing.
        chains: C, for each datum.
        temperatures: T, how many steps from the start to the posterior.
        leapfrog: Steps of each move.
        start: Where chains start, ``guide`` or ``prior``.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a number is not positive, there are no images, or z is not of all real numbers.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> bound = ais(model.vae("mean-field"), x, temperatures=100, start="prior", seed=0)
        >>> bool(((bound - model.log_evidence(x)).abs() < 0.2).all())
        True
    """
    return iwae(log_weights(vae, x, chains, temperatures, leapfrog, start, seed, progress))


def log_weights(
    vae: VAE,
    x: Tensor,
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
    return run(vae, x, None, seed, progress)[0]


def bdmc(
    vae: VAE,
    num: int = 100,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 3,
    start: Start = "guide",
    joint: tuple[Tensor, Tensor] | None = None,
    seed: int | None = None,
    progress: bool = False,
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
        vae: Any VAE whose prior is over all real z.
        num: B, how many data to draw, if they are not given.
        chains: C, for each datum and each direction.
        temperatures: T, how many steps from the start to the posterior.
        leapfrog: Steps of each move.
        start: Where chains start, ``guide`` or ``prior``.
        joint: z, ``(B, latent)``, and x, ``(B, *event)``, exact draws of the model; if not given they are drawn.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.
        progress: Whether to show a progress bar.

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
    with at_test(vae, vae.reference.device, seed), torch.no_grad():
        if joint is None:
            z = vae.prior().sample((num,))
            joint = z, vae.decoder(z).sample()
        forward, backward = run(vae, joint[1], joint[0], None, progress)
    return Bounds(iwae(forward), -iwae(-backward))


class _Run:
    """Settings of a run, and the run itself, over as many images at once as fit in memory."""

    def __init__(self, chains: int, temperatures: int, leapfrog: int, start: Start) -> None:
        for name, number in {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog}.items():
            if number < 1:
                raise ValueError(f"Expected {name} of at least 1; got {number}.")
        if start not in ("guide", "prior"):
            raise ValueError(f"Expected start to be guide or prior; got {start!r}.")
        self.chains, self.temperatures, self.leapfrog, self.start = chains, temperatures, leapfrog, start

    @torch.no_grad()
    def __call__(self, vae: VAE, x: Tensor, z: Tensor | None, seed: int | None, progress: bool) -> list[Tensor]:
        """Return log-weights ``(C, B)`` of chains to the posterior and, where exact z are given, of chains back."""
        if len(x) == 0:
            raise ValueError("Expected at least 1 image; got none.")
        with at_test(vae, x.device, seed):
            size = how_many_fit(lambda n: self._ladder(vae, x[:n]).begin(self.chains), len(x), x.device)
            done, accepted = [], []
            total = math.ceil(len(x) / size) * (ROUNDS * PILOT + (1 + (z is not None)) * self.temperatures)
            with tqdm(total=total, desc="AIS", unit=" temperatures", leave=False, disable=not progress) as bar:
                for i in range(0, len(x), size):
                    ladder = self._ladder(vae, x[i : i + size])
                    plan = ladder.plan(self.chains, self.temperatures, ROUNDS, bar.update)
                    log_w, rate = ladder.climb(self.chains, plan, bar.update)
                    accepted.append(rate)
                    done.append([log_w])
                    if z is not None:
                        exact = z[i : i + size].expand(self.chains, -1, -1)
                        done[-1].append(ladder.descend(exact, plan, bar.update))
        found = [torch.cat(parts, dim=1) for parts in zip(*done, strict=True)]
        if min(accepted) < FEW:
            warnings.warn(f"AIS accepted {min(accepted):.0%} of its moves: the bound may be loose.", stacklevel=4)
        elif (agree := ess(found[0]).median().item()) < FEW * self.chains:
            warnings.warn(
                f"AIS: of {self.chains} chains {agree:.1f} count, the median over images: the bound may be loose by "
                "nats. Use more temperatures.",
                stacklevel=4,
            )
        return found

    def _ladder(self, vae: VAE, x: Tensor) -> Ladder:
        return Ladder(vae, x, self.start, self.leapfrog, ROUNDS * (SETTLE + PILOT) + self.temperatures)
