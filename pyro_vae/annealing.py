r"""Annealed densities from the start to the posterior, and Hamiltonian Monte Carlo moves, for :mod:`pyro_vae.ais`.

References:
    MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.compiled import GraphedFunction, Outputs, fast_products
from pyro_vae.program import Posterior

__all__ = ["SOME", "Densities", "Ladder", "Schedule", "State", "draw_range", "first_draws", "log_densities"]
__all__ += ["log_density", "robust_scale", "unconstrained_draws", "with_gradient"]

Start = Literal["guide", "prior"]

TARGET = 0.65  # share of moves to accept: optimal for Hamiltonian Monte Carlo in many dimensions
QUARTER = math.pi / 2  # length of a move that forgets its start, under a Gaussian; twice that ends on the other side
JITTER = 0.2  # of step sizes, since scales are estimates
SOME = 128  # draws that a scale is estimated from
FAR = 50.0  # standard deviations beyond draws of the guide and the prior, which bound the chains
LOST = 1000.0  # nats of density lost, at which a move is given up
SETTLE = 10  # first moves of a pilot run, which are discarded
PILOT = 40  # temperatures of a pilot run
BEND = 4.0  # half width of the sigmoid on which the first temperatures lie


class State(NamedTuple):
    """The state u of chains, ``(C, B, D)``, with log-densities and gradients of the start and of the joint at u."""

    u: Tensor
    start: Tensor
    joint: Tensor
    start_grad: Tensor
    joint_grad: Tensor

    def log_f(self, beta: Tensor) -> Tensor:
        """Return log f, of shape ``(C, B)``, at temperatures ``(B,)``."""
        return self.start.lerp(self.joint, beta)

    def grad(self, beta: Tensor) -> Tensor:
        """Return the gradient of log f, of shape ``(C, B, D)``, at temperatures ``(B,)``."""
        return self.start_grad.lerp(self.joint_grad, beta.unsqueeze(-1))


class Schedule(NamedTuple):
    """Temperatures from 0 to 1 and the step size at each temperature, both of shape ``(T + 1, B)``."""

    betas: Tensor
    steps: Tensor


def unconstrained_draws(posterior: Posterior, start: Start, num: int) -> Tensor:
    """Return unconstrained draws ``(num, B, D)`` from guide or prior. A given site must have a single value."""
    outside = posterior.structure.outside
    if several := [name for name, value in posterior.given.items() if value.shape != outside[name][0]]:
        raise ValueError(
            f"Expected one given value of {several[0]!r}, of shape {tuple(outside[several[0]][0])}, for Markov chains; "
            f"got shape {tuple(posterior.given[several[0]].shape)}."
        )
    draws = posterior.simulate(num, observed=False) if start == "prior" else posterior.propose(num)[0]
    return posterior.unconstrain(draws)


def first_draws(posterior: Posterior, start: Start, chains: int) -> Tensor:
    """Return unconstrained draws for chains, from as many as scales need, for a measurement of memory."""
    return unconstrained_draws(posterior, start, max(chains, SOME))[:chains]


def log_density(rows: Posterior, u: Tensor) -> Tensor:
    """Return log p(x, u) of shape ``(K, B)`` at unconstrained u ``(K, B, D)``, ignoring masks of latent sites."""
    draws, volume = rows.constrain(u)
    return rows.log_joint(draws, proper=True) + volume


def with_gradient(rows: Posterior, u: Tensor) -> list[Tensor]:
    """Return log p(x, u) at unconstrained u, and its gradient."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        log_p = log_density(rows, u)
        (gradient,) = torch.autograd.grad(log_p.sum(), u)
    return [log_p.detach(), gradient]


