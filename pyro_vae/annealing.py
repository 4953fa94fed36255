r"""A ladder of densities from a start to the posterior, and Hamiltonian moves under each of them.

What :mod:`pyro_vae.ais` climbs and descends.

References:
    MCMC Using Hamiltonian Dynamics (Neal, 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.compiled import Outputs, Traced, fast_products
from pyro_vae.conditional import mean, stddev
from pyro_vae.data.supports import of_element
from pyro_vae.missing import log_prob
from pyro_vae.vae import VAE

__all__ = ["Ladder", "Plan"]

TARGET = 0.65  # of the moves to accept: optimal for Hamiltonian Monte Carlo in many dimensions
# Of a Gaussian a move of this length forgets where it was; twice the length goes to the other side, and back again. As
# scales are not known that well, steps vary a little, too.
QUARTER = math.pi / 2
JITTER = 0.2
FAR = 50.0  # standard deviations from the start and the prior, where no chain has business
LOST = 1000.0  # nats of density, after which a move is given up
SETTLE = 10  # moves of a pilot at the start, that count for nothing
PILOT = 40  # temperatures of a pilot run
BEND = 4.0  # of the sigmoid that temperatures are on


class Point(NamedTuple):
    """Where chains are, z of shape ``(C, B, latent)``, with the two log-densities there and their gradients."""

    z: Tensor
    start: Tensor
    joint: Tensor
    start_grad: Tensor
    joint_grad: Tensor

    def log_f(self, beta: Tensor) -> Tensor:
        """Return log f, of shape ``(C, B)``, at temperatures ``(B,)``."""
        return self.start.lerp(self.joint, beta)

    def grad(self, beta: Tensor) -> Tensor:
        """Return the gradient of log f, of z's shape, at temperatures ``(B,)``."""
        return self.start_grad.lerp(self.joint_grad, beta.unsqueeze(-1))


class Plan(NamedTuple):
    """Temperatures, from 0 to 1, and the step size of moves at each, both of shape ``(T + 1, B)``."""

    betas: Tensor
    steps: Tensor


