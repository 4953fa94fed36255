r"""A ladder of densities from a start to the posterior, and Hamiltonian moves under each: for :mod:`pyro_vae.ais`.

References:
    MCMC Using Hamiltonian Dynamics (Neal, 2011).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled import Outputs, Traced, fast_products
from pyro_vae.program import Posterior

__all__ = ["SOME", "Ladder", "Plan", "densities", "drawn", "walls"]

Start = Literal["guide", "prior"]

TARGET = 0.65  # of the moves to accept: optimal for Hamiltonian Monte Carlo in many dimensions
QUARTER = math.pi / 2  # length of a move that forgets where it was, of a Gaussian; twice that goes to the other side
JITTER = 0.2  # of steps, as scales are not known that well
SOME = 128  # draws that a scale is estimated from
FAR = 50.0  # standard deviations from the guide and the prior, where no chain has business
LOST = 1000.0  # nats of density, after which a move is given up
SETTLE = 10  # moves of a pilot at the start, that count for nothing
PILOT = 40  # temperatures of a pilot run
BEND = 4.0  # of the sigmoid that temperatures are on


class Point(NamedTuple):
    """Where chains are, u of shape ``(C, B, D)``, with the two log-densities there and their gradients."""

    u: Tensor
    start: Tensor
    joint: Tensor
    start_grad: Tensor
    joint_grad: Tensor

    def log_f(self, beta: Tensor) -> Tensor:
        """Return log f, of shape ``(C, B)``, at temperatures ``(B,)``."""
        return self.start.lerp(self.joint, beta)

    def grad(self, beta: Tensor) -> Tensor:
        """Return the gradient of log f, of u's shape, at temperatures ``(B,)``."""
        return self.start_grad.lerp(self.joint_grad, beta.unsqueeze(-1))


class Plan(NamedTuple):
    """Temperatures, from 0 to 1, and the step size of moves at each, both of shape ``(T + 1, B)``."""

    betas: Tensor
    steps: Tensor


def drawn(posterior: Posterior, start: Start, num: int) -> Tensor:
    """Return draws ``(num, B, D)`` of guide or prior, unconstrained; refuse several of what is outside the plate."""
    outside = posterior.structure.outside
    if several := [name for name, value in posterior.given.items() if value.shape != outside[name][0]]:
        raise ValueError(
            f"Expected one value of {several[0]!r}, of shape {tuple(outside[several[0]][0])}, for chains to move at; "
            f"got {tuple(posterior.given[several[0]].shape)}."
        )
    draws = posterior.simulate(num, observed=False) if start == "prior" else posterior.propose(num)[0]
    return posterior.unconstrain(draws)