def log_densities(posterior: Posterior, start: Start, u: Tensor) -> list[Tensor]:
    """Return log-densities and gradients of start and joint at unconstrained u, ignoring masks of latent sites."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        draws, volume = posterior.constrain(u)
        first = (posterior.log_prior if start == "prior" else posterior.log_q)(draws, proper=True) + volume
        joint = posterior.log_joint(draws, proper=True) + volume
        (first_grad,) = torch.autograd.grad(first.sum(), u, retain_graph=True)
        (joint_grad,) = torch.autograd.grad(joint.sum(), u)
    return [first.detach(), joint.detach(), first_grad, joint_grad]


class Densities:
    """Log-densities and gradients as a graph, recorded at the first u, where the program is validated.

    Later, chains may be where a density has no value: the values are then NaN or infinite, without an error.
    """

    def __init__(self, function: Callable[[Tensor], list[Tensor]], calls: int | None) -> None:
        self._graph = GraphedFunction(lambda u: Outputs(function(u), None), calls=calls, quiet=True, frozen=True)
        self._recorded = False

    def __call__(self, u: Tensor) -> Sequence[Tensor]:
        """Return the values at u."""
        with fast_products("auto"):
            if not self._recorded:
                self._recorded = True
                return self._graph.record((u,), {}).tensors
            with pyro.validation_enabled(False):
                return self._graph((u,), {}).tensors


class Ladder:
    r"""The annealed densities :math:`f_\beta(z) = p_0(z)^{1 - \beta} p(x, z)^\beta` for a batch of data.

    Moves take ``leapfrog`` steps in units of each coordinate's scale. The precision is interpolated between the start
    :math:`p_0` and the guide. The densities run as a graph, compiled if the number of ``moves`` is large enough.
    """

    def __init__(self, posterior: Posterior, start: Start, leapfrog: int, moves: int | None = None) -> None:
        self.posterior, self.start, self.leapfrog = posterior, start, leapfrog
        of_guide = unconstrained_draws(posterior, "guide", SOME)
        of_prior = unconstrained_draws(posterior, "prior", SOME)
        self.low, self.high = draw_range(of_guide, of_prior)
        self.precision = robust_scale(of_prior if start == "prior" else of_guide) ** -2, robust_scale(of_guide) ** -2
        self._densities = Densities(partial(log_densities, posterior, start), moves and moves * leapfrog)

    def evaluate(self, u: Tensor) -> State:
        """Return the state at u, ``(C, B, D)``."""
        return State(u, *self._densities(u))

    def tune(self, chains: int, number: int, rounds: int, update: Callable[[int], Any]) -> Schedule:
        r"""Tune temperatures and step sizes for each datum by pilot runs.

        A step between temperatures adds :math:`(\Delta \beta)^2 \, \mathrm{Var}_\beta(\log p(x, z) - \log p_0(z))` to
        the variance of log w. The sum of these terms is smallest if all terms are equal.

        References:
            Simulating Normalizing Constants: From Importance Sampling to Bridge Sampling to Path Sampling (Gelman and
            Meng, 1998), https://doi.org/10.1214/ss/1028905934.
        """
        even = torch.linspace(-BEND, BEND, PILOT, dtype=torch.float64).sigmoid()
        even = ((even - even[0]) / (even[-1] - even[0])).to(self.low)
        betas = even.unsqueeze(1).expand(-1, len(self.posterior))
        schedule = Schedule(betas, torch.full_like(betas, 0.5))
        for i in range(rounds):
            state = self.evaluate(unconstrained_draws(self.posterior, self.start, chains))
            step, steps, spreads = schedule.steps[0], [], []
            for t in [0] * SETTLE + [*range(PILOT)]:
                state, chance = self.move(state, schedule.betas[t], step)
                step = (step * (chance.mean(0) - TARGET).exp()).clamp(1e-4, 4.0)
                steps.append(step)
                spreads.append(robust_scale(state.joint - state.start))
            spread = torch.stack(spreads[SETTLE:]).nan_to_num(0.0)
            lengths = schedule.betas.double().diff(dim=0) * (spread[1:] + spread[:-1] + 1e-6)
            path = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])
            even = torch.linspace(0, 1, number + 1 if i == rounds - 1 else PILOT).to(path).unsqueeze(1)
            betas = _interpolate(even, path / path[-1], schedule.betas.double()).to(self.low)
            betas[-1] = 1.0  # interpolation ends before 1 where the last lengths round to 0
            schedule = Schedule(betas, _interpolate(betas, schedule.betas, torch.stack(steps[SETTLE:])))
            update(PILOT)
        return schedule

    def anneal(self, u: Tensor, schedule: Schedule, update: Any, backward: bool = False) -> tuple[Tensor, float]:
        """Run chains from draws u of the start to the posterior; return log-weights ``(C, B)`` and the acceptance rate.

        With ``backward``, chains run from exact draws u of the posterior to the start.
        """
        state, previous = self.evaluate(u), 0
        log_w, chances = torch.zeros_like(state.joint), []
        for t in range(1, len(schedule.betas))[:: -1 if backward else 1]:
            if previous:
                beta, step = (column[min(t, previous)] for column in schedule)
                state, chance = self.move(state, beta, step)
                chances.append(chance)
            log_w += (schedule.betas[t] - schedule.betas[t - 1]) * (state.joint - state.start)
            previous = t
            update()
        return log_w, torch.stack(chances or [torch.ones_like(log_w)]).mean().item()

    def move(self, state: State, beta: Tensor, step: Tensor) -> tuple[State, Tensor]:
        """Move chains under f by Hamiltonian Monte Carlo; return the new state and the acceptance probabilities."""
        jitter = 1 + JITTER * (2 * torch.rand_like(state.joint) - 1)
        scale = torch.lerp(*self.precision, beta.unsqueeze(-1)).rsqrt()
        size = (jitter * step.clamp(max=QUARTER / self.leapfrog)).unsqueeze(-1) * scale
        momentum = torch.randn_like(state.u)
        energy = state.log_f(beta) - 0.5 * momentum.square().sum(-1)
        end, valid = state, self._inside(state.u)
        momentum = momentum + 0.5 * size * state.grad(beta)
        for i in range(self.leapfrog):
            u = end.u + size * momentum
            # A lost chain keeps its last valid u, so that no distribution is evaluated at NaN.
            valid = valid & self._inside(u)
            end = self.evaluate(torch.where(valid.unsqueeze(-1), u, end.u))
            valid = valid & (end.log_f(beta) > state.log_f(beta) - LOST)
            momentum = momentum + (0.5 if i == self.leapfrog - 1 else 1.0) * size * end.grad(beta)
        ratio = end.log_f(beta) - 0.5 * momentum.square().sum(-1) - energy
        chance = torch.where(valid, ratio.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        moved = torch.rand_like(chance) < chance
        wide = moved.unsqueeze(-1)
        pairs = zip(end, state, strict=True)
        return State(*(torch.where(wide if new.dim() > 2 else moved, new, old) for new, old in pairs)), chance

    def _inside(self, u: Tensor) -> Tensor:
        return ((u > self.low) & (u < self.high)).all(-1)


def draw_range(of_guide: Tensor, of_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds ``(B, D)`` on z: the range of guide and prior draws plus 50 scales on each side."""
    ends = [(u.amin(0), u.amax(0), FAR * robust_scale(u)) for u in (of_guide, of_prior)]
    low = torch.minimum(*(low - reach for low, _, reach in ends))
    return low, torch.maximum(*(high + reach for _, high, reach in ends))


def robust_scale(u: Tensor) -> Tensor:
    """Return the standard deviation of a normal with the quartiles of u; the value is finite for heavy tails."""
    low, high = u.quantile(u.new_tensor([0.25, 0.75]), dim=0)
    return ((high - low) / 1.349).clamp(min=1e-6)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate columns of y linearly at the points ``at`` of ascending columns of x."""
    at = at.expand(-1, x.shape[1])
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    (x0, x1), (y0, y1) = ((values.gather(0, right - 1), values.gather(0, right)) for values in (x, y))
    return y0.lerp(y1, ((at - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1))