class Ladder:
    r"""The densities :math:`f_\beta(z) = p_0(z)^{1 - \beta} p(x, z)^\beta` of some images.

    Moves are in units of a scale of each dimension, whose precision goes from that of the start to that of the guide.

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        start: ``guide`` or ``prior``: what :math:`p_0` is.
        leapfrog: Steps of each move.
        moves: How many are to come, if known: the densities are run as a graph, compiled where that pays.

    Raises:
        ValueError: If z is not of all real numbers.
    """

    def __init__(
        self, vae: VAE, x: Tensor, start: Literal["guide", "prior"], leapfrog: int, moves: int | None = None
    ) -> None:
        self.x, self.leapfrog, self.decoder = x, leapfrog, vae.decoder
        self.prior: Any = vae.prior()
        self.guide: Any = vae.encoder(x)
        self.from_prior = start == "prior"
        if of_element(self.prior.support) is not constraints.real:
            raise ValueError(f"Expected a prior over all real z, to move in; got one over {self.prior.support}.")
        of_guide, of_prior = (mean(self.guide), stddev(self.guide)), (mean(self.prior), stddev(self.prior))
        ends = [(centre - FAR * spread, centre + FAR * spread) for centre, spread in (of_guide, of_prior)]
        self.low, self.high = torch.minimum(*(low for low, _ in ends)), torch.maximum(*(high for _, high in ends))
        first, last = (spread.clamp(min=1e-6) ** -2 for _, spread in (of_prior, of_guide))
        self.precision = (first if self.from_prior else last).expand_as(last), last
        self._missing = bool(x.isnan().any())
        self._graph = Traced(self._densities, calls=moves and moves * leapfrog, quiet=True)

    def at(self, z: Tensor) -> Point:
        """Return the log-densities at z, ``(C, B, latent)``, and their gradients."""
        with fast_products("auto"):
            return Point(z, *self._graph((z,), {}).tensors)

    def _densities(self, z: Tensor) -> Outputs:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            prior = self.prior.log_prob(z)
            start = prior if self.from_prior else self.guide.log_prob(z)
            joint = prior + log_prob(self.decoder(z), self.x, self._missing)
            (start_grad,) = torch.autograd.grad(start.sum(), z, retain_graph=True)
            (joint_grad,) = torch.autograd.grad(joint.sum(), z)
        return Outputs([start.detach(), joint.detach(), start_grad, joint_grad], None)

    def begin(self, chains: int) -> Point:
        """Return draws of the start, ``chains`` for each image."""
        law = self.prior.expand((len(self.x),)) if self.from_prior else self.guide
        return self.at(law.sample((chains,)))

    def plan(self, chains: int, number: int, rounds: int, update: Callable[[int], Any]) -> Plan:
        r"""Return temperatures and step sizes for each image, found by pilot runs.

        A step of the ladder adds :math:`(\Delta \beta)^2 \, \mathrm{Var}_\beta(\log p(x, z) - \log p_0(z))` to the
        variance of log w. Their sum is least where they are equal.

        References:
            Simulating Normalizing Constants: From Importance Sampling to Bridge Sampling to Path Sampling (Gelman and
            Meng, 1998).
        """
        even = torch.linspace(-BEND, BEND, PILOT, dtype=torch.float64).sigmoid()
        even = ((even - even[0]) / (even[-1] - even[0])).to(self.low)
        plan = Plan(*(values.unsqueeze(1).expand(-1, len(self.x)) for values in (even, torch.full_like(even, 0.5))))
        for i in range(rounds):
            here, step, steps, spreads = self.begin(chains), plan.steps[0], [], []
            for t in [0] * SETTLE + [*range(PILOT)]:
                here, chance = self.move(here, plan.betas[t], step)
                step = (step * (chance.mean(0) - TARGET).exp()).clamp(1e-4, 4.0)
                steps.append(step)
                spreads.append((here.joint - here.start).std(0, correction=0))
            spread = torch.stack(spreads[SETTLE:]).nan_to_num(0.0)
            lengths = plan.betas.double().diff(dim=0) * (spread[1:] + spread[:-1] + 1e-6)
            way = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])
            even = torch.linspace(0, 1, number + 1 if i == rounds - 1 else PILOT).to(way).unsqueeze(1)
            betas = _interpolate(even, way / way[-1], plan.betas.double()).to(self.low)
            betas[-1] = 1.0  # it would end before, where the last of the way is nothing up to rounding
            plan = Plan(betas, _interpolate(betas, plan.betas, torch.stack(steps[SETTLE:])))
            update(PILOT)
        return plan

    def climb(self, chains: int, plan: Plan, update: Callable[[], Any]) -> tuple[Tensor, float]:
        """Return log-weights ``(C, B)`` of chains from the start to the posterior, and the share of moves accepted."""
        here, last = self.begin(chains), len(plan.betas) - 1
        log_w, chances = torch.zeros_like(here.joint), [torch.ones_like(here.joint)]
        for t in range(1, last + 1):
            log_w += (plan.betas[t] - plan.betas[t - 1]) * (here.joint - here.start)
            if t < last:
                here, chance = self.move(here, plan.betas[t], plan.steps[t])
                chances.append(chance)
            update()
        return log_w, torch.stack(chances[1:] or chances).mean().item()

    def descend(self, z: Tensor, plan: Plan, update: Callable[[], Any]) -> Tensor:
        """Return log-weights ``(C, B)`` of chains from exact draws of the posterior to the start: climbs, backwards."""
        here, last = self.at(z), len(plan.betas) - 1
        log_w = torch.zeros_like(here.joint)
        for t in range(last, 0, -1):
            if t < last:
                here, _ = self.move(here, plan.betas[t], plan.steps[t])
            log_w += (plan.betas[t] - plan.betas[t - 1]) * (here.joint - here.start)
            update()
        return log_w

    def move(self, here: Point, beta: Tensor, step: Tensor) -> tuple[Point, Tensor]:
        """Move chains under f by Hamiltonian Monte Carlo; return where they are, and the chances of acceptance."""
        jitter = 1 + JITTER * (2 * torch.rand_like(here.joint) - 1)
        size = (jitter * step.clamp(max=QUARTER / self.leapfrog)).unsqueeze(-1) * torch.lerp(
            *self.precision, beta.unsqueeze(-1)
        ).rsqrt()
        momentum = torch.randn_like(here.z)
        energy = here.log_f(beta) - 0.5 * momentum.square().sum(-1)
        there, fine = here, torch.ones_like(energy, dtype=torch.bool)
        momentum = momentum + 0.5 * size * here.grad(beta)
        for i in range(self.leapfrog):
            z = there.z + size * momentum
            # A chain that is lost stays where it was last seen, so that laws are asked of no z that is not a number.
            fine = fine & (z > self.low).all(-1) & (z < self.high).all(-1)
            there = self.at(torch.where(fine.unsqueeze(-1), z, there.z))
            fine = fine & (there.log_f(beta) > here.log_f(beta) - LOST)
            momentum = momentum + (0.5 if i == self.leapfrog - 1 else 1.0) * size * there.grad(beta)
        ratio = there.log_f(beta) - 0.5 * momentum.square().sum(-1) - energy
        chance = torch.where(fine, ratio.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
        moved = torch.rand_like(chance) < chance
        chosen = (
            torch.where(moved.unsqueeze(-1) if new.dim() > moved.dim() else moved, new, old)
            for new, old in zip(there, here, strict=True)
        )
        return Point(*chosen), chance


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return columns of y where columns of x, which rise, are ``at``."""
    at = at.expand(-1, x.shape[1])
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    (x0, x1), (y0, y1) = ((values.gather(0, right - 1), values.gather(0, right)) for values in (x, y))
    return y0.lerp(y1, ((at - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1))