def densities(posterior: Posterior, start: Start, u: Tensor) -> list[Tensor]:
    """Return log-densities of start and joint at unconstrained u, ``(C, B)``, and gradients, without latent masks."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        draws, volume = posterior.constrain(u)
        first = (posterior.log_prior if start == "prior" else posterior.log_q)(draws, proper=True) + volume
        joint = posterior.log_joint(draws, proper=True) + volume
        (first_grad,) = torch.autograd.grad(first.sum(), u, retain_graph=True)
        (joint_grad,) = torch.autograd.grad(joint.sum(), u)
    return [first.detach(), joint.detach(), first_grad, joint_grad]


class Ladder:
    r"""The densities :math:`f_\beta(z) = p_0(z)^{1 - \beta} p(x, z)^\beta` of some data.

    Moves are in units of a scale of each coordinate, whose precision goes from that of the start, :math:`p_0`, to that
    of the guide. ``leapfrog`` are the steps of each, and ``moves`` how many are to come, if known: the densities are
    run as a graph, compiled where that pays.
    """

    def __init__(self, posterior: Posterior, start: Start, leapfrog: int, moves: int | None = None) -> None:
        self.posterior, self.start, self.leapfrog = posterior, start, leapfrog
        of_guide, of_prior = drawn(posterior, "guide", SOME), drawn(posterior, "prior", SOME)
        self.low, self.high = walls(of_guide, of_prior)
        self.precision = _scale(of_prior if start == "prior" else of_guide) ** -2, _scale(of_guide) ** -2
        run, calls = (lambda u: Outputs(densities(posterior, start, u), None)), moves and moves * leapfrog
        self._graph = Traced(run, calls=calls, quiet=True, frozen=True)

    def at(self, u: Tensor) -> Point:
        """Return the log-densities at u, ``(C, B, D)``, and their gradients."""
        with fast_products("auto"):
            return Point(u, *self._graph((u,), {}).tensors)

    def plan(self, chains: int, number: int, rounds: int, update: Callable[[int], Any]) -> Plan:
        r"""Return temperatures and step sizes for each datum, found by pilot runs.

        A step of the ladder adds :math:`(\Delta \beta)^2 \, \mathrm{Var}_\beta(\log p(x, z) - \log p_0(z))` to the
        variance of log w. Their sum is least where they are equal.

        References:
            Simulating Normalizing Constants: From Importance Sampling to Bridge Sampling to Path Sampling (Gelman and
            Meng, 1998).
        """
        even = torch.linspace(-BEND, BEND, PILOT, dtype=torch.float64).sigmoid()
        even = ((even - even[0]) / (even[-1] - even[0])).to(self.low)
        betas = even.unsqueeze(1).expand(-1, len(self.posterior))
        plan = Plan(betas, torch.full_like(betas, 0.5))
        for i in range(rounds):
            here, step, steps, spreads = self.at(drawn(self.posterior, self.start, chains)), plan.steps[0], [], []
            for t in [0] * SETTLE + [*range(PILOT)]:
                here, chance = self.move(here, plan.betas[t], step)
                step = (step * (chance.mean(0) - TARGET).exp()).clamp(1e-4, 4.0)
                steps.append(step)
                spreads.append(_scale(here.joint - here.start))
            spread = torch.stack(spreads[SETTLE:]).nan_to_num(0.0)
            lengths = plan.betas.double().diff(dim=0) * (spread[1:] + spread[:-1] + 1e-6)
            way = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])
            even = torch.linspace(0, 1, number + 1 if i == rounds - 1 else PILOT).to(way).unsqueeze(1)
            betas = _interpolate(even, way / way[-1], plan.betas.double()).to(self.low)
            betas[-1] = 1.0  # it would end before, where the last of the way is nothing up to rounding
            plan = Plan(betas, _interpolate(betas, plan.betas, torch.stack(steps[SETTLE:])))
            update(PILOT)
        return plan

    def climb(self, u: Tensor, plan: Plan, update: Callable[[], Any], back: bool = False) -> tuple[Tensor, float]:
        """Return log-weights ``(C, B)`` of chains from draws of the start to the posterior, and the share accepted.

        With ``back``, of chains from exact draws of the posterior to the start.
        """
        here, before = self.at(u), 0
        log_w, chances = torch.zeros_like(here.joint), []
        for t in range(1, len(plan.betas))[:: -1 if back else 1]:
            if before:
                here, chance = self.move(here, plan.betas[min(t, before)], plan.steps[min(t, before)])
                chances.append(chance)
            log_w += (plan.betas[t] - plan.betas[t - 1]) * (here.joint - here.start)
            before = t
            update()
        return log_w, torch.stack(chances or [torch.ones_like(log_w)]).mean().item()

    def move(self, here: Point, beta: Tensor, step: Tensor) -> tuple[Point, Tensor]:
        """Move chains under f by Hamiltonian Monte Carlo; return where they are, and the chances of acceptance."""
        jitter = 1 + JITTER * (2 * torch.rand_like(here.joint) - 1)
        scale = torch.lerp(*self.precision, beta.unsqueeze(-1)).rsqrt()
        size = (jitter * step.clamp(max=QUARTER / self.leapfrog)).unsqueeze(-1) * scale
        momentum = torch.randn_like(here.u)
        energy = here.log_f(beta) - 0.5 * momentum.square().sum(-1)
        there, fine = here, self._inside(here.u)
        momentum = momentum + 0.5 * size * here.grad(beta)
        for i in range(self.leapfrog):
            u = there.u + size * momentum
            # A chain that is lost stays where it was last seen, so that laws are asked of no u that is not a number.
            fine = fine & self._inside(u)
            there = self.at(torch.where(fine.unsqueeze(-1), u, there.u))
            fine = fine & (there.log_f(beta) > here.log_f(beta) - LOST)
            momentum = momentum + (0.5 if i == self.leapfrog - 1 else 1.0) * size * there.grad(beta)
        ratio = there.log_f(beta) - 0.5 * momentum.square().sum(-1) - energy
        chance = torch.where(fine, ratio.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        moved = torch.rand_like(chance) < chance
        wide = moved.unsqueeze(-1)
        both = zip(there, here, strict=True)
        return Point(*(torch.where(wide if new.dim() > 2 else moved, new, old) for new, old in both)), chance

    def _inside(self, u: Tensor) -> Tensor:
        return ((u > self.low) & (u < self.high)).all(-1)


def walls(of_guide: Tensor, of_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest u, of shape ``(B, D)``, that are within reach of draws ``(K, B, D)``."""
    ends = [(u.amin(0), u.amax(0), FAR * _scale(u)) for u in (of_guide, of_prior)]
    low = torch.minimum(*(low - reach for low, _, reach in ends))
    return low, torch.maximum(*(high + reach for _, high, reach in ends))


def _scale(u: Tensor) -> Tensor:
    """Return the standard deviation of a normal of the same quartiles: a law of heavy tails may have none."""
    low, high = u.quantile(u.new_tensor([0.25, 0.75]), dim=0)
    return ((high - low) / 1.349).clamp(min=1e-6)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return columns of y where columns of x, which rise, are ``at``."""
    at = at.expand(-1, x.shape[1])
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    (x0, x1), (y0, y1) = ((values.gather(0, right - 1), values.gather(0, right)) for values in (x, y))
    return y0.lerp(y1, ((at - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1))
